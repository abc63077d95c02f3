//! One client connection: frames in, responses out in the order of the requests.
//!
//! Two tasks. The *reader* takes frames off the socket and starts Produce requests at once, so that a connection has
//! many in flight. The *writer* takes what the reader queued, in order, runs every other request when its turn comes
//! (Kafka, too, handles one request of a connection after the other), and writes the responses.
//!
//! Invariants:
//! 1. Responses leave in the order in which their requests came.
//! 2. The records of a Produce are appended in the order in which requests came, before the next frame is read.
//! 3. No body is read before its bytes are covered by a permit (see [`crate::budget`]).
//! 4. A malformed frame closes the connection with one log line; nothing after it is looked at.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use isobar_host::{Conn, ReadHalf, WriteHalf};
use isobar_protocol::Encodable;
use isobar_protocol::api::ApiKey;
use isobar_protocol::frame::FrameHead;
use isobar_protocol::request::{Body, Request, RequestHeader, decode_request};
use isobar_protocol::response::{EncodeError, Segments, encode_response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Broker;
use crate::budget::Permit;
use crate::dispatch;
use crate::produce;
use crate::steering::Steering;

/// Requests of one connection that are read but not answered yet.
const MAX_QUEUED_REQUESTS: usize = 128;
/// What a new connection's buffer holds; it grows to the largest frame in use.
const SMALL_BUFFER_BYTES: usize = 16 << 10;
/// Frames above this are read to their end and no further, so that no bytes of the next one have to be moved.
const LARGE_FRAME_BYTES: usize = 64 << 10;
/// A client that stops reading for this long is gone.
const WRITE_STALL: Duration = Duration::from_secs(120);

/// What handlers may know of the connection a request came by.
#[derive(Debug)]
pub(crate) struct Client {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// Where it was sent.
    pub(crate) steering: Steering,
    /// When it connected.
    pub(crate) since: Instant,
}

impl Client {
    /// One that connects now.
    pub(crate) fn new(peer: SocketAddr) -> Self {
        Self { peer, steering: Steering::default(), since: Instant::now() }
    }
}

/// What a handler gives back.
pub(crate) enum Answer {
    /// A response, encoded.
    Send(Segments),
    /// A response, encoded, after which the connection must be closed.
    Last(Segments),
    /// No response is owed (Produce with acks=0).
    Nothing,
    /// The connection must be closed.
    Close,
}

impl Answer {
    /// A response body, encoded for the request's version.
    pub(crate) fn of<R: Encodable>(header: &RequestHeader, body: &R) -> Self {
        match encode_response(header.api, header.version, header.correlation_id, body) {
            Ok(bytes) => Self::Send(bytes.into()),
            Err(error) => Self::unencodable(header, &error),
        }
    }

    /// A field that the request's version has no place for: a bug, and the client cannot be answered.
    pub(crate) fn unencodable(header: &RequestHeader, error: &EncodeError) -> Self {
        tracing::error!(api = header.api.name(), version = header.version, %error, "a response cannot be encoded");
        Self::Close
    }
}

/// A response that is owed.
pub(crate) enum Pending {
    /// A Produce that is on its way; its connection's order is already fixed.
    Produce(produce::InFlight),
    /// A request to handle when its turn comes.
    Request(Request, Permit),
}

/// Serves one connection until it ends, in whatever way.
pub(crate) async fn serve(broker: Arc<Broker>, conn: Conn, client: Client) {
    let (read, write) = conn.into_split();
    let (queue, queued) = mpsc::channel(MAX_QUEUED_REQUESTS);
    let client = Arc::new(client);
    let (writing, writer_ended) = oneshot::channel::<()>();
    let write_side = write_loop(Arc::clone(&broker), Arc::clone(&client), queued, write);
    let writer = broker.host.spawn("connection.write", async move {
        write_side.await;
        drop(writing);
    });
    let mut reader = Reader { broker: &broker, client: &client, read, buffer: BytesMut::new() };
    let mut draining = broker.draining.clone();
    let ended = tokio::select! {
        biased;
        ended = reader.run(queue) => ended,
        _ = writer_ended => Err(ReadError::WriterEnded),
        _ = draining.wait_for(|&draining| draining) => Ok(()),
    };
    match ended {
        Ok(()) => tracing::debug!(peer = %client.peer, "connection closed"),
        Err(error) if error.is_hostile() => {
            broker.metrics.connections_refused.inc();
            tracing::warn!(peer = %client.peer, %error, "connection closed");
        }
        Err(error) => tracing::debug!(peer = %client.peer, %error, "connection closed"),
    }
    // What was read is answered before the connection ends, also when draining.
    drop(reader);
    writer.join().await;
    broker.metrics.connections.dec();
}

#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Frame(#[from] isobar_protocol::frame::FrameError),
    #[error("{api} v{version}: {source}")]
    Decode { api: &'static str, version: i16, source: isobar_protocol::request::DecodeError },
    #[error(transparent)]
    Socket(#[from] io::Error),
    #[error("the other side closed within a frame")]
    Cut,
    #[error("idle for connections.max.idle.ms")]
    Idle,
    #[error("the writing side has ended")]
    WriterEnded,
    #[error("broker is stopping")]
    Stopping,
}

impl ReadError {
    fn is_hostile(&self) -> bool {
        matches!(self, Self::Frame(_) | Self::Decode { .. })
    }
}

struct Reader<'a> {
    broker: &'a Arc<Broker>,
    client: &'a Arc<Client>,
    read: ReadHalf,
    buffer: BytesMut,
}

impl Reader<'_> {
    async fn run(&mut self, queue: mpsc::Sender<Pending>) -> Result<(), ReadError> {
        while let Some((head, frame, permit)) = self.next_frame().await? {
            let received = Instant::now();
            self.broker.metrics.received(head.api, frame.len());
            let request = decode_request(frame).map_err(|source| ReadError::Decode {
                api: head.api.name(),
                version: head.version,
                source,
            })?;
            let pending = match request {
                Request { header, body: Body::Produce(body) } => {
                    // The frame's bytes are copied into the open chunk in here, and the frame is given up.
                    let started = produce::start(self.broker, self.client, header, body, received).await;
                    drop(permit);
                    Pending::Produce(started)
                }
                request => Pending::Request(request, permit),
            };
            queue.send(pending).await.map_err(|_| ReadError::WriterEnded)?;
        }
        Ok(())
    }

    /// The next whole frame, without its length; `None` at the end of the stream between frames.
    async fn next_frame(&mut self) -> Result<Option<(FrameHead, Bytes, Permit)>, ReadError> {
        let max_bytes = self.broker.options.socket_request_max_bytes;
        let head = loop {
            if let Some(head) = FrameHead::parse(&self.buffer, max_bytes)? {
                break head;
            }
            let idle = Duration::from_millis(self.broker.options.connections_max_idle_ms);
            self.buffer.reserve(SMALL_BUFFER_BYTES);
            let read = tokio::time::timeout(idle, self.read.read_buf(&mut self.buffer));
            if read.await.map_err(|_| ReadError::Idle)?? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Cut) };
            }
        };
        let Some(permit) = self.broker.budget.acquire(head.api, head.len_bytes).await else {
            return Err(ReadError::Stopping);
        };
        let total = 4 + head.len_bytes;
        while self.buffer.len() < total {
            let missing = total - self.buffer.len();
            self.buffer.reserve(missing);
            let ahead = if total >= LARGE_FRAME_BYTES { 0 } else { SMALL_BUFFER_BYTES };
            let mut room = (&mut self.buffer).limit(missing + ahead);
            if self.read.read_buf(&mut room).await? == 0 {
                return Err(ReadError::Cut);
            }
        }
        self.buffer.advance(4);
        let frame = self.buffer.split_to(head.len_bytes).freeze();
        Ok(Some((head, frame, permit)))
    }
}

async fn write_loop(
    broker: Arc<Broker>,
    client: Arc<Client>,
    mut queued: mpsc::Receiver<Pending>,
    mut write: WriteHalf,
) {
    while let Some(pending) = queued.recv().await {
        let (api, started, answer) = match pending {
            Pending::Produce(in_flight) => {
                let started = in_flight.received;
                (ApiKey::Produce, started, in_flight.finish().await)
            }
            Pending::Request(request, permit) => {
                let (api, started) = (request.header.api, Instant::now());
                let answer = dispatch::handle(&broker, &client, request).await;
                drop(permit);
                (api, started, answer)
            }
        };
        let is_last = matches!(answer, Answer::Last(_));
        let mut response = match answer {
            Answer::Send(response) | Answer::Last(response) => response,
            Answer::Nothing => continue,
            Answer::Close => return,
        };
        broker.metrics.answered(api, started.elapsed(), response.len_bytes());
        if let Err(error) = write_all(&mut write, &mut response).await {
            tracing::debug!(peer = %client.peer, %error, "connection lost while writing");
            return;
        }
        if is_last {
            break;
        }
    }
    let _ = write.shutdown().await;
}

async fn write_all(write: &mut WriteHalf, response: &mut Segments) -> io::Result<()> {
    while response.has_remaining() {
        match tokio::time::timeout(WRITE_STALL, write.write_buf(response)).await {
            Ok(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}
