//! What came of a seed: the judge's report, what no history shows, and what was done to the nodes.

use std::collections::BTreeMap;

use isobar_testkit::history::{Event, Found, Report};
use serde::{Deserialize, Serialize};

use crate::totals::add;

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
        let of_kind = |found: &Found| {
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

/// What was done to the nodes. A run in which one that matters is zero has shown nothing.
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
    /// Of clusters: what followed from the faults.
    pub cluster: BTreeMap<String, u64>,
}

impl Counters {
    /// What another seed did.
    pub fn add(&mut self, from: &Self) {
        add(&mut self.faults, &from.faults);
        add(&mut self.points_hit, &from.points_hit);
        add(&mut self.points_passed, &from.points_passed);
        add(&mut self.bucket_faults, &from.bucket_faults);
        add(&mut self.finale, &from.finale);
        add(&mut self.cluster, &from.cluster);
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
