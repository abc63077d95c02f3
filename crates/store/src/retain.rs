//! Retention: moves log starts, and ends deleted topics whose window is over.
//!
//! Owns: one task. It holds nothing that outlives it; the log start is metadata's.
//!
//! Invariants
//! 1. A log start rises only to the end of an extent that [`plan`] lets go, by the state machine's time, which no single clock
//!    moves.
//! 2. While expiry is held after a jump of the clock it proposes nothing; apply refuses it too, if the jump comes between.
//! 3. Bytes are not touched here: extents go with the log start, objects without extents are the deleter's.
//!
//! Failure: a proposal that fails, or an index block that cannot be read, is left to the next round; of a partition whose block
//! cannot be read, what lies before the block goes.
//!
//! Crash: nothing was begun. A proposal that arrives twice moves nothing the second time.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, Task};
use isobar_metadata::command::{ExpireTopics, LogStartReason, MoveLogStart, NewLogStart};
use isobar_metadata::{Command, CommandResult, Extent, Image, PartitionView};

use crate::cluster::{JOBS_FEATURE_LEVEL, Proposer, keeps_cluster};
use crate::index::IndexReader;
use crate::metrics::StoreMetrics;
use plan::{Policy, Step, Walk};

/// Log starts of one command: far below what a Raft entry holds.
const COMMAND_PARTITIONS: usize = 5_000;
/// Proposals of `ExpireTopics` in one round; each purges up to its own limit.
const EXPIRE_ROUNDS: usize = 100;

/// Settings of retention.
#[derive(Debug, Clone)]
pub struct RetainerOptions {
    /// `log.retention.check.interval.ms`.
    pub interval: Duration,
}

impl Default for RetainerOptions {
    fn default() -> Self {
        Self { interval: Duration::from_secs(300) }
    }
}

/// What retention works with.
#[derive(Clone)]
pub struct RetainerParts {
    /// The machine.
    pub host: Host,
    /// The way to metadata.
    pub proposer: Arc<dyn Proposer>,
    /// Reads what has left metadata's memory.
    pub index: IndexReader,
    /// Where it counts.
    pub metrics: StoreMetrics,
}

/// The running task.
pub struct Retainer {
    task: Task,
}

impl Retainer {
    /// Starts the task.
    pub fn start(parts: RetainerParts, options: RetainerOptions) -> Self {
        let host = parts.host.clone();
        let task = host.spawn("retainer", async move {
            loop {
                tokio::time::sleep(options.interval).await;
                round(&parts).await;
            }
        });
        Self { task }
    }

    /// Stops at the next await.
    pub async fn stop(self) {
        self.task.abort();
        self.task.join().await;
    }
}

/// One look at everything.
async fn round(parts: &RetainerParts) {
    let image = parts.proposer.image();
    // A clock that stands still, or is held, is moved by the deleter and the broker of the lowest id.
    if image.feature_level() < JOBS_FEATURE_LEVEL || image.expiry_held_until_ms() > image.time_ms() {
        return;
    }
    if !keeps_cluster(&image, parts.proposer.session()) {
        return;
    }
    expire_topics(parts, &image).await;
    let mut moves = Vec::new();
    for shard in 0..image.shards() {
        for view in image.shard_partitions(shard) {
            let Some(topic) = image.topic(view.topic_id) else { continue };
            let Some(policy) = Policy::of(&topic.settings) else { continue };
            if let Some(log_start) = new_log_start(parts, &image, view, policy).await {
                moves.push(NewLogStart { topic_id: view.topic_id, partition: view.partition, log_start });
            }
        }
        // Walking the extents of a shard may take a while; others want to run.
        tokio::task::yield_now().await;
    }
    for part in moves.chunks(COMMAND_PARTITIONS) {
        parts.host.crash_point("retain.before_propose");
        let command = MoveLogStart { partitions: part.to_vec(), reason: LogStartReason::Retention as i32 };
        match parts.proposer.propose(Command::MoveLogStart(command)).await {
            Ok(CommandResult::LogStarts(results)) => {
                let moved = results.partitions.iter().filter(|result| result.error_code == 0 && !result.held);
                let moved = moved.count() as u64;
                parts.metrics.retained_partitions.inc_by(moved);
                tracing::info!(partitions = moved, "retention moved log starts");
            }
            other => tracing::warn!(answer = ?other, "retention could not move log starts; again later"),
        }
        parts.host.crash_point("retain.after_propose");
    }
}

async fn new_log_start(
    parts: &RetainerParts,
    image: &Image,
    view: &Arc<PartitionView>,
    policy: Policy,
) -> Option<i64> {
    let written_ms = |extent: &Extent| {
        let object = extent.object().and_then(|location| image.object(location.object));
        // What lies in the WAL was written a moment ago.
        object.map_or_else(|| image.time_ms(), |object| object.since_ms)
    };
    let mut walk = Walk::new(view, policy, image.time_ms());
    loop {
        match walk.step(&written_ms) {
            Step::Done(log_start) => return log_start,
            Step::Open(pointer) => match parts.index.block(view.key(), &pointer).await {
                Ok(block) => {
                    if !walk.opened(&block.extents, &written_ms) {
                        return walk.end();
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, key = ?view.key(), "an index block cannot be read; retention goes on later");
                    return walk.end();
                }
            },
        }
    }
}

/// Purges deleted topics whose window is over by the state machine's time.
async fn expire_topics(parts: &RetainerParts, image: &Image) {
    let due = image.deleted_topics().filter(|topic| topic.purge_ms <= image.time_ms()).count();
    if due == 0 {
        return;
    }
    for _ in 0..EXPIRE_ROUNDS {
        match parts.proposer.propose(Command::ExpireTopics(ExpireTopics { limit: 0 })).await {
            Ok(CommandResult::Expired(expired)) if expired.count > 0 => {
                tracing::info!(topics = expired.count, "deleted topics whose window is over are gone");
            }
            Ok(CommandResult::Expired(_)) => return,
            other => {
                tracing::warn!(answer = ?other, "deleted topics could not be expired; again later");
                return;
            }
        }
    }
}
