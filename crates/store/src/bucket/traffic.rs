//! How a bucket's requests share the way to the store: classes, and GETs that are sent twice.

use super::{Backend, Bucket, Bytes, Duration, Failure, GetOptions, Instant, Range, StoreError};
use crate::classes::{Class, Permit};

use futures_util::TryStreamExt as _;

impl Bucket {
    /// The same bucket, its requests of another class. A fresh bucket's are [`Class::Control`].
    pub fn with_class(&self, class: Class) -> Self {
        Self { class, ..self.clone() }
    }

    /// Waits, no longer than a whole request may take, until a request of `bytes` may be sent.
    pub(super) async fn permit(
        &self,
        op: &'static str,
        key: &str,
        bytes: u64,
        patience: Duration,
    ) -> Result<Permit, StoreError> {
        let classes = &self.inner.classes;
        if let Some(permit) = classes.try_acquire(self.class, bytes) {
            return Ok(permit);
        }
        let started = Instant::now();
        let permit = tokio::time::timeout(patience, classes.acquire(self.class, bytes)).await;
        self.inner.metrics.class_waits(self.class).observe(started.elapsed().as_secs_f64());
        permit.map_err(|_| StoreError::DidNotHappen {
            op,
            key: key.to_owned(),
            why: format!("{} ms behind other requests of its class", patience.as_millis()),
        })
    }

    /// Bytes of an object, as many of the range as there are, in pieces of `piece_bytes` (the last may be shorter) that do not
    /// hold on to each other's memory; the range must begin within the object.
    pub async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let wanted = range.end.saturating_sub(range.start);
        let _permit = self.permit("get", key, wanted, self.inner.options.get_total).await?;
        let ask = || self.read("get", key, || self.get_pieces_once(key, range.clone(), piece_bytes));
        let pieces = self.hedged(wanted, ask).await?;
        self.count_bytes("get", pieces.iter().map(|piece| piece.len() as u64).sum());
        Ok(pieces)
    }

    async fn get_pieces_once(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> Result<Vec<Bytes>, Failure> {
        let store = match &self.inner.backend {
            Backend::Directory(directory) => {
                return directory.get_pieces(key, range, piece_bytes).await.map_err(Failure::of_read);
            }
            Backend::Cloud(store) => store,
        };
        let end = range.end;
        let options = GetOptions::new().with_range(Some(range));
        let result =
            store.get_opts(&self.key(key), options).await.map_err(|error| Failure::of_store(error, false))?;
        let wanted = end.min(result.meta.size).saturating_sub(result.range.start);
        let mut pieces = Pieces::new(wanted, piece_bytes);
        let mut body = result.into_stream();
        while let Some(part) = body.try_next().await.map_err(|error| Failure::of_store(error, false))? {
            pieces.push(&part);
        }
        let got = pieces.bytes;
        if got == wanted {
            Ok(pieces.finish())
        } else {
            Err(Failure::read(format!("{got} bytes came back, not {wanted}")))
        }
    }

    /// Sends a GET of `bytes`, and once more if it takes longer than such GETs do; the first good answer is used, the
    /// other request dropped.
    pub(super) async fn hedged<T, F: Future<Output = Result<T, StoreError>>>(
        &self,
        bytes: u64,
        ask: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        if matches!(self.inner.backend, Backend::Directory(_)) {
            return ask().await;
        }
        let hedging = &self.inner.hedging;
        let started = Instant::now();
        let mut first = Box::pin(ask());
        let outcome = match hedging.delay(bytes) {
            None => first.await,
            Some(delay) => match tokio::time::timeout(delay, &mut first).await {
                Ok(outcome) => outcome,
                Err(_) => match self.second_permit(bytes) {
                    None => first.await,
                    Some(_permit) => {
                        self.inner.metrics.hedges.inc();
                        let mut second = Box::pin(ask());
                        tokio::select! {
                            biased;
                            outcome = &mut first => match outcome {
                                Err(_) => second.await,
                                good => good,
                            },
                            outcome = &mut second => match outcome {
                                Err(_) => first.await,
                                good => {
                                    self.inner.metrics.hedges_won.inc();
                                    good
                                }
                            },
                        }
                    }
                },
            },
        };
        if outcome.is_ok() {
            hedging.note(bytes, started.elapsed());
        }
        outcome
    }

    fn second_permit(&self, bytes: u64) -> Option<Permit> {
        // The budget last: a hedge that has no room is not used up.
        self.inner.classes.try_acquire(self.class, bytes).filter(|_| self.inner.hedging.take())
    }
}

/// A body on its way into buffers of its pieces.
struct Pieces {
    done: Vec<Bytes>,
    open: Vec<u8>,
    piece_bytes: usize,
    wanted: u64,
    bytes: u64,
}

impl Pieces {
    fn new(wanted: u64, piece_bytes: u64) -> Self {
        let piece_bytes = usize::try_from(piece_bytes).unwrap_or(usize::MAX).max(1);
        Self { done: Vec::new(), open: Vec::new(), piece_bytes, wanted, bytes: 0 }
    }

    fn push(&mut self, mut part: &[u8]) {
        while !part.is_empty() {
            if self.open.capacity() == 0 {
                let left = usize::try_from(self.wanted.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
                self.open = Vec::with_capacity(left.min(self.piece_bytes));
            }
            let (now, later) = part.split_at(part.len().min(self.piece_bytes - self.open.len()));
            self.open.extend_from_slice(now);
            self.bytes += now.len() as u64;
            part = later;
            if self.open.len() == self.piece_bytes {
                self.done.push(std::mem::take(&mut self.open).into());
            }
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.done.push(self.open.into());
        }
        self.done
    }
}
