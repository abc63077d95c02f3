//! The simulated machine.
//!
//! Owns: a [`World`] of nodes. Each node's life is one current-thread tokio runtime with a paused clock; the world
//! steps them one after another, a tick of one millisecond at a time, so nothing runs in parallel and the order of
//! everything follows from the seed.
//!
//! Invariants:
//! 1. A dead life changes nothing: once a node has died (at a step counted by [`Node::step`]), its disk and network
//!    calls fail and leave no trace, though its code runs on until the tick ends and its runtime is dropped.
//! 2. What a life leaves behind is its disk after [`SimDisk::crash`], and the bytes already on the network's way are
//!    lost with the connections they travelled on.
//! 3. The same seed gives the same [`World::trace`].
//!
//! A node may be paused, its clock be wrong, the network between two be cut, slow or lossy.
//!
//! Crash cases: [`World::arm`] lets a node die at its n-th step from now, where a step is any disk call, network
//! write or named crash point.

mod net;
mod node;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

pub use crate::disk::SimDisk;
pub use crate::random::SimRng;
pub use net::{Link, SimConn, SimListener, SimReadHalf, SimWriteHalf};
pub use node::Node;

use crate::Host;
use net::Network;

/// Length of one step of the world.
const TICK: Duration = Duration::from_millis(1);

/// What every node of a world shares.
pub(crate) struct Shared {
    now_us: AtomicU64,
    rng: Mutex<SimRng>,
    network: Network,
    trace: Mutex<Trace>,
}

#[derive(Default)]
struct Trace {
    hash: u64,
    events: u64,
    lines: Option<Vec<String>>,
}

impl Shared {
    /// Folds one event into the trace. Every step of every node passes here.
    fn record(&self, now_us: u64, node: &str, event: &str) {
        let mut trace = self.trace.lock();
        let mut hash = trace.hash ^ now_us;
        for byte in node.bytes().chain(event.bytes()) {
            // FNV-1a: good enough to tell two runs apart.
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        trace.hash = hash;
        trace.events += 1;
        if let Some(lines) = &mut trace.lines {
            lines.push(format!("{now_us} {node} {event}"));
        }
    }
}

/// A set of nodes that live and die by one seed.
pub struct World {
    shared: Arc<Shared>,
    nodes: BTreeMap<String, Slot>,
    start_ms: i64,
}

struct Slot {
    disk: Arc<SimDisk>,
    life: Option<Life>,
    passed: BTreeMap<&'static str, u64>,
    sabotage: Option<String>,
    clock_shift_ms: Arc<AtomicI64>,
}

struct Life {
    runtime: tokio::runtime::Runtime,
    node: Arc<Node>,
    paused: bool,
    /// Time that went by while it was paused.
    missed: Duration,
}

impl World {
    /// An empty world. Its wall clock starts at a fixed day and moves only as ticks are stepped.
    pub fn new(seed: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                now_us: AtomicU64::new(0),
                rng: Mutex::new(SimRng::new(seed)),
                network: Network::default(),
                trace: Mutex::default(),
            }),
            nodes: BTreeMap::new(),
            start_ms: 1_767_225_600_000,
        }
    }

    /// Keeps the trace's lines as well as their hash; for finding where two runs part.
    pub fn keep_trace(&mut self) {
        self.shared.trace.lock().lines = Some(Vec::new());
    }

    /// (hash, number of events) of all steps so far.
    pub fn trace(&self) -> (u64, u64) {
        let trace = self.shared.trace.lock();
        (trace.hash, trace.events)
    }

    /// The lines kept since [`World::keep_trace`].
    pub fn trace_lines(&self) -> Vec<String> {
        self.shared.trace.lock().lines.clone().unwrap_or_default()
    }

    /// Folds an event of the harness itself into the trace.
    pub fn record(&self, event: &str) {
        self.shared.record(self.now_us(), "world", event);
    }

    /// A random number below `bound` from the world's seed.
    pub fn below(&self, bound: u64) -> u64 {
        self.shared.rng.lock().below(bound)
    }

    /// Microseconds since the world began.
    pub fn now_us(&self) -> u64 {
        self.shared.now_us.load(Ordering::Relaxed)
    }

    /// Adds a node that is switched off, with the disk it will boot from.
    pub fn add_node(&mut self, name: &str, disk: Arc<SimDisk>) {
        let (passed, clock_shift_ms) = (BTreeMap::new(), Arc::default());
        let slot = Slot { disk, life: None, passed, sabotage: None, clock_shift_ms };
        self.nodes.insert(name.to_owned(), slot);
    }

    /// Switches a node on and spawns its main task. Does nothing if it is already running.
    pub fn boot<F>(&mut self, name: &str, main: impl FnOnce(Host) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(slot) = self.nodes.get_mut(name).filter(|slot| slot.life.is_none()) else { return };
        #[expect(clippy::expect_used, reason = "a runtime without drivers needs nothing that can be lacking")]
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a current-thread runtime");
        self.shared.record(self.shared.now_us.load(Ordering::Relaxed), name, "boot");
        let seed = self.shared.rng.lock().next_u64();
        let _inside = runtime.enter();
        let node = Node::new(name, Arc::clone(&self.shared), seed, self.start_ms, Arc::clone(&slot.disk));
        let node = node.with_clock(Arc::clone(&slot.clock_shift_ms));
        let node = Arc::new(node.sabotaged_by(slot.sabotage.clone()));
        let host = Host::simulated(Arc::clone(&node), node.gated_disk());
        let main = main(host);
        #[expect(clippy::disallowed_methods, reason = "the simulator is the runtime")]
        tokio::spawn(main);
        drop(_inside);
        slot.life = Some(Life { runtime, node, paused: false, missed: Duration::ZERO });
    }

    /// Lets the node die at its `steps`-th step from now (1: at the very next).
    pub fn arm(&self, name: &str, steps: u64) {
        if let Some(life) = self.nodes.get(name).and_then(|slot| slot.life.as_ref()) {
            life.node.arm(steps);
        }
    }

    /// Lets the node die when it next passes the named crash point.
    pub fn arm_point(&self, name: &str, point: &'static str) {
        if let Some(life) = self.nodes.get(name).and_then(|slot| slot.life.as_ref()) {
            life.node.arm_point(point);
        }
    }

    /// Breaks a promise in the node's later lives on purpose ([`Host::sabotaged`]).
    pub fn sabotage(&mut self, name: &str, promise: Option<&str>) {
        if let Some(slot) = self.nodes.get_mut(name) {
            slot.sabotage = promise.map(str::to_owned);
        }
    }

    /// Power cut: the node dies now; its disk keeps what was synced and a random part of the rest.
    pub fn crash(&mut self, name: &str) {
        if let Some(life) = self.nodes.get(name).and_then(|slot| slot.life.as_ref()) {
            life.node.die("crash");
            self.bury(name);
        }
    }

    /// SIGKILL: the process ends now; what it wrote is still there, synced or not.
    pub fn kill(&mut self, name: &str) {
        if let Some(life) = self.nodes.get(name).and_then(|slot| slot.life.as_ref()) {
            life.node.be_killed();
            self.bury(name);
        }
    }

    /// Cuts the network between two nodes: nothing arrives in either direction, and nobody is told. What is sent waits.
    pub fn cut(&self, a: &str, b: &str) {
        self.set_link(a, b, Link { cut: true, ..Link::default() });
        self.set_link(b, a, Link { cut: true, ..Link::default() });
    }

    /// Ends a [`World::cut`]: what waited arrives now.
    pub fn heal(&self, a: &str, b: &str) {
        self.set_link(a, b, Link::default());
        self.set_link(b, a, Link::default());
    }

    /// How the network is from one node to another from now on.
    pub fn set_link(&self, from: &str, to: &str, link: Link) {
        self.record(&format!("{from} to {to}: {link:?}"));
        self.shared.network.set_link(from, to, link);
    }

    /// Ends all connections between two nodes.
    pub fn reset(&self, a: &str, b: &str) {
        self.record(&format!("reset {a} {b}"));
        self.shared.network.reset(a, b);
    }

    /// SIGSTOP: the node stands still while time goes on; what it is sent waits for it.
    pub fn pause(&mut self, name: &str) {
        self.set_paused(name, true);
    }

    /// SIGCONT: the node goes on, and its clocks have jumped.
    pub fn resume(&mut self, name: &str) {
        self.set_paused(name, false);
    }

    fn set_paused(&mut self, name: &str, paused: bool) {
        if let Some(life) = self.nodes.get_mut(name).and_then(|slot| slot.life.as_mut()) {
            life.paused = paused;
            self.record(&format!("{name} paused: {paused}"));
        }
    }

    /// The node's wall clock is wrong by so much from now on, in later lives too.
    pub fn shift_clock(&self, name: &str, ms: i64) {
        if let Some(slot) = self.nodes.get(name) {
            slot.clock_shift_ms.store(ms, Ordering::Relaxed);
            self.record(&format!("{name} clock {ms:+} ms"));
        }
    }

    /// True while the node runs.
    pub fn is_up(&self, name: &str) -> bool {
        self.nodes.get(name).is_some_and(|slot| slot.life.as_ref().is_some_and(|life| !life.node.is_dead()))
    }

    /// How often the node passed each named crash point, over all its lives.
    pub fn points_passed(&self, name: &str) -> BTreeMap<&'static str, u64> {
        let Some(slot) = self.nodes.get(name) else { return BTreeMap::new() };
        let mut all = slot.passed.clone();
        if let Some(life) = &slot.life {
            for (point, count) in life.node.points_passed() {
                *all.entry(point).or_default() += count;
            }
        }
        all
    }

    /// Moves every node one millisecond on, in the order of their names. Nodes that died in it are switched off;
    /// their names are returned.
    pub fn step(&mut self) -> Vec<String> {
        self.step_by(1)
    }

    /// As [`Self::step`], by so many milliseconds at once: each node runs through all of them before the next one does. For
    /// times in which only one node is on, or none that speaks to another.
    pub fn step_by(&mut self, ticks: u32) -> Vec<String> {
        let time = TICK * ticks;
        let ms = self.now_us() / 1000;
        let mut died = Vec::new();
        for (name, slot) in &mut self.nodes {
            let Some(life) = &mut slot.life else { continue };
            if life.paused {
                life.missed += time;
                continue;
            }
            let missed = std::mem::take(&mut life.missed);
            // Who says what in a log.
            let _said = tracing::info_span!("", at = name.as_str(), ms).entered();
            life.runtime.block_on(async {
                if !missed.is_zero() {
                    tokio::time::advance(missed).await;
                }
                tokio::time::sleep(time).await;
            });
            if life.node.is_dead() {
                died.push(name.clone());
            }
        }
        self.shared.now_us.fetch_add(time.as_micros() as u64, Ordering::Relaxed);
        for name in &died {
            self.bury(name);
        }
        died
    }

    fn bury(&mut self, name: &str) {
        let Some(slot) = self.nodes.get_mut(name) else { return };
        let Some(life) = slot.life.take() else { return };
        for (point, count) in life.node.points_passed() {
            *slot.passed.entry(point).or_default() += count;
        }
        self.shared.network.forget_node(name);
        drop(life);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let names: Vec<String> = self.nodes.keys().cloned().collect();
        for name in names {
            self.crash(&name);
        }
    }
}
