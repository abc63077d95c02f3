//! A node that is no member of the quorum and follows it: it has what a broker needs of the metadata, and no directory for it.
//!
//! Owns: an image that moves along the effects which some member tells ([`crate::remote::observed`]), and the ring in which this
//! node's own followers find them. Commands and read barriers go to the leader as a member's do that does not lead ([`crate::propose`],
//! [`crate::barrier`]).
//!
//! Invariants
//! 1. The image is what one after the other of all batches makes of the state it began with: a batch that does not follow the one
//!    before is never applied. Whoever fell behind what members keep takes the whole state anew, and its own followers have lagged.
//! 2. It never goes back: a member that has less is left for another.
//! 3. It may be behind, and then says so as a member does: a read barrier asks the leader, and waits until the image has as much.
//! 4. It stays with a member only while that brings something: one that has told nothing for [`QUIET`] (which may be cut off from
//!    the others, and a leader of old), or lags for [`STUCK`] behind an index that the leader named, is left for the next.
//!
//! Crash cases: none. All of it is in memory, and a new life takes the state from a member.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_host::{Host, Task, watch};
use isobar_metadata::{ClusterFormat, EffectBatch, Image, StateMachine};
use isobar_rpc::{CallError, Channel, Rpc};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::barrier::{self, Barriers};
use crate::effects::{EffectStream, Ring};
use crate::formation;
use crate::leader::{Lead, Leader};
use crate::members::MemberInfo;
use crate::metrics::{RaftMetrics, gauge};
use crate::propose::{self, InFlight, Proposer, Queue};
use crate::records::MemberRecord;
use crate::remote::Line;
use crate::remote::wire::{self, refusal};
use crate::types::Peer;

/// A member waits so long for something to tell.
const WAIT: Duration = Duration::from_millis(200);
/// And is given up so long after it should have answered.
const GRACE: Duration = Duration::from_millis(500);
const STATE_TIMEOUT: Duration = Duration::from_secs(15);
/// A larger state is not believed: members hold theirs in memory as well.
const STATE_MAX_BYTES: u64 = 8 << 30;
/// See the module, invariant 4.
const STUCK: Duration = Duration::from_millis(300);
const QUIET: Duration = Duration::from_millis(500);
/// One that was of no use is not asked for so long while there are others.
const AVOID: Duration = Duration::from_secs(3);
/// Between two members that were of no use.
const AGAIN: Duration = Duration::from_millis(20);
/// Messages with commands on their way to the leader.
const IN_FLIGHT: usize = 4;

/// How to follow a quorum.
#[derive(Debug, Clone)]
pub struct ObserverOptions {
    /// This node's id.
    pub node_id: u64,
    /// What the cluster was formatted with, as a member told it.
    pub cluster: ClusterFormat,
    /// The way to the members.
    pub rpc: Rpc,
    /// Some of the members, as (node id, `host:port`): they tell of the others.
    pub contacts: Vec<(u64, String)>,
    /// Bytes of commands that may wait ([`crate::QuorumOptions::queue_bytes`]).
    pub queue_bytes: usize,
    /// Bytes of recent effect batches kept for this node's own followers.
    pub effects_bytes: usize,
}

impl ObserverOptions {
    /// With the same bounds as a member.
    pub fn new(node_id: u64, cluster: ClusterFormat, rpc: Rpc, contacts: Vec<(u64, String)>) -> Self {
        Self { node_id, cluster, rpc, contacts, queue_bytes: 64 << 20, effects_bytes: 64 << 20 }
    }
}

/// See the module.
pub(crate) struct Observer {
    pub(crate) cluster: ClusterFormat,
    pub(crate) queue: Arc<Queue>,
    pub(crate) barriers: Arc<Barriers>,
    pub(crate) lead: Lead,
    pub(crate) line: Line,
    pub(crate) metrics: Arc<RaftMetrics>,
    pub(crate) seen: Arc<Seen>,
    /// Nothing is found wrong here: there is nothing to compare.
    pub(crate) diverged: watch::Sender<Option<String>>,
    slots: Arc<Semaphore>,
    tasks: Vec<Task>,
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Observer {
    pub(crate) fn start(host: &Host, options: ObserverOptions) -> Self {
        let metrics = Arc::new(RaftMetrics::default());
        let line = Line {
            rpc: options.rpc,
            node_id: options.node_id,
            cluster_incarnation: options.cluster.incarnation,
            incarnation: host.random_uuid(),
            is_member: false,
            heard: Arc::default(),
        };
        let (tell, leader) = watch::channel(Leader::default());
        let lead = Lead { me: options.node_id, leader, line: Some(line.clone()) };
        let queue = Arc::new(Queue::new(options.queue_bytes, Arc::clone(&metrics)));
        let barriers = Arc::new(Barriers::new(Arc::clone(&metrics)));
        let slots = Arc::new(Semaphore::new(IN_FLIGHT));
        let seen = Arc::new(Seen {
            state: Mutex::new(State { image: Image::new(options.cluster.clone()), members: BTreeMap::new() }),
            ring: Arc::new(Ring::new(options.effects_bytes)),
            applied: watch::Sender::new(0),
            metrics: Arc::clone(&metrics),
        });
        let in_flight = Arc::new(InFlight::default());
        let proposer = Proposer {
            queue: Arc::clone(&queue),
            slots: Arc::clone(&slots),
            here: None,
            lead: lead.clone(),
            in_flight: Arc::clone(&in_flight),
        };
        let follower = Follower {
            host: host.clone(),
            line: line.clone(),
            seen: Arc::clone(&seen),
            tell,
            contacts: options.contacts,
            has_state: false,
            avoided: BTreeMap::new(),
            // Observers that begin together are spread.
            turn: usize::try_from(options.node_id).unwrap_or(0),
        };
        let rounds = barrier::run(Arc::clone(&barriers), None, seen.applied.subscribe(), lead.clone());
        let tasks = vec![
            host.spawn("observer.propose", proposer.run()),
            host.spawn("observer.sweep", propose::sweep(in_flight, Arc::clone(&slots), lead.leader.clone())),
            host.spawn("observer.barrier", rounds),
            host.spawn("observer.follow", follower.run()),
        ];
        Self {
            cluster: options.cluster,
            queue,
            barriers,
            lead,
            line,
            metrics,
            seen,
            diverged: watch::Sender::new(None),
            slots,
            tasks,
        }
    }

    /// Refuses new commands and barriers, and follows no more.
    pub(crate) fn stop(&self) {
        self.queue.close();
        self.barriers.close();
        self.slots.close();
        self.seen.ring.close();
        for task in &self.tasks {
            task.abort();
        }
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.line.heard.load(Ordering::Acquire).max(*self.seen.applied.borrow())
    }
}

/// What is known of the metadata.
pub(crate) struct Seen {
    state: Mutex<State>,
    pub(crate) ring: Arc<Ring>,
    pub(crate) applied: watch::Sender<u64>,
    metrics: Arc<RaftMetrics>,
}

struct State {
    image: Image,
    members: BTreeMap<u64, MemberInfo>,
}

impl Seen {
    /// An image, and the stream that goes on where it ends.
    pub(crate) fn subscribe(&self) -> (Image, EffectStream) {
        let state = self.state.lock();
        (state.image.clone(), self.ring.follow())
    }

    pub(crate) fn members(&self) -> Vec<MemberInfo> {
        self.state.lock().members.values().cloned().collect()
    }

    /// Effects into the ring, then the index, as with a member.
    fn take(&self, batches: Vec<EffectBatch>) -> Result<(), String> {
        for batch in batches {
            let index = batch.index;
            {
                let mut state = self.state.lock();
                if batch.previous != state.image.index() {
                    return Err(format!("{} is not followed by {index}", state.image.index()));
                }
                state.image.apply(&batch).map_err(|error| error.to_string())?;
                self.ring.push(Arc::new(batch));
            }
            self.reached(index);
        }
        Ok(())
    }

    /// Begins anew from a whole state. Those who follow here have lagged.
    fn begin(&self, image: Image) -> Result<(), String> {
        let index = image.index();
        {
            let mut state = self.state.lock();
            if index < state.image.index() {
                return Err(format!("its state is of {index}, here {} is known", state.image.index()));
            }
            state.image = image;
            self.ring.reset();
        }
        self.reached(index);
        Ok(())
    }

    fn reached(&self, index: u64) {
        self.applied.send_replace(index);
        self.metrics.applied_index.set(gauge(index));
    }
}

/// Goes from member to member.
struct Follower {
    host: Host,
    line: Line,
    seen: Arc<Seen>,
    tell: watch::Sender<Leader>,
    contacts: Vec<(u64, String)>,
    /// The image is a member's, not an empty one.
    has_state: bool,
    /// Those that were of no use, until when.
    avoided: BTreeMap<u64, Instant>,
    turn: usize,
}

impl Follower {
    async fn run(mut self) {
        let mut last = String::new();
        loop {
            if let Some((node, address)) = self.next() {
                let Err(why) = self.stay_with(node, &address).await else { continue };
                self.avoided.insert(node, Instant::now() + AVOID);
                if why != last {
                    tracing::info!(member = node, why, "metadata is followed at another member");
                    last = why;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whom to ask next: the voters in turn, without those that were of no use a moment ago. If all were: all, and those that were
    /// told at the start.
    fn next(&mut self) -> Option<(u64, String)> {
        let (now, members) = (Instant::now(), self.seen.members());
        let voters = members.into_iter().filter(|member| member.is_voter);
        let voters: Vec<(u64, String)> = voters.map(|member| (member.id, member.address)).collect();
        let is_good = |node: &u64| self.avoided.get(node).is_none_or(|until| *until <= now);
        let good: Vec<_> = voters.iter().filter(|(node, _)| is_good(node)).cloned().collect();
        let known = if good.is_empty() { [voters, self.contacts.clone()].concat() } else { good };
        self.turn = self.turn.wrapping_add(1);
        known.get(self.turn % known.len().max(1)).cloned()
    }

    /// Follows one member until it tells nothing, or for as long as that is good; `Err`: why it is not.
    async fn stay_with(&mut self, node: u64, address: &str) -> Result<(), String> {
        let meeting = tokio::time::timeout(GRACE, formation::meet(&self.line, node, address)).await;
        let met = meeting.map_err(|_| "no answer".to_owned())?.map_err(|error| error.to_string())?;
        let peer = Peer { incarnation: met.incarnation, address: address.to_owned() };
        // The leader that it told last, and its term.
        let mut said = (0, 0);
        let mut stuck_since = None;
        let mut last_batch = Instant::now();
        loop {
            if !self.has_state {
                self.take_state(node, &peer).await?;
                self.has_state = true;
            }
            match self.ask_what_came(node, &peer, &mut said).await {
                Ok(0) => {}
                Ok(_) => last_batch = Instant::now(),
                Err(Failed::Gap(why)) => {
                    tracing::info!(member = node, why, "the whole metadata is taken anew");
                    self.has_state = false;
                }
                Err(Failed::Member(why)) => return Err(why),
            }
            let applied = *self.seen.applied.borrow();
            if self.line.heard.load(Ordering::Acquire) > applied {
                let since = *stuck_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= STUCK {
                    return Err(format!("it brings nothing after {applied}"));
                }
            } else {
                stuck_since = None;
            }
            if last_batch.elapsed() >= QUIET {
                return Ok(());
            }
        }
    }

    /// How many batches came.
    async fn ask_what_came(&self, node: u64, peer: &Peer, said: &mut (u64, u64)) -> Result<usize, Failed> {
        let ask = wire::Follow {
            route: self.line.route(Some(&peer.incarnation)),
            after: *self.seen.applied.borrow(),
            wait_ms: u32::try_from(WAIT.as_millis()).unwrap_or(u32::MAX),
            leader: said.0,
            term: said.1,
        };
        let asked =
            self.line.ask(node, peer, Channel::Control, wire::FOLLOW, wire::encode(&ask), WAIT + GRACE).await;
        let answer = asked.map_err(|error| match error {
            CallError::Refused { code, message } if code == refusal::LAGGED => Failed::Gap(message),
            other => Failed::Member(other.to_string()),
        })?;
        let (head, bytes): (wire::Followed, _) = wire::decode(&answer).map_err(Failed::Member)?;
        let mut batches = batches(&head.batch_bytes, bytes).map_err(Failed::Member)?;
        if self.host.sabotaged("observer-skips-a-batch") {
            batches.iter_mut().filter(|batch| batch.index % 10 == 0).for_each(|batch| batch.effects.clear());
        }
        let count = batches.len();
        self.seen.take(batches).map_err(Failed::Gap)?;
        *said = (head.leader.as_ref().map_or(0, |leader| leader.node), head.term);
        self.note(head).map_err(Failed::Member)?;
        Ok(count)
    }

    /// Who leads, and who belongs to the group.
    fn note(&self, head: wire::Followed) -> Result<(), String> {
        let voters = head.voters;
        let member = |record: MemberRecord| {
            let incarnation = incarnation(&record)?;
            let (id, is_voter) = (record.node, voters.contains(&record.node));
            Ok((id, MemberInfo { id, address: record.address, incarnation, is_voter }))
        };
        let members = head.members.into_iter().map(member).collect::<Result<_, String>>()?;
        let leader = match head.leader {
            Some(record) => Leader {
                id: Some(record.node),
                term: head.term,
                incarnation: incarnation(&record)?,
                address: record.address,
            },
            None => Leader { term: head.term, ..Leader::default() },
        };
        self.seen.state.lock().members = members;
        let metrics = &self.seen.metrics;
        self.tell.send_if_modified(|told| {
            // A member that has not heard of an election yet knows less than another has told.
            let is_news = *told != leader && leader.term >= told.term;
            if is_news {
                tracing::info!(leader = ?leader.id, term = leader.term, "leadership of the metadata quorum");
                metrics.term.set(gauge(leader.term));
                metrics.leader_changes.inc_by(u64::from(leader.id.is_some() && leader.id != told.id));
                *told = leader;
            }
            is_news
        });
        Ok(())
    }

    async fn take_state(&self, node: u64, peer: &Peer) -> Result<(), String> {
        let mut bytes = BytesMut::new();
        let mut transfer = 0;
        let total_bytes = loop {
            let route = self.line.route(Some(&peer.incarnation));
            let ask = wire::encode(&wire::GetState { route, transfer, offset: bytes.len() as u64 });
            let asked = self.line.ask(node, peer, Channel::Bulk, wire::STATE, ask, STATE_TIMEOUT).await;
            let answer = asked.map_err(|error| error.to_string())?;
            let (head, part): (wire::StatePart, Bytes) = wire::decode(&answer)?;
            bytes.extend_from_slice(&part);
            let has_bytes = bytes.len() as u64;
            if part.is_empty() || has_bytes > head.total_bytes || head.total_bytes > STATE_MAX_BYTES {
                let total_bytes = head.total_bytes;
                return Err(format!(
                    "a part of {} bytes up to {has_bytes} of a state of {total_bytes}",
                    part.len()
                ));
            }
            if has_bytes == head.total_bytes {
                break has_bytes;
            }
            transfer = head.transfer;
        };
        self.seen.metrics.snapshot_received_bytes.inc_by(total_bytes);
        let restored = self.host.run_blocking(move || StateMachine::restore(&bytes)).await;
        let machine =
            restored.ok_or("the blocking pool is going away")?.map_err(|error| error.to_string())?;
        let image = machine.image();
        tracing::info!(
            member = node,
            index = image.index(),
            bytes = total_bytes,
            "metadata taken from a member"
        );
        self.seen.begin(image)
    }
}

/// Why nothing came.
enum Failed {
    /// What came after is not to be had, or does not fit: the whole state is needed.
    Gap(String),
    /// This member is of no use now.
    Member(String),
}

fn batches(lengths: &[u32], mut bytes: Bytes) -> Result<Vec<EffectBatch>, String> {
    let mut batches = Vec::with_capacity(lengths.len());
    for length in lengths {
        let length = *length as usize;
        if length > bytes.len() {
            return Err("effects are cut short".to_owned());
        }
        batches.push(EffectBatch::from_bytes(bytes.split_to(length)).map_err(|error| error.to_string())?);
    }
    Ok(batches)
}

fn incarnation(member: &MemberRecord) -> Result<[u8; 16], String> {
    let bytes = member.incarnation.as_ref();
    bytes.try_into().map_err(|_| format!("the incarnation of {} has {} bytes", member.node, bytes.len()))
}
