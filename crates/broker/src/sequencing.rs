//! What becomes of a chunk that was handed over: durable, proposed, sequenced, answered.
//!
//! Owns: the rest of a lane's way ([`crate::accumulator`] has the first part): appends that end, commits in their order
//! ([`crate::commits`]), the change to another stream.
//!
//! Invariants
//! 1. A commit is proposed only after its chunk is durable; a waiter hears of success only after the commit was applied
//!    (DESIGN.md section 2, invariant 2).
//! 2. What the log refused for want of space or a store is answered with a retriable error, and its number is given to another
//!    chunk; but a number that was ever proposed keeps its chunk until it has a result.
//! 3. A chunk is appended to a second stream only when nothing of the lane is under way on the first, and in the order of the
//!    numbers, so a lane's batches keep their order over streams (DESIGN.md section 4, "Order").
//!
//! Failure and retry: a proposal without a result (no leader, a lost connection, a full queue) goes again under its own number after
//! a pause, for as long as it takes: clients time out by themselves. A stream that lost its write quorum, or that metadata has
//! closed, is followed by another. What ends the lane: a journal that failed and no other to go to, a session that was fenced, a
//! quorum that stopped. Everything that waits and comes later is then answered: with REQUEST_TIMED_OUT what may have been
//! sequenced, with KAFKA_STORAGE_ERROR what certainly was not.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use isobar_metadata::command::{ChunkObject, CloseStream, CommitBatch, CommitChunk, CommitPartition};
use isobar_metadata::result::{ChunkResult, RefusalKind};
use isobar_metadata::{Command, CommandResult, Envelope, StreamId};
use isobar_protocol::error::ErrorCode;
use isobar_raft::ProposeError;
use isobar_wal::Chunk;
use parking_lot::MutexGuard;
use tokio::time::Instant;

use crate::accumulator::{ClassEpochs, Lane, Outcome, SealedChunk, Slot, State};
use crate::commits::Answer;
use crate::sink::{Durable, Refusal, Sink};
use crate::{FENCED, SAY_EVERY};

/// Pause before proposals without a result go again.
const RETRY: Duration = Duration::from_millis(20);
/// Pause before another try to open a stream.
const REOPEN: Duration = Duration::from_millis(100);

/// A chunk with a commit number.
pub(crate) struct Line {
    sealed: SealedChunk,
    durable: Option<Durable>,
    /// It was handed to the quorum once, so it may have been sequenced.
    proposed: bool,
}

impl Line {
    pub(crate) fn new(sealed: SealedChunk) -> Self {
        Self { sealed, durable: None, proposed: false }
    }
}

/// What the answer to a commit means for the lane.
enum Verdict {
    Sequenced(ChunkResult),
    Open(Answer),
    /// The session is over, and with it this life of the broker: it starts anew by itself.
    Fenced,
    Over(String),
}

impl Lane {
    pub(crate) fn append(self: &Arc<Self>, chunk: Chunk, number: u64) {
        let lane = Arc::clone(self);
        let started = Instant::now();
        self.target.sink.append(chunk, number, move |appended| {
            lane.metrics.stage("append", started.elapsed());
            lane.appended(number, appended);
        });
    }

    fn appended(self: &Arc<Self>, number: u64, appended: Result<Durable, Refusal>) {
        if appended.is_ok() {
            self.host.crash_point("produce.after_append");
        }
        let mut state = self.state.lock();
        state.in_flight -= 1;
        match appended {
            Ok(durable) => {
                if let Some(line) = state.commits.chunk_mut(number) {
                    line.durable = Some(durable);
                }
                state.commits.durable(number);
            }
            Err(Refusal::Later(what, error)) => {
                tracing::warn!(%error, number, "a chunk was refused: its clients will try again");
                state.refused_because = what;
                state.refused_from = Some(state.refused_from.map_or(number, |from| from.min(number)));
            }
            Err(Refusal::Moved(error)) => {
                if !state.displaced {
                    tracing::warn!(%error, stream = %state.stream, "a stream is over: the lane goes on over another");
                }
                state.displaced = true;
            }
            Err(Refusal::ForGood(error)) => {
                tracing::error!(%error, "a chunk was refused for good: this lane stops");
                return self.stop(state);
            }
        }
        if state.in_flight == 0 {
            self.sort_out(&mut state);
        }
        drop(state);
        self.propose_due();
        self.send_due();
    }

    /// Nothing is being appended: what was refused is told so, and what is left without a place gets one.
    fn sort_out(self: &Arc<Self>, state: &mut State) {
        if let Some(from) = state.refused_from.take() {
            let taken = state.commits.take_back(from);
            if let Some(first) = taken.first().filter(|_| !state.displaced) {
                state.next_chunk = first.sealed.chunk.number();
            }
            let because =
                Outcome::refused(ErrorCode::KafkaStorageError, Some(state.refused_because.to_owned()));
            refuse(taken.into_iter().flat_map(|line| line.sealed.slots), &because);
        }
        let left = state.commits.appending().next().is_some();
        if !state.moving && !state.stopped && (state.displaced || left) {
            state.moving = true;
            let lane = Arc::clone(self);
            self.spawner.spawn("lane.move", async move { lane.go_on().await });
        }
    }

    /// Opens another stream if this one is over, and appends there what has no place.
    async fn go_on(self: Arc<Self>) {
        let displaced = self.state.lock().displaced;
        if displaced && matches!(self.target.sink, Sink::Wal(_)) {
            let Some(stream) = self.open_stream().await else { return };
            let mut state = self.state.lock();
            let left = (state.stream, state.commits.next_number());
            state.left.push_back(left);
            (state.stream, state.next_chunk, state.displaced) = (stream, 0, false);
        } else {
            tokio::time::sleep(REOPEN).await;
            self.state.lock().displaced = false;
        }
        let mut again = Vec::new();
        {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let mut next_chunk = state.next_chunk;
            for (number, line) in state.commits.appending() {
                let chunk = self.moved(&line.sealed.chunk, state.stream, next_chunk);
                next_chunk += 1;
                line.sealed.chunk = chunk.clone();
                again.push((number, chunk));
            }
            state.next_chunk = next_chunk;
            state.in_flight += again.len();
        }
        for (number, chunk) in again {
            self.host.crash_point("produce.again");
            self.append(chunk, number);
        }
        let mut state = self.state.lock();
        self.close_left(&mut state);
        state.moving = false;
        // While it moved nobody else would have begun the next move: those appends may all have been refused by now.
        if state.in_flight == 0 {
            self.sort_out(&mut state);
        }
        drop(state);
        self.send_due();
    }

    /// Goes on over another stream whenever that would have more replicas: one that was left behind has come back, or another
    /// took its place.
    pub(crate) async fn keep_whole(self: Arc<Self>) {
        while !self.is_stopped() {
            let stream = self.state.lock().stream;
            self.target.ensembles.until_better(stream).await;
            self.leave(stream);
            tokio::time::sleep(REOPEN).await;
        }
    }

    /// Goes to another stream once nothing is under way on this one, if it is still on it.
    fn leave(self: &Arc<Self>, stream: StreamId) {
        let mut state = self.state.lock();
        if state.stream != stream || state.moving || state.displaced || state.stopped {
            return;
        }
        tracing::info!(%stream, "the lane goes on over a stream with more replicas");
        state.displaced = true;
        if state.in_flight == 0 {
            self.sort_out(&mut state);
        }
    }

    /// Streams that were left and of which everything has its result are closed: what nothing names in them is garbage then, and
    /// a session may not have many.
    fn close_left(self: &Arc<Self>, state: &mut State) {
        let floor = state.commits.floor();
        while let Some((stream, _)) = state.left.pop_front_if(|(_, end)| *end <= floor) {
            let lane = Arc::clone(self);
            self.spawner.spawn("lane.close", async move {
                for failed in 0_u32.. {
                    if lane.is_stopped() {
                        return;
                    }
                    let close = Command::CloseStream(CloseStream { stream });
                    match lane.target.session.propose(close).await {
                        Ok(_) => return,
                        Err(error) if failed.is_multiple_of(SAY_EVERY) => {
                            tracing::warn!(%error, %stream, failed, "a stream is not closed yet");
                        }
                        Err(_) => {}
                    }
                    tokio::time::sleep(REOPEN).await;
                }
            });
        }
    }

    /// Another stream of this lane; `None` once the lane has stopped.
    async fn open_stream(self: &Arc<Self>) -> Option<StreamId> {
        for failed in 0_u32.. {
            if self.is_stopped() {
                break;
            }
            match self.target.session.open_stream(self.target.lane, &*self.target.ensembles).await {
                Ok(stream) => return Some(stream),
                Err(error) if failed.is_multiple_of(SAY_EVERY) => {
                    tracing::warn!(%error, failed, "no stream could be opened; again until it can");
                }
                Err(_) => {}
            }
            tokio::time::sleep(REOPEN).await;
        }
        None
    }

    /// The same batches, sealed for another place.
    fn moved(&self, chunk: &Chunk, stream: StreamId, number: u64) -> Chunk {
        let bytes = usize::try_from(chunk.frame().len()).unwrap_or(usize::MAX).min(self.max_chunk_bytes);
        chunk.resealed(self.pool.take(bytes), self.max_chunk_bytes, stream, number)
    }

    /// Proposes what is due. One thread at a time does it, so that numbers go out in their order.
    pub(crate) fn propose_due(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.proposing {
            return;
        }
        state.proposing = true;
        while !state.pausing && !state.stopped {
            let floor = state.commits.floor();
            let Some((number, _)) = state.commits.propose() else { break };
            let Some(line) = state.commits.chunk_mut(number) else { break };
            line.proposed = true;
            let Some(durable) = line.durable else { break };
            let (chunk, class_epochs) = (line.sealed.chunk.clone(), Arc::clone(&line.sealed.class_epochs));
            let early = self.host.sabotaged("ack-before-commit");
            if early {
                tell_early(&line.sealed);
            }
            // Who pushes batches needs the lock, and a large chunk's command takes a while to make.
            drop(state);
            if early {
                self.host.sabotage_lag();
            }
            self.propose(number, floor, command_of(&chunk, &class_epochs, durable));
            state = self.state.lock();
        }
        state.proposing = false;
    }

    fn propose(self: &Arc<Self>, number: u64, floor: u64, mut commit: CommitChunk) {
        if self.host.sabotaged("repeat-sequenced-twice") {
            // Without a producer nothing is a repeat.
            for batch in commit.partitions.iter_mut().flat_map(|partition| &mut partition.batches) {
                (batch.producer_id, batch.producer_epoch, batch.base_sequence) = (-1, -1, -1);
            }
        }
        let command = Command::CommitChunk(commit);
        let envelope = Envelope::new(self.target.session.id(), self.target.lane, number, floor, command);
        let lane = Arc::clone(self);
        let started = Instant::now();
        self.target.quorum.propose_with(envelope, move |answer| {
            lane.metrics.stage("commit", started.elapsed());
            lane.host.crash_point("produce.after_commit");
            lane.answered(number, verdict(answer));
        });
    }

    fn answered(self: &Arc<Self>, number: u64, verdict: Verdict) {
        let mut state = self.state.lock();
        let answer = match &verdict {
            Verdict::Sequenced(_) => Answer::Settled,
            Verdict::Open(answer) => *answer,
            Verdict::Fenced => {
                tracing::warn!(number, "the commit of a chunk was fenced: this lane stops");
                // Before anybody can find the lane stopped and take the broker for ill.
                self.target.over.send_replace(Some(FENCED.to_owned()));
                return self.stop(state);
            }
            Verdict::Over(why) => {
                tracing::error!(why, number, "the commit of a chunk failed: this lane stops");
                return self.stop(state);
            }
        };
        if state.stopped {
            return;
        }
        if answer == Answer::Elsewhere {
            state.displaced = true;
        }
        let (settled, pause) = state.commits.answered(number, answer);
        self.close_left(&mut state);
        if pause {
            state.pausing = true;
            let lane = Arc::clone(self);
            self.spawner.spawn("lane.again", async move {
                tokio::time::sleep(RETRY).await;
                lane.state.lock().pausing = false;
                lane.propose_due();
            });
            if state.in_flight == 0 {
                self.sort_out(&mut state);
            }
        }
        drop(state);
        if let (Some(line), Verdict::Sequenced(result)) = (settled, verdict) {
            answer_all(&line.sealed, &result);
        }
        self.propose_due();
        self.send_due();
    }

    /// Takes nothing more, and answers all that waits: the broker's life is over.
    pub(crate) fn end(&self) {
        let state = self.state.lock();
        if !state.stopped {
            self.stop(state);
        }
    }

    fn stop(&self, mut state: MutexGuard<'_, State>) {
        state.stopped = true;
        let unsent: Vec<Slot> = state.take_unsent().collect();
        let lines = state.commits.drain();
        drop(state);
        refuse(unsent, &stopped());
        for line in lines {
            refuse(line.sealed.slots, &if line.proposed { undecided() } else { stopped() });
        }
    }
}

fn verdict(answer: Result<CommandResult, ProposeError>) -> Verdict {
    match answer {
        Ok(CommandResult::Chunk(result)) if result.error_code == 0 => Verdict::Sequenced(result),
        Ok(CommandResult::Refused(refused)) => match RefusalKind::try_from(refused.kind) {
            Ok(RefusalKind::Gap | RefusalKind::TooManyUnanswered) => Verdict::Open(Answer::Again),
            Ok(RefusalKind::StreamClosed) => Verdict::Open(Answer::Elsewhere),
            Ok(RefusalKind::Fenced | RefusalKind::UnknownSession) => Verdict::Fenced,
            _ => Verdict::Over(format!("{refused:?}")),
        },
        Err(ProposeError::NotLeader { .. } | ProposeError::Unknown { .. } | ProposeError::Busy { .. }) => {
            Verdict::Open(Answer::Again)
        }
        other => Verdict::Over(format!("{other:?}")),
    }
}

/// Broken on purpose.
fn tell_early(sealed: &SealedChunk) {
    for slot in &sealed.slots {
        let early = Outcome { base_offset: 0, ..Outcome::refused(ErrorCode::None, None) };
        slot.waiting.set(slot.index, early);
        slot.waiting.left.store(0, Ordering::Release);
        slot.waiting.done.notify_one();
    }
}

pub(crate) fn stopped() -> Outcome {
    Outcome::refused(ErrorCode::KafkaStorageError, Some("this broker can no longer write".to_owned()))
}

/// For what may be found committed later: no client may take it for refused.
fn undecided() -> Outcome {
    Outcome::refused(
        ErrorCode::RequestTimedOut,
        Some("this broker stopped before it knew the outcome".to_owned()),
    )
}

fn refuse(slots: impl IntoIterator<Item = Slot>, outcome: &Outcome) {
    for slot in slots {
        slot.waiting.answer(slot.index, outcome.clone());
    }
}

fn command_of(chunk: &Chunk, class_epochs: &ClassEpochs, durable: Durable) -> CommitChunk {
    let is_object = matches!(durable, Durable::Object(_));
    // Where the next partition's batches begin, if the chunk is an object: one after the other, in this order.
    let mut end = 0;
    let partitions = chunk.partitions().map(|partition| {
        let position = end;
        end += partition.batches.iter().map(|batch| u64::from(batch.bytes)).sum::<u64>();
        let batches =
            (partition.first_ordinal..).zip(partition.batches).map(|(ordinal, batch)| CommitBatch {
                ordinal,
                record_count: batch.info.record_count,
                max_timestamp_ms: batch.info.max_timestamp_ms,
                producer_id: batch.info.producer_id,
                producer_epoch: i32::from(batch.info.producer_epoch),
                base_sequence: batch.info.base_sequence,
                flags: batch.info.flags,
                size_bytes: batch.bytes,
            });
        CommitPartition {
            topic_id: partition.key.topic_id,
            partition: partition.key.partition,
            class_epoch: class_epochs.get(&partition.key).copied().unwrap_or(0),
            batches: batches.collect(),
            position: if is_object { position } else { 0 },
        }
    });
    let partitions = partitions.collect();
    match durable {
        Durable::Wal(acked) => CommitChunk {
            stream: chunk.stream(),
            chunk: chunk.number(),
            acknowledged: acked.acknowledged,
            partitions,
            object: None,
        },
        Durable::Object(placed) => CommitChunk {
            partitions,
            object: Some(ChunkObject {
                object: placed.object,
                store: placed.store,
                size_bytes: placed.size_bytes,
            }),
            ..CommitChunk::default()
        },
    }
}

/// The result lists batches in the order of the command, which is that of the chunk's ordinals.
fn answer_all(sealed: &SealedChunk, result: &ChunkResult) {
    let sections =
        sealed.chunk.partitions().flat_map(|partition| partition.batches.iter().map(|b| b.section));
    for (section, batch) in sections.zip(&result.batches) {
        let Some(slot) = sealed.slots.get(section as usize) else { continue };
        let error = ErrorCode::from_i16(i16::try_from(batch.error_code).unwrap_or(-1));
        let outcome = Outcome {
            error,
            base_offset: batch.base_offset,
            log_append_time_ms: batch.log_append_time_ms,
            log_start_offset: batch.log_start_offset,
            message: None,
        };
        slot.waiting.answer(slot.index, outcome);
    }
}
