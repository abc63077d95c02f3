//! Fetch responses: written by our own encoder, read by kafka-protocol, as the client does.
//!
//! Promise: in every version, what was put in comes out, record bytes included.

use bytes::Bytes;
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::{
    AbortedTransaction, EpochEndOffset, FetchPartition, FetchResponse, FetchTopic, LeaderIdAndEpoch,
    NodeEndpoint, RecordSet,
};
use isobar_protocol::messages::{self, FetchRequest};
use isobar_protocol::response::{decode_response, response_correlation_id};
use isobar_protocol::{TopicRef, Uuid};

use crate::input::Input;
use crate::samples::{self, text};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let version = 4 + input.below(15) as i16;
    let correlation_id = input.u32().cast_signed();
    let response = response(&mut input, version);
    let expected = response.clone();
    let segments = response.encode(version, correlation_id).expect("its version can say it");
    let len_bytes = segments.len_bytes();
    let bytes = segments.into_bytes();
    assert_eq!(bytes.len(), len_bytes);
    assert_eq!(bytes[..4], (len_bytes as u32 - 4).to_be_bytes());
    let frame = bytes.slice(4..);
    assert_eq!(response_correlation_id(&frame), Ok(correlation_id));
    let read = decode_response::<FetchRequest>(version, frame).expect("kafka-protocol reads it");
    compare(&expected, &read, version);
}

fn response(input: &mut Input<'_>, version: i16) -> FetchResponse {
    let mut topics = Vec::new();
    for _ in 0..input.below(4) {
        let topic = if version >= 13 {
            TopicRef::Id(Uuid::from_u128(u128::from(input.u64())))
        } else {
            TopicRef::Name(text(&"t".repeat(usize::from(input.u8()))))
        };
        let partitions = (0..input.below(4)).map(|_| partition(input)).collect();
        topics.push(FetchTopic { topic, partitions });
    }
    let endpoint = |input: &mut Input<'_>| NodeEndpoint {
        node_id: input.u32().cast_signed(),
        host: text("host"),
        port: 9092,
        rack: input.bool().then(|| text("rack")),
    };
    FetchResponse {
        throttle_time_ms: input.u32().cast_signed(),
        error: ErrorCode::from_i16(i16::from(input.u8())),
        session_id: input.u32().cast_signed(),
        topics,
        node_endpoints: (0..input.below(3)).map(|_| endpoint(input)).collect(),
    }
}

fn partition(input: &mut Input<'_>) -> FetchPartition {
    let flags = input.u8();
    let mut partition = FetchPartition::failed(input.u32().cast_signed(), ErrorCode::None);
    partition.high_watermark = input.u64().cast_signed();
    partition.last_stable_offset = input.u64().cast_signed();
    partition.log_start_offset = i64::from(input.u32());
    partition.preferred_read_replica = i32::from(input.u8()) - 1;
    if flags & 1 == 1 {
        let aborted = AbortedTransaction { producer_id: i64::from(input.u32()), first_offset: 9 };
        partition.aborted = Some(vec![aborted; input.below(3)]);
    }
    if flags & 2 == 2 {
        partition.current_leader =
            Some(LeaderIdAndEpoch { leader_id: 3, leader_epoch: i32::from(input.u8()) });
    }
    if flags & 4 == 4 {
        partition.diverging_epoch = Some(EpochEndOffset { epoch: 1, end_offset: i64::from(input.u8()) });
    }
    for part in 0..usize::from(flags >> 3) % 4 {
        match input.below(3) {
            0 => partition.records.push(Bytes::copy_from_slice(&input.sized().unwrap_or_default())),
            // Longer than what the encoder copies.
            1 => partition.records.push(vec![part as u8; 4000].into()),
            _ => {
                let batch = samples::batch(Codec::None, 1 + 10 * (part % 2));
                let header = BatchHeader::parse(&batch).expect("a batch");
                partition.records.push_stamped(
                    batch,
                    &header,
                    i64::from(input.u8()),
                    i32::from(input.u8()) - 1,
                );
            }
        }
    }
    partition
}

fn compare(sent: &FetchResponse, read: &messages::FetchResponse, version: i16) {
    assert_eq!(sent.throttle_time_ms, read.throttle_time_ms);
    if version >= 7 {
        assert_eq!((sent.error.code(), sent.session_id), (read.error_code, read.session_id));
    }
    assert_eq!(sent.topics.len(), read.responses.len());
    for (sent, read) in sent.topics.iter().zip(&read.responses) {
        match &sent.topic {
            TopicRef::Name(name) => assert_eq!(*name, read.topic.0),
            TopicRef::Id(id) => assert_eq!(*id, read.topic_id),
        }
        assert_eq!(sent.partitions.len(), read.partitions.len());
        for (sent, read) in sent.partitions.iter().zip(&read.partitions) {
            compare_partition(sent, read, version);
        }
    }
    if version >= 16 {
        let endpoints: Vec<_> = read
            .node_endpoints
            .iter()
            .map(|e| (e.node_id.0, e.host.clone(), e.port, e.rack.clone()))
            .collect();
        let expected: Vec<_> =
            sent.node_endpoints.iter().map(|e| (e.node_id, e.host.clone(), e.port, e.rack.clone())).collect();
        assert_eq!(endpoints, expected);
    }
}

fn compare_partition(sent: &FetchPartition, read: &messages::fetch_response::PartitionData, version: i16) {
    assert_eq!((sent.index, sent.error.code()), (read.partition_index, read.error_code));
    assert_eq!(
        (sent.high_watermark, sent.last_stable_offset),
        (read.high_watermark, read.last_stable_offset)
    );
    if version >= 5 {
        assert_eq!(sent.log_start_offset, read.log_start_offset);
    }
    if version >= 11 {
        assert_eq!(sent.preferred_read_replica, read.preferred_read_replica.0);
    }
    let aborted: Option<Vec<_>> = read
        .aborted_transactions
        .as_ref()
        .map(|list| list.iter().map(|one| (one.producer_id.0, one.first_offset)).collect());
    let expected: Option<Vec<_>> = sent
        .aborted
        .as_ref()
        .map(|list| list.iter().map(|one| (one.producer_id, one.first_offset)).collect());
    assert_eq!(aborted, expected);
    if version >= 12 {
        let leader = sent.current_leader.unwrap_or(LeaderIdAndEpoch { leader_id: -1, leader_epoch: -1 });
        assert_eq!(
            (leader.leader_id, leader.leader_epoch),
            (read.current_leader.leader_id.0, read.current_leader.leader_epoch)
        );
        let end = sent.diverging_epoch.unwrap_or(EpochEndOffset { epoch: -1, end_offset: -1 });
        assert_eq!(
            (end.epoch, end.end_offset),
            (read.diverging_epoch.epoch, read.diverging_epoch.end_offset)
        );
    }
    let records: &RecordSet = &sent.records;
    assert_eq!(records.to_bytes().len(), records.len_bytes());
    assert_eq!(records.to_bytes(), read.records.clone().unwrap_or_default());
}

pub fn seeds() -> Vec<Vec<u8>> {
    (0..15).map(|version| [&[version, 1, 2, 3, 4, 2, 8][..], &[0xfb; 90]].concat()).collect()
}
