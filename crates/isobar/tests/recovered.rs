//! Every directory of a node is gone and the bucket is left, in the simulator, at some moment of a load.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use isobar_client::{
    Client, ClientConfig, Consumer, ConsumerConfig, NewTopic, OutgoingRecord, Producer, ProducerConfig,
    TopicPartition,
};
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_node::node::{Node, NodeOptions, Store};
use isobar_node::{RecoverError, RecoverOptions, Recovered, find, recover};
use isobar_testkit::bucket::{Bucket, FaultPlan};
use object_store::{ObjectMeta, ObjectStore as _, ObjectStoreExt as _};
use parking_lot::Mutex;

const OLD: &str = "10.0.0.1:9092";
const NEW: &str = "10.0.0.2:9092";
const PARTITIONS: i32 = 3;

fn options(bucket: &Bucket, listen: &str) -> NodeOptions {
    let mut options = NodeOptions::new("/data");
    options.store = given(bucket);
    options.broker.listen = listen.to_owned();
    options.segment_bytes = Some(1 << 20);
    options.upload_interval = Duration::from_millis(150);
    options.archive.interval = Duration::from_millis(100);
    options.snapshot_after_bytes = 8 << 10;
    options
}

fn given(bucket: &Bucket) -> Store {
    Store::Given(Arc::new(bucket.clone()))
}

async fn connected(host: &Host, addr: &str) -> Client {
    loop {
        match Client::connect(host, ClientConfig::new(addr)).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Writes the counter 0, 1, 2, … to every partition in turn, each acknowledged before the next.
async fn write_marks(host: Host, written: Arc<Mutex<Vec<u64>>>) {
    let client = connected(&host, OLD).await;
    client.create_topics(&[NewTopic::new("marks", PARTITIONS)]).await.unwrap();
    let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
    for counter in 0_u64.. {
        for partition in 0..PARTITIONS {
            let value = Some(counter.to_be_bytes().to_vec().into());
            let record = OutgoingRecord { value, ..OutgoingRecord::default() };
            let Ok(delivery) = producer.send(&TopicPartition::new("marks", partition), record).await else {
                return;
            };
            if delivery.await.is_err() {
                return;
            }
        }
        written.lock().push(host.now_ms().unsigned_abs());
    }
}

/// How many marks each partition holds; each is a prefix of the line.
async fn read_marks(host: Host, lengths: Arc<Mutex<Vec<u64>>>) {
    let client = connected(&host, NEW).await;
    let mut found = Vec::new();
    for partition in 0..PARTITIONS {
        let at = TopicPartition::new("marks", partition);
        let mut consumer = Consumer::new(&client, ConsumerConfig::default());
        consumer.assign(at, Some(0));
        let (mut next, mut end) = (0_u64, None);
        while end.is_none_or(|end| next < end) {
            for fetched in consumer.poll(Duration::from_millis(500)).await.unwrap() {
                end = Some(fetched.high_watermark.unsigned_abs());
                fetched
                    .for_each(|record| {
                        assert_eq!(record.value.unwrap(), next.to_be_bytes());
                        next += 1;
                    })
                    .unwrap();
            }
        }
        found.push(next);
    }
    *lengths.lock() = found;
}

fn step_until(world: &mut World, what: &str, so: impl Fn() -> bool) {
    for _ in 0..120_000 {
        if so() {
            return;
        }
        world.step();
    }
    panic!("waited in vain for {what}");
}

/// A world whose node has died `moment_ms` after it began to write, its bucket, and when it acknowledged each mark.
fn lost(seed: u64, moment_ms: u64) -> (World, Bucket, Arc<Mutex<Vec<u64>>>) {
    let mut world = World::new(seed);
    world.add_node("old", Arc::new(SimDisk::new(seed)));
    world.add_node("new", Arc::new(SimDisk::new(seed + 1)));
    world.add_node("client", Arc::new(SimDisk::new(seed + 2)));
    let bucket = Bucket::new(seed, FaultPlan::NONE);
    let settings = options(&bucket, OLD);
    world.boot("old", |host| async move {
        let node = Node::start(&host, settings).await.unwrap();
        let why = node.lost().await;
        panic!("the node had to stop: {why:?}");
    });
    let written: Arc<Mutex<Vec<u64>>> = Arc::default();
    let told = Arc::clone(&written);
    world.boot("client", |host| write_marks(host, told));
    step_until(&mut world, "marks", || written.lock().len() > 5);
    for _ in 0..moment_ms {
        world.step();
    }
    world.crash("old");
    world.crash("client");
    (world, bucket, written)
}

/// The state after a disaster at `moment_ms`: what was written with its times, the moment, what was recovered, what is left.
fn disaster(seed: u64, moment_ms: u64) -> (Vec<u64>, u64, Recovered, Vec<u64>) {
    let (mut world, bucket, written) = lost(seed, moment_ms);
    let moment = Arc::new(Mutex::new(0));

    let recovered: Arc<Mutex<Option<Recovered>>> = Arc::default();
    let (done, now) = (Arc::clone(&recovered), Arc::clone(&moment));
    let (source, settings) = (given(&bucket), options(&bucket, NEW));
    let another = given(&bucket);
    world.boot("new", |host| async move {
        *now.lock() = host.now_ms().unsigned_abs();
        let options = RecoverOptions::new("/data", source);
        let found = find(&host, &options).await.unwrap();
        let made = recover(&host, &options).await.unwrap();
        assert_eq!(found, made.found, "what is found is what is made");
        // A directory with a node is never recovered into.
        let again = recover(&host, &RecoverOptions::new("/data", another)).await;
        assert!(matches!(again, Err(RecoverError::Directory(_))), "{again:?}");
        *done.lock() = Some(made);
        let node = Node::start(&host, settings).await.unwrap();
        let why = node.lost().await;
        panic!("the recovered node had to stop: {why:?}");
    });
    step_until(&mut world, "the recovery", || recovered.lock().is_some());
    let lengths: Arc<Mutex<Vec<u64>>> = Arc::default();
    let read = Arc::clone(&lengths);
    world.boot("client", |host| read_marks(host, read));
    step_until(&mut world, "a read of everything", || !lengths.lock().is_empty());
    let (moment, lengths) = (*moment.lock(), lengths.lock().clone());
    let recovered = recovered.lock().clone().unwrap();
    drop(world);
    let written = written.lock().clone();
    (written, moment, recovered, lengths)
}

#[test]
fn all_partitions_are_cut_at_one_point_close_to_the_end() {
    let mut cut_off = 0;
    for (seed, moment_ms) in [(1, 300), (2, 700), (3, 1_111), (4, 1_500), (5, 2_345), (6, 3_210)] {
        let (written, moment, recovered, lengths) = disaster(seed, moment_ms);
        let (longest, shortest) = (lengths[0], lengths[lengths.len() - 1]);
        assert!(lengths.is_sorted_by(|a, b| a >= b), "seed {seed}: {lengths:?}");
        assert!(longest - shortest <= 1, "seed {seed}: torn: {lengths:?}");
        // An upload, an archive object, and what they take.
        let surely = written.iter().filter(|at| **at + 1_000 < moment).count() as u64;
        assert!(
            shortest >= surely,
            "seed {seed}: {surely} of {} were due, {lengths:?} are left",
            written.len()
        );
        assert_eq!(recovered.incarnation, 1);
        assert!(recovered.found.lacks_ms() < 1_500, "seed {seed}: {:?}", recovered.found);
        assert!(recovered.found.notes.is_empty(), "{:?}", recovered.found.notes);
        for partition in 0..PARTITIONS {
            let at = recovered.found.partitions[&("marks".to_owned(), partition)];
            assert_eq!(at.log_end.unsigned_abs(), lengths[usize::try_from(partition).unwrap()]);
            cut_off += at.cut_off;
        }
    }
    assert!(cut_off > 0, "no seed had anything to cut");
}

/// Wherever the archive is damaged, the cut is one of what can be read, and the object is named.
#[test]
fn a_damaged_archive_object_is_named_and_ends_what_can_be_used() {
    let (mut world, bucket, _) = lost(7, 3_000);
    let ended: Arc<Mutex<Option<[usize; 3]>>> = Arc::default();
    let told = Arc::clone(&ended);
    world.boot("new", |host| async move {
        let objects = bucket.objects();
        let options = RecoverOptions::new("/data", given(&bucket));
        let whole = find(&host, &options).await.unwrap();
        let archive: Vec<ObjectMeta> = objects.list(Some(&"archive".into())).try_collect().await.unwrap();
        let (mut unharmed, mut earlier, mut refused) = (0, 0, 0);
        for ObjectMeta { location, .. } in archive {
            let good = objects.get(&location).await.unwrap().bytes().await.unwrap();
            let mut bad = good.to_vec();
            let middle = bad.len() / 2;
            bad[middle] ^= 4;
            objects.put(&location, bad.into()).await.unwrap();
            let name = location.filename().unwrap();
            match find(&host, &options).await {
                Ok(found) if found == whole => unharmed += 1,
                Ok(found) => {
                    assert!(found.cut <= whole.cut, "{found:?}");
                    assert!(found.notes.iter().any(|note| note.contains(name)), "{name}: {:?}", found.notes);
                    earlier += usize::from(found.cut < whole.cut);
                }
                Err(error) => {
                    assert!(error.to_string().contains(name), "{name}: {error}");
                    refused += 1;
                }
            }
            objects.put(&location, good.into()).await.unwrap();
        }
        assert_eq!(find(&host, &options).await.unwrap(), whole);
        *told.lock() = Some([unharmed, earlier, refused]);
    });
    step_until(&mut world, "every object of the archive", || ended.lock().is_some());
    let [unharmed, earlier, refused] = ended.lock().unwrap();
    // Old pieces are not needed; without a later one the cut is an earlier one.
    assert!(unharmed > 0 && earlier > 1, "{unharmed} unharmed, {earlier} earlier, {refused} refused");
}
