//! What many seeds together have shown.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::outcome::{Counters, Outcome};
use crate::plan::{POINTS, RECOVERY_POINTS, cluster};

/// What must have happened to a node that is alone.
const FAULTS: &[&str] = &["power-cut", "kill", "crash-at-step", "crash-point", "stop"];

/// What must have followed in a cluster.
const FOLLOWED: &[&str] = &[
    "blocks from the zone",
    "chunks appended again",
    "leader changes",
    "lives over",
    "sessions fenced",
    "streams opened",
    "streams rolled",
];

/// What must have come of something tried after the load, in a long run.
const FINALES: &[&str] = &[
    "whole",
    "nothing left over",
    "window passed",
    "undeleted",
    "recovered",
    "recovered whole",
    "recovered to a cut before the end",
    "flip refused at the start",
    "flip without effect",
    "flip in an object found",
];

/// Sums over seeds. A run is worth something only if what matters in it is not zero.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Totals {
    pub seeds: u64,
    pub simulated_seconds: u64,
    pub steps: u64,
    pub acknowledgements_checked: u64,
    pub records_read: u64,
    pub ends_checked: u64,
    pub commits_checked: u64,
    pub anomalies: BTreeMap<String, u64>,
    pub problems: u64,
    pub failed_seeds: Vec<u64>,
    #[serde(flatten)]
    pub counters: Counters,
}

pub(crate) fn add(to: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
    for (name, count) in from {
        *to.entry(name.clone()).or_default() += count;
    }
}

impl Totals {
    /// One more seed.
    pub fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.simulated_seconds += outcome.simulated_ms / 1000;
        self.steps += outcome.trace.1;
        let summary = &outcome.report.summary;
        self.acknowledgements_checked += summary.acks_checked;
        self.records_read += summary.reads;
        self.ends_checked += summary.ends_checked;
        self.commits_checked += summary.commits_checked;
        for found in &outcome.report.found {
            *self.anomalies.entry(found.kind.name().to_owned()).or_default() += found.count;
        }
        self.problems += outcome.problems.values().sum::<u64>();
        if !outcome.is_clean() {
            self.failed_seeds.push(outcome.seed);
        }
        self.counters.add(&outcome.counters);
    }

    /// What other seeds have shown.
    pub fn merge(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.simulated_seconds += other.simulated_seconds;
        self.steps += other.steps;
        self.acknowledgements_checked += other.acknowledgements_checked;
        self.records_read += other.records_read;
        self.ends_checked += other.ends_checked;
        self.commits_checked += other.commits_checked;
        add(&mut self.anomalies, &other.anomalies);
        self.problems += other.problems;
        self.failed_seeds.extend(&other.failed_seeds);
        self.counters.add(&other.counters);
    }

    /// A seed that panicked.
    pub fn add_panic(&mut self, seed: u64) {
        self.seeds += 1;
        self.problems += 1;
        self.failed_seeds.push(seed);
    }

    /// What should have happened and did not, as names. `cluster`: to three nodes. `all_points`: also the crash points that no
    /// life died at.
    pub fn missing(&self, cluster: bool, all_points: bool) -> Vec<String> {
        let c = &self.counters;
        let mut numbers = vec![
            ("acknowledgements checked", self.acknowledgements_checked),
            ("records read", self.records_read),
            ("ends checked", self.ends_checked),
            ("committed offsets checked", self.commits_checked),
            ("restarts", c.restarts),
            ("objects written", c.objects_written),
            ("bytes read from objects", c.object_bytes_read),
            ("disk errors", c.disk_errors),
            ("pages that a power cut dropped", c.pages_dropped),
            ("bucket faults", c.bucket_faults.values().sum()),
        ];
        if cluster {
            let happened = |name| (name, c.cluster.get(name).copied().unwrap_or(0));
            numbers.extend(FOLLOWED.iter().copied().map(happened));
        } else {
            numbers.push(("objects deleted", c.objects_deleted));
        }
        let zero = numbers.iter().filter(|(_, n)| *n == 0).map(|(name, _)| (*name).to_owned());
        let kinds = if cluster { cluster::counted() } else { FAULTS.to_vec() };
        let kinds = kinds.into_iter().filter(|kind| !c.faults.contains_key(*kind));
        let kinds = kinds.map(|kind| format!("fault {kind}"));
        let all_points = all_points && !cluster;
        let points = POINTS.iter().chain(RECOVERY_POINTS);
        let points = points.filter(|point| all_points && !c.points_hit.contains_key(**point));
        let ends = FINALES.iter().filter(|end| all_points && !c.finale.contains_key(**end));
        zero.chain(kinds)
            .chain(points.map(|point| format!("death at {point}")))
            .chain(ends.map(|end| format!("after the load: {end}")))
            .collect()
    }
}

fn list(of: &BTreeMap<String, u64>) -> String {
    of.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counters;
        writeln!(
            f,
            "{} seeds, {} simulated seconds, {} steps",
            self.seeds, self.simulated_seconds, self.steps
        )?;
        writeln!(
            f,
            "{} acknowledgements checked, {} records read, {} ends and {} committed offsets checked",
            self.acknowledgements_checked, self.records_read, self.ends_checked, self.commits_checked
        )?;
        writeln!(f, "faults: {}", list(&c.faults))?;
        writeln!(f, "crash points hit: {}", list(&c.points_hit))?;
        writeln!(f, "bucket faults: {}", list(&c.bucket_faults))?;
        if c.cluster.is_empty() {
            writeln!(f, "after the load: {}", list(&c.finale))?;
        } else {
            writeln!(f, "what followed: {}", list(&c.cluster))?;
        }
        writeln!(
            f,
            "{} restarts, {} starts that failed, {} times unhealthy; {} disk errors, {} pages lost and {} torn by power cuts",
            c.restarts, c.starts_failed, c.unhealthy, c.disk_errors, c.pages_dropped, c.pages_torn
        )?;
        writeln!(
            f,
            "{} objects written, {} deleted, {} requests to the store, {} bytes read from objects",
            c.objects_written, c.objects_deleted, c.object_requests, c.object_bytes_read
        )?;
        write!(f, "{} anomalies, {} problems", self.anomalies.values().sum::<u64>(), self.problems)
    }
}
