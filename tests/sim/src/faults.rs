//! Faults of one machine, its disk and the bucket, and their end.

use isobar_host::disk::Faults;
use isobar_testkit::bucket::FaultPlan;

use crate::machine::Armed;
use crate::plan::Draw as _;
use crate::run::Driver;

impl Driver {
    /// Something happens to a node that is alone.
    pub(crate) fn inject(&mut self) {
        let is_on = self.world.is_up(self.nodes[0].name);
        let is_armed = !matches!(self.nodes[0].armed, Armed::No);
        match self.rng.below(100) {
            0..18 if is_on => self.end(0, "power-cut"),
            18..30 if is_on => self.end(0, "kill"),
            30..62 if is_on && !is_armed => self.arm(0),
            62..70 => self.stop(0),
            70..85 if self.plan.disk_faults => self.disk_fault(0),
            85..100 if self.plan.bucket_faults && !self.plan.node.store_inside => self.bucket_fault(),
            _ => {}
        }
    }

    /// SIGTERM, to a node that has started.
    pub(crate) fn stop(&mut self, at: usize) {
        let node = &self.nodes[at];
        if self.world.is_up(node.name) && node.is_up() && node.stop_since.is_none() {
            self.fault("stop", None);
            self.nodes[at].life.lock().stop = true;
            self.nodes[at].stop_since = Some(self.tick);
        }
    }

    pub(crate) fn disk_fault(&mut self, at: usize) {
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
                let used = self.nodes[at].disk.used_bytes();
                faults.capacity_bytes = Some(used + self.rng.pick(&[0, 40_000, 400_000]));
                "disk-full"
            }
        };
        self.nodes[at].disk.set_faults(faults);
        self.fault(kind, None);
        self.nodes[at].disk_faults_until = self.tick + self.rng.between(20, 1_500);
        self.nodes[at].life.lock().had_disk_faults = true;
    }

    pub(crate) fn bucket_fault(&mut self) {
        if self.rng.percent(35) {
            self.bucket.set_outage(true);
            self.fault("bucket-outage", None);
        } else {
            self.bucket.set_plan(FaultPlan::all(self.rng.pick(&[10_000, 50_000, 200_000])));
            self.fault("bucket-chaos", None);
        }
        self.bucket_faults_until = self.tick + self.rng.between(100, 4_000);
    }

    /// Those whose time is over.
    pub(crate) fn end_faults(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.disk_faults_until <= self.tick) {
            node.disk.set_faults(Faults::default());
            node.disk_faults_until = 0;
        }
        if self.bucket_faults_until <= self.tick {
            self.bucket.set_outage(false);
            self.bucket.set_plan(FaultPlan::NONE);
        }
        self.end_effects();
    }

    /// All of them.
    pub(crate) fn end_all_faults(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.disk_faults_until = 0);
        self.bucket_faults_until = 0;
        self.effects.iter_mut().for_each(|effect| effect.until = 0);
        self.end_faults();
    }
}
