//! The types that openraft is instantiated with, and short names for the ones used here.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use isobar_metadata::{CommandResult, Entry as MetadataEntry, MetadataError};
use openraft::raft::responder::Responder;
use prost::Message as _;

use crate::runtime::Runtime;

/// Isobar's instantiation of openraft.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Types;

impl openraft::RaftTypeConfig for Types {
    type D = Command;
    type R = Vec<CommandResult>;
    type NodeId = u64;
    type Node = Peer;
    type Term = u64;
    type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
    type Vote = openraft::impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Command, u64, Peer>;
    type Entry = openraft::Entry<openraft::type_config::alias::CommittedLeaderIdOf<Self>, Self::Payload>;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = Completion<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

pub(crate) type LeaderId = openraft::type_config::alias::LeaderIdOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type LogEntry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type Payload = openraft::type_config::alias::PayloadOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// A log id as openraft wants it.
pub(crate) fn log_id(term: u64, node: u64, index: u64) -> LogId {
    LogId::new(LeaderId { term, node_id: node }, index)
}

/// A voter or learner: the directory it is, and where it is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Incarnation of its directory; a message that names another is refused (DESIGN.md, invariant 6).
    pub incarnation: [u8; 16],
    /// `host:port` of its Raft listener; empty while the group has one voter.
    pub address: String,
}

/// What a normal Raft entry carries: a metadata entry, encoded and decoded.
///
/// The bytes are the truth: they are what is written and replicated, so that a member of an older version passes on
/// fields that it does not know.
#[derive(Clone, PartialEq)]
pub(crate) struct Command {
    bytes: Bytes,
    entry: Arc<MetadataEntry>,
}

impl Command {
    pub(crate) fn new(entry: MetadataEntry) -> Self {
        Self { bytes: entry.encode_to_vec().into(), entry: Arc::new(entry) }
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, MetadataError> {
        let entry = Arc::new(MetadataEntry::from_bytes(bytes.clone())?);
        Ok(Self { bytes, entry })
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(crate) fn entry(&self) -> &MetadataEntry {
        &self.entry
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} commands, {} bytes", self.entry.commands.len(), self.bytes.len())
    }
}

/// What openraft calls when a write is done: one boxed call, run where the entry is applied, so that an answer takes
/// no hop. If openraft drops it unanswered, what it owns answers for itself (see `propose::Answers`).
pub(crate) struct Completion<T>(Box<dyn FnOnce(T) + Send>);

impl<T> Completion<T> {
    pub(crate) fn new(done: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(done))
    }
}

impl<T: Send + 'static> Responder<Types, T> for Completion<T> {
    fn on_complete(self, result: T) {
        (self.0)(result);
    }
}
