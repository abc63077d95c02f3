//! Objects in buckets: how they are written, found, read and deleted.
//!
//! Owns: the [`Bucket`] wrapper around a store, the object [`format`], the block cache and the [`ObjectReader`], what goes into the next
//! object ([`plan`]), the [`Uploader`] and the [`Deleter`].
//!
//! Promises: a commit is proposed only for bytes that the store has acknowledged; every batch's CRC is checked on its way from
//! a store; an error says whether the request may have happened.
//!
//! May not know: Kafka's requests, Raft.

mod ahead;
mod bucket;
mod build;
mod cache;
mod classes;
mod cluster;
mod delete;
mod directory;
mod disk_cache;
mod error;
pub mod format;
mod hedge;
mod metrics;
pub mod plan;
mod reader;
mod upload;

pub use bucket::{Bucket, BucketOptions};
pub use cache::{BLOCK_BYTES, Block, BlockCache, BlockKey, BlockSource, MemoryCache};
pub use classes::{Class, ClassLimits, Classes, Limits, Permit};
pub use cluster::{ProposeFailed, Proposer};
pub use delete::{Deleter, DeleterOptions};
pub use disk_cache::{DiskCache, DiskCacheOptions};
pub use error::StoreError;
pub use metrics::{ClassLabels, OpLabels, RequestLabels, StoreMetrics};
pub use reader::{ObjectReader, ReadObject};
pub use upload::{Uploader, UploaderOptions, UploaderParts};
