//! Checking the records of a produced batch, as Kafka's `LogValidator` does.

use std::borrow::Cow;

use crate::batch::{BatchHeader, HEADER_BYTES, NO_TIMESTAMP, Refused, TimestampRange, TimestampType};
use crate::compression::{Codec, CompressionError};
use crate::error::ErrorCode;
use crate::records::read_record;
use crate::wire::Reader;

/// The words of Kafka's reader for a header that announces more records than there are (its responses have the code alone).
const TOO_FEW: &str = "Incorrect declared batch size, premature EOF reached";
/// Its words for one that announces fewer.
const TOO_MANY: &str = "Incorrect declared batch size, records still remaining in file";

/// What a topic asks of every record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRules {
    /// `cleanup.policy=compact`: every record needs a key.
    pub require_keys: bool,
    /// The timestamps allowed, with `CreateTime`.
    pub timestamps: TimestampRange,
    /// The most that decompression may yield.
    pub cap_bytes: usize,
}

/// Checks every record of a batch that [`crate::batch::validate_produced`] accepted, as Kafka's `LogValidator` does:
/// layout, number, keys, timestamps; and, more strictly than Kafka, that offset deltas count up from 0. Returns the records as
/// they were checked, decompressed if they have to be.
pub fn check_records<'a>(
    batch: &'a [u8],
    header: &BatchHeader,
    rules: &RecordRules,
) -> Result<Cow<'a, [u8]>, Refused> {
    let codec = header.attributes.codec().unwrap_or_default();
    let payload = batch.get(HEADER_BYTES..header.total_bytes()).unwrap_or_default();
    if codec == Codec::None {
        check_payload(payload, header, rules)?;
        return Ok(Cow::Borrowed(payload));
    }
    match codec.decompress(payload, rules.cap_bytes) {
        Ok(payload) => {
            check_payload(&payload, header, rules)?;
            Ok(Cow::Owned(payload))
        }
        Err(error @ CompressionError::TooLarge { .. }) => {
            Err(Refused::new(ErrorCode::MessageTooLarge, error))
        }
        Err(error) => Err(Refused::new(ErrorCode::InvalidRecord, error)),
    }
}

fn check_payload(payload: &[u8], header: &BatchHeader, rules: &RecordRules) -> Result<(), Refused> {
    let create_time = header.attributes.timestamp_type() == TimestampType::CreateTime;
    let mut at = 0;
    for index in 0..header.count {
        if at == payload.len() {
            return Err(Refused::new(ErrorCode::InvalidRecord, TOO_FEW));
        }
        let Some(record) = skim(payload, at) else { return Err(malformed(payload, at, index, header.count)) };
        at = record.end;
        if record.offset_delta != i64::from(index) {
            let message = format!("record {index} has offset delta {}", record.offset_delta);
            return Err(Refused::new(ErrorCode::InvalidRecord, message));
        }
        if rules.require_keys && !record.has_key {
            let message = format!("compacted topic cannot accept record {index} without key");
            return Err(Refused::new(ErrorCode::InvalidRecord, message));
        }
        let timestamp_ms = header.base_timestamp_ms.wrapping_add(record.timestamp_delta);
        if create_time && timestamp_ms != NO_TIMESTAMP {
            rules.timestamps.check(timestamp_ms)?;
        }
    }
    if at < payload.len() {
        return Err(Refused::new(ErrorCode::InvalidRecord, TOO_MANY));
    }
    Ok(())
}

/// Reads the record again for the reason.
#[cold]
fn malformed(payload: &[u8], at: usize, index: i32, count: i32) -> Refused {
    let reason = match read_record(&mut Reader::at(payload, at)) {
        Err(reason) => reason.to_string(),
        Ok(_) => "varint too long".to_owned(),
    };
    Refused::new(ErrorCode::InvalidRecord, format!("record {index} of {count} is malformed: {reason}"))
}

/// What [`check_records`] looks at. The same layout as [`read_record`]'s, read without building anything: this runs for
/// every record produced without compression.
struct Skimmed {
    end: usize,
    timestamp_delta: i64,
    offset_delta: i64,
    has_key: bool,
}

#[inline]
fn skim(payload: &[u8], mut at: usize) -> Option<Skimmed> {
    let length = skim_int(payload, &mut at)?;
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let record = payload.get(..end)?;
    at += 1; // attributes, unused
    let timestamp_delta = skim_varint(record, &mut at)?;
    let offset_delta = skim_int(record, &mut at)?;
    let has_key = skim_sized(record, &mut at)?;
    skim_sized(record, &mut at)?;
    let headers = skim_int(record, &mut at)?;
    if headers < 0 {
        return None;
    }
    for _ in 0..headers {
        if !skim_sized(record, &mut at)? {
            return None;
        }
        skim_sized(record, &mut at)?;
    }
    (at == end).then_some(Skimmed { end, timestamp_delta, offset_delta, has_key })
}

/// Steps over a key or value; `false` if it is null.
#[inline]
fn skim_sized(record: &[u8], at: &mut usize) -> Option<bool> {
    let length = skim_int(record, at)?;
    if length == -1 {
        return Some(false);
    }
    *at = at.checked_add(usize::try_from(length).ok()?)?;
    (*at <= record.len()).then_some(true)
}

/// A varint of 32 bits.
#[inline]
fn skim_int(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let from = *at;
    let value = skim_varint(bytes, at)?;
    (i32::try_from(value).is_ok() && *at - from <= 5).then_some(value)
}

#[inline]
fn skim_varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let first = *bytes.get(*at)?;
    *at += 1;
    let mut raw = u64::from(first & 0x7f);
    if first >= 0x80 {
        let second = *bytes.get(*at)?;
        *at += 1;
        raw |= u64::from(second & 0x7f) << 7;
        if second >= 0x80 {
            raw |= skim_rest(bytes, at)?;
        }
    }
    Some(((raw >> 1) as i64) ^ -((raw & 1) as i64))
}

/// The third byte of a varint and those after it.
fn skim_rest(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut raw = 0;
    for index in 2..10 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if index == 9 && byte > 1 {
            return None;
        }
        raw |= u64::from(byte & 0x7f) << (index * 7);
        if byte < 0x80 {
            break;
        }
    }
    Some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::BatchBuilder;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// The two readers of the same layout agree on what is a record, and on where it ends.
        #[test]
        fn skimming_accepts_what_reading_accepts(
            value in 0usize..300,
            headers in 0usize..3,
            changes in prop::collection::vec((0usize..40, prop_oneof![any::<u8>(), Just(0x80), Just(0xff), Just(0)]), 0..3),
            insert in prop::option::of(0usize..12),
        ) {
            let mut builder = BatchBuilder::new(Codec::None);
            let header = ("key", Some(&[1u8, 2][..]));
            builder.push(1 << 40, Some(b"k"), Some(&vec![3; value]), &vec![header; headers]);
            builder.push(0, None, None, &vec![header; headers]);
            let mut payload = builder.build().unwrap()[HEADER_BYTES..].to_vec();
            for (at, byte) in changes {
                let at = at % payload.len();
                payload[at] = byte;
            }
            if let Some(at) = insert {
                payload.insert(at, 0x80);
            }
            let mut at = 0;
            loop {
                let mut reader = Reader::at(&payload, at);
                let read = read_record(&mut reader);
                let skimmed = skim(&payload, at);
                prop_assert_eq!(skimmed.is_some(), read.is_ok(), "at {} of {:?}", at, payload);
                let (Some(skimmed), Ok(_)) = (skimmed, read) else { break };
                prop_assert_eq!(skimmed.end, reader.position());
                at = skimmed.end;
            }
        }
    }
}
