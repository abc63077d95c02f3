//! The other members: what this one says to them, and how it answers what they say.
//!
//! Owns: the services RAFT and METADATA of the node's transport ([`isobar_rpc`]).
//!
//! Layout: [`wire`] has the messages, [`network`] sends openraft's, [`snapshot`] sends and takes in snapshots, [`service`]
//! answers, [`observed`] those that follow without being members, [`forward`] brings commands and read barriers to the leader.
//!
//! Promises
//! 1. Nothing is answered in a peer's name. What cannot be reached is an error: openraft would count a made-up answer as a vote.
//! 2. A message for another directory, from a directory that the group does not know under its node id, or of another
//!    incarnation of the cluster, is refused before anything is done (DESIGN.md, invariant 6).
//! 3. Appends, votes and heartbeats of one peer go into openraft in the order in which they were sent on the connection;
//!    commands of one follower into the leader's queue likewise.
//! 4. Bounded in bytes: appends on the way by [`network`]'s window, parts of snapshots by [`snapshot`]'s, what waits to be
//!    taken in by [`service`]'s inboxes; commands by the queue of the leader.

pub(crate) mod forward;
pub(crate) mod network;
pub(crate) mod observed;
pub(crate) mod service;
pub(crate) mod snapshot;
pub(crate) mod wire;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_rpc::{CallError, Channel, Method, Rpc};
use tokio::time::Instant;

use crate::clocks::Clocks;
use crate::machine::Machine;
use crate::metrics::RaftMetrics;
use crate::types::Peer;
use wire::Route;

/// How fast a group notices that its leader is gone, and how patient it is with a slow one. All members need the same.
///
/// A follower campaigns when it has heard nothing of the leader for `election_max` (openraft's lease of the leader) and a
/// random time between `election_min` and `election_max` more. If the leader's connection was closed and it does not come
/// back within 150 ms, the election comes at once: a killed process is replaced in about a quarter of a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Between two heartbeats. A heartbeat's answer that takes longer does not count, so it must exceed the round trip.
    pub heartbeat: Duration,
    /// See above.
    pub election_min: Duration,
    /// See above.
    pub election_max: Duration,
}

impl Timing {
    /// For a group of one, which waits for nobody.
    pub(crate) const ALONE: Self = Self {
        heartbeat: Duration::from_millis(250),
        election_min: Duration::from_millis(1000),
        election_max: Duration::from_millis(2000),
    };
    /// For one site. Measured on two cores shared with builds (loopback, one disk): heartbeats are late by tens of milliseconds,
    /// now and then by 300. A leader that hangs (or is cut off) is replaced within 1.05 to 1.4 s, seven to fourteen of its
    /// heartbeats.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(100),
        election_min: Duration::from_millis(350),
        election_max: Duration::from_millis(700),
    };
    /// For voters in several regions, with round trips of up to 250 ms.
    pub const WAN: Self = Self {
        heartbeat: Duration::from_millis(300),
        election_min: Duration::from_millis(1200),
        election_max: Duration::from_millis(2000),
    };
}

/// How a member reaches the others, and they it.
#[derive(Clone)]
pub struct RaftNetwork {
    /// The node's transport. The services RAFT and METADATA are registered with it.
    pub rpc: Rpc,
    /// See [`Timing`].
    pub timing: Timing,
}

impl RaftNetwork {
    /// On one site.
    pub fn new(rpc: Rpc) -> Self {
        Self { rpc, timing: Timing::LAN }
    }
}

impl fmt::Debug for RaftNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RaftNetwork").field("timing", &self.timing).finish_non_exhaustive()
    }
}

/// A node of the group, or one that follows it, and its way to the others.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) rpc: Rpc,
    pub(crate) node_id: u64,
    pub(crate) cluster_incarnation: u32,
    /// Of its directory; of one that has none: of this life.
    pub(crate) incarnation: [u8; 16],
    /// Whether it has a directory.
    pub(crate) is_member: bool,
    /// Highest index that a leader named beside results for this node's commands.
    pub(crate) heard: Arc<AtomicU64>,
}

/// This member as the others see it, and the way to them.
pub(crate) struct Remote {
    pub(crate) host: Host,
    pub(crate) line: Line,
    pub(crate) machine: Arc<Machine>,
    pub(crate) clocks: Clocks,
    pub(crate) metrics: Arc<RaftMetrics>,
}

impl Remote {
    /// The time of an entry, wall clock in ms. The state machine takes the maximum of it and its time so far.
    pub(crate) fn entry_time_ms(&self) -> i64 {
        let voters = self.machine.voters();
        self.clocks.median_ms(&voters, self.line.node_id, self.host.now_ms(), Instant::now())
    }
}

impl Line {
    /// A leader has answered commands of this node, applied up to this index.
    pub(crate) fn heard_of(&self, index: u64) {
        self.heard.fetch_max(index, Ordering::AcqRel);
    }

    /// What a message to the directory `to` begins with; `None`: whichever it is.
    pub(crate) fn route(&self, to: Option<&[u8; 16]>) -> Route {
        Route {
            cluster_incarnation: self.cluster_incarnation,
            from: if self.is_member { Bytes::copy_from_slice(&self.incarnation) } else { Bytes::new() },
            to: to.map_or_else(Bytes::new, |to| Bytes::copy_from_slice(to)),
        }
    }

    /// The transport's peer of a member.
    pub(crate) fn peer(&self, node: u64, peer: &Peer) -> Result<isobar_rpc::Peer, CallError> {
        match i32::try_from(node) {
            Ok(id) if !peer.address.is_empty() => Ok(self.rpc.peer(id, &peer.address)),
            _ => Err(CallError::NotSent(format!("node {node} has no address"))),
        }
    }

    /// One question and its answer.
    pub(crate) async fn ask(
        &self,
        node: u64,
        peer: &Peer,
        channel: Channel,
        method: Method,
        body: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        self.peer(node, peer)?.call(channel, method, body, Instant::now() + timeout).await
    }
}
