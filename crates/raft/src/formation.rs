//! How a group of several begins, and how it learns who its first members are.
//!
//! Each first voter formats its own directory, with an incarnation that it draws itself. The one with the lowest node id asks
//! the others which directories they are, and when all of them have answered, are empty, and were told of the same voters,
//! it writes the first membership into its log and stands for election; the others get it as any entry. So all first voters
//! must be up once at the same time, and none begins a second group beside one that is there.
//!
//! Crash cases: before the first membership is synced, everything begins anew; after it, the member finds it in its log and
//! goes on with an election like any other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_rpc::{CallError, Channel};

use crate::propose::Raft;
use crate::remote::{Line, Remote, wire};
use crate::types::Peer;

const ASK_TIMEOUT: Duration = Duration::from_secs(2);
const ASK_AGAIN: Duration = Duration::from_millis(100);
/// While the same voter is waited for, that is logged once in so many rounds.
const LOG_EVERY_ROUNDS: u64 = 100;

/// What a node says of its directory.
pub(crate) struct Met {
    pub(crate) incarnation: [u8; 16],
    pub(crate) pristine: bool,
    pub(crate) initial_voters: Vec<(u64, String)>,
    pub(crate) may_vote: bool,
}

/// Asks a node which directory it is.
pub(crate) async fn meet(line: &Line, node: u64, address: &str) -> Result<Met, CallError> {
    let peer = Peer { incarnation: [0; 16], address: address.to_owned() };
    let body = wire::encode(&wire::Hello { route: line.route(None) });
    let answer = line.ask(node, &peer, Channel::Control, wire::HELLO, body, ASK_TIMEOUT).await?;
    let malformed = |what: String| CallError::Lost(format!("its answer cannot be read: {what}"));
    let (answer, _): (wire::HelloAnswer, _) = wire::decode(&answer).map_err(malformed)?;
    let incarnation = answer.incarnation.as_ref().try_into();
    Ok(Met {
        incarnation: incarnation.map_err(|_| malformed("an incarnation of a wrong length".to_owned()))?,
        pristine: answer.pristine,
        initial_voters: answer.initial_voters.into_iter().map(|voter| (voter.node, voter.address)).collect(),
        may_vote: answer.may_vote,
    })
}

/// Meets all first voters and begins the group. Ends when that is done, or when it must not be.
pub(crate) async fn begin(raft: Raft, remote: Arc<Remote>, voters: Vec<(u64, String)>) {
    let mut members = BTreeMap::new();
    let mut round: u64 = 0;
    while members.len() < voters.len() {
        for (node, address) in &voters {
            if members.contains_key(node) {
                continue;
            }
            let met = if *node == remote.line.node_id {
                Ok(remote.line.incarnation)
            } else {
                meet_voter(&remote, *node, address, &voters).await
            };
            match met {
                Ok(incarnation) => {
                    members.insert(*node, Peer { incarnation, address: address.clone() });
                }
                Err(why) if round.is_multiple_of(LOG_EVERY_ROUNDS) => {
                    tracing::warn!(node, address, why, "the metadata quorum cannot begin yet");
                }
                Err(_) => {}
            }
        }
        round += 1;
        if members.len() < voters.len() {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
    if let Err(error) = raft.initialize(members).await {
        // Not an error if somebody else was faster; otherwise the log says why nothing begins.
        tracing::warn!(%error, "the metadata quorum was not begun here");
        return;
    }
    tracing::info!(voters = voters.len(), "the metadata quorum has begun");
    // An error: openraft has stopped.
    let _ = raft.trigger().elect(false).await;
}

async fn meet_voter(
    remote: &Remote,
    node: u64,
    address: &str,
    voters: &[(u64, String)],
) -> Result<[u8; 16], String> {
    let met = meet(&remote.line, node, address).await.map_err(|error| error.to_string())?;
    if !met.pristine {
        return Err("it belongs to a group already, which this node's directory is not part of: if this node was one of it and lost its \
                    directory, it must be replaced there".to_owned());
    }
    let ours: BTreeSet<_> = voters.iter().collect();
    if met.initial_voters.iter().collect::<BTreeSet<_>>() != ours {
        return Err(format!("it was told of other voters: {:?}", met.initial_voters));
    }
    Ok(met.incarnation)
}
