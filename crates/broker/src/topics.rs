//! CreateTopics, DeleteTopics, CreatePartitions, and the creation of topics by their first use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isobar_metadata::command::{CreatePartitions, CreateTopics, DeleteTopics, MorePartitions, NewTopic};
use isobar_metadata::config_table::{TOPIC_CONFIGS, topic_value};
use isobar_metadata::result::TopicResult;
use isobar_metadata::{Command, CommandResult, PlacementId, TopicId, check_name};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use isobar_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use isobar_protocol::messages::create_topics_request::CreatableTopic;
use isobar_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use isobar_protocol::messages::delete_topics_request::DeleteTopicState;
use isobar_protocol::messages::delete_topics_response::DeletableTopicResult;
use isobar_protocol::messages::{
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};
use isobar_protocol::{StrBytes, Uuid};

use crate::Broker;
use crate::session::retriable;

/// "As the broker says" in a request's counts.
const BROKER_DEFAULT: i32 = -1;
/// First DeleteTopics version that may name topics by id.
const DELETE_BY_ID_VERSION: i16 = 6;

/// A refusal: code and what to tell.
type Refusal = (ErrorCode, Option<String>);

fn code_of(code: i32) -> ErrorCode {
    ErrorCode::from_i16(i16::try_from(code).unwrap_or(-1))
}

fn text(message: Option<String>) -> Option<StrBytes> {
    message.map(StrBytes::from_string)
}

/// Proposes and takes the per-topic results; one refusal for all if the quorum gave none.
async fn propose(broker: &Broker, command: Command) -> Result<Vec<TopicResult>, Refusal> {
    match broker.session.propose(command).await {
        Ok(CommandResult::Topics(results)) => {
            broker.settled().await;
            Ok(results.topics)
        }
        Ok(other) => {
            tracing::error!(answer = ?other, "a topic command was refused");
            Err((ErrorCode::UnknownServerError, None))
        }
        Err(error) => Err((retriable(&error), Some(error.to_string()))),
    }
}

pub(crate) async fn create(
    broker: &Arc<Broker>,
    version: i16,
    request: CreateTopicsRequest,
) -> CreateTopicsResponse {
    let mut seen = BTreeSet::new();
    let twice: BTreeSet<String> = (request.topics.iter())
        .filter(|topic| !seen.insert(topic.name.to_string()))
        .map(|topic| topic.name.to_string())
        .collect();
    let mut answers: BTreeMap<String, Result<TopicResult, Refusal>> = BTreeMap::new();
    let mut new = Vec::new();
    for topic in &request.topics {
        let name = topic.name.to_string();
        let checked = if twice.contains(&name) {
            Err((ErrorCode::InvalidRequest, Some("Duplicate topic name.".to_owned())))
        } else {
            new_topic(broker, topic)
        };
        match checked {
            Ok(topic) => new.push(topic),
            Err(refusal) => {
                answers.insert(name, Err(refusal));
            }
        }
    }
    let names: Vec<String> = new.iter().map(|topic| topic.name.clone()).collect();
    if !new.is_empty() {
        let command =
            Command::CreateTopics(CreateTopics { topics: new, validate_only: request.validate_only });
        match propose(broker, command).await {
            Ok(results) => answers.extend(names.into_iter().zip(results.into_iter().map(Ok))),
            Err(refusal) => answers.extend(names.into_iter().map(|name| (name, Err(refusal.clone())))),
        }
    }
    let mut told = BTreeSet::new();
    let topics = request.topics.iter().filter(|topic| told.insert(topic.name.to_string())).map(|topic| {
        let answer = answers.remove(&topic.name.to_string());
        let answer = answer.unwrap_or(Err((ErrorCode::UnknownServerError, None)));
        created(broker, version, topic.name.clone(), answer)
    });
    CreateTopicsResponse::default().with_topics(topics.collect())
}

fn new_topic(broker: &Broker, topic: &CreatableTopic) -> Result<NewTopic, Refusal> {
    let invalid = |message: &str| (ErrorCode::InvalidRequest, Some(message.to_owned()));
    let mut partitions = topic.num_partitions;
    let mut replication_factor = i32::from(topic.replication_factor);
    if !topic.assignments.is_empty() {
        if partitions != BROKER_DEFAULT || replication_factor != BROKER_DEFAULT {
            return Err(invalid(
                "Replication factor and partitions must be -1 where replicas are assigned by hand.",
            ));
        }
        partitions = assigned_partitions(topic)?;
        replication_factor = i32::try_from(topic.assignments[0].broker_ids.len()).unwrap_or(i32::MAX);
    }
    if partitions == BROKER_DEFAULT {
        partitions = broker.options.num_partitions;
    }
    if replication_factor == BROKER_DEFAULT {
        replication_factor = 1;
    }
    let mut configs = BTreeMap::new();
    for config in &topic.configs {
        let Some(value) = &config.value else {
            let message = format!("Null value not supported for topic configs: {}", &*config.name);
            return Err((ErrorCode::InvalidConfig, Some(message)));
        };
        configs.insert(config.name.to_string(), value.to_string());
    }
    Ok(NewTopic {
        name: topic.name.to_string(),
        topic_id: TopicId(Uuid::from_bytes(broker.host.random_uuid())),
        partitions,
        replication_factor,
        configs,
        placement: PlacementId::DEFAULT,
    })
}

/// Brokers keep no partition, so an assignment by hand says only how many there are; it must still be a sound one.
fn assigned_partitions(topic: &CreatableTopic) -> Result<i32, Refusal> {
    let wrong = |message: String| (ErrorCode::InvalidReplicaAssignment, Some(message));
    let indexes: BTreeSet<i32> = topic.assignments.iter().map(|assigned| assigned.partition_index).collect();
    let count = i32::try_from(topic.assignments.len()).unwrap_or(i32::MAX);
    if !indexes.into_iter().eq(0..count) {
        return Err(wrong("partitions should be a consecutive 0-based integer sequence".to_owned()));
    }
    let replicas = topic.assignments[0].broker_ids.len();
    if replicas == 0 || topic.assignments.iter().any(|assigned| assigned.broker_ids.len() != replicas) {
        return Err(wrong("every partition needs the same number of replicas, and at least one".to_owned()));
    }
    Ok(count)
}

fn created(
    broker: &Broker,
    version: i16,
    name: TopicName,
    answer: Result<TopicResult, Refusal>,
) -> CreatableTopicResult {
    let response = CreatableTopicResult::default().with_name(name);
    let refused = |code: ErrorCode, message: Option<String>| {
        let message = message.unwrap_or_else(|| code.message().to_owned());
        (code, Some(message))
    };
    let (error, message) = match &answer {
        Err((code, message)) => refused(*code, message.clone()),
        Ok(result) if result.error_code != 0 => refused(code_of(result.error_code), result.message.clone()),
        Ok(_) => (ErrorCode::None, None),
    };
    let response = response.with_error_code(error.code()).with_error_message(text(message));
    let Some(result) = answer.ok().filter(|result| result.error_code == 0 && version >= 5) else {
        return response.with_num_partitions(-1).with_replication_factor(-1);
    };
    let cluster = broker.image.with(|image| image.broker_configs("").cloned());
    let configs = TOPIC_CONFIGS.iter().map(|def| {
        let (value, source) = topic_value(def, &result.configs, cluster.as_deref());
        CreatableTopicConfigs::default()
            .with_name(StrBytes::from_static_str(def.name))
            .with_value(Some(StrBytes::from_string(def.canonical(value))))
            .with_config_source(source as i8)
    });
    response
        .with_topic_id(result.topic_id.0)
        .with_num_partitions(result.partitions)
        .with_replication_factor(i16::try_from(result.replication_factor).unwrap_or(i16::MAX))
        .with_configs(Some(configs.collect()))
}

/// Creates topics that a Metadata request named, with the broker's defaults. Returns what was refused.
pub(crate) async fn auto_create(broker: &Arc<Broker>, names: Vec<String>) -> BTreeMap<String, ErrorCode> {
    let topics: Vec<NewTopic> = (names.iter().filter(|name| check_name(name).is_ok()))
        .map(|name| NewTopic {
            name: name.clone(),
            topic_id: TopicId(Uuid::from_bytes(broker.host.random_uuid())),
            partitions: broker.options.num_partitions,
            replication_factor: 1,
            configs: BTreeMap::new(),
            placement: PlacementId::DEFAULT,
        })
        .collect();
    if topics.is_empty() {
        return BTreeMap::new();
    }
    let asked: Vec<String> = topics.iter().map(|topic| topic.name.clone()).collect();
    match propose(broker, Command::CreateTopics(CreateTopics { topics, validate_only: false })).await {
        Ok(results) => {
            let results = asked.into_iter().zip(results.into_iter().map(|result| code_of(result.error_code)));
            // Somebody else's creation a moment ago is as good as ours.
            results
                .filter(|(_, code)| !matches!(code, ErrorCode::None | ErrorCode::TopicAlreadyExists))
                .collect()
        }
        Err((code, _)) => asked.into_iter().map(|name| (name, code)).collect(),
    }
}

pub(crate) async fn delete(
    broker: &Arc<Broker>,
    version: i16,
    request: DeleteTopicsRequest,
) -> DeleteTopicsResponse {
    let asked = if version >= DELETE_BY_ID_VERSION {
        request.topics
    } else {
        let by_name = |name| DeleteTopicState::default().with_name(Some(name));
        request.topic_names.into_iter().map(by_name).collect()
    };
    let barrier_error = broker.barrier().await.err();
    let mut responses = Vec::with_capacity(asked.len());
    let mut found: Vec<(usize, TopicId)> = Vec::new();
    for topic in asked {
        let mut response =
            DeletableTopicResult::default().with_name(topic.name.clone()).with_topic_id(topic.topic_id);
        match find(broker, &topic, barrier_error) {
            Ok((name, id)) => {
                response.name = Some(TopicName(StrBytes::from_string(name)));
                response.topic_id = id.0;
                found.push((responses.len(), id));
            }
            Err(error) => {
                response = response
                    .with_error_code(error.code())
                    .with_error_message(Some(StrBytes::from_static_str(error.message())));
            }
        }
        responses.push(response);
    }
    if !found.is_empty() {
        let topic_ids = found.iter().map(|(_, id)| *id).collect();
        let results = propose(broker, Command::DeleteTopics(DeleteTopics { topic_ids })).await;
        for (position, (index, _)) in found.iter().enumerate() {
            let (code, message) = outcome(&results, position);
            responses[*index].error_code = code.code();
            responses[*index].error_message = text(message);
        }
    }
    DeleteTopicsResponse::default().with_responses(responses)
}

fn find(
    broker: &Broker,
    topic: &DeleteTopicState,
    barrier_error: Option<ErrorCode>,
) -> Result<(String, TopicId), ErrorCode> {
    if topic.name.is_some() && !topic.topic_id.is_nil() {
        return Err(ErrorCode::InvalidRequest);
    }
    let found = broker.image.with(|image| match &topic.name {
        Some(name) => image.topic_by_name(name).cloned(),
        None => image.topic(TopicId(topic.topic_id)).cloned(),
    });
    match (found, barrier_error, &topic.name) {
        (Some(found), _, _) => Ok((found.name.clone(), found.topic_id)),
        (None, Some(error), _) => Err(error),
        (None, None, Some(_)) => Err(ErrorCode::UnknownTopicOrPartition),
        (None, None, None) => Err(ErrorCode::UnknownTopicId),
    }
}

fn outcome(results: &Result<Vec<TopicResult>, Refusal>, position: usize) -> Refusal {
    match results {
        Ok(results) => match results.get(position) {
            Some(result) if result.error_code == 0 => (ErrorCode::None, None),
            Some(result) => {
                let code = code_of(result.error_code);
                (code, Some(result.message.clone().unwrap_or_else(|| code.message().to_owned())))
            }
            None => (ErrorCode::UnknownServerError, None),
        },
        Err(refusal) => refusal.clone(),
    }
}

pub(crate) async fn create_partitions(
    broker: &Arc<Broker>,
    request: CreatePartitionsRequest,
) -> CreatePartitionsResponse {
    let barrier_error = broker.barrier().await.err();
    let mut seen = BTreeSet::new();
    let mut results = Vec::with_capacity(request.topics.len());
    let mut more: Vec<(usize, MorePartitions)> = Vec::new();
    for topic in request.topics {
        let name = topic.name.clone();
        let checked = if seen.insert(name.to_string()) {
            more_partitions(broker, &topic, barrier_error)
        } else {
            Err((ErrorCode::InvalidRequest, Some("Duplicate topic name.".to_owned())))
        };
        let mut result = CreatePartitionsTopicResult::default().with_name(name);
        match checked {
            Ok(asked) => more.push((results.len(), asked)),
            Err((code, message)) => {
                let message = message.unwrap_or_else(|| code.message().to_owned());
                result = result.with_error_code(code.code()).with_error_message(text(Some(message)));
            }
        }
        results.push(result);
    }
    if !more.is_empty() {
        let topics = more.iter().map(|(_, asked)| asked.clone()).collect();
        let command =
            Command::CreatePartitions(CreatePartitions { topics, validate_only: request.validate_only });
        let answers = propose(broker, command).await;
        for (position, (index, _)) in more.iter().enumerate() {
            let (code, message) = outcome(&answers, position);
            results[*index].error_code = code.code();
            results[*index].error_message = text(message);
        }
    }
    CreatePartitionsResponse::default().with_results(results)
}

fn more_partitions(
    broker: &Broker,
    topic: &CreatePartitionsTopic,
    barrier_error: Option<ErrorCode>,
) -> Result<MorePartitions, Refusal> {
    let found = broker.image.with(|image| image.topic_by_name(&topic.name).cloned());
    let Some(found) = found else {
        return Err((barrier_error.unwrap_or(ErrorCode::UnknownTopicOrPartition), None));
    };
    if let Some(assignments) = &topic.assignments {
        let wanted = topic.count - found.partitions;
        if usize::try_from(wanted).is_ok_and(|wanted| wanted != assignments.len()) {
            let message = format!(
                "Attempted to add {wanted} additional partition(s), but only {} assignment(s) were specified.",
                assignments.len()
            );
            return Err((ErrorCode::InvalidReplicaAssignment, Some(message)));
        }
    }
    Ok(MorePartitions { topic_id: found.topic_id, count: topic.count })
}
