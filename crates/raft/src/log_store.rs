//! openraft's log storage on the journal.
//!
//! Owns: the Raft log of this member: entries, vote, committed id, all as frames of one journal ([`crate::records`]).
//!
//! Invariants
//! 1. Frames go to the journal in the order of openraft's calls, from one task; the journal writes and answers in that
//!    order. So whatever a crash cuts off is a suffix, and completions reach openraft in order.
//! 2. A vote is synced before `save_vote` returns. Entries are synced before their callback is called.
//! 3. The committed id is written with the next frame, whatever that is, and never by itself. Safe, because it is a
//!    hint: the entries it covers are in earlier frames of the same journal, and were on a quorum before it moved. A
//!    restart that finds an older one applies less of the log at first; `Quorum::start` answers nothing before this
//!    member has learnt the true one (as leader, by committing an entry of its own term), and leadership is never
//!    restored without an election. It can never be newer than the entries before it.
//! 4. Entries are readable, from memory, when `append` returns.
//! 5. A segment goes back to the journal only after the frame that says "purged" is synced in a later segment, and
//!    together with all earlier ones.
//!
//! Failure: after the first write that fails nothing more is handed to the journal, and openraft stops. Frames that were
//! already queued behind it may still reach the disk (a small one fits where a large one did not); recovery knows them by
//! their number and ignores them ([`crate::log`], invariant 5). Nothing is retried.
//!
//! Crash cases: after a truncation frame is handed over but not synced, the cut entries may be back (Raft allows it: no
//! one was told); after a purge is synced but before its segments went back, they go back with the next purge.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::Stream;
use isobar_host::{BufferPool, watch};
use isobar_journal::{Frame, HEADER_BYTES, Journal, JournalError, Written};
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};
use parking_lot::Mutex;
use prost::Message as _;

use crate::log::{Log, Place};
use crate::metrics::RaftMetrics;
use crate::records::{EntryRecord, FrameRecord, LogIdRecord, TruncateRecord, kind};
use crate::types::{LogEntry, LogId, Types, Vote};

/// No frame is larger, but for one entry of its own.
const MAX_FRAME_BYTES: usize = 4 << 20;
/// What one read gives at most: an append message to a follower.
const MAX_READ_BYTES: usize = 4 << 20;
/// What is read from the disk at once, unless a single frame is larger.
const RUN_BYTES: u64 = 1 << 20;

/// The log store; also its reader. Clones share the log.
#[derive(Clone)]
pub(crate) struct LogStore {
    shared: Arc<Shared>,
}

struct Shared {
    log: Mutex<Log>,
    journal: Journal,
    buffers: BufferPool,
    failed: AtomicBool,
    /// Told when a frame of this life is synced.
    synced: watch::Sender<bool>,
    metrics: Arc<RaftMetrics>,
}

impl LogStore {
    /// On a journal whose frames `log` has replayed.
    pub(crate) fn new(log: Log, journal: Journal, buffers: BufferPool, metrics: Arc<RaftMetrics>) -> Self {
        let failed = AtomicBool::new(false);
        let synced = watch::Sender::new(false);
        Self { shared: Arc::new(Shared { log: Mutex::new(log), journal, buffers, failed, synced, metrics }) }
    }

    /// The last entry dropped at the start.
    pub(crate) fn purged(&self) -> Option<LogId> {
        self.shared.log.lock().purged()
    }

    /// Index of the first entry that it holds, or of the next one.
    pub(crate) fn first_index(&self) -> u64 {
        self.shared.log.lock().range().start
    }

    /// Bytes on disk.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.journal.bytes_live()
    }

    /// Writes what waits and lets go of the disk.
    pub(crate) async fn close(&self) {
        self.shared.journal.close().await;
    }

    /// True if nothing was ever written here.
    pub(crate) fn is_pristine(&self) -> bool {
        let log = self.shared.log.lock();
        log.vote().is_none() && log.last().is_none()
    }

    /// Waits until this life has written something that a crash leaves there.
    pub(crate) async fn first_synced(&self) {
        // The sender is in here.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Hands one frame over. `done` is called in the order of the calls, after the log knows the frame's place.
    fn submit(
        &self,
        frame_kind: u8,
        record: &FrameRecord,
        ticket: Option<u64>,
        done: impl FnOnce(io::Result<Written>) + Send + 'static,
    ) -> io::Result<()> {
        if self.shared.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("the metadata log has failed before"));
        }
        let highest = record.entries.last().map(|e| e.id.index);
        let meta = record.encode_to_vec();
        let buffer = self.shared.buffers.take(HEADER_BYTES + meta.len());
        let frame = Frame::of_meta(buffer, frame_kind, &meta);
        let shared = Arc::clone(&self.shared);
        let handed = self.shared.journal.append(frame, move |result| {
            match &result {
                Ok(written) => {
                    shared.settle(ticket, written, highest);
                    shared.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
                }
                Err(_) => shared.failed.store(true, Ordering::Relaxed),
            }
            done(result.map_err(to_io));
        });
        handed.map_err(|error| {
            self.shared.failed.store(true, Ordering::Relaxed);
            to_io(error)
        })
    }

    /// Hands one frame of entries over; `flushed` is called once it is synced.
    fn submit_entries(&self, entries: Vec<LogEntry>, flushed: Option<IOFlushed<Types>>) -> io::Result<()> {
        let (record, ticket) = {
            let mut log = self.shared.log.lock();
            let mut record = log.frame();
            record.entries = entries.iter().map(EntryRecord::of).collect();
            let ticket =
                log.append(entries).map_err(|what| io::Error::new(io::ErrorKind::InvalidInput, what))?;
            (record, ticket)
        };
        self.submit(kind::APPEND, &record, Some(ticket), move |result| {
            if let Some(flushed) = flushed {
                flushed.io_completed(result.map(drop));
            }
        })
    }

    /// Hands over a frame without entries that nobody waits for.
    fn submit_note(&self, frame_kind: u8, record: &FrameRecord) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        // Of this frame, not of now: a later purge may not be synced yet.
        let purged = record.purged.map(|id| id.index);
        self.submit(frame_kind, record, None, move |result| match result {
            Ok(written) if frame_kind == kind::PURGE => shared.recycle_before(written.segment, purged),
            Ok(_) => {}
            // The next append or vote reports it to openraft.
            Err(error) => tracing::error!(%error, "the metadata log could not be written"),
        })
    }

    /// The entries of `range` that it holds, at most about `max_bytes`, but at least one.
    pub(crate) async fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        loop {
            let (plan, start) = {
                let log = self.shared.log.lock();
                (log.plan(range.clone(), max_bytes), log.range().start)
            };
            match self.fetch(plan).await {
                // A purge that ran meanwhile gave the segment back: those entries are gone by right.
                Err(_) if self.shared.log.lock().range().start > start => {}
                result => return result,
            }
        }
    }

    async fn fetch(&self, plan: crate::log::ReadPlan) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::with_capacity(plan.cached.len());
        // A read each would make a start after many small entries take minutes.
        for mut run in runs(&plan.frames) {
            while !run.is_empty() {
                let places = run.iter().map(|(place, _)| (place.position, place.len_bytes)).collect();
                let frames = self.shared.journal.read(places).await.map_err(to_io)?;
                for (frame, (place, wanted)) in frames.iter().zip(run) {
                    decode_into(&mut entries, frame, *place, wanted)?;
                }
                // Fewer than were asked for, if one of them is damaged: that one's turn is now.
                run = &run[frames.len()..];
            }
        }
        entries.extend(plan.cached);
        Ok(entries)
    }
}

impl Shared {
    fn settle(&self, ticket: Option<u64>, written: &Written, highest: Option<u64>) {
        let place = Place { position: written.position, segment: written.segment, len_bytes: written.len };
        let mut log = self.log.lock();
        log.written(ticket, place, highest);
        self.metrics.log_cache_bytes.set(i64::try_from(log.cache_bytes()).unwrap_or(i64::MAX));
        drop(log);
        self.metrics.log_bytes.set(i64::try_from(self.journal.bytes_live()).unwrap_or(i64::MAX));
    }

    fn recycle_before(&self, segment: u64, purged: Option<u64>) {
        let sealed: Vec<u64> = self.journal.sealed_segments().into_iter().filter(|s| *s < segment).collect();
        let free = self.log.lock().recyclable(&sealed, purged);
        for segment in free {
            self.journal.recycle(segment);
        }
    }
}

/// The entries that a frame holds of those `wanted`: all of them, or damage.
fn decode_into(
    entries: &mut Vec<LogEntry>,
    frame: &Frame,
    place: Place,
    wanted: &Range<u64>,
) -> io::Result<()> {
    let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, format!("{place:?}: {what}"));
    let record = FrameRecord::parse(frame.meta()).map_err(invalid)?;
    let before = entries.len();
    for entry in record.entries.iter().filter(|e| wanted.contains(&e.id.index)) {
        entries.push(entry.decode_entry().map_err(invalid)?);
    }
    if (entries.len() - before) as u64 != wanted.end - wanted.start {
        return Err(invalid(format!("the frame does not hold all of {wanted:?}")));
    }
    Ok(())
}

/// Frames that lie one behind the other, in pieces to be read at once.
fn runs(frames: &[(Place, Range<u64>)]) -> impl Iterator<Item = &[(Place, Range<u64>)]> {
    let mut bytes = 0;
    frames.chunk_by(move |(one, _), (next, _)| {
        bytes += u64::from(one.len_bytes);
        let goes_on = one.segment == next.segment
            && one.position + u64::from(one.len_bytes) == next.position
            && bytes + u64::from(next.len_bytes) <= RUN_BYTES;
        if !goes_on {
            bytes = 0;
        }
        goes_on
    })
}

fn to_io(error: JournalError) -> io::Error {
    io::Error::other(error)
}

fn to_range(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<LogEntry>, io::Error> {
        self.read(to_range(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read(start..end, MAX_READ_BYTES).await
    }

    /// In pieces, so that applying a long log does not hold all of it in memory.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<LogEntry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let pieces =
            futures_util::stream::try_unfold((self.clone(), to_range(&range)), |(store, range)| async move {
                if range.is_empty() {
                    return Ok::<_, io::Error>(None);
                }
                let entries = store.read(range.clone(), MAX_READ_BYTES).await?;
                let Some(next) = entries.last().map(|e| e.log_id.index + 1) else {
                    return Ok(None);
                };
                let piece = futures_util::stream::iter(entries.into_iter().map(Ok));
                Ok(Some((piece, (store, next..range.end))))
            });
        futures_util::TryStreamExt::try_flatten(pieces)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.log.lock().vote())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let log = self.shared.log.lock();
        Ok(LogState { last_purged_log_id: log.purged(), last_log_id: log.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let record = {
            let mut log = self.shared.log.lock();
            log.set_vote(*vote);
            log.frame()
        };
        let (tx, rx) = tokio::sync::oneshot::channel();
        self.submit(kind::VOTE, &record, None, move |result| {
            // Nobody listens if openraft was stopped meanwhile.
            let _ = tx.send(result.map(drop));
        })?;
        match rx.await {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the journal dropped the vote unanswered")),
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.shared.log.lock().set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.log.lock().committed())
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch: Vec<LogEntry> = Vec::new();
        let mut batch_bytes = 0;
        for entry in entries {
            let bytes = crate::log::entry_bytes(&entry);
            if !batch.is_empty() && batch_bytes + bytes > MAX_FRAME_BYTES {
                self.submit_entries(std::mem::take(&mut batch), None)?;
                batch_bytes = 0;
            }
            batch_bytes += bytes;
            batch.push(entry);
        }
        self.submit_entries(batch, Some(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let record = {
            let mut log = self.shared.log.lock();
            log.truncate_after(last_log_id);
            let mut record = log.frame();
            record.truncate = Some(TruncateRecord { after: last_log_id.as_ref().map(LogIdRecord::of) });
            record
        };
        self.submit_note(kind::TRUNCATE, &record)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let record = {
            let mut log = self.shared.log.lock();
            log.purge(log_id);
            log.frame()
        };
        self.submit_note(kind::PURGE, &record)
    }
}
