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

mod consensus;
mod metadata;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

pub(crate) use consensus::{
    APPEND, AppendAnswer, PRE_VOTE, Position, SNAPSHOT, SnapshotAnswer, SnapshotPart, TRANSFER, Transfer,
    TransferAnswer, VOTE, VoteAnswer, VoteAsk, decode_append, encode_append,
};
pub(crate) use metadata::{
    FOLLOW, Follow, Followed, GetState, HELLO, Hello, HelloAnswer, PROPOSE, Propose, ProposeAnswer,
    ProposeResult, READ_INDEX, ReadIndex, ReadIndexAnswer, STATE, StatePart,
};

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
