use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn key(block: u32) -> BlockKey {
    BlockKey { object: ObjectId(1), block }
}

fn cache(max_bytes: usize) -> MemoryCache {
    MemoryCache::new(&Host::real(), max_bytes, StoreMetrics::default())
}

/// Loads `bytes` zeroes, slowly, and counts.
fn load(count: &Arc<AtomicUsize>, bytes: usize) -> Load {
    let count = Arc::clone(count);
    Box::new(move || {
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Bytes::from(vec![0; bytes]))
        })
    })
}

fn fail(count: &Arc<AtomicUsize>) -> Load {
    let count = Arc::clone(count);
    Box::new(move || {
        Box::pin(async move {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(StoreError::NotFound("x".to_owned()))
        })
    })
}

#[tokio::test(start_paused = true)]
async fn many_who_ask_cause_one_load() {
    let (cache, count) = (cache(1000), Arc::new(AtomicUsize::new(0)));
    let asks = (0..10).map(|_| cache.get(key(0), load(&count, 100)));
    for block in futures_util::future::join_all(asks).await {
        assert_eq!(block.unwrap().bytes().len(), 100);
    }
    cache.get(key(0), load(&count, 100)).await.unwrap();
    assert_eq!((count.load(Ordering::SeqCst), cache.bytes()), (1, 100));
}

#[tokio::test(start_paused = true)]
async fn a_load_goes_on_though_all_have_left() {
    let (cache, count) = (cache(1000), Arc::new(AtomicUsize::new(0)));
    let ask = cache.get(key(0), load(&count, 100));
    assert!(tokio::time::timeout(Duration::from_millis(10), ask).await.is_err());
    cache.get(key(0), load(&count, 100)).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_to_all_and_not_kept() {
    let (cache, count) = (cache(1000), Arc::new(AtomicUsize::new(0)));
    let asks = (0..5).map(|_| cache.get(key(0), fail(&count)));
    for answer in futures_util::future::join_all(asks).await {
        assert_eq!(answer.unwrap_err(), StoreError::NotFound("x".to_owned()));
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert!(cache.get(key(0), load(&count, 10)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_panics_does_not_block_the_next() {
    let (cache, count) = (cache(1000), Arc::new(AtomicUsize::new(0)));
    let panics: Load = Box::new(|| Box::pin(async { panic!("on purpose") }));
    assert_eq!(cache.get(key(0), panics).await.unwrap_err(), StoreError::Stopping);
    assert!(cache.get(key(0), load(&count, 10)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn keeps_the_bound_and_what_was_used_last() {
    let (cache, count) = (cache(250), Arc::new(AtomicUsize::new(0)));
    for block in [0, 1, 0, 2] {
        cache.get(key(block), load(&count, 100)).await.unwrap();
        assert!(cache.bytes() <= 250);
    }
    assert_eq!(count.swap(0, Ordering::SeqCst), 3);
    cache.get(key(0), load(&count, 100)).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 0, "0 was used after 1");
    cache.get(key(1), load(&count, 100)).await.unwrap();
    assert_eq!(count.load(Ordering::SeqCst), 1);
    cache.get(key(9), load(&count, 300)).await.unwrap();
    assert_eq!(cache.bytes(), 200, "one that is larger than the cache is not kept");
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
