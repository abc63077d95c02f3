//! One life of the node, as its operator sees it from outside.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use isobar_broker::Options;
use isobar_host::Host;
use isobar_host::disk::Disk as _;
use isobar_host::sim::SimDisk;
use isobar_metadata::command::UndeleteTopic;
use isobar_metadata::record::SessionState;
use isobar_metadata::{Command, CommandResult, Image, TopicId};
use isobar_node::node::{ClusterOptions, Ending, JobOptions, Node, NodeOptions, Roles, STORE, Store};
use isobar_node::{RecoverOptions, Recovered, recover};
use isobar_raft::archive::{ArchiveOptions, Status};
use isobar_store::fsck::{Finding, FsckOptions, Line, Summary, fsck};
use isobar_store::{CompactorOptions, DeleterOptions, IndexerOptions, compact_plan, index_plan};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::plan::{MEMBERS, NodePlan, Plan};

/// Where the node keeps what is its own.
pub(crate) const DATA: &str = "/data";
/// The cluster's secret, on each node's disk.
const SECRET: &str = "/etc/cluster.secret";
const CLUSTER_ID: &str = "c2ltdWxhdGVkIGNsdXN0ZQ";
/// Between two lives in one process, as `isobar serve` waits.
const BETWEEN_LIVES: Duration = Duration::from_millis(500);
/// How often a node's task looks at what the driver wants.
const LOOK: Duration = Duration::from_millis(5);

/// How far a life has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Starting,
    Up,
    /// It did not start.
    Failed(String),
    /// It runs, and says that it cannot serve any more.
    Unhealthy(String),
    /// It was told to stop and did, with this result.
    Stopped(Result<(), String>),
}

/// What the driver wants of a node that runs.
#[derive(Debug, Clone)]
pub(crate) enum Wish {
    Image,
    Fsck { repair: bool },
    Undelete(TopicId),
}

/// What a node knows of itself.
pub(crate) struct Looked {
    pub image: Image,
    pub archived: Status,
    /// Of fsck.
    pub findings: Vec<Finding>,
    pub summary: Summary,
}

/// Where a member of a cluster stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub leads: bool,
    pub term: u64,
    /// The last entry applied, and the state's hash there; an observer has no state.
    pub index: u64,
    pub hash: Option<u64>,
    /// Brokers that it knows to be live.
    pub brokers_live: usize,
}

/// What driver and life tell each other.
pub(crate) struct Life {
    pub stage: Stage,
    /// Said by the driver: stop in an orderly way.
    pub stop: bool,
    /// Said by the driver: get everything into the store. The life answers with `flushed`.
    pub flush: bool,
    pub flushed: bool,
    /// Said by the driver: look at yourself. The life answers in `looked`.
    pub wish: Option<Wish>,
    pub looked: Option<Result<Looked, String>>,
    /// What a recovery made.
    pub recovered: Option<Recovered>,
    /// Requests sent to the store so far.
    pub puts: u64,
    pub gets: u64,
    /// Blocks from other brokers of the zone.
    pub zone_blocks: u64,
    /// A disk fault was on at some time of this life.
    pub had_disk_faults: bool,
    /// It did not start because the others had given it up by then.
    pub was_fenced: bool,
    /// In a cluster, every few milliseconds.
    pub place: Option<Place>,
    /// In a cluster, now and then.
    pub image: Option<Image>,
    /// How often the node ended of itself and was started again by its process.
    pub lives_over: u64,
}

impl Life {
    pub(crate) fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            stage: Stage::Starting,
            stop: false,
            flush: false,
            flushed: false,
            wish: None,
            looked: None,
            recovered: None,
            puts: 0,
            gets: 0,
            zone_blocks: 0,
            had_disk_faults: false,
            was_fenced: false,
            place: None,
            image: None,
            lives_over: 0,
        }))
    }
}

/// What an operator puts on a new node's disk.
pub(crate) fn install(disk: &SimDisk) -> io::Result<()> {
    disk.create_dir_all("/etc".as_ref())?;
    disk.write_durable(SECRET.as_ref(), b"a secret of the simulation's own")
}

/// The settings of one of the nodes; the store is given unless it lies inside.
pub(crate) fn options(plan: &Plan, at: usize, store: Option<Store>) -> NodeOptions {
    let mut options = NodeOptions { store: store.unwrap_or(Store::Inside), ..common(&plan.node) };
    options.broker.listen = Plan::broker(at);
    if let Some(cluster) = &plan.cluster {
        let is_near = at >= MEMBERS && cluster.observer_is_near;
        options.broker.node_id = Plan::node_id(at);
        options.broker.rack = Some(Plan::zone(if is_near { 0 } else { at }));
        let voter = |at| (Plan::node_id(at).unsigned_abs().into(), format!("10.0.0.{}:7001", at + 1));
        options.cluster = ClusterOptions {
            id: CLUSTER_ID.to_owned(),
            secret_file: SECRET.into(),
            voters: (0..MEMBERS).map(voter).collect(),
            listen: (at >= MEMBERS).then(|| voter(at).1),
        };
        if at >= MEMBERS {
            options.roles = Roles { broker: true, wal: false, metadata: false };
        }
    }
    options
}

fn common(plan: &NodePlan) -> NodeOptions {
    NodeOptions {
        broker: Options {
            auto_create_topics_enable: false,
            chunk_target_bytes: plan.chunk_target_bytes,
            object_target_bytes: plan.chunk_target_bytes,
            object_linger_ms: plan.object_linger_ms,
            log_retention_check_interval_ms: 1_000,
            ..Options::default()
        },
        upload_interval: plan.upload_interval,
        upload_trigger_bytes: plan.upload_trigger_bytes,
        segment_bytes: Some(plan.segment_bytes),
        tail_bytes: plan.tail_bytes,
        cache_bytes: plan.cache_bytes,
        snapshot_after_bytes: plan.snapshot_after_bytes,
        archive: ArchiveOptions {
            interval: plan.upload_interval.min(Duration::from_millis(300)),
            grace: Duration::from_secs(2),
            log_object_bytes: 64 << 10,
            part_bytes: 16 << 10,
            ..ArchiveOptions::default()
        },
        archive_lag_bytes: plan.archive_lag_bytes,
        deleter: DeleterOptions {
            interval: Duration::from_millis(500),
            grace: plan.delete_after,
            repeat: Duration::from_secs(60),
        },
        jobs: jobs(plan.grant_lifetime),
        ..NodeOptions::new(DATA)
    }
}

/// Background jobs so eager that what takes days elsewhere happens in a simulated minute.
fn jobs(grant_lifetime: Duration) -> JobOptions {
    let limits = compact_plan::Limits {
        merge_bytes: 256 << 10,
        merge_objects: 6,
        single_min_bytes: 256 << 10,
        single_max_bytes: 1 << 20,
        run_bytes: 32 << 10,
        dead_slack_bytes: 128 << 10,
        ..compact_plan::Limits::default()
    };
    let index = index_plan::Limits {
        list_extents: 8,
        keep_extents: 2,
        block_extents: 4,
        settle_ms: 2_000,
        settled_bytes: 1,
        blocks: 100,
    };
    JobOptions {
        compaction: CompactorOptions {
            interval: Duration::from_millis(500),
            limits,
            part_runs: 2,
            grant_lifetime,
            ..CompactorOptions::default()
        },
        index: IndexerOptions {
            interval: Duration::from_millis(700),
            limits: index,
            grant_lifetime,
            ..IndexerOptions::default()
        },
    }
}

/// Why a node's task lets go of it.
enum Let {
    Stop,
    Ended(Ending),
}

/// The main task of a node's machine: what `isobar serve` does.
pub(crate) async fn live(host: Host, options: NodeOptions, life: Arc<Mutex<Life>>) {
    loop {
        let node = match Node::start(&host, options.clone()).await {
            Ok(node) => node,
            Err(error) => {
                let mut life = life.lock();
                life.was_fenced = error.is_fenced();
                life.stage = Stage::Failed(error.to_string());
                return;
            }
        };
        life.lock().stage = Stage::Up;
        match serve(&node, &life, options.cluster.is_member()).await {
            Let::Stop => {
                let stopped = node.stop().await.map_err(|error| error.to_string());
                life.lock().stage = Stage::Stopped(stopped);
                return;
            }
            Let::Ended(Ending::ForGood(why)) => {
                life.lock().stage = Stage::Unhealthy(why);
                return std::future::pending().await;
            }
            Let::Ended(Ending::StartAgain(why)) => {
                tracing::warn!(why, "this life of the node is over: it starts again");
                {
                    let mut life = life.lock();
                    (life.stage, life.place) = (Stage::Starting, None);
                    life.lives_over += 1;
                }
                if let Err(error) = node.abandon().await {
                    life.lock().stage = Stage::Stopped(Err(error.to_string()));
                    return;
                }
                sleep(BETWEEN_LIVES).await;
            }
        }
    }
}

/// Until the driver wants a stop, or the node ends of itself.
async fn serve(node: &Node, life: &Mutex<Life>, is_member: bool) -> Let {
    for turn in 0_u32.. {
        tokio::select! {
            biased;
            ending = node.lost() => return Let::Ended(ending),
            () = sleep(LOOK) => {}
        }
        let (flush, wish) = {
            let mut life = life.lock();
            if turn % 20 == 0 {
                life.puts = node.store_requests("put");
                life.gets = node.store_requests("get");
                life.zone_blocks = node.zone_blocks();
            }
            if is_member {
                see(node, &mut life, turn % 20 == 0);
            }
            if let Err(why) = node.health() {
                life.stage = Stage::Unhealthy(why);
            }
            if life.stop {
                break;
            }
            (std::mem::take(&mut life.flush), life.wish.take())
        };
        if flush {
            let flushed = node.flush(Duration::from_secs(30)).await;
            life.lock().flushed = flushed;
        }
        if let Some(wish) = wish {
            let looked = look(node, wish).await;
            life.lock().looked = Some(looked);
        }
    }
    Let::Stop
}

/// Where a member stands, for the driver.
fn see(node: &Node, life: &mut Life, with_image: bool) {
    let quorum = node.quorum();
    let Some(image) = node.fsck_parts().map(|parts| parts.proposer.image()) else { return };
    let ((index, hash), term) = (quorum.position(), quorum.leader().borrow().term);
    let hash = (!quorum.is_observer()).then_some(hash);
    let brokers_live =
        image.brokers().iter().filter(|session| session.state == SessionState::Live as i32).count();
    life.place = Some(Place { leads: quorum.is_leader(), term, index, hash, brokers_live });
    if with_image {
        life.image = Some(image);
    }
}

async fn look(node: &Node, wish: Wish) -> Result<Looked, String> {
    let parts = node.fsck_parts().ok_or("it is no broker")?;
    let mut findings = Vec::new();
    let mut summary = Summary::default();
    match wish {
        Wish::Image => {}
        Wish::Undelete(topic_id) => {
            let command = Command::UndeleteTopic(UndeleteTopic { topic_id, name: String::new() });
            match parts.proposer.propose(command).await.map_err(|error| error.to_string())? {
                CommandResult::Topics(results)
                    if results.topics.iter().all(|topic| topic.error_code == 0) => {}
                other => return Err(format!("not undeleted: {other:?}")),
            }
        }
        Wish::Fsck { repair } => {
            let (tell, mut told) = mpsc::channel(16);
            let options = FsckOptions { store: STORE, deep: true, repair };
            let gather = async {
                while let Some(line) = told.recv().await {
                    if let Line::Finding(finding) = line {
                        findings.push(finding);
                    }
                }
            };
            let (done, ()) = tokio::join!(fsck(&parts, options, tell), gather);
            summary = done.map_err(|error| error.to_string())?;
        }
    }
    parts.proposer.barrier().await.map_err(|error| error.to_string())?;
    let archived = node.archived().ok_or("it has no metadata")?;
    Ok(Looked { image: parts.proposer.image(), archived, findings, summary })
}

/// The main task of a machine on which `isobar recover` runs.
pub(crate) async fn recover_there(host: Host, options: RecoverOptions, life: Arc<Mutex<Life>>) {
    let done = recover(&host, &options).await;
    let mut life = life.lock();
    match done {
        Ok(made) => {
            life.recovered = Some(made);
            life.stage = Stage::Stopped(Ok(()));
        }
        Err(error) => life.stage = Stage::Failed(error.to_string()),
    }
}

/// What `isobar recover` is asked.
pub(crate) fn recover_options(plan: &NodePlan, store: Option<Store>) -> RecoverOptions {
    RecoverOptions {
        segment_bytes: Some(plan.segment_bytes),
        ..RecoverOptions::new(DATA, store.unwrap_or(Store::Inside))
    }
}
