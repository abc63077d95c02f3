//! What a node of a cluster has beside what a node alone has: its transport, the others' WAL replicas, its heartbeats.
//!
//! Owns: the transport ([`isobar_rpc`]), the service WAL on it, the task that lets the node's own replica follow metadata, and
//! the one that beats for the broker's session.
//!
//! Invariants
//! 1. Start order: transport, quorum ready (a barrier of this life), own replica reconciled and then served, writer, broker,
//!    heartbeats. Stop order: the reverse, the transport last.
//! 2. Only the leader of a cluster that is being formatted probes and marks the store; the others wait for its marker.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use isobar_broker::{Ensembles, LiveImage};
use isobar_host::{Host, Task, watch};
use isobar_metadata::{DirectoryId, SessionId, StreamId};
use isobar_raft::{EffectStream, Heartbeats, LivenessLimits, Quorum};
use isobar_rpc::{Rpc, RpcMetrics, RpcOptions, Secret, ServiceId};
use isobar_store::{Bucket, MarkerFound};
use isobar_wal::{
    Directories, Found, LocalReplica, QuorumMetrics, QuorumOptions, QuorumWal, Replica, Wal, WalService,
};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use crate::node::{NodeError, NodeOptions};

/// How often a start says whom it waits for.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// Between two looks for the store's marker while another node formats the cluster.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How many replicas a stream should have, and how often more are looked for while it has fewer.
const REPLICAS: u32 = 3;
const LOOK_FOR_MORE: Duration = Duration::from_secs(1);
/// Spreads askers that follow each other.
const ASKER: u64 = 0x9e37_79b9;

/// How a node is one of a cluster.
#[derive(Debug, Clone, Default)]
pub struct ClusterOptions {
    /// Kafka's cluster id: 22 characters of base64url, the same at all nodes.
    pub id: String,
    /// The file with the secret by which nodes know each other, the same at all nodes.
    pub secret_file: PathBuf,
    /// The nodes that the cluster begins with, as (node id, `host:port` of the transport), the same at all. Empty: this node is alone.
    pub voters: Vec<(u64, String)>,
    /// Where the transport listens, if not at this node's address among the voters.
    pub listen: Option<String>,
}

impl ClusterOptions {
    /// Whether the node is one of several.
    pub fn is_member(&self) -> bool {
        !self.voters.is_empty()
    }

    /// Where others reach a node.
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
    let Some(own) = own else {
        return Err(NodeError::Refused(format!("node {node_id} is not among cluster.voters")));
    };
    let listen = cluster.listen.as_deref().unwrap_or(own);
    let metrics = RpcMetrics::default();
    metrics.register(registry);
    let settings = RpcOptions {
        metrics,
        ..RpcOptions::new(listen, node_id, &cluster.id, Secret::new(secret.trim_ascii()))
    };
    Ok(Rpc::start(host, settings).await?)
}

/// Waits until this member knows a leader and has everything that is acknowledged.
pub(crate) async fn wait_for_quorum(quorum: &Quorum) -> Result<(), NodeError> {
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

/// Waits until the store is marked as this cluster's, or this member leads and may do that itself.
pub(crate) async fn wait_for_marker(quorum: &Quorum, bucket: &Bucket) -> Result<(), NodeError> {
    let cluster_id = &quorum.cluster().cluster_id;
    while !quorum.is_leader() {
        if matches!(bucket.check_marker(cluster_id).await, Ok(MarkerFound::Ours)) {
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
    image: Arc<LiveImage>,
    local: LocalReplica,
    replica: Arc<dyn Replica>,
    addresses: BTreeMap<i32, String>,
}

impl Directories for Nodes {
    fn find(&self, directory: DirectoryId) -> Found {
        if directory == self.local.directory() {
            return Found::Replica(Arc::clone(&self.replica));
        }
        let node_id = self.image.with(|image| image.directory(directory).map(|record| record.node_id));
        let Some(node_id) = node_id else { return Found::Removed };
        match self.addresses.get(&node_id) {
            Some(address) => Found::Remote(self.rpc.peer(node_id, address)),
            None => Found::Unknown,
        }
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
                Some(standing) if standing.live.count_ones() >= REPLICAS => {
                    if changes.changed().await.is_err() {
                        return std::future::pending().await;
                    }
                }
                Some(standing) => {
                    let chosen = self.wal.choose(&self.image.snapshot(), self.asker).await;
                    let left = standing.live.count_ones() as usize;
                    if chosen.is_ok_and(|ensemble| ensemble.len() > left) {
                        return;
                    }
                    tokio::time::sleep(LOOK_FOR_MORE).await;
                }
            }
        }
        tokio::time::sleep(LOOK_FOR_MORE).await;
    }
}

/// See the module.
pub(crate) struct Member {
    rpc: Rpc,
    heartbeats: Heartbeats,
    listening: Task,
    following: Task,
    beating: Arc<Mutex<Option<Task>>>,
    tell_over: watch::Sender<Option<String>>,
}

/// What a member is made of.
pub(crate) struct MemberParts {
    pub(crate) rpc: Rpc,
    pub(crate) quorum: Quorum,
    pub(crate) local: LocalReplica,
    /// Those after the image that `local` was reconciled with.
    pub(crate) effects: EffectStream,
    pub(crate) image: Arc<LiveImage>,
}

/// What a broker of a cluster writes to.
pub(crate) struct Writing {
    pub(crate) wal: Arc<dyn Wal>,
    pub(crate) ensembles: Arc<dyn Ensembles>,
}

impl Member {
    /// Serves the node's replica and makes its writer.
    pub(crate) fn start(
        host: &Host,
        options: &NodeOptions,
        parts: MemberParts,
        registry: &mut Registry,
    ) -> (Self, Writing) {
        let MemberParts { rpc, quorum, local, effects, image } = parts;
        let (tell_over, _) = watch::channel(None);
        let following = follow(host, local.clone(), effects, tell_over.clone());
        rpc.register(ServiceId::WAL, Arc::new(WalService::new(host, local.clone())));
        let (heartbeats, listening) = Heartbeats::start(host, &quorum, &rpc, LivenessLimits::default());
        let voters = options.cluster.voters.iter();
        let addresses = voters.filter_map(|(id, address)| Some((i32::try_from(*id).ok()?, address.clone())));
        let nodes = Nodes {
            rpc: rpc.clone(),
            image: Arc::clone(&image),
            replica: Arc::new(local.clone()),
            local,
            addresses: addresses.collect(),
        };
        let metrics = QuorumMetrics::default();
        metrics.register(registry);
        let wal = QuorumWal::new(host, Arc::new(nodes), QuorumOptions::default(), metrics);
        wal.reconcile(&image.snapshot());
        let asker = quorum.node_id().wrapping_mul(ASKER);
        let ensembles = Chooser { wal: wal.clone(), image, asker };
        let member = Self { rpc, heartbeats, listening, following, beating: Arc::default(), tell_over };
        (member, Writing { wal: Arc::new(wal), ensembles: Arc::new(ensembles) })
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
        self.following.abort();
        self.listening.abort();
        self.rpc.stop().await;
    }
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
                Ok(Some(batch)) => local.follow(&batch),
                Ok(None) => break "the metadata node has stopped".to_owned(),
                Err(lagged) => {
                    break format!("the WAL replica has fallen out of the effects' ring: {lagged:?}");
                }
            }
        };
        tell_over.send_replace(Some(why));
    })
}
