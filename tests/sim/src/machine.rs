//! One machine with a node on it: its disk, its life, and what an operator does for it.
//!
//! A node that has died, that says it is not healthy or that does not start is started again. A single node may do the latter
//! two in a life with disk faults only; one of three may also end, or not come up, while the others or the network are ill.

use std::sync::Arc;

use futures_util::future::FutureExt as _;
use isobar_host::sim::{SimDisk, World};
use isobar_node::node::Store;
use isobar_testkit::history::Op;
use parking_lot::Mutex;

use crate::history::Recorder;
use crate::node::{self, Life, Stage};
use crate::plan::{Draw as _, Plan};
use crate::run::{DRIVER, Driver};
use crate::store::{GatedStore, Reach};

/// What makes the life that is running die.
pub(crate) enum Armed {
    No,
    Steps,
    Point(&'static str),
}

/// See the module's page.
pub(crate) struct Machine {
    pub name: &'static str,
    pub disk: Arc<SimDisk>,
    pub life: Arc<Mutex<Life>>,
    pub armed: Armed,
    pub boots: u64,
    /// When it is switched on again, if it is off.
    pub boot_at: u64,
    /// When an operator looks after a node that is not well.
    pub care_at: Option<u64>,
    pub stop_since: Option<u64>,
    pub disk_faults_until: u64,
    pub reach: Arc<Reach>,
}

impl Machine {
    /// Switched off, with nothing on its disk but what an operator puts there.
    pub(crate) fn new(world: &mut World, plan: &Plan, at: usize, recorder: &Recorder) -> Self {
        let name = plan.name_of(at);
        let disk = Arc::new(SimDisk::new(plan.seed.wrapping_add(at as u64 * 7_919)));
        if plan.cluster.is_some()
            && let Err(error) = node::install(&disk)
        {
            recorder.problem(format!("the simulation's own disk: {error}"));
        }
        world.add_node(name, Arc::clone(&disk));
        world.sabotage(name, plan.sabotage);
        Self {
            name,
            disk,
            life: Life::new(),
            armed: Armed::No,
            boots: 0,
            boot_at: 0,
            care_at: None,
            stop_since: None,
            disk_faults_until: 0,
            reach: Arc::default(),
        }
    }

    pub(crate) fn stage(&self) -> Stage {
        self.life.lock().stage.clone()
    }

    pub(crate) fn is_up(&self) -> bool {
        self.life.lock().stage == Stage::Up
    }
}

impl Driver {
    pub(crate) fn fault(&mut self, kind: &str, point: Option<&str>) {
        *self.counters.faults.entry(kind.to_owned()).or_default() += 1;
        let (kind, point) = (kind.to_owned(), point.map(str::to_owned));
        self.recorder.add(DRIVER, Op::Fault { kind, point });
    }

    /// The life that was armed has ended.
    pub(crate) fn died(&mut self, at: usize) {
        match std::mem::replace(&mut self.nodes[at].armed, Armed::No) {
            Armed::Point(point) => {
                *self.counters.points_hit.entry(point.to_owned()).or_default() += 1;
                self.fault("crash-point", Some(point));
            }
            Armed::Steps => self.fault("crash-at-step", None),
            Armed::No => self.recorder.problem("the node died and nobody had armed it"),
        }
        self.buried(at);
    }

    /// Ends the life from outside.
    pub(crate) fn end(&mut self, at: usize, kind: &str) {
        if kind == "kill" {
            self.world.kill(self.nodes[at].name)
        } else {
            self.world.crash(self.nodes[at].name)
        }
        self.fault(kind, None);
        self.buried(at);
    }

    fn buried(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let life = node.life.lock();
        self.counters.object_requests += life.puts + life.gets;
        self.seen.lives_over += life.lives_over;
        self.seen.zone_blocks += life.zone_blocks;
        drop(life);
        node.armed = Armed::No;
        node.care_at = None;
        node.stop_since = None;
        let most = match self.plan.cluster {
            _ if self.healing => 20,
            None => self.rng.pick(&[5, 50, 1_000]),
            Some(_) => self.rng.pick(&[5, 50, 1_000, 12_000]),
        };
        node.boot_at = self.tick + self.rng.between(1, most);
    }

    pub(crate) fn boot(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.life = Life::new();
        node.life.lock().had_disk_faults = node.disk_faults_until > 0;
        let (life, plan) = (Arc::clone(&node.life), self.plan.clone());
        let (bucket, counters) = (self.bucket.clone(), Arc::clone(&self.store));
        let reach = Arc::clone(&node.reach);
        let recovering = self.recovering;
        self.world.boot(node.name, move |host| {
            let given = || Store::Given(Arc::new(GatedStore::new(&host, &bucket, &counters, &reach)));
            let store = (!plan.node.store_inside).then(given);
            if recovering {
                node::recover_there(host, node::recover_options(&plan.node, store), life).boxed()
            } else {
                node::live(host, node::options(&plan, at, store), life).boxed()
            }
        });
        node.boots += 1;
        if node.boots > 1 {
            self.counters.restarts += 1;
            self.recorder.add(DRIVER, Op::Restart);
        }
        // The first start too: nothing is lost by one that ends half made.
        if !self.healing && self.rng.percent(25) {
            self.arm(at);
        }
    }

    pub(crate) fn arm(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if self.rng.percent(60) {
            let point = self.rng.pick(&self.plan.points);
            self.world.arm_point(node.name, point);
            node.armed = Armed::Point(point);
        } else {
            let most = self.rng.pick(&[30, 300, 3_000]);
            self.world.arm(node.name, self.rng.between(1, most));
            node.armed = Armed::Steps;
        }
    }

    /// What an operator, or the service manager, does for a node that is not well.
    pub(crate) fn look_after(&mut self, at: usize) {
        let (stage, had_disk_faults, was_fenced) = {
            let life = self.nodes[at].life.lock();
            (life.stage.clone(), life.had_disk_faults, life.was_fenced)
        };
        let excused = had_disk_faults || was_fenced || self.lenient;
        let (what, why, excused) = match stage {
            Stage::Starting | Stage::Up => return self.watch_stop(at),
            Stage::Stopped(Ok(())) => return self.end(at, "exit"),
            Stage::Stopped(Err(why)) => ("the node did not stop in order", why, excused),
            Stage::Failed(why) => ("the node did not start", why, excused || self.others_are_ill()),
            Stage::Unhealthy(why) => ("the node became unhealthy", why, excused),
        };
        if self.nodes[at].care_at.is_none() {
            let counter = if what.contains("start") {
                &mut self.counters.starts_failed
            } else {
                &mut self.counters.unhealthy
            };
            *counter += 1;
            if !excused {
                self.recorder.problem(format!("{what}, without a disk fault: {why}"));
            }
            self.nodes[at].care_at = Some(self.tick + self.rng.between(1, 300));
        }
        if self.nodes[at].care_at.is_some_and(|at| self.tick >= at) {
            let kind = if self.rng.percent(50) { "kill" } else { "power-cut" };
            self.end(at, kind);
        }
    }

    /// An orderly stop ends within the time that its parts allow each other.
    fn watch_stop(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        if node.stop_since.is_some_and(|since| self.tick > since + 60_000) {
            node.stop_since = None;
            self.recorder.problem("an orderly stop took more than a minute");
        }
    }

    /// What the node's disk and its lives have counted, before the machine goes.
    pub(crate) fn retire_disk(&mut self, at: usize) {
        let node = &self.nodes[at];
        for (point, count) in self.world.points_passed(node.name) {
            *self.passed.entry(point.to_owned()).or_default() += count;
        }
        let disk = node.disk.stats();
        self.counters.disk_errors += disk.errors;
        self.counters.pages_dropped += disk.dropped_pages;
        self.counters.pages_torn += disk.torn_pages;
    }
}
