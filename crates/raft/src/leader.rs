//! Who leads, as this member knows it.

use std::sync::Arc;

use isobar_host::watch;
use openraft_rt::watch::WatchReceiver as _;

use crate::metrics::{RaftMetrics, gauge};
use crate::propose::Raft;
use crate::remote::Line;
use crate::types::Peer;

/// The leader that this member follows. It may be gone already; nobody has told this member yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leader {
    /// Its node id; `None` while none is known.
    pub id: Option<u64>,
    /// The term that this member is in. It grows with every election.
    pub term: u64,
    /// `host:port` where members reach it; empty if there is none.
    pub address: String,
    /// Incarnation of its directory.
    pub incarnation: [u8; 16],
}

impl Leader {
    /// As a member of the group.
    pub(crate) fn peer(&self) -> Peer {
        Peer { incarnation: self.incarnation, address: self.address.clone() }
    }
}

/// Where commands and read barriers go.
#[derive(Clone)]
pub(crate) struct Lead {
    pub(crate) me: u64,
    pub(crate) leader: watch::Receiver<Leader>,
    /// `None` in a group of one without a transport.
    pub(crate) line: Option<Line>,
}

/// See [`Lead`].
pub(crate) enum Way {
    Here,
    There(Line, Leader),
    Nowhere,
}

impl Lead {
    /// Where to go now. Openraft may know better and refuses then.
    pub(crate) fn way(&self) -> Way {
        let Some(line) = &self.line else { return Way::Here };
        let leader = self.leader.borrow();
        match leader.id {
            Some(id) if id == self.me => Way::Here,
            Some(_) => Way::There(line.clone(), leader.clone()),
            None => Way::Nowhere,
        }
    }

    /// Whether there may be others.
    pub(crate) fn in_group(&self) -> bool {
        self.line.is_some()
    }
}

/// Tells of every change until openraft stops.
pub(crate) async fn watch(raft: Raft, me: u64, tell: watch::Sender<Leader>, counts: Arc<RaftMetrics>) {
    let mut metrics = raft.server_metrics();
    loop {
        let leader = {
            let metrics = metrics.borrow_and_update();
            let membership = metrics.membership_config.membership();
            let peer = metrics.current_leader.and_then(|id| membership.get_node(&id)).cloned();
            let peer = peer.unwrap_or_default();
            Leader {
                id: metrics.current_leader,
                term: metrics.vote.leader_id.term,
                address: peer.address,
                incarnation: peer.incarnation,
            }
        };
        tell.send_if_modified(|told| {
            let changed = *told != leader;
            if changed {
                tracing::info!(leader = ?leader.id, term = leader.term, "leadership of the metadata quorum");
                counts.term.set(gauge(leader.term));
                counts.is_leader.set(i64::from(leader.id == Some(me)));
                counts.leader_changes.inc_by(u64::from(leader.id.is_some() && leader.id != told.id));
                *told = leader;
            }
            changed
        });
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
