//! Blocks of objects in memory, and below it on a local disk.
//!
//! Owns: a directory that is nothing but a cache, bounded in bytes. Delete it at any time when no process uses it.
//!
//! ```text
//! DIR/cache.json                    layout version, cluster, geometry; another's or another version's directory is emptied
//! DIR/foyer-storage-direct-fs-N     segments of foyer's block engine, sparse until they were written once
//! ```
//!
//! The memory half, and so the single flight, is [`MemoryCache`]; of foyer only the disk half is used (its memory entries are
//! phantoms: they hand the block to the disk's queue and are gone). Why: what the simulation tests is then what runs, and
//! foyer 0.22.6's faults lie in its memory half (an insert that races a disk load may be overwritten by old bytes; `remove`
//! once broke its lists; a coalesced fetch is written once for each who waited). Nothing is ever removed from foyer, and a
//! key's bytes never change but where the bytes kept were damaged.
//!
//! Invariants
//! 1. What comes back from the disk is what was stored under exactly this cluster, object and block, by a CRC-32C of ours
//!    over all four, or it is not used: counted, logged, and the block is loaded from the store and stored anew.
//! 2. No failure of the disk reaches a reader: whatever is wrong with it, the block is loaded from the store.
//! 3. At most `max_bytes` lie on the disk, at most [`QUEUE_BYTES`] wait to be written, and nothing is written while the file
//!    system has less than [`RESERVE_BYTES`] free: the WAL needs them more.
//! 4. Writes are limited to `write_bytes_per_second`, so that one who reads years of old data neither pushes everything
//!    else out within a minute nor stands in the way of the journal's syncs. What comes too fast is not kept.
//!
//! Ordering: nothing is synced; a crash may leave any part of what was written, which invariant 1 covers. Opening goes on in
//! the background: until it has ended, every block is a miss.
//!
//! Failure: an opening that fails (or panics, on files that somebody else has written) leaves the cache without a disk.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::io::{self, Read as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use foyer::{
    Age, BlockEngineConfig, Code, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, Load, PsyncIoEngineConfig, RecoverMode, Throttle,
};
use isobar_host::{Host, Task};
use isobar_metadata::ids::ObjectId;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::StoreError;
use crate::cache::{BLOCK_BYTES, Block, BlockCache, BlockKey, BlockSource, MemoryCache};
use crate::metrics::StoreMetrics;

/// Changes whenever the layout of keys, entries or files does.
const LAYOUT_VERSION: u32 = 1;
/// A segment holds 16 blocks of 1 MiB with their 4 KiB of header each, and the engine's indexes.
const SEGMENT_BYTES: usize = (16 << 20) + (256 << 10);
/// Blocks that wait to be written, and foyer's buffers for them.
const QUEUE_BYTES: usize = 8 << 20;
/// With less free on the file system, nothing is written.
const RESERVE_BYTES: u64 = 1 << 30;
/// How long an answer about free room holds.
const ROOM_CHECK: Duration = Duration::from_secs(1);
/// Blocks remembered as damaged on the disk.
const DISTRUSTED_MAX: usize = 4096;
const MANIFEST: &str = "cache.json";
const FILE_PREFIX: &str = "foyer-storage-direct-fs-";

/// Where and how much.
#[derive(Debug, Clone)]
pub struct DiskCacheOptions {
    /// The directory; made if it is not there.
    pub dir: PathBuf,
    /// Bytes of disk, at most.
    pub max_bytes: u64,
    /// Bytes that are written in a second, at most.
    pub write_bytes_per_second: usize,
    /// Free bytes of the file system that are left to others.
    pub reserve_bytes: u64,
}

impl DiskCacheOptions {
    /// This directory with this bound, otherwise the defaults.
    pub fn new(dir: impl Into<PathBuf>, max_bytes: u64) -> Self {
        Self { dir: dir.into(), max_bytes, write_bytes_per_second: 64 << 20, reserve_bytes: RESERVE_BYTES }
    }
}

/// A block cache in memory and on a local disk. A clone is the same cache.
#[derive(Clone)]
pub struct DiskCache {
    memory: MemoryCache,
    below: Arc<Below>,
    opening: Arc<Mutex<Option<Task>>>,
}

impl DiskCache {
    /// Begins to open it; returns at once.
    pub fn start(
        host: &Host,
        memory: MemoryCache,
        cluster_id: &str,
        options: DiskCacheOptions,
        metrics: StoreMetrics,
    ) -> Self {
        let below = Arc::new(Below {
            host: host.clone(),
            cluster: fingerprint(cluster_id),
            options,
            metrics,
            disk: OnceLock::new(),
            distrusted: Mutex::default(),
            room: Mutex::new(None),
        });
        let (opened, cluster_id) = (Arc::clone(&below), cluster_id.to_owned());
        let task = host.spawn("block-cache-open", async move { opened.open(&cluster_id).await });
        Self { memory, below, opening: Arc::new(Mutex::new(Some(task))) }
    }

    /// Waits until the disk is there, or is known not to be; for tests and benches.
    pub async fn opened(&self) -> bool {
        let task = self.opening.lock().take();
        if let Some(task) = task {
            task.join().await;
        }
        self.below.disk.get().is_some()
    }

    /// Writes out what waits to be written. What comes later is not kept.
    pub async fn close(&self) {
        let task = self.opening.lock().take();
        if let Some(task) = task {
            task.abort();
        }
        if let Some(disk) = self.below.disk.get()
            && let Err(error) = disk.close().await
        {
            tracing::warn!(%error, "closing the block cache's disk");
        }
    }

    fn layered(&self, source: &Arc<dyn BlockSource>) -> Arc<dyn BlockSource> {
        Arc::new(Layered { below: Arc::clone(&self.below), source: Arc::clone(source) })
    }
}

#[async_trait]
impl BlockCache for DiskCache {
    async fn get(&self, key: BlockKey, source: &Arc<dyn BlockSource>) -> Result<Arc<Block>, StoreError> {
        self.memory.get(key, &self.layered(source)).await
    }

    fn prefetch(&self, object: ObjectId, blocks: Range<u32>, source: &Arc<dyn BlockSource>) {
        self.memory.prefetch(object, blocks, &self.layered(source));
    }

    fn room(&self) -> u32 {
        self.memory.room()
    }

    fn evict(&self, key: BlockKey) {
        self.memory.evict(key);
        self.below.distrust(key);
    }
}

/// The disk, then the store.
struct Layered {
    below: Arc<Below>,
    source: Arc<dyn BlockSource>,
}

#[async_trait]
impl BlockSource for Layered {
    async fn load(
        &self,
        object: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        let mut next = blocks.start;
        while next < blocks.end {
            if let Some(bytes) = self.below.load(BlockKey { object, block: next }).await {
                found(bytes);
                next += 1;
                continue;
            }
            // Neighbours that are missing too come by the same request.
            let missing = |block: &u32| !self.below.may_hold(BlockKey { object, block: *block });
            let end = (next + 1..blocks.end).take_while(missing).last().map_or(next + 1, |last| last + 1);
            let mut at = next;
            let mut keep = |bytes: Bytes| {
                self.below.store(BlockKey { object, block: at }, &bytes);
                at += 1;
                found(bytes);
            };
            self.source.load(object, next..end, &mut keep).await?;
            if at < end {
                // The object ends here; who waits for more is told by the caller.
                return Ok(());
            }
            next = end;
        }
        Ok(())
    }
}

type Disk = HybridCache<DiskKey, Entry>;

struct Below {
    host: Host,
    cluster: u64,
    options: DiskCacheOptions,
    metrics: StoreMetrics,
    disk: OnceLock<Disk>,
    /// Blocks whose bytes on the disk are wrong, until others are stored over them.
    distrusted: Mutex<BTreeSet<BlockKey>>,
    /// When the file system's room was looked at, and whether there was enough.
    room: Mutex<Option<(Instant, bool)>>,
}

impl Below {
    async fn open(&self, cluster_id: &str) {
        let started = Instant::now();
        let dir = &self.options.dir;
        match open_disk(&self.host, cluster_id, &self.options).await {
            Ok(disk) => {
                let bytes = self.options.max_bytes;
                tracing::info!(dir = %dir.display(), bytes, ms = started.elapsed().as_millis(), "block cache on disk");
                let _ = self.disk.set(disk);
            }
            Err(why) => {
                tracing::warn!(dir = %dir.display(), why, "no block cache on disk: blocks are kept in memory only");
            }
        }
    }

    fn disk_key(&self, key: BlockKey) -> DiskKey {
        DiskKey { cluster: self.cluster, object: key.object.0, block: key.block }
    }

    fn may_hold(&self, key: BlockKey) -> bool {
        let Some(disk) = self.disk.get() else { return false };
        disk.storage().may_contains(&self.disk_key(key)) && !self.distrusted.lock().contains(&key)
    }

    async fn load(&self, key: BlockKey) -> Option<Bytes> {
        let disk = self.disk.get()?;
        if !self.may_hold(key) {
            self.metrics.disk_misses.inc();
            return None;
        }
        let disk_key = self.disk_key(key);
        let (entry, old) = match disk.storage().load(&disk_key).await {
            Ok(Load::Entry { value, populated, .. }) => (value, populated.age == Age::Old),
            Ok(Load::Piece { piece, .. }) => (piece.value().clone(), false),
            Ok(Load::Throttled) => return None,
            Ok(Load::Miss) => {
                // foyer forgets an entry whose own checksum is wrong, and one that made room just now.
                if !disk.storage().may_contains(&disk_key) {
                    self.damaged(key, "foyer's checksum");
                }
                return None;
            }
            Err(error) => {
                self.metrics.disk_errors.inc();
                tracing::warn!(object = key.object.0, block = key.block, %error, "a cached block cannot be read from disk");
                self.distrust(key);
                return None;
            }
        };
        if entry.crc != disk_key.crc_of(&entry.bytes) {
            self.damaged(key, "the CRC of the block");
            self.distrust(key);
            return None;
        }
        self.metrics.disk_hits.inc();
        if old {
            // Its segment goes next: who is still read moves on.
            self.store(key, &entry.bytes);
        }
        Some(entry.bytes)
    }

    fn damaged(&self, key: BlockKey, by: &'static str) {
        self.metrics.disk_damaged.inc();
        tracing::warn!(
            object = key.object.0,
            block = key.block,
            by,
            "a block in the disk cache is damaged; it is loaded from the store"
        );
    }

    fn distrust(&self, key: BlockKey) {
        if self.disk.get().is_none() {
            return;
        }
        let mut distrusted = self.distrusted.lock();
        distrusted.insert(key);
        if distrusted.len() > DISTRUSTED_MAX {
            distrusted.pop_first();
        }
    }

    fn store(&self, key: BlockKey, bytes: &Bytes) {
        let Some(disk) = self.disk.get() else { return };
        let disk_key = self.disk_key(key);
        let entry = Entry { crc: disk_key.crc_of(bytes), bytes: bytes.clone() };
        if self.has_room() && disk.storage_writer(disk_key).insert(entry).is_some() {
            self.distrusted.lock().remove(&key);
            self.metrics.disk_written_bytes.inc_by(bytes.len() as u64);
        } else {
            self.metrics.disk_skipped.inc();
        }
    }

    fn has_room(&self) -> bool {
        let now = Instant::now();
        let mut room = self.room.lock();
        match *room {
            Some((at, enough)) if now - at < ROOM_CHECK => enough,
            _ => {
                let free = self.host.free_disk_bytes(&self.options.dir).unwrap_or(0);
                let enough = free >= self.options.reserve_bytes;
                *room = Some((now, enough));
                enough
            }
        }
    }
}

/// FNV-1a of a cluster's id.
fn fingerprint(cluster_id: &str) -> u64 {
    cluster_id
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

async fn open_disk(host: &Host, cluster_id: &str, options: &DiskCacheOptions) -> Result<Disk, String> {
    let dir = &options.dir;
    let max_bytes = usize::try_from(options.max_bytes).map_err(|error| error.to_string())?;
    if max_bytes < 4 * SEGMENT_BYTES {
        return Err(format!("{max_bytes} bytes are too few; the least is {}", 4 * SEGMENT_BYTES));
    }
    let (prepared_host, prepared, manifest) =
        (host.clone(), dir.clone(), manifest(cluster_id, options.max_bytes));
    host.run_blocking(move || prepare(&prepared_host, &prepared, &manifest))
        .await
        .unwrap_or_else(|| Err(io::Error::other("stopping")))
        .map_err(|error| error.to_string())?;
    let device = |direct| {
        FsDeviceBuilder::new(dir)
            .with_capacity(max_bytes)
            .with_throttle(Throttle::new().with_write_throughput(options.write_bytes_per_second))
            .with_direct(direct)
            .build()
    };
    // Past the page cache where the file system lets us.
    match build(device(true).map_err(|error| error.to_string())?).await {
        Ok(disk) => Ok(disk),
        Err(_) => build(device(false).map_err(|error| error.to_string())?).await,
    }
}

async fn build(device: Arc<dyn foyer::Device>) -> Result<Disk, String> {
    let engine = BlockEngineConfig::new(device)
        .with_block_size(SEGMENT_BYTES)
        .with_flushers(1)
        .with_reclaimers(1)
        .with_buffer_pool_size(QUEUE_BYTES)
        .with_submit_queue_size_threshold(QUEUE_BYTES);
    HybridCacheBuilder::new()
        .with_name("isobar-blocks")
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .with_flush_on_close(false)
        .memory(1)
        .with_shards(1)
        .storage()
        .with_io_engine_config(PsyncIoEngineConfig::new())
        .with_engine_config(engine)
        .with_recover_mode(RecoverMode::Quiet)
        .build()
        .await
        .map_err(|error| error.to_string())
}

fn manifest(cluster_id: &str, max_bytes: u64) -> String {
    format!(
        "{{\"version\":{LAYOUT_VERSION},\"cluster\":\"{:016x}\",\"block\":{BLOCK_BYTES},\"segment\":{SEGMENT_BYTES},\"bytes\":{max_bytes}}}\n",
        fingerprint(cluster_id)
    )
}

/// Empties the directory unless it was written for just this. Blocking.
fn prepare(host: &Host, dir: &Path, manifest: &str) -> io::Result<()> {
    let disk = host.disk();
    disk.create_dir_all(dir)?;
    let path = dir.join(MANIFEST);
    if disk.read(&path).is_ok_and(|bytes| bytes == manifest.as_bytes()) {
        return Ok(());
    }
    for name in disk.list(dir)?.iter().filter(|name| name.starts_with(FILE_PREFIX)) {
        disk.remove(&dir.join(name))?;
    }
    disk.write_durable(&path, manifest.as_bytes())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct DiskKey {
    /// Two clusters give the same ids to other objects.
    cluster: u64,
    object: u64,
    block: u32,
}

impl DiskKey {
    const BYTES: usize = 20;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.cluster.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.object.to_le_bytes());
        bytes[16..].copy_from_slice(&self.block.to_le_bytes());
        bytes
    }

    fn crc_of(self, block: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&self.to_bytes()), block)
    }
}

impl Code for DiskKey {
    fn encode(&self, writer: &mut impl io::Write) -> foyer::Result<()> {
        writer.write_all(&self.to_bytes()).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl io::Read) -> foyer::Result<Self> {
        let cluster = u64::decode(reader)?;
        let object = u64::decode(reader)?;
        Ok(Self { cluster, object, block: u32::decode(reader)? })
    }

    fn estimated_size(&self) -> usize {
        Self::BYTES
    }
}

/// A block as it lies on the disk.
#[derive(Debug, Clone)]
struct Entry {
    /// CRC-32C of key and bytes.
    crc: u32,
    bytes: Bytes,
}

impl Code for Entry {
    fn encode(&self, writer: &mut impl io::Write) -> foyer::Result<()> {
        self.crc.encode(writer)?;
        writer.write_all(&self.bytes).map_err(foyer::Error::io_error)
    }

    fn decode(reader: &mut impl io::Read) -> foyer::Result<Self> {
        let crc = u32::decode(reader)?;
        let mut bytes = Vec::with_capacity(BLOCK_BYTES as usize);
        // The reader ends where the entry does.
        reader.take(BLOCK_BYTES).read_to_end(&mut bytes).map_err(foyer::Error::io_error)?;
        bytes.shrink_to_fit();
        Ok(Self { crc, bytes: bytes.into() })
    }

    fn estimated_size(&self) -> usize {
        4 + self.bytes.len()
    }
}

#[cfg(test)]
mod tests;
