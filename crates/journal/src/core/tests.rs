use isobar_host::AlignedBuf;
use proptest::prelude::*;

use super::*;

const BLOCK: u64 = 4096;

fn frame(blocks: u64) -> Frame {
    let buf = AlignedBuf::unpooled((blocks * BLOCK) as usize);
    Frame::of_meta(buf, 1, &vec![0; (blocks * BLOCK) as usize - 64])
}

fn core() -> Core<u64> {
    let limits = Limits {
        group_bytes: 4 * BLOCK,
        group_frames: 3,
        queue_bytes: 20 * BLOCK,
        segment_bytes: 16 * BLOCK,
    };
    Core::new(limits, None, VecDeque::new(), (1, 0), 0)
}

#[test]
fn a_group_is_gathered_while_the_last_is_written_and_bears_what_was_synced() {
    let mut core = core();
    core.push(frame(1), 0).unwrap();
    assert!(matches!(core.step(), Step::WaitForKeeper), "no life yet");
    core.claimed(7);
    assert!(matches!(core.step(), Step::WaitForKeeper), "no segment yet");
    assert_eq!(core.wants_segment(), Some(3 * BLOCK));
    core.prepared(Identity { id: 1, base: 0, capacity: 16 * BLOCK });
    let Step::Write(first) = core.step() else { panic!() };
    assert_eq!(first.stamp_at(BLOCK), Stamp { generation: 7, position: BLOCK, synced_before: 0 });
    for number in 1..4 {
        core.push(frame(1), number).unwrap();
    }
    assert!(matches!(core.step(), Step::Wait), "one at a time");
    core.synced(&first);
    let Step::Write(second) = core.step() else { panic!() };
    assert_eq!((second.frames.len(), second.offset, second.synced_before), (3, 2 * BLOCK, 2 * BLOCK));
}

#[test]
fn stopping_answers_all_in_order_and_takes_nothing_more() {
    let mut core = core();
    for number in 0..4 {
        core.push(frame(1), number).unwrap();
    }
    core.claimed(1);
    core.prepared(Identity { id: 1, base: 0, capacity: 16 * BLOCK });
    let Step::Write(group) = core.step() else { panic!() };
    core.stop(JournalError::stopped("why"));
    assert!(matches!(core.push(frame(1), 9), Err(JournalError::Stopped { .. })));
    assert!(matches!(core.step(), Step::Wait), "behind the group in flight");
    core.synced(&group);
    let Step::Refuse(rest, JournalError::Stopped { .. }) = core.step() else { panic!() };
    assert_eq!((group.frames.len(), rest), (3, vec![3]));
    assert!(matches!(core.step(), Step::Exit));
    core.close();
    assert!(core.stopped().is_some());
}

#[test]
fn a_full_disk_refuses_what_waits_and_what_comes_until_there_is_space() {
    let mut core = core();
    core.claimed(1);
    core.prepared(Identity { id: 1, base: 0, capacity: 16 * BLOCK });
    core.out_of_space();
    core.push(frame(10), 0).unwrap();
    let Step::Write(group) = core.step() else { panic!("there is still room") };
    core.synced(&group);
    for number in 1..3 {
        core.push(frame(5), number).unwrap();
    }
    let Step::Refuse(refused, JournalError::DiskFull) = core.step() else { panic!() };
    assert_eq!(refused, [1, 2]);
    assert!(matches!(core.push(frame(1), 3), Err(JournalError::DiskFull)), "not even one that would fit");
    core.prepared(Identity { id: 2, base: 16 * BLOCK, capacity: 16 * BLOCK });
    core.push(frame(5), 4).unwrap();
    let Step::Write(seal) = core.step() else { panic!() };
    assert!(seal.seal && seal.frames.is_empty() && seal.bytes == SEAL_BYTES);
    core.synced(&seal);
    let Step::Write(group) = core.step() else { panic!() };
    assert_eq!((group.segment.id, group.frames[0].done), (2, 4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes in whatever order: frames lie behind each other, in segments, sealed, in order, within bounds.
    #[test]
    fn groups_keep_order_and_bounds(sizes in prop::collection::vec(1_u64..15, 1..80), turns in prop::collection::vec(0_u8..3, 1..200)) {
        let mut core = core();
        core.claimed(1);
        let mut sizes = sizes.into_iter().enumerate();
        let (mut expected, mut accepted) = (0, Vec::new());
        let mut end = 0;
        let mut place: Option<(Identity, u64)> = None;
        for turn in turns.into_iter().chain(std::iter::repeat_n([0, 1, 2], 300).flatten()) {
            match turn {
                0 => if let Some((number, blocks)) = sizes.next() && core.push(frame(blocks), number as u64).is_ok() {
                    accepted.push((number as u64, blocks));
                },
                1 => if core.wants_segment().is_some() {
                    let (id, base) = core.next_segment();
                    core.prepared(Identity { id, base, capacity: 17 * BLOCK });
                },
                _ => if let Step::Write(group) = core.step() {
                    prop_assert!(group.frames.len() <= 3);
                    prop_assert!(group.frames.len() <= 1 || group.bytes <= 5 * BLOCK);
                    prop_assert_eq!(group.synced_before, end);
                    match place {
                        Some((identity, at)) => prop_assert!(group.segment == identity && group.offset == at),
                        None => prop_assert_eq!(group.offset, FIRST_OFFSET),
                    }
                    let mut at = group.offset;
                    for queued in &group.frames {
                        prop_assert_eq!(queued.done, accepted[expected].0);
                        at += accepted[expected].1 * BLOCK;
                        expected += 1;
                    }
                    prop_assert!(at + SEAL_BYTES <= group.segment.capacity);
                    end = group.segment.base + group.offset + group.bytes;
                    place = (!group.seal).then_some((group.segment, group.offset + group.bytes));
                    core.synced(&group);
                },
            }
        }
        prop_assert_eq!(expected, accepted.len());
        prop_assert_eq!(core.queued_bytes(), 0);
    }
}
