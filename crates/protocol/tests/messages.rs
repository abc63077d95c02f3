//! The two hand-written messages, Produce requests and Fetch responses, against kafka-protocol in every version.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a failure is the finding")]

use bytes::Bytes;
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::*;
use isobar_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use isobar_protocol::messages::{
    self, FetchRequest, ProduceRequest as TheirProduce, TopicName, TransactionalId,
};
use isobar_protocol::produce::{self, Outgoing};
use isobar_protocol::records::BatchBuilder;
use isobar_protocol::request::{Body, decode_request};
use isobar_protocol::response::{self, decode_response, encode_request};
use isobar_protocol::{StrBytes, TopicRef, Uuid};
use proptest::prelude::*;

fn name(number: usize) -> StrBytes {
    StrBytes::from_string(format!("topic-{number}"))
}

fn topic(number: usize, by_id: bool) -> TopicRef {
    if by_id { TopicRef::Id(Uuid::from_u128(number as u128 + 1)) } else { TopicRef::Name(name(number)) }
}

type Sent = Vec<Vec<(i32, Option<Vec<u8>>)>>;

fn sent() -> impl Strategy<Value = Sent> {
    let records = prop::option::of(prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        (500usize..3000).prop_map(|len| vec![5; len]),
    ]);
    prop::collection::vec(prop::collection::vec((any::<i32>(), records), 0..4), 0..4)
}

fn produce_body(bytes: Bytes) -> produce::ProduceRequest {
    match decode_request(bytes.slice(4..)).unwrap().body {
        Body::Produce(body) => body,
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn produce_view_reads_what_kafka_protocol_writes(sent in sent(), acks in -1i16..2, transactional: bool) {
        for version in 3..=13 {
            let by_id = version >= 13;
            let data = sent.iter().enumerate().map(|(i, partitions)| {
                let partitions = partitions.iter().map(|(index, records)| {
                    PartitionProduceData::default().with_index(*index).with_records(records.clone().map(Bytes::from))
                });
                let data = TopicProduceData::default().with_partition_data(partitions.collect());
                match topic(i, by_id) {
                    TopicRef::Name(name) => data.with_name(TopicName(name)),
                    TopicRef::Id(id) => data.with_topic_id(id),
                }
            });
            let theirs = TheirProduce::default().with_acks(acks).with_timeout_ms(1234).with_topic_data(data.collect());
            let id = transactional.then(|| StrBytes::from_static_str("txn"));
            let theirs = theirs.with_transactional_id(id.clone().map(TransactionalId));
            let ours = produce_body(encode_request(version, 1, Some("c"), &theirs).unwrap());
            prop_assert_eq!((ours.acks, ours.timeout_ms, &ours.transactional_id), (acks, 1234, &id));
            let expected: Vec<produce::Partition> = sent.iter().enumerate().flat_map(|(ordinal, partitions)| {
                partitions.iter().map(move |(index, records)| produce::Partition {
                    topic: topic(ordinal, by_id),
                    topic_ordinal: ordinal,
                    index: *index,
                    records: records.clone().map(Bytes::from),
                })
            }).collect();
            prop_assert_eq!(ours.topic_count(), sent.len());
            prop_assert_eq!(ours.partition_count(), expected.len());
            let bytes: usize = expected.iter().filter_map(|p| p.records.as_ref()).map(Bytes::len).sum();
            prop_assert_eq!(ours.records_bytes(), bytes);
            prop_assert_eq!(ours.partitions().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn our_produce_is_byte_for_byte_kafka_protocols(sent in sent()) {
        for version in 3..=13 {
            let by_id = version >= 13;
            let topics: Vec<_> = sent.iter().enumerate().map(|(i, partitions)| {
                let partitions = partitions.iter().map(|(index, records)| (*index, Bytes::from(records.clone().unwrap_or_default())));
                (topic(i, by_id), partitions.collect::<Vec<_>>())
            }).collect();
            let data = topics.iter().map(|(topic, partitions)| {
                let partitions = partitions.iter().map(|(index, records)| {
                    PartitionProduceData::default().with_index(*index).with_records(Some(records.clone()))
                });
                let data = TopicProduceData::default().with_partition_data(partitions.collect());
                match topic {
                    TopicRef::Name(name) => data.with_name(TopicName(name.clone())),
                    TopicRef::Id(id) => data.with_topic_id(*id),
                }
            });
            let theirs = TheirProduce::default().with_acks(-1).with_timeout_ms(9).with_topic_data(data.collect());
            let theirs = encode_request(version, 3, Some("c"), &theirs).unwrap();
            let outgoing = Outgoing { acks: -1, timeout_ms: 9, transactional_id: None, topics: topics.clone() };
            let ours = produce::encode_request(version, 3, Some("c"), outgoing).unwrap();
            prop_assert_eq!(ours.len_bytes(), theirs.len());
            prop_assert_eq!(ours.into_bytes(), theirs);
        }
    }

    #[test]
    fn mutated_produce_never_panics(at in 0usize..200, value: u8, cut in 0usize..100, version in 3i16..=13) {
        let topics = vec![(topic(0, version >= 13), vec![(0, Bytes::from(vec![1; 60])), (1, Bytes::new())])];
        let outgoing = Outgoing { acks: 1, timeout_ms: 1, transactional_id: Some("t"), topics };
        let mut bytes = produce::encode_request(version, 0, None, outgoing).unwrap().into_bytes().slice(4..).to_vec();
        let at = 8 + at % (bytes.len() - 8);
        bytes[at] = value;
        bytes.truncate(bytes.len() - cut.min(bytes.len() - 8));
        if let Ok(Body::Produce(request)) = decode_request(bytes.into()).map(|request| request.body) {
            prop_assert_eq!(request.partitions().count(), request.partition_count());
        }
    }

    #[test]
    fn fetch_response_is_what_kafka_protocol_decodes(
        topics in prop::collection::vec(prop::collection::vec(partition(), 0..4), 0..3),
        session_id: i32, endpoints in 0usize..3,
    ) {
        for version in 4..=18 {
            let response = FetchResponse {
                throttle_time_ms: 11,
                error: ErrorCode::None,
                session_id,
                topics: topics.iter().enumerate().map(|(i, partitions)| FetchTopic {
                    topic: topic(i, version >= 13),
                    partitions: partitions.iter().map(|case| case.partition.clone()).collect(),
                }).collect(),
                node_endpoints: (0..endpoints).map(|i| NodeEndpoint {
                    node_id: i as i32, host: name(i), port: 9092, rack: (i == 0).then(|| name(7)),
                }).collect(),
            };
            let segments = response.encode(version, 77).unwrap();
            let len_bytes = segments.len_bytes();
            let bytes = segments.into_bytes();
            prop_assert_eq!(bytes.len(), len_bytes);
            prop_assert_eq!(i32::from_be_bytes(*bytes.first_chunk().unwrap()) as usize, len_bytes - 4);
            prop_assert_eq!(response::response_correlation_id(&bytes[4..]), Ok(77));
            let theirs = decode_response::<FetchRequest>(version, bytes.slice(4..)).unwrap();
            check_fetch(version, session_id, endpoints, &topics, &theirs)?;
            // Encoding theirs again gives our bytes: nothing is missing and nothing is behind.
            let again = response::encode_response(isobar_protocol::api::ApiKey::Fetch, version, 77, &theirs).unwrap();
            prop_assert_eq!(again, bytes);
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    partition: FetchPartition,
    records: Vec<u8>,
}

fn partition() -> impl Strategy<Value = Case> {
    let tags = (any::<bool>(), any::<bool>());
    let aborted = prop::option::of(prop::collection::vec((any::<i64>(), any::<i64>()), 0..3));
    (
        any::<i32>(),
        any::<(i64, i64, i64)>(),
        aborted,
        tags,
        prop::collection::vec((10usize..1200, any::<bool>()), 0..4),
    )
        .prop_map(
            |(
                index,
                (high_watermark, last_stable_offset, log_start_offset),
                aborted,
                (leader, diverging),
                batches,
            )| {
                let mut partition = FetchPartition::failed(index, ErrorCode::None);
                (partition.high_watermark, partition.last_stable_offset) =
                    (high_watermark, last_stable_offset);
                partition.log_start_offset = log_start_offset;
                partition.aborted = aborted.map(|list| {
                    list.iter()
                        .map(|&(producer_id, first_offset)| AbortedTransaction { producer_id, first_offset })
                        .collect()
                });
                partition.current_leader =
                    leader.then_some(LeaderIdAndEpoch { leader_id: 3, leader_epoch: 4 });
                partition.diverging_epoch = diverging.then_some(EpochEndOffset { epoch: 1, end_offset: 2 });
                let mut expected = Vec::new();
                for (i, (len, stamped)) in batches.into_iter().enumerate() {
                    let mut builder = BatchBuilder::new(Codec::None);
                    builder.push(1, None, Some(&vec![i as u8; len]), &[] as &[(&str, _)]);
                    let batch = builder.build().unwrap();
                    if stamped {
                        let header = BatchHeader::parse(&batch).unwrap();
                        expected.extend_from_slice(&header.stamp(1000, 6));
                        expected.extend_from_slice(&batch[16..]);
                        partition.records.push_stamped(batch, &header, 1000, 6);
                    } else {
                        expected.extend_from_slice(&batch);
                        partition.records.push(batch);
                    }
                }
                assert_eq!(partition.records.len_bytes(), expected.len());
                Case { partition, records: expected }
            },
        )
}

fn check_fetch(
    version: i16,
    session_id: i32,
    endpoints: usize,
    topics: &[Vec<Case>],
    theirs: &messages::FetchResponse,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(theirs.throttle_time_ms, 11);
    prop_assert_eq!(theirs.session_id, if version >= 7 { session_id } else { 0 });
    prop_assert_eq!(theirs.node_endpoints.len(), if version >= 16 { endpoints } else { 0 });
    prop_assert_eq!(theirs.responses.len(), topics.len());
    for (i, (response, partitions)) in theirs.responses.iter().zip(topics).enumerate() {
        match topic(i, version >= 13) {
            TopicRef::Name(name) => prop_assert_eq!(&*response.topic, &name),
            TopicRef::Id(id) => prop_assert_eq!(response.topic_id, id),
        }
        prop_assert_eq!(response.partitions.len(), partitions.len());
        for (read, Case { partition, records }) in response.partitions.iter().zip(partitions) {
            prop_assert_eq!((read.partition_index, read.error_code), (partition.index, 0));
            prop_assert_eq!(
                (read.high_watermark, read.last_stable_offset),
                (partition.high_watermark, partition.last_stable_offset)
            );
            prop_assert_eq!(
                read.log_start_offset,
                if version >= 5 { partition.log_start_offset } else { -1 }
            );
            prop_assert_eq!(read.records.as_deref(), Some(&records[..]));
            let aborted = read.aborted_transactions.as_ref().map(|list| {
                list.iter()
                    .map(|t| AbortedTransaction { producer_id: *t.producer_id, first_offset: t.first_offset })
                    .collect()
            });
            prop_assert_eq!(&aborted, &partition.aborted);
            let leader = (version >= 12).then_some(partition.current_leader).flatten();
            let leader = leader.map_or((-1, -1), |leader| (leader.leader_id, leader.leader_epoch));
            prop_assert_eq!((*read.current_leader.leader_id, read.current_leader.leader_epoch), leader);
            let diverging = (version >= 12).then_some(partition.diverging_epoch).flatten();
            let diverging = diverging.map_or((-1, -1), |end| (end.epoch, end.end_offset));
            prop_assert_eq!((read.diverging_epoch.epoch, read.diverging_epoch.end_offset), diverging);
        }
    }
    Ok(())
}

#[test]
fn a_topic_named_the_wrong_way_is_an_error() {
    let response = |topic| FetchResponse {
        topics: vec![FetchTopic { topic, partitions: vec![] }],
        ..Default::default()
    };
    assert!(response(topic(0, true)).encode(12, 0).is_err());
    assert!(response(topic(0, false)).encode(13, 0).is_err());
    let failed = FetchResponse { error: ErrorCode::FetchSessionIdNotFound, ..Default::default() };
    let bytes = failed.encode(17, 5).unwrap().into_bytes();
    let theirs = decode_response::<FetchRequest>(17, bytes.slice(4..)).unwrap();
    assert_eq!(theirs.error_code, ErrorCode::FetchSessionIdNotFound.code());
}

#[test]
fn large_batches_stay_where_they_are() {
    let big = Bytes::from(vec![1; 100_000]);
    let mut partition = FetchPartition::failed(0, ErrorCode::None);
    partition.records.push(big.clone());
    let response = FetchResponse {
        topics: vec![FetchTopic { topic: topic(0, false), partitions: vec![partition] }],
        ..Default::default()
    };
    let segments = response.encode(12, 0).unwrap();
    assert!(segments.parts().iter().any(|part| part.as_ptr() == big.as_ptr()));

    let outgoing = Outgoing {
        acks: 1,
        timeout_ms: 1,
        transactional_id: None,
        topics: vec![(topic(0, false), vec![(0, big)])],
    };
    let frame = produce::encode_request(9, 0, None, outgoing).unwrap().into_bytes();
    let request = produce_body(frame.clone());
    let records = request.partitions().next().unwrap().records.unwrap();
    assert!(frame.as_ptr_range().contains(&records.as_ptr()), "records are a slice of the frame");
}
