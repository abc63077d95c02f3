use super::*;
use crate::ids::ObjectId;
use crate::record::{Location, ObjectLocation};

fn extent(base_offset: i64, count: i64) -> Extent {
    let location = ObjectLocation::new(ObjectId(base_offset as u64 / 10 + 1), 7, 100);
    Extent {
        base_offset,
        last_offset: base_offset + count - 1,
        max_timestamp_ms: 5,
        append_time_ms: -1,
        size_bytes: 100,
        location: Some(Location::Object(location)),
    }
}

fn block() -> (PartitionKey, IndexPointer, Bytes) {
    let key = PartitionKey::new(TopicId::from([3; 16]), 2);
    let bytes = IndexBlock::new(key, vec![extent(10, 10), extent(20, 5), extent(25, 1)]).to_bytes();
    let pointer = IndexPointer { base_offset: 10, last_offset: 25, extents: 3, ..IndexPointer::default() };
    (key, pointer, bytes)
}

#[test]
fn a_block_is_found_again() {
    let (key, pointer, bytes) = block();
    let block = IndexBlock::of_pointer(&bytes, key, &pointer).unwrap();
    for (offset, base) in
        [(9, None), (10, Some(10)), (19, Some(10)), (24, Some(20)), (25, Some(25)), (26, None)]
    {
        assert_eq!(block.find(offset).map(|extent| extent.base_offset), base, "{offset}");
    }
}

#[test]
fn damage_and_other_blocks_are_errors() {
    let (key, pointer, bytes) = block();
    for position in 0..bytes.len() {
        let mut damaged = bytes.to_vec();
        damaged[position] ^= 4;
        assert!(IndexBlock::from_bytes(&damaged.into()).is_err(), "byte {position}");
        assert!(IndexBlock::from_bytes(&bytes.slice(..position)).is_err(), "cut at {position}");
    }
    let other = PartitionKey::new(key.topic_id, 1);
    assert!(IndexBlock::of_pointer(&bytes, other, &pointer).is_err());
    for wrong in [
        IndexPointer { base_offset: 9, ..pointer.clone() },
        IndexPointer { last_offset: 26, ..pointer.clone() },
        IndexPointer { extents: 2, ..pointer.clone() },
    ] {
        assert!(IndexBlock::of_pointer(&bytes, key, &wrong).is_err());
    }
    let gap = IndexBlock::new(key, vec![extent(10, 9), extent(20, 5), extent(25, 1)]).to_bytes();
    assert!(IndexBlock::of_pointer(&gap, key, &pointer).is_err());
    let later = IndexBlock { version: 2, ..IndexBlock::new(key, vec![]) }.to_bytes();
    assert!(matches!(IndexBlock::from_bytes(&later), Err(MetadataError::Version { found: 2, .. })));
}

#[test]
fn the_hash_never_changes_and_sees_any_difference() {
    let extents = [extent(10, 10), extent(20, 5)];
    assert_eq!(extents_hash(&extents), FIXED_HASH);
    let mut seen = vec![extents_hash(&extents), extents_hash([]), extents_hash(&extents[..1])];
    seen.push(extents_hash(extents.iter().rev()));
    seen.push(extents_hash([&extent(10, 10), &extent(20, 6)]));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 5);
}
/// Written down when the format was fixed.
const FIXED_HASH: u64 = 16_598_837_879_026_824_439;
