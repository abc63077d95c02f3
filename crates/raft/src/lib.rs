//! The metadata quorum: openraft on the journal.
//!
//! Owns: one member of one Raft group, or an observer of it that has none of this ([`Quorum::observe`]); its log (a [journal](isobar_journal)), its snapshots, the running metadata state
//! machine, and the effects that come out of it; the services RAFT, METADATA and LIVENESS of the node's [transport](isobar_rpc).
//!
//! Promises
//! 1. A command that was answered with a result is committed, synced on a quorum, and applied here; whoever reads after
//!    a [barrier](Quorum::barrier) sees it.
//! 2. Every command is answered exactly once; an error says whether it may have happened ([`ProposeError`]).
//! 3. Commands are applied in the order of the calls; effects come out in the order of application, without gaps.
//! 4. Nothing that was promised to the group (a vote, a flushed entry) is forgotten by a crash, and a directory that has
//!    forgotten is refused.
//!
//! May not know: Kafka, sockets of clients, what a command means (but those that end a session that is not heard of).
//!
//! How a command walks: [`Quorum::propose_with`] queues it (`propose`); one task on the raft thread groups what waits
//! into an entry and hands it to openraft; openraft appends it (`log_store`), the journal's thread writes and syncs it,
//! openraft commits it and the worker applies it (`machine`): effects into the ring (`effects`), then the answer, on the
//! same thread. Two threads, two wakes. On a follower the same queue goes to the leader's in batches (`remote::forward`), and
//! openraft's own messages go by `remote::network` and come by `remote::service`.
//!
//! Determinism: openraft runs on its deterministic runtime, seeded from the host, in both worlds (`runtime`). Its selects
//! are biased and its maps ordered, so in the simulation a seed gives one run. What is left to chance in reality: the
//! interleaving with the journal's thread and the callers' threads.

pub mod archive;
mod barrier;
mod clocks;
mod effects;
mod error;
mod format;
mod formation;
mod found;
mod heartbeat;
mod inspect;
mod keeper;
mod leader;
mod liveness;
mod log;
mod log_store;
mod machine;
mod member;
mod members;
mod metrics;
mod observer;
mod open;
mod options;
mod propose;
mod quorum;
pub mod records;
mod remote;
mod runtime;
mod snapshots;
mod types;

#[cfg(test)]
mod tests;

pub use effects::{EffectStream, Lagged};
pub use error::{ProposeError, RaftError};
pub use format::FormatRecord;
pub use found::found;
pub use heartbeat::Heartbeats;
pub use inspect::{Inspected, inspect};
pub use leader::Leader;
pub use liveness::Limits as LivenessLimits;
pub use members::{MemberInfo, MembershipError};
pub use metrics::RaftMetrics;
pub use observer::ObserverOptions;
pub use options::QuorumOptions;
pub use quorum::Quorum;
pub use remote::{RaftNetwork, Timing};
pub use snapshots::SnapshotHeader;
pub use types::Peer;
