//! The producer: records or whole batches to partitions, several requests in flight, in order.
//!
//! One lane (module `lane`) for each partition keeps that partition's order and sequences; lanes share connections and
//! the buffer's bound.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Task;
use isobar_protocol::compression::Codec;
use isobar_protocol::messages::{InitProducerIdRequest, ProducerId};
use isobar_protocol::records::BatchBuilder;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::client::Client;
use crate::error::ClientError;
use crate::lane::Lane;
use crate::metadata::TopicPartition;
use crate::pool::Pool;

/// First InitProducerId version with the flexible layout that we send.
const INIT_PRODUCER_ID_MIN: i16 = 2;
/// Sends that wait in one lane; the buffer's bound in bytes is what counts.
const LANE_QUEUE: usize = 10_000;
/// What a record takes in a batch beside key and value, at most, without headers.
const RECORD_OVERHEAD_BYTES: usize = 40;

/// When the broker answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Never; a delivery is complete once it is in the line to the broker.
    None,
    /// As `All`, at Isobar; when the leader has it, at Kafka.
    Leader,
    /// When it is durable.
    #[default]
    All,
}

impl Acks {
    pub(crate) fn wire(self) -> i16 {
        match self {
            Acks::None => 0,
            Acks::Leader => 1,
            Acks::All => -1,
        }
    }
}

/// How a producer sends.
#[derive(Clone, Debug)]
pub struct ProducerConfig {
    /// When the broker answers.
    pub acks: Acks,
    /// Whether a batch sent twice arrives once. Needs [`Acks::All`].
    pub idempotent: bool,
    /// Compression of the batches made from records.
    pub codec: Codec,
    /// How long a record waits for others to share its batch. While the line is full they gather anyway.
    pub linger: Duration,
    /// Largest batch made from records, before compression.
    pub batch_bytes: usize,
    /// Records and batches taken and not yet acknowledged, all partitions together.
    pub buffer_bytes: usize,
    /// Requests in flight for one partition; at most 5 when idempotent, which is what brokers remember.
    pub max_in_flight: usize,
    /// How long a batch is tried before its delivery fails, from its first sending.
    pub delivery_timeout: Duration,
    /// Whether to send again what failed. Without idempotence that may write a batch twice.
    pub retries: bool,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        ProducerConfig {
            acks: Acks::All,
            idempotent: true,
            codec: Codec::None,
            linger: Duration::ZERO,
            batch_bytes: 1_000_000,
            buffer_bytes: 32 * 1024 * 1024,
            max_in_flight: 5,
            delivery_timeout: Duration::from_secs(60),
            retries: true,
        }
    }
}

/// A record to send.
#[derive(Clone, Debug, Default)]
pub struct OutgoingRecord {
    /// Milliseconds since the Unix epoch; `None`: the host's clock.
    pub timestamp_ms: Option<i64>,
    /// The key.
    pub key: Option<Bytes>,
    /// The value.
    pub value: Option<Bytes>,
    /// Headers; keys may repeat.
    pub headers: Vec<(String, Option<Bytes>)>,
}

impl OutgoingRecord {
    fn size_bytes(&self) -> usize {
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(key, value)| key.len() + part(value) + 10).sum();
        RECORD_OVERHEAD_BYTES + part(&self.key) + part(&self.value) + headers
    }
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Offset of the record, or of the batch's first; -1 if the broker did not say (acks=0, or a repeat it no longer remembers).
    pub offset: i64,
    /// The broker's timestamp, with `LogAppendTime`.
    pub log_append_time_ms: Option<i64>,
}

/// The outcome of a send, to be awaited. Dropping it changes nothing.
#[derive(Debug)]
pub struct Delivery {
    outcome: oneshot::Receiver<Result<Acked, ClientError>>,
}

impl Future for Delivery {
    type Output = Result<Acked, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.outcome).poll(cx).map(|outcome| {
            outcome.unwrap_or_else(|_| Err(ClientError::Closed("producer dropped".to_owned())))
        })
    }
}

/// Something in a lane's queue.
pub(crate) enum Load {
    Record { timestamp_ms: i64, record: OutgoingRecord },
    Batch(BatchBuilder),
}

/// A load, and what belongs to it until it is acknowledged.
pub(crate) struct Sending {
    pub(crate) load: Load,
    pub(crate) size_bytes: usize,
    pub(crate) outcome: oneshot::Sender<Result<Acked, ClientError>>,
    pub(crate) permit: OwnedSemaphorePermit,
}

/// What all lanes of a producer share.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) pool: Pool,
    pub(crate) config: ProducerConfig,
    /// Producer id and epoch.
    pub(crate) identity: Option<(i64, i16)>,
    /// Why nothing more is sent: a gap in a partition's sequences that cannot be closed.
    pub(crate) broken: Mutex<Option<ClientError>>,
    buffer: Arc<Semaphore>,
    buffer_bytes: usize,
    /// Signalled when something has been acknowledged or given up.
    settled: Notify,
}

impl Shared {
    pub(crate) fn settle(
        &self,
        outcome: oneshot::Sender<Result<Acked, ClientError>>,
        permit: OwnedSemaphorePermit,
        result: Result<Acked, ClientError>,
    ) {
        // The caller may have dropped its delivery.
        let _ = outcome.send(result);
        drop(permit);
        self.settled.notify_waiters();
    }
}

/// Sends to any partition of a cluster. Dropping it gives up what is not acknowledged.
pub struct Producer {
    shared: Arc<Shared>,
    lanes: Mutex<BTreeMap<TopicPartition, (mpsc::Sender<Sending>, Task)>>,
}

impl Producer {
    /// A producer; with idempotence it asks the broker for a producer id.
    pub async fn new(client: &Client, config: ProducerConfig) -> Result<Producer, ClientError> {
        if config.idempotent && (config.acks != Acks::All || config.max_in_flight > 5 || !config.retries) {
            let message = "idempotence needs acks=all, at most 5 requests in flight, and retries";
            return Err(ClientError::Usage(message.to_owned()));
        }
        let identity = if config.idempotent { Some(init_producer_id(client).await?) } else { None };
        let buffer_bytes = config.buffer_bytes.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        let shared = Shared {
            client: client.clone(),
            pool: client.own_pool(),
            identity,
            broken: Mutex::new(None),
            buffer: Arc::new(Semaphore::new(buffer_bytes)),
            buffer_bytes,
            settled: Notify::new(),
            config,
        };
        Ok(Producer { shared: Arc::new(shared), lanes: Mutex::default() })
    }

    /// Producer id and epoch, if idempotent.
    pub fn producer_id(&self) -> Option<(i64, i16)> {
        self.shared.identity
    }

    /// Takes a record, waiting while the buffer is full.
    pub async fn send(&self, to: &TopicPartition, record: OutgoingRecord) -> Result<Delivery, ClientError> {
        let size_bytes = record.size_bytes();
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(|| self.shared.client.host().now_ms());
        self.take(to, Load::Record { timestamp_ms, record }, size_bytes).await
    }

    /// Takes a whole batch, which is sent as it is but for producer id, epoch and sequence. Waits while the buffer is
    /// full.
    pub async fn send_batch(
        &self,
        to: &TopicPartition,
        batch: BatchBuilder,
    ) -> Result<Delivery, ClientError> {
        let size_bytes = batch.size_bytes();
        self.take(to, Load::Batch(batch), size_bytes).await
    }

    async fn take(
        &self,
        to: &TopicPartition,
        load: Load,
        size_bytes: usize,
    ) -> Result<Delivery, ClientError> {
        let weight = size_bytes.clamp(1, self.shared.buffer_bytes) as u32;
        let closed = || ClientError::Closed("producer stopped".to_owned());
        let permit = timeout(
            self.shared.config.delivery_timeout,
            Arc::clone(&self.shared.buffer).acquire_many_owned(weight),
        )
        .await
        .map_err(|_| ClientError::Timeout { what: "room in the producer's buffer".to_owned() })?
        .map_err(|_| closed())?;
        if let Some(error) = self.shared.broken.lock().clone() {
            return Err(error);
        }
        let (outcome, receiver) = oneshot::channel();
        let lane = self.lane(to);
        lane.send(Sending { load, size_bytes, outcome, permit }).await.map_err(|_| closed())?;
        Ok(Delivery { outcome: receiver })
    }

    fn lane(&self, to: &TopicPartition) -> mpsc::Sender<Sending> {
        let mut lanes = self.lanes.lock();
        if let Some((queue, _)) = lanes.get(to) {
            return queue.clone();
        }
        let (sender, queue) = mpsc::channel(LANE_QUEUE);
        let lane = Lane::new(Arc::clone(&self.shared), to.clone(), queue);
        let task = self.shared.client.host().spawn("client-lane", lane.run());
        lanes.insert(to.clone(), (sender.clone(), task));
        sender
    }

    /// Waits until all that was taken is acknowledged or has failed; each delivery has its own outcome.
    pub async fn flush(&self) {
        loop {
            let settled = self.shared.settled.notified();
            if self.shared.buffer.available_permits() == self.shared.buffer_bytes {
                return;
            }
            settled.await;
        }
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        for (_, task) in self.lanes.lock().values() {
            task.abort();
        }
    }
}

async fn init_producer_id(client: &Client) -> Result<(i64, i16), ClientError> {
    let request = InitProducerIdRequest::default()
        .with_transactional_id(None)
        .with_transaction_timeout_ms(0)
        .with_producer_id(ProducerId(-1))
        .with_producer_epoch(-1);
    let response =
        client.call_retrying(&request, INIT_PRODUCER_ID_MIN, |response| response.error_code).await?;
    Ok((response.producer_id.0, response.producer_epoch))
}
