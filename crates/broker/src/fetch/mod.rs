//! Fetch: what a client gets, when, and at which version of each partition.
//!
//! Invariants:
//! 1. A partition's answer comes from one immutable `PartitionView` (DESIGN.md section 2, invariant 11).
//! 2. An offset beyond the image, an unknown topic or partition is told only behind a read barrier.
//! 3. A reader waits on the image's changes, never by polling; waiting costs nothing but a place in a map.
//! 4. A location that is not found is stale: barrier, resolve again, once; then KAFKA_STORAGE_ERROR.

pub(crate) mod read;
pub(crate) mod session;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_metadata::ids::incarnation_of_leader_epoch;
use isobar_metadata::{Image, PartitionKey, PartitionView, TopicId};
use isobar_protocol::TopicRef;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::fetch::{
    EpochEndOffset, FetchPartition, FetchResponse, FetchTopic, LeaderIdAndEpoch, NodeEndpoint, RecordSet,
};
use isobar_protocol::messages::FetchRequest;
use isobar_protocol::request::RequestHeader;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Broker;
use crate::cluster::zone_of;
use crate::connection::{Answer, Client};
use crate::steering::{Leader, Steering};
use session::{Asked, Context, Terms};

/// First version that can name a preferred replica.
const PREFERRED_VERSION: i16 = 11;
/// First version that names topics by id.
const TOPIC_ID_VERSION: i16 = 13;
/// An answer takes no longer to read than this, but for its first batch: a client that has waited for its request timeout (30 s by
/// default) would ask for the same again.
const READ_FOR: Duration = Duration::from_secs(1);

/// What one request wants of every partition.
struct Wants<'a> {
    reader: Reader<'a>,
    read_committed: bool,
    min_bytes: usize,
    max_bytes: usize,
    deadline: Instant,
}

/// A partition as it stands for one asker.
enum Look {
    Refused(ErrorCode),
    Diverged(Arc<PartitionView>, EpochEndOffset),
    /// Led by another broker.
    Led(Leader),
    /// To be read from this broker, which is in the reader's zone.
    Nearer(Arc<PartitionView>, i32),
    Ready(Arc<PartitionView>),
}

pub(crate) async fn handle(
    broker: &Arc<Broker>,
    client: &Client,
    header: &RequestHeader,
    request: FetchRequest,
) -> Answer {
    let wants = Wants {
        reader: Reader::new(broker, client, header, &request),
        read_committed: request.isolation_level == 1,
        min_bytes: usize::try_from(request.min_bytes).unwrap_or(0),
        max_bytes: usize::try_from(request.max_bytes).unwrap_or(0).min(broker.options.fetch_max_bytes),
        deadline: Instant::now() + Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)),
    };
    let (terms, asked) = split(&request, header.version);
    let random = broker.host.random_u64() as u32;
    let response = match broker.fetch_sessions.begin(&terms, asked, Instant::now(), random) {
        Ok(context) => answer(broker, &context, &wants).await,
        Err(error) => FetchResponse { error, ..empty() },
    };
    match response.encode(header.version, header.correlation_id) {
        Ok(segments) => Answer::Send(segments),
        Err(error) => {
            tracing::error!(%error, "a Fetch response cannot be encoded");
            Answer::Close
        }
    }
}

/// Where the asker is, and what it was told.
struct Reader<'a> {
    steering: &'a Steering,
    /// That Metadata goes by.
    zone: String,
    /// Its own (KIP-392), if that is another one with a broker.
    rack: Option<String>,
}

impl<'a> Reader<'a> {
    fn new(broker: &Broker, client: &'a Client, header: &RequestHeader, request: &FetchRequest) -> Self {
        let zone = zone_of(broker, header.client_id.as_deref()).to_owned();
        let rack = request.rack_id.as_str();
        let has_broker = |image: &Image| image.sessions().any(|one| one.zone == rack && !one.is_fenced());
        let is_other = header.version >= PREFERRED_VERSION && !rack.is_empty() && rack != zone;
        let rack = (is_other && broker.image.with(has_broker)).then(|| rack.to_owned());
        Self { steering: &client.steering, zone, rack }
    }

    /// A reader whose zone Metadata does not know is sent there by a preferred replica. One whom Metadata would send elsewhere is told
    /// so: librdkafka does not go to a preferred replica that it has not heard of.
    fn steered(&self, broker: &Broker, key: PartitionKey, view: Arc<PartitionView>) -> Look {
        let zone = self.rack.as_ref().unwrap_or(&self.zone);
        let (me, now) = (broker.options.node_id, Instant::now());
        let Some(leader) = broker.image.with(|image| self.steering.away(image, me, key, zone, now)) else {
            return Look::Ready(view);
        };
        broker.metrics.steered.inc();
        if self.rack.is_some() { Look::Nearer(view, leader.node_id) } else { Look::Led(leader) }
    }
}

fn led_by(partition: i32, leader: &Leader) -> FetchPartition {
    let Leader { node_id, leader_epoch, .. } = *leader;
    FetchPartition {
        current_leader: Some(LeaderIdAndEpoch { leader_id: node_id, leader_epoch }),
        ..FetchPartition::failed(partition, ErrorCode::NotLeaderOrFollower)
    }
}

fn endpoint(leader: &Leader) -> NodeEndpoint {
    NodeEndpoint {
        node_id: leader.node_id,
        host: leader.host.clone().into(),
        port: leader.port,
        rack: (!leader.rack.is_empty()).then(|| leader.rack.clone().into()),
    }
}

fn empty() -> FetchResponse {
    FetchResponse {
        throttle_time_ms: 0,
        error: ErrorCode::None,
        session_id: 0,
        topics: Vec::new(),
        node_endpoints: Vec::new(),
    }
}

fn split(request: &FetchRequest, version: i16) -> (Terms, Vec<Asked>) {
    let by_id = version >= TOPIC_ID_VERSION;
    let topic_ref = |name: &str, id| {
        if by_id { TopicRef::Id(id) } else { TopicRef::Name(name.to_owned().into()) }
    };
    let mut asked = Vec::new();
    for topic in &request.topics {
        let topic_ref = topic_ref(&topic.topic, topic.topic_id);
        for partition in &topic.partitions {
            asked.push(Asked {
                topic: topic_ref.clone(),
                partition: partition.partition,
                current_leader_epoch: partition.current_leader_epoch,
                fetch_offset: partition.fetch_offset,
                last_fetched_epoch: partition.last_fetched_epoch,
                max_bytes: partition.partition_max_bytes,
            });
        }
    }
    let forgotten = request.forgotten_topics_data.iter().flat_map(|topic| {
        let topic_ref = topic_ref(&topic.topic, topic.topic_id);
        topic.partitions.iter().map(move |&partition| (topic_ref.clone(), partition))
    });
    let terms = Terms {
        session_id: request.session_id,
        session_epoch: request.session_epoch,
        forgotten: forgotten.collect(),
        by_id,
    };
    (terms, asked)
}

async fn answer(broker: &Arc<Broker>, context: &Context, wants: &Wants<'_>) -> FetchResponse {
    let looks = wait(broker, &context.asked, wants).await;
    let mut response = FetchResponse { session_id: context.session_id(), ..empty() };
    let mut left = wants.max_bytes;
    let mut any = false;
    let until = Instant::now() + READ_FOR;
    let mut leaders: BTreeMap<i32, NodeEndpoint> = BTreeMap::new();
    for (asked, look) in context.asked.iter().zip(looks) {
        if let Look::Led(leader) = &look {
            leaders.entry(leader.node_id).or_insert_with(|| endpoint(leader));
        }
        let partition = fill(broker, asked, look, wants, Room { left, first: !any, until }).await;
        let bytes = partition.records.len_bytes();
        left = left.saturating_sub(bytes);
        any |= bytes > 0;
        broker.metrics.record_bytes_out.inc_by(bytes as u64);
        if !context.must_send(&asked.topic, &partition) {
            continue;
        }
        match response.topics.last_mut() {
            Some(last) if last.topic == asked.topic => last.partitions.push(partition),
            _ => response.topics.push(FetchTopic { topic: asked.topic.clone(), partitions: vec![partition] }),
        }
    }
    response.node_endpoints = leaders.into_values().collect();
    response
}

/// Waits until there is something to say: `min_bytes` of records, an error, or the end of the client's patience.
async fn wait(broker: &Arc<Broker>, asked: &[Asked], wants: &Wants<'_>) -> Vec<Look> {
    let waiter = Arc::new(Notify::new());
    let mut barrier_done = false;
    loop {
        let keys: Vec<PartitionKey> = asked.iter().filter_map(|asked| key_of(broker, asked)).collect();
        // Registered before the look: what changes after it wakes us.
        for &key in &keys {
            broker.image.wait_for(key, &waiter);
        }
        let _waiting = Forget { broker, keys: &keys, waiter: &waiter };
        let looks: Vec<Look> = asked.iter().map(|asked| look(broker, asked, wants)).collect();
        if !barrier_done && looks.iter().any(needs_barrier) {
            barrier_done = true;
            if let Err(error) = broker.barrier().await {
                return looks.into_iter().map(|look| unsure(look, error)).collect();
            }
            continue;
        }
        if enough(asked, &looks, wants) || Instant::now() >= wants.deadline {
            return looks;
        }
        broker.metrics.fetches_waiting.inc();
        let woken = tokio::time::timeout_at(wants.deadline, waiter.notified()).await;
        broker.metrics.fetches_waiting.dec();
        if woken.is_err() {
            return asked.iter().map(|asked| look(broker, asked, wants)).collect();
        }
    }
}

/// Takes a waiter off the partitions it waits for, also when the connection goes away meanwhile.
struct Forget<'a> {
    broker: &'a Broker,
    keys: &'a [PartitionKey],
    waiter: &'a Arc<Notify>,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.broker.image.forget(self.keys.iter().copied(), self.waiter);
    }
}

/// A log that ends earlier than the asker has read may be an image that is behind.
fn needs_barrier(look: &Look) -> bool {
    matches!(
        look,
        Look::Diverged(..)
            | Look::Refused(
                ErrorCode::UnknownTopicOrPartition | ErrorCode::UnknownTopicId | ErrorCode::OffsetOutOfRange
            )
    )
}

/// With the barrier failed, an absence may not be told.
fn unsure(look: Look, error: ErrorCode) -> Look {
    if needs_barrier(&look) { Look::Refused(error) } else { look }
}

fn key_of(broker: &Broker, asked: &Asked) -> Option<PartitionKey> {
    let topic_id = match &asked.topic {
        TopicRef::Id(id) => TopicId(*id),
        TopicRef::Name(_) => broker.image.topic(&asked.topic)?.topic_id,
    };
    Some(PartitionKey::new(topic_id, asked.partition))
}

fn look(broker: &Broker, asked: &Asked, wants: &Wants<'_>) -> Look {
    let Some(topic) = broker.image.topic(&asked.topic) else {
        return Look::Refused(match asked.topic {
            TopicRef::Name(_) => ErrorCode::UnknownTopicOrPartition,
            TopicRef::Id(_) => ErrorCode::UnknownTopicId,
        });
    };
    let key = PartitionKey::new(topic.topic_id, asked.partition);
    let Some(view) = broker.image.view(key) else {
        return Look::Refused(ErrorCode::UnknownTopicOrPartition);
    };
    if let Some(error) = epoch_error(broker, asked.current_leader_epoch) {
        return Look::Refused(error);
    }
    if let Some(diverged) = divergence(&view, asked) {
        return Look::Diverged(view, diverged);
    }
    if asked.fetch_offset < view.log_start || asked.fetch_offset > view.high_watermark {
        return Look::Refused(ErrorCode::OffsetOutOfRange);
    }
    wants.reader.steered(broker, key, view)
}

/// A client's idea of the leader epoch counts by its incarnation alone (DESIGN.md section 4, "Leader epoch").
pub(crate) fn epoch_error(broker: &Broker, current_leader_epoch: i32) -> Option<ErrorCode> {
    if current_leader_epoch < 0 {
        return None;
    }
    let theirs = incarnation_of_leader_epoch(current_leader_epoch)?;
    let ours = broker.image.with(isobar_metadata::Image::incarnation);
    match theirs.cmp(&ours) {
        std::cmp::Ordering::Less => Some(ErrorCode::FencedLeaderEpoch),
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Greater => Some(ErrorCode::UnknownLeaderEpoch),
    }
}

/// Whether what the asker read last has been truncated since (KIP-595).
fn divergence(view: &PartitionView, asked: &Asked) -> Option<EpochEndOffset> {
    if asked.last_fetched_epoch < 0 {
        return None;
    }
    let (epoch, end_offset) = view.end_of_epoch(asked.last_fetched_epoch).unwrap_or((-1, -1));
    let diverged = epoch < asked.last_fetched_epoch || end_offset < asked.fetch_offset;
    diverged.then_some(EpochEndOffset { epoch, end_offset })
}

fn readable_end(view: &PartitionView, wants: &Wants<'_>) -> i64 {
    if wants.read_committed { view.last_stable_offset } else { view.high_watermark }
}

fn enough(asked: &[Asked], looks: &[Look], wants: &Wants<'_>) -> bool {
    let mut bytes = 0;
    for (asked, look) in asked.iter().zip(looks) {
        let Look::Ready(view) = look else { return true };
        bytes += available_bytes(view, asked, readable_end(view, wants), wants.min_bytes);
    }
    bytes >= wants.min_bytes
}

/// Bytes to read from an offset on, counted by whole extents and no further than `enough`.
fn available_bytes(view: &PartitionView, asked: &Asked, end: i64, enough: usize) -> usize {
    let most = usize::try_from(asked.max_bytes).unwrap_or(0);
    let mut offset = asked.fetch_offset;
    let mut bytes = 0;
    while offset < end && bytes < enough {
        let Some(found) = view.locate(offset, &[]) else { break };
        bytes += usize::try_from(found.size_bytes()).unwrap_or(usize::MAX).max(1);
        offset = found.end_offset();
    }
    bytes.min(most.max(1))
}

/// What an answer has room for.
#[derive(Clone, Copy)]
struct Room {
    /// In bytes.
    left: usize,
    /// Nothing is in it yet.
    first: bool,
    until: Instant,
}

async fn fill(
    broker: &Arc<Broker>,
    asked: &Asked,
    look: Look,
    wants: &Wants<'_>,
    room: Room,
) -> FetchPartition {
    let (view, diverging_epoch, preferred) = match look {
        Look::Refused(error) => return FetchPartition::failed(asked.partition, error),
        Look::Diverged(view, diverged) => (view, Some(diverged), None),
        Look::Led(leader) => return led_by(asked.partition, &leader),
        Look::Nearer(view, node) => (view, None, Some(node)),
        Look::Ready(view) => (view, None, None),
    };
    let mut answer = FetchPartition {
        index: asked.partition,
        error: ErrorCode::None,
        high_watermark: view.high_watermark,
        last_stable_offset: view.last_stable_offset,
        log_start_offset: view.log_start,
        aborted: wants.read_committed.then(Vec::new),
        preferred_read_replica: preferred.unwrap_or(-1),
        current_leader: None,
        diverging_epoch,
        records: RecordSet::default(),
    };
    if answer.diverging_epoch.is_some() || preferred.is_some() {
        return answer;
    }
    let span = read::Span {
        from: asked.fetch_offset,
        end: readable_end(&view, wants),
        max_bytes: room.left.min(usize::try_from(asked.max_bytes).unwrap_or(0)),
        at_least_one: room.first,
        until: Some(room.until),
    };
    match read::records(broker, &view, &span).await {
        Ok(records) => answer.records = records,
        Err(error) => return FetchPartition::failed(asked.partition, error),
    }
    answer
}
