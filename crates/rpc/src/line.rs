//! The line to one peer on one channel: its calls, and the connection that carries them. One task a line.
//!
//! Owns: the [`Calls`] of one peer and channel, and at most one connection, made when the first call comes and kept from
//! then on.
//!
//! Invariants: those of [`crate::calls`], and
//! 1. A callback runs outside of the lock, never inside [`Line::call`], and on this crate's runtime.
//! 2. When a connection ends, its reader and writer have ended before its calls are failed, and those are failed before
//!    another connection is tried.
//!
//! Failure & retry: a connection that had lived for a second is made anew at once, then after 20 ms, doubling up to 1 s,
//! each with jitter. A call that comes meanwhile waits for the next attempt, whose failure is its own (`NotSent`): callers
//! that retry are held to the pace of the attempts. A refused handshake is retried as any other failure is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Conn;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::calls::{Calls, Done, Limits, To};
use crate::error::{CallError, Ended, FrameError, HandshakeError};
use crate::frame::{Frame, Head, Kind};
use crate::handshake::{self, Agreed};
use crate::link::{self, Batch, Flag, Link, Side};
use crate::metrics::ChannelMetrics;
use crate::rpc::Shared;
use crate::stream::Taker;
use crate::{Channel, Method};

const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(1);
/// A connection that has lived for as long was no failure.
const PROVEN: Duration = Duration::from_secs(1);
/// For a stream to go out; from then on it has no deadline.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct Line {
    shared: Arc<Shared>,
    metrics: Arc<ChannelMetrics>,
    node_id: i32,
    address: String,
    channel: Channel,
    /// Tells the peer which of its connections follow each other.
    id: u64,
    calls: Mutex<Calls>,
    /// The writer, or the line's task while there is none: something is queued.
    wake: Arc<Notify>,
    /// The keeper of deadlines: there is an earlier one.
    earlier: Notify,
    connected: AtomicBool,
    closed: Flag,
}

impl Line {
    /// A line and its task.
    pub(crate) fn start(shared: &Arc<Shared>, node_id: i32, address: &str, channel: Channel) -> Arc<Self> {
        let options = &shared.options;
        let limits = Limits { queue_bytes: options.max_queue_bytes, calls: options.max_calls };
        let line = Arc::new(Self {
            shared: Arc::clone(shared),
            metrics: Arc::clone(shared.metrics(channel)),
            node_id,
            address: address.to_owned(),
            channel,
            id: shared.host.random_u64(),
            calls: Mutex::new(Calls::new(limits)),
            wake: Arc::default(),
            earlier: Notify::new(),
            connected: AtomicBool::new(false),
            closed: Flag::default(),
        });
        shared.spawner.spawn("rpc-line", Arc::clone(&line).live());
        line
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    pub(crate) fn call(
        &self,
        method: Method,
        body: Vec<Bytes>,
        deadline: Instant,
        done: impl FnOnce(Result<Bytes, CallError>) + Send + 'static,
    ) {
        let done = Done::new(Box::new(done), Arc::clone(&self.metrics));
        self.add(Kind::Request, 0, method, body, deadline, To::Call(done));
    }

    pub(crate) fn stream(&self, method: Method, body: Vec<Bytes>) -> (u64, Arc<Taker>) {
        let window = self.shared.options.stream_window_bytes;
        let taker = Arc::new(Taker::new(window));
        let deadline = Instant::now() + OPEN_DEADLINE;
        let to = To::Stream(Arc::clone(&taker));
        (self.add(Kind::Open, window, method, body, deadline, to), taker)
    }

    /// The id, or 0 if it was not taken.
    fn add(
        &self,
        kind: Kind,
        argument: u32,
        method: Method,
        body: Vec<Bytes>,
        deadline: Instant,
        to: To,
    ) -> u64 {
        let frame = Frame { kind, service: method.service.0, method: method.method, id: 0, argument, body };
        let max = self.shared.options.max_message_bytes;
        let body_bytes = frame.body_bytes();
        let added = if body_bytes > max {
            Err((to, CallError::NotSent(format!("{body_bytes} bytes are more than the {max} of a message"))))
        } else {
            let mut calls = self.calls.lock();
            let first = calls.next_deadline();
            let added = calls.add(frame, to, deadline, Instant::now());
            self.metrics_of(&calls);
            drop(calls);
            if added.is_ok() && first.is_none_or(|first| deadline < first) {
                self.earlier.notify_one();
            }
            added
        };
        match added {
            Ok(id) => {
                self.wake.notify_one();
                id
            }
            Err((to, error)) => {
                // The caller may hold what its callback wants.
                self.shared.spawner.spawn("rpc-refused", async move { to.fail(error) });
                0
            }
        }
    }

    fn metrics_of(&self, calls: &Calls) {
        self.metrics.queued_bytes.set(calls.queued_bytes() as i64);
    }

    pub(crate) fn grant(&self, id: u64, bytes: u32) {
        if self.calls.lock().grant(id, bytes) {
            self.wake.notify_one();
        }
    }

    pub(crate) fn cancel(&self, id: u64) {
        if self.calls.lock().cancel(id) {
            self.wake.notify_one();
        }
    }

    /// No call is taken from now on; those that wait fail, sent ones as possibly done.
    pub(crate) fn close(&self, error: CallError) {
        self.calls.lock().close(error);
        self.closed.set();
    }

    async fn live(self: Arc<Self>) {
        tokio::select! {
            biased;
            () = self.closed.wait() => {}
            () = self.keep_deadlines() => {}
            () = self.keep_connected() => {}
        }
        self.connected.store(false, Ordering::Release);
        let stopped = self.shared.stopped.is_set();
        for (to, error) in self.calls.lock().fail("the peer was closed") {
            to.fail(if stopped { CallError::Stopped } else { error });
        }
    }

    async fn keep_deadlines(&self) {
        loop {
            let expired = {
                let mut calls = self.calls.lock();
                let expired = calls.expire(Instant::now());
                self.metrics_of(&calls);
                expired
            };
            for (to, error) in expired {
                to.fail(error);
            }
            let next = self.calls.lock().next_deadline();
            tokio::select! {
                biased;
                () = self.earlier.notified() => {}
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
            }
        }
    }

    async fn keep_connected(self: &Arc<Self>) {
        while !self.calls.lock().has_queued() {
            self.wake.notified().await;
        }
        let mut failures = 0_u32;
        let mut told = BTreeSet::new();
        loop {
            let wait = self.shared.options.connect_timeout;
            let made = timeout(wait, self.connect()).await.unwrap_or(Err(HandshakeError::TimedOut));
            match made {
                Ok((conn, agreed)) => {
                    tracing::info!(
                        node = self.node_id,
                        address = self.address,
                        channel = self.channel.name(),
                        "connected"
                    );
                    told.clear();
                    let began = Instant::now();
                    let why = self.run(conn, agreed).await;
                    tracing::info!(node = self.node_id, address = self.address, channel = self.channel.name(), %why, "disconnected");
                    self.fail(&why.to_string());
                    failures = if began.elapsed() >= PROVEN { 0 } else { failures + 1 };
                }
                Err(error) => {
                    self.shared.options.metrics.failed_handshake("out", error.name());
                    // Each kind of failure once, until a connection stands.
                    if told.insert(error.name()) {
                        tracing::warn!(node = self.node_id, address = self.address, channel = self.channel.name(), %error, "cannot connect");
                    }
                    self.fail(&format!("node {} at {}: {error}", self.node_id, self.address));
                    failures += 1;
                }
            }
            if failures > 0 {
                let longest = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(8)).min(LAST_RETRY);
                let half = longest.as_micros() as u64 / 2;
                sleep(Duration::from_micros(half + self.shared.host.random_u64() % (half + 1))).await;
            }
        }
    }

    fn fail(&self, why: &str) {
        let failed = {
            let mut calls = self.calls.lock();
            let failed = calls.fail(why);
            self.metrics_of(&calls);
            failed
        };
        for (to, error) in failed {
            to.fail(error);
        }
    }

    async fn connect(&self) -> Result<(Conn, Agreed), HandshakeError> {
        let host = &self.shared.host;
        let mut conn = host.connect(&self.address).await?;
        let identity = &self.shared.identity;
        let agreed = handshake::call(host, &mut conn, identity, self.node_id, self.channel, self.id).await?;
        Ok((conn, agreed))
    }

    async fn run(self: &Arc<Self>, conn: Conn, agreed: Agreed) -> Ended {
        let Agreed { max_send_bytes, sealer, opener, .. } = agreed;
        let link = Link::new(self.shared.pace(), Arc::clone(&self.metrics), Arc::clone(&self.wake));
        let _connected = Connected::new(self);
        let side = Arc::new(Outbound { line: Arc::clone(self), max_send_bytes });
        link::run(&self.shared.spawner, &Arc::new(link), conn, sealer, opener, &side).await
    }
}

/// Says so for as long as it lives.
struct Connected<'a>(&'a Line);

impl<'a> Connected<'a> {
    fn new(line: &'a Line) -> Self {
        line.connected.store(true, Ordering::Release);
        line.metrics.connected.inc();
        Self(line)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connected.store(false, Ordering::Release);
        self.0.metrics.connected.dec();
    }
}

/// The calling end of a connection.
struct Outbound {
    line: Arc<Line>,
    max_send_bytes: usize,
}

impl Side for Outbound {
    type Permit = ();

    async fn admit(&self, head: &Head) -> Result<(), FrameError> {
        match head.kind {
            Kind::Answer | Kind::Refused | Kind::Part | Kind::End => Ok(()),
            _ => Err(FrameError::Rule("a frame that only a caller sends")),
        }
    }

    fn frame(self: &Arc<Self>, head: Head, body: Bytes, (): ()) -> Result<(), FrameError> {
        if head.kind == Kind::Part {
            let taker = self.line.calls.lock().stream(head.id).map_err(FrameError::Rule)?;
            return taker.map_or(Ok(()), |taker| taker.part(body).map_err(FrameError::Rule));
        }
        let to = self.line.calls.lock().answered(head.id).map_err(FrameError::Rule)?;
        // None: it was not waited for any longer.
        let Some(to) = to else { return Ok(()) };
        match (head.kind, to) {
            (Kind::Answer, To::Call(done)) => done.answer(Ok(body)),
            (Kind::Answer, To::Stream(taker)) => taker.only(body),
            (Kind::End, To::Stream(taker)) => taker.end(Ok(())),
            (Kind::Refused, to) => to.fail(CallError::Refused {
                code: u16::try_from(head.argument).unwrap_or(u16::MAX),
                message: String::from_utf8_lossy(&body).into_owned(),
            }),
            (_, to) => {
                to.fail(CallError::Lost("the peer broke the rules".to_owned()));
                return Err(FrameError::Rule("the end of a stream where a call was made"));
            }
        }
        Ok(())
    }

    fn fill(&self, batch: &mut Batch) {
        let too_large = {
            let mut calls = self.line.calls.lock();
            let too_large = calls.fill(batch, self.max_send_bytes);
            self.line.metrics_of(&calls);
            too_large
        };
        for to in too_large {
            to.fail(CallError::NotSent(format!("the peer takes at most {} bytes", self.max_send_bytes)));
        }
    }

    fn written(&self) {}
}
