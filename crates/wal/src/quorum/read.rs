//! Reads: memory, then this node's replica, then the others, the fastest first; the next one after a failure, or beside a slow
//! one.

use std::cmp::Reverse;
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::Bytes;
use isobar_metadata::ids::StreamId;
use tokio::time::{Instant, sleep};

use super::{Absent, Entry, Handle, Shared};
use crate::WalError;

/// Several futures, of which the first to end is taken.
pub(super) struct Race<'a, T>(Vec<Pin<Box<dyn Future<Output = T> + Send + 'a>>>);

impl<T> Default for Race<'_, T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'a, T> Race<'a, T> {
    pub(super) fn add(&mut self, runner: impl Future<Output = T> + Send + 'a) {
        self.0.push(Box::pin(runner));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next to end; never, if there is none.
    pub(super) async fn next(&mut self) -> T {
        poll_fn(|context| {
            for (index, runner) in self.0.iter_mut().enumerate() {
                if let Poll::Ready(output) = runner.as_mut().poll(context) {
                    drop(self.0.remove(index));
                    return Poll::Ready(output);
                }
            }
            Poll::Pending
        })
        .await
    }
}

impl Shared {
    pub(super) async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        let held = self.memory.lock().get((stream, number));
        if let Some(chunk) = held {
            self.metrics.read_from("memory");
            return chunk.batches(ordinals).ok_or(WalError::NotFound);
        }
        let entry = {
            let streams = self.streams.read();
            match streams.known.get(&stream) {
                Some(entry) => Arc::clone(entry),
                None if Some(stream) <= streams.newest_told => return Err(WalError::NotFound),
                None => return Err(WalError::Unavailable(format!("stream {stream} is not known here yet"))),
            }
        };
        let mut heard = Heard::default();
        let mut left = self.readers(&entry, &mut heard).into_iter();
        let mut asked = Race::default();
        let mut latest: Option<Arc<Handle>> = None;
        loop {
            if asked.is_empty() {
                let Some(handle) = left.next() else { return Err(heard.verdict()) };
                latest = Some(Arc::clone(&handle));
                asked.add(read_one(handle, stream, number, ordinals.clone()));
            }
            let answer = tokio::select! {
                biased;
                answer = asked.next() => answer,
                () = sleep(self.options.hedge), if left.len() > 0 => {
                    if let Some(handle) = left.next() {
                        self.metrics.hedged.inc();
                        if let Some(slow) = latest.replace(Arc::clone(&handle)) {
                            slow.avoid();
                        }
                        asked.add(read_one(handle, stream, number, ordinals.clone()));
                    }
                    continue;
                }
            };
            match answer {
                (is_local, Ok(batches)) => {
                    self.metrics.read_from(if is_local { "local" } else { "remote" });
                    return Ok(batches);
                }
                (_, Err(error)) => heard.note(error),
            }
        }
    }

    /// Whom to ask, in order. Who cannot be asked is noted.
    fn readers(&self, entry: &Entry, heard: &mut Heard) -> Vec<Arc<Handle>> {
        let live = entry.live.load(Ordering::Acquire);
        let mut readers = Vec::with_capacity(entry.ensemble.len());
        for (member, directory) in entry.ensemble.iter().enumerate() {
            match self.handle(*directory) {
                Ok(handle) => readers.push((live & (1 << member) != 0, handle)),
                Err(Absent::Removed) => {}
                Err(Absent::Unknown) => {
                    heard.note(WalError::Unavailable(format!("nobody knows where replica {directory} is")));
                }
            }
        }
        // Who was left behind has the beginning at best.
        readers.sort_by_key(|(is_live, handle)| {
            let latency_us = handle.latency_us.load(Ordering::Relaxed);
            (Reverse(*is_live), handle.is_avoided(), !handle.replica.is_local(), latency_us)
        });
        readers.into_iter().map(|(_, handle)| handle).collect()
    }
}

async fn read_one(
    handle: Arc<Handle>,
    stream: StreamId,
    number: u64,
    ordinals: Range<u32>,
) -> (bool, Result<Vec<Bytes>, WalError>) {
    let began = Instant::now();
    let result = handle.replica.read(stream, number, ordinals).await;
    if matches!(result, Ok(_) | Err(WalError::NotFound)) {
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let before_us = handle.latency_us.load(Ordering::Relaxed);
        handle.latency_us.store((before_us / 8 * 7).saturating_add(took_us / 8), Ordering::Relaxed);
    } else {
        handle.avoid();
    }
    (handle.replica.is_local(), result)
}

/// What replicas said that did not have it.
#[derive(Default)]
struct Heard {
    corrupt: Option<WalError>,
    unavailable: Vec<String>,
}

impl Heard {
    fn note(&mut self, error: WalError) {
        match error {
            WalError::NotFound => {}
            WalError::Corrupt(_) => _ = self.corrupt.get_or_insert(error),
            error => self.unavailable.push(error.to_string()),
        }
    }

    /// After all have been asked.
    fn verdict(self) -> WalError {
        match (self.corrupt, self.unavailable) {
            (Some(corrupt), unavailable) if unavailable.is_empty() => corrupt,
            (None, unavailable) if unavailable.is_empty() => WalError::NotFound,
            (_, unavailable) => WalError::Unavailable(unavailable.join("; ")),
        }
    }
}
