use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt as _;
use isobar_metadata::command::{
    CommitBatch, CommitChunk, CommitObject, CommitPartition, CreateTopics, NewTopic, ObjectRun, OpenStream,
    RegisterDirectory, RegisterSession,
};
use isobar_metadata::ids::{Durability, lane_of};
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::{
    DirectoryId, Entry, Envelope, LaneId, PlacementId, SessionId, StateMachine, StreamId, TopicId,
};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use isobar_wal::conformance::batch;
use object_store::ObjectStore as _;
use parking_lot::Mutex;

use super::*;
use crate::cluster::ProposeFailed;
use crate::format::object_key;
use crate::{BucketOptions, StoreMetrics};

/// Bytes of a batch's value; four batches are more than is put in one piece.
const VALUE_BYTES: usize = 20 << 20;

/// The real state machine, without a log.
struct Quorum {
    machine: Mutex<Machine>,
    session: SessionId,
}

struct Machine {
    state: StateMachine,
    index: u64,
    /// Commands so far.
    lanes: BTreeMap<LaneId, u64>,
}

impl Machine {
    fn unnumbered(&mut self, command: Command) -> CommandResult {
        self.envelope(Envelope::unnumbered(command))
    }

    fn numbered(&mut self, session: SessionId, lane: LaneId, command: Command) -> CommandResult {
        let number = self.lanes.entry(lane).or_insert(0);
        *number += 1;
        let envelope = Envelope::new(session, lane, *number, *number, command);
        self.envelope(envelope)
    }

    fn envelope(&mut self, envelope: Envelope) -> CommandResult {
        self.index += 1;
        let applied = self.state.apply(self.index, &Entry::new(1_767_225_600_000, vec![envelope]));
        applied.results.into_iter().next().unwrap()
    }
}

#[async_trait]
impl Proposer for Quorum {
    fn image(&self) -> Image {
        self.machine.lock().state.image()
    }

    async fn barrier(&self) -> Result<(), ProposeFailed> {
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed> {
        Ok(self.machine.lock().numbered(self.session, LaneId::CONTROL, command))
    }

    fn session(&self) -> SessionId {
        self.session
    }
}

/// One upload in the bucket with four batches of one partition, each an extent.
async fn uploaded(bucket: &Bucket) -> Arc<Quorum> {
    let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
    let mut machine = Machine { state: StateMachine::new(format), index: 0, lanes: BTreeMap::new() };
    let directory = DirectoryId::from([9; 16]);
    let command = RegisterDirectory { directory, node_id: 1, zone: String::new(), cloud: String::new() };
    machine.unnumbered(Command::RegisterDirectory(command));
    let command = RegisterSession {
        node_id: 1,
        life: DirectoryId::from([100; 16]),
        host: "localhost".to_owned(),
        port: 1,
        home_store: StoreId(1),
        feature_level: isobar_metadata::command::FEATURE_LEVEL,
        ..RegisterSession::default()
    };
    let result = machine.unnumbered(Command::RegisterSession(command));
    let CommandResult::Session(granted) = result else { panic!("{result:?}") };
    let session = granted.session;
    let quorum = Arc::new(Quorum { machine: Mutex::new(machine), session });

    let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
    let open = OpenStream { lane, ensemble: vec![directory], write_quorum: 1 };
    let result = quorum.propose(Command::OpenStream(open)).await.unwrap();
    let CommandResult::Stream(granted) = result else { panic!("{result:?}") };
    let topic_id = TopicId::from([1; 16]);
    let topic = NewTopic {
        name: "t".to_owned(),
        topic_id,
        partitions: 1,
        replication_factor: 1,
        configs: BTreeMap::from([("retention.ms".to_owned(), "-1".to_owned())]),
        placement: PlacementId::DEFAULT,
    };
    let create = CreateTopics { topics: vec![topic], validate_only: false };
    quorum.propose(Command::CreateTopics(create)).await.unwrap();

    let batches: Vec<Bytes> = (0..4).map(|n| with_offset(n, &batch(n as u8, VALUE_BYTES))).collect();
    commit(&quorum, lane, granted.stream, topic_id, &batches);
    let grant = Command::GrantObjects(GrantObjects { count: 1, lifetime_ms: 3_600_000 });
    let result = quorum.propose(grant).await.unwrap();
    let CommandResult::Objects(granted) = result else { panic!("{result:?}") };
    let object = granted.first;
    let (mut position, mut runs) = (0, Vec::new());
    for (offset, batch) in (0..).zip(&batches) {
        let size_bytes = batch.len() as u32;
        let (base_offset, last_offset, max_timestamp_ms) = (offset, offset, 1_700_000_000_000);
        let run = ObjectRun {
            topic_id,
            partition: 0,
            base_offset,
            last_offset,
            position,
            size_bytes,
            max_timestamp_ms,
        };
        runs.push(run);
        position += u64::from(size_bytes);
    }
    bucket.put(&object_key(object), batches).await.unwrap();
    let commit = CommitObject { object, store: StoreId(1), runs, more_parts: false, size_bytes: position };
    let result = quorum.propose(Command::CommitObject(commit)).await.unwrap();
    assert!(matches!(result, CommandResult::ObjectCommitted(result) if result.applied.len() == 4));
    quorum
}

fn commit(quorum: &Quorum, lane: LaneId, stream: StreamId, topic_id: TopicId, batches: &[Bytes]) {
    let of = |(ordinal, batch): (u32, &Bytes)| {
        CommitBatch::plain(ordinal, 1, 1_700_000_000_000, batch.len() as u32)
    };
    let batches = (0..).zip(batches).map(of).collect();
    let partition = CommitPartition { topic_id, partition: 0, class_epoch: 0, batches, position: 0 };
    let commit = CommitChunk { stream, chunk: 0, acknowledged: 1, partitions: vec![partition], object: None };
    let result = quorum.machine.lock().numbered(quorum.session, lane, Command::CommitChunk(commit));
    let CommandResult::Chunk(result) = result else { panic!("{result:?}") };
    assert!(result.batches.iter().all(|batch| batch.error_code == 0), "{result:?}");
}

/// Base offset and leader epoch, which no checksum covers, as an upload stamps them.
fn with_offset(offset: i64, batch: &Bytes) -> Bytes {
    let mut bytes = batch.to_vec();
    bytes[..8].copy_from_slice(&offset.to_be_bytes());
    bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
    Bytes::from(bytes)
}

struct Rig {
    sim: SimBucket,
    quorum: Arc<Quorum>,
    compactor: Compactor,
}

impl Rig {
    /// Uploads that were begun and not ended, and objects.
    async fn seen(&self) -> (u64, usize) {
        (self.sim.open_uploads(), self.sim.objects().list(None).count().await)
    }

    /// A compactor that has written a part or two of a large object.
    async fn in_a_merge() -> Self {
        let host = Host::real();
        let sim = SimBucket::new(1, FaultPlan::NONE);
        let store = Arc::new(sim.clone());
        let bucket = Bucket::new(&host, "b", "", store, BucketOptions::default(), StoreMetrics::default());
        let quorum = uploaded(&bucket).await;
        // Each batch is a run, at a pace that leaves time between them.
        let limits = Limits { merge_objects: 1, run_bytes: 1, ..Limits::default() };
        let options = CompactorOptions { bytes_per_s: 4 << 20, limits, ..CompactorOptions::default() };
        let proposer: Arc<dyn Proposer> = Arc::clone(&quorum) as _;
        let compactor = Compactor::start(&host, bucket, proposer, options);
        while sim.open_uploads() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_secs(12)).await;
        let rig = Self { sim, quorum, compactor };
        assert_eq!(rig.seen().await, (1, 1), "half way");
        rig
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_merge_ends_as_one_object() {
    let rig = Rig::in_a_merge().await;
    while rig.sim.open_uploads() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let image = rig.quorum.image();
    let committed = image.objects().filter(|object| object.state == ObjectState::Committed as i32);
    assert_eq!(committed.map(|object| (object.refs, object.level)).collect::<Vec<_>>(), [(4, 1)]);
    rig.compactor.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_within_a_large_merge_leaves_no_parts() {
    let rig = Rig::in_a_merge().await;
    let asked = Instant::now();
    let Rig { sim, compactor, .. } = rig;
    compactor.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!((sim.open_uploads(), sim.objects().list(None).count().await), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_does_not_wait_long_for_a_store_that_does_not_answer() {
    let rig = Rig::in_a_merge().await;
    let hour = Duration::from_secs(3600);
    rig.sim.set_plan(FaultPlan { delay_ppm: 1_000_000, max_delay: hour, ..FaultPlan::NONE });
    let asked = Instant::now();
    rig.compactor.stop().await;
    assert!(asked.elapsed() <= STOP_PATIENCE + Duration::from_millis(10), "{:?}", asked.elapsed());
}
