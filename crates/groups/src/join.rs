//! `JoinGroup`: who may join, and what each kind of join does.

use crate::group::{Group, Turn, reason};
use crate::members::{AwaitingJoin, Member, Replaced, join_bytes};
use crate::{GroupError, Join, MonoMs, Name, RequestId, Response, State};

impl Group {
    pub(crate) fn join(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join) {
        let in_range = self.config.check_session_timeout(join.session_timeout_ms);
        let checked = match in_range {
            Err(error) => Err((error, join.member_id.clone())),
            Ok(()) => self.check_join(turn, &join),
        };
        if let Err((error, member_id)) = checked {
            turn.refuse_join(request, error, member_id);
        } else if !join.member_id.is_empty() {
            self.join_known(turn, request, join);
        } else if let Some(existing) =
            join.instance_id.as_ref().and_then(|i| self.members.static_member(i)).cloned()
        {
            self.join_returning_static(turn, request, join, &existing);
        } else if join.instance_id.is_none() && join.requires_member_id {
            let id = join.new_member_id;
            let at = turn.now + MonoMs::from(join.session_timeout_ms.unsigned_abs());
            self.members.pending.insert(id.clone(), at);
            turn.deadline(at);
            turn.refuse_join(request, GroupError::MemberIdRequired, id);
        } else {
            let id = join.new_member_id.clone();
            self.add_member(turn, request, id, join);
        }
    }

    /// What holds for every join: state, room, protocols, bounds. The error comes with the member id to answer with.
    fn check_join(&mut self, turn: &mut Turn<'_>, join: &Join) -> Result<(), (GroupError, Name)> {
        let none = || Name::from("");
        if self.state == State::Dead {
            return Err((GroupError::CoordinatorNotAvailable, join.member_id.clone()));
        }
        let holder = join.instance_id.as_ref().and_then(|i| self.members.static_member(i)).cloned();
        let former =
            if join.member_id.is_empty() { holder } else { None }.unwrap_or_else(|| join.member_id.clone());
        if !self.has_room_for(&former) {
            self.drop_member(turn, &join.member_id);
            self.maybe_complete_join(turn);
            return Err((GroupError::GroupMaxSizeReached, none()));
        }
        if !self.supports(join) {
            return Err((GroupError::InconsistentGroupProtocol, join.member_id.clone()));
        }
        let bytes = join_bytes(join);
        if bytes > self.config.max_member_bytes {
            return Err((GroupError::InvalidRequest, join.member_id.clone()));
        }
        let id =
            join.instance_id.as_ref().and_then(|i| self.members.static_member(i)).unwrap_or(&join.member_id);
        let before = self.members.get(id).map_or(0, Member::bytes_without_assignment);
        if bytes > before && self.members.bytes() - before + bytes > self.config.max_group_bytes {
            return Err((GroupError::GroupMaxSizeReached, join.member_id.clone()));
        }
        let clash = |id: &Name| self.members.contains(id) || self.members.pending.contains_key(id);
        let gets_id = join.member_id.is_empty();
        if gets_id
            && (clash(&join.new_member_id) || self.members.pending.len() >= self.config.max_pending_members)
        {
            return Err((GroupError::CoordinatorLoadInProgress, none()));
        }
        Ok(())
    }

    /// `group.max.size`, counted as Kafka counts it: while preparing, by those who have joined, so that of a group that has
    /// become too big the last to come back are turned away.
    fn has_room_for(&self, member_id: &str) -> bool {
        let member = self.members.get(member_id);
        match self.state {
            State::Empty | State::Dead => true,
            State::PreparingRebalance => {
                member.is_some_and(|m| m.awaiting_join.is_some())
                    || self.members.awaiting_join() < self.config.max_size
            }
            State::CompletingRebalance | State::Stable => {
                member.is_some() || self.members.len() < self.config.max_size
            }
        }
    }

    fn supports(&self, join: &Join) -> bool {
        if self.state == State::Empty {
            !join.protocol_type.is_empty() && !join.protocols.is_empty()
        } else {
            self.protocol_type.as_ref() == Some(&join.protocol_type)
                && self.members.supports_any(&join.protocols)
        }
    }

    fn join_known(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join) {
        let id = join.member_id.clone();
        if join.instance_id.is_none() && self.members.pending.contains_key(&id) {
            return self.add_member(turn, request, id, join);
        }
        if let Err(error) = self.members.validate(&id, join.instance_id.as_deref()) {
            return turn.refuse_join(request, error, id);
        }
        let unchanged = self.members.get(&id).is_some_and(|m| m.protocols == join.protocols);
        match self.state {
            State::CompletingRebalance if unchanged && self.join_ready.is_some() => {
                self.hold_join(turn, &id, request, &join);
            }
            // It may have missed the answer; it is told again.
            State::CompletingRebalance if unchanged => self.answer_current(turn, &id, request),
            State::Stable if unchanged && !self.members.is_leader(&id) => {
                self.answer_current(turn, &id, request)
            }
            State::Empty | State::Dead => turn.refuse_join(request, GroupError::UnknownMemberId, id),
            State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                let why = if unchanged { "joins again" } else { "changed its metadata" };
                let reason = reason(&id, why, join.reason.as_deref());
                self.hold_join(turn, &id, request, &join);
                self.members.update(&id, join);
                self.prepare_or_complete(turn, reason);
            }
        }
    }

    /// The join waits for the end of the join phase; one that waited before is told to go on with this one.
    fn hold_join(&mut self, turn: &mut Turn<'_>, id: &str, request: RequestId, join: &Join) {
        let awaiting = AwaitingJoin { request, supports_skip_assignment: join.supports_skip_assignment };
        if let Some(earlier) = self.members.set_awaiting_join(id, Some(awaiting)) {
            turn.refuse_join(earlier.request, GroupError::RebalanceInProgress, id.into());
        }
    }

    fn add_member(&mut self, turn: &mut Turn<'_>, request: RequestId, id: Name, join: Join) {
        let reason = reason(&id, "is new", join.reason.as_deref());
        let skip = join.supports_skip_assignment;
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type.clone());
        }
        let mut member = Member::new(id, join);
        member.awaiting_join = Some(AwaitingJoin { request, supports_skip_assignment: skip });
        // Its client does not know its id yet, or waits on this very request: it cannot send heartbeats. A client that gives
        // up and tries anew would leave members behind without end, so this request has a limit of its own.
        let at = turn.now + MonoMs::from(self.config.new_member_join_timeout_ms);
        member.deadline = Some(at);
        turn.deadline(at);
        self.members.insert(member);
        if self.state == State::PreparingRebalance && self.initial {
            self.new_member_added = true;
        }
        self.prepare_or_complete(turn, reason);
    }

    /// A static member joins without a member id: it was restarted. It takes over from its former self (KIP-345).
    fn join_returning_static(&mut self, turn: &mut Turn<'_>, request: RequestId, join: Join, old: &Name) {
        let id = join.new_member_id.clone();
        let former_leader = self.members.leader().cloned().unwrap_or_else(|| Name::from(""));
        let awaiting = AwaitingJoin { request, supports_skip_assignment: join.supports_skip_assignment };
        let reason = reason(&id, "came back as a static member", join.reason.as_deref());
        if let Some((joined, synced)) = self.members.replace_static(old, &id) {
            if let Some(joined) = joined {
                turn.refuse_join(joined.request, GroupError::FencedInstanceId, old.clone());
            }
            if let Some(synced) = synced {
                turn.answer(synced, Response::Sync(Err(GroupError::FencedInstanceId)));
            }
        }
        if self.pending_sync.remove(old) {
            self.pending_sync.insert(id.clone());
        }
        self.members.update(&id, join);
        self.members.set_awaiting_join(&id, Some(awaiting));
        let keeps_protocol = self.state == State::Stable && self.members.select_protocol() == self.protocol;
        if keeps_protocol {
            let number = self.want_persist();
            if let Some(member) = self.members.get_mut(&id) {
                member.replaced = Some(Replaced { number, former_leader });
            }
        } else {
            self.prepare_or_complete(turn, reason);
        }
    }
}
