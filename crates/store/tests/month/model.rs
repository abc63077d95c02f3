//! A cluster without bytes: the real state machine, the real planners of uploads, compaction, index and retention, and of each
//! object only its size. What it measures is what they decide.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    dead_code,
    reason = "tests; shared with the example of the same name"
)]

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::command::{
    CommitBatch, CommitChunk, CommitIndex, CommitObject, CommitPartition, CompactObjects, CompactedRun,
    CreateTopics, ExpireObjects, GrantObjects, IndexRun, LogStartReason, MoveLogStart, NewLogStart, NewTopic,
    ObjectRun, ObjectsDeleted, OpenStream, RegisterDirectory, RegisterSession, ReplacedExtent,
};
use isobar_metadata::ids::{Durability, lane_of};
use isobar_metadata::index_block::{IndexBlock, extents_hash};
use isobar_metadata::record::{ClusterFormat, ObjectState};
use isobar_metadata::{
    Command, CommandResult, DirectoryId, Entry, Envelope, Extent, Found, Image, LaneId, ObjectId,
    PartitionKey, PlacementId, SessionId, StateMachine, StoreId, StreamId, TopicId,
};
use isobar_store::compact_plan::{Inventory, Job, Limits};
use isobar_store::plan::{self, Candidate};
use isobar_store::retain_plan::{Policy, Step, Walk};
use isobar_store::{compact_plan, index_plan};
use isobar_testkit::Rng;

pub(crate) const STORE: StoreId = StoreId(1);
pub(crate) const START_MS: i64 = 1_767_225_600_000;
/// About what a footer takes for a batch.
const FOOTER_BYTES_A_BATCH: u64 = 17;
const GRACE_MS: i64 = 300_000;

/// A topic's load.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) partitions: i32,
    /// Bytes a second, over all partitions.
    pub(crate) bytes_per_s: u64,
    pub(crate) batch_bytes: u64,
    pub(crate) retention_ms: i64,
    pub(crate) retention_bytes: i64,
}

/// What was written and asked for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    pub(crate) produced_bytes: u64,
    pub(crate) uploaded_bytes: u64,
    pub(crate) compacted_bytes: u64,
    pub(crate) puts: u64,
    pub(crate) gets: u64,
    pub(crate) deletes: u64,
    pub(crate) jobs: [u64; 4],
}

/// The state of things.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Snapshot {
    pub(crate) objects: u64,
    pub(crate) bucket_bytes: u64,
    /// Of objects that something refers to: without those that wait for their delete.
    pub(crate) referenced_bytes: u64,
    pub(crate) retained_bytes: u64,
    pub(crate) extents: u64,
    pub(crate) pointers: u64,
    pub(crate) metadata_bytes: u64,
}

pub(crate) struct Model {
    pub(crate) machine: StateMachine,
    pub(crate) now_ms: i64,
    pub(crate) counts: Counts,
    pub(crate) limits: Limits,
    pub(crate) index_limits: index_plan::Limits,
    /// What lies in the bucket, and for how many bytes.
    pub(crate) bucket: BTreeMap<ObjectId, u64>,
    /// Which batches lie where: (object, position) to their base offsets and sizes; only if `with_batches`.
    pub(crate) batches: BTreeMap<(ObjectId, u64), Vec<(i64, u64)>>,
    pub(crate) with_batches: bool,
    blocks: BTreeMap<(ObjectId, u64), IndexBlock>,
    index: u64,
    number: u64,
    session: SessionId,
    stream: StreamId,
    chunk: u64,
    loads: Vec<(TopicId, Load)>,
    owed: Vec<f64>,
    rng: Rng,
    inventory: Option<Inventory>,
    /// Whether each look of the planner is compared with one from nothing.
    pub(crate) compare: bool,
}

fn inventory_of(image: &Image, limits: Limits, skip: &BTreeSet<(ObjectId, u64)>) -> Inventory {
    let mut inventory = Inventory::new(STORE, limits);
    inventory.follow(image, skip);
    inventory
}

pub(crate) fn topic(n: usize) -> TopicId {
    let mut id = [0_u8; 16];
    id[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    TopicId::from(id)
}

impl Model {
    pub(crate) fn new(loads: Vec<Load>, seed: u64) -> Self {
        let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
        let mut model = Self {
            machine: StateMachine::new(format),
            now_ms: START_MS,
            counts: Counts::default(),
            limits: Limits::default(),
            index_limits: index_plan::Limits::default(),
            bucket: BTreeMap::new(),
            batches: BTreeMap::new(),
            with_batches: false,
            blocks: BTreeMap::new(),
            index: 0,
            number: 0,
            session: SessionId::NONE,
            stream: StreamId(0),
            chunk: 0,
            owed: vec![0.0; loads.len()],
            loads: loads.into_iter().enumerate().map(|(n, load)| (topic(n), load)).collect(),
            rng: Rng::new(seed),
            inventory: None,
            compare: false,
        };
        model.begin();
        model
    }

    fn begin(&mut self) {
        let directory = DirectoryId::from([9; 16]);
        let register = RegisterDirectory { directory, node_id: 1, zone: String::new(), cloud: String::new() };
        self.apply(Envelope::unnumbered(Command::RegisterDirectory(register)));
        let register = RegisterSession {
            node_id: 1,
            life: DirectoryId::from([100; 16]),
            host: "localhost".to_owned(),
            port: 1,
            home_store: STORE,
            feature_level: isobar_metadata::command::FEATURE_LEVEL,
            ..RegisterSession::default()
        };
        let CommandResult::Session(granted) =
            self.apply(Envelope::unnumbered(Command::RegisterSession(register)))
        else {
            panic!("no session")
        };
        self.session = granted.session;
        let open = OpenStream {
            lane: lane_of(Durability::Wal, PlacementId::DEFAULT),
            ensemble: vec![directory],
            write_quorum: 1,
        };
        let CommandResult::Stream(granted) = self.control(Command::OpenStream(open)) else {
            panic!("no stream")
        };
        self.stream = granted.stream;
        let topics = self.loads.iter().enumerate().map(|(n, (topic_id, load))| NewTopic {
            name: format!("t{n}"),
            topic_id: *topic_id,
            partitions: load.partitions,
            replication_factor: 1,
            configs: BTreeMap::from([
                ("retention.ms".to_owned(), load.retention_ms.to_string()),
                ("retention.bytes".to_owned(), load.retention_bytes.to_string()),
            ]),
            placement: PlacementId::DEFAULT,
        });
        let topics: Vec<NewTopic> = topics.collect();
        self.control(Command::CreateTopics(CreateTopics { topics, validate_only: false }));
    }

    fn apply(&mut self, envelope: Envelope) -> CommandResult {
        self.index += 1;
        let applied = self.machine.apply(self.index, &Entry::new(self.now_ms, vec![envelope]));
        applied.results.into_iter().next().unwrap()
    }

    pub(crate) fn control(&mut self, command: Command) -> CommandResult {
        self.number += 1;
        self.apply(Envelope::new(self.session, LaneId::CONTROL, self.number, self.number, command))
    }

    pub(crate) fn image(&self) -> Image {
        self.machine.image()
    }

    /// One chunk with what every topic is owed for `elapsed_ms`.
    pub(crate) fn produce(&mut self, elapsed_ms: i64) {
        let mut partitions = Vec::new();
        let mut ordinal = 0;
        for (n, (topic_id, load)) in self.loads.iter().enumerate() {
            self.owed[n] += load.bytes_per_s as f64 * elapsed_ms as f64 / 1000.0;
            let batches = (self.owed[n] / load.batch_bytes as f64) as u64;
            self.owed[n] -= (batches * load.batch_bytes) as f64;
            let mut by_partition: BTreeMap<i32, u32> = BTreeMap::new();
            for _ in 0..batches.min(2_000) {
                *by_partition.entry(self.rng.below(load.partitions as u64) as i32).or_insert(0) += 1;
            }
            // Many batches: fewer, larger ones.
            let scale = batches.div_ceil(2_000).max(1);
            for (partition, count) in by_partition {
                let size = (load.batch_bytes * scale) as u32;
                let batches: Vec<CommitBatch> =
                    (0..count).map(|n| CommitBatch::plain(ordinal + n, 10, self.now_ms, size)).collect();
                self.counts.produced_bytes += u64::from(count) * u64::from(size);
                ordinal += count;
                partitions.push(CommitPartition {
                    topic_id: *topic_id,
                    partition,
                    class_epoch: 0,
                    batches,
                    position: 0,
                });
            }
        }
        if partitions.is_empty() {
            return;
        }
        let commit =
            CommitChunk { stream: self.stream, chunk: self.chunk, acknowledged: 1, partitions, object: None };
        self.chunk += 1;
        let lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
        let envelope =
            Envelope::new(self.session, lane, self.chunk, self.chunk, Command::CommitChunk(commit));
        let result = self.apply(envelope);
        let CommandResult::Chunk(result) = result else { panic!("{result:?}") };
        assert!(result.batches.iter().all(|batch| batch.error_code == 0));
    }

    pub(crate) fn grant(&mut self) -> ObjectId {
        let result = self.control(Command::GrantObjects(GrantObjects { count: 1, lifetime_ms: 3_600_000 }));
        let CommandResult::Objects(granted) = result else { panic!("{result:?}") };
        granted.first
    }

    /// Uploads all that is due, as the uploader plans it.
    pub(crate) fn upload(&mut self, max_bytes: u64) {
        loop {
            let image = self.image();
            let views: Vec<_> = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)).collect();
            let candidates: Vec<_> = views.iter().map(|view| Candidate { view, from: 0 }).collect();
            let limits = plan::Limits { max_bytes, max_runs: 4_000 };
            let planned = plan::plan(&candidates, STORE, limits);
            if planned.runs.is_empty() {
                return;
            }
            let object = self.grant();
            let (mut position, mut runs) = (0, Vec::new());
            for run in &planned.runs {
                let size = run.size_bytes();
                if self.with_batches {
                    // Ten records a batch, as produced: offsets are enough to know a batch by.
                    let offsets = (run.base_offset()..run.end_offset()).step_by(10);
                    let count = ((run.end_offset() - run.base_offset()) / 10).max(1) as u64;
                    self.batches
                        .insert((object, position), offsets.map(|offset| (offset, size / count)).collect());
                }
                runs.push(ObjectRun {
                    topic_id: run.key.topic_id,
                    partition: run.key.partition,
                    base_offset: run.base_offset(),
                    last_offset: run.end_offset() - 1,
                    position,
                    size_bytes: size as u32,
                    max_timestamp_ms: run.extents.iter().map(|e| e.max_timestamp_ms).max().unwrap(),
                });
                position += size;
            }
            let size_bytes = position + position / 16_384 * FOOTER_BYTES_A_BATCH + 200;
            self.put(object, size_bytes);
            self.counts.uploaded_bytes += position;
            let commit = CommitObject { object, store: STORE, runs, more_parts: false, size_bytes };
            let result = self.control(Command::CommitObject(commit));
            let CommandResult::ObjectCommitted(result) = result else { panic!("{result:?}") };
            assert_eq!((result.error_code, result.applied.len()), (0, planned.runs.len()));
        }
    }

    fn put(&mut self, object: ObjectId, size_bytes: u64) {
        self.counts.puts += size_bytes.div_ceil(16 << 20).max(1);
        self.bucket.insert(object, size_bytes);
    }

    /// Does every job there is. With `lose` one in so many is done and never committed.
    pub(crate) fn compact(&mut self, lose: u64) {
        loop {
            let image = self.image();
            let inventory = self.inventory.get_or_insert_with(|| Inventory::new(STORE, self.limits));
            inventory.follow(&image, &BTreeSet::new());
            let job = inventory.plan();
            if self.compare {
                let anew = inventory_of(&image, self.limits, &BTreeSet::new());
                assert_eq!(*inventory, anew, "followed, it is what it would be if made anew");
                assert_eq!(job, anew.plan());
            }
            let Some(job) = job else { return };
            self.do_job(&image, &job, lose);
        }
    }

    /// Places that are to be left out, and then are not: the planner's look is what it would be from nothing.
    pub(crate) fn skip_some(&mut self) {
        let image = self.image();
        let mut inventory = inventory_of(&image, self.limits, &BTreeSet::new());
        let job = inventory.plan();
        let places = (0..image.shards()).flat_map(|shard| image.shard_partitions(shard));
        let places = places.filter_map(|view| view.stores.get(&STORE)?.values().next()?.object());
        let skip: BTreeSet<_> = places.map(|location| (location.object, location.position)).collect();
        inventory.follow(&image, &skip);
        assert_eq!(inventory, inventory_of(&image, self.limits, &skip));
        let extents = inventory.plan().into_iter().flat_map(|job| job.runs).flat_map(|run| run.extents);
        for location in extents.filter_map(|extent| extent.object()) {
            assert!(!skip.contains(&(location.object, location.position)), "left out, and planned");
        }
        inventory.follow(&image, &BTreeSet::new());
        assert_eq!(inventory.plan(), job);
    }

    fn do_job(&mut self, image: &Image, job: &Job, lose: u64) {
        let object = self.grant();
        let (mut position, mut runs) = (0, Vec::new());
        for run in &job.runs {
            let size = run.size_bytes();
            let mut batches = Vec::new();
            for extent in &run.extents {
                let location = extent.object().unwrap();
                assert!(self.bucket.contains_key(&location.object), "a source is gone");
                assert!(image.object(location.object).unwrap().refs > 0);
                if self.with_batches {
                    batches.extend_from_slice(&self.batches[&(location.object, location.position)]);
                }
            }
            if self.with_batches {
                self.batches.insert((object, position), batches);
            }
            runs.push(CompactedRun {
                run: ObjectRun {
                    topic_id: run.key.topic_id,
                    partition: run.key.partition,
                    base_offset: run.extents[0].base_offset,
                    last_offset: run.extents.last().unwrap().last_offset,
                    position,
                    size_bytes: size as u32,
                    max_timestamp_ms: run.extents.iter().map(|e| e.max_timestamp_ms).max().unwrap(),
                },
                replaces: (run.extents.iter())
                    .map(|extent| ReplacedExtent {
                        base_offset: extent.base_offset,
                        object: extent.object().unwrap().object,
                        position: extent.object().unwrap().position,
                    })
                    .collect(),
            });
            position += size;
        }
        let sources = job.sources().len() as u64;
        let window = ((32 << 20) / sources.max(1)).clamp(64 << 10, 4 << 20);
        self.counts.gets += sources.max(position / window);
        let size_bytes = position + position / 16_384 * FOOTER_BYTES_A_BATCH + 200;
        self.put(object, size_bytes);
        self.counts.compacted_bytes += position;
        self.counts.jobs[job.kind as usize] += 1;
        if lose > 0 && self.rng.below(lose) == 0 {
            return;
        }
        let level = job.level;
        let count = runs.len();
        let parts: Vec<Vec<CompactedRun>> = runs.chunks(2_000).map(<[CompactedRun]>::to_vec).collect();
        let last = parts.len() - 1;
        let mut applied = 0;
        for (n, runs) in parts.into_iter().enumerate() {
            let more_parts = n < last;
            let command = CompactObjects { object, store: STORE, size_bytes, more_parts, level, runs };
            let result = self.control(Command::CompactObjects(command));
            let CommandResult::ObjectCommitted(result) = result else { panic!("{result:?}") };
            assert_eq!(result.error_code, 0);
            applied += result.applied.len();
        }
        assert_eq!(applied, count, "nothing raced");
    }

    pub(crate) fn index(&mut self) {
        let planned = index_plan::plan(&self.image(), STORE, &self.index_limits);
        if planned.is_empty() {
            return;
        }
        let object = self.grant();
        let (mut position, mut runs) = (0, Vec::new());
        for planned in &planned {
            let block = IndexBlock::new(planned.key, planned.extents.clone());
            let size = block.to_bytes().len() as u64;
            self.blocks.insert((object, position), block);
            runs.push(IndexRun {
                topic_id: planned.key.topic_id,
                partition: planned.key.partition,
                base_offset: planned.extents[0].base_offset,
                last_offset: planned.extents.last().unwrap().last_offset,
                extents: planned.extents.len() as u32,
                hash: extents_hash(&planned.extents),
                position,
                size_bytes: size as u32,
            });
            position += size;
        }
        self.put(object, position);
        let count = runs.len();
        let command = CommitIndex { object, store: STORE, size_bytes: position, runs };
        let result = self.control(Command::CommitIndex(command));
        let CommandResult::ObjectCommitted(result) = result else { panic!("{result:?}") };
        assert_eq!((result.error_code, result.applied.len()), (0, count));
    }

    pub(crate) fn retain(&mut self) {
        let image = self.image();
        let written = |extent: &Extent| {
            let object = extent.object().and_then(|location| image.object(location.object));
            object.map_or_else(|| image.time_ms(), |object| object.since_ms)
        };
        let mut moves = Vec::new();
        for shard in 0..image.shards() {
            for view in image.shard_partitions(shard) {
                let Some(policy) = Policy::of(&image.topic(view.topic_id).unwrap().settings) else {
                    continue;
                };
                let mut walk = Walk::new(view, policy, image.time_ms());
                let log_start = loop {
                    match walk.step(&written) {
                        Step::Done(log_start) => break log_start,
                        Step::Open(pointer) => {
                            self.counts.gets += 1;
                            let block = &self.blocks[&(pointer.object, pointer.position)];
                            if !walk.opened(&block.extents, &written) {
                                break walk.end();
                            }
                        }
                    }
                };
                if let Some(log_start) = log_start {
                    moves.push(NewLogStart { topic_id: view.topic_id, partition: view.partition, log_start });
                }
            }
        }
        for partitions in moves.chunks(5_000) {
            let command =
                MoveLogStart { partitions: partitions.to_vec(), reason: LogStartReason::Retention as i32 };
            self.control(Command::MoveLogStart(command));
        }
    }

    /// What the deleter does, but for the archive's cut.
    pub(crate) fn delete(&mut self) {
        self.control(Command::ExpireObjects(ExpireObjects { limit: 0 }));
        let image = self.image();
        let due: Vec<ObjectId> = image
            .objects()
            .filter(|object| {
                let gone = object.state == ObjectState::Unreferenced as i32
                    && object.since_ms + GRACE_MS <= image.time_ms();
                let forget = object.state == ObjectState::Deleted as i32
                    && object.since_ms + 86_400_000 <= image.time_ms();
                gone || forget
            })
            .map(|object| object.object)
            .collect();
        for objects in due.chunks(1_000) {
            for object in objects {
                if self.bucket.remove(object).is_some() {
                    self.counts.deletes += 1;
                    let blocks = self.blocks.range((*object, 0)..=(*object, u64::MAX));
                    let blocks: Vec<_> = blocks.map(|(place, _)| *place).collect();
                    for place in blocks {
                        self.blocks.remove(&place);
                    }
                    if self.with_batches {
                        self.batches.retain(|(at, _), _| at != object);
                    }
                }
            }
            self.control(Command::ObjectsDeleted(ObjectsDeleted { objects: objects.to_vec() }));
        }
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let image = self.image();
        let mut snapshot = Snapshot {
            objects: self.bucket.len() as u64,
            bucket_bytes: self.bucket.values().sum(),
            ..Snapshot::default()
        };
        let referenced = image.objects().filter(|object| object.refs > 0);
        snapshot.referenced_bytes = referenced.map(|object| object.size_bytes).sum();
        for shard in 0..image.shards() {
            for view in image.shard_partitions(shard) {
                snapshot.extents += view.stores.get(&STORE).map_or(0, |extents| extents.len()) as u64;
                snapshot.pointers += view.indexed.get(&STORE).map_or(0, |pointers| pointers.len()) as u64;
                snapshot.retained_bytes += isobar_store::retain_plan::size_bytes(view);
            }
        }
        self.machine.freeze().encode(&mut |part| snapshot.metadata_bytes += part.len() as u64);
        snapshot
    }

    /// The batches of a partition from its log start to its end, as its locations say.
    pub(crate) fn read(&self, image: &Image, key: PartitionKey) -> Vec<(i64, u64)> {
        let view = image.view(key).unwrap();
        let (mut offset, mut read) = (view.log_start, Vec::new());
        while offset < view.high_watermark {
            let found = view.locate(offset, &[]).unwrap_or_else(|| panic!("{key:?} {offset} lies nowhere"));
            let extent = match found {
                Found::Extent(extent) => extent.clone(),
                Found::Indexed(pointer) => {
                    assert!(self.bucket.contains_key(&pointer.object), "an index object is gone");
                    self.blocks[&(pointer.object, pointer.position)].find(offset).unwrap().clone()
                }
            };
            if let Some(location) = extent.object() {
                assert!(self.bucket.contains_key(&location.object), "{key:?} {offset}: its object is gone");
                let batches = &self.batches[&(location.object, location.position)];
                assert_eq!(batches[0].0, extent.base_offset);
                read.extend(batches.iter().filter(|(base, _)| base + 10 > offset));
            }
            offset = extent.end_offset();
        }
        read
    }

    pub(crate) fn keys(&self) -> Vec<PartitionKey> {
        let keys = self.loads.iter().flat_map(|(topic_id, load)| {
            (0..load.partitions).map(|partition| PartitionKey::new(*topic_id, partition))
        });
        keys.collect()
    }

    pub(crate) fn draw(&mut self, below: u64) -> u64 {
        self.rng.below(below)
    }
}

/// Names for `Counts::jobs`.
pub(crate) fn job_names() -> [&'static str; 4] {
    use compact_plan::Kind;
    [Kind::Uploads, Kind::Dead, Kind::Single, Kind::Small].map(Kind::name)
}
