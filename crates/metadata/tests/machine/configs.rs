use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::config_table::*;
use isobar_metadata::*;
use std::collections::BTreeMap;

const SET: i32 = 0;
const DELETE: i32 = 1;
const APPEND: i32 = 2;
const SUBTRACT: i32 = 3;

fn alter(
    rig: &mut Rig,
    session: SessionId,
    kind: i32,
    resource: &str,
    ops: &[(i32, &str, Option<&str>)],
) -> i32 {
    let op = |(op, name, value): &(i32, &str, Option<&str>)| ConfigOp {
        name: (*name).into(),
        op: *op,
        value: value.map(str::to_owned),
    };
    let ops = ops.iter().map(op).collect();
    let resources = vec![AlterResource { resource_type: kind, name: resource.into(), ops }];
    match rig.control(session, Command::AlterConfigs(AlterConfigs { resources, validate_only: false })) {
        CommandResult::Configs(results) => results.resources[0].error_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn topic_configs_are_altered_whole_or_not_at_all() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    rig.topic(session, "t", 1);
    let mut topic = |ops: &[(i32, &str, Option<&str>)]| alter(&mut rig, session, 2, "t", ops);
    assert_eq!(topic(&[(SET, "retention.ms", Some("1000")), (SET, "segment.bytes", Some("1048576"))]), 0);
    assert_eq!(topic(&[(SET, "retention.ms", Some("5")), (SET, "nope", Some("5"))]), codes::INVALID_CONFIG);
    assert_eq!(topic(&[(SET, "retention.ms", Some("-2"))]), codes::INVALID_CONFIG);
    assert_eq!(topic(&[(SET, "retention.ms", Some("many"))]), codes::INVALID_CONFIG);
    assert_eq!(topic(&[(SET, "retention.ms", None)]), codes::INVALID_REQUEST);
    assert_eq!(
        topic(&[(SET, "retention.ms", Some("1")), (DELETE, "retention.ms", None)]),
        codes::INVALID_REQUEST
    );
    assert_eq!(topic(&[(APPEND, "retention.ms", Some("1"))]), codes::INVALID_CONFIG);
    assert_eq!(topic(&[(9, "retention.ms", Some("1"))]), codes::INVALID_REQUEST);
    assert_eq!(topic(&[(SET, "isobar.durability", Some("cloud"))]), codes::INVALID_CONFIG);
    assert_eq!(topic(&[(SET, "isobar.durability", Some("wal"))]), 0);
    assert_eq!(topic(&[(APPEND, "cleanup.policy", Some("compact"))]), 0);
    let settings = rig.machine.view().topic_by_name("t").unwrap().settings.clone();
    assert_eq!((settings.retention_ms, settings.segment_bytes), (1000, 1 << 20));
    assert!(settings.cleanup_delete && settings.cleanup_compact);
    let mut topic = |ops: &[(i32, &str, Option<&str>)]| alter(&mut rig, session, 2, "t", ops);
    assert_eq!(topic(&[(SUBTRACT, "cleanup.policy", Some("delete")), (DELETE, "retention.ms", None)]), 0);
    let settings = rig.machine.view().topic_by_name("t").unwrap().settings.clone();
    assert!(!settings.cleanup_delete && settings.cleanup_compact && settings.retention_ms == 604_800_000);
    assert_eq!(alter(&mut rig, session, 2, "u", &[]), codes::UNKNOWN_TOPIC_OR_PARTITION);
    assert_eq!(alter(&mut rig, session, 32, "t", &[]), codes::INVALID_REQUEST);
}

#[test]
fn the_clusters_defaults_reach_topics_without_their_own() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    rig.topic(session, "own", 1);
    rig.topic(session, "plain", 1);
    alter(&mut rig, session, 2, "own", &[(SET, "retention.ms", Some("1"))]);
    assert_eq!(alter(&mut rig, session, 4, "", &[(SET, "log.retention.ms", Some("2"))]), 0);
    assert_eq!(alter(&mut rig, session, 4, "", &[(SET, "retention.ms", Some("2"))]), codes::INVALID_CONFIG);
    assert_eq!(
        alter(&mut rig, session, 4, "1", &[(SET, "log.retention.ms", Some("2"))]),
        codes::INVALID_REQUEST
    );
    let of = |rig: &Rig, name| rig.machine.view().topic_by_name(name).unwrap().settings.retention_ms;
    assert_eq!((of(&rig, "own"), of(&rig, "plain")), (1, 2));
    rig.topic(session, "later", 1);
    assert_eq!(of(&rig, "later"), 2);
    rig.restart();
    assert_eq!(alter(&mut rig, session, 4, "", &[(DELETE, "log.retention.ms", None)]), 0);
    assert_eq!((of(&rig, "plain"), of(&rig, "later")), (604_800_000, 604_800_000));
}

#[test]
fn defaults_pass_their_own_checks_and_tables_are_sorted() {
    for table in [TOPIC_CONFIGS, BROKER_CONFIGS] {
        assert!(table.windows(2).all(|pair| pair[0].name < pair[1].name));
        for def in table {
            assert_eq!(def.check(def.default), Ok(()), "{}", def.name);
            assert!(!def.doc.is_empty());
        }
    }
    for def in TOPIC_CONFIGS.iter().filter(|def| !def.broker_name.is_empty()) {
        assert_eq!(broker_config(def.broker_name).unwrap().default, def.default);
    }
    let defaults = TopicSettings::of(&BTreeMap::new(), None);
    assert_eq!((defaults.max_message_bytes, defaults.timestamp_after_max_ms), (1_048_588, 3_600_000));
    assert!(defaults.cleanup_delete && !defaults.cleanup_compact);
    let def = topic_config("compression.gzip.level").unwrap();
    assert!(
        def.check("-1").is_ok()
            && def.check("9").is_ok()
            && def.check("0").is_err()
            && def.check("10").is_err()
    );
    assert!(topic_config("min.cleanable.dirty.ratio").unwrap().check("1.5").is_err());
    assert!(topic_config("preallocate").unwrap().check("TRUE").is_ok());
    assert!(topic_config("preallocate").unwrap().check("yes").is_err());
    assert!(topic_config("cleanup.policy").unwrap().check("delete, compact").is_ok());
    assert!(topic_config("cleanup.policy").unwrap().check("shred").is_err());
    assert!(topic_config("max.message.bytes").unwrap().check("4294967296").is_err());
}

#[test]
fn what_a_broker_was_started_with_cannot_be_altered_and_topics_must_be_named() {
    let mut rig = Rig::new();
    let session = rig.register(1, "");
    let mut set =
        |kind, name: &str, key: &str| alter(&mut rig, session, kind, name, &[(SET, key, Some("3000"))]);
    assert_eq!(set(4, "", "num.partitions"), codes::INVALID_REQUEST);
    assert_eq!(set(4, "", "message.max.bytes"), 0);
    assert_eq!(set(2, "", "retention.ms"), codes::INVALID_REQUEST);
    assert_eq!(set(2, "no such", "retention.ms"), codes::INVALID_TOPIC_EXCEPTION);
    assert_eq!(set(2, "none", "retention.ms"), codes::UNKNOWN_TOPIC_OR_PARTITION);
}

#[test]
fn values_are_checked_and_told_as_kafka_does() {
    let check = |name: &str, value: &str| topic_config(name).unwrap().check(value).is_ok();
    for good in ["", "*", "0:1", "0:1,12:3"] {
        assert!(check("leader.replication.throttled.replicas", good), "{good}");
    }
    for bad in ["none", "0", "0:", ":1", "0:1:2", "a:b"] {
        assert!(!check("follower.replication.throttled.replicas", bad), "{bad}");
    }
    assert!(check("remote.storage.enable", "false") && !check("remote.storage.enable", "TRUE"));
    assert!(check("retention.bytes", "-2"));
    let told = |name: &str, value: &str| topic_config(name).unwrap().canonical(value);
    assert_eq!(told("preallocate", " TRUE"), "true");
    assert_eq!(told("cleanup.policy", "compact, delete"), "compact,delete");
    assert_eq!(told("retention.ms", " 1000 "), "1000");
}
