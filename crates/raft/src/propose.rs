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
//! 5. A member that does not lead sends what it takes to the leader, in order; one that knows no leader answers at once that
//!    nothing was proposed. What a follower has sent here is proposed here or refused, never passed on.
//! 6. In a group of several nothing waits for ever: an entry that has no answer after [`ANSWER_TIMEOUT`] (a leader that is cut
//!    off keeps its entries, for they may still be committed), or was sent to one whose successor is known, is answered with
//!    [`ProposeError::Unknown`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, watch};
use isobar_metadata::command::MAX_ENTRY_BYTES;
use isobar_metadata::{CommandResult, Entry as MetadataEntry, Envelope};
use openraft::errors::ClientWriteError;
use openraft::raft::ClientWriteResult;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::ProposeError;
use crate::leader::{Lead, Leader, Way};
use crate::machine::MachineWorker;
use crate::metrics::{RaftMetrics, gauge};
use crate::remote::{Remote, forward};
use crate::types::{Command, Completion, Types};

pub(crate) type Raft = openraft::Raft<Types, MachineWorker>;
type Done = Box<dyn FnOnce(Result<CommandResult, ProposeError>) + Send>;

/// Room in an entry for its version and time.
const ENTRY_HEAD_BYTES: usize = 32;
/// What protobuf puts before an envelope, and what a waiting command costs in memory besides its bytes.
const ENVELOPE_HEAD_BYTES: usize = 8;
const WAITING_OVERHEAD_BYTES: usize = 256;
/// See the module, invariant 6. Longer than an election takes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SWEEP_INTERVAL: Duration = Duration::from_millis(200);

struct Waiting {
    envelope: Envelope,
    encoded_bytes: usize,
    /// A follower sent it.
    forwarded: bool,
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

    /// A command of this node's.
    pub(crate) fn push(&self, envelope: Envelope, done: Done) {
        self.put(envelope, done, false);
    }

    /// A command that a follower sent.
    pub(crate) fn push_forwarded(&self, envelope: Envelope, done: Done) {
        self.put(envelope, done, true);
    }

    fn put(&self, envelope: Envelope, done: Done, forwarded: bool) {
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
            forwarded,
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
    fn take(&self) -> Vec<Waiting> {
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
        let taken = inner.waiting.drain(..count).collect();
        inner.bytes -= entry_bytes - ENTRY_HEAD_BYTES + count * WAITING_OVERHEAD_BYTES;
        self.metrics.queue_bytes.set(gauge(inner.bytes));
        taken
    }
}

fn refuse(commands: Vec<Waiting>, leader: Option<u64>) {
    for command in commands {
        (command.asked.done)(Err(ProposeError::NotLeader { leader }));
    }
}

fn split(commands: Vec<Waiting>) -> (Vec<Envelope>, Vec<Asked>) {
    commands.into_iter().map(|command| (command.envelope, command.asked)).unzip()
}

/// Who waits for one entry; holds the entry's slot.
struct Answers {
    asked: Vec<Asked>,
    metrics: Arc<RaftMetrics>,
    _slot: OwnedSemaphorePermit,
}

impl Answers {
    fn complete(self, result: ClientWriteResult<Types>) {
        let count = self.asked.len();
        let error = match result {
            Ok(response) => {
                if response.data.len() != count {
                    tracing::error!(asked = count, answers = response.data.len(), "answers do not match");
                }
                let unknown = ProposeError::Unknown { reason: "the state machine gave no answer" };
                let missing = std::iter::repeat_with(|| Err(unknown.clone()));
                return self.answer(response.data.into_iter().map(Ok).chain(missing).take(count));
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
        self.answer(std::iter::repeat_n(Err(error), count));
    }

    /// Answers all of them, in order.
    fn answer(mut self, results: impl Iterator<Item = Result<CommandResult, ProposeError>>) {
        let asked = std::mem::take(&mut self.asked);
        for (asked, result) in asked.into_iter().zip(results) {
            if result.is_ok() {
                self.metrics.commit_seconds.observe(asked.since.elapsed().as_secs_f64());
            }
            (asked.done)(result);
        }
    }

    fn give_up(self) {
        let count = self.asked.len();
        let error =
            ProposeError::Unknown { reason: "it was not committed in time, or not by the leader asked" };
        self.answer(std::iter::repeat_n(Err(error), count));
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        for asked in self.asked.drain(..) {
            (asked.done)(Err(ProposeError::Unknown { reason: "the metadata node stopped" }));
        }
    }
}

/// The answers of one entry, for whoever comes first: openraft or the clock.
type Shared = Arc<Mutex<Option<Answers>>>;

/// openraft's hold on them: dropped without an answer, it gives one.
struct Hold(Shared);

impl Hold {
    fn take(&self) -> Option<Answers> {
        self.0.lock().take()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// One entry on its way.
struct OnItsWay {
    since: Instant,
    /// Of an entry that was sent to a leader: that leader's term.
    sent_in: Option<u64>,
    answers: Shared,
}

/// Entries on their way.
#[derive(Default)]
pub(crate) struct InFlight {
    entries: Mutex<Vec<OnItsWay>>,
}

impl InFlight {
    fn push(&self, answers: &Shared, sent_in: Option<u64>) {
        let answers = Arc::clone(answers);
        self.entries.lock().push(OnItsWay { since: Instant::now(), sent_in, answers });
    }

    /// Answers what has waited too long, and what was sent to one who leads no longer: it may have been cut off, and
    /// what became of the entry is seen by asking again.
    fn sweep(&self, term: u64) {
        let mut given_up = Vec::new();
        self.entries.lock().retain(|entry| {
            let late =
                entry.since.elapsed() >= ANSWER_TIMEOUT || entry.sent_in.is_some_and(|sent| sent < term);
            let mut answers = entry.answers.lock();
            if late {
                given_up.extend(answers.take());
            }
            answers.is_some()
        });
        for answers in given_up {
            answers.give_up();
        }
    }
}

/// Answers what is left unanswered, until the slots are closed.
pub(crate) async fn sweep(
    in_flight: Arc<InFlight>,
    slots: Arc<Semaphore>,
    mut leader: watch::Receiver<Leader>,
) {
    while !slots.is_closed() {
        let changed = tokio::time::timeout(SWEEP_INTERVAL, leader.changed()).await;
        if matches!(changed, Ok(Err(_))) {
            // openraft has stopped and has dropped what it had.
            tokio::time::sleep(SWEEP_INTERVAL).await;
        }
        // Only one that is known takes the place of the one before.
        let term = {
            let leader = leader.borrow();
            leader.id.map_or(0, |_| leader.term)
        };
        in_flight.sweep(term);
    }
}

/// Where a member that leads proposes.
pub(crate) struct Here {
    pub(crate) raft: Raft,
    pub(crate) host: Host,
    pub(crate) remote: Option<Arc<Remote>>,
}

impl Here {
    fn entry_time_ms(&self) -> i64 {
        self.remote.as_ref().map_or_else(|| self.host.now_ms(), |remote| remote.entry_time_ms())
    }
}

/// What takes commands from the queue.
pub(crate) struct Proposer {
    pub(crate) queue: Arc<Queue>,
    pub(crate) slots: Arc<Semaphore>,
    /// `None`: this node is no member, and leads never.
    pub(crate) here: Option<Here>,
    pub(crate) lead: Lead,
    pub(crate) in_flight: Arc<InFlight>,
}

impl Proposer {
    /// Groups commands into entries until the queue is closed.
    pub(crate) async fn run(self) {
        while self.queue.ready().await {
            // The slot first: what comes while waiting for one joins this entry.
            let Ok(slot) = Arc::clone(&self.slots).acquire_owned().await else { break };
            let commands = self.queue.take();
            if commands.is_empty() {
                continue;
            }
            match self.lead.way() {
                Way::Here => {
                    let Some(here) = &self.here else {
                        refuse(commands, None);
                        continue;
                    };
                    if !self.propose(here, commands, slot).await {
                        break;
                    }
                }
                Way::There(line, leader) => {
                    let (own, forwarded): (Vec<_>, Vec<_>) =
                        commands.into_iter().partition(|command| !command.forwarded);
                    refuse(forwarded, leader.id);
                    if own.is_empty() {
                        continue;
                    }
                    let (envelopes, asked) = split(own);
                    self.queue.metrics.forwarded.inc_by(asked.len() as u64);
                    let answers = self.answers(asked, slot);
                    self.in_flight.push(&answers, Some(leader.term));
                    let hold = Hold(answers);
                    forward::propose_there(&line, &leader, envelopes, move |results| {
                        if let Some(answers) = hold.take() {
                            answers.answer(results.into_iter());
                        }
                    });
                }
                Way::Nowhere => refuse(commands, None),
            }
        }
        self.queue.close();
    }

    fn answers(&self, asked: Vec<Asked>, slot: OwnedSemaphorePermit) -> Shared {
        let answers = Answers { asked, metrics: Arc::clone(&self.queue.metrics), _slot: slot };
        Arc::new(Mutex::new(Some(answers)))
    }

    /// Hands one entry to openraft. False: openraft has stopped.
    async fn propose(&self, here: &Here, commands: Vec<Waiting>, slot: OwnedSemaphorePermit) -> bool {
        let (envelopes, asked) = split(commands);
        let command = Command::new(MetadataEntry::new(here.entry_time_ms(), envelopes));
        self.queue.metrics.entries.inc();
        self.queue.metrics.entry_bytes.inc_by(command.bytes().len() as u64);
        let answers = self.answers(asked, slot);
        if self.lead.in_group() {
            self.in_flight.push(&answers, None);
        }
        let hold = Hold(answers);
        let completion = Completion::new(move |result| {
            if let Some(answers) = hold.take() {
                answers.complete(result);
            }
        });
        if let Err(fatal) = here.raft.client_write_ff(command, Some(completion)).await {
            tracing::error!(%fatal, "raft has stopped; no more commands are taken");
            return false;
        }
        true
    }
}
