//! The simulated network: listeners by address, connections as pairs of pipes with a delay.
//!
//! Bytes arrive in order, after a delay drawn from the seed, or not at all if an end dies. A pipe holds a bounded
//! number of bytes; a writer beyond it waits, as TCP's would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::node::Node;

/// Bytes on their way in one direction before the writer waits.
const PIPE_BYTES: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Network {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, Arc<Accepting>>,
    pipes: BTreeMap<String, Vec<Weak<Pipe>>>,
    /// Pairs of nodes, the lesser name first, between which nothing arrives.
    cuts: BTreeSet<(String, String)>,
    connections: u16,
}

struct Accepting {
    node: Weak<Node>,
    name: String,
    waiting: Mutex<Backlog>,
}

/// Connections that wait to be accepted, and who accepts.
#[derive(Default)]
struct Backlog {
    conns: VecDeque<(SimConn, SocketAddr)>,
    acceptor: Option<Waker>,
}

struct Pipe {
    /// Whom it joins, as in [`State::cuts`].
    ends: (String, String),
    state: Mutex<PipeState>,
}

#[derive(Default)]
struct PipeState {
    arriving: VecDeque<(u64, Bytes)>,
    bytes: usize,
    last_arrival_us: u64,
    ended: bool,
    reset: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(ends: (String, String)) -> Self {
        Self { ends, state: Mutex::default() }
    }

    fn reset(&self) {
        let mut state = self.state.lock();
        state.reset = true;
        state.arriving.clear();
        for waker in [state.reader.take(), state.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

fn parse(addr: &str) -> io::Result<SocketAddr> {
    addr.replace("localhost", "127.0.0.1")
        .parse()
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("no simulated address: {addr}")))
}

fn was_reset() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "connection reset by peer")
}

fn pair(a: &str, b: &str) -> (String, String) {
    if a <= b { (a.to_owned(), b.to_owned()) } else { (b.to_owned(), a.to_owned()) }
}

impl Network {
    /// Between these two nothing arrives any more, in either direction. What is sent waits, as TCP would send it again.
    pub(super) fn cut(&self, a: &str, b: &str) {
        self.state.lock().cuts.insert(pair(a, b));
    }

    /// What waited arrives.
    pub(super) fn heal(&self, a: &str, b: &str) {
        let mut state = self.state.lock();
        state.cuts.remove(&pair(a, b));
        let pipes: Vec<_> = state.pipes.values().flatten().filter_map(Weak::upgrade).collect();
        drop(state);
        for pipe in pipes {
            if let Some(waker) = pipe.state.lock().reader.take() {
                waker.wake();
            }
        }
    }

    fn is_cut(&self, ends: &(String, String)) -> bool {
        let state = self.state.lock();
        !state.cuts.is_empty() && state.cuts.contains(ends)
    }

    pub(super) fn listen(&self, node: &Arc<Node>, addr: &str) -> io::Result<SimListener> {
        let local = parse(addr)?;
        let mut state = self.state.lock();
        if state.listeners.contains_key(&local.to_string()) {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("{addr} is in use")));
        }
        let accepting = Arc::new(Accepting {
            node: Arc::downgrade(node),
            name: node.name().to_owned(),
            waiting: Mutex::default(),
        });
        state.listeners.insert(local.to_string(), Arc::clone(&accepting));
        Ok(SimListener { local, accepting })
    }

    pub(super) fn connect(&self, node: &Arc<Node>, addr: &str) -> io::Result<SimConn> {
        let remote = parse(addr)?;
        let mut state = self.state.lock();
        let Some(accepting) = state.listeners.get(&remote.to_string()).cloned() else {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionRefused,
                format!("nobody listens on {addr}"),
            ));
        };
        let ends = pair(node.name(), &accepting.name);
        if state.cuts.contains(&ends) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{addr} does not answer")));
        }
        state.connections = state.connections.wrapping_add(1);
        let from = SocketAddr::from(([127, 0, 0, 1], 32768 | state.connections));
        let (there, back) = (Arc::new(Pipe::new(ends.clone())), Arc::new(Pipe::new(ends)));
        for owner in [node.name(), accepting.name.as_str()] {
            let pipes = state.pipes.entry(owner.to_owned()).or_default();
            pipes.retain(|pipe| pipe.strong_count() > 0);
            pipes.extend([Arc::downgrade(&there), Arc::downgrade(&back)]);
        }
        drop(state);
        let Some(server) = accepting.node.upgrade() else { return Err(was_reset()) };
        let server = SimConn {
            read: SimReadHalf { node: Arc::clone(&server), pipe: Arc::clone(&there), until: None },
            write: SimWriteHalf { node: server, pipe: Arc::clone(&back) },
        };
        let mut waiting = accepting.waiting.lock();
        waiting.conns.push_back((server, from));
        if let Some(waker) = waiting.acceptor.take() {
            waker.wake();
        }
        Ok(SimConn {
            read: SimReadHalf { node: Arc::clone(node), pipe: back, until: None },
            write: SimWriteHalf { node: Arc::clone(node), pipe: there },
        })
    }

    /// The node is gone: its listeners close and its connections are reset.
    pub(super) fn forget_node(&self, name: &str) {
        let mut state = self.state.lock();
        let gone: Vec<String> = (state.listeners.iter())
            .filter(|(_, accepting)| accepting.name == name)
            .map(|(addr, _)| addr.clone())
            .collect();
        for addr in gone {
            state.listeners.remove(&addr);
        }
        let pipes = state.pipes.remove(name).unwrap_or_default();
        drop(state);
        for pipe in pipes.iter().filter_map(Weak::upgrade) {
            pipe.reset();
        }
    }
}

/// Accepts simulated connections.
pub struct SimListener {
    local: SocketAddr,
    accepting: Arc<Accepting>,
}

impl SimListener {
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) async fn accept(&self) -> io::Result<(SimConn, SocketAddr)> {
        std::future::poll_fn(|cx| {
            let mut waiting = self.accepting.waiting.lock();
            match waiting.conns.pop_front() {
                Some(conn) => Poll::Ready(Ok(conn)),
                None => {
                    waiting.acceptor = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// One end of a simulated connection.
pub struct SimConn {
    read: SimReadHalf,
    write: SimWriteHalf,
}

impl SimConn {
    pub(crate) fn into_split(self) -> (SimReadHalf, SimWriteHalf) {
        (self.read, self.write)
    }
}

/// The half that is read.
pub struct SimReadHalf {
    node: Arc<Node>,
    pipe: Arc<Pipe>,
    until: Option<Pin<Box<Sleep>>>,
}

/// The half that is written. Dropping it ends the stream.
pub struct SimWriteHalf {
    node: Arc<Node>,
    pipe: Arc<Pipe>,
}

impl SimReadHalf {
    fn delay_left(&self, arrival_us: u64) -> Option<Duration> {
        let now_us = self.node.now_us();
        (arrival_us > now_us).then(|| Duration::from_micros(arrival_us - now_us))
    }
}

impl AsyncRead for SimReadHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if let Some(until) = &mut self.until {
                ready!(until.as_mut().poll(cx));
                self.until = None;
            }
            let pipe = Arc::clone(&self.pipe);
            let cut = self.node.shared.network.is_cut(&pipe.ends);
            let mut state = pipe.state.lock();
            if cut && !state.reset {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            if state.reset {
                return Poll::Ready(Err(was_reset()));
            }
            let Some((arrival_us, _)) = state.arriving.front() else {
                if state.ended {
                    return Poll::Ready(Ok(()));
                }
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            };
            if let Some(left) = self.delay_left(*arrival_us) {
                self.until = Some(Box::pin(tokio::time::sleep(left)));
                continue;
            }
            let mut moved = 0;
            if let Some((_, bytes)) = state.arriving.front_mut() {
                moved = bytes.len().min(buf.remaining());
                buf.put_slice(&bytes[..moved]);
                bytes.advance(moved);
            }
            if state.arriving.front().is_some_and(|(_, bytes)| bytes.is_empty()) {
                state.arriving.pop_front();
            }
            state.bytes -= moved;
            if let Some(waker) = state.writer.take() {
                waker.wake();
            }
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for SimWriteHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let node = &self.node;
        let mut state = self.pipe.state.lock();
        if state.reset {
            return Poll::Ready(Err(was_reset()));
        }
        let room = PIPE_BYTES.saturating_sub(state.bytes);
        if room == 0 {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        if let Err(error) = node.step("send") {
            return Poll::Ready(Err(error));
        }
        let taken = room.min(buf.len());
        let delay_us = node.shared.rng.lock().below(2_000);
        let mut state = self.pipe.state.lock();
        let arrival_us = (node.now_us() + delay_us).max(state.last_arrival_us);
        state.last_arrival_us = arrival_us;
        state.bytes += taken;
        state.arriving.push_back((arrival_us, Bytes::copy_from_slice(&buf[..taken])));
        if let Some(waker) = state.reader.take() {
            waker.wake();
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl SimWriteHalf {
    fn end(&self) {
        let mut state = self.pipe.state.lock();
        state.ended = true;
        if let Some(waker) = state.reader.take() {
            waker.wake();
        }
    }
}

impl Drop for SimWriteHalf {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for SimReadHalf {
    fn drop(&mut self) {
        // Nobody will read what is still sent: the writer must hear of it.
        self.pipe.reset();
    }
}

impl AsyncRead for SimConn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for SimConn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
