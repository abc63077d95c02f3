//! Appends: taken into the stream's state machine, handed to its replicas in order, told in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::stream::{Answer, Stream};
use super::{Entry, Handle, Shared};
use crate::{AppendDone, Chunk, WalError};

/// A sabotage: a chunk is acknowledged by one replica, and said to be by all.
const ONE_SUFFICES: &str = "quorum-of-one";

/// What is under way in a stream.
pub(super) struct Writing {
    stream: Stream,
    /// Taken and not told, in order.
    waiting: VecDeque<(Chunk, AppendDone, Instant)>,
    /// Taken and not handed to the replicas, with whom it is for.
    to_send: VecDeque<(Chunk, u32)>,
    is_sending: bool,
    is_telling: bool,
    /// In the list of streams that the clock looks at.
    is_watched: bool,
    /// Members whose leaving was logged.
    reported: u32,
}

impl Shared {
    /// Makes the state machine of a stream that this node begins to write.
    fn begin(&self, entry: &Arc<Entry>) -> Writing {
        let members: Vec<Option<Arc<Handle>>> =
            entry.ensemble.iter().map(|directory| self.handle(*directory).ok()).collect();
        let write_quorum = if self.host.sabotaged(ONE_SUFFICES) { 1 } else { entry.write_quorum };
        let mut stream = Stream::new(members.len(), write_quorum, self.options.limits);
        for (member, handle) in members.iter().enumerate() {
            if handle.is_none() {
                stream.lacks(member, "nobody knows where it is", self.clock.now_ms());
            }
        }
        // Only ever set here, under the lock of `writing`.
        let _ = entry.members.set(members);
        let mut streams = self.streams.write();
        if streams.known.contains_key(&entry.id) && !entry.is_closed.load(Ordering::Acquire) {
            streams.written.push(Arc::clone(entry));
        }
        Writing {
            stream,
            waiting: VecDeque::new(),
            to_send: VecDeque::new(),
            is_sending: false,
            is_telling: false,
            is_watched: false,
            reported: 0,
        }
    }

    pub(super) fn append(self: &Arc<Self>, chunk: Chunk, done: AppendDone) {
        let refusal = match self.entry(chunk.stream()) {
            Some(entry) if !entry.is_closed.load(Ordering::Acquire) => match self.take(&entry, chunk, done) {
                Ok(()) => {
                    self.send(&entry);
                    return;
                }
                Err((error, done)) => {
                    self.settle(&entry);
                    (error, done)
                }
            },
            _ => (WalError::Closed, done),
        };
        let (error, done) = refusal;
        done(Err(error));
    }

    /// Enters a chunk, or says why it is not taken.
    fn take(
        self: &Arc<Self>,
        entry: &Arc<Entry>,
        chunk: Chunk,
        done: AppendDone,
    ) -> Result<(), (WalError, AppendDone)> {
        let bytes = u64::from(chunk.frame().len());
        if bytes > self.options.max_chunk_bytes as u64 {
            let max = self.options.max_chunk_bytes;
            return Err((WalError::TooLarge(format!("a chunk of {bytes} bytes, {max} at most")), done));
        }
        let mut guard = entry.writing.lock();
        let writing = guard.get_or_insert_with(|| self.begin(entry));
        match writing.stream.append(chunk.number(), bytes, self.clock.now_ms()) {
            Ok(members) => {
                writing.to_send.push_back((chunk.clone(), members));
                writing.waiting.push_back((chunk, done, Instant::now()));
                if !std::mem::replace(&mut writing.is_watched, true) {
                    self.clock.watch(entry);
                }
                Ok(())
            }
            Err(error) => {
                if error == WalError::Full {
                    self.metrics.full.inc();
                }
                Err((error, done))
            }
        }
    }

    /// Hands to the replicas what waits, in order, whoever comes: one does it for all.
    fn send(self: &Arc<Self>, entry: &Arc<Entry>) {
        let Some(members) = entry.members.get() else { return };
        let mut is_ours = false;
        loop {
            let (chunk, to) = {
                let mut guard = entry.writing.lock();
                let Some(writing) = guard.as_mut() else { return };
                if !is_ours && std::mem::replace(&mut writing.is_sending, true) {
                    return;
                }
                is_ours = true;
                match writing.to_send.pop_front() {
                    Some((chunk, to)) => (chunk, to & writing.stream.live()),
                    None => {
                        writing.is_sending = false;
                        return;
                    }
                }
            };
            for (member, handle) in members.iter().enumerate() {
                let Some(handle) = handle.as_ref().filter(|_| to & (1 << member) != 0) else { continue };
                let number = chunk.number();
                let (shared, entry) = (Arc::clone(self), Arc::clone(entry));
                handle.replica.append(
                    chunk.clone(),
                    Box::new(move |result| {
                        let answer = answer_of(number, result.map(|_| ()));
                        if let Some(writing) = entry.writing.lock().as_mut() {
                            writing.stream.answer(member, number, answer, shared.clock.now_ms());
                        }
                        shared.settle(&entry);
                    }),
                );
            }
        }
    }

    /// Draws the consequences of what the state machine decided: logs who was left behind, tells callers in order.
    fn settle(self: &Arc<Self>, entry: &Arc<Entry>) {
        let mut is_ours = false;
        loop {
            let (chunk, done, result, began) = {
                let mut guard = entry.writing.lock();
                let Some(writing) = guard.as_mut() else { return };
                self.report(entry, writing);
                if !is_ours && std::mem::replace(&mut writing.is_telling, true) {
                    return;
                }
                is_ours = true;
                let mut told = writing.stream.take_told();
                if self.host.sabotaged(ONE_SUFFICES)
                    && let Some((_, Ok(acked))) = &mut told
                {
                    acked.acknowledged = (1 << entry.ensemble.len()) - 1;
                }
                match told.and_then(|(_, result)| Some((writing.waiting.pop_front()?, result))) {
                    Some(((chunk, done, began), result)) => (chunk, done, result, began),
                    None => {
                        writing.is_telling = false;
                        return;
                    }
                }
            };
            match &result {
                Ok(_) => {
                    self.metrics.append_latency.observe(began.elapsed().as_secs_f64());
                    self.remember(entry, chunk);
                }
                Err(WalError::Full | WalError::TooLarge(_)) => _ = self.metrics.full.inc(),
                Err(_) => _ = self.metrics.broken_appends.inc(),
            }
            done(result);
        }
    }

    fn report(&self, entry: &Arc<Entry>, writing: &mut Writing) {
        let live = writing.stream.live();
        let before = entry.live.swap(live, Ordering::AcqRel);
        let breaks = writing.stream.is_broken() && !entry.is_closed.load(Ordering::Acquire);
        if before == live && !breaks {
            return;
        }
        for (member, directory) in entry.ensemble.iter().enumerate() {
            let bit = 1 << member;
            let Some(left) = writing.stream.left(member).filter(|_| writing.reported & bit == 0) else {
                continue;
            };
            writing.reported |= bit;
            self.metrics.left_behind(left.is_slow);
            let why = &left.why;
            tracing::warn!(stream = %entry.id, %directory, %why, "a WAL replica was left behind");
            let handle = entry.members.get().and_then(|members| members[member].as_ref());
            if let Some(handle) = handle.filter(|_| left.is_slow) {
                *handle.suspect_until.lock() = Some(Instant::now() + self.options.suspect);
            }
        }
        if writing.stream.is_broken() && !entry.is_closed.swap(true, Ordering::AcqRel) {
            self.metrics.broken_streams.inc();
            tracing::warn!(stream = %entry.id, "fewer than a write quorum are left: the stream is closed");
        }
        self.changed.send_modify(|count| *count += 1);
    }

    /// Keeps a chunk for this node's readers, unless a replica beside it does.
    fn remember(&self, entry: &Entry, chunk: Chunk) {
        let live = entry.live.load(Ordering::Acquire);
        let members = entry.members.get().map_or(&[][..], Vec::as_slice);
        let is_beside = members.iter().enumerate().any(|(member, handle)| {
            live & (1 << member) != 0 && handle.as_ref().is_some_and(|handle| handle.replica.is_local())
        });
        if !is_beside {
            let mut memory = self.memory.lock();
            memory.insert(chunk);
            self.metrics.memory_bytes.set(i64::try_from(memory.bytes()).unwrap_or(i64::MAX));
        }
    }

    /// Leaves behind who is late, in a stream that the clock watches. Says whether to go on watching it.
    pub(super) fn expire(self: &Arc<Self>, entry: &Arc<Entry>) -> bool {
        let goes_on = {
            let mut guard = entry.writing.lock();
            let Some(writing) = guard.as_mut() else { return false };
            writing.stream.expire(self.clock.now_ms());
            writing.is_watched = writing.stream.waits();
            writing.is_watched
        };
        self.settle(entry);
        goes_on
    }
}

/// What an answer means for the replica's standing.
fn answer_of(number: u64, result: Result<(), WalError>) -> Answer {
    match result {
        Ok(()) => Answer::Acknowledged,
        Err(WalError::Full) => Answer::Full,
        Err(WalError::TooLarge(why)) => Answer::TooLarge(why),
        Err(WalError::Gap { expected }) if expected <= number => Answer::Gap,
        Err(error) => Answer::Failed(error.to_string()),
    }
}
