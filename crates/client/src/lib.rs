//! A thin Kafka client: raw batches in and out, groups, and admin calls, for Isobar's CLI, demo, tests and simulation.
//!
//! Owns: connections with pipelining, metadata, the producer's order and sequences, a consumer's positions, a group
//! member's life.
//!
//! Promises:
//! 1. Every call ends by a deadline, and its error says what to do ([`ClientError::action`]) and whether the broker
//!    may have done it all the same ([`ClientError::is_ambiguous`]).
//! 2. What is sent to one partition arrives in the order of the calls, resent or not. With idempotence on, it
//!    arrives once, or the producer stops with an error.
//! 3. Nothing is delivered that failed its CRC.
//! 4. No clock, randomness, task or socket but through `Host` and tokio's time, so a seed replays it.
//!
//! May not know: the broker's inside. Works with Apache Kafka 3.7 and later too, which calibrates its tests.

mod admin;
mod assign;
mod client;
mod config;
mod connection;
mod consume;
mod coordinator;
mod error;
mod group;
mod groups;
mod lane;
mod metadata;
mod offsets;
mod partition;
mod pool;
mod produce;

pub use admin::{ConfigEntry, ConfigResource, NewTopic};
pub use client::Client;
pub use config::ClientConfig;
pub use consume::{Consumer, ConsumerConfig, Fetched, Isolation, Reset};
pub use error::{Action, ClientError};
pub use group::{GroupConfig, GroupConsumer, Member, Polled};
pub use groups::{CommittedOffset, GroupListing};
pub use metadata::{BrokerInfo, ClusterMetadata, PartitionInfo, TopicInfo, TopicPartition};
pub use offsets::{ListedOffset, OffsetSpec};
pub use partition::partition_for_key;
pub use produce::{Acked, Acks, Delivery, OutgoingRecord, Producer, ProducerConfig};
