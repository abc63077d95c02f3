//! The quorum writer on replicas of the simulated disk: the conformance suite, with the replicas beside it and over the transport;
//! a paused replica; disks that are full or fail; and seeds in which replicas die, lose power, are cut off and come back.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::disk::Operation;
use isobar_host::sim::{SimDisk, SimRng, World};
use isobar_metadata::command::{Command, Entry, Envelope, RegisterDirectory};
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::{Image, StateMachine};
use isobar_rpc::{Rpc, RpcOptions, Secret, ServiceId};
use isobar_wal::conformance::{STREAMS, append, batch, chunk, key, small_chunk, suite};
use isobar_wal::{
    AppendDone, Chunk, Directories, Found, LocalReplica, QuorumMetrics, QuorumOptions, QuorumWal,
    RemoteOptions, RemoteReplica, Replica, ReplicaOptions, Wal, WalError, WalMetrics, WalService,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

const CLUSTER: &str = "quorum-wal-tests-clust";
const STREAM: StreamId = StreamId(7);

fn replica_options() -> ReplicaOptions {
    let journal = isobar_journal::Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        ..isobar_journal::Options::default()
    };
    ReplicaOptions { max_memory_bytes: 64 << 10, journal, ..ReplicaOptions::default() }
}

fn quorum_options() -> QuorumOptions {
    QuorumOptions { max_chunk_bytes: 128 << 10, max_memory_bytes: 0, ..QuorumOptions::default() }
}

fn rpc_options(node_id: i32) -> RpcOptions {
    let listen = format!("127.0.0.1:{}", 7000 + node_id);
    RpcOptions::new(listen, node_id, CLUSTER, Secret::new("a secret of the tests, long enough"))
}

fn address(node_id: i32) -> String {
    format!("127.0.0.1:{}", 7000 + node_id)
}

/// Runs `main` on a node of this disk until it ends.
fn on_node<F: Future<Output = ()> + Send + 'static>(seed: u64, main: impl FnOnce(Host) -> F) {
    let mut world = World::new(seed);
    world.add_node("n", Arc::new(SimDisk::new(seed)));
    let ended = Arc::new(Mutex::new(false));
    let tell = Arc::clone(&ended);
    world.boot("n", |host| {
        let main = main(host);
        async move {
            main.await;
            *tell.lock() = true;
        }
    });
    for _ in 0..200_000 {
        if *ended.lock() {
            return;
        }
        assert!(world.step().is_empty(), "the node died");
    }
    panic!("it did not end");
}

// ---- replicas that can be held up ----

/// What goes to a replica, and what comes back, may be held up; in order, as on a connection.
#[derive(Default)]
struct Gate {
    requests_held: bool,
    answers_held: bool,
    requests: Vec<(Chunk, AppendDone)>,
    answers: Vec<Box<dyn FnOnce() + Send>>,
}

type SharedGate = Arc<Mutex<Gate>>;

struct Gated {
    inner: Arc<dyn Replica>,
    gate: SharedGate,
}

impl Gated {
    fn pass(&self, chunk: Chunk, done: AppendDone) {
        let gate = Arc::clone(&self.gate);
        let done = move |result| {
            let mut state = gate.lock();
            if state.answers_held {
                state.answers.push(Box::new(move || done(result)));
            } else {
                drop(state);
                done(result);
            }
        };
        self.inner.append(chunk, Box::new(done));
    }

    fn release(&self) {
        loop {
            let (requests, answers) = {
                let mut gate = self.gate.lock();
                (gate.requests_held, gate.answers_held) = (false, false);
                (std::mem::take(&mut gate.requests), std::mem::take(&mut gate.answers))
            };
            if requests.is_empty() && answers.is_empty() {
                return;
            }
            answers.into_iter().for_each(|answer| answer());
            requests.into_iter().for_each(|(chunk, done)| self.pass(chunk, done));
        }
    }

    fn is_held(&self) -> bool {
        let gate = self.gate.lock();
        gate.requests_held || gate.answers_held
    }
}

#[async_trait]
impl Replica for Gated {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        let mut gate = self.gate.lock();
        if gate.requests_held {
            return gate.requests.push((chunk, done));
        }
        drop(gate);
        self.pass(chunk, done);
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        if self.is_held() {
            sleep(Duration::from_secs(3)).await;
            return Err(WalError::Unavailable("held up".to_owned()));
        }
        self.inner.read(stream, number, ordinals).await
    }

    async fn probe(&self) -> Result<bool, WalError> {
        if self.is_held() {
            sleep(Duration::from_secs(3)).await;
        }
        self.inner.probe().await
    }

    fn has_room(&self) -> bool {
        self.inner.has_room()
    }

    async fn room(&self) {
        self.inner.room().await;
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn is_connected(&self) -> bool {
        self.inner.is_connected()
    }
}

/// Incarnations by id; those that are not in it are known to metadata, and nobody knows where they are.
#[derive(Default, Clone)]
struct Map(Arc<Mutex<BTreeMap<DirectoryId, Arc<dyn Replica>>>>);

impl Directories for Map {
    fn find(&self, directory: DirectoryId) -> Found {
        self.0.lock().get(&directory).cloned().map_or(Found::Unknown, Found::Replica)
    }
}

impl Map {
    fn add(&self, directory: DirectoryId, replica: Arc<dyn Replica>) {
        self.0.lock().insert(directory, replica);
    }

    fn wal(&self, host: &Host, options: QuorumOptions) -> QuorumWal {
        QuorumWal::new(host, Arc::new(self.clone()), options, QuorumMetrics::default())
    }
}

/// Three replicas on this node, and gates before them.
struct Three {
    locals: Vec<LocalReplica>,
    gates: Vec<Arc<Gated>>,
    ensemble: Vec<DirectoryId>,
    map: Map,
}

async fn three(host: &Host, dir: &Path, options: impl Fn(usize) -> ReplicaOptions) -> Three {
    let mut three =
        Three { locals: Vec::new(), gates: Vec::new(), ensemble: Vec::new(), map: Map::default() };
    for n in 0..3 {
        let path = dir.join(format!("replica{n}"));
        let replica = LocalReplica::open(host, &path, options(n), WalMetrics::default()).await.unwrap();
        replica.reconcile(&image(&[]));
        let gate = Arc::new(Gated { inner: Arc::new(replica.clone()), gate: SharedGate::default() });
        three.map.add(replica.directory(), Arc::clone(&gate) as Arc<dyn Replica>);
        three.ensemble.push(replica.directory());
        three.locals.push(replica);
        three.gates.push(gate);
    }
    three
}

/// An image that knows these directories, each on a node of its own, and wants two of them to acknowledge.
fn image(directories: &[DirectoryId]) -> Image {
    let format =
        ClusterFormat { write_quorum: 2, ..ClusterFormat::dev("test".to_owned(), "store".to_owned()) };
    let mut machine = StateMachine::new(format);
    let commands = (1_i32..).zip(directories).map(|(node_id, &directory)| {
        let zone = format!("zone{node_id}");
        let register = RegisterDirectory { directory, node_id, zone, cloud: String::new() };
        Envelope::unnumbered(Command::RegisterDirectory(register))
    });
    machine.apply(1, &Entry::new(1, commands.collect()));
    machine.image()
}

/// A quorum writer whose replicas follow metadata too, as each does on its own node.
struct WithReplicas {
    wal: QuorumWal,
    locals: Vec<LocalReplica>,
}

#[async_trait]
impl Wal for WithReplicas {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        self.wal.append(chunk, done);
    }

    fn max_chunk_bytes(&self) -> usize {
        self.wal.max_chunk_bytes()
    }

    fn has_room(&self) -> bool {
        self.wal.has_room()
    }

    async fn room(&self) {
        self.wal.room().await;
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        self.wal.read(stream, number, ordinals).await
    }

    fn follow(&self, batch: &EffectBatch) {
        self.wal.follow(batch);
        self.locals.iter().for_each(|replica| replica.follow(batch));
    }
}

// ---- conformance ----

fn conforms(memory_bytes: usize) {
    on_node(1, move |host| async move {
        let mut count = 0;
        suite(|| {
            count += 1;
            let (host, dir) = (host.clone(), PathBuf::from(format!("case{count}")));
            async move {
                let three = three(&host, &dir, |_| replica_options()).await;
                let wal = three
                    .map
                    .wal(&host, QuorumOptions { max_memory_bytes: memory_bytes, ..quorum_options() });
                STREAMS.iter().for_each(|stream| wal.opened(*stream, &three.ensemble, 2));
                let wal = WithReplicas { wal, locals: three.locals };
                (Arc::new(wal) as Arc<dyn Wal>, three.ensemble)
            }
        })
        .await;
    });
}

#[test]
fn conforms_with_replicas_beside_it() {
    conforms(0);
}

/// A node with a replica: its service, and how others reach it.
async fn serve(host: &Host, node_id: i32, dir: &Path, options: ReplicaOptions) -> (Rpc, LocalReplica) {
    let replica = LocalReplica::open(host, dir, options, WalMetrics::default()).await.unwrap();
    replica.reconcile(&image(&[]));
    let rpc = Rpc::start(host, rpc_options(node_id)).await.unwrap();
    rpc.register(ServiceId::WAL, Arc::new(WalService::new(host, replica.clone())));
    (rpc, replica)
}

fn remote(rpc: &Rpc, node_id: i32, directory: DirectoryId) -> Arc<dyn Replica> {
    Arc::new(RemoteReplica::new(rpc.peer(node_id, &address(node_id)), directory, RemoteOptions::default()))
}

fn conforms_over_the_transport(memory_bytes: usize) {
    on_node(2, move |host| async move {
        let mut node_id = 100;
        let mut transports = Vec::new();
        let kept = Arc::new(Mutex::new(Vec::new()));
        suite(|| {
            node_id += 10;
            let (host, first, kept) = (host.clone(), node_id, Arc::clone(&kept));
            async move {
                let rpc = Rpc::start(&host, rpc_options(first)).await.unwrap();
                let map = Map::default();
                let (mut locals, mut ensemble) = (Vec::new(), Vec::new());
                for node_id in first + 1..first + 4 {
                    let dir = PathBuf::from(format!("node{node_id}"));
                    let (served, replica) = serve(&host, node_id, &dir, replica_options()).await;
                    map.add(replica.directory(), remote(&rpc, node_id, replica.directory()));
                    ensemble.push(replica.directory());
                    locals.push(replica);
                    kept.lock().push(served);
                }
                kept.lock().push(rpc);
                let wal =
                    map.wal(&host, QuorumOptions { max_memory_bytes: memory_bytes, ..quorum_options() });
                STREAMS.iter().for_each(|stream| wal.opened(*stream, &ensemble, 2));
                (Arc::new(WithReplicas { wal, locals }) as Arc<dyn Wal>, ensemble)
            }
        })
        .await;
        transports.append(&mut kept.lock());
        for rpc in transports {
            rpc.stop().await;
        }
    });
}

#[test]
fn conforms_over_the_transport_from_the_replicas() {
    conforms_over_the_transport(0);
}

#[test]
fn conforms_over_the_transport_from_its_own_memory() {
    conforms_over_the_transport(1 << 20);
}

// ---- what a replica says over the transport ----

#[test]
fn a_repeat_is_acknowledged_again_and_another_content_or_incarnation_is_refused() {
    on_node(3, |host| async move {
        let (served, local) = serve(&host, 1, Path::new("wal"), replica_options()).await;
        let rpc = Rpc::start(&host, rpc_options(2)).await.unwrap();
        let there = remote(&rpc, 1, local.directory());
        let say = async |replica: &Arc<dyn Replica>, chunk: Chunk| {
            let (tell, heard) = oneshot::channel();
            replica.append(chunk, Box::new(move |result| drop(tell.send(result))));
            heard.await.unwrap().map(|_| ())
        };
        let other = |number| chunk(STREAM, number, &[(key(1, 0), batch(99, 100))]);
        assert_eq!(say(&there, small_chunk(STREAM, 1)).await, Err(WalError::Gap { expected: 0 }));
        // Both are under way at once.
        let (first, again) =
            tokio::join!(say(&there, small_chunk(STREAM, 0)), say(&there, small_chunk(STREAM, 0)));
        assert_eq!((first, again), (Ok(()), Ok(())));
        let (first, differs) = tokio::join!(say(&there, small_chunk(STREAM, 1)), say(&there, other(1)));
        assert_eq!((first, differs), (Ok(()), Err(WalError::Gap { expected: 2 })));
        assert_eq!(say(&there, small_chunk(STREAM, 0)).await, Ok(()));
        assert_eq!(say(&there, other(0)).await, Err(WalError::Gap { expected: 1 }));
        assert_eq!(there.read(STREAM, 0, 0..1).await.unwrap(), [batch(0, 100)]);
        assert_eq!(there.read(STREAM, 2, 0..1).await, Err(WalError::NotFound));
        assert_eq!(there.read(STREAM, 0, 0..2).await, Err(WalError::NotFound));
        assert_eq!(there.probe().await, Ok(true));
        let wiped = remote(&rpc, 1, DirectoryId::from([9; 16]));
        for error in [
            say(&wiped, small_chunk(STREAM, 2)).await.unwrap_err(),
            wiped.read(STREAM, 0, 0..1).await.unwrap_err(),
            wiped.probe().await.unwrap_err(),
        ] {
            assert!(matches!(error, WalError::Unavailable(_)), "{error}");
        }
        rpc.stop().await;
        served.stop().await;
        assert!(matches!(there.read(STREAM, 0, 0..1).await, Err(WalError::Unavailable(_))));
    });
}

// ---- one replica in trouble ----

async fn append_all(wal: &dyn Wal, stream: StreamId, numbers: Range<u64>) -> Vec<u32> {
    let mut acknowledged = Vec::new();
    for number in numbers {
        acknowledged.push(append(wal, small_chunk(stream, number)).await.unwrap().acknowledged);
    }
    acknowledged
}

#[test]
fn a_paused_replica_stalls_nobody_and_is_left_behind() {
    for (answers, seed) in [(false, 4), (true, 5)] {
        on_node(seed, move |host| async move {
            let three = three(&host, Path::new(""), |_| replica_options()).await;
            let wal = three.map.wal(&host, quorum_options());
            wal.opened(STREAM, &three.ensemble, 2);
            append_all(&wal, STREAM, 0..5).await;
            {
                let mut gate = three.gates[1].gate.lock();
                (gate.requests_held, gate.answers_held) = (!answers, answers);
            }
            let mut changes = wal.changes();
            for number in 5..200 {
                let began = Instant::now();
                append_all(&wal, STREAM, number..number + 1).await;
                assert!(began.elapsed() <= Duration::from_millis(20), "{:?}", began.elapsed());
            }
            assert_eq!(wal.standing(STREAM).unwrap().live, 0b111, "not yet");
            timeout(Duration::from_secs(4), changes.changed()).await.unwrap().unwrap();
            assert_eq!(wal.standing(STREAM).unwrap().live, 0b101);
            let waits = three.gates[1].gate.lock().requests.len();
            append_all(&wal, STREAM, 200..210).await;
            assert_eq!(three.gates[1].gate.lock().requests.len(), waits, "it is sent nothing more");
            // It comes back, has what was on its way, and stays behind.
            three.gates[1].release();
            let acknowledged = append_all(&wal, STREAM, 210..220).await;
            assert!(acknowledged.iter().all(|bits| *bits == 0b101));
            // The slow one is not chosen for the next stream at first, and again later.
            let image = image(&three.ensemble);
            let others = BTreeSet::from([three.ensemble[0], three.ensemble[2]]);
            let chosen = async || wal.choose(&image, 1).await.unwrap().into_iter().collect::<BTreeSet<_>>();
            assert_eq!(chosen().await, others);
            sleep(Duration::from_secs(31)).await;
            assert_eq!(chosen().await.len(), 3);
            for number in 0..220 {
                assert_eq!(wal.read(STREAM, number, 0..1).await.unwrap(), [batch(number as u8, 100)]);
            }
        });
    }
}

#[test]
fn a_silent_majority_closes_the_stream_and_no_read_says_not_found_for_it() {
    on_node(6, |host| async move {
        let three = three(&host, Path::new(""), |_| replica_options()).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        append_all(&wal, STREAM, 0..3).await;
        for gate in &three.gates[1..] {
            gate.gate.lock().requests_held = true;
        }
        let began = Instant::now();
        assert_eq!(append(&wal, small_chunk(STREAM, 3)).await, Err(WalError::Closed));
        assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
        assert_eq!(append(&wal, small_chunk(STREAM, 4)).await, Err(WalError::Closed));
        assert!(wal.standing(STREAM).unwrap().is_closed);
        assert!(wal.read(STREAM, 2, 0..1).await.is_ok());
        // Nothing is there, but who is silent may have it.
        assert!(matches!(wal.read(STREAM, 9, 0..1).await, Err(WalError::Unavailable(_))));
        three.gates.iter().for_each(|gate| gate.release());
        assert_eq!(wal.read(STREAM, 9, 0..1).await, Err(WalError::NotFound));
        // A stream that metadata has not told of is not known yet; one that it passed by is forgotten.
        assert!(matches!(wal.read(StreamId(8), 0, 0..1).await, Err(WalError::Unavailable(_))));
        let opened = isobar_wal::conformance::stream_on(StreamId(9), &three.ensemble, false);
        wal.follow(&isobar_wal::conformance::effects(vec![opened]));
        assert_eq!(wal.read(StreamId(8), 0, 0..1).await, Err(WalError::NotFound));
        let stream = StreamId(9);
        assert_eq!(append_all(&wal, stream, 0..1).await.len(), 1);
    });
}

#[test]
fn a_full_replica_is_left_behind_and_all_full_is_full() {
    on_node(7, |host| async move {
        // The first is full after a few chunks, the others after some more.
        let bounds = [500 << 10, 900 << 10, 900 << 10];
        let options = |n| ReplicaOptions { max_disk_bytes: bounds[n], ..replica_options() };
        let three = three(&host, Path::new(""), options).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        let large = |number: u64| chunk(STREAM, number, &[(key(1, 0), batch(number as u8, 50_000))]);
        let (mut number, mut told_beforehand) = (0, false);
        let refused = loop {
            told_beforehand |= !wal.has_room();
            match append(&wal, large(number)).await {
                Ok(_) => number += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, WalError::Full);
        assert!(told_beforehand && number > 12, "{number}");
        assert_eq!(wal.standing(STREAM).unwrap().live, 0b110);
        assert_eq!(append(&wal, large(number)).await, Err(WalError::Full));
        let room = wal.room();
        for old in 0..number {
            let gone = [
                isobar_wal::conformance::committed(STREAM, old, 1),
                isobar_wal::conformance::released(STREAM, &[old]),
            ];
            let gone = isobar_wal::conformance::effects(gone.to_vec());
            three.locals.iter().for_each(|replica| replica.follow(&gone));
        }
        timeout(Duration::from_secs(1), room).await.unwrap();
        assert!(wal.has_room());
        append_all(&wal, STREAM, number..number + 5).await;
    });
}

#[test]
fn slow_reads_are_hedged_and_what_one_lost_another_has() {
    on_node(8, |host| async move {
        let three = three(&host, Path::new(""), |_| replica_options()).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        append_all(&wal, STREAM, 0..3).await;
        sleep(Duration::from_millis(50)).await;
        three.gates[0].gate.lock().answers_held = true;
        let began = Instant::now();
        for number in 0..3 {
            assert!(wal.read(STREAM, number, 0..1).await.is_ok());
        }
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
        assert!(wal.metrics().hedged.get() > 0);
    });
}

// ---- seeds ----

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
