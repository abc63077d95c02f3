//! What the cluster looks like, as one broker sees it.

use std::collections::BTreeMap;
use std::fmt;

use isobar_protocol::Uuid;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::MetadataResponse;
use isobar_protocol::messages::metadata_response::MetadataResponseTopic;

/// A partition of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// The topic's name.
    pub topic: String,
    /// The partition's index.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}

/// Brokers and topics.
#[derive(Clone, Debug, Default)]
pub struct ClusterMetadata {
    /// The cluster's id.
    pub cluster_id: Option<String>,
    /// The broker that takes admin requests.
    pub controller: i32,
    /// Brokers by id.
    pub brokers: BTreeMap<i32, BrokerInfo>,
    /// Topics by name: those asked for.
    pub topics: BTreeMap<String, TopicInfo>,
}

/// A broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BrokerInfo {
    /// Its id.
    pub id: i32,
    /// Its host name.
    pub host: String,
    /// Its port.
    pub port: i32,
    /// Its zone.
    pub rack: Option<String>,
}

impl BrokerInfo {
    /// `host:port`.
    pub fn addr(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// A topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicInfo {
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: Uuid,
    /// Why there is nothing more, such as UNKNOWN_TOPIC_OR_PARTITION.
    pub error: ErrorCode,
    /// Whether it is the broker's own.
    pub is_internal: bool,
    /// Its partitions by index.
    pub partitions: BTreeMap<i32, PartitionInfo>,
}

/// A partition's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionInfo {
    /// Why it cannot be used.
    pub error: ErrorCode,
    /// The broker to turn to, -1 for none.
    pub leader: i32,
    /// The leader's epoch.
    pub leader_epoch: i32,
    /// Brokers named as replicas.
    pub replicas: Vec<i32>,
    /// Brokers named as in sync.
    pub isr: Vec<i32>,
}

impl ClusterMetadata {
    /// The address of a partition's leader.
    pub fn leader(&self, at: &TopicPartition) -> Option<&BrokerInfo> {
        let partition = self.topics.get(&at.topic)?.partitions.get(&at.partition)?;
        self.brokers.get(&partition.leader)
    }

    /// The name of a topic id.
    pub fn topic_by_id(&self, id: Uuid) -> Option<&TopicInfo> {
        self.topics.values().find(|topic| topic.id == id)
    }

    pub(crate) fn from_response(response: MetadataResponse) -> Self {
        let broker = |id: i32, host: &str, port, rack: Option<&str>| BrokerInfo {
            id,
            host: host.to_owned(),
            port,
            rack: rack.map(str::to_owned),
        };
        ClusterMetadata {
            cluster_id: response.cluster_id.as_deref().map(str::to_owned),
            controller: response.controller_id.0,
            brokers: response
                .brokers
                .iter()
                .map(|b| (b.node_id.0, broker(b.node_id.0, &b.host, b.port, b.rack.as_deref())))
                .collect(),
            topics: response
                .topics
                .into_iter()
                .filter_map(topic)
                .map(|topic| (topic.name.clone(), topic))
                .collect(),
        }
    }

    /// What `newer` says, and of topics it was not asked for what was known before.
    pub(crate) fn merged(&self, newer: ClusterMetadata) -> Self {
        let mut topics = self.topics.clone();
        topics.extend(newer.topics);
        ClusterMetadata { topics, ..newer }
    }
}

fn topic(topic: MetadataResponseTopic) -> Option<TopicInfo> {
    let ids = |brokers: &[isobar_protocol::messages::BrokerId]| brokers.iter().map(|id| id.0).collect();
    Some(TopicInfo {
        name: topic.name?.to_string(),
        id: topic.topic_id,
        error: ErrorCode::from_i16(topic.error_code),
        is_internal: topic.is_internal,
        partitions: topic
            .partitions
            .iter()
            .map(|partition| {
                let info = PartitionInfo {
                    error: ErrorCode::from_i16(partition.error_code),
                    leader: partition.leader_id.0,
                    leader_epoch: partition.leader_epoch,
                    replicas: ids(&partition.replica_nodes),
                    isr: ids(&partition.isr_nodes),
                };
                (partition.partition_index, info)
            })
            .collect(),
    })
}
