//! One process with any of the roles: metadata member, WAL replica, broker ([`crate::serving`]); and its admin port.
//!
//! Owns: the data directory.
//!
//! ```text
//! DATA/LOCK        held while a process uses the directory; names its pid
//! DATA/node.json   written once everything below was formatted and the store was found fit and marked as this
//!                  cluster's, before the first client is served
//! DATA/metadata/   Raft log and snapshots
//! DATA/wal/        the WAL replica, if it has that role
//! DATA/bucket/     the store, unless another is named
//! DATA/cache/      blocks of objects; may be deleted while no process runs
//! DATA/RECOVERING  there while `isobar recover` builds the directory
//! ```
//!
//! Invariants:
//! 1. A directory with `node.json` is a known node: nothing below it is ever formatted again. If a part of it is gone,
//!    the node refuses to start (DESIGN.md section 2, invariant 6).
//! 2. A directory with `RECOVERING` is half made by `isobar recover`: it is not started.
//! 3. A node that is new asks the others how their cluster was formatted; only if none of them has one does it format its own.
//! 4. The incarnation's claim is looked at before the first client is served, if the store answers in time; from then on by
//!    the archiver and the deleter. A node that has lost it takes no more commands, says so in its health, and ends.
//! 5. A node whose member of the quorum has stopped (its disk failed) ends, whether or not anyone writes through it: it knows
//!    nothing new any more, and whoever looks at it from outside must see so.
//! 6. Start order: lock, quorum, image, WAL (reconciled with the image before effects are followed), store (`open_store.rs`), claim,
//!    archiver, broker, uploader.
//!    Stop order: connections are drained, uploads finish, the log is archived, then the quorum takes a snapshot and stops.
//!
//! Crash cases: killed while formatting, the next start formats what is missing, as no client was served. Killed at any
//! other moment, the next start replays.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isobar_admin::{Admin, AdminError};
use isobar_broker::{Alone, BrokerError, LiveImage, Metrics, Options, register_directory};
use isobar_host::disk::DirLock;
use isobar_host::{Host, Task};
use isobar_metadata::command::{FEATURE_LEVEL, RegisterDirectory, SetFeatureLevel};
use isobar_metadata::{ClusterFormat, Command, Envelope, StoreId};
use isobar_raft::archive::{ArchiveOptions, Archiver, Status};
use isobar_raft::{Quorum, QuorumOptions, RaftError};
use isobar_rpc::{Rpc, RpcError};
use isobar_store::fsck::FsckParts;
use isobar_store::{Bucket, BucketOptions, ClaimError, ClaimGuard, DeleterOptions, StoreError, StoreMetrics};
use isobar_wal::{LocalReplica, ReplicaOptions, WalError, WalMetrics};
use object_store::ObjectStore;
use prometheus_client::registry::Registry;

use crate::admin_port::{health, start_admin};
use crate::archive::StoreArchive;
pub use crate::directory::new_cluster_id;
use crate::directory::{NodeFormat, read_format, refuse_half_recovered, write_format};
pub use crate::jobs::JobOptions;
use crate::member::{self, Member, MemberParts};
pub use crate::member::{ClusterOptions, Roles};
use crate::open_store::{Known, verify, verify_later};
use crate::operations::NodeOperations;
use crate::serving::{Serving, ServingParts, Writing};

/// The store's number and name in metadata.
pub const STORE: StoreId = StoreId(1);
const STORE_NAME: &str = "local";
/// How long a stop waits for the archive, and a start for a word on the claim.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(5);
const CLAIM_PATIENCE: Duration = Duration::from_secs(2);
/// How long a stop waits for the WAL to be uploaded; what is left is found there at the next start.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(20);

/// Where objects go.
#[derive(Clone)]
pub enum Store {
    /// By URL.
    Url(String),
    /// `bucket/` in the data directory.
    Inside,
    /// A store that the simulation made.
    Given(Arc<dyn ObjectStore>),
}

/// Settings of a node.
#[derive(Clone)]
pub struct NodeOptions {
    /// The data directory.
    pub data: PathBuf,
    /// Where objects go.
    pub store: Store,
    /// Address of the admin port; `None`: no admin port.
    pub admin: Option<String>,
    /// The broker's.
    pub broker: Options,
    /// The longest that bytes lie in the WAL only.
    pub upload_interval: Duration,
    /// As many waiting bytes start an upload sooner.
    pub upload_trigger_bytes: u64,
    /// How long a granted object id may wait for its commit: the id of an upload that died is garbage after it.
    pub upload_deadline: Duration,
    /// Journal segments of WAL and Raft log; small ones make rotation frequent.
    pub segment_bytes: Option<u64>,
    /// Bytes of disk for chunks that are not uploaded yet; at this bound producers are held up.
    pub wal_max_disk_bytes: u64,
    /// Memory for recent chunks: several uploads' worth, so that the uploader reads from memory and not from the disk.
    pub tail_bytes: usize,
    /// Memory for blocks of objects.
    pub cache_bytes: usize,
    /// Disk for blocks of objects, below `cache/`; 0: none. `None`: 1 GiB, if four times that is free and the store is not
    /// a directory, which is on a disk itself.
    pub disk_cache_bytes: Option<u64>,
    /// A Raft snapshot is taken when the log since the last exceeds this.
    pub snapshot_after_bytes: u64,
    /// How much of the metadata log may wait for the archive; beyond it the archive gets a hole, bridged by a snapshot.
    pub archive_lag_bytes: u64,
    /// How the metadata log is archived.
    pub archive: ArchiveOptions,
    /// When objects that nothing refers to are deleted.
    pub deleter: DeleterOptions,
    /// Compaction, index objects.
    pub jobs: JobOptions,
    /// What it does. All, if it is alone.
    pub roles: Roles,
    /// How it is one of several nodes.
    pub cluster: ClusterOptions,
}

impl NodeOptions {
    /// `isobar dev`'s defaults.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            store: Store::Inside,
            admin: None,
            broker: Options::default(),
            upload_interval: Duration::from_secs(3),
            upload_trigger_bytes: 16 << 20,
            upload_deadline: Duration::from_secs(600),
            segment_bytes: None,
            wal_max_disk_bytes: ReplicaOptions::default().max_disk_bytes,
            tail_bytes: 128 << 20,
            cache_bytes: 64 << 20,
            disk_cache_bytes: None,
            snapshot_after_bytes: 64 << 20,
            archive_lag_bytes: 512 << 20,
            archive: ArchiveOptions::default(),
            deleter: DeleterOptions::default(),
            jobs: JobOptions::default(),
            roles: Roles::default(),
            cluster: ClusterOptions::default(),
        }
    }
}

/// Why a node could not start or stop. Each says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The data directory cannot be used.
    #[error("data directory {}: {source}", path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// The system's answer; for a held lock it names the pid.
        source: std::io::Error,
    },
    /// `node.json` is not ours or of a newer version.
    #[error("{}: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The directory holds half a recovery, or the cluster goes on elsewhere: do not start it.
    #[error("{0}")]
    Refused(String),
    /// The metadata log or its snapshots.
    #[error("metadata: {0}")]
    Raft(#[from] RaftError),
    /// The WAL directory.
    #[error("WAL: {0}")]
    Wal(#[from] WalError),
    /// The store.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The admin port.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The transport between nodes.
    #[error(transparent)]
    Rpc(#[from] RpcError),
}

impl NodeError {
    /// Nothing is wrong but that the others gave the node up while it started: who starts it again has a node.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Broker(BrokerError::Fenced))
    }
}

/// What is said when the member of the quorum has stopped of itself.
const QUORUM_STOPPED: &str = "this node's part of the metadata quorum has stopped: its log cannot be written; see the \
     errors logged before, and the disk below metadata/";

/// Why a running node must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The cluster goes on elsewhere, this node's state contradicts another's, or its metadata log cannot be written any more: a
    /// person has to look.
    ForGood(String),
    /// This life is over: start the node again. Its session was fenced, or it has missed too much of the metadata.
    StartAgain(String),
}

/// A running node.
pub struct Node {
    quorum: Quorum,
    /// By role: the broker, the WAL replica, the archive of the metadata log.
    serving: Option<Serving>,
    wal: Option<LocalReplica>,
    archiver: Option<Archiver>,
    /// `None`: it is alone.
    member: Option<Member>,
    admin: Option<Admin>,
    store_metrics: StoreMetrics,
    /// Looks at a store that did not answer at the start.
    verifying: Option<Task>,
    _lock: DirLock,
}

impl Node {
    /// Starts every role and returns once clients are served.
    pub async fn start(host: &Host, options: NodeOptions) -> Result<Self, NodeError> {
        let mut transport = None;
        let started = Box::pin(Self::start_parts(host, options, &mut transport)).await;
        if let (Err(_), Some(rpc)) = (&started, transport) {
            // Its services hold it, and it the port.
            rpc.stop().await;
        }
        started
    }

    async fn start_parts(
        host: &Host,
        options: NodeOptions,
        transport: &mut Option<Rpc>,
    ) -> Result<Self, NodeError> {
        let disk = host.disk();
        let data_error = |source| NodeError::Data { path: options.data.clone(), source };
        disk.create_dir_all(&options.data).map_err(data_error)?;
        let lock = disk.lock(&options.data).map_err(data_error)?;
        refuse_half_recovered(host, &options.data)?;
        let known = read_format(host, &options)?;
        let mut registry = Registry::default();

        let joining = match options.cluster.is_member() {
            true => {
                let rpc = transport.insert(member::start_rpc(host, &options, &mut registry).await?);
                Some(member::join(host, rpc, &options, known.is_none()).await?)
            }
            false => None,
        };
        let quorum = match &joining {
            Some(joining) => joining.quorum.clone(),
            None => start_alone(host, &options, known.is_none()).await?,
        };
        quorum.metrics().register(&mut registry);
        let wal = match options.roles.wal {
            true => Some(open_wal(host, &options, known.is_none(), &quorum, &mut registry).await?),
            false => None,
        };
        let store_metrics = StoreMetrics::default();
        store_metrics.register(&mut registry);
        let bucket = open_bucket(host, &options, &store_metrics).await?;
        if joining.is_some() && known.as_ref().and_then(NodeFormat::owner).is_none() {
            member::wait_for_marker(&quorum, &bucket).await?;
        }
        let (verifying, guard) = claim_store(host, &options, &bucket, &quorum, known).await?;
        let archiver = options.roles.metadata.then(|| {
            let (host, guard) = (host.clone(), Some(guard.clone()));
            let archive = StoreArchive { host, bucket: bucket.clone(), guard };
            quorum.archive(Arc::new(archive), options.archive.clone())
        });
        let archiver = archiver.flatten();

        let metrics = Arc::new(Metrics::default());
        // The store may have taken long, so that effects since the WAL was opened are in the ring no more.
        let (image, effects) = quorum.subscribe();
        if let Some(wal) = &wal {
            wal.reconcile(&image);
        }
        let live = Arc::new(LiveImage::new(image, Arc::clone(&metrics)));
        let (member, writing) = match joining {
            Some(joining) => {
                let (local, effects) = (wal.clone(), effects.fork());
                let parts = MemberParts { joining, local, effects, image: Arc::clone(&live) };
                let (member, writing) = Member::start(host, parts, &mut registry);
                (Some(member), Some(writing))
            }
            None => {
                let alone = wal.clone().map(|wal| {
                    let ensembles = Arc::new(Alone(wal.directory()));
                    Writing { wal: Arc::new(wal), ensembles }
                });
                (None, alone)
            }
        };
        if let Some(wal) = &wal {
            let directory = RegisterDirectory {
                directory: wal.directory(),
                node_id: options.broker.node_id,
                zone: options.broker.rack.clone().unwrap_or_default(),
                cloud: String::new(),
            };
            let registered = register_directory(&quorum, directory).await;
            registered.map_err(|error| told_by(&archiver, error.into()))?;
        }
        let serving = match writing.filter(|_| options.roles.broker) {
            Some(writing) => {
                let parts = ServingParts {
                    quorum: quorum.clone(),
                    image: live,
                    metrics,
                    effects,
                    writing,
                    directory: wal.as_ref().map(LocalReplica::directory),
                    bucket,
                    store_metrics: store_metrics.clone(),
                    guard,
                    doubts: member.as_ref().map(Member::doubts).unwrap_or_default(),
                    rpc: member.as_ref().map(Member::rpc),
                    on_registered: member
                        .as_ref()
                        .map_or_else(|| Box::new(|_| ()) as _, |member| member.keeper(host)),
                };
                let started = Serving::start(host, &options, parts, &mut registry).await;
                Some(started.map_err(|error| told_by(&archiver, error))?)
            }
            None => None,
        };
        let operations = NodeOperations {
            host: host.clone(),
            fsck: serving.as_ref().map(|serving| serving.fsck.clone()),
            store: STORE,
            quorum: quorum.clone(),
            membership: member.as_ref().map(Member::membership),
        };
        let broker = serving.as_ref().map(|serving| Arc::clone(&serving.broker));
        let lost = archiver.as_ref().map(Archiver::lost);
        let admin = start_admin(host, &options, registry, broker, lost, Arc::new(operations)).await?;
        Ok(Self { quorum, serving, wal, archiver, member, admin, store_metrics, verifying, _lock: lock })
    }

    /// Where Kafka clients connect, if it is a broker.
    pub fn local_addr(&self) -> Option<std::net::SocketAddr> {
        self.serving.as_ref().map(|serving| serving.broker.local_addr())
    }

    /// Where the admin port listens, if there is one.
    pub fn admin_addr(&self) -> Option<std::net::SocketAddr> {
        self.admin.as_ref().map(Admin::local_addr)
    }

    /// `Err(reason)` when the node can no longer serve.
    pub fn health(&self) -> Result<(), String> {
        let broker = self.serving.as_ref().map(|serving| &*serving.broker);
        health(broker, self.archiver.as_ref().map(Archiver::lost).as_ref())
    }

    /// Returns when this node must end; says why, and what to do.
    pub async fn lost(&self) -> Ending {
        let mut lost = self.archiver.as_ref().map(Archiver::lost);
        let mut diverged = Some(self.quorum.diverged());
        let mut broker_over = self.serving.as_ref().map(|serving| serving.broker.over());
        let mut member_over = self.member.as_ref().map(Member::over);
        tokio::select! {
            biased;
            why = told(&mut lost) => Ending::ForGood(why),
            why = told(&mut diverged) => Ending::ForGood(why),
            why = told(&mut broker_over) => Ending::StartAgain(why),
            why = told(&mut member_over) => Ending::StartAgain(why),
            () = self.quorum.stopped() => Ending::ForGood(QUORUM_STOPPED.to_owned()),
        }
    }

    /// The node's part of the metadata quorum, for whoever holds this node in its own process.
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// How far the metadata log is archived; `None` without the role metadata.
    pub fn archived(&self) -> Option<Status> {
        self.archiver.as_ref().map(Archiver::status)
    }

    /// The metadata state machine's clock, which moves with its entries; wall-clock milliseconds.
    pub fn metadata_time_ms(&self) -> i64 {
        self.quorum.subscribe().0.time_ms()
    }

    /// What [`isobar_store::fsck::fsck`] works with, for whoever holds this node in its own process, if it is a broker; its
    /// store is [`STORE`].
    pub fn fsck_parts(&self) -> Option<FsckParts> {
        self.serving.as_ref().map(|serving| serving.fsck.clone())
    }

    /// Requests sent to the store so far, by operation.
    pub fn store_requests(&self, operation: &'static str) -> u64 {
        self.store_metrics.requests_of(STORE_NAME, operation)
    }

    /// Blocks of objects that came from other brokers of the zone so far.
    pub fn zone_blocks(&self) -> u64 {
        self.store_metrics.zone_blocks.get()
    }

    /// Waits until all that was acknowledged lies in the store, or `patience` has ended.
    pub async fn flush(&self, patience: Duration) -> bool {
        match &self.serving {
            Some(serving) => serving.flush(patience).await,
            None => true,
        }
    }

    /// Drains and stops: clients are answered, the WAL is uploaded, the metadata log gets its snapshot.
    pub async fn stop(self) -> Result<(), NodeError> {
        if let Some(Serving { broker, .. }) = &self.serving {
            if self.member.is_some() {
                broker.leave().await;
            }
            broker.drain().await;
        }
        if !self.flush(UPLOAD_PATIENCE).await {
            tracing::warn!(
                "stopping with bytes in the WAL that are not uploaded yet; the next start finds them there"
            );
        }
        if let (Some(Serving { broker, .. }), Some(_)) = (&self.serving, &self.member) {
            broker.deregister().await;
        }
        self.end(true).await
    }

    /// Ends a life that is over: nothing is waited for.
    pub async fn abandon(self) -> Result<(), NodeError> {
        if let Some(serving) = &self.serving {
            serving.broker.cut();
        }
        self.end(false).await
    }

    async fn end(self, patient: bool) -> Result<(), NodeError> {
        if let Some(member) = &self.member {
            member.stop_beating();
        }
        if let Some(admin) = &self.admin {
            admin.stop();
        }
        if let Some(verifying) = &self.verifying {
            verifying.abort();
        }
        if let Some(serving) = self.serving {
            serving.stop().await;
        }
        if let Some(archiver) = self.archiver {
            if patient && tokio::time::timeout(ARCHIVE_PATIENCE, archiver.flush()).await.is_err() {
                tracing::warn!(
                    "stopping with entries of the metadata log that are not archived; the next start does it"
                );
            }
            archiver.stop().await;
        }
        if let Some(wal) = &self.wal {
            wal.close().await;
        }
        let stopped = self.quorum.shutdown().await;
        if let Some(member) = self.member {
            member.stop().await;
        }
        Ok(stopped?)
    }
}

/// Why a start failed: what the archive knows of this member says more than that its quorum takes nothing any more.
fn told_by(archiver: &Option<Archiver>, error: NodeError) -> NodeError {
    let lost = archiver.as_ref().and_then(|archiver| archiver.lost().borrow().clone());
    lost.map_or(error, NodeError::Refused)
}

/// Waits for a word. Who ends without one, or is not there, says nothing.
async fn told(word: &mut Option<isobar_host::watch::Receiver<Option<String>>>) -> String {
    if let Some(word) = word {
        loop {
            if let Some(why) = word.borrow_and_update().clone() {
                return why;
            }
            if word.changed().await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Makes sure that the store is this cluster's and that its incarnation is not another's; an answer that it is ends the start, no
/// answer in time does not: a store that is down stops nobody who is known. Writes `node.json` where it is new or says less
/// than is known now.
async fn claim_store(
    host: &Host,
    options: &NodeOptions,
    bucket: &Bucket,
    quorum: &Quorum,
    format: Option<NodeFormat>,
) -> Result<(Option<Task>, ClaimGuard), NodeError> {
    let known = match &format {
        None => Known::Fresh,
        Some(format) if format.store_marked => Known::Marked,
        Some(_) => Known::Unmarked,
    };
    let cluster_id = quorum.cluster().cluster_id.clone();
    let node_id = options.broker.node_id;
    let verified = verify(bucket, &cluster_id, known).await?;
    let (image, _) = quorum.subscribe();
    let seen_before = format.as_ref().and_then(NodeFormat::owner);
    let owner = match seen_before {
        Some(owner) => owner,
        None if options.cluster.is_member() => member::owner(quorum, bucket, &image).await?,
        None => quorum.incarnation(),
    };
    let guard = ClaimGuard::new(bucket.clone(), &cluster_id, image.incarnation(), owner);
    if !verified {
        let (host_then, data, id) = (host.clone(), options.data.clone(), cluster_id.clone());
        let seen = move || {
            if known != Known::Marked
                && let Err(error) = write_format(&host_then, &data, node_id, &id, seen_before)
            {
                tracing::warn!(%error, "the next start will look for the store's marker again");
            }
        };
        return Ok((Some(verify_later(host, bucket.clone(), cluster_id, known, seen)), guard));
    }
    let seen = match tokio::time::timeout(CLAIM_PATIENCE, guard.check(host.now_ms())).await {
        Ok(Ok(())) => Some(owner),
        Ok(Err(ClaimError::Lost(why))) => return Err(NodeError::Refused(why)),
        Ok(Err(ClaimError::Store(error))) => {
            tracing::warn!(%error, "the claim on this cluster's incarnation is not known yet");
            seen_before
        }
        Err(_) => {
            tracing::warn!(
                "the store does not answer: the claim on this cluster's incarnation is not known yet"
            );
            seen_before
        }
    };
    // Not before the claim was seen: whoever leads next claims for itself, if this node ends here (seed 2120 of the cluster).
    if known != Known::Marked || seen != seen_before {
        write_format(host, &options.data, node_id, &cluster_id, seen)?;
    }
    Ok((None, guard))
}

/// How the metadata member of this node is started, but for what a cluster adds.
pub(crate) fn quorum_options(options: &NodeOptions, node_id: u64) -> QuorumOptions {
    let mut quorum = QuorumOptions::new(options.data.join("metadata"), node_id);
    quorum.snapshot_after_bytes = options.snapshot_after_bytes;
    quorum.archive_lag_bytes = options.roles.metadata.then_some(options.archive_lag_bytes);
    if let Some(segment_bytes) = options.segment_bytes {
        quorum.segment_bytes = segment_bytes;
    }
    quorum
}

/// What a new cluster is formatted with: two replicas acknowledge where there are more nodes than one.
pub(crate) fn new_format(cluster_id: String, nodes: usize) -> ClusterFormat {
    let write_quorum = if nodes > 1 { 2 } else { 1 };
    ClusterFormat { write_quorum, ..ClusterFormat::dev(cluster_id, STORE_NAME.to_owned()) }
}

async fn start_alone(host: &Host, options: &NodeOptions, fresh: bool) -> Result<Quorum, NodeError> {
    let node_id = u64::try_from(options.broker.node_id).unwrap_or(1);
    let mut quorum = quorum_options(options, node_id);
    quorum.format = fresh.then(|| new_format(new_cluster_id(host), 1));
    let quorum = Quorum::start(host, quorum).await?;
    raise_level(&quorum).await?;
    Ok(quorum)
}

/// A single voter need not ask whether the others know the level.
async fn raise_level(quorum: &Quorum) -> Result<(), NodeError> {
    if quorum.subscribe().0.feature_level() < FEATURE_LEVEL {
        let command = Command::SetFeatureLevel(SetFeatureLevel { level: FEATURE_LEVEL });
        let raised = quorum.propose(Envelope::unnumbered(command)).await;
        raised.map_err(|error| RaftError::Stopped(format!("the feature level was not raised: {error}")))?;
    }
    Ok(())
}

async fn open_wal(
    host: &Host,
    options: &NodeOptions,
    fresh: bool,
    quorum: &Quorum,
    registry: &mut Registry,
) -> Result<LocalReplica, NodeError> {
    let metrics = WalMetrics::default();
    metrics.register(registry);
    let mut replica = ReplicaOptions {
        format: fresh,
        max_disk_bytes: options.wal_max_disk_bytes,
        max_memory_bytes: options.tail_bytes,
        ..ReplicaOptions::default()
    };
    if let Some(segment_bytes) = options.segment_bytes {
        replica.journal.segment_bytes = segment_bytes;
    }
    let wal = LocalReplica::open(host, &options.data.join("wal"), replica, metrics).await?;
    wal.reconcile(&quorum.subscribe().0);
    Ok(wal)
}

pub(crate) async fn open_bucket(
    host: &Host,
    options: &NodeOptions,
    metrics: &StoreMetrics,
) -> Result<Bucket, NodeError> {
    let settings = BucketOptions::default();
    let metrics = metrics.clone();
    Ok(match &options.store {
        Store::Url(url) => Bucket::open(host, STORE_NAME, url, settings, metrics).await?,
        Store::Inside => {
            Bucket::open_dir(host, STORE_NAME, &options.data.join("bucket"), settings, metrics).await?
        }
        Store::Given(store) => Bucket::new(host, STORE_NAME, "", Arc::clone(store), settings, metrics),
    })
}
