//! A PUT whose bytes come piece by piece: for objects too large to be held in memory.
//!
//! What it promises
//! 1. The object is there whole once [`PutStream::finish`] says so, and not at all before it was called.
//! 2. At most one part and one piece are held.
//! 3. A piece that fails ends it: a part that may or may not have arrived cannot be told from one that has, so nothing is sent
//!    twice under one name. The caller gives the name up and begins again under another.
//!
//! Accepted leak: parts of an upload whose process died before [`PutStream::abort`] stay in a cloud's bucket, unlisted, until
//! its rule for incomplete uploads removes them.

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::time::timeout;

use super::{Backend, Bucket, Failure, Seen};
use crate::StoreError;
use crate::directory::Staged;
use crate::metrics::OpLabels;

/// Bytes of a part; a cloud takes up to 10,000 parts, none but the last below 5 MiB.
const PART_BYTES: usize = 16 << 20;

/// See the module.
pub struct PutStream {
    bucket: Bucket,
    key: String,
    target: Target,
    gathered: Vec<Bytes>,
    gathered_bytes: usize,
    written_bytes: u64,
}

enum Target {
    Directory(Staged),
    Cloud(Box<dyn MultipartUpload>),
}

/// What is counted as an operation of its own.
const PART: &str = "put_part";

impl Bucket {
    /// Begins an object that comes in pieces.
    pub async fn put_stream(&self, key: &str) -> Result<PutStream, StoreError> {
        self.check_gate("put", key)?;
        let target = match &self.inner.backend {
            Backend::Directory(directory) => {
                let staged = directory.stage(key).await;
                Target::Directory(staged.map_err(|error| unfinished(key, Failure::of_read(&error)))?)
            }
            Backend::Cloud(store) => {
                let begin = |seen: Seen| async move {
                    let begun = store.put_multipart(&self.key(key)).await;
                    begun.map_err(|error| Failure::of_store(&error, true, &seen.lock()))
                };
                let begun = self.step(PART, key, begin).await;
                Target::Cloud(begun.map_err(|failure| unfinished(key, failure))?)
            }
        };
        let (bucket, key) = (self.clone(), key.to_owned());
        Ok(PutStream { bucket, key, target, gathered: Vec::new(), gathered_bytes: 0, written_bytes: 0 })
    }
}

/// Before its end there is no object, whatever became of a part.
fn unfinished(key: &str, failure: Failure) -> StoreError {
    Failure { happened: false, ..failure }.into_error("put", key, false)
}

impl PutStream {
    /// Bytes taken so far.
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Writes on; returns once no more than a part is held.
    pub async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), StoreError> {
        for piece in pieces {
            self.written_bytes += piece.len() as u64;
            self.gathered_bytes += piece.len();
            self.gathered.push(piece);
        }
        while self.gathered_bytes >= PART_BYTES {
            let part = self.cut(PART_BYTES);
            self.send(part).await?;
        }
        Ok(())
    }

    /// The first `bytes` of what has gathered.
    fn cut(&mut self, bytes: usize) -> Vec<Bytes> {
        let (mut part, mut left) = (Vec::new(), bytes.min(self.gathered_bytes));
        self.gathered_bytes -= left;
        let mut rest = std::mem::take(&mut self.gathered).into_iter();
        while left > 0 {
            let Some(mut piece) = rest.next() else { break };
            if piece.len() > left {
                let first = piece.split_to(left);
                self.gathered.push(piece);
                piece = first;
            }
            left -= piece.len();
            part.push(piece);
        }
        self.gathered.extend(rest);
        part
    }

    async fn send(&mut self, part: Vec<Bytes>) -> Result<(), StoreError> {
        let bytes = part.iter().map(|piece| piece.len() as u64).sum();
        let (bucket, key) = (&self.bucket, self.key.as_str());
        let _permit = bucket.permit(PART, key, bytes, bucket.inner.options.put_total).await?;
        let sent = match &mut self.target {
            Target::Directory(staged) => staged.append(part).await.map_err(|error| Failure::of_read(&error)),
            Target::Cloud(upload) => {
                let send = |seen: Seen| async move {
                    let sent = upload.put_part(part.into_iter().collect()).await;
                    sent.map_err(|error| Failure::of_store(&error, true, &seen.lock()))
                };
                bucket.step(PART, key, send).await
            }
        };
        sent.map_err(|failure| unfinished(key, failure))
    }

    /// Ends it: the object is there. Says its length.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        let last = self.cut(usize::MAX);
        if !last.is_empty()
            && let Err(error) = self.send(last).await
        {
            self.abort().await;
            return Err(error);
        }
        let Self { bucket, key, target, written_bytes, .. } = self;
        let store = bucket.name().to_owned();
        bucket.metrics().bytes.get_or_create(&OpLabels { store, op: "put" }).inc_by(written_bytes);
        bucket.check_gate("put", &key)?;
        let mut upload = match target {
            Target::Directory(staged) => {
                let Err(failure) = staged.commit().await else { return Ok(written_bytes) };
                let failure = Failure::of_write(&failure);
                let happened = failure.happened;
                return Err(failure.into_error("put", &key, happened));
            }
            Target::Cloud(upload) => upload,
        };
        let complete = |seen: Seen| async move {
            let done = upload.complete().await;
            done.map_err(|error| Failure::of_store(&error, true, &seen.lock()))
        };
        let Err(failure) = bucket.step(PART, &key, complete).await else { return Ok(written_bytes) };
        // Its answer may have been lost.
        match bucket.size(&key).await {
            Ok(size) if size == written_bytes => Ok(written_bytes),
            _ => Err(failure.into_error("put", &key, true)),
        }
    }

    /// Gives it up: what was sent is removed, as far as the store answers.
    pub async fn abort(self) {
        match self.target {
            Target::Directory(staged) => staged.discard().await,
            Target::Cloud(mut upload) => {
                let done = timeout(self.bucket.inner.options.put_attempt, upload.abort()).await;
                if !matches!(done, Ok(Ok(()))) {
                    tracing::warn!(key = %self.key, "the parts of a given up upload may be left in the store");
                }
            }
        }
    }
}
