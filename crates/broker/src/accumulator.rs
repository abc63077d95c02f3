//! Gathers batches of all connections into chunks, makes them durable, has them sequenced, and tells who waits.
//!
//! Owns: one lane of this broker's session: its open chunk, and the chunks that wait to be sent. What becomes of a chunk that was
//! sent is [`crate::sequencing`]'s, the order of commits [`crate::commits`]'.
//!
//! Group commit, not a timer: with no append under way a chunk is sent at once; else batches gather until one
//! returns, or until the chunk has grown to its target and fewer than `lane_max_in_flight` appends are under way. In the
//! class `object` each chunk costs a PUT, so there batches gather for `linger`, or up to the target.
//!
//! Invariants:
//! 1. Chunks are appended in the order of their numbers.
//! 2. Every batch that was pushed is answered exactly once, also when the lane stops.
//! 3. A chunk gets its number when it is handed over, so that numbers have no gap although the sink may refuse some.
//!
//! Bounds: bytes between receipt and acknowledgement ([`Lane::reserve`]); appends under way; chunks without a result, beyond which
//! batches gather into larger ones.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{BufferPool, Host, Spawner, watch};
use isobar_metadata::command::MAX_CHUNK_BATCHES;
use isobar_metadata::{Durability, LaneId, PartitionKey, StreamId};
use isobar_protocol::error::ErrorCode;
use isobar_raft::Quorum;
use isobar_wal::{BatchInfo, Chunk, ChunkWriter};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::commits::Commits;
use crate::metrics::Metrics;
use crate::sequencing::{Line, stopped};
use crate::session::{Ensembles, Session};
use crate::sink::Sink;

/// Room in a lane is counted in units of this many bytes.
const ROOM_UNIT_BYTES: usize = 1 << 10;
/// The smallest buffer a chunk begins with.
const MIN_CHUNK_BUFFER_BYTES: usize = 64 << 10;
/// The largest, unless a single batch needs more.
const MAX_CHUNK_BUFFER_BYTES: usize = 4 << 20;
/// What a chunk's head and table take at the least, beside its batches.
const CHUNK_OVERHEAD_BYTES: usize = 8 << 10;
/// Chunks of one lane without a result; well below what the quorum keeps numbers for.
const MAX_OPEN_COMMITS: usize = 1024;

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
    pub(crate) left: AtomicUsize,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    pub(crate) done: Notify,
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

    pub(crate) fn answer(&self, index: usize, outcome: Outcome) {
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

pub(crate) struct Slot {
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) index: usize,
}

/// What version of each partition's class a chunk's batches were checked against.
pub(crate) type ClassEpochs = BTreeMap<PartitionKey, u32>;

struct OpenChunk {
    writer: ChunkWriter,
    slots: Vec<Slot>,
    class_epochs: ClassEpochs,
    opened: Instant,
}

/// A chunk as it was handed over.
pub(crate) struct SealedChunk {
    pub(crate) chunk: Chunk,
    pub(crate) slots: Vec<Slot>,
    pub(crate) class_epochs: Arc<ClassEpochs>,
}

pub(crate) struct State {
    open: Option<OpenChunk>,
    /// Chunks that are closed to further batches and wait for their turn.
    grown: VecDeque<OpenChunk>,
    /// The stream that chunks go to now; none for the class `object`.
    pub(crate) stream: StreamId,
    /// Earlier streams that are not closed yet, each with the first commit number that is none of its.
    pub(crate) left: VecDeque<(StreamId, u64)>,
    /// The number of the next chunk within its stream.
    pub(crate) next_chunk: u64,
    /// Appends under way.
    pub(crate) in_flight: usize,
    pub(crate) commits: Commits<Line>,
    /// The first commit number that the sink refused for now, while later ones are under way: they will be refused too.
    pub(crate) refused_from: Option<u64>,
    /// What the refusal is told with.
    pub(crate) refused_because: &'static str,
    /// The stream is over: what is not durable goes to another once nothing is under way.
    pub(crate) displaced: bool,
    /// Another stream is being opened, or what was displaced is being appended to it.
    pub(crate) moving: bool,
    /// Before proposals go again there is a pause.
    pub(crate) pausing: bool,
    /// Somebody is handing commits to the quorum; whoever else would goes home.
    pub(crate) proposing: bool,
    /// Batch bytes of recent chunks, for the size of the next buffer.
    recent_bytes: usize,
    /// Somebody is handing chunks to the WAL; whoever else would goes home.
    sending: bool,
    pub(crate) stopped: bool,
}

impl State {
    fn new(stream: StreamId) -> Self {
        Self {
            open: None,
            grown: VecDeque::new(),
            stream,
            left: VecDeque::new(),
            next_chunk: 0,
            in_flight: 0,
            commits: Commits::default(),
            refused_from: None,
            refused_because: "",
            displaced: false,
            moving: false,
            pausing: false,
            proposing: false,
            recent_bytes: 0,
            sending: false,
            stopped: false,
        }
    }

    /// Batches that were not handed over.
    pub(crate) fn take_unsent(&mut self) -> impl Iterator<Item = Slot> + use<> {
        let grown = std::mem::take(&mut self.grown);
        grown.into_iter().chain(self.open.take()).flat_map(|open| open.slots)
    }
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
    pub(crate) session: Arc<Session>,
    pub(crate) lane: LaneId,
    pub(crate) sink: Sink,
    /// The first stream.
    pub(crate) stream: StreamId,
    /// Where further ones may be opened.
    pub(crate) ensembles: Arc<dyn Ensembles>,
    pub(crate) quorum: Quorum,
    /// Told why this broker's life is over.
    pub(crate) over: watch::Sender<Option<String>>,
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
    pub(crate) host: Host,
    /// The broker's runtime: answers come on threads of the journal and of Raft, which are not for a lane's work.
    pub(crate) spawner: Spawner,
    pub(crate) target: LaneTarget,
    pub(crate) pool: BufferPool,
    pub(crate) metrics: Arc<Metrics>,
    limits: Limits,
    /// The sink's, which does not change.
    pub(crate) max_chunk_bytes: usize,
    room: Arc<Semaphore>,
    pub(crate) state: Mutex<State>,
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
        let state = Mutex::new(State::new(target.stream));
        Arc::new(Self {
            host,
            spawner: Spawner::current(),
            max_chunk_bytes,
            target,
            pool,
            metrics,
            limits,
            room: Arc::new(Semaphore::new(units)),
            state,
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
            self.spawner.spawn("lane-linger", async move {
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

    /// Hands over whatever is due. One thread at a time does it, so that chunks go out in the order of their
    /// numbers although the lane's lock is not held while the WAL takes one.
    pub(crate) fn send_due(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.sending {
            return;
        }
        state.sending = true;
        while let Some(open) = self.next_due(&mut state) {
            self.metrics.stage("gather", open.opened.elapsed());
            state.recent_bytes = (state.recent_bytes * 3 + open.writer.batch_bytes()) / 4;
            let chunk = open.writer.seal(state.stream, state.next_chunk);
            state.next_chunk += 1;
            state.in_flight += 1;
            let class_epochs = Arc::new(open.class_epochs);
            let sealed = SealedChunk { chunk: chunk.clone(), slots: open.slots, class_epochs };
            let number = state.commits.begin(Line::new(sealed));
            drop(state);
            self.append(chunk, number);
            state = self.state.lock();
        }
        state.sending = false;
    }

    fn next_due(&self, state: &mut State) -> Option<OpenChunk> {
        let held = state.refused_from.is_some() || state.displaced || state.moving;
        if held || state.in_flight >= self.limits.max_in_flight || state.commits.len() >= MAX_OPEN_COMMITS {
            return None;
        }
        let Limits { chunk_target_bytes, linger, .. } = self.limits;
        state.grown.pop_front().or_else(|| {
            let none_under_way = state.in_flight == 0;
            state.open.take_if(|open| {
                let gathered =
                    if linger.is_zero() { none_under_way } else { open.opened.elapsed() >= linger };
                gathered || open.writer.batch_bytes() >= chunk_target_bytes
            })
        })
    }
}
