//! What the cluster looks like to a client: Metadata and DescribeCluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_metadata::record::SessionRecord;
use isobar_metadata::{Image, PartitionKey, Topic, TopicId, check_name};
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use isobar_protocol::messages::metadata_request::MetadataRequestTopic;
use isobar_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use isobar_protocol::messages::{
    BrokerId, DescribeClusterRequest, DescribeClusterResponse, MetadataRequest, MetadataResponse, TopicName,
};
use isobar_protocol::request::RequestHeader;

use crate::Broker;
use crate::topics;

/// "Not asked for" in the authorized operations fields.
const NO_OPERATIONS: i32 = i32::MIN;
/// First Metadata version whose request says whether topics may be created.
const ALLOW_CREATE_VERSION: i16 = 4;

/// How long a broker that died stays in the list of brokers.
const JUST_GONE_MS: i64 = 5_000;

/// First Metadata version that can answer without a name, and so the first to ask by id.
const BY_ID_VERSION: i16 = 12;

/// The zone a client is in: what its client id says (`zone=…`, up to the next comma), else this broker's own.
pub(crate) fn zone_of<'a>(broker: &'a Broker, client_id: Option<&'a str>) -> &'a str {
    let said = client_id
        .and_then(|id| id.split_once("zone="))
        .map(|(_, rest)| rest.split(',').next().unwrap_or(rest));
    said.or(broker.options.rack.as_deref()).unwrap_or("")
}

fn rack(session: &SessionRecord) -> Option<StrBytes> {
    (!session.zone.is_empty()).then(|| StrBytes::from_string(session.zone.clone()))
}

pub(crate) async fn metadata(
    broker: &Arc<Broker>,
    header: &RequestHeader,
    request: MetadataRequest,
) -> MetadataResponse {
    broker.doubts.settled(&broker.image).await;
    let zone = zone_of(broker, header.client_id.as_deref());
    let all = request.topics.is_none()
        || (header.version == 0 && request.topics.as_ref().is_some_and(Vec::is_empty));
    let topics = if asks_by_id_too_early(header.version, &request) {
        refuse_all(request.topics.unwrap_or_default())
    } else if all {
        broker.image.with(|image| image.topics().map(|topic| describe_topic(image, topic, zone)).collect())
    } else {
        let may_create = (header.version < ALLOW_CREATE_VERSION || request.allow_auto_topic_creation)
            && broker.options.auto_create_topics_enable;
        named(broker, request.topics.unwrap_or_default(), zone, may_create).await
    };
    let (brokers, cluster_id) = broker.image.with(|image| {
        let brokers = image.brokers().into_iter().chain(just_gone(image)).map(|session| {
            MetadataResponseBroker::default()
                .with_node_id(BrokerId(session.node_id))
                .with_host(StrBytes::from_string(session.host.clone()))
                .with_port(session.port)
                .with_rack(rack(session))
        });
        (brokers.collect(), image.format().cluster_id.clone())
    });
    MetadataResponse::default()
        .with_brokers(brokers)
        .with_cluster_id(Some(StrBytes::from_string(cluster_id)))
        .with_controller_id(BrokerId(broker.options.node_id))
        .with_topics(topics)
        .with_cluster_authorized_operations(NO_OPERATIONS)
}

/// Brokers that died a moment ago and have no successor. They lead nothing, but librdkafka (2.12) takes the partitions of a broker that
/// is missing from the list away from the new leader that the same answer names, until its timer asks again.
fn just_gone(image: &Image) -> impl Iterator<Item = &Arc<SessionRecord>> {
    let mut gone: BTreeMap<i32, &Arc<SessionRecord>> = BTreeMap::new();
    for session in image.sessions() {
        let is_recent = session.is_fenced() && image.time_ms() - session.fenced_ms < JUST_GONE_MS;
        if is_recent && image.broker(session.node_id).is_none() {
            gone.insert(session.node_id, session);
        }
    }
    gone.into_values()
}

/// Versions 10 and 11 have the field, but Kafka refuses to use it there.
fn asks_by_id_too_early(version: i16, request: &MetadataRequest) -> bool {
    let by_id = |topic: &MetadataRequestTopic| topic.name.is_none() || !topic.topic_id.is_nil();
    version < BY_ID_VERSION && request.topics.iter().flatten().any(by_id)
}

fn refuse_all(asked: Vec<MetadataRequestTopic>) -> Vec<MetadataResponseTopic> {
    let refuse = |topic: MetadataRequestTopic| {
        MetadataResponseTopic::default()
            .with_error_code(ErrorCode::InvalidRequest.code())
            .with_name(Some(topic.name.unwrap_or_default()))
            .with_topic_id(topic.topic_id)
            .with_topic_authorized_operations(NO_OPERATIONS)
    };
    asked.into_iter().map(refuse).collect()
}

/// The name asked for; `None` if the topic is asked for by id. (Java's Admin sends an empty name beside an id.)
fn name_of(topic: &MetadataRequestTopic) -> Option<&TopicName> {
    topic.name.as_ref().filter(|_| topic.topic_id.is_nil())
}

async fn named(
    broker: &Arc<Broker>,
    asked: Vec<MetadataRequestTopic>,
    zone: &str,
    may_create: bool,
) -> Vec<MetadataResponseTopic> {
    let find = |image: &Image, topic: &MetadataRequestTopic| match name_of(topic) {
        Some(name) => image.topic_by_name(name).cloned(),
        None => image.topic(TopicId(topic.topic_id)).cloned(),
    };
    let missing = broker.image.with(|image| asked.iter().any(|topic| find(image, topic).is_none()));
    let mut refusals: BTreeMap<String, ErrorCode> = BTreeMap::new();
    let mut barrier_error = None;
    if missing {
        // An absence is told, and acted on, only behind a barrier.
        barrier_error = broker.barrier().await.err();
        if barrier_error.is_none() && may_create {
            let names: Vec<String> = broker.image.with(|image| {
                let missing = asked.iter().filter(|topic| find(image, topic).is_none());
                missing.filter_map(|topic| Some(name_of(topic)?.to_string())).collect()
            });
            refusals = topics::auto_create(broker, names).await;
        }
    }
    broker.image.with(|image| {
        let describe = |topic: &MetadataRequestTopic| match find(image, topic) {
            Some(found) => describe_topic(image, &found, zone),
            None => absent(topic, &refusals, barrier_error),
        };
        asked.iter().map(describe).collect()
    })
}

fn absent(
    topic: &MetadataRequestTopic,
    refusals: &BTreeMap<String, ErrorCode>,
    barrier_error: Option<ErrorCode>,
) -> MetadataResponseTopic {
    let error = match (name_of(topic), barrier_error) {
        (_, Some(error)) => error,
        (None, _) => ErrorCode::UnknownTopicId,
        (Some(name), _) if check_name(name).is_err() => ErrorCode::InvalidTopicException,
        (Some(name), _) => refusals.get(&***name).copied().unwrap_or(ErrorCode::UnknownTopicOrPartition),
    };
    MetadataResponseTopic::default()
        .with_error_code(error.code())
        .with_name(topic.name.clone())
        .with_topic_id(topic.topic_id)
        .with_topic_authorized_operations(NO_OPERATIONS)
}

fn describe_topic(image: &Image, topic: &Topic, zone: &str) -> MetadataResponseTopic {
    let partitions = (0..topic.partitions).map(|index| {
        let key = PartitionKey::new(topic.topic_id, index);
        let Some(leader) = image.leader(key, zone) else {
            return MetadataResponsePartition::default()
                .with_error_code(ErrorCode::LeaderNotAvailable.code())
                .with_partition_index(index)
                .with_leader_id(BrokerId(-1))
                .with_leader_epoch(-1);
        };
        let replicas: Vec<BrokerId> = image.replicas(key, zone).into_iter().map(BrokerId).collect();
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(leader.node_id))
            .with_leader_epoch(image.leader_epoch(key))
            .with_replica_nodes(replicas.clone())
            .with_isr_nodes(replicas)
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(StrBytes::from_string(topic.name.clone()))))
        .with_topic_id(topic.topic_id.0)
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(NO_OPERATIONS)
}

pub(crate) fn describe(broker: &Broker, request: &DescribeClusterRequest) -> DescribeClusterResponse {
    let brokers_asked = 1;
    let response = DescribeClusterResponse::default()
        .with_endpoint_type(request.endpoint_type)
        .with_cluster_authorized_operations(NO_OPERATIONS);
    if request.endpoint_type != brokers_asked {
        let error = if request.endpoint_type == 2 {
            ErrorCode::MismatchedEndpointType
        } else {
            ErrorCode::UnsupportedEndpointType
        };
        return response
            .with_error_code(error.code())
            .with_error_message(Some(StrBytes::from_static_str(error.message())));
    }
    broker.image.with(|image| {
        let brokers = image.brokers().into_iter().map(|session| {
            DescribeClusterBroker::default()
                .with_broker_id(BrokerId(session.node_id))
                .with_host(StrBytes::from_string(session.host.clone()))
                .with_port(session.port)
                .with_rack(rack(session))
        });
        response
            .with_cluster_id(StrBytes::from_string(image.format().cluster_id.clone()))
            .with_controller_id(BrokerId(broker.options.node_id))
            .with_brokers(brokers.collect())
    })
}
