//! A directory as a store.
//!
//! Owns: `<root>/<key>` for every object and `<root>/tmp/<n>` for those being written: each process that uses the directory holds
//! one of these, by a lock.
//!
//! Why not object_store's `LocalFileSystem::with_fsync`: it makes directories and syncs their parents only where it made
//! them, so of two PUTs into a new directory one may return before the other has made the directory's name durable,
//! and after a crash nobody does; it leaves staged files beside the objects, where only a walk over all finds them; it
//! writes through the page cache, which costs several times the CPU (measured: 3.1 against 0.4 CPU seconds for each GiB
//! uploaded) and makes the WAL's syncs wait; and it cannot run on the simulated disk, which is what finds such things.
//!
//! Invariants
//! 1. An object's name appears only when all its bytes are synced: written below `tmp`, synced, renamed.
//! 2. `put` returns `Ok` only when the name is durable too: the directory is synced after the rename, and the
//!    directory's own name was synced before the first object of this process in it.
//! 3. What a dead process staged is removed by the `open` that takes its place; what a living one stages is left alone.
//!
//! Ordering: reserve the blocks; write, past the page cache in pieces of [`PIECE_BYTES`] but for what does not fill a disk
//! block at the end; sync; rename; sync the directory. All of it on the blocking pool. Reads go past the page cache too:
//! there is a block cache above.
//!
//! Failure: an error up to the rename did not happen; the staged file is removed, and a retry writes a new one, so a
//! failed sync is never repeated on the same file. From the rename on it may have happened.
//!
//! Crash: before the rename is durable the object is not there, which its reader (nobody yet: the commit comes after)
//! cannot notice; a staged file is removed by the next `open`.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::disk::DirLock;
use isobar_host::{BufferPool, Disk, DiskFile, Host, Open};
use parking_lot::Mutex;

mod staged;

pub(crate) use staged::Staged;

/// Length of one direct write.
const PIECE_BYTES: usize = 1 << 20;
/// Buffers kept for reuse: some blocks' reads and writes under way.
const POOL_BYTES: usize = 4 << 20;
/// Processes that may use one directory.
const MAX_STAGING: u32 = 256;
const STAGED_NAME_LENGTH: usize = 16;
const ALIGN: u64 = isobar_host::buffer::ALIGN as u64;

/// Whether a failed PUT or DELETE can have had an effect.
#[derive(Debug)]
pub(crate) enum WriteFailure {
    DidNotHappen(io::Error),
    MayHaveHappened(io::Error),
}

#[derive(Clone)]
pub(crate) struct Directory {
    inner: Arc<Inner>,
}

struct Inner {
    host: Host,
    disk: Arc<dyn Disk>,
    root: PathBuf,
    staging: PathBuf,
    durable_dirs: Mutex<BTreeSet<PathBuf>>,
    pool: BufferPool,
    _lock: DirLock,
}

impl Directory {
    /// Makes the directory if it is not there, and clears what a crash left staged.
    pub(crate) async fn open(host: &Host, root: &Path) -> io::Result<Self> {
        let (disk, all) = (host.disk(), root.join("tmp"));
        let take = move || take_staging(&*disk, &all);
        let (staging, lock) = host.run_blocking(take).await.unwrap_or_else(|| Err(gone()))?;
        let inner = Inner {
            host: host.clone(),
            disk: host.disk(),
            root: root.to_owned(),
            staging,
            durable_dirs: Mutex::default(),
            pool: BufferPool::new(POOL_BYTES),
            _lock: lock,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) async fn put(&self, key: &str, parts: Vec<Bytes>) -> Result<(), WriteFailure> {
        let path = self.path(key).map_err(WriteFailure::DidNotHappen)?;
        let inner = Arc::clone(&self.inner);
        let result = self.inner.host.run_blocking(move || inner.put(&path, &parts)).await;
        result.unwrap_or_else(|| Err(WriteFailure::MayHaveHappened(gone())))
    }

    /// Only if there is no such object, else `AlreadyExists`: two callers cannot both make it, whichever processes they
    /// are, because the name is given to finished bytes by a link, which fails where the name is taken.
    pub(crate) async fn create(&self, key: &str, bytes: Bytes) -> Result<(), WriteFailure> {
        let path = self.path(key).map_err(WriteFailure::DidNotHappen)?;
        let inner = Arc::clone(&self.inner);
        let result = self.inner.host.run_blocking(move || inner.create(&path, &[bytes])).await;
        result.unwrap_or_else(|| Err(WriteFailure::MayHaveHappened(gone())))
    }

    /// All of the range, or `UnexpectedEof`.
    pub(crate) async fn get_range(&self, key: &str, range: Range<u64>) -> io::Result<Bytes> {
        let path = self.path(key)?;
        self.blocking(move |inner| {
            let len = inner.disk.open(&path, Open::READ)?.len()?;
            inner.get(&path, len, range)
        })
        .await
    }

    /// As much of the range as there is; it must begin within the object.
    pub(crate) async fn get_up_to(&self, key: &str, range: Range<u64>) -> io::Result<Bytes> {
        let path = self.path(key)?;
        self.blocking(move |inner| {
            let len = inner.disk.open(&path, Open::READ)?.len()?;
            inner.get(&path, len, range.start..range.end.min(len))
        })
        .await
    }

    /// As `get_up_to`, in pieces each with memory of its own.
    pub(crate) async fn get_pieces(
        &self,
        key: &str,
        range: Range<u64>,
        piece_bytes: u64,
    ) -> io::Result<Vec<Bytes>> {
        let path = self.path(key)?;
        self.blocking(move |inner| {
            let len = inner.disk.open(&path, Open::READ)?.len()?;
            let end = range.end.min(len);
            let mut pieces = Vec::new();
            let mut start = range.start;
            while start < end || pieces.is_empty() {
                let piece = start..end.min(start.saturating_add(piece_bytes.max(1)));
                start = piece.end;
                pieces.push(inner.get(&path, len, piece)?);
            }
            Ok(pieces)
        })
        .await
    }

    pub(crate) async fn size(&self, key: &str) -> io::Result<u64> {
        let path = self.path(key)?;
        self.blocking(move |inner| inner.disk.open(&path, Open::READ)?.len()).await
    }

    /// Not synced: a delete that a crash undoes leaves garbage, and deletes are repeated.
    pub(crate) async fn delete(&self, key: &str) -> io::Result<()> {
        let path = self.path(key)?;
        self.blocking(move |inner| inner.disk.remove(&path)).await
    }

    /// Names of the objects right below `dir`.
    pub(crate) async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.path(dir)?;
        self.blocking(move |inner| match inner.disk.list(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other,
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = Arc::clone(&self.inner);
        self.inner.host.run_blocking(move || work(&inner)).await.unwrap_or_else(|| Err(gone()))
    }

    /// Keys are ours, but a mistake must not leave the root.
    fn path(&self, key: &str) -> io::Result<PathBuf> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !key.split('/').all(plain) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{key:?} is no key")));
        }
        Ok(self.inner.root.join(key))
    }
}

/// The first staging directory that nobody holds, cleared.
fn take_staging(disk: &dyn Disk, all: &Path) -> io::Result<(PathBuf, DirLock)> {
    for slot in 0..MAX_STAGING {
        let staging = all.join(slot.to_string());
        disk.create_dir_all(&staging)?;
        let lock = match disk.lock(&staging) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => continue,
            Err(error) => return Err(error),
        };
        // An earlier release staged in `tmp` itself.
        let cleared = if slot == 0 { vec![all, &staging] } else { vec![staging.as_path()] };
        for dir in cleared {
            for name in disk.list(dir)?.into_iter().filter(|name| name.len() == STAGED_NAME_LENGTH) {
                disk.remove(&dir.join(name))?;
            }
        }
        return Ok((staging, lock));
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{MAX_STAGING} processes use this directory")))
}

/// The name of a staged file: 16 hexadecimal digits.
fn staged_name(host: &Host) -> String {
    format!("{:016x}", host.random_u64())
}

fn gone() -> io::Error {
    io::Error::other("the blocking pool is going away")
}

impl Inner {
    fn put(&self, path: &Path, parts: &[Bytes]) -> Result<(), WriteFailure> {
        let staged = self.stage(parts)?;
        self.publish(&staged, path)
    }

    fn create(&self, path: &Path, parts: &[Bytes]) -> Result<(), WriteFailure> {
        let dir = path.parent().unwrap_or(&self.root);
        self.make_durable_dir(dir).map_err(WriteFailure::DidNotHappen)?;
        let staged = self.stage(parts)?;
        self.host.crash_point("store.after_sync");
        let linked = self.disk.link(&staged, path);
        // What stays behind is removed by the next `open`.
        let _ = self.disk.remove(&staged);
        // Also where the name was taken: whoever hears of it may rely on it, so it must be durable by then.
        let taken = matches!(&linked, Err(error) if error.kind() == io::ErrorKind::AlreadyExists);
        if linked.is_ok() || taken {
            self.disk.sync_dir(dir).map_err(WriteFailure::MayHaveHappened)?;
        }
        match linked {
            Ok(()) => Ok(()),
            Err(error) if taken => Err(WriteFailure::DidNotHappen(error)),
            Err(error) => Err(WriteFailure::MayHaveHappened(error)),
        }
    }

    /// Writes the bytes below `tmp`, durably.
    fn stage(&self, parts: &[Bytes]) -> Result<PathBuf, WriteFailure> {
        let staged = self.staging.join(staged_name(&self.host));
        if let Err(error) = self.write_staged(&staged, parts) {
            // What stays behind is removed by the next `open`.
            let _ = self.disk.remove(&staged);
            return Err(WriteFailure::DidNotHappen(error));
        }
        Ok(staged)
    }

    /// Gives a synced file its name, durably.
    fn publish(&self, staged: &Path, path: &Path) -> Result<(), WriteFailure> {
        let dir = path.parent().unwrap_or(&self.root);
        self.make_durable_dir(dir).map_err(WriteFailure::DidNotHappen)?;
        self.host.crash_point("store.after_sync");
        self.disk.rename(staged, path).map_err(WriteFailure::MayHaveHappened)?;
        self.host.crash_point("store.after_rename");
        if self.host.sabotaged("object-not-synced") {
            return Ok(());
        }
        self.disk.sync_dir(dir).map_err(WriteFailure::MayHaveHappened)
    }

    /// Writes and syncs. The file is direct as far as whole disk blocks go; its end goes through a second, plain handle,
    /// because a direct write cannot end within a block.
    fn write_staged(&self, staged: &Path, parts: &[Bytes]) -> io::Result<()> {
        let len: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let file = self.disk.open(staged, Open::CREATE.direct())?;
        file.allocate(len)?;
        let mut buffer = self.pool.take(PIECE_BYTES);
        let (mut filled, mut offset) = (0, 0_u64);
        for part in parts {
            let mut rest = &part[..];
            while !rest.is_empty() {
                let count = rest.len().min(PIECE_BYTES - filled);
                buffer[filled..filled + count].copy_from_slice(&rest[..count]);
                filled += count;
                rest = &rest[count..];
                if filled == PIECE_BYTES {
                    file.write_at(&[IoSlice::new(&buffer[..filled])], offset)?;
                    offset += filled as u64;
                    filled = 0;
                }
            }
        }
        let whole = filled - filled % ALIGN as usize;
        if whole > 0 {
            file.write_at(&[IoSlice::new(&buffer[..whole])], offset)?;
        }
        if filled > whole {
            let end = self.disk.open(staged, Open::READ_WRITE)?;
            end.write_at(&[IoSlice::new(&buffer[whole..filled])], offset + whole as u64)?;
            self.sync(&*end)?;
        }
        self.sync(&*file)
    }

    fn sync(&self, file: &dyn DiskFile) -> io::Result<()> {
        if self.host.sabotaged("object-not-synced") {
            return Ok(());
        }
        file.sync_data()
    }

    /// Reads a range of a file of `len` bytes: whole disk blocks directly, the end of the file through a plain handle.
    fn get(&self, path: &Path, len: u64, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{range:?} of {len} bytes")));
        }
        let start = range.start - range.start % ALIGN;
        // Of a direct file nothing behind its last whole block can be read.
        let direct_end = range.end.next_multiple_of(ALIGN).min(len - len % ALIGN).max(start);
        let at = |position: u64| (position - start) as usize;
        let mut buffer = self.pool.take(at(range.end.max(direct_end)));
        if direct_end > start {
            self.disk.open(path, Open::READ.direct())?.read_at(&mut buffer[..at(direct_end)], start)?;
        }
        if range.end > direct_end {
            self.disk
                .open(path, Open::READ)?
                .read_at(&mut buffer[at(direct_end)..at(range.end)], direct_end)?;
        }
        Ok(buffer.freeze().slice(at(range.start)..at(range.end)))
    }

    /// Syncs the name of `dir` once in this process, even where the directory is already there: whoever made it may
    /// have died before its sync.
    fn make_durable_dir(&self, dir: &Path) -> io::Result<()> {
        if self.durable_dirs.lock().contains(dir) {
            return Ok(());
        }
        self.disk.create_dir_all(dir)?;
        let mut above = dir;
        while let (Some(parent), true) = (above.parent(), above != self.root) {
            self.disk.sync_dir(parent)?;
            above = parent;
        }
        self.durable_dirs.lock().insert(dir.to_owned());
        Ok(())
    }
}
