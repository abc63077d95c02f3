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
//!    connection is not read while [`crate::inbound::OUTBOX_BYTES`] of answers wait for it, so a peer that does not read is soon not read
//!    either; what was let in before may still answer, up to `max_outbound_bytes` over all connections, where the connection
//!    is closed.
//! 5. Each request is answered once: a [`Reply`] or [`crate::Outgoing`] that is dropped refuses with [`crate::codes::DROPPED`].
//!
//! Accepted leak: a connection that has not proved itself holds one task and 1 KiB until its time is over; at most
//! [`MAX_UNPROVED`] do.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{Conn, Listener, watch};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::Channel;
use crate::error::{Ended, HandshakeError};
use crate::handshake::{self, Agreed};
use crate::inbound::Inbound;
use crate::link;
use crate::reply::Reply;
use crate::rpc::Shared;

const MAX_UNPROVED: usize = 64;
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How many kinds of refused handshakes are remembered, to log each once.
const MAX_TOLD: usize = 256;

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
    pub(crate) services: RwLock<BTreeMap<u8, Arc<dyn Service>>>,
    pub(crate) budgets: [Arc<Semaphore>; Channel::COUNT],
    pub(crate) budget_bytes: usize,
    pub(crate) outbound_bytes: AtomicUsize,
    unproved: AtomicUsize,
    pub(crate) last_connection: AtomicU64,
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

/// Lets go of the services of a transport whose runtime ends without [`crate::Rpc::stop`], as a simulated process does when it
/// dies: services hold the transport that holds them, and would be there for ever.
struct LetGo<'a>(&'a Shared);

impl Drop for LetGo<'_> {
    fn drop(&mut self) {
        if !self.0.stopped.is_set() {
            self.0.server.forget_services();
        }
    }
}

/// Accepts connections until the transport is stopped.
pub(crate) async fn accept(shared: Arc<Shared>, listener: Listener) {
    let _let_go = LetGo(&shared);
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
