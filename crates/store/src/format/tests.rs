use isobar_wal::conformance::{batch, key};
use proptest::prelude::*;

use super::*;

fn object(batches: &[(u8, i32, u8, u16)]) -> (Vec<u8>, Vec<Run>) {
    let mut builder = ObjectBuilder::new("cluster".to_owned(), ObjectId(77), 5);
    let mut next = std::collections::BTreeMap::new();
    for (topic, partition, gap, bytes) in batches {
        let key = key(*topic, *partition);
        let bytes = batch(*gap, usize::from(*bytes));
        let header = BatchHeader::parse(&bytes).unwrap();
        let offset: &mut i64 = next.entry(key).or_default();
        *offset += i64::from(*gap % 3);
        builder.push(key, &bytes, &header, *offset, 4);
        *offset += 1;
    }
    let (parts, runs) = builder.finish();
    (parts.concat(), runs)
}

fn arb_batches() -> impl Strategy<Value = Vec<(u8, i32, u8, u16)>> {
    proptest::collection::vec((0..2_u8, 0..2_i32, any::<u8>(), 0..5000_u16), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn an_object_explains_itself(batches in arb_batches()) {
        let (bytes, runs) = object(&batches);
        let footer = Footer::of_object(&bytes).unwrap();
        prop_assert_eq!(&footer.runs, &runs);
        prop_assert_eq!((footer.cluster_id.as_str(), footer.object, footer.created_ms), ("cluster", ObjectId(77), 5));
        footer.verify_body(&bytes).unwrap();
        prop_assert_eq!(runs.iter().map(|run| run.batches.len()).sum::<usize>(), batches.len());
        for run in &runs {
            // A run is contiguous, and its bytes are what a consumer gets.
            let mut next = run.first_offset;
            for batch in isobar_protocol::batch::Batches::new(&bytes[run.range.start as usize..run.range.end as usize]) {
                let (header, _) = batch.unwrap();
                prop_assert_eq!((header.base_offset, header.leader_epoch), (next, 4));
                next = header.next_offset();
            }
            prop_assert_eq!(next, run.last_offset + 1);
        }
    }

    #[test]
    fn no_changed_byte_goes_unnoticed(batches in arb_batches(), at in any::<prop::sample::Index>(), by in 1..=255_u8) {
        let (mut bytes, _) = object(&batches);
        let at = at.index(bytes.len());
        bytes[at] ^= by;
        let read = Footer::of_object(&bytes).and_then(|footer| footer.verify_body(&bytes));
        prop_assert!(read.is_err(), "byte {} of {}", at, bytes.len());
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), honest_trailer in any::<bool>()) {
        if honest_trailer {
            let footer = bytes.clone();
            bytes.extend_from_slice(&encode_trailer(&footer, VERSION));
        }
        if let Ok(footer) = Footer::of_object(&bytes) {
            let _ = footer.verify_body(&bytes);
        }
    }

    #[test]
    fn a_footer_that_lies_under_a_right_crc_is_refused_without_a_panic(batches in arb_batches(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let (bytes, _) = object(&batches);
        let trailer = Trailer::decode(&bytes[bytes.len() - TRAILER_BYTES..]).unwrap();
        let start = bytes.len() - TRAILER_BYTES - trailer.footer_bytes as usize;
        let mut lie = bytes[..bytes.len() - TRAILER_BYTES].to_vec();
        let at = start + at.index(lie.len() - start);
        lie[at] = to;
        let trailer = encode_trailer(&lie[start..], VERSION);
        lie.extend_from_slice(&trailer);
        if let Ok(footer) = Footer::of_object(&lie) {
            let _ = footer.verify_body(&lie);
        }
    }
}

#[test]
fn the_format_never_changes_unnoticed() {
    // Written down when version 1 was fixed.
    let (bytes, _) = object(&[(1, 0, 0, 10), (1, 0, 0, 3000), (2, 5, 1, 100)]);
    assert_eq!((bytes.len(), crc32c(&bytes)), FIXED);
    let mut newer = bytes;
    let at = newer.len() - TRAILER_BYTES;
    newer[at + 8] = 3;
    let crc = crc32c(&newer[at..at + 12]);
    newer[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Footer::of_object(&newer), Err(FormatError::Version(3)));
}
const FIXED: (usize, u32) = (3468, 1_465_561_772);

#[test]
fn large_batches_are_not_copied_and_small_ones_share_slices() {
    let mut builder = ObjectBuilder::new(String::new(), ObjectId(1), 0);
    let large = batch(1, 100_000);
    let small = batch(2, 20);
    for offset in 0..3 {
        builder.push(key(1, 0), &large, &BatchHeader::parse(&large).unwrap(), offset, 0);
    }
    for offset in 3..1000 {
        builder.push(key(1, 0), &small, &BatchHeader::parse(&small).unwrap(), offset, 0);
    }
    let (parts, _) = builder.finish();
    let within = |part: &&Bytes| large.as_ptr_range().contains(&part.as_ptr());
    assert_eq!(parts.iter().filter(within).count(), 3);
    assert!(parts.len() < 3 + 3 + 2 + 5, "{}", parts.len());
}

#[test]
fn keys_are_spread_and_read_back() {
    let keys: Vec<String> = (0..1000).map(|n| object_key(ObjectId(n))).collect();
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(parse_object_key(key), Some(ObjectId(n as u64)));
        assert_eq!(parse_object_key(&format!("some/prefix/{key}")), Some(ObjectId(n as u64)));
    }
    let dirs: std::collections::BTreeSet<&str> = keys.iter().map(|key| &key[..7]).collect();
    assert!(dirs.len() > 200, "{}", dirs.len());
    for no_key in ["", "data", "data/00/x", "data/00/00000000000000000001", "data/zz/1"] {
        let parsed = parse_object_key(no_key);
        assert!(parsed.is_none() || no_key == object_key(ObjectId(1)), "{no_key}");
    }
}
