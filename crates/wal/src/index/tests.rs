use proptest::prelude::*;

use super::*;
use crate::conformance::{committed, effects, released, stream_changed};

const STREAM: StreamId = StreamId(5);

fn directory() -> DirectoryId {
    DirectoryId::from([1; 16])
}

fn place(n: u64, segment: u64) -> Place {
    Place { position: n * 4096, segment, bytes: 4096 }
}

#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    Written,
    Commit(u8, bool),
    Release(prop::sample::Index),
    Rotate,
}

fn arb_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..3_u8).prop_map(Step::Append),
        3 => Just(Step::Written),
        3 => (0..3_u8, prop::bool::weighted(0.8)).prop_map(|(stream, extents)| Step::Commit(stream, extents)),
        3 => any::<prop::sample::Index>().prop_map(Step::Release),
        1 => Just(Step::Rotate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Streams that live as they should, against the plainest model there is.
    #[test]
    fn keeps_what_is_needed_and_frees_each_segment_once(steps in proptest::collection::vec(arb_step(), 1..200)) {
        let mut index = Index::new(directory());
        let mut next = [0_u64; 3];
        let mut next_commit = [0_u64; 3];
        let mut pending: Vec<ChunkId> = Vec::new();
        let mut written: BTreeMap<ChunkId, u64> = BTreeMap::new(); // durable and needed, with segment
        let mut named: Vec<ChunkId> = Vec::new();
        let mut segment = 0;
        let mut freed = BTreeSet::new();
        let mut n = 0;
        for step in steps {
            match step {
                Step::Append(stream) => {
                    let id = (StreamId(u64::from(stream)), next[usize::from(stream)]);
                    prop_assert_eq!(index.check(id), Ok(()));
                    let gap = Err(WalError::Gap { expected: id.1 });
                    prop_assert_eq!(index.check((id.0, id.1 + 1)), gap);
                    index.begin(id);
                    next[usize::from(stream)] += 1;
                    pending.push(id);
                }
                Step::Written if !pending.is_empty() => {
                    let id = pending.remove(0);
                    n += 1;
                    prop_assert_eq!(index.written(id, place(n, segment)), Ok(()));
                    written.insert(id, segment);
                }
                Step::Commit(stream, extents) => {
                    let id = (StreamId(u64::from(stream)), next_commit[usize::from(stream)]);
                    if written.contains_key(&id) {
                        next_commit[usize::from(stream)] += 1;
                        let dropped = index.follow(&effects(vec![committed(id.0, id.1, u32::from(extents))]));
                        if extents {
                            prop_assert_eq!(dropped, vec![]);
                            named.push(id);
                        } else {
                            prop_assert_eq!(dropped, vec![id]);
                            written.remove(&id);
                        }
                    }
                }
                Step::Release(which) if !named.is_empty() => {
                    let id = named.remove(which.index(named.len()));
                    prop_assert_eq!(index.follow(&effects(vec![released(id.0, &[id.1])])), vec![id]);
                    written.remove(&id);
                }
                Step::Rotate => segment += 1,
                Step::Written | Step::Release(_) => {}
            }
            for free in index.take_free_segments() {
                prop_assert!(freed.insert(free), "segment {} freed twice", free);
                prop_assert!(free < segment);
            }
            for (id, segment) in &written {
                prop_assert_eq!(index.place(*id).map(|place| place.segment), Some(*segment));
                prop_assert!(!freed.contains(segment), "segment {} is in use", segment);
            }
            prop_assert_eq!(index.live().0, written.len() as u64);
        }
    }
}

#[test]
fn every_empty_segment_is_given_back_once_the_log_has_gone_on() {
    let mut index = Index::new(directory());
    for number in 0..4 {
        index.begin((STREAM, number));
        index.written((STREAM, number), place(number, number / 2)).unwrap();
    }
    index.follow(&effects(vec![committed(STREAM, 0, 1), committed(STREAM, 1, 1), released(STREAM, &[0])]));
    assert!(index.take_free_segments().is_empty());
    index.follow(&effects(vec![released(STREAM, &[1])]));
    assert_eq!(index.take_free_segments(), [0]);
    index.follow(&effects(vec![committed(STREAM, 2, 0), committed(STREAM, 3, 0)]));
    assert!(index.take_free_segments().is_empty(), "segment 1 is still written to");
    index.begin((STREAM, 4));
    index.written((STREAM, 4), place(9, 2)).unwrap();
    assert_eq!(index.take_free_segments(), [1]);
    assert!(index.take_free_segments().is_empty());
}

#[test]
fn what_is_dropped_before_it_is_durable_leaves_nothing() {
    let mut index = Index::new(directory());
    index.begin((STREAM, 0));
    index.begin((STREAM, 1));
    let closed = index.follow(&effects(vec![stream_changed(STREAM, directory(), true)]));
    assert_eq!(closed, [(STREAM, 0), (STREAM, 1)]);
    index.written((STREAM, 0), place(0, 0)).unwrap();
    index.refused((STREAM, 1), false);
    assert_eq!(index.live(), (0, 0));
    index.begin((StreamId(6), 0));
    index.written((StreamId(6), 0), place(1, 1)).unwrap();
    assert_eq!(index.take_free_segments(), [0]);
}

#[test]
fn a_refused_chunk_takes_those_behind_it_along_and_its_number_comes_again() {
    let mut index = Index::new(directory());
    for number in 0..4 {
        index.begin((STREAM, number));
    }
    index.written((STREAM, 0), place(0, 0)).unwrap();
    index.refused((STREAM, 1), true);
    assert_eq!(index.check((STREAM, 4)), Err(WalError::Full));
    assert_eq!(index.written((STREAM, 2), place(1, 0)), Err(WalError::Full));
    index.refused((STREAM, 3), true);
    assert_eq!(index.check((STREAM, 1)), Ok(()));
    assert_eq!(index.live().0, 1);
    index.begin((STREAM, 1));
    index.written((STREAM, 1), place(2, 0)).unwrap();
    assert_eq!(index.check((STREAM, 2)), Ok(()));
    // The frame of the refused 2 is on disk; at the next start the later one counts.
    let mut again = Index::new(directory());
    again.recovered((STREAM, 2), place(1, 0));
    again.recovered((STREAM, 2), place(3, 1));
    assert_eq!(again.place((STREAM, 2)), Some(place(3, 1)));
    assert_eq!(again.live().0, 1);
    assert_eq!(again.take_free_segments(), [0]);
}

#[test]
fn forgotten_streams_stay_closed_however_many() {
    let mut index = Index::new(directory());
    let forget = |stream| {
        let forgotten = isobar_metadata::effect::StreamForgotten { stream };
        effects(vec![stream_changed(stream, directory(), true), EffectKind::StreamForgotten(forgotten)])
    };
    for stream in 1..=3000 {
        index.follow(&forget(StreamId(stream)));
    }
    assert!(index.forgotten.len() <= FORGOTTEN_MAX && index.streams.is_empty());
    for stream in [1, 1000, 3000] {
        assert_eq!(index.check((StreamId(stream), 0)), Err(WalError::Closed));
    }
    assert_eq!(index.check((StreamId(3001), 0)), Ok(()));
}

#[test]
fn a_stream_that_is_newer_than_the_image_is_not_forgotten_and_an_older_one_that_nobody_knows_is() {
    let format = isobar_metadata::record::ClusterFormat::dev("test".to_owned(), "store".to_owned());
    let image = isobar_metadata::StateMachine::new(format).image();
    let mut index = Index::new(directory());
    index.recovered((StreamId(3), 0), place(0, 0));
    index.begin((StreamId(9), 0));
    index.written((StreamId(9), 0), place(1, 0)).unwrap();
    assert_eq!(index.reconcile(&image), [(StreamId(3), 0)]);
    assert!(index.holds((StreamId(9), 0)));
    // Metadata tells of a stream elsewhere: what it passed by was opened elsewhere too, or is forgotten.
    index.follow(&effects(vec![stream_changed(StreamId(11), DirectoryId::from([2; 16]), false)]));
    assert_eq!(index.check((StreamId(10), 0)), Err(WalError::Closed));
    assert_eq!(index.check((StreamId(11), 0)), Err(WalError::Closed));
    assert_eq!(index.check((StreamId(9), 1)), Ok(()));
    assert_eq!(index.check((StreamId(12), 0)), Ok(()));
    // Effects were missed, and the image that came instead does not know it any more.
    assert_eq!(index.reconcile(&image), [(StreamId(9), 0)]);
}

/// The others of the ensemble may be a write quorum without this replica, and metadata may have gone on.
#[test]
fn what_comes_after_its_commit_is_named_and_what_comes_after_its_release_is_garbage() {
    let mut index = Index::new(directory());
    index.follow(&effects(vec![stream_changed(STREAM, directory(), false)]));
    let commits = vec![committed(STREAM, 0, 1), committed(STREAM, 2, 1), committed(STREAM, 3, 1)];
    index.follow(&effects(commits));
    index.follow(&effects(vec![released(STREAM, &[2])]));
    for number in 0..5 {
        index.begin((STREAM, number));
    }
    // The last is refused for want of room, and comes again.
    for number in 0..3 {
        index.written((STREAM, number), place(number, 0)).unwrap();
    }
    index.refused((STREAM, 3), true);
    index.refused((STREAM, 4), true);
    for number in 3..5 {
        assert_eq!(index.check((STREAM, number)), Ok(()));
        index.begin((STREAM, number));
        index.written((STREAM, number), place(number, 0)).unwrap();
    }
    // 1 was passed by, 2 was released.
    let held = |index: &Index| (0..5).filter(|number| index.holds((STREAM, *number))).collect::<Vec<_>>();
    assert_eq!(held(&index), [0, 3, 4]);
    let dropped = index.follow(&effects(vec![stream_changed(STREAM, directory(), true)]));
    assert_eq!(dropped, [(STREAM, 4)], "no commit has named it");
    assert_eq!(held(&index), [0, 3]);
}

#[test]
fn a_chunk_that_is_filled_in_goes_with_its_release_whenever_that_comes_and_leaves_nothing() {
    let at = |index: u64, batch: EffectBatch| EffectBatch { index, ..batch };
    let mut index = Index::new(directory());
    index.follow(&at(10, effects(vec![])));
    // By an image older than what was followed it might be released already.
    assert!(!index.begin_filling((STREAM, 3), 9));
    assert!(!index.holds((STREAM, 3)));

    for number in [3, 4, 7, 8] {
        assert!(index.begin_filling((STREAM, number), 10));
    }
    index.written((STREAM, 3), place(1, 0)).unwrap();
    assert_eq!(index.check((STREAM, 9)), Err(WalError::Closed), "its writer is gone");
    // One that could not be written may come again.
    index.not_filled((STREAM, 4));
    assert!(!index.holds((STREAM, 4)));
    assert!(index.begin_filling((STREAM, 4), 10));
    index.written((STREAM, 4), place(2, 0)).unwrap();
    // Released before it is durable, and not written in the end.
    assert_eq!(index.follow(&at(11, effects(vec![released(STREAM, &[7, 8])]))), [(STREAM, 7), (STREAM, 8)]);
    index.written((STREAM, 7), place(3, 0)).unwrap();
    index.not_filled((STREAM, 8));
    assert_eq!(index.live().0, 2);
    // Being named by the ensemble drops nothing of it.
    assert_eq!(index.follow(&at(12, effects(vec![stream_changed(STREAM, directory(), true)]))), []);
    assert_eq!(index.follow(&at(13, effects(vec![released(STREAM, &[3])]))), [(STREAM, 3)]);
    let forgotten = EffectKind::StreamForgotten(isobar_metadata::effect::StreamForgotten { stream: STREAM });
    assert_eq!(index.follow(&at(14, effects(vec![forgotten]))), [(STREAM, 4)]);
    assert_eq!(index.live(), (0, 0));
    index.begin((StreamId(6), 0));
    index.written((StreamId(6), 0), place(4, 1)).unwrap();
    assert_eq!(index.take_free_segments(), [0]);
}
