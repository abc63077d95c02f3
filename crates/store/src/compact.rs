//! Compaction: merges uploads into larger objects, and those into large objects of one topic.
//!
//! Owns: one task, which does one job at a time: it looks at the image ([`plan`]), makes one object ([`merge`]) and commits it. It
//! deletes nothing: objects that nothing refers to any more are the deleter's.
//!
//! Invariants
//! 1. `CompactObjects` is proposed only after the store has acknowledged the whole object.
//! 2. An object id is used for one job. One that failed, at whatever step, is given up: its deadline expires it.
//! 3. A run of the new object holds the same batches with the same offsets as the extents it replaces, which it names: apply takes it
//!    only while they are unchanged. So a race with retention, deletion, another compaction or an index costs dead bytes only.
//! 4. What is read and written stays below `bytes_per_s`, and memory below what [`merge`] says.
//!
//! Failure: a store or quorum that fails ends the job; the plan is found again after a pause, under a new id. A damaged batch is
//! an alarm that names the object; its extent is left out for [`BAD_PAUSE`] and stays as it is.
//!
//! Crash, at any step: before the commit the object is garbage that its deadline expires. Between two parts of the commit: what was
//! applied counts, the rest becomes dead bytes of the new object at its deadline, and the extents it was made from are as they were.
//!
//! Stop: a merge ends at once and removes the parts it has written; what is past its last byte may end, within a bound.
//!
//! Accepted leak: what [`crate::PutStream`] says of parts.

pub(crate) mod merge;
pub mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, Task, watch};
use isobar_metadata::command::{CompactObjects, CompactedRun, GrantObjects};
use isobar_metadata::ids::{ObjectId, StoreId};
use isobar_metadata::record::ObjectState;
use isobar_metadata::{Command, CommandResult, Image};
use tokio::time::Instant;

use crate::Bucket;
use crate::cluster::{JOBS_FEATURE_LEVEL, Proposer, keeps_cluster};
use crate::metrics::JobLabels;
use merge::{Merging, Pace, merge, stopped};
use plan::{Inventory, Job, Limits};

/// Pause after a job that failed.
const FAILED_PAUSE: Duration = Duration::from_secs(10);
/// How long a damaged or missing extent is left out of plans.
const BAD_PAUSE: Duration = Duration::from_secs(3600);
/// How long the image may take to show a commit.
const SHOWN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a stop waits for what is under way: the removal of the parts of a large object, or the last step of a commit. Each is a
/// request or two, which a store or quorum that answers at all answers well within this; and a supervisor that kills a node half
/// a minute after it asked must leave time for the rest of its stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Bounds of one command's runs, well below what a Raft entry holds.
const PART_RUNS: usize = 2_000;
/// Replaced extents of one command; a single run has fewer.
const PART_EXTENTS: usize = 8_000;

/// Settings of the compactor.
#[derive(Debug, Clone)]
pub struct CompactorOptions {
    /// The bucket's number in metadata.
    pub store: StoreId,
    /// How often it looks while there is nothing to do.
    pub interval: Duration,
    /// Bytes read and written a second.
    pub bytes_per_s: u64,
    /// What is worth a job.
    pub limits: Limits,
    /// Runs of one command.
    pub part_runs: usize,
    /// Least time that a granted id may wait for its commit.
    pub grant_lifetime: Duration,
}

impl Default for CompactorOptions {
    fn default() -> Self {
        Self {
            store: StoreId(1),
            interval: Duration::from_secs(10),
            bytes_per_s: 64 << 20,
            limits: Limits::default(),
            part_runs: PART_RUNS,
            grant_lifetime: Duration::from_secs(3600),
        }
    }
}

/// The running compactor.
pub struct Compactor {
    task: Task,
    stop: watch::Sender<bool>,
}

impl Compactor {
    /// Starts the task.
    pub fn start(
        host: &Host,
        bucket: Bucket,
        proposer: Arc<dyn Proposer>,
        options: CompactorOptions,
    ) -> Self {
        let pace = Pace::new(options.bytes_per_s);
        let inventory = Inventory::new(options.store, options.limits);
        let bad = BTreeMap::new();
        let (stop, stopping) = watch::channel(false);
        let work =
            Work { host: host.clone(), bucket, proposer, options, pace, bad, inventory, stop: stopping };
        Self { task: host.spawn("compactor", work.run()), stop }
    }

    /// Gives up what is under way and removes what was written of it. What that takes longer than [`STOP_PATIENCE`] is left as
    /// by a crash.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.join().await;
    }
}

struct Work {
    host: Host,
    bucket: Bucket,
    proposer: Arc<dyn Proposer>,
    options: CompactorOptions,
    pace: Pace,
    /// Places that could not be read, and until when they are left alone.
    bad: BTreeMap<(ObjectId, u64), Instant>,
    /// What there is to be merged, kept from round to round.
    inventory: Inventory,
    /// Whether to stop.
    stop: watch::Receiver<bool>,
}

enum Ended {
    /// There may be more to do at once.
    Done,
    Nothing,
    Failed,
}

impl Work {
    async fn run(mut self) {
        let stop = self.stop.clone();
        let out_of_patience = async {
            stopped(&stop).await;
            tokio::time::sleep(STOP_PATIENCE).await;
        };
        tokio::select! {
            biased;
            () = self.rounds() => {}
            () = out_of_patience => {
                tracing::warn!("compaction did not end in time; parts of an object may be left in the store");
            }
        }
    }

    async fn rounds(&mut self) {
        while !*self.stop.borrow() {
            let pause = match self.round().await {
                Ended::Done => Duration::ZERO,
                Ended::Nothing => self.options.interval,
                Ended::Failed => FAILED_PAUSE.max(self.options.interval),
            };
            _ = tokio::time::timeout(pause, stopped(&self.stop)).await;
        }
    }

    async fn round(&mut self) -> Ended {
        let image = self.proposer.image();
        if image.feature_level() < JOBS_FEATURE_LEVEL || !keeps_cluster(&image, self.proposer.session()) {
            return Ended::Nothing;
        }
        let now = Instant::now();
        self.bad.retain(|_, until| *until > now);
        let skip: BTreeSet<(ObjectId, u64)> = self.bad.keys().copied().collect();
        self.inventory.begin(&image, &skip);
        while self.inventory.advance() {
            tokio::task::yield_now().await;
        }
        let Some(job) = self.inventory.plan() else { return Ended::Nothing };
        self.host.crash_point("compact.planned");
        match self.work_on(&image, &job).await {
            Some(object) => {
                self.shown(object).await;
                Ended::Done
            }
            None => Ended::Failed,
        }
    }

    /// Does a job. `Some`: metadata has an answer for this object. `None`: nothing came of it.
    async fn work_on(&mut self, image: &Image, job: &Job) -> Option<ObjectId> {
        let started = Instant::now();
        let object = self.granted(job).await?;
        self.host.crash_point("compact.granted");
        let mut bad = Vec::new();
        let mut merging = Merging {
            bucket: &self.bucket,
            image,
            pace: &mut self.pace,
            object,
            now_ms: self.host.now_ms(),
            stop: &self.stop,
        };
        let merged = merge(&mut merging, job, &mut bad).await;
        for extent in bad {
            let place = (extent.location.object, extent.location.position);
            if extent.stale {
                tracing::debug!(key = ?extent.key, location = ?extent.location, why = %extent.why, "an extent went while it was compacted");
                self.bad.insert(place, Instant::now() + FAILED_PAUSE);
            } else {
                tracing::error!(key = ?extent.key, location = ?extent.location, why = %extent.why, "damaged bytes are left out of compaction");
                self.bucket.metrics().lost_batches.inc();
                self.bad.insert(place, Instant::now() + BAD_PAUSE);
            }
        }
        let merged = match merged {
            Ok(Some(merged)) => merged,
            Ok(None) => return None,
            Err(error) => {
                tracing::warn!(%error, %object, "compaction failed, it will be planned again");
                self.bucket.metrics().failed_jobs.get_or_create(&JobLabels { job: "compact" }).inc();
                return None;
            }
        };
        self.host.crash_point("compact.after_put");
        let runs = merged.runs.len();
        let applied = self.commit(object, job.level, merged.size_bytes, merged.runs).await?;
        let metrics = self.bucket.metrics();
        metrics.jobs.get_or_create(&JobLabels { job: job.kind.name() }).inc();
        metrics.compacted_bytes.inc_by(merged.batch_bytes);
        metrics.dead_runs.inc_by(runs.saturating_sub(applied) as u64);
        tracing::info!(
            %object, kind = job.kind.name(), level = job.level, sources = job.sources().len(), runs, applied,
            bytes = merged.batch_bytes, took_ms = started.elapsed().as_millis() as u64, "objects compacted"
        );
        Some(object)
    }

    /// An id that can be committed for as long as the job may take.
    async fn granted(&mut self, job: &Job) -> Option<ObjectId> {
        let takes = Duration::from_secs(job.size_bytes() * 8 / self.options.bytes_per_s.max(1));
        let lifetime = self.options.grant_lifetime.max(takes);
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        let grant = Command::GrantObjects(GrantObjects { count: 1, lifetime_ms });
        match self.proposer.propose(grant).await {
            Ok(CommandResult::Objects(granted)) if granted.error_code == 0 && granted.count > 0 => {
                Some(granted.first)
            }
            other => {
                tracing::warn!(answer = ?other, "no object id granted for compaction");
                None
            }
        }
    }

    /// Commits in parts. Says how many runs metadata took; `None`: it is not known, or nothing counts.
    async fn commit(
        &self,
        object: ObjectId,
        level: u32,
        size_bytes: u64,
        runs: Vec<CompactedRun>,
    ) -> Option<usize> {
        let parts = split(runs, self.options.part_runs);
        let last = parts.len().saturating_sub(1);
        let mut applied = 0;
        for (number, runs) in parts.into_iter().enumerate() {
            let store = self.options.store;
            let more_parts = number < last;
            let command = CompactObjects { object, store, size_bytes, more_parts, level, runs };
            match self.proposer.propose(Command::CompactObjects(command)).await {
                Ok(CommandResult::ObjectCommitted(result)) if result.error_code == 0 => {
                    applied += result.applied.len();
                }
                other => {
                    tracing::warn!(answer = ?other, %object, "a compacted object was not committed");
                    return None;
                }
            }
            if more_parts {
                self.host.crash_point("compact.between_parts");
            }
        }
        self.host.crash_point("compact.after_commit");
        Some(applied)
    }

    /// Waits until the image shows the commit, lest the same plan be made again.
    async fn shown(&self, object: ObjectId) {
        let until = Instant::now() + SHOWN_PATIENCE;
        while Instant::now() < until && !*self.stop.borrow() {
            let image = self.proposer.image();
            let is_open = image
                .object(object)
                .is_some_and(|object| object.state == ObjectState::Prepared as i32 || !object.complete);
            if !is_open {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn split(runs: Vec<CompactedRun>, part_runs: usize) -> Vec<Vec<CompactedRun>> {
    let mut parts: Vec<Vec<CompactedRun>> = Vec::new();
    let mut extents = 0;
    for run in runs {
        extents += run.replaces.len();
        match parts.last_mut() {
            Some(part) if part.len() < part_runs && extents <= PART_EXTENTS => part.push(run),
            _ => {
                extents = run.replaces.len();
                parts.push(vec![run]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests;
