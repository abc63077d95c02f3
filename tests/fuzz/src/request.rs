//! One request of every API and version: valid ones with lies told about them, and noise behind a valid header.
//!
//! Promises: decoding allocates at most 64 KiB and 64 bytes for each byte of the frame; what the walk accepts, the decoder
//! accepts; what was decoded encodes, and decodes to the same; a Produce request is what kafka-protocol reads in it,
//! and its records are slices of the frame.

use bytes::{Bytes, BytesMut};
use isobar_protocol::api::ApiKey;
use isobar_protocol::produce::ProduceRequest;
use isobar_protocol::request::{Body, DecodeError, decode_request};
use isobar_protocol::{Decodable, Encodable, TopicRef, messages};

use crate::edit::edit;
use crate::input::Input;
use crate::{peak_of, samples};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mode = input.u8();
    let mut frame = if mode & 1 == 0 {
        let samples = samples::requests();
        let sample = input.u16() as usize % samples.len();
        let mut frame = samples[sample].2.to_vec();
        edit(&mut frame, 8, &mut input);
        frame
    } else {
        let api = input.pick(ApiKey::ALL);
        let versions = api.versions();
        let version = versions.min + (input.u8() as i16) % (versions.max - versions.min + 1);
        // No client id, and an empty tag section, or the first byte of the body.
        let head =
            [&api.key().to_be_bytes()[..], &version.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff, 0]].concat();
        [&head[..], input.rest()].concat()
    };
    frame.truncate(1 << 16);
    check(frame.into());
}

fn check(frame: Bytes) {
    let allowed_bytes = 64 * 1024 + 64 * frame.len();
    let (decoded, peak) = peak_of(|| decode_request(frame.clone()));
    assert!(peak <= allowed_bytes, "{peak} bytes for a frame of {}: {decoded:?}", frame.len());
    let request = match decoded {
        Ok(request) => request,
        Err(DecodeError::Undecodable { reason, .. }) => panic!("walked and not decoded: {reason}"),
        Err(error) => {
            let _ = error.to_string();
            return;
        }
    };
    let version = request.header.version;
    if let Body::Produce(produce) = &request.body {
        return check_produce(produce, &frame, version);
    }
    // kafka-protocol counts unknown tags beyond 2^31 and does not write them; nothing here encodes what a client sent.
    if format!("{:?}", request.body).contains("unknown_tagged_fields: {-") {
        return;
    }
    let Some(encoded) = encode(&request.body, version) else { return };
    let head_bytes = samples::header(request.header.api, version);
    let again = [&head_bytes[..], &encoded].concat();
    let again = decode_request(again.into()).expect("what was encoded decodes");
    assert_eq!(again.body, request.body, "encoding lost something");
}

macro_rules! encode_each {
    ($($api:ident),* $(,)?) => {
        /// `None` for the two that have no encoder.
        fn encode(body: &Body, version: i16) -> Option<BytesMut> {
            match body {
                $(Body::$api(body) => Some(encode_one(body, version)),)*
                _ => None,
            }
        }
    };
}

encode_each!(
    Fetch,
    ListOffsets,
    Metadata,
    OffsetCommit,
    OffsetFetch,
    FindCoordinator,
    JoinGroup,
    Heartbeat,
    LeaveGroup,
    SyncGroup,
    DescribeGroups,
    ListGroups,
    ApiVersions,
    CreateTopics,
    DeleteTopics,
    InitProducerId,
    OffsetForLeaderEpoch,
    DescribeConfigs,
    CreatePartitions,
    DeleteGroups,
    IncrementalAlterConfigs,
    DescribeCluster,
);

fn encode_one<R: Encodable>(body: &R, version: i16) -> BytesMut {
    let mut out = BytesMut::new();
    body.encode(&mut out, version).expect("what was decoded encodes");
    assert_eq!(out.len(), body.compute_size(version).expect("its size"));
    out
}

fn check_produce(ours: &ProduceRequest, frame: &Bytes, version: i16) {
    let inside = |bytes: &[u8]| {
        frame.as_ptr_range().start <= bytes.as_ptr() && bytes.as_ptr_range().end <= frame.as_ptr_range().end
    };
    let (mut partitions, mut topics, mut records_bytes, mut last) = (0, 0, 0, usize::MAX);
    let mut seen = Vec::new();
    for partition in ours.partitions() {
        partitions += 1;
        if partition.topic_ordinal != last {
            assert!(partition.topic_ordinal >= topics);
            last = partition.topic_ordinal;
            topics = last + 1;
        }
        if let Some(records) = &partition.records {
            assert!(records.is_empty() || inside(records), "records were copied");
            records_bytes += records.len();
        }
        seen.push((partition.topic, partition.index, partition.records));
    }
    assert_eq!((partitions, records_bytes), (ours.partition_count(), ours.records_bytes()));
    assert!(topics <= ours.topic_count());

    // The header's end is where kafka-protocol goes on: what it reads must be the same.
    let Some(mut body) = samples::body_of(ApiKey::Produce, version, frame) else { return };
    let theirs = messages::ProduceRequest::decode(&mut body, version).expect("kafka-protocol reads it too");
    assert_eq!((theirs.acks, theirs.timeout_ms), (ours.acks, ours.timeout_ms));
    let mut expected = Vec::new();
    for topic in &theirs.topic_data {
        for partition in &topic.partition_data {
            let name = if version >= 13 {
                TopicRef::Id(topic.topic_id)
            } else {
                TopicRef::Name(topic.name.0.clone())
            };
            expected.push((name, partition.index, partition.records.clone()));
        }
    }
    assert_eq!(seen, expected);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let count = samples::requests().len() as u16;
    let mut seeds: Vec<Vec<u8>> =
        (0..count).map(|n| [&[0][..], &n.to_le_bytes(), &[4, 20, 0, 1]].concat()).collect();
    for (index, api) in ApiKey::ALL.iter().enumerate() {
        let versions = api.versions();
        for version in [0, versions.max - versions.min] {
            seeds.push(vec![1, index as u8, version as u8, 0, 0, 0, 1, 0, 1, b'a', 2, 2, b'b', 0, 0, 0, 0]);
        }
    }
    seeds
}
