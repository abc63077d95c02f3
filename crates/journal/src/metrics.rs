//! What a journal tells Prometheus.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Which journal of the process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    journal: &'static str,
}

/// The metrics of all journals of a process, by the label `journal`.
#[derive(Clone)]
pub struct Metrics {
    appended_bytes: Family<Label, Counter>,
    frames: Family<Label, Counter>,
    groups: Family<Label, Counter>,
    sync_seconds: Family<Label, Histogram>,
    write_seconds: Family<Label, Histogram>,
    group_bytes: Family<Label, Histogram>,
    queued_bytes: Family<Label, Gauge>,
    live_bytes: Family<Label, Gauge>,
    segments: Family<Label, Gauge>,
    prepared: Family<Label, Counter>,
    recycled: Family<Label, Counter>,
    refused: Family<Label, Counter>,
    stopped: Family<Label, Gauge>,
    damaged: Family<Label, Gauge>,
    corrupt_reads: Family<Label, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        let seconds = || Histogram::new(exponential_buckets(25e-6, 2.0, 18));
        let bytes = || Histogram::new(exponential_buckets(4096.0, 2.0, 13));
        Self {
            appended_bytes: Family::default(),
            frames: Family::default(),
            groups: Family::default(),
            sync_seconds: Family::new_with_constructor(seconds),
            write_seconds: Family::new_with_constructor(seconds),
            group_bytes: Family::new_with_constructor(bytes),
            queued_bytes: Family::default(),
            live_bytes: Family::default(),
            segments: Family::default(),
            prepared: Family::default(),
            recycled: Family::default(),
            refused: Family::default(),
            stopped: Family::default(),
            damaged: Family::default(),
            corrupt_reads: Family::default(),
        }
    }

    /// Adds them under `isobar_journal_…`. Once a process.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("isobar_journal");
        let bytes = Unit::Bytes;
        let seconds = Unit::Seconds;
        registry.register_with_unit(
            "appended",
            "Written and synced",
            bytes.clone(),
            self.appended_bytes.clone(),
        );
        registry.register("frames", "Frames written and synced", self.frames.clone());
        registry.register("syncs", "Groups of frames, each written and synced once", self.groups.clone());
        registry.register_with_unit("sync", "Time of one sync", seconds.clone(), self.sync_seconds.clone());
        registry.register_with_unit(
            "write",
            "Time of one group's write",
            seconds,
            self.write_seconds.clone(),
        );
        registry.register_with_unit("group", "Size of one group", bytes.clone(), self.group_bytes.clone());
        registry.register_with_unit(
            "queued",
            "Waiting to be written",
            bytes.clone(),
            self.queued_bytes.clone(),
        );
        registry.register_with_unit("live", "Frames in segments in use", bytes, self.live_bytes.clone());
        registry.register("segments", "Segments in use or prepared", self.segments.clone());
        registry.register("prepared", "Segments prepared", self.prepared.clone());
        registry.register("recycled", "Segments given back", self.recycled.clone());
        registry.register("refused", "Appends refused because the disk was full", self.refused.clone());
        registry.register("stopped", "1 after a failed write or sync", self.stopped.clone());
        registry.register("damaged_regions", "Synced regions found damaged at opening", self.damaged.clone());
        registry.register(
            "corrupt_reads",
            "Reads that found another thing than was written",
            self.corrupt_reads.clone(),
        );
    }

    /// The metrics of the journal with this name.
    pub fn journal(&self, name: &'static str) -> JournalMetrics {
        let label = Label { journal: name };
        JournalMetrics {
            appended_bytes: self.appended_bytes.get_or_create_owned(&label),
            frames: self.frames.get_or_create_owned(&label),
            groups: self.groups.get_or_create_owned(&label),
            sync_seconds: self.sync_seconds.get_or_create_owned(&label),
            write_seconds: self.write_seconds.get_or_create_owned(&label),
            group_bytes: self.group_bytes.get_or_create_owned(&label),
            queued_bytes: self.queued_bytes.get_or_create_owned(&label),
            live_bytes: self.live_bytes.get_or_create_owned(&label),
            segments: self.segments.get_or_create_owned(&label),
            prepared: self.prepared.get_or_create_owned(&label),
            recycled: self.recycled.get_or_create_owned(&label),
            refused: self.refused.get_or_create_owned(&label),
            stopped: self.stopped.get_or_create_owned(&label),
            damaged: self.damaged.get_or_create_owned(&label),
            corrupt_reads: self.corrupt_reads.get_or_create_owned(&label),
        }
    }
}

/// One journal's metrics; by default in no registry.
#[derive(Clone)]
pub struct JournalMetrics {
    pub(crate) appended_bytes: Counter,
    pub(crate) frames: Counter,
    pub(crate) groups: Counter,
    pub(crate) sync_seconds: Histogram,
    pub(crate) write_seconds: Histogram,
    pub(crate) group_bytes: Histogram,
    pub(crate) queued_bytes: Gauge,
    pub(crate) live_bytes: Gauge,
    pub(crate) segments: Gauge,
    pub(crate) prepared: Counter,
    pub(crate) recycled: Counter,
    pub(crate) refused: Counter,
    pub(crate) stopped: Gauge,
    pub(crate) damaged: Gauge,
    pub(crate) corrupt_reads: Counter,
}

impl Default for JournalMetrics {
    fn default() -> Self {
        Metrics::new().journal("journal")
    }
}

impl std::fmt::Debug for JournalMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalMetrics").field("frames", &self.frames.get()).finish_non_exhaustive()
    }
}

impl JournalMetrics {
    /// Frames written and synced so far, and the groups they went in.
    pub fn frames_and_groups(&self) -> (u64, u64) {
        (self.frames.get(), self.groups.get())
    }
}
