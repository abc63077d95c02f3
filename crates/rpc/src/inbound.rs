//! The called end of a connection: requests to services, answers to the writer. The rules stand in [`crate::serve`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use crate::Caller;
use crate::error::{Ended, FrameError, Refusal, codes};
use crate::frame::{Frame, Head, Kind};
use crate::handshake::Agreed;
use crate::link::{Batch, Flag, Link, Side};
use crate::metrics::ChannelMetrics;
use crate::reply::{Given, Reply};
use crate::rpc::Shared;

/// Answers of one connection that wait, before no more of its requests are read.
pub(crate) const OUTBOX_BYTES: usize = 16 << 20;
/// What a frame costs beyond its body, here and of the inbound bytes.
const FRAME_BYTES: usize = 256;
const MAX_STREAMS: usize = 1024;
/// The largest window that a taker may give.
pub(crate) const MAX_WINDOW_BYTES: u32 = 256 << 20;
const MAX_REFUSAL_BYTES: usize = 1000;

/// The called end of a connection.
pub(crate) struct Inbound {
    pub(crate) shared: Arc<Shared>,
    pub(crate) metrics: Arc<ChannelMetrics>,
    pub(crate) link: Arc<Link>,
    pub(crate) caller: Caller,
    pub(crate) max_send_bytes: usize,
    /// The id of the last request; the reader's alone.
    last_id: AtomicU64,
    out: Mutex<Outbox>,
    /// Bytes that the writer has taken out and not written; the writer's alone.
    given: AtomicUsize,
    /// There may be room in the outbox.
    room: Notify,
    pub(crate) finished: Flag,
}

#[derive(Default)]
struct Outbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    streams: BTreeMap<u64, Arc<Given>>,
    closed: bool,
}

impl Inbound {
    pub(crate) fn new(shared: &Arc<Shared>, agreed: &Agreed) -> Self {
        let metrics = Arc::clone(shared.metrics(agreed.channel));
        Self {
            link: Arc::new(Link::new(shared.pace(), Arc::clone(&metrics), Arc::default())),
            shared: Arc::clone(shared),
            metrics,
            caller: Caller {
                node_id: agreed.node_id,
                channel: agreed.channel,
                connection: shared.server.last_connection.fetch_add(1, Ordering::Relaxed) + 1,
            },
            max_send_bytes: agreed.max_send_bytes,
            last_id: AtomicU64::new(0),
            out: Mutex::default(),
            given: AtomicUsize::new(0),
            room: Notify::new(),
            finished: Flag::default(),
        }
    }

    pub(crate) fn push(&self, frame: Frame) {
        let bytes = frame.body_bytes() + FRAME_BYTES;
        {
            let mut out = self.out.lock();
            if out.closed {
                return;
            }
            out.bytes += bytes;
            out.frames.push_back(frame);
            let all = self.count_outbound(bytes as isize);
            if all > self.shared.options.max_outbound_bytes && out.bytes > OUTBOX_BYTES {
                self.link.end(Ended::Here("it does not take its answers, and they fill the memory"));
            }
        }
        self.link.wake.notify_one();
    }

    /// Adds to the bytes of all connections; what they are now.
    fn count_outbound(&self, bytes: isize) -> usize {
        let all = self.shared.server.outbound_bytes.fetch_add(bytes as usize, Ordering::Relaxed);
        self.shared.options.metrics.outbound_bytes.inc_by(bytes as i64);
        all.wrapping_add(bytes as usize)
    }

    pub(crate) fn refuse(&self, id: u64, refusal: Refusal) {
        let mut message = refusal.message.into_bytes();
        message.truncate(MAX_REFUSAL_BYTES.min(self.max_send_bytes));
        let mut frame = Frame::with_body(Kind::Refused, id, vec![message.into()]);
        frame.argument = refusal.code.into();
        self.push(frame);
    }

    pub(crate) fn close(&self) {
        let mut out = self.out.lock();
        out.closed = true;
        let bytes = std::mem::take(&mut out.bytes);
        let (frames, streams) = (std::mem::take(&mut out.frames), std::mem::take(&mut out.streams));
        drop(out);
        self.count_outbound(-(bytes as isize));
        drop(frames);
        for stream in streams.values() {
            stream.cancel();
        }
        self.room.notify_waiters();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.out.lock().closed
    }

    /// The stream is over; false if it was already.
    pub(crate) fn end_stream(&self, id: u64) -> bool {
        self.out.lock().streams.remove(&id).is_some()
    }

    pub(crate) async fn wait_room(&self) {
        loop {
            let mut told = std::pin::pin!(self.room.notified());
            told.as_mut().enable();
            {
                let out = self.out.lock();
                if out.bytes < OUTBOX_BYTES || out.closed {
                    return;
                }
            }
            told.await;
        }
    }

    fn request(self: &Arc<Self>, head: &Head, body: Bytes, held: Held) -> Result<(), FrameError> {
        if head.id <= self.last_id.swap(head.id, Ordering::Relaxed) {
            return Err(FrameError::Rule("a request out of order"));
        }
        let mut reply = Reply::new(Arc::clone(self), head.id, held);
        if head.kind == Kind::Open {
            if head.argument == 0 || head.argument > MAX_WINDOW_BYTES {
                return Err(FrameError::Rule("a window of no bytes or too many"));
            }
            let given = Arc::new(Given::new(head.argument));
            let mut out = self.out.lock();
            if out.streams.len() >= MAX_STREAMS {
                drop(out);
                reply.send(Err(Refusal::new(codes::BUSY, "too many streams of this connection are open")));
                return Ok(());
            }
            out.streams.insert(head.id, Arc::clone(&given));
            drop(out);
            reply.be_stream(given);
        }
        let service = self.shared.server.services.read().get(&head.service).cloned();
        match service {
            Some(service) => service.request(self.caller, head.method, body, reply),
            None => {
                let message = format!("no service {} here, yet", head.service);
                reply.send(Err(Refusal::new(codes::NO_SERVICE, message)));
            }
        }
        Ok(())
    }
}

/// Bytes of the channel's budget.
pub(crate) struct Held {
    bytes: usize,
    metrics: Arc<ChannelMetrics>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.inbound_bytes.dec_by(self.bytes as i64);
    }
}

impl Side for Inbound {
    type Permit = Option<Held>;

    async fn admit(&self, head: &Head) -> Result<Option<Held>, FrameError> {
        match head.kind {
            Kind::Request | Kind::Open => {}
            Kind::Credit | Kind::Cancel => return Ok(None),
            _ => return Err(FrameError::Rule("a frame that only a service sends")),
        }
        let server = &self.shared.server;
        let bytes = (head.body_bytes + FRAME_BYTES).min(server.budget_bytes);
        let budget = &server.budgets[self.caller.channel as usize];
        if budget.available_permits() < bytes || self.out.lock().bytes >= OUTBOX_BYTES {
            self.metrics.stops.inc();
        }
        self.wait_room().await;
        let acquired = Arc::clone(budget).acquire_many_owned(bytes as u32).await;
        let permit = acquired.map_err(|_| FrameError::Rule("stopped"))?;
        self.metrics.inbound_bytes.inc_by(bytes as i64);
        Ok(Some(Held { bytes, metrics: Arc::clone(&self.metrics), _permit: permit }))
    }

    fn frame(self: &Arc<Self>, head: Head, body: Bytes, held: Option<Held>) -> Result<(), FrameError> {
        if let Some(held) = held {
            return self.request(&head, body, held);
        }
        if head.id > self.last_id.load(Ordering::Relaxed) {
            return Err(FrameError::Rule("credit for what was not asked"));
        }
        let given = {
            let mut out = self.out.lock();
            if head.kind == Kind::Cancel {
                out.streams.remove(&head.id)
            } else {
                out.streams.get(&head.id).cloned()
            }
        };
        // None: the stream is over already.
        let Some(given) = given else { return Ok(()) };
        if head.kind == Kind::Cancel {
            given.cancel();
            Ok(())
        } else {
            given.grant(head.argument)
        }
    }

    fn fill(&self, batch: &mut Batch) {
        let mut out = self.out.lock();
        let mut given = 0;
        while !batch.is_full() {
            let Some(frame) = out.frames.pop_front() else { break };
            given += frame.body_bytes() + FRAME_BYTES;
            batch.push(frame);
        }
        self.given.fetch_add(given, Ordering::Relaxed);
    }

    fn written(&self) {
        let given = self.given.swap(0, Ordering::Relaxed);
        let mut out = self.out.lock();
        if out.closed || given == 0 {
            return;
        }
        let was_full = out.bytes >= OUTBOX_BYTES;
        out.bytes -= given;
        let is_full = out.bytes >= OUTBOX_BYTES;
        drop(out);
        self.count_outbound(-(given as isize));
        if was_full && !is_full {
            self.room.notify_waiters();
        }
    }
}
