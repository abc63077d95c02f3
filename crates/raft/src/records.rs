//! What the Raft log writes into its journal: one protobuf message for every frame.
//!
//! Every frame carries, besides its own news, the whole of the small state as of that frame (vote, committed id,
//! purged id). So the newest frame alone has all of it, a segment can be recycled without copying anything forward,
//! and the committed id costs no write of its own.

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;

use crate::types::{Command, LogEntry, LogId, Membership, Payload, Peer, Vote, log_id};

/// Version written into every frame. A reader refuses a higher one.
pub(crate) const VERSION: u32 = 1;

/// Journal frame kinds of the Raft log. They only name the reason of the frame; the message is the same for all.
pub(crate) mod kind {
    /// Entries were appended.
    pub(crate) const APPEND: u8 = 0x20;
    /// The vote changed.
    pub(crate) const VOTE: u8 = 0x21;
    /// Entries were cut off at the end.
    pub(crate) const TRUNCATE: u8 = 0x22;
    /// Entries were dropped at the start.
    pub(crate) const PURGE: u8 = 0x23;
}

/// A log id: (term, node) of the leader that proposed it, and its place.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct LogIdRecord {
    /// Term of the leader.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Node id of the leader.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// Index in the log, from 0.
    #[prost(uint64, tag = "3")]
    pub index: u64,
}

/// A vote: whom this member follows.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct VoteRecord {
    /// Term voted in.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// Node voted for.
    #[prost(uint64, tag = "2")]
    pub node: u64,
    /// True once a quorum has granted it.
    #[prost(bool, tag = "3")]
    pub committed: bool,
}

/// A member of the group.
#[derive(Clone, PartialEq, Message)]
pub struct MemberRecord {
    /// Node id.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// Incarnation of its directory, 16 bytes.
    #[prost(bytes = "bytes", tag = "2")]
    pub incarnation: Bytes,
    /// `host:port`.
    #[prost(string, tag = "3")]
    pub address: String,
}

/// Node ids of one voter set.
#[derive(Clone, PartialEq, Message)]
pub struct VoterSetRecord {
    /// Node ids, ascending.
    #[prost(uint64, repeated, tag = "1")]
    pub nodes: Vec<u64>,
}

/// Who belongs to the group: one voter set, or two during a change (joint consensus).
#[derive(Clone, PartialEq, Message)]
pub struct MembershipRecord {
    /// The voter sets.
    #[prost(message, repeated, tag = "1")]
    pub voters: Vec<VoterSetRecord>,
    /// Voters and learners.
    #[prost(message, repeated, tag = "2")]
    pub members: Vec<MemberRecord>,
}

/// One Raft entry. Neither `command` nor `membership`: a blank entry of a new leader.
#[derive(Clone, PartialEq, Message)]
pub struct EntryRecord {
    /// Its id.
    #[prost(message, required, tag = "1")]
    pub id: LogIdRecord,
    /// An encoded metadata entry.
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub command: Option<Bytes>,
    /// A membership.
    #[prost(message, optional, tag = "3")]
    pub membership: Option<MembershipRecord>,
}

/// "Everything after this id is gone"; without an id: everything.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct TruncateRecord {
    /// The last id that stays.
    #[prost(message, optional, tag = "1")]
    pub after: Option<LogIdRecord>,
}

/// The meta part of a frame.
#[derive(Clone, PartialEq, Message)]
pub struct FrameRecord {
    /// [`VERSION`].
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The vote in force.
    #[prost(message, optional, tag = "2")]
    pub vote: Option<VoteRecord>,
    /// The last id known to be committed. May be older than the truth, never newer.
    #[prost(message, optional, tag = "3")]
    pub committed: Option<LogIdRecord>,
    /// The last id dropped at the start.
    #[prost(message, optional, tag = "4")]
    pub purged: Option<LogIdRecord>,
    /// A cut at the end, done before `entries` are appended.
    #[prost(message, optional, tag = "5")]
    pub truncate: Option<TruncateRecord>,
    /// Entries appended, ascending without holes.
    #[prost(message, repeated, tag = "6")]
    pub entries: Vec<EntryRecord>,
    /// Counts the frames. A frame that does not follow the one before it was handed over behind one that failed (a full
    /// disk): it was acknowledged to no one and counts for nothing.
    #[prost(uint64, tag = "7")]
    pub serial: u64,
}

impl LogIdRecord {
    pub(crate) fn of(id: &LogId) -> Self {
        Self { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
    }

    pub(crate) fn log_id(&self) -> LogId {
        log_id(self.term, self.node, self.index)
    }
}

impl VoteRecord {
    pub(crate) fn of(vote: &Vote) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
    }

    pub(crate) fn vote(&self) -> Vote {
        if self.committed {
            Vote::new_committed(self.term, self.node)
        } else {
            Vote::new(self.term, self.node)
        }
    }
}

impl MembershipRecord {
    pub(crate) fn of(membership: &Membership) -> Self {
        let set =
            |set: &std::collections::BTreeSet<u64>| VoterSetRecord { nodes: set.iter().copied().collect() };
        let member = |(node, peer): (&u64, &Peer)| MemberRecord {
            node: *node,
            incarnation: Bytes::copy_from_slice(&peer.incarnation),
            address: peer.address.clone(),
        };
        Self {
            voters: membership.get_joint_config().iter().map(set).collect(),
            members: membership.nodes().map(member).collect(),
        }
    }

    pub(crate) fn decode_membership(&self) -> Result<Membership, String> {
        let mut nodes = std::collections::BTreeMap::new();
        for member in &self.members {
            let incarnation = member.incarnation.as_ref().try_into().map_err(|_| {
                format!("node {} has an incarnation of {} bytes", member.node, member.incarnation.len())
            })?;
            nodes.insert(member.node, Peer { incarnation, address: member.address.clone() });
        }
        let sets: Vec<_> = self.voters.iter().map(|set| set.nodes.iter().copied().collect()).collect();
        if sets.is_empty() {
            return Ok(Membership::default());
        }
        Membership::new(sets, nodes).map_err(|error| error.to_string())
    }
}

impl EntryRecord {
    pub(crate) fn of(entry: &LogEntry) -> Self {
        let (command, membership) = match &entry.payload {
            EntryPayload::Blank => (None, None),
            EntryPayload::Normal(command) => (Some(command.bytes().clone()), None),
            EntryPayload::Membership(membership) => (None, Some(MembershipRecord::of(membership))),
        };
        Self { id: LogIdRecord::of(&entry.log_id), command, membership }
    }

    pub(crate) fn decode_entry(&self) -> Result<LogEntry, String> {
        let payload: Payload = match (&self.command, &self.membership) {
            (None, None) => EntryPayload::Blank,
            (Some(bytes), None) => EntryPayload::Normal(
                Command::decode(bytes.clone())
                    .map_err(|e| format!("command at index {}: {e}", self.id.index))?,
            ),
            (None, Some(membership)) => EntryPayload::Membership(membership.decode_membership()?),
            (Some(_), Some(_)) => return Err(format!("entry {} is two things at once", self.id.index)),
        };
        Ok(LogEntry { log_id: self.id.log_id(), payload })
    }
}

impl FrameRecord {
    /// Decodes the meta part of a frame and checks its version.
    pub(crate) fn parse(meta: Bytes) -> Result<Self, String> {
        let record = Self::decode(meta).map_err(|e| e.to_string())?;
        if record.version == 0 || record.version > VERSION {
            return Err(format!(
                "frame version {} is not known; this binary knows up to {VERSION}",
                record.version
            ));
        }
        Ok(record)
    }
}
