//! The group coordinator's shell: it runs the pure machines of `isobar-groups`, one for each group this broker coordinates.
//!
//! **Owns** (all soft): which groups are loaded, who waits for an answer, the timers. Durable, in metadata: who coordinates a
//! group (claim and coordinator epoch), its members, generation and assignment, its offsets.
//!
//! **Layout**: [`slots`] holds a slot for each group that is loaded or being loaded; a machine is behind its own lock, held
//! while one event is handled and never across an await. [`claims`] holds since when this broker has each of them. `timers`
//! orders the groups' deadlines; one task serves them all.
//!
//! **Invariants**
//! 1. A group is loaded only under this session's claim, from an image that has everything this session wrote of it: after a
//!    claim and after each stored state the image is waited for before anyone is answered.
//! 2. A machine whose stored state is in doubt, or that metadata calls NOT_COORDINATOR, is unloaded. If in doubt, the group is
//!    claimed anew before it is loaded again, so that a late command of the old epoch is refused. A machine whose epoch the
//!    image has passed answers nothing more, heartbeats neither: another broker, or a later life, has the group.
//! 3. "There is no such group" is said only behind a read barrier or after a claim; and a request that cannot create a
//!    group leaves nothing behind.
//! 4. Heartbeats never touch metadata.
//! 5. A commit that may be older than this broker's claim of a group that others may have coordinated before is not taken.
//!    It is not, if it names a generation made since or comes by a connection made since. A client that lost touch with this
//!    broker gives a commit up, and commits on at another coordinator; the first one may lie in the cut connection for as
//!    long as that takes, and reach this broker when it has the group back (seed 2148 of the cluster). The answer is
//!    COORDINATOR_LOAD_IN_PROGRESS, which every client repeats, and its connection's last.
//! 6. Locks are taken in the order machine, then slots or timers or doubts or claims; none of those waits for another.
//!
//! **Failure**: a broker that dies leaves claims that nobody live holds. Its successor (see [`coordinator_of`]) claims groups
//! lazily, and at its start and whenever brokers come or go those with members ([`upkeep`]), so that members that died
//! with it are found out.
//!
//! **Accepted leaks**: a first JoinGroup or a commit under any name makes a claim, which lives until offsets expire.

mod admin;
mod claims;
mod coordinated;
mod membership;
mod offsets;
mod order;
mod record;
mod slots;
mod upkeep;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;

use isobar_groups::{Event, Group, GroupConfig, GroupError, Name, RequestId, Response, State};
use isobar_metadata::command::ClaimGroups;
use isobar_metadata::record::SessionRecord;
use isobar_metadata::{Command, CommandResult, Image};
use isobar_protocol::request::{Body, RequestHeader};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::{Answer, Client};
use crate::{BARRIER_PATIENCE, Broker, Metrics, Options};
use claims::Claims;
use coordinated::Coordinated;
use slots::Slots;

pub(crate) use upkeep::start;

/// A group that is unloaded while a request looks for it is looked for again, this often.
const LOOKUPS: usize = 3;

/// The groups this broker coordinates.
pub(crate) struct Groups {
    config: Arc<GroupConfig>,
    /// Where the machines' monotonic time starts.
    epoch: Instant,
    slots: Slots<Coordinated>,
    claims: Claims,
    timers: Mutex<BTreeSet<(u64, Name)>>,
    timer_set: Notify,
    /// Groups of which a stored state is in doubt.
    doubts: Mutex<BTreeSet<Name>>,
    commits: order::CommitOrder,
}

/// What to do about a group that metadata does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfAbsent {
    Create,
    /// Answer as a coordinator of a group without members.
    Answer,
    /// Say so.
    Refuse,
}

impl Groups {
    pub(crate) fn new(options: &Options) -> Self {
        let delay_ms = u32::try_from(options.group_initial_rebalance_delay_ms).unwrap_or(u32::MAX);
        Self {
            config: Arc::new(GroupConfig {
                initial_rebalance_delay_ms: delay_ms,
                min_session_timeout_ms: options.group_min_session_timeout_ms,
                max_session_timeout_ms: options.group_max_session_timeout_ms,
                max_size: options.group_max_size,
                ..GroupConfig::default()
            }),
            epoch: Instant::now(),
            slots: Slots::default(),
            claims: Claims::default(),
            timers: Mutex::default(),
            timer_set: Notify::new(),
            doubts: Mutex::default(),
            commits: order::CommitOrder::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Counts the groups that are loaded here, by state, and their members.
    pub(crate) fn refresh_metrics(&self, metrics: &Metrics) {
        let states = [State::Empty, State::PreparingRebalance, State::CompletingRebalance, State::Stable];
        let (mut groups, mut members) = (states.map(|_| 0), 0);
        for listed in self.slots.loaded().iter().filter_map(|group| group.list().ok()) {
            members += i64::try_from(listed.members).unwrap_or(i64::MAX);
            if let Some(at) = states.iter().position(|state| *state == listed.state) {
                groups[at] += 1;
            }
        }
        for (state, count) in states.iter().zip(groups) {
            metrics.groups(state.as_str(), count);
        }
        metrics.group_members.set(members);
    }

    /// The group's machine, if it is loaded and nobody has claimed the group since.
    fn current(&self, broker: &Broker, group: &str) -> Option<Arc<Coordinated>> {
        self.slots.get(group).filter(|loaded| loaded.is_current(broker))
    }

    /// Unloads a group that others may know more of.
    fn unload(&self, broker: &Arc<Broker>, group: &str, error: GroupError) {
        if let Some(loaded) = self.slots.get(group) {
            loaded.unload(broker, error);
        }
    }
}

/// Hands an event to the group's machine, loading it if need be, and waits for the answer.
async fn ask(
    broker: &Arc<Broker>,
    group: &str,
    if_absent: IfAbsent,
    event: impl FnMut(RequestId) -> Event,
) -> Result<Response, GroupError> {
    Ok(ask_one(broker, group, if_absent, event).await?.0)
}

/// As [`ask`]; with who answered, unless there is no such group.
async fn ask_one(
    broker: &Arc<Broker>,
    group: &str,
    if_absent: IfAbsent,
    mut event: impl FnMut(RequestId) -> Event,
) -> Result<(Response, Option<Arc<Coordinated>>), GroupError> {
    for _ in 0..LOOKUPS {
        let Some(coordinated) = find(broker, group, if_absent).await? else {
            if if_absent == IfAbsent::Refuse {
                return Err(GroupError::GroupIdNotFound);
            }
            return Ok((answer_absent(broker, event(RequestId(0)))?, None));
        };
        // Gone while it was looked for: it is looked for again.
        let Ok(answer) = coordinated.ask(broker, &mut event) else { continue };
        let response = answer.await.map_err(|_| GroupError::CoordinatorNotAvailable)?;
        return Ok((response, Some(coordinated)));
    }
    Err(GroupError::CoordinatorLoadInProgress)
}

/// What the machine of a group without members says, and forgets at once.
fn answer_absent(broker: &Arc<Broker>, event: Event) -> Result<Response, GroupError> {
    let mut out = Vec::new();
    Group::new(Arc::clone(&broker.groups.config)).handle(broker.groups.now(), event, &mut out);
    let answer = out.into_iter().find_map(|action| match action {
        isobar_groups::Action::Answer(_, response) => Some(response),
        _ => None,
    });
    answer.ok_or(GroupError::CoordinatorNotAvailable)
}

/// The group's machine, loaded; `None`: metadata knows of no such group, and it is not to be created.
async fn find(
    broker: &Arc<Broker>,
    group: &str,
    if_absent: IfAbsent,
) -> Result<Option<Arc<Coordinated>>, GroupError> {
    let groups = &broker.groups;
    if *broker.draining.borrow() || is_fenced(broker) {
        return Err(GroupError::NotCoordinator);
    }
    if let Some(loaded) = groups.slots.get(group) {
        if loaded.is_current(broker) {
            return Ok(Some(loaded));
        }
        loaded.unload(broker, GroupError::NotCoordinator);
    }
    if if_absent != IfAbsent::Create && !exists(broker, group).await? {
        return Ok(None);
    }
    groups.slots.get_or_load(group, async || load(broker, group).await).await.map(Some)
}

/// Has another life of this node, or the leader, ended this session? Then others may coordinate its groups by now.
fn is_fenced(broker: &Broker) -> bool {
    broker.image.with(|image| image.session(broker.session.id()).is_none_or(|session| session.is_fenced()))
}

/// Does metadata know the group? A no is certain.
async fn exists(broker: &Broker, group: &str) -> Result<bool, GroupError> {
    let known = || broker.image.with(|image| image.group(group).is_some());
    if known() {
        return Ok(true);
    }
    broker.barrier().await.map_err(|_| GroupError::CoordinatorLoadInProgress)?;
    Ok(known())
}

async fn load(broker: &Arc<Broker>, group: &str) -> Result<Arc<Coordinated>, GroupError> {
    let doubt = broker.groups.doubts.lock().contains(group);
    let held = |image: &Image| image.group(group).filter(|g| g.coordinator == broker.session.id()).cloned();
    let mut known = broker.image.with(held);
    let mut is_new = false;
    if known.is_none() || doubt {
        let ours = broker.image.with(|image| {
            coordinator_of(image, group).is_some_and(|session| session.session == broker.session.id())
        });
        if !ours {
            return Err(GroupError::NotCoordinator);
        }
        is_new = !exists(broker, group).await?;
        claim(broker, vec![group.to_owned()]).await?;
        known = broker.image.with(held);
    }
    let known = known.ok_or(GroupError::NotCoordinator)?;
    broker.groups.doubts.lock().remove(group);
    Ok(Coordinated::load(broker, &known, is_new))
}

/// Takes over these groups; afterwards the image shows it.
async fn claim(broker: &Broker, groups: Vec<String>) -> Result<(), GroupError> {
    let result = broker.session.propose(Command::ClaimGroups(ClaimGroups { groups })).await;
    match result {
        Ok(CommandResult::Groups(results)) if results.groups.iter().all(|g| g.error_code == 0) => {}
        Ok(CommandResult::Groups(_)) => return Err(GroupError::InvalidGroupId),
        Ok(CommandResult::Refused(refused)) => {
            tracing::warn!(?refused, "this broker may claim no groups any more");
            return Err(GroupError::NotCoordinator);
        }
        Ok(other) => {
            tracing::error!(answer = ?other, "an unexpected answer to a claim of groups");
            return Err(GroupError::CoordinatorNotAvailable);
        }
        Err(error) => {
            tracing::warn!(%error, "groups could not be claimed");
            return Err(GroupError::CoordinatorNotAvailable);
        }
    }
    caught_up(broker).await
}

/// Waits until the image has what was just applied. Without it a group must not be loaded.
async fn caught_up(broker: &Broker) -> Result<(), GroupError> {
    if broker.image.at_least(broker.quorum.acknowledged(), BARRIER_PATIENCE).await {
        Ok(())
    } else {
        Err(GroupError::CoordinatorLoadInProgress)
    }
}

/// Who coordinates a group: the live holder of its claim, else the first live broker by rendezvous hash.
///
/// A holder that is suspect or drains is passed over: after the metadata leader died with it, it would be the coordinator for a
/// whole session timeout more. If it lives after all it lets the group go when it sees the other's claim. Where nobody is live,
/// suspicion says nothing.
fn coordinator_of<'a>(image: &'a Image, group: &str) -> Option<&'a Arc<SessionRecord>> {
    let holder = image.group(group).and_then(|group| image.session(group.coordinator));
    let holder = holder.filter(|session| !session.is_fenced());
    if let Some(holder) = holder.filter(|session| session.is_live()) {
        return Some(holder);
    }
    let by_weight = |session: &&Arc<SessionRecord>| (weight(group, session.node_id), session.node_id);
    let brokers = image.brokers();
    let live = brokers.iter().copied().filter(|session| session.is_live()).max_by_key(by_weight);
    live.or(holder).or_else(|| brokers.into_iter().max_by_key(by_weight))
}

/// FNV-1a of name and node, mixed so that close nodes are far apart. The same on every broker and in every version.
fn weight(group: &str, node_id: i32) -> u64 {
    let bytes = group.bytes().chain([0]).chain(node_id.to_be_bytes());
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 33)
}

/// Handles the group APIs.
pub(crate) async fn handle(
    broker: &Arc<Broker>,
    client: &Client,
    header: &RequestHeader,
    body: Body,
) -> Answer {
    match body {
        Body::FindCoordinator(body) => {
            Answer::of(header, &admin::find_coordinator(broker, header.version, body).await)
        }
        Body::JoinGroup(body) => Answer::of(header, &membership::join(broker, client, header, body).await),
        Body::SyncGroup(body) => Answer::of(header, &membership::sync(broker, body).await),
        Body::Heartbeat(body) => Answer::of(header, &membership::heartbeat(broker, body).await),
        Body::LeaveGroup(body) => Answer::of(header, &membership::leave(broker, header.version, body).await),
        Body::OffsetCommit(body) => offsets::handle(broker, client, header, body).await,
        Body::OffsetFetch(body) => Answer::of(header, &offsets::fetch(broker, header.version, body).await),
        Body::DescribeGroups(body) => {
            Answer::of(header, &admin::describe(broker, header.version, body).await)
        }
        Body::ListGroups(body) => Answer::of(header, &admin::list(broker, body).await),
        Body::DeleteGroups(body) => Answer::of(header, &admin::delete(broker, body).await),
        other => {
            tracing::error!(api = header.api.name(), body = ?std::mem::discriminant(&other), "a request without a handler");
            Answer::Close
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
