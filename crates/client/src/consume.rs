//! A consumer of assigned partitions: fetches raw batches from each partition's broker, keeps positions.
//!
//! One fetch is on its way to each broker, sent before the answer to the one before it is handed out, so the broker reads
//! while the caller works. An answer counts only for partitions whose position is still the one that was asked for.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use isobar_protocol::batch::{BatchHeader, Batches, verify_crc};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use isobar_protocol::messages::fetch_response::PartitionData;
use isobar_protocol::messages::{BrokerId, FetchRequest, FetchResponse, TopicName};
use isobar_protocol::records::{Record, decode_batch};
use isobar_protocol::{StrBytes, Uuid};
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::connection::Pending;
use crate::error::ClientError;
use crate::metadata::TopicPartition;
use crate::offsets::OffsetSpec;
use crate::pool::Pool;

const FETCH_MIN: i16 = 12;
const BACKOFF: Duration = Duration::from_millis(50);
/// The most that one batch may yield when decompressed.
const DECOMPRESSED_CAP_BYTES: usize = 256 * 1024 * 1024;

/// Where to begin without an offset, or with one that the log no longer has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reset {
    /// At the first record.
    #[default]
    Earliest,
    /// After the last.
    Latest,
    /// Nowhere: an error.
    Fail,
}

/// Which records are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Isolation {
    /// All of them.
    #[default]
    ReadUncommitted,
    /// Only up to the last stable offset. Aborted records are not filtered out.
    ReadCommitted,
}

/// How a consumer fetches.
#[derive(Clone, Debug)]
pub struct ConsumerConfig {
    /// The broker waits for this much.
    pub min_bytes: i32,
    /// The most of one response; a first batch that is larger still comes.
    pub max_bytes: i32,
    /// The most of one partition in a response.
    pub partition_max_bytes: i32,
    /// How long the broker waits for `min_bytes`.
    pub max_wait: Duration,
    /// Which records are seen.
    pub isolation: Isolation,
    /// Where to begin.
    pub reset: Reset,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        ConsumerConfig {
            min_bytes: 1,
            max_bytes: 50 * 1024 * 1024,
            partition_max_bytes: 1024 * 1024,
            max_wait: Duration::from_millis(500),
            isolation: Isolation::ReadUncommitted,
            reset: Reset::Earliest,
        }
    }
}

/// What came from one partition.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The partition.
    pub at: TopicPartition,
    /// The offset asked for; the first batch may begin before it.
    pub fetch_offset: i64,
    /// The offset after the last batch.
    pub next_offset: i64,
    /// The partition's high watermark.
    pub high_watermark: i64,
    /// Its last stable offset.
    pub last_stable_offset: i64,
    /// Its first offset.
    pub log_start_offset: i64,
    /// Whole batches, with CRCs checked.
    pub batches: Vec<Bytes>,
}

impl Fetched {
    /// Calls `each` with every record from `fetch_offset` on, decompressing; control batches are passed over.
    /// Returns the number of records.
    pub fn for_each(&self, mut each: impl FnMut(&Record<'_>)) -> Result<u64, ClientError> {
        let mut count = 0;
        for batch in &self.batches {
            let records = decode_batch(batch, DECOMPRESSED_CAP_BYTES)?;
            if records.header().attributes.is_control() {
                continue;
            }
            for record in records.iter() {
                let record = record?;
                if record.offset >= self.fetch_offset {
                    each(&record);
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

#[derive(Debug, Default)]
struct Assigned {
    /// The next offset; `None` until it is looked up.
    position: Option<i64>,
    /// The leader epoch of the last batch, by which a broker tells truncation.
    last_epoch: i32,
    /// The broker that the leader said to fetch from (KIP-392).
    preferred: Option<i32>,
}

/// A fetch on its way.
struct Fetching {
    pending: Pending<FetchRequest>,
    offsets: BTreeMap<TopicPartition, i64>,
    names: BTreeMap<Uuid, String>,
}

/// Reads assigned partitions.
pub struct Consumer {
    client: Client,
    pool: Pool,
    config: ConsumerConfig,
    assigned: BTreeMap<TopicPartition, Assigned>,
    fetching: BTreeMap<String, Fetching>,
    failing_since: Option<Instant>,
}

impl Consumer {
    /// A consumer without partitions.
    pub fn new(client: &Client, config: ConsumerConfig) -> Consumer {
        Consumer {
            client: client.clone(),
            pool: client.own_pool(),
            config,
            assigned: BTreeMap::new(),
            fetching: BTreeMap::new(),
            failing_since: None,
        }
    }

    /// Reads a partition from `offset` on, or from where [`Reset`] says. Also moves one that is read already.
    pub fn assign(&mut self, at: TopicPartition, offset: Option<i64>) {
        self.assigned.insert(at, Assigned { position: offset, last_epoch: -1, preferred: None });
    }

    /// Reads a partition no more.
    pub fn unassign(&mut self, at: &TopicPartition) {
        self.assigned.remove(at);
    }

    /// Reads nothing any more.
    pub fn unassign_all(&mut self) {
        self.assigned.clear();
    }

    /// The offset after the last record handed out; `None` while it is not known where to begin.
    pub fn position(&self, at: &TopicPartition) -> Option<i64> {
        self.assigned.get(at)?.position
    }

    /// The partitions and their positions.
    pub fn positions(&self) -> impl Iterator<Item = (&TopicPartition, Option<i64>)> {
        self.assigned.iter().map(|(at, assigned)| (at, assigned.position))
    }

    /// Waits for records, at most `timeout`; nothing is no error. Trouble that may pass is waited out, and returned
    /// as an error only after `api_timeout` of it.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Vec<Fetched>, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.round(deadline).await {
                Ok(fetched) => {
                    self.failing_since = None;
                    if !fetched.is_empty() || Instant::now() >= deadline {
                        return Ok(fetched);
                    }
                }
                Err(error) => {
                    let now = Instant::now();
                    let since = *self.failing_since.get_or_insert(now);
                    if !error.is_retriable() || now - since >= self.client.config().api_timeout {
                        return Err(error);
                    }
                    tracing::debug!(%error, "fetch failed");
                    if now >= deadline {
                        return Ok(Vec::new());
                    }
                    sleep(BACKOFF.min(deadline - now)).await;
                }
            }
        }
    }

    /// Sends what is to be sent and takes one answer.
    async fn round(&mut self, deadline: Instant) -> Result<Vec<Fetched>, ClientError> {
        let lost = self.start().await;
        if self.fetching.is_empty() {
            lost?;
            tokio::time::sleep_until(deadline).await;
            return Ok(Vec::new());
        }
        let Ok((addr, answer)) = timeout_at(deadline, self.next_answer()).await else {
            return lost.map(|()| Vec::new());
        };
        let Some(Fetching { offsets, names, .. }) = self.fetching.remove(&addr) else {
            return Ok(Vec::new());
        };
        let response = match answer {
            Ok(response) => response,
            Err(error) => {
                self.forget(offsets.keys());
                return Err(error);
            }
        };
        let fetched = self.take(response, &offsets, &names)?;
        if !fetched.is_empty() {
            // The broker reads on while the caller works. If that fails, the next round says so.
            let _ = self.start().await;
        }
        Ok(fetched)
    }

    async fn next_answer(&mut self) -> (String, Result<FetchResponse, ClientError>) {
        poll_fn(|cx| {
            for (addr, fetching) in &mut self.fetching {
                if let Poll::Ready(answer) = Pin::new(&mut fetching.pending).poll(cx) {
                    return Poll::Ready((addr.clone(), answer));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Finds positions that are missing, and sends a fetch to every broker that has none on its way.
    async fn start(&mut self) -> Result<(), ClientError> {
        self.find_positions().await?;
        let mut by_broker: BTreeMap<String, Vec<TopicPartition>> = BTreeMap::new();
        let mut lost = None;
        for (at, assigned) in &self.assigned {
            let known = self.client.known();
            let preferred =
                assigned.preferred.and_then(|id| known.brokers.get(&id)).map(|broker| broker.addr());
            let addr = match preferred {
                Some(addr) => Ok(addr),
                None => self.client.leader_once(at).await,
            };
            match addr {
                Ok(addr) => by_broker.entry(addr).or_default().push(at.clone()),
                Err(error) => lost = Some(error),
            }
        }
        by_broker.retain(|addr, _| !self.fetching.contains_key(addr));
        for (addr, partitions) in by_broker {
            match self.send(&addr, &partitions).await {
                Ok(fetching) => drop(self.fetching.insert(addr, fetching)),
                Err(error) => {
                    self.forget(partitions.iter());
                    lost = Some(error);
                }
            }
        }
        lost.map_or(Ok(()), Err)
    }

    async fn send(&self, addr: &str, partitions: &[TopicPartition]) -> Result<Fetching, ClientError> {
        let known = self.client.known();
        let mut offsets = BTreeMap::new();
        let mut names = BTreeMap::new();
        let mut topics: BTreeMap<&str, FetchTopic> = BTreeMap::new();
        for at in partitions {
            let Some(Assigned { position: Some(offset), last_epoch, .. }) = self.assigned.get(at) else {
                continue;
            };
            let id = known.topics.get(&at.topic).map_or(Uuid::nil(), |topic| topic.id);
            names.insert(id, at.topic.clone());
            offsets.insert(at.clone(), *offset);
            let partition = FetchPartition::default()
                .with_partition(at.partition)
                .with_fetch_offset(*offset)
                .with_last_fetched_epoch(*last_epoch)
                .with_partition_max_bytes(self.config.partition_max_bytes);
            let topic = topics.entry(&at.topic).or_insert_with(|| {
                let name = TopicName(StrBytes::from_string(at.topic.clone()));
                FetchTopic::default().with_topic(name).with_topic_id(id)
            });
            topic.partitions.push(partition);
        }
        let rack = self.client.config().rack.clone().unwrap_or_default();
        let request = FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(self.config.max_wait.as_millis() as i32)
            .with_min_bytes(self.config.min_bytes)
            .with_max_bytes(self.config.max_bytes)
            .with_isolation_level((self.config.isolation == Isolation::ReadCommitted) as i8)
            .with_topics(topics.into_values().collect())
            .with_rack_id(StrBytes::from_string(rack));
        let pending = self.pool.get(addr).await?.send(&request, FETCH_MIN, self.config.max_wait).await?;
        Ok(Fetching { pending, offsets, names })
    }

    fn take(
        &mut self,
        response: FetchResponse,
        offsets: &BTreeMap<TopicPartition, i64>,
        names: &BTreeMap<Uuid, String>,
    ) -> Result<Vec<Fetched>, ClientError> {
        let code = ErrorCode::from_i16(response.error_code);
        if !code.is_none() {
            self.forget(offsets.keys());
            return Err(ClientError::broker("fetch", code, None));
        }
        let mut fetched = Vec::new();
        let mut failed = None;
        for topic in response.responses {
            let name = if topic.topic_id.is_nil() {
                Some(topic.topic.to_string())
            } else {
                names.get(&topic.topic_id).cloned()
            };
            let Some(name) = name else { continue };
            for partition in topic.partitions {
                let at = TopicPartition::new(name.clone(), partition.partition_index);
                let asked = offsets.get(&at).copied();
                match self.take_partition(&at, asked, partition) {
                    Ok(some) => fetched.extend(some),
                    Err(error) => failed = Some(error),
                }
            }
        }
        // What came is handed out first; an error that lasts comes again.
        match failed {
            Some(error) if fetched.is_empty() || !error.is_retriable() => Err(error),
            _ => Ok(fetched),
        }
    }

    fn take_partition(
        &mut self,
        at: &TopicPartition,
        asked: Option<i64>,
        answer: PartitionData,
    ) -> Result<Option<Fetched>, ClientError> {
        let Some(assigned) = self.assigned.get_mut(at).filter(|assigned| assigned.position == asked) else {
            return Ok(None);
        };
        let Some(fetch_offset) = asked else { return Ok(None) };
        match ErrorCode::from_i16(answer.error_code) {
            ErrorCode::None => {}
            ErrorCode::OffsetOutOfRange
                if assigned.preferred.is_none() && self.config.reset != Reset::Fail =>
            {
                (assigned.position, assigned.last_epoch) = (None, -1);
                return Ok(None);
            }
            code => {
                assigned.preferred = None;
                self.client.forget_leader(at);
                return Err(ClientError::broker(format!("fetch of {at} at {fetch_offset}"), code, None));
            }
        }
        if answer.diverging_epoch.end_offset >= 0 {
            // The log was cut back (KIP-320): go on where it still agrees.
            let offset = answer.diverging_epoch.end_offset.min(fetch_offset);
            (assigned.position, assigned.last_epoch) = (Some(offset), -1);
            tracing::warn!(%at, fetch_offset, offset, "log was truncated");
            return Ok(None);
        }
        // The preferred replica itself names none.
        if answer.preferred_read_replica.0 >= 0 {
            assigned.preferred = Some(answer.preferred_read_replica.0);
        }
        let (batches, last) = whole_batches(at, answer.records.unwrap_or_default(), fetch_offset)?;
        let Some(last) = last else { return Ok(None) };
        (assigned.position, assigned.last_epoch) = (Some(last.next_offset()), last.leader_epoch);
        Ok(Some(Fetched {
            at: at.clone(),
            fetch_offset,
            next_offset: last.next_offset(),
            high_watermark: answer.high_watermark,
            last_stable_offset: answer.last_stable_offset,
            log_start_offset: answer.log_start_offset,
            batches,
        }))
    }

    async fn find_positions(&mut self) -> Result<(), ClientError> {
        let missing: Vec<TopicPartition> =
            self.assigned.iter().filter(|(_, a)| a.position.is_none()).map(|(at, _)| at.clone()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let spec = match self.config.reset {
            Reset::Earliest => OffsetSpec::Earliest,
            Reset::Latest => OffsetSpec::Latest,
            Reset::Fail => {
                let message = format!("no offset to read {} from, and reset is off", missing[0]);
                return Err(ClientError::Usage(message));
            }
        };
        let asked: Vec<_> = missing.into_iter().map(|at| (at, spec)).collect();
        let committed = self.config.isolation == Isolation::ReadCommitted;
        for (at, found) in self.client.list_offsets_as(&asked, committed).await? {
            let found = found?;
            if let Some(assigned) = self.assigned.get_mut(&at) {
                assigned.position = Some(found.offset.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Looks the leaders up again, and asks them first.
    fn forget<'a>(&mut self, partitions: impl Iterator<Item = &'a TopicPartition>) {
        for at in partitions {
            self.client.forget_leader(at);
            if let Some(assigned) = self.assigned.get_mut(at) {
                assigned.preferred = None;
            }
        }
    }
}

/// Cuts a partition's records into batches and checks each; batches that end before `from` are left out. Also the last
/// batch's header.
fn whole_batches(
    at: &TopicPartition,
    records: Bytes,
    from: i64,
) -> Result<(Vec<Bytes>, Option<BatchHeader>), ClientError> {
    let mut batches = Vec::new();
    let mut last = None;
    for batch in Batches::new(&records) {
        let checked = batch.and_then(|(header, bytes)| verify_crc(bytes).map(|()| (header, bytes)));
        let (header, bytes) = checked
            .map_err(|error| ClientError::malformed(format!("batch of {at} at or after {from}"), error))?;
        if header.last_offset() >= from {
            batches.push(records.slice_ref(bytes));
            last = Some(header);
        }
    }
    Ok((batches, last))
}
