//! What a node of a cluster has beside what a node alone has: its transport, the others' WAL replicas, its heartbeats.
//!
//! Owns: the transport ([`isobar_rpc`]), the service WAL on it, the task that lets the node's own replica follow metadata, the
//! one that gives it copies which others lost, and the one that beats for the broker's session.
//!
//! Invariants
//! 1. Start order: transport, quorum ready (a barrier of this life), own replica reconciled and then served, writer, broker,
//!    heartbeats. Stop order: the reverse, the transport last.
//! 2. Only the leader of a cluster that is being formatted probes and marks the store; the others wait for its marker and claim.
//! 3. A directory that is new begins a cluster only together with all other first voters, if all of them are new too; else it is
//!    let in by the leader: by itself as a learner, by an operator if it was a voter's ([`crate::membership`]). A node that is a
//!    broker only has none, and is no member: it observes the quorum.
//! 4. A cluster that begins on a store that has one of its name refuses: every metadata directory was lost, and
//!    `isobar recover` is the way.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use isobar_broker::{Doubts, Ensembles, LiveImage};
use isobar_host::{Host, Task, watch};
use isobar_metadata::command::ReplaceReplica;
use isobar_metadata::record::{DirectoryRecord, DirectoryState};
use isobar_metadata::{
    ClusterFormat, Command, CommandResult, DirectoryId, EffectKind, Envelope, Image, SessionId, StreamId,
};
use isobar_raft::{EffectStream, Heartbeats, LivenessLimits, ObserverOptions, Quorum, RaftNetwork};
use isobar_rpc::{Rpc, RpcMetrics, RpcOptions, Secret, ServiceId};
use isobar_store::{Bucket, MarkerFound, read_claim};
use isobar_wal::{
    Directories, Found, LocalReplica, QuorumMetrics, QuorumOptions, QuorumWal, RepairOptions, RepairParts,
    Truth, Wal as _, WalService, start_repairer,
};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::membership::{Change, Kind, Membership, address_of};
use crate::node::{NodeError, NodeOptions, new_format, quorum_options};
use crate::serving::Writing;

/// How often a start says whom it waits for.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks for the store's marker while another node formats the cluster, and between two questions of a node that
/// wants to join.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How many replicas a stream should have, and how often more are looked for while it has fewer.
const REPLICAS: u32 = 3;
const LOOK_FOR_MORE: Duration = Duration::from_secs(1);
/// Spreads askers that follow each other.
const ASKER: u64 = 0x9e37_79b9;

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Serves Kafka's clients, uploads, compacts.
    pub broker: bool,
    /// Keeps chunks on its disk until they are uploaded.
    pub wal: bool,
    /// May vote in the metadata quorum. Without it a node follows the metadata and decides nothing.
    pub metadata: bool,
}

impl Roles {
    /// Whether such a node is no member of the metadata quorum, but an observer of it: it keeps nothing that must last.
    pub(crate) fn observe(self) -> bool {
        self.broker && !self.wal && !self.metadata
    }

    /// As in the configuration, with commas between.
    pub(crate) fn names(self) -> String {
        let named = [(self.broker, "broker"), (self.wal, "wal"), (self.metadata, "metadata")];
        named.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect::<Vec<_>>().join(",")
    }
}

impl Default for Roles {
    fn default() -> Self {
        Self { broker: true, wal: true, metadata: true }
    }
}

/// How a node is one of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Kafka's cluster id: 22 characters of base64url, the same at all nodes.
    pub id: String,
    /// The file with the secret by which nodes know each other, the same at all nodes.
    pub secret_file: PathBuf,
    /// The voters that the cluster began with, as (node id, `host:port` of the transport), the same at all. A node that is not
    /// among them asks them to let it in. Empty: this node is alone.
    pub voters: Vec<(u64, String)>,
    /// Where the transport listens, if not at this node's address among the voters; of a node that is not among them also where
    /// others reach it.
    pub listen: Option<String>,
}

impl ClusterOptions {
    /// Whether the node is one of several.
    pub fn is_member(&self) -> bool {
        !self.voters.is_empty()
    }

    /// Where others reach this node, if there are others.
    pub(crate) fn own_address(&self, node_id: u64) -> Option<&str> {
        self.address_of(node_id).or(self.listen.as_deref()).filter(|_| self.is_member())
    }

    /// Where others reach one of the first voters.
    pub(crate) fn address_of(&self, node_id: u64) -> Option<&str> {
        self.voters.iter().find(|(id, _)| *id == node_id).map(|(_, address)| address.as_str())
    }
}

/// Listens for the other nodes.
pub(crate) async fn start_rpc(
    host: &Host,
    options: &NodeOptions,
    registry: &mut Registry,
) -> Result<Rpc, NodeError> {
    let cluster = &options.cluster;
    let path = &cluster.secret_file;
    let secret = host.read_file(path).map_err(|error| NodeError::Format {
        path: path.clone(),
        what: format!("the cluster's secret cannot be read: {error}"),
    })?;
    let node_id = options.broker.node_id;
    let own = cluster.address_of(u64::try_from(node_id).unwrap_or(0));
    let Some(listen) = cluster.listen.as_deref().or(own) else {
        return Err(NodeError::Refused(format!(
            "node {node_id} is not among cluster.voters: say in listeners.cluster where the others reach it"
        )));
    };
    let metrics = RpcMetrics::default();
    metrics.register(registry);
    let settings = RpcOptions {
        metrics,
        ..RpcOptions::new(listen, node_id, &cluster.id, Secret::new(secret.trim_ascii()))
    };
    Ok(Rpc::start(host, settings).await?)
}

/// A node's place in its cluster, before it has a WAL and serves.
pub(crate) struct Joining {
    pub(crate) rpc: Rpc,
    pub(crate) quorum: Quorum,
    pub(crate) membership: Membership,
}

/// Starts the metadata member, and waits until that is one of the group and has everything that is acknowledged.
pub(crate) async fn join(
    host: &Host,
    rpc: &Rpc,
    options: &NodeOptions,
    fresh: bool,
) -> Result<Joining, NodeError> {
    let membership = Membership::start(host, rpc, options.roles);
    let cluster = &options.cluster;
    let node_id = u64::try_from(options.broker.node_id).unwrap_or(1);
    if options.roles.observe() && cluster.address_of(node_id).is_none() {
        return observe(host, rpc, cluster, node_id, membership).await;
    }
    let mut quorum = quorum_options(options, node_id);
    if fresh {
        let theirs = format_of_the_others(&membership, node_id, cluster).await;
        quorum.format = Some(theirs.unwrap_or_else(|| new_format(cluster.id.clone(), cluster.voters.len())));
    }
    quorum.address = cluster.own_address(node_id).unwrap_or_default().to_owned();
    quorum.network = Some(RaftNetwork::new(rpc.clone()));
    quorum.initial_voters.clone_from(&cluster.voters);
    quorum.may_vote = options.roles.metadata;
    let quorum = Quorum::start(host, quorum).await?;
    membership.set_quorum(&quorum);
    let joining = Joining { rpc: rpc.clone(), quorum, membership };
    let asking = (cluster.address_of(node_id).is_none()).then(|| joining.ask_to_join(host, cluster));
    wait_for_quorum(&joining.quorum).await?;
    if let Some(asking) = asking {
        asking.abort();
    }
    Ok(joining)
}

/// The same for a node that keeps nothing: what it knows of metadata it is told by members, anew in each life.
async fn observe(
    host: &Host,
    rpc: &Rpc,
    cluster: &ClusterOptions,
    node_id: u64,
    membership: Membership,
) -> Result<Joining, NodeError> {
    let Some(format) = format_of_the_others(&membership, node_id, cluster).await else {
        return Err(stopped());
    };
    let contacts = cluster.voters.clone();
    let quorum = Quorum::observe(host, ObserverOptions::new(node_id, format, rpc.clone(), contacts));
    membership.set_quorum(&quorum);
    let joining = Joining { rpc: rpc.clone(), quorum, membership };
    wait_for_quorum(&joining.quorum).await?;
    if joining.quorum.membership().iter().any(|member| member.id == node_id) {
        joining.leave_the_group(host);
    }
    Ok(joining)
}

/// What the cluster was formatted with, if it has begun without this node; `None` if all of its first voters, this one among
/// them, have yet to begin.
async fn format_of_the_others(
    membership: &Membership,
    node_id: u64,
    cluster: &ClusterOptions,
) -> Option<ClusterFormat> {
    let is_first = cluster.address_of(node_id).is_some();
    let others: Vec<_> = cluster.voters.iter().filter(|(id, _)| *id != node_id).collect();
    let mut beginners = BTreeSet::new();
    let mut said = None;
    while !is_first || beginners.len() < others.len() {
        for (id, address) in &others {
            match membership.ask_about(*id, address).await {
                Ok(about) if about.format.is_some() => return about.format,
                Ok(_) => {
                    beginners.insert(*id);
                }
                Err(error) if said.is_none_or(|at: tokio::time::Instant| at.elapsed() >= SAY_AGAIN) => {
                    said = Some(tokio::time::Instant::now());
                    tracing::warn!(node = id, address, %error, "waiting for the other nodes");
                }
                Err(_) => {}
            }
        }
        if !is_first || beginners.len() < others.len() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    None
}

impl Joining {
    /// Releases before had such a node among the group's learners: asks until it is taken out.
    fn leave_the_group(&self, host: &Host) {
        let (membership, quorum) = (self.membership.clone(), self.quorum.clone());
        let change = Change { kind: Kind::Leave as i32, node: quorum.node_id(), ..Change::default() };
        host.spawn("node.leave", async move {
            let leaving = async {
                while let Err(refusal) = membership.change(change.clone()).await {
                    tracing::debug!(why = refusal.message, "still a learner of the metadata quorum");
                    tokio::time::sleep(SAY_AGAIN).await;
                }
            };
            tokio::select! {
                biased;
                () = quorum.stopped() => {}
                () = leaving => {}
            }
        });
    }

    /// Asks to be let in until it is: harmless if it is in already.
    fn ask_to_join(&self, host: &Host, cluster: &ClusterOptions) -> Task {
        let (membership, quorum) = (self.membership.clone(), self.quorum.clone());
        let address = cluster.listen.clone().unwrap_or_default();
        let change = Change { kind: Kind::Join as i32, node: quorum.node_id(), address, ..Change::default() };
        let contacts = cluster.voters.clone();
        host.spawn("node.join", async move {
            let mut said = String::new();
            for (id, contact) in contacts.iter().cycle() {
                match membership.ask_for(*id, contact, &change).await {
                    Ok(done) => return tracing::info!(done.said, "joined the cluster"),
                    Err(error) if error.to_string() != said => {
                        said = error.to_string();
                        tracing::warn!(node = id, contact, %error, "not let in yet");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        })
    }
}

/// Whose the cluster's incarnation is: what its claim says, which was made by the leader that formatted the store, or by
/// `isobar recover`. `NodeError` if that cannot have been of this group.
pub(crate) async fn owner(quorum: &Quorum, bucket: &Bucket, image: &Image) -> Result<[u8; 16], NodeError> {
    let Some(claim) = read_claim(bucket, image.incarnation()).await? else { return Ok(quorum.incarnation()) };
    let owner = claim.owner().ok_or_else(|| NodeError::Refused(format!("the claim {claim:?} is damaged")))?;
    let is_new = image.directories().next().is_none();
    if is_new && quorum.membership().iter().all(|member| member.incarnation != owner) {
        return Err(NodeError::Refused(format!(
            "the store holds cluster {} already, and none of the nodes here has its metadata. If all of their directories were              lost, `isobar recover` brings it back from the store; a new cluster needs another id (`isobar cluster init`) and              another prefix",
            claim.cluster_id
        )));
    }
    Ok(owner)
}

/// Waits until this member knows a leader and has everything that is acknowledged.
async fn wait_for_quorum(quorum: &Quorum) -> Result<(), NodeError> {
    loop {
        match quorum.wait_ready(SAY_AGAIN).await {
            Ok(()) => return Ok(()),
            Err(isobar_raft::ProposeError::Stopping) => {
                return Err(stopped());
            }
            Err(error) => tracing::warn!(%error, "waiting for a majority of the metadata quorum"),
        }
    }
}

/// Waits until the store is marked and claimed as this cluster's, or this member leads and may do that itself.
pub(crate) async fn wait_for_marker(quorum: &Quorum, bucket: &Bucket) -> Result<(), NodeError> {
    let cluster_id = &quorum.cluster().cluster_id;
    while !quorum.is_leader() {
        let incarnation = quorum.subscribe().0.incarnation();
        if matches!(bucket.check_marker(cluster_id).await, Ok(MarkerFound::Ours))
            && matches!(read_claim(bucket, incarnation).await, Ok(Some(_)))
        {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = quorum.stopped() => return Err(stopped()),
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
    Ok(())
}

fn stopped() -> NodeError {
    NodeError::Refused("the metadata node has stopped: its log says why".to_owned())
}

/// Finds the WAL directories of the image.
struct Nodes {
    rpc: Rpc,
    quorum: Quorum,
    image: Arc<LiveImage>,
    local: Option<LocalReplica>,
}

impl Directories for Nodes {
    fn find(&self, directory: DirectoryId) -> Found {
        if let Some(local) = self.local.as_ref().filter(|local| local.directory() == directory) {
            return Found::Replica(Arc::new(local.clone()));
        }
        let record = self.image.with(|image| image.directory(directory).cloned());
        find_remote(&self.rpc, &self.quorum, record)
    }
}

fn find_remote(rpc: &Rpc, quorum: &Quorum, record: Option<Arc<DirectoryRecord>>) -> Found {
    let Some(record) = record.filter(|record| !record.is_removed()) else { return Found::Removed };
    match u64::try_from(record.node_id).ok().and_then(|id| address_of(quorum, id)) {
        Some(address) => Found::Remote(rpc.peer(record.node_id, &address)),
        None => Found::Unknown,
    }
}

/// Chooses ensembles of the replicas that answer.
struct Chooser {
    wal: QuorumWal,
    image: Arc<LiveImage>,
    asker: u64,
}

#[async_trait]
impl Ensembles for Chooser {
    async fn choose(&self) -> Result<(Vec<DirectoryId>, u32), String> {
        let image = self.image.snapshot();
        let ensemble = self.wal.choose(&image, self.asker).await.map_err(|error| error.to_string())?;
        Ok((ensemble, image.write_quorum()))
    }

    fn opened(&self, stream: StreamId, ensemble: &[DirectoryId], write_quorum: u32) {
        self.wal.opened(stream, ensemble, write_quorum);
    }

    async fn until_better(&self, stream: StreamId) {
        let mut changes = self.wal.changes();
        loop {
            _ = *changes.borrow_and_update();
            match self.wal.standing(stream) {
                // A stream that is over is followed by another in any case.
                Some(standing) if standing.is_closed => break,
                None => break,
                Some(standing) => {
                    let is_leaving = self.is_leaving(stream);
                    let left = standing.live.count_ones();
                    if is_leaving && self.wal.choose(&self.image.snapshot(), self.asker).await.is_ok() {
                        return;
                    }
                    if left < REPLICAS {
                        let chosen = self.wal.choose_good(&self.image.snapshot(), self.asker).await;
                        if chosen.is_ok_and(|ensemble| ensemble.len() > left as usize) {
                            return;
                        }
                    }
                }
            }
            tokio::select! {
                biased;
                changed = changes.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                }
                () = tokio::time::sleep(LOOK_FOR_MORE) => {}
            }
        }
        tokio::time::sleep(LOOK_FOR_MORE).await;
    }
}

impl Chooser {
    /// Whether one of its replicas is drained or removed.
    fn is_leaving(&self, stream: StreamId) -> bool {
        self.image.with(|image| {
            let Some(stream) = image.stream(stream) else { return false };
            let stays = |id: &DirectoryId| image.directory(*id).is_some_and(|record| record.takes_streams());
            !stream.ensemble.iter().all(stays)
        })
    }
}

/// See the module.
pub(crate) struct Member {
    rpc: Rpc,
    membership: Membership,
    heartbeats: Heartbeats,
    listening: Task,
    following: Option<Task>,
    repairing: Option<Task>,
    hearing: Task,
    doubts: Arc<Doubts>,
    beating: Arc<Mutex<Option<Task>>>,
    tell_over: watch::Sender<Option<String>>,
}

/// What a member is made of.
pub(crate) struct MemberParts {
    pub(crate) joining: Joining,
    pub(crate) local: Option<LocalReplica>,
    /// Those after the image that `local` was reconciled with.
    pub(crate) effects: EffectStream,
    pub(crate) image: Arc<LiveImage>,
}

impl Member {
    /// Serves the node's replica and makes its writer.
    pub(crate) fn start(host: &Host, parts: MemberParts, registry: &mut Registry) -> (Self, Writing) {
        let MemberParts { joining: Joining { rpc, quorum, membership }, local, effects, image } = parts;
        let (tell_over, _) = watch::channel(None);
        let following = local.clone().map(|local| {
            membership.set_replica(&local);
            rpc.register(ServiceId::WAL, Arc::new(WalService::new(host, local.clone())));
            follow(host, local, effects, tell_over.clone())
        });
        let (heartbeats, listening) = Heartbeats::start(host, &quorum, &rpc, LivenessLimits::default());
        let repairing = local.clone().map(|replica| repair(host, &rpc, &quorum, replica));
        let asker = quorum.node_id().wrapping_mul(ASKER);
        let nodes = Nodes { rpc: rpc.clone(), quorum, image: Arc::clone(&image), local };
        let metrics = QuorumMetrics::default();
        metrics.register(registry);
        let wal = QuorumWal::new(host, Arc::new(nodes), QuorumOptions::default(), metrics);
        wal.reconcile(&image.snapshot());
        let ensembles = Chooser { wal: wal.clone(), image, asker };
        let (beating, doubts) = (Arc::default(), Arc::default());
        let hearing = hear(host, &rpc, &doubts);
        let member = Self {
            rpc,
            membership,
            heartbeats,
            listening,
            following,
            repairing,
            hearing,
            doubts,
            beating,
            tell_over,
        };
        (member, Writing { wal: Arc::new(wal), ensembles: Arc::new(ensembles) })
    }

    pub(crate) fn rpc(&self) -> Rpc {
        self.rpc.clone()
    }

    /// Told which nodes are heard.
    pub(crate) fn doubts(&self) -> Arc<Doubts> {
        Arc::clone(&self.doubts)
    }

    /// What changes who is a member.
    pub(crate) fn membership(&self) -> Membership {
        self.membership.clone()
    }

    /// Beats for the broker's session, once it is told.
    pub(crate) fn keeper(&self, host: &Host) -> Box<dyn Fn(SessionId) + Send + Sync> {
        let (host, heartbeats, tell) = (host.clone(), self.heartbeats.clone(), self.tell_over.clone());
        let beating = Arc::clone(&self.beating);
        Box::new(move |session| {
            let (heartbeats, tell) = (heartbeats.clone(), tell.clone());
            *beating.lock() = Some(host.spawn("node.heartbeat", async move {
                let why = heartbeats.keep(session).await;
                tell.send_replace(Some(why));
            }));
        })
    }

    /// Why this life of the node is over, once that is so.
    pub(crate) fn over(&self) -> watch::Receiver<Option<String>> {
        self.tell_over.subscribe()
    }

    /// Stops beating; the leader finds the session gone once the transport has stopped too.
    pub(crate) fn stop_beating(&self) {
        if let Some(beating) = &*self.beating.lock() {
            beating.abort();
        }
    }

    pub(crate) async fn stop(self) {
        self.stop_beating();
        for task in self.following.iter().chain(&self.repairing) {
            task.abort();
        }
        self.listening.abort();
        self.hearing.abort();
        self.rpc.stop().await;
    }
}

/// Gives the node's replica what it should have of chunks that cannot be uploaded.
fn repair(host: &Host, rpc: &Rpc, quorum: &Quorum, replica: LocalReplica) -> Task {
    let members = Arc::new(Members { rpc: rpc.clone(), quorum: quorum.clone() });
    let parts =
        RepairParts { host: host.clone(), replica, directories: Arc::clone(&members) as _, truth: members };
    start_repairer(parts, RepairOptions::default())
}

/// What a repairer knows: as of now, on a node without a broker too, whose image nobody moves on.
struct Members {
    rpc: Rpc,
    quorum: Quorum,
}

impl Directories for Members {
    fn find(&self, directory: DirectoryId) -> Found {
        let record = self.image().directory(directory).cloned();
        find_remote(&self.rpc, &self.quorum, record)
    }
}

#[async_trait]
impl Truth for Members {
    fn image(&self) -> Image {
        self.quorum.subscribe().0
    }

    async fn replace(&self, replace: ReplaceReplica) -> Result<(), String> {
        let command = Envelope::unnumbered(Command::ReplaceReplica(replace));
        match self.quorum.propose(command).await {
            Ok(CommandResult::Done(outcome)) if outcome.error_code == 0 => Ok(()),
            Ok(CommandResult::Done(outcome)) => Err(outcome.message.unwrap_or_default()),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Tells of nodes whose last connection to this one has ended, and of those that come.
fn hear(host: &Host, rpc: &Rpc, doubts: &Arc<Doubts>) -> Task {
    let (mut inbound, doubts) = (rpc.inbound(), Arc::clone(doubts));
    host.spawn("node.hear", async move {
        let mut heard = BTreeSet::new();
        loop {
            let now: BTreeSet<i32> = inbound.borrow_and_update().iter().map(|(node, _)| *node).collect();
            heard.difference(&now).for_each(|node| doubts.lost(*node));
            now.difference(&heard).for_each(|node| doubts.heard(*node));
            heard = now;
            if inbound.changed().await.is_err() {
                return;
            }
        }
    })
}

/// Lets the node's replica follow metadata, whatever its broker does.
fn follow(
    host: &Host,
    local: LocalReplica,
    mut effects: EffectStream,
    tell_over: watch::Sender<Option<String>>,
) -> Task {
    host.spawn("node.replica", async move {
        let why = loop {
            match effects.next().await {
                Ok(Some(batch)) => {
                    local.follow(&batch);
                    let removed = batch.effects.iter().any(|effect| match &effect.kind {
                        Some(EffectKind::Directory(record)) => {
                            record.directory == local.directory()
                                && record.state == DirectoryState::Removed as i32
                        }
                        _ => false,
                    });
                    if let Some(why) = local.stopped() {
                        break format!("the WAL takes nothing any more: {why}");
                    }
                    if removed {
                        break "this node's WAL directory was removed from the cluster".to_owned();
                    }
                }
                Ok(None) => break "the metadata node has stopped".to_owned(),
                Err(lagged) => {
                    break format!("the WAL replica has fallen out of the effects' ring: {lagged:?}");
                }
            }
        };
        tell_over.send_replace(Some(why));
    })
}
