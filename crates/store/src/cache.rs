//! Blocks of objects in memory.
//!
//! Owns: aligned blocks of [`BLOCK_BYTES`] (the last of an object is shorter) behind the [`BlockCache`] trait, whose other
//! implementation will be memory and local disk.
//!
//! Invariants
//! 1. A block never changes: objects never do, and their ids are used once. So nothing is removed but for room, and where its
//!    bytes turned out to be damaged on their way from the store.
//! 2. One load of a block is under way at a time, however many ask; the load belongs to nobody who asks, so it ends
//!    though all of them have left.
//! 3. At most `max_bytes` are kept, loads under way and blocks still in a reader's hands not counted.
//! 4. A failed load is told to all who waited and not kept.
//!
//! Which of a block's batches have had their CRC checked is noted in the block and goes with it: bytes that come from the
//! store again are checked again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use isobar_host::Host;
use isobar_host::watch;
use isobar_metadata::ids::ObjectId;
use parking_lot::Mutex;

use crate::StoreError;
use crate::metrics::StoreMetrics;

/// Size of a block.
pub const BLOCK_BYTES: u64 = 1 << 20;

/// Names a block: the bytes from `block * BLOCK_BYTES` of an object, in whichever store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// Counted from 0.
    pub block: u32,
}

/// A block of an object.
#[derive(Debug)]
pub struct Block {
    bytes: Bytes,
    /// Ranges of batches whose CRC was checked since the load; sorted, apart from each other.
    verified: Mutex<Vec<Range<u32>>>,
}

impl Block {
    /// A block as it came from the store, nothing in it checked.
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, verified: Mutex::default() }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether all of the range was verified since the load.
    pub fn is_verified(&self, range: &Range<u32>) -> bool {
        let verified = self.verified.lock();
        let after = verified.partition_point(|known| known.start <= range.start);
        after > 0 && verified[after - 1].end >= range.end
    }

    /// Notes that the batches in this range were verified.
    pub fn set_verified(&self, range: Range<u32>) {
        let mut verified = self.verified.lock();
        let from = verified.partition_point(|known| known.end < range.start);
        let to = verified.partition_point(|known| known.start <= range.end);
        let mut merged = range;
        if from < to {
            merged.start = merged.start.min(verified[from].start);
            merged.end = merged.end.max(verified[to - 1].end);
        }
        verified.splice(from..to, [merged]);
    }
}

/// Gets a block's bytes from the store.
pub type Load = Box<dyn FnOnce() -> BoxFuture<'static, Result<Bytes, StoreError>> + Send>;

/// Keeps blocks. An implementation whose blocks leave memory keeps a CRC with each and checks it when they come back.
#[async_trait]
pub trait BlockCache: Send + Sync {
    /// The block, from the cache or else by `load`.
    async fn get(&self, key: BlockKey, load: Load) -> Result<Arc<Block>, StoreError>;

    /// Drops a block whose bytes are not what was written, so that the next one who asks loads it again.
    fn evict(&self, key: BlockKey);
}

type Outcome = Option<Result<Arc<Block>, StoreError>>;

enum Slot {
    Ready { block: Arc<Block>, stamp: u64 },
    Loading(watch::Receiver<Outcome>),
}

#[derive(Default)]
struct State {
    slots: BTreeMap<BlockKey, Slot>,
    /// Ready blocks, those used least recently first.
    order: BTreeMap<u64, BlockKey>,
    next_stamp: u64,
    bytes: usize,
}

struct Shared {
    host: Host,
    max_bytes: usize,
    metrics: StoreMetrics,
    state: Mutex<State>,
}

/// A block cache in memory. A clone is the same cache.
#[derive(Clone)]
pub struct MemoryCache {
    shared: Arc<Shared>,
}

impl MemoryCache {
    /// Keeps at most `max_bytes`.
    pub fn new(host: &Host, max_bytes: usize, metrics: StoreMetrics) -> Self {
        let shared = Shared { host: host.clone(), max_bytes, metrics, state: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Bytes kept now.
    pub fn bytes(&self) -> usize {
        self.shared.state.lock().bytes
    }

    /// The block if it is here, or whom to wait for.
    fn look(&self, key: BlockKey, load: Load) -> Result<Arc<Block>, watch::Receiver<Outcome>> {
        let mut state = self.shared.state.lock();
        let state = &mut *state;
        match state.slots.get_mut(&key) {
            Some(Slot::Ready { block, stamp }) => {
                self.shared.metrics.cache_hits.inc();
                state.order.remove(stamp);
                *stamp = state.next_stamp;
                state.next_stamp += 1;
                state.order.insert(*stamp, key);
                Ok(Arc::clone(block))
            }
            Some(Slot::Loading(waiting)) => {
                self.shared.metrics.cache_hits.inc();
                Err(waiting.clone())
            }
            None => {
                self.shared.metrics.cache_misses.inc();
                let (tell, waiting) = watch::channel(None);
                state.slots.insert(key, Slot::Loading(waiting.clone()));
                let flight = Flight { shared: Arc::clone(&self.shared), key, landed: false };
                self.shared.host.spawn("block-load", async move {
                    let loaded = load().await;
                    tell.send_replace(Some(flight.land(loaded)));
                });
                Err(waiting)
            }
        }
    }
}

/// A load under way. If its task dies (a panic, the runtime's end) the slot is freed, so that the next one loads anew.
struct Flight {
    shared: Arc<Shared>,
    key: BlockKey,
    landed: bool,
}

impl Flight {
    fn land(mut self, loaded: Result<Bytes, StoreError>) -> Result<Arc<Block>, StoreError> {
        self.landed = true;
        let mut state = self.shared.state.lock();
        match loaded {
            Ok(bytes) => {
                let block = Arc::new(Block::new(bytes));
                state.keep(self.key, Arc::clone(&block), self.shared.max_bytes);
                self.shared.metrics.cache_bytes.set(state.bytes as u64);
                Ok(block)
            }
            Err(error) => {
                state.slots.remove(&self.key);
                Err(error)
            }
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            self.shared.state.lock().slots.remove(&self.key);
        }
    }
}

impl State {
    fn keep(&mut self, key: BlockKey, block: Arc<Block>, max_bytes: usize) {
        let len = block.bytes.len();
        if len > max_bytes {
            self.slots.remove(&key);
            return;
        }
        while self.bytes + len > max_bytes
            && let Some((_, oldest)) = self.order.pop_first()
        {
            if let Some(Slot::Ready { block, .. }) = self.slots.remove(&oldest) {
                self.bytes -= block.bytes.len();
            }
        }
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.order.insert(stamp, key);
        self.bytes += len;
        self.slots.insert(key, Slot::Ready { block, stamp });
    }
}

#[async_trait]
impl BlockCache for MemoryCache {
    async fn get(&self, key: BlockKey, load: Load) -> Result<Arc<Block>, StoreError> {
        let mut waiting = match self.look(key, load) {
            Ok(block) => return Ok(block),
            Err(waiting) => waiting,
        };
        match waiting.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(StoreError::Stopping)),
            // The loading task is gone without a word.
            Err(_) => Err(StoreError::Stopping),
        }
    }

    fn evict(&self, key: BlockKey) {
        let mut state = self.shared.state.lock();
        if let Some(Slot::Ready { block, stamp }) = state.slots.get(&key) {
            let (len, stamp) = (block.bytes.len(), *stamp);
            state.slots.remove(&key);
            state.order.remove(&stamp);
            state.bytes -= len;
            self.shared.metrics.cache_bytes.set(state.bytes as u64);
        }
    }
}

#[cfg(test)]
mod tests;
