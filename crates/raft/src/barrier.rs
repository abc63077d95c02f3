//! Read barriers (ReadIndex, Raft dissertation 6.4): "everything acknowledged before now is in the answer".
//!
//! Invariant: a waiter is answered by a round that began after it came. One round at a time; who comes during one joins
//! the next. So any number of readers cost at most two rounds' time each.
//!
//! A follower asks the leader, whose answer comes after the leadership was confirmed by a quorum, and waits until it has
//! applied as much itself.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::watch;
use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError as OpenraftError};
use openraft_rt::watch::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::ProposeError;
use crate::leader::{Lead, Leader, Way};
use crate::machine::Machine;
use crate::metrics::RaftMetrics;
use crate::propose::Raft;
use crate::remote::{Line, forward};

/// More waiters than this (a few MiB) are told to come again.
const MAX_WAITING: usize = 1 << 16;

/// In a group of several: longest wait until what was committed is applied here.
const APPLY_TIMEOUT: Duration = Duration::from_secs(3);

type Done = Box<dyn FnOnce(Result<u64, ProposeError>) + Send>;

struct Waiter {
    done: Done,
    /// A follower asks: only the leader may answer.
    forwarded: bool,
}

/// Those who wait for the next round.
pub(crate) struct Barriers {
    inner: Mutex<Inner>,
    wake: Notify,
    metrics: Arc<RaftMetrics>,
}

#[derive(Default)]
struct Inner {
    waiting: Vec<Waiter>,
    closed: bool,
}

impl Barriers {
    pub(crate) fn new(metrics: Arc<RaftMetrics>) -> Self {
        Self { inner: Mutex::default(), wake: Notify::new(), metrics }
    }

    pub(crate) async fn wait(&self) -> Result<u64, ProposeError> {
        let (tx, rx) = oneshot::channel();
        // A reader that gave up is no concern of the round.
        let done = Box::new(move |result| drop(tx.send(result)));
        self.push(Waiter { done, forwarded: false });
        rx.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// For a follower; `done` is called once.
    pub(crate) fn ask_here(&self, done: Done) {
        self.push(Waiter { done, forwarded: true });
    }

    fn push(&self, waiter: Waiter) {
        let mut inner = self.inner.lock();
        let error = if inner.closed {
            ProposeError::Stopping
        } else if inner.waiting.len() >= MAX_WAITING {
            ProposeError::Busy { queued_bytes: inner.waiting.len() * size_of::<Waiter>() }
        } else {
            inner.waiting.push(waiter);
            if inner.waiting.len() == 1 {
                self.wake.notify_one();
            }
            drop(inner);
            self.metrics.barriers.inc();
            return;
        };
        drop(inner);
        (waiter.done)(Err(error));
    }

    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.waiting)
        };
        for waiter in waiting {
            (waiter.done)(Err(ProposeError::Stopping));
        }
        self.wake.notify_one();
    }

    /// Those waiting now; `None` once closed.
    fn take(&self) -> Option<Vec<Waiter>> {
        let mut inner = self.inner.lock();
        if inner.closed { None } else { Some(std::mem::take(&mut inner.waiting)) }
    }
}

/// Where a member that leads confirms it.
pub(crate) struct Here {
    pub(crate) raft: Raft,
    pub(crate) machine: Arc<Machine>,
}

/// Makes rounds until closed. `applied`: the index of the last entry of which this node knows what it did; `here`: of a member.
pub(crate) async fn run(
    barriers: Arc<Barriers>,
    here: Option<Here>,
    applied: watch::Receiver<u64>,
    lead: Lead,
) {
    while let Some(waiters) = barriers.take() {
        if waiters.is_empty() {
            barriers.wake.notified().await;
            continue;
        }
        barriers.metrics.barrier_rounds.inc();
        let (result, leader) = match lead.way() {
            Way::Here => {
                let patience = lead.in_group().then_some(APPLY_TIMEOUT);
                let result = match &here {
                    Some(Here { raft, machine }) => round(raft, machine, patience).await,
                    None => Err(ProposeError::NotLeader { leader: None }),
                };
                for waiter in waiters {
                    (waiter.done)(result.clone());
                }
                continue;
            }
            Way::There(line, leader) => {
                let mut known = lead.leader.clone();
                // One that has lost the leadership to a cut does not answer.
                let result = tokio::select! {
                    biased;
                    result = follow(&line, &leader, applied.clone()) => result,
                    _ = known.wait_for(|now| now.id.is_some() && now.term > leader.term) => {
                        Err(ProposeError::NotLeader { leader: None })
                    }
                };
                (result, leader.id)
            }
            Way::Nowhere => (Err(ProposeError::NotLeader { leader: None }), None),
        };
        for waiter in waiters {
            let not_here = Err(ProposeError::NotLeader { leader });
            (waiter.done)(if waiter.forwarded { not_here } else { result.clone() });
        }
    }
}

/// A follower's round: an index from the leader, and as much applied here.
async fn follow(
    line: &Line,
    leader: &Leader,
    mut applied: watch::Receiver<u64>,
) -> Result<u64, ProposeError> {
    let index = forward::read_index(line, leader).await?;
    // The answers so far may have been below it.
    line.heard_of(index);
    match tokio::time::timeout(APPLY_TIMEOUT, applied.wait_for(|applied| *applied >= index)).await {
        Ok(Ok(applied)) => Ok(*applied),
        // This node is behind, or cut off from a leader that is not.
        Ok(Err(_)) | Err(_) => Err(ProposeError::NotLeader { leader: leader.id }),
    }
}

/// One round at the leader: confirms the leadership, waits until what was committed then is applied here. Gives the index of
/// the last entry applied, which an image must reach.
pub(crate) async fn round(
    raft: &Raft,
    machine: &Machine,
    patience: Option<Duration>,
) -> Result<u64, ProposeError> {
    if machine.host().sabotaged("barrier-without-quorum") && believes_to_lead(raft) {
        return Ok(machine.position().0);
    }
    let linearizer = raft.get_read_linearizer(ReadPolicy::ReadIndex).await.map_err(|error| match error {
        OpenraftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
        OpenraftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => {
            ProposeError::NotLeader { leader: None }
        }
        OpenraftError::Fatal(_) => ProposeError::Stopping,
    })?;
    // Here the machine may be ahead of what openraft has heard of it.
    let wanted = linearizer.read_log_id().index();
    if machine.last_applied().is_none_or(|id| id.index < wanted) {
        let ready = linearizer.try_await_ready(raft, patience).await;
        // A leader that cannot commit in its own term can confirm nothing.
        ready.map_err(|_| ProposeError::Stopping)?.map_err(|_| ProposeError::NotLeader { leader: None })?;
    }
    Ok(machine.position().0)
}

fn believes_to_lead(raft: &Raft) -> bool {
    let metrics = raft.metrics();
    let now = metrics.borrow_watched();
    now.running_state.is_ok() && now.state.is_leader()
}
