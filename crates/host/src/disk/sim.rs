//! A disk in memory that loses what was not synced.
//!
//! What it owns: files as 4 KiB pages, each file and directory in two versions: as running programs see it, and as it is
//! on stable storage.
//!
//! Invariants
//! 1. After [`SimDisk::crash`] a synced byte reads as it was synced. Of every page written since, each 512 B sector is
//!    new or old, at random, in no order; so is the length of a file that grew. A directory entry that was not synced is
//!    there or not; a rename within a directory is done or not, never half.
//! 2. A failed sync leaves any part of the dirty pages written, forgets that the others are dirty, and lets later syncs
//!    succeed, while reads still show the lost bytes until the crash. That is what Linux does.
//! 3. Every choice comes from a seed: the one of `new` for faults by chance, the one of `crash` for what is kept.
//! 4. Handles and locks of before a crash are dead: they answer with an error and change nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DirLock, Disk, DiskFile, LockHeld, Mode, Open, parent_of, temporary_name};
use crate::buffer::ALIGN;

mod faults;
mod file;

pub use faults::{Faults, Operation, SimDiskStats};
use faults::{Fuse, Verdict};
use file::Inode;

/// The simulated disk of one node; outlives the node's lives. A clone is the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    /// Counts crashes; handles of an earlier life are dead.
    life: u64,
    fuse: Fuse,
    directories: BTreeMap<PathBuf, Directory>,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    locked: BTreeSet<PathBuf>,
    refuse_direct: bool,
}

#[derive(Default)]
struct Directory {
    /// As programs see it.
    now: BTreeMap<String, u64>,
    /// As of the last sync.
    durable: BTreeMap<String, u64>,
    /// What was done since, in order.
    pending: Vec<Change>,
}

/// One atomic change of a directory: names that go, a name that comes.
struct Change {
    gone: Option<String>,
    come: Option<(String, u64)>,
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<String, u64>) {
        if let Some(gone) = &self.gone {
            names.remove(gone);
        }
        if let Some((name, inode)) = &self.come {
            names.insert(name.clone(), *inode);
        }
    }
}

impl SimDisk {
    /// An empty disk without faults. `seed` decides faults by chance.
    pub fn new(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                life: 0,
                fuse: Fuse::new(seed),
                directories: BTreeMap::new(),
                inodes: BTreeMap::new(),
                next_inode: 1,
                locked: BTreeSet::new(),
                refuse_direct: false,
            })),
        }
    }

    /// Power cut and restart: see the invariants above. The power is on again and one-shot faults are forgotten;
    /// [`Faults`] stay.
    pub fn crash(&self, seed: u64) {
        let state = &mut *self.state.lock();
        let mut rng = faults::Rng::new(seed);
        state.life += 1;
        state.locked.clear();
        state.fuse.reset();
        for directory in state.directories.values_mut() {
            for change in std::mem::take(&mut directory.pending) {
                if rng.chance(1, 2) {
                    change.apply(&mut directory.durable);
                }
            }
            directory.now = directory.durable.clone();
        }
        for inode in state.inodes.values_mut() {
            inode.crash(&mut rng, state.fuse.stats_mut());
        }
        state.collect();
    }

    /// The process ended without a power cut (`kill -9`): its handles and locks die, what it wrote stays as it is.
    pub fn kill(&self) {
        let state = &mut *self.state.lock();
        state.life += 1;
        state.locked.clear();
        for inode in state.inodes.values_mut() {
            inode.handles = 0;
        }
        state.collect();
    }

    /// Sets the faults that hold from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().fuse.faults = faults;
    }

    /// Lets the call after `skip` more calls of this kind on a path that contains `path_part` fail, once, with EIO
    /// (an allocation: with disk full).
    pub fn fail_next(&self, operation: Operation, path_part: &str, skip: u64) {
        self.state.lock().fuse.fail_next(operation, path_part, skip);
    }

    /// The power goes at the `count`-th operation from now (from 1): what that operation writes is pending, and it and
    /// every later one fail until [`SimDisk::crash`].
    pub fn power_off_after(&self, count: u64) {
        self.state.lock().fuse.power_off_after(count);
    }

    /// Undoes [`SimDisk::power_off_after`] without a crash.
    pub fn power_on(&self) {
        self.state.lock().fuse.power_on();
    }

    /// Flips one bit of what is stored, in both versions; `false` if there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let state = &mut *self.state.lock();
        let Some(inode) = state.lookup(path) else { return false };
        state.inodes.get_mut(&inode).is_some_and(|inode| inode.flip_bit(offset, bit))
    }

    /// Answers every direct open with a buffered file, as file systems without `O_DIRECT` do.
    pub fn refuse_direct(&self, refuse: bool) {
        self.state.lock().refuse_direct = refuse;
    }

    /// What was done and what went wrong so far.
    pub fn stats(&self) -> SimDiskStats {
        self.state.lock().fuse.stats()
    }

    /// Every file that programs see, with its length: for a harness's own look.
    pub fn files(&self) -> BTreeMap<PathBuf, u64> {
        let state = &*self.state.lock();
        let named = |(dir, names): (&PathBuf, &Directory)| -> Vec<(PathBuf, u64)> {
            let file =
                |(name, inode): (&String, &u64)| Some((dir.join(name), state.inodes.get(inode)?.len()));
            names.now.iter().filter_map(file).collect()
        };
        state.directories.iter().flat_map(named).collect()
    }

    /// Bytes that files take, as counted against [`Faults::capacity_bytes`].
    pub fn used_bytes(&self) -> u64 {
        self.state.lock().used_bytes()
    }

    fn check_lock_free(&self, dir: &Path) -> io::Result<u64> {
        let state = &mut *self.state.lock();
        if !state.locked.insert(dir.to_owned()) {
            return Err(LockHeld { dir: dir.to_owned(), pid: Some(1) }.into_error());
        }
        Ok(state.life)
    }
}

impl State {
    fn lookup(&self, path: &Path) -> Option<u64> {
        self.directories.get(parent_of(path))?.now.get(name_of(path).ok()?).copied()
    }

    fn directory(&mut self, dir: &Path) -> io::Result<&mut Directory> {
        self.directories.get_mut(dir).ok_or_else(|| not_found(dir))
    }

    fn change(&mut self, dir: &Path, change: Change) -> io::Result<()> {
        let directory = self.directory(dir)?;
        change.apply(&mut directory.now);
        directory.pending.push(change);
        Ok(())
    }

    fn open(&mut self, path: &Path, mode: Mode) -> io::Result<u64> {
        let found = self.lookup(path);
        let inode = match (mode, found) {
            (Mode::Create, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Mode::Create, None) => {
                let inode = self.next_inode;
                let name = name_of(path)?.to_owned();
                self.change(parent_of(path), Change { gone: None, come: Some((name, inode)) })?;
                self.next_inode += 1;
                self.inodes.insert(inode, Inode::new(path));
                inode
            }
            (_, Some(inode)) => inode,
            (_, None) => return Err(not_found(path)),
        };
        self.inodes.get_mut(&inode).ok_or_else(|| not_found(path))?.handles += 1;
        Ok(inode)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.lookup(from).ok_or_else(|| not_found(from))?;
        let (gone, come) = (name_of(from)?.to_owned(), name_of(to)?.to_owned());
        self.directory(parent_of(to))?;
        if parent_of(from) == parent_of(to) {
            self.change(parent_of(from), Change { gone: Some(gone), come: Some((come, inode)) })?;
        } else {
            self.change(parent_of(to), Change { gone: None, come: Some((come, inode)) })?;
            self.change(parent_of(from), Change { gone: Some(gone), come: None })?;
        }
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.path = to.to_owned();
        }
        Ok(())
    }

    fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let inode = self.lookup(from).ok_or_else(|| not_found(from))?;
        if self.lookup(to).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let come = Some((name_of(to)?.to_owned(), inode));
        self.change(parent_of(to), Change { gone: None, come })
    }

    fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        let directory = self.directory(dir)?;
        directory.durable = directory.now.clone();
        directory.pending.clear();
        self.collect();
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> =
            self.directories.values().flat_map(|dir| dir.now.values().copied()).collect();
        self.inodes
            .iter()
            .filter(|(id, inode)| inode.handles > 0 || named.contains(id))
            .map(|(_, inode)| inode.len().next_multiple_of(ALIGN as u64))
            .sum()
    }

    /// Forgets files that no name and no handle can reach, now or after a crash.
    fn collect(&mut self) {
        let reachable: BTreeSet<u64> = self
            .directories
            .values()
            .flat_map(|dir| {
                let pending =
                    dir.pending.iter().filter_map(|change| change.come.as_ref().map(|(_, inode)| *inode));
                dir.now.values().chain(dir.durable.values()).copied().chain(pending)
            })
            .collect();
        self.inodes.retain(|id, inode| inode.handles > 0 || reachable.contains(id));
    }

    /// Disk full, if a file were to grow by `growth` bytes.
    fn check_space(&mut self, growth: u64) -> io::Result<()> {
        match self.fuse.faults.capacity_bytes {
            Some(capacity) if growth > 0 && self.used_bytes() + growth > capacity => {
                self.fuse.stats_mut().errors += 1;
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.fuse.check(Operation::Directory, dir)?;
        let mut at = dir;
        loop {
            state.directories.entry(at.to_owned()).or_default();
            if parent_of(at) == at || at.parent().is_none() {
                return Ok(());
            }
            at = parent_of(at);
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = &mut *self.state.lock();
        state.fuse.check(Operation::Read, dir)?;
        Ok(state.directory(dir)?.now.keys().cloned().collect())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let state = &mut *self.state.lock();
        let kind = if how.mode == Mode::Create { Operation::Directory } else { Operation::Read };
        state.fuse.check(kind, path)?;
        let inode = state.open(path, how.mode)?;
        Ok(Box::new(SimFile {
            disk: self.clone(),
            inode,
            life: state.life,
            direct: how.direct && !state.refuse_direct,
            writable: how.mode != Mode::Read,
        }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let file = self.open(path, Open::READ)?;
        let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
        file.read_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Each of its steps is an operation that can fail or be the last before a crash.
    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let temporary = temporary_name(path)?;
        if self.state.lock().lookup(&temporary).is_some() {
            self.remove(&temporary)?;
        }
        let written = (|| {
            let file = self.open(&temporary, Open::CREATE)?;
            file.write_at(&[IoSlice::new(bytes)], 0)?;
            file.sync_data()
        })();
        if let Err(error) = written {
            let _ = self.remove(&temporary);
            return Err(error);
        }
        self.rename(&temporary, path)?;
        self.sync_dir(parent_of(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        match state.fuse.judge(Operation::Directory, from) {
            Verdict::Go => state.rename(from, to),
            Verdict::Last(error) => state.rename(from, to).and(Err(error)),
            Verdict::Fail(error) => Err(error),
        }
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        match state.fuse.judge(Operation::Directory, from) {
            Verdict::Go => state.link(from, to),
            Verdict::Last(error) => state.link(from, to).and(Err(error)),
            Verdict::Fail(error) => Err(error),
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        let verdict = state.fuse.judge(Operation::Directory, path);
        if let Verdict::Fail(error) = verdict {
            return Err(error);
        }
        state.lookup(path).ok_or_else(|| not_found(path))?;
        let gone = Some(name_of(path)?.to_owned());
        state.change(parent_of(path), Change { gone, come: None })?;
        match verdict {
            Verdict::Last(error) => Err(error),
            _ => Ok(()),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.state.lock();
        state.fuse.check(Operation::SyncDir, dir)?;
        state.sync_dir(dir)
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let life = self.check_lock_free(dir)?;
        let held = HeldLock { disk: self.clone(), dir: dir.to_owned(), life };
        Ok(DirLock::new(dir.to_owned(), Box::new(held)))
    }
}

struct HeldLock {
    disk: SimDisk,
    dir: PathBuf,
    life: u64,
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        let state = &mut *self.disk.state.lock();
        if state.life == self.life {
            state.locked.remove(&self.dir);
        }
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
    life: u64,
    direct: bool,
    writable: bool,
}

impl SimFile {
    fn with<T>(&self, act: impl FnOnce(&mut State, u64) -> io::Result<T>) -> io::Result<T> {
        let state = &mut *self.disk.state.lock();
        if state.life != self.life {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "a handle of before the crash"));
        }
        act(state, self.inode)
    }

    fn check_aligned(&self, address: *const u8, len: usize, offset: u64) -> io::Result<()> {
        let aligned = (address as usize).is_multiple_of(ALIGN)
            && len.is_multiple_of(ALIGN)
            && offset.is_multiple_of(ALIGN as u64);
        if self.direct && !aligned {
            return Err(io::Error::from_raw_os_error(22)); // EINVAL
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn is_direct(&self) -> bool {
        self.direct
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state, inode| Ok(state.inode(inode)?.len()))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|state, inode| {
            let file = state.inode(inode)?;
            let (path, growth) = (file.path.clone(), len.saturating_sub(file.len()));
            state.fuse.check(Operation::Allocate, &path)?;
            state.check_space(growth)?;
            state.inode(inode)?.grow(len);
            Ok(())
        })
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::Error::from_raw_os_error(9)); // EBADF
        }
        let mut at = offset;
        for part in parts {
            self.check_aligned(part.as_ptr(), part.len(), at)?;
            at += part.len() as u64;
        }
        self.with(|state, inode| {
            let file = state.inode(inode)?;
            let (path, growth) = (file.path.clone(), at.saturating_sub(file.len()));
            let verdict = state.fuse.judge(Operation::Write, &path);
            if matches!(verdict, Verdict::Go) {
                state.check_space(growth)?;
            }
            // A write that fails may have written any part; what of it stays is decided at the crash.
            let file = state.inode(inode)?;
            let mut at = offset;
            for part in parts {
                file.write(part, at);
                at += part.len() as u64;
            }
            match verdict {
                Verdict::Go => Ok(()),
                Verdict::Last(error) | Verdict::Fail(error) => Err(error),
            }
        })
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.check_aligned(buf.as_ptr(), buf.len(), offset)?;
        self.with(|state, inode| {
            let path = state.inode(inode)?.path.clone();
            state.fuse.check(Operation::Read, &path)?;
            state.inode(inode)?.read(buf, offset)
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|state, inode| {
            let path = state.inode(inode)?.path.clone();
            match state.fuse.judge(Operation::Sync, &path) {
                Verdict::Go => state.inode(inode)?.sync(),
                Verdict::Last(error) => return Err(error),
                Verdict::Fail(error) => {
                    let mut rng = state.fuse.fork_rng();
                    state.inode(inode)?.sync_failed(&mut rng);
                    return Err(error);
                }
            }
            Ok(())
        })
    }
}

impl State {
    fn inode(&mut self, inode: u64) -> io::Result<&mut Inode> {
        self.inodes.get_mut(&inode).ok_or_else(|| io::Error::from_raw_os_error(9))
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let state = &mut *self.disk.state.lock();
        if state.life == self.life
            && let Some(inode) = state.inodes.get_mut(&self.inode)
        {
            inode.handles = inode.handles.saturating_sub(1);
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no such file or directory: {}", path.display()))
}

fn name_of(path: &Path) -> io::Result<&str> {
    path.file_name()
        .and_then(|name| name.to_str())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("no name: {}", path.display())))
}
