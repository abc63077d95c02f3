//! The transport of a node, and its peers.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{Host, Spawner, Task, watch};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::error::{CallError, RpcError};
use crate::handshake::{Identity, VERSIONS};
use crate::line::Line;
use crate::link::{Flag, Pace};
use crate::metrics::ChannelMetrics;
use crate::options::RpcOptions;
use crate::serve::{self, Server, Service};
use crate::stream::Incoming;
use crate::{Channel, Method, ServiceId};

/// How long [`Rpc::stop`] waits for connections to end.
const STOP: Duration = Duration::from_secs(2);

/// What the parts of a transport share.
pub(crate) struct Shared {
    pub(crate) host: Host,
    /// The runtime that everything here runs on; callers may be on another, or on none.
    pub(crate) spawner: Spawner,
    pub(crate) options: RpcOptions,
    pub(crate) identity: Identity,
    pub(crate) server: Server,
    pub(crate) stopped: Flag,
    metrics: [Arc<ChannelMetrics>; Channel::COUNT],
}

impl Shared {
    pub(crate) fn metrics(&self, channel: Channel) -> &Arc<ChannelMetrics> {
        &self.metrics[channel as usize]
    }

    pub(crate) fn pace(&self) -> Pace {
        Pace {
            ping_interval: self.options.ping_interval,
            dead_after: self.options.dead_after,
            write_stall: self.options.write_stall,
        }
    }
}

/// A node's transport. A clone is the same one. It runs until [`Rpc::stop`].
#[derive(Clone)]
pub struct Rpc {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    local: SocketAddr,
    acceptor: Mutex<Option<Task>>,
    peers: Mutex<BTreeMap<(i32, String), Peer>>,
}

impl Rpc {
    /// Listens. Everything of this transport, callbacks and services' calls too, runs on the runtime it is started on.
    /// Requests for a service that is not registered yet are refused with [`crate::codes::NO_SERVICE`].
    pub async fn start(host: &Host, options: RpcOptions) -> Result<Self, RpcError> {
        options.check()?;
        let listen = |source| RpcError::Listen { address: options.listen.clone(), source };
        let listener = host.listen(&options.listen).await.map_err(listen)?;
        let local = listener.local_addr().map_err(listen)?;
        let shared = Arc::new(Shared {
            host: host.clone(),
            spawner: Spawner::current(),
            identity: Identity {
                node_id: options.node_id,
                cluster_id: options.cluster_id.clone(),
                key: options.secret.key().clone(),
                max_message_bytes: u32::try_from(options.max_message_bytes).unwrap_or(u32::MAX),
                versions: VERSIONS,
                features: 0,
            },
            server: Server::new(options.max_inbound_bytes),
            stopped: Flag::default(),
            metrics: Channel::ALL.map(|channel| Arc::new(options.metrics.of(channel))),
            options,
        });
        let acceptor = host.spawn("rpc-accept", serve::accept(Arc::clone(&shared), listener));
        let inner = Inner { shared, local, acceptor: Mutex::new(Some(acceptor)), peers: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// This node.
    pub fn node_id(&self) -> i32 {
        self.inner.shared.options.node_id
    }

    /// Answers a service's requests from now on; instead of an earlier handler, if there was one.
    pub fn register(&self, service: ServiceId, handler: Arc<dyn Service>) {
        self.inner.shared.server.register(service.0, handler);
    }

    /// The node that should be at this address (`host:port`). Cheap, and the same one each time. Each channel connects
    /// at its first call and stays connected.
    pub fn peer(&self, node_id: i32, address: &str) -> Peer {
        let shared = &self.inner.shared;
        let mut peers = self.inner.peers.lock();
        if let Some(peer) = peers.get(&(node_id, address.to_owned())) {
            return peer.clone();
        }
        let lines = Channel::ALL.map(|channel| Line::start(shared, node_id, address, channel));
        let peer = Peer { inner: Arc::new(PeerInner { node_id, address: address.to_owned(), lines }) };
        if shared.stopped.is_set() {
            peer.close(&CallError::Stopped);
        }
        peers.insert((node_id, address.to_owned()), peer.clone());
        peer
    }

    /// Closes the connections to a peer that is no more. Calls that wait fail, as all later ones of this [`Peer`] do;
    /// [`Rpc::peer`] makes a new one.
    pub fn close_peer(&self, node_id: i32, address: &str) {
        let peer = self.inner.peers.lock().remove(&(node_id, address.to_owned()));
        if let Some(peer) = peer {
            peer.close(&CallError::NotSent("the peer was closed".to_owned()));
        }
    }

    /// Who is connected to this node at the moment, by which channel. A peer that has gone and come back between two
    /// looks is seen by [`Service::connection_closed`] alone.
    pub fn inbound(&self) -> watch::Receiver<BTreeSet<(i32, Channel)>> {
        self.inner.shared.server.connected()
    }

    /// Ends all connections; calls fail with [`CallError::Stopped`], services are let go.
    pub async fn stop(&self) {
        let shared = &self.inner.shared;
        shared.stopped.set();
        let peers: Vec<Peer> = self.inner.peers.lock().values().cloned().collect();
        for peer in peers {
            peer.close(&CallError::Stopped);
        }
        shared.server.end_connections("stopped");
        let acceptor = self.inner.acceptor.lock().take();
        if let Some(acceptor) = acceptor {
            acceptor.join().await;
        }
        let began = Instant::now();
        while shared.server.has_connections() && began.elapsed() < STOP {
            sleep(Duration::from_millis(1)).await;
        }
        shared.server.forget_services();
    }
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("node_id", &self.node_id()).field("local", &self.inner.local).finish()
    }
}

/// A node to call. A clone is the same one.
#[derive(Clone)]
pub struct Peer {
    inner: Arc<PeerInner>,
}

struct PeerInner {
    node_id: i32,
    address: String,
    lines: [Arc<Line>; Channel::COUNT],
}

impl Peer {
    /// Its id.
    pub fn node_id(&self) -> i32 {
        self.inner.node_id
    }

    /// Its address.
    pub fn address(&self) -> &str {
        &self.inner.address
    }

    /// True while a proved connection stands.
    pub fn is_connected(&self, channel: Channel) -> bool {
        self.line(channel).is_connected()
    }

    /// A call. `done` hears of it exactly once, on the transport's runtime and never within this function; it must not
    /// block. In order of the calls on one channel: requests go out in this order, and reach the peer's service in this
    /// order. May be called on any thread. The body is its parts, one after the other; they are not copied.
    pub fn call_with(
        &self,
        channel: Channel,
        method: Method,
        body: Vec<Bytes>,
        deadline: Instant,
        done: impl FnOnce(Result<Bytes, CallError>) + Send + 'static,
    ) {
        self.line(channel).call(method, body, deadline, done);
    }

    /// As [`Self::call_with`]; queued when first polled. Dropping it does not undo the call.
    pub async fn call(
        &self,
        channel: Channel,
        method: Method,
        body: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Bytes, CallError> {
        let (done, answer) = oneshot::channel();
        self.call_with(channel, method, body, deadline, move |result| {
            // Nobody waits for it any longer: so be it.
            let _ = done.send(result);
        });
        answer.await.unwrap_or(Err(CallError::Stopped))
    }

    /// Asks for a stream; returns once the request has gone out, in order with the calls, or has failed to within 10 s.
    pub async fn stream(
        &self,
        channel: Channel,
        method: Method,
        body: Vec<Bytes>,
    ) -> Result<Incoming, CallError> {
        let line = self.line(channel);
        let (id, taker) = line.stream(method, body);
        let incoming = Incoming::new(Arc::clone(line), id, Arc::clone(&taker));
        taker.wait_opened().await?;
        Ok(incoming)
    }

    fn line(&self, channel: Channel) -> &Arc<Line> {
        &self.inner.lines[channel as usize]
    }

    fn close(&self, error: &CallError) {
        for line in &self.inner.lines {
            line.close(error.clone());
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} at {})", self.inner.node_id, self.inner.address)
    }
}
