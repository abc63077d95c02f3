//! Batches: built, read, checked, stamped; against kafka-protocol's own decoder, and broken one field at a time.

#![allow(clippy::unwrap_used, reason = "helpers of tests, where a failure is the finding")]

use bytes::{Bytes, BytesMut};
use isobar_protocol::batch::{
    self, BatchError, BatchHeader, Batches, HEADER_BYTES, ProduceRules, STAMP_BYTES, TimestampRange,
    TimestampType, validate_produced, verify_crc,
};
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::{BatchBuilder, RecordRules, RecordsError, check_records, decode_batch};
use kafka_protocol::records::RecordBatchDecoder;
use proptest::prelude::*;

const CAP_BYTES: usize = 1 << 20;
const RULES: ProduceRules =
    ProduceRules { version: 9, max_message_bytes: 1 << 20, timestamps: TimestampRange::ANY };
const RECORD_RULES: RecordRules =
    RecordRules { require_keys: false, timestamps: TimestampRange::ANY, cap_bytes: CAP_BYTES };

type Row = (i64, Option<Vec<u8>>, Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let bytes = || prop::option::of(prop::collection::vec(any::<u8>(), 0..40));
    let headers = prop::collection::vec(("[a-c]{0,2}", bytes()), 0..4);
    prop::collection::vec((0i64..4_000_000_000_000, bytes(), bytes(), headers), 1..20)
}

fn build(rows: &[Row], builder: BatchBuilder) -> Bytes {
    let mut builder = builder;
    for (timestamp_ms, key, value, headers) in rows {
        let headers: Vec<(&str, Option<&[u8]>)> =
            headers.iter().map(|(k, v)| (k.as_str(), v.as_deref())).collect();
        builder.push(*timestamp_ms, key.as_deref(), value.as_deref(), &headers);
    }
    builder.build().unwrap()
}

fn sample() -> Vec<u8> {
    let rows: Vec<Row> = (0..5)
        .map(|i| (1000 + i, Some(vec![i as u8; 3]), Some(vec![7; 50]), vec![("h".into(), None)]))
        .collect();
    build(&rows, BatchBuilder::new(Codec::None)).to_vec()
}

/// Changes bytes of the sample and sums it up again.
fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = sample();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    batch::write_crc(&mut batch);
    batch
}

fn refused(records: &[u8]) -> (ErrorCode, String) {
    let refused = validate_produced(Some(records), &RULES).unwrap_err();
    (refused.code, refused.message)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn records_come_back_with_every_codec(rows in rows(), codec in 0u8..5, stamp in 0i64..1 << 40) {
        let codec = Codec::from_id(codec).unwrap();
        let batch = build(&rows, BatchBuilder::new(codec).producer(9, 2, 77).transactional());
        let header = validate_produced(Some(&batch), &RULES).unwrap();
        check_records(&batch, &header, &RECORD_RULES).unwrap();
        prop_assert_eq!(header.encode(), &batch[..HEADER_BYTES]);
        prop_assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (9, 2, 77));
        prop_assert_eq!(header.max_timestamp_ms, rows.iter().map(|row| row.0).max().unwrap());
        prop_assert_eq!((header.attributes.codec(), header.attributes.is_transactional()), (Some(codec), true));

        let mut stamped = BytesMut::from(&batch[..]);
        stamped[..STAMP_BYTES].copy_from_slice(&header.stamp(stamp, 3));
        verify_crc(&stamped).unwrap();
        let records = decode_batch(&stamped.freeze(), CAP_BYTES).unwrap();
        let mut count = 0;
        for (i, record) in records.iter().enumerate() {
            let record = record.unwrap();
            let (timestamp_ms, key, value, headers) = &rows[i];
            prop_assert_eq!((record.offset, record.timestamp_ms), (stamp + i as i64, *timestamp_ms));
            prop_assert_eq!((record.key, record.value), (key.as_deref(), value.as_deref()));
            let read: Vec<_> = record.headers.map(|(k, v)| (String::from_utf8(k.to_vec()).unwrap(), v.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(&read, headers);
            count += 1;
        }
        prop_assert_eq!(count, rows.len());
    }

    #[test]
    fn kafka_protocol_reads_what_we_build(rows in rows()) {
        let mut batch = build(&rows, BatchBuilder::new(Codec::None));
        let set = RecordBatchDecoder::decode(&mut batch).unwrap();
        prop_assert_eq!(set.records.len(), rows.len());
        for (theirs, (timestamp_ms, key, value, _)) in set.records.iter().zip(&rows) {
            prop_assert_eq!(theirs.timestamp, *timestamp_ms);
            prop_assert_eq!((theirs.key.as_deref(), theirs.value.as_deref()), (key.as_deref(), value.as_deref()));
        }
    }

    /// Whatever one bit flips into is refused, or lies before the sum (offset is checked, leader epoch is the broker's).
    #[test]
    fn a_flipped_bit_is_seen(bit in 0usize..8 * 200) {
        let mut batch = sample();
        let at = bit / 8 % batch.len();
        batch[at] ^= 1 << (bit % 8);
        let accepted = validate_produced(Some(&batch), &RULES).is_ok();
        prop_assert_eq!(accepted, (12..16).contains(&at), "byte {}", at);
    }

    #[test]
    fn junk_records_never_panic(junk in prop::collection::vec(any::<u8>(), 0..120), count in -2i32..40, codec in 0u8..8) {
        let mut batch = sample();
        batch.truncate(HEADER_BYTES);
        batch.extend_from_slice(&junk);
        let length = (batch.len() - 12) as i32;
        batch[8..12].copy_from_slice(&length.to_be_bytes());
        batch[22] = codec;
        batch[57..61].copy_from_slice(&count.to_be_bytes());
        batch[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        batch::write_crc(&mut batch);
        if let Ok(header) = validate_produced(Some(&batch), &RULES) {
            let sound = check_records(&batch, &header, &RECORD_RULES).is_ok();
            let records = decode_batch(&batch.into(), CAP_BYTES);
            let read = records.as_ref().is_ok_and(|records| records.iter().all(|record| record.is_ok()));
            prop_assert!(read || !sound, "accepted records that cannot be read");
        } else {
            let _ = decode_batch(&batch.into(), CAP_BYTES).map(|records| records.iter().count());
        }
    }
}

#[test]
fn kafkas_error_for_each_bad_batch() {
    use ErrorCode::{
        CorruptMessage, InvalidRecord, InvalidTimestamp, MessageTooLarge, UnsupportedCompressionType,
    };
    let good = sample();
    validate_produced(Some(&good), &RULES).unwrap();
    let code = |records: &[u8]| refused(records).0;
    assert_eq!(validate_produced(None, &RULES).unwrap_err().code, InvalidRecord);
    assert_eq!(code(&[]), InvalidRecord);
    assert_eq!(code(&good[..16]), InvalidRecord, "no whole batch");
    assert_eq!(code(&good[..good.len() - 1]), InvalidRecord, "cut off");
    assert_eq!(code(&changed(8, &13i32.to_be_bytes())), CorruptMessage, "length below any record's");
    assert_eq!(code(&changed(8, &(-1i32).to_be_bytes())), CorruptMessage);
    assert_eq!(code(&changed(8, &40i32.to_be_bytes())), CorruptMessage, "length below a header's");
    assert_eq!(code(&changed(16, &[1])), InvalidRecord, "an older format");
    assert_eq!(code(&changed(16, &[3])), CorruptMessage, "no format at all");
    assert_eq!(code(&changed(16, &[0xff])), CorruptMessage);
    assert_eq!(code(&changed(0, &1i64.to_be_bytes())), InvalidRecord, "base offset");
    assert_eq!(code(&changed(22, &[7])), UnsupportedCompressionType);
    assert_eq!(code(&changed(22, &[1 << 5])), InvalidRecord, "control batch");
    assert_eq!(code(&changed(57, &4i32.to_be_bytes())), InvalidRecord, "count");
    assert_eq!(code(&changed(57, &0i32.to_be_bytes())), InvalidRecord);
    assert_eq!(code(&changed(23, &5i32.to_be_bytes())), InvalidRecord, "last offset delta");
    assert_eq!(code(&changed(23, &(-1i32).to_be_bytes())), InvalidRecord);
    assert_eq!(code(&changed(23, &i32::MAX.to_be_bytes())), InvalidRecord);
    assert_eq!(code(&changed(43, &5i64.to_be_bytes())), InvalidRecord, "producer id without a sequence");
    let mut corrupt = good.clone();
    corrupt[70] ^= 1;
    let (error, message) = refused(&corrupt);
    assert!(error == CorruptMessage && message.contains("CRC"), "{message}");
    assert_eq!(code(&[&good[..], &good].concat()), InvalidRecord, "two batches");
    assert_eq!(code(&[&good[..], &good[..30]].concat()), InvalidRecord, "one and a piece");
    assert_eq!(code(&[&good[..], &[0; 17]].concat()), CorruptMessage, "one and noise");
    let small = ProduceRules { max_message_bytes: good.len() - 1, ..RULES };
    assert_eq!(validate_produced(Some(&good), &small).unwrap_err().code, MessageTooLarge);
    let early = ProduceRules { timestamps: TimestampRange { min_ms: 0, max_ms: 1003 }, ..RULES };
    assert_eq!(validate_produced(Some(&good), &early).unwrap_err().code, InvalidTimestamp);
    let zstd = build(&[(1, None, None, vec![])], BatchBuilder::new(Codec::Zstd));
    let old = ProduceRules { version: 6, ..RULES };
    assert_eq!(validate_produced(Some(&zstd), &old).unwrap_err().code, UnsupportedCompressionType);
    validate_produced(Some(&zstd), &RULES).unwrap();
}

#[test]
fn record_rules() {
    let check = |batch: &[u8], rules: RecordRules| {
        let header = validate_produced(Some(batch), &RULES).unwrap();
        check_records(batch, &header, &rules).map(drop).map_err(|refused| refused.code)
    };
    let keyless =
        build(&[(5, Some(vec![1]), None, vec![]), (6, None, None, vec![])], BatchBuilder::new(Codec::Lz4));
    assert_eq!(check(&keyless, RECORD_RULES), Ok(()));
    let compacted = RecordRules { require_keys: true, ..RECORD_RULES };
    assert_eq!(check(&keyless, compacted), Err(ErrorCode::InvalidRecord));
    let late = RecordRules { timestamps: TimestampRange { min_ms: 6, max_ms: 10 }, ..RECORD_RULES };
    assert_eq!(check(&keyless, late), Err(ErrorCode::InvalidTimestamp));
    let capped = RecordRules { cap_bytes: 10, ..RECORD_RULES };
    assert_eq!(check(&keyless, capped), Err(ErrorCode::MessageTooLarge));
    // More records than announced, and fewer.
    for count in [4, 6] {
        let mut batch = changed(57, &i32::to_be_bytes(count));
        batch[23..27].copy_from_slice(&(count - 1).to_be_bytes());
        batch::write_crc(&mut batch);
        assert_eq!(check(&batch, RECORD_RULES), Err(ErrorCode::InvalidRecord), "{count}");
        let records = decode_batch(&batch.into(), CAP_BYTES).unwrap();
        let error = records.iter().find_map(Result::err).unwrap();
        assert!(matches!(error, RecordsError::Count { .. }), "{error}");
    }
}

#[test]
fn a_bomb_stops_at_the_cap() {
    let mut builder = BatchBuilder::new(Codec::Zstd);
    builder.push(0, None, Some(&vec![0; 64 << 20]), &[] as &[(&str, _)]);
    let bomb = builder.build().unwrap();
    assert!(bomb.len() < 32 * 1024);
    assert!(matches!(decode_batch(&bomb, CAP_BYTES), Err(RecordsError::Compression(_))));
}

#[test]
fn iterating_a_blob_ends_before_a_piece_of_a_batch() {
    let batch = sample();
    let blob = [&batch[..], &batch, &batch[..40]].concat();
    let mut batches = Batches::new(&blob);
    assert_eq!(batches.by_ref().map(|batch| batch.unwrap().0.count).collect::<Vec<_>>(), [5, 5]);
    assert_eq!(batches.rest().len(), 40);
    let mut wrong = blob.clone();
    wrong[batch.len() + 16] = 1;
    let walked: Vec<_> = Batches::new(&wrong).collect();
    assert!(matches!(walked[..], [Ok(_), Err(BatchError::Magic(1))]));
}

#[test]
fn bytes_that_are_no_batch() {
    let batch = sample();
    assert!(matches!(
        BatchHeader::parse(&batch[..60]),
        Err(BatchError::Short { need_bytes: HEADER_BYTES, .. })
    ));
    assert!(matches!(BatchHeader::parse(&batch[..61]), Err(BatchError::Short { .. })));
    assert_eq!(BatchHeader::parse(&changed(8, &48i32.to_be_bytes())), Err(BatchError::Length(48)));
    assert_eq!(BatchHeader::parse(&changed(8, &(-1i32).to_be_bytes())), Err(BatchError::Length(-1)));
    assert!(matches!(verify_crc(&batch[..20]), Err(BatchError::Short { .. })));
}

#[test]
fn log_append_time_is_summed_again() {
    let mut batch = sample();
    batch::rewrite_timestamp(&mut batch, TimestampType::LogAppendTime, 777);
    let header = validate_produced(Some(&batch), &RULES).unwrap();
    assert_eq!(header.attributes.timestamp_type(), TimestampType::LogAppendTime);
    let records = decode_batch(&Bytes::copy_from_slice(&batch), CAP_BYTES).unwrap();
    assert!(records.iter().all(|record| record.unwrap().timestamp_ms == 777));
    batch::rewrite_timestamp(&mut batch, TimestampType::CreateTime, 1004);
    assert_eq!(batch, sample());
}

#[test]
fn sequences_wrap_as_kafkas() {
    let header = BatchHeader::parse(&sample()).unwrap();
    assert_eq!(header.last_sequence(), -1);
    assert_eq!(BatchHeader { base_sequence: i32::MAX - 1, ..header }.last_sequence(), 2);
    assert_eq!(BatchHeader { base_sequence: i32::MAX - 4, ..header }.last_sequence(), i32::MAX);
    assert_eq!(batch::add_sequence(i32::MAX, 1), 0);
}
