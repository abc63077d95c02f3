//! The APIs of topics, configs and the cluster.

use std::collections::BTreeSet;

use isobar_protocol::api::ApiKey;
use isobar_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use isobar_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use isobar_protocol::messages::delete_topics_request::DeleteTopicState;
use isobar_protocol::messages::describe_configs_request::DescribeConfigsResource;
use isobar_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use isobar_protocol::messages::metadata_request::MetadataRequestTopic;
use isobar_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, CreatePartitionsRequest, CreateTopicsRequest,
    DeleteTopicsRequest, DescribeClusterRequest, DescribeConfigsRequest, IncrementalAlterConfigsRequest,
    MetadataRequest,
};

use crate::wire::{ABSENT, ABSENT_ID, Rig, TOPIC, s, t};

const TOPIC_RESOURCE: i8 = 2;
const BROKER_RESOURCE: i8 = 4;

pub(crate) async fn metadata(rig: &mut Rig, version: i16) {
    let by_name = |name: &str| MetadataRequestTopic::default().with_name(Some(t(name)));
    let request = MetadataRequest::default().with_topics(Some(vec![by_name(TOPIC), by_name("not legal!")]));
    let answer = rig.wire.call(version, &request).await;
    assert_eq!(answer.error_code, 0, "v{version}");
    assert_eq!((answer.brokers.len(), answer.brokers[0].node_id.0), (1, 1), "v{version}");
    assert_eq!(answer.cluster_id.as_ref().is_some_and(|id| id.len() == 22), version >= 2, "v{version}");
    assert_eq!(answer.controller_id.0, if version >= 1 { 1 } else { -1 }, "v{version}");
    let find = |name: &str| {
        let mut topics = answer.topics.iter();
        topics.find(|topic| topic.name.as_deref().is_some_and(|found| **found == *name)).unwrap()
    };
    let known = find(TOPIC);
    assert_eq!((known.error_code, known.partitions.len(), known.is_internal), (0, 3, false), "v{version}");
    assert_eq!(known.topic_id, if version >= 10 { rig.topic_id } else { Default::default() }, "v{version}");
    for partition in &known.partitions {
        assert_eq!((partition.error_code, partition.leader_id.0), (0, 1), "v{version}");
        assert_eq!(partition.leader_epoch, if version >= 7 { rig.leader_epoch } else { -1 }, "v{version}");
        assert_eq!((partition.replica_nodes.len(), partition.isr_nodes.len()), (1, 1), "v{version}");
    }
    assert_eq!(find("not legal!").error_code, 17, "v{version}");

    let everything = if version == 0 { Some(Vec::new()) } else { None };
    let answer = rig.wire.call(version, &MetadataRequest::default().with_topics(everything)).await;
    assert!(answer.topics.iter().any(|topic| topic.topic_id == rig.topic_id || version < 10), "v{version}");
    if version >= 1 {
        let answer = rig.wire.call(version, &MetadataRequest::default().with_topics(Some(Vec::new()))).await;
        assert!(answer.topics.is_empty(), "v{version}: no topic was asked for");
    }
    if version >= 4 {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![by_name(ABSENT)]))
            .with_allow_auto_topic_creation(false);
        let answer = rig.wire.call(version, &request).await;
        assert_eq!(answer.topics[0].error_code, 3, "v{version}");
    }
    if version >= 8 {
        let request = MetadataRequest::default()
            .with_topics(Some(vec![by_name(TOPIC)]))
            .with_include_topic_authorized_operations(true);
        let answer = rig.wire.call(version, &request).await;
        let told = answer.topics[0].topic_authorized_operations;
        assert_eq!(told != i32::MIN, !rig.isobar, "v{version}: there are no ACLs yet");
    }
    if version >= 10 {
        metadata_by_id(rig, version).await;
    }
}

async fn metadata_by_id(rig: &mut Rig, version: i16) {
    let by_id = |id| MetadataRequestTopic::default().with_name(None).with_topic_id(id);
    let request = MetadataRequest::default().with_topics(Some(vec![by_id(rig.topic_id), by_id(ABSENT_ID)]));
    let answer = rig.wire.call(version, &request).await;
    let told = |id| {
        let topic = answer.topics.iter().find(|topic| topic.topic_id == id).unwrap();
        (topic.error_code, topic.name.as_ref().map(|name| name.to_string()))
    };
    // 10 and 11 have the field, and no way to answer without a name.
    let (known, absent) = if version >= 12 {
        ((0, Some(TOPIC.to_owned())), (100, None))
    } else {
        ((42, Some(String::new())), (42, Some(String::new())))
    };
    assert_eq!(told(rig.topic_id), known, "v{version}");
    assert_eq!(told(ABSENT_ID), absent, "v{version}");
}

fn check_table(rig: &Rig, answer: &ApiVersionsResponse, what: &str) {
    let told: BTreeSet<(i16, i16, i16)> =
        answer.api_keys.iter().map(|row| (row.api_key, row.min_version, row.max_version)).collect();
    for api in ApiKey::ALL {
        let versions = api.versions();
        let found =
            told.iter().find(|row| row.0 == api.key()).unwrap_or_else(|| panic!("{what}: no {api:?}"));
        if rig.isobar {
            assert_eq!((found.1, found.2), (versions.advertised_min, versions.max), "{what}: {api:?}");
        } else {
            // What we serve Kafka serves.
            assert!(
                found.1 <= versions.advertised_min && found.2 >= versions.max,
                "{what}: {api:?} {found:?}"
            );
        }
    }
    assert!(!rig.isobar || told.len() == ApiKey::ALL.len(), "{what}");
}

pub(crate) async fn api_versions(rig: &mut Rig, version: i16) {
    let request = ApiVersionsRequest::default();
    let named =
        request.clone().with_client_software_name(s("surface")).with_client_software_version(s("1.0"));
    let answer = rig.wire.call(version, if version >= 3 { &named } else { &request }).await;
    assert_eq!(answer.error_code, 0, "v{version}");
    check_table(rig, &answer, &format!("v{version}"));
    if version >= 3 {
        let bad = named.with_client_software_name(s("not a name"));
        let answer = rig.wire.call(version, &bad).await;
        assert_eq!((answer.error_code, answer.api_keys.len()), (42, 0), "v{version}");
    }
}

/// A version that nobody has: error 35 in a version 0 body, with the table, on a connection that stays (KIP-511).
pub(crate) async fn api_versions_of_the_future() {
    let mut rig = Rig::start().await;
    for version in [ApiKey::ApiVersions.versions().max + 1, 99, i16::MAX] {
        // Its body is from the future, too.
        rig.wire.send_raw(ApiKey::ApiVersions.key(), version, b"\x00\xff\xff\xff").await;
        let answer = rig.wire.answer::<ApiVersionsRequest>(version, 0).await;
        assert_eq!(answer.error_code, 35, "v{version}");
        if rig.isobar {
            check_table(&rig, &answer, &format!("v{version}"));
        } else {
            assert!(answer.api_keys.iter().any(|row| row.api_key == ApiKey::ApiVersions.key()));
        }
        api_versions(&mut rig, 0).await;
    }
    rig.stop().await;
}

pub(crate) async fn describe_cluster(rig: &mut Rig, version: i16) {
    let answer = rig.wire.call(version, &DescribeClusterRequest::default()).await;
    assert_eq!((answer.error_code, answer.cluster_id.len()), (0, 22), "v{version}");
    assert_eq!((answer.brokers.len(), answer.brokers[0].broker_id.0), (1, 1), "v{version}");
    assert_eq!(answer.controller_id.0, 1, "v{version}");
    if version >= 1 {
        for (endpoint_type, expected) in [(2, 114), (7, 115)] {
            let request = DescribeClusterRequest::default().with_endpoint_type(endpoint_type);
            let answer = rig.wire.call(version, &request).await;
            assert_eq!(answer.error_code, expected, "v{version}: type {endpoint_type}");
        }
    }
}

fn new_topic(name: &str, partitions: i32) -> CreatableTopic {
    CreatableTopic::default().with_name(t(name)).with_num_partitions(partitions).with_replication_factor(1)
}

fn with_config(topic: CreatableTopic, name: &str, value: Option<&str>) -> CreatableTopic {
    let config = CreatableTopicConfig::default().with_name(s(name)).with_value(value.map(s));
    topic.with_configs(vec![config])
}

pub(crate) async fn create_topics(rig: &mut Rig, version: i16) {
    let (new, other) = (rig.name("new"), rig.name("other"));
    let retained = with_config(new_topic(&new, 2), "retention.ms", Some("1234567"));
    let topics = vec![
        (retained, 0),
        (new_topic(TOPIC, 1), 36),
        (new_topic("not legal!", 1), 17),
        (new_topic(&format!("{other}-1"), 0), 37),
        (new_topic(&format!("{other}-2"), 1).with_replication_factor(0), 38),
        (with_config(new_topic(&format!("{other}-3"), 1), "no.such.config", Some("1")), 40),
        (with_config(new_topic(&format!("{other}-4"), 1), "retention.ms", Some("soon")), 40),
        (with_config(new_topic(&format!("{other}-5"), 1), "retention.ms", None), 40),
    ];
    let request = CreateTopicsRequest::default()
        .with_timeout_ms(9_000)
        .with_topics(topics.iter().map(|(topic, _)| topic.clone()).collect());
    let checked = rig.wire.call(version, &request.clone().with_validate_only(true)).await;
    let created = rig.wire.call(version, &request).await;
    for answer in [checked, created] {
        assert_eq!(answer.topics.len(), topics.len(), "v{version}");
        for (topic, expected) in &topics {
            let told = answer.topics.iter().find(|told| told.name == topic.name).unwrap();
            assert_eq!(told.error_code, *expected, "v{version}: {topic:?} {:?}", told.error_message);
            assert_eq!(told.error_message.is_some(), *expected != 0, "v{version}: {topic:?}");
        }
        let good = answer.topics.iter().find(|told| *told.name.0 == *new).unwrap();
        if version >= 5 {
            assert_eq!((good.num_partitions, good.replication_factor), (2, 1), "v{version}");
            let configs = good.configs.as_ref().unwrap();
            let retention = configs.iter().find(|config| &*config.name == "retention.ms").unwrap();
            assert_eq!((retention.value.as_deref(), retention.config_source), (Some("1234567"), 1));
        }
    }
    let twice = CreateTopicsRequest::default().with_timeout_ms(9_000).with_topics(vec![new_topic("a", 1); 2]);
    let answer = rig.wire.call(version, &twice).await;
    assert!(answer.topics.iter().all(|told| told.error_code == 42), "v{version}: {:?}", answer.topics);
}

async fn create(rig: &mut Rig, what: &str) -> (String, isobar_protocol::Uuid) {
    let name = rig.name(what);
    let request =
        CreateTopicsRequest::default().with_timeout_ms(9_000).with_topics(vec![new_topic(&name, 1)]);
    let answer = rig.wire.call(7, &request).await;
    assert_eq!(answer.topics[0].error_code, 0);
    (name, answer.topics[0].topic_id)
}

pub(crate) async fn delete_topics(rig: &mut Rig, version: i16) {
    let (name, _) = create(rig, "doomed").await;
    let request = DeleteTopicsRequest::default().with_timeout_ms(9_000);
    let request = if version < 6 {
        request.with_topic_names(vec![t(&name), t(ABSENT)])
    } else {
        let by_name = |name: &str| DeleteTopicState::default().with_name(Some(t(name)));
        let (_, id) = create(rig, "doomed").await;
        let by_id = |id| DeleteTopicState::default().with_name(None).with_topic_id(id);
        request.with_topics(vec![by_name(&name), by_name(ABSENT), by_id(id), by_id(ABSENT_ID)])
    };
    let answer = rig.wire.call(version, &request).await;
    let mut told: Vec<i16> = answer.responses.iter().map(|told| told.error_code).collect();
    told.sort_unstable();
    assert_eq!(told, if version < 6 { vec![0, 3] } else { vec![0, 0, 3, 100] }, "v{version}");
    for told in &answer.responses {
        let has_message = version >= 5 && told.error_code != 0;
        assert_eq!(told.error_message.is_some(), has_message, "v{version}");
        assert_eq!(told.name.is_none(), told.error_code == 100, "v{version}");
    }
}

pub(crate) async fn create_partitions(rig: &mut Rig, version: i16) {
    let (name, _) = create(rig, "growing").await;
    let to = |name: &str, count| {
        CreatePartitionsTopic::default().with_name(t(name)).with_count(count).with_assignments(None)
    };
    for (topic, expected) in [(to(&name, 3), 0), (to(&name, 2), 37), (to(ABSENT, 2), 3), (to(&name, -1), 37)]
    {
        let request =
            CreatePartitionsRequest::default().with_timeout_ms(9_000).with_topics(vec![topic.clone()]);
        let answer = rig.wire.call(version, &request).await;
        let told = &answer.results[0];
        assert_eq!(told.error_code, expected, "v{version}: {topic:?}");
        assert!(told.error_message.is_none() || expected != 0, "v{version}: {topic:?}");
    }
}

pub(crate) async fn describe_configs(rig: &mut Rig, version: i16) {
    let resource = |kind, name: &str| {
        DescribeConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(s(name))
            .with_configuration_keys(None)
    };
    let one = resource(TOPIC_RESOURCE, TOPIC).with_configuration_keys(Some(vec![s("retention.ms")]));
    let asked = vec![
        (one, 0),
        (resource(TOPIC_RESOURCE, TOPIC), 0),
        (resource(BROKER_RESOURCE, "1"), 0),
        (resource(BROKER_RESOURCE, ""), 0),
        (resource(TOPIC_RESOURCE, ABSENT), 3),
        (resource(TOPIC_RESOURCE, "not legal!"), 17),
        (resource(BROKER_RESOURCE, "77"), 42),
        (resource(BROKER_RESOURCE, "x"), 42),
    ];
    for (resource, expected) in asked {
        let what = format!("v{version}: {resource:?}");
        let request = DescribeConfigsRequest::default()
            .with_resources(vec![resource.clone()])
            .with_include_synonyms(true);
        let request = if version >= 3 { request.with_include_documentation(true) } else { request };
        let answer = rig.wire.call(version, &request).await;
        let told = &answer.results[0];
        assert_eq!((told.error_code, told.resource_type), (expected, resource.resource_type), "{what}");
        // Kafka's cluster default is not empty.
        let empty = expected != 0 || (resource.resource_name.is_empty() && rig.isobar);
        assert_eq!(told.configs.is_empty(), empty, "{what}");
        let names: Vec<&str> = resource.configuration_keys.iter().flatten().map(|name| &**name).collect();
        for config in &told.configs {
            assert!(names.is_empty() || names.contains(&&*config.name), "{what}");
            assert_eq!(config.config_type != 0, version >= 3, "{what}: {config:?}");
            if &*config.name == "retention.ms" {
                assert_eq!((config.value.as_deref(), config.config_source), (Some("-1"), 1), "{what}");
                assert_eq!(
                    (&*config.synonyms[0].name, config.synonyms[0].source),
                    ("retention.ms", 1),
                    "{what}"
                );
                let documented = config.documentation.as_ref().is_some_and(|text| !text.is_empty());
                assert_eq!(documented, version >= 3, "{what}");
            }
            if &*config.name == "max.message.bytes" {
                assert_eq!((config.value.as_deref(), config.config_source), (Some("1048588"), 5), "{what}");
                assert_eq!(
                    (&*config.synonyms[0].name, config.synonyms[0].source),
                    ("message.max.bytes", 5),
                    "{what}"
                );
            }
        }
    }
}

pub(crate) async fn incremental_alter_configs(rig: &mut Rig, version: i16) {
    let (name, _) = create(rig, "altered").await;
    let alter = |kind, name: &str, config: &str, op, value: Option<&str>| {
        let config = AlterableConfig::default()
            .with_name(s(config))
            .with_config_operation(op)
            .with_value(value.map(s));
        AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(s(name))
            .with_configs(vec![config])
    };
    let on = |config: &str, op, value| alter(TOPIC_RESOURCE, &name, config, op, value);
    let asked = vec![
        (on("retention.ms", 0, Some("1000")), 0),
        (on("retention.ms", 1, None), 0),
        (on("cleanup.policy", 2, Some("compact")), 0),
        (on("cleanup.policy", 3, Some("compact")), 0),
        (on("retention.ms", 0, Some("soon")), 40),
        (on("retention.ms", 0, None), 42),
        (on("retention.ms", 2, Some("1")), 40),
        (on("retention.ms", 9, Some("1")), if rig.isobar { 42 } else { -1 }),
        (on("no.such.config", 0, Some("1")), 40),
        (alter(TOPIC_RESOURCE, ABSENT, "retention.ms", 0, Some("1000")), 3),
        (alter(BROKER_RESOURCE, "", "log.retention.ms", 0, Some("604800000")), 0),
        (alter(BROKER_RESOURCE, "", "log.retention.ms", 1, None), 0),
        (alter(99, "x", "y", 0, Some("1")), 42),
    ];
    for (resource, expected) in asked {
        let what = format!("v{version}: {resource:?}");
        let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
        let answer = rig.wire.call(version, &request).await;
        let told = &answer.responses[0];
        assert_eq!(told.error_code, expected, "{what}: {:?}", told.error_message);
        assert!(told.error_message.is_none() || expected != 0, "{what}");
    }
    if rig.isobar {
        own_configs(rig, version).await;
    }
}

/// Every config of Isobar's own is like Kafka's: created with, described with type and words, altered, checked, unset.
async fn own_configs(rig: &mut Rig, version: i16) {
    let (name, _) = create(rig, "own").await;
    let configs = own(rig, &name).await;
    assert!(configs.iter().any(|(config, ..)| config == "isobar.durability"), "{configs:?}");
    for (config, default, source) in configs {
        let what = format!("v{version}: {config}");
        assert_eq!(source, 5, "{what}");
        let source_after = async |rig: &mut Rig, op, value: Option<&str>, expected| {
            let altered = AlterableConfig::default()
                .with_name(s(&config))
                .with_config_operation(op)
                .with_value(value.map(s));
            let resource = AlterConfigsResource::default()
                .with_resource_type(TOPIC_RESOURCE)
                .with_resource_name(s(&name))
                .with_configs(vec![altered]);
            let request = IncrementalAlterConfigsRequest::default().with_resources(vec![resource]);
            let answer = rig.wire.call(version, &request).await;
            assert_eq!(answer.responses[0].error_code, expected, "{what} {value:?}");
            let now = own(rig, &name).await;
            now.into_iter().find(|(other, ..)| *other == config).map(|(.., source)| source)
        };
        assert_eq!(source_after(rig, 0, Some("neither"), 40).await, Some(5), "{what}");
        assert_eq!(source_after(rig, 0, Some(&default), 0).await, Some(1), "{what}");
        assert_eq!(source_after(rig, 1, None, 0).await, Some(5), "{what}");
        let topic = rig.name("own-from-the-start");
        let request = CreateTopicsRequest::default()
            .with_topics(vec![with_config(new_topic(&topic, 1), &config, Some(&default))])
            .with_timeout_ms(30_000);
        assert_eq!(rig.wire.call(5, &request).await.topics[0].error_code, 0, "{what}");
        let told = own(rig, &topic).await;
        assert!(told.contains(&(config.clone(), default.clone(), 1)), "{what}: {told:?}");
    }
}

/// Name, value and source of a topic's configs that Kafka does not have.
async fn own(rig: &mut Rig, topic: &str) -> Vec<(String, String, i8)> {
    let resource = DescribeConfigsResource::default()
        .with_resource_type(TOPIC_RESOURCE)
        .with_resource_name(s(topic))
        .with_configuration_keys(None);
    let request =
        DescribeConfigsRequest::default().with_resources(vec![resource]).with_include_documentation(true);
    let answer = rig.wire.call(4, &request).await;
    let configs = answer.results[0].configs.iter().filter(|config| config.name.starts_with("isobar."));
    configs
        .map(|config| {
            assert!(config.config_type != 0 && !config.read_only && !config.is_sensitive, "{config:?}");
            assert!(config.documentation.as_ref().is_some_and(|text| text.ends_with('.')), "{config:?}");
            let value = config.value.as_ref().map(ToString::to_string).unwrap_or_default();
            (config.name.to_string(), value, config.config_source)
        })
        .collect()
}
