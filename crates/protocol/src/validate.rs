//! What Kafka checks of a produced batch without looking at its records, in Kafka's order and with its error codes.
//!
//! Sources, Kafka 4: `ByteBufferLogInputStream.nextBatchSize`, `ProduceRequest.validateRecords`,
//! `UnifiedLog.analyzeAndValidateRecords`, `LogValidator.validateBatch`. Where Isobar is stricter: an incomplete batch behind the
//! first is refused (Kafka cuts it off and acknowledges the rest), and an unknown codec is
//! UNSUPPORTED_COMPRESSION_TYPE (Kafka: UNKNOWN_SERVER_ERROR).

use crate::batch::{BatchHeader, HEADER_BYTES, LOG_OVERHEAD_BYTES, MAGIC, TimestampType, verify_crc};
use crate::compression::Codec;
use crate::error::ErrorCode;

/// The smallest record of any format, by which Kafka tells a length from noise.
const MIN_RECORD_BYTES: i32 = 14;
const MAGIC_AT: usize = 16;
/// First Produce version that may carry zstd (KIP-110).
const FIRST_WITH_ZSTD: i16 = 7;

/// A batch that is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refused {
    /// For the partition's error code.
    pub code: ErrorCode,
    /// For the partition's error message (Produce v8+).
    pub message: String,
}

impl Refused {
    pub(crate) fn new(code: ErrorCode, message: impl ToString) -> Self {
        Refused { code, message: message.to_string() }
    }
}

/// What the request and the topic allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProduceRules {
    /// Version of the Produce request.
    pub version: i16,
    /// `max.message.bytes`, against the whole batch as sent.
    pub max_message_bytes: usize,
    /// The timestamps allowed, with `CreateTime`; the batch's largest is held against it. With `LogAppendTime`: any.
    pub timestamps: TimestampRange,
}

/// Timestamps that a topic accepts: now minus `message.timestamp.before.max.ms` to now plus
/// `message.timestamp.after.max.ms`, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampRange {
    /// The oldest.
    pub min_ms: i64,
    /// The newest.
    pub max_ms: i64,
}

impl TimestampRange {
    /// Every timestamp.
    pub const ANY: TimestampRange = TimestampRange { min_ms: i64::MIN, max_ms: i64::MAX };

    pub(crate) fn check(&self, timestamp_ms: i64) -> Result<(), Refused> {
        if (self.min_ms..=self.max_ms).contains(&timestamp_ms) {
            return Ok(());
        }
        Err(Refused::new(
            ErrorCode::InvalidTimestamp,
            format!("timestamp {timestamp_ms} is not within [{}, {}]", self.min_ms, self.max_ms),
        ))
    }
}

/// Checks what a producer sent to one partition: exactly one batch, whole and sound. Sums it up once.
pub fn validate_produced(records: Option<&[u8]>, rules: &ProduceRules) -> Result<BatchHeader, Refused> {
    let records = records.unwrap_or_default();
    let header = one_batch(records, rules.version)?;
    let invalid = |message: String| Err(Refused::new(ErrorCode::InvalidRecord, message));
    if header.base_offset != 0 {
        return invalid(format!("base offset of a produced batch is {} instead of 0", header.base_offset));
    }
    if records.len() > rules.max_message_bytes {
        let max = rules.max_message_bytes;
        let message = format!("batch of {} bytes is larger than max.message.bytes = {max}", records.len());
        return Err(Refused::new(ErrorCode::MessageTooLarge, message));
    }
    verify_crc(records).map_err(|error| Refused::new(ErrorCode::CorruptMessage, error))?;
    if header.attributes.codec().is_none() {
        let message = format!("unknown codec {}", header.attributes.0 & 7);
        return Err(Refused::new(ErrorCode::UnsupportedCompressionType, message));
    }
    check_counts(&header)?;
    if header.attributes.is_control() {
        return invalid("clients are not allowed to write control records".to_owned());
    }
    if header.has_producer_id() && header.base_sequence < 0 {
        return invalid(format!(
            "base sequence {} with producer id {}",
            header.base_sequence, header.producer_id
        ));
    }
    if header.attributes.timestamp_type() == TimestampType::CreateTime && header.max_timestamp_ms >= 0 {
        // The oldest record's timestamp is not in the header; the newest bounds both ends as far as it can.
        rules.timestamps.check(header.max_timestamp_ms)?;
    }
    Ok(header)
}

/// Finds the one batch of a partition's records.
fn one_batch(records: &[u8], version: i16) -> Result<BatchHeader, Refused> {
    let invalid =
        |what: &str| Refused::new(ErrorCode::InvalidRecord, format!("Produce of version {version} {what}"));
    let Some(total_bytes) = next_batch_bytes(records)? else {
        return Err(invalid("must have at least one record batch per partition"));
    };
    let magic = records[MAGIC_AT] as i8;
    if magic != MAGIC {
        return Err(invalid(&format!("may only contain batches of magic 2, not {magic}")));
    }
    let batch = &records[..total_bytes];
    let header = BatchHeader::parse(batch).map_err(|error| Refused::new(ErrorCode::CorruptMessage, error))?;
    if header.attributes.codec() == Some(Codec::Zstd) && version < FIRST_WITH_ZSTD {
        let message = format!("Produce of version {version} may not carry zstd");
        return Err(Refused::new(ErrorCode::UnsupportedCompressionType, message));
    }
    if records.len() > total_bytes {
        next_batch_bytes(&records[total_bytes..])?;
        return Err(invalid("may only contain one record batch per partition"));
    }
    Ok(header)
}

/// Bytes of the next batch; `None` if there is none, or not all of it.
fn next_batch_bytes(bytes: &[u8]) -> Result<Option<usize>, Refused> {
    let corrupt = |message: String| Err(Refused::new(ErrorCode::CorruptMessage, message));
    let Some(&length) = bytes.get(8..LOG_OVERHEAD_BYTES).and_then(|length| length.first_chunk::<4>()) else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(length);
    if length < MIN_RECORD_BYTES {
        return corrupt(format!("batch length {length} is less than the smallest record's"));
    }
    let Some(&magic) = bytes.get(MAGIC_AT) else { return Ok(None) };
    if magic > MAGIC as u8 {
        return corrupt(format!("invalid magic {}", magic as i8));
    }
    let total_bytes = LOG_OVERHEAD_BYTES + length as usize;
    if magic == MAGIC as u8 && total_bytes < HEADER_BYTES {
        return corrupt(format!("batch of {total_bytes} bytes is smaller than its header"));
    }
    Ok((bytes.len() >= total_bytes).then_some(total_bytes))
}

fn check_counts(header: &BatchHeader) -> Result<(), Refused> {
    let BatchHeader { count, last_offset_delta, .. } = *header;
    if last_offset_delta < 0 || count <= 0 || i64::from(last_offset_delta) + 1 != i64::from(count) {
        let message = format!("batch of {count} records with last offset delta {last_offset_delta}");
        return Err(Refused::new(ErrorCode::InvalidRecord, message));
    }
    Ok(())
}
