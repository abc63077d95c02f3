//! A partition's records as a client sends them: header, checksum, compression, records.
//!
//! Promises: a header encodes to its bytes; what the fast check of the broker accepts, the reader of consumers reads, record
//! by record, and the other way round; neither takes more memory than the cap allows; records built again are the same;
//! a stamp or a rewritten timestamp changes nothing else.

use bytes::Bytes;
use isobar_protocol::batch::{
    BatchHeader, Batches, HEADER_BYTES, ProduceRules, STAMP_BYTES, TimestampRange, TimestampType,
    rewrite_timestamp, validate_produced, verify_crc, write_crc,
};
use isobar_protocol::compression::Codec;
use isobar_protocol::records::{BatchBuilder, Record, RecordRules, check_records, decode_batch};

use crate::edit::edit;
use crate::input::Input;
use crate::{peak_of, samples};

const CAPS: [usize; 4] = [1 << 20, 4096, 0, 61];
/// Windows and tables of the decoders (lz4: two blocks of 8 MiB at most).
const CODEC_BYTES: usize = 24 << 20;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (mode, cap_bytes) = (input.u8(), input.pick(&CAPS));
    let mut bytes = if mode & 4 == 0 {
        let mut bytes = samples::built_batch(&mut input).to_vec();
        edit(&mut bytes, 0, &mut input);
        bytes
    } else {
        input.rest().to_vec()
    };
    if bytes.len() >= HEADER_BYTES {
        if mode & 1 == 0 {
            let length = (bytes.len() - 12) as i32;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
        }
        if mode & 2 == 0 {
            write_crc(&mut bytes);
        }
    }
    let bytes = Bytes::from(bytes);
    walk(&bytes);
    if let Ok(header) = BatchHeader::parse_head(&bytes) {
        assert_eq!(header.encode(), bytes[..HEADER_BYTES], "a header that does not encode to itself");
    }
    let rules = ProduceRules {
        version: i16::from(mode >> 4),
        max_message_bytes: 1 << 20,
        timestamps: TimestampRange::ANY,
    };
    let (validated, peak) = peak_of(|| validate_produced(Some(&bytes), &rules));
    assert!(peak < 4096, "validation costs {peak} bytes");
    if let Ok(header) = validated {
        assert_eq!(header, BatchHeader::parse(&bytes).expect("a valid batch parses"));
        assert_eq!(header.total_bytes(), bytes.len());
        check(&bytes, &header, cap_bytes);
        stamped(&bytes, &header);
    }
}

/// The batches of a blob are back to back, and an end that is cut off is left.
fn walk(blob: &[u8]) {
    let mut batches = Batches::new(blob);
    let mut at = 0;
    while let Some(next) = batches.next() {
        let Ok((header, batch)) = next else {
            assert!(batches.next().is_none(), "goes on after an error");
            return;
        };
        assert_eq!(batch.len(), header.total_bytes());
        assert_eq!(batch.as_ptr(), blob[at..].as_ptr());
        at += batch.len();
    }
    assert_eq!(batches.rest(), &blob[at..]);
}

fn check(bytes: &Bytes, header: &BatchHeader, cap_bytes: usize) {
    let allowed_bytes = 3 * cap_bytes + CODEC_BYTES;
    let rules = |require_keys| RecordRules { require_keys, timestamps: TimestampRange::ANY, cap_bytes };
    let (checked, peak) = peak_of(|| check_records(bytes, header, &rules(false)));
    assert!(peak <= allowed_bytes, "checking takes {peak} bytes with a cap of {cap_bytes}");
    let (decoded, peak) = peak_of(|| decode_batch(bytes, cap_bytes));
    assert!(peak <= allowed_bytes, "decoding takes {peak} bytes with a cap of {cap_bytes}");
    let Ok(decoded) = decoded else {
        assert!(checked.is_err(), "the broker accepts what no consumer can read: {decoded:?}");
        return;
    };
    let records: Result<Vec<Record<'_>>, _> = decoded.iter().collect();
    let Ok(records) = records else {
        assert!(checked.is_err(), "the broker accepts what no consumer can read: {records:?}");
        return;
    };
    assert_eq!(records.len() as i64, i64::from(header.count));
    let dense = records.iter().enumerate().all(|(n, record)| record.offset == n as i64);
    assert_eq!(checked.is_ok(), dense, "consumers read it: {checked:?}");
    if dense {
        let keyed = records.iter().all(|record| record.key.is_some());
        assert_eq!(check_records(bytes, header, &rules(true)).is_ok(), keyed);
        rebuilt(&records);
    }
}

fn rebuilt(records: &[Record<'_>]) {
    let mut builder = BatchBuilder::new(Codec::None);
    for record in records {
        let headers: Vec<_> = record.headers.clone().collect();
        assert_eq!(headers.len(), record.headers.len());
        builder.push(record.timestamp_ms, record.key, record.value, &headers);
    }
    let built = builder.build().expect("records that were read can be written");
    let again = decode_batch(&built, built.len()).expect("decodes");
    let again: Vec<_> = again.iter().collect::<Result<_, _>>().expect("records");
    assert_eq!(records.len(), again.len());
    for (before, after) in records.iter().zip(&again) {
        assert_eq!((before.offset, before.timestamp_ms), (after.offset, after.timestamp_ms));
        assert_eq!((before.key, before.value), (after.key, after.value));
        assert!(before.headers.clone().eq(after.headers.clone()));
    }
}

fn stamped(bytes: &[u8], header: &BatchHeader) {
    let mut copy = bytes.to_vec();
    copy[..STAMP_BYTES].copy_from_slice(&header.stamp(1 << 40, 5));
    let stamped = BatchHeader::parse(&copy).expect("still a batch");
    assert_eq!(stamped, BatchHeader { base_offset: 1 << 40, leader_epoch: 5, ..*header });
    verify_crc(&copy).expect("a stamp leaves the sum right");
    rewrite_timestamp(&mut copy, TimestampType::LogAppendTime, 77);
    verify_crc(&copy).expect("summed again");
    let rewritten = BatchHeader::parse(&copy).expect("still a batch");
    let expected =
        BatchHeader { attributes: rewritten.attributes, max_timestamp_ms: 77, crc: rewritten.crc, ..stamped };
    assert_eq!(rewritten, expected);
    assert_eq!(rewritten.attributes.0, header.attributes.0 | 8);
    assert_eq!(copy[HEADER_BYTES..], bytes[HEADER_BYTES..]);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for codec in Codec::ALL {
        for records in [1, 5] {
            let raw = samples::batch(codec, records);
            seeds.push([&[4, 0][..], &raw].concat());
            seeds.push([&[7 | 0x90, 1][..], &raw].concat());
        }
        seeds.push([&[0x90, 0, codec.id(), 7][..], &[3; 80]].concat());
    }
    seeds
}
