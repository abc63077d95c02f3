//! Chunks of closed streams that this replica lacks and is given: see [`crate::repair`].

use std::sync::Arc;

use isobar_host::AlignedBuf;
use isobar_metadata::ids::StreamId;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{LocalReplica, of_append};
use crate::index::Place;
use crate::{Chunk, Wal, WalError};

/// What became of a chunk that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filled {
    /// It is durable here.
    Durable,
    /// Metadata has gone on since that index: look again whether it is live.
    Stale,
}

impl LocalReplica {
    /// Of these numbers of a stream, those that are not durable here.
    pub(crate) fn lacking(&self, stream: StreamId, numbers: impl Iterator<Item = u64>) -> Vec<u64> {
        let state = self.shared.state.lock();
        numbers.filter(|number| state.index.place((stream, *number)).is_none()).collect()
    }

    /// Makes a chunk durable that an image at this index says is live in a closed stream. One at a time for each chunk.
    pub(crate) async fn fill(&self, chunk: Chunk, at_index: u64) -> Result<Filled, WalError> {
        let shared = &self.shared;
        let id = (chunk.stream(), chunk.number());
        // What is kept free is for clients.
        if !Wal::has_room(self) {
            return Err(WalError::Full);
        }
        {
            let mut state = shared.state.lock();
            if state.index.place(id).is_some() {
                return Ok(Filled::Durable);
            }
            if state.index.holds(id) {
                return Err(WalError::Unavailable("it is being written already".to_owned()));
            }
            if !state.index.begin_filling(id, at_index) {
                return Ok(Filled::Stale);
            }
        }
        let (tell, told) = oneshot::channel();
        // The journal calls back unless it refuses the call itself; whoever waited may be gone by then.
        let settle = {
            let shared = Arc::clone(shared);
            let tell = Arc::new(Mutex::new(Some(tell)));
            move |result: Result<isobar_journal::Written, isobar_journal::JournalError>| {
                let mut state = shared.state.lock();
                let answer = match result {
                    Ok(written) => {
                        let place = Place {
                            position: written.position,
                            segment: written.segment,
                            bytes: written.len,
                        };
                        let entered = state.index.written(id, place);
                        shared.recycle_free(&mut state);
                        entered
                    }
                    Err(error) => {
                        state.index.not_filled(id);
                        Err(of_append(&error))
                    }
                };
                shared.publish(&state);
                drop(state);
                if let Some(tell) = tell.lock().take() {
                    let _ = tell.send(answer);
                }
            }
        };
        let again = settle.clone();
        if let Err(error) = shared.journal.append(chunk.frame().clone(), settle) {
            again(Err(error));
        }
        told.await.unwrap_or(Err(WalError::Closed)).map(|()| Filled::Durable)
    }

    /// A whole chunk, sealed anew, for another replica.
    pub(crate) async fn whole(&self, stream: StreamId, number: u64) -> Result<Chunk, WalError> {
        let chunk = self.shared.chunk((stream, number)).await?;
        let bytes = chunk.frame().len() as usize;
        Ok(chunk.resealed(AlignedBuf::unpooled(bytes), bytes, stream, number))
    }
}
