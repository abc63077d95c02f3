use std::sync::Arc;

use isobar_metadata::ids::{ObjectId, StoreId, TopicId};
use isobar_metadata::record::{EpochStart, ObjectLocation};
use isobar_metadata::{Extents, Location, Pointers};
use proptest::prelude::*;

use super::*;

const STORE: StoreId = StoreId(1);

fn extent(base_offset: i64, last_offset: i64, size_bytes: u64, max_timestamp_ms: i64) -> Extent {
    Extent {
        base_offset,
        last_offset,
        max_timestamp_ms,
        append_time_ms: -1,
        size_bytes,
        location: Some(Location::Object(ObjectLocation::new(ObjectId(1), 0, size_bytes as u32))),
    }
}

/// Extents of ten offsets each; the first `indexed` behind one pointer.
fn view(pieces: &[(u64, i64)], indexed: usize) -> (PartitionView, Vec<Extent>) {
    let all: Vec<Extent> = pieces
        .iter()
        .enumerate()
        .map(|(n, (size, time))| extent(n as i64 * 10, n as i64 * 10 + 9, *size, *time))
        .collect();
    let (below, listed) = all.split_at(indexed);
    let listed: Extents = listed.iter().map(|extent| (extent.base_offset, extent.clone())).collect();
    let mut pointers = Pointers::new();
    if let (Some(first), Some(last)) = (below.first(), below.last()) {
        let pointer = IndexPointer {
            base_offset: first.base_offset,
            last_offset: last.last_offset,
            extents: below.len() as u32,
            bytes: below.iter().map(|extent| extent.size_bytes).sum(),
            max_timestamp_ms: below.iter().map(|extent| extent.max_timestamp_ms).max().unwrap(),
            ..IndexPointer::default()
        };
        pointers.insert(pointer.base_offset, pointer);
    }
    let view = PartitionView {
        topic_id: TopicId::default(),
        partition: 0,
        log_start: 0,
        high_watermark: pieces.len() as i64 * 10,
        last_stable_offset: pieces.len() as i64 * 10,
        epochs: Arc::new([EpochStart { leader_epoch: 0, start_offset: 0 }]),
        wal: Extents::new(),
        stores: [(STORE, listed)].into_iter().collect(),
        indexed: [(STORE, pointers)].into_iter().collect(),
        wal_bytes: 0,
    };
    (view, below.to_vec())
}

fn run(view: &PartitionView, below: &[Extent], policy: Policy, now_ms: i64) -> Option<i64> {
    let mut walk = Walk::new(view, policy, now_ms);
    let written = |_: &Extent| 5_000;
    loop {
        match walk.step(&written) {
            Step::Done(log_start) => return log_start,
            Step::Open(_) => {
                if !walk.opened(below, &written) {
                    return walk.end();
                }
            }
        }
    }
}

fn policy(retention_ms: i64, retention_bytes: i64) -> Policy {
    Policy { retention_ms, retention_bytes }
}

#[test]
fn by_time_the_first_that_stays_ends_it() {
    let (view, _) = view(&[(5, 1_000), (5, 3_000), (5, 2_000), (5, 9_000)], 0);
    assert_eq!(run(&view, &[], policy(1_000, -1), 2_000), None);
    assert_eq!(run(&view, &[], policy(1_000, -1), 2_001), Some(10));
    // The third is old enough, and behind one that is not.
    assert_eq!(run(&view, &[], policy(1_000, -1), 3_500), Some(10));
    assert_eq!(run(&view, &[], policy(1_000, -1), 4_001), Some(30));
    assert_eq!(run(&view, &[], policy(0, -1), 10_000), Some(40));
    assert_eq!(run(&view, &[], policy(-1, -1), i64::MAX), None);
}

#[test]
fn by_bytes_the_log_keeps_as_many() {
    let (view, _) = view(&[(10, 0), (10, 0), (10, 0)], 0);
    let cases = [(0, Some(30)), (1, Some(20)), (10, Some(20)), (11, Some(10)), (20, Some(10)), (21, None)];
    for (bytes, expected) in cases {
        assert_eq!(run(&view, &[], policy(-1, bytes), 0), expected, "{bytes}");
    }
}

#[test]
fn without_a_timestamp_an_extent_is_as_old_as_its_object() {
    let (view, below) = view(&[(10, -1), (10, -1)], 1);
    assert_eq!(run(&view, &below, policy(1_000, -1), 6_000), None);
    assert_eq!(run(&view, &below, policy(1_000, -1), 6_001), Some(20));
}

proptest! {
    /// An indexed stretch makes no difference, whole extents go, and only as the rules say.
    #[test]
    fn what_goes_is_the_same_indexed_or_not(
        pieces in prop::collection::vec((1_u64..50, 0_i64..100), 1..12),
        indexed in 0_usize..12,
        retention_ms in -1_i64..60,
        retention_bytes in -1_i64..200,
        now_ms in 0_i64..200,
        start in 0_i64..40,
    ) {
        let policy = policy(retention_ms, retention_bytes);
        let (mut plain, _) = view(&pieces, 0);
        let (mut with_index, below) = view(&pieces, indexed.min(pieces.len()));
        let start = start.min(plain.high_watermark);
        plain.log_start = start;
        with_index.log_start = start;
        let expected = run(&plain, &[], policy, now_ms);
        if retention_bytes < 0 || start == 0 {
            // (A pointer that the log start cuts counts whole, as the extent would that it cuts.)
            prop_assert_eq!(run(&with_index, &below, policy, now_ms), expected);
        }
        let log_start = expected.unwrap_or(start);
        prop_assert!(expected.is_none_or(|log_start| log_start % 10 == 0 && log_start > start));
        let kept = &pieces[((log_start / 10) as usize).min(pieces.len())..];
        let left: i64 = kept.iter().map(|(bytes, _)| *bytes as i64).sum();
        let old = |time: i64| retention_ms >= 0 && now_ms - time > retention_ms;
        let gone = &pieces[(start / 10) as usize..((log_start / 10) as usize).max((start / 10) as usize)];
        if expected.is_some() && !gone.iter().all(|(_, time)| old(*time)) {
            // Something went that was not old: for that, enough had to be left when it did.
            prop_assert!(retention_bytes >= 0);
            if retention_ms < 0 {
                prop_assert!(left >= retention_bytes);
            }
        }
        if let Some((bytes, time)) = kept.first() {
            prop_assert!(!old(*time));
            prop_assert!(retention_bytes < 0 || left - (*bytes as i64) < retention_bytes);
        }
    }
}
