//! Objects of the archive. Pure: bytes in, bytes out.
//!
//! ```text
//! magic 8 bytes · version u32 · header length u32 · header (protobuf) · body · CRC-32C of all before it u32 · end magic 4 bytes
//! log:       ISOBALOG, body: (length u32 · EntryRecord)*, in order, without holes
//! snapshot:  ISOBASNP, body: a slice of the snapshot file, which has a format and a checksum of its own
//! ```
//! Integers are little-endian. The bytes follow from the entries, or the file, alone: a PUT that is sent again sends the same.

use bytes::{BufMut as _, Bytes};
use prost::Message;

use crate::records::EntryRecord;

const LOG_MAGIC: &[u8; 8] = b"ISOBALOG";
const PART_MAGIC: &[u8; 8] = b"ISOBASNP";
const END_MAGIC: &[u8; 4] = b"CHRA";
/// Version that this binary writes, and the highest it reads.
pub(crate) const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 16;
const TRAILER_BYTES: usize = 8;

/// What an object of the log says about itself.
#[derive(Clone, PartialEq, Message)]
pub struct LogHeader {
    /// Of the cluster.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The cluster's.
    #[prost(uint32, tag = "2")]
    pub incarnation: u32,
    /// Index of the first entry.
    #[prost(uint64, tag = "3")]
    pub first: u64,
    /// Index of the last entry.
    #[prost(uint64, tag = "4")]
    pub last: u64,
}

/// What a part of a snapshot says about itself.
#[derive(Clone, PartialEq, Message)]
pub struct PartHeader {
    /// Of the cluster.
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// The cluster's.
    #[prost(uint32, tag = "2")]
    pub incarnation: u32,
    /// The last entry that the snapshot contains.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Number of the part, from 0.
    #[prost(uint32, tag = "4")]
    pub part: u32,
    /// No part follows.
    #[prost(bool, tag = "5")]
    pub last: bool,
    /// Where in the file it begins.
    #[prost(uint64, tag = "6")]
    pub position: u64,
}

/// Why bytes are no object of the archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not written by us, or cut off, or changed.
    #[error("damaged: {0}")]
    Damaged(String),
    /// A newer Isobar wrote it.
    #[error("archive format version {0} is newer than this program knows")]
    Version(u32),
}

fn damaged(why: impl Into<String>) -> FormatError {
    FormatError::Damaged(why.into())
}

fn begin(magic: &[u8; 8], header: &impl Message) -> Vec<u8> {
    let header = header.encode_to_vec();
    let mut head = Vec::with_capacity(PREFIX_BYTES + header.len());
    head.put_slice(magic);
    head.put_u32_le(VERSION);
    head.put_u32_le(u32::try_from(header.len()).unwrap_or(u32::MAX));
    head.put_slice(&header);
    head
}

fn trailer(crc: u32) -> Bytes {
    let mut end = crc.to_le_bytes().to_vec();
    end.extend_from_slice(END_MAGIC);
    end.into()
}

/// Header and body, checked.
fn open(magic: &[u8; 8], object: &Bytes) -> Result<(Bytes, Bytes), FormatError> {
    if object.len() < PREFIX_BYTES + TRAILER_BYTES || &object[..8] != magic {
        return Err(damaged("it does not begin as an object of the archive"));
    }
    let end = object.len() - TRAILER_BYTES;
    if &object[end + 4..] != END_MAGIC {
        return Err(damaged("it has no end"));
    }
    if crc32c::crc32c(&object[..end]).to_le_bytes() != object[end..end + 4] {
        return Err(damaged("its checksum does not match"));
    }
    let word = |at: usize| u32::from_le_bytes([object[at], object[at + 1], object[at + 2], object[at + 3]]);
    if word(8) == 0 || word(8) > VERSION {
        return Err(FormatError::Version(word(8)));
    }
    let header_end = PREFIX_BYTES + word(12) as usize;
    if header_end > end {
        return Err(damaged("its lengths do not add up"));
    }
    Ok((object.slice(PREFIX_BYTES..header_end), object.slice(header_end..end)))
}

/// One object of the log.
pub(crate) fn encode_log(header: &LogHeader, entries: &[EntryRecord]) -> Bytes {
    let body_bytes: usize = entries.iter().map(|entry| 4 + entry.encoded_len()).sum();
    let mut object = begin(LOG_MAGIC, header);
    object.reserve(body_bytes + TRAILER_BYTES);
    for entry in entries {
        object.put_u32_le(u32::try_from(entry.encoded_len()).unwrap_or(u32::MAX));
        entry.encode_raw(&mut object);
    }
    let crc = crc32c::crc32c(&object);
    object.extend_from_slice(&trailer(crc));
    object.into()
}

/// Reads it back. Every entry is there, in order.
pub fn decode_log(object: &Bytes) -> Result<(LogHeader, Vec<EntryRecord>), FormatError> {
    let (header, mut body) = open(LOG_MAGIC, object)?;
    let header = LogHeader::decode(header).map_err(|error| damaged(error.to_string()))?;
    let mut entries = Vec::new();
    while !body.is_empty() {
        if body.len() < 4 {
            return Err(damaged("an entry is cut off"));
        }
        let length = u32::from_le_bytes([body[0], body[1], body[2], body[3]]) as usize;
        if body.len() - 4 < length {
            return Err(damaged("an entry is cut off"));
        }
        let bytes = body.split_to(4 + length).slice(4..);
        entries.push(EntryRecord::decode(bytes).map_err(|error| damaged(error.to_string()))?);
    }
    let indexes = entries.iter().map(|entry| entry.id.index);
    if header.first > header.last || !indexes.eq(header.first..=header.last) {
        return Err(damaged(format!("it does not hold entries {} to {}", header.first, header.last)));
    }
    Ok((header, entries))
}

/// One part of a snapshot, as pieces to PUT; `body` is not copied.
pub(crate) fn encode_part(header: &PartHeader, body: Bytes) -> Vec<Bytes> {
    let head = begin(PART_MAGIC, header);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &body);
    vec![head.into(), body, trailer(crc)]
}

/// Reads it back.
pub fn decode_part(object: &Bytes) -> Result<(PartHeader, Bytes), FormatError> {
    let (header, body) = open(PART_MAGIC, object)?;
    let header = PartHeader::decode(header).map_err(|error| damaged(error.to_string()))?;
    Ok((header, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::LogIdRecord;

    fn header() -> LogHeader {
        LogHeader { cluster_id: "c".to_owned(), incarnation: 2, first: 7, last: 9 }
    }

    fn entries() -> Vec<EntryRecord> {
        let entry = |index| EntryRecord {
            id: LogIdRecord { term: 3, node: 1, index },
            command: Some(Bytes::from(vec![index as u8; 40])),
            membership: None,
        };
        (7..10).map(entry).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let object = encode_log(&header(), &entries());
        assert_eq!(decode_log(&object), Ok((header(), entries())));
        let part = PartHeader { index: 4, part: 1, last: true, position: 8, ..PartHeader::default() };
        let object: Bytes = encode_part(&part, Bytes::from_static(b"body")).concat().into();
        assert_eq!(decode_part(&object), Ok((part, Bytes::from_static(b"body"))));
    }

    #[test]
    fn a_change_of_any_bit_and_a_cut_anywhere_are_seen() {
        let object = encode_log(&header(), &entries());
        for at in 0..object.len() {
            let mut changed = object.to_vec();
            changed[at] ^= 1 << (at % 8);
            assert!(decode_log(&changed.into()).is_err(), "bit of byte {at}");
            assert!(decode_log(&object.slice(..at)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn entries_that_are_not_those_named_are_refused() {
        for (first, last) in [(6, 8), (7, 8), (7, 10), (9, 7)] {
            let header = LogHeader { first, last, ..header() };
            assert!(decode_log(&encode_log(&header, &entries())).is_err(), "{first}-{last}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut object = encode_log(&header(), &entries()).to_vec();
        object[8] = 9;
        let end = object.len() - TRAILER_BYTES;
        let crc = crc32c::crc32c(&object[..end]).to_le_bytes();
        object[end..end + 4].copy_from_slice(&crc);
        assert_eq!(decode_log(&object.into()), Err(FormatError::Version(9)));
    }
}
