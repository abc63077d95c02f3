//! The only door to the machine: clock, randomness, tasks, TCP, disk.
//!
//! Owns: the [`Host`] handle that every other crate is given, in two worlds. *Real*: the operating system.
//! *Simulated* ([`sim`]): one tokio runtime a node with a paused clock, a network and a disk in memory, all from one
//! seed, so that a run can be repeated and a node can die between any two steps.
//!
//! Promises: nothing of Isobar touches the machine but through here (clippy bans the rest); in the simulated world no
//! answer of this crate depends on anything but the seed and the order of the calls.
//!
//! May not know: what the bytes mean.

pub mod buffer;
mod crash;
pub mod disk;
mod net;
mod random;
#[cfg(feature = "sim")]
pub mod sim;
mod task;
mod usage;
pub mod watch;

use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use buffer::{AlignedBuf, BufferPool};
pub use disk::{Disk, DiskFile, Open};
pub use net::{Conn, Listener, ReadHalf, WriteHalf};
pub use task::{Spawner, Task};

use crash::CrashPoints;

/// A handle on the machine this node runs on. Cheap to clone.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    world: World,
    disk: Arc<dyn Disk>,
    points: CrashPoints,
}

enum World {
    Real,
    #[cfg(feature = "sim")]
    Sim(Arc<sim::Node>),
}

impl Host {
    /// The operating system's clock, sockets and files. Paths are taken as they are.
    pub fn real() -> Self {
        Self {
            inner: Arc::new(Inner {
                world: World::Real,
                disk: Arc::new(disk::RealDisk::new()),
                points: CrashPoints::from_env(),
            }),
        }
    }

    #[cfg(feature = "sim")]
    pub(crate) fn simulated(node: Arc<sim::Node>, disk: Arc<dyn Disk>) -> Self {
        Self { inner: Arc::new(Inner { world: World::Sim(node), disk, points: Default::default() }) }
    }

    /// True in the simulated world, where there are no threads of one's own.
    pub fn is_simulated(&self) -> bool {
        !matches!(self.inner.world, World::Real)
    }

    /// Wall clock, milliseconds since the Unix epoch. May jump; for records' timestamps and deadlines that outlive
    /// the process, never for measuring.
    pub fn now_ms(&self) -> i64 {
        match &self.inner.world {
            #[expect(clippy::disallowed_methods, reason = "the one door to the wall clock")]
            World::Real => std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX)),
            #[cfg(feature = "sim")]
            World::Sim(node) => node.now_ms(),
        }
    }

    /// 64 random bits: from the operating system, or from the node's seed.
    pub fn random_u64(&self) -> u64 {
        match &self.inner.world {
            World::Real => random::from_system(),
            #[cfg(feature = "sim")]
            World::Sim(node) => node.random_u64(),
        }
    }

    /// A version 4 UUID's bytes (RFC 9562).
    pub fn random_uuid(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.random_u64().to_be_bytes());
        bytes[8..].copy_from_slice(&self.random_u64().to_be_bytes());
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        bytes
    }

    /// Runs a task on the current runtime until it ends, is aborted, or the runtime goes away.
    /// Dropping the returned handle detaches the task.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Task {
        task::spawn(name, future)
    }

    /// Runs blocking or long CPU work off the async threads (in the simulation: at once, in place).
    /// `None` if the work panicked or the runtime is going away.
    pub async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.is_simulated() {
            return Some(work());
        }
        #[expect(clippy::disallowed_methods, reason = "the one door to the blocking pool")]
        tokio::task::spawn_blocking(work).await.ok()
    }

    /// A runtime for work that must not wait behind the listeners: one OS thread of its own, or, simulated, the
    /// node's only runtime.
    pub fn thread_runtime(&self, name: &'static str) -> io::Result<Spawner> {
        if self.is_simulated() { Ok(Spawner::current()) } else { Spawner::on_own_thread(name) }
    }

    /// An OS thread. There are none in the simulation: callers look at [`Host::is_simulated`] first.
    pub fn os_thread(
        &self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<std::thread::JoinHandle<()>> {
        if self.is_simulated() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "no OS threads in the simulation"));
        }
        std::thread::Builder::new().name(name.to_owned()).spawn(body)
    }

    /// This node's disk.
    pub fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.inner.disk)
    }

    /// Listens on `host:port`; port 0 picks a free one.
    pub async fn listen(&self, addr: &str) -> io::Result<Listener> {
        match &self.inner.world {
            World::Real => Listener::bind(addr).await,
            #[cfg(feature = "sim")]
            World::Sim(node) => node.listen(addr).map(Listener::Sim),
        }
    }

    /// Connects to `host:port`, Nagle's algorithm off.
    pub async fn connect(&self, addr: &str) -> io::Result<Conn> {
        match &self.inner.world {
            World::Real => Conn::connect(addr).await,
            #[cfg(feature = "sim")]
            World::Sim(node) => node.connect(addr).await.map(Conn::Sim),
        }
    }

    /// A named step between two effects on the outside: tests make the node die exactly here.
    /// Does nothing in a build without the feature `crash-points`.
    pub fn crash_point(&self, name: &'static str) {
        match &self.inner.world {
            World::Real => self.inner.points.pass(name),
            #[cfg(feature = "sim")]
            World::Sim(node) => node.pass(name),
        }
    }

    /// True where a test breaks the named promise on purpose. Always false in a build without `sabotage` or `sim`.
    pub fn sabotaged(&self, name: &str) -> bool {
        match &self.inner.world {
            World::Real => crash::sabotaged(name),
            #[cfg(feature = "sim")]
            World::Sim(node) => node.sabotaged(name),
        }
    }

    /// Counts one effect on the outside that does not pass through this crate, such as a call of a store that the
    /// simulation made. `Err` if this life has ended, or ends here: then there must be no effect, and no answer.
    #[cfg(feature = "sim")]
    pub fn step(&self, what: &str) -> io::Result<()> {
        match &self.inner.world {
            World::Real => Ok(()),
            World::Sim(node) => node.step(what),
        }
    }

    /// Holds this thread between a promise and the late deed, so that a kill finds the gap. Does nothing in simulation
    /// and in a build without `sabotage`.
    pub fn sabotage_lag(&self) {
        if !self.is_simulated() {
            crash::lag();
        }
    }

    /// This process's resident memory in bytes and CPU time in seconds, for the metrics page. Zero when simulated.
    pub fn process_usage(&self) -> (u64, f64) {
        if self.is_simulated() { (0, 0.0) } else { usage::of_this_process() }
    }

    /// Bytes that this process may still write to the file system of a path that exists. Without bound when simulated.
    pub fn free_disk_bytes(&self, path: &Path) -> io::Result<u64> {
        if self.is_simulated() {
            return Ok(u64::MAX);
        }
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// The id of this process; 1 when simulated.
    pub fn process_id(&self) -> u32 {
        if self.is_simulated() { 1 } else { std::process::id() }
    }

    /// Shorthand for a small file's bytes.
    pub fn read_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.disk.read(path)
    }
}
