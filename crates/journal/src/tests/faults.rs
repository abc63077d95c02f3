//! Failing writes and syncs, full disks, bounds.

use isobar_host::disk::{Faults, Operation};

use super::rig::{BLOCK, Rig, frame, small_options};
use crate::keeper::Round;
use crate::*;

fn opened(seed: u64) -> Rig {
    let mut rig = Rig::new(seed);
    rig.open().unwrap();
    rig.append_and_run(1).unwrap();
    rig
}

#[test]
fn a_failed_sync_or_write_stops_the_journal_for_good() {
    for operation in [Operation::Sync, Operation::Write] {
        let mut rig = opened(1);
        rig.disk.fail_next(operation, ".seg", 0);
        let numbers: Vec<u64> = (0..8).map(|_| rig.append(2)).collect();
        rig.run();
        let late = rig.append(1);
        rig.run();
        for number in numbers.iter().chain([&late]) {
            match rig.outcome(*number).unwrap() {
                Err(JournalError::Stopped { cause }) => assert!(cause.contains(".seg"), "{cause}"),
                other => panic!("{other:?}"),
            }
        }
        rig.check_reads();
        let order: Vec<u64> = rig.outcomes.lock().iter().map(|(number, _)| *number).collect();
        assert!(order.is_sorted(), "{order:?}");
    }
}

#[test]
fn what_an_opening_found_in_the_page_cache_after_a_failed_sync_is_made_durable_before_it_is_believed() {
    let mut found_unsynced = 0;
    for seed in 0..30 {
        let mut rig = opened(seed);
        rig.disk.fail_next(Operation::Sync, ".seg", 0);
        let number = rig.append(2);
        rig.run();
        assert!(rig.outcome(number).unwrap().is_err());
        // The process goes, the cache stays: the frame is there to see, clean, and not on stable storage.
        rig.kill();
        let report = rig.open().unwrap();
        found_unsynced += report.frames - 1;
        // From now on it counts as found; the rig checks that it stays.
        rig.crash(seed);
        rig.open().unwrap();
    }
    assert!(found_unsynced > 0);
}

#[test]
fn failures_of_the_keeper_stop_the_journal_too() {
    for (operation, part) in
        [(Operation::Sync, ".new"), (Operation::Directory, ".new"), (Operation::SyncDir, "journal")]
    {
        let mut rig = opened(2);
        rig.disk.fail_next(operation, part, 0);
        for _ in 0..20 {
            rig.append(2);
            rig.run();
        }
        let last = rig.append(1);
        assert!(matches!(rig.outcome(last), Some(Err(JournalError::Stopped { .. }))), "{operation:?}");
        rig.check_reads();
        rig.crash(1);
        rig.open().unwrap();
    }
}

#[test]
fn a_full_disk_refuses_keeps_serving_and_goes_on_when_there_is_space() {
    let mut rig = opened(3);
    let room = rig.disk.used_bytes() + 40 * BLOCK;
    rig.disk.set_faults(Faults { capacity_bytes: Some(room), ..Faults::default() });
    let mut refused = Vec::new();
    for _ in 0..40 {
        let number = rig.append(2);
        if let Some(Err(error)) = rig.outcome(number) {
            assert!(matches!(error, JournalError::DiskFull), "{error}");
            refused.push(number);
        }
        rig.run();
        if let Some(Err(JournalError::DiskFull)) = rig.outcome(number) {
            refused.push(number);
        }
    }
    assert!(refused.len() > 10);
    let highest_good = rig.acknowledged().last().unwrap().0;
    assert!(refused.iter().all(|number| *number > highest_good), "once refused, all are");
    assert!(rig.shared().core.lock().is_refusing());
    rig.check_reads();

    // Its own space, given back.
    assert!(rig.recycle(0));
    rig.run();
    rig.append_and_run(2).unwrap();
    // The disk's.
    while rig.append_and_run(2).is_ok() {}
    assert_eq!(rig.keep(), Round::Full);
    rig.disk.set_faults(Faults::default());
    rig.run();
    for _ in 0..20 {
        rig.append_and_run(2).unwrap();
    }
    rig.crash(3);
    rig.open().unwrap();
    rig.check_reads();
}

#[test]
fn opens_on_a_full_disk_for_reading_and_writes_when_there_is_space() {
    let mut rig = opened(4);
    rig.kill();
    let used = rig.disk.used_bytes();
    rig.disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
    rig.open().unwrap();
    rig.check_reads();
    assert!(matches!(rig.append_and_run(1), Err(JournalError::DiskFull)));
    rig.disk.set_faults(Faults::default());
    rig.run();
    rig.append_and_run(1).unwrap();
    rig.crash(4);
    assert_eq!(rig.open().unwrap().frames, 2);
}

#[test]
fn its_own_bound_is_as_a_full_disk() {
    let mut rig = Rig::new(5);
    rig.options.bytes_max = Some(48 * BLOCK);
    rig.open().unwrap();
    let refused = (0..60).filter(|_| rig.append_and_run(2).is_err()).count();
    assert!(refused > 30);
    assert!(rig.disk.used_bytes() <= 50 * BLOCK);
    assert!(rig.recycle(0));
    rig.run();
    rig.append_and_run(2).unwrap();
}

#[test]
fn a_close_on_a_full_disk_ends() {
    let mut rig = opened(6);
    let used = rig.disk.used_bytes();
    rig.disk.set_faults(Faults { capacity_bytes: Some(used), ..Faults::default() });
    for _ in 0..20 {
        rig.append(2);
    }
    rig.close();
    rig.disk.set_faults(Faults::default());
    rig.open().unwrap();
    rig.check_reads();
}

#[test]
fn bounds_are_kept() {
    let mut rig = Rig::new(7);
    rig.options.queue_bytes = 6 * BLOCK;
    rig.open().unwrap();
    let max = small_options().segment_bytes - 2 * BLOCK;
    let outcome = |rig: &Rig, number| rig.outcome(number);
    let large = rig.append(max / BLOCK);
    assert!(outcome(&rig, large).is_none(), "one is always taken");
    let more = rig.append(1);
    assert!(matches!(outcome(&rig, more), Some(Err(JournalError::QueueFull))));
    rig.run();
    assert!(outcome(&rig, large).unwrap().is_ok());
    assert!(matches!(rig.append_and_run(max / BLOCK + 1), Err(JournalError::TooLarge { .. })));
    let reserved = FrameWriter::new(isobar_host::AlignedBuf::unpooled(0)).seal(0, b"");
    assert!(matches!(rig.shared().append(reserved, Box::new(|_| {})), Err(JournalError::ReservedKind(0))));
}

#[test]
fn starts_small_grows_and_takes_a_frame_that_the_prepared_segment_cannot_hold() {
    let mut rig = Rig::new(8);
    rig.options.first_segment_bytes = 16 * BLOCK;
    rig.options.segment_bytes = 128 * BLOCK;
    rig.options.queue_bytes = 1 << 30;
    rig.open().unwrap();
    rig.append_and_run(1).unwrap();
    assert!(rig.disk.used_bytes() < 20 * BLOCK);
    for _ in 0..8 {
        rig.append_and_run(1).unwrap();
    }
    rig.append_and_run(100).unwrap();
    rig.append_and_run(126).unwrap();
    rig.check_reads();
    rig.crash(8);
    rig.open().unwrap();
    rig.check_reads();
    let capacities: Vec<u64> =
        rig.shared().segments.read().values().map(|segment| segment.identity.capacity / BLOCK).collect();
    assert!(capacities.is_sorted() && capacities.last() == Some(&128), "{capacities:?}");
}

#[test]
fn a_frame_that_lies_anywhere_in_memory_is_written_all_the_same() {
    let mut rig = opened(9);
    let sealed = frame(1000, 9000).bytes();
    let mut moved = vec![0; sealed.len() + 8];
    moved[8..].copy_from_slice(&sealed);
    let received = Frame::parse(bytes::Bytes::from(moved).slice(8..)).unwrap();
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    rig.shared().append(received, Box::new(move |outcome| tell.send(outcome).unwrap())).unwrap();
    rig.run();
    let written = told.recv().unwrap().unwrap();
    let read = rig.read(written).unwrap();
    assert_eq!(read.bytes()[64..], sealed[64..]);
}
