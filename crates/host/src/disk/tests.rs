use std::io::{ErrorKind, IoSlice};
use std::path::Path;

use super::*;
use crate::buffer::AlignedBuf;

fn aligned(byte: u8, len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::unpooled(len);
    buf.fill(byte);
    buf
}

/// What both disks must do alike.
fn common(disk: &dyn Disk, root: &Path) {
    let dir = root.join("a/b");
    disk.create_dir_all(&dir).unwrap();
    disk.create_dir_all(&dir).unwrap();
    let path = dir.join("file");
    assert_eq!(disk.open(&path, Open::READ).err().unwrap().kind(), ErrorKind::NotFound);
    let file = disk.open(&path, Open::CREATE.direct()).unwrap();
    assert_eq!(disk.open(&path, Open::CREATE).err().unwrap().kind(), ErrorKind::AlreadyExists);
    file.allocate(3 * 4096).unwrap();
    file.allocate(4096).unwrap();
    assert_eq!(file.len().unwrap(), 3 * 4096);
    let (one, two) = (aligned(1, 4096), aligned(2, 4096));
    file.write_at(&[IoSlice::new(&one), IoSlice::new(&two)], 4096).unwrap();
    file.sync_data().unwrap();
    let mut all = AlignedBuf::unpooled(3 * 4096);
    file.read_at(&mut all[..3 * 4096], 0).unwrap();
    assert_eq!((all[0], all[4095], all[4096], all[8191], all[8192]), (0, 0, 1, 1, 2));
    assert_eq!(file.read_at(&mut all[..4096], 3 * 4096).err().unwrap().kind(), ErrorKind::UnexpectedEof);

    disk.write_durable(&dir.join("small"), b"first").unwrap();
    disk.write_durable(&dir.join("small"), b"second").unwrap();
    assert_eq!(disk.read(&dir.join("small")).unwrap(), b"second");
    assert_eq!(disk.list(&dir).unwrap(), ["file", "small"]);
    disk.rename(&path, &dir.join("moved")).unwrap();
    assert_eq!(disk.rename(&path, &dir.join("x")).err().unwrap().kind(), ErrorKind::NotFound);
    disk.link(&dir.join("small"), &root.join("a/second")).unwrap();
    assert_eq!(
        disk.link(&dir.join("moved"), &root.join("a/second")).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    assert_eq!(disk.link(&path, &dir.join("x")).unwrap_err().kind(), ErrorKind::NotFound);
    disk.remove(&dir.join("small")).unwrap();
    assert_eq!(disk.read(&root.join("a/second")).unwrap(), b"second");
    assert_eq!(disk.remove(&dir.join("small")).err().unwrap().kind(), ErrorKind::NotFound);
    disk.sync_dir(&dir).unwrap();
    assert_eq!(disk.list(&dir).unwrap(), ["moved"]);
    file.read_at(&mut all[..4096], 4096).unwrap();
    assert_eq!(all[0], 1, "a handle outlives a rename");

    let lock = disk.lock(&dir).unwrap();
    let refused = disk.lock(&dir).unwrap_err();
    assert_eq!(LockHeld::of(&refused).unwrap().dir, dir);
    assert!(LockHeld::of(&refused).unwrap().pid.is_some());
    drop(lock);
    drop(disk.lock(&dir).unwrap());
}

#[test]
fn real_disk_does_what_the_trait_says() {
    let root = tempfile::tempdir().unwrap();
    common(&RealDisk::new(), root.path());
}

#[test]
fn real_disk_writes_more_parts_than_one_call_takes() {
    let root = tempfile::tempdir().unwrap();
    let file = RealDisk::new().open(&root.path().join("f"), Open::CREATE).unwrap();
    let bytes: Vec<u8> = (0..3000_u32).map(|n| (n % 251) as u8).collect();
    let parts: Vec<_> = bytes.chunks(1).map(IoSlice::new).collect();
    file.write_at(&parts, 7).unwrap();
    let mut back = vec![0; bytes.len()];
    file.read_at(&mut back, 7).unwrap();
    assert!(back == bytes);
}

#[test]
fn real_lock_names_the_holder() {
    let root = tempfile::tempdir().unwrap();
    let disk = RealDisk::new();
    let _held = disk.lock(root.path()).unwrap();
    let refused = disk.lock(root.path()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ResourceBusy);
    let said = refused.to_string();
    assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
}

#[cfg(feature = "sim")]
mod simulated {
    use super::*;

    fn disk_with_file(seed: u64) -> (SimDisk, Box<dyn DiskFile>) {
        let disk = SimDisk::new(seed);
        disk.create_dir_all(Path::new("d")).unwrap();
        let file = disk.open(Path::new("d/f"), Open::CREATE).unwrap();
        file.allocate(16 * 4096).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(Path::new("d")).unwrap();
        (disk, file)
    }

    #[test]
    fn does_what_the_trait_says() {
        common(&SimDisk::new(1), Path::new("root"));
        common(&SimDisk::new(1), Path::new("/root"));
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_tears_the_rest_by_sector() {
        let (mut old, mut new, mut mixed) = (0, 0, 0);
        for seed in 0..50 {
            let (disk, file) = disk_with_file(0);
            file.write_at(&[IoSlice::new(&[1; 8192])], 0).unwrap();
            file.sync_data().unwrap();
            file.write_at(&[IoSlice::new(&[2; 4096])], 4096).unwrap();
            disk.crash(seed);
            assert!(file.sync_data().is_err(), "handles of before the crash are dead");
            let bytes = disk.read(Path::new("d/f")).unwrap();
            assert_eq!(bytes.len(), 16 * 4096);
            assert!(bytes[..4096].iter().all(|&byte| byte == 1));
            assert!(bytes[4096..8192].chunks(512).all(|s| s.iter().all(|&byte| byte == s[0])));
            match bytes[4096..8192].iter().filter(|&&byte| byte == 2).count() {
                0 => old += 1,
                4096 => new += 1,
                _ => mixed += 1,
            }
        }
        assert!(old > 0 && new > 0 && mixed > 0, "{old} {new} {mixed}");
    }

    #[test]
    fn names_are_durable_after_the_directory_is_synced_and_renames_are_atomic() {
        let (mut lost, mut kept, mut moved) = (0, 0, 0);
        for seed in 0..50 {
            let (disk, _file) = disk_with_file(0);
            disk.open(Path::new("d/new"), Open::CREATE).unwrap();
            disk.rename(Path::new("d/f"), Path::new("d/g")).unwrap();
            disk.crash(seed);
            let names = disk.list(Path::new("d")).unwrap();
            assert!(names.contains(&"f".into()) != names.contains(&"g".into()), "{names:?}");
            moved += usize::from(names.contains(&"g".into()));
            *(if names.contains(&"new".into()) { &mut kept } else { &mut lost }) += 1;
        }
        assert!(lost > 0 && kept > 0 && moved > 0 && moved < 50);
    }

    #[test]
    fn a_failed_sync_loses_bytes_that_reads_still_show() {
        let mut lost = 0;
        for seed in 0..20 {
            let (disk, file) = disk_with_file(seed);
            file.write_at(&[IoSlice::new(&[3; 4096])], 0).unwrap();
            disk.fail_next(Operation::Sync, "d/f", 0);
            assert!(file.sync_data().is_err());
            file.sync_data().unwrap();
            assert_eq!(disk.read(Path::new("d/f")).unwrap()[0], 3);
            disk.crash(seed);
            lost += usize::from(disk.read(Path::new("d/f")).unwrap()[0] == 0);
        }
        assert!(lost > 0 && lost < 20, "{lost}");
    }

    #[test]
    fn faults_hit_what_they_name() {
        let (disk, file) = disk_with_file(7);
        disk.fail_next(Operation::Write, "d/f", 1);
        file.write_at(&[IoSlice::new(&[1; 10])], 0).unwrap();
        assert!(file.write_at(&[IoSlice::new(&[1; 10])], 0).is_err());
        file.write_at(&[IoSlice::new(&[1; 10])], 0).unwrap();
        assert!(disk.flip_bit(Path::new("d/f"), 3, 7));
        assert!(!disk.flip_bit(Path::new("d/f"), 16 * 4096, 0));
        assert_eq!(&disk.read(Path::new("d/f")).unwrap()[..5], [1, 1, 1, 0x81, 1]);
        disk.set_faults(Faults { capacity_bytes: Some(20 * 4096), ..Faults::default() });
        file.allocate(20 * 4096).unwrap();
        assert_eq!(file.allocate(20 * 4096 + 1).unwrap_err().kind(), ErrorKind::StorageFull);
        assert_eq!(disk.used_bytes(), 20 * 4096);
        disk.set_faults(Faults { read_errors_per_million: 500_000, ..Faults::default() });
        let failed = (0..100).filter(|_| disk.read(Path::new("d/f")).is_err()).count();
        assert!(failed > 20 && failed < 100, "{failed}");
        assert!(disk.stats().errors > 20);
    }

    #[test]
    fn after_the_power_went_nothing_gets_through_until_the_crash() {
        let (disk, file) = disk_with_file(7);
        disk.power_off_after(2);
        file.write_at(&[IoSlice::new(&[1; 4096])], 0).unwrap();
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_err());
        assert!(disk.read(Path::new("d/f")).is_err());
        disk.crash(1);
        disk.read(Path::new("d/f")).unwrap();
    }

    #[test]
    fn direct_files_insist_on_alignment() {
        let (disk, _file) = disk_with_file(7);
        let file = disk.open(Path::new("d/f"), Open::READ_WRITE.direct()).unwrap();
        assert!(file.is_direct());
        let buf = aligned(9, 8192);
        assert!(file.write_at(&[IoSlice::new(&buf[..100])], 0).is_err());
        assert!(file.write_at(&[IoSlice::new(&buf[..4096])], 512).is_err());
        assert!(file.write_at(&[IoSlice::new(&buf[8..4104])], 0).is_err());
        file.write_at(&[IoSlice::new(&buf)], 4096).unwrap();
        disk.refuse_direct(true);
        assert!(!disk.open(Path::new("d/f"), Open::READ.direct()).unwrap().is_direct());
    }

    #[test]
    fn a_removed_file_gives_its_space_back() {
        let (disk, file) = disk_with_file(7);
        disk.remove(Path::new("d/f")).unwrap();
        assert_eq!(disk.used_bytes(), 16 * 4096, "still open");
        drop(file);
        disk.sync_dir(Path::new("d")).unwrap();
        assert_eq!(disk.used_bytes(), 0);
    }
}
