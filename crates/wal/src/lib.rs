//! The write-ahead log: chunks, and the replica that keeps them until their batches lie in objects.
//!
//! Owns: the chunk format, the [`Wal`] trait that a broker writes to and reads from, the [`LocalReplica`] on this node's
//! disk, and its memory of recent chunks; the quorum writer; the repairer, which gives a replica the copies that others lost.
//!
//! Promises: an append is acknowledged after its sync; a stream's chunks are acknowledged in order and without a gap; what is not
//! found is [`WalError::NotFound`], never an empty answer; every CRC is checked on the way from the disk.
//!
//! May not know: offsets, topics' configs, Raft. Bytes here mean nothing until metadata points at them.

mod chunk;
#[cfg(feature = "conformance")]
pub mod conformance;
mod ensemble;
mod error;
mod index;
mod member;
mod metrics;
mod quorum;
mod remote;
mod repair;
mod replica;
mod service;
mod table;
mod tail;
mod wire;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::StreamId;

pub use chunk::{
    BatchInfo, Chunk, ChunkBatch, ChunkPartition, ChunkWriter, FRAME_KIND, NO_PRODUCER_EPOCH, NO_PRODUCER_ID,
    NO_SEQUENCE,
};
pub use ensemble::{Candidate, TooFewReplicas, choose_ensemble};
pub use error::WalError;
pub use member::Replica;
pub use metrics::{LeftLabels, QuorumMetrics, ReadLabels, WalMetrics};
pub use quorum::{Directories, ENSEMBLE_MAX, Found, Limits, QuorumOptions, QuorumWal, Standing};
pub use remote::{RemoteOptions, RemoteReplica};
pub use repair::{RepairOptions, RepairParts, Truth, start_repairer};
pub use replica::{LocalReplica, ReplicaOptions};
pub use service::WalService;

/// That a chunk is durable on a write quorum of its stream's replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// The replicas that have synced it by now, as bits by their position in the stream's ensemble: what its commit says.
    pub acknowledged: u32,
}

impl Acked {
    /// By the one replica of an ensemble of one.
    pub const ALONE: Self = Self { acknowledged: 1 };
}

/// Called once an append is durable or has failed.
pub type AppendDone = Box<dyn FnOnce(Result<Acked, WalError>) + Send>;

/// What a broker writes chunks to and reads them from: one replica, or a quorum of them.
#[async_trait]
pub trait Wal: Send + Sync {
    /// Appends a chunk to the stream it was sealed for. Numbers of a stream start at 0 and have no gap; calls for one
    /// stream come in order and not at the same time.
    ///
    /// `done` is called once: for one stream in the order of the calls when the appends are durable; a chunk that is
    /// refused ([`WalError::Full`], [`WalError::Closed`], [`WalError::Gap`]) may hear so at once, within this call, and its
    /// number is not used up. It must not block.
    fn append(&self, chunk: Chunk, done: AppendDone);

    /// The largest chunk it takes, as encoded.
    fn max_chunk_bytes(&self) -> usize;

    /// False when appends are about to be refused for want of space: take nothing new from clients and tell them to try
    /// again, so that what was taken already still fits.
    fn has_room(&self) -> bool;

    /// Waits until [`has_room`](Self::has_room), by the event, not by the clock.
    async fn room(&self);

    /// The batches with these ordinals, as they were pushed: from memory, else from disk with every CRC checked.
    async fn read(&self, stream: StreamId, number: u64, ordinals: Range<u32>)
    -> Result<Vec<Bytes>, WalError>;

    /// Learns from metadata which streams are closed and which chunks nothing points at. Batches come in order of index.
    fn follow(&self, batch: &EffectBatch);
}
