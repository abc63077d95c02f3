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
#[cfg(feature = "aws")]
pub mod aws;
mod bucket;
mod build;
mod cache;
mod cause;
mod chunks;
mod claim;
mod classes;
mod cloud;
mod cluster;
mod compact;
mod credentials;
mod delete;
mod directory;
mod disk_cache;
mod error;
pub mod format;
pub mod fsck;
mod hedge;
mod ids;
mod index;
mod marker;
mod metrics;
mod overdue;
pub mod plan;
mod probe;
mod reader;
mod retain;
mod upload;
mod url;
mod zone;

pub use bucket::{Bucket, BucketHealth, BucketOptions, Created, ListedObject, PutStream, Trouble};
pub use cache::{BLOCK_BYTES, Block, BlockCache, BlockKey, BlockSource, MemoryCache};
pub use cause::Cause;
pub use chunks::{ChunkStore, ChunkStoreParts, PlacedChunk, PlacedDone};
pub use claim::{Claim, ClaimError, ClaimGuard, claim, claimed, read_claim};
pub use classes::{Class, ClassLimits, Classes, Limits, Permit};
pub use cluster::{ProposeFailed, Proposer};
pub use compact::{Compactor, CompactorOptions, plan as compact_plan};
pub use credentials::{CredentialSource, Environment, credential_source};
pub use delete::{Deleter, DeleterOptions};
pub use disk_cache::{DiskCache, DiskCacheOptions};
pub use error::StoreError;
pub use index::{IndexReader, Indexer, IndexerOptions, plan as index_plan};
pub use marker::{MARKER_KEY, Marker, MarkerFound};
pub use metrics::{
    CauseLabels, ClassLabels, FailingLabels, JobLabels, OpLabels, RequestLabels, StoreMetrics,
};
pub use probe::{Latencies, Percentiles, Probe, ProbeStep};
pub use reader::{ObjectReader, ReadBatches, ReadObject};
pub use retain::{Retainer, RetainerOptions, RetainerParts, plan as retain_plan};
pub use upload::{Uploader, UploaderOptions, UploaderParts};
pub use url::{StoreKind, StoreUrl};
pub use zone::{Neighbours, Zone};
