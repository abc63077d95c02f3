//! A broker in memory, just enough of Kafka to be wrong on purpose: it refuses, forgets to answer and hangs up as its
//! [`Faults`] say, and keeps what it took for the tests to look at.

#![allow(dead_code, reason = "each test file uses some of it")]
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

pub(crate) mod groups;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use isobar_host::{Conn, Host};
use isobar_protocol::api::{ApiKey, api_versions_response};
use isobar_protocol::batch::{BatchHeader, ProduceRules, TimestampRange, validate_produced};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::{FetchPartition, FetchResponse, FetchTopic, RecordSet};
use isobar_protocol::frame::FrameHead;
use isobar_protocol::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use isobar_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use isobar_protocol::messages::produce_response::{PartitionProduceResponse, TopicProduceResponse};
use isobar_protocol::messages::*;
use isobar_protocol::produce;
use isobar_protocol::records::decode_batch;
use isobar_protocol::request::{Body, decode_request};
use isobar_protocol::response::{Segments, encode_response};
use isobar_protocol::{Encodable, StrBytes, TopicRef, Uuid};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Duration, Instant, sleep};

/// What goes wrong with Produce requests, in this order of looking.
#[derive(Default)]
pub(crate) struct Faults {
    /// Codes for the next batches, which are then not taken.
    pub(crate) refuse: VecDeque<ErrorCode>,
    /// The next batches are taken and the connection closed without an answer.
    pub(crate) take_and_hang_up: u32,
    /// The next batches are not taken, and the connection is closed.
    pub(crate) hang_up: u32,
    /// Of 100 batches, how many meet one of the faults above at random.
    pub(crate) chaos_percent: u64,
    /// Of 100 batches, how many are refused for good.
    pub(crate) fatal_percent: u64,
    /// How long an answer to Produce takes.
    pub(crate) delay: Duration,
}

#[derive(Default)]
pub(crate) struct Partition {
    /// Batches with their offsets.
    pub(crate) log: Vec<(BatchHeader, Bytes)>,
    /// Next sequence, and the last five (base sequence, base offset), by producer id.
    producers: BTreeMap<i64, (i32, VecDeque<(i32, i64)>)>,
}

impl Partition {
    pub(crate) fn end(&self) -> i64 {
        self.log.last().map_or(0, |(header, _)| header.next_offset())
    }

    /// The values of all records, as text.
    pub(crate) fn values(&self) -> Vec<String> {
        let mut values = Vec::new();
        for (_, batch) in &self.log {
            for record in decode_batch(batch, 1 << 24).unwrap().iter() {
                values.push(String::from_utf8(record.unwrap().value.unwrap().to_vec()).unwrap());
            }
        }
        values
    }

    fn append(&mut self, batch: &[u8], header: BatchHeader) -> Result<i64, ErrorCode> {
        let base_offset = self.end();
        if header.has_producer_id() {
            let (next, recent) = self.producers.entry(header.producer_id).or_default();
            if let Some((_, offset)) = recent.iter().find(|(sequence, _)| *sequence == header.base_sequence) {
                return Ok(*offset);
            }
            if header.base_sequence != *next {
                return Err(ErrorCode::OutOfOrderSequenceNumber);
            }
            *next += header.count;
            recent.push_back((header.base_sequence, base_offset));
            if recent.len() > 5 {
                recent.pop_front();
            }
        }
        let mut stored = BytesMut::from(batch);
        stored[..16].copy_from_slice(&header.stamp(base_offset, 0));
        self.log.push((BatchHeader { base_offset, leader_epoch: 0, ..header }, stored.freeze()));
        Ok(base_offset)
    }
}

pub(crate) struct State {
    pub(crate) topics: BTreeMap<String, Vec<Partition>>,
    pub(crate) faults: Faults,
    pub(crate) groups: groups::Groups,
    pub(crate) requests: BTreeMap<&'static str, u32>,
    next_producer_id: i64,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) host: Host,
    pub(crate) addr: String,
}

pub(crate) fn id_of(topic: &str) -> Uuid {
    let mut id = [1; 16];
    let n = topic.len().min(15);
    id[..n].copy_from_slice(&topic.as_bytes()[..n]);
    Uuid::from_bytes(id)
}

enum Reply {
    Send(Segments),
    Nothing,
    HangUp,
}

impl Fake {
    /// Listens and serves in tasks of `host`.
    pub(crate) async fn start(host: &Host, listen: &str, topics: &[(&str, usize)]) -> Fake {
        let listener = host.listen(listen).await.unwrap();
        let addr = if listen.ends_with(":0") {
            listener.local_addr().unwrap().to_string()
        } else {
            listen.to_owned()
        };
        let partitions = |n: usize| (0..n).map(|_| Partition::default()).collect();
        let state = State {
            topics: topics.iter().map(|(name, n)| ((*name).to_owned(), partitions(*n))).collect(),
            faults: Faults::default(),
            groups: groups::Groups::default(),
            requests: BTreeMap::new(),
            next_producer_id: 1000,
        };
        let fake = Fake { state: Arc::new(Mutex::new(state)), host: host.clone(), addr };
        let accepting = fake.clone();
        host.spawn("fake-accept", async move {
            while let Ok((conn, _)) = listener.accept().await {
                let serving = accepting.clone();
                accepting.host.spawn("fake-serve", async move { serving.serve(conn).await });
            }
        });
        fake
    }

    async fn serve(&self, mut conn: Conn) {
        let mut input = BytesMut::new();
        loop {
            let head = loop {
                if let Some(head) = FrameHead::parse(&input, 1 << 26).unwrap()
                    && input.len() >= head.total_bytes()
                {
                    break head;
                }
                if !matches!(conn.read_buf(&mut input).await, Ok(n) if n > 0) {
                    return;
                }
            };
            let frame = input.split_to(head.total_bytes()).freeze().slice(4..);
            match self.handle(frame).await {
                Reply::Nothing => {}
                Reply::HangUp => return,
                Reply::Send(mut reply) => {
                    if conn.write_all_buf(&mut reply).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn handle(&self, frame: Bytes) -> Reply {
        let request = decode_request(frame).unwrap();
        let header = request.header;
        *self.state.lock().requests.entry(header.api.name()).or_default() += 1;
        let (version, id) = (header.version, header.correlation_id);
        fn send<R: Encodable>(api: ApiKey, version: i16, id: i32, body: &R) -> Reply {
            Reply::Send(encode_response(api, version, id, body).unwrap().into())
        }
        let api = header.api;
        match request.body {
            Body::ApiVersions(_) | Body::UnsupportedApiVersions => {
                let (response, version) = api_versions_response(version);
                send(api, version, id, &response)
            }
            Body::Metadata(body) => send(api, version, id, &self.metadata(&body)),
            Body::InitProducerId(_) => {
                let mut state = self.state.lock();
                state.next_producer_id += 1;
                let producer_id = ProducerId(state.next_producer_id);
                send(api, version, id, &InitProducerIdResponse::default().with_producer_id(producer_id))
            }
            Body::Produce(body) => self.produce(&body, version, id).await,
            Body::Fetch(body) => {
                let response = self.fetch(&body, version).await;
                Reply::Send(response.encode(version, id).unwrap())
            }
            Body::ListOffsets(body) => send(api, version, id, &self.list_offsets(&body)),
            Body::FindCoordinator(body) => send(api, version, id, &self.find_coordinator(&body)),
            Body::JoinGroup(body) => send(api, version, id, &groups::join(self, &body).await),
            Body::SyncGroup(body) => send(api, version, id, &groups::sync(self, &body).await),
            Body::Heartbeat(body) => send(api, version, id, &groups::heartbeat(self, &body)),
            Body::LeaveGroup(body) => send(api, version, id, &groups::leave(self, &body)),
            Body::OffsetCommit(body) => send(api, version, id, &groups::commit(self, &body)),
            Body::OffsetFetch(body) => send(api, version, id, &groups::fetch(self, &body)),
            other => panic!("the fake does not serve {other:?}"),
        }
    }

    fn host_port(&self) -> (StrBytes, i32) {
        let (host, port) = self.addr.rsplit_once(':').unwrap();
        (StrBytes::from_string(host.to_owned()), port.parse().unwrap())
    }

    fn metadata(&self, body: &MetadataRequest) -> MetadataResponse {
        let (host, port) = self.host_port();
        let broker =
            MetadataResponseBroker::default().with_node_id(BrokerId(0)).with_host(host).with_port(port);
        let state = self.state.lock();
        let asked: Vec<String> = match &body.topics {
            None => state.topics.keys().cloned().collect(),
            Some(topics) => topics.iter().map(|topic| topic.name.as_ref().unwrap().to_string()).collect(),
        };
        let topics = asked.into_iter().map(|name| {
            let partitions = state.topics.get(&name);
            let error =
                if partitions.is_some() { ErrorCode::None } else { ErrorCode::UnknownTopicOrPartition };
            let partition =
                |i| MetadataResponsePartition::default().with_partition_index(i).with_leader_id(BrokerId(0));
            MetadataResponseTopic::default()
                .with_error_code(error.code())
                .with_topic_id(partitions.map_or(Uuid::nil(), |_| id_of(&name)))
                .with_name(Some(TopicName(StrBytes::from_string(name))))
                .with_partitions((0..partitions.map_or(0, Vec::len) as i32).map(partition).collect())
        });
        let topics = topics.collect();
        MetadataResponse::default().with_brokers(vec![broker]).with_topics(topics)
    }

    async fn produce(&self, body: &produce::ProduceRequest, version: i16, id: i32) -> Reply {
        let mut hang_up = false;
        let mut responses: Vec<TopicProduceResponse> = Vec::new();
        for partition in body.partitions() {
            let TopicRef::Id(topic) = partition.topic else { panic!("Produce v13 names topics by id") };
            let mut state = self.state.lock();
            let chaos =
                state.faults.chaos_percent > 0 && self.host.random_u64() % 100 < state.faults.chaos_percent;
            if chaos {
                match self.host.random_u64() % 3 {
                    0 => state.faults.refuse.push_back(ErrorCode::NotLeaderOrFollower),
                    1 => state.faults.take_and_hang_up += 1,
                    _ => state.faults.hang_up += 1,
                }
            }
            if state.faults.fatal_percent > 0 && self.host.random_u64() % 100 < state.faults.fatal_percent {
                state.faults.refuse.push_back(ErrorCode::PolicyViolation);
            }
            if state.faults.hang_up > 0 {
                state.faults.hang_up -= 1;
                return Reply::HangUp;
            }
            let refused = state.faults.refuse.pop_front();
            hang_up = refused.is_none() && state.faults.take_and_hang_up > 0;
            state.faults.take_and_hang_up -= u32::from(hang_up);
            let outcome = match refused {
                Some(code) => Err(code),
                None => {
                    let records = partition.records.unwrap();
                    let rules =
                        ProduceRules { version, max_message_bytes: 1 << 20, timestamps: TimestampRange::ANY };
                    let log = state.topics.iter_mut().find(|(name, _)| id_of(name) == topic);
                    let log = log.and_then(|(_, partitions)| partitions.get_mut(partition.index as usize));
                    match (validate_produced(Some(&records), &rules), log) {
                        (Err(refused), _) => Err(refused.code),
                        (_, None) => Err(ErrorCode::UnknownTopicId),
                        (Ok(header), Some(log)) => log.append(&records, header),
                    }
                }
            };
            let answer = PartitionProduceResponse::default()
                .with_index(partition.index)
                .with_error_code(outcome.err().unwrap_or_default().code())
                .with_base_offset(outcome.unwrap_or(-1));
            responses.push(
                TopicProduceResponse::default().with_topic_id(topic).with_partition_responses(vec![answer]),
            );
        }
        let delay = self.state.lock().faults.delay;
        sleep(delay).await;
        if hang_up {
            return Reply::HangUp;
        }
        if body.acks == 0 {
            return Reply::Nothing;
        }
        let response = ProduceResponse::default().with_responses(responses);
        Reply::Send(encode_response(ApiKey::Produce, version, id, &response).unwrap().into())
    }

    async fn fetch(&self, body: &FetchRequest, version: i16) -> FetchResponse {
        assert!(version >= 13, "Fetch names topics by id");
        let deadline = Instant::now() + Duration::from_millis(body.max_wait_ms as u64);
        loop {
            let response = self.fetch_now(body);
            let bytes: usize = response
                .topics
                .iter()
                .flat_map(|topic| &topic.partitions)
                .map(|p| p.records.len_bytes())
                .sum();
            let failed =
                response.topics.iter().flat_map(|topic| &topic.partitions).any(|p| !p.error.is_none());
            if bytes > 0 || failed || Instant::now() >= deadline {
                return response;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn fetch_now(&self, body: &FetchRequest) -> FetchResponse {
        let state = self.state.lock();
        let mut response = FetchResponse::default();
        for topic in &body.topics {
            let log = state.topics.iter().find(|(name, _)| id_of(name) == topic.topic_id);
            let partitions = topic.partitions.iter().map(|asked| {
                let Some(log) = log.and_then(|(_, partitions)| partitions.get(asked.partition as usize))
                else {
                    return FetchPartition::failed(asked.partition, ErrorCode::UnknownTopicId);
                };
                if asked.fetch_offset > log.end() || asked.fetch_offset < 0 {
                    return FetchPartition::failed(asked.partition, ErrorCode::OffsetOutOfRange);
                }
                let mut partition = FetchPartition::failed(asked.partition, ErrorCode::None);
                (partition.high_watermark, partition.last_stable_offset) = (log.end(), log.end());
                partition.log_start_offset = 0;
                let mut records = RecordSet::default();
                for (header, batch) in
                    log.log.iter().filter(|(header, _)| header.last_offset() >= asked.fetch_offset)
                {
                    records.push_stamped(batch.clone(), header, header.base_offset, 0);
                    if records.len_bytes() >= asked.partition_max_bytes as usize {
                        break;
                    }
                }
                partition.records = records;
                partition
            });
            let partitions = partitions.collect();
            response.topics.push(FetchTopic { topic: TopicRef::Id(topic.topic_id), partitions });
        }
        response
    }

    fn list_offsets(&self, body: &ListOffsetsRequest) -> ListOffsetsResponse {
        let state = self.state.lock();
        let topics = body.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|asked| {
                let log = &state.topics[topic.name.as_str()][asked.partition_index as usize];
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(asked.partition_index)
                    .with_timestamp(-1)
                    .with_offset(if asked.timestamp == -1 { log.end() } else { 0 })
            });
            ListOffsetsTopicResponse::default()
                .with_name(topic.name.clone())
                .with_partitions(partitions.collect())
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    fn find_coordinator(&self, body: &FindCoordinatorRequest) -> FindCoordinatorResponse {
        let (host, port) = self.host_port();
        let found = body.coordinator_keys.iter().map(|key| {
            find_coordinator_response::Coordinator::default()
                .with_key(key.clone())
                .with_node_id(BrokerId(0))
                .with_host(host.clone())
                .with_port(port)
        });
        FindCoordinatorResponse::default().with_coordinators(found.collect())
    }
}
