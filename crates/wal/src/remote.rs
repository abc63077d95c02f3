//! A WAL replica on another node.
//!
//! Appends go out in order on their own connection and are answered in order. None is ever sent again: a lost answer leaves the
//! replica behind, and the stream goes on without it.
//!
//! Bounds: bytes of appends that are unanswered, and the deadline of every request.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::AlignedBuf;
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_protocol::batch::verify_crc;
use isobar_rpc::{CallError, Channel, Method, Peer, ServiceId};
use parking_lot::RwLock;
use tokio::time::Instant;

use crate::member::Replica;
use crate::wire::{Ask, ROOM_WAIT_MS, Told, is_known, join, method, split};
use crate::{Acked, AppendDone, Chunk, WalError};

/// Far more than the largest chunk: a bound, whatever an answer says.
const FETCHED_BYTES_MAX: usize = 256 << 20;

/// How a remote replica is spoken with.
#[derive(Debug, Clone)]
pub struct RemoteOptions {
    /// How long an append may take. Longer than the stream's own patience, which leaves the replica behind first.
    pub append_timeout: Duration,
    /// How long a read may take.
    pub read_timeout: Duration,
    /// How long the question whether it is there may take.
    pub probe_timeout: Duration,
    /// Bytes of appends, of all streams, that may wait for an answer; beyond it they fail.
    pub unanswered_bytes_max: usize,
}

impl Default for RemoteOptions {
    fn default() -> Self {
        Self {
            append_timeout: Duration::from_secs(10),
            read_timeout: Duration::from_secs(10),
            probe_timeout: Duration::from_millis(500),
            unanswered_bytes_max: 256 << 20,
        }
    }
}

/// A replica that another node serves ([`crate::WalService`]). Cheap to clone.
#[derive(Clone)]
pub struct RemoteReplica {
    shared: Arc<Shared>,
}

struct Shared {
    /// By which it is reached now; the same node and address always.
    peer: RwLock<Peer>,
    directory: DirectoryId,
    options: RemoteOptions,
    unanswered_bytes: AtomicUsize,
    has_room: AtomicBool,
    /// It takes frames without padding; as its answers say.
    pads: AtomicBool,
}

impl RemoteReplica {
    /// The incarnation that should be at that peer; another one refuses every request.
    pub fn new(peer: Peer, directory: DirectoryId, options: RemoteOptions) -> Self {
        let shared = Shared {
            peer: RwLock::new(peer),
            directory,
            options,
            unanswered_bytes: AtomicUsize::new(0),
            has_room: AtomicBool::new(true),
            pads: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Goes on by this peer if it is the same node at the same address: the transport may have made it anew.
    pub(crate) fn takes(&self, peer: &Peer) -> bool {
        let mut known = self.shared.peer.write();
        let is_same = known.node_id() == peer.node_id() && known.address() == peer.address();
        if is_same {
            *known = peer.clone();
        }
        is_same
    }

    /// A whole chunk, every CRC checked; with the errors of a read.
    pub(crate) async fn fetch(&self, stream: StreamId, number: u64) -> Result<Chunk, WalError> {
        let shared = &self.shared;
        let ask = Ask { stream, number, ..Ask::of(shared.directory) };
        let (_, frame) = self.ask(Channel::Bulk, method::FETCH, ask, shared.options.read_timeout).await?;
        Chunk::received(&frame, FETCHED_BYTES_MAX, AlignedBuf::unpooled)
    }

    async fn ask(
        &self,
        channel: Channel,
        method: u8,
        ask: Ask,
        timeout: Duration,
    ) -> Result<(Told, Bytes), WalError> {
        let method = Method::new(ServiceId::WAL, method);
        let peer = self.shared.peer();
        let answer = peer.call(channel, method, join(&ask, []), Instant::now() + timeout).await;
        self.shared.told(answer)
    }
}

impl Shared {
    fn peer(&self) -> Peer {
        self.peer.read().clone()
    }

    /// What a call came to; notes whether the replica has room.
    fn told(&self, answer: Result<Bytes, CallError>) -> Result<(Told, Bytes), WalError> {
        let (told, payload) = split::<Told>(answer.map_err(|error| self.unavailable(&error))?)?;
        if !is_known(told.version) {
            return Err(self.unavailable(&format!("it answers in version {}", told.version)));
        }
        match told.to_error() {
            None => {
                self.has_room.store(told.has_room, Ordering::Relaxed);
                self.pads.store(told.pads, Ordering::Relaxed);
                Ok((told, payload))
            }
            Some(error) => {
                if matches!(error, WalError::Corrupt(_)) {
                    // An older release may have come back there, which cannot do without padding.
                    self.pads.store(false, Ordering::Relaxed);
                }
                if error == WalError::Full {
                    self.has_room.store(told.has_room, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }

    fn unavailable(&self, why: &dyn std::fmt::Display) -> WalError {
        WalError::Unavailable(format!("replica {} at {}: {why}", self.directory, self.peer.read().address()))
    }
}

#[async_trait]
impl Replica for RemoteReplica {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        let shared = Arc::clone(&self.shared);
        let frame = chunk.frame();
        let frame = if shared.pads.load(Ordering::Relaxed) { frame.content() } else { frame.bytes() };
        let bytes = frame.len();
        let before = shared.unanswered_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > shared.options.unanswered_bytes_max && before > 0 {
            shared.unanswered_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return done(Err(shared.unavailable(&format!("{before} bytes wait for it already"))));
        }
        let body = join(&Ask::of(shared.directory), [frame]);
        let deadline = Instant::now() + shared.options.append_timeout;
        let method = Method::new(ServiceId::WAL, method::APPEND);
        let peer = shared.peer();
        peer.call_with(Channel::Wal, method, body, deadline, move |answer| {
            shared.unanswered_bytes.fetch_sub(bytes, Ordering::Relaxed);
            done(shared.told(answer).map(|_| Acked::ALONE));
        });
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        let shared = &self.shared;
        let Range { start: first_ordinal, end: end_ordinal } = ordinals;
        let ask = Ask { stream, number, first_ordinal, end_ordinal, ..Ask::of(shared.directory) };
        let (told, payload) = self.ask(Channel::Bulk, method::READ, ask, shared.options.read_timeout).await?;
        batches_of(&told.batch_bytes, payload, end_ordinal.saturating_sub(first_ordinal))
    }

    async fn probe(&self) -> Result<bool, WalError> {
        let shared = &self.shared;
        let ask = Ask::of(shared.directory);
        let (told, _) = self.ask(Channel::Control, method::STATE, ask, shared.options.probe_timeout).await?;
        Ok(told.has_room)
    }

    fn has_room(&self) -> bool {
        self.shared.has_room.load(Ordering::Relaxed)
    }

    async fn room(&self) {
        let patience = Duration::from_millis(ROOM_WAIT_MS) + Duration::from_secs(5);
        while !self.has_room() {
            let ask = Ask::of(self.shared.directory);
            if self.ask(Channel::Control, method::ROOM, ask, patience).await.is_err() {
                // Who cannot be reached holds nobody back: the next append finds out, and leaves it behind.
                self.shared.has_room.store(true, Ordering::Relaxed);
            }
        }
    }

    fn is_local(&self) -> bool {
        false
    }

    fn is_connected(&self) -> bool {
        self.shared.peer.read().is_connected(Channel::Wal)
    }
}

/// Cuts the batches of an answer apart, and checks each.
fn batches_of(lengths: &[u32], mut payload: Bytes, count: u32) -> Result<Vec<Bytes>, WalError> {
    let bad = |why: &str| WalError::Corrupt(format!("the answer of a replica: {why}"));
    let total: u64 = lengths.iter().map(|&bytes| u64::from(bytes)).sum();
    if lengths.len() != count as usize || total != payload.len() as u64 {
        return Err(bad("not the batches that were asked for"));
    }
    let mut batches = Vec::with_capacity(lengths.len());
    for &bytes in lengths {
        let batch = payload.split_to(bytes as usize);
        verify_crc(&batch).map_err(|error| bad(&error.to_string()))?;
        batches.push(batch);
    }
    Ok(batches)
}
