//! What this crate counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Where a read was answered from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReadLabels {
    /// `memory`, `disk`, `not_found`, `error`.
    pub from: &'static str,
}

/// Metrics of a local replica. A clone counts into the same.
#[derive(Debug, Clone)]
pub struct WalMetrics {
    /// Chunks durable.
    pub chunks: Counter,
    /// Bytes of their batches.
    pub batch_bytes: Counter,
    /// Appends refused because the disk's bound was reached.
    pub full: Counter,
    /// Appends that failed.
    pub failures: Counter,
    /// Seconds from append to done.
    pub append_latency: Histogram,
    /// Reads.
    pub reads: Family<ReadLabels, Counter>,
    /// Bytes of chunks held in memory.
    pub memory_bytes: Gauge,
    /// Chunks not yet released.
    pub live_chunks: Gauge,
    /// Bytes on disk of chunks not yet released.
    pub live_bytes: Gauge,
    /// Chunks released.
    pub released: Counter,
    /// Segments given back for reuse.
    pub recycled: Counter,
    /// Chunks copied here because others lost theirs or this replica lacked them.
    pub filled_chunks: Counter,
    /// Bytes of those.
    pub filled_bytes: Counter,
    /// Chunks that cannot be uploaded and of whose replicas one is lost, as this node sees it.
    pub lacking_chunks: Gauge,
}

impl Default for WalMetrics {
    fn default() -> Self {
        Self {
            chunks: Counter::default(),
            batch_bytes: Counter::default(),
            full: Counter::default(),
            failures: Counter::default(),
            // 50 µs to 1.6 s.
            append_latency: Histogram::new(exponential_buckets(0.00005, 2.0, 16)),
            reads: Family::default(),
            memory_bytes: Gauge::default(),
            live_chunks: Gauge::default(),
            live_bytes: Gauge::default(),
            released: Counter::default(),
            recycled: Counter::default(),
            filled_chunks: Counter::default(),
            filled_bytes: Counter::default(),
            lacking_chunks: Gauge::default(),
        }
    }
}

impl WalMetrics {
    /// Adds them under `isobar_wal_…`.
    pub fn register(&self, registry: &mut Registry) {
        let wal = registry.sub_registry_with_prefix("isobar_wal");
        wal.register("chunks", "Chunks made durable", self.chunks.clone());
        wal.register_with_unit(
            "batches",
            "Bytes of batches made durable",
            Unit::Bytes,
            self.batch_bytes.clone(),
        );
        wal.register("full", "Appends refused because the bound on disk was reached", self.full.clone());
        wal.register("failures", "Appends that failed", self.failures.clone());
        wal.register_with_unit(
            "append",
            "Time from append to durable",
            Unit::Seconds,
            self.append_latency.clone(),
        );
        wal.register("reads", "Reads by where they were answered from", self.reads.clone());
        wal.register_with_unit("memory", "Chunks held in memory", Unit::Bytes, self.memory_bytes.clone());
        wal.register("live_chunks", "Chunks not yet released", self.live_chunks.clone());
        wal.register_with_unit(
            "live",
            "Bytes on disk of chunks not yet released",
            Unit::Bytes,
            self.live_bytes.clone(),
        );
        wal.register("released", "Chunks released", self.released.clone());
        wal.register("recycled_segments", "Segments given back for reuse", self.recycled.clone());
        wal.register(
            "filled_chunks",
            "Chunks copied here because they could not be uploaded and lacked a copy",
            self.filled_chunks.clone(),
        );
        wal.register_with_unit(
            "filled",
            "Chunks copied here because they could not be uploaded and lacked a copy",
            Unit::Bytes,
            self.filled_bytes.clone(),
        );
        wal.register(
            "lacking_chunks",
            "Chunks that could not be uploaded for long and of whose replicas one is lost, as this node sees it",
            self.lacking_chunks.clone(),
        );
    }

    pub(crate) fn read_from(&self, from: &'static str) {
        self.reads.get_or_create(&ReadLabels { from }).inc();
    }
}

/// Why a replica was left behind.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LeftLabels {
    /// `slow`, `failed`.
    pub reason: &'static str,
}

/// Metrics of the quorum writer. A clone counts into the same.
#[derive(Debug, Clone)]
pub struct QuorumMetrics {
    /// Seconds from append to a write quorum.
    pub append_latency: Histogram,
    /// Appends refused because too few replicas had room.
    pub full: Counter,
    /// Appends that ended with a broken stream.
    pub broken_appends: Counter,
    /// Streams that fewer than a write quorum were left of.
    pub broken_streams: Counter,
    /// Replicas left behind.
    pub left_behind: Family<LeftLabels, Counter>,
    /// Reads, by `memory`, `local`, `remote`, `not_found`, `error`.
    pub reads: Family<ReadLabels, Counter>,
    /// Reads for which a second replica was asked because the first was slow.
    pub hedged: Counter,
    /// Bytes of chunks held for this node's readers.
    pub memory_bytes: Gauge,
}

impl Default for QuorumMetrics {
    fn default() -> Self {
        Self {
            // 50 µs to 1.6 s.
            append_latency: Histogram::new(exponential_buckets(0.00005, 2.0, 16)),
            full: Counter::default(),
            broken_appends: Counter::default(),
            broken_streams: Counter::default(),
            left_behind: Family::default(),
            reads: Family::default(),
            hedged: Counter::default(),
            memory_bytes: Gauge::default(),
        }
    }
}

impl QuorumMetrics {
    /// Adds them under `isobar_wal_quorum_…`.
    pub fn register(&self, registry: &mut Registry) {
        let quorum = registry.sub_registry_with_prefix("isobar_wal_quorum");
        quorum.register_with_unit(
            "append",
            "Time from append to a write quorum",
            Unit::Seconds,
            self.append_latency.clone(),
        );
        quorum.register("full", "Appends refused because too few replicas had room", self.full.clone());
        quorum.register(
            "broken_appends",
            "Appends that ended with a broken stream",
            self.broken_appends.clone(),
        );
        quorum.register(
            "broken_streams",
            "Streams of which fewer than a write quorum were left",
            self.broken_streams.clone(),
        );
        quorum.register("left_behind", "Replicas left behind, by reason", self.left_behind.clone());
        quorum.register("reads", "Reads by where they were answered from", self.reads.clone());
        quorum.register(
            "hedged_reads",
            "Reads that asked a second replica beside a slow one",
            self.hedged.clone(),
        );
        quorum.register_with_unit(
            "memory",
            "Chunks held in memory for readers on this node",
            Unit::Bytes,
            self.memory_bytes.clone(),
        );
    }

    pub(crate) fn read_from(&self, from: &'static str) {
        self.reads.get_or_create(&ReadLabels { from }).inc();
    }

    pub(crate) fn left_behind(&self, is_slow: bool) {
        self.left_behind.get_or_create(&LeftLabels { reason: if is_slow { "slow" } else { "failed" } }).inc();
    }
}
