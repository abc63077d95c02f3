//! What a binary of feature level 1 wrote (the fixtures are made by commit c77224c: a log of random commands, its snapshots
//! after entry 187 and at the end, the rolling hashes there) reads the same, and gives the same, in this one.

use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;

const LOG: &[u8] = include_bytes!("../fixtures/level1.log");
const HALF: &[u8] = include_bytes!("../fixtures/level1.snapshot");
const END: &[u8] = include_bytes!("../fixtures/level1-end.snapshot");
const HASHES: &str = include_str!("../fixtures/level1.hashes");

fn log() -> Vec<(u64, Entry)> {
    let mut rest = LOG;
    let mut log = vec![];
    while !rest.is_empty() {
        let (index, tail) = rest.split_at(8);
        let (len, tail) = tail.split_at(4);
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        let index = u64::from_le_bytes(index.try_into().unwrap());
        log.push((index, Entry::from_bytes(tail[..len].to_vec().into()).unwrap()));
        rest = &tail[len..];
    }
    log
}

fn hashes() -> Vec<(u64, u64)> {
    let line = |line: &str| {
        let (index, hash) = line.split_once(' ').unwrap();
        (index.parse().unwrap(), u64::from_str_radix(hash, 16).unwrap())
    };
    HASHES.lines().map(line).collect()
}

#[test]
fn an_old_log_gives_the_same_effects_and_results() {
    let mut machine = StateMachine::new(ClusterFormat { feature_level: 1, ..format() });
    let mut expected = hashes();
    for (index, entry) in log() {
        machine.apply(index, &entry);
        if expected[0].0 == index {
            assert_eq!(machine.rolling_hash(), expected[0].1, "at {index}");
            let snapshot = if expected.len() == 2 { HALF } else { END };
            let restored = StateMachine::restore(snapshot).unwrap();
            assert!(restored == machine, "the old snapshot is another state");
            assert!(machine.freeze().to_vec() == snapshot, "an old binary could not read this snapshot");
            expected.remove(0);
        }
    }
    assert!(expected.is_empty());
}

#[test]
fn an_old_snapshot_goes_on_with_the_old_log() {
    let mut machine = StateMachine::restore(HALF).unwrap();
    for (index, entry) in log().into_iter().filter(|(index, _)| *index > 187) {
        machine.apply(index, &entry);
    }
    assert_eq!((machine.applied_index(), machine.rolling_hash()), hashes()[1]);
}

#[test]
fn sessions_say_where_they_are_reached_from_level_5_on() {
    let mut machine = StateMachine::new(ClusterFormat { feature_level: 4, ..format() });
    let apply = |machine: &mut StateMachine, index, command| {
        machine.apply(index, &Entry::new(1, vec![Envelope::unnumbered(command)])).results.remove(0)
    };
    let life = DirectoryId::from([7; 16]);
    let register = |rpc: &str| {
        Command::RegisterSession(RegisterSession { node_id: 1, life, rpc: rpc.into(), ..Default::default() })
    };
    assert!(matches!(apply(&mut machine, 1, register("h:1")), CommandResult::Refused(_)));
    assert!(matches!(apply(&mut machine, 2, register("")), CommandResult::Session(_)));
    let rpc = |machine: &StateMachine| machine.view().broker(1).unwrap().rpc.clone();
    assert_eq!(rpc(&machine), "");
    apply(&mut machine, 3, Command::SetFeatureLevel(SetFeatureLevel { level: 5 }));
    let another = DirectoryId::from([8; 16]);
    let register = RegisterSession { node_id: 1, life: another, rpc: "h:1".into(), ..Default::default() };
    assert!(matches!(apply(&mut machine, 4, Command::RegisterSession(register)), CommandResult::Session(_)));
    assert_eq!(rpc(&machine), "h:1");
}

#[test]
fn new_behaviour_begins_with_the_level() {
    let mut machine = StateMachine::restore(END).unwrap();
    let topic_id = machine.view().topics().next().unwrap().topic_id;
    let session = machine.view().brokers()[0].session;
    let mut number = 100_000;
    let mut control = |machine: &mut StateMachine, command: Command| {
        number += 1;
        let envelope = Envelope::new(session, LaneId::CONTROL, number, number, command);
        let time_ms = machine.time_ms();
        machine.apply(machine.applied_index() + 1, &Entry::new(time_ms, vec![envelope])).results.remove(0)
    };
    for command in [
        Command::UndeleteTopic(UndeleteTopic::default()),
        Command::PurgeTopics(PurgeTopics::default()),
        Command::ExpireTopics(ExpireTopics::default()),
        Command::CompactObjects(CompactObjects::default()),
        Command::CommitIndex(CommitIndex::default()),
        Command::MoveLogStart(MoveLogStart { partitions: vec![], reason: 1 }),
    ] {
        assert_eq!(control(&mut machine, command).refusal(), Some(result::RefusalKind::Feature));
    }
    let level = |machine: &mut StateMachine, level| {
        let command = Envelope::unnumbered(Command::SetFeatureLevel(SetFeatureLevel { level }));
        machine.apply(machine.applied_index() + 1, &Entry::new(machine.time_ms(), vec![command]));
    };
    level(&mut machine, 2);
    level(&mut machine, 2);
    let has_chunks = machine.view().streams().any(|stream| !stream.live.is_empty());
    assert!(has_chunks && machine.view().recovery_cut() == 0, "what level 1 committed has no index");
    control(&mut machine, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic_id] }));
    assert!(machine.view().deleted_topic(topic_id).is_some() && machine.view().topic(topic_id).is_none());
    let bytes = machine.freeze().to_vec();
    assert_eq!(bytes[8], 2);
    assert!(StateMachine::restore(&bytes).unwrap() == machine);
    // A level that this binary does not know: it must not go on.
    level(&mut machine, FEATURE_LEVEL + 1);
    let later = StateMachine::restore(&machine.freeze().to_vec());
    assert!(matches!(later, Err(MetadataError::Version { what: "feature level", .. })));
}
