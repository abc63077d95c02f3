//! What of a group is durable: asking for it, what follows once it is, and carrying on from it elsewhere.
//!
//! A state is asked for with [`Group::want_persist`] and taken at the end of the event, or, behind another that is under way,
//! when that one is done. Its number tells who waits for it. See `group.rs` for what waits for what.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::group::{Group, Turn};
use crate::members::Member;
use crate::{
    Action, GroupConfig, GroupError, GroupState, MemberState, MonoMs, Name, PersistedPhase, Response, State,
};

impl Group {
    /// A group as its former coordinator left it: everyone gets a full session timeout, a stable group stays stable, and a
    /// rebalance whose join phase had ended goes on. Rebalances only if it is above `group.max.size` now.
    #[must_use]
    pub fn load(config: Arc<GroupConfig>, state: GroupState, now: MonoMs, out: &mut Vec<Action>) -> Self {
        let mut group = Self::new(config);
        let consistent = is_consistent(&state);
        group.generation = state.generation;
        group.protocol_type = state.protocol_type;
        if !consistent || state.members.is_empty() {
            return group;
        }
        group.protocol = state.protocol;
        group.state = match state.phase {
            PersistedPhase::Stable => State::Stable,
            PersistedPhase::Empty | PersistedPhase::CompletingRebalance => State::CompletingRebalance,
        };
        for member in state.members {
            group.members.insert(Member::loaded(member));
        }
        if let Some(leader) = state.leader {
            group.members.set_leader(leader);
        }
        let mut turn = Turn { now, out, earliest: None };
        for member in group.members.iter_mut() {
            turn.deadline(member.restart_session(now));
        }
        if group.state == State::CompletingRebalance {
            group.await_syncs(&mut turn);
        }
        if group.members.len() > group.config.max_size {
            group.prepare_rebalance(&mut turn, "loaded above group.max.size".into());
        }
        group.settle(turn);
        group
    }

    /// Asks for the state as it is at the end of this event, or when what is under way is done; gives its number.
    pub(crate) fn want_persist(&mut self) -> u64 {
        self.wanted = true;
        self.last_number + 1
    }

    /// A rebalance makes a state that is not under way yet pointless.
    pub(crate) fn cancel_wanted(&mut self, turn: &mut Turn<'_>) {
        self.join_ready = None;
        self.assigning = None;
        for member in self.members.iter_mut() {
            member.replaced = None;
        }
        if std::mem::take(&mut self.wanted) {
            let next = self.last_number + 1;
            self.answer_leaves(turn, |number| number == next, None);
        }
    }

    pub(crate) fn answer_leaves(
        &mut self,
        turn: &mut Turn<'_>,
        which: impl Fn(u64) -> bool,
        error: Option<GroupError>,
    ) {
        for (number, request, answer) in std::mem::take(&mut self.leaves) {
            if which(number) {
                turn.answer(request, Response::Leave(error.map_or(Ok(answer), Err)));
            } else {
                self.leaves.push((number, request, answer));
            }
        }
    }

    pub(crate) fn persisted(&mut self, turn: &mut Turn<'_>, done: u64) {
        if !self.in_flight || done != self.last_number {
            return;
        }
        self.in_flight = false;
        self.answer_leaves(turn, |number| number <= done, None);
        if self.join_ready.is_some_and(|number| number <= done) {
            self.join_ready = None;
            self.answer_joins(turn);
        }
        if let Some(assigning) = self.assigning.take_if(|a| a.number <= done) {
            self.answer_syncs(turn, assigning.assignments);
        }
        self.answer_replaced(turn, done, None);
    }

    pub(crate) fn persist_failed(&mut self, turn: &mut Turn<'_>, failed: u64, error: GroupError) {
        if !self.in_flight || failed != self.last_number {
            return;
        }
        self.in_flight = false;
        self.answer_leaves(turn, |number| number <= failed, Some(error));
        self.answer_replaced(turn, failed, Some(error));
        if self.join_ready.is_some_and(|number| number <= failed) {
            self.join_phase_failed(turn, error);
        } else if self.assigning.as_ref().is_some_and(|a| a.number <= failed) {
            self.assignment_failed(turn, error);
        }
    }

    /// Static members that came back into a stable group: with what they need to carry on without a rebalance, or the error.
    fn answer_replaced(&mut self, turn: &mut Turn<'_>, done: u64, error: Option<GroupError>) {
        let ready = |m: &Member| m.replaced.as_ref().is_some_and(|r| r.number <= done);
        let ids: Vec<Name> = self.members.iter().filter(|m| ready(m)).map(|m| m.id.clone()).collect();
        for id in ids {
            let Some(replaced) = self.members.get_mut(&id).and_then(|m| m.replaced.take()) else { continue };
            let awaiting = self.members.set_awaiting_join(&id, None);
            self.restart_session(turn, &id);
            let Some(awaiting) = awaiting else { continue };
            let leads = self.members.is_leader(&id);
            if let Some(error) = error {
                turn.refuse_join(awaiting.request, error, "".into());
                continue;
            }
            let mut answer = self.join_answer(id, Vec::new());
            if !awaiting.supports_skip_assignment {
                // Told that its former self leads, it does not compute an assignment that nobody waits for.
                answer.leader = replaced.former_leader;
            } else if leads {
                answer.members = self.joined_members();
                answer.skip_assignment = true;
            }
            turn.answer(awaiting.request, Response::Join(answer));
        }
    }

    pub(crate) fn unload(&mut self, turn: &mut Turn<'_>, error: GroupError) {
        if self.state == State::Dead {
            return;
        }
        self.in_flight = false;
        self.wanted = false;
        self.join_ready = None;
        self.assigning = None;
        self.answer_leaves(turn, |_| true, Some(error));
        let members = std::mem::take(&mut self.members);
        for member in members.iter() {
            if let Some(joined) = member.awaiting_join {
                turn.refuse_join(joined.request, error, member.id.clone());
            }
            if let Some(synced) = member.awaiting_sync {
                turn.answer(synced, Response::Sync(Err(error)));
            }
        }
        self.pending_sync.clear();
        self.join_timer = None;
        self.sync_deadline = None;
        self.move_to(turn, State::Dead, "unloaded".into());
    }

    /// What another coordinator needs to carry on.
    pub(crate) fn durable_state(&self) -> GroupState {
        let phase = match self.state {
            State::Stable => PersistedPhase::Stable,
            _ if self.members.is_empty() => PersistedPhase::Empty,
            _ if self.assigning.is_some() => PersistedPhase::Stable,
            _ => PersistedPhase::CompletingRebalance,
        };
        let member = |m: &Member| MemberState {
            member_id: m.id.clone(),
            instance_id: m.instance_id.clone(),
            client_id: m.client_id.clone(),
            client_host: m.client_host.clone(),
            session_timeout_ms: m.session_timeout_ms,
            rebalance_timeout_ms: m.rebalance_timeout_ms,
            protocols: m.protocols.clone(),
            assignment: match &self.assigning {
                Some(assigning) => assigning.assignments.get(&m.id).cloned().unwrap_or_default(),
                None => m.assignment.clone(),
            },
        };
        GroupState {
            phase,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.members.leader().cloned(),
            members: self.members.iter().map(member).collect(),
        }
    }
}

/// A stored group is our own work; one that does not hang together keeps its generation only, and all join again.
fn is_consistent(state: &GroupState) -> bool {
    let Some(protocol) = &state.protocol else { return false };
    let mut ids = BTreeSet::new();
    let mut instances = BTreeSet::new();
    state.members.iter().all(|m| {
        ids.insert(&m.member_id)
            && m.instance_id.as_ref().is_none_or(|i| instances.insert(i))
            && m.protocols.iter().any(|p| p.name == *protocol)
    })
}
