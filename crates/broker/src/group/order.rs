//! Commits of offsets that name a partition of one group take effect in the order in which they came.
//!
//! A client that had no answer in time commits again, by another connection, and goes on; its first commit may still be on its
//! way to metadata, and must not come after the later ones (seed 25 of the cluster under `late-commit-object`).
//!
//! **Owns** (soft): the commits under way, by group. **Invariants**: 1. A commit has its turn when no earlier one that names one
//! of its partitions is under way. 2. Its place is given up when metadata has answered, or when nobody waits for that any
//! more: then its number is below the floor of every later command of this session (`session`). 3. Those of other partitions, as
//! other members' are, do not wait. **Bound**: one entry for each request in the broker's
//! budget for requests.

use std::collections::{BTreeMap, BTreeSet};

use isobar_groups::Name;
use isobar_host::watch;
use isobar_metadata::PartitionKey;
use parking_lot::Mutex;

#[derive(Default)]
pub(super) struct CommitOrder {
    under_way: Mutex<UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    next: u64,
    groups: BTreeMap<Name, BTreeMap<u64, Entry>>,
}

struct Entry {
    partitions: BTreeSet<PartitionKey>,
    /// Closed when it is no longer under way.
    ended: watch::Receiver<()>,
}

/// A commit's place in its group's order, until it is dropped.
pub(super) struct Place<'a> {
    order: &'a CommitOrder,
    group: Name,
    number: u64,
    before: Vec<watch::Receiver<()>>,
    _end: watch::Sender<()>,
}

impl CommitOrder {
    /// A place behind all that are under way.
    pub(super) fn line_up(&self, group: Name, partitions: BTreeSet<PartitionKey>) -> Place<'_> {
        let (end, ended) = watch::channel(());
        let mut under_way = self.under_way.lock();
        let number = under_way.next;
        under_way.next += 1;
        let entries = under_way.groups.entry(group.clone()).or_default();
        let overlaps = entries.values().filter(|other| !other.partitions.is_disjoint(&partitions));
        let before = overlaps.map(|other| other.ended.clone()).collect();
        entries.insert(number, Entry { partitions, ended });
        Place { order: self, group, number, before, _end: end }
    }
}

impl Place<'_> {
    /// Waits until those before have ended.
    pub(super) async fn turn(&mut self) {
        for mut other in self.before.drain(..) {
            // Nothing is ever sent.
            while other.changed().await.is_ok() {}
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut under_way = self.order.under_way.lock();
        if let Some(entries) = under_way.groups.get_mut(&self.group) {
            entries.remove(&self.number);
            if entries.is_empty() {
                under_way.groups.remove(&self.group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use isobar_metadata::TopicId;

    use super::*;

    fn partitions(numbers: &[i32]) -> BTreeSet<PartitionKey> {
        numbers.iter().map(|number| PartitionKey::new(TopicId::default(), *number)).collect()
    }

    #[tokio::test]
    async fn a_commit_waits_for_earlier_ones_of_its_partitions_only() {
        let order = CommitOrder::default();
        let place = |group: &str, of: &[i32]| order.line_up(Name::from(group), partitions(of));
        let mut first = place("g", &[1, 2]);
        let (mut other_partition, mut other_group) = (place("g", &[3]), place("h", &[1]));
        let mut second = place("g", &[2, 3]);
        let mut third = place("g", &[2]);
        first.turn().await;
        other_partition.turn().await;
        other_group.turn().await;
        let ended = std::sync::Mutex::new(Vec::new());
        let in_turn = async {
            second.turn().await;
            ended.lock().unwrap().push("second");
            drop(second);
        };
        let last = async {
            third.turn().await;
            ended.lock().unwrap().push("third");
            drop(third);
        };
        let release = async {
            tokio::task::yield_now().await;
            assert!(ended.lock().unwrap().is_empty());
            drop(first);
            tokio::task::yield_now().await;
            assert!(ended.lock().unwrap().is_empty(), "another is before it");
            drop(other_partition);
        };
        tokio::join!(last, in_turn, release);
        assert_eq!(*ended.lock().unwrap(), ["second", "third"]);
        drop(other_group);
        assert!(order.under_way.lock().groups.is_empty());
    }
}
