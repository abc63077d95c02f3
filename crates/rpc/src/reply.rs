//! What a service answers with: [`Reply`] and [`Outgoing`].

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::{FrameError, Refusal, StreamError, codes};
use crate::frame::{Frame, Kind, parts_bytes};
use crate::inbound::{Held, Inbound};
use crate::link::Flag;
use crate::stream::charge;

/// Answers one request, once. Dropped, it refuses with [`codes::DROPPED`].
pub struct Reply {
    inbound: Arc<Inbound>,
    id: u64,
    stream: Option<Arc<Given>>,
    held: Option<Held>,
    open: bool,
}

impl Reply {
    pub(crate) fn new(inbound: Arc<Inbound>, id: u64, held: Held) -> Self {
        Self { inbound, id, stream: None, held: Some(held), open: true }
    }

    /// The caller has asked for a stream.
    pub(crate) fn be_stream(&mut self, given: Arc<Given>) {
        self.stream = Some(given);
    }

    /// The answer, or the no. To a caller that asked for a stream, an answer is its only part.
    pub fn send(mut self, result: Result<Vec<Bytes>, Refusal>) {
        self.finish(result);
    }

    /// Answers part by part. A caller that made a call and not a stream is refused with [`codes::NOT_A_STREAM`].
    pub fn into_stream(mut self) -> Outgoing {
        self.open = false;
        self.held = None;
        let given = self.stream.take().unwrap_or_else(|| {
            self.inbound
                .refuse(self.id, Refusal::new(codes::NOT_A_STREAM, "the service answers with a stream"));
            let given = Given::new(1);
            given.cancel();
            Arc::new(given)
        });
        Outgoing { inbound: Arc::clone(&self.inbound), id: self.id, given, open: true }
    }

    /// True when an answer would reach nobody: the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.inbound.is_closed()
    }

    fn finish(&mut self, result: Result<Vec<Bytes>, Refusal>) {
        self.open = false;
        if self.stream.take().is_some() {
            self.inbound.end_stream(self.id);
        }
        let max = self.inbound.max_send_bytes;
        match result {
            Ok(body) if parts_bytes(&body) > max => {
                let bytes = parts_bytes(&body);
                let caller = self.inbound.caller;
                tracing::error!(
                    node = caller.node_id,
                    bytes,
                    max,
                    "an answer is larger than a message may be"
                );
                let message = format!("the answer has {bytes} bytes, a message at most {max}");
                self.inbound.refuse(self.id, Refusal::new(codes::TOO_LARGE, message));
            }
            Ok(body) => self.inbound.push(Frame::with_body(Kind::Answer, self.id, body)),
            Err(refusal) => self.inbound.refuse(self.id, refusal),
        }
        self.held = None;
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.open {
            self.finish(Err(Refusal::new(codes::DROPPED, "the service dropped the request")));
        }
    }
}

/// What a stream may still send.
pub(crate) struct Given {
    window: u64,
    credit: Mutex<u64>,
    told: Notify,
    cancelled: Flag,
}

impl Given {
    pub(crate) fn new(window: u32) -> Self {
        let window = u64::from(window);
        Self { window, credit: Mutex::new(window), told: Notify::new(), cancelled: Flag::default() }
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.set();
        self.told.notify_one();
    }

    pub(crate) fn grant(&self, bytes: u32) -> Result<(), FrameError> {
        let mut credit = self.credit.lock();
        *credit += u64::from(bytes);
        if *credit > self.window {
            return Err(FrameError::Rule("more credit than the window"));
        }
        drop(credit);
        self.told.notify_one();
        Ok(())
    }

    fn take(&self, charge: u64) -> bool {
        let mut credit = self.credit.lock();
        let enough = *credit >= charge;
        if enough {
            *credit -= charge;
        }
        enough
    }
}

/// The sending end of a stream. Dropped without [`Outgoing::end`], the taker hears [`codes::DROPPED`]: a stream that
/// breaks off never looks whole.
pub struct Outgoing {
    inbound: Arc<Inbound>,
    id: u64,
    given: Arc<Given>,
    open: bool,
}

impl Outgoing {
    /// Sends a part as soon as the taker has room for it. Cancel-safe: a cancelled call has sent nothing.
    pub async fn send(&mut self, part: Vec<Bytes>) -> Result<(), StreamError> {
        let bytes = parts_bytes(&part);
        if bytes > self.inbound.max_send_bytes {
            return Err(StreamError::TooLarge { bytes });
        }
        let charge = charge(bytes, self.given.window);
        self.inbound.wait_room().await;
        loop {
            if self.given.cancelled.is_set() {
                return Err(StreamError::Gone);
            }
            if self.given.take(charge) {
                self.inbound.push(Frame::with_body(Kind::Part, self.id, part));
                return Ok(());
            }
            self.given.told.notified().await;
        }
    }

    /// Waits until nobody takes the stream any more.
    pub async fn gone(&self) {
        self.given.cancelled.wait().await;
    }

    /// True when nobody takes the stream any more.
    pub fn is_gone(&self) -> bool {
        self.given.cancelled.is_set()
    }

    /// This was all.
    pub fn end(mut self) {
        self.close(Ok(()));
    }

    /// There is no more, for this reason.
    pub fn fail(mut self, refusal: Refusal) {
        self.close(Err(refusal));
    }

    fn close(&mut self, end: Result<(), Refusal>) {
        self.open = false;
        if !self.inbound.end_stream(self.id) {
            // Cancelled, or the connection has ended.
            return;
        }
        match end {
            Ok(()) => self.inbound.push(Frame::bare(Kind::End, self.id, 0)),
            Err(refusal) => self.inbound.refuse(self.id, refusal),
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if self.open {
            self.close(Err(Refusal::new(codes::DROPPED, "the service dropped the stream")));
        }
    }
}
