//! Topics and configurations. Each call goes out once: what changes something is not repeated behind the caller's back.

use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use isobar_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use isobar_protocol::messages::delete_topics_request::DeleteTopicState;
use isobar_protocol::messages::describe_configs_request::DescribeConfigsResource;
use isobar_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use isobar_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, DescribeConfigsRequest,
    IncrementalAlterConfigsRequest, TopicName,
};

use crate::client::Client;
use crate::error::ClientError;

const CREATE_TOPICS_MIN: i16 = 5;
/// First DeleteTopics version with ids.
const DELETE_TOPICS_MIN: i16 = 6;
const CREATE_PARTITIONS_MIN: i16 = 2;
const DESCRIBE_CONFIGS_MIN: i16 = 4;
const ALTER_CONFIGS_MIN: i16 = 1;
const OP_SET: i8 = 0;
const OP_DELETE: i8 = 1;
const TOPIC: i8 = 2;
const BROKER: i8 = 4;
/// `ConfigSource.DEFAULT_CONFIG`.
const SOURCE_DEFAULT: i8 = 5;

/// A topic to create.
#[derive(Clone, Debug)]
pub struct NewTopic {
    /// Its name.
    pub name: String,
    /// Partitions; -1 for the broker's default.
    pub partitions: i32,
    /// Replication factor; -1 for the broker's default.
    pub replication_factor: i16,
    /// Configuration by name.
    pub configs: Vec<(String, String)>,
}

impl NewTopic {
    /// A topic with the broker's default replication factor and configuration.
    pub fn new(name: impl Into<String>, partitions: i32) -> Self {
        NewTopic { name: name.into(), partitions, replication_factor: -1, configs: Vec::new() }
    }
}

/// Whose configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigResource {
    /// A topic's.
    Topic(String),
    /// A broker's, or the defaults of all.
    Broker(Option<i32>),
}

impl ConfigResource {
    fn wire(&self) -> (i8, String) {
        match self {
            ConfigResource::Topic(name) => (TOPIC, name.clone()),
            ConfigResource::Broker(id) => (BROKER, id.map(|id| id.to_string()).unwrap_or_default()),
        }
    }

    /// A broker's own configuration is only known to itself.
    fn broker(&self) -> Option<i32> {
        match self {
            ConfigResource::Topic(_) => None,
            ConfigResource::Broker(id) => *id,
        }
    }
}

/// A configuration value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigEntry {
    /// Its name.
    pub name: String,
    /// Its value; `None` if it is secret or has none.
    pub value: Option<String>,
    /// Whether nobody set it.
    pub is_default: bool,
    /// Whether it cannot be changed.
    pub is_read_only: bool,
    /// Whether its value is secret.
    pub is_sensitive: bool,
    /// What it means, if the broker says.
    pub documentation: Option<String>,
}

fn outcome(what: String, code: i16, message: Option<&StrBytes>) -> Result<(), ClientError> {
    match ErrorCode::from_i16(code) {
        ErrorCode::None => Ok(()),
        code => Err(ClientError::broker(what, code, message.map(|text| text.as_str()))),
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn silent(what: String) -> ClientError {
    ClientError::malformed(what, "no answer for it")
}

impl Client {
    fn timeout_ms(&self) -> i32 {
        self.config().request_timeout.as_millis() as i32
    }

    /// Creates topics; one outcome for each, in order.
    pub async fn create_topics(
        &self,
        topics: &[NewTopic],
    ) -> Result<Vec<Result<(), ClientError>>, ClientError> {
        let creatable = topics.iter().map(|topic| {
            let config = |(name, value): &(String, String)| {
                CreatableTopicConfig::default().with_name(text(name)).with_value(Some(text(value)))
            };
            CreatableTopic::default()
                .with_name(TopicName(text(&topic.name)))
                .with_num_partitions(topic.partitions)
                .with_replication_factor(topic.replication_factor)
                .with_configs(topic.configs.iter().map(config).collect())
        });
        let request = CreateTopicsRequest::default()
            .with_topics(creatable.collect())
            .with_timeout_ms(self.timeout_ms());
        let response = self.call(None, &request, CREATE_TOPICS_MIN).await?;
        let find = |topic: &NewTopic| {
            let what = format!("create topic {}", topic.name);
            match response.topics.iter().find(|answer| answer.name.as_str() == topic.name) {
                Some(answer) => outcome(what, answer.error_code, answer.error_message.as_ref()),
                None => Err(silent(what)),
            }
        };
        Ok(topics.iter().map(find).collect())
    }

    /// Deletes topics by name; one outcome for each, in order.
    pub async fn delete_topics(&self, names: &[&str]) -> Result<Vec<Result<(), ClientError>>, ClientError> {
        let topics =
            names.iter().map(|name| DeleteTopicState::default().with_name(Some(TopicName(text(name)))));
        let request =
            DeleteTopicsRequest::default().with_topics(topics.collect()).with_timeout_ms(self.timeout_ms());
        let response = self.call(None, &request, DELETE_TOPICS_MIN).await?;
        let find = |name: &&str| {
            let what = format!("delete topic {name}");
            let named = |answer: &&_| answered_name(answer) == Some(*name);
            match response.responses.iter().find(named) {
                Some(answer) => outcome(what, answer.error_code, answer.error_message.as_ref()),
                None => Err(silent(what)),
            }
        };
        Ok(names.iter().map(find).collect())
    }

    /// Raises the number of partitions of a topic to `count`.
    pub async fn create_partitions(&self, topic: &str, count: i32) -> Result<(), ClientError> {
        let wanted = CreatePartitionsTopic::default()
            .with_name(TopicName(text(topic)))
            .with_count(count)
            .with_assignments(None);
        let request =
            CreatePartitionsRequest::default().with_topics(vec![wanted]).with_timeout_ms(self.timeout_ms());
        let response = self.call(None, &request, CREATE_PARTITIONS_MIN).await?;
        let what = format!("create partitions of {topic}");
        match response.results.first() {
            Some(answer) => outcome(what, answer.error_code, answer.error_message.as_ref()),
            None => Err(silent(what)),
        }
    }

    /// A resource's configuration: the entries named, or all.
    pub async fn describe_configs(
        &self,
        resource: &ConfigResource,
        names: Option<&[&str]>,
    ) -> Result<Vec<ConfigEntry>, ClientError> {
        let (kind, name) = resource.wire();
        let asked = DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(StrBytes::from_string(name))
            .with_configuration_keys(names.map(|names| names.iter().map(|name| text(name)).collect()));
        let request =
            DescribeConfigsRequest::default().with_resources(vec![asked]).with_include_documentation(true);
        let response = self.call(resource.broker(), &request, DESCRIBE_CONFIGS_MIN).await?;
        let what = format!("describe configs of {resource:?}");
        let Some(result) = response.results.into_iter().next() else { return Err(silent(what)) };
        outcome(what, result.error_code, result.error_message.as_ref())?;
        let entries = result.configs.into_iter().map(|entry| ConfigEntry {
            name: entry.name.to_string(),
            value: entry.value.map(|value| value.to_string()),
            is_default: entry.config_source == SOURCE_DEFAULT,
            is_read_only: entry.read_only,
            is_sensitive: entry.is_sensitive,
            documentation: entry.documentation.map(|documentation| documentation.to_string()),
        });
        Ok(entries.collect())
    }

    /// Sets configuration entries, or (`None`) sets them back to their defaults.
    pub async fn alter_configs(
        &self,
        resource: &ConfigResource,
        changes: &[(&str, Option<&str>)],
    ) -> Result<(), ClientError> {
        let (kind, name) = resource.wire();
        let changes = changes.iter().map(|(name, value)| {
            AlterableConfig::default()
                .with_name(text(name))
                .with_config_operation(if value.is_some() { OP_SET } else { OP_DELETE })
                .with_value(value.map(text))
        });
        let altered = AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(StrBytes::from_string(name))
            .with_configs(changes.collect());
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![altered]);
        let response = self.call(resource.broker(), &request, ALTER_CONFIGS_MIN).await?;
        let what = format!("alter configs of {resource:?}");
        match response.responses.first() {
            Some(answer) => outcome(what, answer.error_code, answer.error_message.as_ref()),
            None => Err(silent(what)),
        }
    }
}

fn answered_name(
    answer: &isobar_protocol::messages::delete_topics_response::DeletableTopicResult,
) -> Option<&str> {
    answer.name.as_ref().map(|name| name.as_str())
}
