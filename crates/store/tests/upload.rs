//! The whole way of a batch: chunk, commit, upload, swap, release, read; with power cuts, a failing bucket, and metadata
//! that is the real state machine behind a made-up quorum.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::StateMachine;
use isobar_metadata::command::{
    ArchiveAdvanced, CommitBatch, CommitChunk, CommitPartition, CreateTopics, DeleteTopics, ExpireObjects,
    NewTopic, OpenStream, PurgeTopics, RegisterDirectory, RegisterSession,
};
use isobar_metadata::ids::{Durability, lane_of};
use isobar_metadata::record::{ClusterFormat, ObjectState};
use isobar_metadata::{
    Command, CommandResult, DirectoryId, Entry, Envelope, Found, Image, LaneId, Location, PartitionKey,
    PlacementId, SessionId, StreamId, TopicId,
};
use isobar_protocol::batch::{BatchHeader, Batches, TimestampType, verify_crc};
use isobar_store::format::Footer;
use isobar_store::fsck::{FsckOptions, FsckParts, Kind, Line, Summary, fsck};
use isobar_store::{
    Bucket, BucketOptions, Class, Compactor, CompactorOptions, Deleter, DeleterOptions, IndexReader, Indexer,
    IndexerOptions, MemoryCache, ObjectReader, ProposeFailed, Proposer, ReadObject, Retainer,
    RetainerOptions, RetainerParts, StoreMetrics, Uploader, UploaderOptions, UploaderParts, compact_plan,
    index_plan,
};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use isobar_wal::conformance::{append, batch, chunk};
use isobar_wal::{LocalReplica, ReplicaOptions, Wal, WalMetrics};
use object_store::ObjectStoreExt;
use parking_lot::Mutex;

/// Topic 1 as producers send it, topic 2 with the broker's time.
fn topic(n: u8) -> TopicId {
    TopicId::from([n; 16])
}

/// Metadata that outlives the node, as a quorum does.
struct Quorum {
    state: Mutex<(StateMachine, u64, u64)>,
    wal: Mutex<Option<LocalReplica>>,
    session: Mutex<SessionId>,
    /// How many proposals go through before one is applied without an answer; 0: all are answered.
    lose_every: u64,
}

impl Quorum {
    fn new(lose_every: u64) -> Arc<Self> {
        let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
        let quorum = Arc::new(Self {
            state: Mutex::new((StateMachine::new(format), 0, 0)),
            wal: Mutex::default(),
            session: Mutex::new(SessionId::NONE),
            lose_every,
        });
        quorum.register(0);
        let new = |n: u8, configs: BTreeMap<String, String>| NewTopic {
            name: format!("t{n}"),
            topic_id: topic(n),
            partitions: 4,
            replication_factor: 1,
            configs,
            placement: PlacementId::DEFAULT,
        };
        // Producers' timestamps are of 1970; and gone at once, once they are deleted.
        let config = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let kept = BTreeMap::from([config("retention.ms", "-1"), config("isobar.undelete.window.ms", "0")]);
        let mut stamped = kept.clone();
        stamped.insert("message.timestamp.type".to_owned(), "LogAppendTime".to_owned());
        let topics = vec![new(1, kept), new(2, stamped)];
        quorum.control(Command::CreateTopics(CreateTopics { topics, validate_only: false }));
        quorum
    }

    fn apply(&self, envelope: Envelope) -> CommandResult {
        let mut state = self.state.lock();
        state.1 += 1;
        let (index, time_ms) = (state.1, 1_767_225_600_000 + state.1 as i64 * 20);
        let applied = state.0.apply(index, &Entry::new(time_ms, vec![envelope]));
        if let Some(wal) = &*self.wal.lock() {
            wal.follow(&applied.effects);
        }
        applied.results.into_iter().next().unwrap()
    }

    /// A new life of the broker: fences the former one.
    fn register(&self, life: u8) {
        let register = RegisterSession {
            node_id: 1,
            life: DirectoryId::from([100 + life; 16]),
            host: "localhost".to_owned(),
            port: 1,
            cloud: String::new(),
            region: String::new(),
            zone: String::new(),
            home_store: isobar_metadata::StoreId(1),
            directory: None,
            feature_level: 1,
        };
        let result = self.apply(Envelope::unnumbered(Command::RegisterSession(register)));
        let CommandResult::Session(granted) = result else { panic!("{result:?}") };
        *self.session.lock() = granted.session;
        self.state.lock().2 = 0;
    }

    fn control(&self, command: Command) -> CommandResult {
        let number = {
            let mut state = self.state.lock();
            state.2 += 1;
            state.2
        };
        self.apply(Envelope::new(*self.session.lock(), LaneId::CONTROL, number, number, command))
    }

    fn open_stream(&self, directory: DirectoryId) -> StreamId {
        let register = RegisterDirectory { directory, node_id: 1, zone: String::new(), cloud: String::new() };
        self.apply(Envelope::unnumbered(Command::RegisterDirectory(register)));
        let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
        let open = OpenStream { lane, ensemble: vec![directory], write_quorum: 1 };
        let result = self.control(Command::OpenStream(open));
        let CommandResult::Stream(granted) = result else { panic!("{result:?}") };
        assert_eq!(granted.error_code, 0, "{granted:?}");
        granted.stream
    }
}

#[async_trait]
impl Proposer for Quorum {
    fn image(&self) -> Image {
        self.state.lock().0.image()
    }

    async fn barrier(&self) -> Result<(), ProposeFailed> {
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let result = self.control(command);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if self.lose_every > 0 && self.state.lock().2.is_multiple_of(self.lose_every) {
            return Err(ProposeFailed("the answer was lost".to_owned()));
        }
        Ok(result)
    }

    fn session(&self) -> SessionId {
        *self.session.lock()
    }
}

/// What was acknowledged: by partition, offset and the batch as it was sent.
type Acked = Arc<Mutex<BTreeMap<PartitionKey, Vec<(i64, Bytes)>>>>;

/// One node on its disk and its bucket.
struct Node {
    host: Host,
    quorum: Arc<Quorum>,
    replica: LocalReplica,
    stream: StreamId,
    next: u64,
    uploader: Uploader,
    _deleter: Deleter,
    _compactor: Compactor,
    _indexer: Indexer,
    _retainer: Retainer,
    reader: ObjectReader,
    index: IndexReader,
    acked: Acked,
}

fn wal_options() -> ReplicaOptions {
    let journal = isobar_journal::Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        ..isobar_journal::Options::default()
    };
    ReplicaOptions { max_memory_bytes: 100 << 10, journal, ..ReplicaOptions::default() }
}

fn bucket_options() -> BucketOptions {
    BucketOptions {
        put_total: Duration::from_secs(3),
        get_total: Duration::from_secs(8),
        ..BucketOptions::default()
    }
}

/// Small enough that a few hundred batches go all the way.
fn compactor_options() -> CompactorOptions {
    let limits = compact_plan::Limits {
        merge_bytes: 150 << 10,
        merge_objects: 6,
        single_min_bytes: 200 << 10,
        single_max_bytes: 400 << 10,
        run_bytes: 32 << 10,
        dead_slack_bytes: 100 << 10,
        ..compact_plan::Limits::default()
    };
    let (interval, grant_lifetime) = (Duration::from_millis(40), Duration::from_secs(60));
    CompactorOptions {
        interval,
        bytes_per_s: 100 << 20,
        limits,
        part_runs: 2,
        grant_lifetime,
        ..CompactorOptions::default()
    }
}

fn indexer_options() -> IndexerOptions {
    let limits = index_plan::Limits {
        list_extents: 6,
        keep_extents: 2,
        block_extents: 4,
        settle_ms: 500,
        settled_bytes: 1,
        blocks: 100,
    };
    IndexerOptions { interval: Duration::from_millis(60), limits, ..IndexerOptions::default() }
}

impl Node {
    /// `None`: it died on the way.
    async fn start(
        host: Host,
        quorum: Arc<Quorum>,
        store: Option<SimBucket>,
        acked: Acked,
        life: u8,
    ) -> Option<Self> {
        let replica =
            LocalReplica::open(&host, Path::new("wal"), wal_options(), WalMetrics::default()).await.ok()?;
        quorum.register(life);
        // Effects wait from the image on, so that none is missed.
        replica.reconcile(&quorum.image());
        *quorum.wal.lock() = Some(replica.clone());
        let stream = quorum.open_stream(replica.directory());
        let metrics = StoreMetrics::default();
        let bucket = match store {
            Some(store) => Bucket::new(&host, "b", "pre", Arc::new(store), bucket_options(), metrics.clone()),
            None => {
                Bucket::open_dir(&host, "b", Path::new("b"), bucket_options(), metrics.clone()).await.ok()?
            }
        };
        let proposer: Arc<dyn Proposer> = quorum.clone();
        let parts = UploaderParts {
            host: host.clone(),
            wal: Arc::new(replica.clone()),
            bucket: bucket.clone(),
            proposer: Arc::clone(&proposer),
        };
        let options = UploaderOptions {
            interval: Duration::from_millis(30),
            trigger_bytes: 60 << 10,
            max_object_bytes: 100 << 10,
            ..UploaderOptions::default()
        };
        let uploader = Uploader::start(parts, options);
        let deleter = DeleterOptions {
            interval: Duration::from_millis(200),
            grace: Duration::from_secs(5),
            repeat: Duration::from_secs(60),
        };
        let deleter = Deleter::start(&host, bucket.clone(), None, Arc::clone(&proposer), deleter);
        let reader =
            ObjectReader::new(bucket.clone(), Arc::new(MemoryCache::new(&host, 4 << 20, metrics.clone())));
        let index = IndexReader::new(reader.clone());
        let compactor = Compactor::start(&host, bucket.clone(), Arc::clone(&proposer), compactor_options());
        let indexer = Indexer::start(&host, bucket, Arc::clone(&proposer), indexer_options());
        let parts = RetainerParts { host: host.clone(), proposer, index: index.clone(), metrics };
        let retainer = Retainer::start(parts, RetainerOptions { interval: Duration::from_millis(500) });
        Some(Self {
            host,
            quorum,
            replica,
            stream,
            next: 0,
            uploader,
            _deleter: deleter,
            _compactor: compactor,
            _indexer: indexer,
            _retainer: retainer,
            reader,
            index,
            acked,
        })
    }

    /// Sends one chunk of these batches; false if it did not become durable.
    async fn produce(&mut self, batches: &[(PartitionKey, Bytes)]) -> bool {
        let sealed = chunk(self.stream, self.next, batches);
        if append(&self.replica, sealed.clone()).await.is_err() {
            return false;
        }
        let partitions: Vec<_> = sealed
            .partitions()
            .map(|partition| CommitPartition {
                topic_id: partition.key.topic_id,
                partition: partition.key.partition,
                class_epoch: 0,
                position: 0,
                batches: (partition.first_ordinal..)
                    .zip(partition.batches)
                    .map(|(ordinal, found)| {
                        let info = found.info;
                        CommitBatch::plain(ordinal, info.record_count, info.max_timestamp_ms, found.bytes)
                    })
                    .collect(),
            })
            .collect();
        let keys: Vec<(PartitionKey, Bytes)> = sealed
            .partitions()
            .flat_map(|p| {
                let sealed = &sealed;
                (p.first_ordinal..).take(p.batches.len()).map(move |n| (p.key, sealed.batch(n).unwrap()))
            })
            .collect();
        let commit =
            CommitChunk { stream: self.stream, chunk: self.next, acknowledged: 1, partitions, object: None };
        let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
        self.next += 1;
        let session = *self.quorum.session.lock();
        let result = self.quorum.apply(Envelope::new(
            session,
            lane,
            self.next,
            self.next,
            Command::CommitChunk(commit),
        ));
        let CommandResult::Chunk(result) = result else { panic!("{result:?}") };
        assert_eq!((result.error_code, result.batches.len()), (0, keys.len()));
        for (answer, (key, bytes)) in result.batches.iter().zip(keys) {
            assert_eq!(answer.error_code, 0, "{answer:?}");
            self.acked.lock().entry(key).or_default().push((answer.base_offset, bytes));
        }
        self.uploader.nudge(sealed.batch_bytes());
        true
    }

    /// Reads everything that was acknowledged; says how many batches lie in objects. `None`: it died on the way.
    async fn check(&self) -> Option<usize> {
        let mut in_objects = 0;
        let acked = self.acked.lock().clone();
        for (key, batches) in acked {
            for (offset, sent) in batches {
                let mut tries = 0;
                let (found, base, in_object, append_time) = loop {
                    match self.read(key, offset).await {
                        Ok(read) => break read,
                        // A stale location, or a store that fails for a while: again with a newer image.
                        Err(_) if tries < 40 => tries += 1,
                        Err(_) if self.host.disk().list(Path::new("wal")).is_err() => return None,
                        Err(why) => panic!("{key:?} {offset}: {why}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                };
                in_objects += usize::from(in_object);
                let header = BatchHeader::parse(&found).unwrap();
                verify_crc(&found).unwrap();
                assert_eq!(found[61..], sent[61..], "{key:?} {offset}");
                assert_eq!(base, offset);
                if in_object {
                    assert_eq!((header.base_offset, header.leader_epoch), (offset, 0));
                    if key.topic_id == topic(2) {
                        assert_eq!(header.attributes.timestamp_type(), TimestampType::LogAppendTime);
                        assert!(header.max_timestamp_ms >= 1_767_225_600_000);
                    } else {
                        assert_eq!(found[16..], sent[16..]);
                    }
                } else {
                    assert_eq!(append_time >= 0, key.topic_id == topic(2));
                }
            }
        }
        Some(in_objects)
    }

    async fn read(&self, key: PartitionKey, offset: i64) -> Result<(Bytes, i64, bool, i64), String> {
        let image = self.quorum.image();
        let view = image.view(key).unwrap();
        let extent = match view.locate(offset, &[]) {
            Some(Found::Extent(extent)) => extent.clone(),
            Some(Found::Indexed(pointer)) => {
                self.index.resolve(key, pointer, offset).await.map_err(|error| error.to_string())?
            }
            None => return Err("no extent".to_owned()),
        };
        match extent.location().clone() {
            Location::Wal(wal) => {
                let read = self.replica.read(wal.stream, wal.chunk, wal.ordinals()).await;
                let batches = read.map_err(|error| error.to_string())?;
                let mut base = extent.base_offset;
                for batch in batches {
                    let next = base + i64::from(BatchHeader::parse(&batch).unwrap().last_offset_delta) + 1;
                    if next > offset {
                        return Ok((batch, base, false, extent.append_time_ms));
                    }
                    base = next;
                }
                Err("too few batches".to_owned())
            }
            Location::Object(object) => {
                let run = ReadObject::of(view, Class::CatchUp, &extent, object);
                let read = self.reader.read(run, offset, 1).await.map_err(|error| error.to_string())?;
                let parts = read.parts;
                let (header, bytes) = Batches::new(&parts[0]).next().unwrap().unwrap();
                Ok((parts[0].slice_ref(bytes), header.base_offset, true, -1))
            }
            Location::Inline(_) => Err("inline".to_owned()),
        }
    }
}

/// Produces for a while; every life first checks what the former ones left.
async fn live(node: Option<Node>, seed: u64, life: u64, ended: Arc<Mutex<Counts>>) {
    let Some(mut node) = node else { return };
    let Some(_) = node.check().await else { return };
    for round in 0..25_u64 {
        let n = seed * 7919 + life * 104_729 + round * 31;
        let batches: Vec<_> = (0..1 + n % 7)
            .map(|b| {
                let key = PartitionKey::new(topic(1 + ((n + b) % 2) as u8), ((n / 3 + b) % 4) as i32);
                (key, batch((n + b) as u8, ((n * 97 + b * 331) % 9000) as usize))
            })
            .collect();
        if !node.produce(&batches).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(n % 13)).await;
    }
    let Some(in_objects) = node.check().await else { return };
    let mut counts = ended.lock();
    counts.lives += 1;
    counts.in_objects += in_objects;
}

#[derive(Default)]
struct Counts {
    lives: u64,
    in_objects: usize,
}

/// Steps the world until the node dies or `done`.
fn step_until(world: &mut World, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..300_000 {
        if done() {
            return true;
        }
        if !world.step().is_empty() {
            return false;
        }
    }
    panic!("neither ended nor died");
}

/// After the storm: everything is uploaded, the WAL is empty, objects verify, garbage goes.
async fn aftermath(node: Option<Node>, counts: Arc<Mutex<Counts>>) {
    let node = node.unwrap();
    let total: usize = node.acked.lock().values().map(Vec::len).sum();
    node.uploader.drain().await;
    // An answer may have been lost: what the image shows then is drained once more.
    node.uploader.drain().await;
    assert_eq!(node.check().await, Some(total));
    assert_eq!(node.replica.live(), (0, 0));
    let bucket = node.reader.bucket().clone();
    // Every object that is committed says of itself what metadata says of it.
    let image = node.quorum.image();
    for record in image.objects().filter(|record| record.state == ObjectState::Committed as i32) {
        let key = isobar_store::format::object_key(record.object);
        assert_eq!(bucket.size(&key).await.unwrap(), record.size_bytes);
        let bytes = bucket.get_range(&key, 0..record.size_bytes).await.unwrap();
        let footer = Footer::of_object(&bytes).unwrap();
        footer.verify_body(&bytes).unwrap();
        assert_eq!((footer.object, footer.cluster_id.as_str()), (record.object, "clusterclusterclusterc"));
    }
    assert!(check_store(&node, true).await.is_clean());
    // A deleted topic's objects are deleted, and those that never were committed.
    node.quorum.control(Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic(1), topic(2)] }));
    node.quorum.control(Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic(1), topic(2)] }));
    let mut waits = 0;
    loop {
        let image = node.quorum.image();
        let prepared = |state| state == ObjectState::Prepared as i32;
        let left = image
            .objects()
            .filter(|record| record.state != ObjectState::Deleted as i32 && !prepared(record.state))
            .count();
        if left == 0 {
            break;
        }
        waits += 1;
        assert!(waits < 2000, "{left} objects are not deleted");
        // The archive goes on.
        let advanced = ArchiveAdvanced { through: image.index(), cut: image.recovery_cut() };
        node.quorum.apply(Envelope::unnumbered(Command::ArchiveAdvanced(advanced)));
        // Somebody's commands move the time on.
        for _ in 0..10 {
            node.quorum.apply(Envelope::unnumbered(Command::ExpireObjects(ExpireObjects { limit: 0 })));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let image = node.quorum.image();
    for record in image.objects().filter(|record| record.state == ObjectState::Deleted as i32) {
        assert!(bucket.size(&isobar_store::format::object_key(record.object)).await.is_err());
    }
    counts.lock().lives = u64::MAX;
}

/// Where a node dies between two steps of an object's life.
const POINTS: [&str; 13] = [
    "upload.after_read",
    "upload.after_put",
    "upload.after_commit",
    "compact.planned",
    "compact.granted",
    "compact.between_parts",
    "compact.after_put",
    "compact.after_commit",
    "index.before_put",
    "index.after_put",
    "index.after_commit",
    "delete.before_report",
    "store.after_sync",
];

/// `fsck` while everything goes on; what it finds beside, it panics over.
async fn check_store(node: &Node, deep: bool) -> Summary {
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let parts = FsckParts {
        host: node.host.clone(),
        bucket: node.reader.bucket().clone(),
        proposer: node.quorum.clone(),
        index: node.index.clone(),
    };
    let options = FsckOptions { store: isobar_metadata::StoreId(1), deep, repair: false };
    let reader = async {
        let mut findings = Vec::new();
        while let Some(line) = told.recv().await {
            if let Line::Finding(finding) = line {
                findings.push(finding);
            }
        }
        findings
    };
    let (summary, findings) = tokio::join!(fsck(&parts, options, tell), reader);
    assert!(findings.is_empty(), "{findings:#?}");
    summary.unwrap()
}

fn storm(
    seed: u64,
    store: Option<SimBucket>,
    lose_every: u64,
) -> (u64, usize, u32, BTreeMap<&'static str, u64>) {
    let quorum = Quorum::new(lose_every);
    let acked = Acked::default();
    let counts = Arc::new(Mutex::new(Counts::default()));
    let disk = Arc::new(SimDisk::new(seed));
    let mut world = World::new(seed);
    world.add_node("n", Arc::clone(&disk));
    let mut died = 0;
    for life in 1..=4_u64 {
        let (q, s, a, c) = (quorum.clone(), store.clone(), acked.clone(), counts.clone());
        let done = Arc::new(Mutex::new(false));
        let tell = Arc::clone(&done);
        world.boot("n", |host| async move {
            let node = Node::start(host, q, s, a, life as u8).await;
            live(node, seed, life, c).await;
            *tell.lock() = true;
        });
        if life % 2 == 1 {
            world.arm("n", 60 + world.below(900));
        } else {
            world.arm_point("n", POINTS[((seed + life) % POINTS.len() as u64) as usize]);
        }
        if !step_until(&mut world, || *done.lock()) {
            died += 1;
        }
        world.crash("n");
        disk.crash(seed * 31 + life);
    }
    if let Some(store) = &store {
        store.set_plan(FaultPlan::NONE);
    }
    let in_objects = counts.lock().in_objects;
    let lives = counts.lock().lives;
    let (q, a, c) = (quorum, acked, counts.clone());
    let last = store;
    world.boot("n", |host| async move {
        aftermath(Node::start(host, q, last, a, 99).await, c).await;
    });
    assert!(step_until(&mut world, || counts.lock().lives == u64::MAX), "died in the calm");
    (lives, in_objects, died, world.points_passed("n"))
}

#[test]
fn nothing_acknowledged_is_lost_on_the_way_to_a_directory() {
    let (mut died, mut in_objects, mut points) = (0, 0, BTreeMap::new());
    for seed in 0..25 {
        let result = storm(seed, None, if seed % 2 == 0 { 0 } else { 5 });
        died += result.2;
        in_objects += result.1;
        for (point, count) in result.3 {
            *points.entry(point).or_insert(0) += count;
        }
    }
    assert!(died > 40, "{died} deaths");
    for point in [
        "upload.after_read",
        "upload.after_put",
        "upload.after_commit",
        "compact.after_put",
        "compact.after_commit",
        "index.after_commit",
        "store.after_rename",
        "wal.after_sync",
    ] {
        assert!(points.get(point).copied().unwrap_or(0) > 10, "{point}: {points:?}");
    }
    assert!(in_objects > 500, "{in_objects} batches were read from objects");
}

#[test]
fn nothing_acknowledged_is_lost_on_the_way_to_a_bucket_that_fails() {
    let (mut died, mut faults) = (0, 0);
    for seed in 0..25 {
        let plan =
            FaultPlan { delay_ppm: 200_000, max_delay: Duration::from_millis(80), ..FaultPlan::all(60_000) };
        let store = SimBucket::new(seed, plan);
        died += storm(seed, Some(store.clone()), if seed % 2 == 0 { 0 } else { 5 }).2;
        faults += store.counts().values().sum::<u64>();
    }
    assert!(died > 40 && faults > 200, "{died} deaths, {faults} faults");
}

#[test]
fn a_store_outage_stops_uploads_and_loses_nothing() {
    let store = SimBucket::new(1, FaultPlan::NONE);
    let quorum = Quorum::new(0);
    let mut world = World::new(1);
    world.add_node("n", Arc::new(SimDisk::new(1)));
    let done = Arc::new(Mutex::new(false));
    let (q, s, tell) = (quorum, store.clone(), done.clone());
    world.boot("n", |host| async move {
        store.set_outage(true);
        let mut node = Node::start(host, q, Some(s), Acked::default(), 1).await.unwrap();
        for n in 0..20 {
            let batches = [(PartitionKey::new(topic(1), 0), batch(n, 5000))];
            assert!(node.produce(&batches).await);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        assert_eq!(node.check().await, Some(0));
        let metrics = node.reader.bucket().metrics().clone();
        assert!(metrics.failed_uploads.get() > 0 && metrics.waiting_bytes.get() > 90_000);
        store.set_outage(false);
        node.uploader.drain().await;
        assert_eq!(node.check().await, Some(20));
        assert_eq!(node.replica.live(), (0, 0));
        assert!(store.objects().head(&object_store::path::Path::from("x")).await.is_err());
        *tell.lock() = true;
    });
    assert!(step_until(&mut world, || *done.lock()));
}

/// What `fsck` finds in a bucket that somebody has been at, and what it mends.
#[test]
fn fsck_tells_what_is_wrong() {
    let store = SimBucket::new(5, FaultPlan::NONE);
    let quorum = Quorum::new(0);
    let mut world = World::new(5);
    world.add_node("n", Arc::new(SimDisk::new(5)));
    let done = Arc::new(Mutex::new(false));
    let (q, s, tell) = (quorum, store, done.clone());
    world.boot("n", |host| async move {
        let mut node = Node::start(host, q, Some(s.clone()), Acked::default(), 1).await.unwrap();
        for n in 0..5_u8 {
            let batches = [(PartitionKey::new(topic(1), i32::from(n % 3)), batch(n, 3000))];
            assert!(node.produce(&batches).await);
            node.uploader.drain().await;
        }
        assert_eq!(check_store(&node, true).await.found.len(), 0);
        let bucket = node.reader.bucket().clone();
        let image = node.quorum.image();
        let live: Vec<_> = image.objects().filter(|object| object.refs > 0).map(|object| **object).collect();
        assert!(live.len() >= 3);
        let key = |n: usize| isobar_store::format::object_key(live[n].object);
        // One is gone, one is cut, one has a flipped bit; two names that metadata never gave.
        bucket.delete(&key(0)).await.unwrap();
        let cut = bucket.get_range(&key(1), 0..live[1].size_bytes - 1).await.unwrap();
        bucket.put(&key(1), vec![cut]).await.unwrap();
        let mut flipped = bucket.get_range(&key(2), 0..live[2].size_bytes).await.unwrap().to_vec();
        flipped[1000] ^= 4;
        bucket.put(&key(2), vec![flipped.into()]).await.unwrap();
        let stray = isobar_store::format::object_key(isobar_metadata::ObjectId(1 << 40));
        bucket.put(&stray, vec![Bytes::from_static(b"stray")]).await.unwrap();
        bucket.put("data/07/readme.txt", vec![Bytes::from_static(b"hello")]).await.unwrap();
        let now_ms = node.host.now_ms();
        let probe = |ms: i64| format!("probe/{ms}-0123456789abcdef-object");
        for began_ms in [now_ms - 7_200_000, now_ms] {
            bucket.put(&probe(began_ms), vec![Bytes::from_static(b"probe")]).await.unwrap();
        }
        for repair in [true, false] {
            let found = findings(&node, repair).await;
            let mut expected = vec![
                (Kind::Damaged, key(2), false),
                (Kind::Foreign, "data/07/readme.txt".to_owned(), false),
                (Kind::Missing, key(0), false),
                (Kind::Short, key(1), false),
            ];
            if repair {
                expected.push((Kind::NeverGranted, stray.clone(), true));
                expected.push((Kind::Probe, probe(now_ms - 7_200_000), true));
            }
            expected.sort();
            assert_eq!(found, expected);
        }
        assert!(bucket.size(&stray).await.is_err());
        assert!(bucket.size(&probe(now_ms)).await.is_ok());
        assert!(bucket.size("data/07/readme.txt").await.is_ok());
        *tell.lock() = true;
    });
    assert!(step_until(&mut world, || *done.lock()));
}

async fn findings(node: &Node, repair: bool) -> Vec<(Kind, String, bool)> {
    let (tell, mut told) = tokio::sync::mpsc::channel(16);
    let parts = FsckParts {
        host: node.host.clone(),
        bucket: node.reader.bucket().clone(),
        proposer: node.quorum.clone(),
        index: node.index.clone(),
    };
    let options = FsckOptions { store: isobar_metadata::StoreId(1), deep: true, repair };
    let reader = async {
        let mut found = Vec::new();
        while let Some(line) = told.recv().await {
            if let Line::Finding(finding) = line {
                assert_eq!(finding.kind.is_loss(), finding.extent_count > 0, "{finding:?}");
                found.push((finding.kind, finding.key, finding.repaired));
            }
        }
        found
    };
    let (summary, mut found) = tokio::join!(fsck(&parts, options, tell), reader);
    assert!(!summary.unwrap().is_clean());
    found.sort();
    found
}
