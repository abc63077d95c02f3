//! What members say to each other: the bodies of the services RAFT and METADATA.
//!
//! Layout of every body: length of the head (u32, little-endian), the head (protobuf), then whatever bytes the head speaks
//! of, unframed. So entries and parts of snapshots travel as the slices they already are, and are slices of the received
//! message on the other side.
//!
//! Invariants
//! 1. Every message names the directory it comes from (an observer's none), the one it is meant for, and the cluster's incarnation
//!    (DESIGN.md, invariant 6); who is not the one meant refuses it. Only [`Hello`] may leave the target open.
//! 2. Nothing is allocated by a length that was only told: lengths are checked against the bytes that are there.

use bytes::{BufMut, Bytes, BytesMut};
use isobar_metadata::{CommandResult, Envelope};
use isobar_rpc::{Method, ServiceId};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use crate::error::ProposeError;
use crate::records::{LogIdRecord, MembershipRecord, VoteRecord};
use crate::types::{Command, LogEntry, LogId, Types, Vote};

/// Methods of the service RAFT.
pub(crate) const APPEND: Method = Method { service: ServiceId::RAFT, method: 1 };
pub(crate) const VOTE: Method = Method { service: ServiceId::RAFT, method: 2 };
pub(crate) const PRE_VOTE: Method = Method { service: ServiceId::RAFT, method: 3 };
pub(crate) const SNAPSHOT: Method = Method { service: ServiceId::RAFT, method: 4 };
pub(crate) const TRANSFER: Method = Method { service: ServiceId::RAFT, method: 5 };
/// Methods of the service METADATA.
pub(crate) const HELLO: Method = Method { service: ServiceId::METADATA, method: 1 };
pub(crate) const PROPOSE: Method = Method { service: ServiceId::METADATA, method: 2 };
pub(crate) const READ_INDEX: Method = Method { service: ServiceId::METADATA, method: 3 };
pub(crate) const FOLLOW: Method = Method { service: ServiceId::METADATA, method: 4 };
pub(crate) const STATE: Method = Method { service: ServiceId::METADATA, method: 5 };

/// Why a message was refused.
pub(crate) mod refusal {
    /// It is meant for another directory, or comes from one that the group does not know under its node id.
    pub(crate) const INCARNATION: u16 = 100;
    /// It could not be read.
    pub(crate) const MALFORMED: u16 = 101;
    /// The member is starting or stopping.
    pub(crate) const CLOSED: u16 = 102;
    /// Too much waits already.
    pub(crate) const BUSY: u16 = 103;
    /// A part of a snapshot that does not follow the one before it.
    pub(crate) const OUT_OF_PLACE: u16 = 104;
    /// Not the leader, or the leadership could not be confirmed.
    pub(crate) const NOT_LEADER: u16 = 105;
    /// openraft or the disk has failed here.
    pub(crate) const FAILED: u16 = 106;
    /// What came after is no longer kept: take the whole state.
    pub(crate) const LAGGED: u16 = 107;
}

/// Commands of up to so many bytes are copied next to the head: many small slices cost more than their bytes.
const COPY_MAX_BYTES: usize = 4 << 10;
/// Kept free of the length of a head.
const PREFIX_BYTES: usize = 4;

/// From whom to whom; in every message.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Route {
    /// The cluster's incarnation, which a recovery raises.
    #[prost(uint32, tag = "1")]
    pub(crate) cluster_incarnation: u32,
    /// Incarnation of the sender's directory; empty: it has none, and only observes.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) from: Bytes,
    /// Incarnation of the directory meant; empty if not known yet ([`Hello`]).
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) to: Bytes,
}

/// Where a state machine stands: two members at one index must have one hash.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Position {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
    #[prost(fixed64, tag = "2")]
    pub(crate) hash: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryHead {
    #[prost(message, required, tag = "1")]
    pub(crate) id: LogIdRecord,
    /// Length of the command behind the head.
    #[prost(uint32, optional, tag = "2")]
    pub(crate) command_bytes: Option<u32>,
    #[prost(message, optional, tag = "3")]
    pub(crate) membership: Option<MembershipRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Append {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    #[prost(message, required, tag = "2")]
    pub(crate) vote: VoteRecord,
    #[prost(message, optional, tag = "3")]
    pub(crate) previous: Option<LogIdRecord>,
    #[prost(message, optional, tag = "4")]
    pub(crate) commit: Option<LogIdRecord>,
    #[prost(message, repeated, tag = "5")]
    pub(crate) entries: Vec<EntryHead>,
    /// Where the leader's state machine stands.
    #[prost(message, optional, tag = "6")]
    pub(crate) position: Option<Position>,
    /// Up to where the leader has archived the log; 0: it does not know.
    #[prost(uint64, tag = "7")]
    pub(crate) archived: u64,
    /// The leader's wall clock; 0: its release does not tell it.
    #[prost(int64, tag = "8")]
    pub(crate) clock_ms: i64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum AppendOutcome {
    Malformed = 0,
    Success = 1,
    Partial = 2,
    Conflict = 3,
    HigherVote = 4,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendAnswer {
    #[prost(enumeration = "AppendOutcome", tag = "1")]
    pub(crate) outcome: i32,
    /// Of `Partial`: how far it came.
    #[prost(message, optional, tag = "2")]
    pub(crate) matched: Option<LogIdRecord>,
    /// Of `HigherVote`.
    #[prost(message, optional, tag = "3")]
    pub(crate) vote: Option<VoteRecord>,
    /// Where the follower's state machine stands.
    #[prost(message, optional, tag = "4")]
    pub(crate) position: Option<Position>,
    /// The follower's wall clock; 0: its release does not tell it.
    #[prost(int64, tag = "5")]
    pub(crate) clock_ms: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteAsk {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    #[prost(message, required, tag = "2")]
    pub(crate) vote: VoteRecord,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRecord>,
    /// The leader itself has asked for this election.
    #[prost(bool, tag = "4")]
    pub(crate) transfer: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteAnswer {
    #[prost(message, required, tag = "1")]
    pub(crate) vote: VoteRecord,
    #[prost(bool, tag = "2")]
    pub(crate) granted: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRecord>,
}

/// One part of a snapshot file; its bytes are behind the head.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotPart {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    #[prost(message, required, tag = "2")]
    pub(crate) vote: VoteRecord,
    /// Names the transfer; another one replaces it.
    #[prost(fixed64, tag = "3")]
    pub(crate) transfer: u64,
    /// Where in the file the part begins.
    #[prost(uint64, tag = "4")]
    pub(crate) offset: u64,
    /// The file ends with this part.
    #[prost(bool, tag = "5")]
    pub(crate) last: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotAnswer {
    /// In the answer to the last part, after the snapshot was installed.
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Transfer {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    #[prost(message, required, tag = "2")]
    pub(crate) from: VoteRecord,
    #[prost(uint64, tag = "3")]
    pub(crate) to: u64,
    #[prost(message, optional, tag = "4")]
    pub(crate) last: Option<LogIdRecord>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferAnswer {
    /// Set: refused, for the vote is another.
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteRecord>,
    /// Refused, for the log is not there yet.
    #[prost(bool, tag = "2")]
    pub(crate) not_flushed: bool,
    #[prost(message, optional, tag = "3")]
    pub(crate) last: Option<LogIdRecord>,
}

/// "Which directory are you?"
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Hello {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct HelloAnswer {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) incarnation: Bytes,
    /// It has no log and no vote yet.
    #[prost(bool, tag = "2")]
    pub(crate) pristine: bool,
    /// The voters that it was told to begin a group with.
    #[prost(message, repeated, tag = "3")]
    pub(crate) initial_voters: Vec<crate::records::MemberRecord>,
    /// It may be made a voter.
    #[prost(bool, tag = "4")]
    pub(crate) may_vote: bool,
}

/// Commands of one follower, in its order.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Propose {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    #[prost(message, repeated, tag = "2")]
    pub(crate) commands: Vec<Envelope>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum ProposeFailure {
    Unknown = 0,
    Busy = 1,
    TooLarge = 2,
    NotLeader = 3,
    Stopping = 4,
}

/// The answer to one command: a result, or why there is none.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProposeResult {
    #[prost(oneof = "CommandResult", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14")]
    pub(crate) result: Option<CommandResult>,
    #[prost(enumeration = "ProposeFailure", tag = "100")]
    pub(crate) failure: i32,
    /// Of `Busy` and `TooLarge`.
    #[prost(uint64, tag = "101")]
    pub(crate) bytes: u64,
    /// Of `NotLeader`.
    #[prost(uint64, optional, tag = "102")]
    pub(crate) leader: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ProposeAnswer {
    #[prost(message, repeated, tag = "1")]
    pub(crate) results: Vec<ProposeResult>,
    /// The leader has applied everything up to here, the commands among it.
    #[prost(uint64, tag = "2")]
    pub(crate) index: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadIndex {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ReadIndexAnswer {
    #[prost(uint64, tag = "1")]
    pub(crate) index: u64,
}

/// "What did entries do that came after this one?"
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Follow {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    /// Index of the last batch that the observer has.
    #[prost(uint64, tag = "2")]
    pub(crate) after: u64,
    /// How long to wait for something.
    #[prost(uint32, tag = "3")]
    pub(crate) wait_ms: u32,
    /// The leader that the observer knows, 0 for none, and its term: another is told at once.
    #[prost(uint64, tag = "4")]
    pub(crate) leader: u64,
    #[prost(uint64, tag = "5")]
    pub(crate) term: u64,
}

/// Batches of effects, one after the other behind the head; none if there was nothing in time.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Followed {
    /// Length of each batch.
    #[prost(uint32, repeated, tag = "1")]
    pub(crate) batch_bytes: Vec<u32>,
    /// As the member knows it; none while it knows none.
    #[prost(message, optional, tag = "2")]
    pub(crate) leader: Option<crate::records::MemberRecord>,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    /// The group, as of the last entry applied there.
    #[prost(message, repeated, tag = "4")]
    pub(crate) members: Vec<crate::records::MemberRecord>,
    /// Node ids of those of them that vote.
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) voters: Vec<u64>,
}

/// A part of the whole state, as a snapshot has it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct GetState {
    #[prost(message, required, tag = "1")]
    pub(crate) route: Route,
    /// Of the transfer; 0: a new one, of the state as it is now.
    #[prost(fixed64, tag = "2")]
    pub(crate) transfer: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) offset: u64,
}

/// The bytes are behind the head.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StatePart {
    #[prost(fixed64, tag = "1")]
    pub(crate) transfer: u64,
    /// Of the whole.
    #[prost(uint64, tag = "2")]
    pub(crate) total_bytes: u64,
}

/// Gathers the parts of a body: small pieces together, large ones as they are.
struct Body {
    parts: Vec<Bytes>,
    open: BytesMut,
}

impl Body {
    fn new(head: &impl Message) -> Self {
        let head_bytes = head.encoded_len();
        let mut open = BytesMut::with_capacity(PREFIX_BYTES + head_bytes);
        open.put_u32_le(u32::try_from(head_bytes).unwrap_or(u32::MAX));
        // A growing buffer takes any message.
        let _ = head.encode(&mut open);
        Self { parts: Vec::new(), open }
    }

    fn push(&mut self, bytes: &Bytes) {
        if bytes.len() <= COPY_MAX_BYTES {
            self.open.extend_from_slice(bytes);
        } else {
            self.seal();
            self.parts.push(bytes.clone());
        }
    }

    fn seal(&mut self) {
        if !self.open.is_empty() {
            self.parts.push(self.open.split().freeze());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        self.seal();
        self.parts
    }
}

/// A body of a head alone.
pub(crate) fn encode(head: &impl Message) -> Vec<Bytes> {
    Body::new(head).finish()
}

/// A body of a head and bytes behind it.
pub(crate) fn encode_with(head: &impl Message, bytes: &Bytes) -> Vec<Bytes> {
    let mut body = Body::new(head);
    body.push(bytes);
    body.finish()
}

/// Takes a body apart into its head and the bytes behind it.
pub(crate) fn decode<T: Message + Default>(body: &Bytes) -> Result<(T, Bytes), String> {
    let Some(prefix) = body.first_chunk::<PREFIX_BYTES>() else {
        return Err("the body has no head".to_owned());
    };
    let head_end = PREFIX_BYTES + u32::from_le_bytes(*prefix) as usize;
    if head_end > body.len() {
        return Err(format!("a head of {head_end} bytes in a body of {}", body.len()));
    }
    let head = T::decode(body.slice(PREFIX_BYTES..head_end)).map_err(|error| error.to_string())?;
    Ok((head, body.slice(head_end..)))
}

fn record(id: &Option<LogId>) -> Option<LogIdRecord> {
    id.as_ref().map(LogIdRecord::of)
}

fn log_id(record: &Option<LogIdRecord>) -> Option<LogId> {
    record.as_ref().map(LogIdRecord::log_id)
}

pub(crate) fn encode_append(
    route: Route,
    request: &AppendEntriesRequest<Types>,
    position: Position,
    archived: u64,
    clock_ms: i64,
) -> Vec<Bytes> {
    let head_of = |entry: &LogEntry| {
        let (command_bytes, membership) = match &entry.payload {
            EntryPayload::Blank => (None, None),
            // An entry is at most 1 MiB.
            EntryPayload::Normal(command) => (u32::try_from(command.bytes().len()).ok(), None),
            EntryPayload::Membership(membership) => (None, Some(MembershipRecord::of(membership))),
        };
        EntryHead { id: LogIdRecord::of(&entry.log_id), command_bytes, membership }
    };
    let head = Append {
        route,
        vote: VoteRecord::of(&request.vote),
        previous: record(&request.prev_log_id),
        commit: record(&request.leader_commit),
        entries: request.entries.iter().map(head_of).collect(),
        position: Some(position),
        archived,
        clock_ms,
    };
    let mut body = Body::new(&head);
    for entry in &request.entries {
        if let EntryPayload::Normal(command) = &entry.payload {
            body.push(command.bytes());
        }
    }
    body.finish()
}

/// The request, and the head with what is not openraft's.
pub(crate) fn decode_append(body: &Bytes) -> Result<(AppendEntriesRequest<Types>, Append), String> {
    let (mut head, mut rest): (Append, Bytes) = decode(body)?;
    let mut entries = Vec::new();
    for entry in std::mem::take(&mut head.entries) {
        let payload = match (entry.command_bytes, entry.membership) {
            (None, None) => EntryPayload::Blank,
            (None, Some(membership)) => EntryPayload::Membership(membership.decode_membership()?),
            (Some(command_bytes), None) => {
                let command_bytes = command_bytes as usize;
                if command_bytes > rest.len() {
                    return Err(format!("the command at index {} is cut off", entry.id.index));
                }
                let command = Command::decode(rest.split_to(command_bytes))
                    .map_err(|error| format!("command at index {}: {error}", entry.id.index))?;
                EntryPayload::Normal(command)
            }
            (Some(_), Some(_)) => return Err(format!("entry {} is two things at once", entry.id.index)),
        };
        entries.push(LogEntry { log_id: entry.id.log_id(), payload });
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes too many", rest.len()));
    }
    let request = AppendEntriesRequest {
        vote: head.vote.vote(),
        prev_log_id: log_id(&head.previous),
        entries,
        leader_commit: log_id(&head.commit),
    };
    Ok((request, head))
}

impl AppendAnswer {
    pub(crate) fn of(response: &AppendEntriesResponse<Types>, position: Position, clock_ms: i64) -> Self {
        let (outcome, matched, vote) = match response {
            AppendEntriesResponse::Success => (AppendOutcome::Success, None, None),
            AppendEntriesResponse::PartialSuccess(matched) => (AppendOutcome::Partial, record(matched), None),
            AppendEntriesResponse::Conflict => (AppendOutcome::Conflict, None, None),
            AppendEntriesResponse::HigherVote(vote) => {
                (AppendOutcome::HigherVote, None, Some(VoteRecord::of(vote)))
            }
        };
        Self { outcome: outcome as i32, matched, vote, position: Some(position), clock_ms }
    }

    pub(crate) fn response(&self) -> Result<AppendEntriesResponse<Types>, String> {
        Ok(match (self.outcome(), &self.vote) {
            (AppendOutcome::Success, _) => AppendEntriesResponse::Success,
            (AppendOutcome::Partial, _) => AppendEntriesResponse::PartialSuccess(log_id(&self.matched)),
            (AppendOutcome::Conflict, _) => AppendEntriesResponse::Conflict,
            (AppendOutcome::HigherVote, Some(vote)) => AppendEntriesResponse::HigherVote(vote.vote()),
            (AppendOutcome::HigherVote, None) | (AppendOutcome::Malformed, _) => {
                return Err("an answer to an append that says nothing".to_owned());
            }
        })
    }
}

impl VoteAsk {
    pub(crate) fn of(route: Route, request: &VoteRequest<Types>) -> Self {
        Self {
            route,
            vote: VoteRecord::of(&request.vote),
            last: record(&request.last_log_id),
            transfer: request.leadership_transfer,
        }
    }

    pub(crate) fn request(&self) -> VoteRequest<Types> {
        let mut request = VoteRequest::new(self.vote.vote(), log_id(&self.last));
        request.leadership_transfer = self.transfer;
        request
    }
}

impl VoteAnswer {
    pub(crate) fn of(response: &VoteResponse<Types>) -> Self {
        Self {
            vote: VoteRecord::of(&response.vote),
            granted: response.vote_granted,
            last: record(&response.last_log_id),
        }
    }

    pub(crate) fn response(&self) -> VoteResponse<Types> {
        VoteResponse::new(self.vote.vote(), log_id(&self.last), self.granted)
    }
}

impl Transfer {
    pub(crate) fn of(route: Route, request: &TransferLeaderRequest<Types>) -> Self {
        Self {
            route,
            from: VoteRecord::of(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(LogIdRecord::of),
        }
    }

    pub(crate) fn request(&self) -> TransferLeaderRequest<Types> {
        TransferLeaderRequest::new(self.from.vote(), self.to, log_id(&self.last))
    }
}

impl TransferAnswer {
    pub(crate) fn of(response: &TransferLeaderResponse<Types>) -> Self {
        match response {
            Ok(()) => Self::default(),
            Err(TransferLeaderError::VoteChanged { actual, .. }) => {
                Self { vote: Some(VoteRecord::of(actual)), ..Self::default() }
            }
            Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
                Self { not_flushed: true, last: record(actual), ..Self::default() }
            }
        }
    }

    pub(crate) fn response(&self, request: &TransferLeaderRequest<Types>) -> TransferLeaderResponse<Types> {
        if let Some(vote) = &self.vote {
            let actual: Vote = vote.vote();
            return Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual });
        }
        if self.not_flushed {
            let expected = request.last_log_id().copied();
            return Err(TransferLeaderError::LogNotFlushed { expected, actual: log_id(&self.last) });
        }
        Ok(())
    }
}

impl ProposeResult {
    pub(crate) fn of(result: Result<CommandResult, ProposeError>) -> Self {
        let failed = |failure: ProposeFailure| Self { failure: failure as i32, ..Self::default() };
        match result {
            Ok(result) => Self { result: Some(result), ..Self::default() },
            Err(ProposeError::Busy { queued_bytes }) => {
                Self { bytes: queued_bytes as u64, ..failed(ProposeFailure::Busy) }
            }
            Err(ProposeError::TooLarge { bytes }) => {
                Self { bytes: bytes as u64, ..failed(ProposeFailure::TooLarge) }
            }
            Err(ProposeError::NotLeader { leader }) => Self { leader, ..failed(ProposeFailure::NotLeader) },
            Err(ProposeError::Stopping) => failed(ProposeFailure::Stopping),
            Err(ProposeError::Unknown { .. }) => failed(ProposeFailure::Unknown),
        }
    }

    /// As the follower's caller is to see it.
    pub(crate) fn result(self) -> Result<CommandResult, ProposeError> {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        match (self.failure(), self.result) {
            (_, Some(result)) => Ok(result),
            (ProposeFailure::Busy, None) => Err(ProposeError::Busy { queued_bytes: bytes }),
            (ProposeFailure::TooLarge, None) => Err(ProposeError::TooLarge { bytes }),
            (ProposeFailure::NotLeader, None) => Err(ProposeError::NotLeader { leader: self.leader }),
            // The leader stops, not this node.
            (ProposeFailure::Stopping, None) => Err(ProposeError::NotLeader { leader: None }),
            (ProposeFailure::Unknown, None) => {
                Err(ProposeError::Unknown { reason: "the leader could not say what became of it" })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use isobar_metadata::Entry;
    use proptest::prelude::*;

    use super::*;
    use crate::tests::register_from;
    use crate::types;

    fn route() -> Route {
        Route { cluster_incarnation: 3, from: Bytes::from_static(&[1; 16]), to: Bytes::from_static(&[2; 16]) }
    }

    fn entries(lengths: &[usize]) -> Vec<LogEntry> {
        let entry = |(n, length): (usize, &usize)| {
            let payload = match length % 7 {
                0 => EntryPayload::Blank,
                _ => EntryPayload::Normal(Command::new(Entry::new(
                    7,
                    vec![register_from(n as u64, "h".repeat(*length))],
                ))),
            };
            LogEntry { log_id: types::log_id(4, 1, 10 + n as u64), payload }
        };
        lengths.iter().enumerate().map(entry).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_append_comes_out_as_it_went_in(lengths in prop::collection::vec(0..20_000_usize, 0..8)) {
            let request = AppendEntriesRequest {
                vote: Vote::new_committed(4, 1),
                prev_log_id: Some(types::log_id(3, 2, 9)),
                entries: entries(&lengths),
                leader_commit: None,
            };
            let position = Position { index: 5, hash: 6 };
            let parts = encode_append(route(), &request, position, 11, 12);
            let body = Bytes::from(parts.concat());
            let (read, head) = decode_append(&body).expect("it is read");
            prop_assert_eq!(read.entries, request.entries);
            prop_assert_eq!((read.vote, read.prev_log_id), (request.vote, request.prev_log_id));
            prop_assert_eq!((head.position, head.archived, head.route), (Some(position), 11, route()));
            prop_assert_eq!(head.clock_ms, 12);
        }

        #[test]
        fn what_is_cut_or_broken_is_an_error_and_no_panic(cut in 0..4000_usize, at in 0..4000_usize, bit in 0..8_u8) {
            let request = AppendEntriesRequest {
                vote: Vote::new(4, 1),
                prev_log_id: None,
                entries: entries(&[1000, 0, 2000]),
                leader_commit: None,
            };
            let whole = encode_append(route(), &request, Position::default(), 0, 0).concat();
            let short = Bytes::from(whole[..cut.min(whole.len() - 1)].to_vec());
            prop_assert!(decode_append(&short).is_err());
            let mut broken = whole;
            let at = at % broken.len();
            broken[at] ^= 1 << bit;
            let _ = decode_append(&Bytes::from(broken));
        }
    }

    #[test]
    fn failures_keep_saying_whether_it_happened() {
        let failures = [
            ProposeError::Busy { queued_bytes: 5 },
            ProposeError::TooLarge { bytes: 6 },
            ProposeError::NotLeader { leader: Some(3) },
            ProposeError::Stopping,
            ProposeError::Unknown { reason: "x" },
        ];
        for error in failures {
            let read = ProposeResult::of(Err(error.clone())).result().expect_err("an error");
            assert_eq!(read.did_not_happen(), error.did_not_happen(), "{error}");
        }
    }
}
