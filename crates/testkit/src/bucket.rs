//! A bucket in memory whose faults follow from a seed.
//!
//! Owns: the objects, the fault plan, the counts. Cloning gives another handle on the same bucket, so it outlives the
//! node that uses it. The n-th request of a run meets the same fault in every run with the same seed and plan.
//!
//! What it stands for: a store that is strongly consistent and durable, as S3, GCS and Azure Blob are, behind a network
//! and a server that are neither quick nor sure. So an object that a PUT acknowledged is never lost here; what may happen is:
//! - an error before the request did anything;
//! - an error after it did all (a lost response): the caller cannot tell the two apart;
//! - an error, and the PUT lands some requests *later*;
//! - a refusal (503 SlowDown), which did nothing;
//! - a delay, before or after the work, so that a caller who gives up may leave it done or not;
//! - a body that breaks off in the middle;
//! - on demand, a flipped bit in a body that is returned.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    UploadPart,
};

use crate::Rng;

/// How often what goes wrong, in requests of a million.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// Fails and did nothing.
    pub before_ppm: u32,
    /// Fails although it was done.
    pub after_ppm: u32,
    /// A PUT fails and lands later; of other requests: as `before_ppm`.
    pub late_ppm: u32,
    /// Is refused with a 503.
    pub throttle_ppm: u32,
    /// A body breaks off.
    pub cut_ppm: u32,
    /// Is delayed, evenly between nothing and `max_delay`.
    pub delay_ppm: u32,
    pub max_delay: Duration,
}

impl FaultPlan {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        before_ppm: 0,
        after_ppm: 0,
        late_ppm: 0,
        throttle_ppm: 0,
        cut_ppm: 0,
        delay_ppm: 0,
        max_delay: Duration::ZERO,
    };

    /// Each fault at `ppm`, delays ten times as often and up to two seconds.
    #[must_use]
    pub fn all(ppm: u32) -> Self {
        Self {
            before_ppm: ppm,
            after_ppm: ppm,
            late_ppm: ppm,
            throttle_ppm: ppm,
            cut_ppm: ppm,
            delay_ppm: ppm.saturating_mul(10),
            max_delay: Duration::from_secs(2),
        }
    }
}

/// The source of every error that the bucket invents ([`Error::Generic`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Fault {
    #[error("simulated: connection refused")]
    Before,
    #[error("simulated: connection reset after the request was sent")]
    After,
    #[error("simulated: request timed out")]
    Late,
    #[error("simulated: 503 SlowDown")]
    Throttled,
    #[error("simulated: body broke off")]
    Cut,
    #[error("simulated: store is out of reach")]
    Outage,
    #[error("simulated: a bit was flipped")]
    Flipped,
    #[error("simulated: delay")]
    Delayed,
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Generic { store: "Simulated", source: Box::new(fault) }
    }
}

struct Late {
    after_requests: u64,
    location: Path,
    payload: PutPayload,
    options: PutOptions,
}

struct State {
    rng: Rng,
    plan: FaultPlan,
    outage: bool,
    flips: u32,
    requests: u64,
    late: Vec<Late>,
    open_uploads: u64,
    counts: BTreeMap<Fault, u64>,
}

/// What one request meets.
struct Fate {
    fault: Option<Fault>,
    wait_before: Duration,
    wait_after: Duration,
}

struct Shared {
    objects: InMemory,
    state: Mutex<State>,
}

/// See the module's page.
#[derive(Clone)]
pub struct Bucket(Arc<Shared>);

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bucket")
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated bucket")
    }
}

impl Bucket {
    /// An empty bucket.
    #[must_use]
    pub fn new(seed: u64, plan: FaultPlan) -> Self {
        let state = State {
            rng: Rng::new(seed),
            plan,
            outage: false,
            flips: 0,
            requests: 0,
            late: Vec::new(),
            open_uploads: 0,
            counts: BTreeMap::new(),
        };
        Self(Arc::new(Shared { objects: InMemory::new(), state: Mutex::new(state) }))
    }

    /// From now on.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.with(|s| s.plan = plan);
    }

    /// While it lasts every request fails and does nothing.
    pub fn set_outage(&self, outage: bool) {
        self.with(|s| s.outage = outage);
    }

    /// The next `bodies` bodies that are returned have one flipped bit each, at a seeded place.
    pub fn flip_bits(&self, bodies: u32) {
        self.with(|s| s.flips += bodies);
    }

    /// How often what happened.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<Fault, u64> {
        self.with(|s| s.counts.clone())
    }

    /// Requests so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.with(|s| s.requests)
    }

    /// Multipart uploads that were begun and neither completed nor aborted: their parts would lie in a real bucket, unseen.
    #[must_use]
    pub fn open_uploads(&self) -> u64 {
        self.with(|s| s.open_uploads)
    }

    /// The objects as they are, without faults: for a test's own look.
    #[must_use]
    pub fn objects(&self) -> &InMemory {
        &self.0.objects
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Draws what the next request meets. The numbers drawn do not depend on the outcome of the draws, so that a plan
    /// changed in one place does not shift all that follows.
    fn draw(&self) -> Fate {
        self.with(|s| {
            s.requests += 1;
            let plan = s.plan;
            let dice = [
                (Fault::Before, plan.before_ppm),
                (Fault::After, plan.after_ppm),
                (Fault::Late, plan.late_ppm),
                (Fault::Throttled, plan.throttle_ppm),
                (Fault::Cut, plan.cut_ppm),
            ];
            let mut fault = None;
            for (which, ppm) in dice {
                if s.rng.chance(ppm) {
                    fault.get_or_insert(which);
                }
            }
            let delayed = s.rng.chance(plan.delay_ppm);
            let (length, first) = (s.rng.next_u64(), s.rng.chance(500_000));
            let mut wait = Duration::ZERO;
            if delayed {
                let max_ns = u64::try_from(plan.max_delay.as_nanos()).unwrap_or(u64::MAX);
                wait = Duration::from_nanos(length.checked_rem(max_ns).unwrap_or(0));
                *s.counts.entry(Fault::Delayed).or_default() += 1;
            }
            if s.outage {
                fault = Some(Fault::Outage);
            }
            let (wait_before, wait_after) =
                if first { (wait, Duration::ZERO) } else { (Duration::ZERO, wait) };
            Fate { fault, wait_before, wait_after }
        })
    }

    fn count(&self, fault: Fault) -> Error {
        self.with(|s| *s.counts.entry(fault).or_default() += 1);
        fault.into()
    }

    /// Lets the late PUTs land whose time has come.
    async fn land(&self) {
        let due: Vec<Late> = self.with(|s| {
            let (requests, late) = (s.requests, std::mem::take(&mut s.late));
            let (due, wait) = late.into_iter().partition(|l| l.after_requests <= requests);
            s.late = wait;
            due
        });
        for l in due {
            // Nobody waits for the answer, so a conditional PUT that fails now has simply not landed.
            let _ = self.0.objects.put_opts(&l.location, l.payload, l.options).await;
        }
    }

    /// Runs one request that changes or asks something and has no body.
    async fn request<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let fate = self.draw();
        self.land().await;
        sleep(fate.wait_before).await;
        match fate.fault {
            Some(Fault::After) => {
                let done = work.await;
                sleep(fate.wait_after).await;
                done.and_then(|_| Err(self.count(Fault::After)))
            }
            // Only a body can be cut.
            None | Some(Fault::Cut) => {
                let done = work.await;
                sleep(fate.wait_after).await;
                done
            }
            Some(fault) => {
                sleep(fate.wait_after).await;
                Err(self.count(fault))
            }
        }
    }

    async fn body(&self, got: GetResult, cut: bool) -> Result<GetResult> {
        let (meta, range, attributes, extensions) =
            (got.meta.clone(), got.range.clone(), got.attributes.clone(), got.extensions.clone());
        let mut bytes = got.bytes().await?;
        let flip = self.with(|s| {
            let flip = s.flips > 0 && !bytes.is_empty();
            s.flips -= u32::from(flip);
            flip.then(|| s.rng.next_u64())
        });
        if let Some(place) = flip {
            self.count(Fault::Flipped);
            let mut changed = BytesMut::from(bytes.as_ref());
            let at = (place >> 3) as usize % changed.len();
            changed[at] ^= 1 << (place & 7);
            bytes = changed.freeze();
        }
        let mut parts: Vec<Result<Bytes>> = Vec::new();
        if cut {
            parts.push(Ok(bytes.slice(..bytes.len() / 2)));
            parts.push(Err(self.count(Fault::Cut)));
        } else {
            parts.push(Ok(bytes));
        }
        let payload = GetResultPayload::Stream(stream::iter(parts).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }
}

/// A zero sleep would still be a step of the scheduler.
async fn sleep(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[async_trait::async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fate = self.draw();
        self.land().await;
        sleep(fate.wait_before).await;
        match fate.fault {
            Some(Fault::Late) => {
                self.with(|s| {
                    let after_requests = s.requests + 1 + s.rng.below(20);
                    s.late.push(Late { after_requests, location: location.clone(), payload, options });
                });
                sleep(fate.wait_after).await;
                Err(self.count(Fault::Late))
            }
            Some(fault @ (Fault::Before | Fault::Throttled | Fault::Outage)) => {
                sleep(fate.wait_after).await;
                Err(self.count(fault))
            }
            other => {
                let done = self.0.objects.put_opts(location, payload, options).await;
                sleep(fate.wait_after).await;
                if other == Some(Fault::After) {
                    done.and_then(|_| Err(self.count(Fault::After)))
                } else {
                    done
                }
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let begin = async {
            let upload = self.0.objects.put_multipart_opts(location, options).await?;
            self.with(|s| s.open_uploads += 1);
            Ok(upload)
        };
        let upload = self.request(begin).await?;
        Ok(Box::new(Upload { bucket: self.clone(), inner: upload, is_open: true }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let fate = self.draw();
        self.land().await;
        sleep(fate.wait_before).await;
        match fate.fault {
            None | Some(Fault::Cut) => {}
            Some(fault) => {
                sleep(fate.wait_after).await;
                return Err(self.count(fault));
            }
        }
        let got = self.0.objects.get_opts(location, options).await?;
        sleep(fate.wait_after).await;
        if head { Ok(got) } else { self.body(got, fate.fault == Some(Fault::Cut)).await }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let mut bodies = Vec::with_capacity(ranges.len());
        for range in ranges {
            bodies.push(self.get_range(location, range.clone()).await?);
        }
        Ok(bodies)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let bucket = self.clone();
        let delete = move |location: Result<Path>| {
            let bucket = bucket.clone();
            async move {
                let location = location?;
                bucket.request(bucket.0.objects.delete(&location)).await?;
                Ok(location)
            }
        };
        locations.then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let bucket = self.clone();
        let prefix = prefix.cloned();
        let page = async move {
            let all = async { bucket.0.objects.list(prefix.as_ref()).try_collect::<Vec<_>>().await };
            let all = bucket.request(all).await?;
            Ok::<_, Error>(stream::iter(all.into_iter().map(Ok::<_, Error>)))
        };
        stream::once(page).try_flatten().boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request(self.0.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.request(self.0.objects.copy_opts(from, to, options)).await
    }
}

/// Parts and the completion of a multipart upload are requests like others.
struct Upload {
    bucket: Bucket,
    inner: Box<dyn MultipartUpload>,
    is_open: bool,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upload")
    }
}

impl Upload {
    /// Takes note of an end that took effect, whether its answer arrives or not.
    fn ended<T>(bucket: &Bucket, is_open: &mut bool, end: Result<T>) -> Result<T> {
        if end.is_ok() && std::mem::take(is_open) {
            bucket.with(|s| s.open_uploads -= 1);
        }
        end
    }
}

#[async_trait::async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let bucket = self.bucket.clone();
        let part = self.inner.put_part(data);
        Box::pin(async move { bucket.request(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let bucket = self.bucket.clone();
        let (inner, is_open) = (&mut self.inner, &mut self.is_open);
        bucket.request(async { Self::ended(&bucket, is_open, inner.complete().await) }).await
    }

    async fn abort(&mut self) -> Result<()> {
        let bucket = self.bucket.clone();
        let (inner, is_open) = (&mut self.inner, &mut self.is_open);
        bucket.request(async { Self::ended(&bucket, is_open, inner.abort().await) }).await
    }
}
