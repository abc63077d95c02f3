//! Bodies of the service RAFT: what openraft sends, and how the records stand for its types.

use bytes::Bytes;
use isobar_rpc::{Method, ServiceId};
use openraft::EntryPayload;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;

use super::{Body, Route, decode};
use crate::records::{LogIdRecord, MembershipRecord, VoteRecord};
use crate::types::{Command, LogEntry, LogId, Types, Vote};

pub(crate) const APPEND: Method = Method { service: ServiceId::RAFT, method: 1 };
pub(crate) const VOTE: Method = Method { service: ServiceId::RAFT, method: 2 };
pub(crate) const PRE_VOTE: Method = Method { service: ServiceId::RAFT, method: 3 };
pub(crate) const SNAPSHOT: Method = Method { service: ServiceId::RAFT, method: 4 };
pub(crate) const TRANSFER: Method = Method { service: ServiceId::RAFT, method: 5 };

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
}
