//! One cache for the brokers of a zone: each block of an object has a home among them, and who needs one asks its home before the
//! store. So a zone gets a block once, however many of its brokers read from it.
//!
//! Owns: the service BLOCKS of a broker, and who is left alone because asking failed just now. No block: those lie in the
//! [`BlockCache`] of whoever asked and of the home.
//!
//! Invariants
//! 1. All brokers that see the same ones in their zone choose the same home for a block ([`home_of`], a rendezvous hash over
//!    [`HOME_BLOCKS`] neighbours, so that one request seldom has two homes), and one that comes or goes moves only its own blocks.
//! 2. A home gets what it is asked for from its cache or from the store, and never asks on.
//! 3. Nobody depends on a home: whatever goes wrong there, the block comes from the store, as it would without a zone.
//! 4. What a home says is trusted as much as the store: readers check every batch, and what they find damaged they fetch again,
//!    from the store itself.
//! 5. At most [`IN_HAND_BLOCKS`] blocks are in hand for others at a time, and [`WAITING_MAX`] requests wait; others are refused.
//!
//! Failure: a home that does not answer within [`PATIENCE`], or cannot be reached, is left alone for [`SHUN`]. Two that see the zone
//! differently may each take the other for a block's home and wait for each other's load: for [`PATIENCE`], once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_metadata::ids::{ObjectId, mix64};
use isobar_rpc::{CallError, Caller, Channel, Method, Refusal, Reply, Rpc, Service, ServiceId};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::StoreError;
use crate::cache::{BLOCK_BYTES, BlockCache, BlockKey, BlockSource};
use crate::classes::Class;
use crate::metrics::StoreMetrics;

/// Neighbouring blocks with the same home.
const HOME_BLOCKS: u32 = 32;
/// How long a home may take: longer than the store takes as a rule.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long who did not answer is not asked again.
const SHUN: Duration = Duration::from_secs(5);
/// Blocks in one request, at most.
const REQUEST_BLOCKS_MAX: u32 = 16;
const IN_HAND_BLOCKS: usize = 64;
const WAITING_MAX: usize = 256;

const GET: Method = Method::new(ServiceId::BLOCKS, 1);
const MALFORMED: u16 = 1;
const BUSY: u16 = 2;
const FAILED: u16 = 3;

/// A question for neighbouring blocks. The answer is their bytes, one after the other.
#[derive(Clone, PartialEq, Message)]
struct Ask {
    #[prost(message, required, tag = "1")]
    object: ObjectId,
    #[prost(uint32, tag = "2")]
    first: u32,
    #[prost(uint32, tag = "3")]
    count: u32,
    /// Somebody reads at the end of the log.
    #[prost(bool, tag = "4")]
    is_tail: bool,
}

impl Ask {
    fn is_bounded(&self) -> bool {
        (1..=REQUEST_BLOCKS_MAX).contains(&self.count) && self.first.checked_add(self.count).is_some()
    }
}

/// Who else is in this broker's zone.
pub trait Neighbours: Send + Sync {
    /// The zone's other live brokers as of now: node ids, and where their transports listen.
    fn others(&self) -> Vec<(i32, String)>;
}

/// How a broker reaches the others of its zone. A clone is the same.
#[derive(Clone)]
pub struct Zone {
    inner: Arc<Inner>,
}

struct Inner {
    rpc: Rpc,
    neighbours: Arc<dyn Neighbours>,
    shunned: Mutex<BTreeMap<i32, Instant>>,
    metrics: StoreMetrics,
}

impl Zone {
    /// Asks by this transport.
    pub fn new(rpc: Rpc, neighbours: Arc<dyn Neighbours>, metrics: StoreMetrics) -> Self {
        Self { inner: Arc::new(Inner { rpc, neighbours, shunned: Mutex::default(), metrics }) }
    }

    /// Serves the others from this cache.
    pub(crate) fn serve(&self, host: &Host, cache: Arc<dyn BlockCache>, sources: Sources) {
        let shared = Arc::new(Serving {
            cache,
            sources,
            in_hand: Semaphore::new(IN_HAND_BLOCKS),
            metrics: self.inner.metrics.clone(),
        });
        let waiting = Arc::new(Semaphore::new(WAITING_MAX));
        let service = BlockService { host: host.clone(), shared, waiting };
        self.inner.rpc.register(ServiceId::BLOCKS, Arc::new(service));
    }

    /// Whom to ask for this block; `None`: the store.
    fn home(&self, object: ObjectId, block: u32) -> Option<(i32, String)> {
        let mut others = self.inner.neighbours.others();
        let now = Instant::now();
        let mut shunned = self.inner.shunned.lock();
        shunned.retain(|_, until| *until > now);
        others.retain(|(id, _)| !shunned.contains_key(id));
        let me = self.inner.rpc.node_id();
        let home = home_of(others.iter().map(|(id, _)| *id).chain([me]), object, block)?;
        others.into_iter().find(|(id, _)| *id == home)
    }

    /// Asks a home; `None` if that was in vain.
    async fn ask(&self, home: (i32, String), ask: &Ask) -> Option<Bytes> {
        let (id, address) = home;
        let peer = self.inner.rpc.peer(id, &address);
        let body = vec![ask.encode_to_vec().into()];
        let error = match peer.call(Channel::Bulk, GET, body, Instant::now() + PATIENCE).await {
            Ok(bytes) if is_whole(ask, bytes.len()) => return Some(bytes),
            Ok(bytes) => CallError::Lost(format!("{} bytes are not {} blocks", bytes.len(), ask.count)),
            Err(error) => error,
        };
        tracing::debug!(node = id, object = %ask.object, block = ask.first, %error, "a block's home was asked in vain");
        self.inner.metrics.zone_failures.inc();
        if !matches!(error, CallError::Refused { code: BUSY | FAILED, .. }) {
            self.inner.shunned.lock().insert(id, Instant::now() + SHUN);
        }
        None
    }
}

/// Only the last block of an object may be shorter than the others, and none is empty.
fn is_whole(ask: &Ask, bytes: usize) -> bool {
    (bytes as u64).div_ceil(BLOCK_BYTES) == u64::from(ask.count)
}

/// Highest random weight.
fn home_of(brokers: impl Iterator<Item = i32>, object: ObjectId, block: u32) -> Option<i32> {
    let blocks = mix64(object.0 ^ mix64(u64::from(block / HOME_BLOCKS) + 1));
    // Ids follow each other: they are mixed before they meet what is hashed.
    brokers.max_by_key(|id| (mix64(blocks ^ mix64(u64::from(id.cast_unsigned()) + 1)), *id))
}

/// Where blocks come from, by what they are for.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) tail: Arc<dyn BlockSource>,
    pub(crate) catch_up: Arc<dyn BlockSource>,
}

impl Sources {
    pub(crate) fn of(&self, class: Class) -> &Arc<dyn BlockSource> {
        if class == Class::Tail { &self.tail } else { &self.catch_up }
    }

    /// The same with the zone before them.
    pub(crate) fn near(&self, zone: &Zone) -> Self {
        let near = |class| {
            let source: Arc<dyn BlockSource> =
                Arc::new(Near { zone: zone.clone(), class, store: Arc::clone(self.of(class)) });
            source
        };
        Self { tail: near(Class::Tail), catch_up: near(Class::CatchUp) }
    }
}

/// The zone, and the store behind it.
struct Near {
    zone: Zone,
    class: Class,
    store: Arc<dyn BlockSource>,
}

#[async_trait]
impl BlockSource for Near {
    async fn load(
        &self,
        object: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        let mut first = blocks.start;
        while first < blocks.end {
            let same_home = (first / HOME_BLOCKS + 1).saturating_mul(HOME_BLOCKS);
            let end = blocks.end.min(same_home).min(first.saturating_add(REQUEST_BLOCKS_MAX));
            let ask = Ask { object, first, count: end - first, is_tail: self.class == Class::Tail };
            let got = match self.zone.home(object, first) {
                Some(home) => self.zone.ask(home, &ask).await,
                None => None,
            };
            match got {
                Some(bytes) => {
                    self.zone.inner.metrics.zone_blocks.inc_by(u64::from(ask.count));
                    // Copied, or a block that is kept would keep its neighbours too.
                    bytes.chunks(BLOCK_BYTES as usize).for_each(|block| found(Bytes::copy_from_slice(block)));
                }
                None => self.store.load(object, first..end, found).await?,
            }
            first = end;
        }
        Ok(())
    }
}

struct BlockService {
    host: Host,
    shared: Arc<Serving>,
    waiting: Arc<Semaphore>,
}

struct Serving {
    cache: Arc<dyn BlockCache>,
    sources: Sources,
    in_hand: Semaphore,
    metrics: StoreMetrics,
}

impl Service for BlockService {
    fn request(&self, _: Caller, method: u8, body: Bytes, reply: Reply) {
        let ask = match Ask::decode(body) {
            Ok(ask) if method == GET.method && ask.is_bounded() => ask,
            _ => return reply.send(Err(Refusal::new(MALFORMED, "not a question for blocks"))),
        };
        let Ok(place) = Arc::clone(&self.waiting).try_acquire_owned() else {
            return reply.send(Err(Refusal::new(BUSY, "too many questions wait here")));
        };
        let shared = Arc::clone(&self.shared);
        self.host.spawn("zone-blocks", async move {
            let _place = place;
            let Ok(_in_hand) = shared.in_hand.acquire_many(ask.count).await else { return };
            if reply.is_gone() {
                return;
            }
            let blocks = shared.blocks(&ask).await;
            reply.send(blocks.map_err(|error| Refusal::new(FAILED, error.to_string())));
        });
    }
}

impl Serving {
    async fn blocks(&self, ask: &Ask) -> Result<Vec<Bytes>, StoreError> {
        let blocks = ask.first..ask.first + ask.count;
        let source = self.sources.of(if ask.is_tail { Class::Tail } else { Class::CatchUp });
        if ask.count > 1 {
            // By one request, as far as there is room.
            self.cache.prefetch(ask.object, blocks.clone(), source);
        }
        let mut found = Vec::with_capacity(ask.count as usize);
        for block in blocks {
            let block = self.cache.get(BlockKey { object: ask.object, block }, source).await?;
            found.push(block.bytes().clone());
        }
        self.metrics.zone_served_blocks.inc_by(u64::from(ask.count));
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
