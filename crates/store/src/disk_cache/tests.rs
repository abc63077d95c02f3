use std::path::Path;

use super::*;
use crate::cache::tests::{Source, conforms, key};

struct Opened {
    cache: DiskCache,
    metrics: StoreMetrics,
}

/// Memory for one block of a MiB only, so that what comes again comes from the disk.
async fn open(dir: &Path, cluster: &str) -> Opened {
    open_with(dir, cluster, |_| ()).await
}

async fn open_with(dir: &Path, cluster: &str, change: impl FnOnce(&mut DiskCacheOptions)) -> Opened {
    let (host, metrics) = (Host::real(), StoreMetrics::default());
    let mut options = DiskCacheOptions::new(dir.join("cache"), 8 * SEGMENT_BYTES as u64);
    options.write_bytes_per_second = 1 << 30;
    options.reserve_bytes = 0;
    change(&mut options);
    let memory = MemoryCache::new(&host, 1 << 20, metrics.clone());
    let cache = DiskCache::start(&host, memory, cluster, options, metrics.clone());
    assert!(cache.opened().await);
    Opened { cache, metrics }
}

/// Writes out what waits; a disk that is behind skips blocks, which is not what is tested.
async fn settle(opened: &Opened) {
    opened.cache.below.disk.get().unwrap().storage().wait().await;
}

async fn fill(opened: &Opened, blocks: u32, source: &Arc<dyn BlockSource>) {
    for block in 0..blocks {
        opened.cache.get(key(block), source).await.unwrap();
        settle(opened).await;
    }
}

#[tokio::test]
async fn conforms_with_a_disk_below() {
    let dir = tempfile::tempdir().unwrap();
    let (host, metrics) = (Host::real(), StoreMetrics::default());
    let options = DiskCacheOptions::new(dir.path().join("cache"), 8 * SEGMENT_BYTES as u64);
    // The memory of the common tests, once with the disk there and once while it opens.
    for wait in [true, false] {
        let memory = MemoryCache::new(&host, 64 << 20, metrics.clone());
        let cluster = format!("c{wait}");
        let cache = DiskCache::start(&host, memory, &cluster, options.clone(), metrics.clone());
        assert!(!wait || cache.opened().await);
        conforms(&cache).await;
        cache.close().await;
    }
}

#[tokio::test]
async fn blocks_come_back_from_the_disk_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(BLOCK_BYTES as usize);
    let first = open(dir.path(), "c").await;
    fill(&first, 20, &source).await;
    assert_eq!(counts.take_loads().len(), 20);
    for block in 0..20 {
        assert_eq!(first.cache.get(key(block), &source).await.unwrap().bytes(), &counts.block(key(block)));
    }
    assert_eq!((counts.take_loads().len(), first.metrics.disk_hits.get()), (0, 20));
    first.cache.close().await;
    drop(first);
    let second = open(dir.path(), "c").await;
    // Read ahead: what the disk has comes from there, what lies between by one request.
    second.cache.prefetch(ObjectId(1), 19..20, &source);
    for block in 0..20 {
        assert_eq!(second.cache.get(key(block), &source).await.unwrap().bytes(), &counts.block(key(block)));
    }
    assert_eq!((counts.take_loads().len(), second.metrics.disk_hits.get()), (0, 20));
}

#[tokio::test]
async fn neighbours_that_the_disk_lacks_come_by_one_request() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(1000);
    let opened = open_with(dir.path(), "c", |_| ()).await;
    for block in [3, 4, 7] {
        opened.cache.get(key(block), &source).await.unwrap();
    }
    settle(&opened).await;
    opened.cache.close().await;
    drop(opened);
    counts.take_loads();
    let (host, metrics) = (Host::real(), StoreMetrics::default());
    let options = DiskCacheOptions::new(dir.path().join("cache"), 8 * SEGMENT_BYTES as u64);
    let cache =
        DiskCache::start(&host, MemoryCache::new(&host, 64 << 20, metrics.clone()), "c", options, metrics);
    assert!(cache.opened().await);
    cache.prefetch(ObjectId(1), 0..10, &source);
    for block in 0..10 {
        assert_eq!(cache.get(key(block), &source).await.unwrap().bytes(), &counts.block(key(block)));
    }
    assert_eq!(counts.take_loads(), [(0, 3), (5, 7), (8, 10)]);
}

#[tokio::test]
async fn another_clusters_blocks_are_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(1000);
    let first = open(dir.path(), "one").await;
    fill(&first, 5, &source).await;
    first.cache.close().await;
    drop(first);
    counts.take_loads();
    let second = open(dir.path(), "two").await;
    fill(&second, 5, &source).await;
    assert_eq!((counts.take_loads().len(), second.metrics.disk_hits.get()), (5, 0));
    // Even with the files left there, the keys differ.
    assert_ne!(fingerprint("one"), fingerprint("two"));
    assert_ne!(
        DiskKey { cluster: 1, object: 1, block: 1 }.crc_of(b"x"),
        DiskKey { cluster: 2, object: 1, block: 1 }.crc_of(b"x")
    );
}

/// Paths of the cache's data files.
fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let dir = dir.join("cache");
    let names = Host::real().disk().list(&dir).unwrap();
    names.iter().filter(|name| name.starts_with(FILE_PREFIX)).map(|name| dir.join(name)).collect()
}

/// Reads all blocks: each is right, and those that the disk could not give were loaded.
async fn reads_right(opened: &Opened, blocks: u32, counts: &Source, source: &Arc<dyn BlockSource>) -> usize {
    for block in 0..blocks {
        let got = opened.cache.get(key(block), source).await.unwrap();
        assert!(got.bytes() == &counts.block(key(block)), "block {block}");
        settle(opened).await;
    }
    counts.take_loads().len()
}

#[tokio::test]
async fn flipped_bits_are_counted_and_never_served() {
    const BLOCKS: u32 = 24;
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(BLOCK_BYTES as usize);
    let first = open(dir.path(), "c").await;
    fill(&first, BLOCKS, &source).await;
    first.cache.close().await;
    drop(first);
    counts.take_loads();
    // One bit in every second MiB of the files, wherever that is: index, header, key, bytes or nothing.
    let disk = Host::real().disk();
    for path in files(dir.path()) {
        let file = disk.open(&path, isobar_host::Open::READ_WRITE).unwrap();
        let mut at = 777_777;
        while at < file.len().unwrap() {
            let mut byte = [0];
            file.read_at(&mut byte, at).unwrap();
            byte[0] ^= 0x10;
            file.write_at(&[io::IoSlice::new(&byte)], at).unwrap();
            at += 2 << 20;
        }
    }
    let second = open(dir.path(), "c").await;
    let loads = reads_right(&second, BLOCKS, &counts, &source).await;
    let damaged = second.metrics.disk_damaged.get();
    assert!(damaged >= 8 && loads as u64 >= damaged, "{damaged} damaged, {loads} loaded");
    assert!(loads < BLOCKS as usize, "the others came from the disk");
    // They were stored anew.
    assert_eq!(reads_right(&second, BLOCKS, &counts, &source).await, 0);
}

#[tokio::test]
async fn our_crc_is_checked_too() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(1000);
    let opened = open(dir.path(), "c").await;
    let disk = opened.cache.below.disk.get().unwrap();
    let entry = Entry { crc: 1, bytes: Bytes::from_static(b"something else") };
    disk.storage_writer(opened.cache.below.disk_key(key(0))).insert(entry).unwrap();
    settle(&opened).await;
    assert_eq!(reads_right(&opened, 1, &counts, &source).await, 1);
    assert_eq!(opened.metrics.disk_damaged.get(), 1);
}

#[tokio::test]
async fn whatever_lies_in_the_directory_readers_are_served() {
    const BLOCKS: u32 = 20;
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(BLOCK_BYTES as usize);
    let disk = Host::real().disk();
    type Harm = Box<dyn Fn(&Path)>;
    // With the fewest blocks that must have been loaded anew.
    let harms: Vec<(&str, Harm, usize)> = vec![
        (
            "an older layout",
            Box::new(|dir| {
                Host::real().disk().write_durable(&dir.join("cache").join(MANIFEST), b"{}").unwrap();
            }),
            BLOCKS as usize,
        ),
        (
            "no manifest",
            Box::new(|dir| Host::real().disk().remove(&dir.join("cache").join(MANIFEST)).unwrap()),
            BLOCKS as usize,
        ),
        ("a file is gone", Box::new(|dir| Host::real().disk().remove(&files(dir)[0]).unwrap()), 1),
        (
            "a file is empty",
            Box::new(|dir| Host::real().disk().write_durable(&files(dir)[0], b"").unwrap()),
            1,
        ),
        (
            "files changed places",
            Box::new(|dir| {
                let (disk, files) = (Host::real().disk(), files(dir));
                disk.rename(&files[0], &files[7]).unwrap();
            }),
            0,
        ),
        (
            "noise",
            Box::new(|dir| {
                let noise: Vec<u8> = (0..SEGMENT_BYTES).map(|n| ((n * 7919) >> 5) as u8).collect();
                for path in files(dir) {
                    Host::real().disk().write_durable(&path, &noise).unwrap();
                }
            }),
            BLOCKS as usize,
        ),
        (
            "the directory is gone",
            Box::new(|dir| {
                let (disk, cache) = (Host::real().disk(), dir.join("cache"));
                for name in disk.list(&cache).unwrap() {
                    disk.remove(&cache.join(name)).unwrap();
                }
            }),
            BLOCKS as usize,
        ),
    ];
    for (what, harm, least) in harms {
        let before = open(dir.path(), "c").await;
        fill(&before, BLOCKS, &source).await;
        before.cache.close().await;
        drop(before);
        counts.take_loads();
        harm(dir.path());
        let after = open(dir.path(), "c").await;
        let loads = reads_right(&after, BLOCKS, &counts, &source).await;
        assert!(loads >= least, "{what}: {loads}");
        after.cache.close().await;
    }
    // Where there can be no directory there is no disk, and everything else goes on.
    let path = dir.path().join("file");
    disk.write_durable(&path, b"x").unwrap();
    let (host, metrics) = (Host::real(), StoreMetrics::default());
    let memory = MemoryCache::new(&host, 64 << 20, metrics.clone());
    let options = DiskCacheOptions::new(path, 8 * SEGMENT_BYTES as u64);
    let cache = DiskCache::start(&host, memory, "c", options, metrics);
    assert!(!cache.opened().await);
    conforms(&cache).await;
    cache.close().await;
}

#[tokio::test]
async fn stays_within_its_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let (_, source) = Source::new(BLOCK_BYTES as usize);
    let opened = open(dir.path(), "c").await;
    // Twice what fits.
    fill(&opened, 256, &source).await;
    let total: u64 = files(dir.path())
        .iter()
        .map(|path| Host::real().disk().open(path, isobar_host::Open::READ).unwrap().len().unwrap())
        .sum();
    assert!(total <= 8 * SEGMENT_BYTES as u64);
    assert!(opened.metrics.disk_written_bytes.get() > total);
    let hits = opened.metrics.disk_hits.get();
    opened.cache.get(key(250), &source).await.unwrap();
    assert_eq!(opened.metrics.disk_hits.get(), hits + 1, "the latest are there");
}

#[tokio::test]
async fn a_file_system_that_is_short_of_room_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (counts, source) = Source::new(1000);
    let opened = open_with(dir.path(), "c", |options| options.reserve_bytes = u64::MAX).await;
    fill(&opened, 5, &source).await;
    assert_eq!((opened.metrics.disk_written_bytes.get(), opened.metrics.disk_skipped.get()), (0, 5));
    assert_eq!(counts.take_loads().len(), 5);
}
