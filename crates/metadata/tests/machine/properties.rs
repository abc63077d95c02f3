//! Any log of commands: the same hash and state when replayed, the same image by effects, the same after a snapshot at any
//! point; offsets dense and never without a location; repeats answered (the rig checks after every entry).

use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Register { node: i32, zone: u8 },
    Fence { session: usize },
    Update { session: usize, state: i32 },
    Open { session: usize, class: u32 },
    Close { stream: usize },
    Commit { stream: usize, parts: Vec<(usize, i32, Vec<Batch>)>, how: u8 },
    Grant { session: usize },
    Upload { session: usize, object: usize, store: u32, runs: Vec<(usize, i32, u8, u8)>, more: bool },
    Expire,
    Deleted,
    ObjectChunk { session: usize, object: usize, class: u32, parts: Vec<(usize, i32, Vec<Batch>)> },
    Compact { session: usize, object: usize, runs: Vec<(usize, u8, u8)>, more: bool },
    Index { session: usize, object: usize, runs: Vec<(usize, u8)> },
    Create { session: usize, name: u8, class: u32, partitions: i32, kind: u8 },
    Delete { session: usize, topic: usize },
    Undelete { session: usize, topic: usize, name: u8 },
    Purge { session: usize, topic: usize },
    Archive { back: u8 },
    Grow { session: usize, topic: usize, count: i32 },
    LogStart { session: usize, topic: usize, partition: i32, at: u8, reason: i32 },
    Group { session: usize, what: u8, group: u8, topic: usize },
    Configs { session: usize, topic: usize, value: u8 },
    Time { by: i64 },
    Repeat { back: usize },
    Restart,
    Incarnation,
}

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    skip: u32,
    count: u32,
    producer: Option<(u8, i32)>,
}

fn batch() -> impl Strategy<Value = Batch> {
    (0..2u32, prop_oneof![1 => Just(0), 15 => 1..5u32], prop::option::of((0..2u8, -1..3i32)))
        .prop_map(|(skip, count, producer)| Batch { skip, count, producer })
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let n = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let part = || (n(), 0..3i32, prop::collection::vec(batch(), 1..4));
    let run = || (n(), 0..3i32, any::<u8>(), any::<u8>());
    prop_oneof![
        3 => (0..3i32, 0..2u8).prop_map(|(node, zone)| Step::Register { node, zone }),
        1 => n().prop_map(|session| Step::Fence { session }),
        1 => (n(), 0..4i32).prop_map(|(session, state)| Step::Update { session, state }),
        4 => (n(), 0..2u32).prop_map(|(session, class)| Step::Open { session, class }),
        1 => n().prop_map(|stream| Step::Close { stream }),
        40 => (n(), prop::collection::vec(part(), 0..5), any::<u8>())
            .prop_map(|(stream, parts, how)| Step::Commit { stream, parts, how }),
        10 => n().prop_map(|session| Step::Grant { session }),
        14 => (n(), n(), 1..4u32, prop::collection::vec(run(), 0..4), any::<bool>())
            .prop_map(|(session, object, store, runs, more)| Step::Upload { session, object, store, runs, more }),
        16 => (n(), n(), 0..2u32, prop::collection::vec(part(), 0..4))
            .prop_map(|(session, object, class, parts)| Step::ObjectChunk { session, object, class, parts }),
        8 => (n(), n(), prop::collection::vec((n(), any::<u8>(), any::<u8>()), 0..4), any::<bool>())
            .prop_map(|(session, object, runs, more)| Step::Compact { session, object, runs, more }),
        8 => (n(), n(), prop::collection::vec((n(), any::<u8>()), 1..4))
            .prop_map(|(session, object, runs)| Step::Index { session, object, runs }),
        4 => (n(), n(), 0..6u8).prop_map(|(session, topic, name)| Step::Undelete { session, topic, name }),
        1 => (n(), n()).prop_map(|(session, topic)| Step::Purge { session, topic }),
        2 => any::<u8>().prop_map(|back| Step::Archive { back }),
        5 => Just(Step::Expire),
        2 => Just(Step::Deleted),
        5 => (n(), 0..4u8, 0..2u32, 1..4i32, any::<u8>()).prop_map(|(session, name, class, partitions, kind)| {
            Step::Create { session, name, class, partitions, kind }
        }),
        2 => (n(), n()).prop_map(|(session, topic)| Step::Delete { session, topic }),
        1 => (n(), n(), 1..5i32).prop_map(|(session, topic, count)| Step::Grow { session, topic, count }),
        4 => (n(), n(), 0..3i32, any::<u8>(), 0..2i32).prop_map(|(session, topic, partition, at, reason)| {
            Step::LogStart { session, topic, partition, at, reason }
        }),
        4 => (n(), 0..6u8, 0..3u8, n()).prop_map(|(session, what, group, topic)| Step::Group { session, what, group, topic }),
        3 => (n(), n(), any::<u8>()).prop_map(|(session, topic, value)| Step::Configs { session, topic, value }),
        3 => prop_oneof![3 => 0..90_000i64, 1 => Just(2 * TIME_JUMP_MS), 1 => Just(-5000i64)].prop_map(|by| Step::Time { by }),
        4 => n().prop_map(|back| Step::Repeat { back }),
        2 => Just(Step::Restart),
        1 => Just(Step::Incarnation),
    ]
}

/// Runs steps, and remembers what it needs to make them meaningful.
pub(crate) struct World {
    pub(crate) rig: Rig,
    sent: Vec<(Envelope, CommandResult)>,
    producers: Vec<i64>,
    sequences: BTreeMap<(i64, TopicId, i32), i32>,
    offsets: BTreeMap<PartitionKey, i64>,
    topics: Vec<TopicId>,
    streams: Vec<(SessionId, StreamId, u32)>,
    sessions: Vec<SessionId>,
    objects: Vec<ObjectId>,
    pub(crate) done: Done,
}

/// How often something happened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) appended: u64,
    pub(crate) swapped: u64,
    pub(crate) in_objects: u64,
    pub(crate) compacted: u64,
    pub(crate) indexed: u64,
    pub(crate) undeleted: u64,
    pub(crate) purged: u64,
    pub(crate) archived: u64,
}

fn pick<T: Copy>(list: &[T], n: usize) -> Option<T> {
    (!list.is_empty()).then(|| list[n % list.len()])
}

/// Mostly one that is of use now; one time in eight any.
fn pick_useful<T: Copy>(list: &[T], n: usize, useful: impl Fn(&T) -> bool) -> Option<T> {
    let chosen: Vec<T> = list.iter().copied().filter(|item| n.is_multiple_of(8) || useful(item)).collect();
    pick(&chosen, n / 8)
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            rig: Rig::new(),
            sent: vec![],
            producers: vec![],
            sequences: BTreeMap::new(),
            offsets: BTreeMap::new(),
            topics: vec![],
            streams: vec![],
            sessions: vec![],
            objects: vec![],
            done: Done::default(),
        };
        // Something to begin with, so that short logs do much.
        for (node, zone) in [(0, 0), (1, 1)] {
            world.step(Step::Register { node, zone });
            for class in 0..2 {
                world.step(Step::Open { session: node as usize, class });
                let (session, name) = (0, (node as u8) * 2 + class as u8);
                world.step(Step::Create { session, name, class, partitions: 2, kind: name });
            }
            world.step(Step::Grant { session: 0 });
        }
        world
    }

    fn session(&self, n: usize) -> Option<SessionId> {
        let image = self.rig.machine.view();
        pick_useful(&self.sessions, n, |id| image.session(*id).is_some_and(|session| !session.is_fenced()))
    }

    fn some_topic(&self, n: usize, class: Option<u32>) -> Option<TopicId> {
        let image = self.rig.machine.view();
        let useful =
            |id: &TopicId| image.topic(*id).is_some_and(|topic| class.is_none_or(|c| topic.placement.0 == c));
        pick_useful(&self.topics, n, useful)
    }

    fn control(&mut self, session: usize, command: Command) -> Option<CommandResult> {
        let session = self.session(session)?;
        let envelope = self.rig.envelope(session, LaneId::CONTROL, command);
        let result = self.rig.send(session, LaneId::CONTROL, envelope.command.clone().unwrap());
        self.keep(envelope, &result);
        Some(result)
    }

    fn keep(&mut self, envelope: Envelope, result: &CommandResult) {
        if result.refusal().is_none() {
            self.sent.push((envelope, result.clone()));
        }
    }

    pub(crate) fn step(&mut self, step: Step) {
        match step {
            Step::Register { node, zone } => {
                let session = self.rig.register(node, ["east", "west"][zone as usize]);
                self.sessions.push(session);
                let directory = self.rig.directory(node);
                for class in 0..2 {
                    let lane = lane_of(Durability::Wal, PlacementId(class));
                    self.streams.push((session, self.rig.open(session, lane, directory), class));
                }
            }
            Step::Fence { session } => {
                if let Some(session) = self.session(session) {
                    self.rig.leader(Command::FenceSession(FenceSession { session }));
                }
            }
            Step::Update { session, state } => {
                if let Some(session) = self.session(session) {
                    self.rig.leader(Command::UpdateSession(UpdateSession { session, state }));
                }
            }
            Step::Open { session, class } => self.open(session, class),
            Step::Close { stream } => {
                if let Some((session, stream, _)) = pick(&self.streams, stream) {
                    self.rig.control(session, Command::CloseStream(CloseStream { stream }));
                }
            }
            Step::Commit { stream, parts, how } => self.commit(stream, parts, how),
            Step::Upload { session, object, store, runs, more } => {
                self.upload(session, object, store, runs, more)
            }
            Step::ObjectChunk { session, object, class, parts } => {
                self.object_chunk(session, object, class, parts);
            }
            Step::Compact { session, object, runs, more } => self.compact(session, object, runs, more),
            Step::Index { session, object, runs } => self.index(session, object, runs),
            Step::Undelete { session, topic, name } => self.undelete(session, topic, name),
            Step::Purge { session, topic } => {
                if let Some(id) = self.deleted_topic(topic) {
                    let was = self.rig.machine.view().deleted_topic(id).is_some();
                    self.control(session, Command::PurgeTopics(PurgeTopics { topic_ids: vec![id] }));
                    self.done.purged += u64::from(was);
                }
            }
            Step::Archive { back } => {
                let through = self.rig.index.saturating_sub(u64::from(back) / 8);
                let cut = self.rig.cuts[through as usize];
                let command = Command::ArchiveAdvanced(ArchiveAdvanced { through, cut });
                let result = self.rig.leader(command);
                assert!(matches!(result, CommandResult::Done(done) if done.error_code == 0));
                self.done.archived += 1;
            }
            Step::Repeat { back } => self.repeat(back),
            Step::Restart => self.rig.restart(),
            Step::Time { by } => self.rig.time_ms += by,
            other => self.small_step(other),
        }
    }

    fn small_step(&mut self, step: Step) {
        match step {
            Step::Grant { session } => {
                let granted = self
                    .control(session, Command::GrantObjects(GrantObjects { count: 2, lifetime_ms: 60_000 }));
                if let Some(CommandResult::Objects(granted)) = granted {
                    self.objects.extend([granted.first, ObjectId(granted.first.0 + 1)]);
                }
                let granted = self.control(session, Command::GrantProducerId(GrantProducerId { count: 1 }));
                if let Some(CommandResult::ProducerIds(granted)) = granted {
                    self.producers.push(granted.first);
                }
            }
            Step::Expire => {
                self.rig.leader(Command::ExpireObjects(ExpireObjects { limit: 0 }));
                let purged = self.rig.leader(Command::ExpireTopics(ExpireTopics { limit: 0 }));
                if let CommandResult::Expired(expired) = purged {
                    self.done.purged += expired.count;
                }
                self.rig.leader(Command::ExpireProducers(ExpireProducers { shard: 7 }));
                self.rig.leader(Command::ExpireOffsets(ExpireOffsets {
                    retention_ms: 100_000,
                    ..Default::default()
                }));
            }
            Step::Deleted => {
                let objects = self.objects.clone();
                self.control(0, Command::ObjectsDeleted(ObjectsDeleted { objects }));
            }
            Step::Create { session, name, class, partitions, kind } => {
                let mut topic = self.rig.new_topic(&format!("topic{name}"), partitions);
                topic.placement = PlacementId(class);
                let mut set = |name: &str, value: &str| _ = topic.configs.insert(name.into(), value.into());
                if kind & 1 == 1 {
                    set("message.timestamp.type", "LogAppendTime");
                }
                if kind & 2 == 2 {
                    set("isobar.durability", "object");
                }
                if kind & 4 == 4 {
                    set(
                        "isobar.undelete.window.ms",
                        ["0", "50000", "100000", "100000"][usize::from(kind / 16 % 4)],
                    );
                }
                let id = topic.topic_id;
                let command = CreateTopics { topics: vec![topic], validate_only: false };
                let result = self.control(session, Command::CreateTopics(command));
                if matches!(result, Some(CommandResult::Topics(results)) if results.topics[0].error_code == 0)
                {
                    self.topics.push(id);
                }
            }
            Step::Delete { session, topic } => {
                if let Some(id) = self.some_topic(topic, None) {
                    self.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![id] }));
                }
            }
            Step::Grow { session, topic, count } => {
                if let Some(topic_id) = self.some_topic(topic, None) {
                    let topics = vec![MorePartitions { topic_id, count }];
                    self.control(
                        session,
                        Command::CreatePartitions(CreatePartitions { topics, validate_only: false }),
                    );
                }
            }
            Step::LogStart { session, topic, partition, at, reason } => {
                if let Some(topic_id) = self.some_topic(topic, None) {
                    let end = self.offsets.get(&PartitionKey::new(topic_id, partition)).copied().unwrap_or(0);
                    let log_start = if at > 250 { -1 } else { end * i64::from(at) / 250 };
                    let partitions = vec![NewLogStart { topic_id, partition, log_start }];
                    self.control(session, Command::MoveLogStart(MoveLogStart { partitions, reason }));
                }
            }
            Step::Group { session, what, group, topic } => {
                self.group(session, what, format!("group{group}"), topic)
            }
            Step::Configs { session, topic, value } => {
                let name = self
                    .some_topic(topic, None)
                    .and_then(|id| self.rig.machine.view().topic(id).map(|t| t.name.clone()));
                let class = ["wal", "object"][usize::from(value / 4 % 2)].to_owned();
                let (resource_type, name, config, value) = match name {
                    Some(name) if value % 2 == 0 => (2, name, "isobar.durability", class),
                    Some(name) if value % 4 == 1 => (2, name, "retention.ms", value.to_string()),
                    _ => (4, String::new(), "log.retention.ms", value.to_string()),
                };
                let op = i32::from(value.len() == 3) % 5 / 3;
                let op = ConfigOp { name: config.into(), op, value: Some(value) };
                let resources = vec![AlterResource { resource_type, name, ops: vec![op] }];
                self.control(
                    session,
                    Command::AlterConfigs(AlterConfigs { resources, validate_only: false }),
                );
            }
            Step::Incarnation => {
                let incarnation = self.rig.machine.view().incarnation() + 1;
                self.rig.leader(Command::RaiseIncarnation(RaiseIncarnation { incarnation }));
                self.step(Step::Register { node: 0, zone: 0 });
            }
            other => unreachable!("{other:?}"),
        }
    }

    fn open(&mut self, session: usize, class: u32) {
        let Some(session) = self.session(session) else { return };
        let lane = lane_of(Durability::Wal, PlacementId(class));
        let directory = self.rig.machine.view().directories().last().unwrap().directory;
        let command = OpenStream { lane, ensemble: vec![directory], write_quorum: 1 };
        if let CommandResult::Stream(granted) = self.rig.control(session, Command::OpenStream(command))
            && granted.error_code == 0
        {
            self.streams.push((session, granted.stream, class));
        }
    }

    fn commit(&mut self, stream: usize, parts: Vec<(usize, i32, Vec<Batch>)>, how: u8) {
        let image = self.rig.machine.view();
        let open =
            |stream: &(SessionId, StreamId, u32)| image.stream(stream.1).is_some_and(|stream| !stream.closed);
        let Some((session, stream, class)) = pick_useful(&self.streams, stream, open) else { return };
        let lane = lane_of(Durability::Wal, PlacementId(class));
        let mut ordinal = 0;
        let mut partitions = vec![];
        for (topic, partition, batches) in parts {
            let Some(topic_id) = self.some_topic(topic, Some(class)) else { continue };
            let batches = batches.iter().map(|batch| {
                ordinal += 1 + batch.skip;
                self.batch(ordinal, topic_id, partition, batch)
            });
            let batches = batches.collect();
            let class_epoch = self.class_epoch(topic_id) + u32::from(how == 77);
            partitions.push(CommitPartition { topic_id, partition, class_epoch, batches, position: 0 });
        }
        let command = self.rig.chunk(stream, partitions);
        let mut envelope = self.rig.envelope(session, lane, command.clone());
        if how > 240 {
            // Too early: refused, and nothing happens.
            envelope.number += 1 + u64::from(how - 240);
            let result = self.rig.one(envelope);
            assert!(result.refusal().is_some() && self.rig.did_nothing());
            return;
        }
        let result = self.rig.send(session, lane, command.clone());
        self.keep(envelope, &result);
        self.done.appended += self.note_appended(command, result);
    }

    fn class_epoch(&self, topic_id: TopicId) -> u32 {
        self.rig.machine.view().topic(topic_id).map_or(0, |topic| topic.class_epoch)
    }

    /// Checks the answers to a chunk against the model; how many batches were appended.
    fn note_appended(&mut self, command: Command, result: CommandResult) -> u64 {
        let (CommandResult::Chunk(result), Command::CommitChunk(command)) = (result, command) else {
            return 0;
        };
        if result.error_code != 0 {
            assert!(result.batches.is_empty());
            return 0;
        }
        let batches =
            command.partitions.iter().flat_map(|part| part.batches.iter().map(move |batch| (part, batch)));
        let mut answers = result.batches.iter();
        let mut appended = 0;
        for (part, batch) in batches {
            let answer = answers.next().unwrap();
            let key = PartitionKey::new(part.topic_id, part.partition);
            if answer.error_code != 0 || answer.duplicate {
                continue;
            }
            let end = self.offsets.entry(key).or_insert(0);
            assert_eq!(answer.base_offset, *end, "offsets are dense and given once");
            *end += i64::from(batch.record_count);
            appended += 1;
            if batch.producer_id >= 0 {
                let next = batch.base_sequence + batch.record_count as i32;
                self.sequences.insert((batch.producer_id, part.topic_id, part.partition), next);
            }
        }
        assert!(answers.next().is_none());
        appended
    }

    fn object_chunk(
        &mut self,
        session: usize,
        object: usize,
        class: u32,
        parts: Vec<(usize, i32, Vec<Batch>)>,
    ) {
        let Some(session) = self.session(session) else { return };
        let image = self.rig.machine.view();
        let mine = |id: &ObjectId| {
            let prepared = |object: &Object| object.state == ObjectState::Prepared as i32;
            image.object(*id).is_some_and(|object| prepared(object) && object.session == session)
        };
        let Some(object) = pick_useful(&self.objects, object, mine) else { return };
        let lane = lane_of(Durability::Object, PlacementId(class));
        let of_class: Vec<TopicId> = {
            let topics = image.topics().filter(|topic| topic.settings.durability == Durability::Object);
            topics.filter(|topic| topic.placement.0 == class).map(|topic| topic.topic_id).collect()
        };
        let mut position = 0;
        let mut partitions = vec![];
        for (topic, partition, batches) in parts {
            let found = if topic % 8 == 1 { self.some_topic(topic, None) } else { pick(&of_class, topic) };
            let Some(topic_id) = found else { continue };
            let batches: Vec<_> =
                batches.iter().map(|batch| self.batch(0, topic_id, partition, batch)).collect();
            let bytes: u64 = batches.iter().map(|batch| u64::from(batch.size_bytes)).sum();
            let class_epoch = self.class_epoch(topic_id);
            partitions.push(CommitPartition { topic_id, partition, class_epoch, batches, position });
            position += bytes;
        }
        let chunk = Some(ChunkObject { object, store: StoreId(1), size_bytes: position });
        let command =
            Command::CommitChunk(CommitChunk { partitions, object: chunk, ..CommitChunk::default() });
        let envelope = self.rig.envelope(session, lane, command.clone());
        let result = self.rig.send(session, lane, command.clone());
        self.keep(envelope, &result);
        self.done.in_objects += self.note_appended(command, result);
    }

    /// An object that a commit may name, mostly.
    fn open_object(&self, n: usize) -> Option<ObjectId> {
        let image = self.rig.machine.view();
        let open = |id: &ObjectId| {
            image.object(*id).is_some_and(|object| object.state < ObjectState::Unreferenced as i32)
        };
        pick_useful(&self.objects, n, open)
    }

    /// A partition and store with extents in its list.
    fn listed(&self, n: usize) -> Option<(PartitionKey, StoreId, Vec<Extent>)> {
        let image = self.rig.machine.view();
        let views = (0..image.shards()).flat_map(|shard| image.shard_stored(shard));
        let lists = views.flat_map(|view| view.stores.iter().map(|(store, list)| (view.key(), *store, list)));
        let lists: Vec<_> = lists.collect();
        let (key, store, list) = *lists.get(n % lists.len().max(1))?;
        Some((key, store, list.values().cloned().collect()))
    }

    fn compact(&mut self, session: usize, object: usize, runs: Vec<(usize, u8, u8)>, more: bool) {
        let Some(object) = self.open_object(object) else { return };
        let mut to = StoreId(1);
        let runs: Vec<CompactedRun> = runs
            .into_iter()
            .filter_map(|(list, from, len)| {
                let (key, store, extents) = self.listed(list)?;
                to = store;
                let first = usize::from(from) % extents.len();
                let last = (first + usize::from(len) % 4).min(extents.len() - 1);
                let chosen = &extents[first..=last];
                let mut replaces: Vec<ReplacedExtent> = chosen
                    .iter()
                    .map(|extent| {
                        let location = extent.object().unwrap();
                        let (object, position) = (location.object, location.position);
                        ReplacedExtent { base_offset: extent.base_offset, object, position }
                    })
                    .collect();
                if len > 240 {
                    replaces.pop();
                }
                let (base, last) = (chosen[0].base_offset, chosen[chosen.len() - 1].last_offset);
                Some(CompactedRun { run: run_of(key.topic_id, key.partition, base, last), replaces })
            })
            .collect();
        let level = object_level::MERGED;
        let command = CompactObjects { object, store: to, size_bytes: 9, more_parts: more, level, runs };
        let result = self.control(session, Command::CompactObjects(command));
        if let Some(CommandResult::ObjectCommitted(committed)) = result {
            self.done.compacted += committed.applied.len() as u64;
        }
    }

    fn index(&mut self, session: usize, object: usize, runs: Vec<(usize, u8)>) {
        let Some(object) = self.open_object(object) else { return };
        let fresh = self.rig.machine.view().object(object).is_some_and(|object| object.refs == 0);
        // A name is used once: a recovery may go back to before this object lost what pointed at it.
        let written = self.rig.blocks.range((object, 0)..=(object, u64::MAX)).next().is_some();
        if !fresh || written {
            return;
        }
        let (mut to, mut position) = (StoreId(1), 0);
        let mut index_runs = vec![];
        for (list, len) in runs {
            let Some((key, store, extents)) = self.listed(list) else { continue };
            to = store;
            let chosen = &extents[..=(usize::from(len) % 8).min(extents.len() - 1)];
            let run = self.rig.index_run(object, position, key.topic_id, key.partition, chosen);
            position += u64::from(run.size_bytes);
            index_runs.push(IndexRun { hash: run.hash ^ u64::from(len == 255), ..run });
        }
        let command = CommitIndex { object, store: to, size_bytes: position, runs: index_runs };
        let result = self.control(session, Command::CommitIndex(command));
        if let Some(CommandResult::ObjectCommitted(committed)) = result {
            self.done.indexed += committed.applied.len() as u64;
        }
    }

    fn deleted_topic(&self, n: usize) -> Option<TopicId> {
        let image = self.rig.machine.view();
        pick_useful(&self.topics, n, |id| image.deleted_topic(*id).is_some())
    }

    fn undelete(&mut self, session: usize, topic: usize, name: u8) {
        let Some(topic_id) = self.deleted_topic(topic) else { return };
        let deleted = self.rig.machine.view().deleted_topic(topic_id).is_some();
        let name = if name < 4 { format!("topic{name}") } else { String::new() };
        let result = self.control(session, Command::UndeleteTopic(UndeleteTopic { topic_id, name }));
        if let Some(CommandResult::Topics(results)) = result {
            let back = deleted && results.topics[0].error_code == 0;
            assert!(!back || self.rig.machine.view().topic(topic_id).is_some());
            self.done.undeleted += u64::from(back);
        }
    }

    fn batch(&self, ordinal: u32, topic_id: TopicId, partition: i32, batch: &Batch) -> CommitBatch {
        let Some((producer, off)) = batch.producer else { return plain(ordinal, batch.count) };
        let Some(id) = pick(&self.producers, usize::from(producer) + 1) else {
            return plain(ordinal, batch.count);
        };
        let next = self.sequences.get(&(id, topic_id, partition)).copied().unwrap_or(0);
        CommitBatch { ordinal, ..idempotent(id, 0, (next + off / 2).max(0), batch.count) }
    }

    fn upload(
        &mut self,
        session: usize,
        object: usize,
        store: u32,
        runs: Vec<(usize, i32, u8, u8)>,
        more: bool,
    ) {
        let Some(object) = self.open_object(object) else { return };
        let runs = runs.into_iter().filter_map(|(topic, partition, from, len)| {
            let image = self.rig.machine.view();
            let in_wal: Vec<_> = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)).collect();
            let (topic_id, partition) = match pick(&in_wal, topic) {
                Some(view) if topic % 8 != 1 => (view.topic_id, view.partition),
                _ => (self.some_topic(topic, None)?, partition),
            };
            let view = image.stored_view(PartitionKey::new(topic_id, partition))?;
            // Mostly whole extents from the WAL, as an uploader takes them; else any range at all.
            let extents: Vec<_> = view.wal.values().collect();
            if len % 8 == 0 || extents.is_empty() {
                let from = i64::from(from) % (view.high_watermark + 2);
                return Some(run_of(topic_id, partition, from, from + i64::from(len % 16)));
            }
            let first = usize::from(from) % extents.len();
            let last = (first + usize::from(len) % 6).min(extents.len() - 1);
            Some(run_of(topic_id, partition, extents[first].base_offset, extents[last].last_offset))
        });
        let command = CommitObject {
            object,
            store: StoreId(store),
            runs: runs.collect(),
            more_parts: more,
            size_bytes: 9,
        };
        if let Some(CommandResult::ObjectCommitted(committed)) =
            self.control(session, Command::CommitObject(command))
        {
            self.done.swapped += committed.applied.len() as u64;
        }
    }

    /// What an uploader does: all of the WAL, but for every second partition, in long runs or, where a part of one is stored
    /// already, in short ones.
    pub(crate) fn upload_most(&mut self, but: usize) {
        let image = self.rig.machine.image();
        let Some(session) = image.brokers().first().map(|session| session.session) else { return };
        for store in [StoreId(1), StoreId(2)] {
            let in_wal = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)).enumerate();
            let mut runs = vec![];
            for (_, view) in in_wal.filter(|(n, _)| (n + but).is_multiple_of(2)) {
                let placement = image.stored_topic(view.topic_id).unwrap().placement;
                if placement.0 == 0 && store.0 == 2 {
                    continue;
                }
                let run = |base, last| run_of(view.topic_id, view.partition, base, last);
                let (first, last) = (&view.wal.get_min().unwrap().1, &view.wal.get_max().unwrap().1);
                runs.push(run(first.base_offset, last.last_offset));
                runs.extend(view.wal.values().map(|extent| run(extent.base_offset, extent.last_offset)));
            }
            if !runs.is_empty() {
                let object = self.rig.objects(session, 1);
                self.rig.upload(session, object, store, runs);
            }
        }
    }

    fn repeat(&mut self, back: usize) {
        let Some((envelope, result)) = self.sent.get(self.sent.len().wrapping_sub(1 + back % 6)).cloned()
        else {
            return;
        };
        let again = self.rig.one(envelope);
        assert!(self.rig.did_nothing(), "a repeat did something");
        if again.refusal().is_none() {
            assert_eq!(again, result, "a repeat answered something else");
        }
    }

    fn group(&mut self, session: usize, what: u8, group: String, topic: usize) {
        let known = self.rig.machine.view().group(&group).cloned();
        let coordinator_epoch = known.as_ref().map_or(0, |group| group.coordinator_epoch);
        let topic_id = self.some_topic(topic, None).unwrap_or(TopicId::NIL);
        let command = match what {
            0 => Command::ClaimGroups(ClaimGroups { groups: vec![group, "group0".into()] }),
            1 => Command::DeleteGroups(DeleteGroups { groups: vec![group] }),
            2 => {
                let partitions = vec![TopicPartition { topic_id, partition: 0 }];
                Command::DeleteOffsets(DeleteOffsets { group, coordinator_epoch, partitions })
            }
            3 => {
                let members = vec![MemberRecord { member_id: "m".into(), ..MemberRecord::default() }];
                let members = if topic.is_multiple_of(2) { members } else { vec![] };
                let record = GroupRecord { members, generation: 1, ..GroupRecord::default() };
                Command::PutGroup(PutGroup { group, coordinator_epoch, record })
            }
            _ => {
                let offsets =
                    vec![OffsetToCommit { topic_id, partition: 0, offset: 3, ..OffsetToCommit::default() }];
                let generation = -1;
                Command::CommitOffsets(CommitOffsets {
                    group,
                    coordinator_epoch,
                    generation,
                    offsets,
                    ..Default::default()
                })
            }
        };
        self.control(session, command);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn any_log_of_commands(steps in prop::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        let replayed = world.rig.replay();
        prop_assert_eq!(replayed.rolling_hash(), world.rig.machine.rolling_hash());
        prop_assert!(replayed == world.rig.machine, "a replay is another state");
        world.rig.restart();
    }
}

/// The generator must reach what the properties are about.
#[test]
fn random_logs_do_something() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut done, mut incarnations) = (Done::default(), 0);
    for _ in 0..40 {
        let steps = prop::collection::vec(step(), 100..120).new_tree(&mut runner).unwrap().current();
        let mut world = World::new();
        steps.into_iter().for_each(|step| world.step(step));
        done.appended += world.done.appended;
        done.swapped += world.done.swapped;
        done.in_objects += world.done.in_objects;
        done.compacted += world.done.compacted;
        done.indexed += world.done.indexed;
        done.undeleted += world.done.undeleted;
        done.purged += world.done.purged;
        done.archived += world.done.archived;
        incarnations += world.rig.machine.view().incarnation();
    }
    println!("{done:?}, {incarnations} incarnations");
    assert!(done.appended > 500 && done.swapped > 60 && incarnations > 5, "{done:?} {incarnations}");
    assert!(done.in_objects > 30 && done.compacted > 20 && done.indexed > 10, "{done:?}");
    assert!(done.undeleted > 5 && done.purged > 2 && done.archived > 10, "{done:?}");
}
