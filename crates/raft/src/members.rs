//! Members that come and go.
//!
//! A member comes as a learner: it gets the log, or a snapshot, and counts for nothing. When it has caught up it becomes a
//! voter, by joint consensus. One change at a time; only the leader makes them. A change that was cut off leaves a learner, or
//! a joint membership that the next change ends; asking again is always safe.
//!
//! A directory that was lost comes back as another one under the old node id only after the old one was taken out, so that
//! no vote or entry that it promised is counted on any more. A learner promised nothing: it begins anew by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError as OpenraftError};

use crate::formation::{self, Met};
use crate::propose::Raft;
use crate::remote::Remote;
use crate::types::{Membership, Peer, Types};

/// A change that is not committed by then goes on, or not; nobody waits for it.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same for a learner that catches up.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(300);

/// A member of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its node id.
    pub id: u64,
    /// `host:port` where members reach it.
    pub address: String,
    /// Incarnation of its directory.
    pub incarnation: [u8; 16],
    /// False: a learner.
    pub is_voter: bool,
}

/// Why the membership was not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembershipError {
    /// Nothing happened: this node does not lead. Ask the leader.
    #[error("not the leader")]
    NotLeader {
        /// The leader's node id, if known here.
        leader: Option<u64>,
    },
    /// Nothing happened: the new member does not answer, or not as one.
    #[error("node {node} at {address}: {why}")]
    Unreachable {
        /// The new member.
        node: u64,
        /// Where it was looked for.
        address: String,
        /// What came of it.
        why: String,
    },
    /// Nothing happened, and the same question gets the same answer.
    #[error("{0}")]
    Refused(String),
    /// It may happen yet: look at the membership, and ask again.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

fn refused(what: impl Display) -> MembershipError {
    MembershipError::Refused(what.to_string())
}

/// Who belongs to the group, ascending by node id.
pub(crate) fn list(membership: &Membership) -> Vec<MemberInfo> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let member = |(id, peer): (&u64, &Peer)| MemberInfo {
        id: *id,
        address: peer.address.clone(),
        incarnation: peer.incarnation,
        is_voter: voters.contains(id),
    };
    membership.nodes().map(member).collect()
}

async fn changed<T>(
    change: impl Future<Output = Result<T, OpenraftError<Types, ClientWriteError<Types>>>>,
    timeout: Duration,
) -> Result<(), MembershipError> {
    match tokio::time::timeout(timeout, change).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(OpenraftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
            Err(MembershipError::NotLeader { leader: forward.leader_id })
        }
        Ok(Err(OpenraftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
            Err(refused(error))
        }
        Ok(Err(error)) => Err(MembershipError::Unknown(error.to_string())),
        Err(_) => Err(MembershipError::Unknown("not done in time".to_owned())),
    }
}

fn effective(raft: &Raft) -> Membership {
    use openraft_rt::watch::WatchReceiver as _;
    raft.server_metrics().borrow_watched().membership_config.membership().clone()
}

/// Enters where this member is reached, if the group knows it elsewhere: a group of one may have begun without an address, or
/// been recovered on another machine. For its leader, before there are others.
pub(crate) async fn readdress(raft: &Raft, me: u64, peer: Peer) -> Result<(), MembershipError> {
    if effective(raft).get_node(&me) == Some(&peer) {
        return Ok(());
    }
    let change = ChangeMembers::SetNodes(BTreeMap::from([(me, peer)]));
    changed(raft.change_membership(change, true), CHANGE_TIMEOUT).await
}

async fn meet(remote: &Remote, node: u64, address: &str) -> Result<Met, MembershipError> {
    formation::meet(&remote.line, node, address).await.map_err(|error| MembershipError::Unreachable {
        node,
        address: address.to_owned(),
        why: error.to_string(),
    })
}

/// Adds a learner and waits until it has caught up.
pub(crate) async fn add_learner(
    raft: &Raft,
    remote: &Remote,
    node: u64,
    address: &str,
) -> Result<(), MembershipError> {
    let met = meet(remote, node, address).await?;
    let membership = effective(raft);
    match membership.get_node(&node) {
        Some(known) if known.incarnation != met.incarnation => {
            if membership.voter_ids().any(|voter| voter == node) {
                return Err(refused(format!(
                    "node {node} is a voter with another directory; if that is lost, replace it"
                )));
            }
            take_out_for(raft, node, &met).await?;
        }
        Some(known) if known.address != address => return Err(elsewhere(node, &known.address)),
        Some(_) => {}
        None if !met.pristine => return Err(not_new(node)),
        None => {}
    }
    bring_in(raft, node, address, &met).await
}

fn elsewhere(node: u64, address: &str) -> MembershipError {
    refused(format!("node {node} is a member at {address}"))
}

fn not_new(node: u64) -> MembershipError {
    refused(format!(
        "node {node} has belonged to a group before; it must join as a new one, with an empty directory"
    ))
}

/// Takes out a member whose directory is lost. Not if the new one cannot come: nothing is won then.
async fn take_out_for(raft: &Raft, node: u64, new: &Met) -> Result<(), MembershipError> {
    if !new.pristine {
        return Err(not_new(node));
    }
    remove(raft, node).await
}

async fn bring_in(raft: &Raft, node: u64, address: &str, met: &Met) -> Result<(), MembershipError> {
    let peer = Peer { incarnation: met.incarnation, address: address.to_owned() };
    changed(raft.add_learner(node, peer, true), CATCH_UP_TIMEOUT).await
}

/// Takes out the directory that a node has lost and brings in the new one, with the vote that the old one had.
pub(crate) async fn replace(
    raft: &Raft,
    remote: &Remote,
    node: u64,
    address: &str,
) -> Result<(), MembershipError> {
    let met = meet(remote, node, address).await?;
    let membership = effective(raft);
    let known = membership.get_node(&node);
    // Absent: an earlier attempt was cut off after the old one had gone.
    let votes = match known {
        Some(_) => membership.voter_ids().any(|voter| voter == node),
        None => met.may_vote,
    };
    match known {
        Some(known) if known.incarnation != met.incarnation => take_out_for(raft, node, &met).await?,
        Some(known) if known.address != address => return Err(elsewhere(node, &known.address)),
        None if !met.pristine => return Err(not_new(node)),
        _ => {}
    }
    bring_in(raft, node, address, &met).await?;
    if votes { make_voter(raft, node, &met).await } else { Ok(()) }
}

/// Makes a learner a voter.
pub(crate) async fn promote(raft: &Raft, remote: &Remote, node: u64) -> Result<(), MembershipError> {
    let membership = effective(raft);
    let Some(peer) = membership.get_node(&node) else {
        return Err(refused(format!("node {node} is no member: start it, so that it joins")));
    };
    let met = meet(remote, node, &peer.address).await?;
    make_voter(raft, node, &met).await
}

async fn make_voter(raft: &Raft, node: u64, met: &Met) -> Result<(), MembershipError> {
    if effective(raft).voter_ids().any(|voter| voter == node) {
        return Ok(());
    }
    if !met.may_vote {
        return Err(refused(format!("node {node} does not have the role metadata")));
    }
    let change = ChangeMembers::AddVoterIds(BTreeSet::from([node]));
    changed(raft.change_membership(change, false), CHANGE_TIMEOUT).await
}

/// Takes a voter or learner out of the group.
pub(crate) async fn remove(raft: &Raft, node: u64) -> Result<(), MembershipError> {
    let membership = effective(raft);
    if membership.get_node(&node).is_none() {
        return Ok(());
    }
    let nodes = BTreeSet::from([node]);
    if membership.voter_ids().any(|voter| voter == node) {
        // It goes for good, and does not stay as a learner.
        let change = ChangeMembers::RemoveVoters(nodes);
        return changed(raft.change_membership(change, false), CHANGE_TIMEOUT).await;
    }
    changed(raft.change_membership(ChangeMembers::RemoveNodes(nodes), false), CHANGE_TIMEOUT).await
}
