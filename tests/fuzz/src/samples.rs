//! Valid requests and batches to begin with.

use std::sync::OnceLock;

use bytes::Bytes;
use isobar_protocol::api::ApiKey;
use isobar_protocol::compression::Codec;
use isobar_protocol::messages::*;
use isobar_protocol::records::BatchBuilder;
use isobar_protocol::response::encode_request;
use isobar_protocol::{Decodable, HeaderVersion, KafkaRequest, StrBytes};

use crate::input::Input;

pub(crate) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

type Sample = (ApiKey, i16, Bytes);

/// Frames without their length: each API in every version, with its arrays empty and, where it has any, filled.
pub(crate) fn requests() -> &'static [Sample] {
    static SAMPLES: OnceLock<Vec<Sample>> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let mut out = Vec::new();
        defaults(&mut out);
        filled_reads(&mut out);
        filled_groups(&mut out);
        filled_admin(&mut out);
        out
    })
}

fn every_version<R: KafkaRequest>(out: &mut Vec<Sample>, request: &R) {
    let api = ApiKey::from_wire(R::KEY).expect("served");
    let versions = api.versions();
    for version in versions.min..=versions.max {
        // Fields that a version does not have make it unable to say this.
        if let Ok(framed) = encode_request(version, 7, Some("fuzz"), request) {
            out.push((api, version, framed.slice(4..)));
        }
    }
}

fn defaults(out: &mut Vec<Sample>) {
    macro_rules! each {
        ($($request:ty),* $(,)?) => { $(every_version(out, &<$request>::default());)* };
    }
    each!(
        ProduceRequest,
        FetchRequest,
        ListOffsetsRequest,
        MetadataRequest,
        OffsetCommitRequest,
        OffsetFetchRequest,
        FindCoordinatorRequest,
        JoinGroupRequest,
        HeartbeatRequest,
        LeaveGroupRequest,
        SyncGroupRequest,
        DescribeGroupsRequest,
        ListGroupsRequest,
        ApiVersionsRequest,
        CreateTopicsRequest,
        DeleteTopicsRequest,
        InitProducerIdRequest,
        OffsetForLeaderEpochRequest,
        DescribeConfigsRequest,
        CreatePartitionsRequest,
        DeleteGroupsRequest,
        IncrementalAlterConfigsRequest,
        DescribeClusterRequest,
    );
}

fn filled_reads(out: &mut Vec<Sample>) {
    let names = |n: usize| (0..n).map(|i| TopicName(text(&format!("topic-{i}")))).collect::<Vec<_>>();
    let fetch = fetch_request::FetchTopic::default()
        .with_topic(names(1).remove(0))
        .with_partitions(vec![fetch_request::FetchPartition::default(); 2]);
    every_version(out, &FetchRequest::default().with_topics(vec![fetch; 2]));
    let list = list_offsets_request::ListOffsetsTopic::default()
        .with_partitions(vec![list_offsets_request::ListOffsetsPartition::default(); 2]);
    every_version(out, &ListOffsetsRequest::default().with_topics(vec![list; 2]));
    let topics = names(2)
        .into_iter()
        .map(|name| metadata_request::MetadataRequestTopic::default().with_name(Some(name)));
    every_version(out, &MetadataRequest::default().with_topics(Some(topics.collect())));
    let epochs = offset_for_leader_epoch_request::OffsetForLeaderTopic::default()
        .with_partitions(vec![offset_for_leader_epoch_request::OffsetForLeaderPartition::default(); 2]);
    every_version(out, &OffsetForLeaderEpochRequest::default().with_topics(vec![epochs; 2]));
    let partition = |index| {
        produce_request::PartitionProduceData::default()
            .with_index(index)
            .with_records(Some(batch(Codec::None, 2)))
    };
    let named = produce_request::TopicProduceData::default()
        .with_name(names(1).remove(0))
        .with_partition_data(vec![partition(0), partition(1)]);
    every_version(out, &ProduceRequest::default().with_acks(-1).with_topic_data(vec![named]));
    let by_id =
        produce_request::TopicProduceData::default().with_partition_data(vec![partition(0), partition(1)]);
    every_version(out, &ProduceRequest::default().with_acks(1).with_topic_data(vec![by_id; 2]));
}

fn filled_groups(out: &mut Vec<Sample>) {
    let commit = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_partitions(vec![offset_commit_request::OffsetCommitRequestPartition::default(); 2]);
    every_version(out, &OffsetCommitRequest::default().with_topics(vec![commit; 2]));
    let old = offset_fetch_request::OffsetFetchRequestTopic::default().with_partition_indexes(vec![1; 2]);
    every_version(out, &OffsetFetchRequest::default().with_topics(Some(vec![old; 2])));
    let new = offset_fetch_request::OffsetFetchRequestTopics::default().with_partition_indexes(vec![1; 2]);
    let group = offset_fetch_request::OffsetFetchRequestGroup::default().with_topics(Some(vec![new; 2]));
    every_version(out, &OffsetFetchRequest::default().with_groups(vec![group; 2]));
    every_version(out, &FindCoordinatorRequest::default().with_coordinator_keys(vec![text("group"); 2]));
    let protocol =
        join_group_request::JoinGroupRequestProtocol::default().with_metadata(Bytes::from_static(&[3; 9]));
    every_version(out, &JoinGroupRequest::default().with_protocols(vec![protocol; 2]));
    let assignment = sync_group_request::SyncGroupRequestAssignment::default()
        .with_assignment(Bytes::from_static(&[3; 9]));
    every_version(out, &SyncGroupRequest::default().with_assignments(vec![assignment; 2]));
    let member = leave_group_request::MemberIdentity::default().with_member_id(text("member"));
    every_version(out, &LeaveGroupRequest::default().with_members(vec![member; 2]));
    every_version(out, &DescribeGroupsRequest::default().with_groups(vec![GroupId(text("group")); 2]));
    every_version(out, &DeleteGroupsRequest::default().with_groups_names(vec![GroupId(text("group")); 2]));
    every_version(out, &ListGroupsRequest::default().with_states_filter(vec![text("Stable"); 2]));
}

fn filled_admin(out: &mut Vec<Sample>) {
    let replicas =
        create_topics_request::CreatableReplicaAssignment::default().with_broker_ids(vec![BrokerId(1); 2]);
    let topic = create_topics_request::CreatableTopic::default()
        .with_assignments(vec![replicas; 2])
        .with_configs(vec![create_topics_request::CreatableTopicConfig::default(); 2]);
    every_version(out, &CreateTopicsRequest::default().with_topics(vec![topic; 2]));
    every_version(out, &DeleteTopicsRequest::default().with_topic_names(vec![TopicName(text("topic")); 2]));
    let state = delete_topics_request::DeleteTopicState::default();
    every_version(out, &DeleteTopicsRequest::default().with_topics(vec![state; 2]));
    let resource = describe_configs_request::DescribeConfigsResource::default()
        .with_configuration_keys(Some(vec![text("retention.ms"); 2]));
    every_version(out, &DescribeConfigsRequest::default().with_resources(vec![resource; 2]));
    let brokers =
        create_partitions_request::CreatePartitionsAssignment::default().with_broker_ids(vec![BrokerId(1)]);
    let more =
        create_partitions_request::CreatePartitionsTopic::default().with_assignments(Some(vec![brokers; 2]));
    every_version(out, &CreatePartitionsRequest::default().with_topics(vec![more; 2]));
    let alter = incremental_alter_configs_request::AlterConfigsResource::default()
        .with_configs(vec![incremental_alter_configs_request::AlterableConfig::default(); 2]);
    every_version(out, &IncrementalAlterConfigsRequest::default().with_resources(vec![alter; 2]));
}

/// A request header as a client writes it.
pub(crate) fn header(api: ApiKey, version: i16) -> Vec<u8> {
    let mut out = [&api.key().to_be_bytes()[..], &version.to_be_bytes(), &[0, 0, 0, 7, 0xff, 0xff]].concat();
    if api.is_flexible(version) {
        out.push(0);
    }
    out
}

/// The body of a frame whose header kafka-protocol reads.
pub(crate) fn body_of(api: ApiKey, version: i16, frame: &Bytes) -> Option<Bytes> {
    let header_version = match api {
        ApiKey::Produce => ProduceRequest::header_version(version),
        _ => return None,
    };
    let mut body = frame.clone();
    RequestHeader::decode(&mut body, header_version).ok()?;
    Some(body)
}

/// A batch of a few records.
pub(crate) fn batch(codec: Codec, records: usize) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for n in 0..records {
        let header = ("header", Some(&[n as u8][..]));
        builder.push(1_700_000_000_000 + n as i64, Some(b"key"), Some(&[b'v'; 24]), &[header]);
    }
    builder.build().expect("a batch")
}

/// A batch as the input says.
pub(crate) fn built_batch(input: &mut Input<'_>) -> Bytes {
    let mut builder = BatchBuilder::new(input.pick(&Codec::ALL));
    let how = input.u8();
    if how & 1 == 1 {
        builder = builder.producer(i64::from(input.u16()), 0, i32::from(input.u8()));
    }
    for _ in 0..=usize::from(how >> 1) % 12 {
        let timestamp_ms = if how & 0x80 == 0 { i64::from(input.u32()) } else { input.u64().cast_signed() };
        let (key, value) = (input.sized(), input.sized());
        let name = input.sized().unwrap_or_default();
        let headers = vec![(name.clone(), Some(&name[..])); usize::from(how >> 5) % 3];
        builder.push(timestamp_ms, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build().expect("a batch")
}
