//! What one seed does: all its choices, drawn before anything runs.

pub mod cluster;

use std::time::Duration;

use isobar_client::Acks;
use isobar_protocol::compression::Codec;
use isobar_testkit::Rng;

/// Every named crash point of the node. A test holds this list against the source.
pub const POINTS: &[&str] = &[
    "archive.after_log",
    "archive.after_part",
    "compact.after_commit",
    "compact.after_put",
    "compact.between_parts",
    "compact.granted",
    "compact.planned",
    "delete.before_report",
    "index.after_commit",
    "index.after_put",
    "index.before_put",
    "journal.claim",
    "journal.claimed",
    "journal.prepare",
    "journal.prepare.filled",
    "journal.prepare.header",
    "journal.prepare.named",
    "journal.prepared",
    "journal.recover.named",
    "journal.recover.read",
    "journal.recover.settled",
    "journal.recycle",
    "journal.recycle.renamed",
    "journal.recycled",
    "journal.rotated",
    "journal.synced",
    "journal.write",
    "journal.written",
    "object.after_put",
    "object.before_put",
    "produce.after_append",
    "produce.after_commit",
    "raft.snapshot.renamed",
    "raft.snapshot.synced",
    "retain.after_propose",
    "retain.before_propose",
    "store.after_rename",
    "store.after_sync",
    "upload.after_commit",
    "upload.after_put",
    "upload.after_read",
    "wal.after_sync",
    "wal.before_recycle",
];

/// The crash points of `isobar recover`, which is no node.
pub const RECOVERY_POINTS: &[&str] = &["recover.claimed", "recover.founded", "recover.written"];

/// The promises that a node can be made to break ([`isobar_host::Host::sabotaged`]).
pub const SABOTAGES: &[&str] = &[
    "ack-before-sync",
    "ack-before-commit",
    "release-before-swap",
    "object-not-synced",
    "repeat-sequenced-twice",
    "never-deletes",
    "recover-forgets-an-append",
];

/// The machine of a node that is alone.
pub(crate) const NODE: &str = "node";
/// Those of the nodes of a cluster.
const NODES: [&str; MEMBERS + 1] = ["node-1", "node-2", "node-3", "node-4"];
/// So many have every role; a fourth is a broker only, and observes the metadata quorum.
pub(crate) const MEMBERS: usize = 3;

/// A topic of the history.
#[derive(Debug, Clone)]
pub struct Topic {
    pub name: String,
    pub partitions: i32,
    /// When it is made, in milliseconds of the load.
    pub at_ms: u64,
    /// It begins in the durability class `object`.
    pub object: bool,
}

/// A producer, one life after another.
#[derive(Debug, Clone)]
pub struct Sender {
    pub once: bool,
    pub ordered: bool,
    pub acks: Acks,
    pub retries: bool,
    pub codec: Codec,
    pub linger: Duration,
    pub batch_bytes: usize,
    pub max_in_flight: usize,
    pub delivery_timeout: Duration,
    /// The longest pause between two bursts.
    pub pause_ms: u64,
    pub burst: u64,
    pub largest_bytes: u64,
}

/// How the node is set up.
#[derive(Debug, Clone)]
pub struct NodePlan {
    pub segment_bytes: u64,
    pub tail_bytes: usize,
    pub cache_bytes: usize,
    pub snapshot_after_bytes: u64,
    pub upload_interval: Duration,
    pub upload_trigger_bytes: u64,
    pub chunk_target_bytes: usize,
    /// How much of the metadata log waits for the archive.
    pub archive_lag_bytes: u64,
    /// An object that nothing refers to stays for so long.
    pub delete_after: Duration,
    /// The store is a directory on the node's disk, not a bucket.
    pub store_inside: bool,
    /// How long batches of the class `object` gather.
    pub object_linger_ms: u64,
    /// How long a compaction's object may wait for its commit.
    pub grant_lifetime: Duration,
}

/// What is tried after the load and its verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// After a while the bucket holds what metadata points at and nothing else.
    Leftover,
    /// A deleted topic comes back whole; one whose window has passed does not.
    SoftDelete,
    /// Every directory is gone.
    Disaster(Disaster),
    /// One bit of what is durable flips. Always last.
    Flip(Flip),
}

/// When it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disaster {
    /// After an orderly stop: nothing may be lacking.
    Stopped,
    /// After a quiet time: nothing may be lacking.
    Quiet,
    /// Under load.
    Load {
        /// After so long.
        at_ms: u64,
        /// The store cannot be reached in the last part of it.
        outage_ms: u64,
    },
}

/// Where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flip {
    /// Files of the WAL, of the metadata log, of its snapshots, others.
    Wal,
    Log,
    Snapshot,
    Other,
    /// An object of the data, or of the archive.
    Object,
    Archive,
}

/// All choices of one seed.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Before the load: a cluster's first ten minutes pass without any expiry, so deletes are seen by old ones only.
    pub quiet_ms: u64,
    pub load_ms: u64,
    pub topics: Vec<Topic>,
    pub senders: Vec<Sender>,
    pub readers: u32,
    pub members: u32,
    pub churn: bool,
    /// Topics change their durability class under the producers; the longest pause between two changes.
    pub switch_every_ms: Option<u64>,
    pub node: NodePlan,
    /// The longest quiet time between two faults.
    pub fault_every_ms: u64,
    /// The crash points that this seed tries.
    pub points: Vec<&'static str>,
    pub disk_faults: bool,
    pub bucket_faults: bool,
    /// What happens to three nodes; `None`: there is one.
    pub cluster: Option<cluster::ClusterPlan>,
    /// What comes after the load.
    pub finale: Vec<Phase>,
    /// The promise that the node breaks.
    pub sabotage: Option<&'static str>,
}

/// Drawing from lists and ranges.
pub trait Draw {
    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64;
    /// One of these.
    fn pick<T: Clone>(&mut self, of: &[T]) -> T;
    /// True so many times in a hundred.
    fn percent(&mut self, percent: u32) -> bool;
}

impl Draw for Rng {
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap_or(0)].clone()
    }

    fn percent(&mut self, percent: u32) -> bool {
        self.chance(percent * 10_000)
    }
}

/// No idempotent producer may give up: its sends are decided or the seed has failed.
const FOREVER: Duration = Duration::from_secs(3600);

impl Plan {
    /// What this seed does.
    pub fn of(seed: u64) -> Self {
        let rng = &mut Rng::new(seed ^ 0x1507_ba12_51b0_0001);
        let load_ms = rng.between(4_000, 12_000);
        let mut topics =
            vec![Topic { name: "a".into(), partitions: rng.between(1, 4) as i32, at_ms: 0, object: false }];
        if rng.percent(60) {
            topics.push(Topic { name: "b".into(), partitions: 1, at_ms: 0, object: false });
        }
        if rng.percent(60) {
            let at_ms = rng.between(500, load_ms / 2);
            topics.push(Topic {
                name: "late".into(),
                partitions: rng.between(1, 3) as i32,
                at_ms,
                object: false,
            });
        }
        // Objects that hold nothing but what the churner made, and deleted, can be deleted too.
        let (mut quiet_ms, mut load_ms) = (0, load_ms);
        // Every eighth, and some: no run of forty seeds is without.
        let old = rng.percent(8) || seed % 8 == 3;
        if old {
            quiet_ms = 11 * 60_000;
            load_ms += 4_000;
            topics.iter_mut().for_each(|topic| topic.at_ms += 4_000);
        }
        // Drawn apart, so that what a seed did before these choices were made it does still.
        let more = &mut Rng::new(seed ^ 0x1507_ba12_51b0_0002);
        topics.iter_mut().for_each(|topic| topic.object = more.percent(30));
        let switch_every_ms = more.percent(30).then(|| more.pick(&[300, 1_500]));
        let senders = (0..rng.between(2, 4)).map(|number| sender(rng, number)).collect();
        let mut points: Vec<_> = (0..6).map(|n| POINTS[(seed as usize * 6 + n) % POINTS.len()]).collect();
        let mut node = node(rng);
        node.object_linger_ms = more.pick(&[1, 20, 250]);
        if old {
            node.upload_interval = Duration::from_millis(50);
            node.delete_after = Duration::from_millis(500);
            node.store_inside = false;
            points.truncate(1);
            points.push("delete.before_report");
        }
        Self {
            seed,
            quiet_ms,
            load_ms,
            topics,
            senders,
            readers: rng.between(1, 2) as u32,
            members: rng.between(0, 3) as u32,
            churn: rng.percent(60) || old,
            switch_every_ms,
            node,
            fault_every_ms: rng.pick(&[300, 800, 2_000]),
            points,
            disk_faults: rng.percent(60),
            bucket_faults: rng.percent(60),
            cluster: None,
            finale: finale(&mut Rng::new(seed ^ 0x1507_ba12_51b0_0003), old),
            sabotage: None,
        }
    }

    /// How many nodes there are.
    pub fn nodes(&self) -> usize {
        self.cluster.as_ref().map_or(1, |cluster| MEMBERS + usize::from(cluster.observer))
    }

    /// The machine of a node.
    pub(crate) fn name_of(&self, at: usize) -> &'static str {
        if self.cluster.is_some() { NODES[at] } else { NODE }
    }

    /// Where a node listens for clients.
    pub(crate) fn broker(at: usize) -> String {
        format!("10.0.0.{}:9092", at + 1)
    }

    pub(crate) fn node_id(at: usize) -> i32 {
        at as i32 + 1
    }

    /// Each node of a cluster is in a zone of its own, but for an observer that is near.
    pub(crate) fn zone(at: usize) -> String {
        format!("zone-{}", at + 1)
    }

    /// The same with a promise broken, where it can be seen.
    #[must_use]
    pub fn sabotaged(mut self, promise: &'static str) -> Self {
        self.sabotage = Some(promise);
        if let Some(cluster) = &mut self.cluster {
            if promise == "late-commit-object" {
                cluster.faults = vec!["bucket-slow", "pause"];
                self.node.grant_lifetime = Duration::from_millis(500);
            }
            cluster.observer |= promise == "observer-skips-a-batch";
            return self;
        }
        if promise == "object-not-synced" {
            self.node.store_inside = true;
            self.node.upload_interval = Duration::from_millis(200);
        }
        match promise {
            "never-deletes" => {
                self.node.store_inside = false;
                self.finale = vec![Phase::Leftover];
            }
            "recover-forgets-an-append" => {
                self.finale = vec![Phase::Disaster(Disaster::Load { at_ms: 700, outage_ms: 0 })];
            }
            _ => self.finale.clear(),
        }
        self
    }
}

/// Some of the phases in some order. A cluster that is old already can be watched cheaply until nothing is left over.
fn finale(rng: &mut Rng, old: bool) -> Vec<Phase> {
    let mut phases = Vec::new();
    if rng.percent(if old { 60 } else { 15 }) {
        phases.push(Phase::Leftover);
    }
    if rng.percent(30) {
        phases.push(Phase::SoftDelete);
    }
    for percent in [45, 10] {
        if rng.percent(percent) {
            phases.push(Phase::Disaster(disaster(rng)));
        }
    }
    for at in (1..phases.len()).rev() {
        phases.swap(at, usize::try_from(rng.below(at as u64 + 1)).unwrap_or(0));
    }
    if rng.percent(25) {
        let flips =
            [Flip::Wal, Flip::Log, Flip::Snapshot, Flip::Other, Flip::Object, Flip::Object, Flip::Archive];
        phases.push(Phase::Flip(rng.pick(&flips)));
    }
    phases
}

fn disaster(rng: &mut Rng) -> Disaster {
    match rng.below(10) {
        0 => Disaster::Stopped,
        1..3 => Disaster::Quiet,
        _ => {
            let outage_ms = if rng.percent(30) { rng.between(50, 3_000) } else { 0 };
            Disaster::Load { at_ms: rng.between(20, 3_000), outage_ms }
        }
    }
}

fn node(rng: &mut Rng) -> NodePlan {
    NodePlan {
        segment_bytes: rng.pick(&[256 << 10, 512 << 10]),
        tail_bytes: rng.pick(&[16 << 10, 128 << 10, 16 << 20]),
        cache_bytes: rng.pick(&[256 << 10, 2 << 20, 16 << 20]),
        snapshot_after_bytes: rng.pick(&[16 << 10, 64 << 10, 256 << 10]),
        upload_interval: Duration::from_millis(rng.pick(&[50, 200, 1_000, 3_000])),
        upload_trigger_bytes: rng.pick(&[32 << 10, 256 << 10, 32 << 20]),
        chunk_target_bytes: rng.pick(&[4 << 10, 64 << 10, 1 << 20]),
        archive_lag_bytes: rng.pick(&[1 << 20, 64 << 20]),
        delete_after: Duration::from_millis(rng.pick(&[1_000, 5_000])),
        store_inside: rng.percent(25),
        object_linger_ms: 0,
        grant_lifetime: Duration::from_secs(10),
    }
}

fn sender(rng: &mut Rng, number: u64) -> Sender {
    let codec = rng.pick(&[Codec::None, Codec::None, Codec::Lz4, Codec::Zstd, Codec::Snappy, Codec::Gzip]);
    let mut sender = Sender {
        once: true,
        ordered: true,
        acks: Acks::All,
        retries: true,
        codec,
        linger: Duration::from_millis(rng.pick(&[0, 0, 5])),
        batch_bytes: rng.pick(&[300, 4_000, 30_000]),
        max_in_flight: rng.pick(&[1, 2, 5]),
        delivery_timeout: FOREVER,
        pause_ms: rng.pick(&[20, 50, 150]),
        burst: rng.pick(&[1, 5, 20]),
        largest_bytes: rng.pick(&[100, 1_000, 10_000]),
    };
    // The first is always idempotent; the others may be of any kind.
    let kind = if number == 0 { 0 } else { rng.below(6) };
    if kind > 1 {
        sender.once = false;
        sender.acks = if rng.percent(30) { Acks::Leader } else { Acks::All };
    }
    match kind {
        2 => sender.max_in_flight = 1,
        // Gives up soon, so that some sends end undecided.
        3 => {
            sender.ordered = sender.max_in_flight == 1;
            sender.delivery_timeout = Duration::from_millis(700);
        }
        4 => {
            sender.ordered = sender.max_in_flight == 1;
            sender.retries = false;
        }
        5 => (sender.acks, sender.ordered) = (Acks::None, false),
        _ => {}
    }
    sender
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn sources(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "reads the source")]
    fn the_crash_points_are_those_of_the_source() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates");
        let mut found = BTreeSet::new();
        for name in ["host", "journal", "raft", "wal", "store", "broker", "isobar"] {
            let mut files = Vec::new();
            sources(&crates.join(name).join("src"), &mut files);
            for file in files {
                let text = std::fs::read_to_string(file).unwrap();
                for call in ["point(\"", "point)(\"", "&str = \"recover."] {
                    for (at, _) in text.match_indices(call) {
                        // A name follows, or has begun within.
                        let rest = &text[at + call.rfind('"').unwrap() + 1..];
                        found.insert(rest[..rest.find('"').unwrap()].to_owned());
                    }
                }
            }
        }
        let known = POINTS.iter().chain(RECOVERY_POINTS).chain(cluster::CLUSTER_POINTS);
        let known: BTreeSet<String> = known.map(|name| (*name).to_owned()).collect();
        assert_eq!(found, known);
    }

    #[test]
    fn every_point_is_tried_by_some_seed() {
        let tried: BTreeSet<&str> =
            (1..=POINTS.len() as u64).flat_map(|seed| Plan::of(seed).points).collect();
        assert_eq!(tried.len(), POINTS.len());
    }
}
