//! Crashes at every disk operation, and what the next openings find.

use std::collections::BTreeSet;

use super::rig::{Rig, Rng};

/// A few rotations and recyclings with frames of one to three blocks, so that leftovers of one life end where frames of
/// the next may end too. The order in which writer and keeper get their turns comes from `rng`.
fn script(rig: &mut Rig, rng: &mut Rng, appends: u64) {
    for turn in 0..appends {
        // Half of them of one block: leftovers then often start where a new frame ends.
        rig.append(1 + rng.below(2) * rng.below(3));
        match rng.below(6) {
            0 => {}
            1 => drop(rig.keep()),
            2 | 3 => drop(rig.write()),
            _ => rig.run(),
        }
        if turn % 5 == 4 {
            rig.recycle(rng.next() as usize);
        }
    }
    rig.run();
}

/// Recovers however often the power goes while recovering; answers how often it went.
fn recover(rig: &mut Rig, rng: &mut Rng, interruptions: &[u64]) -> usize {
    let mut interrupted = 0;
    for &after in interruptions {
        rig.disk.power_off_after(after);
        if rig.open().is_ok() {
            break;
        }
        interrupted += 1;
        rig.crash(rng.next());
    }
    rig.disk.power_on();
    if rig.engine.is_none() {
        let report = rig.open().unwrap();
        assert!(report.damage.is_empty(), "{report:?}");
    }
    interrupted
}

/// One whole history: work, power cut at operation `at`, recovery, more work, and so on. Every opening checks itself.
fn history(seed: u64, at: u64, rounds: u64, interruptions: &[u64]) -> (Rig, bool) {
    let mut rng = Rng(seed);
    let mut rig = Rig::new(seed);
    rig.disk.power_off_after(at);
    let mut all_done = false;
    if rig.open().is_ok() {
        script(&mut rig, &mut rng, 50);
        all_done = rig.shared().core.lock().stopped().is_none();
        rig.check_order();
    }
    rig.crash(seed ^ at);
    for round in 0..rounds {
        recover(&mut rig, &mut rng, interruptions);
        rig.check_reads();
        let soon = [30, 120][rng.below(2) as usize];
        rig.disk.power_off_after(1 + rng.below(soon));
        script(&mut rig, &mut rng, 12);
        rig.check_order();
        match rng.below(4) {
            0 => rig.kill(),
            _ => rig.crash(seed.wrapping_mul(31) ^ at ^ (round << 32)),
        }
        // The power is back, also where only the process went.
        rig.disk.power_on();
    }
    recover(&mut rig, &mut rng, interruptions);
    rig.check_reads();
    (rig, all_done)
}

#[test]
fn a_crash_at_any_disk_operation_loses_nothing_acknowledged_and_brings_nothing_back() {
    let mut points = BTreeSet::new();
    let (mut torn, mut dropped, mut checked) = (0, 0, 0);
    for seed in 0..3 {
        for at in 1.. {
            let (rig, all_done) = history(seed, at, 2, &[]);
            points.extend(rig.points.lock().iter().copied());
            checked += rig.acknowledged_ever();
            let stats = rig.disk.stats();
            (torn, dropped) = (torn + stats.torn_pages, dropped + stats.dropped_pages);
            if all_done {
                assert!(at > 100, "the script does {at} operations only");
                break;
            }
        }
    }
    assert!(torn > 300 && dropped > 100 && checked > 10_000, "{torn} {dropped} {checked}");
    for point in [
        "journal.write",
        "journal.written",
        "journal.synced",
        "journal.rotated",
        "journal.claim",
        "journal.claimed",
        "journal.prepare",
        "journal.prepare.filled",
        "journal.prepare.header",
        "journal.prepare.named",
        "journal.prepared",
        "journal.recycle",
        "journal.recycle.renamed",
        "journal.recycled",
        "journal.recover.read",
        "journal.recover.settled",
        "journal.recover.named",
    ] {
        assert!(points.contains(point), "{point} was never passed");
    }
}

#[test]
fn crashes_while_recovering_change_nothing() {
    let mut interrupted = 0;
    for at in (20..200).step_by(9) {
        for after in 1..40 {
            let mut rng = Rng(at);
            let mut rig = Rig::new(at);
            rig.disk.power_off_after(at);
            rig.open().unwrap();
            script(&mut rig, &mut rng, 25);
            rig.crash(after);
            let count = recover(&mut rig, &mut rng, &[after, after, 1 + after / 2]);
            interrupted += count;
            rig.check_reads();
            script(&mut rig, &mut rng, 5);
            rig.crash(after);
            recover(&mut rig, &mut rng, &[]);
            if count == 0 {
                break;
            }
        }
    }
    assert!(interrupted > 300, "{interrupted}");
}

#[test]
fn long_random_histories() {
    for seed in 1000..1150 {
        let mut rng = Rng(seed);
        let interruptions: Vec<u64> = (0..rng.below(3)).map(|_| 1 + rng.below(30)).collect();
        history(seed, 1 + rng.below(400), 6, &interruptions);
    }
}
