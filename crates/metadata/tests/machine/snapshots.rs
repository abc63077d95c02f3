use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;

fn filled() -> Rig {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 3);
    for n in 0..20 {
        rig.commit(broker, (topic, n % 3), vec![plain(0, 2), plain(2, 1)]);
    }
    let object = rig.objects(broker.0, 2);
    rig.upload(broker.0, object, StoreId(1), vec![run_of(topic, 0, 0, 8)]);
    rig
}

#[test]
fn any_damage_is_found() {
    let rig = filled();
    let bytes = rig.machine.freeze().to_vec();
    assert!(StateMachine::restore(&bytes).unwrap() == rig.machine);
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x10;
        assert!(StateMachine::restore(&damaged).is_err(), "byte {position}");
    }
    // A version that there is, but not at this feature level.
    let mut damaged = bytes.clone();
    assert_eq!(damaged[8], 2);
    damaged[8] = 1;
    assert!(StateMachine::restore(&damaged).is_err());
    for len in 0..bytes.len() {
        assert!(StateMachine::restore(&bytes[..len]).is_err(), "cut at {len}");
    }
    let twice = [bytes.as_slice(), &bytes[12..]].concat();
    assert!(StateMachine::restore(&twice).is_err());
    let mut later = bytes;
    later[8] = 3;
    assert!(matches!(
        StateMachine::restore(&later),
        Err(MetadataError::Version { what: "snapshot", found: 3, .. })
    ));
}

#[test]
fn a_frozen_view_does_not_move() {
    let mut rig = filled();
    let frozen = rig.machine.freeze();
    let (index, hash, before) = (frozen.applied_index(), frozen.rolling_hash(), frozen.to_vec());
    let broker = rig.broker(2);
    let topic = rig.machine.view().topic_id("t").unwrap();
    for _ in 0..50 {
        rig.commit(broker, (topic, 0), vec![plain(0, 2)]);
    }
    rig.control(broker.0, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic] }));
    assert_eq!((frozen.applied_index(), frozen.rolling_hash()), (index, hash));
    let encoded = std::thread::scope(|scope| scope.spawn(|| frozen.to_vec()).join().unwrap());
    assert_eq!(encoded, before);
}

#[test]
fn long_lists_come_in_parts() {
    let mut rig = Rig::new();
    rig.checked = false;
    let broker = rig.broker(1);
    let topic = rig.topic(broker.0, "t", 1);
    let CommandResult::ProducerIds(ids) =
        rig.control(broker.0, Command::GrantProducerId(GrantProducerId { count: 1000 }))
    else {
        panic!()
    };
    for n in 0..1500 {
        rig.commit(broker, (topic, 0), vec![idempotent(ids.first + n % 1000, 0, (n / 1000) as i32, 1)]);
    }
    assert!(rig.view(topic, 0).wal.len() == 1500);
    rig.restart();
    let mut pieces = 0;
    rig.machine.freeze().encode(&mut |piece| {
        assert!(piece.len() < 200 << 10);
        pieces += 1;
    });
    assert!(pieces > 6);
}

#[test]
fn the_hash_covers_effects_results_and_their_order() {
    let hash = |names: &[&str]| {
        let mut rig = Rig::new();
        let session = rig.register(1, "");
        for name in names {
            let topic = rig.new_topic(name, 1);
            rig.create(session, topic);
        }
        rig.machine.rolling_hash()
    };
    // Refused for different reasons: no effects, other results.
    assert_ne!(hash(&[""]), hash(&["/"]));
    assert_ne!(hash(&["a", "b"]), hash(&["b", "a"]));
    assert_eq!(hash(&["a", "b"]), hash(&["a", "b"]));
}
