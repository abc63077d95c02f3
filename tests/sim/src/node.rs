//! One life of the node, as its operator sees it from outside.

use std::sync::Arc;
use std::time::Duration;

use isobar_broker::Options;
use isobar_host::Host;
use isobar_node::node::{JobOptions, Node, NodeOptions, Store};
use isobar_raft::archive::ArchiveOptions;
use isobar_store::{
    CompactorOptions, DeleterOptions, IndexerOptions, RetainerOptions, compact_plan, index_plan,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::load::BROKER;
use crate::plan::NodePlan;

/// Where the node keeps what is its own.
const DATA: &str = "/data";

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

/// What driver and life tell each other.
pub(crate) struct Life {
    pub stage: Stage,
    /// Said by the driver: stop in an orderly way.
    pub stop: bool,
    /// Said by the driver: get everything into the store. The life answers with `flushed`.
    pub flush: bool,
    pub flushed: bool,
    /// Requests sent to the store so far.
    pub puts: u64,
    pub gets: u64,
    /// A disk fault was on at some time of this life.
    pub had_disk_faults: bool,
}

impl Life {
    pub(crate) fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            stage: Stage::Starting,
            stop: false,
            flush: false,
            flushed: false,
            puts: 0,
            gets: 0,
            had_disk_faults: false,
        }))
    }
}

/// The node's settings; the store is given unless it lies inside.
pub(crate) fn options(plan: &NodePlan, store: Option<Store>) -> NodeOptions {
    NodeOptions {
        store: store.unwrap_or(Store::Inside),
        broker: Options {
            listen: BROKER.to_owned(),
            auto_create_topics_enable: false,
            chunk_target_bytes: plan.chunk_target_bytes,
            object_target_bytes: plan.chunk_target_bytes,
            object_linger_ms: plan.object_linger_ms,
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
            repeat: Duration::from_secs(5),
        },
        jobs: jobs(),
        ..NodeOptions::new(DATA)
    }
}

/// Background jobs so eager that what takes days elsewhere happens in a simulated minute.
fn jobs() -> JobOptions {
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
        retention: RetainerOptions { interval: Duration::from_secs(1) },
        compaction: CompactorOptions {
            interval: Duration::from_millis(500),
            limits,
            part_runs: 2,
            grant_lifetime: Duration::from_secs(10),
            ..CompactorOptions::default()
        },
        index: IndexerOptions {
            interval: Duration::from_millis(700),
            limits: index,
            grant_lifetime: Duration::from_secs(10),
            ..IndexerOptions::default()
        },
    }
}

/// The main task of the node's machine.
pub(crate) async fn live(host: Host, options: NodeOptions, life: Arc<Mutex<Life>>) {
    let node = match Node::start(&host, options).await {
        Ok(node) => node,
        Err(error) => {
            life.lock().stage = Stage::Failed(error.to_string());
            return;
        }
    };
    life.lock().stage = Stage::Up;
    for turn in 0_u32.. {
        sleep(Duration::from_millis(5)).await;
        let flush = {
            let mut life = life.lock();
            if turn % 20 == 0 {
                life.puts = node.store_requests("put");
                life.gets = node.store_requests("get");
            }
            if let Err(why) = node.health() {
                life.stage = Stage::Unhealthy(why);
            }
            if life.stop {
                break;
            }
            std::mem::take(&mut life.flush)
        };
        if flush {
            let flushed = node.flush(Duration::from_secs(30)).await;
            life.lock().flushed = flushed;
        }
    }
    let stopped = node.stop().await.map_err(|error| error.to_string());
    life.lock().stage = Stage::Stopped(stopped);
}
