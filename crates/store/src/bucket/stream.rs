//! A PUT whose bytes come piece by piece: for objects too large to be held in memory.
//!
//! What it promises
//! 1. The object is there whole once [`PutStream::finish`] says so, and not at all before it was called.
//! 2. At most [`PART_BYTES`] and one piece are held.
//! 3. A piece that fails ends it: a part that may or may not have arrived cannot be told from one that has, so nothing is sent
//!    twice under one name. The caller gives the name up and begins again under another.
//!
//! Accepted leak: parts of an upload whose process died before [`PutStream::abort`] stay in a cloud's bucket, unlisted, until
//! its rule for incomplete uploads removes them.

use std::time::Duration;

use bytes::Bytes;
use object_store::{MultipartUpload, ObjectStoreExt};
use tokio::time::timeout;

use super::{Backend, Bucket};
use crate::StoreError;
use crate::directory::{Staged, WriteFailure};
use crate::metrics::{OpLabels, RequestLabels};

/// Bytes of a part; a cloud takes up to 10,000 parts, none but the last below 5 MiB.
pub const PART_BYTES: usize = 16 << 20;

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

impl Bucket {
    /// Begins an object that comes in pieces.
    pub async fn put_stream(&self, key: &str) -> Result<PutStream, StoreError> {
        let target = match &self.inner.backend {
            Backend::Directory(directory) => {
                let staged = directory.stage(key).await;
                Target::Directory(staged.map_err(|error| did_not_happen(key, error.to_string()))?)
            }
            Backend::Cloud(store) => {
                let begun = timeout(self.patience(), store.put_multipart(&self.key(key))).await;
                let upload = self.counted(key, begun)?;
                Target::Cloud(upload)
            }
        };
        let (bucket, key) = (self.clone(), key.to_owned());
        Ok(PutStream { bucket, key, target, gathered: Vec::new(), gathered_bytes: 0, written_bytes: 0 })
    }

    fn patience(&self) -> Duration {
        self.inner.options.put_attempt
    }

    fn counted<T>(
        &self,
        key: &str,
        result: Result<object_store::Result<T>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        let (label, result) = match result {
            Ok(Ok(value)) => ("ok", Ok(value)),
            Ok(Err(error)) => match refused(&error) {
                true => (
                    "refused",
                    Err(StoreError::Refused { op: "put", key: key.to_owned(), why: error.to_string() }),
                ),
                false => ("did_not_happen", Err(did_not_happen(key, error.to_string()))),
            },
            Err(_) => {
                let why = format!("no answer in {} ms", self.patience().as_millis());
                ("did_not_happen", Err(did_not_happen(key, why)))
            }
        };
        let labels = RequestLabels { store: self.name().to_owned(), op: "put_part", result: label };
        self.metrics().requests.get_or_create(&labels).inc();
        result
    }
}

fn refused(error: &object_store::Error) -> bool {
    use object_store::Error;
    matches!(
        error,
        Error::NotFound { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::NotSupported { .. }
            | Error::NotImplemented { .. }
    )
}

fn did_not_happen(key: &str, why: String) -> StoreError {
    StoreError::DidNotHappen { op: "put", key: key.to_owned(), why }
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
        match &mut self.target {
            Target::Directory(staged) => {
                staged.append(part).await.map_err(|error| did_not_happen(&self.key, error.to_string()))
            }
            Target::Cloud(upload) => {
                let sent = timeout(self.bucket.patience(), upload.put_part(part.into_iter().collect())).await;
                self.bucket.counted(&self.key, sent)
            }
        }
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
        match target {
            Target::Directory(staged) => match staged.commit().await {
                Ok(_) => Ok(written_bytes),
                Err(WriteFailure::DidNotHappen(error)) => Err(did_not_happen(&key, error.to_string())),
                Err(WriteFailure::MayHaveHappened(error)) => {
                    Err(StoreError::MayHaveHappened { op: "put", key, why: error.to_string() })
                }
            },
            Target::Cloud(mut upload) => {
                let done = timeout(bucket.patience(), upload.complete()).await;
                let Err(error) = bucket.counted(&key, done) else { return Ok(written_bytes) };
                // Its answer may have been lost.
                match bucket.size(&key).await {
                    Ok(size) if size == written_bytes => Ok(written_bytes),
                    _ => Err(StoreError::MayHaveHappened { op: "put", key, why: error.to_string() }),
                }
            }
        }
    }

    /// Gives it up: what was sent is removed, as far as the store answers.
    pub async fn abort(self) {
        match self.target {
            Target::Directory(staged) => staged.discard().await,
            Target::Cloud(mut upload) => {
                let done = timeout(self.bucket.patience(), upload.abort()).await;
                if !matches!(done, Ok(Ok(()))) {
                    tracing::warn!(key = %self.key, "the parts of a given up upload may be left in the store");
                }
            }
        }
    }
}
