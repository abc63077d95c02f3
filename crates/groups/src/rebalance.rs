//! How a generation comes about: prepare, join, complete, sync.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;

use crate::group::{Group, Turn};
use crate::{GroupError, MonoMs, Name, Response, State};

/// What ends the join phase.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JoinTimer {
    pub(crate) at: MonoMs,
    pub(crate) kind: JoinTimerKind,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum JoinTimerKind {
    /// `group.initial.rebalance.delay.ms`, extended by new members while anything remains of the rebalance timeout.
    Initial { delay_ms: u32, remaining_ms: u32 },
    /// The rebalance timeout.
    Rebalance,
}

/// A rebalance that nobody joins is tried again no faster than this, whatever its members' rebalance timeout.
const MIN_RETRY_MS: u32 = 1_000;

impl Group {
    pub(crate) fn prepare_or_complete(&mut self, turn: &mut Turn<'_>, reason: Cow<'static, str>) {
        if self.state == State::PreparingRebalance {
            self.maybe_complete_join(turn);
        } else {
            self.prepare_rebalance(turn, reason);
        }
    }

    /// Asks everyone to join again. Joins that wait already count.
    pub(crate) fn prepare_rebalance(&mut self, turn: &mut Turn<'_>, reason: Cow<'static, str>) {
        self.cancel_wanted(turn);
        if self.state == State::CompletingRebalance {
            self.reset_assignments(turn, GroupError::RebalanceInProgress);
        }
        self.pending_sync.clear();
        self.sync_deadline = None;
        self.initial = self.state == State::Empty;
        self.new_member_added = false;
        self.move_to(turn, State::PreparingRebalance, reason);
        if self.initial && self.config.initial_rebalance_delay_ms > 0 {
            let delay_ms = self.config.initial_rebalance_delay_ms;
            let remaining_ms = self.members.rebalance_timeout_ms().saturating_sub(delay_ms);
            self.set_join_timer(turn, delay_ms, JoinTimerKind::Initial { delay_ms, remaining_ms });
        } else if self.initial || self.members.all_joined() {
            self.complete_join(turn);
        } else {
            self.set_join_timer(turn, self.members.rebalance_timeout_ms(), JoinTimerKind::Rebalance);
        }
    }

    fn set_join_timer(&mut self, turn: &mut Turn<'_>, after_ms: u32, kind: JoinTimerKind) {
        let at = turn.now + MonoMs::from(after_ms);
        self.join_timer = Some(JoinTimer { at, kind });
        turn.deadline(at);
    }

    /// Ends the join phase if everyone has joined; a first one always takes its delay.
    pub(crate) fn maybe_complete_join(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::PreparingRebalance && !self.initial && self.members.all_joined() {
            self.complete_join(turn);
        }
    }

    pub(crate) fn initial_delay_over(&mut self, turn: &mut Turn<'_>, delay_ms: u32, remaining_ms: u32) {
        if self.new_member_added && remaining_ms != 0 {
            self.new_member_added = false;
            let next_ms = self.config.initial_rebalance_delay_ms.min(remaining_ms);
            let remaining_ms = remaining_ms.saturating_sub(delay_ms);
            self.set_join_timer(turn, next_ms, JoinTimerKind::Initial { delay_ms: next_ms, remaining_ms });
        } else {
            self.complete_join(turn);
        }
    }

    /// The join phase is over. Dynamic members that have not joined are out; static ones stay until their session ends.
    pub(crate) fn complete_join(&mut self, turn: &mut Turn<'_>) {
        self.join_timer = None;
        let absent = self.members.iter().filter(|m| m.awaiting_join.is_none() && !m.is_static());
        let absent: Vec<Name> = absent.map(|m| m.id.clone()).collect();
        for id in absent {
            self.drop_member(turn, &id);
        }
        if self.members.is_empty() {
            self.generation = self.generation.saturating_add(1);
            self.protocol = None;
            self.want_persist();
            return self.move_to(turn, State::Empty, "no members left".into());
        }
        if self.members.elect_joined_leader().is_none() {
            // Only static members, none of them here: their sessions decide.
            let after_ms = self.members.rebalance_timeout_ms().max(MIN_RETRY_MS);
            return self.set_join_timer(turn, after_ms, JoinTimerKind::Rebalance);
        }
        self.generation = self.generation.saturating_add(1);
        self.protocol = self.members.select_protocol();
        self.join_ready = Some(self.want_persist());
        self.move_to(turn, State::CompletingRebalance, "the members have joined".into());
    }

    /// This generation is durable: everyone who joined hears of it.
    pub(crate) fn answer_joins(&mut self, turn: &mut Turn<'_>) {
        let ids: Vec<Name> = self.members.iter().map(|m| m.id.clone()).collect();
        let mut for_leader = Some(self.joined_members());
        for id in ids {
            let awaiting = self.members.set_awaiting_join(&id, None);
            if let Some(member) = self.members.get_mut(&id) {
                member.is_new = false;
                turn.deadline(member.restart_session(turn.now));
            }
            if let Some(awaiting) = awaiting {
                let leads = self.members.is_leader(&id);
                let members = if leads { for_leader.take().unwrap_or_default() } else { Vec::new() };
                turn.answer(awaiting.request, Response::Join(self.join_answer(id, members)));
            }
        }
        self.await_syncs(turn);
    }

    /// From here on every member owes a `SyncGroup`, for as long as the rebalance timeout.
    pub(crate) fn await_syncs(&mut self, turn: &mut Turn<'_>) {
        self.pending_sync = self.members.iter().map(|m| m.id.clone()).collect();
        let at = turn.now + MonoMs::from(self.members.rebalance_timeout_ms());
        self.sync_deadline = Some(at);
        turn.deadline(at);
    }

    pub(crate) fn sync_timed_out(&mut self, turn: &mut Turn<'_>) {
        // A static member that has just come back owes nothing yet.
        let waits = |id: &&Name| self.members.get(id).is_some_and(|m| m.awaiting_join.is_some());
        let late: Vec<Name> = self.pending_sync.iter().filter(|id| !waits(id)).cloned().collect();
        self.pending_sync.clear();
        for id in &late {
            self.drop_member(turn, id);
        }
        if !late.is_empty() {
            self.prepare_rebalance(turn, format!("{} members have not synced", late.len()).into());
        }
    }

    /// The assignments are durable: the group is stable, and who waits gets its own.
    pub(crate) fn answer_syncs(&mut self, turn: &mut Turn<'_>, mut assignments: BTreeMap<Name, Bytes>) {
        let mut answers = Vec::new();
        for member in self.members.iter_mut() {
            member.assignment = assignments.remove(&member.id).unwrap_or_default();
            if let Some(request) = member.awaiting_sync.take() {
                turn.deadline(member.restart_session(turn.now));
                answers.push((request, member.assignment.clone()));
            }
        }
        for (request, assignment) in answers {
            let answer = self.sync_answer(assignment);
            turn.answer(request, Response::Sync(Ok(answer)));
        }
        self.move_to(turn, State::Stable, "the leader has assigned".into());
    }

    fn reset_assignments(&mut self, turn: &mut Turn<'_>, error: GroupError) {
        for member in self.members.iter_mut() {
            member.assignment = Bytes::new();
            if let Some(request) = member.awaiting_sync.take() {
                turn.deadline(member.restart_session(turn.now));
                turn.answer(request, Response::Sync(Err(error)));
            }
        }
    }

    pub(crate) fn assignment_failed(&mut self, turn: &mut Turn<'_>, error: GroupError) {
        self.reset_assignments(turn, error);
        self.prepare_rebalance(turn, format!("the assignment could not be stored: {error}").into());
    }

    pub(crate) fn join_phase_failed(&mut self, turn: &mut Turn<'_>, error: GroupError) {
        let ids: Vec<Name> = self.members.iter().map(|m| m.id.clone()).collect();
        for id in ids {
            if let Some(awaiting) = self.members.set_awaiting_join(&id, None) {
                turn.refuse_join(awaiting.request, error, id.clone());
            }
            if let Some(member) = self.members.get_mut(&id) {
                member.is_new = false;
            }
            self.restart_session(turn, &id);
        }
        self.prepare_rebalance(turn, format!("the generation could not be stored: {error}").into());
    }
}
