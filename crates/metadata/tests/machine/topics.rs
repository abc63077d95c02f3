use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::*;

#[test]
fn names_follow_kafkas_rules() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    rig.topic(session, "a.b", 1);
    let long = "x".repeat(250);
    let cases = [
        ("", codes::INVALID_TOPIC_EXCEPTION),
        (".", codes::INVALID_TOPIC_EXCEPTION),
        ("..", codes::INVALID_TOPIC_EXCEPTION),
        ("a/b", codes::INVALID_TOPIC_EXCEPTION),
        ("ä", codes::INVALID_TOPIC_EXCEPTION),
        (long.as_str(), codes::INVALID_TOPIC_EXCEPTION),
        ("a_b", codes::INVALID_TOPIC_EXCEPTION),
        ("a.b", codes::TOPIC_ALREADY_EXISTS),
        ("...", 0),
        ("A.b", 0),
        ("x-Y_z.0", 0),
    ];
    for (name, code) in cases {
        let topic = rig.new_topic(name, 1);
        assert_eq!(rig.create(session, topic).error_code, code, "{name}");
    }
    let names: Vec<_> = rig.machine.view().topics().map(|topic| topic.name.clone()).collect();
    assert_eq!(names, ["...", "A.b", "a.b", "x-Y_z.0"]);
    // Once deleted, the name and its fold are free.
    let id = rig.machine.view().topic_id("a.b").unwrap();
    rig.control(session, Command::DeleteTopics(DeleteTopics { topic_ids: vec![id] }));
    rig.topic(session, "a_b", 1);
    assert_eq!(rig.machine.view().topic_id("a.b"), None);
}

#[test]
fn bad_topics_are_refused() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let good = rig.topic(session, "good", 1);
    let mut code = |change: &dyn Fn(&mut NewTopic)| {
        let mut topic = rig.new_topic("t", 1);
        change(&mut topic);
        rig.create(session, topic).error_code
    };
    assert_eq!(code(&|t| t.partitions = 0), codes::INVALID_PARTITIONS);
    assert_eq!(code(&|t| t.partitions = -1), codes::INVALID_PARTITIONS);
    assert_eq!(code(&|t| t.partitions = 10_001), codes::POLICY_VIOLATION);
    assert_eq!(code(&|t| t.replication_factor = 0), codes::INVALID_REPLICATION_FACTOR);
    assert_eq!(code(&|t| t.replication_factor = -2), codes::INVALID_REPLICATION_FACTOR);
    assert_eq!(code(&|t| t.topic_id = TopicId::NIL), codes::INVALID_REQUEST);
    assert_eq!(code(&|t| t.topic_id = good), codes::INVALID_REQUEST);
    assert_eq!(code(&|t| t.placement = PlacementId(9)), codes::INVALID_CONFIG);
    assert_eq!(code(&|t| _ = t.configs.insert("nope".into(), "1".into())), codes::INVALID_CONFIG);
    assert_eq!(code(&|t| _ = t.configs.insert("retention.ms".into(), "x".into())), codes::INVALID_CONFIG);
    assert_eq!(
        code(&|t| _ = t.configs.insert("isobar.durability".into(), "cloud".into())),
        codes::INVALID_CONFIG
    );
    assert_eq!(code(&|t| t.replication_factor = 99), 0);
    assert_eq!(rig.machine.view().topic_count(), 2);
}

#[test]
fn validate_only_changes_nothing() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let topics = vec![rig.new_topic("t", 3)];
    let command = Command::CreateTopics(CreateTopics { topics, validate_only: true });
    let CommandResult::Topics(results) = rig.control(session, command) else { panic!() };
    assert_eq!((results.topics[0].error_code, results.topics[0].partitions), (0, 3));
    assert!(rig.last_effects.is_empty());
    let topic_id = rig.topic(session, "t", 3);
    let command =
        CreatePartitions { topics: vec![MorePartitions { topic_id, count: 5 }], validate_only: true };
    rig.control(session, Command::CreatePartitions(command));
    assert!(rig.last_effects.is_empty());
}

#[test]
fn partitions_only_grow_and_keep_their_data() {
    let mut rig = Rig::new();
    let broker = rig.broker(1);
    let topic_id = rig.topic(broker.0, "t", 2);
    rig.commit(broker, (topic_id, 1), vec![plain(0, 4)]);
    let mut grow = |topic_id, count| {
        let command =
            CreatePartitions { topics: vec![MorePartitions { topic_id, count }], validate_only: false };
        match rig.control(broker.0, Command::CreatePartitions(command)) {
            CommandResult::Topics(results) => results.topics[0].error_code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(grow(topic_id, 1), codes::INVALID_PARTITIONS);
    assert_eq!(grow(topic_id, 2), codes::INVALID_PARTITIONS);
    assert_eq!(grow(TopicId::from([3; 16]), 2), codes::UNKNOWN_TOPIC_ID);
    assert_eq!(grow(topic_id, 20_000), codes::POLICY_VIOLATION);
    assert_eq!(grow(topic_id, 4), 0);
    assert_eq!(rig.view(topic_id, 1).high_watermark, 4);
    assert_eq!(rig.commit(broker, (topic_id, 3), vec![plain(0, 1)])[0].base_offset, 0);
    assert_eq!(rig.machine.view().partition_count(), 4);
}

#[test]
fn changes_name_the_partitions_that_came_and_went() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let topic = rig.new_topic("t", 3);
    let topic_id = topic.topic_id;
    let keys: Vec<_> = (0..3).map(|partition| PartitionKey::new(topic_id, partition)).collect();
    let mut image = rig.machine.image();
    let mut step = |rig: &mut Rig, command: Command| {
        let envelope = rig.envelope(session, LaneId::CONTROL, command);
        let envelope = Envelope { number: 100 + rig.index, ..envelope };
        rig.index += 1;
        let applied = rig.machine.apply(rig.index, &Entry::new(rig.time_ms, vec![envelope]));
        image.apply(&applied.effects).unwrap()
    };
    let created =
        step(&mut rig, Command::CreateTopics(CreateTopics { topics: vec![topic], validate_only: false }));
    assert_eq!((&created.partitions, &created.topics), (&keys, &vec![topic_id]));
    let deleted = step(&mut rig, Command::DeleteTopics(DeleteTopics { topic_ids: vec![topic_id] }));
    assert_eq!((&deleted.partitions, &deleted.topics), (&keys, &vec![topic_id]));
}
