//! Log entries and the effects of them: what a voter reads back from its log, and a broker from the leader.
//!
//! Promises: what decodes encodes to the same; memory by the bytes; applying any entry never panics; whoever follows the
//! effects has the state machine's image; a second state machine has the same hash; a snapshot loses nothing.

use std::sync::OnceLock;

use bytes::Bytes;
use isobar_metadata::command::*;
use isobar_metadata::ids::{LaneId, ObjectId, SessionId, StoreId, StreamId, TopicId};
use isobar_metadata::record::{GroupRecord, MemberRecord};
use isobar_metadata::{ClusterFormat, Command, EffectBatch, Entry, Envelope, StateMachine};
use prost::Message;

use crate::input::Input;
use crate::peak_of;

const TIME_MS: i64 = 1_700_000_000_000;
/// Entries applied to one machine; more tell nothing new.
const ENTRIES_MAX: usize = 24;

/// Two bytes: where in the sample log to begin. Then entries, each with two bytes of length.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let from = input.below(SAMPLE_ENTRIES + 1);
    let mut machine = machine(from);
    let mut follower = machine.image();
    let mut other = machine.clone();
    let mut index = machine.applied_index();
    for _ in 0..ENTRIES_MAX {
        if input.is_empty() {
            break;
        }
        let len = usize::from(input.u16());
        let bytes = Bytes::copy_from_slice(input.take(len));
        check_effects(&bytes);
        let Some(entry) = decode(&bytes) else { continue };
        index += 1;
        let applied = machine.apply(index, &entry);
        assert_eq!(applied.results.len(), entry.commands.len());
        let sent = EffectBatch::from_bytes(applied.effects.encode_to_vec().into()).expect("our own effects");
        assert_eq!(sent, *applied.effects);
        follower.apply(&sent).expect("effects in order");
        assert!(follower == machine.image(), "the follower has another image");
        other.apply(index, &entry);
        assert_eq!(other.rolling_hash(), machine.rolling_hash());
    }
    let restored = StateMachine::restore(&machine.freeze().to_vec()).expect("a snapshot is restored");
    assert!(restored == machine, "the snapshot lost something");
}

fn decode(bytes: &Bytes) -> Option<Entry> {
    let allowed_bytes = 64 * 1024 + 512 * bytes.len();
    let (entry, peak) = peak_of(|| Entry::from_bytes(bytes.clone()));
    assert!(peak <= allowed_bytes, "{peak} bytes for an entry of {}", bytes.len());
    let entry = entry.ok()?;
    let again = Entry::from_bytes(entry.encode_to_vec().into()).expect("decodes again");
    assert_eq!(again, entry);
    Some(entry)
}

fn check_effects(bytes: &Bytes) {
    let allowed_bytes = 64 * 1024 + 512 * bytes.len();
    let (batch, peak) = peak_of(|| EffectBatch::from_bytes(bytes.clone()));
    assert!(peak <= allowed_bytes, "{peak} bytes for effects of {}", bytes.len());
    if let Ok(batch) = batch {
        assert_eq!(EffectBatch::from_bytes(batch.encode_to_vec().into()).expect("decodes again"), batch);
    }
}

/// A machine after the first `entries` of the sample log.
pub(crate) fn machine(entries: usize) -> StateMachine {
    static MACHINES: OnceLock<Vec<StateMachine>> = OnceLock::new();
    let machines = MACHINES.get_or_init(|| {
        let mut machine = StateMachine::new(ClusterFormat::dev("fuzz".into(), "one".into()));
        let mut machines = vec![machine.clone()];
        for (index, entry) in sample_log().iter().enumerate() {
            machine.apply(index as u64 + 1, entry);
            machines.push(machine.clone());
        }
        machines
    });
    machines[entries % machines.len()].clone()
}

const SAMPLE_ENTRIES: usize = 22;

fn topic_id(n: u8) -> TopicId {
    TopicId::from([n; 16])
}

/// Every kind of command once, in an order in which most succeed.
fn sample_log() -> Vec<Entry> {
    let session = SessionId(1);
    let mut number = 0;
    let mut control = |command| {
        number += 1;
        Envelope::new(session, LaneId::CONTROL, number, number.saturating_sub(3), command)
    };
    let topic = |n: u8| NewTopic {
        name: format!("topic-{n}"),
        topic_id: topic_id(n),
        partitions: 2,
        replication_factor: 1,
        ..NewTopic::default()
    };
    let directory = isobar_metadata::DirectoryId::from([9; 16]);
    let commands = vec![
        Envelope::unnumbered(Command::RegisterSession(RegisterSession {
            node_id: 1,
            life: isobar_metadata::DirectoryId::from([8; 16]),
            host: "host".into(),
            port: 9092,
            feature_level: FEATURE_LEVEL,
            ..RegisterSession::default()
        })),
        Envelope::unnumbered(Command::RegisterDirectory(RegisterDirectory {
            directory,
            node_id: 1,
            ..RegisterDirectory::default()
        })),
        control(Command::OpenStream(OpenStream {
            lane: LaneId(1),
            ensemble: vec![directory],
            write_quorum: 1,
        })),
        control(Command::CreateTopics(CreateTopics {
            topics: vec![topic(1), topic(2)],
            ..Default::default()
        })),
        commit(session, 1, vec![(topic_id(1), 0, vec![CommitBatch::plain(0, 3, TIME_MS, 300)])]),
        control(Command::GrantProducerId(GrantProducerId { count: 10 })),
        commit(session, 2, vec![(topic_id(1), 0, idempotent()), (topic_id(2), 1, idempotent())]),
        control(Command::GrantObjects(GrantObjects { count: 3, lifetime_ms: 60_000 })),
        control(Command::CommitObject(CommitObject {
            object: ObjectId(1),
            store: StoreId(1),
            runs: vec![ObjectRun {
                topic_id: topic_id(1),
                last_offset: 2,
                size_bytes: 300,
                ..ObjectRun::default()
            }],
            size_bytes: 400,
            ..CommitObject::default()
        })),
        control(Command::ClaimGroups(ClaimGroups { groups: vec!["group".into()] })),
        control(Command::PutGroup(PutGroup {
            group: "group".into(),
            coordinator_epoch: 1,
            record: GroupRecord {
                members: vec![MemberRecord { member_id: "m".into(), ..MemberRecord::default() }],
                generation: 1,
                ..GroupRecord::default()
            },
        })),
        control(Command::CommitOffsets(CommitOffsets {
            group: "group".into(),
            coordinator_epoch: 1,
            generation: -1,
            offsets: vec![OffsetToCommit { topic_id: topic_id(1), offset: 2, ..OffsetToCommit::default() }],
            ..CommitOffsets::default()
        })),
        control(Command::AlterConfigs(AlterConfigs {
            resources: vec![AlterResource {
                resource_type: 2,
                name: "topic-1".into(),
                ops: vec![ConfigOp { name: "retention.ms".into(), op: 0, value: Some("1000".into()) }],
            }],
            ..AlterConfigs::default()
        })),
        control(Command::MoveLogStart(MoveLogStart {
            partitions: vec![NewLogStart { topic_id: topic_id(1), partition: 0, log_start: 2 }],
            ..Default::default()
        })),
        control(Command::CreatePartitions(CreatePartitions {
            topics: vec![MorePartitions { topic_id: topic_id(2), count: 4 }],
            ..CreatePartitions::default()
        })),
        control(Command::DeleteOffsets(DeleteOffsets {
            group: "group".into(),
            coordinator_epoch: 1,
            partitions: vec![],
        })),
        control(Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic_id(2)] })),
        control(Command::DeleteGroups(DeleteGroups { groups: vec!["group".into()] })),
        Envelope::unnumbered(Command::ExpireObjects(ExpireObjects::default())),
        control(Command::CloseStream(CloseStream { stream: StreamId(1) })),
        Envelope::unnumbered(Command::FenceSession(FenceSession { session })),
        Envelope::unnumbered(Command::RaiseIncarnation(RaiseIncarnation { incarnation: 1 })),
    ];
    assert_eq!(commands.len(), SAMPLE_ENTRIES);
    commands.into_iter().zip(0..).map(|(command, n)| Entry::new(TIME_MS + n * 1000, vec![command])).collect()
}

fn idempotent() -> Vec<CommitBatch> {
    vec![CommitBatch {
        producer_id: 1,
        producer_epoch: 0,
        base_sequence: 0,
        ..CommitBatch::plain(1, 2, TIME_MS, 200)
    }]
}

fn commit(session: SessionId, chunk: u64, parts: Vec<(TopicId, i32, Vec<CommitBatch>)>) -> Envelope {
    let partitions = parts
        .into_iter()
        .map(|(topic_id, partition, batches)| CommitPartition {
            topic_id,
            partition,
            batches,
            ..Default::default()
        })
        .collect();
    let command =
        CommitChunk { stream: StreamId(1), chunk, acknowledged: 1, partitions, ..Default::default() };
    Envelope::new(session, LaneId(1), chunk, 0, Command::CommitChunk(command))
}

pub fn seeds() -> Vec<Vec<u8>> {
    let entries: Vec<Vec<u8>> = sample_log().iter().map(Message::encode_to_vec).collect();
    let framed = |entry: &Vec<u8>| [&(entry.len() as u16).to_le_bytes()[..], entry].concat();
    let mut seeds: Vec<Vec<u8>> =
        entries.iter().enumerate().map(|(at, entry)| [&[at as u8][..], &framed(entry)].concat()).collect();
    let all: Vec<u8> = entries.iter().flat_map(framed).collect();
    seeds.push([&[0][..], &all].concat());
    seeds
}
