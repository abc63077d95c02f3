//! A broker on a simulated machine, and a client that speaks to its handlers in frames.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::{RegisterDirectory, RegisterSession};
use isobar_metadata::{ClusterFormat, Command, DirectoryId, Envelope, StoreId};
use isobar_protocol::messages::create_topics_request::CreatableTopic;
use isobar_protocol::messages::describe_groups_response::DescribedGroup;
use isobar_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use isobar_protocol::messages::list_groups_response::ListedGroup;
use isobar_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use isobar_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use isobar_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use isobar_protocol::messages::*;
use isobar_protocol::request::decode_request;
use isobar_protocol::response::{decode_response, encode_request};
use isobar_protocol::{KafkaRequest, StrBytes, Uuid};
use isobar_raft::{Quorum, QuorumOptions};
use isobar_store::{Bucket, BucketOptions, MemoryCache, ObjectReader, StoreMetrics};
use isobar_wal::{LocalReplica, ReplicaOptions, Wal, WalMetrics};
use parking_lot::Mutex;

use crate::connection::{Answer, Client};
use crate::{
    Alone, Broker, Ensembles, LiveImage, Metrics, Options, Parts, RunningBroker, dispatch, register_directory,
};

type Scenario = Box<dyn FnOnce(Kafka) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;
/// Virtual time that one life may take.
const LIFE_STEPS: u64 = 120_000;

pub(crate) async fn boot(host: &Host) -> RunningBroker {
    boot_on(host, |wal| Arc::new(wal), |directory| Arc::new(Alone(directory))).await
}

/// With something before its write-ahead log.
pub(crate) async fn boot_on(
    host: &Host,
    wrap: impl FnOnce(LocalReplica) -> Arc<dyn Wal>,
    ensembles: impl FnOnce(DirectoryId) -> Arc<dyn Ensembles>,
) -> RunningBroker {
    let mut quorum = QuorumOptions::new("/data/metadata", 1);
    let fresh = host.disk().list(std::path::Path::new("/data/wal")).is_err();
    quorum.segment_bytes = 8 << 20;
    quorum.format = Some(ClusterFormat::dev("test-cluster".to_owned(), "local".to_owned()));
    let quorum = Quorum::start(host, quorum).await.unwrap();
    let (image, effects) = quorum.subscribe();
    let mut replica = ReplicaOptions { format: fresh, ..ReplicaOptions::default() };
    replica.journal.segment_bytes = 8 << 20;
    let wal = LocalReplica::open(host, "/data/wal".as_ref(), replica, WalMetrics::default()).await.unwrap();
    wal.reconcile(&image);
    let store_metrics = StoreMetrics::default();
    let (settings, root) = (BucketOptions::default(), std::path::Path::new("/data/bucket"));
    let bucket = Bucket::open_dir(host, "local", root, settings, store_metrics.clone()).await.unwrap();
    let cache = MemoryCache::new(host, 1 << 20, store_metrics);
    let metrics = Arc::new(Metrics::default());
    let directory =
        RegisterDirectory { directory: wal.directory(), node_id: 1, ..RegisterDirectory::default() };
    register_directory(&quorum, directory).await.unwrap();
    let parts = Parts {
        quorum,
        image: Arc::new(LiveImage::new(image, Arc::clone(&metrics))),
        directory: Some(wal.directory()),
        ensembles: ensembles(wal.directory()),
        wal: wrap(wal),
        objects: ObjectReader::new(bucket, Arc::new(cache)),
        home_store: StoreId(1),
        rpc_address: String::new(),
        metrics,
        doubts: Arc::default(),
        on_appended: Arc::new(|_| {}),
        on_registered: Box::new(|_| {}),
    };
    RunningBroker::start(host, Options::default(), parts, effects).await.unwrap()
}

/// Runs each scenario in a life of its own of one machine; each but the last ends in a power cut.
pub(super) fn live(seed: u64, lives: Vec<Scenario>) {
    let mut world = World::new(seed);
    world.add_node("a", Arc::new(SimDisk::new(seed)));
    let notes: Arc<Mutex<String>> = Arc::default();
    for (life, scenario) in lives.into_iter().enumerate() {
        let ended = Arc::new(Mutex::new(None));
        let (told, notes) = (Arc::clone(&ended), Arc::clone(&notes));
        world.boot("a", |host| async move {
            let running = Arc::new(boot(&host).await);
            let broker = Arc::clone(&running.broker);
            let scenario = scenario(Kafka { broker, running: Some(running), notes });
            let joined = host.spawn("test.scenario", scenario).join().await;
            *told.lock() = Some(joined);
        });
        for _ in 0..LIFE_STEPS {
            world.step();
            if ended.lock().is_some() {
                break;
            }
        }
        assert_eq!(*ended.lock(), Some(true), "life {life} failed, or did not end");
        world.crash("a");
    }
}

#[derive(Clone)]
pub(super) struct Kafka {
    pub(super) broker: Arc<Broker>,
    pub(super) running: Option<Arc<RunningBroker>>,
    pub(super) notes: Arc<Mutex<String>>,
}

pub(super) fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(super) fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

fn topic(name: &str) -> TopicName {
    TopicName(text(name))
}

pub(super) fn join_group(to: &str, member: &str) -> JoinGroupRequest {
    let protocol =
        JoinGroupRequestProtocol::default().with_name(text("range")).with_metadata(Bytes::from_static(b"t"));
    JoinGroupRequest::default()
        .with_group_id(group(to))
        .with_member_id(text(member))
        .with_session_timeout_ms(6_000)
        .with_rebalance_timeout_ms(20_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol])
}

pub(super) fn sync_group(
    of: &str,
    member: &str,
    generation: i32,
    assign: &[(&str, &str)],
) -> SyncGroupRequest {
    let assignments = assign.iter().map(|(member, assignment)| {
        SyncGroupRequestAssignment::default()
            .with_member_id(text(member))
            .with_assignment(Bytes::copy_from_slice(assignment.as_bytes()))
    });
    SyncGroupRequest::default()
        .with_group_id(group(of))
        .with_member_id(text(member))
        .with_generation_id(generation)
        .with_assignments(assignments.collect())
}

pub(super) fn heartbeat(of: &str, member: &str, generation: i32) -> HeartbeatRequest {
    HeartbeatRequest::default()
        .with_group_id(group(of))
        .with_member_id(text(member))
        .with_generation_id(generation)
}

pub(super) fn offset_commit(
    of: &str,
    by: (&str, i32),
    to: &str,
    partition: i32,
    offset: i64,
) -> OffsetCommitRequest {
    let partition = OffsetCommitRequestPartition::default()
        .with_partition_index(partition)
        .with_committed_offset(offset)
        .with_committed_metadata(Some(text("note")));
    let topic = OffsetCommitRequestTopic::default().with_name(topic(to)).with_partitions(vec![partition]);
    OffsetCommitRequest::default()
        .with_group_id(group(of))
        .with_member_id(text(by.0))
        .with_generation_id_or_member_epoch(by.1)
        .with_topics(vec![topic])
}

pub(super) fn fetch_all(of: &str) -> OffsetFetchRequest {
    OffsetFetchRequest::default()
        .with_groups(vec![OffsetFetchRequestGroup::default().with_group_id(group(of)).with_topics(None)])
}

impl Kafka {
    /// One request and its answer, as frames.
    pub(super) async fn call<R: KafkaRequest>(&self, version: i16, request: R) -> R::Response {
        call(Arc::clone(&self.broker), version, request).await
    }

    /// A request whose answer is not waited for.
    pub(super) fn start<R>(&self, version: i16, request: R) -> tokio::sync::oneshot::Receiver<R::Response>
    where
        R: KafkaRequest + Send + 'static,
        R::Response: Send + 'static,
    {
        let (tell, told) = tokio::sync::oneshot::channel();
        let broker = Arc::clone(&self.broker);
        self.broker.host.spawn("test.request", async move {
            let _ = tell.send(call(broker, version, request).await);
        });
        told
    }

    pub(super) fn note(&self, note: &str) {
        note.clone_into(&mut self.notes.lock());
    }

    pub(super) fn noted(&self) -> String {
        self.notes.lock().clone()
    }

    pub(super) async fn drain(&self) {
        self.running.as_ref().unwrap().drain().await;
    }

    /// Another process of the same node registers.
    pub(super) async fn fence(&self) {
        let register = RegisterSession {
            node_id: 1,
            life: DirectoryId(Uuid::from_u128(77)),
            host: "127.0.0.1".to_owned(),
            port: 9093,
            home_store: StoreId(1),
            feature_level: isobar_metadata::command::FEATURE_LEVEL,
            ..RegisterSession::default()
        };
        let register = Envelope::unnumbered(Command::RegisterSession(register));
        self.broker.quorum.propose(register).await.unwrap();
        self.broker.settled().await;
    }

    pub(super) async fn create_topic(&self, name: &str, partitions: i32) {
        let new = CreatableTopic::default()
            .with_name(topic(name))
            .with_num_partitions(partitions)
            .with_replication_factor(1);
        let made =
            self.call(7, CreateTopicsRequest::default().with_topics(vec![new]).with_timeout_ms(1_000)).await;
        assert!([0, 36].contains(&made.topics[0].error_code), "{made:?}");
    }

    pub(super) async fn commit(
        &self,
        of: &str,
        by: (&str, i32),
        to: &str,
        partition: i32,
        offset: i64,
    ) -> i16 {
        self.commit_at(8, of, by, to, partition, offset).await
    }

    /// By this connection, and whether it was closed afterwards.
    pub(super) async fn commit_by(
        &self,
        client: &Client,
        of: &str,
        by: (&str, i32),
        offset: i64,
    ) -> (i16, bool) {
        let frame = frame_of(8, &offset_commit(of, by, "t", 0, offset));
        let (answer, closed) = call_by::<OffsetCommitRequest>(client, &self.broker, 8, &frame).await;
        (answer.topics[0].partitions[0].error_code, closed)
    }

    pub(super) async fn commit_at(
        &self,
        version: i16,
        of: &str,
        by: (&str, i32),
        to: &str,
        partition: i32,
        offset: i64,
    ) -> i16 {
        let answer = self.call(version, offset_commit(of, by, to, partition, offset)).await;
        answer.topics[0].partitions[0].error_code
    }

    pub(super) async fn fetch_offset(&self, of: &str, from: &str, partition: i32) -> (i64, i16) {
        self.fetch_offset_at(9, of, from, partition).await
    }

    pub(super) async fn fetch_offset_at(
        &self,
        version: i16,
        of: &str,
        from: &str,
        partition: i32,
    ) -> (i64, i16) {
        if version < 8 {
            let asked = OffsetFetchRequestTopic::default()
                .with_name(topic(from))
                .with_partition_indexes(vec![partition]);
            let request =
                OffsetFetchRequest::default().with_group_id(group(of)).with_topics(Some(vec![asked]));
            let answer = self.call(version, request).await;
            assert_eq!(answer.error_code, 0);
            let partition = &answer.topics[0].partitions[0];
            return (partition.committed_offset, partition.error_code);
        }
        let asked = OffsetFetchRequestTopics::default()
            .with_name(topic(from))
            .with_partition_indexes(vec![partition]);
        let asked =
            OffsetFetchRequestGroup::default().with_group_id(group(of)).with_topics(Some(vec![asked]));
        let answer = self.call(version, OffsetFetchRequest::default().with_groups(vec![asked])).await;
        assert_eq!(answer.groups[0].error_code, 0);
        let partition = &answer.groups[0].topics[0].partitions[0];
        (partition.committed_offset, partition.error_code)
    }

    pub(super) async fn heartbeat(&self, of: &str, member: &str, generation: i32) -> i16 {
        self.call(4, heartbeat(of, member, generation)).await.error_code
    }

    pub(super) async fn sync(
        &self,
        of: &str,
        member: &str,
        generation: i32,
        assign: &[(&str, &str)],
    ) -> SyncGroupResponse {
        self.call(5, sync_group(of, member, generation, assign)).await
    }

    pub(super) async fn describe(&self, of: &str) -> DescribedGroup {
        self.describe_at(5, of).await
    }

    pub(super) async fn describe_at(&self, version: i16, of: &str) -> DescribedGroup {
        let mut answer =
            self.call(version, DescribeGroupsRequest::default().with_groups(vec![group(of)])).await;
        answer.groups.remove(0)
    }

    pub(super) async fn list(&self, states: &[&str], types: &[&str]) -> Vec<ListedGroup> {
        let texts = |all: &[&str]| all.iter().map(|one| text(one)).collect();
        let request =
            ListGroupsRequest::default().with_states_filter(texts(states)).with_types_filter(texts(types));
        self.call(5, request).await.groups
    }

    pub(super) async fn delete(&self, groups: &[&str]) -> Vec<(String, i16)> {
        let names = groups.iter().map(|name| group(name)).collect();
        let answer = self.call(2, DeleteGroupsRequest::default().with_groups_names(names)).await;
        answer.results.iter().map(|result| (result.group_id.0.to_string(), result.error_code)).collect()
    }

    /// Two members in one stable generation, each assigned its own id; the first leads.
    pub(super) async fn two_members(&self, of: &str) -> (String, String, i32) {
        let mut ids = Vec::new();
        for _ in 0..2 {
            let given = self.call(9, join_group(of, "")).await;
            assert_eq!(given.error_code, 79);
            ids.push(given.member_id.to_string());
            if ids.len() == 1 {
                assert_eq!(self.call(9, join_group(of, &ids[0])).await.error_code, 0);
            }
        }
        let b = self.start(9, join_group(of, &ids[1]));
        tokio::time::sleep(Duration::from_millis(20)).await;
        let a = self.call(9, join_group(of, &ids[0])).await;
        let b = b.await.unwrap();
        assert_eq!((a.error_code, b.error_code, a.members.len(), b.members.len()), (0, 0, 2, 0));
        let generation = a.generation_id;
        assert_eq!(b.generation_id, generation);
        let follower = self.start(5, sync_group(of, &ids[1], generation, &[]));
        let assign: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), id.as_str())).collect();
        let leader = self.sync(of, &ids[0], generation, &assign).await;
        let follower = follower.await.unwrap();
        assert_eq!((leader.error_code, &leader.assignment[..]), (0, ids[0].as_bytes()));
        assert_eq!((follower.error_code, &follower.assignment[..]), (0, ids[1].as_bytes()));
        let b = ids.pop().unwrap();
        (ids.pop().unwrap(), b, generation)
    }
}

async fn call<R: KafkaRequest>(broker: Arc<Broker>, version: i16, request: R) -> R::Response {
    let frame = frame_of(version, &request);
    loop {
        let client = Client::new("127.0.0.1:5000".parse().unwrap());
        // A client whose connection was closed with the answer comes again.
        if let (answer, false) = call_by::<R>(&client, &broker, version, &frame).await {
            return answer;
        }
    }
}

fn frame_of<R: KafkaRequest>(version: i16, request: &R) -> Bytes {
    encode_request(version, 7, Some("test"), request).unwrap().slice(4..)
}

/// By this connection, and whether it was closed afterwards.
async fn call_by<R: KafkaRequest>(
    client: &Client,
    broker: &Arc<Broker>,
    version: i16,
    frame: &Bytes,
) -> (R::Response, bool) {
    let request = decode_request(frame.clone()).unwrap();
    let (segments, closed) = match dispatch::handle(broker, client, request).await {
        Answer::Send(segments) => (segments, false),
        Answer::Last(segments) => (segments, true),
        Answer::Nothing | Answer::Close => panic!("no answer"),
    };
    (decode_response::<R>(version, segments.into_bytes().slice(4..)).unwrap(), closed)
}
