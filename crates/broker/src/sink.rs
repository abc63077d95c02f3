//! Where a lane's chunks become durable: the write-ahead log, or, for the durability class `object`, the store itself.

use std::sync::Arc;

use isobar_store::{ChunkStore, PlacedChunk, StoreError};
use isobar_wal::{Acked, Chunk, Wal, WalError};

/// The largest chunk of the class `object`: above the largest frame, so that every batch that a client can send fits.
const MAX_OBJECT_CHUNK_BYTES: usize = 128 << 20;

/// Takes chunks in the order of their numbers and tells of them in that order.
#[derive(Clone)]
pub(crate) enum Sink {
    /// A stream of the write-ahead log.
    Wal(Arc<dyn Wal>),
    /// Each chunk is an object.
    Object(ChunkStore),
}

/// That a chunk is durable, and what its commit says of the place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Durable {
    /// On the stream's replicas.
    Wal(Acked),
    /// In a store.
    Object(PlacedChunk),
}

/// Why a chunk did not become durable.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// It and all that are under way behind it are refused; their numbers are not used up. Clients try again.
    Later(&'static str, String),
    /// The stream takes nothing more: it and all that are under way behind it go to another, under their numbers.
    Moved(String),
    /// Nothing more will be taken.
    ForGood(String),
}

impl Sink {
    pub(crate) fn max_chunk_bytes(&self) -> usize {
        match self {
            Self::Wal(wal) => wal.max_chunk_bytes(),
            Self::Object(_) => MAX_OBJECT_CHUNK_BYTES,
        }
    }

    /// Whether producers may be let in. What a store has taken is bounded by the lane's own bound.
    pub(crate) fn has_room(&self) -> bool {
        match self {
            Self::Wal(wal) => wal.has_room(),
            Self::Object(_) => true,
        }
    }

    pub(crate) async fn room(&self) {
        if let Self::Wal(wal) = self {
            wal.room().await;
        }
    }

    /// `number` is the one that the chunk's commit will have.
    pub(crate) fn append(
        &self,
        chunk: Chunk,
        number: u64,
        done: impl FnOnce(Result<Durable, Refusal>) + Send + 'static,
    ) {
        match self {
            Self::Wal(wal) => {
                wal.append(chunk, Box::new(move |result| done(result.map(Durable::Wal).map_err(of_wal))));
            }
            Self::Object(chunks) => {
                let done = move |result: Result<PlacedChunk, StoreError>| {
                    done(result.map(Durable::Object).map_err(of_store));
                };
                chunks.append(chunk, number, Box::new(done));
            }
        }
    }
}

fn of_wal(error: WalError) -> Refusal {
    match error {
        WalError::Full | WalError::TooLarge(_) => {
            Refusal::Later("the write-ahead log is full", error.to_string())
        }
        WalError::Closed | WalError::Gap { .. } => Refusal::Moved(error.to_string()),
        error => Refusal::ForGood(error.to_string()),
    }
}

/// A store never fails for good: a person may mend what is wrong with it, and nothing of the lane is lost.
fn of_store(error: StoreError) -> Refusal {
    Refusal::Later("the object store did not take the write", error.to_string())
}
