//! One seed from beginning to verdict.
//!
//! The driver moves the world on, injects faults, and does what an operator would: a node that has died, that says it is not
//! healthy or that does not start is started again. Then it heals everything, waits until the clients are done, has
//! everything read once from the node as it is and once after a flush and a restart, and judges what the clients saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::FutureExt as _;
use isobar_host::disk::Faults;
use isobar_host::sim::{SimDisk, World};
use isobar_node::node::Store;
use isobar_testkit::Rng;
use isobar_testkit::bucket::{Bucket, FaultPlan};
use isobar_testkit::history::{Checker, Event, Op, Options, Report};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::history::Recorder;
use crate::load::{self, Drain, Load};
use crate::node::{self, Life, Stage};
use crate::panics;
use crate::plan::{Draw as _, Plan};
use crate::store::{GatedStore, StoreCounters};
use crate::totals::add;

pub(crate) const NODE: &str = "node";
pub(crate) const CLIENTS: &str = "clients";
/// The driver's number in the history.
const DRIVER: u32 = 0;
/// Simulated time after which something that must end has not, in ticks.
const PATIENCE_MS: u64 = 120_000;
/// Ticks that pass at once while no client is there.
const QUIET_TICKS: u32 = 50;

/// What a seed did, and what came of it.
pub struct Outcome {
    pub seed: u64,
    /// (hash, number of events) of all steps of all machines.
    pub trace: (u64, u64),
    pub trace_lines: Vec<String>,
    pub events: Vec<Event>,
    pub report: Report,
    /// What must not happen and no history shows: a node that does not start, a client that is refused for good.
    pub problems: BTreeMap<String, u64>,
    pub counters: Counters,
    pub simulated_ms: u64,
}

impl Outcome {
    /// Neither an anomaly nor a problem.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean() && self.problems.is_empty()
    }

    /// What is wrong, a line each.
    pub fn complaints(&self) -> Vec<String> {
        let of_kind = |found: &isobar_testkit::history::Found| {
            let first = found.examples.first();
            let where_ =
                first.map(|a| format!("{}-{}: {}", a.topic, a.partition, a.what)).unwrap_or_default();
            format!("ANOMALY {}: {} times, first {where_}", found.kind.name(), found.count)
        };
        let anomalies = self.report.found.iter().map(of_kind);
        let problems = self.problems.iter().map(|(what, count)| format!("PROBLEM ({count} times) {what}"));
        anomalies.chain(problems).collect()
    }
}

/// What was done to a node. A run in which one that matters is zero has shown nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// By kind.
    pub faults: BTreeMap<String, u64>,
    /// Deaths at a named point.
    pub points_hit: BTreeMap<String, u64>,
    pub points_passed: BTreeMap<String, u64>,
    pub restarts: u64,
    pub starts_failed: u64,
    pub unhealthy: u64,
    pub objects_written: u64,
    pub object_requests: u64,
    pub object_bytes_read: u64,
    pub objects_deleted: u64,
    pub disk_errors: u64,
    pub pages_dropped: u64,
    pub pages_torn: u64,
    pub bucket_faults: BTreeMap<String, u64>,
    /// What came after the load, by what came of it.
    pub finale: BTreeMap<String, u64>,
}

impl Counters {
    /// What another seed did.
    pub fn add(&mut self, from: &Self) {
        add(&mut self.faults, &from.faults);
        add(&mut self.points_hit, &from.points_hit);
        add(&mut self.points_passed, &from.points_passed);
        add(&mut self.bucket_faults, &from.bucket_faults);
        add(&mut self.finale, &from.finale);
        self.restarts += from.restarts;
        self.starts_failed += from.starts_failed;
        self.unhealthy += from.unhealthy;
        self.objects_written += from.objects_written;
        self.object_requests += from.object_requests;
        self.object_bytes_read += from.object_bytes_read;
        self.objects_deleted += from.objects_deleted;
        self.disk_errors += from.disk_errors;
        self.pages_dropped += from.pages_dropped;
        self.pages_torn += from.pages_torn;
    }
}

/// What makes the life that is running die.
pub(crate) enum Armed {
    No,
    Steps,
    Point(&'static str),
}

pub(crate) struct Driver {
    pub(crate) world: World,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) disk: Arc<SimDisk>,
    pub(crate) bucket: Bucket,
    pub(crate) recorder: Recorder,
    pub(crate) load: Arc<Load>,
    pub(crate) life: Arc<Mutex<Life>>,
    pub(crate) store: Arc<StoreCounters>,
    pub(crate) counters: Counters,
    pub(crate) armed: Armed,
    pub(crate) tick: u64,
    pub(crate) boots: u64,
    /// When the node is switched on again, if it is off.
    pub(crate) boot_at: u64,
    /// When an operator looks after a node that is not well.
    pub(crate) care_at: Option<u64>,
    pub(crate) stop_since: Option<u64>,
    pub(crate) next_fault: u64,
    pub(crate) disk_faults_until: u64,
    pub(crate) bucket_faults_until: u64,
    pub(crate) healing: bool,
    /// `isobar recover` is what boots.
    pub(crate) recovering: bool,
    /// Something is damaged: a node may refuse to start, or become unhealthy.
    pub(crate) lenient: bool,
    /// When the history of the verdict ends.
    history_end_ns: u64,
    /// Of machines that are no more.
    passed: BTreeMap<String, u64>,
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
        let disk = Arc::new(SimDisk::new(seed));
        world.add_node(NODE, Arc::clone(&disk));
        world.add_node(CLIENTS, Arc::new(SimDisk::new(seed)));
        world.sabotage(NODE, plan.sabotage);
        let recorder = Recorder::default();
        let load = Load::new(plan.clone(), recorder.clone());
        Self {
            world,
            rng: Rng::new(seed ^ 0x51b0_7a11),
            disk,
            bucket: Bucket::new(seed, FaultPlan::NONE),
            recorder,
            load,
            life: Life::new(),
            store: Arc::default(),
            counters: Counters::default(),
            armed: Armed::No,
            tick: 0,
            boots: 0,
            boot_at: 0,
            care_at: None,
            stop_since: None,
            next_fault: plan.fault_every_ms,
            disk_faults_until: 0,
            bucket_faults_until: 0,
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
                self.inject();
            }
        }
    }

    fn heal(&mut self) {
        self.healing = true;
        self.disk_faults_until = 0;
        self.bucket_faults_until = 0;
        self.end_faults();
        self.world.arm(NODE, 0);
        // Whoever is down may stay down for some time of the load; and some sends must end after the last fault.
        let until = self.tick + 500;
        self.wait("", |driver| driver.tick >= until);
        self.load.stop_sending.store(true, Ordering::Relaxed);
        self.wait("the producers to end", |driver| driver.load.sending.lock().is_empty());
        self.load.stop.store(true, Ordering::Relaxed);
        self.wait("the consumers to end", |driver| driver.load.reading.lock().is_empty());
        self.drain(false);
        self.flush_and_restart();
        self.drain(true);
    }

    fn drain(&mut self, last: bool) {
        *self.load.drain.lock() = Drain::Wanted { last };
        self.wait("a read of everything", |driver| *driver.load.drain.lock() == Drain::Done);
        *self.load.drain.lock() = Drain::No;
    }

    /// Everything into the store, then a start that finds it there only.
    fn flush_and_restart(&mut self) {
        self.wait("the node to be up", |driver| driver.life.lock().stage == Stage::Up);
        self.life.lock().flush = true;
        self.wait("the last upload", |driver| {
            driver.life.lock().flushed || driver.life.lock().stage != Stage::Up
        });
        self.life.lock().stop = true;
        let stopped = |driver: &Self| matches!(driver.life.lock().stage, Stage::Stopped(_));
        let before = self.boots;
        self.wait("the last stop", |driver| stopped(driver) || driver.boots > before);
        self.wait("the last start", |driver| driver.boots > before && driver.life.lock().stage == Stage::Up);
    }

    /// Ticks until it is so. What does not come is a problem of the seed.
    pub(crate) fn wait(&mut self, what: &str, so: impl Fn(&Self) -> bool) -> bool {
        let deadline = self.tick + PATIENCE_MS;
        while !so(self) {
            if self.tick >= deadline {
                let stage = self.life.lock().stage.clone();
                let clients = (self.load.sending.lock().clone(), self.load.reading.lock().clone());
                self.recorder
                    .problem(format!("waited in vain for {what}; the node: {stage:?}, clients: {clients:?}"));
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
        if died.iter().any(|name| name == NODE) {
            self.died();
        }
        if self.world.is_up(NODE) {
            self.look_after();
        } else if self.tick >= self.boot_at {
            self.boot();
        }
    }

    fn fault(&mut self, kind: &str, point: Option<&str>) {
        *self.counters.faults.entry(kind.to_owned()).or_default() += 1;
        let (kind, point) = (kind.to_owned(), point.map(str::to_owned));
        self.recorder.add(DRIVER, Op::Fault { kind, point });
    }

    /// The life that was armed has ended.
    fn died(&mut self) {
        match std::mem::replace(&mut self.armed, Armed::No) {
            Armed::Point(point) => {
                *self.counters.points_hit.entry(point.to_owned()).or_default() += 1;
                self.fault("crash-point", Some(point));
            }
            Armed::Steps => self.fault("crash-at-step", None),
            Armed::No => self.recorder.problem("the node died and nobody had armed it"),
        }
        self.buried();
    }

    /// Ends the life from outside.
    pub(crate) fn end(&mut self, kind: &str) {
        if kind == "kill" {
            self.world.kill(NODE)
        } else {
            self.world.crash(NODE)
        }
        self.fault(kind, None);
        self.buried();
    }

    fn buried(&mut self) {
        let life = self.life.lock();
        self.counters.object_requests += life.puts + life.gets;
        drop(life);
        self.armed = Armed::No;
        self.care_at = None;
        self.stop_since = None;
        let most = if self.healing { 20 } else { self.rng.pick(&[5, 50, 1_000]) };
        self.boot_at = self.tick + self.rng.between(1, most);
    }

    fn boot(&mut self) {
        self.life = Life::new();
        self.life.lock().had_disk_faults = self.disk_faults_until > 0;
        let (life, plan) = (Arc::clone(&self.life), self.plan.node.clone());
        let (bucket, counters) = (self.bucket.clone(), Arc::clone(&self.store));
        let recovering = self.recovering;
        self.world.boot(NODE, move |host| {
            let given = || Store::Given(Arc::new(GatedStore::new(&host, &bucket, &counters)));
            let store = (!plan.store_inside).then(given);
            if recovering {
                node::recover_there(host, node::recover_options(&plan, store), life).boxed()
            } else {
                node::live(host, node::options(&plan, store), life).boxed()
            }
        });
        self.boots += 1;
        if self.boots > 1 {
            self.counters.restarts += 1;
            self.recorder.add(DRIVER, Op::Restart);
        }
        // The first start too: nothing is lost by one that ends half made.
        if !self.healing && self.rng.percent(25) {
            self.arm();
        }
    }

    fn arm(&mut self) {
        if self.rng.percent(60) {
            let point = self.rng.pick(&self.plan.points);
            self.world.arm_point(NODE, point);
            self.armed = Armed::Point(point);
        } else {
            let most = self.rng.pick(&[30, 300, 3_000]);
            self.world.arm(NODE, self.rng.between(1, most));
            self.armed = Armed::Steps;
        }
    }

    /// What an operator, or the service manager, does for a node that is not well.
    fn look_after(&mut self) {
        let (stage, excused) = {
            let life = self.life.lock();
            (life.stage.clone(), life.had_disk_faults || self.lenient)
        };
        let (what, why) = match stage {
            Stage::Starting | Stage::Up => return self.watch_stop(),
            Stage::Stopped(Ok(())) => return self.end("exit"),
            Stage::Stopped(Err(why)) => ("the node did not stop in order", why),
            Stage::Failed(why) => ("the node did not start", why),
            Stage::Unhealthy(why) => ("the node became unhealthy", why),
        };
        if self.care_at.is_none() {
            let counter = if what.contains("start") {
                &mut self.counters.starts_failed
            } else {
                &mut self.counters.unhealthy
            };
            *counter += 1;
            if !excused {
                self.recorder.problem(format!("{what}, without a disk fault: {why}"));
            }
            self.care_at = Some(self.tick + self.rng.between(1, 300));
        }
        if self.care_at.is_some_and(|at| self.tick >= at) {
            let kind = if self.rng.percent(50) { "kill" } else { "power-cut" };
            self.end(kind);
        }
    }

    /// An orderly stop ends within the time that its parts allow each other.
    fn watch_stop(&mut self) {
        if self.stop_since.is_some_and(|since| self.tick > since + 60_000) {
            self.stop_since = None;
            self.recorder.problem("an orderly stop took more than a minute");
        }
    }

    fn inject(&mut self) {
        match self.rng.below(100) {
            0..18 if self.world.is_up(NODE) => self.end("power-cut"),
            18..30 if self.world.is_up(NODE) => self.end("kill"),
            30..62 if self.world.is_up(NODE) && matches!(self.armed, Armed::No) => self.arm(),
            62..70 if self.life.lock().stage == Stage::Up && self.stop_since.is_none() => {
                self.fault("stop", None);
                self.life.lock().stop = true;
                self.stop_since = Some(self.tick);
            }
            70..85 if self.plan.disk_faults => self.disk_fault(),
            85..100 if self.plan.bucket_faults && !self.plan.node.store_inside => self.bucket_fault(),
            _ => {}
        }
    }

    fn disk_fault(&mut self) {
        let ppm = self.rng.pick(&[2_000, 20_000, 200_000]);
        let mut faults = Faults::default();
        let kind = match self.rng.below(4) {
            0 => {
                faults.read_errors_per_million = ppm;
                "disk-read-errors"
            }
            1 => {
                faults.write_errors_per_million = ppm;
                "disk-write-errors"
            }
            2 => {
                faults.sync_errors_per_million = ppm;
                "disk-sync-errors"
            }
            _ => {
                faults.capacity_bytes = Some(self.disk.used_bytes() + self.rng.pick(&[0, 40_000, 400_000]));
                "disk-full"
            }
        };
        self.disk.set_faults(faults);
        self.fault(kind, None);
        self.disk_faults_until = self.tick + self.rng.between(20, 1_500);
        self.life.lock().had_disk_faults = true;
    }

    fn bucket_fault(&mut self) {
        if self.rng.percent(35) {
            self.bucket.set_outage(true);
            self.fault("bucket-outage", None);
        } else {
            self.bucket.set_plan(FaultPlan::all(self.rng.pick(&[10_000, 50_000, 200_000])));
            self.fault("bucket-chaos", None);
        }
        self.bucket_faults_until = self.tick + self.rng.between(100, 4_000);
    }

    fn end_faults(&mut self) {
        if self.disk_faults_until <= self.tick {
            self.disk.set_faults(Faults::default());
            self.disk_faults_until = 0;
        }
        if self.bucket_faults_until <= self.tick {
            self.bucket.set_outage(false);
            self.bucket.set_plan(FaultPlan::NONE);
        }
    }

    /// What the node's disk and its lives have counted, before the machine goes.
    pub(crate) fn retire_disk(&mut self) {
        for (point, count) in self.world.points_passed(NODE) {
            *self.passed.entry(point.to_owned()).or_default() += count;
        }
        let disk = self.disk.stats();
        self.counters.disk_errors += disk.errors;
        self.counters.pages_dropped += disk.dropped_pages;
        self.counters.pages_torn += disk.torn_pages;
    }

    fn verdict(mut self) -> Outcome {
        self.world.crash(NODE);
        self.retire_disk();
        self.world.crash(CLIENTS);
        let life = self.life.lock();
        self.counters.object_requests += life.puts + life.gets;
        drop(life);
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
