//! A node in the simulator, in states that take too long or too much to reach on a real machine.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isobar_client::{
    Client, ClientConfig, ConfigResource, Consumer, ConsumerConfig, NewTopic, OutgoingRecord, Producer,
    ProducerConfig, TopicPartition,
};
use isobar_host::Host;
use isobar_host::disk::Faults;
use isobar_host::sim::{SimDisk, World};
use isobar_node::node::{Ending, Node, NodeOptions, Store};
use isobar_testkit::bucket::{Bucket, FaultPlan};
use parking_lot::Mutex;

const BROKER: &str = "10.0.0.1:9092";
const RECORDS: u64 = 600;
const VALUE_BYTES: usize = 100 << 10;

fn options(bucket: &Bucket) -> NodeOptions {
    let mut options = NodeOptions::new("/data");
    options.store = Store::Given(Arc::new(bucket.clone()));
    options.broker.listen = BROKER.to_owned();
    options.segment_bytes = Some(8 << 20);
    options.wal_max_disk_bytes = 32 << 20;
    options.upload_interval = Duration::from_millis(200);
    options
}

/// Sends everything, then reads it back: each value once and in order.
async fn send_and_read(host: Host) {
    let client = connect(&host).await;
    client.create_topics(&[NewTopic::new("t", 1)]).await.unwrap();
    let settings = ProducerConfig { delivery_timeout: Duration::from_secs(120), ..ProducerConfig::default() };
    let producer = Producer::new(&client, settings).await.unwrap();
    let at = TopicPartition::new("t", 0);
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        let mut value = number.to_be_bytes().to_vec();
        value.resize(VALUE_BYTES, 7);
        let record = OutgoingRecord { value: Some(value.into()), ..OutgoingRecord::default() };
        deliveries.push(producer.send(&at, record).await.unwrap());
    }
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, number);
    }
    read_numbers(&client, at, RECORDS).await;
}

/// Values that begin with 0, 1, … in order, each once.
async fn read_numbers(client: &Client, at: TopicPartition, count: u64) {
    let mut consumer = Consumer::new(client, ConsumerConfig::default());
    consumer.assign(at, Some(0));
    let mut next = 0_u64;
    while next < count {
        for fetched in consumer.poll(Duration::from_secs(5)).await.unwrap() {
            fetched
                .for_each(|record| {
                    let value = record.value.unwrap();
                    assert_eq!(value[..8], next.to_be_bytes());
                    next += 1;
                })
                .unwrap();
        }
    }
}

async fn connect(host: &Host) -> Client {
    let mut config = ClientConfig::new(BROKER);
    config.api_timeout = Duration::from_secs(60);
    loop {
        match Client::connect(host, config.clone()).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// What was acknowledged stays, producers wait, and all goes on once the store is back and has taken what waited.
#[test]
fn full_wal_holds_producers_up_and_loses_nothing() {
    let mut world = World::new(7);
    let disk = Arc::new(SimDisk::new(7));
    world.add_node("broker", disk);
    world.add_node("client", Arc::new(SimDisk::new(8)));
    let bucket = Bucket::new(7, FaultPlan::NONE);
    let node: Arc<Mutex<Option<Node>>> = Arc::default();
    let (started, settings) = (Arc::clone(&node), options(&bucket));
    world.boot("broker", |host| async move {
        *started.lock() = Some(Node::start(&host, settings).await.unwrap());
    });
    let done = Arc::new(Mutex::new(false));
    let ended = Arc::clone(&done);
    world.boot("client", |host| async move {
        send_and_read(host).await;
        *ended.lock() = true;
    });
    let mut out = false;
    for millisecond in 0..120_000 {
        world.step();
        if !out && node.lock().is_some() {
            // Formatting needs the store.
            bucket.set_outage(true);
            out = true;
        }
        if millisecond == 10_000 {
            let node = node.lock();
            let node = node.as_ref().unwrap();
            assert!(node.health().is_ok(), "a full WAL is no reason to stop");
            assert!(!*done.lock(), "the WAL was never full");
            bucket.set_outage(false);
        }
        if *done.lock() {
            assert!(millisecond > 10_000);
            return;
        }
    }
    panic!("producers did not go on");
}

/// Metadata's clock moves with entries only, so a node that nobody uses must make some: else nothing ever expires.
#[test]
fn metadata_clock_goes_on_although_nobody_asks_for_anything() {
    let mut world = World::new(9);
    world.add_node("broker", Arc::new(SimDisk::new(9)));
    let bucket = Bucket::new(9, FaultPlan::NONE);
    let node: Arc<Mutex<Option<Node>>> = Arc::default();
    let (started, settings) = (Arc::clone(&node), options(&bucket));
    world.boot("broker", |host| async move {
        *started.lock() = Some(Node::start(&host, settings).await.unwrap());
    });
    let begun = started_at(&mut world, &node);
    for _ in 0..200_000 {
        world.step();
    }
    let node = node.lock();
    let node = node.as_ref().unwrap();
    let gone_on = node.metadata_time_ms() - begun;
    assert!(gone_on > 100_000, "in 200 s metadata's clock moved {gone_on} ms");
}

/// Its disk fails while nobody asks for anything, so no write path is there to notice it: metadata's own entries do.
#[test]
fn a_node_ends_when_its_metadata_log_cannot_be_written() {
    let mut world = World::new(11);
    let disk = Arc::new(SimDisk::new(11));
    world.add_node("broker", Arc::clone(&disk));
    let bucket = Bucket::new(11, FaultPlan::NONE);
    let started = Arc::new(AtomicBool::new(false));
    let ended: Arc<Mutex<Option<Ending>>> = Arc::default();
    let (begun, told, settings) = (Arc::clone(&started), Arc::clone(&ended), options(&bucket));
    world.boot("broker", |host| async move {
        let node = Node::start(&host, settings).await.unwrap();
        begun.store(true, Ordering::Relaxed);
        *told.lock() = Some(node.lost().await);
    });
    for _ in 0..60_000 {
        world.step();
    }
    assert!(started.load(Ordering::Relaxed), "the node did not start");
    assert_eq!(*ended.lock(), None, "it has ended although nothing is wrong");
    disk.set_faults(Faults { sync_errors_per_million: 1_000_000, ..Faults::default() });
    for _ in 0..120_000 {
        world.step();
        if let Some(ending) = &*ended.lock() {
            assert!(matches!(ending, Ending::ForGood(why) if why.contains("metadata")), "{ending:?}");
            return;
        }
    }
    panic!("it goes on without a metadata log");
}

/// Steps until the node serves; its metadata clock then.
fn started_at(world: &mut World, node: &Mutex<Option<Node>>) -> i64 {
    for _ in 0..10_000 {
        world.step();
        if let Some(node) = &*node.lock() {
            return node.metadata_time_ms();
        }
    }
    panic!("the node did not start");
}

/// Moves the topic from one durability class to the other and back, again and again.
async fn switch_classes(host: Host, client: Client, stop: Arc<AtomicBool>) -> u32 {
    let mut switches = 0;
    let topic = ConfigResource::Topic("t".to_owned());
    while !stop.load(Ordering::Relaxed) {
        let class = if switches % 2 == 0 { "wal" } else { "object" };
        client.alter_configs(&topic, &[("isobar.durability", Some(class))]).await.unwrap();
        switches += 1;
        tokio::time::sleep(Duration::from_millis(100 + host.random_u64() % 400)).await;
    }
    switches
}

/// Sends `count` records while the class changes under them; each must have the offset of its turn, once.
async fn send_through_switches(host: Host, count: u64) -> u32 {
    let client = connect(&host).await;
    let topic =
        NewTopic { configs: vec![("isobar.durability".into(), "object".into())], ..NewTopic::new("t", 1) };
    client.create_topics(&[topic]).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (told, switched) = tokio::sync::oneshot::channel();
    let switching = switch_classes(host.clone(), client.clone(), Arc::clone(&stop));
    let _ = host.spawn("switches", async move {
        let _ = told.send(switching.await);
    });
    let settings = ProducerConfig { delivery_timeout: Duration::from_secs(120), ..ProducerConfig::default() };
    let producer = Producer::new(&client, settings).await.unwrap();
    let at = TopicPartition::new("t", 0);
    let mut deliveries = Vec::new();
    for number in 0..count {
        let value = Some(number.to_be_bytes().to_vec().into());
        let record = OutgoingRecord { value, ..OutgoingRecord::default() };
        deliveries.push(producer.send(&at, record).await.unwrap());
        if number % 3 == 0 {
            tokio::time::sleep(Duration::from_millis(host.random_u64() % 20)).await;
        }
    }
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, number);
    }
    stop.store(true, Ordering::Relaxed);
    read_numbers(&client, at, count).await;
    switched.await.unwrap()
}

/// A topic changes its durability class while a producer writes, on a store that fails now and then.
#[test]
fn a_class_switch_loses_and_doubles_nothing() {
    for seed in 1..=6 {
        let mut world = World::new(seed);
        world.add_node("broker", Arc::new(SimDisk::new(seed)));
        world.add_node("client", Arc::new(SimDisk::new(seed + 100)));
        let bucket = Bucket::new(seed, FaultPlan::all(20_000));
        let settings = options(&bucket);
        let node: Arc<Mutex<Option<Node>>> = Arc::default();
        let started = Arc::clone(&node);
        world.boot("broker", |host| async move {
            *started.lock() = Some(Node::start(&host, settings).await.unwrap());
        });
        let switches = Arc::new(Mutex::new(None));
        let ended = Arc::clone(&switches);
        world.boot("client", |host| async move {
            *ended.lock() = Some(send_through_switches(host, 1500).await);
        });
        let mut millisecond = 0;
        while switches.lock().is_none() {
            world.step();
            millisecond += 1;
            assert!(millisecond < 300_000, "seed {seed}: the producer did not come to its end");
        }
        let switches = switches.lock().unwrap_or(0);
        assert!(switches > 5, "seed {seed}: {switches} switches");
    }
}
