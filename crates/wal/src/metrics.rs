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
    }

    pub(crate) fn read_from(&self, from: &'static str) {
        self.reads.get_or_create(&ReadLabels { from }).inc();
    }
}
