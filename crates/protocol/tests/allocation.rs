//! No request makes the decoder allocate more than a small multiple of its own length, whatever its counts say. Counted by
//! an allocator, on valid requests in which every position in turn is overwritten by hostile lengths, and on noise.

#![allow(unsafe_code, reason = "a counting allocator")]
#![allow(clippy::unwrap_used, reason = "helpers of tests, where a failure is the finding")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use isobar_protocol::api::ApiKey;
use isobar_protocol::messages::*;
use isobar_protocol::request::decode_request;
use isobar_protocol::response::encode_request;
use isobar_protocol::{KafkaRequest, StrBytes};
use proptest::prelude::*;

struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    NOW.set(NOW.get() + bytes);
    PEAK.set(PEAK.get().max(NOW.get()));
}

// SAFETY: hands every call on to the system allocator unchanged; the counters are plain thread-local cells without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 64 KiB, and 64 bytes for each byte of the frame.
fn assert_bounded(frame: Bytes) -> Result<(), TestCaseError> {
    let allowed = 64 * 1024 + 64 * frame.len() as isize;
    let before = NOW.get();
    PEAK.set(before);
    let decoded = decode_request(frame.clone());
    let peak = PEAK.get() - before;
    prop_assert!(peak <= allowed, "{} bytes for a frame of {}: {:?}", peak, frame.len(), decoded.is_ok());
    Ok(())
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// One request with every array filled, of each API that has one, in every version that can say it.
fn samples() -> Vec<Bytes> {
    let mut out = Vec::new();
    let topics = |n: usize| (0..n).map(|i| TopicName(text(&format!("topic-{i}")))).collect::<Vec<_>>();
    let fetch_topic = fetch_request::FetchTopic::default()
        .with_topic(topics(1).remove(0))
        .with_partitions(vec![fetch_request::FetchPartition::default(); 3]);
    every_version(&mut out, &FetchRequest::default().with_topics(vec![fetch_topic; 2]));
    let list = list_offsets_request::ListOffsetsTopic::default()
        .with_partitions(vec![list_offsets_request::ListOffsetsPartition::default(); 3]);
    every_version(&mut out, &ListOffsetsRequest::default().with_topics(vec![list; 2]));
    let names = topics(3)
        .into_iter()
        .map(|name| metadata_request::MetadataRequestTopic::default().with_name(Some(name)));
    every_version(&mut out, &MetadataRequest::default().with_topics(Some(names.collect())));
    let commit = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_partitions(vec![offset_commit_request::OffsetCommitRequestPartition::default(); 3]);
    every_version(&mut out, &OffsetCommitRequest::default().with_topics(vec![commit; 2]));
    let old = offset_fetch_request::OffsetFetchRequestTopic::default().with_partition_indexes(vec![1; 3]);
    every_version(&mut out, &OffsetFetchRequest::default().with_topics(Some(vec![old; 2])));
    let new = offset_fetch_request::OffsetFetchRequestTopics::default().with_partition_indexes(vec![1; 3]);
    let group = offset_fetch_request::OffsetFetchRequestGroup::default().with_topics(Some(vec![new; 2]));
    every_version(&mut out, &OffsetFetchRequest::default().with_groups(vec![group; 2]));
    every_version(&mut out, &FindCoordinatorRequest::default().with_coordinator_keys(vec![text("group"); 3]));
    let protocol =
        join_group_request::JoinGroupRequestProtocol::default().with_metadata(Bytes::from_static(&[3; 20]));
    every_version(&mut out, &JoinGroupRequest::default().with_protocols(vec![protocol; 3]));
    let assignment = sync_group_request::SyncGroupRequestAssignment::default()
        .with_assignment(Bytes::from_static(&[3; 20]));
    every_version(&mut out, &SyncGroupRequest::default().with_assignments(vec![assignment; 3]));
    let member = leave_group_request::MemberIdentity::default().with_member_id(text("member"));
    every_version(&mut out, &LeaveGroupRequest::default().with_members(vec![member; 3]));
    every_version(&mut out, &DescribeGroupsRequest::default().with_groups(vec![GroupId(text("group")); 3]));
    every_version(
        &mut out,
        &DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text("group")); 3]),
    );
    every_version(&mut out, &ListGroupsRequest::default().with_states_filter(vec![text("Stable"); 3]));
    let replicas =
        create_topics_request::CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1); 3]);
    let topic = create_topics_request::CreatableTopic::default()
        .with_assignments(vec![replicas; 2])
        .with_configs(vec![create_topics_request::CreatableTopicConfig::default(); 2]);
    every_version(&mut out, &CreateTopicsRequest::default().with_topics(vec![topic; 2]));
    every_version(&mut out, &DeleteTopicsRequest::default().with_topic_names(topics(3)));
    let state = delete_topics_request::DeleteTopicState::default();
    every_version(&mut out, &DeleteTopicsRequest::default().with_topics(vec![state; 3]));
    let records = delete_records_request::DeleteRecordsTopic::default()
        .with_partitions(vec![delete_records_request::DeleteRecordsPartition::default(); 3]);
    every_version(&mut out, &DeleteRecordsRequest::default().with_topics(vec![records; 2]));
    let epochs = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
        .with_partitions(vec![offset_for_leader_epoch_request::OffsetForLeaderPartition::default(); 3]);
    every_version(&mut out, &OffsetForLeaderEpochRequest::default().with_topics(vec![epochs; 2]));
    let resource = describe_configs_request::DescribeConfigsResource::default()
        .with_configuration_keys(Some(vec![text("retention.ms"); 3]));
    every_version(&mut out, &DescribeConfigsRequest::default().with_resources(vec![resource; 2]));
    let brokers = create_partitions_request::CreatePartitionsAssignment::default()
        .with_broker_ids(vec![BrokerId(1); 3]);
    let more =
        create_partitions_request::CreatePartitionsTopic::default().with_assignments(Some(vec![brokers; 2]));
    every_version(&mut out, &CreatePartitionsRequest::default().with_topics(vec![more; 2]));
    let alter = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_configs(vec![incremental_alter_configs_request::AlterableConfig::default(); 3]);
    every_version(&mut out, &IncrementalAlterConfigsRequest::default().with_resources(vec![alter; 2]));
    let data = produce_request::TopicProduceData::default().with_partition_data(vec![
            produce_request::PartitionProduceData::default().with_records(Some(Bytes::from_static(&[1; 9])));
            3
        ]);
    every_version(&mut out, &ProduceRequest::default().with_topic_data(vec![data; 2]));
    out
}

fn every_version<R: KafkaRequest>(out: &mut Vec<Bytes>, request: &R) {
    let versions = ApiKey::from_wire(R::KEY).unwrap().versions();
    let encoded = (versions.min..=versions.max)
        .filter_map(|version| encode_request(version, 1, Some("c"), request).ok());
    let before = out.len();
    out.extend(encoded.map(|bytes| bytes.slice(4..)));
    assert!(out.len() > before, "{} in no version", std::any::type_name::<R>());
}

#[test]
fn hostile_lengths_at_every_position() {
    const HOSTILE: [&[u8]; 7] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0x80, 0x80, 0x80, 0x04],
        &[0, 1, 0, 0],
        &[0x7f, 0xff],
        &[0xff],
        &[0x7f],
    ];
    let (mut frames, mut decoded) = (0, 0);
    for sample in samples() {
        decode_request(sample.clone()).unwrap();
        for at in 4..sample.len() {
            for hostile in HOSTILE {
                let mut bytes = sample.to_vec();
                let n = hostile.len().min(bytes.len() - at);
                bytes[at..at + n].copy_from_slice(&hostile[..n]);
                decoded += usize::from(decode_request(Bytes::copy_from_slice(&bytes)).is_ok());
                assert_bounded(bytes.into()).unwrap();
                frames += 1;
            }
        }
    }
    assert!(frames > 50_000 && decoded > 1_000, "{frames} frames, {decoded} decoded");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn noise(api in 0usize..ApiKey::ALL.len(), version in 0i16..19, noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let api = ApiKey::ALL[api];
        let version = version.clamp(api.versions().min, api.versions().max);
        let mut bytes = [&api.key().to_be_bytes()[..], &version.to_be_bytes(), &[0; 4], &[0xff, 0xff], &[0]].concat();
        bytes.extend_from_slice(&noise);
        assert_bounded(bytes.into())?;
    }
}

/// Honest in its counts and still too much: each empty string is one byte here and 32 decoded.
#[test]
fn three_million_empty_strings() {
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![StrBytes::new(); 3_000_000]);
    let frame = encode_request(4, 1, None, &request).unwrap().slice(4..);
    let before = NOW.get();
    PEAK.set(before);
    let refused = decode_request(frame).unwrap_err();
    assert!(PEAK.get() - before < 1 << 16, "{refused} came too late");
}

#[test]
fn the_counter_counts() {
    let before = NOW.get();
    PEAK.set(before);
    drop(Vec::<u8>::with_capacity(1 << 20));
    assert!(PEAK.get() - before >= 1 << 20);
}
