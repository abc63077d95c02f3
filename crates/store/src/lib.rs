//! Objects in buckets: how they are written, found, read and deleted.
//!
//! Owns: the [`Bucket`] wrapper around a store, the object [`format`], the block cache and the [`ObjectReader`], what goes into the next
//! object ([`plan`]), the [`Uploader`] and the [`Deleter`].
//!
//! Promises: a commit is proposed only for bytes that the store has acknowledged; every batch's CRC is checked on its way from
//! a store; an error says whether the request may have happened.
//!
//! May not know: Kafka's requests, Raft.

mod bucket;
mod build;
mod cache;
mod chunks;
mod claim;
mod cluster;
mod compact;
mod delete;
mod directory;
mod disk_cache;
mod error;
pub mod format;
mod ids;
pub mod fsck;
mod index;
mod metrics;
pub mod plan;
mod reader;
mod retain;
mod upload;

pub use bucket::{Bucket, BucketOptions, Created};
pub use bucket::{Bucket, BucketOptions, ListedObject, PutStream};
pub use cache::{BLOCK_BYTES, Block, BlockCache, BlockKey, BlockSource, MemoryCache};
pub use chunks::{ChunkStore, ChunkStoreParts, PlacedChunk, PlacedDone};
pub use claim::{Claim, ClaimError, ClaimGuard, claim, claimed, read_claim};
pub use cluster::{ProposeFailed, Proposer};
pub use compact::{Compactor, CompactorOptions, plan as compact_plan};
pub use delete::{Deleter, DeleterOptions};
pub use disk_cache::{DiskCache, DiskCacheOptions};
pub use error::StoreError;
pub use metrics::{OpLabels, RequestLabels, StoreMetrics};
pub use reader::{ObjectReader, ReadBatches, ReadObject};
pub use index::{IndexReader, Indexer, IndexerOptions, plan as index_plan};
pub use metrics::{JobLabels, OpLabels, RequestLabels, StoreMetrics};
pub use reader::{ObjectReader, ReadObject};
pub use retain::{Retainer, RetainerOptions, RetainerParts, plan as retain_plan};
pub use upload::{Uploader, UploaderOptions, UploaderParts};
