//! The ring of recent effect batches, and the streams that follow it.
//!
//! Invariants
//! 1. Batches are in the order of their indexes, each one's `previous` the index before it.
//! 2. The ring holds at most its limit in bytes, but always the newest batch. A follower whose place has left the ring
//!    is told so ([`Lagged`]) and takes an image; it is never given a gap.
//! 3. A batch is in the ring before the applied index passes it and before any of its commands is answered.

use std::collections::VecDeque;
use std::sync::Arc;

use isobar_host::watch;
use isobar_metadata::EffectBatch;
use parking_lot::Mutex;
use prost::Message as _;

/// What a batch costs besides its encoded size.
const BATCH_OVERHEAD_BYTES: usize = 128;

/// The follower's next batch is no longer in the ring: subscribe anew and start from that image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fell out of the ring of effects")]
pub struct Lagged;

/// Recent effect batches, bounded in bytes.
pub(crate) struct Ring {
    inner: Mutex<Inner>,
    /// Serial number of the next batch; changes wake the followers. Closed by dropping.
    end: watch::Sender<u64>,
    limit_bytes: usize,
}

struct Inner {
    batches: VecDeque<(Arc<EffectBatch>, usize)>,
    /// Serial number of the first batch held.
    start: u64,
    bytes: usize,
    closed: bool,
}

impl Inner {
    fn end(&self) -> u64 {
        self.start + self.batches.len() as u64
    }
}

impl Ring {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let inner = Inner { batches: VecDeque::new(), start: 0, bytes: 0, closed: false };
        Self { inner: Mutex::new(inner), end: watch::Sender::new(0), limit_bytes }
    }

    pub(crate) fn push(&self, batch: Arc<EffectBatch>) {
        let cost = batch.encoded_len() + BATCH_OVERHEAD_BYTES;
        let end = {
            let mut inner = self.inner.lock();
            inner.bytes += cost;
            inner.batches.push_back((batch, cost));
            while inner.bytes > self.limit_bytes && inner.batches.len() > 1 {
                if let Some((_, cost)) = inner.batches.pop_front() {
                    inner.bytes -= cost;
                    inner.start += 1;
                }
            }
            inner.end()
        };
        self.end.send_replace(end);
    }

    /// Forgets everything: the state was replaced by a snapshot, so that every follower needs a new image.
    pub(crate) fn reset(&self) {
        let end = {
            let mut inner = self.inner.lock();
            // One serial number is skipped, so that followers at the end have lagged as well.
            inner.start = inner.end() + 1;
            inner.batches.clear();
            inner.bytes = 0;
            inner.start
        };
        self.end.send_replace(end);
    }

    /// Ends every stream once it has seen all.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.end.send_modify(|_| {});
    }

    pub(crate) fn bytes(&self) -> usize {
        self.inner.lock().bytes
    }

    /// Follows everything after what is in the ring now.
    pub(crate) fn follow(self: &Arc<Self>) -> EffectStream {
        self.stream(self.inner.lock().end())
    }

    /// Follows everything after the batch of this index, if the ring reaches back so far.
    pub(crate) fn resume(self: &Arc<Self>, after_index: u64) -> Option<EffectStream> {
        let next = {
            let inner = self.inner.lock();
            let place = inner.batches.partition_point(|(batch, _)| batch.index <= after_index);
            let joins = match inner.batches.get(place) {
                Some((batch, _)) => batch.previous == after_index,
                None => inner.batches.back().is_some_and(|(batch, _)| batch.index == after_index),
            };
            joins.then(|| inner.start + place as u64)?
        };
        Some(self.stream(next))
    }

    fn stream(self: &Arc<Self>, next: u64) -> EffectStream {
        EffectStream { ring: Arc::clone(self), end: self.end.subscribe(), next }
    }
}

/// Effect batches from one place on, in order, without a gap.
pub struct EffectStream {
    ring: Arc<Ring>,
    end: watch::Receiver<u64>,
    next: u64,
}

impl EffectStream {
    /// Another that goes on from the same place.
    pub fn fork(&self) -> Self {
        self.ring.stream(self.next)
    }

    /// The next batch; waits for it. `Ok(None)`: the member stopped and everything was seen.
    pub async fn next(&mut self) -> Result<Option<Arc<EffectBatch>>, Lagged> {
        loop {
            // Marks what is there as seen before looking, so that nothing pushed after the look is missed.
            self.end.borrow_and_update();
            if let Some(batch) = self.try_next()? {
                return Ok(Some(batch));
            }
            if self.ring.inner.lock().closed || self.end.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    /// The next batch if it is there.
    pub fn try_next(&mut self) -> Result<Option<Arc<EffectBatch>>, Lagged> {
        let inner = self.ring.inner.lock();
        let offset = self.next.checked_sub(inner.start).ok_or(Lagged)?;
        let found = usize::try_from(offset).ok().and_then(|i| inner.batches.get(i));
        let batch = found.map(|(batch, _)| Arc::clone(batch));
        if batch.is_some() {
            self.next += 1;
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(index: u64, previous: u64) -> Arc<EffectBatch> {
        Arc::new(EffectBatch { version: 1, index, previous, time_ms: 0, effects: Vec::new() })
    }

    fn indexes(stream: &mut EffectStream) -> Result<Vec<u64>, Lagged> {
        let mut seen = Vec::new();
        while let Some(batch) = stream.try_next()? {
            seen.push(batch.index);
        }
        Ok(seen)
    }

    #[test]
    fn a_follower_sees_every_batch_after_its_start() {
        let ring = Arc::new(Ring::new(1 << 20));
        ring.push(batch(3, 0));
        let mut stream = ring.follow();
        assert_eq!(indexes(&mut stream), Ok(vec![]));
        ring.push(batch(4, 3));
        ring.push(batch(7, 4));
        assert_eq!(indexes(&mut stream), Ok(vec![4, 7]));
    }

    #[test]
    fn the_ring_is_bounded_in_bytes_and_who_falls_out_is_told() {
        let cost = batch(2, 1).encoded_len() + BATCH_OVERHEAD_BYTES;
        let ring = Arc::new(Ring::new(3 * cost));
        let mut slow = ring.follow();
        for i in 1..=3 {
            ring.push(batch(i, i - 1));
        }
        let mut kept_up = ring.follow();
        assert_eq!(slow.try_next().map(|b| b.map(|b| b.index)), Ok(Some(1)));
        for i in 4..=6 {
            ring.push(batch(i, i - 1));
        }
        assert!(ring.bytes() <= 3 * cost);
        assert_eq!(slow.try_next(), Err(Lagged));
        assert_eq!(indexes(&mut kept_up), Ok(vec![4, 5, 6]));
    }

    #[test]
    fn a_reset_makes_everyone_lag() {
        let ring = Arc::new(Ring::new(1 << 20));
        ring.push(batch(1, 0));
        let mut at_end = ring.follow();
        ring.reset();
        assert_eq!(at_end.try_next(), Err(Lagged));
        let mut fresh = ring.follow();
        ring.push(batch(9, 8));
        assert_eq!(indexes(&mut fresh), Ok(vec![9]));
    }

    #[test]
    fn resume_joins_only_where_the_chain_is_unbroken() {
        let cost = batch(2, 1).encoded_len() + BATCH_OVERHEAD_BYTES;
        let ring = Arc::new(Ring::new(2 * cost));
        for (index, previous) in [(2, 0), (5, 2), (6, 5)] {
            ring.push(batch(index, previous));
        }
        assert!(ring.resume(0).is_none(), "batch 2 has left the ring");
        assert_eq!(ring.resume(2).map(|mut s| indexes(&mut s)), Some(Ok(vec![5, 6])));
        assert_eq!(ring.resume(5).map(|mut s| indexes(&mut s)), Some(Ok(vec![6])));
        assert_eq!(ring.resume(6).map(|mut s| indexes(&mut s)), Some(Ok(vec![])));
        assert!(ring.resume(4).is_none(), "4 was no batch");
        assert!(ring.resume(7).is_none(), "7 is not there yet");
    }

    #[test]
    fn a_fork_goes_on_from_the_same_place_also_in_an_empty_ring() {
        let ring = Arc::new(Ring::new(1 << 20));
        let mut stream = ring.follow();
        assert!(ring.resume(0).is_none(), "an empty ring does not know where it begins");
        let mut fork = stream.fork();
        ring.push(batch(1, 0));
        ring.push(batch(2, 1));
        assert_eq!(indexes(&mut fork), Ok(vec![1, 2]));
        assert_eq!(indexes(&mut stream.fork()), Ok(vec![1, 2]));
        assert_eq!(indexes(&mut stream), Ok(vec![1, 2]));
        assert_eq!(indexes(&mut stream.fork()), Ok(vec![]));
    }

    #[test]
    fn a_closed_ring_ends_its_streams() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            let ring = Arc::new(Ring::new(1 << 20));
            let mut stream = ring.follow();
            ring.push(batch(1, 0));
            ring.close();
            assert_eq!(stream.next().await.map(|b| b.map(|b| b.index)), Ok(Some(1)));
            assert_eq!(stream.next().await, Ok(None));
        });
    }
}
