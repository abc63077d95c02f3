//! How requests share the way to a store: pieces, classes, hedges.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use isobar_host::Host;
use isobar_store::{Bucket, BucketOptions, Class, StoreMetrics};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use tokio::time::Instant;

fn simulated(store: &SimBucket) -> Bucket {
    let options = BucketOptions { get_total: Duration::from_secs(60), ..BucketOptions::default() };
    Bucket::new(&Host::real(), "s", "p", Arc::new(store.clone()), options, StoreMetrics::default())
}

fn delays(ppm: u32, max_delay: Duration) -> FaultPlan {
    FaultPlan { delay_ppm: ppm, max_delay, ..FaultPlan::NONE }
}

#[tokio::test]
async fn pieces_are_the_range_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let body: Vec<u8> = (0..100_000_u32).map(|n| (n % 251) as u8).collect();
    let (host, options) = (Host::real(), BucketOptions::default());
    let in_dir = Bucket::open_dir(&host, "d", dir.path(), options, StoreMetrics::default()).await.unwrap();
    for bucket in [in_dir, simulated(&SimBucket::new(1, FaultPlan::NONE))] {
        bucket.put("data/x", vec![Bytes::from(body.clone())]).await.unwrap();
        for (range, piece) in [
            (0..100_000_u64, 30_000_u64),
            (0..100_000, 25_000),
            (0..100_000, 1 << 20),
            (99_999..200_000, 4096),
            (12_345..54_321, 1000),
            (4096..8192, 4096),
        ] {
            let pieces = bucket.get_pieces("data/x", range.clone(), piece).await.unwrap();
            assert!(pieces.iter().rev().skip(1).all(|bytes| bytes.len() as u64 == piece), "{range:?}");
            let end = range.end.min(100_000) as usize;
            assert_eq!(pieces.concat(), body[range.start as usize..end], "{range:?} by {piece}");
        }
        assert!(bucket.get_pieces("data/y", 0..10, 10).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn late_answers_are_overtaken_within_the_budget() {
    let store = SimBucket::new(7, FaultPlan::NONE);
    let bucket = simulated(&store).with_class(Class::CatchUp);
    bucket.put("data/x", vec![Bytes::from(vec![1; 1000])]).await.unwrap();
    store.set_plan(delays(20_000, Duration::from_secs(2)));
    let mut slow = 0;
    for _ in 0..3000 {
        let started = Instant::now();
        bucket.get_range("data/x", 0..1000).await.unwrap();
        slow += u32::from(started.elapsed() > Duration::from_millis(500));
    }
    let (hedges, won) = (bucket.metrics().hedges.get(), bucket.metrics().hedges_won.get());
    // 60 or so were delayed, 45 of them by more than half a second.
    assert!((30..=160).contains(&hedges) && won > 20, "{hedges} hedges, {won} won");
    assert!(slow <= 4, "{slow} were slow");
    // A store that is slow as a whole gets no more than the budget's part.
    store.set_plan(delays(1_000_000, Duration::from_secs(2)));
    for _ in 0..400 {
        bucket.get_range("data/x", 0..1000).await.unwrap();
    }
    let more = bucket.metrics().hedges.get() - hedges;
    assert!(more <= 400 / 20 + 8, "{more} hedges");
}

#[tokio::test]
async fn a_directory_is_never_asked_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (host, options) = (Host::real(), BucketOptions::default());
    let bucket = Bucket::open_dir(&host, "d", dir.path(), options, StoreMetrics::default()).await.unwrap();
    bucket.put("data/x", vec![Bytes::from(vec![1; 1000])]).await.unwrap();
    for _ in 0..200 {
        bucket.get_range("data/x", 0..1000).await.unwrap();
    }
    assert_eq!((bucket.metrics().hedges.get(), bucket.metrics().requests_of("d", "get")), (0, 200));
}

/// Hundreds of readers of old data on a slow store: one at the tail waits for its own request only.
#[tokio::test(start_paused = true)]
async fn a_flood_of_old_reads_does_not_hold_up_the_tail() {
    let store = SimBucket::new(3, FaultPlan::NONE);
    let bucket = simulated(&store);
    bucket.put("data/x", vec![Bytes::from(vec![1; 1000])]).await.unwrap();
    store.set_plan(delays(1_000_000, Duration::from_millis(200)));
    let started = Instant::now();
    let old = (0..300).map(|_| {
        let bucket = bucket.with_class(Class::CatchUp);
        async move {
            bucket.get_range("data/x", 0..1000).await.unwrap();
            started.elapsed()
        }
    });
    let tail = async {
        let bucket = bucket.with_class(Class::Tail);
        let mut worst = Duration::ZERO;
        for _ in 0..10 {
            let asked = Instant::now();
            bucket.get_range("data/x", 0..1000).await.unwrap();
            worst = worst.max(asked.elapsed());
        }
        worst
    };
    let (old, worst) = futures_util::future::join(join_all(old), tail).await;
    assert!(worst <= Duration::from_millis(250), "{worst:?}");
    // They did wait for each other: 16 at a time.
    assert!(old.iter().max().unwrap() > &Duration::from_secs(1));
}
