//! Nodes that come and go: what a node asks of a cluster that it wants to join, and what an operator does to one by
//! `isobar cluster`.
//!
//! Owns: the service CLUSTER of the node's transport. Nothing durable: who is a member is Raft's, directories and sessions are
//! metadata's.
//!
//! Invariants
//! 1. A change is made by the leader; another member passes it on to the one that it knows, once.
//! 2. A directory is never taken for another (DESIGN.md section 2, invariant 6): a voter that lost its own comes back only by an
//!    operator's word, a learner, which promised nothing, by itself.
//! 3. A WAL directory is taken out only when no open stream names it, and nothing but it may hold what is not uploaded yet,
//!    unless the operator says that it is lost.
//! 4. Everything may be asked again, and then goes on from where it was cut off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use isobar_host::Host;
use isobar_metadata::command::{
    FEATURE_LEVEL, FenceSession, SetFeatureLevel, SetWriteQuorum, UpdateDirectory, UpdateSession,
};
use isobar_metadata::record::{DirectoryState, SessionState};
use isobar_metadata::{ClusterFormat, Command, CommandResult, DirectoryId, Envelope, Image};
use isobar_raft::{MembershipError, ProposeError, Quorum};
use isobar_rpc::{CallError, Caller, Channel, Method, Refusal, Reply, Rpc, Service, ServiceId};
use isobar_wal::LocalReplica;
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::member::Roles;

/// How long a change may take: a new member has to catch up.
const CHANGE_PATIENCE: Duration = Duration::from_secs(330);
/// How long a node waits to hear how a cluster was formatted.
const ABOUT_PATIENCE: Duration = Duration::from_secs(2);
/// The same where an operator looks how the nodes are.
const STATUS_PATIENCE: Duration = Duration::from_millis(500);
/// How long writers are waited for that are to leave a directory.
const LEAVE_PATIENCE: Duration = Duration::from_secs(30);
/// Before a command that was not taken is sent again, and writers are looked at again.
const AGAIN: Duration = Duration::from_millis(100);
const ATTEMPTS: u32 = 50;
/// Changes that other nodes may have asked for at once.
const WAITING_MAX: usize = 64;
/// A cluster of so many WAL replicas acknowledges what two of them have.
const REPLICAS_FOR_QUORUM: usize = 3;

const ABOUT: Method = Method::new(ServiceId::CLUSTER, 1);
const CHANGE: Method = Method::new(ServiceId::CLUSTER, 2);
/// This member does not know who leads, or cannot reach it: ask again.
const NO_LEADER: u16 = 1;
/// The same question gets the same answer.
const REFUSED: u16 = 2;
const MALFORMED: u16 = 3;

/// How a node stands to its cluster.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct About {
    /// What the group was formatted with; none while it has not begun.
    #[prost(message, optional, tag = "1")]
    pub(crate) format: Option<ClusterFormat>,
    /// What this node's binary knows.
    #[prost(uint32, tag = "2")]
    pub(crate) feature_level: u32,
    /// What it does, as in its configuration.
    #[prost(string, tag = "3")]
    pub(crate) roles: String,
    /// The WAL directory that it runs with, once that is open.
    #[prost(message, optional, tag = "4")]
    pub(crate) directory: Option<DirectoryId>,
    /// Why that takes nothing any more.
    #[prost(string, optional, tag = "5")]
    pub(crate) wal_stopped: Option<String>,
    /// Its wall clock as it answered; 0: its release does not tell it.
    #[prost(int64, tag = "6")]
    pub(crate) clock_ms: i64,
    /// Chunks that cannot be uploaded and of whose replicas one is lost, as its repair sees it.
    #[prost(uint64, tag = "7")]
    pub(crate) lacking_chunks: u64,
}

/// What is to be done to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Kind {
    Unknown = 0,
    /// Let it in as a learner: its own wish.
    Join = 1,
    /// Make it a voter.
    Add = 2,
    /// It lost its directory and runs with an empty one.
    Replace = 3,
    /// Out for good.
    Remove = 4,
    /// No new streams, no clients.
    Drain = 5,
    /// As before the drain.
    Undrain = 6,
    /// Raise the cluster's feature level to this binary's. Of no node.
    Upgrade = 7,
    /// It is a learner no longer, but an observer: its own wish.
    Leave = 8,
}

/// One change.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Change {
    #[prost(enumeration = "Kind", tag = "1")]
    pub(crate) kind: i32,
    #[prost(uint64, tag = "2")]
    pub(crate) node: u64,
    /// Where it is reached; empty: where the group knows it.
    #[prost(string, tag = "3")]
    pub(crate) address: String,
    /// Its disk is gone, or given up.
    #[prost(bool, tag = "4")]
    pub(crate) lost: bool,
    /// Another member was asked.
    #[prost(bool, tag = "5")]
    pub(crate) passed_on: bool,
}

/// What came of it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Done {
    #[prost(string, tag = "1")]
    pub(crate) said: String,
    /// Of a drain: streams that are still written, and chunks that are not uploaded yet.
    #[prost(uint64, tag = "2")]
    pub(crate) open_streams: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) waiting_chunks: u64,
}

impl Done {
    fn said(said: impl Into<String>) -> Self {
        Self { said: said.into(), ..Self::default() }
    }
}

/// Answers other nodes, and makes changes. Clones are the same.
#[derive(Clone)]
pub(crate) struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    rpc: Rpc,
    roles: Roles,
    /// Once it is open.
    quorum: OnceLock<Quorum>,
    replica: OnceLock<LocalReplica>,
    /// One change at a time, and a few that wait.
    changing: tokio::sync::Mutex<()>,
    waiting: Arc<Semaphore>,
}

impl Service for Membership {
    fn request(&self, _: Caller, method: u8, body: Bytes, reply: Reply) {
        if method == ABOUT.method {
            return reply.send(Ok(vec![self.about().encode_to_vec().into()]));
        }
        let change = match Change::decode(body) {
            Ok(change) if method == CHANGE.method => change,
            _ => return reply.send(Err(Refusal::new(MALFORMED, "not a question of this service"))),
        };
        let Ok(place) = Arc::clone(&self.inner.waiting).try_acquire_owned() else {
            return reply.send(Err(Refusal::new(NO_LEADER, "too many changes are waiting: ask again")));
        };
        let membership = self.clone();
        self.inner.host.spawn("cluster.change", async move {
            let _place = place;
            let done = membership.change(change).await;
            reply.send(done.map(|done| vec![done.encode_to_vec().into()]));
        });
    }
}

impl Membership {
    /// Serves; the quorum comes later.
    pub(crate) fn start(host: &Host, rpc: &Rpc, roles: Roles) -> Self {
        let inner = Inner {
            host: host.clone(),
            rpc: rpc.clone(),
            roles,
            quorum: OnceLock::new(),
            replica: OnceLock::new(),
            changing: tokio::sync::Mutex::default(),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        };
        let membership = Self { inner: Arc::new(inner) };
        rpc.register(ServiceId::CLUSTER, Arc::new(membership.clone()));
        membership
    }

    pub(crate) fn set_quorum(&self, quorum: &Quorum) {
        // Told once, by the start.
        let _ = self.inner.quorum.set(quorum.clone());
    }

    /// Before it is registered.
    pub(crate) fn set_replica(&self, replica: &LocalReplica) {
        // Told once, by the start.
        let _ = self.inner.replica.set(replica.clone());
    }

    fn about(&self) -> About {
        let begun = self.inner.quorum.get().filter(|quorum| !quorum.membership().is_empty());
        let replica = self.inner.replica.get();
        About {
            format: begun.map(|quorum| quorum.cluster().clone()),
            feature_level: FEATURE_LEVEL,
            roles: self.inner.roles.names(),
            directory: replica.map(LocalReplica::directory),
            wal_stopped: replica.and_then(LocalReplica::stopped),
            clock_ms: self.inner.host.now_ms(),
            lacking_chunks: replica
                .and_then(|replica| replica.metrics().lacking_chunks.get().try_into().ok())
                .unwrap_or(0),
        }
    }

    /// What each member and each broker that observes says of itself, this node too; who does not answer soon is not there.
    pub(crate) async fn about_all(&self) -> BTreeMap<u64, About> {
        let Some(quorum) = self.inner.quorum.get() else { return BTreeMap::new() };
        let me = quorum.node_id();
        let image = quorum.subscribe().0;
        let brokers = image.brokers().into_iter().filter(|session| !session.rpc.is_empty());
        let brokers =
            brokers.filter_map(|session| Some((u64::try_from(session.node_id).ok()?, session.rpc.clone())));
        let mut nodes: BTreeMap<u64, String> = brokers.collect();
        nodes.extend(quorum.membership().into_iter().map(|member| (member.id, member.address)));
        nodes.entry(me).or_default();
        let asked = nodes.into_iter().map(|(id, address)| async move {
            if id == me {
                return Some((me, self.about()));
            }
            let asking = self.ask_about(id, &address);
            let answer = tokio::time::timeout(STATUS_PATIENCE, asking).await;
            answer.ok()?.ok().map(|about| (id, about))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// How another node stands.
    pub(crate) async fn ask_about(&self, node: u64, address: &str) -> Result<About, CallError> {
        let body = self.ask(node, address, ABOUT, Bytes::new(), ABOUT_PATIENCE).await?;
        About::decode(body).map_err(|error| CallError::Lost(format!("its answer cannot be read: {error}")))
    }

    /// Asks another node for a change.
    pub(crate) async fn ask_for(&self, node: u64, address: &str, change: &Change) -> Result<Done, CallError> {
        let body = change.encode_to_vec().into();
        let body = self.ask(node, address, CHANGE, body, CHANGE_PATIENCE).await?;
        Done::decode(body).map_err(|error| CallError::Lost(format!("its answer cannot be read: {error}")))
    }

    async fn ask(
        &self,
        node: u64,
        address: &str,
        method: Method,
        body: Bytes,
        patience: Duration,
    ) -> Result<Bytes, CallError> {
        let id = i32::try_from(node).map_err(|_| CallError::NotSent(format!("{node} is no node id")))?;
        let peer = self.inner.rpc.peer(id, address);
        peer.call(Channel::Control, method, vec![body], Instant::now() + patience).await
    }

    /// Makes it here if this member leads, else has the leader make it.
    pub(crate) async fn change(&self, change: Change) -> Result<Done, Refusal> {
        let no_leader = |why: String| Refusal::new(NO_LEADER, why);
        let Some(quorum) = self.inner.quorum.get() else {
            return Err(no_leader("this node is starting".to_owned()));
        };
        if quorum.is_leader() {
            let _one = self.inner.changing.lock().await;
            return self.make(quorum, &change).await;
        }
        let leader = quorum.leader().borrow().id;
        let member = quorum.membership().into_iter().find(|member| Some(member.id) == leader);
        let Some(leader) = member.filter(|_| !change.passed_on) else {
            return Err(no_leader("the metadata quorum has no leader now: ask again".to_owned()));
        };
        let passed_on = Change { passed_on: true, ..change };
        match self.ask_for(leader.id, &leader.address, &passed_on).await {
            Ok(done) => Ok(done),
            Err(CallError::Refused { code, message }) => Err(Refusal::new(code, message)),
            Err(error) => Err(no_leader(format!("node {}, which leads, gave no answer: {error}", leader.id))),
        }
    }

    async fn make(&self, quorum: &Quorum, change: &Change) -> Result<Done, Refusal> {
        let node = change.node;
        match Kind::try_from(change.kind).unwrap_or_default() {
            Kind::Join => {
                quorum.add_learner(node, &change.address).await.map_err(refused)?;
                Ok(Done::said(format!("node {node} has joined")))
            }
            Kind::Add => {
                if observes(quorum, node) {
                    let why = format!(
                        "node {node} does not have the role metadata: it is a broker only. One that has it begins with an empty directory"
                    );
                    return Err(Refusal::new(REFUSED, why));
                }
                quorum.promote(node).await.map_err(refused)?;
                let raised = raise_write_quorum(quorum).await?;
                Ok(Done::said(format!("node {node} votes in the metadata quorum{raised}")))
            }
            Kind::Replace => self.replace(quorum, node, &change.address).await,
            Kind::Remove => remove(quorum, node, change.lost).await,
            Kind::Drain => drain(quorum, node, true).await,
            Kind::Undrain => drain(quorum, node, false).await,
            Kind::Upgrade => self.upgrade(quorum).await,
            Kind::Leave => leave(quorum, node).await,
            Kind::Unknown => Err(Refusal::new(MALFORMED, "a change that this version does not know")),
        }
    }

    /// The node's old WAL directories go too: all but the one that it runs with, if it has one by now.
    async fn replace(&self, quorum: &Quorum, node: u64, address: &str) -> Result<Done, Refusal> {
        let mut old = directories_of(&image(quorum).await?, node);
        // After that look: what is registered by then is told.
        if node == quorum.node_id() {
            old.retain(|directory| Some(*directory) != self.about().directory);
        } else {
            let address = match address {
                "" => address_of(quorum, node).ok_or_else(|| {
                    let why = format!("node {node} is no member: say with --address where it is reached");
                    Refusal::new(REFUSED, why)
                })?,
                given => given.to_owned(),
            };
            let about = self.ask_about(node, &address).await.map_err(|error| {
                let why = format!("node {node} at {address} does not answer: {error}. Start it first");
                Refusal::new(NO_LEADER, why)
            })?;
            old.retain(|directory| Some(*directory) != about.directory);
            quorum.replace(node, &address).await.map_err(refused)?;
        }
        let kept = take_out(quorum, &old, true).await?;
        Ok(Done::said(match kept {
            None => format!("node {node} goes on with its new directory"),
            Some(why) => format!(
                "node {node} goes on with its new directory; its old WAL directory is not taken out yet: {why}. Ask again"
            ),
        }))
    }

    async fn upgrade(&self, quorum: &Quorum) -> Result<Done, Refusal> {
        for member in quorum.membership().iter().filter(|member| member.id != quorum.node_id()) {
            let level = match self.ask_about(member.id, &member.address).await {
                Ok(about) => about.feature_level,
                Err(error) => {
                    let why = format!("node {} gave no answer: {error}", member.id);
                    return Err(Refusal::new(NO_LEADER, why));
                }
            };
            if level < FEATURE_LEVEL {
                return Err(Refusal::new(
                    REFUSED,
                    format!("node {} is of an older release, of level {level}: upgrade it first", member.id),
                ));
            }
        }
        // Those that are no members say it of themselves when they register.
        let image = image(quorum).await?;
        if let Some(old) = image.brokers().iter().find(|session| session.feature_level < FEATURE_LEVEL) {
            let (node, level) = (old.node_id, old.feature_level);
            let why = format!("node {node} is of an older release, of level {level}: upgrade it first");
            return Err(Refusal::new(REFUSED, why));
        }
        let level = SetFeatureLevel { level: FEATURE_LEVEL };
        propose(quorum, Command::SetFeatureLevel(level)).await?;
        Ok(Done::said(format!(
            "the cluster is at feature level {FEATURE_LEVEL}: older releases cannot join it any more"
        )))
    }
}

fn refused(error: MembershipError) -> Refusal {
    match error {
        MembershipError::Refused(why) => Refusal::new(REFUSED, why),
        error @ (MembershipError::NotLeader { .. }
        | MembershipError::Unreachable { .. }
        | MembershipError::Unknown(_)) => Refusal::new(NO_LEADER, error.to_string()),
        // Of later versions.
        error => Refusal::new(NO_LEADER, error.to_string()),
    }
}

/// Where the group reaches a node.
pub(crate) fn address_of(quorum: &Quorum, node: u64) -> Option<String> {
    let member = quorum.membership().into_iter().find(|member| member.id == node);
    member.map(|member| member.address).filter(|address| !address.is_empty())
}

/// Whether a node serves clients and is no member.
fn observes(quorum: &Quorum, node: u64) -> bool {
    let is_broker = quorum.subscribe().0.broker(i32::try_from(node).unwrap_or(-1)).is_some();
    is_broker && quorum.membership().iter().all(|member| member.id != node)
}

fn directories_of(image: &Image, node: u64) -> Vec<DirectoryId> {
    let of_node = image.directories().filter(|record| u64::try_from(record.node_id) == Ok(node));
    of_node.map(|record| record.directory).collect()
}

/// After a barrier.
async fn image(quorum: &Quorum) -> Result<Image, Refusal> {
    quorum.barrier().await.map_err(|error| Refusal::new(NO_LEADER, error.to_string()))?;
    Ok(quorum.subscribe().0)
}

/// Proposes what names no session until it is answered; a refusal by metadata is one here.
pub(crate) async fn propose(quorum: &Quorum, command: Command) -> Result<(), Refusal> {
    let mut attempt = 0;
    loop {
        match quorum.propose(Envelope::unnumbered(command.clone())).await {
            Ok(CommandResult::Done(outcome)) if outcome.error_code == 0 => return Ok(()),
            Ok(CommandResult::Done(outcome)) => {
                return Err(Refusal::new(
                    REFUSED,
                    outcome.message.unwrap_or_else(|| "metadata refused it".to_owned()),
                ));
            }
            Ok(CommandResult::Refused(_)) => {
                let why =
                    "the cluster's feature level is too low for this: `isobar cluster upgrade` raises it";
                return Err(Refusal::new(REFUSED, why));
            }
            Ok(other) => return Err(Refusal::new(REFUSED, format!("metadata answered {other:?}"))),
            // Each of these commands may be sent again.
            Err(
                ProposeError::Busy { .. } | ProposeError::NotLeader { .. } | ProposeError::Unknown { .. },
            ) if attempt < ATTEMPTS => {
                attempt += 1;
                sleep(AGAIN).await;
            }
            Err(error) => return Err(Refusal::new(NO_LEADER, error.to_string())),
        }
    }
}

async fn update(
    quorum: &Quorum,
    directory: DirectoryId,
    state: DirectoryState,
    lost: bool,
) -> Result<(), Refusal> {
    propose(quorum, Command::UpdateDirectory(UpdateDirectory { directory, state: state as i32, lost })).await
}

/// A cluster that has grown acknowledges what two replicas have.
async fn raise_write_quorum(quorum: &Quorum) -> Result<&'static str, Refusal> {
    let image = image(quorum).await?;
    let nodes: BTreeSet<i32> =
        image.directories().filter(|record| record.takes_streams()).map(|record| record.node_id).collect();
    if image.write_quorum() > 1 || nodes.len() < REPLICAS_FOR_QUORUM {
        return Ok("");
    }
    propose(quorum, Command::SetWriteQuorum(SetWriteQuorum { write_quorum: 2 })).await?;
    Ok("; from now on two WAL replicas have what is acknowledged")
}

/// `None`: they are out. Else what keeps one of them.
async fn take_out(
    quorum: &Quorum,
    directories: &[DirectoryId],
    lost: bool,
) -> Result<Option<String>, Refusal> {
    if lost {
        // Writers leave it for streams without it.
        for directory in directories {
            update(quorum, *directory, DirectoryState::Draining, false).await?;
        }
        let deadline = Instant::now() + LEAVE_PATIENCE;
        while Instant::now() < deadline {
            let image = image(quorum).await?;
            if directories.iter().all(|directory| image.held_by(*directory).0 == 0) {
                break;
            }
            sleep(AGAIN).await;
        }
    }
    for directory in directories {
        match update(quorum, *directory, DirectoryState::Removed, lost).await {
            Ok(()) => {}
            Err(refusal) if refusal.code == REFUSED => return Ok(Some(refusal.message)),
            Err(refusal) => return Err(refusal),
        }
    }
    Ok(None)
}

async fn remove(quorum: &Quorum, node: u64, lost: bool) -> Result<Done, Refusal> {
    if node == quorum.node_id() {
        return Err(Refusal::new(
            REFUSED,
            format!("node {node} leads the metadata quorum: stop it first, and ask one of the others"),
        ));
    }
    let image = image(quorum).await?;
    let directories = directories_of(&image, node);
    let left: BTreeSet<i32> =
        image.directories().filter(|record| record.takes_streams()).map(|record| record.node_id).collect();
    let left = left.into_iter().filter(|id| u64::try_from(*id) != Ok(node)).count();
    if !directories.is_empty() && left < image.write_quorum() as usize {
        return Err(Refusal::new(
            REFUSED,
            format!(
                "{left} WAL replicas would be left, and an acknowledgement needs {}",
                image.write_quorum()
            ),
        ));
    }
    if let Some(why) = take_out(quorum, &directories, lost).await? {
        return Err(Refusal::new(
            REFUSED,
            format!(
                "the WAL directory of node {node} is needed: {why}. Drain the node first (`isobar cluster drain {node}`); if its \
                 disk is gone for good, say --lost"
            ),
        ));
    }
    quorum.remove_voter(node).await.map_err(refused)?;
    let session = image.broker(i32::try_from(node).unwrap_or(-1)).map(|session| session.session);
    if let Some(session) = session {
        propose(quorum, Command::FenceSession(FenceSession { session })).await?;
    }
    Ok(Done::said(format!("node {node} is removed; an id is used again only with an empty data directory")))
}

async fn leave(quorum: &Quorum, node: u64) -> Result<Done, Refusal> {
    if quorum.membership().iter().any(|member| member.id == node && member.is_voter) {
        return Err(Refusal::new(
            REFUSED,
            format!("node {node} votes: `isobar cluster remove` takes it out"),
        ));
    }
    quorum.remove_voter(node).await.map_err(refused)?;
    Ok(Done::said(format!("node {node} only observes the metadata quorum")))
}

async fn drain(quorum: &Quorum, node: u64, draining: bool) -> Result<Done, Refusal> {
    let before = image(quorum).await?;
    let (directory, session) = match draining {
        true => (DirectoryState::Draining, SessionState::Draining),
        false => (DirectoryState::InUse, SessionState::Live),
    };
    let directories = directories_of(&before, node);
    let broker = before.broker(i32::try_from(node).unwrap_or(-1)).map(|session| session.session);
    if directories.is_empty() && broker.is_none() {
        return Err(Refusal::new(REFUSED, format!("node {node} has no WAL directory and serves no clients")));
    }
    for id in &directories {
        update(quorum, *id, directory, false).await?;
    }
    if let Some(broker) = broker {
        let state = UpdateSession { session: broker, state: session as i32 };
        propose(quorum, Command::UpdateSession(state)).await?;
    }
    if !draining {
        return Ok(Done::said(format!("node {node} takes streams and clients again")));
    }
    let now = image(quorum).await?;
    let held = directories.iter().map(|directory| now.held_by(*directory));
    let (open, chunks) = held.fold((0, 0), |(open, chunks), held| (open + held.0, chunks + held.1));
    let said = match (open, chunks) {
        (0, 0) => format!("node {node} is drained: nothing needs it; stop it, or remove it"),
        _ => format!(
            "node {node}: {open} streams are still written there, {chunks} chunks wait to be uploaded"
        ),
    };
    Ok(Done { said, open_streams: open as u64, waiting_chunks: chunks as u64 })
}
