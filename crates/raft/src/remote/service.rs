//! What other members ask of this one.
//!
//! The transport calls [`Inbound`] in the order of arrival on each connection. Messages are read there; openraft's go through
//! an inbox to one task on the raft thread, commands straight into the queue, read barriers to those that wait here.
//!
//! Invariants
//! 1. The order of a connection is kept up to openraft: each request is polled once before the next is taken, and the first
//!    poll puts it into openraft's own queue.
//! 2. Inboxes are bounded in messages and bytes; what does not fit is refused, and its sender tries again.
//!
//! A leader that is killed takes its connections with it. When the one on which it sends appends has closed, and nothing
//! came from it for [`CLOSED_GRACE`], this member takes openraft's lease from it and asks for an election. That is safe by
//! itself: reads never rely on the lease, and the pre-vote fails as long as the others hear of the leader.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use isobar_host::watch;
use isobar_rpc::{Caller, Channel, Refusal, Reply, Service};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft_rt::watch::WatchReceiver as _;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::observed::Observed;
use super::snapshot::Part;
use super::wire::{self, Route, refusal};
use super::{Remote, forward};
use crate::barrier::Barriers;
use crate::error::ProposeError;
use crate::leader::Leader;
use crate::log_store::LogStore;
use crate::options::QuorumOptions;
use crate::propose::{Queue, Raft};
use crate::records::MemberRecord;
use crate::types::Types;

/// A leader whose connection closed may come back for so long.
pub(crate) const CLOSED_GRACE: Duration = Duration::from_millis(150);
/// And then stands for election after so long.
const CLOSED_STAGGER: Duration = Duration::from_millis(50);
/// Messages to openraft that wait to be taken, and their bytes.
const INBOX_MESSAGES: usize = 256;
const INBOX_BYTES: usize = 64 << 20;
/// Messages that openraft has and has not answered.
const UNANSWERED: usize = 256;
/// The same refusal to the same node is logged once in this time.
const LOG_EVERY: Duration = Duration::from_secs(30);

pub(crate) fn refuse(code: u16, message: String) -> Refusal {
    Refusal { code, message }
}

/// A bounded queue with one reader.
pub(crate) struct Inbox<T> {
    inner: Mutex<InboxState<T>>,
    wake: Notify,
    limit: usize,
    limit_bytes: usize,
}

struct InboxState<T> {
    waiting: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

impl<T> Inbox<T> {
    pub(crate) fn new(limit: usize, limit_bytes: usize) -> Self {
        let inner = InboxState { waiting: VecDeque::new(), bytes: 0, closed: false };
        Self { inner: Mutex::new(inner), wake: Notify::new(), limit, limit_bytes }
    }

    /// Gives the item back, with the reason, if it does not fit.
    fn push(&self, item: T, bytes: usize) -> Result<(), (T, Refusal)> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err((item, refuse(refusal::CLOSED, "the member is stopping".to_owned())));
        }
        if inner.waiting.len() >= self.limit || (inner.bytes > 0 && inner.bytes + bytes > self.limit_bytes) {
            return Err((item, refuse(refusal::BUSY, "too much waits already".to_owned())));
        }
        inner.bytes += bytes;
        inner.waiting.push_back((item, bytes));
        drop(inner);
        self.wake.notify_one();
        Ok(())
    }

    /// The next item; `None` once closed. For one reader. Cancel-safe.
    pub(crate) async fn next(&self) -> Option<T> {
        loop {
            {
                let mut inner = self.inner.lock();
                if inner.closed {
                    return None;
                }
                if let Some((item, bytes)) = inner.waiting.pop_front() {
                    inner.bytes -= bytes;
                    return Some(item);
                }
            }
            self.wake.notified().await;
        }
    }

    fn close(&self) {
        let dropped = {
            let mut inner = self.inner.lock();
            inner.closed = true;
            inner.bytes = 0;
            std::mem::take(&mut inner.waiting)
        };
        self.wake.notify_one();
        drop(dropped);
    }
}

/// A message for openraft.
pub(crate) enum ToRaft {
    Append(AppendEntriesRequest<Types>, Reply),
    Vote(VoteRequest<Types>, Reply),
    PreVote(VoteRequest<Types>, Reply),
    Transfer(TransferLeaderRequest<Types>, Reply),
}

/// Answers the services RAFT and METADATA.
pub(crate) struct Inbound {
    remote: Arc<Remote>,
    store: LogStore,
    queue: Arc<Queue>,
    barriers: Arc<Barriers>,
    initial_voters: Vec<(u64, String)>,
    may_vote: bool,
    observed: Arc<Observed>,
    pub(crate) to_raft: Arc<Inbox<ToRaft>>,
    pub(crate) parts: Arc<Inbox<Part>>,
    /// Nodes whose connection for openraft's messages has closed, and when.
    pub(crate) closed: Arc<Inbox<(u64, Instant)>>,
    /// When each node last sent something for openraft.
    pub(crate) heard: Arc<Mutex<BTreeMap<u64, Instant>>>,
    logged: Mutex<BTreeMap<(u64, u16), Instant>>,
}

impl Inbound {
    pub(crate) fn new(
        remote: Arc<Remote>,
        store: LogStore,
        queue: Arc<Queue>,
        barriers: Arc<Barriers>,
        leader: watch::Receiver<Leader>,
        options: &QuorumOptions,
    ) -> Self {
        let observed = Observed::new(&remote.host, Arc::clone(&remote.machine), leader);
        Self {
            observed: Arc::new(observed),
            remote,
            store,
            queue,
            barriers,
            initial_voters: options.initial_voters.clone(),
            may_vote: options.may_vote,
            to_raft: Arc::new(Inbox::new(INBOX_MESSAGES, INBOX_BYTES)),
            parts: Arc::new(Inbox::new(
                2 * super::snapshot::WINDOW,
                2 * super::snapshot::WINDOW * super::snapshot::PART_BYTES,
            )),
            closed: Arc::new(Inbox::new(INBOX_MESSAGES, INBOX_BYTES)),
            heard: Arc::default(),
            logged: Mutex::default(),
        }
    }

    /// Refuses everything from now on.
    pub(crate) fn close(&self) {
        self.to_raft.close();
        self.parts.close();
        self.closed.close();
    }

    /// `observes`: whether the question may come from one that is no member.
    fn check(&self, from: u64, route: &Route, observes: bool) -> Result<(), Refusal> {
        let wrong = |what: String| Err(refuse(refusal::INCARNATION, what));
        if route.cluster_incarnation != self.remote.line.cluster_incarnation {
            return wrong(format!(
                "the cluster's incarnation is {}, not {}",
                self.remote.line.cluster_incarnation, route.cluster_incarnation
            ));
        }
        if route.to != self.remote.line.incarnation[..] {
            return wrong(format!(
                "node {} is another directory than the one meant",
                self.remote.line.node_id
            ));
        }
        let membership = self.remote.machine.membership();
        match membership.membership().get_node(&from) {
            // Releases before had among the learners what only observes now: until it is taken out, it may ask.
            Some(_) if observes && route.from.is_empty() => Ok(()),
            Some(peer) if route.from != peer.incarnation[..] => {
                wrong(format!("the group knows node {from} under another incarnation"))
            }
            _ => Ok(()),
        }
    }

    fn log(&self, from: u64, refusal: &Refusal) {
        let mut logged = self.logged.lock();
        let now = Instant::now();
        let last = logged.insert((from, refusal.code), now);
        if last.is_none_or(|last| now - last > LOG_EVERY) {
            tracing::warn!(from, code = refusal.code, why = refusal.message, "a member's message is refused");
        } else if let Some(last) = last {
            logged.insert((from, refusal.code), last);
        }
    }

    /// A message with its route checked.
    fn read<T: Message + Default>(
        &self,
        from: u64,
        observes: bool,
        body: &Bytes,
        route: impl FnOnce(&T) -> &Route,
    ) -> Result<(T, Bytes), Refusal> {
        let (message, rest) = wire::decode::<T>(body).map_err(|what| refuse(refusal::MALFORMED, what))?;
        self.check(from, route(&message), observes)?;
        Ok((message, rest))
    }

    fn raft_request(
        &self,
        from: u64,
        method: u8,
        body: &Bytes,
        reply: Reply,
    ) -> Result<(), (Reply, Refusal)> {
        let read = || -> Result<Incoming, Refusal> {
            Ok(match method {
                _ if method == wire::APPEND.method => {
                    let read = wire::decode_append(body).map_err(|what| refuse(refusal::MALFORMED, what))?;
                    let (request, head) = read;
                    self.check(from, &head.route, false)?;
                    if let Some(position) = head.position {
                        self.remote.machine.compare(from, position);
                    }
                    if head.archived > 0 {
                        self.remote.machine.archived_elsewhere(head.archived);
                    }
                    self.remote.clocks.heard(from, head.clock_ms, Instant::now());
                    Incoming::Append(request)
                }
                _ if method == wire::VOTE.method => Incoming::Vote(
                    self.read::<wire::VoteAsk>(from, false, body, |ask| &ask.route)?.0.request(),
                ),
                _ if method == wire::PRE_VOTE.method => Incoming::PreVote(
                    self.read::<wire::VoteAsk>(from, false, body, |ask| &ask.route)?.0.request(),
                ),
                _ if method == wire::TRANSFER.method => Incoming::Transfer(
                    self.read::<wire::Transfer>(from, false, body, |ask| &ask.route)?.0.request(),
                ),
                _ if method == wire::SNAPSHOT.method => {
                    let (head, bytes) =
                        self.read::<wire::SnapshotPart>(from, false, body, |part| &part.route)?;
                    Incoming::Part(head, bytes)
                }
                _ => return Err(refuse(refusal::MALFORMED, format!("there is no method {method}"))),
            })
        };
        let incoming = match read() {
            Ok(incoming) => incoming,
            Err(refusal) => return Err((reply, refusal)),
        };
        self.heard.lock().insert(from, Instant::now());
        let message = match incoming {
            Incoming::Append(request) => ToRaft::Append(request, reply),
            Incoming::Vote(request) => ToRaft::Vote(request, reply),
            Incoming::PreVote(request) => ToRaft::PreVote(request, reply),
            Incoming::Transfer(request) => ToRaft::Transfer(request, reply),
            Incoming::Part(head, bytes) => {
                let pushed = self.parts.push(Part { head, bytes, reply }, body.len());
                return pushed.map_err(|(part, refusal)| (part.reply, refusal));
            }
        };
        self.to_raft.push(message, body.len()).map_err(|(message, refusal)| match message {
            ToRaft::Append(_, reply)
            | ToRaft::Vote(_, reply)
            | ToRaft::PreVote(_, reply)
            | ToRaft::Transfer(_, reply) => (reply, refusal),
        })
    }

    fn metadata_request(
        &self,
        from: u64,
        method: u8,
        body: &Bytes,
        reply: Reply,
    ) -> Result<(), (Reply, Refusal)> {
        match method {
            _ if method == wire::HELLO.method => {
                let (hello, _) = match wire::decode::<wire::Hello>(body) {
                    Ok(read) => read,
                    Err(what) => return Err((reply, refuse(refusal::MALFORMED, what))),
                };
                if hello.route.cluster_incarnation != self.remote.line.cluster_incarnation {
                    let what = "another incarnation of the cluster".to_owned();
                    return Err((reply, refuse(refusal::INCARNATION, what)));
                }
                reply.send(Ok(wire::encode(&self.hello())));
            }
            _ if method == wire::PROPOSE.method => {
                let propose = match self.read::<wire::Propose>(from, true, body, |ask| &ask.route) {
                    Ok((propose, _)) => propose,
                    Err(refusal) => return Err((reply, refusal)),
                };
                if propose.commands.iter().any(|envelope| envelope.command.is_none()) {
                    let what = "a command that this version does not know".to_owned();
                    return Err((reply, refuse(refusal::MALFORMED, what)));
                }
                forward::propose_here(&self.queue, &self.remote.machine, propose.commands, reply);
            }
            _ if method == wire::READ_INDEX.method => {
                if let Err(refusal) = self.read::<wire::ReadIndex>(from, true, body, |ask| &ask.route) {
                    return Err((reply, refusal));
                }
                self.barriers.ask_here(Box::new(move |result| reply.send(read_index(result))));
            }
            _ if method == wire::FOLLOW.method => {
                match self.read::<wire::Follow>(from, true, body, |ask| &ask.route) {
                    Ok((ask, _)) => self.observed.follow(ask, reply),
                    Err(refusal) => return Err((reply, refusal)),
                }
            }
            _ if method == wire::STATE.method => {
                match self.read::<wire::GetState>(from, true, body, |ask| &ask.route) {
                    Ok((ask, _)) => self.observed.state(&ask, reply),
                    Err(refusal) => return Err((reply, refusal)),
                }
            }
            _ => return Err((reply, refuse(refusal::MALFORMED, format!("there is no method {method}")))),
        }
        Ok(())
    }

    fn hello(&self) -> wire::HelloAnswer {
        let voter = |(node, address): &(u64, String)| MemberRecord {
            node: *node,
            incarnation: Bytes::new(),
            address: address.clone(),
        };
        wire::HelloAnswer {
            incarnation: Bytes::copy_from_slice(&self.remote.line.incarnation),
            pristine: self.store.is_pristine(),
            initial_voters: self.initial_voters.iter().map(voter).collect(),
            may_vote: self.may_vote,
        }
    }
}

/// A request without its reply.
enum Incoming {
    Append(AppendEntriesRequest<Types>),
    Vote(VoteRequest<Types>),
    PreVote(VoteRequest<Types>),
    Transfer(TransferLeaderRequest<Types>),
    Part(wire::SnapshotPart, Bytes),
}

fn read_index(result: Result<u64, ProposeError>) -> Result<Vec<Bytes>, Refusal> {
    match result {
        Ok(index) => Ok(wire::encode(&wire::ReadIndexAnswer { index })),
        Err(error) => Err(refuse(refusal::NOT_LEADER, error.to_string())),
    }
}

/// The same service for both numbers, told apart by what it was registered for.
pub(crate) struct RaftService(pub(crate) Arc<Inbound>);
pub(crate) struct MetadataService(pub(crate) Arc<Inbound>);

impl Service for RaftService {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        // Node ids are not negative.
        let node = u64::try_from(from.node_id).unwrap_or(u64::MAX);
        if let Err((reply, refusal)) = self.0.raft_request(node, method, &body, reply) {
            self.0.log(node, &refusal);
            reply.send(Err(refusal));
        }
    }

    fn connection_closed(&self, from: Caller) {
        if from.channel == Channel::Raft {
            let node = u64::try_from(from.node_id).unwrap_or(u64::MAX);
            // If there is no room, the election waits for the lease.
            let _ = self.0.closed.push((node, Instant::now()), 0);
        }
    }
}

impl Service for MetadataService {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        let node = u64::try_from(from.node_id).unwrap_or(u64::MAX);
        if let Err((reply, refusal)) = self.0.metadata_request(node, method, &body, reply) {
            self.0.log(node, &refusal);
            reply.send(Err(refusal));
        }
    }
}

/// Hands messages to openraft until the inbox is closed.
pub(crate) async fn serve(inbox: Arc<Inbox<ToRaft>>, raft: Raft, remote: Arc<Remote>) {
    let mut unanswered = FuturesUnordered::new();
    loop {
        let message = tokio::select! {
            biased;
            message = inbox.next(), if unanswered.len() < UNANSWERED => message,
            Some(()) = unanswered.next(), if !unanswered.is_empty() => continue,
        };
        let Some(message) = message else { return };
        let answer = answer(message, raft.clone(), Arc::clone(&remote));
        // Without tokio's budget, so that the first poll is sure to come as far as openraft's queue.
        let mut answer = Box::pin(tokio::task::unconstrained(answer));
        if futures_util::poll!(answer.as_mut()).is_pending() {
            unanswered.push(answer);
        }
    }
}

async fn answer(message: ToRaft, raft: Raft, remote: Arc<Remote>) {
    let failed = |error: &dyn std::fmt::Display| refuse(refusal::FAILED, error.to_string());
    match message {
        ToRaft::Append(request, reply) => {
            let answer = raft.append_entries(request).await.map_err(|error| failed(&error));
            reply.send(answer.map(|response| {
                let (standing, clock_ms) = (remote.machine.standing(), remote.host.now_ms());
                wire::encode(&wire::AppendAnswer::of(&response, standing, clock_ms))
            }));
        }
        ToRaft::Vote(request, reply) => {
            let answer = raft.vote(request).await.map_err(|error| failed(&error));
            reply.send(answer.map(|response| wire::encode(&wire::VoteAnswer::of(&response))));
        }
        ToRaft::PreVote(request, reply) => {
            let answer = raft.pre_vote(request).await.map_err(|error| failed(&error));
            reply.send(answer.map(|response| wire::encode(&wire::VoteAnswer::of(&response))));
        }
        ToRaft::Transfer(request, reply) => {
            let answer = raft.handle_transfer_leader(request).await.map_err(|error| failed(&error));
            reply.send(answer.map(|response| wire::encode(&wire::TransferAnswer::of(&response))));
        }
    }
}

/// Looks after nodes whose connections close, one after the other, until the inbox is closed.
pub(crate) async fn watch_closed(
    closed: Arc<Inbox<(u64, Instant)>>,
    heard: Arc<Mutex<BTreeMap<u64, Instant>>>,
    raft: Raft,
    remote: Arc<Remote>,
) {
    while let Some((node, at)) = closed.next().await {
        replace(node, at, &raft, &remote, &heard).await;
    }
}

/// A member's connection has closed: if it leads and stays away, its lease is over and this member stands for election.
async fn replace(
    node: u64,
    closed_at: Instant,
    raft: &Raft,
    remote: &Remote,
    heard: &Mutex<BTreeMap<u64, Instant>>,
) {
    // The vote under which it leads, while it stays away.
    let leads = || {
        let came_back = heard.lock().get(&node).is_some_and(|heard| *heard > closed_at);
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.current_leader == Some(node) && node != remote.line.node_id && !came_back;
        leads.then_some(metrics.vote)
    };
    tokio::time::sleep_until(closed_at + CLOSED_GRACE).await;
    let Some(vote) = leads() else { return };
    tracing::info!(leader = node, "the leader's connection is closed; its lease is over");
    // openraft takes the lease from a leader that hands over; to nobody, in this case.
    let request = TransferLeaderRequest::new(vote, u64::MAX, None);
    if let Err(error) = raft.handle_transfer_leader(request).await {
        tracing::debug!(%error, "raft has stopped");
        return;
    }
    // The others see it at about the same time. Who asks them too early is refused, and waits for the timeout.
    tokio::time::sleep(CLOSED_STAGGER).await;
    if leads().is_some() {
        // An error: raft has stopped.
        let _ = raft.trigger().elect(true).await;
    }
}
