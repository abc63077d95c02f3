//! Chunks that are not uploaded while a replica is lost, or comes back without them: they get another copy, whatever dies and
//! whatever is released meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::disk::Operation;
use isobar_host::sim::{SimDisk, SimRng, World};
use isobar_metadata::command::{
    CloseStream, Command, CommitBatch, CommitChunk, CommitPartition, CreateTopics, Entry, Envelope,
    LogStartReason, MoveLogStart, NewLogStart, NewTopic, OpenStream, RegisterDirectory, RegisterSession,
    ReplaceReplica,
};
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::{DirectoryId, Durability, LaneId, PlacementId, SessionId, StreamId, lane_of};
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::{CommandResult, Image, StateMachine, StoreId};
use isobar_rpc::{Rpc, ServiceId};
use isobar_wal::conformance::{append, batch, chunk, key};
use isobar_wal::{
    Chunk, Directories, Found, LocalReplica, RemoteOptions, RepairOptions, RepairParts, Truth, Wal,
    WalMetrics, WalService, start_repairer,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::rig::*;

const CHUNKS: u64 = 40;
const NODES: [i32; 5] = [1, 2, 3, 4, 5];
/// The member that is lost, or was away.
const AWAY: i32 = 3;

/// Metadata that outlives the nodes, as a quorum does, and what it did, which each of them follows when it comes to it.
struct Meta {
    state: Mutex<(StateMachine, Vec<Arc<EffectBatch>>)>,
    session: SessionId,
    numbers: Mutex<BTreeMap<LaneId, u64>>,
    directories: Mutex<BTreeMap<i32, DirectoryId>>,
    replicas: Mutex<BTreeMap<i32, LocalReplica>>,
    content: Mutex<BTreeMap<u64, Bytes>>,
    not_started: Mutex<BTreeSet<i32>>,
}

impl Meta {
    fn new() -> Arc<Self> {
        let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
        let mut meta = Self {
            state: Mutex::new((StateMachine::new(format), Vec::new())),
            session: SessionId::NONE,
            numbers: Mutex::default(),
            directories: Mutex::default(),
            replicas: Mutex::default(),
            content: Mutex::default(),
            not_started: Mutex::default(),
        };
        let register = RegisterSession {
            node_id: 9,
            life: DirectoryId::from([9; 16]),
            home_store: StoreId(1),
            ..RegisterSession::default()
        };
        match meta.apply(Envelope::unnumbered(Command::RegisterSession(register))) {
            CommandResult::Session(granted) => meta.session = granted.session,
            other => panic!("{other:?}"),
        }
        let topic = NewTopic {
            name: "t".to_owned(),
            topic_id: key(1, 0).topic_id,
            partitions: 1,
            replication_factor: 1,
            configs: BTreeMap::new(),
            placement: PlacementId::DEFAULT,
        };
        let topics = vec![topic];
        meta.numbered(LaneId::CONTROL, Command::CreateTopics(CreateTopics { topics, validate_only: false }));
        Arc::new(meta)
    }

    fn apply(&self, envelope: Envelope) -> CommandResult {
        let mut state = self.state.lock();
        let index = state.0.applied_index() + 1;
        let time_ms = 1_767_225_600_000 + index as i64;
        let applied = state.0.apply(index, &Entry::new(time_ms, vec![envelope]));
        state.1.push(applied.effects);
        applied.results.into_iter().next().unwrap()
    }

    fn numbered(&self, lane: LaneId, command: Command) -> CommandResult {
        let number = {
            let mut numbers = self.numbers.lock();
            let number = numbers.entry(lane).or_default();
            *number += 1;
            *number
        };
        self.apply(Envelope::new(self.session, lane, number, number, command))
    }

    /// Where a node that starts now begins, and how many batches lie before that.
    fn now(&self) -> (Image, usize) {
        let state = self.state.lock();
        (state.0.image(), state.1.len())
    }

    fn open(&self, ensemble: Vec<DirectoryId>) -> StreamId {
        let open = OpenStream { lane: wal_lane(), ensemble, write_quorum: 2 };
        match self.numbered(LaneId::CONTROL, Command::OpenStream(open)) {
            CommandResult::Stream(granted) if granted.error_code == 0 => granted.stream,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&self, chunk: &Chunk, acknowledged: u32) {
        let partitions = chunk.partitions().map(|partition| CommitPartition {
            topic_id: partition.key.topic_id,
            partition: partition.key.partition,
            class_epoch: 0,
            position: 0,
            batches: (partition.first_ordinal..)
                .zip(partition.batches)
                .map(|(ordinal, found)| CommitBatch::plain(ordinal, found.info.record_count, 0, found.bytes))
                .collect(),
        });
        let commit = CommitChunk {
            stream: chunk.stream(),
            chunk: chunk.number(),
            acknowledged,
            partitions: partitions.collect(),
            object: None,
        };
        let result = self.numbered(wal_lane(), Command::CommitChunk(commit));
        let CommandResult::Chunk(committed) = result else { panic!("{result:?}") };
        assert!(committed.error_code == 0 && committed.batches.iter().all(|batch| batch.error_code == 0));
    }

    /// Of the chunks before `log_start`, one an offset, nothing is needed any more.
    fn delete_records(&self, log_start: i64) {
        let moved = NewLogStart { topic_id: key(1, 0).topic_id, partition: 0, log_start };
        let reason = LogStartReason::DeleteRecords as i32;
        let delete = MoveLogStart { partitions: vec![moved], reason };
        self.numbered(LaneId::CONTROL, Command::MoveLogStart(delete));
    }
}

fn wal_lane() -> LaneId {
    lane_of(Durability::Wal, PlacementId::DEFAULT)
}

#[async_trait]
impl Truth for Meta {
    fn image(&self) -> Image {
        self.now().0
    }

    async fn replace(&self, replace: ReplaceReplica) -> Result<(), String> {
        match self.apply(Envelope::unnumbered(Command::ReplaceReplica(replace))) {
            CommandResult::Done(done) if done.error_code == 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }
}

struct Places {
    rpc: Rpc,
    meta: Arc<Meta>,
}

impl Directories for Places {
    fn find(&self, directory: DirectoryId) -> Found {
        match self.meta.image().directory(directory) {
            Some(record) => Found::Remote(self.rpc.peer(record.node_id, &address(record.node_id))),
            None => Found::Removed,
        }
    }
}

fn remote_options() -> RemoteOptions {
    let timeout = Duration::from_millis(500);
    RemoteOptions { append_timeout: timeout, read_timeout: timeout, ..RemoteOptions::default() }
}

/// A life of a node with a replica.
async fn node(host: Host, meta: Arc<Meta>, node_id: i32) {
    let Ok(replica) =
        LocalReplica::open(&host, Path::new("wal"), replica_options(), WalMetrics::default()).await
    else {
        meta.not_started.lock().insert(node_id);
        return;
    };
    let directory = replica.directory();
    let zone = format!("zone{}", node_id % 3);
    let register = RegisterDirectory { directory, node_id, zone, cloud: String::new() };
    meta.apply(Envelope::unnumbered(Command::RegisterDirectory(register)));
    meta.directories.lock().insert(node_id, directory);
    let (image, mut followed) = meta.now();
    replica.reconcile(&image);
    let Ok(rpc) = Rpc::start(&host, rpc_options(node_id)).await else { return };
    rpc.register(ServiceId::WAL, Arc::new(WalService::new(&host, replica.clone())));
    meta.replicas.lock().insert(node_id, replica.clone());
    let places = Arc::new(Places { rpc, meta: Arc::clone(&meta) });
    let parts = RepairParts {
        host: host.clone(),
        replica: replica.clone(),
        directories: places,
        truth: Arc::clone(&meta) as Arc<dyn Truth>,
    };
    let options = RepairOptions {
        interval: Duration::from_millis(50),
        patience: Duration::from_millis(300),
        bytes_per_s: 2 << 20,
        remote: remote_options(),
    };
    let _repairing = start_repairer(parts, options);
    loop {
        let batches = meta.state.lock().1[followed..].to_vec();
        followed += batches.len();
        batches.iter().for_each(|batch| replica.follow(batch));
        sleep(Duration::from_millis(host.random_u64() % 6)).await;
    }
}

/// Fills the stream, and closes it.
async fn write(host: Host, meta: Arc<Meta>, ended: Arc<Mutex<Option<StreamId>>>) {
    let rpc = Rpc::start(&host, rpc_options(9)).await.unwrap();
    let map = Map::default();
    for (&node_id, &directory) in &*meta.directories.lock() {
        map.add(directory, remote(&rpc, node_id, directory));
    }
    let wal = map.wal(&host, quorum_options());
    let ensemble: Vec<_> = [1, 2, AWAY].iter().map(|node_id| meta.directories.lock()[node_id]).collect();
    let stream = meta.open(ensemble.clone());
    wal.opened(stream, &ensemble, 2);
    for number in 0..CHUNKS {
        let content = batch(number as u8, (host.random_u64() % 9000) as usize);
        let sealed = chunk(stream, number, &[(key(1, 0), content.clone())]);
        let acked = append(&wal, sealed.clone()).await.unwrap();
        meta.content.lock().insert(number, content);
        meta.commit(&sealed, acked.acknowledged);
        sleep(Duration::from_millis(5)).await;
    }
    meta.numbered(LaneId::CONTROL, Command::CloseStream(CloseStream { stream }));
    *ended.lock() = Some(stream);
}

/// Reads all that is live.
async fn read(host: Host, meta: Arc<Meta>, stream: StreamId, ended: Arc<Mutex<u64>>) {
    let rpc = Rpc::start(&host, rpc_options(9)).await.unwrap();
    let map = Map::default();
    for (&node_id, &directory) in &*meta.directories.lock() {
        map.add(directory, remote(&rpc, node_id, directory));
    }
    let wal = map.wal(&host, quorum_options());
    let image = meta.image();
    wal.reconcile(&image);
    for &number in image.stream(stream).unwrap().live.keys() {
        let read = wal.read(stream, number, 0..1).await;
        assert_eq!(read, Ok(vec![meta.content.lock()[&number].clone()]), "chunk {number}");
        *ended.lock() += 1;
    }
}

struct Run {
    seed: u64,
    disks: BTreeMap<i32, Arc<SimDisk>>,
    world: World,
    meta: Arc<Meta>,
}

impl Run {
    fn boot(&mut self, node_id: i32) {
        let meta = Arc::clone(&self.meta);
        self.world.boot(&format!("n{node_id}"), move |host| node(host, meta, node_id));
    }

    /// A node whose disk failed as it started starts again.
    fn revive(&mut self, but: &[i32]) {
        for node_id in NODES.into_iter().filter(|node_id| !but.contains(node_id)) {
            if self.meta.not_started.lock().remove(&node_id) {
                self.world.kill(&format!("n{node_id}"));
            }
            if !self.world.is_up(&format!("n{node_id}")) {
                self.meta.replicas.lock().remove(&node_id);
                self.boot(node_id);
            }
        }
    }

    fn kill(&mut self, node_id: i32) {
        self.meta.replicas.lock().remove(&node_id);
        self.world.kill(&format!("n{node_id}"));
    }

    fn until(&mut self, what: &str, mut such: impl FnMut(&mut Self, u64) -> bool) {
        for step in 0..60_000 {
            if such(self, step) {
                return;
            }
            self.world.step();
        }
        panic!("seed {}: waited in vain for {what}", self.seed);
    }

    /// Chunks of it that are live and not on this node.
    fn lacks(&self, stream: StreamId, node_id: i32) -> usize {
        let image = self.meta.image();
        let live = image.stream(stream).map(|found| found.live.len()).unwrap_or_default();
        let replicas = self.meta.replicas.lock();
        live - replicas.get(&node_id).map_or(0, |replica| replica.live().0 as usize).min(live)
    }
}

/// `comes_back`: the member is not lost, but was away while chunks were written.
fn repaired(seed: u64, comes_back: bool) {
    let mut rng = SimRng::new(seed);
    let mut world = World::new(seed);
    let disk = |node_id: i32| (node_id, Arc::new(SimDisk::new(seed * 10 + node_id as u64)));
    let disks: BTreeMap<i32, Arc<SimDisk>> = NODES.into_iter().map(disk).collect();
    for (node_id, disk) in &disks {
        world.add_node(&format!("n{node_id}"), Arc::clone(disk));
    }
    world.add_node("writer", Arc::new(SimDisk::new(seed)));
    let mut run = Run { seed, disks, world, meta: Meta::new() };
    NODES.iter().for_each(|node_id| run.boot(*node_id));
    run.until("replicas", |run, _| run.meta.replicas.lock().len() == NODES.len());

    let ended = Arc::new(Mutex::new(None));
    let (meta, tell) = (Arc::clone(&run.meta), Arc::clone(&ended));
    run.world.boot("writer", move |host| write(host, meta, tell));
    let leaves_at = rng.below(CHUNKS);
    run.until("a part of the stream", |run, _| run.meta.content.lock().len() as u64 > leaves_at);
    run.kill(AWAY);
    run.until("the rest of the stream", |_, _| ended.lock().is_some());
    let stream = ended.lock().unwrap();
    if comes_back {
        run.boot(AWAY);
    }

    let mut down: Option<(i32, u64)> = None;
    let (mut deleted, mut settled) = (0, 0);
    let members = |run: &Run| -> Vec<i32> {
        let ensemble = run.meta.image().stream(stream).unwrap().ensemble.clone();
        let directories = run.meta.directories.lock().clone();
        let of = |id: &DirectoryId| directories.iter().find(|(_, of)| *of == id).map(|(node_id, _)| *node_id);
        ensemble.iter().filter_map(of).collect()
    };
    let is_repaired = |run: &Run| {
        let members = members(run);
        // Whoever was away for too long is replaced as well.
        let keeper = members.into_iter().find(|n| ![1, 2].contains(n) && (comes_back || *n != AWAY));
        keeper.filter(|keeper| run.lacks(stream, *keeper) == 0)
    };
    run.until("another copy", |run, step| {
        if let Some((node_id, until)) = down
            && until <= step
        {
            run.boot(node_id);
            down = None;
        }
        if rng.below(150) == 0 && down.is_none() {
            let node_id = [1, 2, 4, 5, if comes_back { AWAY } else { 4 }][rng.below(5) as usize];
            match rng.below(4) {
                0 => run.disks[&node_id].fail_next(Operation::Sync, "", rng.below(3)),
                1 => run.disks[&node_id].fail_next(Operation::Write, "", rng.below(3)),
                kind => {
                    run.meta.replicas.lock().remove(&node_id);
                    match kind {
                        2 => run.world.kill(&format!("n{node_id}")),
                        _ => run.world.crash(&format!("n{node_id}")),
                    }
                    down = Some((node_id, step + rng.below(600)));
                }
            }
        }
        let away = if comes_back { None } else { Some(AWAY) };
        let off: Vec<i32> = away.into_iter().chain(down.map(|(node_id, _)| node_id)).collect();
        run.revive(&off);
        // One whose disk has failed ends, as a node does.
        let stopped = |(_, replica): &(&i32, &LocalReplica)| replica.stopped().is_some();
        let stopped = run.meta.replicas.lock().iter().find(stopped).map(|(node_id, _)| *node_id);
        if let Some(node_id) = stopped.filter(|_| down.is_none()) {
            run.kill(node_id);
            down = Some((node_id, step + rng.below(600)));
        }
        if rng.below(200) == 0 && deleted < CHUNKS / 2 {
            deleted += rng.below(4);
            run.meta.delete_records(deleted as i64);
            settled = 0;
        }
        // Whom the ensemble names instead has all of it from the first moment on.
        for new in members(run).into_iter().filter(|node_id| ![1, 2, AWAY].contains(node_id)) {
            let is_up = run.meta.replicas.lock().contains_key(&new);
            assert!(
                !is_up || run.lacks(stream, new) == 0,
                "seed {seed}: node {new} lacks {}",
                run.lacks(stream, new)
            );
        }
        // By then whoever lives has followed what was released.
        settled = if is_repaired(run).is_some() { settled + 1 } else { 0 };
        settled > 20
    });
    let keeper = is_repaired(&run).unwrap();

    // All others are gone for good.
    run.world.kill("writer");
    NODES.iter().filter(|node_id| **node_id != keeper).for_each(|node_id| run.kill(*node_id));
    let read_count = Arc::new(Mutex::new(0));
    let (meta, tell) = (Arc::clone(&run.meta), Arc::clone(&read_count));
    run.world.boot("writer", move |host| read(host, meta, stream, tell));
    let live = run.meta.image().stream(stream).unwrap().live.len() as u64;
    assert!(live > CHUNKS / 4);
    run.until("all to be read", |_, _| *read_count.lock() == live);

    // Nothing stays once nothing is needed, where it is and where it was copied in vain.
    run.until("replicas", |run, _| {
        run.revive(&[]);
        run.meta.replicas.lock().len() == NODES.len()
    });
    run.meta.delete_records(-1);
    assert!(run.meta.image().stream(stream).is_none());
    run.until("empty replicas", |run, _| {
        run.meta.replicas.lock().values().all(|replica| replica.live() == (0, 0))
    });
}

fn seeds() -> std::ops::Range<u64> {
    let seeds: u64 = std::env::var("ISOBAR_WAL_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    1..1 + seeds
}

#[test]
fn chunks_of_a_lost_replica_get_another_copy_whoever_dies_meanwhile() {
    seeds().for_each(|seed| repaired(seed, false));
}

#[test]
fn a_replica_that_was_away_gets_what_it_lacks() {
    seeds().for_each(|seed| repaired(100 + seed, true));
}
