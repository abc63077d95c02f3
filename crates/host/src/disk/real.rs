//! The operating system's files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::{DirLock, Disk, DiskFile, LOCK_NAME, LockHeld, Mode, Open, parent_of, temporary_name};

/// Linux takes at most this many parts a call (`IOV_MAX`).
const PARTS_MAX: usize = 1024;

/// The real disk. Paths are taken as they are.
#[derive(Debug, Default)]
pub struct RealDisk {}

impl RealDisk {
    pub fn new() -> Self {
        Self {}
    }
}

#[expect(clippy::disallowed_methods, reason = "the one door to the file system")]
impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut at = dir;
        while !at.as_os_str().is_empty() && !at.exists() {
            missing.push(at);
            at = parent_of(at);
        }
        fs::create_dir_all(dir)?;
        // A directory is durable once the one that names it is synced, from the top down.
        missing.into_iter().rev().try_for_each(|made| sync_directory(parent_of(made)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().into_string().map_err(|name| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("{} is not UTF-8", name.display()))
                })?);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match how.mode {
            Mode::Read => options.read(true),
            Mode::ReadWrite => options.read(true).write(true),
            Mode::Create => options.read(true).write(true).create_new(true),
        };
        if !how.direct {
            return Ok(Box::new(RealFile::new(options.open(path)?, false)));
        }
        let direct = options.clone().custom_flags(direct_flag()).open(path);
        match direct {
            Ok(file) => Ok(Box::new(RealFile::new(file, true))),
            Err(refused) if refused.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                // The file system has no O_DIRECT. Creating may have left the file behind all the same.
                options.create_new(false).create(how.mode == Mode::Create);
                Ok(Box::new(RealFile::new(options.open(path)?, false)))
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        fs::read(path)
    }

    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = temporary_name(path)?;
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary); // frees the space; overwritten next time if it stays
            return Err(error);
        }
        fs::rename(&temporary, path)?;
        sync_directory(parent_of(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_directory(dir)
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let path = dir.join(LOCK_NAME);
        // Never removed: a lock on a removed file would not keep out who creates it anew.
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = (&file).take(32).read_to_string(&mut text);
                return Err(LockHeld { dir: dir.to_owned(), pid: text.trim().parse().ok() }.into_error());
            }
            Err(error) => return Err(error.into()),
        }
        // For the message of who finds it held, and no more: a full disk must keep nobody out.
        let _ = file.set_len(0).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        Ok(DirLock::new(dir.to_owned(), Box::new(file)))
    }
}

fn direct_flag() -> i32 {
    OFlags::DIRECT.bits().cast_signed()
}

#[expect(clippy::disallowed_methods, reason = "the one door to the file system")]
fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

struct RealFile {
    file: File,
    direct: AtomicBool,
}

impl RealFile {
    fn new(file: File, direct: bool) -> Self {
        Self { file, direct: AtomicBool::new(direct) }
    }

    /// Some file systems take the flag and refuse the first write or read. True if it was direct and is buffered now.
    fn give_up_direct(&self) -> io::Result<bool> {
        if !self.direct.swap(false, Ordering::Relaxed) {
            return Ok(false);
        }
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
        Ok(true)
    }

    fn write_once(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        loop {
            match rustix::io::pwritev(&self.file, parts, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written),
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) if self.give_up_direct()? => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What follows a short write: the parts that are left, cut at the byte.
    fn write_rest(&self, parts: &[IoSlice<'_>], written: usize, offset: u64) -> io::Result<()> {
        let mut owned: Vec<IoSlice<'_>> = parts.to_vec();
        let mut left = &mut owned[..];
        let mut offset = offset + written as u64;
        IoSlice::advance_slices(&mut left, written);
        while !left.is_empty() {
            let written = self.write_once(left, offset)?;
            offset += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }
}

impl DiskFile for RealFile {
    fn is_direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let now = self.len()?;
        if len <= now {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), now, len - now) {
            Ok(()) => Ok(()),
            // The file system cannot reserve; writes may then run full, which callers survive.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.file.set_len(len),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut offset = offset;
        for parts in parts.chunks(PARTS_MAX) {
            let total: usize = parts.iter().map(|part| part.len()).sum();
            if total == 0 {
                continue;
            }
            let written = self.write_once(parts, offset)?;
            if written < total {
                self.write_rest(parts, written, offset)?;
            }
            offset += total as u64;
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        match self.file.read_exact_at(buf, offset) {
            Err(error)
                if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) && self.give_up_direct()? =>
            {
                self.file.read_exact_at(buf, offset)
            }
            other => other,
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        // An interrupted fdatasync has not failed: it may be asked again, unlike one that returned an error.
        loop {
            match rustix::fs::fdatasync(&self.file) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}
