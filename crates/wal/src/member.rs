//! A replica as the quorum writer sees it: on this node's disk, or on another's.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_metadata::ids::StreamId;

use crate::{AppendDone, Chunk, LocalReplica, Wal, WalError};

/// One incarnation of a WAL directory.
#[async_trait]
pub trait Replica: Send + Sync {
    /// Appends a chunk. For one stream, calls come one after another, and the appends that are taken are answered in their
    /// order once they are synced; refusals may be answered at once, within this call. What `done` hears of
    /// `acknowledged` means nothing. [`WalError::Full`], [`WalError::TooLarge`] and [`WalError::Gap`] say that the chunk was
    /// not kept; after any other error it may have been.
    fn append(&self, chunk: Chunk, done: AppendDone);

    /// The batches with these ordinals. [`WalError::NotFound`] only if this incarnation itself has said so.
    async fn read(&self, stream: StreamId, number: u64, ordinals: Range<u32>)
    -> Result<Vec<Bytes>, WalError>;

    /// Asks whether it is there, under its incarnation, and whether it has room.
    async fn probe(&self) -> Result<bool, WalError>;

    /// Whether it took new chunks when it was last heard.
    fn has_room(&self) -> bool;

    /// Waits until it has room.
    async fn room(&self);

    /// Whether it is on this node.
    fn is_local(&self) -> bool;

    /// Whether there is a way to it at the moment.
    fn is_connected(&self) -> bool;
}

#[async_trait]
impl Replica for LocalReplica {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        self.append_strictly(chunk, done);
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        Wal::read(self, stream, number, ordinals).await
    }

    async fn probe(&self) -> Result<bool, WalError> {
        match self.failure() {
            Some(error) => Err(error),
            None => Ok(Wal::has_room(self)),
        }
    }

    fn has_room(&self) -> bool {
        Wal::has_room(self)
    }

    async fn room(&self) {
        Wal::room(self).await;
    }

    fn is_local(&self) -> bool {
        true
    }

    fn is_connected(&self) -> bool {
        true
    }
}
