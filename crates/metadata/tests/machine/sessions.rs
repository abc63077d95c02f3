use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::result::*;
use isobar_metadata::*;

#[test]
fn a_registration_that_comes_twice_is_one_session() {
    let mut rig = Rig::new();
    let life = rig.uuid().into();
    let command =
        Command::RegisterSession(RegisterSession { node_id: 1, life, ..RegisterSession::default() });
    let first = rig.leader(command.clone());
    assert_eq!(rig.leader(command), first);
    assert!(rig.last_effects.is_empty());
    let CommandResult::Session(first) = first else { panic!() };
    let second = rig.register(1, "");
    assert_ne!(second, first.session);
    let image = rig.machine.view();
    assert_eq!(image.session(first.session), None, "its successor has registered");
    assert!(image.session(second).unwrap().epoch > first.epoch);
    assert_eq!(image.brokers().len(), 1);
}

#[test]
fn a_fenced_session_commits_nothing_and_its_streams_close() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    rig.commit(broker, (topic, 0), vec![plain(0, 1)]);
    rig.leader(Command::FenceSession(FenceSession { session: broker.0 }));
    let image = rig.machine.view();
    assert!(image.session(broker.0).unwrap().is_fenced());
    assert!(image.stream(broker.1).unwrap().closed);
    assert!(!image.stream(broker.1).unwrap().is_garbage(1), "its chunks stay readable");
    assert!(image.stream(broker.1).unwrap().is_garbage(2));
    assert_eq!(image.leader(PartitionKey::new(topic, 0), ""), None);
    let partitions =
        vec![CommitPartition { topic_id: topic, batches: vec![plain(0, 1)], ..CommitPartition::default() }];
    let command = rig.chunk(broker.1, partitions);
    assert_eq!(rig.send(broker.0, WAL_LANE, command).refusal(), Some(RefusalKind::Fenced));
    // Another broker uploads what is left, and the stream is forgotten.
    let other = rig.register(2, "");
    let object = rig.objects(other, 1);
    assert_eq!(rig.upload(other, object, StoreId(1), vec![run_of(topic, 0, 0, 0)]).applied, [0]);
    assert!(rig.machine.view().stream(broker.1).is_none());
}

#[test]
fn a_fenced_session_is_forgotten_after_an_hour() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    rig.control(session, Command::GrantProducerId(GrantProducerId { count: 1 }));
    rig.leader(Command::FenceSession(FenceSession { session }));
    for _ in 0..6 {
        rig.time_ms += TIME_JUMP_MS;
        rig.register(2, "");
        assert!(rig.machine.view().session(session).is_some());
    }
    rig.time_ms += 1;
    rig.register(2, "");
    assert!(rig.machine.view().session(session).is_none());
}

#[test]
fn leaders_follow_the_live_brokers_of_a_zone() {
    let mut rig = Rig::new();
    let a = rig.register(1, "east");
    let first = rig.machine.view().shard_leaders(0).unwrap().version;
    let b = rig.register(2, "west");
    let topic = rig.topic(a, "t", 64);
    let image = rig.machine.image();
    for partition in 0..64 {
        let key = PartitionKey::new(topic, partition);
        assert_eq!(image.leader(key, "east").unwrap().node_id, 1);
        assert_eq!(image.leader(key, "west").unwrap().node_id, 2);
        let other = image.leader(key, "mars").unwrap().node_id;
        assert_eq!(image.leader(key, "").unwrap().node_id, other);
        assert_eq!(image.replicas(key, "west"), [2, 1]);
        assert!(image.leader_epoch(key) > ids::leader_epoch(0, first));
        assert_eq!(ids::incarnation_of_leader_epoch(image.leader_epoch(key)), Some(0));
    }
    let state =
        |session, state: SessionState| Command::UpdateSession(UpdateSession { session, state: state as i32 });
    rig.leader(state(b, SessionState::Suspect));
    let key = PartitionKey::new(topic, 0);
    assert_eq!(rig.machine.view().leader(key, "west").unwrap().node_id, 1);
    let before = rig.machine.view().leader_epoch(key);
    rig.leader(state(b, SessionState::Suspect));
    assert_eq!(rig.machine.view().leader_epoch(key), before, "nothing changed");
    rig.leader(state(b, SessionState::Live));
    assert_eq!(rig.machine.view().leader(key, "west").unwrap().node_id, 2);
    assert!(
        matches!(rig.leader(state(b, SessionState::Fenced)), CommandResult::Done(o) if o.error_code != 0)
    );
    rig.leader(state(a, SessionState::Draining));
    assert_eq!(rig.machine.view().leader(key, "east").unwrap().node_id, 2);
    // It may still commit.
    assert_eq!(rig.control(a, Command::GrantProducerId(GrantProducerId { count: 1 })).refusal(), None);
}

#[test]
fn an_incarnation_change_starts_ids_and_epochs_anew() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 2);
    rig.commit(broker, (topic, 0), vec![plain(0, 5)]);
    let before = rig.machine.view().leader_epoch(PartitionKey::new(topic, 0));
    rig.leader(Command::RaiseIncarnation(RaiseIncarnation { incarnation: 2 }));
    assert!(matches!(
        rig.leader(Command::RaiseIncarnation(RaiseIncarnation { incarnation: 1 })),
        CommandResult::Done(outcome) if outcome.error_code == codes::INVALID_REQUEST
    ));
    rig.restart();
    assert!(rig.machine.view().session(broker.0).unwrap().is_fenced());
    let again = rig.broker(1);
    assert_eq!((again.0.incarnation(), again.1.incarnation()), (2, 2));
    rig.commit(again, (topic, 0), vec![plain(0, 5)]);
    let view = rig.view(topic, 0);
    assert_eq!((view.epoch_at(4), view.epoch_at(5)), (0, ids::base_leader_epoch(2)));
    assert_eq!(view.end_of_epoch(before), Some((0, 5)));
    assert_eq!(view.end_of_epoch(ids::base_leader_epoch(2)), Some((ids::base_leader_epoch(2), 10)));
    assert_eq!(rig.view(topic, 1).epochs.len(), 1, "an empty partition has no old epoch");
    assert!(rig.machine.view().leader_epoch(PartitionKey::new(topic, 0)) > before);
}

#[test]
fn directories_belong_to_one_node() {
    let mut rig = Rig::new();
    let directory = rig.directory(1);
    let command = RegisterDirectory { directory, node_id: 2, ..RegisterDirectory::default() };
    let result = rig.leader(Command::RegisterDirectory(command));
    assert!(matches!(result, CommandResult::Done(outcome) if outcome.error_code == codes::INVALID_REQUEST));
    assert_eq!(rig.machine.view().directory(directory).unwrap().node_id, 1);
}

#[test]
fn a_directory_is_drained_and_then_removed_for_good() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let directory = rig.machine.view().stream(stream).unwrap().ensemble[0];
    let topic = rig.topic(session, "t", 1);
    rig.commit((session, stream), (topic, 0), vec![plain(0, 1)]);
    let update = |rig: &mut Rig, state: DirectoryState, lost| {
        let update = UpdateDirectory { directory, state: state as i32, lost };
        match rig.leader(Command::UpdateDirectory(update)) {
            CommandResult::Done(outcome) => outcome,
            other => panic!("{other:?}"),
        }
    };
    let refusal =
        |rig: &mut Rig, lost| update(rig, DirectoryState::Removed, lost).message.unwrap_or_default();
    assert!(refusal(&mut rig, true).contains("1 streams that are open"), "acknowledgements may count there");

    assert_eq!(update(&mut rig, DirectoryState::Draining, false).error_code, 0);
    let open = OpenStream { lane: WAL_LANE, ensemble: vec![directory], write_quorum: 1 };
    let refused = |result| matches!(result, CommandResult::Stream(granted) if granted.error_code != 0);
    assert!(refused(rig.control(session, Command::OpenStream(open.clone()))));
    // What is open goes on.
    rig.commit((session, stream), (topic, 0), vec![plain(1, 1)]);
    let again = RegisterDirectory { directory, node_id: 1, ..RegisterDirectory::default() };
    rig.leader(Command::RegisterDirectory(again.clone()));
    assert!(!rig.machine.view().directory(directory).unwrap().takes_streams(), "a restart ends no drain");

    rig.control(session, Command::CloseStream(CloseStream { stream }));
    assert!(refusal(&mut rig, false).contains("2 chunks that are not uploaded"));
    assert_eq!(rig.machine.view().held_by(directory), (0, 2));
    let object = rig.objects(session, 1);
    rig.upload(session, object, StoreId(1), vec![run_of(topic, 0, 0, 1)]);
    assert_eq!(rig.machine.view().held_by(directory), (0, 0));
    for _ in 0..2 {
        assert_eq!(update(&mut rig, DirectoryState::Removed, false).error_code, 0);
    }
    rig.restart();
    assert!(rig.machine.view().directory(directory).unwrap().is_removed());
    assert_eq!(rig.machine.view().directories().count(), 0);
    // It never comes back.
    assert_ne!(update(&mut rig, DirectoryState::InUse, false).error_code, 0);
    let back = rig.leader(Command::RegisterDirectory(again));
    assert!(matches!(back, CommandResult::Done(outcome) if outcome.error_code == codes::INVALID_REQUEST));
    assert!(refused(rig.control(session, Command::OpenStream(open))));
}

#[test]
fn a_lost_directory_is_removed_though_chunks_name_it() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let directory = rig.machine.view().stream(stream).unwrap().ensemble[0];
    let topic = rig.topic(session, "t", 1);
    rig.commit((session, stream), (topic, 0), vec![plain(0, 1)]);
    rig.control(session, Command::CloseStream(CloseStream { stream }));
    assert_eq!(rig.machine.view().lacking_chunks(), 0);
    let lost = UpdateDirectory { directory, state: DirectoryState::Removed as i32, lost: true };
    assert!(
        matches!(rig.leader(Command::UpdateDirectory(lost)), CommandResult::Done(o) if o.error_code == 0)
    );
    assert!(!rig.machine.view().stream(stream).unwrap().is_garbage(1), "another replica may have it");
    assert_eq!(rig.machine.view().lacking_chunks(), 1);
    let object = rig.objects(session, 1);
    rig.upload(session, object, StoreId(1), vec![run_of(topic, 0, 0, 0)]);
    assert_eq!(rig.machine.view().lacking_chunks(), 0);
}

#[test]
fn a_closed_stream_gets_another_replica_for_one_that_is_lost() {
    let mut rig = Rig::new();
    let (session, stream) = rig.broker(1);
    let old = rig.machine.view().stream(stream).unwrap().ensemble[0];
    let topic = rig.topic(session, "t", 1);
    rig.commit((session, stream), (topic, 0), vec![plain(0, 1)]);
    let (new, unused) = (rig.directory(2), rig.directory(3));
    let replace = |rig: &mut Rig, from, to| match rig.leader(Command::ReplaceReplica(ReplaceReplica {
        stream,
        from,
        to,
    })) {
        CommandResult::Done(outcome) => outcome.error_code,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        replace(&mut rig, old, new),
        codes::INVALID_REQUEST,
        "its writer still appends to the old one"
    );
    rig.control(session, Command::CloseStream(CloseStream { stream }));
    let cut = rig.machine.view().recovery_cut();
    for (from, to) in [(unused, new), (old, old), (old, DirectoryId::from([9; 16])), (new, unused)] {
        assert_eq!(replace(&mut rig, from, to), codes::INVALID_REQUEST);
        assert!(rig.did_nothing());
    }
    for again in [false, true] {
        assert_eq!(replace(&mut rig, old, new), codes::NONE);
        assert_eq!(rig.did_nothing(), again);
    }
    rig.restart();
    let found = rig.machine.view().stream(stream).unwrap().clone();
    assert_eq!((&found.ensemble[..], found.closed, found.live.len()), (&[new][..], true, 1));
    assert_eq!(rig.follower.stream(stream).unwrap(), &found);
    assert_eq!(rig.machine.view().held_by(old), (0, 0));
    assert_eq!(rig.machine.view().recovery_cut(), cut);
    // A late copy of the first one that lost, and one for a stream that is gone.
    assert_eq!(replace(&mut rig, old, unused), codes::INVALID_REQUEST);
    let object = rig.objects(session, 1);
    rig.upload(session, object, StoreId(1), vec![run_of(topic, 0, 0, 0)]);
    assert!(rig.machine.view().stream(stream).is_none());
    assert_eq!(replace(&mut rig, new, unused), codes::INVALID_REQUEST);
}
