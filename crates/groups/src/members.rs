//! The members of a group and the counts kept over them.
//!
//! Invariants, checked after each event in debug builds:
//! 1. `supported[p]` is the number of members that support protocol `p`; no entry is 0.
//! 2. `awaiting_join` is the number of members whose `JoinGroup` waits for its answer.
//! 3. `statics` holds exactly the members with an instance id, one member for each.
//! 4. A member id is a member or pending, never both.
//! 5. With members there is at least one protocol that all of them support.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{GroupError, Join, MemberState, MonoMs, Name, Protocol, RequestId};

/// A `JoinGroup` that waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AwaitingJoin {
    pub(crate) request: RequestId,
    pub(crate) supports_skip_assignment: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) id: Name,
    pub(crate) instance_id: Option<Name>,
    pub(crate) client_id: Name,
    pub(crate) client_host: Name,
    pub(crate) session_timeout_ms: u32,
    pub(crate) rebalance_timeout_ms: u32,
    pub(crate) protocols: Vec<Protocol>,
    pub(crate) assignment: Bytes,
    /// Has not seen the end of a join phase yet, so it may expire while its `JoinGroup` waits.
    pub(crate) is_new: bool,
    pub(crate) awaiting_join: Option<AwaitingJoin>,
    pub(crate) awaiting_sync: Option<RequestId>,
    /// When the session ends, unless a request of the member waits here.
    pub(crate) deadline: Option<MonoMs>,
    /// A static member that came back into a stable group: its `JoinGroup` is answered when this state is durable, and the
    /// leader it names to clients that know no KIP-814.
    pub(crate) replaced: Option<Replaced>,
}

#[derive(Debug, Clone)]
pub(crate) struct Replaced {
    pub(crate) number: u64,
    pub(crate) former_leader: Name,
}

/// Bytes charged for what a member costs beside its names and metadata.
const MEMBER_OVERHEAD_BYTES: usize = 64;
const PROTOCOL_OVERHEAD_BYTES: usize = 16;

fn protocols_bytes(protocols: &[Protocol]) -> usize {
    protocols.iter().map(|p| PROTOCOL_OVERHEAD_BYTES + p.name.len() + p.metadata.len()).sum()
}

fn millis(timeout_ms: i32) -> u32 {
    u32::try_from(timeout_ms).unwrap_or(0)
}

/// What a join would make the member weigh, without its assignment.
pub(crate) fn join_bytes(join: &Join) -> usize {
    MEMBER_OVERHEAD_BYTES
        + join.member_id.len().max(join.new_member_id.len())
        + join.instance_id.as_ref().map_or(0, |i| i.len())
        + join.client_id.len()
        + join.client_host.len()
        + protocols_bytes(&join.protocols)
}

impl Member {
    pub(crate) fn new(id: Name, join: Join) -> Self {
        Self {
            id,
            instance_id: join.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout_ms: millis(join.session_timeout_ms),
            rebalance_timeout_ms: millis(join.rebalance_timeout_ms),
            protocols: join.protocols,
            assignment: Bytes::new(),
            is_new: true,
            awaiting_join: None,
            awaiting_sync: None,
            deadline: None,
            replaced: None,
        }
    }

    pub(crate) fn loaded(state: MemberState) -> Self {
        Self {
            id: state.member_id,
            instance_id: state.instance_id,
            client_id: state.client_id,
            client_host: state.client_host,
            session_timeout_ms: state.session_timeout_ms,
            rebalance_timeout_ms: state.rebalance_timeout_ms,
            protocols: state.protocols,
            assignment: state.assignment,
            is_new: false,
            awaiting_join: None,
            awaiting_sync: None,
            deadline: None,
            replaced: None,
        }
    }

    pub(crate) fn is_static(&self) -> bool {
        self.instance_id.is_some()
    }

    /// Waiting members need no heartbeat; but new ones expire even while they wait.
    pub(crate) fn has_satisfied_heartbeat(&self) -> bool {
        !self.is_new && (self.awaiting_join.is_some() || self.awaiting_sync.is_some())
    }

    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|p| &*p.name == protocol).map(|p| p.metadata.clone()).unwrap_or_default()
    }

    pub(crate) fn restart_session(&mut self, now: MonoMs) -> MonoMs {
        let at = now + MonoMs::from(self.session_timeout_ms);
        self.deadline = Some(at);
        at
    }

    fn names_bytes(&self) -> usize {
        MEMBER_OVERHEAD_BYTES
            + self.id.len()
            + self.instance_id.as_ref().map_or(0, |i| i.len())
            + self.client_id.len()
            + self.client_host.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes_without_assignment() + self.assignment.len()
    }

    pub(crate) fn bytes_without_assignment(&self) -> usize {
        self.names_bytes() + protocols_bytes(&self.protocols)
    }

    fn protocol_names(&self) -> BTreeSet<&Name> {
        self.protocols.iter().map(|p| &p.name).collect()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Members {
    by_id: BTreeMap<Name, Member>,
    statics: BTreeMap<Name, Name>,
    supported: BTreeMap<Name, usize>,
    awaiting_join: usize,
    /// Ids given out by MEMBER_ID_REQUIRED, and when they lapse.
    pub(crate) pending: BTreeMap<Name, MonoMs>,
    leader: Option<Name>,
}

impl Members {
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Member> {
        self.by_id.get(id)
    }

    /// For all but `id`, `instance_id`, `protocols` and `awaiting_join`, which the counts depend on.
    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut Member> {
        self.by_id.get_mut(id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_id.values()
    }

    /// As [`Self::get_mut`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.by_id.values_mut()
    }

    pub(crate) fn contains(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    pub(crate) fn static_member(&self, instance_id: &str) -> Option<&Name> {
        self.statics.get(instance_id)
    }

    pub(crate) fn leader(&self) -> Option<&Name> {
        self.leader.as_ref()
    }

    pub(crate) fn is_leader(&self, id: &str) -> bool {
        self.leader.as_deref() == Some(id)
    }

    pub(crate) fn awaiting_join(&self) -> usize {
        self.awaiting_join
    }

    pub(crate) fn all_joined(&self) -> bool {
        self.awaiting_join == self.by_id.len() && self.pending.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.by_id.values().map(Member::bytes).sum()
    }

    /// The longest rebalance timeout of the members (KIP-62).
    pub(crate) fn rebalance_timeout_ms(&self) -> u32 {
        self.by_id.values().map(|m| m.rebalance_timeout_ms).max().unwrap_or(0)
    }

    /// Is this the current holder of its identity?
    pub(crate) fn validate(&self, member_id: &str, instance_id: Option<&str>) -> Result<(), GroupError> {
        if let Some(instance) = instance_id {
            match self.statics.get(instance) {
                None => return Err(GroupError::UnknownMemberId),
                Some(holder) if **holder != *member_id => return Err(GroupError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.by_id.contains_key(member_id) { Ok(()) } else { Err(GroupError::UnknownMemberId) }
    }

    pub(crate) fn insert(&mut self, member: Member) {
        self.pending.remove(&member.id);
        self.count_protocols(&member);
        if let Some(instance) = &member.instance_id {
            self.statics.insert(instance.clone(), member.id.clone());
        }
        if self.leader.is_none() {
            self.leader = Some(member.id.clone());
        }
        self.awaiting_join += usize::from(member.awaiting_join.is_some());
        self.by_id.insert(member.id.clone(), member);
    }

    /// Takes a member or a pending id out. The caller answers what waits in it.
    pub(crate) fn remove(&mut self, id: &str) -> Option<Member> {
        self.pending.remove(id);
        let member = self.by_id.remove(id)?;
        self.uncount_protocols(&member);
        self.awaiting_join -= usize::from(member.awaiting_join.is_some());
        if let Some(instance) = &member.instance_id {
            self.statics.remove(instance);
        }
        if self.is_leader(id) {
            self.leader = self.by_id.keys().next().cloned();
        }
        Some(member)
    }

    /// A static member came back: the same member under another id, leader if it was. Gives what waited under the old id.
    pub(crate) fn replace_static(
        &mut self,
        old: &str,
        new: &Name,
    ) -> Option<(Option<AwaitingJoin>, Option<RequestId>)> {
        let was_leader = self.is_leader(old);
        let mut member = self.remove(old)?;
        let waited = (member.awaiting_join.take(), member.awaiting_sync.take());
        member.id = new.clone();
        member.is_new = false;
        member.replaced = None;
        member.deadline = None;
        self.insert(member);
        if was_leader {
            self.leader = Some(new.clone());
        }
        Some(waited)
    }

    /// What a `JoinGroup` of a known member changes.
    pub(crate) fn update(&mut self, id: &str, join: Join) {
        let Some(mut member) = self.by_id.remove(id) else { return };
        self.uncount_protocols(&member);
        member.protocols = join.protocols;
        member.session_timeout_ms = millis(join.session_timeout_ms);
        member.rebalance_timeout_ms = millis(join.rebalance_timeout_ms);
        self.count_protocols(&member);
        self.by_id.insert(member.id.clone(), member);
    }

    /// Sets what waits for the end of the join phase; gives what waited before.
    pub(crate) fn set_awaiting_join(
        &mut self,
        id: &str,
        awaiting: Option<AwaitingJoin>,
    ) -> Option<AwaitingJoin> {
        let member = self.by_id.get_mut(id)?;
        let before = std::mem::replace(&mut member.awaiting_join, awaiting);
        self.awaiting_join += usize::from(awaiting.is_some());
        self.awaiting_join -= usize::from(before.is_some());
        before
    }

    /// The leader stays if it has joined, else the first who has joined leads. None: nobody has.
    pub(crate) fn elect_joined_leader(&mut self) -> Option<&Name> {
        let joined = |id: &Name| self.by_id.get(id).is_some_and(|m| m.awaiting_join.is_some());
        if !self.leader.as_ref().is_some_and(joined) {
            let elected = self.by_id.values().find(|m| m.awaiting_join.is_some())?.id.clone();
            self.leader = Some(elected);
        }
        self.leader.as_ref()
    }

    /// A loaded group's leader, if it is a member.
    pub(crate) fn set_leader(&mut self, leader: Name) {
        if self.by_id.contains_key(&leader) {
            self.leader = Some(leader);
        }
    }

    /// Does a member with these protocols share one with all members?
    pub(crate) fn supports_any(&self, protocols: &[Protocol]) -> bool {
        protocols.iter().any(|p| self.supported.get(&p.name).copied().unwrap_or(0) == self.by_id.len())
    }

    /// The protocol that all support and most put first; of equals, the leader's favourite.
    pub(crate) fn select_protocol(&self) -> Option<Name> {
        let common = |p: &&Protocol| self.supported.get(&p.name) == Some(&self.by_id.len());
        let mut votes: BTreeMap<&Name, usize> = BTreeMap::new();
        for member in self.by_id.values() {
            *votes.entry(&member.protocols.iter().find(common)?.name).or_default() += 1;
        }
        let most = votes.values().max().copied()?;
        let leader = self.by_id.get(self.leader.as_ref()?)?;
        leader.protocols.iter().map(|p| &p.name).find(|name| votes.get(name) == Some(&most)).cloned()
    }

    fn count_protocols(&mut self, member: &Member) {
        for name in member.protocol_names() {
            *self.supported.entry(name.clone()).or_default() += 1;
        }
    }

    fn uncount_protocols(&mut self, member: &Member) {
        for name in member.protocol_names() {
            if let Some(count) = self.supported.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.supported.remove(name);
                }
            }
        }
    }

    /// The module's invariants; for tests and debug builds.
    pub(crate) fn check(&self) {
        let mut supported: BTreeMap<Name, usize> = BTreeMap::new();
        for member in self.by_id.values() {
            for name in member.protocol_names() {
                *supported.entry(name.clone()).or_default() += 1;
            }
            assert!(!self.pending.contains_key(&member.id), "{} is a member and pending", member.id);
            if let Some(instance) = &member.instance_id {
                assert_eq!(self.statics.get(instance), Some(&member.id), "static member {instance}");
            }
        }
        assert_eq!(supported, self.supported, "protocol counts");
        assert_eq!(
            self.statics.len(),
            self.by_id.values().filter(|m| m.is_static()).count(),
            "static members"
        );
        assert_eq!(self.awaiting_join, self.by_id.values().filter(|m| m.awaiting_join.is_some()).count());
        assert_eq!(self.leader.is_none(), self.by_id.is_empty(), "a leader exactly where there are members");
        if let Some(leader) = &self.leader {
            assert!(self.by_id.contains_key(leader), "the leader is a member");
            assert!(self.select_protocol().is_some(), "members without a common protocol");
        }
    }
}
