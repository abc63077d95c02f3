//! `isobar recover`, the pure part: from snapshots, the archived log and nothing else, the cluster as it was at one index.
//!
//! What a WAL held is gone, so what may come back is what lies in objects. The *cut* ([`crate::Image::recovery_cut`]) of the
//! archive's last entry is the newest index at which every partition was such that today all of it does: each offset below
//! its log end is in an object, put there before the cut or later. Later entries after the cut are not repeated; taken from
//! them is only where bytes of before the cut went, and what went for good: granted ids, swaps from the WAL (clipped to
//! the log ends at the cut), log starts, and the deletion, return and purge of topics.
//!
//! Compaction and index commits after the cut are left out: what they replaced cannot have been deleted, for it became
//! unreferenced after the cut (the deleter's rule, [`crate::Image::archived_cut`]), and their objects expire as ids that nobody
//! committed. What is taken is taken from the *effects* of a state machine that goes through the whole log, not from its
//! commands, because a repeat in the log must not be applied twice and a refused command not at all.
//!
//! How to use it
//! 1. A [`StateMachine`] from the newest snapshot, through every entry: its cut.
//! 2. A [`Recovery`] from the newest snapshot at or below the cut, through every entry again.
//! 3. For each of [`Recovery::clips`] where the bytes end, from the object's footer or its batches.
//! 4. [`Recovery::finish`] with an incarnation that the caller has claimed. The log of the new incarnation begins behind the
//!    index of the state machine that it gives, with its snapshot.
//!
//! Invariants of what comes out: every offset in the log lies in an object that the old cluster may not have deleted; log ends
//! and groups' offsets are those of the cut; leader epochs and ids are of the new incarnation, so that nothing is ever read
//! under an (offset, leader epoch) that had other content, and no id is granted twice.

use crate::command::{Command, Entry, Envelope, RaiseIncarnation};
use crate::ids::{MAX_INCARNATION, ObjectId, PartitionKey, StoreId};
use crate::result::CommandResult;
use crate::state::StateMachine;

/// Why there is nothing to recover from what was given.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// Take an older snapshot.
    #[error("the snapshot is of index {snapshot}, above the cut {cut}")]
    SnapshotTooNew { snapshot: u64, cut: u64 },
    /// The archive lacks entries. Find them, or end before them.
    #[error("entry {expected} is missing before entry {found}")]
    Gap { expected: u64, found: u64 },
    /// The log that was given ends below the cut. Give all of it.
    #[error("the log ends at {end}, below the cut {cut}")]
    TooShort { end: u64, cut: u64 },
    /// The log was given only in part, or the cut is not that of its last entry.
    #[error("offset {offset} of {partition:?} is in no object")]
    Torn { partition: PartitionKey, offset: i64 },
    /// Each clip needs an answer.
    #[error("{found} answers for {expected} clips")]
    Clips { found: usize, expected: usize },
    /// Claim another.
    #[error("incarnation {incarnation} does not follow {newest}, or is above {MAX_INCARNATION}")]
    Incarnation { incarnation: u32, newest: u32 },
}

/// A run that was cut at the partition's log end: where do its bytes end?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clip {
    pub partition: PartitionKey,
    pub store: StoreId,
    pub object: ObjectId,
    /// Byte range of the whole run in the object.
    pub position: u64,
    pub size_bytes: u32,
    pub base_offset: i64,
    /// Of the whole run, inclusive.
    pub last_offset: i64,
    /// Of what stays, exclusive: where a batch ends.
    pub end_offset: i64,
}

/// The answer to a [`Clip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clipped {
    /// From the run's position on.
    pub size_bytes: u32,
    /// The greatest of the batches that stay.
    pub max_timestamp_ms: i64,
}

/// See the module.
pub struct Recovery {
    cut: u64,
    /// What the log says.
    full: StateMachine,
    /// What comes back; from the cut on.
    kept: Option<StateMachine>,
    clips: Vec<Clip>,
}

impl Recovery {
    /// Begins with a snapshot at or below the cut.
    pub fn new(snapshot: StateMachine, cut: u64) -> Result<Self, RecoverError> {
        let at = snapshot.applied_index();
        if at > cut {
            return Err(RecoverError::SnapshotTooNew { snapshot: at, cut });
        }
        Ok(Self { cut, full: snapshot, kept: None, clips: Vec::new() })
    }

    /// The next entry of the log; `None`: it holds no commands (membership, a new leader's blank).
    pub fn entry(&mut self, index: u64, entry: Option<&Entry>) -> Result<(), RecoverError> {
        let expected = self.full.applied_index() + 1;
        if index != expected {
            return Err(RecoverError::Gap { expected, found: index });
        }
        if index > self.cut && self.kept.is_none() {
            self.kept = Some(self.full.clone());
        }
        let effects = match entry {
            Some(entry) => self.full.apply(index, entry).effects,
            None => self.full.skip(index),
        };
        if let Some(kept) = &mut self.kept {
            kept.follow_after_cut(&effects, self.full.view(), &mut self.clips);
        }
        Ok(())
    }

    /// After the last entry: runs that were cut. At most one for each partition and store.
    pub fn clips(&self) -> &[Clip] {
        &self.clips
    }

    /// The time of the log's last entry, in ms: what the recovered cluster lacks lies between that of the cut and this.
    pub fn time_ms(&self) -> i64 {
        self.full.time_ms()
    }

    /// The state machine that the new incarnation begins with; `clipped` answers [`Recovery::clips`] in order.
    pub fn finish(
        self,
        clipped: &[Clipped],
        incarnation: u32,
        time_ms: i64,
    ) -> Result<StateMachine, RecoverError> {
        let (end, cut, newest) = (self.full.applied_index(), self.cut, self.full.view().incarnation());
        if end < cut {
            return Err(RecoverError::TooShort { end, cut });
        }
        if clipped.len() != self.clips.len() {
            return Err(RecoverError::Clips { found: clipped.len(), expected: self.clips.len() });
        }
        let mut kept = self.kept.unwrap_or(self.full);
        for (clip, clipped) in self.clips.iter().zip(clipped) {
            kept.resize_clipped(clip, clipped);
        }
        let image = kept.view();
        let mut in_wal = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard));
        if let Some(view) = in_wal.next() {
            let offset = view.wal.get_min().map_or(view.log_start, |(base, _)| *base);
            return Err(RecoverError::Torn { partition: view.key(), offset });
        }
        drop(in_wal);
        let raise = Command::RaiseIncarnation(RaiseIncarnation { incarnation });
        let applied = kept.apply(end + 1, &Entry::new(time_ms, vec![Envelope::unnumbered(raise)]));
        let raised =
            matches!(applied.results.first(), Some(CommandResult::Done(done)) if done.error_code == 0);
        if !raised || incarnation <= newest {
            return Err(RecoverError::Incarnation { incarnation, newest });
        }
        // Every one of them is gone, and no stream names one.
        kept.forget_directories();
        Ok(kept)
    }
}
