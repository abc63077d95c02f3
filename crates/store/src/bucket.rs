//! A store: one bucket, by name.
//!
//! What it promises
//! 1. A request ends within its total deadline, whatever the store does.
//! 2. A request that failed is tried again, with jitter, as long as the deadline allows and the failure may pass. Only
//!    requests that may be sent twice exist here: GET, DELETE, and PUT of a name whose bytes are fixed.
//! 3. An error says whether the request may have happened: `DidNotHappen` only if no attempt may have.
//! 4. Every attempt is counted and timed.
//! 5. Requests wait for room among those of all classes ([`Classes`]), within their total deadline.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use isobar_host::Host;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutPayload};
use tokio::time::Instant;

use crate::StoreError;
use crate::classes::{Class, Classes};
use crate::directory::{Directory, WriteFailure};
use crate::hedge::Hedging;
use crate::metrics::{OpLabels, RequestLabels, StoreMetrics};

mod traffic;

/// Deadlines and patience.
#[derive(Debug, Clone)]
pub struct BucketOptions {
    /// One attempt of a PUT.
    pub put_attempt: Duration,
    /// A PUT with all its retries.
    pub put_total: Duration,
    /// One attempt of any other request.
    pub get_attempt: Duration,
    /// Any other request with all its retries.
    pub get_total: Duration,
    /// First pause before a retry; each next may be twice as long.
    pub backoff: Duration,
    /// Longest pause before a retry.
    pub backoff_max: Duration,
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self {
            put_attempt: Duration::from_secs(20),
            put_total: Duration::from_secs(60),
            get_attempt: Duration::from_secs(5),
            get_total: Duration::from_secs(15),
            backoff: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
        }
    }
}

#[derive(Clone)]
enum Backend {
    Directory(Directory),
    Cloud(Arc<dyn ObjectStore>),
}

/// One store. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
    /// Of the requests sent through this handle.
    class: Class,
}

struct Inner {
    host: Host,
    name: String,
    prefix: String,
    backend: Backend,
    options: BucketOptions,
    metrics: StoreMetrics,
    classes: Classes,
    hedging: Hedging,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("name", &self.inner.name)
            .field("prefix", &self.inner.prefix)
            .finish_non_exhaustive()
    }
}

/// How one attempt failed.
struct Failure {
    /// The attempt may have had its effect.
    happened: bool,
    /// Trying again may help.
    transient: bool,
    not_found: bool,
    why: String,
}

impl Bucket {
    /// Opens `url`: `file:///absolute/dir` (made if it is not there). The clouds' URLs come with their own issue.
    pub async fn open(
        host: &Host,
        name: &str,
        url: &str,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let Some(path) = url.strip_prefix("file://") else {
            return Err(StoreError::Config(format!(
                "store URL {url:?}: only file:///absolute/path is supported yet"
            )));
        };
        if !path.starts_with('/') {
            return Err(StoreError::Config(format!(
                "store URL {url:?}: the path after file:// must be absolute"
            )));
        }
        Self::open_dir(host, name, &PathBuf::from(path), options, metrics).await
    }

    /// Opens a directory as a store; made if it is not there.
    pub async fn open_dir(
        host: &Host,
        name: &str,
        root: &std::path::Path,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let directory = Directory::open(host, root)
            .await
            .map_err(|error| StoreError::Config(format!("store directory {}: {error}", root.display())))?;
        Ok(Self::with_backend(host, name, "", Backend::Directory(directory), options, metrics))
    }

    /// Any object_store below a prefix (may be empty).
    pub fn new(
        host: &Host,
        name: &str,
        prefix: &str,
        store: Arc<dyn ObjectStore>,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Self {
        Self::with_backend(host, name, prefix, Backend::Cloud(store), options, metrics)
    }

    fn with_backend(
        host: &Host,
        name: &str,
        prefix: &str,
        backend: Backend,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Self {
        let inner = Inner {
            host: host.clone(),
            name: name.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            backend,
            options,
            metrics,
            classes: Classes::default(),
            hedging: Hedging::default(),
        };
        Self { inner: Arc::new(inner), class: Class::Control }
    }

    /// The store's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Where its requests are counted.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&std::path::Path> {
        match &self.inner.backend {
            Backend::Directory(directory) => Some(directory.root()),
            Backend::Cloud(_) => None,
        }
    }

    /// Stores an object. The bytes of a key never change, so this may be repeated, also after `MayHaveHappened`.
    pub async fn put(&self, key: &str, parts: Vec<Bytes>) -> Result<(), StoreError> {
        let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let attempt = || async {
            match &self.inner.backend {
                Backend::Directory(directory) => {
                    directory.put(key, parts.clone()).await.map_err(Failure::of_write)
                }
                Backend::Cloud(store) => {
                    let payload: PutPayload = parts.iter().cloned().collect();
                    store
                        .put(&self.key(key), payload)
                        .await
                        .map(drop)
                        .map_err(|error| Failure::of_store(error, true))
                }
            }
        };
        let options = &self.inner.options;
        let _permit = self.permit("put", key, total, options.put_total).await?;
        self.retry("put", key, options.put_attempt, options.put_total, true, attempt).await?;
        self.count_bytes("put", total);
        Ok(())
    }

    /// Bytes of an object. All of the range must be there.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let _permit = self.permit("get", key, wanted, self.inner.options.get_total).await?;
        let ask = || self.read("get", key, || self.get_once(key, range.clone()));
        let bytes = self.hedged(wanted, ask).await?;
        self.count_bytes("get", bytes.len() as u64);
        Ok(bytes)
    }

    async fn get_once(&self, key: &str, range: Range<u64>) -> Result<Bytes, Failure> {
        match &self.inner.backend {
            Backend::Directory(directory) => directory.get_range(key, range).await.map_err(Failure::of_read),
            Backend::Cloud(store) => {
                let wanted = range.end - range.start;
                let bytes = store
                    .get_range(&self.key(key), range)
                    .await
                    .map_err(|error| Failure::of_store(error, false))?;
                // object_store shortens a range that goes beyond the end.
                if bytes.len() as u64 == wanted {
                    Ok(bytes)
                } else {
                    Err(Failure::read(format!("{} bytes came back, not {wanted}", bytes.len())))
                }
            }
        }
    }

    /// Bytes of an object, as many of the range as there are; the range must begin within the object.
    pub async fn get_up_to(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let wanted = range.end.saturating_sub(range.start);
        let _permit = self.permit("get", key, wanted, self.inner.options.get_total).await?;
        let ask = || self.read("get", key, || self.get_some(key, range.clone()));
        let bytes = self.hedged(wanted, ask).await?;
        self.count_bytes("get", bytes.len() as u64);
        Ok(bytes)
    }

    async fn get_some(&self, key: &str, range: Range<u64>) -> Result<Bytes, Failure> {
        match &self.inner.backend {
            Backend::Directory(directory) => directory.get_up_to(key, range).await.map_err(Failure::of_read),
            Backend::Cloud(store) => {
                let end = range.end;
                let options = GetOptions::new().with_range(Some(range));
                let result = store
                    .get_opts(&self.key(key), options)
                    .await
                    .map_err(|error| Failure::of_store(error, false))?;
                let wanted = end.min(result.meta.size).saturating_sub(result.range.start);
                let bytes = result.bytes().await.map_err(|error| Failure::of_store(error, false))?;
                if bytes.len() as u64 == wanted {
                    Ok(bytes)
                } else {
                    Err(Failure::read(format!("{} bytes came back, not {wanted}", bytes.len())))
                }
            }
        }
    }

    /// Length of an object.
    pub async fn size(&self, key: &str) -> Result<u64, StoreError> {
        let _permit = self.permit("head", key, 0, self.inner.options.get_total).await?;
        self.read("head", key, || async {
            match &self.inner.backend {
                Backend::Directory(directory) => directory.size(key).await.map_err(Failure::of_read),
                Backend::Cloud(store) => store
                    .head(&self.key(key))
                    .await
                    .map(|meta| meta.size)
                    .map_err(|error| Failure::of_store(error, false)),
            }
        })
        .await
    }

    /// Removes an object; one that is not there is removed already.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let options = &self.inner.options;
        let _permit = self.permit("delete", key, 0, options.get_total).await?;
        let result = self
            .retry("delete", key, options.get_attempt, options.get_total, true, || async {
                match &self.inner.backend {
                    Backend::Directory(directory) => directory
                        .delete(key)
                        .await
                        .map_err(|error| Failure { happened: true, ..Failure::of_read(error) }),
                    Backend::Cloud(store) => {
                        store.delete(&self.key(key)).await.map_err(|error| Failure::of_store(error, true))
                    }
                }
            })
            .await;
        match result {
            Err(StoreError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// Keys of the objects right below `dir`, sorted: for `fsck` and tests.
    pub async fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let _permit = self.permit("list", dir, 0, self.inner.options.get_total).await?;
        self.read("list", dir, || async {
            let mut names = match &self.inner.backend {
                Backend::Directory(directory) => directory.list(dir).await.map_err(Failure::of_read)?,
                Backend::Cloud(store) => {
                    let objects: Vec<_> = store
                        .list(Some(&self.key(dir)))
                        .try_collect()
                        .await
                        .map_err(|error| Failure::of_store(error, false))?;
                    objects.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect()
                }
            };
            names.sort();
            Ok(names.into_iter().map(|name| format!("{dir}/{name}")).collect())
        })
        .await
    }

    fn key(&self, key: &str) -> Key {
        if self.inner.prefix.is_empty() {
            Key::from(key)
        } else {
            Key::from(format!("{}/{key}", self.inner.prefix))
        }
    }

    async fn read<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let options = &self.inner.options;
        self.retry(op, key, options.get_attempt, options.get_total, false, attempt).await
    }

    async fn retry<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        attempt_limit: Duration,
        total_limit: Duration,
        mutates: bool,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + total_limit;
        let mut pause = self.inner.options.backoff;
        let mut may_have_happened = false;
        loop {
            let started = Instant::now();
            let limit = attempt_limit.min(deadline.saturating_duration_since(started));
            let result = match tokio::time::timeout(limit, attempt()).await {
                Ok(result) => result,
                Err(_) => Err(Failure {
                    happened: mutates,
                    transient: true,
                    not_found: false,
                    why: format!("no answer in {} ms", limit.as_millis()),
                }),
            };
            self.count(op, &result, started.elapsed());
            let failure = match result {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            may_have_happened |= failure.happened;
            // Full jitter, but for half the pause, so that no retry comes at once.
            let jitter = self.inner.host.random_u64() % (pause.as_millis() as u64 / 2 + 1);
            let wait = pause / 2 + Duration::from_millis(jitter);
            if !failure.transient || Instant::now() + wait >= deadline {
                return Err(failure.into_error(op, key, may_have_happened));
            }
            tracing::debug!(store = %self.inner.name, op, key, why = %failure.why, "store request failed, trying again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(self.inner.options.backoff_max);
        }
    }

    fn count<T>(&self, op: &'static str, result: &Result<T, Failure>, took: Duration) {
        let metrics = &self.inner.metrics;
        let result = match result {
            Ok(_) => "ok",
            Err(failure) if failure.not_found => "not_found",
            Err(failure) if failure.happened => "may_have_happened",
            Err(failure) if !failure.transient => "refused",
            Err(_) => "did_not_happen",
        };
        let store = self.inner.name.clone();
        metrics.requests.get_or_create(&RequestLabels { store: store.clone(), op, result }).inc();
        metrics.latency.get_or_create(&OpLabels { store, op }).observe(took.as_secs_f64());
    }

    fn count_bytes(&self, op: &'static str, bytes: u64) {
        self.inner
            .metrics
            .bytes
            .get_or_create(&OpLabels { store: self.inner.name.clone(), op })
            .inc_by(bytes);
    }
}

impl Failure {
    fn read(why: String) -> Self {
        Self { happened: false, transient: true, not_found: false, why }
    }

    fn of_read(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let transient = !matches!(
            error.kind(),
            ErrorKind::NotFound
                | ErrorKind::PermissionDenied
                | ErrorKind::InvalidInput
                | ErrorKind::UnexpectedEof
        );
        let not_found = error.kind() == ErrorKind::NotFound;
        Self { happened: false, transient, not_found, why: error.to_string() }
    }

    fn of_write(failure: WriteFailure) -> Self {
        let (happened, error) = match failure {
            WriteFailure::DidNotHappen(error) => (false, error),
            WriteFailure::MayHaveHappened(error) => (true, error),
        };
        Self { happened, not_found: false, ..Self::of_read(error) }
    }

    fn of_store(error: object_store::Error, mutates: bool) -> Self {
        use object_store::Error;
        let not_found = matches!(error, Error::NotFound { .. });
        let permanent = matches!(
            error,
            Error::NotFound { .. }
                | Error::InvalidPath { .. }
                | Error::NotSupported { .. }
                | Error::NotImplemented { .. }
                | Error::PermissionDenied { .. }
                | Error::Unauthenticated { .. }
                | Error::UnknownConfigurationKey { .. }
        );
        // A precondition that failed is an answer; whatever else is no clear refusal may have gone through.
        let answered = matches!(
            error,
            Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }
        );
        Self {
            happened: mutates && !permanent && !answered,
            transient: !permanent,
            not_found,
            why: error.to_string(),
        }
    }

    fn into_error(self, op: &'static str, key: &str, may_have_happened: bool) -> StoreError {
        let key = key.to_owned();
        if self.not_found && op == "put" {
            // Of a PUT it is the bucket that is not there.
            StoreError::Refused { op, key, why: self.why }
        } else if self.not_found {
            StoreError::NotFound(key)
        } else if may_have_happened {
            StoreError::MayHaveHappened { op, key, why: self.why }
        } else if self.transient {
            StoreError::DidNotHappen { op, key, why: self.why }
        } else {
            StoreError::Refused { op, key, why: self.why }
        }
    }
}
