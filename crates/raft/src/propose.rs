//! From single commands to entries: the queue, and the task that groups what waits.
//!
//! Invariants
//! 1. Commands go into entries in the order of the calls, and entries into the log in that order.
//! 2. A command is answered exactly once, whatever happens to openraft: what owns it answers when dropped.
//! 3. The queue holds at most its limit in bytes; what does not fit is refused at once and did not happen. The second
//!    half is for commits of chunks only: these are durable already, in their lane's order, and their lanes bound them,
//!    so that no flood of other commands makes a lane miss a number.
//! 4. At most `slots` entries are on their way. While all are, commands gather, so that a slow disk makes entries
//!    larger, not more numerous.

use std::collections::VecDeque;
use std::sync::Arc;

use isobar_host::Host;
use isobar_metadata::command::MAX_ENTRY_BYTES;
use isobar_metadata::{CommandResult, Entry as MetadataEntry, Envelope};
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::ProposeError;
use crate::machine::MachineWorker;
use crate::metrics::{RaftMetrics, gauge};
use crate::types::{Command, Completion, Types};

pub(crate) type Raft = openraft::Raft<Types, MachineWorker>;
type Done = Box<dyn FnOnce(Result<CommandResult, ProposeError>) + Send>;

/// Room in an entry for its version and time.
const ENTRY_HEAD_BYTES: usize = 32;
/// What protobuf puts before an envelope, and what a waiting command costs in memory besides its bytes.
const ENVELOPE_HEAD_BYTES: usize = 8;
const WAITING_OVERHEAD_BYTES: usize = 256;

struct Waiting {
    envelope: Envelope,
    encoded_bytes: usize,
    asked: Asked,
}

/// Someone who waits for an answer.
struct Asked {
    since: Instant,
    done: Done,
}

/// Commands that wait for an entry.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    wake: Notify,
    limit_bytes: usize,
    metrics: Arc<RaftMetrics>,
}

#[derive(Default)]
struct Inner {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    closed: bool,
}

impl Queue {
    pub(crate) fn new(limit_bytes: usize, metrics: Arc<RaftMetrics>) -> Self {
        Self { inner: Mutex::default(), wake: Notify::new(), limit_bytes, metrics }
    }

    pub(crate) fn push(&self, envelope: Envelope, done: Done) {
        let encoded_bytes = envelope.encoded_len() + ENVELOPE_HEAD_BYTES;
        if encoded_bytes + ENTRY_HEAD_BYTES > MAX_ENTRY_BYTES {
            return done(Err(ProposeError::TooLarge { bytes: encoded_bytes }));
        }
        let cost = encoded_bytes + WAITING_OVERHEAD_BYTES;
        let mut inner = self.inner.lock();
        if inner.closed {
            drop(inner);
            return done(Err(ProposeError::Stopping));
        }
        let is_commit = matches!(envelope.command, Some(isobar_metadata::Command::CommitChunk(_)));
        let limit_bytes = if is_commit { self.limit_bytes } else { self.limit_bytes / 2 };
        if inner.bytes + cost > limit_bytes {
            let queued_bytes = inner.bytes;
            drop(inner);
            self.metrics.proposals_refused.inc();
            return done(Err(ProposeError::Busy { queued_bytes }));
        }
        let first = inner.waiting.is_empty();
        inner.bytes += cost;
        inner.waiting.push_back(Waiting {
            envelope,
            encoded_bytes,
            asked: Asked { since: Instant::now(), done },
        });
        self.metrics.queue_bytes.set(gauge(inner.bytes));
        drop(inner);
        self.metrics.proposals.inc();
        if first {
            self.wake.notify_one();
        }
    }

    /// Refuses everything from now on, and what waits.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.bytes = 0;
            std::mem::take(&mut inner.waiting)
        };
        self.wake.notify_one();
        for command in waiting {
            (command.asked.done)(Err(ProposeError::Stopping));
        }
    }

    /// Waits until something waits. False once closed.
    async fn ready(&self) -> bool {
        loop {
            {
                let inner = self.inner.lock();
                if inner.closed {
                    return false;
                }
                if !inner.waiting.is_empty() {
                    return true;
                }
            }
            self.wake.notified().await;
        }
    }

    /// As many commands from the front as fit one entry.
    fn take(&self) -> (Vec<Envelope>, Vec<Asked>) {
        let mut inner = self.inner.lock();
        let mut entry_bytes = ENTRY_HEAD_BYTES;
        let mut count = 0;
        for command in &inner.waiting {
            if entry_bytes + command.encoded_bytes > MAX_ENTRY_BYTES {
                break;
            }
            entry_bytes += command.encoded_bytes;
            count += 1;
        }
        let mut envelopes = Vec::with_capacity(count);
        let mut asked = Vec::with_capacity(count);
        for command in inner.waiting.drain(..count) {
            envelopes.push(command.envelope);
            asked.push(command.asked);
        }
        inner.bytes -= entry_bytes - ENTRY_HEAD_BYTES + count * WAITING_OVERHEAD_BYTES;
        self.metrics.queue_bytes.set(gauge(inner.bytes));
        (envelopes, asked)
    }
}

/// Who waits for one entry; holds the entry's slot.
struct Answers {
    asked: Vec<Asked>,
    metrics: Arc<RaftMetrics>,
    _slot: OwnedSemaphorePermit,
}

impl Answers {
    fn complete(mut self, result: ClientWriteResult<Types>) {
        let asked = std::mem::take(&mut self.asked);
        let error = match result {
            Ok(response) => {
                if response.data.len() != asked.len() {
                    tracing::error!(
                        asked = asked.len(),
                        answers = response.data.len(),
                        "answers do not match"
                    );
                }
                let mut results = response.data.into_iter();
                for asked in asked {
                    self.metrics.commit_seconds.observe(asked.since.elapsed().as_secs_f64());
                    let unknown = ProposeError::Unknown { reason: "the state machine gave no answer" };
                    (asked.done)(results.next().ok_or(unknown));
                }
                return;
            }
            Err(ClientWriteError::ForwardToLeader(forward)) => {
                ProposeError::NotLeader { leader: forward.leader_id }
            }
            Err(ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::Unknown { reason: "leadership was lost before the entry was committed" }
            }
            Err(ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_)) => {
                ProposeError::Unknown { reason: "openraft took a command for something else" }
            }
        };
        for asked in asked {
            (asked.done)(Err(error.clone()));
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for asked in self.asked.drain(..) {
            (asked.done)(Err(ProposeError::Unknown { reason: "the metadata node stopped" }));
        }
    }
}

/// Groups commands into entries until the queue is closed.
pub(crate) async fn run(queue: Arc<Queue>, slots: Arc<Semaphore>, raft: Raft, host: Host) {
    while queue.ready().await {
        // The slot first: what comes while waiting for one joins this entry.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let (envelopes, asked) = queue.take();
        if envelopes.is_empty() {
            continue;
        }
        let command = Command::new(MetadataEntry::new(host.now_ms(), envelopes));
        queue.metrics.entries.inc();
        queue.metrics.entry_bytes.inc_by(command.bytes().len() as u64);
        let answers = Answers { asked, metrics: Arc::clone(&queue.metrics), _slot: slot };
        let completion = Completion::new(move |result| answers.complete(result));
        if let Err(fatal) = raft.client_write_ff(command, Some(completion)).await {
            tracing::error!(%fatal, "raft has stopped; no more commands are taken");
            break;
        }
    }
    queue.close();
}
