//! The client against a broker that runs: Isobar, or Apache Kafka, which calibrates it. Ignored without one:
//!
//! ```text
//! [PEER=kafka] python3 tests/lib/broker.py cargo ct -p isobar-client --test real -- --ignored
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, where a failure is the finding"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isobar_client::{
    Client, ClientConfig, ConfigResource, Consumer, ConsumerConfig, GroupConfig, GroupConsumer, NewTopic,
    OffsetSpec, OutgoingRecord, Producer, ProducerConfig, TopicPartition,
};
use isobar_host::Host;
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::BatchBuilder;

async fn connect() -> Client {
    let bootstrap = std::env::var("BOOTSTRAP").expect("BOOTSTRAP names the broker");
    Client::connect(&Host::real(), ClientConfig::new(&bootstrap)).await.unwrap()
}

async fn new_topic(client: &Client, name: &str, partitions: i32) -> String {
    let name = format!("{name}-{}", Host::real().random_u64());
    for outcome in client.create_topics(&[NewTopic::new(&name, partitions)]).await.unwrap() {
        outcome.unwrap();
    }
    // Another broker, or Kafka's own metadata cache, may learn of it a little later.
    for _ in 0..100 {
        if client.topic(&name).await.is_ok_and(|topic| topic.partitions.len() == partitions as usize) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    name
}

type Row = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

async fn read_all(client: &Client, topic: &str, partition: i32, from: i64, until: i64) -> Vec<(i64, Row)> {
    let mut consumer = Consumer::new(client, ConsumerConfig::default());
    let at = TopicPartition::new(topic, partition);
    consumer.assign(at.clone(), Some(from));
    let mut rows = Vec::new();
    while consumer.position(&at).unwrap() < until {
        for fetched in consumer.poll(Duration::from_secs(5)).await.unwrap() {
            fetched
                .for_each(|record| {
                    let headers = record
                        .headers
                        .clone()
                        .map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec)))
                        .collect();
                    let row = (record.key.map(<[u8]>::to_vec), record.value.map(<[u8]>::to_vec), headers);
                    rows.push((record.offset, row));
                })
                .unwrap();
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker in BOOTSTRAP"]
async fn every_codec_there_and_back() {
    let client = connect().await;
    let topic = new_topic(&client, "codecs", 1).await;
    let at = TopicPartition::new(&topic, 0);
    let mut expected = Vec::new();
    for codec in Codec::ALL {
        let producer =
            Producer::new(&client, ProducerConfig { codec, ..ProducerConfig::default() }).await.unwrap();
        for i in 0..50usize {
            let value = match i {
                0 => None,
                1 => Some(Vec::new()),
                2 => Some(vec![7; 900_000]),
                _ => Some(format!("{codec}-{i}").into_bytes()),
            };
            let headers = vec![
                ("h".to_owned(), Some("1".into())),
                ("h".to_owned(), None),
                ("ü".to_owned(), Some("".into())),
            ];
            let record = OutgoingRecord {
                timestamp_ms: Some(1_700_000_000_000 + expected.len() as i64),
                key: (i % 2 == 0).then(|| format!("k{i}").into()),
                value: value.clone().map(Into::into),
                headers: headers.clone(),
            };
            let wait = producer.send(&at, record).await.unwrap();
            if i % 10 == 9 {
                assert_eq!(wait.await.unwrap().offset, expected.len() as i64);
            }
            let headers = headers
                .into_iter()
                .map(|(key, value)| (key.into_bytes(), value.map(|v| v.to_vec())))
                .collect();
            expected.push(((i % 2 == 0).then(|| format!("k{i}").into_bytes()), value, headers));
        }
        producer.flush().await;
    }
    let end = expected.len() as i64;
    let rows = read_all(&client, &topic, 0, 0, end).await;
    for ((offset, row), (i, expected)) in rows.iter().zip(expected.iter().enumerate()) {
        assert!(*offset == i as i64 && row == expected, "offset {offset}");
    }
    assert_eq!(rows.len(), expected.len());
    assert_eq!(read_all(&client, &topic, 0, 123, end).await.len(), expected.len() - 123);

    let asked = [
        OffsetSpec::Earliest,
        OffsetSpec::Latest,
        OffsetSpec::At(1_700_000_000_060),
        OffsetSpec::MaxTimestamp,
    ];
    let mut found = Vec::new();
    for spec in asked {
        let answer = client.list_offsets(&[(at.clone(), spec)]).await.unwrap().remove(&at).unwrap().unwrap();
        found.push(answer.offset.unwrap());
    }
    assert_eq!(found, [0, end, 60, end - 1]);
    let late = client.list_offsets(&[(at.clone(), OffsetSpec::At(1_900_000_000_000))]).await.unwrap();
    assert_eq!(late[&at].as_ref().unwrap().offset, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker in BOOTSTRAP"]
async fn refusals() {
    let client = connect().await;
    let topic = new_topic(&client, "refusals", 1).await;
    let at = TopicPartition::new(&topic, 0);
    let again =
        client.create_topics(&[NewTopic::new(&topic, 1), NewTopic::new("bad/name", 1)]).await.unwrap();
    let codes: Vec<_> = again.into_iter().map(|outcome| outcome.unwrap_err().code().unwrap()).collect();
    assert_eq!(codes, [ErrorCode::TopicAlreadyExists, ErrorCode::InvalidTopicException]);
    let missing = client.topic("no-such-topic").await.unwrap_err();
    assert_eq!(missing.code(), Some(ErrorCode::UnknownTopicOrPartition));

    // One batch too large between others: it fails alone, and the sequences close up behind it.
    let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
    let mut deliveries = Vec::new();
    for i in 0..5 {
        let mut batch = BatchBuilder::new(Codec::None);
        let value = if i == 2 { vec![b'x'; 2_000_000] } else { format!("{i}").into_bytes() };
        batch.push(1_700_000_000_000, None, Some(&value), &[] as &[(&str, _)]);
        deliveries.push(producer.send_batch(&at, batch).await.unwrap());
    }
    let mut outcomes = Vec::new();
    for delivery in deliveries {
        outcomes.push(delivery.await.map(|acked| acked.offset).map_err(|error| error.code().unwrap()));
    }
    assert_eq!(outcomes, [Ok(0), Ok(1), Err(ErrorCode::MessageTooLarge), Ok(2), Ok(3)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker in BOOTSTRAP"]
async fn configs_and_partitions() {
    let client = connect().await;
    let topic = new_topic(&client, "configs", 1).await;
    let resource = ConfigResource::Topic(topic.clone());
    // Kafka's brokers learn of a change a little later.
    let becomes = |expected: &'static str, is_default: bool| {
        let (client, resource) = (client.clone(), resource.clone());
        async move {
            let mut last = Vec::new();
            for _ in 0..100 {
                last = client.describe_configs(&resource, Some(&["retention.ms"])).await.unwrap();
                if last.iter().any(|e| e.value.as_deref() == Some(expected) && e.is_default == is_default) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("{last:?} instead of {expected}");
        }
    };
    becomes("604800000", true).await;
    client.alter_configs(&resource, &[("retention.ms", Some("1234567"))]).await.unwrap();
    becomes("1234567", false).await;
    client.alter_configs(&resource, &[("retention.ms", None)]).await.unwrap();
    becomes("604800000", true).await;
    let bad = client.alter_configs(&resource, &[("retention.ms", Some("soon"))]).await.unwrap_err();
    assert_eq!(bad.code(), Some(ErrorCode::InvalidConfig));
    client.create_partitions(&topic, 3).await.unwrap();
    for _ in 0..100 {
        if client.topic(&topic).await.unwrap().partitions.len() == 3 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.topic(&topic).await.unwrap().partitions.len(), 3);
    let fewer = client.create_partitions(&topic, 2).await.unwrap_err();
    assert_eq!(fewer.code(), Some(ErrorCode::InvalidPartitions));
    assert!(client.delete_topics(&[&topic]).await.unwrap().remove(0).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a broker in BOOTSTRAP"]
async fn a_group_of_two() {
    let client = connect().await;
    let topic = new_topic(&client, "group", 4).await;
    let producer = Producer::new(&client, ProducerConfig::default()).await.unwrap();
    for i in 0..400 {
        let record = OutgoingRecord { value: Some(i.to_string().into()), ..OutgoingRecord::default() };
        drop(producer.send(&TopicPartition::new(&topic, i % 4), record).await.unwrap());
    }
    producer.flush().await;
    let group = format!("group-of-{topic}");
    let config = GroupConfig {
        heartbeat_interval: Duration::from_millis(300),
        session_timeout: Duration::from_secs(10),
        auto_commit: Some(Duration::from_millis(200)),
        ..GroupConfig::new(&group, &[&topic])
    };
    let mut first = GroupConsumer::new(&client, config.clone());
    let mut seen = BTreeSet::new();
    while seen.len() < 400 {
        for fetched in first.poll(Duration::from_secs(5)).await.unwrap().fetched {
            fetched
                .for_each(|record| assert!(seen.insert(record.value.unwrap().to_vec()), "read twice"))
                .unwrap();
        }
    }
    let (second_client, second_config) = (client.clone(), config.clone());
    let (hand_over, handed) = tokio::sync::oneshot::channel();
    drop(Host::real().spawn("second", async move {
        let mut second = GroupConsumer::new(&second_client, second_config);
        while second.assignment().len() != 2 {
            second.poll(Duration::from_millis(200)).await.unwrap();
        }
        drop(hand_over.send(second));
    }));
    while first.assignment().len() != 2 {
        first.poll(Duration::from_millis(200)).await.unwrap();
    }
    let second = handed.await.unwrap();
    let described = client.describe_group(&group).await.unwrap();
    assert_eq!((described.group_state.as_str(), described.members.len()), ("Stable", 2));
    assert!(
        client
            .list_groups()
            .await
            .unwrap()
            .iter()
            .any(|listed| listed.group == group && listed.protocol_type == "consumer")
    );
    second.leave().await.unwrap();
    while first.assignment().len() != 4 {
        first.poll(Duration::from_millis(200)).await.unwrap();
    }
    assert!(
        first.poll(Duration::from_millis(500)).await.unwrap().fetched.is_empty(),
        "committed records came again"
    );
    first.commit().await.unwrap();
    let offsets = client.group_offsets(&group).await.unwrap();
    assert!(offsets.len() == 4 && offsets.values().all(|committed| committed.offset == 100), "{offsets:?}");
    let back: BTreeMap<TopicPartition, i64> = offsets.keys().map(|at| (at.clone(), 90)).collect();
    let active = client.commit_group_offsets(&group, &back).await.unwrap_err();
    assert_eq!(active.code(), Some(ErrorCode::UnknownMemberId));
    first.leave().await.unwrap();
    client.commit_group_offsets(&group, &back).await.unwrap();
    let mut third = GroupConsumer::new(&client, config);
    let mut again = 0;
    while again < 40 {
        for fetched in third.poll(Duration::from_secs(5)).await.unwrap().fetched {
            again += fetched.for_each(|_| {}).unwrap();
        }
    }
    assert_eq!(again, 40);
    third.leave().await.unwrap();
}
