//! A store: one bucket, by name.
//!
//! What it promises
//! 1. A request ends within its total deadline, whatever the store does.
//! 2. A request that failed is tried again, with jitter and under the bucket's budget of retries, as long as the deadline
//!    allows and the failure may pass. Only requests that may be sent twice exist here: GET, DELETE, PUT of a name whose bytes are
//!    fixed, and a create whose bytes tell whose they are.
//! 3. An error says whether the request may have happened: `DidNotHappen` only if no attempt may have. It names the cause and
//!    what to do about it.
//! 4. Every attempt is counted and timed.
//! 5. Nothing is written while it is not known whether the bucket is this cluster's ([`Bucket::hold_writes`]).
//! 6. Requests wait for room among those of all classes ([`Classes`]), within their total deadline.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use isobar_host::Host;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;

use crate::StoreError;
use crate::cause::Failure;
use crate::classes::{Class, Classes};
use crate::cloud::http::Wire;
use crate::directory::Directory;
use crate::hedge::Hedging;
use crate::metrics::StoreMetrics;
use crate::url::{StoreKind, StoreUrl};

mod budget;
mod health;
mod listing;
mod retry;
mod stream;
mod traffic;

use budget::Budget;
use health::HealthState;
pub use health::{BucketHealth, Trouble};
pub use listing::ListedObject;
use retry::Seen;
pub use stream::PutStream;

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

/// Whose a key is after [`Bucket::create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// The key holds the bytes of this call.
    Mine,
    /// The key holds other bytes.
    Exists,
}

#[derive(Clone)]
enum Backend {
    Directory(Directory),
    Cloud(Arc<dyn ObjectStore>),
}

/// Whether writes may go out.
enum Gate {
    Open,
    /// It is not known whose the bucket is.
    Held,
    /// It is another cluster's.
    Shut(String),
}

/// One store. Cheap to clone.
#[derive(Clone)]
pub struct Bucket {
    inner: Arc<Inner>,
    class: Class,
}

struct Inner {
    host: Host,
    name: String,
    prefix: String,
    backend: Backend,
    /// What a cloud's HTTP client sees; directories and given stores have none.
    wire: Option<Wire>,
    options: BucketOptions,
    metrics: StoreMetrics,
    budget: Budget,
    health: HealthState,
    gate: Mutex<Gate>,
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

impl Bucket {
    /// Opens the store that a URL names (`url.rs` says which forms there are). A directory is made if it is not there; of a
    /// cloud's nothing is asked yet.
    pub async fn open(
        host: &Host,
        name: &str,
        url: &str,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let url = StoreUrl::parse(url)?;
        if url.kind == StoreKind::Directory {
            return Self::open_dir(host, name, &PathBuf::from(&url.base), options, metrics).await;
        }
        let cloud = crate::cloud::open(host, &url).await?;
        let backend = Backend::Cloud(cloud.store);
        Ok(Self::with_backend(host, name, &url.prefix, (backend, Some(cloud.wire)), options, metrics))
    }

    /// Opens a directory as a store; made if it is not there.
    pub async fn open_dir(
        host: &Host,
        name: &str,
        root: &std::path::Path,
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Result<Self, StoreError> {
        let directory = Directory::open(host, root).await.map_err(|error| cannot_open(root, &error))?;
        Ok(Self::with_backend(host, name, "", (Backend::Directory(directory), None), options, metrics))
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
        Self::with_backend(host, name, prefix, (Backend::Cloud(store), None), options, metrics)
    }

    fn with_backend(
        host: &Host,
        name: &str,
        prefix: &str,
        (backend, wire): (Backend, Option<Wire>),
        options: BucketOptions,
        metrics: StoreMetrics,
    ) -> Self {
        let inner = Inner {
            host: host.clone(),
            name: name.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
            backend,
            wire,
            options,
            metrics,
            budget: Budget::new(),
            health: HealthState::default(),
            gate: Mutex::new(Gate::Open),
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

    /// What its last requests say about it.
    pub fn health(&self) -> BucketHealth {
        self.inner.health.get()
    }

    /// The store's clock minus ours in milliseconds, once it has answered; exact to a second.
    pub fn clock_skew_ms(&self) -> Option<i64> {
        self.inner.wire.as_ref()?.skew_ms()
    }

    /// The object_store below, without prefix, deadlines and retries: for conformance tests.
    pub fn raw(&self) -> Option<Arc<dyn ObjectStore>> {
        match &self.inner.backend {
            Backend::Directory(_) => None,
            Backend::Cloud(store) => Some(Arc::clone(store)),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.inner.host
    }

    /// From now on writes and deletes fail as not happened, until [`Self::allow_writes`].
    pub fn hold_writes(&self) {
        *self.inner.gate.lock() = Gate::Held;
    }

    /// The bucket is this cluster's.
    pub fn allow_writes(&self) {
        *self.inner.gate.lock() = Gate::Open;
    }

    /// The bucket is not this cluster's: writes and deletes are refused with these words.
    pub fn refuse_writes(&self, why: &str) {
        *self.inner.gate.lock() = Gate::Shut(why.to_owned());
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
        let attempt = |seen: Seen| {
            let parts = parts.clone();
            async move {
                match &self.inner.backend {
                    Backend::Directory(directory) => {
                        directory.put(key, parts).await.map_err(|failure| Failure::of_write(&failure))
                    }
                    Backend::Cloud(store) => {
                        let payload: PutPayload = parts.into_iter().collect();
                        let done = store.put(&self.key(key), payload).await;
                        done.map(drop).map_err(|error| Failure::of_store(&error, true, &seen.lock()))
                    }
                }
            }
        };
        let _permit = self.permit("put", key, total, self.inner.options.put_total).await?;
        self.write("put", key, attempt).await?;
        self.count_bytes("put", total);
        Ok(())
    }

    /// Stores an object only if there is none of this name: the one conditional write. Of any number of callers with
    /// different bytes exactly one finds that the key is its own. The bytes must hold something that nobody else writes (a
    /// random writer id), because that is how a repeated request knows its own earlier success.
    ///
    /// An error leaves open whose the key is or will be, unless it is `DidNotHappen` or `Refused`.
    pub async fn create(&self, key: &str, bytes: Bytes) -> Result<Created, StoreError> {
        let attempt = |seen: Seen| {
            let bytes = bytes.clone();
            async move {
                let created = match &self.inner.backend {
                    Backend::Directory(directory) => directory
                        .create(key, bytes.clone())
                        .await
                        .map_err(|failure| Failure::of_write(&failure)),
                    Backend::Cloud(store) => {
                        let options = PutOptions::from(PutMode::Create);
                        let done = store.put_opts(&self.key(key), bytes.clone().into(), options).await;
                        done.map(drop).map_err(|error| Failure::of_store(&error, true, &seen.lock()))
                    }
                };
                match created {
                    Ok(()) => Ok(Created::Mine),
                    Err(failure) if failure.exists => self.whose(key, &bytes, seen).await,
                    Err(failure) => Err(failure),
                }
            }
        };
        let created = self.write("create", key, attempt).await?;
        if created == Created::Mine {
            self.count_bytes("create", bytes.len() as u64);
        }
        Ok(created)
    }

    /// Whose bytes a taken key holds: an earlier attempt's of the same call are ours.
    async fn whose(&self, key: &str, bytes: &Bytes, seen: Seen) -> Result<Created, Failure> {
        // One more than ours have shows that they are not ours.
        let there = self.get_some(key, 0..bytes.len() as u64 + 1, seen).await;
        match there {
            Ok(there) if there == *bytes => Ok(Created::Mine),
            Ok(_) => Ok(Created::Exists),
            // A store that says 409 to all while two race may have taken neither; or it was deleted meanwhile.
            Err(failure) => {
                Err(Failure { transient: failure.transient || failure.not_found, happened: true, ..failure })
            }
        }
    }

    /// Bytes of an object. All of the range must be there.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let wanted = range.end - range.start;
        let _permit = self.permit("get", key, wanted, self.inner.options.get_total).await?;
        let ask = || self.read("get", key, |seen| self.get_once(key, range.clone(), seen));
        let bytes = self.hedged(wanted, ask).await?;
        self.count_bytes("get", bytes.len() as u64);
        Ok(bytes)
    }

    async fn get_once(&self, key: &str, range: Range<u64>, seen: Seen) -> Result<Bytes, Failure> {
        match &self.inner.backend {
            Backend::Directory(directory) => {
                directory.get_range(key, range).await.map_err(|error| Failure::of_read(&error))
            }
            Backend::Cloud(store) => {
                let wanted = range.end - range.start;
                let bytes = store
                    .get_range(&self.key(key), range)
                    .await
                    .map_err(|error| Failure::of_store(&error, false, &seen.lock()))?;
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
        let ask = || self.read("get", key, |seen| self.get_some(key, range.clone(), seen));
        let bytes = self.hedged(wanted, ask).await?;
        self.count_bytes("get", bytes.len() as u64);
        Ok(bytes)
    }

    async fn get_some(&self, key: &str, range: Range<u64>, seen: Seen) -> Result<Bytes, Failure> {
        match &self.inner.backend {
            Backend::Directory(directory) => {
                directory.get_up_to(key, range).await.map_err(|error| Failure::of_read(&error))
            }
            Backend::Cloud(store) => {
                let end = range.end;
                let options = GetOptions::new().with_range(Some(range));
                let result = store
                    .get_opts(&self.key(key), options)
                    .await
                    .map_err(|error| Failure::of_store(&error, false, &seen.lock()))?;
                let wanted = end.min(result.meta.size).saturating_sub(result.range.start);
                let bytes =
                    result.bytes().await.map_err(|error| Failure::of_store(&error, false, &seen.lock()))?;
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
        let attempt = |seen: Seen| async move {
            let store = match &self.inner.backend {
                Backend::Directory(directory) => {
                    return directory.size(key).await.map_err(|error| Failure::of_read(&error));
                }
                Backend::Cloud(store) => store,
            };
            let error = match store.head(&self.key(key)).await {
                Ok(meta) => return Ok(meta.size),
                Err(error) => Failure::of_store(&error, false, &seen.lock()),
            };
            if !error.not_found || self.inner.wire.is_none() {
                return Err(error);
            }
            // The answer to a HEAD has no body, so it does not tell a missing object from a missing bucket.
            match self.get_some(key, 0..1, seen).await {
                Err(failure) => Err(failure),
                Ok(_) => Err(Failure::read("it came while it was asked for".to_owned())),
            }
        };
        let _permit = self.permit("head", key, 0, self.inner.options.get_total).await?;
        self.read("head", key, attempt).await
    }

    /// Removes an object; one that is not there is removed already.
    pub async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let attempt = |seen: Seen| async move {
            match &self.inner.backend {
                Backend::Directory(directory) => directory
                    .delete(key)
                    .await
                    .map_err(|error| Failure { happened: true, ..Failure::of_read(&error) }),
                Backend::Cloud(store) => {
                    let done = store.delete(&self.key(key)).await;
                    done.map_err(|error| Failure::of_store(&error, true, &seen.lock()))
                }
            }
        };
        let _permit = self.permit("delete", key, 0, self.inner.options.get_total).await?;
        match self.write("delete", key, attempt).await {
            Err(StoreError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    /// Keys of the objects right below `dir`, sorted: for `fsck` and tests.
    pub async fn list(&self, dir: &str) -> Result<Vec<String>, StoreError> {
        let attempt = |seen: Seen| async move {
            let mut names = match &self.inner.backend {
                Backend::Directory(directory) => {
                    directory.list(dir).await.map_err(|error| Failure::of_read(&error))?
                }
                Backend::Cloud(store) => {
                    let objects: Vec<_> = store
                        .list(Some(&self.key(dir)))
                        .try_collect()
                        .await
                        .map_err(|error| Failure::of_store(&error, false, &seen.lock()))?;
                    objects.iter().filter_map(|meta| meta.location.filename().map(str::to_owned)).collect()
                }
            };
            names.sort();
            Ok(names.into_iter().map(|name| format!("{dir}/{name}")).collect())
        };
        let _permit = self.permit("list", dir, 0, self.inner.options.get_total).await?;
        self.read("list", dir, attempt).await
    }

    /// Whether anything lies below `dir`, at any depth; asks for one page of names at most.
    pub async fn any_below(&self, dir: &str) -> Result<bool, StoreError> {
        let attempt = |seen: Seen| async move {
            match &self.inner.backend {
                Backend::Directory(directory) => {
                    Ok(!directory.list(dir).await.map_err(|error| Failure::of_read(&error))?.is_empty())
                }
                Backend::Cloud(store) => {
                    let first = store.list(Some(&self.key(dir))).try_next().await;
                    first
                        .map(|meta| meta.is_some())
                        .map_err(|error| Failure::of_store(&error, false, &seen.lock()))
                }
            }
        };
        let _permit = self.permit("list", dir, 0, self.inner.options.get_total).await?;
        self.read("list", dir, attempt).await
    }

    fn key(&self, key: &str) -> Key {
        if self.inner.prefix.is_empty() {
            Key::from(key)
        } else {
            Key::from(format!("{}/{key}", self.inner.prefix))
        }
    }
}

fn cannot_open(root: &std::path::Path, error: &std::io::Error) -> StoreError {
    let remedy = Failure::of_read(error).cause.remedy_clause();
    StoreError::Config(format!("store directory {}: {error}{remedy}", root.display()))
}
