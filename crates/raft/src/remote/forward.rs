//! Commands and read barriers of a member that does not lead, on their way to the leader, and their taking in there.
//!
//! Invariants
//! 1. A command that is reported as not proposed reached no leader's queue. Whatever was sent and not answered is
//!    [`ProposeError::Unknown`].
//! 2. Nothing is passed on twice: what was forwarded here is proposed here or refused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_metadata::{CommandResult, Envelope};
use isobar_rpc::{CallError, Channel, Reply, codes};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::Line;
use super::wire::{self, ProposeResult};
use crate::error::ProposeError;
use crate::leader::Leader;
use crate::machine::Machine;
use crate::propose::Queue;

/// Longer than the leader itself waits for an entry, so that its answer is not missed.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(2);

type Results = Vec<Result<CommandResult, ProposeError>>;

/// Gathers the answers to the commands of one request.
struct Gather {
    results: Mutex<Gathered>,
    machine: Arc<Machine>,
}

struct Gathered {
    results: Vec<ProposeResult>,
    left: usize,
    reply: Option<Reply>,
}

impl Gather {
    fn put(&self, place: usize, result: Result<CommandResult, ProposeError>) {
        let finished = {
            let mut gathered = self.results.lock();
            if let Some(slot) = gathered.results.get_mut(place) {
                *slot = ProposeResult::of(result);
            }
            gathered.left -= 1;
            if gathered.left > 0 {
                return;
            }
            let results = std::mem::take(&mut gathered.results);
            gathered.reply.take().map(|reply| (reply, results))
        };
        if let Some((reply, results)) = finished {
            let index = self.machine.acknowledged();
            reply.send(Ok(wire::encode(&wire::ProposeAnswer { results, index })));
        }
    }
}

/// Puts a follower's commands into this member's queue, in order; answers when all of them are answered.
pub(crate) fn propose_here(queue: &Queue, machine: &Arc<Machine>, commands: Vec<Envelope>, reply: Reply) {
    if commands.is_empty() {
        return reply.send(Ok(wire::encode(&wire::ProposeAnswer::default())));
    }
    let gathered = Gathered {
        results: vec![ProposeResult::default(); commands.len()],
        left: commands.len(),
        reply: Some(reply),
    };
    let gather = Arc::new(Gather { results: Mutex::new(gathered), machine: Arc::clone(machine) });
    for (place, command) in commands.into_iter().enumerate() {
        let gather = Arc::clone(&gather);
        queue.push_forwarded(command, Box::new(move |result| gather.put(place, result)));
    }
}

/// Sends commands to the leader; `done` is called once, with an answer for each.
pub(crate) fn propose_there(
    line: &Line,
    leader: &Leader,
    commands: Vec<Envelope>,
    done: impl FnOnce(Results) + Send + 'static,
) {
    let count = commands.len();
    let peer = leader.id.map(|id| line.peer(id, &leader.peer()));
    let peer = match peer {
        Some(Ok(peer)) => peer,
        Some(Err(_)) | None => return done(vec![Err(ProposeError::NotLeader { leader: None }); count]),
    };
    let ask = wire::Propose { route: line.route(Some(&leader.incarnation)), commands };
    let deadline = Instant::now() + PROPOSE_TIMEOUT;
    let told = line.clone();
    peer.call_with(Channel::Control, wire::PROPOSE, wire::encode(&ask), deadline, move |answer| {
        done(results(answer, count, &told));
    });
}

fn results(answer: Result<Bytes, CallError>, count: usize, line: &Line) -> Results {
    let unknown = |reason| vec![Err(ProposeError::Unknown { reason }); count];
    match answer {
        Ok(body) => match wire::decode::<wire::ProposeAnswer>(&body) {
            Ok((answer, _)) if answer.results.len() == count => {
                line.heard_of(answer.index);
                answer.results.into_iter().map(ProposeResult::result).collect()
            }
            _ => unknown("the leader's answer cannot be read"),
        },
        // It was taken and dropped: the leader has stopped.
        Err(CallError::Refused { code, .. }) if code == codes::DROPPED => {
            unknown("the leader stopped before it answered")
        }
        Err(CallError::NotSent(_) | CallError::Refused { .. }) => {
            vec![Err(ProposeError::NotLeader { leader: None }); count]
        }
        Err(CallError::Lost(_)) => unknown("the connection to the leader was lost"),
        Err(CallError::TimedOut) => unknown("the leader did not answer in time"),
        Err(CallError::Stopped) => unknown("the transport stopped"),
    }
}

/// Asks the leader for an index that has everything acknowledged to anyone before now.
pub(crate) async fn read_index(line: &Line, leader: &Leader) -> Result<u64, ProposeError> {
    let nobody = ProposeError::NotLeader { leader: None };
    let Some(id) = leader.id else { return Err(nobody) };
    let body = wire::encode(&wire::ReadIndex { route: line.route(Some(&leader.incarnation)) });
    let asked =
        line.ask(id, &leader.peer(), Channel::Control, wire::READ_INDEX, body, READ_INDEX_TIMEOUT).await;
    // A barrier changes nothing: whatever went wrong, it is simply asked again.
    let answer = asked.map_err(|error| {
        tracing::debug!(%error, leader = id, "no read index");
        nobody.clone()
    })?;
    match wire::decode::<wire::ReadIndexAnswer>(&answer) {
        Ok((answer, _)) => Ok(answer.index),
        Err(_) => Err(nobody),
    }
}
