//! The group itself: its requests, and what happens when its state has become durable.
//!
//! Owns: state, generation, protocol, members, what waits. Volatile: members' sessions, who has joined and synced, timers.
//! Durable, by [`Action::Persist`]: generation, protocol, leader, members with metadata and assignments.
//!
//! Ordering:
//! 1. The end of a join phase is persisted; then its `JoinGroup`s are answered (`join_ready`).
//! 2. The leader's assignment is persisted; then the `SyncGroup`s are answered and the group is stable (`assigning`).
//! 3. A static member that comes back into a stable group is persisted under its new id; then it is answered (`replaced`).
//! 4. A group that has become empty is persisted; then the `LeaveGroup` that emptied it is answered (`leaves`), so that a
//!    commit or a deletion that follows finds it empty.
//!
//! Whatever starts a rebalance before its state is durable makes that state pointless: what waited for it goes on waiting
//! (joins, which count as joined for the next generation) or is told to join again (syncs).
//!
//! Failure: a refused state fails who waits for it and the group rebalances. A coordinator that cannot know whether a state is
//! durable must unload the group and load it again under a new coordinator epoch.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use crate::members::{Member, Members};
use crate::rebalance::JoinTimer;
use crate::{
    Action, CommitCheck, Event, GroupConfig, GroupError, Heartbeat, JoinAnswer, JoinedMember, Leave,
    LeaveAnswer, Leaving, LeftMember, MonoMs, Name, RequestId, Response, Sync, SyncAnswer,
};

/// The state of a classic group, by Kafka's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// No members. Offsets may be committed without membership.
    Empty,
    /// Waiting for the members to join.
    PreparingRebalance,
    /// Waiting for the leader's assignment.
    CompletingRebalance,
    /// Every member has, or can fetch, its assignment.
    Stable,
    /// Unloaded or deleted.
    Dead,
}

impl State {
    /// As `DescribeGroups` and `ListGroups` name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
            Self::Dead => "Dead",
        }
    }
}

/// May a group of this id have members? Kafka allows offsets, but no members, under the empty id.
pub fn validate_group_id(group_id: &str) -> Result<(), GroupError> {
    if group_id.is_empty() { Err(GroupError::InvalidGroupId) } else { Ok(()) }
}

/// A new member's id, as Kafka makes it: the instance id, else the client id, then a UUID.
#[must_use]
pub fn member_id(client_id: &str, instance_id: Option<&str>, uuid: &str) -> Name {
    format!("{}-{uuid}", instance_id.unwrap_or(client_id)).into()
}

/// The leader's assignment on its way to becoming durable.
#[derive(Debug)]
pub(crate) struct Assigning {
    pub(crate) number: u64,
    pub(crate) assignments: BTreeMap<Name, Bytes>,
}

/// One classic group. See the crate's documentation for what it promises.
#[derive(Debug)]
pub struct Group {
    pub(crate) config: Arc<GroupConfig>,
    pub(crate) state: State,
    /// The rebalance being prepared is the first one of an empty group.
    pub(crate) initial: bool,
    /// A member was added since the initial delay was last extended.
    pub(crate) new_member_added: bool,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<Name>,
    pub(crate) protocol: Option<Name>,
    pub(crate) members: Members,
    /// Members that know of this generation and have not sent their `SyncGroup`.
    pub(crate) pending_sync: BTreeSet<Name>,
    pub(crate) join_timer: Option<JoinTimer>,
    pub(crate) sync_deadline: Option<MonoMs>,
    pub(crate) armed: Option<MonoMs>,
    pub(crate) last_number: u64,
    pub(crate) in_flight: bool,
    pub(crate) wanted: bool,
    /// The number whose durability lets this generation's `JoinGroup`s be answered.
    pub(crate) join_ready: Option<u64>,
    pub(crate) assigning: Option<Assigning>,
    pub(crate) leaves: Vec<(u64, RequestId, LeaveAnswer)>,
}

/// One event being handled: its time, and what it leads to.
pub(crate) struct Turn<'a> {
    pub(crate) now: MonoMs,
    pub(crate) out: &'a mut Vec<Action>,
    /// The earliest deadline set in this turn.
    pub(crate) earliest: Option<MonoMs>,
}

impl Turn<'_> {
    pub(crate) fn answer(&mut self, request: RequestId, response: Response) {
        self.out.push(Action::Answer(request, response));
    }

    pub(crate) fn refuse_join(&mut self, request: RequestId, error: GroupError, member_id: Name) {
        self.answer(request, Response::Join(JoinAnswer::refused(error, member_id)));
    }

    pub(crate) fn deadline(&mut self, at: MonoMs) {
        self.earliest = Some(self.earliest.map_or(at, |e| e.min(at)));
    }
}

impl Group {
    /// A group of which nothing is durable.
    #[must_use]
    pub fn new(config: Arc<GroupConfig>) -> Self {
        Self {
            config,
            state: State::Empty,
            initial: false,
            new_member_added: false,
            generation: 0,
            protocol_type: None,
            protocol: None,
            members: Members::default(),
            pending_sync: BTreeSet::new(),
            join_timer: None,
            sync_deadline: None,
            armed: None,
            last_number: 0,
            in_flight: false,
            wanted: false,
            join_ready: None,
            assigning: None,
            leaves: Vec::new(),
        }
    }

    /// Takes one event and appends what has to be done about it, in order. `now` never goes back.
    pub fn handle(&mut self, now: MonoMs, event: Event, out: &mut Vec<Action>) {
        let mut turn = Turn { now, out, earliest: None };
        match event {
            Event::Join(request, join) => self.join(&mut turn, request, join),
            Event::Sync(request, sync) => self.sync(&mut turn, request, sync),
            Event::Heartbeat(request, heartbeat) => {
                let result = self.heartbeat(&mut turn, &heartbeat);
                turn.answer(request, Response::Heartbeat(result));
            }
            Event::Leave(request, leave) => self.leave(&mut turn, request, leave),
            Event::CommitCheck(request, check) => {
                let result = self.commit_check(&mut turn, &check);
                turn.answer(request, Response::CommitCheck(result));
            }
            Event::TimerFired => self.timer_fired(&mut turn),
            Event::Persisted(number) => self.persisted(&mut turn, number),
            Event::PersistFailed(number, error) => self.persist_failed(&mut turn, number, error),
            Event::Unload(error) => self.unload(&mut turn, error),
        }
        self.settle(turn);
    }

    /// After each event: what must become durable, the timer, and whether anything is left.
    pub(crate) fn settle(&mut self, mut turn: Turn<'_>) {
        if self.wanted && !self.in_flight {
            debug_assert_ne!(self.state, State::PreparingRebalance, "nothing is decided while preparing");
            self.wanted = false;
            self.in_flight = true;
            self.last_number += 1;
            turn.out
                .push(Action::Persist { number: self.last_number, state: Box::new(self.durable_state()) });
        }
        self.settle_timer(&mut turn);
        if self.can_forget() {
            turn.out.push(Action::Forget);
        }
        if cfg!(debug_assertions) {
            self.check();
        }
    }

    fn can_forget(&self) -> bool {
        match self.state {
            State::Dead => true,
            State::Empty => {
                self.members.pending.is_empty() && !self.in_flight && !self.wanted && self.leaves.is_empty()
            }
            _ => false,
        }
    }

    pub(crate) fn move_to(&mut self, turn: &mut Turn<'_>, to: State, reason: Cow<'static, str>) {
        self.state = to;
        turn.out.push(Action::Moved { to, generation: self.generation, members: self.members.len(), reason });
    }

    fn sync(&mut self, turn: &mut Turn<'_>, request: RequestId, sync: Sync) {
        let refused = match self.check_sync(&sync) {
            Err(error) => Some(error),
            // Nobody has been told of this generation yet.
            Ok(()) if self.state == State::PreparingRebalance || self.join_ready.is_some() => {
                Some(GroupError::RebalanceInProgress)
            }
            Ok(()) => None,
        };
        if let Some(error) = refused {
            return turn.answer(request, Response::Sync(Err(error)));
        }
        self.pending_sync.remove(&sync.member_id);
        if self.pending_sync.is_empty() {
            self.sync_deadline = None;
        }
        if self.state == State::Stable {
            let assignment =
                self.members.get(&sync.member_id).map(|m| m.assignment.clone()).unwrap_or_default();
            let answer = self.sync_answer(assignment);
            return turn.answer(request, Response::Sync(Ok(answer)));
        }
        let earlier = self.members.get_mut(&sync.member_id).and_then(|m| m.awaiting_sync.replace(request));
        if let Some(earlier) = earlier {
            turn.answer(earlier, Response::Sync(Err(GroupError::RebalanceInProgress)));
        }
        if self.members.is_leader(&sync.member_id) && self.assigning.is_none() {
            self.assign(turn, sync.assignments);
        }
    }

    fn check_sync(&self, sync: &Sync) -> Result<(), GroupError> {
        if self.state == State::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        self.members.validate(&sync.member_id, sync.instance_id.as_deref())?;
        let differs =
            |given: &Option<Name>, own: &Option<Name>| given.is_some() && own.is_some() && given != own;
        if sync.generation != self.generation {
            Err(GroupError::IllegalGeneration)
        } else if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol)
        {
            Err(GroupError::InconsistentGroupProtocol)
        } else {
            Ok(())
        }
    }

    /// The leader's assignment: durable first. Members that it leaves out get an empty one.
    fn assign(&mut self, turn: &mut Turn<'_>, assignments: Vec<(Name, Bytes)>) {
        let assignments: BTreeMap<Name, Bytes> =
            assignments.into_iter().filter(|(id, _)| self.members.contains(id)).collect();
        let members: usize = self.members.iter().map(Member::bytes_without_assignment).sum();
        let assigned: usize = assignments.values().map(Bytes::len).sum();
        if members + assigned > self.config.max_group_bytes {
            return self.assignment_failed(turn, GroupError::UnknownServerError);
        }
        let number = self.want_persist();
        self.assigning = Some(Assigning { number, assignments });
    }

    fn heartbeat(&mut self, turn: &mut Turn<'_>, heartbeat: &Heartbeat) -> Result<(), GroupError> {
        if self.state == State::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        self.members.validate(&heartbeat.member_id, heartbeat.instance_id.as_deref())?;
        if heartbeat.generation != self.generation {
            // Its join is decided and not yet answered: it still is where it was.
            let held = self.join_ready.is_some()
                && i64::from(heartbeat.generation) + 1 == i64::from(self.generation);
            if held && self.members.get(&heartbeat.member_id).is_some_and(|m| m.awaiting_join.is_some()) {
                return Err(GroupError::RebalanceInProgress);
            }
            return Err(GroupError::IllegalGeneration);
        }
        self.restart_session(turn, &heartbeat.member_id);
        if self.state == State::PreparingRebalance { Err(GroupError::RebalanceInProgress) } else { Ok(()) }
    }

    pub(crate) fn restart_session(&mut self, turn: &mut Turn<'_>, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            turn.deadline(member.restart_session(turn.now));
        }
    }

    fn commit_check(&mut self, turn: &mut Turn<'_>, check: &CommitCheck) -> Result<(), GroupError> {
        if self.state == State::Dead {
            return Err(GroupError::CoordinatorNotAvailable);
        }
        if check.generation < 0 && self.state == State::Empty {
            return Ok(());
        }
        if check.generation < 0 && check.member_id.is_empty() && check.instance_id.is_none() {
            return Err(GroupError::UnknownMemberId);
        }
        self.members.validate(&check.member_id, check.instance_id.as_deref())?;
        if check.generation != self.generation {
            return Err(GroupError::IllegalGeneration);
        }
        if self.state == State::CompletingRebalance {
            // It knows of the generation and has no assignment in it.
            return Err(GroupError::RebalanceInProgress);
        }
        self.restart_session(turn, &check.member_id);
        Ok(())
    }

    fn leave(&mut self, turn: &mut Turn<'_>, request: RequestId, leave: Leave) {
        if self.state == State::Dead {
            return turn.answer(request, Response::Leave(Err(GroupError::CoordinatorNotAvailable)));
        }
        let mut left = Vec::with_capacity(leave.members.len());
        let mut reasons = String::new();
        for leaving in leave.members {
            let result = self.leave_one(turn, &leaving);
            if result.is_ok() && reasons.len() < MAX_REASON_CHARS {
                let comma = if reasons.is_empty() { "" } else { ", " };
                reasons += comma;
                let by_instance = leaving.instance_id.as_ref().filter(|_| leaving.member_id.is_empty());
                let who = by_instance.unwrap_or(&leaving.member_id);
                reasons += &reason(who, "left", leaving.reason.as_deref());
            }
            left.push(LeftMember {
                member_id: leaving.member_id,
                instance_id: leaving.instance_id,
                error: result.err(),
            });
        }
        if left.iter().any(|l| l.error.is_none()) {
            match self.state {
                State::Stable | State::CompletingRebalance => self.prepare_rebalance(turn, reasons.into()),
                State::PreparingRebalance => self.maybe_complete_join(turn),
                State::Empty | State::Dead => {}
            }
        }
        let answer = LeaveAnswer { members: left };
        if self.state == State::Empty && self.wanted {
            self.leaves.push((self.last_number + 1, request, answer));
        } else {
            turn.answer(request, Response::Leave(Ok(answer)));
        }
    }

    fn leave_one(&mut self, turn: &mut Turn<'_>, leaving: &Leaving) -> Result<(), GroupError> {
        let id = if leaving.member_id.is_empty() {
            let holder = leaving.instance_id.as_ref().and_then(|i| self.members.static_member(i));
            holder.cloned().ok_or(GroupError::UnknownMemberId)?
        } else {
            if !self.members.pending.contains_key(&leaving.member_id) {
                self.members.validate(&leaving.member_id, leaving.instance_id.as_deref())?;
            }
            leaving.member_id.clone()
        };
        self.drop_member(turn, &id);
        Ok(())
    }

    /// Takes a member or pending id out and tells what waited of it.
    pub(crate) fn drop_member(&mut self, turn: &mut Turn<'_>, id: &str) {
        let Some(member) = self.members.remove(id) else { return };
        if let Some(joined) = member.awaiting_join {
            turn.refuse_join(joined.request, GroupError::UnknownMemberId, "".into());
        }
        if let Some(synced) = member.awaiting_sync {
            turn.answer(synced, Response::Sync(Err(GroupError::UnknownMemberId)));
        }
    }

    pub(crate) fn answer_current(&self, turn: &mut Turn<'_>, id: &Name, request: RequestId) {
        let members = if self.members.is_leader(id) { self.joined_members() } else { Vec::new() };
        let answer = self.join_answer(id.clone(), members);
        turn.answer(request, Response::Join(answer));
    }

    pub(crate) fn join_answer(&self, member_id: Name, members: Vec<JoinedMember>) -> JoinAnswer {
        JoinAnswer {
            error: None,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.members.leader().cloned().unwrap_or_else(|| "".into()),
            skip_assignment: false,
            member_id,
            members,
        }
    }

    pub(crate) fn joined_members(&self) -> Vec<JoinedMember> {
        let protocol = self.protocol.as_deref().unwrap_or_default();
        let joined = |m: &Member| JoinedMember {
            member_id: m.id.clone(),
            instance_id: m.instance_id.clone(),
            metadata: m.metadata(protocol),
        };
        self.members.iter().map(joined).collect()
    }

    pub(crate) fn sync_answer(&self, assignment: Bytes) -> SyncAnswer {
        SyncAnswer { protocol_type: self.protocol_type.clone(), protocol: self.protocol.clone(), assignment }
    }

    /// What must hold between events; for tests and debug builds.
    fn check(&self) {
        self.members.check();
        let completing = self.state == State::CompletingRebalance;
        let empty = matches!(self.state, State::Empty | State::Dead);
        assert!(!empty || self.members.is_empty(), "an empty group has no members");
        assert!(self.join_ready.is_none() || completing, "joins wait only while completing");
        assert!(self.assigning.is_none() || completing, "an assignment waits only while completing");
        assert!(!self.wanted || self.in_flight, "a state waits only behind another");
        assert!(self.join_timer.is_none() || self.state == State::PreparingRebalance, "join timer");
        assert!(self.pending_sync.iter().all(|id| self.members.contains(id)), "pending syncs are members");
        for member in self.members.iter() {
            assert!(member.awaiting_sync.is_none() || completing, "syncs wait only while completing");
            let waits = self.state == State::PreparingRebalance || self.join_ready.is_some();
            assert!(
                member.awaiting_join.is_none() || waits || member.replaced.is_some(),
                "a join waits for nothing"
            );
            assert!(member.replaced.is_none() || self.state == State::Stable, "replaced only while stable");
        }
        self.check_timer();
    }
}

/// Clients are asked to keep their reasons below this (KIP-800); a longer one is cut.
const MAX_REASON_CHARS: usize = 255;

pub(crate) fn reason(id: &str, what: &str, given: Option<&str>) -> Cow<'static, str> {
    let given: String = given.unwrap_or("not provided").chars().take(MAX_REASON_CHARS).collect();
    format!("{id} {what}; client reason: {given}").into()
}
