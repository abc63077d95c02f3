//! What this crate counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::classes::Class;

/// Labels of a request to a store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    /// Name of the store.
    pub store: String,
    /// `put`, `create`, `get`, `head`, `delete`, `list`.
    pub op: &'static str,
    /// `ok`, `exists`, `not_found`, `did_not_happen`, `may_have_happened`, `refused`.
    pub result: &'static str,
}

/// Labels of what is wrong with a store now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FailingLabels {
    /// Name of the store.
    pub store: String,
    /// `reading`, `writing` or `deleting`.
    pub kind: &'static str,
    /// [`crate::Cause::name`].
    pub cause: &'static str,
}

/// Labels of failures.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CauseLabels {
    /// Name of the store.
    pub store: String,
    /// [`crate::Cause::name`].
    pub cause: &'static str,
}

/// Labels of bytes and latency.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OpLabels {
    /// Name of the store.
    pub store: String,
    /// As in [`RequestLabels`].
    pub op: &'static str,
}

/// Labels of a background job.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct JobLabels {
    /// `uploads`, `dead`, `single`, `small` (compactions), `compact`, `index`.
    pub job: &'static str,
}

/// Labels of what a class of requests did.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ClassLabels {
    /// [`Class::name`].
    pub class: &'static str,
}

/// All metrics of stores, uploads and the block cache. A clone counts into the same.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    /// Requests, every attempt counted.
    pub requests: Family<RequestLabels, Counter>,
    /// 1 while a store does not read or write, with the cause; see `bucket/health.rs`. An alarm.
    pub failing: Family<FailingLabels, Gauge>,
    /// Attempts that failed, by cause.
    pub failures: Family<CauseLabels, Counter>,
    /// Bytes sent or received by requests that went well.
    pub bytes: Family<OpLabels, Counter>,
    /// Seconds of an attempt.
    pub latency: Family<OpLabels, Histogram, fn() -> Histogram>,
    /// Seconds that a request waited for room among those of its class, if it did wait.
    pub class_waits: Family<ClassLabels, Histogram, fn() -> Histogram>,
    /// GETs that were sent a second time because their answer was late.
    pub hedges: Counter,
    /// Of those, the ones whose second answer came first.
    pub hedges_won: Counter,
    /// Bytes in the WAL that wait for their upload.
    pub waiting_bytes: Gauge,
    /// Milliseconds that the oldest of them has waited, as far as this uploader has seen.
    pub waiting_age_ms: Gauge,
    /// Objects written and committed.
    pub objects: Counter,
    /// Bytes of batches in them.
    pub uploaded_bytes: Counter,
    /// Uploads that did not become a committed object.
    pub failed_uploads: Counter,
    /// Runs of committed objects that metadata did not take, because others were first or the offsets have gone.
    pub dead_runs: Counter,
    /// Batches whose bytes were not where metadata says, twice in a row. An alarm.
    pub lost_batches: Counter,
    /// Background jobs done, by kind.
    pub jobs: Family<JobLabels, Counter>,
    /// Jobs that came to nothing and are planned again, by kind.
    pub failed_jobs: Family<JobLabels, Counter>,
    /// Bytes of batches in compacted objects.
    pub compacted_bytes: Counter,
    /// Partitions whose log start retention moved.
    pub retained_partitions: Counter,
    /// Extents that went into index objects.
    pub indexed_extents: Counter,
    /// Objects deleted.
    pub deleted: Counter,
    /// Blocks served from the cache.
    pub cache_hits: Counter,
    /// Blocks that had to be loaded.
    pub cache_misses: Counter,
    /// Bytes in the cache's memory.
    pub cache_bytes: Gauge<u64, AtomicU64>,
    /// Bytes read ahead of sequential readers.
    pub cache_ahead_bytes: Counter,
    /// Bytes read ahead that left the cache before anybody asked for them.
    pub cache_unused_bytes: Counter,
    /// Blocks that came from another broker of the zone.
    pub zone_blocks: Counter,
    /// Questions to another broker of the zone that were in vain.
    pub zone_failures: Counter,
    /// Blocks that other brokers of the zone were given.
    pub zone_served_blocks: Counter,
    /// Blocks that came back from the local disk.
    pub disk_hits: Counter,
    /// Blocks that were not on the local disk.
    pub disk_misses: Counter,
    /// Bytes written to the local disk.
    pub disk_written_bytes: Counter,
    /// Blocks not written to the local disk, because it was behind or short of room.
    pub disk_skipped: Counter,
    /// Blocks whose bytes came back from the local disk damaged; loaded from the store instead.
    pub disk_damaged: Counter,
    /// Blocks that the local disk failed to give back; loaded from the store instead.
    pub disk_errors: Counter,
}

fn latency() -> Histogram {
    // 0.5 ms to 16 s.
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            failing: Family::default(),
            failures: Family::default(),
            bytes: Family::default(),
            latency: Family::new_with_constructor(latency),
            class_waits: Family::new_with_constructor(latency),
            hedges: Counter::default(),
            hedges_won: Counter::default(),
            waiting_bytes: Gauge::default(),
            waiting_age_ms: Gauge::default(),
            objects: Counter::default(),
            uploaded_bytes: Counter::default(),
            failed_uploads: Counter::default(),
            dead_runs: Counter::default(),
            lost_batches: Counter::default(),
            jobs: Family::default(),
            failed_jobs: Family::default(),
            compacted_bytes: Counter::default(),
            retained_partitions: Counter::default(),
            indexed_extents: Counter::default(),
            deleted: Counter::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_ahead_bytes: Counter::default(),
            cache_unused_bytes: Counter::default(),
            zone_blocks: Counter::default(),
            zone_failures: Counter::default(),
            zone_served_blocks: Counter::default(),
            disk_hits: Counter::default(),
            disk_misses: Counter::default(),
            disk_written_bytes: Counter::default(),
            disk_skipped: Counter::default(),
            disk_damaged: Counter::default(),
            disk_errors: Counter::default(),
        }
    }
}

impl StoreMetrics {
    /// Adds them under `isobar_store_…` and `isobar_upload_…`.
    pub fn register(&self, registry: &mut Registry) {
        let store = registry.sub_registry_with_prefix("isobar_store");
        store.register("requests", "Requests to a store, each attempt", self.requests.clone());
        store.register("failing", "1 while a store does not read or write", self.failing.clone());
        store.register("failures", "Attempts that failed, by cause", self.failures.clone());
        store.register("transferred", "Bytes sent to or received from a store", self.bytes.clone());
        store.register_with_unit("latency", "Time of an attempt", Unit::Seconds, self.latency.clone());
        let waits = "Time that requests waited for room among those of their class";
        store.register_with_unit("class_waits", waits, Unit::Seconds, self.class_waits.clone());
        store.register("hedges", "GETs sent twice, their answer being late", self.hedges.clone());
        store.register("hedges_won", "Of those, answered by the second first", self.hedges_won.clone());
        store.register("deleted_objects", "Objects deleted", self.deleted.clone());
        self.register_cache(registry.sub_registry_with_prefix("isobar_cache"));
        let job = registry.sub_registry_with_prefix("isobar_job");
        job.register("done", "Background jobs done", self.jobs.clone());
        job.register("failures", "Background jobs that will be planned again", self.failed_jobs.clone());
        job.register_with_unit(
            "compacted",
            "Bytes of batches in compacted objects",
            Unit::Bytes,
            self.compacted_bytes.clone(),
        );
        job.register("indexed_extents", "Extents moved to index objects", self.indexed_extents.clone());
        job.register(
            "retained_partitions",
            "Partitions whose log start retention moved",
            self.retained_partitions.clone(),
        );
        let upload = registry.sub_registry_with_prefix("isobar_upload");
        upload.register_with_unit(
            "waiting",
            "Bytes in the WAL not yet uploaded",
            Unit::Bytes,
            self.waiting_bytes.clone(),
        );
        upload.register(
            "waiting_age_ms",
            "How long the oldest of them has waited",
            self.waiting_age_ms.clone(),
        );
        upload.register("objects", "Objects committed", self.objects.clone());
        upload.register_with_unit(
            "batches",
            "Bytes of batches in committed objects",
            Unit::Bytes,
            self.uploaded_bytes.clone(),
        );
        upload.register("failures", "Uploads that became no committed object", self.failed_uploads.clone());
        upload.register("dead_runs", "Runs that metadata did not take", self.dead_runs.clone());
        upload.register(
            "lost_batches",
            "Batches not found where metadata says; an alarm",
            self.lost_batches.clone(),
        );
    }

    fn register_cache(&self, cache: &mut Registry) {
        cache.register("hits", "Blocks served from memory", self.cache_hits.clone());
        cache.register("misses", "Blocks that a reader had to wait for", self.cache_misses.clone());
        cache.register_with_unit(
            "memory",
            "Bytes of blocks in memory",
            Unit::Bytes,
            self.cache_bytes.clone(),
        );
        let bytes = |name, help, counter: &Counter, cache: &mut Registry| {
            cache.register_with_unit(name, help, Unit::Bytes, counter.clone());
        };
        bytes("ahead", "Read ahead of sequential readers", &self.cache_ahead_bytes, cache);
        bytes("ahead_unused", "Read ahead and dropped before anybody asked", &self.cache_unused_bytes, cache);
        let zone = "Blocks that came from another broker of the zone, not from the store";
        cache.register("zone_blocks", zone, self.zone_blocks.clone());
        let zone = "Questions for blocks to another broker of the zone that were in vain";
        cache.register("zone_failures", zone, self.zone_failures.clone());
        let zone = "Blocks that other brokers of the zone were given";
        cache.register("zone_served_blocks", zone, self.zone_served_blocks.clone());
        bytes("disk_written", "Written to the local disk", &self.disk_written_bytes, cache);
        cache.register("disk_hits", "Blocks that came from the local disk", self.disk_hits.clone());
        cache.register("disk_misses", "Blocks that were not on the local disk", self.disk_misses.clone());
        cache.register(
            "disk_skipped",
            "Blocks not written to the local disk, which was behind or short of room",
            self.disk_skipped.clone(),
        );
        cache.register(
            "disk_damaged",
            "Blocks that came damaged from the local disk; loaded from the store instead",
            self.disk_damaged.clone(),
        );
        cache.register(
            "disk_errors",
            "Blocks that the local disk failed to read; loaded from the store instead",
            self.disk_errors.clone(),
        );
    }

    /// Where waits of this class are counted.
    pub(crate) fn class_waits(&self, class: Class) -> impl std::ops::Deref<Target = Histogram> {
        self.class_waits.get_or_create(&ClassLabels { class: class.name() })
    }

    /// Requests of one kind so far, over all stores and results.
    pub fn requests_of(&self, store: &str, op: &'static str) -> u64 {
        ["ok", "exists", "not_found", "did_not_happen", "may_have_happened", "refused"]
            .into_iter()
            .map(|result| {
                let labels = RequestLabels { store: store.to_owned(), op, result };
                self.requests.get(&labels).map_or(0, |counter| counter.get())
            })
            .sum()
    }
}
