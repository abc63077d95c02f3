//! From the WAL to objects.
//!
//! Owns: one task that looks at the image, writes what lies in the WAL and is due into objects, and commits them. It
//! releases nothing: that follows from the commit, by effects.
//!
//! Invariants
//! 1. `CommitObject` is proposed only after the PUT has answered that the object is stored.
//! 2. An object id is used for one upload. One that failed, at whatever step, is given up: its deadline expires it.
//! 3. What goes into an object has the offsets, leader epoch and timestamps that the image says, whole batches, and as many
//!    offsets as the extent: else that run is left out and an alarm raised, and other partitions go on.
//! 4. It uploads the shards that metadata hints at it, and of the others what is overdue while its own uploads work
//!    ([`crate::overdue`]): their uploader is slow, or gone. Two uploaders of the same bytes do no harm but the work.
//! 5. At most `in_flight` objects of at most `max_object_bytes` (or one extent) are under way, as slices of WAL chunks.
//!
//! Failure: a store or quorum that fails is tried again with backoff. A batch that is not found, or not whole, may have been
//! released since: the partition is looked at anew with a newer image; the same location twice is an alarm, and that partition
//! waits.
//!
//! Crash, at any step: before the commit the object is garbage that its deadline expires; the bytes are still in the WAL and
//! go into another. After the commit it counts. Two uploads of the same bytes are harmless: one commits, the other's runs are
//! dead bytes (DESIGN section 5).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use isobar_host::{Host, Task};
use isobar_metadata::command::CommitObject;
use isobar_metadata::ids::{ObjectId, PartitionKey, StoreId};
use isobar_metadata::record::ObjectState;
use isobar_metadata::{Command, CommandResult, Image, Location, PartitionView};
use isobar_wal::Wal;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::Bucket;
use crate::build::{BadRun, Built, build};
use crate::cluster::Proposer;
use crate::format::object_key;
use crate::ids::ObjectIds;
use crate::overdue::Overdue;
use crate::plan::{Candidate, Limits, Plan, PlannedRun, age, next_due, plan};

/// Object ids asked for at a time.
const GRANT_COUNT: u32 = 4;
/// First pause after a failed upload.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest pause after failed uploads in a row.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// A partition whose bytes could not be had is looked at again after this.
const STALE_PAUSE: Duration = Duration::from_millis(100);
/// A partition whose bytes are lost or damaged is tried again after this.
const ALARM_PAUSE: Duration = Duration::from_secs(30);

/// Settings of the uploader.
#[derive(Debug, Clone)]
pub struct UploaderOptions {
    /// The bucket's number in metadata.
    pub store: StoreId,
    /// What lies in the WAL is uploaded at least this often.
    pub interval: Duration,
    /// And as soon as this many bytes wait.
    pub trigger_bytes: u64,
    /// Bytes of batches in one object.
    pub max_object_bytes: u64,
    /// Runs in one object.
    pub max_runs: usize,
    /// Objects under way at the same time.
    pub in_flight: usize,
    /// How long a granted id may wait for its commit.
    pub grant_lifetime: Duration,
}

impl Default for UploaderOptions {
    fn default() -> Self {
        Self {
            store: StoreId(1),
            interval: Duration::from_secs(3),
            trigger_bytes: 16 << 20,
            max_object_bytes: 32 << 20,
            max_runs: 4000,
            in_flight: 2,
            grant_lifetime: Duration::from_secs(600),
        }
    }
}

/// What the uploader works with.
#[derive(Clone)]
pub struct UploaderParts {
    /// The machine.
    pub host: Host,
    /// Where batches are read from.
    pub wal: Arc<dyn Wal>,
    /// Where objects go.
    pub bucket: Bucket,
    /// The way to metadata.
    pub proposer: Arc<dyn Proposer>,
}

#[derive(Default)]
struct Signals {
    /// Bytes appended since the last pass.
    appended: AtomicU64,
    wake: Notify,
    drains: Mutex<Vec<oneshot::Sender<()>>>,
}

/// The running uploader.
pub struct Uploader {
    task: Task,
    signals: Arc<Signals>,
    trigger_bytes: u64,
}

impl Uploader {
    /// Starts the task.
    pub fn start(parts: UploaderParts, options: UploaderOptions) -> Self {
        let signals = Arc::new(Signals::default());
        let trigger_bytes = options.trigger_bytes;
        let host = parts.host.clone();
        let work = Work::new(parts, options, Arc::clone(&signals));
        let task = host.spawn("uploader", work.run());
        Self { task, signals, trigger_bytes }
    }

    /// Tells of bytes that were committed to the WAL, so that an upload starts once enough of them wait.
    pub fn nudge(&self, bytes: u64) {
        if self.signals.appended.fetch_add(bytes, Ordering::Relaxed) + bytes >= self.trigger_bytes {
            self.signals.wake.notify_one();
        }
    }

    /// Uploads all that the image shows in the WAL, and returns when nothing is due any more (but for partitions whose
    /// bytes cannot be read). While the store fails this does not return: bound it.
    pub async fn drain(&self) {
        let (tell, done) = oneshot::channel();
        self.signals.drains.lock().push(tell);
        self.signals.wake.notify_one();
        // An error: the task is gone, and nothing will be uploaded any more.
        let _ = done.await;
    }

    /// Stops at the next await; what is under way is given up, as in a crash.
    pub async fn stop(self) {
        self.task.abort();
        self.task.join().await;
    }
}

/// Offsets of a partition that are on their way.
struct Busy {
    runs: Vec<(PartitionKey, i64)>,
    /// Some of them are of shards that metadata hints at others.
    of_others: bool,
    /// Committed, but the image may not show it yet.
    committed: bool,
}

struct Suspect {
    location: Location,
    until: Instant,
}

enum Ended {
    Committed {
        bytes: u64,
        runs: usize,
        applied: usize,
        bad: Vec<BadRun>,
    },
    /// Nothing could be read; no object was written.
    Nothing {
        bad: Vec<BadRun>,
    },
    Failed,
}

struct Work {
    parts: UploaderParts,
    options: UploaderOptions,
    signals: Arc<Signals>,
    ids: ObjectIds,
    busy: BTreeMap<ObjectId, Busy>,
    suspects: BTreeMap<PartitionKey, Suspect>,
    failures_in_a_row: u32,
    not_before: Instant,
    oldest_seen: Option<Instant>,
    others: Overdue,
}

impl Work {
    fn new(parts: UploaderParts, options: UploaderOptions, signals: Arc<Signals>) -> Self {
        let proposer = Arc::clone(&parts.proposer);
        let ids = ObjectIds::new(&parts.host, proposer, GRANT_COUNT, options.grant_lifetime);
        let others = Overdue::new(options.interval, Instant::now());
        Self {
            parts,
            options,
            signals,
            ids,
            busy: BTreeMap::new(),
            suspects: BTreeMap::new(),
            failures_in_a_row: 0,
            not_before: Instant::now(),
            oldest_seen: None,
            others,
        }
    }

    async fn run(mut self) {
        let mut under_way = FuturesUnordered::new();
        let mut next_pass = Instant::now() + self.options.interval;
        loop {
            let signals = Arc::clone(&self.signals);
            tokio::select! {
                biased;
                Some((object, ended)) = under_way.next(), if !under_way.is_empty() => self.ended(object, ended),
                () = signals.wake.notified() => {}
                () = tokio::time::sleep_until(next_pass) => {}
            }
            self.signals.appended.store(0, Ordering::Relaxed);
            let draining = !self.signals.drains.lock().is_empty();
            let overdue = draining || Instant::now() >= next_pass;
            if overdue {
                next_pass = Instant::now() + self.options.interval;
            }
            let now = Instant::now();
            self.suspects.retain(|_, suspect| suspect.until + ALARM_PAUSE > now);
            self.note_waiting(&self.parts.proposer.image());
            let mut small_ones_too = overdue;
            while under_way.len() < self.options.in_flight && Instant::now() >= self.not_before {
                let Some((object, runs)) = self.next_upload(small_ones_too).await else { break };
                let parts = self.parts.clone();
                let store = self.options.store;
                under_way.push(async move { (object, upload(parts, store, object, runs).await) });
                small_ones_too = draining;
            }
            if Instant::now() < self.not_before {
                next_pass = next_pass.min(self.not_before);
            } else if draining && under_way.is_empty() {
                self.end_drains();
            }
            let paused = self.suspects.values().map(|suspect| suspect.until).filter(|until| *until > now);
            if let Some(again) = paused.min() {
                next_pass = next_pass.min(again);
            }
        }
    }

    fn end_drains(&self) {
        for tell in self.signals.drains.lock().drain(..) {
            let _ = tell.send(());
        }
    }

    /// Chooses what to upload next. Unless `small_ones_too`, only when as much waits as triggers an upload.
    async fn next_upload(
        &mut self,
        small_ones_too: bool,
    ) -> Option<(ObjectId, Vec<(PlannedRun, Arc<PartitionView>)>)> {
        let image = self.parts.proposer.image();
        let runs = self.choose(&image, small_ones_too)?;
        let Some(object) = self.ids.take().await else {
            self.back_off();
            return None;
        };
        let ends = runs.iter().map(|(run, _)| (run.key, run.end_offset())).collect();
        let of_others = runs.iter().any(|(run, _)| !self.is_hinted(&image, image.shard_of(run.key)));
        self.busy.insert(object, Busy { runs: ends, of_others, committed: false });
        Some((object, runs))
    }

    fn choose(
        &mut self,
        image: &Image,
        small_ones_too: bool,
    ) -> Option<Vec<(PlannedRun, Arc<PartitionView>)>> {
        let now = Instant::now();
        // Until the image shows the commit, its extents look as if they were still due.
        self.busy.retain(|object, busy| {
            let behind =
                image.object(*object).is_none_or(|record| record.state == ObjectState::Prepared as i32);
            !busy.committed || behind
        });
        let mut from: BTreeMap<PartitionKey, i64> = BTreeMap::new();
        for (key, end) in self.busy.values().flat_map(|busy| &busy.runs) {
            let offset = from.entry(*key).or_default();
            *offset = (*offset).max(*end);
        }
        let shards: Vec<u32> = (0..image.shards()).filter(|shard| self.is_ours(image, *shard, now)).collect();
        let in_wal: Vec<_> = shards.iter().flat_map(|shard| image.shard_in_wal(*shard)).collect();
        let candidates: Vec<_> = in_wal
            .iter()
            .filter(|view| may_hold(image, view, self.options.store))
            .filter(|view| self.suspects.get(&view.key()).is_none_or(|suspect| suspect.until <= now))
            .map(|view| Candidate { view, from: from.get(&view.key()).copied().unwrap_or(0) })
            .collect();
        let limits = Limits { max_bytes: self.options.max_object_bytes, max_runs: self.options.max_runs };
        let Plan { runs, is_full } = plan(&candidates, self.options.store, limits);
        let bytes: u64 = runs.iter().map(PlannedRun::size_bytes).sum();
        let is_large = is_full || bytes >= self.options.trigger_bytes;
        if runs.is_empty() || !(is_large || small_ones_too) {
            return None;
        }
        let with_view = |run: PlannedRun| image.stored_view(run.key).map(|view| (run, Arc::clone(view)));
        Some(runs.into_iter().filter_map(with_view).collect())
    }

    fn is_hinted(&self, image: &Image, shard: u32) -> bool {
        let hinted = image.uploader(shard, self.options.store);
        hinted.is_none_or(|session| session == self.parts.proposer.session())
    }

    /// Whether this broker uploads the shard now.
    fn is_ours(&mut self, image: &Image, shard: u32, now: Instant) -> bool {
        let store = self.options.store;
        if self.is_hinted(image, shard) {
            self.others.forget(shard);
            return true;
        }
        let due = image.shard_in_wal(shard).filter_map(|view| next_due(view, store, 0)).map(age).min();
        let Some(oldest) = due else {
            self.others.forget(shard);
            return false;
        };
        self.others.is_overdue(shard, oldest, now)
    }

    fn note_waiting(&mut self, image: &Image) {
        let in_wal = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard));
        let bytes: u64 = in_wal.map(|view| view.wal_bytes).sum();
        let metrics = self.parts.bucket.metrics();
        metrics.waiting_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        if bytes == 0 {
            self.oldest_seen = None;
        }
        let since = *self.oldest_seen.get_or_insert_with(Instant::now);
        metrics.waiting_age_ms.set(i64::try_from(since.elapsed().as_millis()).unwrap_or(i64::MAX));
    }

    fn ended(&mut self, object: ObjectId, ended: Ended) {
        let metrics = self.parts.bucket.metrics().clone();
        match ended {
            Ended::Committed { bytes, runs, applied, bad } => {
                if let Some(busy) = self.busy.get_mut(&object) {
                    busy.committed = true;
                    if busy.of_others {
                        self.others.taken_over(applied == runs, Instant::now());
                    }
                }
                metrics.objects.inc();
                metrics.uploaded_bytes.inc_by(bytes);
                metrics.dead_runs.inc_by((runs - applied.min(runs)) as u64);
                tracing::debug!(%object, bytes, runs, applied, "object committed");
                self.failures_in_a_row = 0;
                self.oldest_seen = None;
                self.suspect(bad);
            }
            Ended::Nothing { bad } => {
                self.busy.remove(&object);
                self.suspect(bad);
            }
            Ended::Failed => {
                self.busy.remove(&object);
                self.others.forget_all();
                metrics.failed_uploads.inc();
                self.back_off();
            }
        }
    }

    fn suspect(&mut self, bad: Vec<BadRun>) {
        let now = Instant::now();
        for BadRun { key, location, why } in bad {
            // The image may be behind, and another broker have uploaded them: then metadata names them no more next time.
            let again = self.suspects.get(&key).is_some_and(|known| known.location == location);
            let pause = if again {
                tracing::error!(?key, ?location, %why, "bytes that metadata names cannot be uploaded");
                self.parts.bucket.metrics().lost_batches.inc();
                ALARM_PAUSE
            } else {
                STALE_PAUSE
            };
            self.suspects.insert(key, Suspect { location, until: now + pause });
        }
    }

    fn back_off(&mut self) {
        let longest = BACKOFF.saturating_mul(1 << self.failures_in_a_row.min(8)).min(BACKOFF_MAX);
        self.failures_in_a_row += 1;
        let jitter = self.parts.host.random_u64() % (longest.as_millis() as u64 / 2 + 1);
        self.not_before = Instant::now() + longest / 2 + Duration::from_millis(jitter);
    }
}

/// Whether the topic's placement lets its bytes into this store.
fn may_hold(image: &Image, view: &PartitionView, store: StoreId) -> bool {
    let placement = image.stored_topic(view.topic_id).and_then(|topic| image.placement(topic.placement));
    placement.is_some_and(|placement| placement.allow.is_empty() || placement.allow.contains(&store))
}

/// One object, from the WAL to its commit.
async fn upload(
    parts: UploaderParts,
    store: StoreId,
    object: ObjectId,
    runs: Vec<(PlannedRun, Arc<PartitionView>)>,
) -> Ended {
    let cluster_id = parts.proposer.image().format().cluster_id.clone();
    let Built { parts: payload, runs, bad, size_bytes, batch_bytes } =
        build(&*parts.wal, cluster_id, object, parts.host.now_ms(), runs).await;
    if runs.is_empty() {
        return Ended::Nothing { bad };
    }
    parts.host.crash_point("upload.after_read");
    if let Err(error) = parts.bucket.put(&object_key(object), payload).await {
        tracing::warn!(%error, %object, "upload failed");
        return Ended::Failed;
    }
    parts.host.crash_point("upload.after_put");
    let count = runs.len();
    let commit = CommitObject { object, store, runs, more_parts: false, size_bytes };
    match parts.proposer.propose(Command::CommitObject(commit)).await {
        Ok(CommandResult::ObjectCommitted(result)) if result.error_code == 0 => {
            parts.host.crash_point("upload.after_commit");
            Ended::Committed { bytes: batch_bytes, runs: count, applied: result.applied.len(), bad }
        }
        other => {
            tracing::warn!(answer = ?other, %object, "object not committed");
            Ended::Failed
        }
    }
}
