//! One raw connection, and a broker to connect to.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_host::{Conn, Host};
use isobar_node::node::{Node, NodeOptions};
use isobar_protocol::api::ApiKey;
use isobar_protocol::compression::Codec;
use isobar_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use isobar_protocol::messages::{
    CreateTopicsRequest, FindCoordinatorRequest, GroupId, HeartbeatRequest, MetadataRequest, ProduceRequest,
    ProduceResponse, TopicName,
};
use isobar_protocol::produce::{self, Outgoing};
use isobar_protocol::records::BatchBuilder;
use isobar_protocol::response::{decode_response, encode_request, encode_response, response_correlation_id};
use isobar_protocol::{KafkaRequest, StrBytes, TopicRef, Uuid};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The topic that every rig has: 3 partitions, [`RECORDS`] records in partition 0.
pub(crate) const TOPIC: &str = "surface";
pub(crate) const RECORDS: i64 = 3;
/// Timestamp of the first record; each next one is a millisecond younger.
pub(crate) const FIRST_TIME_MS: i64 = 1_600_000_000_000;
pub(crate) const ABSENT: &str = "absent";
pub(crate) const ABSENT_ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

pub(crate) fn s(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(crate) fn t(name: &str) -> TopicName {
    TopicName(s(name))
}

/// Longer than any request here may wait.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// One connection, on which one request is under way at a time.
pub(crate) struct Wire {
    conn: Conn,
    correlation_id: i32,
}

impl Wire {
    pub(crate) async fn open(addr: &str) -> Self {
        Self { conn: Host::real().connect(addr).await.unwrap(), correlation_id: 0 }
    }

    /// Sends a request and gives its answer, which must have the layout of this version and nothing else.
    pub(crate) async fn call<R: KafkaRequest>(&mut self, version: i16, request: &R) -> R::Response {
        self.correlation_id += 1;
        let frame = encode_request(version, self.correlation_id, Some("surface"), request).unwrap();
        self.conn.write_all(&frame).await.unwrap();
        self.answer::<R>(version, version).await
    }

    /// Sends a Produce; with `acks` of 0 there is no answer.
    pub(crate) async fn produce(&mut self, version: i16, request: Outgoing<'_>) -> Option<ProduceResponse> {
        self.correlation_id += 1;
        let acks = request.acks;
        let frame = produce::encode_request(version, self.correlation_id, None, request).unwrap();
        self.conn.write_all(&frame.into_bytes()).await.unwrap();
        if acks == 0 { None } else { Some(self.answer::<ProduceRequest>(version, version).await) }
    }

    /// The answer to a request of one version, which may come in another (ApiVersions only).
    pub(crate) async fn answer<R: KafkaRequest>(&mut self, asked: i16, version: i16) -> R::Response {
        let api = ApiKey::from_wire(R::KEY).unwrap();
        let what = format!("{} v{asked}", api.name());
        let frame = self.read().await.unwrap_or_else(|| panic!("{what}: the connection was closed"));
        assert_eq!(response_correlation_id(&frame), Ok(self.correlation_id), "{what}");
        let response = decode_response::<R>(version, frame.clone())
            .unwrap_or_else(|error| panic!("{what}: {error} in {frame:02x?}"));
        // Whatever was lost or left over in decoding would show.
        let again = encode_response(api, version, self.correlation_id, &response).unwrap();
        assert_eq!(again.slice(4..), frame, "{what}");
        response
    }

    /// Sends bytes that no encoder makes: a request header without a tag section, then `body`.
    pub(crate) async fn send_raw(&mut self, api: i16, version: i16, body: &[u8]) {
        self.correlation_id += 1;
        let mut frame = Vec::new();
        frame.extend(u32::try_from(10 + body.len()).unwrap().to_be_bytes());
        frame.extend(api.to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend(self.correlation_id.to_be_bytes());
        frame.extend((-1_i16).to_be_bytes());
        frame.extend(body);
        self.conn.write_all(&frame).await.unwrap();
    }

    /// The next frame without its length; `None` once the other side has closed.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        let length = tokio::time::timeout(PATIENCE, self.conn.read_u32()).await.expect("an answer in time");
        let length = length.ok()? as usize;
        let mut frame = BytesMut::zeroed(length);
        self.conn.read_exact(&mut frame).await.unwrap();
        Some(frame.freeze())
    }
}

/// A broker with [`TOPIC`], and a connection to it.
pub(crate) struct Rig {
    pub(crate) wire: Wire,
    pub(crate) addr: String,
    pub(crate) topic_id: Uuid,
    /// What metadata says.
    pub(crate) leader_epoch: i32,
    /// What the records were stamped with: here the first epoch of the incarnation.
    pub(crate) record_epoch: i32,
    /// False where the tests are held against Apache Kafka.
    pub(crate) isobar: bool,
    names: u32,
    node: Option<(Node, tempfile::TempDir)>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        let (addr, node) = match std::env::var("BOOTSTRAP") {
            Ok(addr) => (addr, None),
            Err(_) => {
                let dir = tempfile::tempdir().unwrap();
                let mut options = NodeOptions::new(dir.path());
                options.broker.listen = "127.0.0.1:0".to_owned();
                options.broker.group_initial_rebalance_delay_ms = 0;
                let node = Node::start(&Host::real(), options).await.unwrap();
                (node.local_addr().unwrap().to_string(), Some((node, dir)))
            }
        };
        let isobar = node.is_some() || std::env::var("PEER").is_ok_and(|peer| peer == "isobar");
        let mut wire = Wire::open(&addr).await;
        // Or Kafka would delete what is as old as its timestamps say.
        let kept = CreatableTopicConfig::default().with_name(s("retention.ms")).with_value(Some(s("-1")));
        let new = CreatableTopic::default()
            .with_name(t(TOPIC))
            .with_num_partitions(3)
            .with_replication_factor(1)
            .with_configs(vec![kept]);
        let create = CreateTopicsRequest::default().with_topics(vec![new]).with_timeout_ms(9_000);
        let code = wire.call(7, &create).await.topics[0].error_code;
        assert!([0, 36].contains(&code), "{TOPIC} was not created: {code}");
        let mut rig = Self {
            wire,
            addr,
            topic_id: Uuid::nil(),
            leader_epoch: -1,
            record_epoch: -1,
            isobar,
            names: 0,
            node,
        };
        while rig.leader_epoch < 0 {
            rig.look_up().await;
        }
        rig.coordinator().await;
        if code == 0 {
            let answer = rig.wire.produce(9, rig.outgoing(9, -1, vec![(0, batch())])).await.unwrap();
            assert_eq!(answer.responses[0].partition_responses[0].error_code, 0);
        }
        rig
    }

    /// Kafka makes the topic of its offsets when a coordinator is looked for, and loads it.
    async fn coordinator(&mut self) {
        let find = FindCoordinatorRequest::default().with_key(s("any"));
        while self.wire.call(3, &find).await.error_code != 0 {
            tokio::time::sleep(PAUSE).await;
        }
        let beat = HeartbeatRequest::default().with_group_id(GroupId(s("any"))).with_member_id(s("any"));
        while self.wire.call(4, &beat).await.error_code != 25 {
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn look_up(&mut self) {
        let request = MetadataRequest::default().with_topics(None);
        let metadata = self.wire.call(12, &request).await;
        let topic =
            metadata.topics.iter().find(|topic| topic.name.as_deref().is_some_and(|name| **name == *TOPIC));
        if let Some(topic) = topic.filter(|topic| topic.partitions.len() == 3) {
            self.topic_id = topic.topic_id;
            self.leader_epoch = topic.partitions[0].leader_epoch;
            self.record_epoch = if self.isobar { 0 } else { self.leader_epoch };
        }
    }

    /// A name that no other case has, nor another run against the same broker.
    pub(crate) fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}-{}-{:x}", self.names, Host::real().random_u64())
    }

    /// [`TOPIC`] as a Produce or Fetch of this version names it.
    pub(crate) fn topic(&self, version: i16) -> TopicRef {
        if version >= 13 { TopicRef::Id(self.topic_id) } else { TopicRef::Name(s(TOPIC)) }
    }

    pub(crate) fn outgoing(
        &self,
        version: i16,
        acks: i16,
        partitions: Vec<(i32, Bytes)>,
    ) -> Outgoing<'static> {
        let topics = vec![(self.topic(version), partitions)];
        Outgoing { acks, timeout_ms: 10_000, transactional_id: None, topics }
    }

    pub(crate) async fn stop(self) {
        drop(self.wire);
        if let Some((node, _dir)) = self.node {
            node.stop().await.unwrap();
        }
    }
}

/// A topic name or id that no broker has, as a Produce or Fetch of this version names it.
pub(crate) fn absent(version: i16) -> TopicRef {
    if version >= 13 { TopicRef::Id(ABSENT_ID) } else { TopicRef::Name(s(ABSENT)) }
}

/// [`RECORDS`] records.
pub(crate) fn batch() -> Bytes {
    batch_in(Codec::None)
}

pub(crate) fn batch_in(codec: Codec) -> Bytes {
    let mut builder = BatchBuilder::new(codec);
    for i in 0..RECORDS {
        builder.push(FIRST_TIME_MS + i, Some(b"key"), Some(b"value"), &[("header", Some(b"h"))]);
    }
    builder.build().unwrap()
}
