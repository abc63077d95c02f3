//! Produce: checks every batch as Kafka does, hands it to its lane, and answers when all are sequenced.
//!
//! [`start`] runs on the connection's reader, so batches enter the lane in the order of their requests; waiting for
//! the outcome is the writer's. Errors are per partition: one bad batch does not hold up the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_metadata::{PartitionKey, Topic};
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::produce_response::{
    LeaderIdAndEpoch, NodeEndpoint, PartitionProduceResponse, TopicProduceResponse,
};
use isobar_protocol::messages::{BrokerId, ProduceResponse, TopicName};
use isobar_protocol::produce::ProduceRequest;
use isobar_protocol::request::RequestHeader;
use isobar_protocol::{StrBytes, TopicRef};
use isobar_wal::BatchInfo;
use tokio::time::Instant;

use crate::Broker;
use crate::accumulator::{Checked, Outcome, Waiting};
use crate::cluster::zone_of;
use crate::connection::{Answer, Client};
use crate::rewrite::{self, Now};
use crate::steering::Leader;

/// What `acks` may be.
const ACKS: [i16; 3] = [-1, 0, 1];
/// First version that can say who leads (KIP-951).
const CURRENT_LEADER_VERSION: i16 = 10;

/// A Produce whose batches are on their way.
pub(crate) struct InFlight {
    header: RequestHeader,
    /// When its last byte had come.
    pub(crate) received: Instant,
    acks: i16,
    /// Topic, its place in the request, and partition, in the order of the request.
    partitions: Vec<(TopicRef, usize, i32)>,
    waiting: Arc<Waiting>,
    /// Some partition was refused before it reached the lane.
    refused: bool,
    /// By place in the request: who leads a partition that was not taken for that.
    leaders: BTreeMap<usize, Leader>,
}

/// Checks and appends. What `body` borrows of the frame is given up before this returns.
pub(crate) async fn start(
    broker: &Arc<Broker>,
    client: &Client,
    header: RequestHeader,
    body: ProduceRequest,
    received: Instant,
) -> InFlight {
    let mut topics = Topics { broker, known: BTreeMap::new(), asked_again: false };
    let mut partitions = Vec::with_capacity(body.partition_count());
    let mut refused: Vec<(usize, Outcome)> = Vec::new();
    let mut checked: Vec<Checked> = Vec::with_capacity(body.partition_count());
    let now = Now::of(broker.host.now_ms(), broker.image.with(|image| image.time_ms()));
    let mut leaders = BTreeMap::new();
    for (index, partition) in body.partitions().enumerate() {
        let topic = match known_request_error(&body) {
            Some(error) => Err(error),
            None => topics.find(partition.topic_ordinal, &partition.topic).await,
        };
        let batch = topic
            .and_then(|topic| check(&topic, header.version, now, partition.index, partition.records, index));
        let batch = batch.and_then(|batch| {
            let most = broker.lanes.of(batch.durability).max_batch_bytes();
            if batch.bytes.len() <= most { Ok(batch) } else { Err(larger_than_segment()) }
        });
        let batch = batch.and_then(|batch| match steered(broker, client, &header, body.acks, batch.key) {
            None => Ok(batch),
            Some(leader) => {
                leaders.insert(index, leader);
                Err(Outcome::refused(ErrorCode::NotLeaderOrFollower, None))
            }
        });
        match batch {
            Ok(batch) => checked.push(batch),
            Err(outcome) => {
                tracing::debug!(peer = %client.peer, error = ?outcome.error, "batch refused");
                refused.push((index, outcome));
            }
        }
        // A name is a slice of the frame: copied, or it would keep the whole frame alive.
        partitions.push((owned(&partition.topic), partition.topic_ordinal, partition.index));
    }
    broker.metrics.batches_refused.inc_by(refused.len() as u64);
    let waiting = append(broker, &mut refused, checked, partitions.len(), body.timeout_ms).await;
    let any_refused = !refused.is_empty();
    for (index, outcome) in refused {
        waiting.set(index, outcome);
    }
    InFlight { header, received, acks: body.acks, partitions, waiting, refused: any_refused, leaders }
}

/// Who leads the partition for this client, if it is to go there ([`crate::steering`]).
fn steered(
    broker: &Broker,
    client: &Client,
    header: &RequestHeader,
    acks: i16,
    key: PartitionKey,
) -> Option<Leader> {
    if acks == 0 {
        return None;
    }
    let zone = zone_of(broker, header.client_id.as_deref());
    let (me, now) = (broker.options.node_id, Instant::now());
    let leader = broker.image.with(|image| client.steering.away(image, me, key, zone, now))?;
    broker.metrics.steered.inc();
    Some(leader)
}

async fn append(
    broker: &Arc<Broker>,
    refused: &mut Vec<(usize, Outcome)>,
    mut checked: Vec<Checked>,
    partitions: usize,
    timeout_ms: i32,
) -> Arc<Waiting> {
    let timeout = Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0));
    let mut room = Vec::with_capacity(1);
    for (durability, lane) in broker.lanes.all() {
        let of_lane = checked.iter().filter(|batch| batch.durability == durability);
        let bytes: usize = of_lane.map(|batch| batch.bytes.len()).sum();
        if bytes == 0 {
            continue;
        }
        match lane.reserve(bytes, timeout).await {
            Some(permit) => room.push(permit),
            None => {
                let left_out = checked.extract_if(.., |batch| batch.durability == durability);
                refused.extend(left_out.map(|batch| (batch.index, queue_full())));
            }
        }
    }
    let records: u64 = checked.iter().map(|batch| u64::from(batch.info.record_count)).sum();
    broker.metrics.record_bytes_in.inc_by(checked.iter().map(|batch| batch.bytes.len() as u64).sum());
    broker.metrics.records_in.inc_by(records);
    let waiting = Waiting::new(partitions, checked.len(), room);
    for (durability, lane) in broker.lanes.all() {
        lane.push(checked.iter().filter(|batch| batch.durability == durability), &waiting);
    }
    waiting
}

fn queue_full() -> Outcome {
    Outcome::refused(ErrorCode::RequestTimedOut, Some("the broker's write queue is full".to_owned()))
}

/// What is wrong with the request as a whole.
fn known_request_error(body: &ProduceRequest) -> Option<Outcome> {
    if !ACKS.contains(&body.acks) {
        return Some(Outcome::refused(ErrorCode::InvalidRequiredAcks, None));
    }
    // Transactions are not built, so InitProducerId grants no transactional id that could own this.
    body.transactional_id.as_ref().map(|_| {
        Outcome::refused(
            ErrorCode::TransactionalIdAuthorizationFailed,
            Some("this broker does not serve transactions yet".to_owned()),
        )
    })
}

struct Topics<'a> {
    broker: &'a Arc<Broker>,
    known: BTreeMap<usize, Option<Arc<Topic>>>,
    asked_again: bool,
}

impl Topics<'_> {
    /// The topic; an absence is told only behind a read barrier, one for the whole request.
    async fn find(&mut self, ordinal: usize, topic: &TopicRef) -> Result<Arc<Topic>, Outcome> {
        if let Some(known) = self.known.get(&ordinal) {
            return known.clone().ok_or_else(|| unknown(topic));
        }
        let mut found = self.broker.image.topic(topic);
        if found.is_none() && !self.asked_again {
            self.asked_again = true;
            if let Err(error) = self.broker.barrier().await {
                return Err(Outcome::refused(error, None));
            }
            found = self.broker.image.topic(topic);
        }
        self.known.insert(ordinal, found.clone());
        found.ok_or_else(|| unknown(topic))
    }
}

/// Whatever `max.message.bytes` says, a batch lies in one segment of the write-ahead log; Kafka says the same of its own.
fn larger_than_segment() -> Outcome {
    let why = "the batch is larger than a segment of the broker's write-ahead log";
    Outcome::refused(ErrorCode::RecordListTooLarge, Some(why.to_owned()))
}

fn unknown(topic: &TopicRef) -> Outcome {
    let error = match topic {
        TopicRef::Name(_) => ErrorCode::UnknownTopicOrPartition,
        TopicRef::Id(_) => ErrorCode::UnknownTopicId,
    };
    Outcome::refused(error, None)
}

fn check(
    topic: &Topic,
    version: i16,
    now: Now,
    partition: i32,
    records: Option<Bytes>,
    index: usize,
) -> Result<Checked, Outcome> {
    if partition < 0 || partition >= topic.partitions {
        return Err(Outcome::refused(ErrorCode::UnknownTopicOrPartition, None));
    }
    let (header, bytes) = rewrite::check(topic, version, now, records)?;
    if header.attributes.is_transactional() {
        return Err(Outcome::refused(
            ErrorCode::TransactionalIdAuthorizationFailed,
            Some("this broker does not serve transactions yet".to_owned()),
        ));
    }
    Ok(Checked {
        key: PartitionKey::new(topic.topic_id, partition),
        info: BatchInfo::new(&header, flags_of(&header)),
        bytes,
        durability: topic.settings.durability,
        class_epoch: topic.class_epoch,
        index,
    })
}

fn flags_of(header: &BatchHeader) -> u32 {
    let transactional = header.attributes.is_transactional();
    if transactional { isobar_metadata::command::batch_flags::TRANSACTIONAL } else { 0 }
}

fn owned(topic: &TopicRef) -> TopicRef {
    match topic {
        TopicRef::Name(name) => TopicRef::Name(StrBytes::from_string(name.to_string())),
        TopicRef::Id(id) => TopicRef::Id(*id),
    }
}

impl InFlight {
    /// Waits for the outcome and encodes it. With acks=0 there is no answer; an error that is known at once closes
    /// the connection, as Kafka does, so that the client looks for what is wrong.
    pub(crate) async fn finish(self) -> Answer {
        if self.acks == 0 {
            return if self.refused { Answer::Close } else { Answer::Nothing };
        }
        let outcomes = self.waiting.outcomes().await;
        let mut topics: Vec<TopicProduceResponse> = Vec::new();
        let mut last_ordinal = usize::MAX;
        let says_leaders = self.header.version >= CURRENT_LEADER_VERSION;
        for (place, ((topic, ordinal, index), outcome)) in self.partitions.iter().zip(outcomes).enumerate() {
            if *ordinal != last_ordinal {
                last_ordinal = *ordinal;
                topics.push(response_topic(topic));
            }
            if let Some(answer) = topics.last_mut() {
                let mut partition = response_partition(*index, outcome);
                if let Some(leader) = self.leaders.get(&place).filter(|_| says_leaders) {
                    partition.current_leader = LeaderIdAndEpoch::default()
                        .with_leader_id(BrokerId(leader.node_id))
                        .with_leader_epoch(leader.leader_epoch);
                }
                answer.partition_responses.push(partition);
            }
        }
        let mut body = ProduceResponse::default().with_responses(topics);
        if says_leaders {
            let nodes: BTreeMap<i32, &Leader> =
                self.leaders.values().map(|leader| (leader.node_id, leader)).collect();
            body.node_endpoints = nodes.into_values().map(endpoint).collect();
        }
        Answer::of(&self.header, &body)
    }
}

fn endpoint(leader: &Leader) -> NodeEndpoint {
    NodeEndpoint::default()
        .with_node_id(BrokerId(leader.node_id))
        .with_host(StrBytes::from_string(leader.host.clone()))
        .with_port(leader.port)
        .with_rack((!leader.rack.is_empty()).then(|| StrBytes::from_string(leader.rack.clone())))
}

fn response_topic(topic: &TopicRef) -> TopicProduceResponse {
    match topic {
        TopicRef::Name(name) => TopicProduceResponse::default().with_name(TopicName(name.clone())),
        TopicRef::Id(id) => TopicProduceResponse::default().with_topic_id(*id),
    }
}

fn response_partition(index: i32, outcome: Outcome) -> PartitionProduceResponse {
    PartitionProduceResponse::default()
        .with_index(index)
        .with_error_code(outcome.error.code())
        .with_base_offset(outcome.base_offset)
        .with_log_append_time_ms(outcome.log_append_time_ms)
        .with_log_start_offset(outcome.log_start_offset)
        .with_error_message(outcome.message.map(StrBytes::from_string))
}
