//! Which replicas a new stream gets. Pure.
//!
//! Rules, the strongest first: no replica that cannot be reached; no two on one node; none that was too slow of late, and none
//! without room, as long as the others are a write quorum; the one on the asking node; zones apart; and among equals one that
//! the asker's own number picks, so that many lanes spread over many replicas.

use isobar_metadata::ids::DirectoryId;

use crate::quorum::ENSEMBLE_MAX;

/// How many replicas a stream should have.
const ENSEMBLE: usize = 3;

/// A registered WAL directory, as the asker sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its incarnation.
    pub directory: DirectoryId,
    /// The node that it is on.
    pub node_id: i32,
    /// The node's zone; Kafka's rack. Nodes without one count as one zone.
    pub zone: String,
    /// It is on the asking node.
    pub is_local: bool,
    /// It has answered just now, under this incarnation.
    pub is_connected: bool,
    /// It takes appends.
    pub has_room: bool,
    /// It was left behind for being slow, not long ago.
    pub is_suspect: bool,
}

/// Why there is no ensemble.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{live} WAL replica(s) can be reached, a write quorum needs {needed}")]
pub struct TooFewReplicas {
    /// Replicas on different nodes that can be reached.
    pub live: usize,
    /// The cluster's write quorum.
    pub needed: usize,
}

/// Chooses three replicas if there are so many, never fewer than the write quorum. `asker` is any number of the asker's own;
/// the same candidates and number give the same ensemble.
pub fn choose_ensemble(
    candidates: &[Candidate],
    write_quorum: u32,
    asker: u64,
) -> Result<Vec<DirectoryId>, TooFewReplicas> {
    let needed = write_quorum.max(1) as usize;
    let mut left: Vec<&Candidate> = candidates.iter().filter(|candidate| candidate.is_connected).collect();
    // Zones apart come before these; of two that are alike in all, the asker's number picks.
    left.sort_by_key(|candidate| {
        (!candidate.is_local, rendezvous(candidate.directory, asker), candidate.directory)
    });
    let good: Vec<&Candidate> =
        left.iter().copied().filter(|candidate| candidate.has_room && !candidate.is_suspect).collect();
    let roomy: Vec<&Candidate> = left.iter().copied().filter(|candidate| candidate.has_room).collect();
    for of in [good, roomy, left.clone()] {
        let chosen = spread(of, needed.clamp(ENSEMBLE, ENSEMBLE_MAX));
        if chosen.len() >= needed {
            return Ok(chosen.iter().map(|candidate| candidate.directory).collect());
        }
    }
    Err(TooFewReplicas { live: spread(left, ENSEMBLE_MAX).len(), needed })
}

/// Takes up to `count` on different nodes: while there are zones that have none, one of those.
fn spread(mut left: Vec<&Candidate>, count: usize) -> Vec<&Candidate> {
    let mut chosen: Vec<&Candidate> = Vec::with_capacity(count);
    while chosen.len() < count {
        left.retain(|candidate| chosen.iter().all(|other| other.node_id != candidate.node_id));
        let new_zone =
            left.iter().position(|candidate| chosen.iter().all(|other| other.zone != candidate.zone));
        let Some(&next) = left.get(new_zone.unwrap_or(0)) else { break };
        chosen.push(next);
    }
    chosen
}

/// Highest random weight, as the smallest value (splitmix64's finish over both).
pub(crate) fn rendezvous(directory: DirectoryId, asker: u64) -> u64 {
    let mut hash = asker.wrapping_add(0x9e37_79b9_7f4a_7c15);
    for part in directory.bytes().chunks(8) {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        hash ^= u64::from_le_bytes(word);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
    }
    hash
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn candidate(n: u8, zone: &str) -> Candidate {
        Candidate {
            directory: DirectoryId::from([n; 16]),
            node_id: i32::from(n),
            zone: zone.to_owned(),
            is_local: false,
            is_connected: true,
            has_room: true,
            is_suspect: false,
        }
    }

    fn ids(of: &[u8]) -> BTreeSet<DirectoryId> {
        of.iter().map(|n| DirectoryId::from([*n; 16])).collect()
    }

    fn chosen(candidates: &[Candidate], write_quorum: u32, asker: u64) -> BTreeSet<DirectoryId> {
        choose_ensemble(candidates, write_quorum, asker).unwrap().into_iter().collect()
    }

    #[test]
    fn one_of_each_zone_the_local_one_among_them() {
        let mut all: Vec<_> = (0..9).map(|n| candidate(n, ["a", "b", "c"][usize::from(n % 3)])).collect();
        all[4].is_local = true;
        let mut met = BTreeSet::new();
        for asker in 0..64 {
            let ensemble = choose_ensemble(&all, 2, asker).unwrap();
            assert_eq!(ensemble[0], all[4].directory);
            let zones: BTreeSet<_> = (all.iter())
                .filter(|candidate| ensemble.contains(&candidate.directory))
                .map(|candidate| &candidate.zone)
                .collect();
            assert_eq!((ensemble.len(), zones.len()), (3, 3));
            met.extend(ensemble);
        }
        // The local one stands for its zone; every other of the other zones has its share.
        assert_eq!(met.len(), 7);
    }

    #[test]
    fn two_when_only_two_live_and_none_with_one() {
        let mut all = [candidate(1, "a"), candidate(2, "b"), candidate(3, "c")];
        all[1].is_connected = false;
        assert_eq!(chosen(&all, 2, 0), ids(&[1, 3]));
        all[0].is_connected = false;
        assert_eq!(choose_ensemble(&all, 2, 0), Err(TooFewReplicas { live: 1, needed: 2 }));
        assert_eq!(chosen(&all, 1, 0), ids(&[3]));
    }

    #[test]
    fn the_full_and_the_slow_only_if_they_must() {
        let mut all = [candidate(1, "a"), candidate(2, "b"), candidate(3, "c"), candidate(4, "c")];
        all[0].has_room = false;
        all[3].is_suspect = true;
        assert_eq!(chosen(&all, 2, 0), ids(&[2, 3]));
        all[2].has_room = false;
        assert_eq!(chosen(&all, 2, 0), ids(&[2, 4]));
        all[3].is_connected = false;
        assert_eq!(chosen(&all, 2, 0), ids(&[1, 2, 3]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn never_two_of_a_node_nor_fewer_than_the_quorum(
            made in proptest::collection::vec((0..8_i32, any::<[bool; 3]>()), 0..12),
            write_quorum in 1..4_u32,
            asker in any::<u64>(),
        ) {
            let candidates: Vec<_> = (0_u8..).zip(&made).map(|(n, (node_id, [up, room, suspect]))| Candidate {
                directory: DirectoryId::from([n; 16]),
                node_id: *node_id,
                // A node is in one zone.
                zone: format!("{}", node_id % 3),
                is_local: false,
                is_connected: *up,
                has_room: *room,
                is_suspect: *suspect,
            }).collect();
            let up: BTreeSet<i32> = candidates.iter().filter(|c| c.is_connected).map(|c| c.node_id).collect();
            match choose_ensemble(&candidates, write_quorum, asker) {
                Ok(ensemble) => {
                    let of = |id: &DirectoryId| candidates.iter().find(|c| c.directory == *id).unwrap();
                    let nodes: BTreeSet<i32> = ensemble.iter().map(|id| of(id).node_id).collect();
                    prop_assert_eq!(nodes.len(), ensemble.len());
                    prop_assert!(ensemble.iter().all(|id| of(id).is_connected));
                    prop_assert!(ensemble.len() >= write_quorum as usize && ensemble.len() <= 3);
                }
                Err(few) => prop_assert_eq!((few.live, few.live < write_quorum as usize), (up.len(), true)),
            }
        }
    }
}
