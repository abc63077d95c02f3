//! DescribeConfigs and IncrementalAlterConfigs, for topics and brokers.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_metadata::command::{AlterConfigs, AlterResource, ConfigOp};
use isobar_metadata::config_table::{
    BROKER_CONFIGS, ConfigDef, ConfigSource, FIXED_BROKER_CONFIGS, TOPIC_CONFIGS, UNSET_IN_KAFKA, topic_value,
};
use isobar_metadata::result::Outcome;
use isobar_metadata::{Command, CommandResult, check_name};
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::describe_configs_request::DescribeConfigsResource;
use isobar_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use isobar_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use isobar_protocol::messages::{
    DescribeConfigsRequest, DescribeConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};

use crate::Broker;
use crate::options::Options;
use crate::session::retriable;

/// Kafka's `ConfigResource.Type`.
const TOPIC: i8 = 2;
const BROKER: i8 = 4;

type Configs = BTreeMap<String, String>;

pub(crate) async fn describe(
    broker: &Arc<Broker>,
    request: &DescribeConfigsRequest,
) -> DescribeConfigsResponse {
    let barrier_error = broker.barrier().await.err();
    let results = request.resources.iter().map(|resource| {
        let response = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        let configs = match barrier_error {
            Some(error) => Err((error, error.message().to_owned())),
            None => describe_resource(broker, resource),
        };
        match configs {
            Ok(mut configs) => {
                // No names are all names, as an absent list is.
                if let Some(keys) = resource.configuration_keys.as_ref().filter(|keys| !keys.is_empty()) {
                    configs.retain(|config| keys.contains(&config.name));
                }
                for config in &mut configs {
                    if !request.include_synonyms {
                        config.synonyms.clear();
                    }
                    if !request.include_documentation {
                        config.documentation = None;
                    }
                }
                response.with_configs(configs)
            }
            Err((code, message)) => {
                response.with_error_code(code.code()).with_error_message(Some(StrBytes::from_string(message)))
            }
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe_resource(
    broker: &Broker,
    resource: &DescribeConfigsResource,
) -> Result<Vec<DescribeConfigsResourceResult>, (ErrorCode, String)> {
    let cluster = broker.image.with(|image| image.broker_configs("").cloned());
    let cluster = cluster.as_deref();
    match resource.resource_type {
        TOPIC => {
            let topic = broker.image.with(|image| image.topic_by_name(&resource.resource_name).cloned());
            let Some(topic) = topic else {
                check_name(&resource.resource_name).map_err(|why| (ErrorCode::InvalidTopicException, why))?;
                let code = ErrorCode::UnknownTopicOrPartition;
                return Err((code, code.message().to_owned()));
            };
            Ok(TOPIC_CONFIGS.iter().map(|def| topic_entry(def, &topic.configs, cluster)).collect())
        }
        BROKER => {
            let name = &*resource.resource_name;
            let node_id = broker.options.node_id;
            if !name.is_empty() && name != node_id.to_string() {
                let message = if name.parse::<i32>().is_ok() {
                    format!("Unexpected broker id, expected {node_id} or empty string, but received {name}")
                } else {
                    format!("Broker id must be an integer, but it is: {name}")
                };
                return Err((ErrorCode::InvalidRequest, message));
            }
            let of_cluster = name.is_empty();
            let dynamic = BROKER_CONFIGS.iter().filter_map(|def| broker_entry(def, of_cluster, cluster));
            let fixed = (!of_cluster).then(|| fixed_entries(broker)).into_iter().flatten();
            Ok(dynamic.chain(fixed).collect())
        }
        other => Err((ErrorCode::InvalidRequest, format!("Unsupported resource type {other}"))),
    }
}

fn entry(def: &ConfigDef, value: &str, source: ConfigSource) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(StrBytes::from_static_str(def.name))
        .with_value(Some(StrBytes::from_string(def.canonical(value))))
        .with_config_source(source as i8)
        .with_config_type(def.kind.code())
        .with_documentation(Some(StrBytes::from_static_str(def.doc)))
}

fn synonym(name: &'static str, value: &str, source: ConfigSource) -> DescribeConfigsSynonym {
    DescribeConfigsSynonym::default()
        .with_name(StrBytes::from_static_str(name))
        .with_value(Some(StrBytes::from_string(value.to_owned())))
        .with_source(source as i8)
}

/// A topic config with its synonyms, the nearest first, as Kafka lists them.
fn topic_entry(
    def: &'static ConfigDef,
    overrides: &Configs,
    cluster: Option<&Configs>,
) -> DescribeConfigsResourceResult {
    let (value, source) = topic_value(def, overrides, cluster);
    let mut synonyms = Vec::new();
    if let Some(value) = overrides.get(def.name) {
        synonyms.push(synonym(def.name, &def.canonical(value), ConfigSource::DynamicTopic));
    }
    if !def.broker_name.is_empty() {
        if let Some(value) = cluster.and_then(|cluster| cluster.get(def.broker_name)) {
            synonyms.push(synonym(def.broker_name, value, ConfigSource::DynamicDefaultBroker));
        }
        if !UNSET_IN_KAFKA.contains(&def.broker_name) {
            synonyms.push(synonym(def.broker_name, def.default, ConfigSource::Default));
        }
    }
    entry(def, value, source).with_synonyms(synonyms)
}

/// A broker config: the cluster's dynamic default, else Kafka's. For the cluster's default itself (`of_cluster`) only what
/// was set, as Kafka answers.
fn broker_entry(
    def: &'static ConfigDef,
    of_cluster: bool,
    cluster: Option<&Configs>,
) -> Option<DescribeConfigsResourceResult> {
    let set = cluster.and_then(|cluster| cluster.get(def.name));
    if of_cluster && set.is_none() {
        return None;
    }
    let mut synonyms = Vec::new();
    if let Some(value) = set {
        synonyms.push(synonym(def.name, &def.canonical(value), ConfigSource::DynamicDefaultBroker));
    }
    let is_unset = UNSET_IN_KAFKA.contains(&def.name);
    if !of_cluster && !is_unset {
        synonyms.push(synonym(def.name, def.default, ConfigSource::Default));
    }
    let described = match set {
        Some(value) => entry(def, value, ConfigSource::DynamicDefaultBroker),
        None if is_unset => entry(def, "", ConfigSource::Default).with_value(None),
        None => entry(def, def.default, ConfigSource::Default),
    };
    Some(described.with_synonyms(synonyms))
}

/// What this broker was started with. Read-only.
fn fixed_entries(broker: &Broker) -> impl Iterator<Item = DescribeConfigsResourceResult> {
    FIXED_BROKER_CONFIGS.iter().filter_map(|def| {
        let value = fixed_value(&broker.options, def.name)?;
        let mut synonyms = Vec::new();
        let is_default = value == def.default;
        if !is_default {
            synonyms.push(synonym(def.name, &value, ConfigSource::StaticBroker));
        }
        if !def.default.is_empty() {
            synonyms.push(synonym(def.name, def.default, ConfigSource::Default));
        }
        let source = if is_default { ConfigSource::Default } else { ConfigSource::StaticBroker };
        let entry = DescribeConfigsResourceResult::default()
            .with_name(StrBytes::from_static_str(def.name))
            .with_value(Some(StrBytes::from_string(value)))
            .with_read_only(true)
            .with_config_source(source as i8)
            .with_config_type(def.kind.code())
            .with_synonyms(synonyms);
        Some(entry)
    })
}

fn fixed_value(options: &Options, name: &str) -> Option<String> {
    Some(match name {
        "auto.create.topics.enable" => options.auto_create_topics_enable.to_string(),
        "broker.id" | "node.id" => options.node_id.to_string(),
        "broker.rack" => options.rack.clone()?,
        "connections.max.idle.ms" => options.connections_max_idle_ms.to_string(),
        "default.replication.factor" => "1".to_owned(),
        "fetch.max.bytes" => options.fetch_max_bytes.to_string(),
        "group.initial.rebalance.delay.ms" => options.group_initial_rebalance_delay_ms.to_string(),
        "group.max.session.timeout.ms" => options.group_max_session_timeout_ms.to_string(),
        "group.max.size" => options.group_max_size.to_string(),
        "group.min.session.timeout.ms" => options.group_min_session_timeout_ms.to_string(),
        "listeners" => format!("PLAINTEXT://{}", options.listen),
        "log.retention.check.interval.ms" => options.log_retention_check_interval_ms.to_string(),
        "max.connections" => options.max_connections.to_string(),
        "max.incremental.fetch.session.cache.slots" => options.fetch_session_slots.to_string(),
        "num.partitions" => options.num_partitions.to_string(),
        "offset.metadata.max.bytes" => options.offset_metadata_max_bytes.to_string(),
        "offsets.retention.minutes" => options.offsets_retention_minutes.to_string(),
        "queued.max.request.bytes" => options.queued_max_request_bytes.to_string(),
        "socket.request.max.bytes" => options.socket_request_max_bytes.to_string(),
        _ => return None,
    })
}

pub(crate) async fn alter(
    broker: &Arc<Broker>,
    request: IncrementalAlterConfigsRequest,
) -> IncrementalAlterConfigsResponse {
    let resources = request.resources.iter().map(|resource| AlterResource {
        resource_type: i32::from(resource.resource_type),
        name: resource.resource_name.to_string(),
        ops: (resource.configs.iter())
            .map(|config| ConfigOp {
                name: config.name.to_string(),
                op: i32::from(config.config_operation),
                value: config.value.as_ref().map(ToString::to_string),
            })
            .collect(),
    });
    let command = Command::AlterConfigs(AlterConfigs {
        resources: resources.collect(),
        validate_only: request.validate_only,
    });
    let outcomes = match broker.session.propose(command).await {
        Ok(CommandResult::Configs(results)) => {
            broker.settled().await;
            results.resources
        }
        Ok(other) => {
            tracing::error!(answer = ?other, "a config command was refused");
            vec![failure(ErrorCode::UnknownServerError); request.resources.len()]
        }
        Err(error) => vec![failure(retriable(&error)); request.resources.len()],
    };
    let responses = request.resources.into_iter().zip(outcomes).map(|(resource, outcome)| {
        let message = (outcome.error_code != 0).then(|| {
            let code = ErrorCode::from_i16(i16::try_from(outcome.error_code).unwrap_or(-1));
            StrBytes::from_string(outcome.message.unwrap_or_else(|| code.message().to_owned()))
        });
        AlterConfigsResourceResponse::default()
            .with_error_code(i16::try_from(outcome.error_code).unwrap_or(-1))
            .with_error_message(message)
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name)
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

fn failure(code: ErrorCode) -> Outcome {
    Outcome { error_code: i32::from(code.code()), message: None }
}
