//! Bodies of the service METADATA: what members and observers ask of each other besides openraft's messages.

use bytes::Bytes;
use isobar_metadata::{CommandResult, Envelope};
use isobar_rpc::{Method, ServiceId};
use prost::Message;

use super::Route;
use crate::error::ProposeError;
use crate::records::MemberRecord;

pub(crate) const HELLO: Method = Method { service: ServiceId::METADATA, method: 1 };
pub(crate) const PROPOSE: Method = Method { service: ServiceId::METADATA, method: 2 };
pub(crate) const READ_INDEX: Method = Method { service: ServiceId::METADATA, method: 3 };
pub(crate) const FOLLOW: Method = Method { service: ServiceId::METADATA, method: 4 };
pub(crate) const STATE: Method = Method { service: ServiceId::METADATA, method: 5 };

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
    pub(crate) initial_voters: Vec<MemberRecord>,
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
    pub(crate) leader: Option<MemberRecord>,
    #[prost(uint64, tag = "3")]
    pub(crate) term: u64,
    /// The group, as of the last entry applied there.
    #[prost(message, repeated, tag = "4")]
    pub(crate) members: Vec<MemberRecord>,
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
    use super::*;

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
