//! Seeds in which replicas die, lose power, are cut off and come back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::disk::Operation;
use isobar_host::sim::{SimDisk, SimRng, World};
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_rpc::{Rpc, ServiceId};
use isobar_wal::conformance::{batch, chunk, key};
use isobar_wal::{
    LocalReplica, QuorumOptions, QuorumWal, RemoteOptions, ReplicaOptions, Wal, WalError, WalMetrics,
    WalService,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::rig::*;

/// What the writer was told is durable, by stream with its ensemble.
#[derive(Default)]
struct Truth {
    streams: BTreeMap<StreamId, Vec<DirectoryId>>,
    acked: BTreeMap<(StreamId, u64), Vec<Bytes>>,
    closed: u64,
    reads: u64,
    wrong: Vec<String>,
}

#[derive(Default)]
struct Rig {
    truth: Mutex<Truth>,
    /// By node.
    directories: Mutex<BTreeMap<i32, DirectoryId>>,
    gates: Mutex<BTreeMap<i32, Arc<Gated>>>,
}

const NODES: [i32; 3] = [1, 2, 3];

fn name(node_id: i32) -> String {
    format!("node{node_id}")
}

async fn replica_node(host: Host, rig: Arc<Rig>, node_id: i32, max_disk_bytes: u64) {
    let options = ReplicaOptions { max_disk_bytes, ..replica_options() };
    let replica = loop {
        let options = options.clone();
        match LocalReplica::open(&host, Path::new("wal"), options, WalMetrics::default()).await {
            Ok(replica) => break replica,
            // Its disk has failed, and comes round.
            Err(WalError::Io(_)) => sleep(Duration::from_millis(20)).await,
            Err(error) => return rig.truth.lock().wrong.push(format!("node {node_id}: {error}")),
        }
    };
    rig.directories.lock().insert(node_id, replica.directory());
    let Ok(rpc) = Rpc::start(&host, rpc_options(node_id)).await else { return };
    rpc.register(ServiceId::WAL, Arc::new(WalService::new(&host, replica)));
    std::future::pending::<()>().await;
}

fn chaos_options() -> QuorumOptions {
    let limits = isobar_wal::Limits { lag_ms: 300, answer_ms: 600, ..isobar_wal::Limits::default() };
    let remote = RemoteOptions {
        append_timeout: Duration::from_secs(2),
        read_timeout: Duration::from_secs(1),
        ..RemoteOptions::default()
    };
    QuorumOptions { limits, remote, suspect: Duration::from_millis(500), ..quorum_options() }
}

/// The way to the replicas that are known by now.
fn ways(rpc: &Rpc, rig: &Rig, map: &Map) {
    for (&node_id, &directory) in &*rig.directories.lock() {
        if map.0.lock().contains_key(&directory) {
            continue;
        }
        let inner = remote(rpc, node_id, directory);
        let gated = Arc::new(Gated { inner, gate: SharedGate::default() });
        rig.gates.lock().insert(node_id, Arc::clone(&gated));
        map.add(directory, gated);
    }
}

/// Appends without end, several chunks at a time, and goes on with another stream when one breaks.
async fn writer(host: Host, rig: Arc<Rig>, life: u64) {
    let Ok(rpc) = Rpc::start(&host, rpc_options(9)).await else { return };
    let map = Map::default();
    let wal = map.wal(&host, chaos_options());
    let reader = (wal.clone(), Arc::clone(&rig), host.clone());
    host.spawn("reader", async move { read_on(reader.0, reader.1, reader.2).await });
    let mut stream = StreamId(life * 1000);
    loop {
        ways(&rpc, &rig, &map);
        let ids: Vec<DirectoryId> = rig.directories.lock().values().copied().collect();
        let Ok(ensemble) = wal.choose(&image(&ids), stream.0).await else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        stream.0 += 1;
        rig.truth.lock().streams.insert(stream, ensemble.clone());
        wal.opened(stream, &ensemble, 2);
        let broken = Arc::new(Mutex::new(false));
        let next = Arc::new(Mutex::new(0_u64));
        let under_way = Arc::new(Mutex::new(0_u64));
        while !*broken.lock() {
            let mut left = host.random_u64() % 4 + 1;
            while left > 0 && *under_way.lock() < 8 && !*broken.lock() {
                left -= 1;
                let number = *next.lock();
                let bytes = (host.random_u64() % 6000) as usize;
                let batches = vec![(key(1, 0), batch(number as u8, bytes)), (key(2, 0), batch(1, 10))];
                let content: Vec<Bytes> = batches.iter().map(|(_, batch)| batch.clone()).collect();
                *next.lock() += 1;
                *under_way.lock() += 1;
                let (rig, broken, under_way) =
                    (Arc::clone(&rig), Arc::clone(&broken), Arc::clone(&under_way));
                let done = move |result: Result<isobar_wal::Acked, WalError>| {
                    *under_way.lock() -= 1;
                    let mut truth = rig.truth.lock();
                    match result {
                        Ok(acked) if acked.acknowledged.count_ones() >= 2 => {
                            truth.acked.insert((stream, number), content);
                        }
                        Ok(acked) => truth.wrong.push(format!("{stream}/{number}: {acked:?}")),
                        // Another stream, for a gap, a full ensemble and a broken one alike.
                        Err(_) => {
                            truth.closed += 1;
                            *broken.lock() = true;
                        }
                    }
                };
                wal.append(chunk(stream, number, &batches), Box::new(done));
            }
            sleep(Duration::from_millis(3)).await;
        }
    }
}

/// Reads what was acknowledged, while things break: it may be out of reach, it may never be gone or another's.
async fn read_on(wal: QuorumWal, rig: Arc<Rig>, host: Host) {
    loop {
        sleep(Duration::from_millis(7)).await;
        let wanted = {
            let truth = rig.truth.lock();
            if truth.acked.is_empty() {
                continue;
            }
            let place = host.random_u64() as usize % truth.acked.len();
            truth.acked.iter().nth(place).map(|(id, content)| (*id, content.clone()))
        };
        let Some(((stream, number), content)) = wanted else { continue };
        if let Some(ensemble) = rig.truth.lock().streams.get(&stream).cloned() {
            wal.opened(stream, &ensemble, 2);
        }
        let read = wal.read(stream, number, 0..content.len() as u32).await;
        let mut truth = rig.truth.lock();
        truth.reads += 1;
        match read {
            Ok(found) if found == content => {}
            Err(WalError::Unavailable(_)) => {}
            other => truth.wrong.push(format!("{stream}/{number} read: {other:?}")),
        }
    }
}

/// Reads all of it from those that survived.
async fn verify(host: Host, rig: Arc<Rig>, lost: i32, ended: Arc<Mutex<bool>>) {
    let rpc = Rpc::start(&host, rpc_options(9)).await.unwrap();
    let map = Map::default();
    for (&node_id, &directory) in rig.directories.lock().iter().filter(|(node_id, _)| **node_id != lost) {
        map.add(directory, remote(&rpc, node_id, directory));
    }
    let wal = map.wal(&host, chaos_options());
    let (streams, acked) = {
        let truth = rig.truth.lock();
        (truth.streams.clone(), truth.acked.clone())
    };
    for (stream, ensemble) in &streams {
        wal.opened(*stream, ensemble, 2);
    }
    for ((stream, number), content) in acked {
        let mut read = wal.read(stream, number, 0..content.len() as u32).await;
        // The survivors are still starting.
        for _ in 0..100 {
            if !matches!(read, Err(WalError::Unavailable(_))) {
                break;
            }
            sleep(Duration::from_millis(10)).await;
            read = wal.read(stream, number, 0..content.len() as u32).await;
        }
        if read.as_ref() != Ok(&content) {
            rig.truth.lock().wrong.push(format!("{stream}/{number} without node {lost}: {read:?}"));
        }
    }
    for (stream, ensemble) in streams {
        // Nothing is there, but who is lost for good may have had it.
        let beyond = wal.read(stream, u64::MAX, 0..1).await;
        let is_whole = ensemble.iter().all(|directory| map.0.lock().contains_key(directory));
        if beyond != Err(WalError::NotFound) && is_whole || beyond == Err(WalError::NotFound) && !is_whole {
            rig.truth.lock().wrong.push(format!("{stream} on {ensemble:?} without node {lost}: {beyond:?}"));
        }
    }
    *ended.lock() = true;
}

/// One seed; says how many chunks were acknowledged, streams broken, and faults made.
fn chaos(seed: u64) -> (usize, u64, u64) {
    let mut rng = SimRng::new(seed);
    let mut world = World::new(seed);
    let rig = Arc::new(Rig::default());
    let disks: BTreeMap<i32, Arc<SimDisk>> =
        NODES.iter().map(|n| (*n, Arc::new(SimDisk::new(seed * 10 + *n as u64)))).collect();
    for (node_id, disk) in &disks {
        world.add_node(&name(*node_id), Arc::clone(disk));
    }
    world.add_node("writer", Arc::new(SimDisk::new(seed)));
    let mut down: BTreeMap<i32, u64> = NODES.iter().map(|n| (*n, 0)).collect();
    let (mut life, mut faults) = (0, 0);
    let steps = 3000;
    for step in 0..steps {
        for node_id in NODES {
            if !world.is_up(&name(node_id)) && down.get(&node_id).is_none_or(|until| *until <= step) {
                let max_disk_bytes = if rng.below(6) == 0 { 500 << 10 } else { 1 << 30 };
                let rig = Arc::clone(&rig);
                world.boot(&name(node_id), |host| replica_node(host, rig, node_id, max_disk_bytes));
            }
        }
        if !world.is_up("writer") {
            life += 1;
            let rig = Arc::clone(&rig);
            world.boot("writer", |host| writer(host, rig, life));
        }
        if step > 100 && rng.below(60) == 0 {
            faults += 1;
            let node_id = NODES[rng.below(3) as usize];
            let gate = rig.gates.lock().get(&node_id).cloned();
            match rng.below(10) {
                0..=1 => world.kill(&name(node_id)),
                2..=3 => world.crash(&name(node_id)),
                4 => disks[&node_id].fail_next(Operation::Sync, "", 0),
                5 => _ = gate.map(|gate| gate.gate.lock().requests_held = true),
                6 => _ = gate.map(|gate| gate.gate.lock().answers_held = true),
                7..=8 => _ = gate.map(|gate| gate.release()),
                _ => world.kill("writer"),
            }
            if !world.is_up(&name(node_id)) {
                down.insert(node_id, step + 20 + rng.below(400));
            }
        }
        world.step();
    }
    // One is lost for good; the others and a reader begin anew, some after a power cut.
    world.kill("writer");
    let lost = NODES[rng.below(3) as usize];
    for node_id in NODES {
        if rng.below(2) == 0 {
            world.crash(&name(node_id));
        } else {
            world.kill(&name(node_id));
        }
        if node_id != lost {
            let rig = Arc::clone(&rig);
            world.boot(&name(node_id), |host| replica_node(host, rig, node_id, 1 << 30));
        }
    }
    let ended = Arc::new(Mutex::new(false));
    let (for_reader, tell) = (Arc::clone(&rig), Arc::clone(&ended));
    world.boot("writer", |host| verify(host, for_reader, lost, tell));
    for _ in 0..200_000 {
        if *ended.lock() {
            break;
        }
        world.step();
    }
    assert!(*ended.lock(), "seed {seed}: the reads did not end");
    let truth = rig.truth.lock();
    assert!(truth.wrong.is_empty(), "seed {seed}: {:#?}", &truth.wrong[..truth.wrong.len().min(5)]);
    assert!(truth.reads > 20, "seed {seed}: {} reads", truth.reads);
    (truth.acked.len(), truth.closed, faults)
}

#[test]
fn what_two_acknowledged_outlives_any_one() {
    let seeds: u64 = std::env::var("ISOBAR_WAL_SEEDS").map_or(12, |seeds| seeds.parse().expect("a number"));
    let first: u64 = std::env::var("ISOBAR_WAL_FIRST_SEED").map_or(0, |seed| seed.parse().expect("a number"));
    let (mut acked, mut closed, mut faults) = (0, 0, 0);
    for seed in first..first + seeds {
        let (a, c, f) = chaos(seed);
        (acked, closed, faults) = (acked + a, closed + c, faults + f);
    }
    assert!(acked as u64 > 60 * seeds && closed > seeds && faults > 20 * seeds, "{acked} {closed} {faults}");
}
