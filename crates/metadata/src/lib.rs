//! The metadata of an Isobar cluster, pure: no I/O, no tasks, no clock, no randomness.
//!
//! Owns: ids ([`ids`]), commands ([`command`]) and their results ([`result`]), effects ([`effect`]), the image that
//! brokers follow ([`Image`]), the state machine that makes the ones of the others ([`StateMachine`]), its snapshots, and topic
//! configs ([`config_table`]).
//!
//! Promises: `apply` is deterministic and never fails; a repeat answers with the first result; the effects of any log make
//! the image that the state machine has; what a later version wrote is refused, never skipped.
//!
//! May not know: how commands get here, where bytes lie beyond their location's name, what a batch holds beyond its header.

pub mod codes;
pub mod command;
pub mod config_table;
pub mod effect;
mod error;
pub mod ids;
mod image;
pub mod index_block;
pub mod record;
pub mod recover;
pub mod result;
mod snapshot;
mod state;

pub use command::{Command, Entry, Envelope};
pub use effect::{Effect, EffectBatch, EffectKind};
pub use error::MetadataError;
pub use ids::{
    DirectoryId, Durability, LaneId, ObjectId, PartitionKey, PlacementId, SessionId, StoreId, StreamId,
    TopicId, lane_of,
};
pub use image::{
    Changes, DeletedTopic, Difference, Extents, Found, Group, Image, Object, PartitionView, Pointers, Stream,
    Topic,
};
pub use record::{ClusterFormat, Extent, IndexPointer, Location};
pub use result::CommandResult;
pub use snapshot::{Frozen, MAGIC as SNAPSHOT_MAGIC, SNAPSHOT_VERSION};
pub use state::Rule;
pub use state::{Applied, StateMachine, TIME_JUMP_MS, check_name, check_topic_configs};
