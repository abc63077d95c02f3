//! Read barriers (ReadIndex, Raft dissertation 6.4): "everything acknowledged before now is in the answer".
//!
//! Invariant: a waiter is answered by a round that began after it came. One round at a time; who comes during one joins
//! the next. So any number of readers cost at most two rounds' time each.

use std::sync::Arc;

use openraft::ReadPolicy;
use openraft::errors::{LinearizableReadError, RaftError as OpenraftError};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::error::ProposeError;
use crate::machine::Machine;
use crate::metrics::RaftMetrics;
use crate::propose::Raft;

/// More waiters than this (a few MiB) are told to come again.
const MAX_WAITING: usize = 1 << 16;

type Waiter = oneshot::Sender<Result<u64, ProposeError>>;

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
        {
            let mut inner = self.inner.lock();
            if inner.closed {
                return Err(ProposeError::Stopping);
            }
            if inner.waiting.len() >= MAX_WAITING {
                return Err(ProposeError::Busy { queued_bytes: inner.waiting.len() * size_of::<Waiter>() });
            }
            inner.waiting.push(tx);
            if inner.waiting.len() == 1 {
                self.wake.notify_one();
            }
        }
        self.metrics.barriers.inc();
        rx.await.unwrap_or(Err(ProposeError::Stopping))
    }

    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            std::mem::take(&mut inner.waiting)
        };
        for waiter in waiting {
            let _ = waiter.send(Err(ProposeError::Stopping));
        }
        self.wake.notify_one();
    }

    /// Those waiting now; `None` once closed.
    fn take(&self) -> Option<Vec<Waiter>> {
        let mut inner = self.inner.lock();
        if inner.closed { None } else { Some(std::mem::take(&mut inner.waiting)) }
    }
}

/// Makes rounds until closed.
pub(crate) async fn run(barriers: Arc<Barriers>, raft: Raft, machine: Arc<Machine>) {
    while let Some(waiters) = barriers.take() {
        if waiters.is_empty() {
            barriers.wake.notified().await;
            continue;
        }
        barriers.metrics.barrier_rounds.inc();
        let result = round(&raft, &machine).await;
        for waiter in waiters {
            // A reader that gave up is no concern of the round.
            let _ = waiter.send(result.clone());
        }
    }
}

/// One round: confirms the leadership, waits until what was committed then is applied here. Gives the index of the last
/// entry applied, which an image must reach.
pub(crate) async fn round(raft: &Raft, machine: &Machine) -> Result<u64, ProposeError> {
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
        linearizer.await_ready(raft).await.map_err(|_| ProposeError::Stopping)?;
    }
    Ok(machine.position().0)
}
