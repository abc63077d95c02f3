//! The disk: a small blocking seam, real ([`RealDisk`]) and simulated ([`SimDisk`]).
//!
//! What it promises
//! 1. `sync_data` returning `Ok` means that what this handle's file held before the call is on stable storage. After it
//!    returned an error, nothing may be believed about what was written since the last good one, and calling it again
//!    proves nothing (Linux drops the pages and forgets the error): who needs durability stops.
//! 2. A create, rename or remove is durable only after `sync_dir` of its directory. `write_durable` does all of it.
//! 3. Disk full is [`std::io::ErrorKind::StorageFull`] in both worlds; a held lock is a [`LockHeld`] inside the error.

use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

mod real;
#[cfg(feature = "sim")]
mod sim;

pub use real::RealDisk;
#[cfg(feature = "sim")]
pub use sim::{Faults, Operation, SimDisk, SimDiskStats};

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Open {
    mode: Mode,
    direct: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    ReadWrite,
    Create,
}

impl Open {
    /// An existing file, to read.
    pub const READ: Self = Self { mode: Mode::Read, direct: false };
    /// An existing file, to read and write.
    pub const READ_WRITE: Self = Self { mode: Mode::ReadWrite, direct: false };
    /// A new, empty file, to read and write; `AlreadyExists` if there is one.
    pub const CREATE: Self = Self { mode: Mode::Create, direct: false };

    /// Past the page cache (`O_DIRECT`), where the file system allows it; [`DiskFile::is_direct`] tells.
    #[must_use]
    pub const fn direct(self) -> Self {
        Self { direct: true, ..self }
    }
}

/// Files below one node's root. Every call blocks; a relative path starts at the root.
pub trait Disk: Send + Sync {
    /// Makes a directory and its parents, durably.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Names of the plain files in `dir`, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;
    /// All of a small file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Replaces a small file as one: temporary file, sync, rename, sync of the directory.
    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Replaces `to` if it exists. Durable after [`Disk::sync_dir`] of both directories.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not exist. Durable after [`Disk::sync_dir`] of the new name's directory.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes `dir` for this process until the lock is dropped or the process ends, however it ends. If another holds
    /// it: an error of kind `ResourceBusy` around a [`LockHeld`].
    fn lock(&self, dir: &Path) -> io::Result<DirLock>;
}

/// An open file. Reads and writes at an offset, from any number of threads.
pub trait DiskFile: Send + Sync {
    /// False where `O_DIRECT` was not asked for or was refused. Of a direct file every offset, length and memory address
    /// must be a multiple of [`crate::buffer::ALIGN`].
    fn is_direct(&self) -> bool;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Grows the file to `len` bytes that read as zeroes, with blocks reserved so that later writes cannot run full.
    /// Never shrinks it.
    fn allocate(&self, len: u64) -> io::Result<()>;
    /// Writes all parts one after the other, or fails having written any part of them.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;
    /// Fills `buf`, or `UnexpectedEof`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
    fn sync_data(&self) -> io::Result<()>;
}

/// Holds a directory; see [`Disk::lock`].
pub struct DirLock {
    path: PathBuf,
    _held: Box<dyn Send + Sync>,
}

impl DirLock {
    fn new(path: PathBuf, held: Box<dyn Send + Sync>) -> Self {
        Self { path, _held: held }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirLock").field(&self.path).finish()
    }
}

/// Another process has the directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} is in use by {}", .dir.display(), .pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}")))]
pub struct LockHeld {
    pub dir: PathBuf,
    /// Of the holder, as far as it could be read.
    pub pid: Option<u32>,
}

impl LockHeld {
    fn into_error(self) -> io::Error {
        io::Error::new(io::ErrorKind::ResourceBusy, self)
    }

    /// The `LockHeld` inside an error of [`Disk::lock`].
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

/// The file that a lock is taken on; holds the pid of the last holder.
const LOCK_NAME: &str = "LOCK";

/// The directory that names `path`.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))
    })?;
    let mut temporary = name.to_os_string();
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}

#[cfg(test)]
mod tests;
