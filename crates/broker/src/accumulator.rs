//! Gathers batches of all connections into chunks, makes them durable, has them sequenced, and tells who waits.
//!
//! Owns: one lane of this broker's session: its open chunk, the chunks that wait to be sent, and the numbers that
//! chunks and commits get.
//!
//! Group commit, not a timer: with no append under way a chunk is sent at once; else batches gather until one
//! returns, or until the chunk has grown to its target and fewer than `lane_max_in_flight` appends are under way. In the
//! class `object` each chunk costs a PUT, so there batches gather for `linger`, or up to the target.
//!
//! Invariants:
//! 1. Chunks are appended in the order of their numbers, and proposed in the order in which their appends end,
//!    which is the same (DESIGN.md section 4, "Order").
//! 2. A commit is proposed only after its chunk is durable; a waiter hears of success only after the commit was
//!    applied (DESIGN.md section 2, invariant 2).
//! 3. Every batch that was pushed is answered exactly once, also when the lane stops.
//!
//! 4. A chunk gets its number when it is handed over, so that numbers have no gap although the sink may refuse some.
//!
//! Failure: a WAL that is full, or a store that is down, refuses a chunk and all that are under way behind it. Their batches
//! are answered KAFKA_STORAGE_ERROR, which clients try again, and the lane goes on from the first refused number once nothing
//! is under way; until the WAL has room [`Lane::reserve`] holds producers up. An append or a commit that fails for good
//! stops the lane: everything that waits and comes later is answered KAFKA_STORAGE_ERROR, and the node says that it is
//! not ready. One process has nowhere to move the lane to.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{BufferPool, Host};
use isobar_metadata::command::{
    ChunkObject, CommitBatch, CommitChunk, CommitPartition, FIRST_NUMBER, MAX_CHUNK_BATCHES,
};
use isobar_metadata::result::ChunkResult;
use isobar_metadata::{
    Command, CommandResult, Durability, Envelope, LaneId, PartitionKey, SessionId, StreamId,
};
use isobar_protocol::error::ErrorCode;
use isobar_raft::{ProposeError, Quorum};
use isobar_wal::{BatchInfo, Chunk, ChunkWriter};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::sink::{Durable, Refusal, Sink};

/// Room in a lane is counted in units of this many bytes.
const ROOM_UNIT_BYTES: usize = 1 << 10;
/// The smallest buffer a chunk begins with.
const MIN_CHUNK_BUFFER_BYTES: usize = 64 << 10;
/// The largest, unless a single batch needs more.
const MAX_CHUNK_BUFFER_BYTES: usize = 4 << 20;
/// What a chunk's head and table take at the least, beside its batches.
const CHUNK_OVERHEAD_BYTES: usize = 8 << 10;

/// How one batch fared.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) error: ErrorCode,
    /// First offset; -1 unless it was sequenced.
    pub(crate) base_offset: i64,
    /// -1 unless the topic stamps the time of the append.
    pub(crate) log_append_time_ms: i64,
    /// -1 unless known.
    pub(crate) log_start_offset: i64,
    /// More than the code says, for the client's log.
    pub(crate) message: Option<String>,
}

impl Outcome {
    pub(crate) fn refused(error: ErrorCode, message: Option<String>) -> Self {
        Self { error, base_offset: -1, log_append_time_ms: -1, log_start_offset: -1, message }
    }
}

/// The batches of one request that are on their way.
pub(crate) struct Waiting {
    left: AtomicUsize,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    done: Notify,
    _room: Vec<OwnedSemaphorePermit>,
}

impl Waiting {
    /// For a request of `partitions`, `pushed` of which will be answered by the lane.
    pub(crate) fn new(partitions: usize, pushed: usize, room: Vec<OwnedSemaphorePermit>) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicUsize::new(pushed),
            outcomes: Mutex::new(vec![None; partitions]),
            done: Notify::new(),
            _room: room,
        })
    }

    /// Notes an outcome that is known without the lane.
    pub(crate) fn set(&self, index: usize, outcome: Outcome) {
        if let Some(slot) = self.outcomes.lock().get_mut(index) {
            *slot = Some(outcome);
        }
    }

    fn answer(&self, index: usize, outcome: Outcome) {
        self.set(index, outcome);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.done.notify_one();
        }
    }

    /// Waits for the last outcome and takes them all, in the order of the request's partitions.
    pub(crate) async fn outcomes(&self) -> Vec<Outcome> {
        while self.left.load(Ordering::Acquire) > 0 {
            self.done.notified().await;
        }
        let outcomes = std::mem::take(&mut *self.outcomes.lock());
        let missing = || Outcome::refused(ErrorCode::UnknownServerError, None);
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(missing)).collect()
    }
}

/// A batch that was checked and may be appended.
pub(crate) struct Checked {
    pub(crate) key: PartitionKey,
    pub(crate) info: BatchInfo,
    pub(crate) bytes: Bytes,
    /// The topic's class, and the version of class and placement that the batch was checked against.
    pub(crate) durability: Durability,
    pub(crate) class_epoch: u32,
    /// Place in its request.
    pub(crate) index: usize,
}

struct Slot {
    waiting: Arc<Waiting>,
    index: usize,
}

struct OpenChunk {
    writer: ChunkWriter,
    slots: Vec<Slot>,
    class_epochs: BTreeMap<PartitionKey, u32>,
    opened: Instant,
}

struct SealedChunk {
    chunk: Chunk,
    slots: Vec<Slot>,
    class_epochs: BTreeMap<PartitionKey, u32>,
    opened: Instant,
}

#[derive(Default)]
struct State {
    open: Option<OpenChunk>,
    /// Chunks that are closed to further batches and wait for their turn.
    grown: VecDeque<OpenChunk>,
    in_flight: usize,
    next_chunk: u64,
    /// The first number that a full WAL refused, while later ones are under way: they will be refused too.
    refused_from: Option<u64>,
    /// Batch bytes of recent chunks, for the size of the next buffer.
    recent_bytes: usize,
    /// Somebody is handing chunks to the WAL; whoever else would goes home.
    sending: bool,
    stopped: bool,
}

/// Bounds of a lane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes between receipt and acknowledgement.
    pub(crate) max_bytes: usize,
    /// Appends under way at once.
    pub(crate) max_in_flight: usize,
    /// A chunk of this size is sent although another append is under way.
    pub(crate) chunk_target_bytes: usize,
    /// How long a smaller chunk gathers; zero: as long as an append is under way.
    pub(crate) linger: Duration,
}

/// Where a lane's chunks and commits go.
#[derive(Clone)]
pub(crate) struct LaneTarget {
    pub(crate) session: SessionId,
    pub(crate) lane: LaneId,
    pub(crate) sink: Sink,
    pub(crate) quorum: Quorum,
}

/// This broker's lanes: one for each durability class.
pub(crate) struct Lanes {
    pub(crate) wal: Arc<Lane>,
    pub(crate) object: Arc<Lane>,
}

impl Lanes {
    pub(crate) fn of(&self, durability: Durability) -> &Arc<Lane> {
        match durability {
            Durability::Wal => &self.wal,
            Durability::Object => &self.object,
        }
    }

    pub(crate) fn all(&self) -> [(Durability, &Arc<Lane>); 2] {
        [(Durability::Wal, &self.wal), (Durability::Object, &self.object)]
    }
}

/// One lane.
pub(crate) struct Lane {
    host: Host,
    target: LaneTarget,
    pool: BufferPool,
    metrics: Arc<Metrics>,
    limits: Limits,
    /// The sink's, which does not change.
    max_chunk_bytes: usize,
    room: Arc<Semaphore>,
    /// Commit numbers answered so far; answers come in order.
    answered: AtomicU64,
    state: Mutex<State>,
}

impl Lane {
    pub(crate) fn new(
        host: Host,
        target: LaneTarget,
        pool: BufferPool,
        metrics: Arc<Metrics>,
        limits: Limits,
    ) -> Arc<Self> {
        let units = limits.max_bytes.div_ceil(ROOM_UNIT_BYTES);
        let max_chunk_bytes = target.sink.max_chunk_bytes();
        Arc::new(Self {
            host,
            max_chunk_bytes,
            target,
            pool,
            metrics,
            limits,
            room: Arc::new(Semaphore::new(units)),
            answered: AtomicU64::new(0),
            state: Mutex::default(),
        })
    }

    /// Waits for room for `bytes` here and in the WAL. `None` if there is none within `timeout`.
    pub(crate) async fn reserve(&self, bytes: usize, timeout: Duration) -> Option<OwnedSemaphorePermit> {
        let most = self.limits.max_bytes.div_ceil(ROOM_UNIT_BYTES);
        let units = u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES).clamp(1, most)).unwrap_or(u32::MAX);
        if self.target.sink.has_room()
            && let Ok(permit) = Arc::clone(&self.room).try_acquire_many_owned(units)
        {
            return Some(permit);
        }
        let room = async {
            self.target.sink.room().await;
            Arc::clone(&self.room).acquire_many_owned(units).await.ok()
        };
        tokio::time::timeout(timeout, room).await.ok()?
    }

    /// The largest batch that a chunk has room for.
    pub(crate) fn max_batch_bytes(&self) -> usize {
        self.max_chunk_bytes.saturating_sub(CHUNK_OVERHEAD_BYTES)
    }

    /// Bytes that wait for their acknowledgement.
    pub(crate) fn queued_bytes(&self) -> usize {
        let all = self.limits.max_bytes.div_ceil(ROOM_UNIT_BYTES);
        (all - self.room.available_permits().min(all)) * ROOM_UNIT_BYTES
    }

    /// True once the lane takes nothing more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    /// Appends the batches of one request, in their order. Each is answered through `waiting`.
    pub(crate) fn push<'a>(
        self: &Arc<Self>,
        batches: impl Iterator<Item = &'a Checked>,
        waiting: &Arc<Waiting>,
    ) {
        let mut batches = batches.peekable();
        if batches.peek().is_none() {
            return;
        }
        let mut state = self.state.lock();
        if state.stopped {
            drop(state);
            for batch in batches {
                waiting.answer(batch.index, stopped());
            }
            return;
        }
        let mut opened = false;
        for batch in batches {
            opened |= self.push_one(&mut state, batch, waiting);
        }
        drop(state);
        if opened && !self.limits.linger.is_zero() {
            let lane = Arc::clone(self);
            self.host.spawn("lane-linger", async move {
                tokio::time::sleep(lane.limits.linger).await;
                lane.send_due();
            });
        }
        self.send_due();
    }

    /// True if it opened a chunk.
    fn push_one(&self, state: &mut State, batch: &Checked, waiting: &Arc<Waiting>) -> bool {
        let is_over = |open: &OpenChunk| {
            !open.writer.fits(batch.bytes.len())
                || open.slots.len() >= MAX_CHUNK_BATCHES
                // What was taken in before a topic left this class and came back is refused, and no later batch covers it up:
                // in between others of its producer went by another lane.
                || open.class_epochs.get(&batch.key).is_some_and(|epoch| *epoch != batch.class_epoch)
        };
        if state.open.as_ref().is_some_and(is_over) {
            state.grown.extend(state.open.take());
        }
        let recent_bytes = state.recent_bytes;
        let opens = state.open.is_none();
        let open = state.open.get_or_insert_with(|| {
            // A quarter more than usual: who keeps the chunk (the tail) need not copy it out of a buffer far too large,
            // and a chunk that outgrows it is followed by a larger one.
            let usual = (recent_bytes * 5 / 4).clamp(MIN_CHUNK_BUFFER_BYTES, MAX_CHUNK_BUFFER_BYTES);
            let max_bytes = self.max_chunk_bytes;
            // In few sizes, so that buffers which come back fit.
            let wanted = usual.next_multiple_of((usual.next_power_of_two() / 4).max(MIN_CHUNK_BUFFER_BYTES));
            let needed = batch.bytes.len() + CHUNK_OVERHEAD_BYTES;
            OpenChunk {
                writer: ChunkWriter::new(self.pool.take(wanted.min(max_bytes).max(needed)), max_bytes),
                slots: Vec::new(),
                class_epochs: BTreeMap::new(),
                opened: Instant::now(),
            }
        });
        open.class_epochs.insert(batch.key, batch.class_epoch);
        open.writer.push(batch.key, &batch.info, &batch.bytes);
        open.slots.push(Slot { waiting: Arc::clone(waiting), index: batch.index });
        opens
    }

    fn seal(&self, state: &mut State, open: OpenChunk) -> SealedChunk {
        let number = state.next_chunk;
        state.next_chunk += 1;
        state.recent_bytes = (state.recent_bytes * 3 + open.writer.batch_bytes()) / 4;
        let chunk = open.writer.seal(self.target.sink.stream(), number);
        SealedChunk { chunk, slots: open.slots, class_epochs: open.class_epochs, opened: open.opened }
    }

    /// Hands over whatever is due. One thread at a time does it, so that chunks go out in the order of their
    /// numbers although the lane's lock is not held while the WAL takes one.
    fn send_due(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.sending {
            return;
        }
        state.sending = true;
        while let Some(sealed) = self.next_due(&mut state) {
            state.in_flight += 1;
            drop(state);
            self.append(sealed);
            state = self.state.lock();
        }
        state.sending = false;
    }

    fn next_due(&self, state: &mut State) -> Option<SealedChunk> {
        if state.in_flight >= self.limits.max_in_flight || state.refused_from.is_some() {
            return None;
        }
        let Limits { chunk_target_bytes, linger, .. } = self.limits;
        let due = state.grown.pop_front().or_else(|| {
            let none_under_way = state.in_flight == 0;
            state.open.take_if(|open| {
                let gathered =
                    if linger.is_zero() { none_under_way } else { open.opened.elapsed() >= linger };
                gathered || open.writer.batch_bytes() >= chunk_target_bytes
            })
        })?;
        Some(self.seal(state, due))
    }

    fn append(self: &Arc<Self>, sealed: SealedChunk) {
        let lane = Arc::clone(self);
        let started = Instant::now();
        self.metrics.stage("gather", started - sealed.opened);
        let chunk = sealed.chunk.clone();
        let number = chunk.number() + FIRST_NUMBER;
        self.target.sink.append(chunk, number, move |appended| {
            lane.metrics.stage("append", started.elapsed());
            lane.appended(sealed, appended);
        });
    }

    fn appended(self: &Arc<Self>, sealed: SealedChunk, appended: Result<Durable, Refusal>) {
        let number = sealed.chunk.number();
        let mut refused = None;
        match appended {
            Ok(durable) => {
                self.host.crash_point("produce.after_append");
                self.commit(sealed, durable);
            }
            Err(Refusal::Later(what, error)) => {
                tracing::warn!(%error, chunk = number, "a chunk was refused: its clients will try again");
                refused = Some(number);
                refuse(sealed.slots, &later(what));
            }
            Err(Refusal::ForGood(error)) => {
                tracing::error!(%error, "a chunk was refused for good: this lane stops");
                self.stop();
                refuse(sealed.slots, &stopped());
            }
        }
        let mut state = self.state.lock();
        state.in_flight -= 1;
        if let Some(number) = refused {
            state.refused_from = Some(state.refused_from.map_or(number, |from| from.min(number)));
        }
        if state.in_flight == 0
            && let Some(from) = state.refused_from.take()
        {
            state.next_chunk = from;
        }
        drop(state);
        self.send_due();
    }

    fn commit(self: &Arc<Self>, sealed: SealedChunk, durable: Durable) {
        if self.host.sabotaged("ack-before-commit") {
            for slot in &sealed.slots {
                let early = Outcome { base_offset: 0, ..Outcome::refused(ErrorCode::None, None) };
                slot.waiting.set(slot.index, early);
                slot.waiting.left.store(0, Ordering::Release);
                slot.waiting.done.notify_one();
            }
            self.host.sabotage_lag();
        }
        let number = sealed.chunk.number() + FIRST_NUMBER;
        let floor = self.answered.load(Ordering::Acquire) + FIRST_NUMBER;
        let mut commit = command_of(&sealed, self.target.sink.stream(), durable);
        if self.host.sabotaged("repeat-sequenced-twice") {
            // Without a producer nothing is a repeat.
            for batch in commit.partitions.iter_mut().flat_map(|partition| &mut partition.batches) {
                (batch.producer_id, batch.producer_epoch, batch.base_sequence) = (-1, -1, -1);
            }
        }
        let command = Command::CommitChunk(commit);
        let envelope = Envelope::new(self.target.session, self.target.lane, number, floor, command);
        let lane = Arc::clone(self);
        let started = Instant::now();
        self.target.quorum.propose_with(envelope, move |answer| {
            lane.metrics.stage("commit", started.elapsed());
            lane.answered.fetch_max(number + 1 - FIRST_NUMBER, Ordering::AcqRel);
            lane.committed(sealed, answer);
        });
    }

    fn committed(&self, sealed: SealedChunk, answer: Result<CommandResult, ProposeError>) {
        self.host.crash_point("produce.after_commit");
        match answer {
            Ok(CommandResult::Chunk(result)) if result.error_code == 0 => answer_all(&sealed, &result),
            other => {
                tracing::error!(answer = ?other, "the commit of a chunk failed: this lane stops");
                self.stop();
                let may_be_there = matches!(other, Err(ProposeError::Unknown { .. }));
                refuse(sealed.slots, &if may_be_there { undecided() } else { stopped() });
            }
        }
    }

    /// Takes nothing more, and answers what has not been sent.
    fn stop(&self) {
        let mut state = self.state.lock();
        state.stopped = true;
        let grown = std::mem::take(&mut state.grown);
        let open = state.open.take();
        drop(state);
        refuse(grown.into_iter().chain(open).flat_map(|open| open.slots), &stopped());
    }
}

fn stopped() -> Outcome {
    Outcome::refused(ErrorCode::KafkaStorageError, Some("this broker can no longer write".to_owned()))
}

/// For what the next start may find committed: no client may take it for refused.
fn undecided() -> Outcome {
    Outcome::refused(
        ErrorCode::RequestTimedOut,
        Some("this broker stopped before it knew the outcome".to_owned()),
    )
}

fn later(what: &str) -> Outcome {
    Outcome::refused(ErrorCode::KafkaStorageError, Some(what.to_owned()))
}

fn refuse(slots: impl IntoIterator<Item = Slot>, outcome: &Outcome) {
    for slot in slots {
        slot.waiting.answer(slot.index, outcome.clone());
    }
}

fn command_of(sealed: &SealedChunk, stream: StreamId, durable: Durable) -> CommitChunk {
    let is_object = matches!(durable, Durable::Object(_));
    // Where the next partition's batches begin, if the chunk is an object: one after the other, in this order.
    let mut end = 0;
    let partitions = sealed.chunk.partitions().map(|partition| {
        let position = end;
        end += partition.batches.iter().map(|batch| u64::from(batch.bytes)).sum::<u64>();
        let batches =
            (partition.first_ordinal..).zip(partition.batches).map(|(ordinal, batch)| CommitBatch {
                ordinal,
                record_count: batch.info.record_count,
                max_timestamp_ms: batch.info.max_timestamp_ms,
                producer_id: batch.info.producer_id,
                producer_epoch: i32::from(batch.info.producer_epoch),
                base_sequence: batch.info.base_sequence,
                flags: batch.info.flags,
                size_bytes: batch.bytes,
            });
        CommitPartition {
            topic_id: partition.key.topic_id,
            partition: partition.key.partition,
            class_epoch: sealed.class_epochs.get(&partition.key).copied().unwrap_or(0),
            batches: batches.collect(),
            position: if is_object { position } else { 0 },
        }
    });
    let partitions = partitions.collect();
    match durable {
        Durable::Wal(acked) => CommitChunk {
            stream,
            chunk: sealed.chunk.number(),
            acknowledged: acked.acknowledged,
            partitions,
            object: None,
        },
        Durable::Object(placed) => CommitChunk {
            partitions,
            object: Some(ChunkObject {
                object: placed.object,
                store: placed.store,
                size_bytes: placed.size_bytes,
            }),
            ..CommitChunk::default()
        },
    }
}

/// The result lists batches in the order of the command, which is that of the chunk's ordinals.
fn answer_all(sealed: &SealedChunk, result: &ChunkResult) {
    let sections =
        sealed.chunk.partitions().flat_map(|partition| partition.batches.iter().map(|b| b.section));
    for (section, batch) in sections.zip(&result.batches) {
        let Some(slot) = sealed.slots.get(section as usize) else { continue };
        let error = ErrorCode::from_i16(i16::try_from(batch.error_code).unwrap_or(-1));
        let outcome = Outcome {
            error,
            base_offset: batch.base_offset,
            log_append_time_ms: batch.log_append_time_ms,
            log_start_offset: batch.log_start_offset,
            message: None,
        };
        slot.waiting.answer(slot.index, outcome);
    }
}
