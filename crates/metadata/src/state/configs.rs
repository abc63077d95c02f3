//! IncrementalAlterConfigs on topics and on the cluster's broker defaults (KIP-226, KIP-339; messages as KRaft's
//! `ConfigurationControlManager`). A resource is altered whole or not at all.

use super::topics::check_name;
use super::{StateMachine, failed};
use crate::codes;
use crate::command::{AlterConfigs, AlterResource, ConfigOp};
use crate::config_table::{
    ConfigDef, ConfigType, TopicSettings, broker_config, config_at, is_fixed_at, list_items, topic_config,
};
use crate::effect::{BrokerConfigs, EffectKind};
use crate::record::TopicRecord;
use crate::result::{CommandResult, ConfigResults, Outcome};
use std::collections::BTreeMap;

const TOPIC: i32 = 2;
const BROKER: i32 = 4;

const SET: i32 = 0;
const DELETE: i32 = 1;
const APPEND: i32 = 2;
const SUBTRACT: i32 = 3;

type Configs = BTreeMap<String, String>;

impl StateMachine {
    pub(super) fn alter_configs(&mut self, c: &AlterConfigs) -> CommandResult {
        let resources = c.resources.iter().map(|resource| {
            let altered = match resource.resource_type {
                TOPIC => self.alter_topic(resource, c.validate_only),
                BROKER => self.alter_broker(resource, c.validate_only),
                other => Err(failed(codes::INVALID_REQUEST, format!("Unexpected resource type {other}."))),
            };
            altered.err().unwrap_or(Outcome::OK)
        });
        CommandResult::Configs(ConfigResults { resources: resources.collect() })
    }

    fn alter_topic(&mut self, c: &AlterResource, validate_only: bool) -> Result<(), Outcome> {
        if c.name.is_empty() {
            return Err(failed(codes::INVALID_REQUEST, "Default topic resources are not allowed."));
        }
        check_name(&c.name).map_err(|why| failed(codes::INVALID_TOPIC_EXCEPTION, why))?;
        let Some(topic) = self.image.topic_by_name(&c.name) else {
            let why = format!("The topic '{}' does not exist.", c.name);
            return Err(failed(codes::UNKNOWN_TOPIC_OR_PARTITION, why));
        };
        let level = self.feature_level();
        let find = |name: &str| config_at(level, name, topic_config);
        let configs = apply_ops(&topic.configs, &c.ops, "topic", find)?;
        check_topic_configs(&configs, level).map_err(|why| failed(codes::INVALID_CONFIG, why))?;
        let settings = TopicSettings::of(&configs, self.image.cluster_defaults().as_deref());
        let class_changed = settings.durability != topic.settings.durability;
        let class_epoch = topic.class_epoch + u32::from(class_changed);
        if !validate_only && configs != topic.configs {
            let record = TopicRecord { configs, class_epoch, ..topic.record.clone() };
            self.emit(EffectKind::TopicChanged(record));
        }
        Ok(())
    }

    fn alter_broker(&mut self, c: &AlterResource, validate_only: bool) -> Result<(), Outcome> {
        if !c.name.is_empty() {
            // All that can be altered is shared by the brokers; a value for one of them would be shown and not used.
            let why = "Dynamic configs can be altered for the cluster's default only, not for one broker.";
            return Err(failed(codes::INVALID_REQUEST, why));
        }
        let empty = Configs::new();
        let known = self.image.broker_configs("").map_or(&empty, |configs| configs);
        let level = self.feature_level();
        let is_fixed = |name: &&str| is_fixed_at(level, name);
        let fixed: Vec<&str> = c.ops.iter().map(|op| op.name.as_str()).filter(is_fixed).collect();
        if !fixed.is_empty() {
            let why = format!("Cannot update these configs dynamically: [{}]", fixed.join(", "));
            return Err(failed(codes::INVALID_REQUEST, why));
        }
        let find = |name: &str| config_at(level, name, broker_config);
        let configs = apply_ops(known, &c.ops, "broker", find)?;
        if !validate_only && configs != *known {
            self.emit(EffectKind::BrokerConfigs(BrokerConfigs { name: String::new(), configs }));
        }
        Ok(())
    }
}

fn apply_ops(
    known: &Configs,
    ops: &[ConfigOp],
    kind: &str,
    find: impl Fn(&str) -> Option<&'static ConfigDef>,
) -> Result<Configs, Outcome> {
    let mut configs = known.clone();
    for (index, op) in ops.iter().enumerate() {
        if ops[..index].iter().any(|earlier| earlier.name == op.name) {
            return Err(failed(codes::INVALID_REQUEST, "Error due to duplicate config keys"));
        }
        if op.op == DELETE {
            // Also of a name that this version does not know any more.
            configs.remove(&op.name);
            continue;
        }
        let Some(def) = find(&op.name) else {
            let why = format!("Unknown {kind} config name: {}", op.name);
            return Err(failed(codes::INVALID_CONFIG, why));
        };
        let Some(value) = &op.value else {
            let why = format!("Null value not supported for : {}", op.name);
            return Err(failed(codes::INVALID_REQUEST, why));
        };
        let value = match op.op {
            SET => value.clone(),
            APPEND | SUBTRACT => change_list(def, configs.get(&op.name), op.op == APPEND, value)?,
            other => {
                let why = format!("Unknown operation {other} for config {}", op.name);
                return Err(failed(codes::INVALID_REQUEST, why));
            }
        };
        def.check(&value).map_err(|why| failed(codes::INVALID_CONFIG, why))?;
        configs.insert(op.name.clone(), value);
    }
    Ok(configs)
}

fn change_list(
    def: &ConfigDef,
    known: Option<&String>,
    append: bool,
    value: &str,
) -> Result<String, Outcome> {
    if def.kind != ConfigType::List {
        let op = if append { "APPEND" } else { "SUBTRACT" };
        let why = format!("Can't {op} to key {} because its type is not LIST.", def.name);
        return Err(failed(codes::INVALID_CONFIG, why));
    }
    let mut items: Vec<&str> = list_items(known.map_or(def.default, String::as_str)).collect();
    for item in list_items(value) {
        if append && !items.contains(&item) {
            items.push(item);
        } else if !append {
            items.retain(|known| *known != item);
        }
    }
    Ok(items.join(","))
}

/// Checks a topic's overrides, one by one and together, by what a feature level knows.
pub fn check_topic_configs(configs: &Configs, level: u32) -> Result<(), String> {
    for (name, value) in configs {
        let def = config_at(level, name, topic_config)
            .ok_or_else(|| format!("Unknown topic config name: {name}"))?;
        def.check(value)?;
    }
    let lag = |name: &str| configs.get(name).and_then(|value| value.trim().parse::<i64>().ok());
    if let (Some(least), Some(most)) = (lag("min.compaction.lag.ms"), lag("max.compaction.lag.ms"))
        && least > most
    {
        return Err(format!(
            "conflict topic config setting min.compaction.lag.ms ({least}) > max.compaction.lag.ms ({most})"
        ));
    }
    Ok(())
}
