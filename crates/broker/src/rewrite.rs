//! What a topic's configs change about a batch before it is appended: its compression, and that is all. (The append
//! time of `LogAppendTime` is known only after sequencing, so readers set it; see metadata's `Extent`.)

use bytes::{BufMut, Bytes, BytesMut};
use isobar_metadata::Topic;
use isobar_metadata::config_table::{Compression, TimestampType};
use isobar_protocol::batch::{
    BatchHeader, HEADER_BYTES, ProduceRules, TimestampRange, validate_produced, write_crc,
};
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::{RecordRules, check_records};

use crate::accumulator::Outcome;

/// The most that a batch may hold once decompressed. As many are open at a time as the runtime has threads.
const DECOMPRESSED_CAP_BYTES: usize = 128 << 20;
/// Length and everything before it are not counted by a batch's own length field.
const BEFORE_LENGTH_BYTES: usize = 12;

/// What the time may be. A record is refused for its timestamp only if it is too far off by both: this node's clock, which may be
/// wrong, and metadata's time, which goes by most nodes' clocks and stands still while nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Now {
    earliest_ms: i64,
    latest_ms: i64,
}

impl Now {
    pub(crate) fn of(own_ms: i64, metadata_ms: i64) -> Self {
        Self { earliest_ms: own_ms.min(metadata_ms), latest_ms: own_ms.max(metadata_ms) }
    }
}

/// Checks a produced batch by its topic's configs, and gives it the topic's compression.
pub(crate) fn check(
    topic: &Topic,
    version: i16,
    now: Now,
    records: Option<Bytes>,
) -> Result<(BatchHeader, Bytes), Outcome> {
    let settings = &topic.settings;
    let timestamps = match settings.timestamp_type {
        TimestampType::LogAppendTime => TimestampRange::ANY,
        TimestampType::CreateTime => TimestampRange {
            min_ms: now.earliest_ms.saturating_sub(settings.timestamp_before_max_ms),
            max_ms: now.latest_ms.saturating_add(settings.timestamp_after_max_ms),
        },
    };
    let max_message_bytes = usize::try_from(settings.max_message_bytes).unwrap_or(0);
    let rules = ProduceRules { version, max_message_bytes, timestamps };
    let refused =
        |refused: isobar_protocol::batch::Refused| Outcome::refused(refused.code, Some(refused.message));
    let header = validate_produced(records.as_deref(), &rules).map_err(refused)?;
    let bytes = records.unwrap_or_default();
    let require_keys = settings.cleanup_compact;
    let rules = RecordRules { require_keys, timestamps, cap_bytes: DECOMPRESSED_CAP_BYTES };
    let plain = check_records(&bytes, &header, &rules).map_err(refused)?;
    match wanted_codec(settings.compression) {
        Some(codec) if header.attributes.codec() != Some(codec) => recompress(header, &plain, codec),
        _ => {
            drop(plain);
            Ok((header, bytes))
        }
    }
}

fn wanted_codec(compression: Compression) -> Option<Codec> {
    match compression {
        Compression::Producer => None,
        Compression::Uncompressed => Some(Codec::None),
        Compression::Gzip => Some(Codec::Gzip),
        Compression::Snappy => Some(Codec::Snappy),
        Compression::Lz4 => Some(Codec::Lz4),
        Compression::Zstd => Some(Codec::Zstd),
    }
}

/// A batch of these records, which are not compressed, in another codec.
fn recompress(header: BatchHeader, plain: &[u8], codec: Codec) -> Result<(BatchHeader, Bytes), Outcome> {
    let failed = |error: isobar_protocol::compression::CompressionError| {
        Outcome::refused(ErrorCode::InvalidRecord, Some(error.to_string()))
    };
    let packed = codec.compress(plain).map_err(failed)?;
    let mut header = header;
    let codec_bits = 0b111;
    header.attributes.0 = (header.attributes.0 & !codec_bits) | i16::from(codec.id());
    header.length = i32::try_from(HEADER_BYTES - BEFORE_LENGTH_BYTES + packed.len())
        .map_err(|_| Outcome::refused(ErrorCode::MessageTooLarge, None))?;
    let mut batch = BytesMut::with_capacity(HEADER_BYTES + packed.len());
    batch.put_slice(&header.encode());
    batch.put_slice(&packed);
    write_crc(&mut batch);
    let header = BatchHeader::parse(&batch)
        .map_err(|error| Outcome::refused(ErrorCode::UnknownServerError, Some(error.to_string())))?;
    Ok((header, batch.freeze()))
}

#[cfg(test)]
mod tests {
    use isobar_metadata::config_table::TopicSettings;
    use isobar_metadata::record::TopicRecord;
    use isobar_protocol::batch::verify_crc;
    use isobar_protocol::records::{BatchBuilder, decode_batch};

    use super::*;

    #[test]
    fn recompression_keeps_the_records_and_says_so_in_the_header() {
        let codecs = [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
        for from in codecs {
            for to in codecs {
                let mut builder = BatchBuilder::new(from).producer(5, 1, 9);
                for i in 0..50_u8 {
                    builder.push(
                        1_000 + i64::from(i),
                        Some([i].as_slice()),
                        Some([i; 40].as_slice()),
                        &[("h", Some(&[i]))],
                    );
                }
                let batch = builder.build().unwrap();
                let header = BatchHeader::parse(&batch).unwrap();
                let (new, bytes) = {
                    let plain = from.decompress(&batch[HEADER_BYTES..], 1 << 20).unwrap();
                    recompress(header, &plain, to).unwrap()
                };
                verify_crc(&bytes).unwrap();
                assert_eq!(new.attributes.codec(), Some(to));
                assert_eq!((new.producer_id, new.base_sequence, new.count), (5, 9, 50));
                assert_eq!(new.total_bytes(), bytes.len());
                let (old_records, new_records) =
                    (decode_batch(&batch, 1 << 20).unwrap(), decode_batch(&bytes, 1 << 20).unwrap());
                for (old, new) in old_records.iter().zip(new_records.iter()) {
                    let (old, new) = (old.unwrap(), new.unwrap());
                    assert_eq!(
                        (old.key, old.value, old.timestamp_ms),
                        (new.key, new.value, new.timestamp_ms)
                    );
                }
                assert_eq!(new_records.iter().count(), 50);
            }
        }
    }

    #[test]
    fn a_record_is_too_early_or_too_late_only_by_both_clocks() {
        const HOUR_MS: i64 = 3_600_000;
        const NOON_MS: i64 = 1_800_000_000_000;
        let configs =
            [("message.timestamp.before.max.ms", HOUR_MS), ("message.timestamp.after.max.ms", HOUR_MS)];
        let configs = configs.map(|(name, value)| (name.to_owned(), value.to_string())).into();
        let topic = Topic { record: TopicRecord::default(), settings: TopicSettings::of(&configs, None) };
        let code = |own_ms: i64, metadata_ms: i64| {
            let mut builder = BatchBuilder::new(Codec::None);
            builder.push(NOON_MS, None, Some(b"v".as_slice()), &[] as &[(&str, Option<&[u8]>)]);
            let batch = builder.build().unwrap();
            let now = Now::of(NOON_MS + own_ms, NOON_MS + metadata_ms);
            check(&topic, 9, now, Some(batch)).map_or_else(|refused| refused.error, |_| ErrorCode::None)
        };
        assert_eq!(code(0, 0), ErrorCode::None);
        for off_ms in [-2 * HOUR_MS, 2 * HOUR_MS] {
            assert_eq!(code(off_ms, 0), ErrorCode::None, "this node's clock is wrong by {off_ms} ms");
            assert_eq!(code(off_ms, off_ms), ErrorCode::InvalidTimestamp);
        }
    }
}
