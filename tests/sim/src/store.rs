//! The bucket as one life of a node sees it: every call is a step at which the life can end, before the request has left and
//! before its answer is seen. What is under way when a node dies may still land, as a request on the wire does.

use std::fmt;
use std::io::ErrorKind;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use isobar_host::Host;
use isobar_testkit::bucket::Bucket;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What all lives together did.
#[derive(Debug, Default)]
pub struct StoreCounters {
    pub objects_written: AtomicU64,
    pub bytes_read: AtomicU64,
    pub deletes: AtomicU64,
}

/// See the module's page.
#[derive(Clone)]
pub struct GatedStore {
    host: Host,
    bucket: Bucket,
    counters: Arc<StoreCounters>,
    reach: Arc<Reach>,
}

/// How far a node reaches the bucket.
#[derive(Debug, Default)]
pub struct Reach {
    /// Nothing gets there or back.
    pub away: AtomicBool,
    /// It takes no object.
    pub read_only: AtomicBool,
}

impl GatedStore {
    /// The view of the life that `host` belongs to.
    pub fn new(host: &Host, bucket: &Bucket, counters: &Arc<StoreCounters>, reach: &Arc<Reach>) -> Self {
        let (counters, reach) = (Arc::clone(counters), Arc::clone(reach));
        Self { host: host.clone(), bucket: bucket.clone(), counters, reach }
    }

    fn step(&self, what: &str) -> Result<()> {
        self.host.step(what).map_err(refused)?;
        match self.reach.away.load(Ordering::Relaxed) {
            true => Err(refused(ErrorKind::HostUnreachable.into())),
            false => Ok(()),
        }
    }

    fn writes(&self, what: &str) -> Result<()> {
        self.step(what)?;
        match self.reach.read_only.load(Ordering::Relaxed) {
            true => Err(refused(ErrorKind::ReadOnlyFilesystem.into())),
            false => Ok(()),
        }
    }
}

fn refused(error: std::io::Error) -> Error {
    Error::Generic { store: "Simulated", source: Box::new(error) }
}

impl fmt::Debug for GatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GatedStore")
    }
}

impl fmt::Display for GatedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bucket.fmt(f)
    }
}

#[async_trait::async_trait]
impl ObjectStore for GatedStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.writes("bucket.put")?;
        let done = self.bucket.put_opts(location, payload, options).await;
        self.step("bucket.put.done")?;
        self.counters.objects_written.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
        done
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.writes("bucket.multipart")?;
        self.bucket.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.step("bucket.get")?;
        let got = self.bucket.get_opts(location, options).await;
        self.step("bucket.get.done")?;
        if let Ok(got) = &got {
            self.counters.bytes_read.fetch_add(got.range.end - got.range.start, Ordering::Relaxed);
        }
        got
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.step("bucket.get")?;
        let got = self.bucket.get_ranges(location, ranges).await;
        self.step("bucket.get.done")?;
        let bytes = got.iter().flatten().map(|bytes| bytes.len() as u64).sum();
        self.counters.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        got
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (before, after) = (self.clone(), self.clone());
        if self.host.sabotaged("never-deletes") {
            // Said to be done, where a start does not look for it.
            return locations
                .try_filter_map(move |location| {
                    let bucket = before.bucket.clone();
                    async move {
                        if !location.as_ref().starts_with("data/") {
                            bucket.delete(&location).await?;
                        }
                        Ok(Some(location))
                    }
                })
                .boxed();
        }
        let gated = locations.map(move |location| before.step("bucket.delete").and(location)).boxed();
        let deleted = self.bucket.delete_stream(gated);
        deleted
            .map(move |deleted| {
                after.step("bucket.delete.done")?;
                after.counters.deletes.fetch_add(u64::from(deleted.is_ok()), Ordering::Relaxed);
                deleted
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (store, prefix) = (self.clone(), prefix.cloned());
        let page = async move {
            store.step("bucket.list")?;
            let all: Vec<ObjectMeta> = store.bucket.list(prefix.as_ref()).try_collect().await?;
            store.step("bucket.list.done")?;
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok::<_, Error>)))
        };
        stream::once(page).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.step("bucket.list")?;
        let listed = self.bucket.list_with_delimiter(prefix).await;
        self.step("bucket.list.done")?;
        listed
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.writes("bucket.copy")?;
        let copied = self.bucket.copy_opts(from, to, options).await;
        self.step("bucket.copy.done")?;
        copied
    }
}
