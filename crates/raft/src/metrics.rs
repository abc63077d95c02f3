//! What the quorum counts.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds; from a bare sync on a fast disk to an election.
const LATENCY_SECONDS: [f64; 16] = [
    0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5,
    1.0, 5.0,
];
const APPLY_SECONDS: [f64; 8] = [0.000_01, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.01, 0.1];
const SNAPSHOT_SECONDS: [f64; 8] = [0.001, 0.01, 0.05, 0.1, 0.5, 1.0, 10.0, 60.0];

/// Metrics of one quorum member.
#[derive(Debug)]
pub struct RaftMetrics {
    /// Commands taken into the queue.
    pub proposals: Counter,
    /// Commands turned away because the queue was full.
    pub proposals_refused: Counter,
    /// Commands sent to the leader.
    pub forwarded: Counter,
    /// Times that another member's state was found to differ from this one's. Never anything but 0.
    pub hash_mismatches: Counter,
    /// Bytes of snapshots sent to members that were behind.
    pub snapshot_sent_bytes: Counter,
    /// Bytes of snapshots that came from a leader.
    pub snapshot_received_bytes: Counter,
    /// The term that this member is in.
    pub term: Gauge,
    /// 1 while this member leads.
    pub is_leader: Gauge,
    /// Changes of leader that this member has seen.
    pub leader_changes: Counter,
    /// Entries handed to openraft.
    pub entries: Counter,
    /// Encoded bytes of those entries.
    pub entry_bytes: Counter,
    /// Seconds from the call of `propose` to its answer.
    pub commit_seconds: Histogram,
    /// Seconds that applying one entry took.
    pub apply_seconds: Histogram,
    /// Read barriers asked for; many share one round.
    pub barriers: Counter,
    /// Rounds of leadership confirmation made for them.
    pub barrier_rounds: Counter,
    /// Bytes of the log's journal on disk that are in use.
    pub log_bytes: Gauge,
    /// Bytes of log entries kept in memory.
    pub log_cache_bytes: Gauge,
    /// Bytes of commands waiting to be grouped.
    pub queue_bytes: Gauge,
    /// Index of the last entry applied.
    pub applied_index: Gauge,
    /// Bytes of effect batches kept for followers.
    pub effects_bytes: Gauge,
    /// Snapshots written.
    pub snapshots: Counter,
    /// Snapshots that could not be written.
    pub snapshots_failed: Counter,
    /// Size of the newest snapshot in bytes.
    pub snapshot_bytes: Gauge,
    /// Seconds that writing a snapshot took.
    pub snapshot_seconds: Histogram,
    /// Index of the last entry archived.
    pub archived_index: Gauge,
    /// Index of the recovery cut.
    pub archive_cut: Gauge,
    /// Age of the oldest thing that a recovery from the archive alone would lack; 0: nothing.
    pub archive_cut_age_seconds: Gauge,
    /// Bytes written to the archive.
    pub archive_bytes: Counter,
    /// Passes of the archiver that failed.
    pub archive_failures: Counter,
}

impl Default for RaftMetrics {
    fn default() -> Self {
        Self {
            proposals: Counter::default(),
            proposals_refused: Counter::default(),
            forwarded: Counter::default(),
            hash_mismatches: Counter::default(),
            snapshot_sent_bytes: Counter::default(),
            snapshot_received_bytes: Counter::default(),
            term: Gauge::default(),
            is_leader: Gauge::default(),
            leader_changes: Counter::default(),
            entries: Counter::default(),
            entry_bytes: Counter::default(),
            commit_seconds: Histogram::new(LATENCY_SECONDS),
            apply_seconds: Histogram::new(APPLY_SECONDS),
            barriers: Counter::default(),
            barrier_rounds: Counter::default(),
            log_bytes: Gauge::default(),
            log_cache_bytes: Gauge::default(),
            queue_bytes: Gauge::default(),
            applied_index: Gauge::default(),
            effects_bytes: Gauge::default(),
            snapshots: Counter::default(),
            snapshots_failed: Counter::default(),
            snapshot_bytes: Gauge::default(),
            snapshot_seconds: Histogram::new(SNAPSHOT_SECONDS),
            archived_index: Gauge::default(),
            archive_cut: Gauge::default(),
            archive_cut_age_seconds: Gauge::default(),
            archive_bytes: Counter::default(),
            archive_failures: Counter::default(),
        }
    }
}

impl RaftMetrics {
    /// Registers all of them under `isobar_raft_`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("isobar_raft");
        r.register("proposals", "Commands taken into the queue", self.proposals.clone());
        r.register("proposals_refused", "Commands refused by a full queue", self.proposals_refused.clone());
        r.register("forwarded", "Commands sent to the leader", self.forwarded.clone());
        r.register(
            "hash_mismatches",
            "Times another member's state was found to differ",
            self.hash_mismatches.clone(),
        );
        r.register(
            "snapshot_sent_bytes",
            "Bytes of snapshots sent to members that were behind",
            self.snapshot_sent_bytes.clone(),
        );
        r.register(
            "snapshot_received_bytes",
            "Bytes of snapshots received from a leader",
            self.snapshot_received_bytes.clone(),
        );
        r.register("term", "Term of this member", self.term.clone());
        r.register("is_leader", "1 while this member leads", self.is_leader.clone());
        r.register("leader_changes", "Changes of leader seen", self.leader_changes.clone());
        r.register("entries", "Entries proposed", self.entries.clone());
        r.register("entry_bytes", "Encoded bytes of entries proposed", self.entry_bytes.clone());
        r.register("commit_seconds", "From a command's call to its answer", self.commit_seconds.clone());
        r.register("apply_seconds", "Time to apply one entry", self.apply_seconds.clone());
        r.register("barriers", "Read barriers asked for", self.barriers.clone());
        r.register("barrier_rounds", "Rounds made for read barriers", self.barrier_rounds.clone());
        r.register("log_bytes", "Bytes of the log on disk", self.log_bytes.clone());
        r.register("log_cache_bytes", "Bytes of log entries in memory", self.log_cache_bytes.clone());
        r.register("queue_bytes", "Bytes of commands waiting", self.queue_bytes.clone());
        r.register("applied_index", "Index of the last entry applied", self.applied_index.clone());
        r.register("effects_bytes", "Bytes of effects kept for followers", self.effects_bytes.clone());
        r.register("snapshots", "Snapshots written", self.snapshots.clone());
        r.register("snapshots_failed", "Snapshots that could not be written", self.snapshots_failed.clone());
        r.register("snapshot_bytes", "Bytes of the newest snapshot", self.snapshot_bytes.clone());
        r.register("snapshot_seconds", "Time to write one snapshot", self.snapshot_seconds.clone());
        r.register("archived_index", "Index of the last entry archived", self.archived_index.clone());
        r.register("archive_cut", "Index that a recovery comes back to", self.archive_cut.clone());
        r.register(
            "archive_cut_age_seconds",
            "Age of the oldest thing that a recovery from the archive would lack",
            self.archive_cut_age_seconds.clone(),
        );
        r.register("archive_bytes", "Bytes written to the archive", self.archive_bytes.clone());
        r.register("archive_failures", "Passes of the archiver that failed", self.archive_failures.clone());
    }
}

/// A gauge takes i64; sizes fit.
pub(crate) fn gauge(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}
