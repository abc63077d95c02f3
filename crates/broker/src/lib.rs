//! The Kafka side of a node: listeners, request handlers, the accumulator, fetch, and the shell around groups.
//!
//! Owns: client connections, the broker's session in metadata with its lanes, the live image, fetch sessions, groups'
//! timing. All of it is soft: a broker that dies loses nothing that was acknowledged.
//!
//! Promises: Kafka's answers, errors and order (`docs/architecture.md` follows a Produce and a Fetch through here); a
//! success is told only after the commit is applied; an end, an absence or a commitment only behind a read barrier.
//!
//! May not know: files, and what Raft is inside.

mod accumulator;
mod budget;
mod cluster;
#[cfg(test)]
mod cluster_tests;
mod commits;
mod configs;
mod connection;
mod delete_records;
mod dispatch;
mod doubt;
mod fetch;
mod group;
#[cfg(test)]
mod lane_tests;
mod list_offsets;
mod live;
mod metrics;
mod options;
mod produce;
mod producer_ids;
mod rewrite;
mod sequencing;
mod session;
mod sink;
mod steering;
mod topics;
mod upkeep;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use isobar_host::watch;
use isobar_host::{BufferPool, Host, Listener, Task};
use isobar_metadata::command::{FenceSession, RegisterSession, UpdateSession};
use isobar_metadata::record::SessionState;
use isobar_metadata::{
    Command, CommandResult, DirectoryId, Durability, EffectBatch, EffectKind, Image, PlacementId, SessionId,
    StoreId, StreamId, lane_of,
};
use isobar_protocol::error::ErrorCode;
use isobar_raft::{EffectStream, ProposeError, Quorum};
use isobar_store::{ChunkStore, ChunkStoreParts, Class, IndexReader, ObjectReader, ProposeFailed, Proposer};
use isobar_wal::Wal;

pub use doubt::Doubts;
pub use live::LiveImage;
pub use metrics::Metrics;
pub use options::Options;
pub use session::{Alone, Ensembles, Session, register_directory};
use sink::Sink;

/// How long a request waits for the image to reach a barrier before its client is told to try again.
const BARRIER_PATIENCE: Duration = Duration::from_secs(5);
/// Buffer memory that chunks leave behind for the next ones.
const POOL_KEPT_BYTES: usize = 32 << 20;
/// How often a starting broker looks for WAL replicas. What fails again and again is told every so many times.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const SAY_EVERY: u32 = 50;
const FENCED: &str =
    "this broker's session was fenced: it was not heard of in time, or another process of its name has come";
/// The feature level of sessions that say where other nodes reach the broker.
const RPC_LEVEL: u32 = 5;
/// How long a stopping broker waits for its connections to be answered.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);

/// Why a broker could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// Choose another address with `--listen`.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address asked for.
        addr: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// An address in the options is not `host:port`: correct it.
    #[error("{0:?} is not HOST:PORT")]
    Address(String),
    /// The metadata quorum did not answer: start again.
    #[error("the metadata quorum did not answer: {0}")]
    Quorum(#[from] ProposeError),
    /// Too few WAL replicas can be reached for a stream: try again.
    #[error("no stream can be opened: {0}")]
    NoEnsemble(String),
    /// Its session was fenced before it could serve: it was paused, or cut off from the quorum's leader. Start again.
    #[error(
        "this node was not heard of by the metadata quorum's leader for a session's timeout while it started (paused, or cut \
         off?), and is fenced: start it again"
    )]
    Fenced,
    /// The metadata quorum refused what a starting broker needs.
    #[error("the metadata quorum refused {what}: {answer}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        answer: String,
    },
}

/// What a broker stands on.
pub struct Parts {
    /// The metadata quorum.
    pub quorum: Quorum,
    /// The image to start from, shared with the uploader.
    pub image: Arc<LiveImage>,
    /// Where chunks go.
    pub wal: Arc<dyn Wal>,
    /// The local WAL directory, registered by the caller; `None`: this node has no replica.
    pub directory: Option<DirectoryId>,
    /// Where streams are opened.
    pub ensembles: Arc<dyn Ensembles>,
    /// Reads objects of the home store.
    pub objects: ObjectReader,
    /// The store that this broker's objects go to.
    pub home_store: StoreId,
    /// Where other nodes reach this one; empty: there are none.
    pub rpc_address: String,
    /// The broker's metrics, registered by the caller.
    pub metrics: Arc<Metrics>,
    /// Told which nodes are heard.
    pub doubts: Arc<Doubts>,
    /// Told how many batch bytes each effect batch appended, once the image shows them.
    pub on_appended: Arc<dyn Fn(u64) + Send + Sync>,
    /// Told of the broker's session once it is registered: from then on it must be kept alive.
    pub on_registered: Box<dyn Fn(SessionId) + Send + Sync>,
}

/// What handlers share.
pub(crate) struct Broker {
    pub(crate) host: Host,
    pub(crate) options: Options,
    pub(crate) quorum: Quorum,
    pub(crate) session: Arc<Session>,
    pub(crate) image: Arc<LiveImage>,
    pub(crate) wal: Arc<dyn Wal>,
    pub(crate) objects: ObjectReader,
    /// Opens index blocks of the same store.
    pub(crate) index: IndexReader,
    pub(crate) home_store: StoreId,
    pub(crate) lanes: accumulator::Lanes,
    pub(crate) budget: budget::Budget,
    pub(crate) fetch_sessions: fetch::session::Sessions,
    pub(crate) groups: group::Groups,
    pub(crate) doubts: Arc<Doubts>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) draining: watch::Receiver<bool>,
}

impl Broker {
    /// Whether what one broker must see to for all is this one's: it has the lowest id.
    pub(crate) fn keeps_cluster(&self) -> bool {
        let me = self.session.id();
        self.image.with(|image| image.brokers().first().is_some_and(|session| session.session == me))
    }

    /// A read barrier: after it, the image has all that anyone was told before it began.
    pub(crate) async fn barrier(&self) -> Result<(), ErrorCode> {
        if self.host.sabotaged("no-barrier") {
            return Ok(());
        }
        let index = self.quorum.barrier().await.map_err(|error| {
            tracing::warn!(%error, "a read barrier failed");
            ErrorCode::LeaderNotAvailable
        })?;
        if self.image.at_least(index, BARRIER_PATIENCE).await {
            Ok(())
        } else {
            Err(ErrorCode::LeaderNotAvailable)
        }
    }

    /// Waits until the image has what a command that was just answered did.
    pub(crate) async fn settled(&self) {
        self.image.at_least(self.quorum.acknowledged(), BARRIER_PATIENCE).await;
    }
}

/// A running broker.
pub struct RunningBroker {
    broker: Arc<Broker>,
    local_addr: SocketAddr,
    drain: watch::Sender<bool>,
    accepting: Task,
    following: Task,
    rolling: Task,
    over: watch::Receiver<Option<String>>,
}

/// Splits `host:port`; the host of an IPv6 address may stand in brackets.
pub fn split_host_port(addr: &str) -> Result<(String, u16), BrokerError> {
    let wrong = || BrokerError::Address(addr.to_owned());
    let (host, port) = addr.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() { Err(wrong()) } else { Ok((host.to_owned(), port)) }
}

impl RunningBroker {
    /// Listens, registers, and serves until [`RunningBroker::stop`].
    pub async fn start(
        host: &Host,
        options: Options,
        parts: Parts,
        effects: EffectStream,
    ) -> Result<Self, BrokerError> {
        let listen_failed = |source| BrokerError::Listen { addr: options.listen.clone(), source };
        let listener = host.listen(&options.listen).await.map_err(listen_failed)?;
        let local_addr = listener.local_addr().map_err(listen_failed)?;
        let registration = registration(host, &options, local_addr, &parts)?;
        let (tell_over, over) = watch::channel(None);
        let known: Arc<OnceLock<SessionId>> = Arc::default();
        let following = Following {
            image: Arc::clone(&parts.image),
            wal: Arc::clone(&parts.wal),
            session: Arc::clone(&known),
            on_appended: parts.on_appended.clone(),
        };
        let following = following.run(effects);
        let tell = tell_over.clone();
        let following = host.spawn("broker.follow", async move {
            tell.send_replace(Some(following.await));
        });
        // Who cannot write must not be among the brokers: clients would be sent to it.
        tokio::select! {
            biased;
            // Then nobody tells this node of replicas any more.
            () = parts.quorum.stopped() => return Err(ProposeError::Stopping.into()),
            () = wait_for_replicas(&*parts.ensembles) => {}
        }
        let session = Arc::new(Session::register(&parts.quorum, registration).await?);
        let _ = known.set(session.id());
        (parts.on_registered)(session.id());
        let lanes = open_lanes(host, &options, &parts, &session, tell_over).await?;
        let (drain, draining) = watch::channel(false);
        let broker = Arc::new(Broker {
            host: host.clone(),
            quorum: parts.quorum,
            session,
            image: parts.image,
            wal: parts.wal,
            index: IndexReader::new(parts.objects.clone()),
            objects: parts.objects,
            home_store: parts.home_store,
            lanes,
            budget: budget::Budget::new(options.queued_max_request_bytes),
            fetch_sessions: fetch::session::Sessions::new(options.fetch_session_slots),
            groups: group::Groups::new(&options),
            doubts: parts.doubts,
            metrics: parts.metrics,
            draining,
            options,
        });
        // The image must show this broker to its first client.
        broker.settled().await;
        group::start(&broker);
        upkeep::start(&broker);
        let rolling = host.spawn("lane.whole", Arc::clone(&broker.lanes.wal).keep_whole());
        let accepting = accept(Arc::clone(&broker), listener);
        Ok(Self { broker, local_addr, drain, accepting, following, rolling, over })
    }

    /// Where clients connect.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// `Err(reason)` when it can no longer write.
    pub fn health(&self) -> Result<(), String> {
        if self.broker.lanes.all().iter().any(|(_, lane)| lane.is_stopped()) {
            return Err("the write path has stopped; see the log, then restart".to_owned());
        }
        match &*self.over.borrow() {
            Some(why) => Err(format!("this broker's life is over: {why}")),
            None => Ok(()),
        }
    }

    /// Why this broker's life is over, once that is so: it answers no more writes, and must be started anew.
    pub fn over(&self) -> watch::Receiver<Option<String>> {
        self.over.clone()
    }

    /// The metadata state machine's clock: the time of the last entry that this broker's image has.
    pub fn metadata_time_ms(&self) -> i64 {
        self.broker.image.with(|image| image.time_ms())
    }

    /// Refreshes the gauges that are read rather than counted.
    pub fn refresh_metrics(&self) {
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let metrics = &self.broker.metrics;
        let queued = self.broker.lanes.all().iter().map(|(_, lane)| lane.queued_bytes()).sum();
        metrics.lane_bytes.set(signed(queued));
        metrics.request_bytes_held.set(signed(self.broker.budget.held_bytes()));
        metrics.fetch_sessions.set(signed(self.broker.fetch_sessions.len()));
        self.broker.groups.refresh_metrics(metrics);
    }

    /// A handle that proposes by this broker's session.
    pub fn proposer(&self) -> SessionProposer {
        let Broker { image, session, .. } = &*self.broker;
        SessionProposer { image: Arc::clone(image), session: Arc::clone(session) }
    }

    /// Stops taking requests, answers those that were read, and returns when the connections are closed or patience
    /// has ended.
    pub async fn drain(&self) {
        self.accepting.abort();
        self.drain.send_replace(true);
        let all_closed = async {
            while self.broker.metrics.connections.get() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(DRAIN_PATIENCE, all_closed).await.is_err() {
            tracing::warn!(
                left = self.broker.metrics.connections.get(),
                "connections were cut while draining"
            );
        }
    }

    /// This broker's session.
    pub fn session_id(&self) -> SessionId {
        self.broker.session.id()
    }

    /// Leaves the leader map, so that clients turn to others while this broker drains.
    pub async fn leave(&self) {
        let session = self.broker.session.id();
        let state = SessionState::Draining as i32;
        self.say(Command::UpdateSession(UpdateSession { session, state })).await;
    }

    /// Ends the session, so that nobody waits for this broker. To be called after [`RunningBroker::drain`].
    pub async fn deregister(&self) {
        let session = self.broker.session.id();
        self.say(Command::FenceSession(FenceSession { session })).await;
    }

    async fn say(&self, command: Command) {
        let said = tokio::time::timeout(BARRIER_PATIENCE, self.broker.session.propose(command)).await;
        if !matches!(said, Ok(Ok(_))) {
            tracing::warn!(answer = ?said, "the others were not told that this broker goes; they will find out");
        }
    }

    /// Lets go of all clients at once, and answers what waits.
    pub fn cut(&self) {
        self.accepting.abort();
        self.drain.send_replace(true);
        self.stop();
    }

    /// Stops the write path, and following metadata. To be called after [`RunningBroker::drain`].
    pub fn stop(&self) {
        self.rolling.abort();
        self.following.abort();
        self.broker.lanes.all().iter().for_each(|(_, lane)| lane.end());
    }
}

/// Returns once a stream could be opened.
async fn wait_for_replicas(ensembles: &dyn Ensembles) {
    let mut waited = 0_u32;
    while let Err(why) = ensembles.choose().await {
        if waited.is_multiple_of(SAY_EVERY) {
            tracing::warn!(why, "waiting for WAL replicas");
        }
        waited += 1;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Opens a lane for each durability class, in the default placement.
async fn open_lanes(
    host: &Host,
    options: &Options,
    parts: &Parts,
    session: &Arc<Session>,
    over: watch::Sender<Option<String>>,
) -> Result<accumulator::Lanes, BrokerError> {
    let pool = BufferPool::new(POOL_KEPT_BYTES);
    let open = |lane, sink, stream, limits| {
        let target = accumulator::LaneTarget {
            session: Arc::clone(session),
            lane,
            sink,
            stream,
            ensembles: Arc::clone(&parts.ensembles),
            quorum: parts.quorum.clone(),
            over: over.clone(),
        };
        accumulator::Lane::new(host.clone(), target, pool.clone(), Arc::clone(&parts.metrics), limits)
    };
    let wal_lane = lane_of(Durability::Wal, PlacementId::DEFAULT);
    let stream = loop {
        match session.open_stream(wal_lane, &*parts.ensembles).await {
            Ok(stream) => break stream,
            // It could be a moment ago; and a metadata quorum that elects its leader has one soon.
            Err(
                error @ (BrokerError::NoEnsemble(_)
                | BrokerError::Quorum(
                    ProposeError::Busy { .. } | ProposeError::NotLeader { .. } | ProposeError::Unknown { .. },
                )),
            ) => tracing::warn!(%error, "no stream yet"),
            Err(error) => return Err(error),
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    };
    let wal_limits = accumulator::Limits {
        max_bytes: options.lane_max_bytes,
        max_in_flight: options.lane_max_in_flight,
        chunk_target_bytes: options.chunk_target_bytes,
        linger: Duration::ZERO,
    };
    let object_lane = lane_of(Durability::Object, PlacementId::DEFAULT);
    let proposer = SessionProposer { image: Arc::clone(&parts.image), session: Arc::clone(session) };
    let chunks = ChunkStore::new(ChunkStoreParts {
        host: host.clone(),
        bucket: parts.objects.bucket().with_class(Class::Upload),
        store: parts.home_store,
        cache: Arc::clone(parts.objects.cache()),
        proposer: Arc::new(proposer),
        session: session.id(),
        lane: object_lane,
    });
    let object_limits = accumulator::Limits {
        max_bytes: options.lane_max_bytes,
        max_in_flight: options.lane_max_in_flight,
        chunk_target_bytes: options.object_target_bytes,
        linger: Duration::from_millis(options.object_linger_ms),
    };
    Ok(accumulator::Lanes {
        wal: open(wal_lane, Sink::Wal(Arc::clone(&parts.wal)), stream, wal_limits),
        object: open(object_lane, Sink::Object(chunks), StreamId::default(), object_limits),
    })
}

/// The way of the store's tasks to metadata: the live image, and the broker's session.
#[derive(Clone)]
pub struct SessionProposer {
    image: Arc<LiveImage>,
    session: Arc<Session>,
}

#[async_trait]
impl Proposer for SessionProposer {
    fn image(&self) -> Image {
        self.image.snapshot()
    }

    async fn barrier(&self) -> Result<(), ProposeFailed> {
        let index = self.session.barrier().await.map_err(|error| ProposeFailed(error.to_string()))?;
        if self.image.at_least(index, BARRIER_PATIENCE).await {
            return Ok(());
        }
        Err(ProposeFailed(format!("this node's image is behind index {index}")))
    }

    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed> {
        self.session.propose(command).await.map_err(|error| ProposeFailed(error.to_string()))
    }

    fn session(&self) -> SessionId {
        self.session.id()
    }
}

fn registration(
    host: &Host,
    options: &Options,
    local_addr: SocketAddr,
    parts: &Parts,
) -> Result<RegisterSession, BrokerError> {
    let (advertised_host, port) = match &options.advertise {
        Some(addr) => split_host_port(addr)?,
        // The host as it was written, so that a name stays a name; the port that was really given.
        None => (split_host_port(&options.listen)?.0, local_addr.port()),
    };
    Ok(RegisterSession {
        node_id: options.node_id,
        life: DirectoryId(isobar_protocol::Uuid::from_bytes(host.random_uuid())),
        host: advertised_host,
        port: i32::from(port),
        cloud: String::new(),
        region: String::new(),
        zone: options.rack.clone().unwrap_or_default(),
        home_store: parts.home_store,
        directory: parts.directory,
        feature_level: isobar_metadata::command::FEATURE_LEVEL,
        rpc: match parts.image.with(Image::feature_level) {
            ..RPC_LEVEL => String::new(),
            _ => parts.rpc_address.clone(),
        },
    })
}

/// Moves the image along the quorum's effects, until that cannot go on: says why, for this broker's life is over then. A node
/// that was stopped for a while may have fallen out of the effects' ring, or may find its session fenced.
struct Following {
    image: Arc<LiveImage>,
    wal: Arc<dyn Wal>,
    /// Set once it is registered.
    session: Arc<OnceLock<SessionId>>,
    on_appended: Arc<dyn Fn(u64) + Send + Sync>,
}

impl Following {
    async fn run(self, mut effects: EffectStream) -> String {
        loop {
            match effects.next().await {
                Ok(Some(batch)) => {
                    if let Err(error) = self.image.apply(&batch) {
                        tracing::error!(%error, index = batch.index, "effects do not fit the image");
                        return format!("effects at index {} do not fit the image: {error}", batch.index);
                    }
                    self.wal.follow(&batch);
                    (self.on_appended)(appended_bytes(&batch));
                    if self.session.get().is_some_and(|session| ends(&batch, *session)) {
                        return FENCED.to_owned();
                    }
                }
                Ok(None) => return "the metadata node has stopped".to_owned(),
                Err(lagged) => return format!("the image has fallen out of the effects' ring: {lagged:?}"),
            }
        }
    }
}

/// Whether these effects end the session.
fn ends(batch: &EffectBatch, session: SessionId) -> bool {
    batch.effects.iter().any(|effect| match &effect.kind {
        Some(EffectKind::Session(record)) => record.session == session && record.is_fenced(),
        Some(EffectKind::SessionForgotten(forgotten)) => forgotten.session == session,
        _ => false,
    })
}

fn appended_bytes(batch: &EffectBatch) -> u64 {
    let appended = batch.effects.iter().filter_map(|effect| match &effect.kind {
        Some(EffectKind::Appended(appended)) if appended.store.is_none() => Some(appended.extent.size_bytes),
        _ => None,
    });
    appended.sum()
}

fn accept(broker: Arc<Broker>, listener: Listener) -> Task {
    let spawner = broker.host.clone();
    spawner.clone().spawn("broker.accept", async move {
        loop {
            match listener.accept().await {
                Ok((conn, peer)) => {
                    let most = i64::try_from(broker.options.max_connections).unwrap_or(i64::MAX);
                    if broker.metrics.connections.get() >= most {
                        broker.metrics.connections_refused.inc();
                        tracing::warn!(%peer, "connection refused: max.connections are open");
                        continue;
                    }
                    broker.metrics.connections.inc();
                    let client = connection::Client::new(peer);
                    spawner.spawn("broker.connection", connection::serve(Arc::clone(&broker), conn, client));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    })
}
