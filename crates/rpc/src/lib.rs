//! Node-to-node transport: calls and streams in frames on TCP, between nodes that know the same cluster secret.
//!
//! Owns: the connections between nodes, who is at their other ends, and what waits on them.
//!
//! Promises
//! 1. Every call is answered exactly once, whatever happens: to the peer, the connection, or this [`Rpc`].
//! 2. [`CallError::NotSent`] is said only of a request of which not one byte has left this node.
//! 3. Requests of one [`Peer`] and [`Channel`] go out in the order of the calls, and reach the peer's [`Service`] in this
//!    order. When a connection ends, every call made before fails, in order, before a later one goes out; and no request
//!    of an earlier connection reaches the service after one of a later.
//! 4. Nothing is heard from, or said to, whoever has not proved that it knows the secret, for this cluster and this node.
//! 5. Everything that waits is bounded in bytes, and everybody who is waited for has a deadline: a call its own, a
//!    connection [`RpcOptions::dead_after`] of silence.
//! 6. A malformed frame closes its connection with one log line; no memory is taken by a length that was told.
//!
//! May not know: what the bytes mean, which nodes there should be.
//!
//! How a call walks: [`Peer::call_with`] queues it (`calls`, pure) in the line of its peer and channel (`line`), whose
//! writer seals it into a frame (`frame`, pure) and writes it (`link`); the peer's reader checks it and hands it to the
//! service with a [`Reply`] (`serve`); the answer goes the same way back, to the callback, on this crate's runtime.
//!
//! Each peer and channel has a connection of its own, so that none waits behind another; answers come back on the
//! connection of their requests, so between two nodes there are two of each. Who is there is settled in `handshake`.
//!
//! Not encrypted: for closed networks. The frames' sums guard against accidents.

mod calls;
mod error;
mod frame;
mod handshake;
mod inbound;
mod line;
mod link;
mod metrics;
mod options;
mod reply;
mod rpc;
mod serve;
mod stream;

#[cfg(test)]
mod tests;

pub use error::{CallError, Refusal, RpcError, StreamError, codes};
pub use metrics::{ChannelLabels, ReasonLabels, ResultLabels, RpcMetrics};
pub use options::{MIN_SECRET_BYTES, RpcOptions, Secret};
pub use reply::{Outgoing, Reply};
pub use rpc::{Peer, Rpc};
pub use serve::{Caller, Service};
pub use stream::Incoming;

/// What a connection is for; each has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Channel {
    /// Raft's own messages.
    Raft = 0,
    /// Small requests that somebody waits for: proposals, barriers, heartbeats.
    Control = 1,
    /// Appends to WAL replicas.
    Wal = 2,
    /// Large transfers: reads, snapshots, catching up.
    Bulk = 3,
}

impl Channel {
    /// How many there are.
    pub const COUNT: usize = 4;
    /// All of them.
    pub const ALL: [Self; Self::COUNT] = [Self::Raft, Self::Control, Self::Wal, Self::Bulk];

    /// In metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raft => "raft",
            Self::Control => "control",
            Self::Wal => "wal",
            Self::Bulk => "bulk",
        }
    }

    fn from_wire(channel: u8) -> Option<Self> {
        Self::ALL.get(usize::from(channel)).copied()
    }
}

/// A service of a node. Numbers are on the wire: never used again for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceId(pub u8);

impl ServiceId {
    /// Raft's messages (`crates/raft`).
    pub const RAFT: Self = Self(1);
    /// Proposals and barriers.
    pub const METADATA: Self = Self(2);
    /// WAL replicas (`crates/wal`).
    pub const WAL: Self = Self(3);
    /// Heartbeats of brokers (`crates/raft`).
    pub const LIVENESS: Self = Self(4);
    /// Nodes that come and go (`crates/isobar`).
    pub const CLUSTER: Self = Self(5);
    /// Blocks of objects, between brokers of a zone (`crates/store`).
    pub const BLOCKS: Self = Self(6);
}

/// What is asked of which service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Method {
    /// The service.
    pub service: ServiceId,
    /// The service's own number for it.
    pub method: u8,
}

impl Method {
    /// A method of a service.
    pub const fn new(service: ServiceId, method: u8) -> Self {
        Self { service, method }
    }
}
