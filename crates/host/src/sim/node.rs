//! One life of a simulated node, and the gate between it and the outside.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::net::ASK_AGAIN;
use super::{Shared, SimConn, SimDisk, SimListener, SimRng};
use crate::disk::{DirLock, Disk, DiskFile, Open};

/// One life: from boot to death.
pub struct Node {
    name: String,
    pub(super) shared: Arc<Shared>,
    rng: Mutex<SimRng>,
    booted: Instant,
    booted_us: u64,
    start_ms: i64,
    /// How far its wall clock is wrong.
    clock_shift_ms: Arc<AtomicI64>,
    disk: Arc<SimDisk>,
    dead: AtomicBool,
    /// Steps until death; zero when not armed.
    fuse: AtomicU64,
    armed_point: Mutex<Option<&'static str>>,
    passed: Mutex<BTreeMap<&'static str, u64>>,
    /// The promise that this life breaks on purpose.
    sabotage: Option<String>,
}

impl Node {
    pub(super) fn new(name: &str, shared: Arc<Shared>, seed: u64, start_ms: i64, disk: Arc<SimDisk>) -> Self {
        let booted_us = shared.now_us.load(Ordering::Relaxed);
        Self {
            name: name.to_owned(),
            shared,
            rng: Mutex::new(SimRng::new(seed)),
            booted: Instant::now(),
            booted_us,
            start_ms,
            clock_shift_ms: Arc::default(),
            disk,
            dead: AtomicBool::new(false),
            fuse: AtomicU64::new(0),
            armed_point: Mutex::new(None),
            passed: Mutex::default(),
            sabotage: None,
        }
    }

    pub(super) fn with_clock(mut self, shift_ms: Arc<AtomicI64>) -> Self {
        self.clock_shift_ms = shift_ms;
        self
    }

    pub(super) fn sabotaged_by(mut self, promise: Option<String>) -> Self {
        self.sabotage = promise;
        self
    }

    pub(crate) fn sabotaged(&self, promise: &str) -> bool {
        self.sabotage.as_deref() == Some(promise)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Microseconds since the world began, by this node's clock.
    pub(super) fn now_us(&self) -> u64 {
        self.booted_us + u64::try_from(self.booted.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    pub(crate) fn now_ms(&self) -> i64 {
        let passed_ms = i64::try_from(self.now_us() / 1000).unwrap_or(i64::MAX);
        self.start_ms + self.clock_shift_ms.load(Ordering::Relaxed) + passed_ms
    }

    pub(crate) fn random_u64(&self) -> u64 {
        self.rng.lock().next_u64()
    }

    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(super) fn arm(&self, steps: u64) {
        self.fuse.store(steps, Ordering::Relaxed);
    }

    pub(super) fn arm_point(&self, point: &'static str) {
        *self.armed_point.lock() = Some(point);
    }

    pub(super) fn points_passed(&self) -> BTreeMap<&'static str, u64> {
        self.passed.lock().clone()
    }

    /// Dies here: from now on nothing this life does is seen outside.
    pub(super) fn die(&self, why: &str) {
        if self.ends(why) {
            let seed = self.shared.rng.lock().next_u64();
            self.disk.crash(seed);
        }
    }

    /// As [`Self::die`], but the machine and what it holds in memory for the disk live on.
    pub(super) fn be_killed(&self) {
        if self.ends("killed") {
            self.disk.kill();
        }
    }

    fn ends(&self, why: &str) -> bool {
        if self.dead.swap(true, Ordering::Relaxed) {
            return false;
        }
        self.shared.record(self.now_us_or_world(), &self.name, why);
        self.shared.network.forget_node(&self.name);
        true
    }

    /// The node's clock can be read only from inside its runtime; a crash may come from the world.
    fn now_us_or_world(&self) -> u64 {
        self.shared.now_us.load(Ordering::Relaxed)
    }

    /// Counts one effect on the outside. `Err` if this life has ended, before the effect.
    pub(crate) fn step(&self, what: &str) -> io::Result<()> {
        if self.is_dead() {
            return Err(gone());
        }
        self.shared.record(self.now_us(), &self.name, what);
        let left = self.fuse.load(Ordering::Relaxed);
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                self.die("dies at a step");
                return Err(gone());
            }
        }
        Ok(())
    }

    pub(crate) fn pass(&self, point: &'static str) {
        if self.step(point).is_err() {
            return;
        }
        *self.passed.lock().entry(point).or_default() += 1;
        if *self.armed_point.lock() == Some(point) {
            self.die("dies at a crash point");
        }
    }

    pub(crate) fn listen(self: &Arc<Self>, addr: &str) -> io::Result<SimListener> {
        self.step("listen")?;
        self.shared.network.listen(self, addr)
    }

    pub(crate) async fn connect(self: &Arc<Self>, addr: &str) -> io::Result<SimConn> {
        self.step("connect")?;
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        for wait in ASK_AGAIN {
            if !self.shared.network.is_cut_off(self, addr) {
                return self.shared.network.connect(self, addr);
            }
            tokio::time::sleep(wait).await;
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, format!("{addr} does not answer")))
    }

    pub(super) fn gated_disk(self: &Arc<Self>) -> Arc<dyn Disk> {
        Arc::new(GatedDisk { node: Arc::clone(self), disk: Arc::clone(&self.disk) })
    }
}

pub(super) fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "this node has died")
}

/// The disk as one life sees it: every call is a step, and none gets through after death.
struct GatedDisk {
    node: Arc<Node>,
    disk: Arc<SimDisk>,
}

impl Disk for GatedDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.node.step("create_dir_all")?;
        self.disk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.node.step("list")?;
        self.disk.list(dir)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        self.node.step("open")?;
        let file = self.disk.open(path, how)?;
        Ok(Box::new(GatedFile { node: Arc::clone(&self.node), file }))
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.node.step("read")?;
        self.disk.read(path)
    }

    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.node.step("write_durable")?;
        self.disk.write_durable(path, bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.node.step("rename")?;
        self.disk.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.node.step("link")?;
        self.disk.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.node.step("remove")?;
        self.disk.remove(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.node.step("sync_dir")?;
        self.disk.sync_dir(dir)
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        self.node.step("lock")?;
        self.disk.lock(dir)
    }
}

struct GatedFile {
    node: Arc<Node>,
    file: Box<dyn DiskFile>,
}

impl DiskFile for GatedFile {
    fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.node.step("allocate")?;
        self.file.allocate(len)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        self.node.step("write_at")?;
        self.file.write_at(parts, offset)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.node.step("read_at")?;
        self.file.read_at(buf, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.node.step("sync_data")?;
        self.file.sync_data()
    }
}
