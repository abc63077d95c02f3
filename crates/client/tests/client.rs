//! The client against a fake broker that fails in every way a connection can, in the simulator and on real sockets.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a failure is the finding")]

mod common;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use common::{Fake, Faults};
use isobar_client::*;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::BatchBuilder;
use parking_lot::Mutex;
use proptest::prelude::*;

const BROKER: &str = "10.0.0.1:9092";

/// Runs a broker node and a client node in a world of this seed until the client is done; the world's trace.
fn simulate<F, Fut>(seed: u64, topics: &'static [(&'static str, usize)], body: F) -> (u64, u64)
where
    F: FnOnce(Client, Fake, Host) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let mut world = World::new(seed);
    world.add_node("broker", Arc::new(SimDisk::new(seed)));
    world.add_node("client", Arc::new(SimDisk::new(seed)));
    let fake = Arc::new(Mutex::new(None));
    let started = Arc::clone(&fake);
    world.boot(
        "broker",
        |host| async move { *started.lock() = Some(Fake::start(&host, BROKER, topics).await) },
    );
    let done = Arc::new(Mutex::new(Some(false)));
    let ending = Ending(Arc::clone(&done));
    world.boot("client", |host| async move {
        let client = Client::connect(&host, ClientConfig::new(BROKER)).await.unwrap();
        let fake = fake.lock().clone().unwrap();
        body(client, fake, host).await;
        *ending.0.lock() = Some(true);
    });
    for _ in 0..300_000 {
        world.step();
        match *done.lock() {
            Some(true) => return world.trace(),
            Some(false) => {}
            None => panic!("the client's task panicked"),
        }
    }
    panic!("the client's test did not end in 300 simulated seconds");
}

/// Tells a panic inside a simulated node from a test that goes on.
struct Ending(Arc<Mutex<Option<bool>>>);

impl Drop for Ending {
    fn drop(&mut self) {
        let mut ending = self.0.lock();
        *ending = ending.filter(|done| *done);
    }
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new("t", partition)
}

fn record(text: String) -> OutgoingRecord {
    OutgoingRecord { value: Some(text.into()), ..OutgoingRecord::default() }
}

/// Idempotent sends through refusals and hang-ups: everything acknowledged, once, in order.
async fn send_through_chaos(client: Client, fake: Fake, _: Host) {
    fake.state.lock().faults =
        Faults { chaos_percent: 30, delay: Duration::from_millis(2), ..Faults::default() };
    let config = ProducerConfig { batch_bytes: 400, ..ProducerConfig::default() };
    let producer = Producer::new(&client, config).await.unwrap();
    let mut deliveries = Vec::new();
    for i in 0..300 {
        let to = at(i % 3);
        let text = format!("p{}-{}", i % 3, i / 3);
        deliveries.push((to.clone(), text.clone(), producer.send(&to, record(text)).await.unwrap()));
    }
    producer.flush().await;
    let mut expected: BTreeMap<i32, BTreeMap<i64, String>> = BTreeMap::new();
    for (to, text, delivery) in deliveries {
        let offset = delivery.await.unwrap().offset;
        assert!(
            expected.entry(to.partition).or_default().insert(offset, text).is_none(),
            "offset given twice"
        );
    }
    let state = fake.state.lock();
    for (partition, by_offset) in expected {
        let values = state.topics["t"][partition as usize].values();
        let in_order: Vec<String> = (0..100).map(|i| format!("p{partition}-{i}")).collect();
        assert_eq!(values, in_order, "partition {partition}");
        assert_eq!(by_offset.into_values().collect::<Vec<_>>(), in_order, "offsets of partition {partition}");
    }
}

/// With refusals for good among the chaos some sends fail and a producer may stop, but no outcome is a lie.
async fn outcomes_are_true(client: Client, fake: Fake, _: Host) {
    fake.state.lock().faults =
        Faults { chaos_percent: 20, fatal_percent: 4, delay: Duration::from_millis(2), ..Faults::default() };
    let mut outcomes = Vec::new();
    for producer in 0..4 {
        let config = ProducerConfig { batch_bytes: 200, ..ProducerConfig::default() };
        let producer_of_round = Producer::new(&client, config).await.unwrap();
        let mut deliveries = Vec::new();
        for i in 0..60 {
            let text = format!("{producer}-{i:02}");
            match producer_of_round.send(&at(0), record(text.clone())).await {
                Ok(delivery) => deliveries.push((text, delivery)),
                Err(error) => assert!(!error.is_ambiguous(), "{error}"),
            }
        }
        producer_of_round.flush().await;
        for (text, delivery) in deliveries {
            outcomes.push((text, delivery.await));
        }
    }
    let values = fake.state.lock().topics["t"][0].values();
    assert!(values.is_sorted() && values.windows(2).all(|pair| pair[0] != pair[1]), "{values:?}");
    for (text, outcome) in outcomes {
        let found = values.iter().position(|value| *value == text);
        match outcome {
            Ok(acked) => assert_eq!(found, Some(acked.offset as usize), "{text}"),
            Err(error) => assert!(error.is_ambiguous() || found.is_none(), "{text}: {error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn idempotent_sends_arrive_once_and_in_order(seed: u64) {
        simulate(seed, &[("t", 3)], send_through_chaos);
    }

    #[test]
    fn no_outcome_is_a_lie(seed: u64) {
        simulate(seed, &[("t", 1)], outcomes_are_true);
    }
}

#[test]
fn a_seed_replays_the_client() {
    let runs = [7, 7, 8].map(|seed| simulate(seed, &[("t", 3)], send_through_chaos));
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
}

#[test]
fn a_refused_batch_fails_alone_and_sequences_close_up() {
    simulate(1, &[("t", 1)], async |client, fake, _| {
        fake.state.lock().faults.delay = Duration::from_millis(20);
        fake.state.lock().faults.refuse = [ErrorCode::None, ErrorCode::PolicyViolation].into();
        // ErrorCode::None in the plan would be an acknowledgement without an append.
        fake.state.lock().faults.refuse.pop_front();
        let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
        let mut deliveries = Vec::new();
        for i in 0..5 {
            let mut batch = BatchBuilder::new(isobar_protocol::compression::Codec::None);
            batch.push(1, None, Some(format!("b{i}").as_bytes()), &[] as &[(&str, _)]);
            deliveries.push(producer.send_batch(&at(0), batch).await.unwrap());
        }
        let mut outcomes = Vec::new();
        for delivery in deliveries {
            outcomes.push(delivery.await.map(|acked| acked.offset).map_err(|error| error.code().unwrap()));
        }
        assert_eq!(outcomes, [Err(ErrorCode::PolicyViolation), Ok(0), Ok(1), Ok(2), Ok(3)]);
        assert_eq!(fake.state.lock().topics["t"][0].values(), ["b1", "b2", "b3", "b4"]);
        let more = producer.send(&at(0), record("later".to_owned())).await.unwrap().await.unwrap();
        assert_eq!(more.offset, 4);
    });
}

#[test]
fn an_unknown_fate_is_said_to_be_unknown() {
    simulate(2, &[("t", 1)], async |client, fake, _| {
        let plain = ProducerConfig { idempotent: false, retries: false, ..ProducerConfig::default() };
        let producer = Producer::new(&client, plain).await.unwrap();
        fake.state.lock().faults.take_and_hang_up = 1;
        let lost = producer.send(&at(0), record("maybe".to_owned())).await.unwrap().await.unwrap_err();
        assert!(lost.is_ambiguous() && lost.is_retriable(), "{lost}");
        fake.state.lock().faults.refuse.push_back(ErrorCode::NotLeaderOrFollower);
        let refused = producer.send(&at(0), record("no".to_owned())).await.unwrap().await.unwrap_err();
        assert!(!refused.is_ambiguous() && refused.is_retriable(), "{refused}");
        assert_eq!(fake.state.lock().topics["t"][0].values(), ["maybe"]);

        // First no answer, then clear refusals until time is up: still unknown, and an idempotent producer stops.
        let short = ProducerConfig { delivery_timeout: Duration::from_secs(2), ..ProducerConfig::default() };
        let producer = Producer::new(&client, short).await.unwrap();
        fake.state.lock().faults.take_and_hang_up = 1;
        let delivery = producer.send(&at(0), record("again".to_owned())).await.unwrap();
        while fake.state.lock().topics["t"][0].values().len() < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fake.state.lock().faults.refuse = std::iter::repeat_n(ErrorCode::NotLeaderOrFollower, 1000).collect();
        let unknown = delivery.await.unwrap_err();
        assert!(unknown.is_ambiguous(), "{unknown}");
        let closed = producer.send(&at(0), record("next".to_owned())).await.unwrap_err();
        assert_eq!(closed.action(), Action::Fatal, "{closed}");
    });
}

#[test]
fn acks_0_is_done_when_sent() {
    simulate(3, &[("t", 1)], async |client, fake, _| {
        let config = ProducerConfig { acks: Acks::None, idempotent: false, ..ProducerConfig::default() };
        let producer = Producer::new(&client, config).await.unwrap();
        for i in 0..10 {
            let acked = producer.send(&at(0), record(i.to_string())).await.unwrap().await.unwrap();
            assert_eq!(acked.offset, -1);
        }
        while fake.state.lock().topics["t"][0].values().len() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn consuming_from_anywhere_with_lost_connections() {
    simulate(4, &[("t", 2)], async |client, fake, _| {
        let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
        for i in 0..40 {
            drop(producer.send(&at(i % 2), record(i.to_string())).await.unwrap());
        }
        producer.flush().await;
        let ends =
            client.list_offsets(&[(at(0), OffsetSpec::Latest), (at(1), OffsetSpec::Earliest)]).await.unwrap();
        assert_eq!(ends[&at(0)].as_ref().unwrap().offset, Some(20));
        assert_eq!(ends[&at(1)].as_ref().unwrap().offset, Some(0));
        let nowhere = TopicPartition::new("nope", 0);
        let missing = client.list_offsets(&[(nowhere.clone(), OffsetSpec::Latest)]).await.unwrap();
        assert_eq!(missing[&nowhere].as_ref().unwrap_err().code(), Some(ErrorCode::UnknownTopicOrPartition));

        let mut consumer =
            Consumer::new(&client, ConsumerConfig { partition_max_bytes: 100, ..ConsumerConfig::default() });
        consumer.assign(at(0), Some(13));
        consumer.assign(at(1), Some(999)); // out of range: back to the earliest
        let mut seen = [Vec::new(), Vec::new()];
        while seen[0].len() + seen[1].len() < 27 {
            for fetched in consumer.poll(Duration::from_secs(1)).await.unwrap() {
                let values = &mut seen[fetched.at.partition as usize];
                fetched
                    .for_each(|record| values.push((record.offset, record.value.unwrap().to_vec())))
                    .unwrap();
            }
        }
        let expected = |partition: usize, from: usize| -> Vec<(i64, Vec<u8>)> {
            (from..20).map(|i| (i as i64, (2 * i + partition).to_string().into_bytes())).collect()
        };
        assert_eq!(seen, [expected(0, 13), expected(1, 0)]);
        assert_eq!((consumer.position(&at(0)), consumer.position(&at(1))), (Some(20), Some(20)));
        assert!(consumer.poll(Duration::from_millis(50)).await.unwrap().is_empty());
        drop(fake);
    });
}

#[test]
fn a_group_of_two_shares_hands_over_and_goes_on_where_it_was() {
    simulate(5, &[("t", 4)], async |client, fake, host| {
        let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
        for i in 0..40 {
            drop(producer.send(&at(i % 4), record(i.to_string())).await.unwrap());
        }
        producer.flush().await;
        let config =
            GroupConfig { heartbeat_interval: Duration::from_millis(100), ..GroupConfig::new("g", &["t"]) };
        let mut first = GroupConsumer::new(&client, config.clone());
        assert!(first.poll(Duration::from_secs(5)).await.unwrap().rebalanced);
        assert_eq!(first.assignment().len(), 4);
        let mut read = 0;
        while read < 40 {
            for fetched in first.poll(Duration::from_secs(1)).await.unwrap().fetched {
                read += fetched.for_each(|_| {}).unwrap();
            }
        }
        first.commit().await.unwrap();

        let joined = Arc::new(Mutex::new(None));
        let (second_client, second_config, other) = (client.clone(), config.clone(), Arc::clone(&joined));
        host.spawn("second", async move {
            let mut second = GroupConsumer::new(&second_client, second_config);
            assert!(second.poll(Duration::from_secs(5)).await.unwrap().rebalanced);
            *other.lock() = Some(second);
        });
        while !first.poll(Duration::from_millis(200)).await.unwrap().rebalanced {}
        while joined.lock().is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut second = joined.lock().take().unwrap();
        let mut all = first.assignment();
        assert_eq!((all.len(), second.assignment().len()), (2, 2));
        all.extend(second.assignment());
        assert_eq!(all.len(), 4);
        // Committed, so there is nothing left to read; then one more record each comes exactly once.
        for i in 0..4 {
            drop(producer.send(&at(i), record(format!("more{i}"))).await.unwrap());
        }
        producer.flush().await;
        let mut more = 0;
        while more < 4 {
            for member in [&mut first, &mut second] {
                for fetched in member.poll(Duration::from_millis(300)).await.unwrap().fetched {
                    more += fetched
                        .for_each(|record| assert!(record.value.unwrap().starts_with(b"more")))
                        .unwrap();
                }
            }
        }
        assert_eq!(more, 4);
        second.commit().await.unwrap();
        first.commit().await.unwrap();
        let was = second.member();
        second.leave().await.unwrap();
        while !first.poll(Duration::from_millis(200)).await.unwrap().rebalanced {}
        assert_eq!(first.assignment().len(), 4);
        assert!(first.member().generation > was.generation);
        assert!(first.poll(Duration::from_millis(300)).await.unwrap().fetched.is_empty(), "read again");

        // Thrown out by the coordinator: joins again by itself, under a new id. Fenced: final.
        let before = first.member();
        fake.state.lock().groups.heartbeat_errors = vec![ErrorCode::UnknownMemberId];
        while !first.poll(Duration::from_millis(200)).await.unwrap().rebalanced {}
        assert_ne!(first.member().member_id, before.member_id);
        fake.state.lock().groups.heartbeat_errors = vec![ErrorCode::FencedInstanceId];
        let error = loop {
            if let Err(error) = first.poll(Duration::from_millis(200)).await {
                break error;
            }
        };
        assert_eq!(error.code(), Some(ErrorCode::FencedInstanceId));
    });
}

#[test]
fn a_broker_that_never_answers_is_given_up() {
    simulate(6, &[("t", 1)], async |client, fake, _| {
        let began = tokio::time::Instant::now();
        fake.state.lock().faults.delay = Duration::from_secs(1000);
        let plain = ProducerConfig { idempotent: false, retries: false, ..ProducerConfig::default() };
        let producer = Producer::new(&client, plain).await.unwrap();
        let error = producer.send(&at(0), record("x".to_owned())).await.unwrap().await.unwrap_err();
        assert!(matches!(error, ClientError::Timeout { .. }) && error.is_ambiguous(), "{error}");
        assert!(began.elapsed() < Duration::from_secs(120));
        let config = ClientConfig {
            connect_timeout: Duration::from_millis(300),
            api_timeout: Duration::from_secs(2),
            ..ClientConfig::new("10.0.0.9:1")
        };
        let error = Client::connect(&fake.host, config).await.err().unwrap();
        assert!(matches!(error, ClientError::Connect { .. }), "{error}");
    });
}

/// The same on sockets, with batches large enough for several reads and writes.
#[tokio::test]
async fn on_real_sockets() {
    let host = Host::real();
    let fake = Fake::start(&host, "127.0.0.1:0", &[("t", 2)]).await;
    let client = Client::connect(&host, ClientConfig::new(&fake.addr)).await.unwrap();
    let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
    let big = "x".repeat(900_000);
    for i in 0..20 {
        drop(producer.send(&at(i % 2), record(format!("{i}{big}"))).await.unwrap());
    }
    producer.flush().await;
    let mut consumer = Consumer::new(&client, ConsumerConfig::default());
    consumer.assign(at(0), None);
    consumer.assign(at(1), None);
    let mut count = 0;
    while count < 20 {
        for fetched in consumer.poll(Duration::from_secs(5)).await.unwrap() {
            count += fetched.for_each(|record| assert!(record.value.unwrap().len() > 900_000)).unwrap();
        }
    }
    assert_eq!(count, 20);
}

/// What crosses task boundaries in the CLI and the simulator.
#[test]
fn futures_are_send() {
    fn send<T: Send>(_: &T) {}
    fn check(client: &Client, producer: &Producer, consumer: &mut Consumer, member: &mut GroupConsumer) {
        send(&client.list_offsets(&[]));
        send(&client.create_topics(&[]));
        send(&client.list_groups());
        send(&client.group_offsets("g"));
        send(&producer.send(&at(0), OutgoingRecord::default()));
        send(&consumer.poll(Duration::ZERO));
        send(&member.poll(Duration::ZERO));
        send(&member.commit());
    }
    let _: fn(&Client, &Producer, &mut Consumer, &mut GroupConsumer) = check;
}
