use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

pub(crate) fn key(block: u32) -> BlockKey {
    BlockKey { object: ObjectId(1), block }
}

/// Objects of as many blocks as one asks for, each block of `block_bytes` that say which it is.
pub(crate) struct Source {
    pub(crate) block_bytes: usize,
    /// Every load.
    pub(crate) loads: Mutex<Vec<(u32, u32)>>,
    /// Loads to come that fail, and those that panic.
    pub(crate) failures: AtomicUsize,
    pub(crate) panics: AtomicUsize,
    /// Objects end before this block.
    pub(crate) end: u32,
}

impl Source {
    pub(crate) fn new(block_bytes: usize) -> (Arc<Self>, Arc<dyn BlockSource>) {
        let source = Arc::new(Self {
            block_bytes,
            loads: Mutex::default(),
            failures: AtomicUsize::new(0),
            panics: AtomicUsize::new(0),
            end: 1000,
        });
        (Arc::clone(&source), source as Arc<dyn BlockSource>)
    }

    pub(crate) fn block(&self, key: BlockKey) -> Bytes {
        Bytes::from(vec![(key.object.0 as u8) ^ (key.block as u8); self.block_bytes])
    }

    pub(crate) fn take_loads(&self) -> Vec<(u32, u32)> {
        std::mem::take(&mut *self.loads.lock())
    }
}

fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

#[async_trait]
impl BlockSource for Source {
    async fn load(
        &self,
        object: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        self.loads.lock().push((blocks.start, blocks.end));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!take_one(&self.panics), "on purpose");
        for block in blocks.start..blocks.end.min(self.end) {
            found(self.block(BlockKey { object, block }));
        }
        if take_one(&self.failures) { Err(StoreError::NotFound("x".to_owned())) } else { Ok(()) }
    }
}

fn memory(max_bytes: usize) -> MemoryCache {
    MemoryCache::new(&Host::real(), max_bytes, StoreMetrics::default())
}

/// What every cache promises. `cache` is empty and has room for a few blocks.
pub(crate) async fn conforms(cache: &dyn BlockCache) {
    let (counts, source) = Source::new(1000);
    // Many who ask cause one load, and each gets the block asked for.
    let asks = (0..10).map(|_| cache.get(key(0), &source));
    for block in futures_util::future::join_all(asks).await {
        assert_eq!(block.unwrap().bytes(), &counts.block(key(0)));
    }
    cache.get(key(0), &source).await.unwrap();
    let other = BlockKey { object: ObjectId(2), block: 0 };
    assert_eq!(cache.get(other, &source).await.unwrap().bytes(), &counts.block(other));
    assert_eq!(counts.take_loads(), [(0, 1), (0, 1)]);
    // A load goes on though all have left.
    let ask = cache.get(key(1), &source);
    assert!(tokio::time::timeout(Duration::from_millis(5), ask).await.is_err());
    cache.get(key(1), &source).await.unwrap();
    assert_eq!(counts.take_loads(), [(1, 2)]);
    // A failure is told to all and not kept.
    let failing = Arc::new(Failing) as Arc<dyn BlockSource>;
    let asks = (0..5).map(|_| cache.get(key(2), &failing));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap_err(), StoreError::NotFound("x".to_owned()));
    }
    assert!(cache.get(key(2), &source).await.is_ok());
    counts.take_loads();
    // A load that panics does not block the next.
    counts.panics.store(1, Ordering::SeqCst);
    assert_eq!(cache.get(key(3), &source).await.unwrap_err(), StoreError::Stopping);
    assert!(cache.get(key(3), &source).await.is_ok());
    counts.take_loads();
    // What is read ahead comes by one load, around what is there or under way, and is there when it is asked for.
    cache.get(key(13), &source).await.unwrap();
    cache.prefetch(ObjectId(1), 10..16, &source);
    for block in 10..16 {
        assert_eq!(cache.get(key(block), &source).await.unwrap().bytes(), &counts.block(key(block)));
    }
    assert_eq!(counts.take_loads(), [(13, 14), (10, 13), (14, 16)]);
    // What was found damaged is loaded again.
    cache.evict(key(0));
    assert_eq!(cache.get(key(0), &source).await.unwrap().bytes(), &counts.block(key(0)));
    assert_eq!(counts.take_loads(), [(0, 1)]);
    // An object that is shorter than somebody believes.
    let end = BlockKey { object: ObjectId(1), block: 1000 };
    assert!(matches!(cache.get(end, &source).await, Err(StoreError::Damaged { .. })));
}

/// Fails after a while.
struct Failing;

#[async_trait]
impl BlockSource for Failing {
    async fn load(
        &self,
        _object: ObjectId,
        _blocks: Range<u32>,
        _found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(StoreError::NotFound("x".to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn memory_conforms() {
    conforms(&memory(64 << 20)).await;
}

#[tokio::test(start_paused = true)]
async fn a_load_that_fails_half_way_gives_what_came() {
    let (counts, source) = Source::new(10);
    let cache = memory(64 << 20);
    counts.failures.store(1, Ordering::SeqCst);
    let short: Arc<dyn BlockSource> = Arc::new(Source {
        block_bytes: 10,
        loads: Mutex::default(),
        failures: AtomicUsize::new(1),
        panics: AtomicUsize::new(0),
        end: 2,
    });
    cache.prefetch(ObjectId(1), 0..4, &short);
    let asks = futures_util::future::join_all((0..4).map(|block| cache.get(key(block), &source))).await;
    assert!(asks[..2].iter().all(Result::is_ok));
    assert_eq!(asks[2..].iter().filter_map(|ask| ask.as_ref().err()).count(), 2);
    assert!(counts.take_loads().is_empty());
}

#[tokio::test(start_paused = true)]
async fn keeps_the_bound_and_what_was_used_last() {
    let ((counts, source), cache) = (Source::new(100), memory(250));
    for block in [0, 1, 0, 2] {
        cache.get(key(block), &source).await.unwrap();
        assert!(cache.bytes() <= 250);
    }
    assert_eq!(counts.take_loads().len(), 3);
    cache.get(key(0), &source).await.unwrap();
    assert_eq!(counts.take_loads().len(), 0, "0 was used after 1");
    cache.get(key(1), &source).await.unwrap();
    assert_eq!(counts.take_loads().len(), 1);
    cache.get(key(9), &Source::new(300).1).await.unwrap();
    assert_eq!(cache.bytes(), 200, "one that is larger than the cache is not kept");
}

#[tokio::test(start_paused = true)]
async fn reads_ahead_within_its_part_of_the_memory_and_counts_what_was_in_vain() {
    let (counts, source) = Source::new(BLOCK_BYTES as usize);
    let cache = memory(8 << 20);
    let metrics = cache.shared.metrics.clone();
    cache.prefetch(ObjectId(1), 0..20, &source);
    cache.prefetch(ObjectId(2), 0..20, &source);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((counts.take_loads(), cache.room()), (vec![(0, 6)], 0));
    cache.get(key(0), &source).await.unwrap();
    cache.get(key(1), &source).await.unwrap();
    cache.prefetch(ObjectId(2), 0..20, &source);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(counts.take_loads(), [(0, 2)]);
    assert_eq!((metrics.cache_ahead_bytes.get(), metrics.cache_unused_bytes.get()), (8 << 20, 0));
    // Others push out what nobody came for: four blocks of the one, two of the other.
    for block in 100..108 {
        cache.get(key(block), &source).await.unwrap();
    }
    assert_eq!(metrics.cache_unused_bytes.get(), 6 << 20);
    assert_eq!(cache.shared.state.lock().ahead, 0);
    // A failed one gives its room back.
    counts.panics.store(1, Ordering::SeqCst);
    cache.prefetch(ObjectId(3), 0..20, &source);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(cache.shared.state.lock().ahead, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_was_verified_is_known_and_nothing_else(ranges in proptest::collection::vec((0..60_u32, 1..10_u32), 0..20)) {
        let block = Block::new(Bytes::new());
        let mut known = [false; 80];
        for (start, len) in ranges {
            let range = start..start + len;
            block.set_verified(range.clone());
            known[range.start as usize..range.end as usize].fill(true);
            for start in 0..79 {
                for end in start + 1..80 {
                    let all = known[start..end].iter().all(|known| *known);
                    prop_assert_eq!(block.is_verified(&(start as u32..end as u32)), all);
                }
            }
        }
    }
}
