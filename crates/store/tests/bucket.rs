//! Every kind of bucket must do the same; a directory must not lose what it acknowledged; faults must be told apart.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::disk::{Faults, Operation};
use isobar_host::sim::{SimDisk, World};
use isobar_store::{Bucket, BucketOptions, Cause, Created, Probe, StoreError, StoreMetrics};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use parking_lot::Mutex;

mod conform;

use conform::{conforms, parts};

fn quick() -> BucketOptions {
    BucketOptions {
        put_attempt: Duration::from_secs(3),
        put_total: Duration::from_secs(10),
        get_attempt: Duration::from_secs(3),
        get_total: Duration::from_secs(10),
        ..BucketOptions::default()
    }
}

fn on_node<F: Future<Output = ()> + Send + 'static>(
    disk: &Arc<SimDisk>,
    seed: u64,
    die_at: Option<u64>,
    main: impl FnOnce(Host) -> F,
) -> bool {
    let mut world = World::new(seed);
    world.add_node("n", Arc::clone(disk));
    let ended = Arc::new(Mutex::new(false));
    let tell = Arc::clone(&ended);
    world.boot("n", |host| {
        let main = main(host);
        async move {
            main.await;
            *tell.lock() = true;
        }
    });
    if let Some(steps) = die_at {
        world.arm("n", steps);
    }
    for _ in 0..200_000 {
        if *ended.lock() {
            return true;
        }
        if !world.step().is_empty() {
            return false;
        }
    }
    panic!("neither ended nor died");
}

#[tokio::test(start_paused = true)]
async fn a_cloud_conforms() {
    let store = Arc::new(SimBucket::new(1, FaultPlan::NONE));
    for prefix in ["", "some/prefix/"] {
        let bucket =
            Bucket::new(&Host::real(), "cloud", prefix, store.clone(), quick(), StoreMetrics::default());
        conforms(&bucket).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_directory_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("file://{}/sub", dir.path().display());
    let bucket = Bucket::open(&Host::real(), "dir", &url, quick(), StoreMetrics::default()).await.unwrap();
    conforms(&bucket).await;
    bucket.put("data/0a/2", vec![]).await.unwrap();
    let again = Bucket::open(&Host::real(), "dir", &url, quick(), StoreMetrics::default()).await.unwrap();
    assert_eq!(again.size("data/0a/2").await.unwrap(), 0);
    for wrong in ["s4://x", "file://relative", "/plain"] {
        let opened = Bucket::open(&Host::real(), "dir", wrong, quick(), StoreMetrics::default()).await;
        assert!(matches!(opened, Err(StoreError::Config(_))));
    }
    for outside in ["../x", "a//b", "/etc/x", ".", ""] {
        assert!(bucket.put(outside, vec![]).await.is_err(), "{outside:?}");
    }
}

#[test]
fn a_simulated_directory_conforms() {
    for refuse_direct in [false, true] {
        let disk = Arc::new(SimDisk::new(1));
        disk.refuse_direct(refuse_direct);
        on_node(&disk, 1, None, |host| async move {
            let opened = Bucket::open_dir(&host, "dir", Path::new("s"), quick(), StoreMetrics::default());
            let bucket = opened.await.unwrap();
            conforms(&bucket).await;
            // Ranges and lengths on and beside the borders of disk blocks and pieces.
            for len in [0_u64, 1, 4095, 4096, 4097, (1 << 20) - 1, 1 << 20, (1 << 20) + 4096, (2 << 20) + 5] {
                let whole: Vec<u8> = (0..len).map(|n| ((n * 31) >> 3) as u8).collect();
                let cut = whole.len() / 3;
                let parts =
                    vec![Bytes::copy_from_slice(&whole[..cut]), Bytes::copy_from_slice(&whole[cut..])];
                bucket.put("data/00/1", parts).await.unwrap();
                assert_eq!(bucket.size("data/00/1").await.unwrap(), len);
                let edges =
                    [0, 1, 4095, 4096, 4097, len / 2, len.saturating_sub(4097), len.saturating_sub(1), len];
                for start in edges {
                    for end in edges.into_iter().filter(|end| start <= *end && *end <= len) {
                        let found = bucket.get_range("data/00/1", start..end).await.unwrap();
                        assert!(found == whole[start as usize..end as usize], "{start}..{end} of {len}");
                    }
                }
            }
        });
    }
}

/// Puts objects until it dies; every life first reads what the former ones acknowledged.
async fn live(host: Host, acked: Arc<Mutex<Vec<u64>>>, first: u64) {
    let opened = Bucket::open_dir(&host, "dir", Path::new("s"), quick(), StoreMetrics::default()).await;
    let Ok(bucket) = opened else { return };
    assert_eq!(host.disk().list(Path::new("s/tmp/0")).ok().unwrap_or_default(), Vec::<String>::new());
    let before = acked.lock().clone();
    for n in before {
        let key = format!("data/{:02x}/{n}", n % 5);
        let bytes =
            bucket.get_range(&key, 0..10_000 + n).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert!(bytes.iter().all(|byte| *byte == n as u8));
    }
    for n in first..first + 6 {
        let key = format!("data/{:02x}/{n}", n % 5);
        let bytes = Bytes::from(vec![n as u8; 10_000 + n as usize]);
        let put = tokio::time::timeout(Duration::from_secs(1), bucket.put(&key, vec![bytes])).await;
        if matches!(put, Ok(Ok(()))) {
            acked.lock().push(n);
        }
    }
}

#[test]
fn a_directory_loses_nothing_it_acknowledged() {
    let (mut died, mut checked) = (0, 0);
    for seed in 0..100 {
        let disk = Arc::new(SimDisk::new(seed));
        let acked = Arc::new(Mutex::new(Vec::new()));
        for life in 0..4 {
            checked += acked.lock().len();
            let list = Arc::clone(&acked);
            let die_at = Some(3 + (seed * 13 + life * 29) % 60 + acked.lock().len() as u64 * 3);
            died += u32::from(!on_node(&disk, seed * 9 + life, die_at, |host| live(host, list, life * 6)));
            disk.crash(seed * 5 + life);
        }
    }
    assert!(died > 150 && checked > 300, "{died} {checked}");
}

#[test]
fn a_failed_sync_is_not_an_acknowledgement() {
    let disk = Arc::new(SimDisk::new(3));
    let faulty = Arc::clone(&disk);
    on_node(&disk, 3, None, |host| async move {
        let options =
            BucketOptions { put_total: Duration::ZERO, put_attempt: Duration::from_secs(1), ..quick() };
        let once =
            BucketOptions { backoff: Duration::from_secs(60), put_total: Duration::from_secs(1), ..options };
        let bucket =
            Bucket::open_dir(&host, "dir", Path::new("s"), once, StoreMetrics::default()).await.unwrap();
        faulty.fail_next(Operation::Sync, "tmp", 0);
        let failed = bucket.put("data/00/1", parts(5)).await;
        assert!(matches!(failed, Err(StoreError::DidNotHappen { .. })), "{failed:?}");
        assert!(matches!(bucket.size("data/00/1").await, Err(StoreError::NotFound(_))));
        assert_eq!(host.disk().list(Path::new("s/tmp")).unwrap(), Vec::<String>::new());
        faulty.set_faults(Faults { capacity_bytes: Some(0), ..Faults::default() });
        let full = bucket.put("data/00/1", parts(50)).await;
        assert!(matches!(full, Err(StoreError::Refused { cause: Cause::Full, .. })), "{full:?}");
        faulty.set_faults(Faults::default());
        bucket.put("data/00/1", parts(5)).await.unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn faults_are_survived_or_told_apart() {
    let mut outcomes = [0_u32; 4];
    for seed in 0..200 {
        let store = SimBucket::new(seed, FaultPlan { delay_ppm: 300_000, ..FaultPlan::all(120_000) });
        let options = BucketOptions { put_total: Duration::from_millis(300), ..quick() };
        let bucket =
            Bucket::new(&Host::real(), "b", "", Arc::new(store.clone()), options, StoreMetrics::default());
        let put = bucket.put("data/00/1", parts(30)).await;
        store.set_plan(FaultPlan::NONE);
        let there = bucket.size("data/00/1").await;
        match put {
            Ok(()) => {
                assert!(there.is_ok(), "seed {seed}: acknowledged and not there");
                outcomes[0] += 1;
            }
            Err(StoreError::DidNotHappen { .. }) => {
                assert!(there.is_err(), "seed {seed}: did happen");
                outcomes[1] += 1;
            }
            Err(StoreError::MayHaveHappened { .. }) => outcomes[2 + usize::from(there.is_ok())] += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(outcomes[0] > 50 && outcomes[2] > 0 && outcomes[3] > 0, "{outcomes:?}");
    // An outage ends a request in time.
    let store = SimBucket::new(1, FaultPlan::NONE);
    let bucket =
        Bucket::new(&Host::real(), "b", "", Arc::new(store.clone()), quick(), StoreMetrics::default());
    store.set_outage(true);
    let started = tokio::time::Instant::now();
    assert!(bucket.get_range("data/00/1", 0..1).await.unwrap_err().is_transient());
    assert!(started.elapsed() <= Duration::from_secs(10));
}

/// Of two that create one key on a directory, each in a life of its own that may die anywhere, at most one has it, and it
/// has it for good.
#[test]
fn a_create_is_won_once_whatever_dies() {
    let (mut died, mut won) = (0, 0);
    for seed in 0..150 {
        let disk = Arc::new(SimDisk::new(seed));
        let winner: Arc<Mutex<Option<Bytes>>> = Arc::default();
        for life in 0..4_u64 {
            let known = Arc::clone(&winner);
            let die_at = (life < 3).then_some(2 + (seed * 7 + life * 11) % 30);
            let body = Bytes::from(format!("life {life} of seed {seed}"));
            died += u32::from(!on_node(&disk, seed * 9 + life, die_at, move |host| async move {
                let opened = Bucket::open_dir(&host, "dir", Path::new("s"), quick(), StoreMetrics::default());
                let Ok(bucket) = opened.await else { return };
                let Ok(created) = bucket.create("claim", body.clone()).await else { return };
                let Ok(there) = bucket.get_up_to("claim", 0..100).await else { return };
                assert_eq!(created == Created::Mine, there == body);
                let first = known.lock().get_or_insert_with(|| there.clone()).clone();
                assert_eq!(first, there, "seed {seed}: who was told of an owner may rely on it");
            }));
            disk.crash(seed * 5 + life);
        }
        won += u32::from(winner.lock().is_some());
    }
    assert!(died > 200 && won == 150, "{died} {won}");
}

/// A create whose answers get lost still knows its own bytes, and never takes another's for its own.
#[tokio::test(start_paused = true)]
async fn creates_survive_lost_answers() {
    let (mut mine, mut open) = (0, 0);
    for seed in 0..200 {
        let store = SimBucket::new(seed, FaultPlan { delay_ppm: 100_000, ..FaultPlan::all(150_000) });
        let bucket =
            Bucket::new(&Host::real(), "b", "", Arc::new(store.clone()), quick(), StoreMetrics::default());
        let bodies = [Bytes::from_static(b"one"), Bytes::from_static(b"two"), Bytes::from_static(b"three")];
        let racers = bodies.iter().map(|body| bucket.create("claim", body.clone()));
        let outcomes = futures_util::future::join_all(racers).await;
        store.set_plan(FaultPlan::NONE);
        let there = bucket.get_up_to("claim", 0..10).await;
        let winners: Vec<&Bytes> = bodies
            .iter()
            .zip(&outcomes)
            .filter_map(|(body, outcome)| (*outcome == Ok(Created::Mine)).then_some(body))
            .collect();
        assert!(winners.len() <= 1, "seed {seed}: {outcomes:?}");
        if let Some(winner) = winners.first() {
            assert_eq!(there.as_ref(), Ok(*winner), "seed {seed}");
            mine += 1;
        } else {
            assert!(outcomes.iter().any(Result::is_err), "seed {seed}: nobody won, nobody failed");
            open += 1;
        }
    }
    assert!(mine > 150, "{mine} {open}");
}

#[tokio::test(start_paused = true)]
async fn a_bucket_belongs_to_one_cluster() {
    let store = Arc::new(SimBucket::new(1, FaultPlan::NONE));
    let bucket = Bucket::new(&Host::real(), "b", "p", store, quick(), StoreMetrics::default());
    assert_eq!(bucket.read_marker().await, Ok(None));
    bucket.claim("first").await.unwrap();
    bucket.claim("first").await.unwrap();
    let refused = bucket.claim("second").await.unwrap_err();
    assert!(matches!(refused, StoreError::WrongBucket(_)));
    let words = refused.to_string();
    assert!(words.contains("cluster first") && words.contains("cluster second"), "{words}");
    assert_eq!(bucket.read_marker().await.unwrap().unwrap().cluster_id, "first");
    bucket.hold_writes();
    assert!(bucket.put("data/1", vec![]).await.unwrap_err().is_transient());
    bucket.refuse_writes(&words);
    assert_eq!(bucket.delete("data/1").await.unwrap_err().cause(), Some(Cause::OtherCluster));
    bucket.allow_writes();
    bucket.put("data/1", vec![]).await.unwrap();
}

/// A store that breaks a promise in one way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broken {
    IgnoresPrecondition,
    LooksThenWrites,
    ListsLate,
}

#[derive(Debug)]
struct BrokenStore {
    inner: object_store::memory::InMemory,
    how: Broken,
}

impl std::fmt::Display for BrokenStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.how)
    }
}

mod broken {
    use futures_util::stream::{self, BoxStream, StreamExt as _};
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
        ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::{Broken, BrokenStore};

    #[async_trait::async_trait]
    impl ObjectStore for BrokenStore {
        async fn put_opts(
            &self,
            key: &Path,
            payload: PutPayload,
            mut options: PutOptions,
        ) -> Result<PutResult> {
            if self.how == Broken::IgnoresPrecondition {
                options.mode = PutMode::Overwrite;
            } else if self.how == Broken::LooksThenWrites && options.mode == PutMode::Create {
                if self.inner.head(key).await.is_ok() {
                    return self.inner.put_opts(key, payload, options).await;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                options.mode = PutMode::Overwrite;
            }
            self.inner.put_opts(key, payload, options).await
        }
        async fn put_multipart_opts(
            &self,
            key: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.inner.put_multipart_opts(key, options).await
        }
        async fn get_opts(&self, key: &Path, options: GetOptions) -> Result<GetResult> {
            self.inner.get_opts(key, options).await
        }
        fn delete_stream(&self, keys: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.inner.delete_stream(keys)
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            if self.how == Broken::ListsLate { stream::empty().boxed() } else { self.inner.list(prefix) }
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.inner.list_with_delimiter(prefix).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.inner.copy_opts(from, to, options).await
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_probe_takes_good_stores_and_refuses_broken_ones() {
    for (how, says) in [
        (Broken::IgnoresPrecondition, "only one can win"),
        (Broken::LooksThenWrites, "only one can win"),
        (Broken::ListsLate, "listing right after the write"),
    ] {
        let store = Arc::new(BrokenStore { inner: object_store::memory::InMemory::new(), how });
        let bucket = Bucket::new(&Host::real(), "b", "", store, quick(), StoreMetrics::default());
        let error = Probe::new(&bucket, 4).run().await.unwrap_err();
        assert!(matches!(&error, StoreError::Unfit(why) if why.contains(says)), "{how:?}: {error}");
    }
    for seed in 0..20 {
        let plan = if seed == 0 { FaultPlan::NONE } else { FaultPlan::all(20_000) };
        let store = SimBucket::new(seed, plan);
        let bucket =
            Bucket::new(&Host::real(), "b", "p", Arc::new(store.clone()), quick(), StoreMetrics::default());
        Probe::new(&bucket, 4).run().await.unwrap();
        store.set_plan(FaultPlan::NONE);
        // What a late PUT leaves behind is allowed; without faults nothing is.
        assert!(seed != 0 || !bucket.any_below("probe").await.unwrap());
    }
}
