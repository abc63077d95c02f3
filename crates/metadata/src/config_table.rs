//! Kafka's topic configs and the cluster-wide broker configs behind them: types, defaults, checks and docs (Kafka 4.x,
//! `TopicConfig`, `LogConfig`, KIP-1030 for the bounds), and what a topic's configs come to.

mod settings;
mod table;

pub use settings::{Compression, TimestampType, TopicSettings};
pub use table::{BROKER_CONFIGS, FIXED_BROKER_CONFIGS, TOPIC_CONFIGS};

use std::collections::BTreeMap;

/// Kafka's types of config values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigType {
    Boolean,
    String,
    Int,
    Long,
    Double,
    List,
}

impl ConfigType {
    /// The number that DescribeConfigs gives it.
    pub const fn code(self) -> i8 {
        match self {
            Self::Boolean => 1,
            Self::String => 2,
            Self::Int => 3,
            Self::Long => 5,
            Self::Double => 6,
            Self::List => 7,
        }
    }
}

/// What a value must satisfy beyond its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Check {
    Any,
    AtLeast(i64),
    Between(i64, i64),
    Ratio,
    OneOf(&'static [&'static str]),
    /// Each item of the list is one of these.
    ItemsOf(&'static [&'static str]),
    /// -1 or one of this range.
    DefaultOr(i64, i64),
    /// `*`, or a list of `partition:broker`.
    ThrottledReplicas,
    /// Only false.
    Off,
}

/// One config.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConfigDef {
    pub name: &'static str,
    pub kind: ConfigType,
    pub default: &'static str,
    pub check: Check,
    /// The broker config that gives a topic config its default; empty: none.
    pub broker_name: &'static str,
    pub doc: &'static str,
}

/// A config that a broker is started with and that cannot be altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedDef {
    pub name: &'static str,
    pub kind: ConfigType,
    /// Kafka's default; empty: none.
    pub default: &'static str,
}

/// Broker configs that Kafka leaves unset by default (another config, by hours, stands behind them): described as null, and
/// no synonym of a topic's config.
pub const UNSET_IN_KAFKA: &[&str] =
    &["log.flush.interval.ms", "log.retention.ms", "log.roll.jitter.ms", "log.roll.ms"];

/// The definition of a topic config.
pub fn topic_config(name: &str) -> Option<&'static ConfigDef> {
    TOPIC_CONFIGS.iter().find(|def| def.name == name)
}

/// The definition of a cluster-wide dynamic broker config.
pub fn broker_config(name: &str) -> Option<&'static ConfigDef> {
    BROKER_CONFIGS.iter().find(|def| def.name == name)
}

/// `isobar.durability` before level 2.
static DURABILITY_OF_LEVEL_1: ConfigDef = ConfigDef {
    name: "isobar.durability",
    kind: ConfigType::String,
    default: "wal",
    check: Check::OneOf(&["wal"]),
    broker_name: "",
    doc: "How a record becomes durable: wal, a write quorum of the write-ahead log.",
};

/// The definition of a topic config (or of a broker config, by `find`) at a feature level: what apply answers may not depend
/// on what its binary knows beyond that.
pub(crate) fn config_at(
    level: u32,
    name: &str,
    find: fn(&str) -> Option<&'static ConfigDef>,
) -> Option<&'static ConfigDef> {
    match name {
        "isobar.undelete.window.ms" if level < 2 => None,
        "isobar.durability" if level < 2 => Some(&DURABILITY_OF_LEVEL_1),
        _ => find(name),
    }
}

/// Whether a broker is started with this config, at a feature level.
pub(crate) fn is_fixed_at(level: u32, name: &str) -> bool {
    let later = level < 2 && name == "log.retention.check.interval.ms";
    !later && FIXED_BROKER_CONFIGS.iter().any(|def| def.name == name)
}

impl ConfigDef {
    /// A value as DescribeConfigs tells it: what was set may have spaces or capitals that mean nothing.
    pub fn canonical(&self, value: &str) -> String {
        match self.kind {
            ConfigType::Boolean => value.trim().to_ascii_lowercase(),
            ConfigType::List => list_items(value).collect::<Vec<_>>().join(","),
            _ => value.trim().to_owned(),
        }
    }

    /// Whether `value` may be set; the message is what Kafka's `ConfigException` says.
    pub fn check(&self, value: &str) -> Result<(), String> {
        let fail = |why: String| Err(format!("Invalid value {value} for configuration {}: {why}", self.name));
        let value = value.trim();
        let number = match self.kind {
            ConfigType::Boolean => {
                let is_true = value.eq_ignore_ascii_case("true");
                if is_true && self.check == Check::Off {
                    // Kafka's words.
                    return Err(
                        "Tiered Storage functionality is disabled in the broker. Topic cannot be configured \
                                with remote log storage."
                            .to_owned(),
                    );
                }
                let known = is_true || value.eq_ignore_ascii_case("false");
                return if known { Ok(()) } else { fail("Expected value to be either true or false".into()) };
            }
            ConfigType::Int => value.parse::<i32>().ok().map(i64::from),
            ConfigType::Long => value.parse::<i64>().ok(),
            ConfigType::Double => {
                return match value.parse::<f64>() {
                    Ok(ratio) if self.check != Check::Ratio || (0.0..=1.0).contains(&ratio) => Ok(()),
                    Ok(ratio) if ratio > 1.0 => fail("Value must be no more than 1".into()),
                    Ok(_) => fail("Value must be at least 0".into()),
                    Err(_) => fail("Not a number of type DOUBLE".into()),
                };
            }
            ConfigType::String | ConfigType::List => None,
        };
        match (self.kind, number) {
            (ConfigType::Int, None) => return fail("Not a number of type INT".into()),
            (ConfigType::Long, None) => return fail("Not a number of type LONG".into()),
            _ => {}
        }
        match (self.check, number) {
            (Check::AtLeast(least), Some(n)) if n < least => fail(format!("Value must be at least {least}")),
            (Check::Between(least, _), Some(n)) if n < least => {
                fail(format!("Value must be at least {least}"))
            }
            (Check::Between(_, most), Some(n)) if n > most => {
                fail(format!("Value must be no more than {most}"))
            }
            (Check::DefaultOr(least, most), Some(n)) if n != -1 && !(least..=most).contains(&n) => {
                fail(format!("Value must be between {least} and {most} or equal to -1"))
            }
            (Check::OneOf(known), _) if !known.contains(&value) => {
                fail(format!("String must be one of: {}", known.join(", ")))
            }
            (Check::ItemsOf(known), _) => match list_items(value).find(|item| !known.contains(item)) {
                Some(_) => fail(format!("String must be one of: {}", known.join(", "))),
                None => Ok(()),
            },
            (Check::ThrottledReplicas, _) if value != "*" && !list_items(value).all(is_replica) => {
                fail(format!(
                    "{} must be the literal '*' or a list of replicas in the following format: \
                 [partitionId]:[brokerId],[partitionId]:[brokerId],...",
                    self.name
                ))
            }
            _ => Ok(()),
        }
    }
}

/// `partition:broker`.
fn is_replica(item: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    item.split_once(':').is_some_and(|(partition, broker)| is_number(partition) && is_number(broker))
}

/// Items of a LIST value: separated by commas, trimmed; an empty value has none.
pub fn list_items(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// Where a value comes from, numbered as DescribeConfigs numbers config sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    DynamicTopic = 1,
    DynamicDefaultBroker = 3,
    StaticBroker = 4,
    Default = 5,
}

/// The value of a topic config and where it comes from: the topic's override, the cluster's dynamic default, Kafka's
/// default.
pub fn topic_value<'a>(
    def: &'a ConfigDef,
    overrides: &'a BTreeMap<String, String>,
    cluster: Option<&'a BTreeMap<String, String>>,
) -> (&'a str, ConfigSource) {
    if let Some(value) = overrides.get(def.name) {
        return (value, ConfigSource::DynamicTopic);
    }
    match cluster.and_then(|cluster| cluster.get(def.broker_name)) {
        Some(value) => (value, ConfigSource::DynamicDefaultBroker),
        None => (def.default, ConfigSource::Default),
    }
}
