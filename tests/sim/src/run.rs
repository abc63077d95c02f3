//! One seed from beginning to verdict.
//!
//! The driver moves the world on, injects faults, and does what an operator would ([`crate::machine`]). Then it heals
//! everything, waits until the clients are done, has everything read once from each node as it is and once after a flush and a
//! restart, and judges what the clients saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use isobar_host::sim::{SimDisk, World};
use isobar_store::MARKER_KEY;
use isobar_testkit::Rng;
use isobar_testkit::bucket::{Bucket, FaultPlan};
use isobar_testkit::history::{Checker, Options};

use crate::cluster::{Effect, Seen};
use crate::history::Recorder;
use crate::load::{self, Drain, Load};
use crate::machine::Machine;
use crate::node::Stage;
use crate::outcome::{Counters, Outcome};
use crate::panics;
use crate::plan::{Draw as _, Plan};
use crate::store::StoreCounters;

pub(crate) const CLIENTS: &str = "clients";
/// The driver's number in the history.
pub(crate) const DRIVER: u32 = 0;
/// Simulated time after which something that must end has not, in ticks.
const PATIENCE_MS: u64 = 120_000;
/// Ticks that pass at once while no client is there.
const QUIET_TICKS: u32 = 50;

pub(crate) struct Driver {
    pub(crate) world: World,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) nodes: Vec<Machine>,
    pub(crate) bucket: Bucket,
    pub(crate) recorder: Recorder,
    pub(crate) load: Arc<Load>,
    pub(crate) store: Arc<StoreCounters>,
    pub(crate) counters: Counters,
    pub(crate) tick: u64,
    pub(crate) next_fault: u64,
    pub(crate) bucket_faults_until: u64,
    /// Faults of a cluster that are on.
    pub(crate) effects: Vec<Effect>,
    /// What a cluster's nodes were seen to do.
    pub(crate) seen: Seen,
    pub(crate) healing: bool,
    /// `isobar recover` is what boots.
    pub(crate) recovering: bool,
    /// Something is damaged: a node may refuse to start, or become unhealthy.
    pub(crate) lenient: bool,
    /// When the history of the verdict ends.
    history_end_ns: u64,
    /// Of machines that are no more.
    pub(crate) passed: BTreeMap<String, u64>,
}

/// Runs one seed.
pub fn run(plan: &Plan, keep_trace: bool) -> Outcome {
    panics::begin();
    let mut driver = Driver::new(plan.clone(), keep_trace);
    driver.chaos();
    driver.heal();
    driver.history_end_ns = driver.recorder.stamp();
    driver.finale();
    let mut outcome = driver.verdict();
    for panic in panics::end() {
        *outcome.problems.entry(panic).or_default() += 1;
    }
    outcome
}

impl Driver {
    fn new(plan: Plan, keep_trace: bool) -> Self {
        let seed = plan.seed;
        let mut world = World::new(seed);
        if keep_trace {
            world.keep_trace();
        }
        let recorder = Recorder::default();
        let machine = |at| Machine::new(&mut world, &plan, at, &recorder);
        let nodes: Vec<Machine> = (0..plan.nodes()).map(machine).collect();
        world.add_node(CLIENTS, Arc::new(SimDisk::new(seed)));
        let load = Load::new(plan.clone(), recorder.clone());
        Self {
            world,
            rng: Rng::new(seed ^ 0x51b0_7a11),
            nodes,
            bucket: Bucket::new(seed, FaultPlan::NONE),
            recorder,
            load,
            store: Arc::default(),
            counters: Counters::default(),
            tick: 0,
            next_fault: plan.fault_every_ms,
            bucket_faults_until: 0,
            effects: Vec::new(),
            seen: Seen::default(),
            healing: false,
            recovering: false,
            lenient: false,
            history_end_ns: 0,
            passed: BTreeMap::new(),
            plan,
        }
    }

    /// Load and faults, for as long as the plan says.
    fn chaos(&mut self) {
        while self.tick < self.plan.quiet_ms {
            self.step_by(QUIET_TICKS);
        }
        let clients = Arc::clone(&self.load);
        self.world.boot(CLIENTS, move |host| load::run(host, clients));
        self.next_fault += self.tick;
        while self.tick < self.plan.quiet_ms + self.plan.load_ms {
            self.step();
            self.end_faults();
            if self.tick >= self.next_fault {
                self.next_fault = self.tick + self.rng.between(1, self.plan.fault_every_ms);
                match self.plan.cluster.clone() {
                    None => self.inject(),
                    Some(cluster) => self.inject_into(&cluster),
                }
            }
        }
    }

    fn heal(&mut self) {
        self.healing = true;
        self.end_all_faults();
        self.nodes.iter().for_each(|node| self.world.arm(node.name, 0));
        let one_away = self.plan.cluster.as_ref().is_some_and(|cluster| cluster.one_away);
        if one_away {
            // A bucket that takes nothing is no place to begin, and is refused.
            self.wait("a node to format the bucket", |driver| driver.objects().contains_key(MARKER_KEY));
        }
        self.set_read_only(one_away);
        // Whoever is down may stay down for some time of the load; and some sends must end after the last fault.
        let until = self.tick + if one_away { 2_000 } else { 500 };
        self.wait("", |driver| driver.tick >= until);
        self.load.stop_sending.store(true, Ordering::Relaxed);
        self.wait("the producers to end", |driver| driver.load.sending.lock().is_empty());
        self.load.stop.store(true, Ordering::Relaxed);
        self.wait("the consumers to end", |driver| driver.load.reading.lock().is_empty());
        self.agree();
        let away = one_away.then(|| self.one_goes());
        self.drain(false, away);
        away.into_iter().for_each(|at| self.nodes[at].boot_at = self.tick);
        self.set_read_only(false);
        self.flush_and_restart();
        self.agree();
        self.drain(true, None);
    }

    /// Everything is read; of a cluster from every node.
    fn drain(&mut self, last: bool, away: Option<usize>) {
        self.load.drained.lock().clear();
        for from in (0..self.nodes.len()).filter(|at| Some(*at) != away) {
            let from = self.plan.cluster.is_some().then_some(from);
            *self.load.drain.lock() = Drain::Wanted { last, from };
            self.wait("a read of everything", |driver| *driver.load.drain.lock() == Drain::Done);
            *self.load.drain.lock() = Drain::No;
        }
    }

    /// Everything into the store, then a start that finds it there only. Of a cluster: all at once, or one after the other.
    fn flush_and_restart(&mut self) {
        let all: Vec<usize> = (0..self.nodes.len()).collect();
        for at in all.clone() {
            self.wait("the node to be up", |driver| driver.nodes[at].is_up());
            self.nodes[at].life.lock().flush = true;
            self.wait("the last upload", |driver| {
                driver.nodes[at].life.lock().flushed || !driver.nodes[at].is_up()
            });
        }
        let is_rolling = all.len() > 1 && self.rng.percent(50);
        for group in all.chunks(if is_rolling { 1 } else { all.len() }) {
            let before: Vec<u64> = self.nodes.iter().map(|node| node.boots).collect();
            group.iter().for_each(|at| self.nodes[*at].life.lock().stop = true);
            for at in group.iter().copied() {
                let started = |driver: &Self| driver.nodes[at].boots > before[at];
                let stopped = |driver: &Self| matches!(driver.nodes[at].stage(), Stage::Stopped(_));
                self.wait("the last stop", |driver| stopped(driver) || started(driver));
                self.wait("the last start", |driver| started(driver) && driver.nodes[at].is_up());
            }
        }
    }

    /// Ticks until it is so. What does not come is a problem of the seed.
    pub(crate) fn wait(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> bool {
        let deadline = self.tick + PATIENCE_MS;
        while !so(self) {
            if self.tick >= deadline {
                let stages: Vec<Stage> = self.nodes.iter().map(Machine::stage).collect();
                let clients = (self.load.sending.lock().clone(), self.load.reading.lock().clone());
                self.recorder.problem(format!(
                    "waited in vain for {what}; the nodes: {stages:?}, clients: {clients:?}"
                ));
                return false;
            }
            self.step();
        }
        true
    }

    /// One tick, and what an operator does.
    pub(crate) fn step(&mut self) {
        self.step_by(1);
    }

    pub(crate) fn step_by(&mut self, ticks: u32) {
        self.recorder.set_now(self.world.now_us());
        let died = self.world.step_by(ticks);
        self.tick += u64::from(ticks);
        for at in 0..self.nodes.len() {
            let name = self.nodes[at].name;
            if died.iter().any(|died| died == name) {
                self.died(at);
            }
            if self.world.is_up(name) {
                self.look_after(at);
            } else if self.tick >= self.nodes[at].boot_at {
                self.boot(at);
            }
        }
        if self.plan.cluster.is_some() {
            self.observe();
        }
    }

    fn verdict(mut self) -> Outcome {
        for at in 0..self.nodes.len() {
            self.world.crash(self.nodes[at].name);
            self.retire_disk(at);
            let life = self.nodes[at].life.lock();
            self.counters.object_requests += life.puts + life.gets;
            self.seen.zone_blocks += life.zone_blocks;
        }
        self.world.crash(CLIENTS);
        self.tell_seen();
        self.counters.points_passed = std::mem::take(&mut self.passed);
        self.counters.objects_written = self.store.objects_written.load(Ordering::Relaxed);
        self.counters.object_bytes_read = self.store.bytes_read.load(Ordering::Relaxed);
        self.counters.objects_deleted = self.store.deletes.load(Ordering::Relaxed);
        let bucket = self.bucket.counts();
        self.counters.bucket_faults =
            bucket.into_iter().map(|(fault, n)| (format!("{fault:?}"), n)).collect();
        let mut events = self.recorder.finish();
        // Later ones are judged where they came from.
        events.retain(|event| event.time_ns <= self.history_end_ns);
        let mut checker = Checker::new(Options { dense: true, examples: 3 });
        let mut problems = self.recorder.problems();
        for event in &events {
            if let Err(error) = checker.event(event) {
                *problems.entry(format!("the history is wrong: {error}")).or_default() += 1;
                break;
            }
        }
        Outcome {
            seed: self.plan.seed,
            trace: self.world.trace(),
            trace_lines: self.world.trace_lines(),
            report: checker.finish(),
            events,
            problems,
            counters: self.counters,
            simulated_ms: self.tick,
        }
    }
}
