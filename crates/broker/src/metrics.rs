//! What a broker counts. Labels: `api` is Kafka's name of the request; `stage` is a step of the produce path.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use isobar_protocol::api::ApiKey;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// 50 µs to about 26 s, each bucket twice the last.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(50e-6, 2.0, 20))
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Api {
    api: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupState {
    state: &'static str,
}

/// The broker's metrics.
pub struct Metrics {
    requests: Family<Api, Counter>,
    request_bytes: Family<Api, Counter>,
    response_bytes: Family<Api, Counter>,
    request_seconds: Family<Api, Histogram, fn() -> Histogram>,
    produce_stage_seconds: Family<Stage, Histogram, fn() -> Histogram>,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) record_bytes_in: Counter,
    pub(crate) records_in: Counter,
    pub(crate) record_bytes_out: Counter,
    pub(crate) batches_refused: Counter,
    pub(crate) steered: Counter,
    pub(crate) lane_bytes: Gauge<i64>,
    pub(crate) request_bytes_held: Gauge<i64>,
    pub(crate) fetches_waiting: Gauge,
    pub(crate) fetch_sessions: Gauge,
    pub(crate) image_index: Gauge<u64, AtomicU64>,
    groups: Family<GroupState, Gauge>,
    pub(crate) group_members: Gauge,
    pub(crate) group_rebalances: Counter,
    pub(crate) offsets_committed: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_bytes: Family::default(),
            response_bytes: Family::default(),
            request_seconds: Family::new_with_constructor(latency),
            produce_stage_seconds: Family::new_with_constructor(latency),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            record_bytes_in: Counter::default(),
            records_in: Counter::default(),
            record_bytes_out: Counter::default(),
            batches_refused: Counter::default(),
            steered: Counter::default(),
            lane_bytes: Gauge::default(),
            request_bytes_held: Gauge::default(),
            fetches_waiting: Gauge::default(),
            fetch_sessions: Gauge::default(),
            image_index: Gauge::default(),
            groups: Family::default(),
            group_members: Gauge::default(),
            group_rebalances: Counter::default(),
            offsets_committed: Counter::default(),
        }
    }
}

impl Metrics {
    /// Registers everything under the prefix `isobar_broker`.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("isobar_broker");
        r.register("requests", "Requests received", self.requests.clone());
        r.register_with_unit("request", "Bytes of requests", Unit::Bytes, self.request_bytes.clone());
        r.register_with_unit("response", "Bytes of responses", Unit::Bytes, self.response_bytes.clone());
        r.register_with_unit(
            "request_latency",
            "From a request's turn to its response (Produce: from its last byte)",
            Unit::Seconds,
            self.request_seconds.clone(),
        );
        r.register_with_unit(
            "produce_stage",
            "Time of a chunk in each stage: gather, append, commit",
            Unit::Seconds,
            self.produce_stage_seconds.clone(),
        );
        r.register("connections", "Open client connections", self.connections.clone());
        r.register(
            "connections_refused",
            "Connections closed for a malformed request or over the limit",
            self.connections_refused.clone(),
        );
        r.register_with_unit(
            "record_in",
            "Record batch bytes taken",
            Unit::Bytes,
            self.record_bytes_in.clone(),
        );
        r.register("records_in", "Records taken", self.records_in.clone());
        r.register_with_unit(
            "record_out",
            "Record batch bytes sent",
            Unit::Bytes,
            self.record_bytes_out.clone(),
        );
        r.register("batches_refused", "Batches answered with an error", self.batches_refused.clone());
        r.register("steered", "Clients sent to the leader in their zone, by partition", self.steered.clone());
        r.register_with_unit(
            "lane_queued",
            "Bytes between their receipt and their acknowledgement",
            Unit::Bytes,
            self.lane_bytes.clone(),
        );
        r.register_with_unit(
            "request_held",
            "Request bytes held while read and handled",
            Unit::Bytes,
            self.request_bytes_held.clone(),
        );
        r.register("fetches_waiting", "Fetches that wait for records", self.fetches_waiting.clone());
        r.register("fetch_sessions", "Fetch sessions (KIP-227) held", self.fetch_sessions.clone());
        r.register("image_index", "Raft index of the metadata image", self.image_index.clone());
        self.register_groups(r);
    }

    fn register_groups(&self, r: &mut Registry) {
        r.register("groups", "Consumer groups with members that are coordinated here", self.groups.clone());
        r.register("group_members", "Members of these groups", self.group_members.clone());
        r.register("group_rebalances", "Rebalances begun", self.group_rebalances.clone());
        r.register(
            "offsets_committed",
            "Partitions whose offset was committed",
            self.offsets_committed.clone(),
        );
    }

    pub(crate) fn groups(&self, state: &'static str, count: i64) {
        self.groups.get_or_create(&GroupState { state }).set(count);
    }

    pub(crate) fn received(&self, api: ApiKey, bytes: usize) {
        let label = Api { api: api.name() };
        self.requests.get_or_create(&label).inc();
        self.request_bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    pub(crate) fn answered(&self, api: ApiKey, took: Duration, bytes: usize) {
        let label = Api { api: api.name() };
        self.response_bytes.get_or_create(&label).inc_by(bytes as u64);
        self.request_seconds.get_or_create(&label).observe(took.as_secs_f64());
    }

    pub(crate) fn stage(&self, stage: &'static str, took: Duration) {
        self.produce_stage_seconds.get_or_create(&Stage { stage }).observe(took.as_secs_f64());
    }
}
