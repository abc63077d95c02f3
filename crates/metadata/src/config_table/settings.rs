//! A topic's configs, parsed once per change.

use super::{TOPIC_CONFIGS, list_items, topic_value};
use crate::ids::Durability;
use std::collections::BTreeMap;

/// `message.timestamp.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TimestampType {
    #[default]
    CreateTime,
    LogAppendTime,
}

/// `compression.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// As the producer sent it.
    #[default]
    Producer,
    Uncompressed,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

/// What a topic's configs come to: overrides, the cluster's dynamic defaults, Kafka's defaults.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct TopicSettings {
    /// `cleanup.policy` has `delete`.
    pub cleanup_delete: bool,
    /// `cleanup.policy` has `compact`.
    pub cleanup_compact: bool,
    /// -1: for ever.
    pub retention_ms: i64,
    /// -1: without bound.
    pub retention_bytes: i64,
    pub segment_ms: i64,
    pub segment_bytes: i64,
    pub delete_retention_ms: i64,
    pub max_message_bytes: i32,
    pub timestamp_type: TimestampType,
    /// How much older than the broker's time a record may be.
    pub timestamp_before_max_ms: i64,
    /// How much newer.
    pub timestamp_after_max_ms: i64,
    pub compression: Compression,
    pub gzip_level: i32,
    pub lz4_level: i32,
    pub zstd_level: i32,
    pub min_insync_replicas: i32,
    pub durability: Durability,
    /// How long a deleted topic can be brought back; 0: not at all.
    pub undelete_window_ms: i64,
}

impl TopicSettings {
    /// Values that no check let in are taken as the default, so a cluster never stops over one.
    pub fn of(overrides: &BTreeMap<String, String>, cluster: Option<&BTreeMap<String, String>>) -> Self {
        let mut settings = Self::default();
        for def in TOPIC_CONFIGS {
            let (value, _) = topic_value(def, overrides, cluster);
            if !settings.set(def.name, value) {
                settings.set(def.name, def.default);
            }
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) -> bool {
        let value = value.trim();
        match name {
            "cleanup.policy" => {
                self.cleanup_delete = list_items(value).any(|item| item == "delete");
                self.cleanup_compact = list_items(value).any(|item| item == "compact");
            }
            "retention.ms" => return number(value, &mut self.retention_ms),
            "retention.bytes" => return number(value, &mut self.retention_bytes),
            "segment.ms" => return number(value, &mut self.segment_ms),
            "segment.bytes" => return number(value, &mut self.segment_bytes),
            "delete.retention.ms" => return number(value, &mut self.delete_retention_ms),
            "max.message.bytes" => return number(value, &mut self.max_message_bytes),
            "message.timestamp.before.max.ms" => return number(value, &mut self.timestamp_before_max_ms),
            "message.timestamp.after.max.ms" => return number(value, &mut self.timestamp_after_max_ms),
            "compression.gzip.level" => return number(value, &mut self.gzip_level),
            "compression.lz4.level" => return number(value, &mut self.lz4_level),
            "compression.zstd.level" => return number(value, &mut self.zstd_level),
            "isobar.undelete.window.ms" => return number(value, &mut self.undelete_window_ms),
            "min.insync.replicas" => return number(value, &mut self.min_insync_replicas),
            "message.timestamp.type" => {
                self.timestamp_type = match value {
                    "CreateTime" => TimestampType::CreateTime,
                    "LogAppendTime" => TimestampType::LogAppendTime,
                    _ => return false,
                };
            }
            "compression.type" => {
                self.compression = match value {
                    "producer" => Compression::Producer,
                    "uncompressed" => Compression::Uncompressed,
                    "gzip" => Compression::Gzip,
                    "snappy" => Compression::Snappy,
                    "lz4" => Compression::Lz4,
                    "zstd" => Compression::Zstd,
                    _ => return false,
                };
            }
            "isobar.durability" => {
                self.durability = match value {
                    "wal" => Durability::Wal,
                    "object" => Durability::Object,
                    _ => return false,
                };
            }
            _ => {}
        }
        true
    }
}

fn number<T: std::str::FromStr>(value: &str, into: &mut T) -> bool {
    match value.parse() {
        Ok(parsed) => {
            *into = parsed;
            true
        }
        Err(_) => false,
    }
}
