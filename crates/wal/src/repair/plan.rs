//! Which closed streams a replica is to have, and in whose place. Pure.

use std::collections::BTreeSet;

use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_metadata::record::StreamRecord;

use crate::ensemble::rendezvous;

/// How a WAL directory stands, as one node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has answered just now.
    Up,
    /// It has not, but it may come back.
    Silent,
    /// It has been silent for long, or was removed.
    Lost,
}

/// A registered WAL directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) directory: DirectoryId,
    pub(super) node_id: i32,
    pub(super) zone: String,
    pub(super) takes_streams: bool,
    pub(super) standing: Standing,
}

/// Why a replica is to have the live chunks of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The ensemble names it.
    Member,
    /// It is to be named in the place of this one.
    InPlaceOf(DirectoryId),
}

/// Whether the ensemble names a replica that is lost.
pub(super) fn lost_of(ensemble: &[DirectoryId], known: &[Known]) -> Option<DirectoryId> {
    let stands = |id: &DirectoryId| known.iter().find(|of| of.directory == *id).map(|of| of.standing);
    ensemble.iter().copied().find(|id| matches!(stands(id), None | Some(Standing::Lost)))
}

/// What `me` is to a closed stream. Of those that may take a lost one's place, all nodes choose the same, if they see the same: one
/// on a node of its own, in a zone of its own if there is one. If they do not, two may copy, and metadata takes the first.
pub(super) fn role(stream: &StreamRecord, me: DirectoryId, known: &[Known]) -> Option<Role> {
    if stream.ensemble.contains(&me) {
        return Some(Role::Member);
    }
    let lost = lost_of(&stream.ensemble, known)?;
    let stays = |of: &&Known| stream.ensemble.contains(&of.directory) && of.standing != Standing::Lost;
    let nodes: BTreeSet<i32> = known.iter().filter(stays).map(|of| of.node_id).collect();
    let zones: BTreeSet<&str> = known.iter().filter(stays).map(|of| of.zone.as_str()).collect();
    let may = |of: &&Known| {
        of.takes_streams
            && of.standing == Standing::Up
            && !stream.ensemble.contains(&of.directory)
            && !nodes.contains(&of.node_id)
    };
    let rank =
        |of: &&Known| (zones.contains(of.zone.as_str()), weight(of.directory, stream.stream), of.directory);
    let chosen = known.iter().filter(may).min_by_key(rank)?;
    (chosen.directory == me).then_some(Role::InPlaceOf(lost))
}

fn weight(directory: DirectoryId, stream: StreamId) -> u64 {
    rendezvous(directory, stream.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: u8) -> DirectoryId {
        DirectoryId::from([n; 16])
    }

    fn known(n: u8, zone: &str, standing: Standing) -> Known {
        let (node_id, zone) = (i32::from(n), zone.to_owned());
        Known { directory: id(n), node_id, zone, takes_streams: true, standing }
    }

    fn stream(number: u64, ensemble: &[u8]) -> StreamRecord {
        let ensemble = ensemble.iter().map(|n| id(*n)).collect();
        StreamRecord { stream: StreamId(number), ensemble, closed: true, ..StreamRecord::default() }
    }

    #[test]
    fn a_member_fills_its_own_gaps_and_nobody_else_does_anything_while_none_is_lost() {
        let all = [known(1, "a", Standing::Up), known(2, "b", Standing::Silent), known(3, "c", Standing::Up)];
        assert_eq!(role(&stream(1, &[1, 2]), id(1), &all), Some(Role::Member));
        assert_eq!(role(&stream(1, &[1, 2]), id(3), &all), None, "silent for a moment is not lost");
    }

    #[test]
    fn a_lost_one_is_replaced_by_one_of_a_free_zone_and_never_of_a_node_that_has_it() {
        let lost = Standing::Lost;
        let mut all = vec![
            known(1, "a", Standing::Up),
            known(2, "b", Standing::Up),
            known(3, "c", lost),
            known(4, "a", Standing::Up),
        ];
        let stream = stream(1, &[1, 2, 3]);
        assert_eq!(role(&stream, id(4), &all), Some(Role::InPlaceOf(id(3))), "no zone is free");
        all.push(known(5, "c", Standing::Up));
        assert_eq!(role(&stream, id(4), &all), None);
        assert_eq!(role(&stream, id(5), &all), Some(Role::InPlaceOf(id(3))));
        // A new directory on the node of the lost one is as good; one on a node that has a copy is none.
        all[4].node_id = 3;
        assert_eq!(role(&stream, id(5), &all), Some(Role::InPlaceOf(id(3))));
        all[4].node_id = 2;
        assert_eq!(role(&stream, id(5), &all), None);
        all[3].takes_streams = false;
        assert_eq!(role(&stream, id(4), &all), None);
        // One that metadata knows no more is lost too.
        all[3].takes_streams = true;
        all.remove(2);
        assert_eq!(role(&stream, id(4), &all), Some(Role::InPlaceOf(id(3))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn exactly_one_replaces_a_lost_one_if_anybody_may(
            made in prop::collection::vec((0..6_i32, 0..3_u8, any::<bool>(), 0..3_u8), 3..9),
            number in any::<u64>(),
        ) {
            let all: Vec<Known> = (1_u8..).zip(&made).map(|(n, (node_id, zone, takes_streams, standing))| Known {
                directory: id(n),
                node_id: *node_id,
                zone: zone.to_string(),
                takes_streams: *takes_streams,
                standing: [Standing::Up, Standing::Silent, Standing::Lost][usize::from(*standing)],
            }).collect();
            let stream = stream(number, &[1, 2, 3]);
            let roles: Vec<_> = all.iter().map(|of| (of, role(&stream, of.directory, &all))).collect();
            let taking: Vec<_> =
                roles.iter().filter(|(_, role)| matches!(role, Some(Role::InPlaceOf(_)))).collect();
            prop_assert!(taking.len() <= 1);
            let is_lost = all[..3].iter().any(|of| of.standing == Standing::Lost);
            for (of, role) in taking {
                prop_assert!(is_lost && of.standing == Standing::Up && of.takes_streams);
                let Some(Role::InPlaceOf(lost)) = role else { unreachable!() };
                prop_assert!(all[..3].iter().any(|of| of.directory == *lost && of.standing == Standing::Lost));
                let shares = |other: &Known| other.standing != Standing::Lost && other.node_id == of.node_id;
                prop_assert!(!all[..3].iter().any(shares));
            }
        }
    }
}
