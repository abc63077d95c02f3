//! The role broker: serves Kafka's clients, uploads, and takes its part in the jobs of the store.
//!
//! Owns: `cache/` in the data directory, and every task that needs the broker's session.
//!
//! Order: the broker is registered and serves before anything is uploaded, compacted or deleted in its name; at a stop the jobs
//! end before the session does.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use isobar_broker::{Doubts, Ensembles, LiveImage, Metrics, Parts, RunningBroker};
use isobar_host::Host;
use isobar_metadata::record::SessionRecord;
use isobar_metadata::{DirectoryId, SessionId, StoreId};
use isobar_raft::{EffectStream, Quorum};
use isobar_rpc::Rpc;
use isobar_store::fsck::FsckParts;
use isobar_store::{
    BlockCache, Bucket, ClaimGuard, Class, Deleter, DiskCache, DiskCacheOptions, IndexReader, MemoryCache,
    Neighbours, ObjectReader, Proposer, StoreMetrics, Uploader, UploaderOptions, UploaderParts, Zone,
};
use isobar_wal::Wal;
use prometheus_client::registry::Registry;

use crate::jobs::Jobs;
use crate::node::{NodeError, NodeOptions, STORE};

/// Disk for blocks of objects, unless something else is said.
const DISK_CACHE_BYTES: u64 = 1 << 30;

/// What a broker writes to.
pub(crate) struct Writing {
    pub(crate) wal: Arc<dyn Wal>,
    pub(crate) ensembles: Arc<dyn Ensembles>,
}

/// What the role stands on.
pub(crate) struct ServingParts {
    pub(crate) quorum: Quorum,
    pub(crate) image: Arc<LiveImage>,
    pub(crate) metrics: Arc<Metrics>,
    /// Those after the image.
    pub(crate) effects: EffectStream,
    pub(crate) writing: Writing,
    pub(crate) directory: Option<DirectoryId>,
    pub(crate) bucket: Bucket,
    pub(crate) store_metrics: StoreMetrics,
    pub(crate) guard: ClaimGuard,
    pub(crate) doubts: Arc<Doubts>,
    /// Of a node of a cluster.
    pub(crate) rpc: Option<Rpc>,
    pub(crate) on_registered: Box<dyn Fn(SessionId) + Send + Sync>,
}

/// See the module.
pub(crate) struct Serving {
    pub(crate) broker: Arc<RunningBroker>,
    uploader: Arc<OnceLock<Uploader>>,
    deleter: Deleter,
    jobs: Jobs,
    disk_cache: Option<DiskCache>,
    pub(crate) fsck: FsckParts,
}

impl Serving {
    pub(crate) async fn start(
        host: &Host,
        options: &NodeOptions,
        parts: ServingParts,
        registry: &mut Registry,
    ) -> Result<Self, NodeError> {
        let ServingParts { quorum, image, metrics, bucket, store_metrics, writing, .. } = parts;
        metrics.register(registry);
        let memory = MemoryCache::new(host, options.cache_bytes, store_metrics.clone());
        let disk_cache = start_disk_cache(host, options, &memory, &quorum.cluster().cluster_id, &bucket);
        let cache: Arc<dyn BlockCache> = match &disk_cache {
            Some(cache) => Arc::new(cache.clone()),
            None => Arc::new(memory),
        };
        let mut objects = ObjectReader::new(bucket.clone(), cache);
        let has_zone = options.broker.rack.as_ref().is_some_and(|rack| !rack.is_empty());
        if let Some(rpc) = parts.rpc.filter(|_| has_zone) {
            let neighbours = ZoneBrokers { image: Arc::clone(&image), me: rpc.node_id() };
            objects = objects.in_zone(host, &Zone::new(rpc, Arc::new(neighbours), store_metrics));
        }
        let own_address = u64::try_from(options.broker.node_id).ok();
        let own_address = own_address.and_then(|id| options.cluster.own_address(id));
        let index = IndexReader::new(objects.clone());
        let uploader: Arc<OnceLock<Uploader>> = Arc::default();
        let nudged = Arc::clone(&uploader);
        let broker = Parts {
            quorum,
            image,
            wal: Arc::clone(&writing.wal),
            directory: parts.directory,
            ensembles: writing.ensembles,
            objects,
            home_store: STORE,
            rpc_address: own_address.unwrap_or_default().to_owned(),
            metrics,
            doubts: parts.doubts,
            on_appended: Arc::new(move |bytes| {
                if let Some(uploader) = nudged.get() {
                    uploader.nudge(bytes);
                }
            }),
            on_registered: parts.on_registered,
        };
        let broker = RunningBroker::start(host, options.broker.clone(), broker, parts.effects).await?;
        let broker = Arc::new(broker);
        let proposer: Arc<dyn Proposer> = Arc::new(broker.proposer());
        let started = start_uploader(host, options, writing.wal, bucket.clone(), Arc::clone(&proposer));
        // Set once, here.
        let _ = uploader.set(started);
        let retention_interval = Duration::from_millis(options.broker.log_retention_check_interval_ms);
        let jobs =
            Jobs::start(host, STORE, &bucket, &proposer, index.clone(), retention_interval, &options.jobs);
        let (guard, deleting) = (Some(parts.guard), options.deleter.clone());
        let deleter = Deleter::start(host, bucket.clone(), guard, Arc::clone(&proposer), deleting);
        let fsck = FsckParts { host: host.clone(), bucket, proposer, index };
        Ok(Self { broker, uploader, deleter, jobs, disk_cache, fsck })
    }

    /// Waits until all that was acknowledged lies in the store, or `patience` has ended.
    pub(crate) async fn flush(&self, patience: Duration) -> bool {
        match self.uploader.get() {
            Some(uploader) => tokio::time::timeout(patience, uploader.drain()).await.is_ok(),
            None => false,
        }
    }

    pub(crate) async fn stop(self) {
        self.jobs.stop().await;
        self.deleter.stop().await;
        self.broker.stop();
        if let Some(cache) = &self.disk_cache {
            cache.close().await;
        }
    }
}

/// Those that share blocks of objects with this broker: of its zone, and of its bucket. A zone may have a namesake in another cloud.
struct ZoneBrokers {
    image: Arc<LiveImage>,
    me: i32,
}

impl Neighbours for ZoneBrokers {
    fn others(&self) -> Vec<(i32, String)> {
        fn place(session: &SessionRecord) -> (&str, &str, &str, StoreId) {
            (&session.cloud, &session.region, &session.zone, session.home_store)
        }
        self.image.with(|image| {
            let Some(own) = image.broker(self.me) else { return Vec::new() };
            let is_near = |session: &&Arc<SessionRecord>| {
                place(session) == place(own)
                    && session.node_id != self.me
                    && session.is_live()
                    && !session.rpc.is_empty()
            };
            let near = image.brokers().into_iter().filter(is_near);
            near.map(|session| (session.node_id, session.rpc.clone())).collect()
        })
    }
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
