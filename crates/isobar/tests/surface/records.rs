//! Produce, Fetch, ListOffsets, OffsetForLeaderEpoch, InitProducerId.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use isobar_protocol::TopicRef;
use isobar_protocol::api::ApiKey;
use isobar_protocol::batch::{BatchHeader, Batches, HEADER_BYTES, write_crc};
use isobar_protocol::compression::Codec;
use isobar_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use isobar_protocol::messages::delete_records_request::{DeleteRecordsPartition, DeleteRecordsTopic};
use isobar_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use isobar_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use isobar_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use isobar_protocol::messages::produce_response::TopicProduceResponse;
use isobar_protocol::messages::{
    BrokerId, CreateTopicsRequest, DeleteRecordsRequest, FetchRequest, FetchResponse, InitProducerIdRequest,
    ListOffsetsRequest, OffsetForLeaderEpochRequest, ProducerId, TransactionalId,
};

use isobar_protocol::produce::Outgoing;

use crate::wire::{ABSENT, FIRST_TIME_MS, RECORDS, Rig, TOPIC, Wire, absent, batch, batch_in, s, t};

pub(crate) async fn produce(rig: &mut Rig, version: i16) {
    let mut corrupt = BytesMut::from(&batch()[..]);
    let last = corrupt.len() - 1;
    corrupt[last] ^= 1;
    let partitions = vec![(1, batch()), (77, batch()), (2, corrupt.freeze())];
    let mut request = rig.outgoing(version, -1, partitions);
    request.topics.push((absent(version), vec![(0, batch())]));
    let response = rig.wire.produce(version, request).await.unwrap();

    let known = rig.topic(version);
    let found = |topic: &TopicRef, index: i32| {
        let is_it = |told: &&TopicProduceResponse| match topic {
            TopicRef::Name(name) => told.name.0 == *name,
            TopicRef::Id(id) => told.topic_id == *id,
        };
        let told = response.responses.iter().find(is_it).unwrap();
        told.partition_responses.iter().find(|told| told.index == index).unwrap().clone()
    };
    let good = found(&known, 1);
    assert_eq!((good.error_code, good.log_append_time_ms), (0, -1), "v{version}");
    assert!(good.base_offset >= 0);
    assert_eq!(good.log_start_offset, if version >= 5 { 0 } else { -1 }, "v{version}");
    let nobody = if version >= 13 { 100 } else { 3 };
    for (topic, index, expected) in [(&known, 77, 3), (&known, 2, 2), (&absent(version), 0, nobody)] {
        let refused = found(topic, index);
        assert_eq!(
            (refused.error_code, refused.base_offset),
            (expected, -1),
            "v{version}: {topic:?} {index}"
        );
    }

    for codec in Codec::ALL.into_iter().filter(|codec| *codec != Codec::None) {
        if codec == Codec::Zstd && version < 7 {
            continue;
        }
        let lies = vec![(1, announcing(batch_in(codec), RECORDS + 1)), (2, labelled(batch(), codec))];
        let lies = rig.outgoing(version, -1, lies);
        let answer = rig.wire.produce(version, lies).await.unwrap();
        let told = &answer.responses[0].partition_responses;
        let told: BTreeMap<i32, i16> = told.iter().map(|told| (told.index, told.error_code)).collect();
        let undecodable = if rig.isobar { 87 } else { -1 };
        assert_eq!(told, [(1, 87), (2, undecodable)].into(), "v{version}: {codec:?}");
    }

    for count in [RECORDS - 1, RECORDS + 1] {
        let lies = rig.outgoing(version, -1, vec![(1, announcing(batch(), count))]);
        let answer = rig.wire.produce(version, lies).await.unwrap();
        let told = &answer.responses[0].partition_responses[0];
        assert_eq!((told.error_code, told.base_offset), (87, -1), "v{version}: {count} records announced");
        // Kafka gives the code alone.
        let message = told.error_message.as_deref().unwrap_or_default();
        let explained = message.starts_with("Incorrect declared batch size, ");
        assert_eq!(explained, version >= 8 && rig.isobar, "v{version}: {message}");
    }

    let nothing = rig.outgoing(version, 0, vec![(2, batch())]);
    assert!(rig.wire.produce(version, nothing).await.is_none());
    let wrong_acks = rig.outgoing(version, 5, vec![(0, batch())]);
    let answer = rig.wire.produce(version, wrong_acks).await.unwrap();
    assert_eq!(answer.responses[0].partition_responses[0].error_code, 21, "v{version}: acks");
}

/// A batch with another number of records in its header, and a CRC that is right.
fn announcing(bytes: Bytes, count: i64) -> Bytes {
    let mut header = BatchHeader::parse(&bytes).unwrap();
    header.count = i32::try_from(count).unwrap();
    header.last_offset_delta = header.count - 1;
    with_header(&header, &bytes)
}

/// A batch that says of plain records that they are compressed.
fn labelled(bytes: Bytes, codec: Codec) -> Bytes {
    let mut header = BatchHeader::parse(&bytes).unwrap();
    header.attributes.0 |= i16::from(codec.id());
    with_header(&header, &bytes)
}

fn with_header(header: &BatchHeader, bytes: &[u8]) -> Bytes {
    let mut lying = BytesMut::from(&header.encode()[..]);
    lying.extend_from_slice(&bytes[HEADER_BYTES..]);
    write_crc(&mut lying);
    lying.freeze()
}

/// Kafka 4 advertises them for old librdkafka's sake, and closes the connection of who takes it at its word.
pub(crate) async fn produce_before_3() {
    let rig = Rig::start().await;
    let versions = ApiKey::Produce.versions();
    assert_eq!((versions.advertised_min, versions.min), (0, 3));
    for version in versions.advertised_min..versions.min {
        let mut wire = Wire::open(&rig.addr).await;
        let mut body = Vec::new();
        body.extend(1_i16.to_be_bytes());
        body.extend(1_000_i32.to_be_bytes());
        body.extend(0_i32.to_be_bytes());
        wire.send_raw(0, version, &body).await;
        assert_eq!(wire.read().await, None, "v{version}");
    }
    rig.stop().await;
}

fn fetch_topic(version: i16, topic: &TopicRef, partitions: Vec<FetchPartition>) -> FetchTopic {
    let wanted = FetchTopic::default().with_partitions(partitions);
    match topic {
        TopicRef::Name(name) => wanted.with_topic(t(name)),
        TopicRef::Id(id) => {
            assert!(version >= 13);
            wanted.with_topic_id(*id)
        }
    }
}

fn from(partition: i32, offset: i64) -> FetchPartition {
    FetchPartition::default()
        .with_partition(partition)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(1 << 20)
}

fn fetch_of(version: i16, topics: Vec<FetchTopic>) -> FetchRequest {
    let request = FetchRequest::default().with_max_wait_ms(100).with_min_bytes(1).with_max_bytes(1 << 20);
    let request = if version < 15 { request.with_replica_id(BrokerId(-1)) } else { request };
    let request = if version >= 7 { request.with_session_epoch(-1) } else { request };
    request.with_topics(topics)
}

fn codes(response: &FetchResponse) -> Vec<i16> {
    response.responses.iter().flat_map(|topic| &topic.partitions).map(|part| part.error_code).collect()
}

pub(crate) async fn fetch(rig: &mut Rig, version: i16) {
    let topic = rig.topic(version);
    let mut first = from(0, 0);
    if version >= 9 {
        first.current_leader_epoch = rig.leader_epoch;
    }
    let wanted = fetch_topic(version, &topic, vec![first, from(0, 999).with_partition(1), from(77, 0)]);
    let unknown = fetch_topic(version, &absent(version), vec![from(0, 0)]);
    let response = rig.wire.call(version, &fetch_of(version, vec![wanted, unknown])).await;
    assert_eq!(response.error_code, 0, "v{version}");
    let nobody = if version >= 13 { 100 } else { 3 };
    // Kafka tells what it could not resolve last.
    let mut told = codes(&response);
    told.sort_unstable();
    assert_eq!(told, vec![0, 1, 3, nobody], "v{version}");
    let mut all = response.responses.iter().flat_map(|topic| &topic.partitions);
    let found = all.find(|told| told.error_code == 0).unwrap();
    assert_eq!((found.high_watermark, found.last_stable_offset), (RECORDS, RECORDS), "v{version}");
    assert_eq!(found.log_start_offset, if version >= 5 { 0 } else { -1 }, "v{version}");
    let records = found.records.clone().unwrap();
    let counts: Vec<i32> = Batches::new(&records).map(|batch| batch.unwrap().0.count).collect();
    assert_eq!(counts, vec![i32::try_from(RECORDS).unwrap()], "v{version}");

    let committed = fetch_topic(version, &topic, vec![from(0, 1)]);
    let response = rig.wire.call(version, &fetch_of(version, vec![committed]).with_isolation_level(1)).await;
    let found = &response.responses[0].partitions[0];
    assert_eq!((found.error_code, &found.aborted_transactions), (0, &Some(Vec::new())), "v{version}");
    if version >= 7 {
        fetch_session(rig, version, &topic).await;
    }
    if version >= 9 {
        // A leader epoch that is yet to come.
        let ahead = from(0, 0).with_current_leader_epoch(i32::MAX);
        let request = fetch_of(version, vec![fetch_topic(version, &topic, vec![ahead])]);
        assert_eq!(codes(&rig.wire.call(version, &request).await), vec![75], "v{version}");
    }
    if version >= 12 {
        // The asker has read further in this epoch than the log goes.
        let diverged = from(0, RECORDS + 4).with_last_fetched_epoch(rig.leader_epoch);
        let request = fetch_of(version, vec![fetch_topic(version, &topic, vec![diverged])]);
        let response = rig.wire.call(version, &request).await;
        let told = &response.responses[0].partitions[0];
        assert_eq!((told.error_code, told.diverging_epoch.end_offset), (0, RECORDS), "v{version}");
    }
}

async fn fetch_session(rig: &mut Rig, version: i16, topic: &TopicRef) {
    let both = fetch_topic(version, topic, vec![from(0, 0), from(1, 0)]);
    let opened = rig.wire.call(version, &fetch_of(version, vec![both]).with_session_epoch(0)).await;
    assert_eq!((opened.error_code, codes(&opened)), (0, vec![0, 0]), "v{version}");
    assert!(opened.session_id > 0, "v{version}");
    let next =
        |epoch| fetch_of(version, Vec::new()).with_session_id(opened.session_id).with_session_epoch(epoch);
    let forgotten = match topic {
        TopicRef::Name(name) => ForgottenTopic::default().with_topic(t(name)),
        TopicRef::Id(id) => ForgottenTopic::default().with_topic_id(*id),
    };
    let more = next(1).with_forgotten_topics_data(vec![forgotten.with_partitions(vec![1])]);
    let more = rig.wire.call(version, &more).await;
    assert_eq!((more.error_code, more.session_id), (0, opened.session_id), "v{version}");
    assert_eq!(
        codes(&more),
        vec![0],
        "v{version}: only the partition with records, and the other one is forgotten"
    );
    let late = rig.wire.call(version, &next(9)).await;
    assert_eq!((late.error_code, late.responses.len()), (71, 0), "v{version}: wrong session epoch");
    let closed = rig.wire.call(version, &next(-1)).await;
    assert_eq!((closed.error_code, closed.session_id), (0, 0), "v{version}");
    let gone = rig.wire.call(version, &next(2)).await;
    assert_eq!(gone.error_code, 70, "v{version}: the session is closed");
}

pub(crate) async fn list_offsets(rig: &mut Rig, version: i16) {
    let ask = |partition, timestamp| {
        ListOffsetsPartition::default().with_partition_index(partition).with_timestamp(timestamp)
    };
    let mut asked = vec![
        (ask(0, -1), (0, RECORDS)),
        (ask(0, -2), (0, 0)),
        (ask(0, FIRST_TIME_MS + 1), (0, 1)),
        (ask(0, FIRST_TIME_MS + 99), (0, -1)),
        (ask(77, -1), (3, -1)),
        (ask(0, -3), if version >= 7 { (0, RECORDS - 1) } else { (35, -1) }),
        (ask(0, -4), if version >= 8 { (0, 0) } else { (35, -1) }),
        (ask(0, -5), if version >= 9 { (0, -1) } else { (35, -1) }),
        (ask(0, -99), (35, -1)),
    ];
    if version >= 4 {
        asked.push((ask(0, -1).with_current_leader_epoch(i32::MAX), (75, -1)));
        asked.push((ask(0, -1).with_current_leader_epoch(rig.leader_epoch), (0, RECORDS)));
    }
    for (partition, expected) in asked {
        let what = format!("v{version}: {partition:?}");
        let topic = ListOffsetsTopic::default().with_name(t(TOPIC)).with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
        let response = rig.wire.call(version, &request).await;
        let told = &response.topics[0].partitions[0];
        assert_eq!((told.error_code, told.offset), expected, "{what}");
        let has_epoch = version >= 4 && told.offset >= 0;
        assert_eq!(told.leader_epoch, if has_epoch { rig.record_epoch } else { -1 }, "{what}");
    }
    let topic = ListOffsetsTopic::default().with_name(t(ABSENT)).with_partitions(vec![ask(0, -1)]);
    let request = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
    let request = if version >= 2 { request.with_isolation_level(1) } else { request };
    let response = rig.wire.call(version, &request).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 3, "v{version}");
}

/// A topic of its own with [`RECORDS`] records in its one partition.
async fn filled(rig: &mut Rig, policy: &str) -> String {
    let name = rig.name("delete-records");
    let config =
        |name, value: &str| CreatableTopicConfig::default().with_name(s(name)).with_value(Some(s(value)));
    let new = CreatableTopic::default()
        .with_name(t(&name))
        .with_num_partitions(1)
        .with_replication_factor(1)
        .with_configs(vec![config("retention.ms", "-1"), config("cleanup.policy", policy)]);
    let create = CreateTopicsRequest::default().with_topics(vec![new]).with_timeout_ms(9_000);
    assert_eq!(rig.wire.call(7, &create).await.topics[0].error_code, 0);
    let topics = vec![(TopicRef::Name(s(&name)), vec![(0, batch())])];
    loop {
        let request =
            Outgoing { acks: -1, timeout_ms: 10_000, transactional_id: None, topics: topics.clone() };
        let answer = rig.wire.produce(9, request).await.unwrap();
        match answer.responses[0].partition_responses[0].error_code {
            0 => return name,
            // Kafka has no leader for a moment.
            code => assert!([3, 6].contains(&code), "{code}"),
        }
    }
}

pub(crate) async fn delete_records(rig: &mut Rig, version: i16) {
    let deleting = filled(rig, "delete").await;
    let compacted = filled(rig, "compact").await;
    let ask = |name: &str, partition, offset| {
        let partition = DeleteRecordsPartition::default().with_partition_index(partition).with_offset(offset);
        let topic = DeleteRecordsTopic::default().with_name(t(name)).with_partitions(vec![partition]);
        DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(9_000)
    };
    let cases = [
        (ask(ABSENT, 0, 0), (3, -1)),
        (ask(&deleting, 77, 0), (3, -1)),
        (ask(&compacted, 0, 1), (44, -1)),
        (ask(&deleting, 0, -2), (1, -1)),
        (ask(&deleting, 0, RECORDS + 1), (1, -1)),
        (ask(&deleting, 0, 0), (0, 0)),
        // Inside the batch.
        (ask(&deleting, 0, 1), (0, 1)),
        // It never falls.
        (ask(&deleting, 0, 0), (0, 1)),
        (ask(&deleting, 0, -1), (0, RECORDS)),
    ];
    for (request, expected) in cases {
        let response = rig.wire.call(version, &request).await;
        let told = &response.topics[0].partitions[0];
        assert_eq!((told.error_code, told.low_watermark), expected, "v{version}: {request:?}");
        if let (0, low_watermark) = expected {
            let earliest = ListOffsetsPartition::default().with_timestamp(-2);
            let topic = ListOffsetsTopic::default().with_name(t(&deleting)).with_partitions(vec![earliest]);
            let list = ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic]);
            let answer = rig.wire.call(7, &list).await;
            assert_eq!(answer.topics[0].partitions[0].offset, low_watermark, "v{version}: {request:?}");
        }
    }
    let partition = FetchPartition::default().with_fetch_offset(1).with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default().with_topic(t(&deleting)).with_partitions(vec![partition]);
    let fetch = FetchRequest::default().with_max_bytes(1 << 20).with_topics(vec![topic]);
    let answer = rig.wire.call(11, &fetch).await;
    assert_eq!(answer.responses[0].partitions[0].error_code, 1, "v{version}: below the log start");
}

pub(crate) async fn offset_for_leader_epoch(rig: &mut Rig, version: i16) {
    let ask = |partition, epoch| {
        OffsetForLeaderPartition::default().with_partition(partition).with_leader_epoch(epoch)
    };
    let epoch = rig.leader_epoch;
    let asked = vec![
        (ask(0, epoch), (0, rig.record_epoch, RECORDS)),
        (ask(0, epoch).with_current_leader_epoch(epoch), (0, rig.record_epoch, RECORDS)),
        (ask(0, epoch).with_current_leader_epoch(i32::MAX), (75, -1, -1)),
        (ask(77, epoch), (3, -1, -1)),
    ];
    for (partition, expected) in asked {
        let what = format!("v{version}: {partition:?}");
        let topic = OffsetForLeaderTopic::default().with_topic(t(TOPIC)).with_partitions(vec![partition]);
        let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
        let request = if version >= 3 { request.with_replica_id(BrokerId(-1)) } else { request };
        let response = rig.wire.call(version, &request).await;
        let told = &response.topics[0].partitions[0];
        assert_eq!((told.error_code, told.leader_epoch, told.end_offset), expected, "{what}");
    }
    let topic = OffsetForLeaderTopic::default().with_topic(t(ABSENT)).with_partitions(vec![ask(0, 0)]);
    let request = OffsetForLeaderEpochRequest::default().with_topics(vec![topic]);
    let response = rig.wire.call(version, &request).await;
    assert_eq!(response.topics[0].partitions[0].error_code, 3, "v{version}");
}

pub(crate) async fn init_producer_id(rig: &mut Rig, version: i16) {
    let fresh =
        InitProducerIdRequest::default().with_transactional_id(None).with_transaction_timeout_ms(60_000);
    let mut granted = rig.wire.call(version, &fresh).await;
    while granted.error_code == 14 {
        // Kafka's first block of ids is on its way.
        granted = rig.wire.call(version, &fresh).await;
    }
    assert_eq!((granted.error_code, granted.producer_epoch), (0, 0), "v{version}");
    assert!(granted.producer_id.0 >= 0);
    if version >= 3 {
        let again = fresh.clone().with_producer_id(granted.producer_id).with_producer_epoch(0);
        let again = rig.wire.call(version, &again).await;
        assert_eq!((again.error_code, again.producer_epoch), (0, 0), "v{version}");
        assert_ne!(again.producer_id, granted.producer_id, "v{version}");
    }
    let empty = fresh.with_transactional_id(Some(TransactionalId(s(""))));
    let refused = rig.wire.call(version, &empty).await;
    let told = (refused.error_code, refused.producer_id, refused.producer_epoch);
    assert_eq!(told, (42, ProducerId(-1), if rig.isobar { -1 } else { told.2 }), "v{version}");
}
