//! Heartbeats of brokers, and the leader that listens to them.
//!
//! Owns: the service LIVENESS of the node's transport, and at the leader the [`Liveness`] of its term.
//!
//! Invariants
//! 1. Only the member that leads decides, after a barrier of its own term, so from the sessions that are really there; and what
//!    it decides is proposed by it or by nobody: a leader that was stopped and has a successor fences no one.
//! 2. Time here moves by at most [`STEP`] a look, and there is a look at least that often: a leader that was itself stopped for a
//!    while does not take it for its brokers' silence.
//! 3. A broker that is answered "unknown" is over: its session is fenced, or will be.
//!
//! Failure: a heartbeat that fails goes again after [`AGAIN`], to whoever leads by then. A decision that was refused, or whose
//! outcome is not known, is made again if it still holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{Host, Task, watch};
use isobar_metadata::command::{FenceSession, UpdateSession};
use isobar_metadata::record::SessionState;
use isobar_metadata::{Command, CommandResult, EffectBatch, EffectKind, Envelope, Image, SessionId};
use isobar_rpc::{Caller, Channel, Method, Refusal, Reply, Rpc, Service, ServiceId};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::leader::Leader;
use crate::liveness::{Decision, Limits, Liveness, MonoMs};
use crate::quorum::Quorum;

/// The most that the leader's time moves between two looks.
const STEP: Duration = Duration::from_millis(250);
/// Before a failed heartbeat or decision goes again.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a heartbeat waits for its answer.
const ANSWER: Duration = Duration::from_secs(2);
/// Of a node with itself: a process is not apart from itself.
const OWN_CONNECTION: u64 = 0;
const BEAT: Method = Method::new(ServiceId::LIVENESS, 1);
/// This member does not lead, or not yet.
const NOT_LEADER: u16 = 1;
const MALFORMED: u16 = 2;

#[derive(Clone, Copy, PartialEq, Message)]
struct Beat {
    #[prost(message, required, tag = "1")]
    session: SessionId,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct BeatAnswer {
    /// False: the session is over.
    #[prost(bool, tag = "1")]
    known: bool,
}

/// What listens at the leader and what beats at a broker. Clones are the same.
#[derive(Clone)]
pub struct Heartbeats {
    quorum: Quorum,
    rpc: Rpc,
    limits: Limits,
    post: Arc<Post>,
}

/// What the service and the leader's task share.
struct Post {
    quorum: Quorum,
    /// While this member leads.
    listening: Mutex<Option<Listening>>,
    wake: Notify,
}

struct Listening {
    liveness: Liveness,
    /// See the module, invariant 2.
    now_ms: MonoMs,
    looked: Instant,
}

impl Listening {
    fn now(&mut self) -> MonoMs {
        let passed = self.looked.elapsed().min(STEP);
        self.looked = Instant::now();
        self.now_ms += u64::try_from(passed.as_millis()).unwrap_or(0);
        // What is below a millisecond is not lost.
        self.looked -= Duration::from_nanos(u64::from(passed.subsec_nanos() % 1_000_000));
        self.now_ms
    }
}

impl Post {
    /// `None`: this member does not lead.
    fn heard(&self, session: SessionId, connection: u64) -> Option<bool> {
        let mut listening = self.listening.lock();
        let listening = listening.as_mut()?;
        let now = listening.now();
        let known = listening.liveness.heartbeat(now, session, connection)
            || (self.is_new(session) && {
                listening.liveness.registered(now, session);
                listening.liveness.heartbeat(now, session, connection)
            });
        self.wake.notify_one();
        Some(known)
    }
}

impl Post {
    /// A broker may beat before its registration's effect has come here; a leader's state has it.
    fn is_new(&self, session: SessionId) -> bool {
        let (image, _) = self.quorum.subscribe();
        image.session(session).is_some_and(|record| !record.is_fenced())
    }
}

struct BeatService(Arc<Post>);

impl Service for BeatService {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        let beat = Beat::decode(body).ok().filter(|_| method == BEAT.method);
        let Some(Beat { session }) = beat else {
            return reply.send(Err(Refusal::new(MALFORMED, "not a heartbeat")));
        };
        reply.send(match self.0.heard(session, from.connection) {
            Some(known) => Ok(vec![BeatAnswer { known }.encode_to_vec().into()]),
            None => Err(Refusal::new(NOT_LEADER, "this member does not lead")),
        });
    }

    fn connection_closed(&self, from: Caller) {
        if let Some(listening) = &mut *self.0.listening.lock() {
            let now = listening.now();
            listening.liveness.closed(now, from.connection);
            self.0.wake.notify_one();
        }
    }
}

impl Heartbeats {
    /// Registers the service, and listens whenever this member leads; the task ends with the member.
    pub fn start(host: &Host, quorum: &Quorum, rpc: &Rpc, limits: Limits) -> (Self, Task) {
        let post =
            Arc::new(Post { quorum: quorum.clone(), listening: Mutex::default(), wake: Notify::new() });
        rpc.register(ServiceId::LIVENESS, Arc::new(BeatService(Arc::clone(&post))));
        let heartbeats = Self { quorum: quorum.clone(), rpc: rpc.clone(), limits, post };
        let (spawner, leading) = (host.clone(), heartbeats.clone());
        let task = host.spawn("raft.liveness", async move { leading.lead(&spawner).await });
        (heartbeats, task)
    }

    async fn lead(self, host: &Host) {
        let mut leader = self.quorum.leader();
        let me = self.quorum.node_id();
        while leader.wait_for(|leader| leader.id == Some(me)).await.is_ok() {
            // Only then is every session in the image that an earlier leader has answered for.
            if self.quorum.barrier().await.is_err() {
                sleep(AGAIN).await;
                continue;
            }
            self.listen(host, &mut leader).await;
            *self.post.listening.lock() = None;
        }
    }

    /// Until this member leads no longer, or has missed effects.
    async fn listen(&self, host: &Host, leader: &mut watch::Receiver<Leader>) {
        let me = self.quorum.node_id();
        let (image, mut effects) = self.quorum.subscribe();
        let liveness = Liveness::elected(self.limits, 0, sessions(&image));
        drop(image);
        *self.post.listening.lock() = Some(Listening { liveness, now_ms: 0, looked: Instant::now() });
        loop {
            let (decisions, wait_ms) = {
                let mut listening = self.post.listening.lock();
                let Some(listening) = listening.as_mut() else { return };
                let now = listening.now();
                let (decisions, next) = listening.liveness.due(now);
                (decisions, next.saturating_sub(now))
            };
            for decision in decisions {
                let heartbeats = self.clone();
                host.spawn("raft.decision", async move { heartbeats.carry_out(decision).await });
            }
            let until = Instant::now() + STEP.min(Duration::from_millis(wait_ms));
            tokio::select! {
                biased;
                changed = leader.changed() => {
                    if changed.is_err() || leader.borrow().id != Some(me) {
                        return;
                    }
                }
                batch = effects.next() => match batch {
                    Ok(Some(batch)) => self.follow(&batch),
                    // Those that were missed may be of sessions: begin anew, as after an election.
                    Ok(None) | Err(_) => return,
                },
                () = self.post.wake.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    fn follow(&self, batch: &EffectBatch) {
        let mut listening = self.post.listening.lock();
        let Some(listening) = listening.as_mut() else { return };
        for effect in &batch.effects {
            match &effect.kind {
                Some(EffectKind::Session(record)) if record.is_fenced() => {
                    listening.liveness.fenced(record.session);
                }
                Some(EffectKind::Session(record)) => {
                    let now = listening.now();
                    listening.liveness.registered(now, record.session);
                    let (suspect, draining) = state_of(record.state);
                    listening.liveness.moved(record.session, suspect, draining);
                }
                Some(EffectKind::SessionForgotten(forgotten)) => {
                    listening.liveness.fenced(forgotten.session);
                }
                _ => {}
            }
        }
    }

    async fn carry_out(&self, decision: Decision) {
        let update = |session, state: SessionState| {
            Command::UpdateSession(UpdateSession { session, state: state as i32 })
        };
        let command = match decision {
            Decision::Suspect(session) => update(session, SessionState::Suspect),
            Decision::Clear(session) => update(session, SessionState::Live),
            Decision::Fence(session) => Command::FenceSession(FenceSession { session }),
        };
        tracing::info!(?decision, "a broker's session");
        let answer = self.quorum.propose_as_leader(Envelope::unnumbered(command)).await;
        if matches!(&answer, Ok(CommandResult::Done(outcome)) if outcome.error_code == 0) {
            return;
        }
        tracing::warn!(?decision, ?answer, "not carried out; again, if it still holds");
        sleep(AGAIN).await;
        if let Some(listening) = &mut *self.post.listening.lock() {
            listening.liveness.again(decision);
        }
        self.post.wake.notify_one();
    }

    /// Beats for a session until it is over, and says why.
    pub async fn keep(&self, session: SessionId) -> String {
        let mut leader = self.quorum.leader();
        let longest = Duration::from_millis(self.limits.session_timeout_ms);
        let interval = Duration::from_millis(self.limits.heartbeat_ms);
        let mut heard = Instant::now();
        loop {
            let now = leader.borrow_and_update().clone();
            let began = Instant::now();
            let pause = match self.beat(&now, session).await {
                Some(true) => {
                    heard = began;
                    interval
                }
                Some(false) => return "the session was fenced".to_owned(),
                None => AGAIN,
            };
            if heard.elapsed() >= longest {
                return format!("no leader of the metadata quorum has answered for {} s", longest.as_secs());
            }
            if let Ok(Err(_)) = timeout(pause, leader.changed()).await {
                return "the metadata node has stopped".to_owned();
            }
        }
    }

    /// Whether the session is known; `None` without an answer.
    async fn beat(&self, leader: &Leader, session: SessionId) -> Option<bool> {
        let id = leader.id?;
        if id == self.quorum.node_id() {
            return self.post.heard(session, OWN_CONNECTION);
        }
        let peer = self.rpc.peer(i32::try_from(id).ok()?, &leader.address);
        let body = vec![Bytes::from(Beat { session }.encode_to_vec())];
        match peer.call(Channel::Control, BEAT, body, Instant::now() + ANSWER).await {
            Ok(answer) => Some(BeatAnswer::decode(answer).ok()?.known),
            Err(error) => {
                tracing::debug!(%error, leader = id, "no answer to a heartbeat");
                None
            }
        }
    }
}

fn state_of(state: i32) -> (bool, bool) {
    (state == SessionState::Suspect as i32, state == SessionState::Draining as i32)
}

/// Those that are not fenced.
fn sessions(image: &Image) -> Vec<(SessionId, bool, bool)> {
    let live = image.brokers().into_iter();
    let with_state = |session: &std::sync::Arc<isobar_metadata::record::SessionRecord>| {
        let (suspect, draining) = state_of(session.state);
        (session.session, suspect, draining)
    };
    live.map(with_state).collect()
}
