//! The whole way of a batch: chunk, commit, upload, swap, release, read; with power cuts, a failing bucket, and metadata
//! that is the real state machine behind a made-up quorum.

#![expect(clippy::unwrap_used, reason = "tests")]

mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::{ArchiveAdvanced, DeleteTopics, ExpireObjects, PurgeTopics};
use isobar_metadata::record::ObjectState;
use isobar_metadata::{Command, Envelope, PartitionKey};
use isobar_store::Proposer;
use isobar_store::format::Footer;
use isobar_store::fsck::{FsckOptions, FsckParts, Kind, Line, Summary, fsck};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use isobar_wal::conformance::batch;
use object_store::ObjectStoreExt;
use parking_lot::Mutex;

use rig::*;

/// Produces for a while; every life first checks what the former ones left.
async fn live(node: Option<Node>, seed: u64, life: u64, ended: Arc<Mutex<Counts>>) {
    let Some(mut node) = node else { return };
    let Some(_) = node.check().await else { return };
    for round in 0..25_u64 {
        let n = seed * 7919 + life * 104_729 + round * 31;
        let batches: Vec<_> = (0..1 + n % 7)
            .map(|b| {
                let key = PartitionKey::new(topic(1 + ((n + b) % 2) as u8), ((n / 3 + b) % 4) as i32);
                (key, batch((n + b) as u8, ((n * 97 + b * 331) % 9000) as usize))
            })
            .collect();
        if !node.produce(&batches).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(n % 13)).await;
    }
    let Some(in_objects) = node.check().await else { return };
    let mut counts = ended.lock();
    counts.lives += 1;
    counts.in_objects += in_objects;
}

#[derive(Default)]
struct Counts {
    lives: u64,
    in_objects: usize,
}

/// Steps the world until the node dies or `done`.
fn step_until(world: &mut World, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..300_000 {
        if done() {
            return true;
        }
        if !world.step().is_empty() {
            return false;
        }
    }
    panic!("neither ended nor died");
}

/// After the storm: everything is uploaded, the WAL is empty, objects verify, garbage goes.
async fn aftermath(node: Option<Node>, counts: Arc<Mutex<Counts>>) {
    let node = node.unwrap();
    let total: usize = node.acked.lock().values().map(Vec::len).sum();
    node.uploader.drain().await;
    // An answer may have been lost: what the image shows then is drained once more.
    node.uploader.drain().await;
    assert_eq!(node.check().await, Some(total));
    assert_eq!(node.replica.live(), (0, 0));
    let bucket = node.reader.bucket().clone();
    // Every object that is committed says of itself what metadata says of it.
    let image = node.quorum.image();
    for record in image.objects().filter(|record| record.state == ObjectState::Committed as i32) {
        let key = isobar_store::format::object_key(record.object);
        assert_eq!(bucket.size(&key).await.unwrap(), record.size_bytes);
        let bytes = bucket.get_range(&key, 0..record.size_bytes).await.unwrap();
        let footer = Footer::of_object(&bytes).unwrap();
        footer.verify_body(&bytes).unwrap();
        assert_eq!((footer.object, footer.cluster_id.as_str()), (record.object, "clusterclusterclusterc"));
    }
    assert!(check_store(&node, true).await.is_clean());
    // A deleted topic's objects are deleted, and those that never were committed.
    node.quorum.control(Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic(1), topic(2)] }));
    node.quorum.control(Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic(1), topic(2)] }));
    let mut waits = 0;
    loop {
        let image = node.quorum.image();
        let prepared = |state| state == ObjectState::Prepared as i32;
        let left = image
            .objects()
            .filter(|record| record.state != ObjectState::Deleted as i32 && !prepared(record.state))
            .count();
        if left == 0 {
            break;
        }
        waits += 1;
        assert!(waits < 2000, "{left} objects are not deleted");
        // The archive goes on.
        let advanced = ArchiveAdvanced { through: image.index(), cut: image.recovery_cut() };
        node.quorum.apply(Envelope::unnumbered(Command::ArchiveAdvanced(advanced)));
        // Somebody's commands move the time on.
        for _ in 0..10 {
            node.quorum.apply(Envelope::unnumbered(Command::ExpireObjects(ExpireObjects { limit: 0 })));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let image = node.quorum.image();
    for record in image.objects().filter(|record| record.state == ObjectState::Deleted as i32) {
        assert!(bucket.size(&isobar_store::format::object_key(record.object)).await.is_err());
    }
    counts.lock().lives = u64::MAX;
}

/// Where a node dies between two steps of an object's life.
const POINTS: [&str; 13] = [
    "upload.after_read",
    "upload.after_put",
    "upload.after_commit",
    "compact.planned",
    "compact.granted",
    "compact.between_parts",
    "compact.after_put",
    "compact.after_commit",
    "index.before_put",
    "index.after_put",
    "index.after_commit",
    "delete.before_report",
    "store.after_sync",
];

/// `fsck` while everything goes on; what it finds beside, it panics over.
async fn check_store(node: &Node, deep: bool) -> Summary {
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let parts = FsckParts {
        host: node.host.clone(),
        bucket: node.reader.bucket().clone(),
        proposer: node.quorum.clone(),
        index: node.index.clone(),
    };
    let options = FsckOptions { store: isobar_metadata::StoreId(1), deep, repair: false };
    let reader = async {
        let mut findings = Vec::new();
        while let Some(line) = told.recv().await {
            if let Line::Finding(finding) = line {
                findings.push(finding);
            }
        }
        findings
    };
    let (summary, findings) = tokio::join!(fsck(&parts, options, tell), reader);
    assert!(findings.is_empty(), "{findings:#?}");
    summary.unwrap()
}

fn storm(
    seed: u64,
    store: Option<SimBucket>,
    lose_every: u64,
) -> (u64, usize, u32, BTreeMap<&'static str, u64>) {
    let quorum = Quorum::new(lose_every);
    let acked = Acked::default();
    let counts = Arc::new(Mutex::new(Counts::default()));
    let disk = Arc::new(SimDisk::new(seed));
    let mut world = World::new(seed);
    world.add_node("n", Arc::clone(&disk));
    let mut died = 0;
    for life in 1..=4_u64 {
        let (q, s, a, c) = (quorum.clone(), store.clone(), acked.clone(), counts.clone());
        let done = Arc::new(Mutex::new(false));
        let tell = Arc::clone(&done);
        world.boot("n", |host| async move {
            let node = Node::start(host, q, s, a, life as u8).await;
            live(node, seed, life, c).await;
            *tell.lock() = true;
        });
        if life % 2 == 1 {
            world.arm("n", 60 + world.below(900));
        } else {
            world.arm_point("n", POINTS[((seed + life) % POINTS.len() as u64) as usize]);
        }
        if !step_until(&mut world, || *done.lock()) {
            died += 1;
        }
        world.crash("n");
        disk.crash(seed * 31 + life);
    }
    if let Some(store) = &store {
        store.set_plan(FaultPlan::NONE);
    }
    let in_objects = counts.lock().in_objects;
    let lives = counts.lock().lives;
    let (q, a, c) = (quorum, acked, counts.clone());
    let last = store;
    world.boot("n", |host| async move {
        aftermath(Node::start(host, q, last, a, 99).await, c).await;
    });
    assert!(step_until(&mut world, || counts.lock().lives == u64::MAX), "died in the calm");
    (lives, in_objects, died, world.points_passed("n"))
}

#[test]
fn nothing_acknowledged_is_lost_on_the_way_to_a_directory() {
    let (mut died, mut in_objects, mut points) = (0, 0, BTreeMap::new());
    for seed in 0..25 {
        let result = storm(seed, None, if seed % 2 == 0 { 0 } else { 5 });
        died += result.2;
        in_objects += result.1;
        for (point, count) in result.3 {
            *points.entry(point).or_insert(0) += count;
        }
    }
    assert!(died > 40, "{died} deaths");
    for point in [
        "upload.after_read",
        "upload.after_put",
        "upload.after_commit",
        "compact.after_put",
        "compact.after_commit",
        "index.after_commit",
        "store.after_rename",
        "wal.after_sync",
    ] {
        assert!(points.get(point).copied().unwrap_or(0) > 10, "{point}: {points:?}");
    }
    assert!(in_objects > 500, "{in_objects} batches were read from objects");
}

#[test]
fn nothing_acknowledged_is_lost_on_the_way_to_a_bucket_that_fails() {
    let (mut died, mut faults) = (0, 0);
    for seed in 0..25 {
        let plan =
            FaultPlan { delay_ppm: 200_000, max_delay: Duration::from_millis(80), ..FaultPlan::all(60_000) };
        let store = SimBucket::new(seed, plan);
        died += storm(seed, Some(store.clone()), if seed % 2 == 0 { 0 } else { 5 }).2;
        faults += store.counts().values().sum::<u64>();
    }
    assert!(died > 40 && faults > 200, "{died} deaths, {faults} faults");
}

#[test]
fn a_store_outage_stops_uploads_and_loses_nothing() {
    let store = SimBucket::new(1, FaultPlan::NONE);
    let quorum = Quorum::new(0);
    let mut world = World::new(1);
    world.add_node("n", Arc::new(SimDisk::new(1)));
    let done = Arc::new(Mutex::new(false));
    let (q, s, tell) = (quorum, store.clone(), done.clone());
    world.boot("n", |host| async move {
        store.set_outage(true);
        let mut node = Node::start(host, q, Some(s), Acked::default(), 1).await.unwrap();
        for n in 0..20 {
            let batches = [(PartitionKey::new(topic(1), 0), batch(n, 5000))];
            assert!(node.produce(&batches).await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(node.check().await, Some(0));
        let metrics = node.reader.bucket().metrics().clone();
        assert!(metrics.failed_uploads.get() > 0 && metrics.waiting_bytes.get() > 90_000);
        store.set_outage(false);
        node.uploader.drain().await;
        assert_eq!(node.check().await, Some(20));
        assert_eq!(node.replica.live(), (0, 0));
        assert!(store.objects().head(&object_store::path::Path::from("x")).await.is_err());
        *tell.lock() = true;
    });
    assert!(step_until(&mut world, || *done.lock()));
}

/// What `fsck` finds in a bucket that somebody has been at, and what it mends.
#[test]
fn fsck_tells_what_is_wrong() {
    let store = SimBucket::new(5, FaultPlan::NONE);
    let quorum = Quorum::new(0);
    let mut world = World::new(5);
    world.add_node("n", Arc::new(SimDisk::new(5)));
    let done = Arc::new(Mutex::new(false));
    let (q, s, tell) = (quorum, store, done.clone());
    world.boot("n", |host| async move {
        let mut node = Node::start(host, q, Some(s.clone()), Acked::default(), 1).await.unwrap();
        for n in 0..5_u8 {
            let batches = [(PartitionKey::new(topic(1), i32::from(n % 3)), batch(n, 3000))];
            assert!(node.produce(&batches).await);
            node.uploader.drain().await;
        }
        assert_eq!(check_store(&node, true).await.found.len(), 0);
        let bucket = node.reader.bucket().clone();
        let image = node.quorum.image();
        let live: Vec<_> = image.objects().filter(|object| object.refs > 0).map(|object| **object).collect();
        assert!(live.len() >= 3);
        let key = |n: usize| isobar_store::format::object_key(live[n].object);
        // One is gone, one is cut, one has a flipped bit; two names that metadata never gave.
        bucket.delete(&key(0)).await.unwrap();
        let cut = bucket.get_range(&key(1), 0..live[1].size_bytes - 1).await.unwrap();
        bucket.put(&key(1), vec![cut]).await.unwrap();
        let mut flipped = bucket.get_range(&key(2), 0..live[2].size_bytes).await.unwrap().to_vec();
        flipped[1000] ^= 4;
        bucket.put(&key(2), vec![flipped.into()]).await.unwrap();
        let stray = isobar_store::format::object_key(isobar_metadata::ObjectId(1 << 40));
        bucket.put(&stray, vec![Bytes::from_static(b"stray")]).await.unwrap();
        bucket.put("data/07/readme.txt", vec![Bytes::from_static(b"hello")]).await.unwrap();
        let now_ms = node.host.now_ms();
        let probe = |ms: i64| format!("probe/{ms}-0123456789abcdef-object");
        for began_ms in [now_ms - 7_200_000, now_ms] {
            bucket.put(&probe(began_ms), vec![Bytes::from_static(b"probe")]).await.unwrap();
        }
        for repair in [true, false] {
            let found = findings(&node, repair).await;
            let mut expected = vec![
                (Kind::Damaged, key(2), false),
                (Kind::Foreign, "data/07/readme.txt".to_owned(), false),
                (Kind::Missing, key(0), false),
                (Kind::Short, key(1), false),
            ];
            if repair {
                expected.push((Kind::NeverGranted, stray.clone(), true));
                expected.push((Kind::Probe, probe(now_ms - 7_200_000), true));
            }
            expected.sort();
            assert_eq!(found, expected);
        }
        assert!(bucket.size(&stray).await.is_err());
        assert!(bucket.size(&probe(now_ms)).await.is_ok());
        assert!(bucket.size("data/07/readme.txt").await.is_ok());
        *tell.lock() = true;
    });
    assert!(step_until(&mut world, || *done.lock()));
}

async fn findings(node: &Node, repair: bool) -> Vec<(Kind, String, bool)> {
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let parts = FsckParts {
        host: node.host.clone(),
        bucket: node.reader.bucket().clone(),
        proposer: node.quorum.clone(),
        index: node.index.clone(),
    };
    let options = FsckOptions { store: isobar_metadata::StoreId(1), deep: true, repair };
    let reader = async {
        let mut found = Vec::new();
        while let Some(line) = told.recv().await {
            if let Line::Finding(finding) = line {
                assert_eq!(finding.kind.is_loss(), finding.extent_count > 0, "{finding:?}");
                found.push((finding.kind, finding.key, finding.repaired));
            }
        }
        found
    };
    let (summary, mut found) = tokio::join!(fsck(&parts, options, tell), reader);
    assert!(!summary.unwrap().is_clean());
    found.sort();
    found
}
