//! One timer for a group, over all its deadlines: heartbeats move deadlines without touching the timer.
//!
//! Invariant: armed no later than the earliest deadline, not armed without one. It may fire early; then it is armed anew.

use crate::group::{Group, Turn};
use crate::rebalance::{JoinTimer, JoinTimerKind};
use crate::{Action, MonoMs, Name, State};

/// What is due, in the order it is handled at equal times.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    JoinPhase,
    SyncPhase,
    Session(Name),
    PendingMember(Name),
}

impl Group {
    pub(crate) fn timer_fired(&mut self, turn: &mut Turn<'_>) {
        self.armed = None;
        let now = turn.now;
        let mut due: Vec<(MonoMs, Due)> = Vec::new();
        due.extend(self.join_timer.map(|t| (t.at, Due::JoinPhase)));
        due.extend(self.sync_deadline.map(|at| (at, Due::SyncPhase)));
        due.extend(self.members.iter().filter_map(|m| Some((m.deadline?, Due::Session(m.id.clone())))));
        due.extend(self.members.pending.iter().map(|(id, at)| (*at, Due::PendingMember(id.clone()))));
        due.retain(|(at, _)| *at <= now);
        due.sort();
        for (at, what) in due {
            // An earlier one of these may have moved or removed it.
            match what {
                Due::JoinPhase => match self.join_timer.take_if(|t| t.at == at) {
                    Some(JoinTimer { kind: JoinTimerKind::Initial { delay_ms, remaining_ms }, .. }) => {
                        self.initial_delay_over(turn, delay_ms, remaining_ms);
                    }
                    Some(JoinTimer { kind: JoinTimerKind::Rebalance, .. }) => self.complete_join(turn),
                    None => {}
                },
                Due::SyncPhase => {
                    if self.sync_deadline.take_if(|d| *d == at).is_some() {
                        self.sync_timed_out(turn);
                    }
                }
                Due::Session(id) => self.session_over(turn, &id, at),
                Due::PendingMember(id) => {
                    if self.members.pending.get(&id) == Some(&at) {
                        self.members.pending.remove(&id);
                        self.expired_while_preparing(turn);
                    }
                }
            }
        }
        if let Some(at) = self.earliest_deadline() {
            turn.deadline(at);
        }
    }

    /// A member that waits here is alive; its session starts again with its answer.
    fn session_over(&mut self, turn: &mut Turn<'_>, id: &str, at: MonoMs) {
        let Some(member) = self.members.get_mut(id) else { return };
        if member.deadline.take_if(|d| *d == at).is_none() || member.has_satisfied_heartbeat() {
            return;
        }
        self.drop_member(turn, id);
        if matches!(self.state, State::Stable | State::CompletingRebalance) {
            self.prepare_rebalance(
                turn,
                format!("{id} has not been heard of for its session timeout").into(),
            );
        } else {
            self.expired_while_preparing(turn);
        }
    }

    /// Someone whom the join phase waited for is gone. As in Kafka this ends a first join phase, too, before its delay.
    fn expired_while_preparing(&mut self, turn: &mut Turn<'_>) {
        if self.state == State::PreparingRebalance && self.members.all_joined() {
            self.complete_join(turn);
        }
    }

    fn has_deadline(&self) -> bool {
        self.join_timer.is_some()
            || self.sync_deadline.is_some()
            || !self.members.pending.is_empty()
            || self.members.iter().any(|m| m.deadline.is_some())
    }

    fn earliest_deadline(&self) -> Option<MonoMs> {
        let members = self.members.iter().filter_map(|m| m.deadline);
        let pending = self.members.pending.values().copied();
        let phases = self.join_timer.map(|t| t.at).into_iter().chain(self.sync_deadline);
        members.chain(pending).chain(phases).min()
    }

    pub(crate) fn settle_timer(&mut self, turn: &mut Turn<'_>) {
        if !self.has_deadline() {
            if self.armed.take().is_some() {
                turn.out.push(Action::ClearTimer);
            }
        } else if let Some(at) = turn.earliest
            && self.armed.is_none_or(|armed| at < armed)
        {
            self.armed = Some(at);
            turn.out.push(Action::SetTimer(at));
        }
    }

    pub(crate) fn check_timer(&self) {
        match (self.armed, self.earliest_deadline()) {
            (None, None) => {}
            (Some(armed), Some(earliest)) => {
                assert!(armed <= earliest, "armed at {armed}, due at {earliest}")
            }
            (armed, earliest) => panic!("armed at {armed:?}, due at {earliest:?}"),
        }
    }
}
