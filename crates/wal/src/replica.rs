//! A WAL replica on this node's disk.
//!
//! Owns: one directory: `incarnation` (16 bytes, written when the directory is formatted, DESIGN invariant 6) and `journal/`,
//! one journal for all streams, so that one sync covers every append that waits.
//!
//! Invariants
//! 1. An append is answered `Ok` only after the journal has written and synced its frame.
//! 2. A stream is kept without a gap, and its appends are answered in order, because the journal answers in order of its calls.
//! 3. A read returns the batches asked for, all of them, or an error. From memory they are what was appended, or is being
//!    appended: a chunk that a commit names is the same on every replica, durable here yet or not. From disk the journal has
//!    checked the frame's CRC and every batch's own.
//! 4. A chunk is dropped only on metadata's word ([`crate::index`]), and a segment is recycled only when it holds none.
//! 5. What the disk holds stays below `max_disk_bytes`: beyond it appends are refused and reads go on.
//! 6. Memory for recent chunks stays below `max_memory_bytes`, those not yet durable not counted: whoever appends
//!    bounds them.
//!
//! Failure: a journal whose write or sync failed takes nothing more and every append hears [`WalError::Failed`]. Nothing
//! is retried. A chunk whose append failed may be durable or not; its stream is closed here. A full disk refuses a chunk
//! and those of its stream that are under way behind it; the stream then goes on from the first of their numbers.
//!
//! Crash: what was answered is recovered; what was not may be, and is garbage unless a commit names it (a commit is
//! proposed only after the answer, so none does). Which chunks are still needed comes from the image at start
//! ([`LocalReplica::reconcile`]); until then nothing is dropped.
//!
//! Accepted leaks: a segment with one needed chunk keeps its place on disk until that chunk is released.

mod fill;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_journal::{Journal, JournalError, Recovered, Written};
use isobar_metadata::Image;
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::{DirectoryId, StreamId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::index::{ChunkId, Index, Place};
use crate::tail::Tail;
use crate::{Acked, AppendDone, Chunk, FRAME_KIND, Wal, WalError, WalMetrics};

pub(crate) use fill::Filled;

const INCARNATION_FILE: &str = "incarnation";
const JOURNAL_DIR: &str = "journal";
/// A read of the disk goes on for so long behind the chunk that is asked for.
const AHEAD_BYTES: u64 = 256 << 10;
/// Streams of which the disk is read at the same time, at most.
const TURNS: usize = 16;
/// See [`ReplicaOptions::max_disk_bytes`].
const HEADROOM_BYTES: u64 = 256 << 20;

/// Settings of a local replica.
#[derive(Debug, Clone)]
pub struct ReplicaOptions {
    /// Whether an empty directory may be made a new WAL directory. Never for a node that is already a member.
    pub format: bool,
    /// Bytes of disk that chunks may take; beyond it appends are refused. The last eighth, but no more than 256 MiB, is
    /// kept for what was taken from clients before [`Wal::has_room`] said no.
    pub max_disk_bytes: u64,
    /// Bytes of recent chunks kept in memory for tail reads.
    pub max_memory_bytes: usize,
    /// The journal's own.
    pub journal: isobar_journal::Options,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self {
            format: true,
            max_disk_bytes: 4 << 30,
            max_memory_bytes: 64 << 20,
            journal: isobar_journal::Options::default(),
        }
    }
}

/// A WAL replica. Cheap to clone.
#[derive(Clone)]
pub struct LocalReplica {
    shared: Arc<Shared>,
}

struct Shared {
    host: Host,
    directory: DirectoryId,
    journal: Journal,
    options: ReplicaOptions,
    metrics: WalMetrics,
    state: Mutex<State>,
    /// Held while the disk is read, by stream.
    turns: [tokio::sync::Mutex<()>; TURNS],
    reconciled: AtomicBool,
}

struct State {
    index: Index,
    tail: Tail,
    /// Chunks whose append has not ended, and who else waits for it ([`LocalReplica::append_again`]).
    under_way: BTreeMap<ChunkId, (Chunk, Vec<AppendDone>)>,
}

impl LocalReplica {
    /// Opens the replica in `dir` and finds the chunks that a former life left. Call [`reconcile`](Self::reconcile) next.
    pub async fn open(
        host: &Host,
        dir: &Path,
        options: ReplicaOptions,
        metrics: WalMetrics,
    ) -> Result<Self, WalError> {
        let directory = open_directory(host, dir, options.format)?;
        let mut index = Index::new(directory);
        let mut damaged = None;
        let mut on_frame = |frame: Recovered| {
            if let Err(error) = recover(&mut index, &frame) {
                damaged.get_or_insert(error);
            }
        };
        let (journal, report) =
            Journal::open(host, &dir.join(JOURNAL_DIR), options.journal.clone(), &mut on_frame)
                .await
                .map_err(|error| of_open(&error))?;
        if let Some(error) = damaged {
            return Err(error);
        }
        let (chunks, bytes) = index.live();
        tracing::info!(%directory, chunks, bytes, ?report, "WAL replica opened");
        let tail = Tail::new(options.max_memory_bytes);
        let shared = Shared {
            host: host.clone(),
            directory,
            journal,
            options,
            metrics,
            state: Mutex::new(State { index, tail, under_way: BTreeMap::new() }),
            turns: Default::default(),
            reconciled: AtomicBool::new(false),
        };
        let replica = Self { shared: Arc::new(shared) };
        replica.shared.publish(&replica.shared.state.lock());
        Ok(replica)
    }

    /// The incarnation of the directory, which ensembles name.
    pub fn directory(&self) -> DirectoryId {
        self.shared.directory
    }

    /// Drops what metadata no longer needs. At start, before effects newer than `image` are followed, and again whenever
    /// effects were missed (a snapshot was installed).
    ///
    /// The image must come from after a read barrier of this life: a stream of which there are chunks on this disk, and of which the
    /// image knows nothing, is taken to be forgotten.
    pub fn reconcile(&self, image: &Image) {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        let dropped = state.index.reconcile(image);
        shared.reconciled.store(true, Ordering::Relaxed);
        shared.dropped(&mut state, &dropped);
        // Segments without any frame of ours were never entered in the index.
        let unused: Vec<u64> = shared
            .journal
            .sealed_segments()
            .into_iter()
            .filter(|&segment| !state.index.uses(segment))
            .collect();
        drop(state);
        for segment in unused {
            shared.recycle(segment);
        }
        tracing::info!(dropped = dropped.len(), "WAL replica reconciled with metadata");
    }

    /// Writes and syncs what is under way, takes nothing more, and answers when nothing touches the disk any more.
    pub async fn close(&self) {
        self.shared.journal.close().await;
    }

    /// Why it takes no appends any more, if it does not.
    pub(crate) fn failure(&self) -> Option<WalError> {
        match self.shared.journal.refusal() {
            None | Some(JournalError::DiskFull) => None,
            Some(error) => Some(of_append(&error)),
        }
    }

    /// As [`Wal::append`], but for a replica among others: [`WalError::Full`] and [`WalError::Gap`] say that no byte of the chunk was
    /// kept, so that its number may be another chunk's. (A chunk that was written behind one that was refused is found again at
    /// the next start, when this replica may not have what the others have by that number.)
    pub(crate) fn append_strictly(&self, chunk: Chunk, done: AppendDone) {
        self.append_as(chunk, true, done);
    }

    /// As [`append_strictly`](Self::append_strictly), but for a caller that may ask twice, because an answer can be lost on its way: a chunk that is here
    /// already, the same to the byte, is acknowledged again. Another chunk of that number is a [`WalError::Gap`].
    pub(crate) fn append_again(&self, chunk: Chunk, done: AppendDone) {
        let id = (chunk.stream(), chunk.number());
        {
            let mut state = self.shared.state.lock();
            if let Some((known, waiting)) = state.under_way.get_mut(&id) {
                if known.frame().has_content_of(chunk.frame()) {
                    return waiting.push(done);
                }
            } else if state.index.place(id).is_none() {
                drop(state);
                return self.append_strictly(chunk, done);
            }
        }
        let replica = self.clone();
        self.shared.host.spawn("wal-append-again", async move {
            let expected = id.1 + 1;
            let answer = match replica.shared.chunk(id).await {
                Ok(known) if known.frame().has_content_of(chunk.frame()) => Ok(Acked::ALONE),
                Ok(_) | Err(WalError::NotFound) => Err(WalError::Gap { expected }),
                Err(error) => Err(error),
            };
            done(answer);
        });
    }

    fn append_as(&self, chunk: Chunk, is_strict: bool, done: AppendDone) {
        let shared = &self.shared;
        let id = (chunk.stream(), chunk.number());
        let frame = chunk.frame().clone();
        {
            let mut state = shared.state.lock();
            if let Err(error) = shared.check(&state, id, u64::from(frame.len())) {
                drop(state);
                return done(Err(error));
            }
            state.index.begin(id);
            state.under_way.insert(id, (chunk.clone(), Vec::new()));
        }
        let done = if shared.host.sabotaged("ack-before-sync") {
            done(Ok(Acked::ALONE));
            shared.host.sabotage_lag();
            Box::new(|_| {})
        } else {
            done
        };
        let started = Instant::now();
        // The journal calls back unless it refuses the call itself; either way `done` is called once.
        let once = Arc::new(Mutex::new(Some((done, chunk))));
        let settle = {
            let shared = Arc::clone(shared);
            let once = Arc::clone(&once);
            move |result| {
                let Some((done, chunk)) = once.lock().take() else { return };
                let answer = shared.appended(id, chunk, result, is_strict);
                shared.metrics.append_latency.observe(started.elapsed().as_secs_f64());
                shared.host.crash_point("wal.after_sync");
                done(answer);
            }
        };
        if let Err(error) = shared.journal.append(frame, settle) {
            let Some((done, chunk)) = once.lock().take() else { return };
            done(shared.appended(id, chunk, Err(error), is_strict));
        }
    }

    /// What it counts.
    pub fn metrics(&self) -> &WalMetrics {
        &self.shared.metrics
    }

    /// Why it takes no appends ever again, if that is so: its disk has failed. A full disk is no such reason.
    pub fn stopped(&self) -> Option<String> {
        match self.shared.journal.refusal() {
            None | Some(JournalError::DiskFull | JournalError::Closed) => None,
            Some(error) => Some(error.to_string()),
        }
    }

    /// Chunks that metadata may still need, and their bytes on disk.
    pub fn live(&self) -> (u64, u64) {
        self.shared.state.lock().index.live()
    }
}

impl Shared {
    fn check(&self, state: &State, id: ChunkId, frame_bytes: u64) -> Result<(), WalError> {
        state.index.check(id)?;
        if self.journal.bytes_live() + frame_bytes > self.options.max_disk_bytes {
            self.metrics.full.inc();
            return Err(WalError::Full);
        }
        Ok(())
    }

    /// Enters how an append ended, and says what its caller hears.
    fn appended(
        &self,
        id: ChunkId,
        chunk: Chunk,
        result: Result<Written, JournalError>,
        is_strict: bool,
    ) -> Result<Acked, WalError> {
        let mut state = self.state.lock();
        let again = state.under_way.remove(&id).map(|(_, again)| again).unwrap_or_default();
        let answer = match result {
            Ok(written) => {
                let place =
                    Place { position: written.position, segment: written.segment, bytes: written.len };
                let taken = state.index.written(id, place);
                if taken.is_ok() {
                    self.metrics.chunks.inc();
                    self.metrics.batch_bytes.inc_by(chunk.batch_bytes());
                    if self.host.sabotaged("release-before-swap") {
                        state.index.sabotage_release(id);
                    }
                    if state.index.holds(id) {
                        state.tail.insert(id, chunk);
                    }
                }
                self.recycle_free(&mut state);
                match taken {
                    Ok(()) => Ok(Acked::ALONE),
                    Err(error) if is_strict => {
                        Err(WalError::Failed(format!("written behind a chunk that was refused ({error})")))
                    }
                    Err(error) => Err(error),
                }
            }
            Err(error) => {
                let answer = of_append(&error);
                let may_pass = matches!(answer, WalError::Full | WalError::TooLarge(_));
                if may_pass {
                    self.metrics.full.inc();
                } else {
                    self.metrics.failures.inc();
                }
                tracing::error!(%error, stream = %id.0, chunk = id.1, "append failed");
                state.index.refused(id, may_pass);
                Err(answer)
            }
        };
        self.publish(&state);
        drop(state);
        for done in again {
            done(answer.clone());
        }
        answer
    }

    fn dropped(&self, state: &mut State, dropped: &[ChunkId]) {
        for &id in dropped {
            state.tail.remove(id);
        }
        self.metrics.released.inc_by(dropped.len() as u64);
        self.recycle_free(state);
        self.publish(state);
    }

    fn recycle_free(&self, state: &mut State) {
        if !self.reconciled.load(Ordering::Relaxed) {
            return;
        }
        for segment in state.index.take_free_segments() {
            self.recycle(segment);
        }
    }

    fn recycle(&self, segment: u64) {
        self.host.crash_point("wal.before_recycle");
        self.metrics.recycled.inc();
        self.journal.recycle(segment);
    }

    fn publish(&self, state: &State) {
        let (chunks, bytes) = state.index.live();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.live_chunks.set(gauge(chunks));
        self.metrics.live_bytes.set(gauge(bytes));
        self.metrics.memory_bytes.set(gauge(state.tail.bytes() as u64));
    }

    /// From memory, or from the disk along with those behind it.
    async fn chunk(&self, id: ChunkId) -> Result<Chunk, WalError> {
        if let Some(chunk) = self.remembered(id)? {
            return Ok(chunk);
        }
        // Who reads old chunks wants the next ones as well, at the same time or soon: the first brings them along.
        let _turn = self.turns[id.0.0 as usize % TURNS].lock().await;
        if let Some(chunk) = self.remembered(id)? {
            return Ok(chunk);
        }
        let places = self.state.lock().index.with_next(id, AHEAD_BYTES);
        let chunks = self.read_places(id.0, &places).await;
        let mut state = self.state.lock();
        if !state.index.holds(id) {
            // Released while the disk was read: the segment may have been written over, and metadata knows a better place.
            return Err(WalError::NotFound);
        }
        let chunks = chunks?;
        self.metrics.read_from("disk");
        for chunk in &chunks {
            let id = (chunk.stream(), chunk.number());
            if state.index.holds(id) {
                state.tail.insert(id, chunk.clone());
            }
        }
        self.publish(&state);
        chunks.into_iter().next().ok_or(WalError::NotFound)
    }

    /// `None`: it is on the disk.
    fn remembered(&self, id: ChunkId) -> Result<Option<Chunk>, WalError> {
        let mut state = self.state.lock();
        // Who asks has it from a commit, so others have made it durable: were it not given here, it would be fetched from another
        // zone for being the slowest replica's by a moment.
        let under_way = || state.under_way.get(&id).map(|(chunk, _)| chunk.clone());
        if let Some(chunk) = under_way().or_else(|| state.tail.get(id)) {
            self.metrics.read_from("memory");
            return Ok(Some(chunk));
        }
        state.index.place(id).map(|_| None).ok_or(WalError::NotFound)
    }

    /// Chunks of a stream at neighbouring places: the first, and of the others those before a damaged one.
    async fn read_places(&self, stream: StreamId, places: &[(u64, Place)]) -> Result<Vec<Chunk>, WalError> {
        let run: Vec<_> = places.iter().map(|(_, place)| (place.position, place.bytes)).collect();
        let frames = self.journal.read(run).await.map_err(|error| of_read(&error))?;
        let buffer_bytes = match (places.first(), places.last()) {
            (Some((_, first)), Some((_, last))) => {
                (last.position - first.position) as usize + last.bytes as usize
            }
            _ => 0,
        };
        let mut chunks = Vec::with_capacity(frames.len());
        for (frame, (number, place)) in frames.into_iter().zip(places) {
            let chunk =
                Chunk::in_buffer(frame, buffer_bytes).and_then(|chunk| match chunk.stream() == stream {
                    true if chunk.number() == *number => Ok(chunk.compact()),
                    _ => Err(WalError::Corrupt(format!("position {} holds another chunk", place.position))),
                });
            match chunk {
                Ok(chunk) => chunks.push(chunk),
                Err(_) if !chunks.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(chunks)
    }
}

#[async_trait]
impl Wal for LocalReplica {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        self.append_as(chunk, false, done);
    }

    fn max_chunk_bytes(&self) -> usize {
        usize::try_from(self.shared.journal.max_frame_bytes()).unwrap_or(usize::MAX)
    }

    fn has_room(&self) -> bool {
        let journal = &self.shared.journal;
        let max = self.shared.options.max_disk_bytes;
        let soft = max - (max / 8).min(HEADROOM_BYTES);
        // One that has stopped for good says so when it is asked to append.
        journal.bytes_live() < soft && !matches!(journal.refusal(), Some(JournalError::DiskFull))
    }

    async fn room(&self) {
        self.shared.journal.wait_for_room(|| self.has_room()).await;
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        let result = match self.shared.chunk((stream, number)).await {
            Ok(chunk) => chunk.batches(ordinals).ok_or(WalError::NotFound),
            Err(error) => Err(error),
        };
        match &result {
            Ok(_) => {}
            Err(WalError::NotFound) => self.shared.metrics.read_from("not_found"),
            Err(error) => {
                tracing::error!(%error, %stream, number, "WAL read failed");
                self.shared.metrics.read_from("error");
            }
        }
        result
    }

    fn follow(&self, batch: &EffectBatch) {
        let mut state = self.shared.state.lock();
        let dropped = state.index.follow(batch);
        self.shared.dropped(&mut state, &dropped);
    }
}

fn recover(index: &mut Index, frame: &Recovered) -> Result<(), WalError> {
    if frame.kind != FRAME_KIND {
        return Err(WalError::Corrupt(format!("a frame of kind {} at {}", frame.kind, frame.position)));
    }
    let id = crate::table::identity(&frame.meta())?;
    index.recovered(id, Place { position: frame.position, segment: frame.segment, bytes: frame.len });
    Ok(())
}

/// Reads the directory's incarnation, or formats an empty directory.
fn open_directory(host: &Host, dir: &Path, format: bool) -> Result<DirectoryId, WalError> {
    let disk = host.disk();
    let file: PathBuf = dir.join(INCARNATION_FILE);
    let io = |error: std::io::Error| WalError::Io(format!("{}: {error}", file.display()));
    match disk.read(&file) {
        Ok(bytes) => {
            let id: [u8; 16] = bytes.as_slice().try_into().map_err(|_| {
                WalError::Corrupt(format!("{} has {} bytes, not 16", file.display(), bytes.len()))
            })?;
            return Ok(DirectoryId::from(id));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(io(error)),
    }
    let left = match disk.list(&dir.join(JOURNAL_DIR)) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io(error)),
    };
    if !left.is_empty() {
        return Err(WalError::NotFormatted(format!("{} has a journal but no incarnation", dir.display())));
    }
    if !format {
        return Err(WalError::NotFormatted(format!("{} is no WAL directory", dir.display())));
    }
    disk.create_dir_all(dir).map_err(io)?;
    let id = host.random_uuid();
    disk.write_durable(&file, &id).map_err(io)?;
    Ok(DirectoryId::from(id))
}

fn of_append(error: &JournalError) -> WalError {
    match error {
        JournalError::DiskFull | JournalError::QueueFull => WalError::Full,
        JournalError::TooLarge { .. } => WalError::TooLarge(error.to_string()),
        _ => WalError::Failed(error.to_string()),
    }
}

/// The index says that the chunk is there, so that it is not is damage.
fn of_read(error: &JournalError) -> WalError {
    match error {
        JournalError::NotFound { .. } | JournalError::Corrupt { .. } => WalError::Corrupt(error.to_string()),
        _ => WalError::Io(error.to_string()),
    }
}

fn of_open(error: &JournalError) -> WalError {
    match error {
        JournalError::Damaged { .. } | JournalError::Corrupt { .. } => WalError::Corrupt(error.to_string()),
        _ => WalError::Io(error.to_string()),
    }
}
