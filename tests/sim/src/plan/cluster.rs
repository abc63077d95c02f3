//! What one seed does to a cluster of three nodes, or of those and a broker.

use std::time::Duration;

use isobar_testkit::Rng;

use super::{Draw as _, POINTS, Plan};

/// Every kind of fault of a cluster, as the driver knows them.
pub const FAULTS: &[&str] = &[
    "all-die",
    "bucket",
    "bucket-away",
    "bucket-slow",
    "clock",
    "crash",
    "cut-from-clients",
    "cut-off",
    "cut-one-way",
    "cut-pair",
    "disk",
    "kill",
    "leader-cut-off",
    "leader-dies",
    "leader-pauses",
    "lossy-links",
    "pause",
    "power-cut",
    "reset",
    "slow-links",
    "stop",
    "two-die",
    "vanish",
];

/// Kinds that are counted by other names, as they are several.
const SEVERAL: &[&str] = &["bucket", "crash", "disk"];
const OF_SEVERAL: &[&str] = &[
    "bucket-chaos",
    "bucket-outage",
    "crash-at-step",
    "crash-point",
    "disk-full",
    "disk-read-errors",
    "disk-sync-errors",
    "disk-write-errors",
];

/// The names by which faults are counted: each must come in a range of seeds.
pub(crate) fn counted() -> Vec<&'static str> {
    let own = FAULTS.iter().filter(|kind| !SEVERAL.contains(kind));
    own.chain(OF_SEVERAL).copied().collect()
}

/// Crash points that only a node of a cluster passes.
pub const CLUSTER_POINTS: &[&str] = &["produce.again", "wal.filled"];

/// The promises that nodes of a cluster can be made to break.
pub const CLUSTER_SABOTAGES: &[&str] = &[
    "quorum-of-one",
    "no-barrier",
    "repeat-sequenced-twice",
    "ack-before-commit",
    "release-before-swap",
    "late-commit-object",
    "reused-id",
    "barrier-without-quorum",
    "offsets-before-commit",
    "journal-not-synced",
    "observer-skips-a-batch",
];

/// See the module's page.
#[derive(Debug, Clone)]
pub struct ClusterPlan {
    /// The kinds of faults that this seed tries; each as often as it is listed.
    pub faults: Vec<&'static str>,
    /// What is sent last lies in the WAL only, and everything is read while one of the nodes is away.
    pub one_away: bool,
    /// There is a fourth node, which is a broker only.
    pub observer: bool,
    /// It is in the first node's zone: they share the leading there, and blocks of objects.
    pub observer_is_near: bool,
}

impl Plan {
    /// What this seed does to three nodes. The load is that of the single node's, longer.
    pub fn of_cluster(seed: u64) -> Self {
        let mut plan = Self::of(seed);
        let rng = &mut Rng::new(seed ^ 0x1507_ba12_51b0_0004);
        let count = rng.between(2, 6);
        // One of them goes round, so that no run of many seeds is without any.
        let mut faults = vec![FAULTS[seed as usize % FAULTS.len()]];
        faults.extend((0..count).map(|_| rng.pick(FAULTS)));
        plan.points = (0..6).map(|_| rng.pick(POINTS)).filter(|point| !point.starts_with("store.")).collect();
        plan.points.push(rng.pick(CLUSTER_POINTS));
        plan.quiet_ms = 0;
        plan.load_ms = rng.between(30_000, 40_000);
        plan.fault_every_ms = rng.pick(&[1_000, 3_000, 8_000]);
        plan.node.store_inside = false;
        plan.node.upload_interval = plan.node.upload_interval.max(Duration::from_millis(200));
        plan.members = plan.members.max(1);
        plan.finale = Vec::new();
        let one_away = rng.percent(40);
        if one_away {
            plan.topics.iter_mut().for_each(|topic| topic.object = false);
            plan.switch_every_ms = None;
        }
        let observer = Rng::new(seed ^ 0x1507_ba12_51b0_0005).percent(40);
        let observer_is_near = Rng::new(seed ^ 0x1507_ba12_51b0_0006).percent(50);
        plan.cluster = Some(ClusterPlan { faults, one_away, observer, observer_is_near });
        plan
    }
}
