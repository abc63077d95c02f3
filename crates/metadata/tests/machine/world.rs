//! A state machine that any steps are taken with, and what they need to mean something.

mod chunks;
mod objects;
mod step;

use std::collections::BTreeMap;

use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::*;

use crate::rig::*;
pub(crate) use step::{Step, step};

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
