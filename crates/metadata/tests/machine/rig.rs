//! A state machine with a follower, and short ways to say commands. After every entry it checks what must always hold.

use bytes::Bytes;
use isobar_metadata::command::*;
use isobar_metadata::index_block::{IndexBlock, extents_hash};
use isobar_metadata::record::{ObjectState, PlacementRecord, StoreRecord, object_level};
use isobar_metadata::result::*;
use isobar_metadata::*;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

pub(crate) const WAL_LANE: LaneId = LaneId(1);
pub(crate) const OBJECT_LANE: LaneId = LaneId(2);

pub(crate) struct Rig {
    pub(crate) machine: StateMachine,
    pub(crate) follower: Image,
    pub(crate) index: u64,
    pub(crate) time_ms: i64,
    /// Every entry as encoded, for replay.
    pub(crate) log: Vec<(u64, Vec<u8>)>,
    pub(crate) last_effects: Vec<EffectKind>,
    numbers: BTreeMap<(SessionId, LaneId), u64>,
    /// Index blocks by object and position.
    pub(crate) blocks: BTreeMap<(ObjectId, u64), Bytes>,
    /// The recovery cut after each entry.
    pub(crate) cuts: Vec<u64>,
    released: BTreeSet<(StreamId, u64)>,
    chunks: BTreeMap<StreamId, u64>,
    next_uuid: u128,
    /// Check everything after each entry (slow with many partitions).
    pub(crate) checked: bool,
}

/// Two stores more than dev, a second placement class that requires two of the three.
pub(crate) fn format() -> ClusterFormat {
    let mut format = ClusterFormat::dev("rig".into(), "one".into());
    format.stores.push(StoreRecord { store: StoreId(2), name: "two".into() });
    format.stores.push(StoreRecord { store: StoreId(3), name: "three".into() });
    format.placements.push(PlacementRecord {
        placement: PlacementId(1),
        allow: vec![],
        require: vec![StoreId(1), StoreId(2)],
        mirror: vec![StoreId(3)],
    });
    format
}

impl Rig {
    pub(crate) fn new() -> Self {
        let machine = StateMachine::new(format());
        let follower = machine.image();
        Self {
            machine,
            follower,
            index: 0,
            time_ms: 1_700_000_000_000,
            log: vec![],
            last_effects: vec![],
            numbers: BTreeMap::new(),
            blocks: BTreeMap::new(),
            cuts: vec![0],
            released: BTreeSet::new(),
            chunks: BTreeMap::new(),
            next_uuid: 1,
            checked: true,
        }
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        self.next_uuid += 1;
        Uuid::from_u128(self.next_uuid << 64 | self.next_uuid)
    }

    /// Goes on with a state machine that is there already.
    pub(crate) fn over(
        machine: StateMachine,
        time_ms: i64,
        blocks: BTreeMap<(ObjectId, u64), Bytes>,
    ) -> Self {
        let (index, follower) = (machine.applied_index(), machine.image());
        let (time_ms, cuts) = (time_ms.max(machine.time_ms()), vec![machine.view().recovery_cut()]);
        // Ids of the log before would come again.
        Self { machine, follower, index, time_ms, blocks, cuts, next_uuid: 1 << 40, ..Self::new() }
    }

    /// Applies one entry, to the machine and, by its effects, to the follower.
    pub(crate) fn run(&mut self, commands: Vec<Envelope>) -> Vec<CommandResult> {
        self.index += 1;
        let entry = Entry::new(self.time_ms, commands);
        let bytes = entry.encode_to_vec();
        let entry = Entry::from_bytes(bytes.clone().into()).unwrap();
        self.log.push((self.index, bytes));
        let applied = self.machine.apply(self.index, &entry);
        let sent = EffectBatch::from_bytes(applied.effects.encode_to_vec().into()).unwrap();
        assert_eq!(sent, *applied.effects);
        self.follower.apply(&sent).unwrap();
        self.last_effects = sent.effects.into_iter().filter_map(|effect| effect.kind).collect();
        self.note_released();
        let cut = self.machine.view().recovery_cut();
        assert!(self.cuts.last().unwrap() <= &cut && cut <= self.index, "the recovery cut fell");
        self.cuts.push(cut);
        if self.checked {
            self.check();
        }
        applied.results
    }

    /// The last entry's commands changed nothing (its time may have been a jump).
    pub(crate) fn did_nothing(&self) -> bool {
        self.last_effects.iter().all(|effect| matches!(effect, EffectKind::Cluster(_)))
    }

    fn note_released(&mut self) {
        for effect in &self.last_effects {
            match effect {
                EffectKind::Released(released) => {
                    for chunk in &released.chunks {
                        assert!(self.released.insert((released.stream, *chunk)), "released twice");
                    }
                }
                EffectKind::Appended(append) => {
                    let chunk = append.extent.wal().map(|wal| (wal.stream, wal.chunk));
                    assert_eq!(chunk.is_none(), append.store.is_some());
                    assert!(
                        chunk.is_none_or(|chunk| !self.released.contains(&chunk)),
                        "appended to a released chunk"
                    );
                }
                _ => {}
            }
        }
    }

    /// What must hold after any entry.
    pub(crate) fn check(&self) {
        let image = self.machine.image();
        assert!(self.follower == image, "the follower has another image");
        let mut partitions = 0;
        for view in (0..image.shards()).flat_map(|shard| image.shard_stored(shard)) {
            let topic = image.stored_topic(view.topic_id).expect("a partition has a topic");
            let placement = image.placement(topic.placement).unwrap();
            self.check_partition(&image, view, &placement.require);
            assert!(view.partition < topic.partitions);
            assert_eq!(image.view(view.key()).is_some(), image.topic(view.topic_id).is_some());
            partitions += 1;
        }
        let deleted = image.deleted_topics().map(|topic| &topic.record);
        let expected = image.topics().map(|topic| &topic.record).chain(deleted);
        assert_eq!(partitions, expected.map(|topic| topic.partitions).sum::<i32>());
        Self::check_references(&image);
        for stream in image.streams() {
            assert!(!stream.closed || !stream.live.is_empty(), "a closed stream without chunks is kept");
            for chunk in stream.live.keys() {
                assert!(!self.released.contains(&(stream.stream, *chunk)));
            }
        }
    }

    /// References are those that a recount over all partitions finds.
    fn check_references(image: &Image) {
        let mut objects: BTreeMap<ObjectId, (u32, u64)> = BTreeMap::new();
        let mut chunks = BTreeSet::new();
        let mut count = |object, bytes| {
            let (refs, live) = objects.entry(object).or_default();
            *refs += 1;
            *live += bytes;
        };
        for view in (0..image.shards()).flat_map(|shard| image.shard_stored(shard)) {
            for extent in view.wal.values().chain(view.stores.values().flat_map(|extents| extents.values())) {
                match extent.location() {
                    Location::Wal(wal) => _ = chunks.insert((wal.stream, wal.chunk)),
                    Location::Object(location) => count(location.object, extent.size_bytes),
                    Location::Inline(_) => {}
                }
            }
            for pointer in view.indexed.values().flat_map(|pointers| pointers.values()) {
                count(pointer.object, u64::from(pointer.size_bytes));
                pointer.objects().for_each(|(object, bytes)| count(object, bytes));
                assert_eq!(pointer.objects().map(|(_, bytes)| bytes).sum::<u64>(), pointer.bytes);
            }
        }
        for object in image.objects() {
            let found = objects.remove(&object.object).unwrap_or_default();
            assert_eq!((object.refs, object.live_bytes), found, "{:?}", object.record);
            let state = ObjectState::try_from(object.state).unwrap();
            assert!(object.refs == 0 || state == ObjectState::Committed, "in use: {object:?}");
            let leaked = state == ObjectState::Committed && object.complete && object.refs == 0;
            assert!(!leaked, "nothing needs it: {object:?}");
        }
        assert!(objects.is_empty(), "extents in unknown objects {objects:?}");
        let live = image.streams().flat_map(|stream| stream.live.keys().map(|chunk| (stream.stream, *chunk)));
        assert_eq!(live.collect::<BTreeSet<_>>(), chunks);
    }

    fn check_partition(&self, image: &Image, view: &PartitionView, require: &[StoreId]) {
        assert!(0 <= view.log_start && view.log_start <= view.high_watermark);
        let listed = image.shard_in_wal(image.shard_of(view.key())).any(|other| other.key() == view.key());
        assert_eq!(listed, !view.wal.is_empty());
        assert_eq!(view.wal_bytes, view.wal.values().map(|extent| extent.size_bytes).sum::<u64>());
        for extents in view.stores.values().chain([&view.wal]) {
            let mut end = 0;
            for (base, extent) in extents {
                assert!(
                    *base == extent.base_offset && *base >= end && extent.last_offset >= *base,
                    "overlap"
                );
                assert!(extent.last_offset >= view.log_start, "an extent below the log start");
                end = extent.end_offset();
            }
            assert!(end <= view.high_watermark);
        }
        for offset in view.log_start..view.high_watermark {
            let found = view.locate(offset, &[]).unwrap_or_else(|| panic!("offset {offset} is lost"));
            assert!(found.contains(offset));
            if let Found::Indexed(pointer) = found {
                let block = &self.blocks[&(pointer.object, pointer.position)];
                let block = IndexBlock::of_pointer(block, view.key(), pointer).unwrap();
                assert!(block.find(offset).is_some_and(|extent| extent.object().is_some()));
            }
            if view.locate_in_wal(offset).is_none() {
                let stored = |store: &StoreId| view.locate_in_store(*store, offset).is_some();
                assert!(require.iter().all(stored), "offset {offset} left the WAL too early");
            }
        }
        for extent in view.wal.values() {
            let wal = extent.wal().unwrap();
            assert!(!self.released.contains(&(wal.stream, wal.chunk)), "a released chunk is pointed at");
            assert!(image.stream(wal.stream).unwrap().live.contains_key(&wal.chunk));
        }
        for (store, pointers) in &view.indexed {
            let mut end = 0;
            for (base, pointer) in pointers {
                assert!(*base == pointer.base_offset && *base >= end, "overlap");
                assert!(pointer.last_offset >= view.log_start, "a pointer below the log start");
                end = pointer.end_offset();
                let listed = view.stores.get(store).into_iter().flat_map(|extents| extents.values());
                let inside = |e: &Extent| e.base_offset <= pointer.last_offset && e.last_offset >= *base;
                assert!(!listed.into_iter().any(inside), "indexed and listed");
            }
        }
        for (store, extents) in &view.stores {
            for extent in extents.values() {
                let record = image.object(extent.object().expect("no object").object).unwrap();
                assert_eq!(record.store, *store, "{record:?}");
            }
        }
    }

    /// Restores from a snapshot, which must be the same, and goes on with that.
    pub(crate) fn restart(&mut self) {
        let restored = StateMachine::restore(&self.machine.freeze().to_vec()).unwrap();
        assert!(restored == self.machine, "the snapshot lost something");
        self.machine = restored;
    }

    /// Replays the log from nothing.
    pub(crate) fn replay(&self) -> StateMachine {
        let mut machine = StateMachine::new(format());
        for (index, bytes) in &self.log {
            machine.apply(*index, &Entry::from_bytes(bytes.clone().into()).unwrap());
        }
        machine
    }

    pub(crate) fn one(&mut self, envelope: Envelope) -> CommandResult {
        self.run(vec![envelope]).remove(0)
    }

    pub(crate) fn leader(&mut self, command: Command) -> CommandResult {
        self.one(Envelope::unnumbered(command))
    }

    pub(crate) fn next_number(&self, session: SessionId, lane: LaneId) -> u64 {
        self.numbers.get(&(session, lane)).copied().unwrap_or(FIRST_NUMBER)
    }

    /// The next number of a lane, with a floor that keeps the last few results.
    pub(crate) fn envelope(&mut self, session: SessionId, lane: LaneId, command: Command) -> Envelope {
        let number = self.next_number(session, lane);
        Envelope::new(session, lane, number, number.saturating_sub(8), command)
    }

    pub(crate) fn send(&mut self, session: SessionId, lane: LaneId, command: Command) -> CommandResult {
        let envelope = self.envelope(session, lane, command);
        let result = self.one(envelope);
        if result.refusal().is_none() {
            *self.numbers.entry((session, lane)).or_insert(FIRST_NUMBER) += 1;
        }
        result
    }

    pub(crate) fn control(&mut self, session: SessionId, command: Command) -> CommandResult {
        self.send(session, LaneId::CONTROL, command)
    }

    // ---- setting up ----

    pub(crate) fn register(&mut self, node_id: i32, zone: &str) -> SessionId {
        let life = self.uuid().into();
        let command = RegisterSession {
            node_id,
            life,
            host: format!("host{node_id}"),
            port: 9092,
            zone: zone.into(),
            ..RegisterSession::default()
        };
        match self.leader(Command::RegisterSession(command)) {
            CommandResult::Session(granted) => granted.session,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn directory(&mut self, node_id: i32) -> DirectoryId {
        let directory = self.uuid().into();
        let command = RegisterDirectory { directory, node_id, ..RegisterDirectory::default() };
        self.leader(Command::RegisterDirectory(command));
        directory
    }

    pub(crate) fn open(&mut self, session: SessionId, lane: LaneId, directory: DirectoryId) -> StreamId {
        let command = OpenStream { lane, ensemble: vec![directory], write_quorum: 1 };
        match self.control(session, Command::OpenStream(command)) {
            CommandResult::Stream(granted) if granted.error_code == 0 => granted.stream,
            other => panic!("{other:?}"),
        }
    }

    /// A session with an open stream in the default lane.
    pub(crate) fn broker(&mut self, node_id: i32) -> (SessionId, StreamId) {
        let session = self.register(node_id, "");
        let directory = self.directory(node_id);
        (session, self.open(session, WAL_LANE, directory))
    }

    pub(crate) fn new_topic(&mut self, name: &str, partitions: i32) -> NewTopic {
        NewTopic {
            name: name.into(),
            topic_id: self.uuid().into(),
            partitions,
            replication_factor: 3,
            ..NewTopic::default()
        }
    }

    pub(crate) fn create(&mut self, session: SessionId, topic: NewTopic) -> TopicResult {
        let command = CreateTopics { topics: vec![topic], validate_only: false };
        match self.control(session, Command::CreateTopics(command)) {
            CommandResult::Topics(mut results) => results.topics.remove(0),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn topic(&mut self, session: SessionId, name: &str, partitions: i32) -> TopicId {
        let topic = self.new_topic(name, partitions);
        let result = self.create(session, topic);
        assert_eq!(result.error_code, 0, "{result:?}");
        result.topic_id
    }

    // ---- chunks and objects ----

    pub(crate) fn next_chunk(&mut self, stream: StreamId) -> u64 {
        let chunk = self.chunks.entry(stream).or_insert(0);
        *chunk += 1;
        *chunk
    }

    pub(crate) fn chunk(&mut self, stream: StreamId, partitions: Vec<CommitPartition>) -> Command {
        let chunk = self.next_chunk(stream);
        Command::CommitChunk(CommitChunk { stream, chunk, acknowledged: 1, partitions, object: None })
    }

    /// Commits batches of one partition in the default lane.
    pub(crate) fn commit(
        &mut self,
        (session, stream): (SessionId, StreamId),
        (topic_id, partition): (TopicId, i32),
        batches: Vec<CommitBatch>,
    ) -> Vec<BatchResult> {
        let class_epoch = self.machine.view().topic(topic_id).map_or(0, |topic| topic.class_epoch);
        let command = self
            .chunk(stream, vec![CommitPartition { topic_id, partition, class_epoch, batches, position: 0 }]);
        match self.send(session, WAL_LANE, command) {
            CommandResult::Chunk(chunk) if chunk.error_code == 0 => chunk.batches,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn objects(&mut self, session: SessionId, count: u32) -> ObjectId {
        let command = GrantObjects { count, lifetime_ms: 60_000 };
        match self.control(session, Command::GrantObjects(command)) {
            CommandResult::Objects(granted) if granted.error_code == 0 => granted.first,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn upload(
        &mut self,
        session: SessionId,
        object: ObjectId,
        store: StoreId,
        runs: Vec<ObjectRun>,
    ) -> ObjectCommitted {
        let command = CommitObject { object, store, runs, more_parts: false, size_bytes: 100 };
        match self.control(session, Command::CommitObject(command)) {
            CommandResult::ObjectCommitted(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn compact(
        &mut self,
        session: SessionId,
        object: ObjectId,
        store: StoreId,
        runs: Vec<CompactedRun>,
    ) -> ObjectCommitted {
        let level = object_level::MERGED;
        let command = CompactObjects { object, store, size_bytes: 100, more_parts: false, level, runs };
        match self.control(session, Command::CompactObjects(command)) {
            CommandResult::ObjectCommitted(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    /// What an indexer says of extents, and their block.
    pub(crate) fn index_run(
        &mut self,
        object: ObjectId,
        position: u64,
        topic_id: TopicId,
        partition: i32,
        extents: &[Extent],
    ) -> IndexRun {
        let block = IndexBlock::new(PartitionKey::new(topic_id, partition), extents.to_vec()).to_bytes();
        let size_bytes = block.len() as u32;
        self.blocks.insert((object, position), block);
        IndexRun {
            topic_id,
            partition,
            base_offset: extents[0].base_offset,
            last_offset: extents[extents.len() - 1].last_offset,
            extents: extents.len() as u32,
            hash: extents_hash(extents),
            position,
            size_bytes,
        }
    }

    pub(crate) fn commit_index(
        &mut self,
        session: SessionId,
        object: ObjectId,
        store: StoreId,
        runs: Vec<IndexRun>,
    ) -> ObjectCommitted {
        let command = CommitIndex { object, store, size_bytes: 100, runs };
        match self.control(session, Command::CommitIndex(command)) {
            CommandResult::ObjectCommitted(committed) => committed,
            other => panic!("{other:?}"),
        }
    }

    /// Deletes a topic and ends its window at once.
    pub(crate) fn delete_for_good(&mut self, session: SessionId, topic: TopicId) {
        self.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic] }));
        self.control(session, Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic] }));
    }

    pub(crate) fn log_start(
        &mut self,
        session: SessionId,
        topic_id: TopicId,
        partition: i32,
        log_start: i64,
    ) {
        let partitions = vec![NewLogStart { topic_id, partition, log_start }];
        self.control(session, Command::MoveLogStart(MoveLogStart { partitions, reason: 0 }));
    }

    pub(crate) fn view(&self, topic_id: TopicId, partition: i32) -> &PartitionView {
        self.machine.view().partition(topic_id, partition).unwrap()
    }
}

/// A plain batch.
pub(crate) fn plain(ordinal: u32, record_count: u32) -> CommitBatch {
    CommitBatch::plain(ordinal, record_count, 1000 + i64::from(ordinal), 100)
}

/// A batch of an idempotent producer.
pub(crate) fn idempotent(producer_id: i64, epoch: i32, base_sequence: i32, record_count: u32) -> CommitBatch {
    CommitBatch { producer_id, producer_epoch: epoch, base_sequence, ..plain(0, record_count) }
}

pub(crate) fn run_of(topic_id: TopicId, partition: i32, base_offset: i64, last_offset: i64) -> ObjectRun {
    ObjectRun {
        topic_id,
        partition,
        base_offset,
        last_offset,
        position: 0,
        size_bytes: 100,
        max_timestamp_ms: 2000,
    }
}
