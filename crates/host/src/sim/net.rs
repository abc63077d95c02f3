//! The simulated network: listeners by address, connections as pairs of pipes with a delay.
//!
//! Bytes arrive in order, after a delay drawn from the seed, or not at all if an end dies. A pipe holds a bounded
//! number of bytes; a writer beyond it waits, as TCP's would. How it is from one node to another, a [`Link`] says: nothing is
//! ever lost for good on a connection that lives, as TCP sends it again, so loss shows as delay. The end of a connection
//! travels as bytes do: behind a cut nobody hears of it.

use std::collections::{BTreeMap, VecDeque};
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
use super::{Shared, SimRng};

/// Bytes on their way in one direction before the writer waits.
const PIPE_BYTES: usize = 1 << 20;
/// The longest that a piece takes where nothing is wrong.
const DELAY_US: u64 = 2_000;
/// TCP sends again what is lost after so long, then after twice as long, and so on.
const RESEND_US: u64 = 200_000;
const RESENDS: u32 = 5;
/// A connection that nobody answers is asked for again after so long; then it is given up.
pub(super) const ASK_AGAIN: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];

/// How the network is from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    /// Nothing arrives, and nobody is told. What is sent waits.
    pub cut: bool,
    /// Each piece takes up to so much longer.
    pub delay: Duration,
    /// So many pieces of a million are lost, and arrive when TCP has sent them again.
    pub lost_ppm: u32,
}

#[derive(Default)]
pub(super) struct Network {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    listeners: BTreeMap<String, Arc<Accepting>>,
    /// Who listened at an address last, also if it is gone.
    known: BTreeMap<String, String>,
    pipes: BTreeMap<String, Vec<Weak<Pipe>>>,
    /// (from, to): where it is not as [`Link::default`].
    links: BTreeMap<(String, String), Link>,
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
    /// (from, to), as in [`State::links`].
    ends: (String, String),
    /// (to, from).
    back: (String, String),
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
    fn new(from: &str, to: &str) -> Self {
        let ends = (from.to_owned(), to.to_owned());
        Self { back: (ends.1.clone(), ends.0.clone()), ends, state: Mutex::default() }
    }

    fn reset(&self) {
        let mut state = self.state.lock();
        state.reset = true;
        state.arriving.clear();
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        let mut state = self.state.lock();
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

impl State {
    fn link(&self, ends: &(String, String)) -> Link {
        if self.links.is_empty() {
            return Link::default();
        }
        self.links.get(ends).copied().unwrap_or_default()
    }

    /// Those between two nodes, of whom one may be gone.
    fn between(&self, a: &str, b: &str) -> Vec<Arc<Pipe>> {
        let pipes = [a, b].into_iter().filter_map(|owner| self.pipes.get(owner)).flatten();
        let joins = |pipe: &Arc<Pipe>| [&pipe.ends, &pipe.back].iter().any(|ends| ends.0 == a && ends.1 == b);
        pipes.filter_map(Weak::upgrade).filter(joins).collect()
    }
}

impl Network {
    /// How it is from now on. What waited behind a cut that ends arrives.
    pub(super) fn set_link(&self, from: &str, to: &str, link: Link) {
        let mut state = self.state.lock();
        let ends = (from.to_owned(), to.to_owned());
        if link == Link::default() {
            state.links.remove(&ends);
        } else {
            state.links.insert(ends, link);
        }
        let pipes = state.between(from, to);
        drop(state);
        pipes.iter().for_each(|pipe| pipe.wake());
    }

    /// Connections between these two end, as far as anything arrives there.
    pub(super) fn reset(&self, a: &str, b: &str) {
        let pipes = self.state.lock().between(a, b);
        pipes.iter().for_each(|pipe| pipe.reset());
    }

    fn link(&self, ends: &(String, String)) -> Link {
        self.state.lock().link(ends)
    }

    /// Whether it is the address of somebody who is not heard, or does not hear.
    pub(super) fn is_cut_off(&self, node: &Node, addr: &str) -> bool {
        let Ok(remote) = parse(addr) else { return false };
        let state = self.state.lock();
        let Some(name) = state.known.get(&remote.to_string()) else { return false };
        let there = (node.name().to_owned(), name.clone());
        let back = (there.1.clone(), there.0.clone());
        state.link(&there).cut || state.link(&back).cut
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
        state.known.insert(local.to_string(), node.name().to_owned());
        state.listeners.insert(local.to_string(), Arc::clone(&accepting));
        Ok(SimListener { local, accepting, shared: Arc::clone(&node.shared) })
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
        state.connections = state.connections.wrapping_add(1);
        let from = SocketAddr::from(([127, 0, 0, 1], 32768 | state.connections));
        let there = Arc::new(Pipe::new(node.name(), &accepting.name));
        let back = Arc::new(Pipe::new(&accepting.name, node.name()));
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

    /// Nobody accepts there any more; connections that wait are reset.
    fn unlisten(&self, listener: &SimListener) {
        let mut state = self.state.lock();
        let addr = listener.local.to_string();
        // The node may be gone, and its next life listen there.
        if state.listeners.get(&addr).is_some_and(|there| Arc::ptr_eq(there, &listener.accepting)) {
            state.listeners.remove(&addr);
        }
        drop(state);
        let waiting = std::mem::take(&mut listener.accepting.waiting.lock().conns);
        drop(waiting);
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
    shared: Arc<Shared>,
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

impl Drop for SimListener {
    fn drop(&mut self) {
        self.shared.network.unlisten(self);
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
            let cut = self.node.shared.network.link(&pipe.ends).cut;
            let mut state = pipe.state.lock();
            if cut {
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
        let network = &node.shared.network;
        let (link, back) = (network.link(&self.pipe.ends), network.link(&self.pipe.back));
        let mut state = self.pipe.state.lock();
        if state.reset && !back.cut {
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
        let delay_us = delay_us(&mut node.shared.rng.lock(), link);
        let mut state = self.pipe.state.lock();
        let arrival_us = (node.now_us() + delay_us).max(state.last_arrival_us);
        state.last_arrival_us = arrival_us;
        state.bytes += taken;
        if !state.reset {
            state.arriving.push_back((arrival_us, Bytes::copy_from_slice(&buf[..taken])));
        }
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

/// How long one piece is on its way.
fn delay_us(rng: &mut SimRng, link: Link) -> u64 {
    let mut delay_us = rng.below(DELAY_US);
    let most_us = u64::try_from(link.delay.as_micros()).unwrap_or(u64::MAX);
    if most_us > 0 {
        delay_us += rng.below(most_us);
    }
    for resend in 0..RESENDS {
        if link.lost_ppm == 0 || rng.below(1_000_000) >= u64::from(link.lost_ppm) {
            break;
        }
        delay_us += RESEND_US << resend;
    }
    delay_us
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
