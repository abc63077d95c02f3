//! The classic consumer group, as a pure state machine.
//!
//! **Owns** what a group coordinator decides: who is a member, who leads, which generation and protocol is current,
//! who is answered what and when, and what must be durable before an answer may go out.
//!
//! **Promises**
//! 1. Every request given to [`Group::handle`] is answered exactly once by an [`Action::Answer`], at the latest when the
//!    group is unloaded.
//! 2. The generation only grows, also over a change of coordinator: a generation is durable before any member hears
//!    of it, and an assignment is durable before any member gets it.
//! 3. One generation has one leader and one protocol, and no member gets an assignment of another generation.
//! 4. At most one [`Action::Persist`] is under way at a time, so that a repeated proposal can never bring an older
//!    state back.
//! 5. At most one timer is armed, never later than the earliest deadline, and none where there is no deadline.
//! 6. The same events at the same times give the same actions: no clock, no randomness, no hash order.
//!
//! **May not know** Raft, sockets, clocks, the Kafka wire format. Time is an argument ([`MonoMs`]); new member ids come in with
//! the request that may need one.
//!
//! The behaviour is that of Kafka's `ClassicGroup` and `GroupMetadataManager` (KIP-62, KIP-134, KIP-345, KIP-394, KIP-429,
//! KIP-559, KIP-800, KIP-814). Where Kafka loses a request (a `SyncGroup` of a member that leaves, the first of two `JoinGroup`s
//! of one member) it is answered here; and a generation is made durable when its join phase ends, not only with its
//! assignment, so a coordinator's death does not interrupt a rebalance that has got so far.

mod api;
mod config;
mod durable;
mod error;
mod group;
mod join;
mod members;
mod rebalance;
mod timers;
mod views;

pub use api::{
    Action, CommitCheck, Event, GroupState, Heartbeat, Join, JoinAnswer, JoinedMember, Leave, LeaveAnswer,
    Leaving, LeftMember, MemberState, MonoMs, Name, PersistedPhase, Protocol, RequestId, Response, Sync,
    SyncAnswer,
};
pub use config::GroupConfig;
pub use error::GroupError;
pub use group::{Group, State, member_id, validate_group_id};
pub use views::{Description, MemberDescription, state_from_persisted};
