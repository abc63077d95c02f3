//! Topics and partitions, with Kafka's rules and words (`Topic.validate`, KRaft's `ReplicationControlManager`).

use super::configs::check_topic_configs;
use super::{StateMachine, failed};
use crate::codes;
use crate::command::{
    CreatePartitions, CreateTopics, DeleteTopics, ExpireTopics, MorePartitions, NewTopic, PurgeTopics,
    UndeleteTopic,
};
use crate::effect::{EffectKind, TopicDeleted, TopicPurged, TopicSoftDeleted};
use crate::ids::{PartitionKey, TopicId};
use crate::record::TopicRecord;
use crate::result::{CommandResult, Expired, Outcome, TopicResult, TopicResults};

/// Longest topic name, as Kafka has it.
const MAX_NAME: usize = 249;
/// New partitions in one command, as KRaft has it.
const MAX_NEW_PARTITIONS: i64 = 10_000;
/// Topics that one expiry purges, and after how many of their partitions it stops.
const MAX_PURGED: u32 = 100;
const MAX_PURGED_PARTITIONS: i32 = 10_000;

impl StateMachine {
    pub(super) fn create_topics(&mut self, c: &CreateTopics) -> CommandResult {
        let total: i64 = c.topics.iter().map(|topic| i64::from(topic.partitions.max(0))).sum();
        let topics = c.topics.iter().map(|topic| {
            let checked = if total > MAX_NEW_PARTITIONS {
                Err(failed(codes::POLICY_VIOLATION, "Excessively large number of partitions per request."))
            } else {
                self.create_topic(topic, c.validate_only)
            };
            match checked {
                Ok(record) => result_of(record),
                Err(outcome) => topic_error(outcome, TopicId::NIL, &topic.name),
            }
        });
        CommandResult::Topics(TopicResults { topics: topics.collect() })
    }

    fn create_topic(&mut self, c: &NewTopic, validate_only: bool) -> Result<TopicRecord, Outcome> {
        self.check_free_name(&c.name)?;
        if c.partitions <= 0 {
            let why = "Number of partitions was set to an invalid non-positive value.";
            return Err(failed(codes::INVALID_PARTITIONS, why));
        }
        if c.replication_factor == 0
            || c.replication_factor < -1
            || c.replication_factor > i32::from(i16::MAX)
        {
            let why = "Replication factor must be larger than 0, or -1 to use the default value.";
            return Err(failed(codes::INVALID_REPLICATION_FACTOR, why));
        }
        check_topic_configs(&c.configs, self.feature_level())
            .map_err(|why| failed(codes::INVALID_CONFIG, why))?;
        if self.image.placement(c.placement).is_none() {
            return Err(failed(codes::INVALID_CONFIG, "The placement class is unknown."));
        }
        if c.topic_id == TopicId::NIL || self.image.stored_topic(c.topic_id).is_some() {
            return Err(failed(codes::INVALID_REQUEST, "The topic id is taken."));
        }
        let record = TopicRecord {
            topic_id: c.topic_id,
            name: c.name.clone(),
            partitions: c.partitions,
            replication_factor: c.replication_factor.max(1),
            configs: c.configs.clone(),
            placement: c.placement,
            class_epoch: 0,
            created_ms: self.image.time_ms,
        };
        if !validate_only {
            self.folded_names.insert(fold(&c.name), c.topic_id);
            self.emit(EffectKind::TopicCreated(record.clone()));
        }
        Ok(record)
    }

    fn check_free_name(&self, name: &str) -> Result<(), Outcome> {
        check_name(name).map_err(|why| failed(codes::INVALID_TOPIC_EXCEPTION, why))?;
        if self.image.names.contains_key(name) {
            return Err(failed(codes::TOPIC_ALREADY_EXISTS, format!("Topic '{name}' already exists.")));
        }
        if let Some(other) = self.folded_names.get(&fold(name)).and_then(|id| self.image.topic(*id)) {
            let why = format!("Topic '{name}' collides with existing topic: {}", other.name);
            return Err(failed(codes::INVALID_TOPIC_EXCEPTION, why));
        }
        Ok(())
    }

    pub(super) fn delete_topics(&mut self, c: &DeleteTopics) -> CommandResult {
        let topics = c.topic_ids.iter().map(|id| self.delete_topic(*id)).collect();
        CommandResult::Topics(TopicResults { topics })
    }

    fn delete_topic(&mut self, topic_id: TopicId) -> TopicResult {
        let Some(topic) = self.image.topic(topic_id).cloned() else {
            let outcome = Outcome { error_code: codes::UNKNOWN_TOPIC_ID, message: None };
            return topic_error(outcome, topic_id, "");
        };
        self.folded_names.remove(&fold(&topic.name));
        let window_ms = topic.settings.undelete_window_ms;
        if self.feature_level() >= 2 && window_ms > 0 {
            let deleted_ms = self.image.time_ms;
            let purge_ms = deleted_ms.saturating_add(window_ms);
            self.purges.insert((purge_ms, topic_id));
            self.emit(EffectKind::TopicSoftDeleted(TopicSoftDeleted { topic_id, deleted_ms, purge_ms }));
        } else {
            self.forget_producers(&topic.record);
            self.emit(EffectKind::TopicDeleted(TopicDeleted { topic_id }));
        }
        TopicResult {
            error_code: codes::NONE,
            topic_id,
            name: topic.name.clone(),
            partitions: topic.partitions,
            replication_factor: topic.replication_factor,
            ..TopicResult::default()
        }
    }

    pub(super) fn forget_producers(&mut self, topic: &TopicRecord) {
        for partition in 0..topic.partitions {
            let key = PartitionKey::new(topic.topic_id, partition);
            let shard = self.shard_index(key);
            self.producers[shard].remove(&key);
        }
    }

    pub(super) fn undelete_topic(&mut self, c: &UndeleteTopic) -> CommandResult {
        let topic = match self.undelete(c) {
            Ok(record) => result_of(record),
            Err(outcome) => topic_error(outcome, c.topic_id, &c.name),
        };
        CommandResult::Topics(TopicResults { topics: vec![topic] })
    }

    fn undelete(&mut self, c: &UndeleteTopic) -> Result<TopicRecord, Outcome> {
        if let Some(topic) = self.image.topic(c.topic_id) {
            return if c.name.is_empty() || c.name == topic.name {
                Ok(topic.record.clone())
            } else {
                Err(failed(codes::INVALID_REQUEST, format!("The topic is there as '{}'.", topic.name)))
            };
        }
        let Some(deleted) = self.image.deleted_topic(c.topic_id) else {
            let why = "There is no deleted topic with this id; its time may be over.";
            return Err(failed(codes::UNKNOWN_TOPIC_ID, why));
        };
        let purge = (deleted.purge_ms, c.topic_id);
        let mut record = deleted.record.clone();
        if !c.name.is_empty() {
            record.name.clone_from(&c.name);
        }
        self.check_free_name(&record.name)?;
        self.purges.remove(&purge);
        self.folded_names.insert(fold(&record.name), record.topic_id);
        self.emit(EffectKind::TopicUndeleted(record.clone()));
        Ok(record)
    }

    pub(super) fn purge_topics(&mut self, c: &PurgeTopics) -> CommandResult {
        let topics = c.topic_ids.iter().map(|id| match self.purge(*id) {
            Some(record) => result_of(record),
            None => {
                let why = "There is no deleted topic with this id.";
                topic_error(failed(codes::UNKNOWN_TOPIC_ID, why), *id, "")
            }
        });
        CommandResult::Topics(TopicResults { topics: topics.collect() })
    }

    pub(super) fn purge(&mut self, topic_id: TopicId) -> Option<TopicRecord> {
        let deleted = self.image.deleted_topic(topic_id)?.clone();
        self.purges.remove(&(deleted.purge_ms, topic_id));
        self.forget_producers(&deleted.record);
        self.emit(EffectKind::TopicPurged(TopicPurged { topic_id }));
        Some(deleted.record.clone())
    }

    pub(super) fn expire_topics(&mut self, c: &ExpireTopics) -> CommandResult {
        if self.expiry_held() {
            return CommandResult::Expired(Expired { held: true, ..Expired::default() });
        }
        let limit = if c.limit == 0 { MAX_PURGED } else { c.limit.min(MAX_PURGED) };
        let (mut count, mut partitions) = (0, 0);
        while count < u64::from(limit) && partitions < MAX_PURGED_PARTITIONS {
            let due = self.purges.get_min().filter(|(purge_ms, _)| *purge_ms <= self.image.time_ms);
            let Some((_, topic_id)) = due.copied() else { break };
            let Some(purged) = self.purge(topic_id) else { break };
            partitions += purged.partitions;
            count += 1;
        }
        CommandResult::Expired(Expired { count, ..Expired::default() })
    }

    pub(super) fn create_partitions(&mut self, c: &CreatePartitions) -> CommandResult {
        let topics = c.topics.iter().map(|topic| match self.grow_topic(topic, c.validate_only) {
            Ok(result) => result,
            Err(outcome) => {
                let name =
                    self.image.topic(topic.topic_id).map_or("", |topic| topic.name.as_str()).to_owned();
                topic_error(outcome, topic.topic_id, &name)
            }
        });
        CommandResult::Topics(TopicResults { topics: topics.collect() })
    }

    fn grow_topic(&mut self, c: &MorePartitions, validate_only: bool) -> Result<TopicResult, Outcome> {
        let Some(topic) = self.image.topic(c.topic_id) else {
            return Err(Outcome { error_code: codes::UNKNOWN_TOPIC_ID, message: None });
        };
        let now = topic.partitions;
        if c.count == now {
            return Err(failed(codes::INVALID_PARTITIONS, format!("Topic already has {now} partition(s).")));
        }
        if c.count < now {
            let why = format!(
                "The topic {} currently has {now} partition(s); {} would not be an increase.",
                topic.name, c.count
            );
            return Err(failed(codes::INVALID_PARTITIONS, why));
        }
        if i64::from(c.count) - i64::from(now) > MAX_NEW_PARTITIONS {
            let why = "Excessively large number of partitions per request.";
            return Err(failed(codes::POLICY_VIOLATION, why));
        }
        let record = TopicRecord { partitions: c.count, ..topic.record.clone() };
        let result = TopicResult {
            error_code: codes::NONE,
            topic_id: record.topic_id,
            name: record.name.clone(),
            partitions: record.partitions,
            replication_factor: record.replication_factor,
            ..TopicResult::default()
        };
        if !validate_only {
            self.emit(EffectKind::TopicChanged(record));
        }
        Ok(result)
    }
}

fn result_of(record: TopicRecord) -> TopicResult {
    TopicResult {
        error_code: codes::NONE,
        message: None,
        topic_id: record.topic_id,
        name: record.name,
        partitions: record.partitions,
        replication_factor: record.replication_factor,
        configs: record.configs,
    }
}

fn topic_error(outcome: Outcome, topic_id: TopicId, name: &str) -> TopicResult {
    TopicResult {
        error_code: outcome.error_code,
        message: outcome.message,
        topic_id,
        name: name.to_owned(),
        ..TopicResult::default()
    }
}

/// Names that differ only by '.' and '_' collide (in metric names).
pub(crate) fn fold(name: &str) -> String {
    name.replace('.', "_")
}

/// Kafka's rules for topic names, with its messages.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("Topic name is invalid: the empty string is not allowed".into());
    }
    if name == "." || name == ".." {
        return Err("Topic name is invalid: '.' or '..' is not allowed".into());
    }
    if name.len() > MAX_NAME {
        return Err(format!(
            "Topic name is invalid: the length of '{name}' is longer than the max allowed length {MAX_NAME}"
        ));
    }
    let legal = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if !name.bytes().all(legal) {
        return Err(format!(
            "Topic name is invalid: '{name}' contains one or more characters other than ASCII alphanumerics, '.', '_' and '-'"
        ));
    }
    Ok(())
}
