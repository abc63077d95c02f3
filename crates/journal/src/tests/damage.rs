//! Bits that flip in what was synced, and ends that tear.

use super::rig::{BLOCK, Rig};
use crate::*;

/// Three segments' worth of frames, each synced on its own, so that all but the last are below the synced position.
fn filled(seed: u64) -> (Rig, Vec<(u64, Written)>) {
    let mut rig = Rig::new(seed);
    rig.open().unwrap();
    for turn in 0..20 {
        rig.append_and_run(1 + turn % 3).unwrap();
    }
    let acknowledged = rig.acknowledged();
    assert!(acknowledged.last().unwrap().1.segment >= 3);
    (rig, acknowledged)
}

fn damage_of(error: JournalError) -> Vec<Damage> {
    match error {
        JournalError::Damaged { damage } => damage,
        other => panic!("{other}"),
    }
}

#[test]
fn a_flipped_bit_below_the_synced_position_is_reported_with_file_and_offset() {
    let count = filled(0).1.len();
    for index in 0..count - 1 {
        // In the header's stamp, its CRC, a section, the table, the meta.
        for within in [17, 61, 64 + 30, 900, 2100, 3700] {
            let (mut rig, acknowledged) = filled(index as u64);
            let (number, written) = acknowledged[index];
            let (path, offset) = (rig.segment_path(written), rig.offset_of(written));
            rig.kill();
            rig.flip(&path, offset + within);
            let damage = damage_of(rig.open().unwrap_err());
            assert_eq!(damage.len(), 1, "{damage:?}");
            assert_eq!((&damage[0].path, damage[0].segment), (&path, Some(written.segment)));
            assert!(
                (damage[0].from..damage[0].to).contains(&(offset + within)),
                "{damage:?} {offset} {within}"
            );
            assert_eq!(damage[0].from, offset);

            // Asked to, it goes on with all the others, and says so at each opening.
            rig.options.allow_quarantine = true;
            rig.damage_expected = true;
            for _ in 0..2 {
                let report = rig.open().unwrap();
                assert_eq!((&report.damage, report.frames), (&damage, count as u64 - 1));
                assert!(!rig.acknowledged().iter().any(|(n, _)| *n == number));
                rig.check_reads();
                rig.kill();
            }
            rig.open().unwrap();
            rig.append_and_run(1).unwrap();
            rig.close();
        }
    }
}

#[test]
fn the_end_of_a_segment_that_was_left_is_not_guessed() {
    // The last frame before a seal, the seal itself, and both.
    for flips in [&[0][..], &[1], &[0, 1]] {
        let (mut rig, acknowledged) = filled(1);
        let last = acknowledged.iter().rev().find(|(_, written)| written.segment == 1).unwrap().1;
        let (path, offset) = (rig.segment_path(last), rig.offset_of(last));
        let seal = offset + u64::from(last.len);
        rig.kill();
        for flip in flips {
            rig.flip(&path, [offset, seal][*flip as usize] + 20);
        }
        let damage = damage_of(rig.open().unwrap_err());
        assert_eq!(damage[0].from, [offset, seal][flips[0] as usize]);
    }
}

#[test]
fn a_file_cut_behind_its_last_frame_is_left_with_a_seal_all_the_same() {
    let (mut rig, acknowledged) = filled(3);
    let (path, last) = (rig.segment_path(acknowledged.last().unwrap().1), acknowledged.last().unwrap().1);
    let end = rig.offset_of(last) + u64::from(last.len);
    rig.kill();
    rig.shorten(&path, end);
    // Prepared ones would keep the place free.
    for name in isobar_host::Disk::list(&rig.disk, &rig.dir).unwrap() {
        let id = name.split_once('-').and_then(|(id, _)| u64::from_str_radix(id, 16).ok());
        if id.is_some_and(|id| id > last.segment) {
            isobar_host::Disk::remove(&rig.disk, &rig.dir.join(name)).unwrap();
        }
    }
    // The file is not of the length that its header says.
    rig.options.allow_quarantine = true;
    rig.damage_expected = true;
    rig.open().unwrap();
    rig.append_and_run(1).unwrap();
    rig.append_and_run(3).unwrap();
    let acknowledged = rig.acknowledged();
    rig.kill();
    rig.open().unwrap();
    assert_eq!(rig.acknowledged(), acknowledged);
    rig.check_reads();
    rig.close();
}

#[test]
fn damage_is_found_also_when_the_next_segment_is_long_gone() {
    let (mut rig, acknowledged) = filled(1);
    let last = acknowledged.iter().rev().find(|(_, written)| written.segment == 1).unwrap().1;
    let (path, offset) = (rig.segment_path(last), rig.offset_of(last));
    rig.recycle(1);
    rig.run();
    rig.kill();
    rig.flip(&path, offset + 20);
    assert_eq!(damage_of(rig.open().unwrap_err())[0].from, offset);
}

#[test]
fn an_unsynced_end_is_cut_and_the_same_end_after_a_clean_close_is_damage() {
    for clean in [false, true] {
        let (mut rig, acknowledged) = filled(2);
        let last = acknowledged.last().unwrap().1;
        let (path, offset) = (rig.segment_path(last), rig.offset_of(last));
        if clean {
            rig.close();
        } else {
            rig.kill();
        }
        rig.flip(&path, offset + 100);
        rig.damage_expected = true;
        match rig.open() {
            Ok(report) => {
                assert!(!clean);
                assert_eq!(report.frames, acknowledged.len() as u64 - 1);
                assert_eq!(report.torn, Some(Torn { path, offset, frames_dropped: 0 }));
                assert_eq!(report.end, last.position);
            }
            Err(error) => {
                assert!(clean);
                assert_eq!(damage_of(error)[0].from, offset);
            }
        }
    }
}

#[test]
fn whole_frames_behind_a_torn_one_go_with_it_and_never_come_back() {
    let mut rig = Rig::new(3);
    rig.open().unwrap();
    rig.append_and_run(1).unwrap();
    // One group of four blocks; the second frame of it is torn.
    let numbers: Vec<u64> = (0..4).map(|_| rig.append(1)).collect();
    rig.run();
    let second = rig.outcome(numbers[1]).unwrap().unwrap();
    let (path, offset) = (rig.segment_path(second), rig.offset_of(second));
    rig.kill();
    rig.flip(&path, offset + 100);
    rig.damage_expected = true;
    let report = rig.open().unwrap();
    assert_eq!((report.frames, report.torn.unwrap().frames_dropped), (2, 2));
    // A frame that ends just where the third of them starts: `open` checks that the third stays away.
    rig.append_and_run(1).unwrap();
    rig.kill();
    assert_eq!(rig.open().unwrap().frames, 3);
    rig.crash(1);
    assert_eq!(rig.open().unwrap().frames, 3);
}

#[test]
fn headers_and_the_lives_file_are_checked() {
    let (mut rig, acknowledged) = filled(4);
    let path = rig.segment_path(acknowledged[0].1);
    rig.kill();
    rig.flip(&path, 9);
    let damage = damage_of(rig.open().unwrap_err());
    assert_eq!((&damage[0].path, damage[0].from, damage[0].to), (&path, 0, BLOCK));
    rig.flip(&path, 9);

    let lives = rig.dir.join("lives");
    rig.flip(&lives, 30);
    rig.open().unwrap();
    rig.kill();
    rig.flip(&lives, 30);
    rig.flip(&lives, BLOCK + 30);
    assert_eq!(damage_of(rig.open().unwrap_err())[0].path, lives);
}

#[test]
fn a_file_cut_short_is_damage() {
    let (mut rig, acknowledged) = filled(5);
    let path = rig.segment_path(acknowledged[0].1);
    rig.kill();
    let disk: &dyn isobar_host::Disk = &rig.disk;
    let bytes = disk.read(&path).unwrap();
    disk.write_durable(&path, &bytes[..3 * BLOCK as usize]).unwrap();
    assert!(!damage_of(rig.open().unwrap_err()).is_empty());
    disk_write(&rig, &path, &[]);
    assert!(!damage_of(rig.open().unwrap_err()).is_empty());
}

/// Found by tests/fuzz.
#[test]
fn a_segment_under_an_impossible_name_is_damage_and_no_panic() {
    for name in ["0000000000000009-fffffffffffff000.seg", "ffffffffffffffff-0000000000100000.seg"] {
        let (mut rig, acknowledged) = filled(9);
        let path = rig.segment_path(acknowledged.last().unwrap().1);
        rig.kill();
        let bytes = isobar_host::Disk::read(&rig.disk, &path).unwrap();
        disk_write(&rig, &rig.dir.join(name), &bytes);
        assert!(damage_of(rig.open().unwrap_err())[0].path.ends_with(name));
    }
}

fn disk_write(rig: &Rig, path: &std::path::Path, bytes: &[u8]) {
    isobar_host::Disk::write_durable(&rig.disk, path, bytes).unwrap();
}

#[test]
fn a_read_of_damaged_bytes_is_an_error_that_names_the_place_and_others_go_on() {
    let (mut rig, acknowledged) = filled(6);
    let (_, written) = acknowledged[3];
    let (path, offset) = (rig.segment_path(written), rig.offset_of(written));
    rig.flip(&path, offset + 200);
    match rig.read(written) {
        Err(JournalError::Corrupt { path: named, offset: at, .. }) => assert_eq!((named, at), (path, offset)),
        other => panic!("{other:?}"),
    }
    rig.append_and_run(1).unwrap();
    let inside = Written { position: written.position + 8, ..written };
    assert!(matches!(rig.read(inside), Err(JournalError::NotFound { .. })));
}

#[test]
fn a_damaged_segment_is_not_used_again() {
    let (mut rig, acknowledged) = filled(7);
    let (_, written) = acknowledged[1];
    let (path, offset) = (rig.segment_path(written), rig.offset_of(written));
    rig.kill();
    rig.flip(&path, offset + 200);
    (rig.options.allow_quarantine, rig.damage_expected) = (true, true);
    rig.open().unwrap();
    assert!(rig.recycle(0));
    rig.run();
    let names = isobar_host::Disk::list(&rig.disk, &rig.dir).unwrap();
    assert!(!names.iter().any(|name| name.ends_with(".spare")), "{names:?}");
}

#[test]
fn inspect_shows_frames_seals_holes_and_the_verdict() {
    let (mut rig, acknowledged) = filled(8);
    let (_, written) = acknowledged[2];
    let (path, offset) = (rig.segment_path(written), rig.offset_of(written));
    rig.kill();
    rig.flip(&path, offset + 200);
    let before = rig.disk.stats().operations;
    let (mut frames, mut seals, mut segments, mut holes, mut verdict) = (0, 0, 0, Vec::new(), None);
    inspect(&rig.disk, &rig.dir, &mut |found| match found {
        Inspected::Segment { header_ok, .. } => segments += usize::from(header_ok),
        Inspected::Frame { frame, .. } => frames += usize::from(frame.kind() == 9),
        Inspected::Seal { .. } => seals += 1,
        Inspected::Hole { from, to, .. } => holes.push((from, to)),
        Inspected::Spare { .. } => {}
        Inspected::Done { report, synced } => verdict = Some((report, synced)),
    })
    .unwrap();
    assert!(rig.disk.stats().operations > before);
    let (report, synced) = verdict.unwrap();
    assert_eq!((frames, seals), (acknowledged.len() - 1, segments - 2), "one active, one prepared");
    assert!(holes.contains(&(offset, offset + u64::from(written.len))), "{holes:?}");
    assert_eq!(report.damage[0].from, offset);
    assert_eq!(synced, acknowledged.last().unwrap().1.position);
}
