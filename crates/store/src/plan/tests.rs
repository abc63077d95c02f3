use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_metadata::Extents;
use isobar_metadata::ids::{ObjectId, StreamId};
use isobar_metadata::record::{EpochStart, ObjectLocation, WalLocation};
use isobar_wal::conformance::key;
use proptest::prelude::*;

use super::*;

const STORE: StoreId = StoreId(1);

fn view(partition: i32, log_start: i64, extents: &[Extent], stored: &[Extent]) -> PartitionView {
    let by_offset =
        |list: &[Extent]| list.iter().map(|extent| (extent.base_offset, extent.clone())).collect::<Extents>();
    let wal = by_offset(extents);
    let end = extents.iter().chain(stored).map(Extent::end_offset).max().unwrap_or(0);
    let mut view = PartitionView {
        topic_id: key(1, 0).topic_id,
        partition,
        log_start,
        high_watermark: end,
        last_stable_offset: end,
        epochs: Arc::new([EpochStart { leader_epoch: 0, start_offset: 0 }]),
        wal_bytes: wal.values().map(|extent| extent.size_bytes).sum(),
        wal,
        stores: Default::default(),
        indexed: Default::default(),
    };
    view.stores.insert(STORE, by_offset(stored));
    view
}

fn extent(base_offset: i64, count: i64, stream: u64, chunk: u64, size_bytes: u64) -> Extent {
    let wal = WalLocation { stream: StreamId(stream), chunk, first_batch: 0, batches: 1 };
    Extent {
        base_offset,
        last_offset: base_offset + count - 1,
        max_timestamp_ms: 0,
        append_time_ms: -1,
        size_bytes,
        location: Some(Location::Wal(wal)),
    }
}

fn stored(base_offset: i64, count: i64) -> Extent {
    let object = ObjectLocation::new(ObjectId(1), 0, 1);
    Extent { location: Some(Location::Object(object)), ..extent(base_offset, count, 0, 0, 1) }
}

fn limits(max_bytes: u64, max_runs: usize) -> Limits {
    Limits { max_bytes, max_runs }
}

fn offsets(runs: &[PlannedRun]) -> Vec<(i32, i64, i64)> {
    runs.iter().map(|run| (run.key.partition, run.base_offset(), run.end_offset())).collect()
}

fn chosen(views: &[PartitionView], limits: Limits) -> Vec<(i32, i64, i64)> {
    let candidates: Vec<_> = views.iter().map(|view| Candidate { view, from: 0 }).collect();
    offsets(&plan(&candidates, STORE, limits).runs)
}

#[test]
fn takes_all_in_contiguous_runs() {
    let views = [
        view(1, 0, &[extent(0, 5, 1, 0, 10), extent(5, 5, 1, 1, 10), extent(10, 1, 2, 0, 10)], &[]),
        // Another uploader has stored the middle.
        view(
            0,
            0,
            &[extent(0, 2, 1, 0, 10), extent(2, 2, 1, 1, 10), extent(4, 2, 1, 2, 10)],
            &[stored(2, 2)],
        ),
    ];
    assert_eq!(chosen(&views, limits(1000, 10)), [(0, 0, 2), (0, 4, 6), (1, 0, 11)]);
}

#[test]
fn leaves_alone_what_is_on_its_way_stored_or_out_of_the_log() {
    let extents = [extent(0, 5, 1, 0, 10), extent(5, 5, 1, 1, 10), extent(10, 5, 1, 2, 10)];
    let view_at = |log_start| view(0, log_start, &extents, &[]);
    let planned = |view: &PartitionView, from| {
        offsets(&plan(&[Candidate { view, from }], STORE, limits(1000, 10)).runs)
    };
    assert_eq!(planned(&view_at(0), 5), [(0, 5, 15)]);
    assert_eq!(planned(&view_at(7), 0), [(0, 5, 15)]);
    assert_eq!(planned(&view_at(15), 0), []);
    assert_eq!(planned(&view_at(0), 15), []);
    // Stored from the log start on, though not from the extent's first offset.
    assert_eq!(planned(&view(0, 2, &extents[..1], &[stored(2, 3)]), 0), []);
}

#[test]
fn the_oldest_chunks_go_first() {
    let views = [
        view(0, 0, &[extent(0, 1, 1, 5, 10), extent(1, 1, 1, 9, 10)], &[]),
        view(1, 0, &[extent(0, 1, 1, 4, 10), extent(1, 1, 1, 6, 10)], &[]),
        view(2, 0, &[extent(0, 1, 2, 0, 10)], &[]),
    ];
    assert_eq!(chosen(&views, limits(30, 10)), [(0, 0, 1), (1, 0, 2)]);
    assert_eq!(
        chosen(&views, limits(30, 1)),
        [(1, 0, 2)],
        "a run that began may go on though no other may begin"
    );
}

#[test]
fn one_extent_above_the_limit_goes_alone() {
    let views = [view(0, 0, &[extent(0, 1, 1, 0, 500), extent(1, 1, 1, 1, 10)], &[])];
    assert_eq!(chosen(&views, limits(100, 10)), [(0, 0, 1)]);
}

fn arb_views() -> impl Strategy<Value = Vec<PartitionView>> {
    let one = (0..30_i64, proptest::collection::vec((1..4_i64, 1..200_u64, any::<bool>(), 0..4_u8), 0..20));
    proptest::collection::vec(one, 0..6).prop_map(|partitions| {
        let mut chunk = 0;
        partitions
            .into_iter()
            .enumerate()
            .map(|(partition, (log_start, list))| {
                let (mut next, mut extents, mut in_store) = (0, Vec::new(), Vec::new());
                for (count, bytes, also_stored, gap) in list {
                    // A gap: swapped out by somebody before.
                    next += i64::from(gap == 0);
                    extents.push(extent(next, count, 1 + chunk % 2, chunk, bytes));
                    if also_stored {
                        in_store.push(stored(next, count));
                    }
                    chunk += 1;
                    next += count;
                }
                view(partition as i32, log_start.min(next), &extents, &in_store)
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn runs_are_contiguous_due_and_within_the_limits(views in arb_views(), max_bytes in 1..1000_u64, max_runs in 1..8_usize) {
        let candidates: Vec<_> = views.iter().map(|view| Candidate { view, from: 0 }).collect();
        let Plan { runs, is_full } = plan(&candidates, STORE, limits(max_bytes, max_runs));
        let due = |view: &PartitionView| next_due(view, STORE, 0).is_some();
        prop_assert_eq!(runs.is_empty(), !views.iter().any(due));
        prop_assert!(runs.len() <= max_runs);
        let extents: usize = runs.iter().map(|run| run.extents.len()).sum();
        let bytes: u64 = runs.iter().map(PlannedRun::size_bytes).sum();
        prop_assert!(bytes <= max_bytes || extents == 1);
        let is_due = |view: &PartitionView, extent: &Extent| {
            extent.last_offset >= view.log_start && !is_stored(view, STORE, extent)
        };
        let all_due: usize =
            views.iter().map(|view| view.wal.values().filter(|extent| is_due(view, extent)).count()).sum();
        prop_assert_eq!(is_full, extents < all_due);
        for run in &runs {
            let view = &views[run.key.partition as usize];
            let mut next = run.base_offset();
            for extent in &run.extents {
                prop_assert_eq!(extent.base_offset, next);
                prop_assert_eq!(view.wal.get(&next), Some(extent));
                prop_assert!(!is_stored(view, STORE, extent) && extent.last_offset >= view.log_start);
                next = extent.end_offset();
            }
        }
    }

    #[test]
    fn passes_that_are_committed_end_with_nothing_due(mut views in arb_views(), max_bytes in 1..500_u64, max_runs in 1..4_usize) {
        let mut passes = 0;
        loop {
            let candidates: Vec<_> = views.iter().map(|view| Candidate { view, from: 0 }).collect();
            let runs = plan(&candidates, STORE, limits(max_bytes, max_runs)).runs;
            if runs.is_empty() {
                break;
            }
            let mut seen: BTreeMap<(i32, i64), ()> = BTreeMap::new();
            for run in runs {
                let view = &mut views[run.key.partition as usize];
                for extent in run.extents {
                    prop_assert_eq!(seen.insert((run.key.partition, extent.base_offset), ()), None);
                    view.wal.remove(&extent.base_offset);
                }
            }
            passes += 1;
            prop_assert!(passes < 1000);
        }
    }
}
