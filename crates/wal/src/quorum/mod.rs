//! The quorum writer: a [`Wal`] over the replicas of each stream's ensemble.
//!
//! Owns: of every stream its ensemble (from metadata), and of those that this node writes the state machine ([`stream`]), what
//! waits to be sent and told, and memory of what was appended where no replica is beside it ([`memory`]).
//!
//! Invariants
//! 1. Chunks of a stream are handed to each replica in order of their numbers, and their callers are told in that order, one
//!    after another, whichever threads the answers come on.
//! 2. `Ok` is told only of what a write quorum has synced; `acknowledged` names them.
//! 3. A read is answered `NotFound` only if every incarnation of the stream's ensemble has said so, or metadata has forgotten
//!    the stream or the directory. Whatever else stood in the way is [`WalError::Unavailable`] (or `Corrupt`): try again.
//! 4. What waits for a slow replica is bounded by the stream's [`Limits`], and over all streams by
//!    [`RemoteOptions::unanswered_bytes_max`].
//!
//! Time: streams are measured by a clock that a task moves on while something is under way, by no more than two of its ticks
//! at once. So a node that was itself stopped for a while does not blame the replicas for it.
//!
//! Failure: see [`stream`]. A broken stream answers [`WalError::Closed`]; its writer opens another on [`QuorumWal::choose`]. Nothing
//! is sent twice. Callbacks must not block; they may append.
//!
//! Crash: nothing here is durable. A later life writes to streams of its own.

mod choose;
mod clock;
mod memory;
mod read;
mod stream;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::{Host, watch};
use isobar_metadata::Image;
use isobar_metadata::effect::{EffectBatch, EffectKind};
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_rpc::Peer;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::member::Replica;
use crate::metrics::QuorumMetrics;
use crate::remote::{RemoteOptions, RemoteReplica};
use crate::{AppendDone, Chunk, Wal, WalError};
use clock::Clock;
use memory::Memory;
use read::Race;
use write::Writing;

pub use stream::{ENSEMBLE_MAX, Limits};

/// How long a replica is read from only after the others, once it failed to answer or was slow.
const AVOID: Duration = Duration::from_secs(1);

/// Settings of the quorum writer.
#[derive(Debug, Clone)]
pub struct QuorumOptions {
    /// How far a replica may fall behind.
    pub limits: Limits,
    /// The largest chunk, as encoded: no larger than any replica takes.
    pub max_chunk_bytes: usize,
    /// Bytes of recent chunks kept for readers on this node, of streams that have no replica on it.
    pub max_memory_bytes: usize,
    /// How long a read waits for one replica before it asks the next one too.
    pub hedge: Duration,
    /// How long a replica that was too slow is not chosen for new streams, if the others suffice.
    pub suspect: Duration,
    /// How remote replicas are spoken with.
    pub remote: RemoteOptions,
}

impl Default for QuorumOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            max_chunk_bytes: 64 << 20,
            max_memory_bytes: 64 << 20,
            hedge: Duration::from_millis(50),
            suspect: Duration::from_secs(30),
            remote: RemoteOptions::default(),
        }
    }
}

/// Where an incarnation of a WAL directory is.
pub enum Found {
    /// Here: the one on this node; each time the same `Arc`.
    Replica(Arc<dyn Replica>),
    /// On the node that metadata registered it for.
    Remote(Peer),
    /// Metadata knows it no more: an operator removed it, and nothing of it will ever be read.
    Removed,
    /// Metadata knows it, and nobody knows its node's address. It may come.
    Unknown,
}

/// Finds incarnations; what a node knows from its image.
pub trait Directories: Send + Sync {
    /// Asked at a stream's first append, at reads and when an ensemble is chosen: cheap, and never blocking.
    fn find(&self, directory: DirectoryId) -> Found;
}

/// How a stream that this node writes stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its replicas.
    pub ensemble: Vec<DirectoryId>,
    /// Those that are not left behind, as bits by position.
    pub live: u32,
    /// Fewer than its write quorum are left, or metadata closed it: it takes nothing more.
    pub is_closed: bool,
}

/// The quorum writer. Cheap to clone.
#[derive(Clone)]
pub struct QuorumWal {
    shared: Arc<Shared>,
}

struct Shared {
    host: Host,
    directories: Arc<dyn Directories>,
    options: QuorumOptions,
    metrics: QuorumMetrics,
    handles: Mutex<BTreeMap<DirectoryId, Arc<Handle>>>,
    streams: RwLock<Streams>,
    memory: Mutex<Memory>,
    clock: Clock,
    /// Raised whenever a replica is left behind or a stream is closed.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct Streams {
    known: BTreeMap<StreamId, Arc<Entry>>,
    /// Open ones that this node writes.
    written: Vec<Arc<Entry>>,
    /// The newest that metadata has told of: one that is not newer and not known is forgotten.
    newest_told: Option<StreamId>,
}

/// One stream.
struct Entry {
    id: StreamId,
    ensemble: Vec<DirectoryId>,
    write_quorum: u32,
    /// Metadata closed it, or it is broken.
    is_closed: AtomicBool,
    /// Members not left behind; all, of a stream that this node does not write.
    live: AtomicU32,
    /// Set at the first append.
    members: OnceLock<Vec<Option<Arc<Handle>>>>,
    writing: Mutex<Option<Writing>>,
}

/// A replica, and what is known of it over all streams.
struct Handle {
    replica: Arc<dyn Replica>,
    remote: Option<RemoteReplica>,
    /// Of reads, smoothed.
    latency_us: AtomicU64,
    suspect_until: Mutex<Option<Instant>>,
    /// A read of it failed, or another was faster: it is asked after the others.
    avoid_until: Mutex<Option<Instant>>,
}

/// Why there is no handle.
enum Absent {
    Removed,
    Unknown,
}

impl QuorumWal {
    /// A writer that knows no stream yet: [`reconcile`](Self::reconcile) next.
    pub fn new(
        host: &Host,
        directories: Arc<dyn Directories>,
        options: QuorumOptions,
        metrics: QuorumMetrics,
    ) -> Self {
        let shared = Arc::new(Shared {
            host: host.clone(),
            directories,
            memory: Mutex::new(Memory::new(options.max_memory_bytes)),
            options,
            metrics,
            handles: Mutex::default(),
            streams: RwLock::default(),
            clock: Clock::default(),
            changed: watch::Sender::new(0),
        });
        let weak = Arc::downgrade(&shared);
        let wake = shared.clock.waker();
        shared.host.spawn("wal-quorum-clock", clock::run(weak, wake));
        Self { shared }
    }

    /// Learns the streams of an image: at start, and whenever effects were missed, before newer effects are followed.
    pub fn reconcile(&self, image: &Image) {
        let mut streams = self.shared.streams.write();
        let newest = image.streams().map(|stream| stream.record.stream).max();
        streams.newest_told = streams.newest_told.max(newest);
        let told = streams.newest_told;
        let is_forgotten = |id| Some(id) <= told && image.stream(id).is_none();
        streams.known.retain(|id, _| !is_forgotten(*id));
        streams.written.retain(|entry| !is_forgotten(entry.id));
        for stream in image.streams() {
            let record = &stream.record;
            streams.learn(record.stream, &record.ensemble, record.write_quorum);
            if record.closed {
                streams.close(record.stream);
            }
        }
        drop(streams);
        self.shared.memory.lock().reconcile(image, told);
    }

    /// A stream was opened for this node: what metadata's answer says, which may come before the effect.
    pub fn opened(&self, stream: StreamId, ensemble: &[DirectoryId], write_quorum: u32) {
        let mut streams = self.shared.streams.write();
        if Some(stream) > streams.newest_told {
            streams.learn(stream, ensemble, write_quorum);
        }
    }

    /// How a stream stands; `None` if it is not known.
    pub fn standing(&self, stream: StreamId) -> Option<Standing> {
        let entry = self.shared.entry(stream)?;
        Some(Standing {
            ensemble: entry.ensemble.clone(),
            live: entry.live.load(Ordering::Acquire),
            is_closed: entry.is_closed.load(Ordering::Acquire),
        })
    }

    /// Changes whenever a replica is left behind or a stream breaks: a writer then looks at its [`standing`](Self::standing), and
    /// may open another stream on a whole ensemble.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// What it counts.
    pub fn metrics(&self) -> &QuorumMetrics {
        &self.shared.metrics
    }
}

impl Streams {
    fn learn(&mut self, id: StreamId, ensemble: &[DirectoryId], write_quorum: u32) {
        let ensemble: Vec<DirectoryId> = ensemble.iter().copied().take(ENSEMBLE_MAX).collect();
        // Only a closed stream's ensemble changes: then it is read from, and nothing else.
        if self.known.get(&id).is_some_and(|known| known.ensemble == ensemble) {
            return;
        }
        let all = u32::MAX.checked_shr(32 - ensemble.len() as u32).unwrap_or(0);
        let entry = Entry {
            id,
            ensemble,
            write_quorum,
            is_closed: AtomicBool::new(false),
            live: AtomicU32::new(all),
            members: OnceLock::new(),
            writing: Mutex::new(None),
        };
        self.known.insert(id, Arc::new(entry));
    }

    fn close(&mut self, id: StreamId) {
        if let Some(entry) = self.known.get(&id) {
            entry.is_closed.store(true, Ordering::Release);
        }
        self.written.retain(|entry| entry.id != id);
    }
}

impl Shared {
    fn entry(&self, stream: StreamId) -> Option<Arc<Entry>> {
        self.streams.read().known.get(&stream).cloned()
    }

    fn handle(&self, directory: DirectoryId) -> Result<Arc<Handle>, Absent> {
        let found = self.directories.find(directory);
        let mut handles = self.handles.lock();
        let known = handles.get(&directory);
        let handle = match found {
            Found::Replica(replica) => match known {
                Some(known) if Arc::ptr_eq(&known.replica, &replica) => return Ok(Arc::clone(known)),
                _ => Handle::new(replica, None),
            },
            Found::Remote(peer) => match known.and_then(|known| Some((known, known.remote.as_ref()?))) {
                Some((known, remote)) if remote.takes(&peer) => return Ok(Arc::clone(known)),
                _ => {
                    let remote = RemoteReplica::new(peer, directory, self.options.remote.clone());
                    Handle::new(Arc::new(remote.clone()), Some(remote))
                }
            },
            Found::Removed => {
                handles.remove(&directory);
                return Err(Absent::Removed);
            }
            Found::Unknown => return Err(Absent::Unknown),
        };
        let handle = Arc::new(handle);
        handles.insert(directory, Arc::clone(&handle));
        Ok(handle)
    }

    /// Of the open streams that this node writes and that have no write quorum with room: the members without.
    fn lacking_room(&self) -> Vec<Arc<Handle>> {
        let streams = self.streams.read();
        let mut lacking = Vec::new();
        for entry in &streams.written {
            let live = entry.live.load(Ordering::Acquire);
            let members = entry.members.get().map_or(&[][..], Vec::as_slice);
            let members = members.iter().enumerate().filter(|(member, _)| live & (1 << member) != 0);
            let (mut with_room, mut without) = (0, Vec::new());
            for handle in members.filter_map(|(_, handle)| handle.as_ref()) {
                if handle.replica.has_room() {
                    with_room += 1;
                } else {
                    without.push(Arc::clone(handle));
                }
            }
            if with_room < entry.write_quorum && !entry.is_closed.load(Ordering::Acquire) {
                lacking.append(&mut without);
            }
        }
        lacking
    }
}

impl Handle {
    fn is_suspect(&self) -> bool {
        self.suspect_until.lock().is_some_and(|until| Instant::now() < until)
    }

    fn is_avoided(&self) -> bool {
        self.avoid_until.lock().is_some_and(|until| Instant::now() < until)
    }

    fn avoid(&self) {
        *self.avoid_until.lock() = Some(Instant::now() + AVOID);
    }

    fn new(replica: Arc<dyn Replica>, remote: Option<RemoteReplica>) -> Self {
        let (suspect_until, avoid_until) = (Mutex::new(None), Mutex::new(None));
        Self { replica, remote, latency_us: AtomicU64::new(0), suspect_until, avoid_until }
    }
}

#[async_trait]
impl Wal for QuorumWal {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        self.shared.append(chunk, done);
    }

    fn max_chunk_bytes(&self) -> usize {
        self.shared.options.max_chunk_bytes
    }

    fn has_room(&self) -> bool {
        self.shared.lacking_room().is_empty()
    }

    async fn room(&self) {
        let mut changes = self.changes();
        loop {
            _ = *changes.borrow_and_update();
            let lacking = self.shared.lacking_room();
            if lacking.is_empty() {
                return;
            }
            let mut rooms = Race::default();
            for handle in lacking {
                rooms.add(async move { handle.replica.room().await });
            }
            tokio::select! {
                biased;
                () = rooms.next() => {}
                _ = changes.changed() => {}
            }
        }
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        let result = self.shared.read(stream, number, ordinals).await;
        if let Err(error) = &result {
            let is_stale = *error == WalError::NotFound;
            self.shared.metrics.read_from(if is_stale { "not_found" } else { "error" });
            if !is_stale {
                tracing::warn!(%error, %stream, number, "no replica could be read from");
            }
        }
        result
    }

    fn follow(&self, batch: &EffectBatch) {
        let shared = &self.shared;
        let mut is_changed = false;
        for effect in &batch.effects {
            match &effect.kind {
                Some(EffectKind::Stream(record)) => {
                    let mut streams = shared.streams.write();
                    streams.newest_told = streams.newest_told.max(Some(record.stream));
                    streams.learn(record.stream, &record.ensemble, record.write_quorum);
                    if record.closed {
                        streams.close(record.stream);
                        is_changed = true;
                    }
                }
                Some(EffectKind::StreamForgotten(forgotten)) => {
                    let mut streams = shared.streams.write();
                    streams.close(forgotten.stream);
                    streams.known.remove(&forgotten.stream);
                }
                _ => {}
            }
        }
        let mut memory = shared.memory.lock();
        memory.follow(batch);
        shared.metrics.memory_bytes.set(i64::try_from(memory.bytes()).unwrap_or(i64::MAX));
        drop(memory);
        if is_changed {
            shared.changed.send_modify(|count| *count += 1);
        }
    }
}
