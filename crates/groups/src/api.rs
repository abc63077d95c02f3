//! What goes into a group and what comes out of it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::{GroupError, State};

/// Monotonic milliseconds since any fixed moment of the shell's choosing.
pub type MonoMs = u64;

/// A member id, instance id, client id or protocol name: short, kept long, cloned often.
pub type Name = Arc<str>;

/// The shell's name for a request that waits for an answer. Unique among the requests of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// One protocol that a member supports: the assignor's name and the member's subscription, opaque here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol {
    pub name: Name,
    pub metadata: Bytes,
}

/// `JoinGroup`.
#[derive(Debug, Clone)]
pub struct Join {
    /// Empty for a new member.
    pub member_id: Name,
    /// `group.instance.id` (KIP-345); versions below 5 have none.
    pub instance_id: Option<Name>,
    pub client_id: Name,
    /// As Kafka shows it: `/127.0.0.1`.
    pub client_host: Name,
    pub session_timeout_ms: i32,
    /// Version 0 has none; there it is the session timeout.
    pub rebalance_timeout_ms: i32,
    pub protocol_type: Name,
    /// In the member's order of preference.
    pub protocols: Vec<Protocol>,
    /// The id to give to a member that has none; see [`crate::member_id`].
    pub new_member_id: Name,
    /// From version 4 on a dynamic member must come back with an id it was given (KIP-394).
    pub requires_member_id: bool,
    /// From version 9 on a static leader that comes back can be told to skip the assignment (KIP-814).
    pub supports_skip_assignment: bool,
    /// Why the client says it joins (KIP-800); for logs.
    pub reason: Option<String>,
}

/// `SyncGroup`.
#[derive(Debug, Clone)]
pub struct Sync {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    pub generation: i32,
    /// From version 5 on (KIP-559).
    pub protocol_type: Option<Name>,
    pub protocol: Option<Name>,
    /// Of the leader, the assignment of each member; of others, empty.
    pub assignments: Vec<(Name, Bytes)>,
}

/// `Heartbeat`.
#[derive(Debug, Clone)]
pub struct Heartbeat {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    pub generation: i32,
}

/// One member of a `LeaveGroup`; versions below 3 have exactly one.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// Empty where an administrator removes a static member by its instance id.
    pub member_id: Name,
    pub instance_id: Option<Name>,
    /// Why (KIP-800); for logs.
    pub reason: Option<String>,
}

/// `LeaveGroup`.
#[derive(Debug, Clone)]
pub struct Leave {
    pub members: Vec<Leaving>,
}

/// May this member commit offsets? Asked before an `OffsetCommit` is proposed; a yes extends the session.
#[derive(Debug, Clone)]
pub struct CommitCheck {
    /// Empty for a consumer that does not use the group's membership.
    pub member_id: Name,
    pub instance_id: Option<Name>,
    /// Negative for a consumer that does not use the group's membership.
    pub generation: i32,
}

/// What happens to a group.
#[derive(Debug, Clone)]
pub enum Event {
    Join(RequestId, Join),
    Sync(RequestId, Sync),
    Heartbeat(RequestId, Heartbeat),
    Leave(RequestId, Leave),
    CommitCheck(RequestId, CommitCheck),
    /// The armed timer's time has come. Harmless if it comes early or twice.
    TimerFired,
    /// The state of this number is durable.
    Persisted(u64),
    /// The state of this number was refused and is *certainly* not durable, and this broker still coordinates the group.
    /// In every other case the shell unloads the group.
    PersistFailed(u64, GroupError),
    /// This broker does not coordinate the group any more, or does not know what is durable: everyone who waits is told
    /// this error and the group is dead.
    Unload(GroupError),
}

/// What the shell has to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Answer a request. Comes exactly once for each.
    Answer(RequestId, Response),
    /// Make this state durable and report [`Event::Persisted`] or [`Event::PersistFailed`] with the number, or unload the group.
    Persist { number: u64, state: Box<GroupState> },
    /// Arm the group's only timer, in place of whatever it was armed for.
    SetTimer(MonoMs),
    /// Disarm the group's timer.
    ClearTimer,
    /// The group has changed its state; for logs and metrics.
    Moved { to: State, generation: i32, members: usize, reason: Cow<'static, str> },
    /// Nothing is left here that is not durable: the group may be dropped and loaded again when it is asked for. The last
    /// action of an event.
    Forget,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    Join(JoinAnswer),
    Sync(Result<SyncAnswer, GroupError>),
    Heartbeat(Result<(), GroupError>),
    Leave(Result<LeaveAnswer, GroupError>),
    CommitCheck(Result<(), GroupError>),
}

/// Answer to `JoinGroup`. Errors carry a member id too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinAnswer {
    pub error: Option<GroupError>,
    /// -1 with an error.
    pub generation: i32,
    pub protocol_type: Option<Name>,
    pub protocol: Option<Name>,
    /// Empty with an error.
    pub leader: Name,
    /// The leader need not compute an assignment (KIP-814).
    pub skip_assignment: bool,
    pub member_id: Name,
    /// For the leader, all members; for others, empty.
    pub members: Vec<JoinedMember>,
}

impl JoinAnswer {
    /// A refusal.
    #[must_use]
    pub fn refused(error: GroupError, member_id: Name) -> Self {
        Self {
            error: Some(error),
            generation: -1,
            protocol_type: None,
            protocol: None,
            leader: Name::from(""),
            skip_assignment: false,
            member_id,
            members: Vec::new(),
        }
    }
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMember {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    /// Of the protocol that was chosen.
    pub metadata: Bytes,
}

/// Answer to `SyncGroup`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncAnswer {
    pub protocol_type: Option<Name>,
    pub protocol: Option<Name>,
    pub assignment: Bytes,
}

/// Answer to `LeaveGroup`: one entry for each member named, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaveAnswer {
    pub members: Vec<LeftMember>,
}

/// How one member's leaving went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftMember {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    pub error: Option<GroupError>,
}

/// How far a durable generation has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PersistedPhase {
    /// No members.
    Empty,
    /// The generation has members and a leader, and no assignment yet.
    CompletingRebalance,
    /// The members have assignments.
    Stable,
}

/// What is durable of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupState {
    pub phase: PersistedPhase,
    pub generation: i32,
    /// `consumer`, `connect`, …; none where the group never had a member.
    pub protocol_type: Option<Name>,
    pub protocol: Option<Name>,
    pub leader: Option<Name>,
    /// By member id.
    pub members: Vec<MemberState>,
}

/// What is durable of a member. All its protocols, so that it can come back to another coordinator unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberState {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    pub client_id: Name,
    pub client_host: Name,
    pub session_timeout_ms: u32,
    pub rebalance_timeout_ms: u32,
    pub protocols: Vec<Protocol>,
    pub assignment: Bytes,
}
