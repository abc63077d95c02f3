//! What is said between a replica and those who append to it and read from it on other nodes.
//!
//! A message is `u32` (little-endian) length of the head · head (versioned protobuf) · payload. The payload of an append is the
//! chunk's frame, without its padding once the replica has said that it adds that; that of a fetch's answer such a frame too, that
//! of a read's answer the batches back to back. The transport sums every byte; frame and batches have their own CRCs besides, which the receiver checks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use isobar_metadata::ids::{DirectoryId, StreamId};
use prost::Message;

use crate::WalError;

/// The only version there is. Newer ones add fields, and raise it only if an older reader would be wrong to go on.
const VERSION: u32 = 1;
/// The largest head: a read's answer has a length for each batch of a chunk.
const HEAD_BYTES_MAX: usize = 1 << 20;

/// Methods of [`isobar_rpc::ServiceId::WAL`]. On the wire: never used again for another.
pub(crate) mod method {
    pub(crate) const APPEND: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const STATE: u8 = 3;
    /// Answered once there is room, or after [`ROOM_WAIT_MS`](super::ROOM_WAIT_MS).
    pub(crate) const ROOM: u8 = 4;
    /// The whole chunk, as an append would bring it.
    pub(crate) const FETCH: u8 = 5;
}

/// How long a replica lets somebody wait for room before it answers that there is none.
pub(crate) const ROOM_WAIT_MS: u64 = 20_000;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Ask {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    /// Whom it is for. Another incarnation refuses it.
    #[prost(message, required, tag = "2")]
    pub(crate) directory: DirectoryId,
    /// Of a read or a fetch.
    #[prost(message, required, tag = "3")]
    pub(crate) stream: StreamId,
    #[prost(uint64, tag = "4")]
    pub(crate) number: u64,
    #[prost(uint32, tag = "5")]
    pub(crate) first_ordinal: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) end_ordinal: u32,
}

impl Ask {
    pub(crate) fn of(directory: DirectoryId) -> Self {
        Self { version: VERSION, directory, ..Self::default() }
    }
}

/// How it went. The numbers are on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(crate) enum Status {
    Unknown = 0,
    Ok = 1,
    NotFound = 2,
    Full = 3,
    TooLarge = 4,
    Closed = 5,
    Gap = 6,
    Corrupt = 7,
    Failed = 8,
    Io = 9,
    OtherDirectory = 10,
    Malformed = 11,
    Busy = 12,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Told {
    #[prost(uint32, tag = "1")]
    pub(crate) version: u32,
    #[prost(enumeration = "Status", tag = "2")]
    pub(crate) status: i32,
    #[prost(bool, tag = "3")]
    pub(crate) has_room: bool,
    /// Of a gap: the only number it would take.
    #[prost(uint64, tag = "4")]
    pub(crate) expected: u64,
    #[prost(string, tag = "5")]
    pub(crate) message: String,
    /// Lengths of the batches in the payload.
    #[prost(uint32, repeated, packed = "true", tag = "6")]
    pub(crate) batch_bytes: Vec<u32>,
    /// It takes frames without their padding too. Older ones do not.
    #[prost(bool, tag = "7")]
    pub(crate) pads: bool,
}

impl Told {
    pub(crate) fn ok(has_room: bool) -> Self {
        Self { version: VERSION, status: Status::Ok as i32, has_room, pads: true, ..Self::default() }
    }

    pub(crate) fn refusal(status: Status, message: impl Into<String>) -> Self {
        Self { version: VERSION, status: status as i32, message: message.into(), ..Self::default() }
    }

    pub(crate) fn error(error: &WalError, has_room: bool) -> Self {
        let status = match error {
            WalError::NotFound => Status::NotFound,
            WalError::Full => Status::Full,
            WalError::TooLarge(_) => Status::TooLarge,
            WalError::Closed => Status::Closed,
            WalError::Gap { .. } => Status::Gap,
            WalError::Corrupt(_) => Status::Corrupt,
            WalError::Failed(_) => Status::Failed,
            WalError::Io(_) | WalError::NotFormatted(_) | WalError::Unavailable(_) => Status::Io,
        };
        let expected = if let WalError::Gap { expected } = error { *expected } else { 0 };
        Self { has_room, expected, ..Self::refusal(status, error.to_string()) }
    }

    /// The error it tells of, or `None` if all is well.
    pub(crate) fn to_error(&self) -> Option<WalError> {
        let message = self.message.clone();
        let error = match self.status() {
            Status::Ok => return None,
            Status::NotFound => WalError::NotFound,
            Status::Full => WalError::Full,
            Status::TooLarge => WalError::TooLarge(message),
            Status::Closed => WalError::Closed,
            Status::Gap => WalError::Gap { expected: self.expected },
            Status::Corrupt => WalError::Corrupt(message),
            Status::Failed => WalError::Failed(message),
            Status::OtherDirectory | Status::Malformed | Status::Busy | Status::Io => {
                WalError::Unavailable(message)
            }
            Status::Unknown => WalError::Unavailable(format!("status {} is not known", self.status)),
        };
        Some(error)
    }
}

/// A message as parts that need not be copied.
pub(crate) fn join(head: &impl Message, payload: impl IntoIterator<Item = Bytes>) -> Vec<Bytes> {
    let len = head.encoded_len();
    let mut start = BytesMut::with_capacity(4 + len);
    start.put_u32_le(len as u32);
    start.extend_from_slice(&head.encode_to_vec());
    std::iter::once(start.freeze()).chain(payload).collect()
}

/// Takes a message apart; the payload is a slice of it.
pub(crate) fn split<M: Message + Default>(mut bytes: Bytes) -> Result<(M, Bytes), WalError> {
    let bad = |why: String| WalError::Corrupt(format!("a message between replicas: {why}"));
    if bytes.len() < 4 {
        return Err(bad("no head".to_owned()));
    }
    let len = bytes.get_u32_le() as usize;
    if len > HEAD_BYTES_MAX || len > bytes.len() {
        return Err(bad(format!("a head of {len} bytes in {}", bytes.len())));
    }
    let head = M::decode(bytes.split_to(len)).map_err(|error| bad(error.to_string()))?;
    Ok((head, bytes))
}

/// Whether this reader understands a message of that version.
pub(crate) fn is_known(version: u32) -> bool {
    version == VERSION
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn errors_survive_the_way() {
        for error in
            [WalError::NotFound, WalError::Full, WalError::Closed, WalError::Gap { expected: 1 << 40 }]
        {
            let parts = join(&Told::error(&error, true), []);
            let (told, rest) = split::<Told>(Bytes::from(parts.concat())).unwrap();
            assert_eq!((told.to_error(), told.has_room, rest.len()), (Some(error), true, 0));
        }
        assert_eq!(Told::ok(false).to_error(), None);
        let newer = Told { status: 99, ..Told::ok(true) };
        assert!(matches!(newer.to_error(), Some(WalError::Unavailable(_))));
        let other = Told::refusal(Status::OtherDirectory, "another");
        assert!(matches!(other.to_error(), Some(WalError::Unavailable(_))), "never a not found");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn any_bytes_are_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in 0..40_u32) {
            let mut framed = head.to_le_bytes().to_vec();
            framed.extend(&bytes);
            let _ = split::<Ask>(Bytes::from(bytes));
            if let Ok((_, rest)) = split::<Told>(Bytes::from(framed.clone())) {
                prop_assert_eq!(rest.len(), framed.len() - 4 - head as usize);
            }
        }
    }
}
