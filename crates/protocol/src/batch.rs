//! The record batch, magic 2: a view of its 61-byte header, its checksum, and what may be changed without touching
//! the records.
//!
//! ```text
//! 0  base offset i64 | 8 length i32 (bytes after it) | 12 partition leader epoch i32 | 16 magic i8 | 17 CRC-32C u32
//! 21 attributes i16  | 23 last offset delta i32 | 27 base timestamp i64 | 35 max timestamp i64
//! 43 producer id i64 | 51 producer epoch i16 | 53 base sequence i32 | 57 record count i32 | 61 records
//! ```
//! The CRC covers everything from byte 21 on, so base offset and leader epoch are set by replacing the first 16 bytes
//! ([`BatchHeader::stamp`]); only a timestamp rewrite has to sum again. Source: Kafka's `DefaultRecordBatch`.

use crate::compression::Codec;
pub use crate::validate::{ProduceRules, Refused, TimestampRange, validate_produced};

/// Bytes of a batch header.
pub const HEADER_BYTES: usize = 61;
/// Bytes that [`BatchHeader::stamp`] replaces: base offset, length, leader epoch.
pub const STAMP_BYTES: usize = 16;
/// Base offset and length, which `length` does not count.
pub const LOG_OVERHEAD_BYTES: usize = 12;
/// The only magic that is served.
pub const MAGIC: i8 = 2;
/// Producer id of a batch without one.
pub const NO_PRODUCER_ID: i64 = -1;
/// Producer epoch of a batch without a producer id.
pub const NO_PRODUCER_EPOCH: i16 = -1;
/// Base sequence of a batch without a producer id.
pub const NO_SEQUENCE: i32 = -1;
/// A timestamp that says nothing.
pub const NO_TIMESTAMP: i64 = -1;

const LEADER_EPOCH_AT: usize = 12;
const MAGIC_AT: usize = 16;
const CRC_AT: usize = 17;
const CRC_FROM: usize = 21;
const MAX_TIMESTAMP_AT: usize = 35;

/// Bytes that are no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the batch has; with more of them it may be one.
    #[error("{have_bytes} bytes of a batch that has at least {need_bytes}")]
    Short {
        /// Bytes there are.
        have_bytes: usize,
        /// Bytes needed.
        need_bytes: usize,
    },
    /// A length too small for a batch header.
    #[error("batch length {0} is smaller than a batch header")]
    Length(i32),
    /// Another message format.
    #[error("magic {0} instead of 2")]
    Magic(i8),
    /// The checksum does not match.
    #[error("stored CRC {stored:#010x}, computed {computed:#010x}")]
    Crc {
        /// What the batch says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
}

/// What a timestamp of a batch means (`message.timestamp.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    /// Set by the producer.
    CreateTime,
    /// Set by the broker; every record has the batch's max timestamp.
    LogAppendTime,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub i16);

impl Attributes {
    const LOG_APPEND_TIME: i16 = 1 << 3;
    const TRANSACTIONAL: i16 = 1 << 4;
    const CONTROL: i16 = 1 << 5;
    const DELETE_HORIZON: i16 = 1 << 6;
    const CODEC: i16 = 0b111;

    /// The codec, `None` for an id that Kafka does not know.
    pub fn codec(self) -> Option<Codec> {
        Codec::from_id((self.0 & Self::CODEC) as u8)
    }

    /// Who set the timestamps.
    pub fn timestamp_type(self) -> TimestampType {
        if self.0 & Self::LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch belongs to a transaction.
    pub fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    /// Whether it is a control batch, which only a broker may write.
    pub fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }

    /// Whether the base timestamp is a delete horizon (KIP-534); only set by compaction.
    pub fn has_delete_horizon(self) -> bool {
        self.0 & Self::DELETE_HORIZON != 0
    }

    pub(crate) fn with(self, codec: Codec, transactional: bool) -> Self {
        let transactional = if transactional { Self::TRANSACTIONAL } else { 0 };
        Attributes((self.0 & !(Self::CODEC | Self::TRANSACTIONAL)) | i16::from(codec.id()) | transactional)
    }

    fn with_timestamp_type(self, timestamp_type: TimestampType) -> Self {
        match timestamp_type {
            TimestampType::CreateTime => Attributes(self.0 & !Self::LOG_APPEND_TIME),
            TimestampType::LogAppendTime => Attributes(self.0 | Self::LOG_APPEND_TIME),
        }
    }
}

/// The header of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record; 0 as a producer sends it.
    pub base_offset: i64,
    /// Bytes after this field; [`BatchHeader::total_bytes`] counts all.
    pub length: i32,
    /// Leader epoch given by the broker.
    pub leader_epoch: i32,
    /// CRC-32C of everything from byte 21 on.
    pub crc: u32,
    /// Codec and flags.
    pub attributes: Attributes,
    /// Offset of the last record minus base offset.
    pub last_offset_delta: i32,
    /// Timestamp that the records' are relative to.
    pub base_timestamp_ms: i64,
    /// Largest timestamp.
    pub max_timestamp_ms: i64,
    /// Producer id, -1 for none.
    pub producer_id: i64,
    /// Producer epoch, -1 for none.
    pub producer_epoch: i16,
    /// Sequence of the first record, -1 for none.
    pub base_sequence: i32,
    /// Number of records.
    pub count: i32,
}

fn be<const N: usize>(header: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

impl BatchHeader {
    /// Reads the header of the batch at the start of `bytes`, all of which has to be there. Checks the length and the
    /// magic, nothing else; not the CRC.
    pub fn parse(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let header = Self::parse_head(bytes)?;
        let (have_bytes, need_bytes) = (bytes.len(), header.total_bytes());
        if have_bytes < need_bytes { Err(BatchError::Short { have_bytes, need_bytes }) } else { Ok(header) }
    }

    /// Reads a header of which the records may be missing.
    pub fn parse_head(bytes: &[u8]) -> Result<BatchHeader, BatchError> {
        let Some(h) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Err(BatchError::Short { have_bytes: bytes.len(), need_bytes: HEADER_BYTES });
        };
        let magic = h[MAGIC_AT] as i8;
        if magic != MAGIC {
            return Err(BatchError::Magic(magic));
        }
        let length = i32::from_be_bytes(be(h, 8));
        if length < (HEADER_BYTES - LOG_OVERHEAD_BYTES) as i32 {
            return Err(BatchError::Length(length));
        }
        Ok(BatchHeader {
            base_offset: i64::from_be_bytes(be(h, 0)),
            length,
            leader_epoch: i32::from_be_bytes(be(h, LEADER_EPOCH_AT)),
            crc: u32::from_be_bytes(be(h, CRC_AT)),
            attributes: Attributes(i16::from_be_bytes(be(h, 21))),
            last_offset_delta: i32::from_be_bytes(be(h, 23)),
            base_timestamp_ms: i64::from_be_bytes(be(h, 27)),
            max_timestamp_ms: i64::from_be_bytes(be(h, MAX_TIMESTAMP_AT)),
            producer_id: i64::from_be_bytes(be(h, 43)),
            producer_epoch: i16::from_be_bytes(be(h, 51)),
            base_sequence: i32::from_be_bytes(be(h, 53)),
            count: i32::from_be_bytes(be(h, 57)),
        })
    }

    /// Writes the header as it stands, CRC included.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.base_offset.to_be_bytes());
        put(8, &self.length.to_be_bytes());
        put(LEADER_EPOCH_AT, &self.leader_epoch.to_be_bytes());
        put(MAGIC_AT, &MAGIC.to_be_bytes());
        put(CRC_AT, &self.crc.to_be_bytes());
        put(CRC_FROM, &self.attributes.0.to_be_bytes());
        put(23, &self.last_offset_delta.to_be_bytes());
        put(27, &self.base_timestamp_ms.to_be_bytes());
        put(MAX_TIMESTAMP_AT, &self.max_timestamp_ms.to_be_bytes());
        put(43, &self.producer_id.to_be_bytes());
        put(51, &self.producer_epoch.to_be_bytes());
        put(53, &self.base_sequence.to_be_bytes());
        put(57, &self.count.to_be_bytes());
        out
    }

    /// Bytes of the whole batch.
    pub fn total_bytes(&self) -> usize {
        LOG_OVERHEAD_BYTES + self.length as usize
    }

    /// Offset of the last record.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta))
    }

    /// The offset after the last record.
    pub fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// Whether an idempotent or transactional producer wrote it.
    pub fn has_producer_id(&self) -> bool {
        self.producer_id > NO_PRODUCER_ID
    }

    /// Sequence of the last record; after `i32::MAX` comes 0, as in Kafka. -1 for a batch without sequences.
    pub fn last_sequence(&self) -> i32 {
        if self.base_sequence == NO_SEQUENCE {
            return NO_SEQUENCE;
        }
        add_sequence(self.base_sequence, self.last_offset_delta)
    }

    /// The bytes that replace the first 16 of the batch to give it an offset and a leader epoch.
    pub fn stamp(&self, base_offset: i64, leader_epoch: i32) -> [u8; STAMP_BYTES] {
        let mut out = [0; STAMP_BYTES];
        out[..8].copy_from_slice(&base_offset.to_be_bytes());
        out[8..12].copy_from_slice(&self.length.to_be_bytes());
        out[12..].copy_from_slice(&leader_epoch.to_be_bytes());
        out
    }
}

/// `sequence + increment`, going on at 0 after `i32::MAX` (Kafka's `DefaultRecordBatch.incrementSequence`).
pub fn add_sequence(sequence: i32, increment: i32) -> i32 {
    let sum = i64::from(sequence) + i64::from(increment);
    if sum > i64::from(i32::MAX) { (sum - i64::from(i32::MAX) - 1) as i32 } else { sum as i32 }
}

/// CRC-32C (Castagnoli), the sum of record batches and of everything Isobar writes.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Goes on with a sum: `crc32c_append(crc32c(a), b)` is the sum of `a` and `b` together.
pub fn crc32c_append(sum: u32, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(sum, bytes)
}

/// Checks the sum of exactly one batch.
pub fn verify_crc(batch: &[u8]) -> Result<(), BatchError> {
    let short = BatchError::Short { have_bytes: batch.len(), need_bytes: HEADER_BYTES };
    let stored = batch.get(CRC_AT..).and_then(|rest| rest.first_chunk()).ok_or(short)?;
    let (stored, computed) = (u32::from_be_bytes(*stored), crc32c(&batch[CRC_FROM..]));
    if stored == computed { Ok(()) } else { Err(BatchError::Crc { stored, computed }) }
}

/// Writes the sum of exactly one batch of at least a header's length.
pub fn write_crc(batch: &mut [u8]) {
    let sum = crc32c(&batch[CRC_FROM..]);
    batch[CRC_AT..CRC_FROM].copy_from_slice(&sum.to_be_bytes());
}

/// Gives exactly one batch, of at least a header's length, another timestamp type and max timestamp, and sums it again. For topics with `LogAppendTime`
/// (the broker's clock), and for the rare producer that sets that flag itself.
pub fn rewrite_timestamp(batch: &mut [u8], timestamp_type: TimestampType, max_timestamp_ms: i64) {
    let attributes = Attributes(i16::from_be_bytes([batch[CRC_FROM], batch[CRC_FROM + 1]]));
    let attributes = attributes.with_timestamp_type(timestamp_type);
    batch[CRC_FROM..CRC_FROM + 2].copy_from_slice(&attributes.0.to_be_bytes());
    batch[MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8].copy_from_slice(&max_timestamp_ms.to_be_bytes());
    write_crc(batch);
}

/// Iterator over the batches of a blob. Ends before an incomplete last batch, which a Fetch response may carry;
/// ends after an error.
#[derive(Clone, Debug)]
pub struct Batches<'a> {
    rest: &'a [u8],
}

impl<'a> Batches<'a> {
    /// Over `blob`.
    pub fn new(blob: &'a [u8]) -> Self {
        Batches { rest: blob }
    }

    /// Bytes not yet walked.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Batches<'a> {
    type Item = Result<(BatchHeader, &'a [u8]), BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        match BatchHeader::parse(self.rest) {
            Ok(header) => {
                let (batch, rest) = self.rest.split_at(header.total_bytes());
                self.rest = rest;
                Some(Ok((header, batch)))
            }
            Err(BatchError::Short { .. }) => None,
            Err(error) => {
                self.rest = &[];
                Some(Err(error))
            }
        }
    }
}
