//! Connections from peers: accepted, proved, and their requests given to services.
//!
//! Owns: the listener, every connection that a peer made to this node, the bytes of requests that came and are not
//! answered, and the answers that wait to be written.
//!
//! Invariants:
//! 1. Requests of a connection reach [`Service::request`] in the order in which they were sent, one at a time.
//! 2. A line has one connection: a later one of the same line ends the earlier, and waits until its last request has
//!    been handed over and [`Service::connection_closed`] has been called, before its own first request is.
//! 3. `connection_closed` is called once a connection, after its last request, for every service then registered.
//! 4. A body is read under a permit of its channel's quarter of `max_inbound_bytes`, which its [`Reply`] holds. A
//!    connection is not read while [`OUTBOX_BYTES`] of answers wait for it, so a peer that does not read is soon not read
//!    either; what was let in before may still answer, up to `max_outbound_bytes` over all connections, where the connection
//!    is closed.
//! 5. Each request is answered once: a [`Reply`] or [`Outgoing`] that is dropped refuses with [`codes::DROPPED`].
//!
//! Accepted leak: a connection that has not proved itself holds one task and 1 KiB until its time is over; at most
//! [`MAX_UNPROVED`] do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{Conn, Listener, watch};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::Channel;
use crate::error::{Ended, FrameError, HandshakeError, Refusal, StreamError, codes};
use crate::frame::{Frame, Head, Kind, parts_bytes};
use crate::handshake::{self, Agreed};
use crate::link::{self, Batch, Flag, Link, Side};
use crate::metrics::ChannelMetrics;
use crate::rpc::Shared;
use crate::stream::charge;

/// The largest window that a taker may give.
pub(crate) const MAX_WINDOW_BYTES: u32 = 256 << 20;
const MAX_UNPROVED: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Answers of one connection that wait, before no more of its requests are read.
const OUTBOX_BYTES: usize = 16 << 20;
/// What a frame costs beyond its body, here and of the inbound bytes.
const FRAME_BYTES: usize = 256;
const MAX_STREAMS: usize = 1024;
/// How many kinds of refused handshakes are remembered, to log each once.
const MAX_TOLD: usize = 256;
const MAX_REFUSAL_BYTES: usize = 1000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller {
    /// The peer, which has proved that it knows the cluster secret.
    pub node_id: i32,
    /// The channel it came by.
    pub channel: Channel,
    /// Its connection; a number that this process uses once.
    pub connection: u64,
}

/// What answers requests.
pub trait Service: Send + Sync {
    /// A request. Called in the order of arrival on its connection, from the task that reads it: must not block, and
    /// spawns what takes long.
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply);

    /// The connection has ended; no request comes by it any more. Its unanswered [`Reply`]s may be dropped.
    fn connection_closed(&self, from: Caller) {
        let _ = from;
    }
}

/// The serving half of an [`crate::Rpc`].
pub(crate) struct Server {
    services: RwLock<BTreeMap<u8, Arc<dyn Service>>>,
    budgets: [Arc<Semaphore>; Channel::COUNT],
    budget_bytes: usize,
    outbound_bytes: AtomicUsize,
    unproved: AtomicUsize,
    last_connection: AtomicU64,
    connections: Mutex<Connections>,
    connected: watch::Sender<BTreeSet<(i32, Channel)>>,
}

#[derive(Default)]
struct Connections {
    by_line: BTreeMap<(i32, Channel, u64), Arc<Inbound>>,
    standing: BTreeMap<(i32, Channel), usize>,
    told: BTreeSet<(Option<i32>, &'static str)>,
}

impl Server {
    pub(crate) fn new(max_inbound_bytes: usize) -> Self {
        // A permit is a byte; a semaphore's are counted in a u32 at a time.
        let budget_bytes = (max_inbound_bytes / Channel::COUNT).clamp(1, u32::MAX as usize >> 1);
        Self {
            services: RwLock::default(),
            budgets: std::array::from_fn(|_| Arc::new(Semaphore::new(budget_bytes))),
            budget_bytes,
            outbound_bytes: AtomicUsize::new(0),
            unproved: AtomicUsize::new(0),
            last_connection: AtomicU64::new(0),
            connections: Mutex::default(),
            connected: watch::Sender::new(BTreeSet::new()),
        }
    }

    pub(crate) fn register(&self, service: u8, handler: Arc<dyn Service>) {
        self.services.write().insert(service, handler);
    }

    /// Lets go of the services, which may hold the transport themselves.
    pub(crate) fn forget_services(&self) {
        let services = std::mem::take(&mut *self.services.write());
        drop(services);
    }

    pub(crate) fn connected(&self) -> watch::Receiver<BTreeSet<(i32, Channel)>> {
        self.connected.subscribe()
    }

    pub(crate) fn has_connections(&self) -> bool {
        !self.connections.lock().by_line.is_empty()
    }

    pub(crate) fn end_connections(&self, why: &'static str) {
        for inbound in self.connections.lock().by_line.values() {
            inbound.link.end(Ended::Here(why));
        }
    }

    fn stand(&self, inbound: &Inbound, stands: bool) {
        let key = (inbound.caller.node_id, inbound.caller.channel);
        let mut connections = self.connections.lock();
        let count = connections.standing.entry(key).or_default();
        *count = if stands { *count + 1 } else { count.saturating_sub(1) };
        let any = *count > 0;
        inbound.metrics.inbound.inc_by(if stands { 1 } else { -1 });
        // Under the lock, so that the last word is the true one.
        self.connected.send_if_modified(|set| if any { set.insert(key) } else { set.remove(&key) });
    }
}

/// Accepts connections until the transport is stopped.
pub(crate) async fn accept(shared: Arc<Shared>, listener: Listener) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = shared.stopped.wait() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((conn, from)) => {
                let server = &shared.server;
                if server.unproved.load(Ordering::Relaxed) >= MAX_UNPROVED {
                    tracing::warn!(%from, "closed unheard: too many connections have not proved themselves");
                    continue;
                }
                server.unproved.fetch_add(1, Ordering::Relaxed);
                shared.spawner.spawn("rpc-inbound", serve(Arc::clone(&shared), conn, from));
            }
            Err(error) => {
                // Out of descriptors, most likely: others must be closed first.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(shared: Arc<Shared>, mut conn: Conn, from: SocketAddr) {
    let proved = tokio::select! {
        biased;
        () = shared.stopped.wait() => Err((None, HandshakeError::TimedOut)),
        proved = timeout(HANDSHAKE, prove(&shared, &mut conn)) => {
            proved.unwrap_or(Err((None, HandshakeError::TimedOut)))
        }
    };
    shared.server.unproved.fetch_sub(1, Ordering::Relaxed);
    let (standing, agreed) = match proved {
        Ok(proved) => proved,
        Err((node, error)) => return tell_refused(&shared, node, from, &error),
    };
    let inbound = Arc::clone(&standing.inbound);
    let Caller { node_id: node, channel, connection } = inbound.caller;
    let channel = channel.name();
    tracing::info!(node, channel, connection, %from, "peer connected");
    shared.server.stand(&inbound, true);
    let why = link::run(&shared.spawner, &inbound.link, conn, agreed.sealer, agreed.opener, &inbound).await;
    if let Ended::Frame(_) = why {
        tracing::warn!(node, channel, connection, %why, "peer's connection closed: malformed");
    } else {
        tracing::info!(node, channel, connection, %why, "peer disconnected");
    }
    inbound.close();
    shared.server.stand(&inbound, false);
    let services: Vec<_> = shared.server.services.read().values().cloned().collect();
    for service in services {
        service.connection_closed(inbound.caller);
    }
    drop(standing);
}

/// The handshake, and the end of the line's earlier connection.
async fn prove(
    shared: &Arc<Shared>,
    conn: &mut Conn,
) -> Result<(Standing, Agreed), (Option<i32>, HandshakeError)> {
    let taken = handshake::take(&shared.host, conn, &shared.identity).await?;
    let key = (taken.agreed.node_id, taken.agreed.channel, taken.agreed.line);
    let inbound = Arc::new(Inbound::new(shared, &taken.agreed));
    loop {
        let earlier = {
            let by_line = &mut shared.server.connections.lock().by_line;
            let earlier = by_line.get(&key).cloned();
            if earlier.is_none() {
                by_line.insert(key, Arc::clone(&inbound));
            }
            earlier
        };
        let Some(earlier) = earlier else { break };
        earlier.link.end(Ended::Here("the peer has made another"));
        earlier.finished.wait().await;
    }
    let standing = Standing { key, inbound };
    if shared.stopped.is_set() {
        standing.inbound.link.end(Ended::Here("stopped"));
    }
    let agreed = taken.accept(conn).await.map_err(|error| (Some(key.0), error))?;
    Ok((standing, agreed))
}

/// A line's place, held until its connection has ended in every way.
struct Standing {
    key: (i32, Channel, u64),
    inbound: Arc<Inbound>,
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.inbound.close();
        self.inbound.shared.server.connections.lock().by_line.remove(&self.key);
        self.inbound.finished.set();
    }
}

fn tell_refused(shared: &Shared, node: Option<i32>, from: SocketAddr, error: &HandshakeError) {
    shared.options.metrics.failed_handshake("in", error.name());
    let told = &mut shared.server.connections.lock().told;
    if told.len() < MAX_TOLD && told.insert((node, error.name())) {
        tracing::warn!(node, %from, %error, "a peer was refused; said once");
    } else {
        tracing::debug!(node, %from, %error, "a peer was refused");
    }
}

/// The called end of a connection.
pub(crate) struct Inbound {
    shared: Arc<Shared>,
    metrics: Arc<ChannelMetrics>,
    link: Arc<Link>,
    caller: Caller,
    max_send_bytes: usize,
    /// The id of the last request; the reader's alone.
    last_id: AtomicU64,
    out: Mutex<Outbox>,
    /// Bytes that the writer has taken out and not written; the writer's alone.
    given: AtomicUsize,
    /// There may be room in the outbox.
    room: Notify,
    finished: Flag,
}

#[derive(Default)]
struct Outbox {
    frames: VecDeque<Frame>,
    bytes: usize,
    streams: BTreeMap<u64, Arc<Given>>,
    closed: bool,
}

impl Inbound {
    fn new(shared: &Arc<Shared>, agreed: &Agreed) -> Self {
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

    fn push(&self, frame: Frame) {
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

    fn refuse(&self, id: u64, refusal: Refusal) {
        let mut message = refusal.message.into_bytes();
        message.truncate(MAX_REFUSAL_BYTES.min(self.max_send_bytes));
        let mut frame = Frame::with_body(Kind::Refused, id, vec![message.into()]);
        frame.argument = refusal.code.into();
        self.push(frame);
    }

    fn close(&self) {
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

    fn is_closed(&self) -> bool {
        self.out.lock().closed
    }

    async fn wait_room(&self) {
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
        let mut reply =
            Reply { inbound: Arc::clone(self), id: head.id, stream: None, held: Some(held), open: true };
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
            reply.stream = Some(given);
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

/// Answers one request, once. Dropped, it refuses with [`codes::DROPPED`].
pub struct Reply {
    inbound: Arc<Inbound>,
    id: u64,
    stream: Option<Arc<Given>>,
    held: Option<Held>,
    open: bool,
}

impl Reply {
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
            self.inbound.out.lock().streams.remove(&self.id);
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
struct Given {
    window: u64,
    credit: Mutex<u64>,
    told: Notify,
    cancelled: Flag,
}

impl Given {
    fn new(window: u32) -> Self {
        let window = u64::from(window);
        Self { window, credit: Mutex::new(window), told: Notify::new(), cancelled: Flag::default() }
    }

    fn cancel(&self) {
        self.cancelled.set();
        self.told.notify_one();
    }

    fn grant(&self, bytes: u32) -> Result<(), FrameError> {
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
        if self.inbound.out.lock().streams.remove(&self.id).is_none() {
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
