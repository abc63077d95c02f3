//! The bucket's faults are those of the plan, the same for the same seed, and never a lost object.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use isobar_testkit::bucket::{Bucket, Fault, FaultPlan};
use object_store::path::Path;
use object_store::{Error, ObjectStore as _, ObjectStoreExt as _};

fn fault(error: &Error) -> Option<Fault> {
    match error {
        Error::Generic { source, .. } => source.downcast_ref().copied(),
        _ => None,
    }
}

fn key(n: u32) -> Path {
    Path::from(format!("data/{n}"))
}

/// What 300 PUTs and GETs meet.
async fn run(seed: u64, plan: FaultPlan) -> (Bucket, Vec<Option<Fault>>, Duration) {
    let bucket = Bucket::new(seed, plan);
    let start = tokio::time::Instant::now();
    let mut met = Vec::new();
    for n in 0..300 {
        met.push(bucket.put(&key(n), vec![n as u8; 100].into()).await.err().as_ref().and_then(fault));
        let got = async { bucket.get(&key(n)).await?.bytes().await };
        match got.await {
            Ok(body) => assert_eq!(body, vec![n as u8; 100]),
            Err(error) => met.push(fault(&error)),
        }
    }
    (bucket, met, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_faults() {
    let plan = FaultPlan::all(40_000);
    let (first, met, took) = run(7, plan).await;
    let (second, again, took_again) = run(7, plan).await;
    assert_eq!((&met, took), (&again, took_again));
    assert_eq!(first.counts(), second.counts());
    assert_ne!(met, run(8, plan).await.1);
    for fault in [Fault::Before, Fault::After, Fault::Late, Fault::Throttled, Fault::Cut, Fault::Delayed] {
        assert!(first.counts().contains_key(&fault), "no {fault:?} in {:?}", first.counts());
    }
    assert!(took > Duration::from_secs(10), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_plan_nothing_happens() {
    let (bucket, met, took) = run(7, FaultPlan::NONE).await;
    assert!(met.iter().all(Option::is_none));
    assert_eq!((bucket.counts().len(), bucket.requests(), took), (0, 600, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn an_error_says_nothing_of_whether_it_was_done() {
    let only = |set: fn(&mut FaultPlan)| {
        let mut plan = FaultPlan::NONE;
        set(&mut plan);
        Bucket::new(1, plan)
    };
    let there = async |bucket: &Bucket| bucket.objects().head(&key(1)).await.is_ok();
    let put = async |bucket: &Bucket| fault(&bucket.put(&key(1), "x".into()).await.unwrap_err());

    let bucket = only(|p| p.before_ppm = 1_000_000);
    assert_eq!((put(&bucket).await, there(&bucket).await), (Some(Fault::Before), false));
    let bucket = only(|p| p.throttle_ppm = 1_000_000);
    assert_eq!((put(&bucket).await, there(&bucket).await), (Some(Fault::Throttled), false));
    let bucket = only(|p| p.after_ppm = 1_000_000);
    assert_eq!((put(&bucket).await, there(&bucket).await), (Some(Fault::After), true));
    assert_eq!(fault(&bucket.delete(&key(1)).await.unwrap_err()), Some(Fault::After));
    assert!(!there(&bucket).await);

    let bucket = only(|p| p.late_ppm = 1_000_000);
    assert_eq!((put(&bucket).await, there(&bucket).await), (Some(Fault::Late), false));
    bucket.set_plan(FaultPlan::NONE);
    for n in 100..125 {
        bucket.put(&key(n), "x".into()).await.unwrap();
    }
    assert!(there(&bucket).await, "it lands after other requests");

    bucket.set_outage(true);
    assert_eq!(put(&bucket).await, Some(Fault::Outage));
    assert_eq!(fault(&bucket.list(None).try_collect::<Vec<_>>().await.unwrap_err()), Some(Fault::Outage));
    bucket.set_outage(false);
    assert_eq!(bucket.list(None).try_collect::<Vec<_>>().await.unwrap().len(), 26);
}

#[tokio::test(start_paused = true)]
async fn bodies_break_off_and_flip_on_demand() {
    let bucket = Bucket::new(3, FaultPlan::NONE);
    let sent = vec![0u8; 1000];
    bucket.put(&key(1), sent.clone().into()).await.unwrap();
    bucket.flip_bits(1);
    let flipped = bucket.get_range(&key(1), 0..500).await.unwrap();
    assert_eq!(flipped.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    assert_eq!(bucket.get(&key(1)).await.unwrap().bytes().await.unwrap(), sent);
    assert_eq!(bucket.get_ranges(&key(1), &[0..10, 990..1000]).await.unwrap().concat(), [0u8; 20]);

    bucket.set_plan(FaultPlan { cut_ppm: 1_000_000, ..FaultPlan::NONE });
    let got = bucket.get(&key(1)).await.unwrap();
    assert_eq!(got.meta.size, 1000);
    assert_eq!(fault(&got.bytes().await.unwrap_err()), Some(Fault::Cut));
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_gives_up_may_leave_it_done_or_not() {
    let plan = FaultPlan { delay_ppm: 1_000_000, max_delay: Duration::from_secs(60), ..FaultPlan::NONE };
    let bucket = Bucket::new(5, plan);
    for n in 0..40 {
        let _ = tokio::time::timeout(Duration::from_micros(1), bucket.put(&key(n), "x".into())).await;
    }
    let done = bucket.objects().list(None).try_collect::<Vec<_>>().await.unwrap().len();
    assert!((5..35).contains(&done), "{done}");
}

#[tokio::test(start_paused = true)]
async fn multipart_uploads_work() {
    let bucket = Bucket::new(5, FaultPlan::NONE);
    let mut upload = bucket.put_multipart(&key(1)).await.unwrap();
    upload.put_part(vec![1u8; 10].into()).await.unwrap();
    upload.put_part(vec![2u8; 10].into()).await.unwrap();
    upload.complete().await.unwrap();
    assert_eq!(bucket.get(&key(1)).await.unwrap().meta.size, 20);
    bucket.copy(&key(1), &key(2)).await.unwrap();
    assert_eq!(bucket.list_with_delimiter(Some(&"data".into())).await.unwrap().objects.len(), 2);
}
