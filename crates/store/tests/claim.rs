//! Claims of incarnations: one owner each, and an older one is told.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use isobar_host::Host;
use isobar_store::{
    Bucket, BucketOptions, ClaimError, ClaimGuard, StoreError, StoreMetrics, claim, claimed, read_claim,
};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};

fn bucket(store: &SimBucket) -> Bucket {
    let options = BucketOptions::default();
    Bucket::new(
        &Host::real(),
        "archive",
        "some/prefix",
        Arc::new(store.clone()),
        options,
        StoreMetrics::default(),
    )
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(test);
}

#[test]
fn an_incarnation_has_one_owner_and_the_one_before_is_told() {
    run(async {
        let bucket = bucket(&SimBucket::new(1, FaultPlan::NONE));
        assert_eq!(claimed(&bucket).await.unwrap(), Vec::<u32>::new());
        let first = ClaimGuard::new(bucket.clone(), "c", 0, [1; 16]);
        first.check(5).await.unwrap();
        first.check(6).await.unwrap();
        assert_eq!(read_claim(&bucket, 0).await.unwrap().unwrap().created_ms, 5);
        // The same directory after a restart; another one that says it is the same.
        ClaimGuard::new(bucket.clone(), "c", 0, [1; 16]).check(7).await.unwrap();
        let copy = ClaimGuard::new(bucket.clone(), "c", 0, [2; 16]).check(7).await;
        assert!(
            matches!(&copy, Err(ClaimError::Lost(why)) if why.contains("another metadata directory")),
            "{copy:?}"
        );
        let foreign = ClaimGuard::new(bucket.clone(), "d", 0, [1; 16]).check(7).await;
        assert!(
            matches!(&foreign, Err(ClaimError::Lost(why)) if why.contains("belongs to cluster c")),
            "{foreign:?}"
        );

        assert!(claim(&bucket, "c", 1, [3; 16], 9).await.unwrap());
        assert!(claim(&bucket, "c", 1, [3; 16], 9).await.unwrap(), "a repeat of one's own");
        assert!(!claim(&bucket, "c", 1, [4; 16], 9).await.unwrap(), "another's");
        assert_eq!(claimed(&bucket).await.unwrap(), vec![0, 1]);
        let told = first.check(10).await;
        assert!(
            matches!(&told, Err(ClaimError::Lost(why)) if why.contains("recovered elsewhere")),
            "{told:?}"
        );
        ClaimGuard::new(bucket.clone(), "c", 1, [3; 16]).check(10).await.unwrap();
    });
}

#[test]
fn a_store_that_does_not_answer_is_no_answer() {
    run(async {
        let store = SimBucket::new(2, FaultPlan::NONE);
        let bucket = bucket(&store);
        let guard = ClaimGuard::new(bucket.clone(), "c", 0, [1; 16]);
        guard.check(1).await.unwrap();
        store.set_outage(true);
        assert!(matches!(guard.check(2).await, Err(ClaimError::Store(_))));
        store.set_outage(false);
        guard.check(3).await.unwrap();
        bucket.put("claim/000", vec!["{".into()]).await.unwrap();
        let damaged = read_claim(&bucket, 0).await;
        assert!(matches!(damaged, Err(StoreError::Damaged { .. })), "{damaged:?}");
    });
}
