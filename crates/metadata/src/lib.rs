//! The metadata of an Isobar cluster, pure: no I/O, no tasks, no clock, no randomness.
//!
//! Owns: ids ([`ids`]), commands ([`command`]) and their results ([`result`]), effects ([`effect`]), the image that
//! brokers follow ([`Image`]), and topic configs ([`config_table`]).

pub mod codes;
pub mod command;
pub mod config_table;
pub mod effect;
mod error;
pub mod ids;
mod image;
pub mod record;
pub mod result;

pub use command::{Command, Entry, Envelope};
pub use effect::{Effect, EffectBatch, EffectKind};
pub use error::MetadataError;
pub use ids::{
    DirectoryId, Durability, LaneId, ObjectId, PartitionKey, PlacementId, SessionId, StoreId, StreamId,
    TopicId, lane_of,
};
pub use image::{Changes, Extents, Group, Image, PartitionView, Stream, Topic};
pub use record::{ClusterFormat, Extent, Location};
pub use result::CommandResult;
