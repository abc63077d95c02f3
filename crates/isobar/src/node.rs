//! One process with every role: metadata voter, WAL replica, broker, uploader, admin port.
//!
//! Owns: the data directory.
//!
//! ```text
//! DATA/LOCK        held while a process uses the directory; names its pid
//! DATA/node.json   written once everything below was formatted and the store was found fit and marked as this
//!                  cluster's, before the first client is served
//! DATA/metadata/   Raft log and snapshots
//! DATA/wal/        the WAL replica
//! DATA/bucket/     the store, unless another is named
//! DATA/cache/      blocks of objects; may be deleted while no process runs
//! DATA/RECOVERING  there while `isobar recover` builds the directory
//! ```
//!
//! Invariants:
//! 1. A directory with `node.json` is a known node: nothing below it is ever formatted again. If a part of it is gone,
//!    the node refuses to start (DESIGN.md section 2, invariant 6).
//! 2. A directory with `RECOVERING` is half made by `isobar recover`: it is not started.
//! 3. The incarnation's claim is looked at before the first client is served, if the store answers in time; from then on by
//!    the archiver and the deleter. A node that has lost it takes no more commands, says so in its health, and ends.
//! 4. Start order: lock, quorum, image, WAL (reconciled with the image before effects are followed), store (`open_store.rs`), claim,
//!    archiver, broker, uploader.
//!    Stop order: connections are drained, uploads finish, the log is archived, then the quorum takes a snapshot and stops.
//!
//! Crash cases: killed while formatting, the next start formats what is missing, as no client was served. Killed at any
//! other moment, the next start replays.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isobar_admin::{Admin, AdminError};
use isobar_broker::{Alone, BrokerError, LiveImage, Metrics, Options, Parts, RunningBroker};
use isobar_host::disk::DirLock;
use isobar_host::{Host, Task};
use isobar_metadata::command::{FEATURE_LEVEL, SetFeatureLevel};
use isobar_metadata::{ClusterFormat, Command, Envelope, StoreId};
use isobar_raft::archive::{ArchiveOptions, Archiver, Status};
use isobar_raft::{Quorum, QuorumOptions, RaftError, RaftNetwork};
use isobar_rpc::{Rpc, RpcError};
use isobar_store::fsck::FsckParts;
use isobar_store::{
    BlockCache, Bucket, BucketOptions, ClaimError, ClaimGuard, Class, Deleter, DeleterOptions, DiskCache,
    DiskCacheOptions, IndexReader, MemoryCache, ObjectReader, Proposer, StoreError, StoreMetrics, Uploader,
    UploaderOptions, UploaderParts,
};
use isobar_wal::{LocalReplica, ReplicaOptions, Wal, WalError, WalMetrics};
use object_store::ObjectStore;
use prometheus_client::registry::Registry;

use crate::admin_port::{health, start_admin};
use crate::archive::StoreArchive;
pub use crate::directory::new_cluster_id;
use crate::directory::{NodeFormat, read_format, refuse_half_recovered, write_format};
pub use crate::jobs::JobOptions;
use crate::jobs::Jobs;
pub use crate::member::ClusterOptions;
use crate::member::{self, Member, MemberParts, Writing};
use crate::open_store::{Known, verify, verify_later};
use crate::operations::NodeOperations;

/// The store's number and name in metadata.
pub const STORE: StoreId = StoreId(1);
const STORE_NAME: &str = "local";
/// Disk for blocks of objects, unless something else is said.
const DISK_CACHE_BYTES: u64 = 1 << 30;
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

/// Why a running node must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The cluster goes on elsewhere, or this node's state contradicts another's: a person has to look.
    ForGood(String),
    /// This life is over: start the node again. Its session was fenced, or it has missed too much of the metadata.
    StartAgain(String),
}

/// A running node.
pub struct Node {
    broker: Arc<RunningBroker>,
    quorum: Quorum,
    wal: LocalReplica,
    /// `None`: it is alone.
    member: Option<Member>,
    uploader: Arc<OnceLock<Uploader>>,
    deleter: Deleter,
    archiver: Archiver,
    jobs: Jobs,
    admin: Option<Admin>,
    disk_cache: Option<DiskCache>,
    store_metrics: StoreMetrics,
    fsck: FsckParts,
    /// Looks at a store that did not answer at the start.
    verifying: Option<Task>,
    _lock: DirLock,
}

impl Node {
    /// Starts every role and returns once clients are served.
    pub async fn start(host: &Host, options: NodeOptions) -> Result<Self, NodeError> {
        let disk = host.disk();
        let data_error = |source| NodeError::Data { path: options.data.clone(), source };
        disk.create_dir_all(&options.data).map_err(data_error)?;
        let lock = disk.lock(&options.data).map_err(data_error)?;
        refuse_half_recovered(host, &options.data)?;
        let known = read_format(host, &options)?;
        let mut registry = Registry::default();

        let rpc = match options.cluster.is_member() {
            true => Some(member::start_rpc(host, &options, &mut registry).await?),
            false => None,
        };
        let quorum = start_quorum(host, &options, known.is_none(), rpc.as_ref()).await?;
        match &rpc {
            Some(_) => member::wait_for_quorum(&quorum).await?,
            None => raise_level(&quorum).await?,
        }
        quorum.metrics().register(&mut registry);
        let wal = open_wal(host, &options, known.is_none(), &quorum, &mut registry).await?;
        let store_metrics = StoreMetrics::default();
        store_metrics.register(&mut registry);
        let bucket = open_bucket(host, &options, &store_metrics).await?;
        if rpc.is_some() && known.is_none() {
            member::wait_for_marker(&quorum, &bucket).await?;
        }
        let verifying = verify_bucket(host, &options, &bucket, &quorum, known.as_ref()).await?;
        let guard = claim(host, &options, &quorum, &bucket, verifying.is_none()).await?;
        let archive = StoreArchive { host: host.clone(), bucket: bucket.clone(), guard: Some(guard.clone()) };
        let archiver = quorum.archive(Arc::new(archive), options.archive.clone());
        let memory = MemoryCache::new(host, options.cache_bytes, store_metrics.clone());
        let disk_cache = start_disk_cache(host, &options, &memory, &quorum.cluster().cluster_id, &bucket);
        let cache: Arc<dyn BlockCache> = match &disk_cache {
            Some(cache) => Arc::new(cache.clone()),
            None => Arc::new(memory),
        };

        let objects = ObjectReader::new(bucket.clone(), cache);
        let index = IndexReader::new(objects.clone());

        let metrics = Arc::new(Metrics::default());
        metrics.register(&mut registry);
        // The store may have taken long, so that effects since the WAL was opened are in the ring no more.
        let (image, effects) = quorum.subscribe();
        wal.reconcile(&image);
        let live = Arc::new(LiveImage::new(image, Arc::clone(&metrics)));
        let (member, writing) = match rpc {
            Some(rpc) => {
                let parts = MemberParts {
                    rpc,
                    quorum: quorum.clone(),
                    local: wal.clone(),
                    effects: effects.fork(),
                    image: Arc::clone(&live),
                };
                let (member, writing) = Member::start(host, &options, parts, &mut registry);
                (Some(member), writing)
            }
            None => {
                let ensembles = Arc::new(Alone(wal.directory()));
                (None, Writing { wal: Arc::new(wal.clone()), ensembles })
            }
        };
        let uploader: Arc<OnceLock<Uploader>> = Arc::default();
        let nudged = Arc::clone(&uploader);
        let parts = Parts {
            quorum: quorum.clone(),
            image: Arc::clone(&live),
            wal: Arc::clone(&writing.wal),
            directory: wal.directory(),
            ensembles: writing.ensembles,
            objects,
            home_store: STORE,
            metrics,
            on_appended: Arc::new(move |bytes| {
                if let Some(uploader) = nudged.get() {
                    uploader.nudge(bytes);
                }
            }),
            on_registered: member
                .as_ref()
                .map_or_else(|| Box::new(|_| ()) as _, |member| member.keeper(host)),
        };
        let broker = RunningBroker::start(host, options.broker.clone(), parts, effects).await?;
        let broker = Arc::new(broker);
        let proposer: Arc<dyn Proposer> = Arc::new(broker.proposer());
        let _ =
            uploader.set(start_uploader(host, &options, writing.wal, bucket.clone(), Arc::clone(&proposer)));
        let retention_interval = Duration::from_millis(options.broker.log_retention_check_interval_ms);
        let jobs =
            Jobs::start(host, STORE, &bucket, &proposer, index.clone(), retention_interval, &options.jobs);
        let deleter =
            Deleter::start(host, bucket.clone(), Some(guard), Arc::clone(&proposer), options.deleter.clone());
        let fsck = FsckParts { host: host.clone(), bucket, proposer, index };
        let operations = Arc::new(NodeOperations {
            host: host.clone(),
            fsck: fsck.clone(),
            store: STORE,
            quorum: quorum.clone(),
        });
        let admin = start_admin(host, &options, registry, &broker, &archiver, operations).await?;
        Ok(Self {
            broker,
            quorum,
            wal,
            member,
            uploader,
            deleter,
            archiver,
            jobs,
            admin,
            disk_cache,
            store_metrics,
            fsck,
            verifying,
            _lock: lock,
        })
    }

    /// Where Kafka clients connect.
    pub fn local_addr(&self) -> std::net::SocketAddr {
        self.broker.local_addr()
    }

    /// Where the admin port listens, if there is one.
    pub fn admin_addr(&self) -> Option<std::net::SocketAddr> {
        self.admin.as_ref().map(Admin::local_addr)
    }

    /// `Err(reason)` when the node can no longer serve.
    pub fn health(&self) -> Result<(), String> {
        health(&self.broker, &self.archiver.lost())
    }

    /// Returns when this node must end; says why, and what to do.
    pub async fn lost(&self) -> Ending {
        let mut lost = self.archiver.lost();
        let mut diverged = self.quorum.diverged();
        let mut broker_over = self.broker.over();
        let mut member_over = self.member.as_ref().map(Member::over);
        let member = async {
            match &mut member_over {
                Some(over) => told(over).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            why = told(&mut lost) => Ending::ForGood(why),
            why = told(&mut diverged) => Ending::ForGood(why),
            why = told(&mut broker_over) => Ending::StartAgain(why),
            why = member => Ending::StartAgain(why),
        }
    }

    /// The node's part of the metadata quorum, for whoever holds this node in its own process.
    pub fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    /// How far the metadata log is archived.
    pub fn archived(&self) -> Status {
        self.archiver.status()
    }

    /// The metadata state machine's clock, which moves with its entries; wall-clock milliseconds.
    pub fn metadata_time_ms(&self) -> i64 {
        self.broker.metadata_time_ms()
    }

    /// What [`isobar_store::fsck::fsck`] works with, for whoever holds this node in its own process; its store is
    /// [`STORE`].
    pub fn fsck_parts(&self) -> FsckParts {
        self.fsck.clone()
    }

    /// Requests sent to the store so far, by operation.
    pub fn store_requests(&self, operation: &'static str) -> u64 {
        self.store_metrics.requests_of(STORE_NAME, operation)
    }

    /// Waits until all that was acknowledged lies in the store, or `patience` has ended.
    pub async fn flush(&self, patience: Duration) -> bool {
        match self.uploader.get() {
            Some(uploader) => tokio::time::timeout(patience, uploader.drain()).await.is_ok(),
            None => false,
        }
    }

    /// Drains and stops: clients are answered, the WAL is uploaded, the metadata log gets its snapshot.
    pub async fn stop(self) -> Result<(), NodeError> {
        if self.member.is_some() {
            self.broker.leave().await;
        }
        self.broker.drain().await;
        if !self.flush(UPLOAD_PATIENCE).await {
            tracing::warn!(
                "stopping with bytes in the WAL that are not uploaded yet; the next start finds them there"
            );
        }
        if self.member.is_some() {
            self.broker.deregister().await;
        }
        self.end(true).await
    }

    /// Ends a life that is over: nothing is waited for.
    pub async fn abandon(self) -> Result<(), NodeError> {
        self.broker.cut();
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
        self.jobs.stop().await;
        self.deleter.stop().await;
        if patient && tokio::time::timeout(ARCHIVE_PATIENCE, self.archiver.flush()).await.is_err() {
            tracing::warn!(
                "stopping with entries of the metadata log that are not archived; the next start does it"
            );
        }
        self.archiver.stop().await;
        self.broker.stop();
        if let Some(cache) = &self.disk_cache {
            cache.close().await;
        }
        self.wal.close().await;
        let stopped = self.quorum.shutdown().await;
        if let Some(member) = self.member {
            member.stop().await;
        }
        Ok(stopped?)
    }
}

/// Waits for a word. Who ends without one says nothing.
async fn told(word: &mut isobar_host::watch::Receiver<Option<String>>) -> String {
    loop {
        if let Some(why) = word.borrow_and_update().clone() {
            return why;
        }
        if word.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// The guard of this node's incarnation. An answer that another has it ends the start; no answer in time does not: a store
/// that is down stops nobody, and one that has just been silent is not asked again.
async fn claim(
    host: &Host,
    options: &NodeOptions,
    quorum: &Quorum,
    bucket: &Bucket,
    store_answers: bool,
) -> Result<ClaimGuard, NodeError> {
    let (image, _) = quorum.subscribe();
    let cluster_id = &quorum.cluster().cluster_id;
    // The first incarnation of a cluster is that of all who were formatted under its id.
    let owner = match options.cluster.is_member() && image.incarnation() == 0 {
        true => std::array::from_fn(|i| cluster_id.as_bytes().get(i).copied().unwrap_or(0)),
        false => quorum.incarnation(),
    };
    let guard = ClaimGuard::new(bucket.clone(), cluster_id, image.incarnation(), owner);
    if !store_answers {
        return Ok(guard);
    }
    match tokio::time::timeout(CLAIM_PATIENCE, guard.check(host.now_ms())).await {
        Ok(Err(ClaimError::Lost(why))) => return Err(NodeError::Refused(why)),
        Ok(Err(ClaimError::Store(error))) => {
            tracing::warn!(%error, "the claim on this cluster's incarnation is not known yet");
        }
        Err(_) => tracing::warn!(
            "the store does not answer: the claim on this cluster's incarnation is not known yet"
        ),
        Ok(Ok(())) => {}
    }
    Ok(guard)
}

async fn start_quorum(
    host: &Host,
    options: &NodeOptions,
    fresh: bool,
    rpc: Option<&Rpc>,
) -> Result<Quorum, NodeError> {
    let node_id = u64::try_from(options.broker.node_id).unwrap_or(1);
    let mut quorum = QuorumOptions::new(options.data.join("metadata"), node_id);
    quorum.snapshot_after_bytes = options.snapshot_after_bytes;
    quorum.archive_lag_bytes = Some(options.archive_lag_bytes);
    if let Some(segment_bytes) = options.segment_bytes {
        quorum.segment_bytes = segment_bytes;
    }
    let cluster = &options.cluster;
    if let Some(rpc) = rpc {
        quorum.address = cluster.address_of(node_id).unwrap_or_default().to_owned();
        quorum.network = Some(RaftNetwork::new(rpc.clone()));
        quorum.initial_voters.clone_from(&cluster.voters);
    }
    if fresh {
        let id = if rpc.is_some() { cluster.id.clone() } else { new_cluster_id(host) };
        // Two replicas acknowledge where there are more nodes than one.
        let write_quorum = if cluster.voters.len() > 1 { 2 } else { 1 };
        quorum.format = Some(ClusterFormat { write_quorum, ..ClusterFormat::dev(id, STORE_NAME.to_owned()) });
    }
    Ok(Quorum::start(host, quorum).await?)
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

/// A disk below the block cache. foyer has threads of its own, so there is none in the simulation.
fn start_disk_cache(
    host: &Host,
    options: &NodeOptions,
    memory: &MemoryCache,
    cluster_id: &str,
    bucket: &Bucket,
) -> Option<DiskCache> {
    let room = || host.free_disk_bytes(&options.data).is_ok_and(|free| free >= 4 * DISK_CACHE_BYTES);
    let max_bytes = match options.disk_cache_bytes {
        Some(bytes) => bytes,
        None if bucket.directory().is_none() && room() => DISK_CACHE_BYTES,
        None => 0,
    };
    if max_bytes == 0 || host.is_simulated() {
        return None;
    }
    let settings = DiskCacheOptions::new(options.data.join("cache"), max_bytes);
    Some(DiskCache::start(host, memory.clone(), cluster_id, settings, bucket.metrics().clone()))
}

/// Writes `node.json` where it is new or says less than is known now.
async fn verify_bucket(
    host: &Host,
    options: &NodeOptions,
    bucket: &Bucket,
    quorum: &Quorum,
    format: Option<&NodeFormat>,
) -> Result<Option<Task>, NodeError> {
    let known = match format {
        None => Known::Fresh,
        Some(format) if format.store_marked => Known::Marked,
        Some(_) => Known::Unmarked,
    };
    let cluster_id = quorum.cluster().cluster_id.clone();
    let verified = verify(bucket, &cluster_id, known).await?;
    if verified && known != Known::Marked {
        write_format(host, &options.data, options.broker.node_id, &cluster_id, true)?;
    }
    if verified {
        return Ok(None);
    }
    let (host_then, data, id) = (host.clone(), options.data.clone(), cluster_id.clone());
    let node_id = options.broker.node_id;
    let seen = move || {
        if known != Known::Marked
            && let Err(error) = write_format(&host_then, &data, node_id, &id, true)
        {
            tracing::warn!(%error, "the next start will look for the store's marker again");
        }
    };
    Ok(Some(verify_later(host, bucket.clone(), cluster_id, known, seen)))
}

fn start_uploader(
    host: &Host,
    options: &NodeOptions,
    wal: Arc<dyn Wal>,
    bucket: Bucket,
    proposer: Arc<dyn Proposer>,
) -> Uploader {
    let bucket = bucket.with_class(Class::Upload);
    let parts = UploaderParts { host: host.clone(), wal, bucket, proposer };
    let settings = UploaderOptions {
        store: STORE,
        interval: options.upload_interval,
        trigger_bytes: options.upload_trigger_bytes,
        grant_lifetime: options.upload_deadline,
        ..UploaderOptions::default()
    };
    Uploader::start(parts, settings)
}
