//! Replicas on one node or on several, and gates before them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::{Command, Entry, Envelope, RegisterDirectory};
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::{Image, StateMachine};
use isobar_rpc::{Rpc, RpcOptions, Secret, ServiceId};
use isobar_wal::{
    AppendDone, Chunk, Directories, Found, LocalReplica, QuorumMetrics, QuorumOptions, QuorumWal,
    RemoteOptions, RemoteReplica, Replica, ReplicaOptions, Wal, WalError, WalMetrics, WalService,
};
use parking_lot::Mutex;
use tokio::time::sleep;

pub(crate) const CLUSTER: &str = "quorum-wal-tests-clust";
pub(crate) const STREAM: StreamId = StreamId(7);

pub(crate) fn replica_options() -> ReplicaOptions {
    let journal = isobar_journal::Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        ..isobar_journal::Options::default()
    };
    ReplicaOptions { max_memory_bytes: 64 << 10, journal, ..ReplicaOptions::default() }
}

pub(crate) fn quorum_options() -> QuorumOptions {
    QuorumOptions { max_chunk_bytes: 128 << 10, max_memory_bytes: 0, ..QuorumOptions::default() }
}

pub(crate) fn rpc_options(node_id: i32) -> RpcOptions {
    let listen = format!("127.0.0.1:{}", 7000 + node_id);
    RpcOptions::new(listen, node_id, CLUSTER, Secret::new("a secret of the tests, long enough"))
}

pub(crate) fn address(node_id: i32) -> String {
    format!("127.0.0.1:{}", 7000 + node_id)
}

/// Runs `main` on a node of this disk until it ends.
pub(crate) fn on_node<F: Future<Output = ()> + Send + 'static>(seed: u64, main: impl FnOnce(Host) -> F) {
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
pub(crate) struct Gate {
    pub(crate) requests_held: bool,
    pub(crate) answers_held: bool,
    pub(crate) requests: Vec<(Chunk, AppendDone)>,
    pub(crate) answers: Vec<Box<dyn FnOnce() + Send>>,
}

pub(crate) type SharedGate = Arc<Mutex<Gate>>;

pub(crate) struct Gated {
    pub(crate) inner: Arc<dyn Replica>,
    pub(crate) gate: SharedGate,
}

impl Gated {
    pub(crate) fn pass(&self, chunk: Chunk, done: AppendDone) {
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

    pub(crate) fn release(&self) {
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

    pub(crate) fn is_held(&self) -> bool {
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
pub(crate) struct Map(pub(crate) Arc<Mutex<BTreeMap<DirectoryId, Arc<dyn Replica>>>>);

impl Directories for Map {
    fn find(&self, directory: DirectoryId) -> Found {
        self.0.lock().get(&directory).cloned().map_or(Found::Unknown, Found::Replica)
    }
}

impl Map {
    pub(crate) fn add(&self, directory: DirectoryId, replica: Arc<dyn Replica>) {
        self.0.lock().insert(directory, replica);
    }

    pub(crate) fn wal(&self, host: &Host, options: QuorumOptions) -> QuorumWal {
        QuorumWal::new(host, Arc::new(self.clone()), options, QuorumMetrics::default())
    }
}

/// Three replicas on this node, and gates before them.
pub(crate) struct Three {
    pub(crate) locals: Vec<LocalReplica>,
    pub(crate) gates: Vec<Arc<Gated>>,
    pub(crate) ensemble: Vec<DirectoryId>,
    pub(crate) map: Map,
}

pub(crate) async fn three(host: &Host, dir: &Path, options: impl Fn(usize) -> ReplicaOptions) -> Three {
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
pub(crate) fn image(directories: &[DirectoryId]) -> Image {
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
pub(crate) struct WithReplicas {
    pub(crate) wal: QuorumWal,
    pub(crate) locals: Vec<LocalReplica>,
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

/// A node with a replica: its service, and how others reach it.
pub(crate) async fn serve(
    host: &Host,
    node_id: i32,
    dir: &Path,
    options: ReplicaOptions,
) -> (Rpc, LocalReplica) {
    let replica = LocalReplica::open(host, dir, options, WalMetrics::default()).await.unwrap();
    replica.reconcile(&image(&[]));
    let rpc = Rpc::start(host, rpc_options(node_id)).await.unwrap();
    rpc.register(ServiceId::WAL, Arc::new(WalService::new(host, replica.clone())));
    (rpc, replica)
}

pub(crate) fn remote(rpc: &Rpc, node_id: i32, directory: DirectoryId) -> Arc<dyn Replica> {
    Arc::new(RemoteReplica::new(rpc.peer(node_id, &address(node_id)), directory, RemoteOptions::default()))
}
