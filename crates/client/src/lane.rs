//! One partition's way out of a producer.
//!
//! Owns: the partition's order and its sequences.
//! Invariants:
//! 1. Batches are written in the order in which they were taken, on one connection at a time.
//! 2. After a failure nothing new is sent until every batch in flight has its outcome; what goes again goes first, in
//!    order.
//! 3. A batch that the broker may have keeps its sequence for good. One that it certainly has not takes the place of a
//!    refused one before it, so sequences have no gap.
//!
//! Failure and retry: what fails retriably is sent again until its deadline. A refused batch fails alone. Where a
//! batch fails for good while the broker may have it, or the broker finds a gap of its own, no sequence is
//! certain any more: an idempotent producer stops, and says so to every later send.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_protocol::batch::{add_sequence, write_crc};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::{ProduceRequest, ProduceResponse};
use isobar_protocol::produce::Outgoing;
use isobar_protocol::records::BatchBuilder;
use isobar_protocol::{StrBytes, TopicRef};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout_at};

use crate::connection::{Connection, Pending};
use crate::error::{Action, ClientError};
use crate::metadata::TopicPartition;
use crate::produce::{Acked, Load, OutgoingRecord, Sending, Shared};

const PRODUCE_MIN: i16 = 3;
const FIRST_WITH_IDS: i16 = 13;
const BASE_SEQUENCE_AT: usize = 53;
const NO_SEQUENCE: i32 = -1;
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LAST_BACKOFF: Duration = Duration::from_secs(1);

/// Whoever waits for a record, and the record's place in its batch.
struct Waiting {
    outcome: oneshot::Sender<Result<Acked, ClientError>>,
    permit: OwnedSemaphorePermit,
    place: i64,
}

/// A batch from its making to its outcome.
struct Batch {
    bytes: Bytes,
    records: i32,
    sequence: i32,
    deadline: Instant,
    waiting: Vec<Waiting>,
    /// The broker may have it: once an attempt ended without a clear answer, that stays so.
    maybe_there: bool,
}

impl Batch {
    fn next_sequence(&self) -> i32 {
        add_sequence(self.sequence, self.records)
    }

    fn renumber(&mut self, sequence: i32) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut bytes = bytes.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        bytes[BASE_SEQUENCE_AT..BASE_SEQUENCE_AT + 4].copy_from_slice(&sequence.to_be_bytes());
        write_crc(&mut bytes);
        (self.bytes, self.sequence) = (bytes.freeze(), sequence);
    }
}

pub(crate) struct Lane {
    shared: Arc<Shared>,
    at: TopicPartition,
    queue: mpsc::Receiver<Sending>,
    /// Taken from the queue, and did not fit into the batch before.
    held: Option<Sending>,
    next_sequence: i32,
    /// To be sent again, before anything new.
    again: VecDeque<Batch>,
    in_flight: VecDeque<(Batch, Pending<ProduceRequest>)>,
    /// The connection of what is in flight.
    on: Option<Connection>,
    /// The next batch goes by another connection, so not before all that is in flight has its outcome: two brokers, or two
    /// connections of one, may take batches in any order.
    is_moving: bool,
    backoff: Duration,
}

enum Sent {
    InFlight(Pending<ProduceRequest>),
    Unanswered,
    /// Not sent: see [`Lane::is_moving`].
    NotYet,
}

enum Step {
    Answered(Result<Acked, ClientError>),
    Taken(Option<Sending>),
}

impl Lane {
    pub(crate) fn new(shared: Arc<Shared>, at: TopicPartition, queue: mpsc::Receiver<Sending>) -> Self {
        Lane {
            shared,
            at,
            queue,
            held: None,
            next_sequence: 0,
            again: VecDeque::new(),
            in_flight: VecDeque::new(),
            on: None,
            is_moving: false,
            backoff: FIRST_BACKOFF,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            self.is_moving &= !self.in_flight.is_empty();
            let room = !self.is_moving && self.in_flight.len() < self.shared.config.max_in_flight.max(1);
            if room && let Some(batch) = self.again.pop_front() {
                self.send(batch).await;
                continue;
            }
            if room && let Some(first) = self.held.take() {
                self.send_new(first).await;
                continue;
            }
            let step = tokio::select! {
                biased;
                answer = first_answer(&mut self.in_flight, &self.at), if !self.in_flight.is_empty() => {
                    Step::Answered(answer)
                }
                taken = self.queue.recv(), if room => Step::Taken(taken),
            };
            match step {
                Step::Answered(Ok(acked)) => self.acked(acked),
                Step::Answered(Err(error)) => {
                    let first = self.in_flight.pop_front().map(|(batch, _)| (batch, Err(error)));
                    self.sort_out(first, None).await;
                }
                Step::Taken(Some(first)) => self.send_new(first).await,
                Step::Taken(None) => return,
            }
        }
    }

    fn acked(&mut self, acked: Acked) {
        self.backoff = FIRST_BACKOFF;
        if let Some((batch, _)) = self.in_flight.pop_front() {
            self.settle(batch.waiting, &Ok(acked));
        }
    }

    async fn send_new(&mut self, first: Sending) {
        let (builder, waiting) = self.gather(first).await;
        let records = builder.count() as i32;
        let (id, epoch) = self.shared.identity.unwrap_or((-1, -1));
        let sequence = if self.is_idempotent() { self.next_sequence } else { NO_SEQUENCE };
        match builder.producer(id, epoch, sequence).build() {
            Ok(bytes) => {
                let deadline = Instant::now() + self.shared.config.delivery_timeout;
                let batch = Batch { bytes, records, sequence, deadline, waiting, maybe_there: false };
                if self.is_idempotent() {
                    self.next_sequence = batch.next_sequence();
                }
                self.send(batch).await;
            }
            Err(error) => self.settle(waiting, &Err(ClientError::Usage(error.to_string()))),
        }
    }

    /// Makes one batch of what waits, beginning with `first`.
    async fn gather(&mut self, first: Sending) -> (BatchBuilder, Vec<Waiting>) {
        let Sending { load, outcome, permit, .. } = first;
        let mut waiting = vec![Waiting { outcome, permit, place: 0 }];
        let (timestamp_ms, record) = match load {
            Load::Batch(builder) => return (builder, waiting),
            Load::Record { timestamp_ms, record } => (timestamp_ms, record),
        };
        let config = &self.shared.config;
        let mut builder = BatchBuilder::new(config.codec);
        push(&mut builder, timestamp_ms, &record);
        let linger = Instant::now() + config.linger;
        while let Some(next) = next_by(&mut self.queue, linger).await {
            match next {
                Sending { load: Load::Record { timestamp_ms, record }, size_bytes, outcome, permit }
                    if builder.size_bytes() + size_bytes <= config.batch_bytes =>
                {
                    waiting.push(Waiting { outcome, permit, place: builder.count() as i64 });
                    push(&mut builder, timestamp_ms, &record);
                }
                next => {
                    self.held = Some(next);
                    break;
                }
            }
        }
        (builder, waiting)
    }

    async fn send(&mut self, batch: Batch) {
        let broken = self.shared.broken.lock().clone();
        if let Some(error) = broken {
            return self.give_up(batch, error);
        }
        match self.try_send(&batch).await {
            Ok(Sent::InFlight(pending)) => self.in_flight.push_back((batch, pending)),
            Ok(Sent::Unanswered) => {
                self.settle(batch.waiting, &Ok(Acked { offset: -1, log_append_time_ms: None }));
            }
            Ok(Sent::NotYet) => {
                self.is_moving = true;
                self.again.push_front(batch);
            }
            // It did not leave, whatever the error says of requests in general.
            Err(error) => self.sort_out(None, Some((batch, error))).await,
        }
    }

    async fn try_send(&mut self, batch: &Batch) -> Result<Sent, ClientError> {
        let Shared { client, pool, config, .. } = &*self.shared;
        let addr = client.leader_once(&self.at).await?;
        let connection = pool.get(&addr).await?;
        if !self.in_flight.is_empty() && self.on.as_ref().is_some_and(|on| !on.is_same(&connection)) {
            return Ok(Sent::NotYet);
        }
        let version = connection.version::<ProduceRequest>(PRODUCE_MIN)?;
        let topic = self.topic_ref(version)?;
        let left = batch.deadline.saturating_duration_since(Instant::now());
        let outgoing = Outgoing {
            acks: config.acks.wire(),
            timeout_ms: left.min(client.config().request_timeout).as_millis() as i32,
            transactional_id: None,
            topics: vec![(topic, vec![(self.at.partition, batch.bytes.clone())])],
        };
        let pending = connection.send_produce(version, outgoing).await?;
        self.on = Some(connection);
        Ok(pending.map_or(Sent::Unanswered, Sent::InFlight))
    }

    fn topic_ref(&self, version: i16) -> Result<TopicRef, ClientError> {
        if version < FIRST_WITH_IDS {
            return Ok(TopicRef::Name(StrBytes::from_string(self.at.topic.clone())));
        }
        match self.shared.client.known().topics.get(&self.at.topic) {
            Some(topic) => Ok(TopicRef::Id(topic.id)),
            None => Err(ClientError::broker(self.at.to_string(), ErrorCode::UnknownTopicOrPartition, None)),
        }
    }

    /// Something failed: `first`, before all that is in flight, or `unsent`, behind it. Waits for every outcome, settles
    /// what is decided, and leaves in `again` what goes again, numbered without gaps.
    async fn sort_out(&mut self, first: Option<Answered>, unsent: Option<(Batch, ClientError)>) {
        let mut line: Vec<Answered> = first.into_iter().collect();
        while !self.in_flight.is_empty() {
            let answer = first_answer(&mut self.in_flight, &self.at).await;
            line.extend(self.in_flight.pop_front().map(|(batch, _)| (batch, answer)));
        }
        for (batch, answer) in &mut line {
            batch.maybe_there |= answer.as_ref().is_err_and(ClientError::is_ambiguous);
        }
        line.extend(unsent.map(|(batch, error)| (batch, Err(error))));
        let cause = line.iter().find_map(|(_, answer)| answer.as_ref().err().cloned());
        let mut failed_before = false;
        // Records refused so far: what is behind moves up by as many.
        let mut gap = 0;
        let mut kept = VecDeque::new();
        for (batch, answer) in line {
            match answer {
                Ok(acked) => {
                    // Taken behind a failure: then the broker has what was before, or wants no sequences.
                    gap = 0;
                    self.settle(batch.waiting, &Ok(acked));
                }
                Err(error) if self.goes_again(&batch, &error, failed_before) => {
                    kept.push_back(self.moved_up(batch, gap));
                    failed_before = true;
                }
                Err(error) => {
                    gap += batch.records;
                    self.give_up(batch, error);
                    failed_before = true;
                }
            }
        }
        for batch in std::mem::take(&mut self.again) {
            kept.push_back(self.moved_up(batch, gap));
        }
        self.again = kept;
        self.next_sequence = back_by(self.next_sequence, gap);
        if let Some(cause) = cause {
            self.pause(&cause).await;
        }
    }

    fn give_up(&self, batch: Batch, error: ClientError) {
        if self.is_idempotent() && (batch.maybe_there || is_gap(&error)) {
            self.stop(&error);
        }
        // The last attempt may be clear about itself only.
        let error = if batch.maybe_there && !error.is_ambiguous() {
            ClientError::Timeout { what: format!("produce to {} ({error})", self.at) }
        } else {
            error
        };
        self.settle(batch.waiting, &Err(error));
    }

    fn moved_up(&self, mut batch: Batch, gap: i32) -> Batch {
        if gap > 0 && self.is_idempotent() {
            if batch.maybe_there {
                let reason = "a batch failed while one behind it may have been written";
                self.stop(&ClientError::Closed(reason.to_owned()));
            }
            batch.renumber(back_by(batch.sequence, gap));
        }
        batch
    }

    fn goes_again(&self, batch: &Batch, error: &ClientError, failed_before: bool) -> bool {
        // Out of order only because of what failed before it.
        let behind = failed_before && is_gap(error);
        let retriable = behind || error.action() == Action::Retry;
        retriable && self.shared.config.retries && Instant::now() < batch.deadline
    }

    /// Nothing more is sent: sequences can no longer be trusted.
    fn stop(&self, error: &ClientError) {
        let reason = format!("idempotent producer stopped, create a new one: {}: {error}", self.at);
        self.shared.broken.lock().get_or_insert_with(|| ClientError::Closed(reason));
    }

    async fn pause(&mut self, cause: &ClientError) {
        if cause.is_retriable() {
            self.shared.client.forget_leader(&self.at);
        }
        if self.again.is_empty() {
            return;
        }
        tracing::debug!(at = %self.at, error = %cause, batches = self.again.len(), "sending again");
        sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
    }

    fn is_idempotent(&self) -> bool {
        self.shared.identity.is_some()
    }

    fn settle(&self, waiting: Vec<Waiting>, result: &Result<Acked, ClientError>) {
        for Waiting { outcome, permit, place } in waiting {
            let own = result.clone().map(|acked| Acked {
                offset: if acked.offset < 0 { -1 } else { acked.offset + place },
                ..acked
            });
            self.shared.settle(outcome, permit, own);
        }
    }
}

/// `sequence - records`, the other way round the wrap of [`add_sequence`].
fn back_by(sequence: i32, records: i32) -> i32 {
    let back = sequence.wrapping_sub(records);
    if back < 0 { back.wrapping_add(i32::MAX).wrapping_add(1) } else { back }
}

type Answered = (Batch, Result<Acked, ClientError>);

fn is_gap(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Some(
            ErrorCode::OutOfOrderSequenceNumber
                | ErrorCode::UnknownProducerId
                | ErrorCode::InvalidProducerEpoch
        )
    )
}

fn push(builder: &mut BatchBuilder, timestamp_ms: i64, record: &OutgoingRecord) {
    let headers: Vec<(&str, Option<&[u8]>)> =
        record.headers.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
    builder.push(timestamp_ms, record.key.as_deref(), record.value.as_deref(), &headers);
}

/// The next of the queue, waiting for it no longer than until `linger`.
async fn next_by(queue: &mut mpsc::Receiver<Sending>, linger: Instant) -> Option<Sending> {
    match queue.try_recv() {
        Ok(next) => Some(next),
        Err(_) if Instant::now() >= linger => None,
        Err(_) => timeout_at(linger, queue.recv()).await.ok().flatten(),
    }
}

/// The answer to the first batch in flight, which stays there. Cancel-safe.
async fn first_answer(
    in_flight: &mut VecDeque<(Batch, Pending<ProduceRequest>)>,
    at: &TopicPartition,
) -> Result<Acked, ClientError> {
    match in_flight.front_mut() {
        Some((_, pending)) => read(pending.await?, at),
        None => std::future::pending().await,
    }
}

fn read(response: ProduceResponse, at: &TopicPartition) -> Result<Acked, ClientError> {
    let mut partitions = response.responses.iter().flat_map(|topic| &topic.partition_responses);
    let Some(answer) = partitions.find(|answer| answer.index == at.partition) else {
        return Err(ClientError::malformed(format!("produce to {at}"), "no answer for it"));
    };
    let log_append_time_ms = (answer.log_append_time_ms >= 0).then_some(answer.log_append_time_ms);
    match ErrorCode::from_i16(answer.error_code) {
        ErrorCode::None => Ok(Acked { offset: answer.base_offset, log_append_time_ms }),
        // Written before, and too long ago for the broker to know where.
        ErrorCode::DuplicateSequenceNumber => Ok(Acked { offset: -1, log_append_time_ms }),
        code => Err(ClientError::broker(format!("produce to {at}"), code, answer.error_message.as_deref())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_go_back_as_they_go_on() {
        for (sequence, records) in [(0, 1), (5, 5), (4, 5), (i32::MAX, 3), (2, 1000)] {
            let back = back_by(sequence, records);
            assert!(back >= 0);
            assert_eq!(add_sequence(back, records), sequence);
        }
    }
}
