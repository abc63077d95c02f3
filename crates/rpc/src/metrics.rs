//! What this crate counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::Channel;
use crate::error::CallError;

/// One channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ChannelLabels {
    /// `raft`, `control`, `wal`, `bulk`.
    pub channel: &'static str,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabels {
    /// `raft`, `control`, `wal`, `bulk`.
    pub channel: &'static str,
    /// `ok`, `not_sent`, `lost`, `timed_out`, `refused`, `stopped`.
    pub result: &'static str,
}

/// Why a handshake failed.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// `in`: of a connection from a peer; `out`: of one to a peer.
    pub direction: &'static str,
    /// `wrong_secret`, `other_cluster`, `other_node`, `version`, `malformed`, `refused`, `timed_out`, `io`.
    pub reason: &'static str,
}

/// Metrics of a node's transport. A clone counts into the same.
#[derive(Debug, Clone)]
pub struct RpcMetrics {
    /// Calls by how they ended.
    pub calls: Family<ResultLabels, Counter>,
    /// Seconds from a call to its answer, where there was one.
    pub latency: Family<ChannelLabels, Histogram, fn() -> Histogram>,
    /// Bytes of requests that wait to be written.
    pub queued_bytes: Family<ChannelLabels, Gauge>,
    /// Bytes written, heads and all.
    pub sent_bytes: Family<ChannelLabels, Counter>,
    /// Bytes read, heads and all.
    pub received_bytes: Family<ChannelLabels, Counter>,
    /// Bytes of requests that came and are not answered.
    pub inbound_bytes: Family<ChannelLabels, Gauge>,
    /// Times that reading a connection stopped for lack of room.
    pub stops: Family<ChannelLabels, Counter>,
    /// Bytes of answers that wait to be written.
    pub outbound_bytes: Gauge,
    /// Connections to peers that stand.
    pub connected: Family<ChannelLabels, Gauge>,
    /// Connections from peers that stand.
    pub inbound: Family<ChannelLabels, Gauge>,
    /// Connections and handshakes that failed.
    pub failed_handshakes: Family<ReasonLabels, Counter>,
    /// Connections that were closed for what came over them.
    pub malformed: Family<ChannelLabels, Counter>,
    /// Connections that were given up for silence, or because nothing could be written.
    pub silent: Family<ChannelLabels, Counter>,
    /// Seconds from ping to pong.
    pub ping: Family<ChannelLabels, Histogram, fn() -> Histogram>,
}

/// 50 µs to 13 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.00005, 2.0, 19))
}

impl Default for RpcMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            latency: Family::new_with_constructor(seconds),
            queued_bytes: Family::default(),
            sent_bytes: Family::default(),
            received_bytes: Family::default(),
            inbound_bytes: Family::default(),
            stops: Family::default(),
            outbound_bytes: Gauge::default(),
            connected: Family::default(),
            inbound: Family::default(),
            failed_handshakes: Family::default(),
            malformed: Family::default(),
            silent: Family::default(),
            ping: Family::new_with_constructor(seconds),
        }
    }
}

impl RpcMetrics {
    /// Adds them under `isobar_rpc_…`.
    pub fn register(&self, registry: &mut Registry) {
        let rpc = registry.sub_registry_with_prefix("isobar_rpc");
        rpc.register("calls", "Calls by how they ended", self.calls.clone());
        rpc.register_with_unit("call", "Time from call to answer", Unit::Seconds, self.latency.clone());
        rpc.register_with_unit(
            "queued",
            "Requests that wait to be written",
            Unit::Bytes,
            self.queued_bytes.clone(),
        );
        rpc.register_with_unit("sent", "Bytes written", Unit::Bytes, self.sent_bytes.clone());
        rpc.register_with_unit("received", "Bytes read", Unit::Bytes, self.received_bytes.clone());
        rpc.register_with_unit(
            "inbound",
            "Requests that came and are not answered",
            Unit::Bytes,
            self.inbound_bytes.clone(),
        );
        rpc.register("read_stops", "Times that reading stopped for lack of room", self.stops.clone());
        rpc.register_with_unit(
            "outbound",
            "Answers that wait to be written",
            Unit::Bytes,
            self.outbound_bytes.clone(),
        );
        rpc.register("connected", "Connections to peers that stand", self.connected.clone());
        rpc.register("accepted", "Connections from peers that stand", self.inbound.clone());
        rpc.register(
            "failed_handshakes",
            "Connections and handshakes that failed",
            self.failed_handshakes.clone(),
        );
        rpc.register("malformed", "Connections closed for what came over them", self.malformed.clone());
        rpc.register("silent", "Connections given up for silence or a stall", self.silent.clone());
        rpc.register_with_unit("ping", "Time from ping to pong", Unit::Seconds, self.ping.clone());
    }

    pub(crate) fn failed_handshake(&self, direction: &'static str, reason: &'static str) {
        self.failed_handshakes.get_or_create(&ReasonLabels { direction, reason }).inc();
    }

    pub(crate) fn of(&self, channel: Channel) -> ChannelMetrics {
        let labels = ChannelLabels { channel: channel.name() };
        let ended =
            |result| self.calls.get_or_create_owned(&ResultLabels { channel: channel.name(), result });
        ChannelMetrics {
            ok: ended("ok"),
            not_sent: ended("not_sent"),
            lost: ended("lost"),
            timed_out: ended("timed_out"),
            refused: ended("refused"),
            stopped: ended("stopped"),
            latency: self.latency.get_or_create_owned(&labels),
            queued_bytes: self.queued_bytes.get_or_create_owned(&labels),
            sent_bytes: self.sent_bytes.get_or_create_owned(&labels),
            received_bytes: self.received_bytes.get_or_create_owned(&labels),
            inbound_bytes: self.inbound_bytes.get_or_create_owned(&labels),
            stops: self.stops.get_or_create_owned(&labels),
            connected: self.connected.get_or_create_owned(&labels),
            inbound: self.inbound.get_or_create_owned(&labels),
            malformed: self.malformed.get_or_create_owned(&labels),
            silent: self.silent.get_or_create_owned(&labels),
            ping: self.ping.get_or_create_owned(&labels),
        }
    }
}

/// One channel's, looked up once.
#[derive(Debug, Clone)]
pub(crate) struct ChannelMetrics {
    ok: Counter,
    not_sent: Counter,
    lost: Counter,
    timed_out: Counter,
    refused: Counter,
    stopped: Counter,
    pub(crate) latency: Histogram,
    pub(crate) queued_bytes: Gauge,
    pub(crate) sent_bytes: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) inbound_bytes: Gauge,
    pub(crate) stops: Counter,
    pub(crate) connected: Gauge,
    pub(crate) inbound: Gauge,
    pub(crate) malformed: Counter,
    pub(crate) silent: Counter,
    pub(crate) ping: Histogram,
}

impl ChannelMetrics {
    pub(crate) fn ended<T>(&self, result: &Result<T, CallError>) {
        let counter = match result {
            Ok(_) => &self.ok,
            Err(CallError::NotSent(_)) => &self.not_sent,
            Err(CallError::Lost(_)) => &self.lost,
            Err(CallError::TimedOut) => &self.timed_out,
            Err(CallError::Refused { .. }) => &self.refused,
            Err(CallError::Stopped) => &self.stopped,
        };
        counter.inc();
    }
}
