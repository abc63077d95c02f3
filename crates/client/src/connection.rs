//! One connection to one broker, with requests in a pipeline.
//!
//! Owns: the socket, which only its task touches; the line of requests that wait for an answer.
//! Invariants: (1) requests are written in the order in which `send` was called; (2) a broker answers in that order, so the
//! next response belongs to the first that waits, and a different correlation id ends the connection; (3) a request that
//! is not answered by its deadline ends the connection, since nothing tells a late answer from none; (4) when the
//! connection ends, all that wait fail with the same reason.
//! Bounds: requests waiting by number and bytes (one semaphore), a response by its length.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use isobar_host::{Conn, Host};
use isobar_protocol::messages::{ApiVersionsRequest, ProduceRequest};
use isobar_protocol::produce::{self, Outgoing};
use isobar_protocol::response::{Segments, decode_response, encode_request, response_correlation_id};
use isobar_protocol::{KafkaRequest, StrBytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::config::ClientConfig;
use crate::error::ClientError;

const READ_BYTES: usize = 64 * 1024;
/// Responses shorter than this are copied out of the read buffer, so that a small one never pins a large buffer.
const COPY_BELOW_BYTES: usize = 4096;
const UNSUPPORTED_VERSION: i16 = 35;

/// A connection; clones share it.
#[derive(Clone)]
pub(crate) struct Connection {
    inner: Arc<Inner>,
    requests: mpsc::Sender<Outbound>,
}

struct Inner {
    addr: String,
    client_id: String,
    request_timeout: Duration,
    weights: Weights,
    permits: Arc<Semaphore>,
    next_id: AtomicI32,
    versions: BTreeMap<i16, (i16, i16)>,
    end: Arc<End>,
}

/// How a connection ends.
#[derive(Default)]
struct End {
    reason: Mutex<Option<String>>,
    asked: Notify,
}

impl End {
    /// The first reason stays.
    fn set(&self, reason: impl Into<String>) {
        self.reason.lock().get_or_insert_with(|| reason.into());
        self.asked.notify_one();
    }

    fn error(&self, addr: &str) -> ClientError {
        let reason = self.reason.lock().clone().unwrap_or_else(|| "closed".to_owned());
        ClientError::Disconnected { addr: addr.to_owned(), reason }
    }
}

/// Turns a number bound and a byte bound into one weight.
#[derive(Clone, Copy)]
struct Weights {
    capacity: usize,
    least: usize,
}

impl Weights {
    fn new(config: &ClientConfig) -> Self {
        let capacity = config.max_in_flight_bytes.clamp(1, u32::MAX as usize >> 4);
        Weights { capacity, least: (capacity / config.max_in_flight.max(1)).max(1) }
    }

    fn of(self, len_bytes: usize) -> u32 {
        len_bytes.clamp(self.least, self.capacity) as u32
    }
}

struct Outbound {
    frame: Segments,
    /// `None` for a request that has no answer (Produce with acks=0).
    waiter: Option<Waiter>,
    permit: OwnedSemaphorePermit,
}

struct Waiter {
    correlation_id: i32,
    answer: oneshot::Sender<Bytes>,
}

impl Connection {
    /// Connects and learns which versions the broker speaks.
    pub(crate) async fn open(
        host: &Host,
        addr: &str,
        config: &ClientConfig,
    ) -> Result<Connection, ClientError> {
        let refused = |reason: String| ClientError::Connect { addr: addr.to_owned(), reason };
        let conn = match timeout(config.connect_timeout, host.connect(addr)).await {
            Ok(Ok(conn)) => conn,
            Ok(Err(error)) => return Err(refused(error.to_string())),
            Err(_) => return Err(refused("no connection in time".to_owned())),
        };
        let weights = Weights::new(config);
        let (requests, queue) = mpsc::channel(config.max_in_flight.max(1));
        let end = Arc::new(End::default());
        let task = Io::new(conn, queue, Arc::clone(&end), config.max_response_bytes);
        host.spawn("client-connection", task.run());
        let mut inner = Inner {
            addr: addr.to_owned(),
            client_id: config.client_id.clone(),
            request_timeout: config.request_timeout,
            weights,
            permits: Arc::new(Semaphore::new(weights.capacity)),
            next_id: AtomicI32::new(0),
            versions: BTreeMap::new(),
            end,
        };
        inner.versions = ask_versions(&inner, &requests).await?;
        Ok(Connection { inner: Arc::new(inner), requests })
    }

    /// Whether it has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.requests.is_closed() || self.inner.end.reason.lock().is_some()
    }

    /// Whether both are clones of one.
    pub(crate) fn is_same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The highest version that both sides speak and that is at least `min`.
    pub(crate) fn version<R: KafkaRequest>(&self, min: i16) -> Result<i16, ClientError> {
        let unsupported = || ClientError::Unsupported { addr: self.inner.addr.clone(), api: api_name::<R>() };
        let &(low, high) = self.inner.versions.get(&R::KEY).ok_or_else(unsupported)?;
        let version = high.min(R::VERSIONS.max);
        if version >= low && version >= min && version >= R::VERSIONS.min {
            Ok(version)
        } else {
            Err(unsupported())
        }
    }

    /// Sends a request and waits for the answer.
    pub(crate) async fn call<R: KafkaRequest>(
        &self,
        request: &R,
        min: i16,
    ) -> Result<R::Response, ClientError> {
        self.send(request, min, Duration::ZERO).await?.await
    }

    /// Sends a request. `extra` is how much longer than the request timeout the broker may take over it.
    pub(crate) async fn send<R: KafkaRequest>(
        &self,
        request: &R,
        min: i16,
        extra: Duration,
    ) -> Result<Pending<R>, ClientError> {
        let version = self.version::<R>(min)?;
        let id = self.inner.next_id();
        let frame = encode_request(version, id, Some(&self.inner.client_id), request)?;
        let answer = enqueue(&self.inner, &self.requests, frame.into(), Some(id)).await?;
        Ok(self.inner.pending(version, answer, extra))
    }

    /// Sends records. With acks=0 there is no answer, and `None` is returned once the request is in the line.
    pub(crate) async fn send_produce(
        &self,
        version: i16,
        request: Outgoing<'_>,
    ) -> Result<Option<Pending<ProduceRequest>>, ClientError> {
        let id = self.inner.next_id();
        let answered = request.acks != 0;
        let extra = Duration::from_millis(request.timeout_ms.max(0) as u64);
        let frame = produce::encode_request(version, id, Some(&self.inner.client_id), request)?;
        let answer = enqueue(&self.inner, &self.requests, frame, answered.then_some(id)).await?;
        Ok(answered.then(|| self.inner.pending(version, answer, extra)))
    }
}

impl Inner {
    fn next_id(&self) -> i32 {
        self.next_id.fetch_add(1, Ordering::Relaxed) & i32::MAX
    }

    fn pending<R>(&self, version: i16, answer: oneshot::Receiver<Bytes>, extra: Duration) -> Pending<R> {
        Pending {
            answer,
            version,
            deadline: Box::pin(sleep_until(Instant::now() + self.request_timeout + extra)),
            addr: self.addr.clone(),
            end: Arc::clone(&self.end),
            request: PhantomData,
        }
    }
}

/// Puts a frame into the line. The receiver is dead from the start when there is no answer to wait for.
async fn enqueue(
    inner: &Inner,
    requests: &mpsc::Sender<Outbound>,
    frame: Segments,
    correlation_id: Option<i32>,
) -> Result<oneshot::Receiver<Bytes>, ClientError> {
    let weight = inner.weights.of(frame.len_bytes());
    let lost = |(): ()| inner.end.error(&inner.addr);
    let wait = async {
        let permit = Arc::clone(&inner.permits).acquire_many_owned(weight).await.map_err(|_| ());
        let (answer, receiver) = oneshot::channel();
        let waiter = correlation_id.map(|correlation_id| Waiter { correlation_id, answer });
        requests.send(Outbound { frame, waiter, permit: permit? }).await.map_err(|_| ())?;
        Ok(receiver)
    };
    match timeout(inner.request_timeout, wait).await {
        Ok(result) => result.map_err(lost),
        Err(_) => {
            inner.end.set("requests are not answered");
            Err(ClientError::Timeout { what: format!("place in the line to {}", inner.addr) })
        }
    }
}

/// ApiVersions, first as version 3; a broker that does not know that answers with a version 0 body (KIP-511).
async fn ask_versions(
    inner: &Inner,
    requests: &mpsc::Sender<Outbound>,
) -> Result<BTreeMap<i16, (i16, i16)>, ClientError> {
    let request = ApiVersionsRequest::default()
        .with_client_software_name(StrBytes::from_static_str("isobar"))
        .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
    for version in [3, 0] {
        let id = inner.next_id();
        let frame = encode_request(version, id, Some(&inner.client_id), &request)?;
        let answer = enqueue(inner, requests, frame.into(), Some(id)).await?;
        let raw = inner.pending::<ApiVersionsRequest>(version, answer, Duration::ZERO).raw().await?;
        let error = raw.get(4..6).map_or(0, |code| i16::from_be_bytes([code[0], code[1]]));
        if error == UNSUPPORTED_VERSION && version > 0 {
            continue;
        }
        let response = decode_response::<ApiVersionsRequest>(version, raw)?;
        return Ok(response
            .api_keys
            .iter()
            .map(|api| (api.api_key, (api.min_version, api.max_version)))
            .collect());
    }
    Err(ClientError::Unsupported { addr: inner.addr.clone(), api: "ApiVersions" })
}

/// The name of a request's API, from its type.
pub(crate) fn api_name<R>() -> &'static str {
    let path = std::any::type_name::<R>();
    let name = path.rsplit("::").next().unwrap_or(path);
    name.strip_suffix("Request").unwrap_or(name)
}

/// An answer to come. Dropping it leaves the request on its way; the answer is then thrown away.
pub(crate) struct Pending<R> {
    answer: oneshot::Receiver<Bytes>,
    version: i16,
    deadline: Pin<Box<Sleep>>,
    addr: String,
    end: Arc<End>,
    request: PhantomData<fn() -> R>,
}

impl<R> Pending<R> {
    fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, ClientError>> {
        if let Poll::Ready(answer) = Pin::new(&mut self.answer).poll(cx) {
            return Poll::Ready(answer.map_err(|_| self.end.error(&self.addr)));
        }
        ready!(self.deadline.as_mut().poll(cx));
        let what = format!("{} to {}", api_name::<R>(), self.addr);
        self.end.set(format!("{} was not answered in time", api_name::<R>()));
        Poll::Ready(Err(ClientError::Timeout { what }))
    }

    async fn raw(mut self) -> Result<Bytes, ClientError> {
        std::future::poll_fn(|cx| self.poll_raw(cx)).await
    }
}

impl<R: KafkaRequest> Future for Pending<R> {
    type Output = Result<R::Response, ClientError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let raw = ready!(self.poll_raw(cx))?;
        let version = self.version;
        Poll::Ready(
            decode_response::<R>(version, raw)
                .map_err(|error| ClientError::malformed(api_name::<R>(), error)),
        )
    }
}

/// The task of a connection.
struct Io {
    conn: Conn,
    queue: mpsc::Receiver<Outbound>,
    end: Arc<End>,
    max_response_bytes: usize,
    waiting: VecDeque<(Waiter, OwnedSemaphorePermit)>,
}

enum Step {
    Received(std::io::Result<usize>),
    Written(std::io::Result<usize>),
    Request(Option<Outbound>),
    Ended,
}

impl Io {
    fn new(conn: Conn, queue: mpsc::Receiver<Outbound>, end: Arc<End>, max_response_bytes: usize) -> Self {
        Io { conn, queue, end, max_response_bytes, waiting: VecDeque::new() }
    }

    async fn run(self) {
        let Io { conn, mut queue, end, max_response_bytes, mut waiting } = self;
        let reason = serve(conn, &mut queue, &end, max_response_bytes, &mut waiting).await;
        // First the reason: whoever waits fails when the queue and the line are dropped, and reads it then.
        end.set(reason);
    }
}

async fn serve(
    conn: Conn,
    queue: &mut mpsc::Receiver<Outbound>,
    end: &End,
    max_response_bytes: usize,
    waiting: &mut VecDeque<(Waiter, OwnedSemaphorePermit)>,
) -> String {
    let (mut reader, mut writer) = conn.into_split();
    let mut input = BytesMut::new();
    let mut output = Segments::default();
    let mut open = true;
    while open || !waiting.is_empty() || output.has_remaining() {
        let step = tokio::select! {
            biased;
            () = end.asked.notified() => Step::Ended,
            read = fill(&mut reader, &mut input) => Step::Received(read),
            written = writer.write_buf(&mut output), if output.has_remaining() => Step::Written(written),
            request = queue.recv(), if open && !output.has_remaining() => Step::Request(request),
        };
        match step {
            Step::Ended => return "ended".to_owned(),
            Step::Received(Ok(0)) => return "closed by the broker".to_owned(),
            Step::Received(Err(error)) | Step::Written(Err(error)) => return error.to_string(),
            Step::Received(Ok(_)) => {
                if let Err(reason) = deliver(&mut input, waiting, max_response_bytes) {
                    return reason;
                }
            }
            Step::Written(Ok(_)) => {}
            Step::Request(None) => open = false,
            Step::Request(Some(Outbound { frame, waiter, permit })) => {
                output = frame;
                waiting.extend(waiter.map(|waiter| (waiter, permit)));
            }
        }
    }
    "no longer used".to_owned()
}

/// Reads what there is, with room for the rest of a response whose length is known.
async fn fill(reader: &mut (impl AsyncRead + Unpin), input: &mut BytesMut) -> std::io::Result<usize> {
    let wanted = input.first_chunk::<4>().map_or(0, |length| u32::from_be_bytes(*length) as usize + 4);
    input.reserve(READ_BYTES.max(wanted.saturating_sub(input.len())));
    reader.read_buf(input).await
}

/// Hands whole responses to those who wait for them.
fn deliver(
    input: &mut BytesMut,
    waiting: &mut VecDeque<(Waiter, OwnedSemaphorePermit)>,
    max_response_bytes: usize,
) -> Result<(), String> {
    while let Some(length) = input.first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        if length > max_response_bytes {
            return Err(format!("response of {length} bytes is longer than {max_response_bytes}"));
        }
        if input.len() < 4 + length {
            break;
        }
        input.advance(4);
        let frame = input.split_to(length);
        let frame = if length < COPY_BELOW_BYTES { Bytes::copy_from_slice(&frame) } else { frame.freeze() };
        let id = response_correlation_id(&frame).map_err(|error| error.to_string())?;
        let Some((waiter, _permit)) = waiting.pop_front() else {
            return Err(format!("unasked response {id}"));
        };
        if id != waiter.correlation_id {
            return Err(format!("response {id} instead of {}", waiter.correlation_id));
        }
        // Whoever waited may be gone.
        let _ = waiter.answer.send(frame);
    }
    Ok(())
}
