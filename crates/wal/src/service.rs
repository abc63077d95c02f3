//! A replica's door to other nodes: takes appends, answers reads.
//!
//! Owns: nothing durable; the replica does. Buffers for chunks that came, and the number of reads and of waits under way.
//!
//! Invariants
//! 1. Nothing is done for a request that names another incarnation (DESIGN invariant 6): it is refused, and a refusal is never a
//!    "not found".
//! 2. A chunk is acknowledged only after every CRC of it was checked here and the replica's journal has synced it.
//! 3. Appends reach the replica in the order in which they came by a connection: they are taken up in the reading task itself.
//! 4. One copy: from the message into an aligned buffer, which is what the disk writes from and what tail reads are served from.
//! 5. At most [`READS_MAX`] reads hold chunks in memory at a time; at most [`WAITING_MAX`] requests wait, others are refused.
//!
//! Failure: a lost answer is the asker's matter; it may ask again and hears the same ([`LocalReplica::append_again`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{BufferPool, Host};
use isobar_rpc::{Caller, Reply, Service};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::wire::{Ask, ROOM_WAIT_MS, Status, Told, is_known, join, method, split};
use crate::{Chunk, LocalReplica, Wal, WalError};

/// Reads that hold a chunk at a time.
const READS_MAX: usize = 16;
/// Reads and waits for room that may be under way.
const WAITING_MAX: usize = 1024;
/// Batches of one read: more than a commit may name.
const BATCHES_MAX: u32 = 1 << 16;
/// Bytes of buffers kept for the chunks to come.
const POOL_BYTES: usize = 32 << 20;

/// The service [`isobar_rpc::ServiceId::WAL`] of a node with a replica. To be registered once the replica is reconciled.
pub struct WalService {
    shared: Arc<Shared>,
}

struct Shared {
    host: Host,
    replica: LocalReplica,
    pool: BufferPool,
    reads: Semaphore,
    waiting: AtomicUsize,
}

impl WalService {
    /// Serves this replica.
    pub fn new(host: &Host, replica: LocalReplica) -> Self {
        let shared = Shared {
            host: host.clone(),
            replica,
            pool: BufferPool::new(POOL_BYTES),
            reads: Semaphore::new(READS_MAX),
            waiting: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }
}

impl Service for WalService {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        let shared = &self.shared;
        let (ask, payload) = match split::<Ask>(body) {
            Ok((ask, payload)) if is_known(ask.version) => (ask, payload),
            Ok((ask, _)) => {
                let why = format!("version {} is not known", ask.version);
                return tell(reply, &Told::refusal(Status::Malformed, why), []);
            }
            Err(error) => return tell(reply, &Told::refusal(Status::Malformed, error.to_string()), []),
        };
        let ours = shared.replica.directory();
        if ask.directory != ours {
            tracing::warn!(node = from.node_id, asked = %ask.directory, %ours, "asked for another WAL directory");
            let why = format!("the directory here is {ours}, not {}", ask.directory);
            return tell(reply, &Told::refusal(Status::OtherDirectory, why), []);
        }
        match method {
            method::APPEND => shared.append(&payload, reply),
            method::READ => shared.later(Later::Read(ask), reply),
            method::FETCH => shared.later(Later::Fetch(ask), reply),
            method::STATE => shared.state(reply),
            method::ROOM => shared.later(Later::Room, reply),
            _ => {
                let why = format!("method {method} is not known");
                tell(reply, &Told::refusal(Status::Malformed, why), []);
            }
        }
    }
}

impl Shared {
    fn append(self: &Arc<Self>, frame: &Bytes, reply: Reply) {
        let chunk = match self.chunk(frame) {
            Ok(chunk) => chunk,
            Err(error) => return tell(reply, &Told::error(&error, Wal::has_room(&self.replica)), []),
        };
        let shared = Arc::clone(self);
        let done = move |result: Result<_, WalError>| {
            let has_room = Wal::has_room(&shared.replica);
            let told = match result {
                Ok(_) => Told::ok(has_room),
                Err(error) => Told::error(&error, has_room),
            };
            tell(reply, &told, []);
        };
        self.replica.append_again(chunk, Box::new(done));
    }

    fn chunk(&self, frame: &Bytes) -> Result<Chunk, WalError> {
        Chunk::received(frame, self.replica.max_chunk_bytes(), |bytes| self.pool.take(bytes))
    }

    fn state(&self, reply: Reply) {
        let told = match self.replica.failure() {
            Some(error) => Told::error(&error, false),
            None => Told::ok(Wal::has_room(&self.replica)),
        };
        tell(reply, &told, []);
    }

    /// Answers in a task of its own, if there are not too many.
    fn later(self: &Arc<Self>, what: Later, reply: Reply) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return tell(reply, &Told::refusal(Status::Busy, "too many requests wait here"), []);
        }
        let shared = Arc::clone(self);
        self.host.spawn("wal-serve", async move {
            match what {
                Later::Read(ask) => shared.read(&ask, reply).await,
                Later::Fetch(ask) => shared.fetch(&ask, reply).await,
                Later::Room => {
                    let wait = Duration::from_millis(ROOM_WAIT_MS);
                    // In time or not: the state says which.
                    let _ = timeout(wait, Wal::room(&shared.replica)).await;
                    shared.state(reply);
                }
            }
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
        });
    }

    async fn read(&self, ask: &Ask, reply: Reply) {
        if ask.end_ordinal.saturating_sub(ask.first_ordinal) > BATCHES_MAX {
            let why = format!("more than {BATCHES_MAX} batches at once");
            return tell(reply, &Told::refusal(Status::Malformed, why), []);
        }
        let Ok(_permit) = self.reads.acquire().await else { return };
        if reply.is_gone() {
            return;
        }
        let ordinals = ask.first_ordinal..ask.end_ordinal;
        let read = Wal::read(&self.replica, ask.stream, ask.number, ordinals).await;
        match read {
            Ok(batches) => {
                let batch_bytes = batches.iter().map(|batch| batch.len() as u32).collect();
                let told = Told { batch_bytes, ..Told::ok(Wal::has_room(&self.replica)) };
                tell(reply, &told, batches);
            }
            Err(error) => tell(reply, &Told::error(&error, Wal::has_room(&self.replica)), []),
        }
    }
}

impl Shared {
    async fn fetch(&self, ask: &Ask, reply: Reply) {
        let Ok(_permit) = self.reads.acquire().await else { return };
        if reply.is_gone() {
            return;
        }
        let has_room = Wal::has_room(&self.replica);
        match self.replica.whole(ask.stream, ask.number).await {
            Ok(chunk) => tell(reply, &Told::ok(has_room), [chunk.frame().content()]),
            Err(error) => tell(reply, &Told::error(&error, has_room), []),
        }
    }
}

/// What takes longer than a request may hold up those behind it.
enum Later {
    Read(Ask),
    Fetch(Ask),
    Room,
}

fn tell(reply: Reply, told: &Told, payload: impl IntoIterator<Item = Bytes>) {
    reply.send(Ok(join(told, payload)));
}
