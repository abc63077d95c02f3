//! What clients are told of brokers that come and die.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::{
    CreateTopics, FEATURE_LEVEL, FenceSession, NewTopic, RegisterSession, UpdateSession,
};
use isobar_metadata::record::SessionState;
use isobar_metadata::{
    Command, DirectoryId, Envelope, PartitionKey, PlacementId, SessionId, StoreId, TopicId,
};
use isobar_protocol::api::ApiKey;
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use isobar_protocol::messages::{MetadataRequest, ProduceRequest, ProduceResponse, TopicName};
use isobar_protocol::records::BatchBuilder;
use isobar_protocol::request::{Body, Request, RequestHeader, decode_request};
use isobar_protocol::response::{decode_response, encode_request};
use isobar_protocol::{StrBytes, Uuid};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::cluster::metadata;
use crate::connection::{Answer, Client};
use crate::group::tests::node::boot;
use crate::steering::Steering;
use crate::{Broker, RunningBroker, produce};

pub(crate) const OTHER: i32 = 2;

/// Runs `scenario` beside a broker and a session of another one, which nobody keeps.
pub(crate) fn beside_another<F: Future<Output = ()> + Send + 'static>(
    scenario: impl FnOnce(Host, Arc<Broker>, SessionId) -> F + Send + 'static,
) {
    let mut world = World::new(5);
    world.add_node("a", Arc::new(SimDisk::new(5)));
    let ended = Arc::new(Mutex::new(None));
    let told = Arc::clone(&ended);
    world.boot("a", |host| async move {
        let running: RunningBroker = boot(&host).await;
        let broker = Arc::clone(&running.broker);
        let register = RegisterSession {
            node_id: OTHER,
            life: DirectoryId(Uuid::from_u128(7)),
            host: "127.0.0.1".to_owned(),
            port: 9093,
            home_store: StoreId(1),
            feature_level: FEATURE_LEVEL,
            ..RegisterSession::default()
        };
        propose(&broker, Command::RegisterSession(register)).await;
        let other = broker.image.with(|image| image.broker(OTHER).unwrap().session);
        let joined = host.spawn("test.scenario", scenario(host.clone(), broker, other)).join().await;
        *told.lock() = Some(joined);
    });
    for _ in 0..60_000 {
        world.step();
        if ended.lock().is_some() {
            break;
        }
    }
    assert_eq!(*ended.lock(), Some(true), "failed, or did not end");
}

pub(crate) async fn propose(broker: &Broker, command: Command) {
    broker.quorum.propose(Envelope::unnumbered(command)).await.unwrap();
    broker.settled().await;
}

/// The brokers that a client is told of, and how long that took.
async fn told(broker: &Arc<Broker>) -> (Vec<i32>, Duration) {
    let header = RequestHeader { api: ApiKey::Metadata, version: 12, correlation_id: 1, client_id: None };
    let began = Instant::now();
    let answer = metadata(broker, &header, MetadataRequest::default().with_topics(Some(Vec::new()))).await;
    (answer.brokers.iter().map(|broker| broker.node_id.0).collect(), began.elapsed())
}

#[test]
fn who_was_just_lost_is_waited_for_but_not_for_long() {
    beside_another(|host, broker, other| async move {
        assert!(told(&broker).await.1 < Duration::from_millis(10));
        // Nobody suspects it.
        broker.doubts.lost(OTHER);
        let (brokers, took) = told(&broker).await;
        assert_eq!(brokers, [1, OTHER]);
        assert!(took >= Duration::from_millis(190) && took < Duration::from_millis(250), "{took:?}");
        assert!(told(&broker).await.1 < Duration::from_millis(10), "the doubt has not ended");
        // It comes back.
        broker.doubts.lost(OTHER);
        broker.doubts.heard(OTHER);
        assert!(told(&broker).await.1 < Duration::from_millis(10));
        // It is suspect a moment later.
        broker.doubts.lost(OTHER);
        let suspecting = Arc::clone(&broker);
        let _ = host.spawn("test.suspect", async move {
            sleep(Duration::from_millis(30)).await;
            let state = SessionState::Suspect as i32;
            propose(&suspecting, Command::UpdateSession(UpdateSession { session: other, state })).await;
        });
        let (_, took) = told(&broker).await;
        assert!(took >= Duration::from_millis(30) && took < Duration::from_millis(100), "{took:?}");
    });
}

#[test]
fn a_dead_broker_stays_listed_for_a_while_and_leads_nothing() {
    beside_another(|_, broker, other| async move {
        propose(&broker, Command::FenceSession(FenceSession { session: other })).await;
        assert_eq!(broker.image.with(|image| image.brokers().len()), 1);
        assert_eq!(told(&broker).await.0, [1, OTHER]);
        sleep(Duration::from_secs(6)).await;
        // Metadata's time moves with its entries.
        let (session, state) = (broker.session.id(), SessionState::Live as i32);
        propose(&broker, Command::UpdateSession(UpdateSession { session, state })).await;
        assert_eq!(told(&broker).await.0, [1]);
    });
}

/// A topic of which each broker leads partitions; one of each, ours first.
async fn led_by_each(broker: &Broker) -> [PartitionKey; 2] {
    let topic_id = TopicId(Uuid::from_u128(3));
    let new = NewTopic {
        name: "t".to_owned(),
        topic_id,
        partitions: 64,
        replication_factor: 1,
        configs: BTreeMap::new(),
        placement: PlacementId::DEFAULT,
    };
    let create = Command::CreateTopics(CreateTopics { topics: vec![new], validate_only: false });
    broker.session.propose(create).await.unwrap();
    broker.settled().await;
    broker.image.with(|image| {
        let led_by = |node: i32| {
            let mut keys = (0..64).map(|partition| PartitionKey::new(topic_id, partition));
            keys.find(|key| image.leader(*key, "").is_some_and(|leader| leader.node_id == node)).unwrap()
        };
        [led_by(1), led_by(OTHER)]
    })
}

#[test]
fn a_client_is_sent_to_its_leader_for_a_while_after_each_change_of_the_map() {
    beside_another(|_, broker, other| async move {
        let [ours, theirs] = led_by_each(&broker).await;
        let connection = Steering::default();
        let away = |key| broker.image.with(|image| connection.away(image, 1, key, "", Instant::now()));
        assert_eq!(away(ours), None);
        assert_eq!(away(theirs).unwrap().node_id, OTHER);
        sleep(Duration::from_millis(400)).await;
        assert_eq!(away(theirs).unwrap().port, 9093);
        sleep(Duration::from_millis(110)).await;
        assert_eq!(away(theirs), None, "who still comes is served");
        let of_another = Steering::default();
        assert!(broker.image.with(|image| of_another.away(image, 1, theirs, "", Instant::now())).is_some());
        for state in [SessionState::Suspect, SessionState::Live] {
            let state = state as i32;
            propose(&broker, Command::UpdateSession(UpdateSession { session: other, state })).await;
            assert_eq!(away(theirs).is_some(), state == SessionState::Live as i32);
        }
    });
}

#[test]
fn nothing_of_a_batch_that_is_steered_is_appended() {
    beside_another(|_, broker, _| async move {
        let [ours, theirs] = led_by_each(&broker).await;
        let client = Client::new("127.0.0.1:5000".parse().unwrap());
        let ask = async |acks: i16, version: i16| {
            let partition = |key: PartitionKey| {
                let mut batch = BatchBuilder::new(Codec::None);
                batch.push(1_000, None, Some(b"v"), &[("", None); 0]);
                let records = batch.build().unwrap();
                PartitionProduceData::default().with_index(key.partition).with_records(Some(records))
            };
            let topic = TopicProduceData::default().with_name(TopicName(StrBytes::from_static_str("t")));
            let topic = topic.with_partition_data(vec![partition(ours), partition(theirs)]);
            let request = ProduceRequest::default().with_acks(acks).with_timeout_ms(1000);
            let request = request.with_topic_data(vec![topic]);
            let frame = encode_request(version, 7, Some("test"), &request).unwrap();
            let Request { header, body: Body::Produce(body) } = decode_request(frame.slice(4..)).unwrap()
            else {
                panic!("no Produce")
            };
            match produce::start(&broker, &client, header, body, Instant::now()).await.finish().await {
                Answer::Send(bytes) => {
                    Some(decode_response::<ProduceRequest>(version, bytes.into_bytes().slice(4..)).unwrap())
                }
                _ => None,
            }
        };
        let ends = || {
            broker
                .image
                .with(|image| [ours, theirs].map(|key| image.view(key).map_or(0, |view| view.high_watermark)))
        };
        // Its client cannot be told.
        assert!(ask(0, 12).await.is_none());
        sleep(Duration::from_millis(200)).await;
        assert_eq!(ends(), [1, 1]);
        let answer = ask(-1, 12).await.unwrap();
        let errors = |answer: &ProduceResponse| -> Vec<i16> {
            answer.responses[0].partition_responses.iter().map(|partition| partition.error_code).collect()
        };
        assert_eq!(errors(&answer), [0, ErrorCode::NotLeaderOrFollower.code()]);
        assert_eq!(answer.responses[0].partition_responses[1].current_leader.leader_id.0, OTHER);
        assert_eq!((answer.node_endpoints[0].node_id.0, answer.node_endpoints[0].port), (OTHER, 9093));
        assert_eq!(ends(), [2, 1]);
        // Before KIP-951 there is no room for the leader.
        let answer = ask(-1, 9).await.unwrap();
        assert_eq!(errors(&answer), [0, ErrorCode::NotLeaderOrFollower.code()]);
        sleep(Duration::from_millis(500)).await;
        assert_eq!(errors(&ask(-1, 12).await.unwrap()), [0, 0]);
        assert_eq!(ends(), [4, 2]);
    });
}
