//! Recovery from the archive alone (DESIGN.md section 5): one cut through everything, and the objects that were written
//! for what lies below it. Pure: whoever calls reads snapshots, entries and footers.
//!
//! First the whole history is replayed, which tells the cut ([`crate::Image::recovery_cut`] at its end). Then a state at or below
//! the cut is taken through [`Rebuild`]: up to the cut every entry as it is; after the cut only what says where bytes below the
//! cut went, and what has left the log. All partitions, groups and producers stand at one point then.
//!
//! Invariants
//! 1. Every command that is kept finds what it found in the first life: its session lives as long (registrations and fences
//!    are kept), ids are granted in the same order, time goes on with every entry.
//! 2. No offset at or above a partition's log end at the cut gets a location: runs are clipped, by the batches that the
//!    object's footer names.
//! 3. Compactions and index objects after the cut do not count. What they replaced was not deleted: an object is deleted only
//!    when the archived cut has passed the entry that made it unreferenced.
//! 4. At the end no partition needs the WAL. If one does, the history is not what it should be, and that is an error.

use std::collections::BTreeMap;

use crate::command::{
    Command, CommitObject, Entry, Envelope, MoveLogStart, NewLogStart, ObjectRun, RaiseIncarnation,
};
use crate::ids::{ObjectId, PartitionKey};
use crate::image::Image;
use crate::record::Location;
use crate::result::CommandResult;
use crate::state::StateMachine;

/// Why nothing can be made of a history. A person has to look.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// Entries do not follow each other.
    #[error("entry {found} comes after entry {applied}")]
    Gap {
        /// The last one applied.
        applied: u64,
        /// The next one given.
        found: u64,
    },
    /// The snapshot lies above the cut.
    #[error("the snapshot ends at entry {snapshot}, above the cut at {cut}")]
    AboveCut {
        /// The snapshot's index.
        snapshot: u64,
        /// The cut.
        cut: u64,
    },
    /// The footer of an object does not name the batches that its commit did.
    #[error(
        "object {object}: its footer does not have the batches up to offset {end} of {topic}-{partition}"
    )]
    Footer {
        /// The object.
        object: ObjectId,
        /// Topic id.
        topic: crate::TopicId,
        /// Partition.
        partition: i32,
        /// The log end that the run is clipped to.
        end: i64,
    },
    /// Offsets below the cut are in no object.
    #[error(
        "{topic}-{partition} has offset {offset} in the WAL only, although the cut says that an object has it"
    )]
    InWal {
        /// Topic id.
        topic: crate::TopicId,
        /// Partition.
        partition: i32,
        /// The first such offset.
        offset: i64,
    },
    /// The incarnation could not be raised.
    #[error("the incarnation could not be raised to {0}: 255 is the last one")]
    Incarnation(u32),
}

/// What is left of a run whose end lies above a log end.
pub type Clip<'a> = dyn FnMut(ObjectId, &ObjectRun, i64) -> Option<ObjectRun> + 'a;

/// Replays entries up to the cut, and of the later ones what counts. See the module.
#[derive(Debug)]
pub struct Rebuild {
    machine: StateMachine,
    cut: u64,
    cut_time_ms: i64,
}

impl Rebuild {
    /// From a state at or below the cut.
    pub fn new(machine: StateMachine, cut: u64) -> Result<Self, RecoverError> {
        let snapshot = machine.applied_index();
        if snapshot > cut {
            return Err(RecoverError::AboveCut { snapshot, cut });
        }
        Ok(Self { cut_time_ms: machine.time_ms(), machine, cut })
    }

    /// The objects whose footers [`Rebuild::entry`] will ask for.
    pub fn needs(&self, index: u64, entry: Option<&Entry>) -> Vec<ObjectId> {
        if index <= self.cut {
            return Vec::new();
        }
        let image = self.machine.view();
        let mut objects = Vec::new();
        for envelope in entry.into_iter().flat_map(|entry| &entry.commands) {
            if let Some(Command::CommitObject(commit)) = &envelope.command
                && commit.runs.iter().any(|run| log_end(image, run).is_some_and(|end| straddles(run, end)))
            {
                objects.push(commit.object);
            }
        }
        objects
    }

    /// The next entry; `None`: one without commands.
    pub fn entry(
        &mut self,
        index: u64,
        entry: Option<&Entry>,
        clip: &mut Clip<'_>,
    ) -> Result<(), RecoverError> {
        let applied = self.machine.applied_index();
        if index != applied + 1 {
            return Err(RecoverError::Gap { applied, found: index });
        }
        match entry {
            None => {
                self.machine.skip(index);
            }
            Some(entry) if index <= self.cut => {
                self.machine.apply(index, entry);
            }
            Some(entry) => {
                let entry = self.kept(entry, clip)?;
                self.machine.apply(index, &entry);
            }
        }
        if index <= self.cut {
            self.cut_time_ms = self.machine.time_ms();
        }
        Ok(())
    }

    /// An entry after the cut with the commands that count.
    fn kept(&self, entry: &Entry, clip: &mut Clip<'_>) -> Result<Entry, RecoverError> {
        let mut commands = Vec::new();
        for envelope in &entry.commands {
            let command = match &envelope.command {
                Some(
                    command @ (Command::SetFeatureLevel(_)
                    | Command::RegisterDirectory(_)
                    | Command::RegisterSession(_)
                    | Command::FenceSession(_)
                    | Command::GrantObjects(_)
                    | Command::DeleteTopics(_)
                    | Command::UndeleteTopic(_)
                    | Command::PurgeTopics(_)
                    | Command::ExpireTopics(_)),
                ) => command.clone(),
                Some(Command::CommitObject(commit)) => Command::CommitObject(self.clipped(commit, clip)?),
                Some(Command::MoveLogStart(moved)) => Command::MoveLogStart(self.at_most_the_end(moved)),
                _ => continue,
            };
            commands.push(Envelope { command: Some(command), ..envelope.clone() });
        }
        Ok(Entry { commands, ..entry.clone() })
    }

    fn clipped(&self, commit: &CommitObject, clip: &mut Clip<'_>) -> Result<CommitObject, RecoverError> {
        let image = self.machine.view();
        let mut runs = Vec::with_capacity(commit.runs.len());
        for run in &commit.runs {
            let Some(end) = log_end(image, run).filter(|end| run.base_offset < *end) else { continue };
            if !straddles(run, end) {
                runs.push(*run);
                continue;
            }
            let clipped = clip(commit.object, run, end).filter(|clipped| {
                clipped.base_offset == run.base_offset
                    && clipped.last_offset == end - 1
                    && clipped.position == run.position
                    && clipped.size_bytes < run.size_bytes
            });
            runs.push(clipped.ok_or(RecoverError::Footer {
                object: commit.object,
                topic: run.topic_id,
                partition: run.partition,
                end,
            })?);
        }
        Ok(CommitObject { runs, ..commit.clone() })
    }

    fn at_most_the_end(&self, moved: &MoveLogStart) -> MoveLogStart {
        let image = self.machine.view();
        let clipped = |start: &NewLogStart| {
            let end = image
                .stored_view(PartitionKey::new(start.topic_id, start.partition))
                .map_or(start.log_start, |view| view.high_watermark);
            NewLogStart { log_start: start.log_start.min(end), ..*start }
        };
        MoveLogStart { partitions: moved.partitions.iter().map(clipped).collect(), ..moved.clone() }
    }

    /// Begins `incarnation`, after the last entry. Gives the state, and the state machine's time at the cut.
    pub fn finish(mut self, incarnation: u32) -> Result<(StateMachine, i64), RecoverError> {
        let index = self.machine.applied_index() + 1;
        let raise = Envelope::unnumbered(Command::RaiseIncarnation(RaiseIncarnation { incarnation }));
        let applied = self.machine.apply(index, &Entry::new(self.machine.time_ms(), vec![raise]));
        let raised =
            matches!(applied.results.as_slice(), [CommandResult::Done(done)] if done.error_code == 0);
        if !raised || self.machine.view().incarnation() != incarnation {
            return Err(RecoverError::Incarnation(incarnation));
        }
        nothing_in_wal(self.machine.view())?;
        Ok((self.machine, self.cut_time_ms))
    }
}

fn log_end(image: &Image, run: &ObjectRun) -> Option<i64> {
    let view = image.stored_view(PartitionKey::new(run.topic_id, run.partition))?;
    Some(view.high_watermark)
}

fn straddles(run: &ObjectRun, end: i64) -> bool {
    run.base_offset < end && run.last_offset >= end
}

fn nothing_in_wal(image: &Image) -> Result<(), RecoverError> {
    for view in (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)) {
        let in_wal = view.wal.values().find(|extent| matches!(extent.location, Some(Location::Wal(_))));
        if let Some(extent) = in_wal {
            return Err(RecoverError::InWal {
                topic: view.topic_id,
                partition: view.partition,
                offset: extent.base_offset,
            });
        }
    }
    Ok(())
}

/// Log ends of every partition, by topic name: what a report compares before and after.
pub fn log_ends(image: &Image) -> BTreeMap<(String, i32), (i64, i64)> {
    let mut ends = BTreeMap::new();
    for topic in image.topics() {
        for partition in 0..topic.partitions {
            if let Some(view) = image.partition(topic.topic_id, partition) {
                ends.insert((topic.name.clone(), partition), (view.log_start, view.high_watermark));
            }
        }
    }
    ends
}
