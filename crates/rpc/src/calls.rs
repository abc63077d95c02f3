//! The calls of one peer and channel: what waits to be sent, and what waits for an answer. Pure; the line
//! (`crate::line`) holds it under a lock and runs what it returns outside.
//!
//! Invariants:
//! 1. Ids rise in the order of [`Calls::add`], and requests are given out in the order of their ids.
//! 2. A call is in `waiting` from `add` until it is taken out, once, by exactly one of: its answer, its deadline, its
//!    connection's end, the line's end. Whoever takes it out answers it.
//! 3. `Waiting::frame` is there until the request is given to a writer. While it is there, not one byte of the request
//!    has left this node, so the failure is [`CallError::NotSent`]; once it is gone, the request may have happened.
//! 4. A connection's end fails everything that was added before, sent or not, in the order of the calls: a caller that
//!    sends again what failed keeps its order.
//! 5. Bytes in the queue and the number of calls are bounded.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use crate::error::CallError;
use crate::frame::{Frame, Kind};
use crate::link::Batch;
use crate::metrics::ChannelMetrics;
use crate::stream::Taker;

/// What a call costs beyond its body.
const CALL_BYTES: usize = 256;

/// Places in the queue of calls that are over, at the least, before they are swept out.
const SPARE_PLACES: usize = 64;

type Callback = Box<dyn FnOnce(Result<Bytes, CallError>) + Send>;

/// Answers a call: once, whatever happens. Dropped, it answers [`CallError::Stopped`].
pub(crate) struct Done {
    callback: Option<Callback>,
    called: Instant,
    metrics: Arc<ChannelMetrics>,
}

impl Done {
    pub(crate) fn new(callback: Callback, metrics: Arc<ChannelMetrics>) -> Self {
        Self { callback: Some(callback), called: Instant::now(), metrics }
    }

    pub(crate) fn answer(mut self, result: Result<Bytes, CallError>) {
        if matches!(result, Ok(_) | Err(CallError::Refused { .. })) {
            self.metrics.latency.observe(self.called.elapsed().as_secs_f64());
        }
        self.run(result);
    }

    fn run(&mut self, result: Result<Bytes, CallError>) {
        if let Some(callback) = self.callback.take() {
            self.metrics.ended(&result);
            callback(result);
        }
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        self.run(Err(CallError::Stopped));
    }
}

/// Who hears of the answer.
pub(crate) enum To {
    Call(Done),
    Stream(Arc<Taker>),
}

impl To {
    pub(crate) fn fail(self, error: CallError) {
        match self {
            Self::Call(done) => done.answer(Err(error)),
            Self::Stream(taker) => taker.end(Err(error)),
        }
    }
}

pub(crate) struct Waiting {
    frame: Option<Frame>,
    to: To,
    deadline: Option<Instant>,
}

pub(crate) struct Limits {
    pub(crate) queue_bytes: usize,
    pub(crate) calls: usize,
}

pub(crate) struct Calls {
    limits: Limits,
    next_id: u64,
    waiting: BTreeMap<u64, Waiting>,
    queue: VecDeque<u64>,
    queued_bytes: usize,
    deadlines: BTreeSet<(Instant, u64)>,
    credits: BTreeMap<u64, u32>,
    cancels: VecDeque<u64>,
    closed: Option<CallError>,
}

/// A frame that the peer may not send, or `None` if the call is over already.
pub(crate) type Found<T> = Result<Option<T>, &'static str>;

impl Calls {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            next_id: 1,
            waiting: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            deadlines: BTreeSet::new(),
            credits: BTreeMap::new(),
            cancels: VecDeque::new(),
            closed: None,
        }
    }

    /// Queues a request; its id. `Err`: it was not taken, and `to` has to be told.
    pub(crate) fn add(
        &mut self,
        mut frame: Frame,
        to: To,
        deadline: Instant,
        now: Instant,
    ) -> Result<u64, (To, CallError)> {
        let cost = frame.body_bytes() + CALL_BYTES;
        let why = if let Some(closed) = &self.closed {
            closed.clone()
        } else if deadline <= now {
            CallError::NotSent("the deadline had passed".to_owned())
        } else if self.queued_bytes > 0 && self.queued_bytes + cost > self.limits.queue_bytes {
            CallError::NotSent(format!("{} bytes wait for this peer already", self.queued_bytes))
        } else if self.waiting.len() >= self.limits.calls {
            CallError::NotSent(format!("{} calls wait for this peer already", self.waiting.len()))
        } else {
            let id = self.next_id;
            self.next_id += 1;
            frame.id = id;
            self.queued_bytes += cost;
            self.queue.push_back(id);
            self.deadlines.insert((deadline, id));
            self.waiting.insert(id, Waiting { frame: Some(frame), to, deadline: Some(deadline) });
            return Ok(id);
        };
        Err((to, why))
    }

    /// Gives out what to send next. Returned are requests larger than the peer takes, to be told.
    pub(crate) fn fill(&mut self, batch: &mut Batch, max_body_bytes: usize) -> Vec<To> {
        let mut too_large = Vec::new();
        while !batch.is_full() {
            let Some(id) = self.cancels.pop_front() else { break };
            batch.push(Frame::bare(Kind::Cancel, id, 0));
        }
        while !batch.is_full() {
            let Some((id, credit)) = self.credits.pop_first() else { break };
            batch.push(Frame::bare(Kind::Credit, id, credit));
        }
        while !batch.is_full() {
            let Some(id) = self.queue.pop_front() else { break };
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let Some(frame) = waiting.frame.take() else { continue };
            self.queued_bytes -= frame.body_bytes() + CALL_BYTES;
            if frame.body_bytes() > max_body_bytes {
                too_large.extend(self.take(id).map(|waiting| waiting.to));
                continue;
            }
            if let To::Stream(taker) = &waiting.to {
                taker.opened();
                // A stream has a deadline for its opening only.
                if let Some(deadline) = waiting.deadline.take() {
                    self.deadlines.remove(&(deadline, id));
                }
            }
            batch.push(frame);
        }
        too_large
    }

    /// Takes a call out. What was not sent leaves the queue's bytes at once, its place there when it comes to the front.
    fn take(&mut self, id: u64) -> Option<Waiting> {
        let waiting = self.waiting.remove(&id)?;
        if let Some(frame) = &waiting.frame {
            self.queued_bytes -= frame.body_bytes() + CALL_BYTES;
            // Places of calls that are over must not heap up behind one that waits long.
            if self.queue.len() > 2 * self.waiting.len() + SPARE_PLACES {
                self.queue.retain(|id| self.waiting.contains_key(id));
            }
        }
        if let Some(deadline) = waiting.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        self.credits.remove(&id);
        Some(waiting)
    }

    fn check_sent(&self, id: u64) -> Result<(), &'static str> {
        if id >= self.next_id || self.waiting.get(&id).is_some_and(|waiting| waiting.frame.is_some()) {
            return Err("an answer to what was not asked");
        }
        Ok(())
    }

    /// The end of a call or a stream: takes it out.
    pub(crate) fn answered(&mut self, id: u64) -> Found<To> {
        self.check_sent(id)?;
        Ok(self.take(id).map(|waiting| waiting.to))
    }

    /// The taker of a stream that goes on.
    pub(crate) fn stream(&self, id: u64) -> Found<Arc<Taker>> {
        self.check_sent(id)?;
        match self.waiting.get(&id).map(|waiting| &waiting.to) {
            None => Ok(None),
            Some(To::Stream(taker)) => Ok(Some(Arc::clone(taker))),
            Some(To::Call(_)) => Err("a stream where a call was made"),
        }
    }

    /// The taker of a stream has room for more. False if the stream is over.
    pub(crate) fn grant(&mut self, id: u64, bytes: u32) -> bool {
        let open = self.waiting.contains_key(&id);
        if open {
            let credit = self.credits.entry(id).or_default();
            *credit = credit.saturating_add(bytes);
        }
        open
    }

    /// Nobody takes this stream any more. True if the peer has to hear of it.
    pub(crate) fn cancel(&mut self, id: u64) -> bool {
        let sent = self.take(id).is_some_and(|waiting| waiting.frame.is_none());
        if sent {
            self.cancels.push_back(id);
        }
        sent
    }

    /// Takes out what is over its deadline, and says how it fails.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<(To, CallError)> {
        let mut expired = Vec::new();
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            let Some(waiting) = self.take(id) else {
                self.deadlines.remove(&(deadline, id));
                continue;
            };
            let error = match waiting.frame {
                Some(_) => CallError::NotSent("the deadline passed before it could be sent".to_owned()),
                None => CallError::TimedOut,
            };
            expired.push((waiting.to, error));
        }
        while self.queue.front().is_some_and(|id| !self.waiting.contains_key(id)) {
            self.queue.pop_front();
        }
        expired
    }

    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// The connection ended, or none could be made: takes out everything, in the order of the calls.
    pub(crate) fn fail(&mut self, why: &str) -> Vec<(To, CallError)> {
        self.queue.clear();
        self.queued_bytes = 0;
        self.deadlines.clear();
        self.credits.clear();
        self.cancels.clear();
        let failed = std::mem::take(&mut self.waiting).into_values();
        let failed = failed.map(|waiting| {
            let error = match waiting.frame {
                Some(_) => CallError::NotSent(why.to_owned()),
                None => CallError::Lost(why.to_owned()),
            };
            (waiting.to, error)
        });
        failed.collect()
    }

    /// From now on every call fails with this.
    pub(crate) fn close(&mut self, error: CallError) {
        self.closed.get_or_insert(error);
    }

    pub(crate) fn has_queued(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }
}
