//! How a cluster is, as one of its nodes sees it: for `isobar cluster status`.

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::Image;
use isobar_metadata::command::FEATURE_LEVEL;
use isobar_metadata::record::{DirectoryRecord, SessionRecord, SessionState};
use isobar_raft::{Leader, MemberInfo};
use serde_json::{Value, json};

use crate::membership::About;

/// A clock that is further off is told; the answers that tell them may lie a second apart.
const CLOCK_OFF_MS: i64 = 10_000;

/// What node `me` knows beside its image.
pub(crate) struct Seen<'a> {
    pub(crate) me: u64,
    pub(crate) members: &'a [MemberInfo],
    pub(crate) leader: &'a Leader,
    /// Of those that answered just now, it itself among them.
    pub(crate) said: &'a BTreeMap<u64, About>,
}

/// The answer of `GET /v1/cluster`. Pure.
pub(crate) fn standing(seen: &Seen<'_>, image: &Image) -> Value {
    let brokers = image.brokers();
    let mut ids: BTreeSet<u64> = seen.members.iter().map(|member| member.id).collect();
    ids.extend(image.directories().filter_map(|directory| u64::try_from(directory.node_id).ok()));
    ids.extend(brokers.iter().filter_map(|session| u64::try_from(session.node_id).ok()));
    let nodes = ids.iter().map(|id| {
        let member = seen.members.iter().find(|member| member.id == *id);
        let session = brokers.iter().find(|session| is_of(session.node_id, *id));
        let directories: Vec<_> = image.directories().filter(|of| is_of(of.node_id, *id)).collect();
        let of_observer = session.map(|session| session.rpc.as_str()).filter(|rpc| !rpc.is_empty());
        json!({
            "id": id,
            "address": member.map(|member| member.address.as_str()).or(of_observer),
            "metadata": match member {
                Some(member) if seen.leader.id == Some(member.id) => Some("leader"),
                Some(member) if member.is_voter => Some("voter"),
                Some(_) => Some("learner"),
                None => session.map(|_| "observer"),
            },
            "broker": session.map(|session| state_of(session)),
            "kafka": session.map(|session| format!("{}:{}", session.host, session.port)),
            "zone": session.map(|session| session.zone.as_str()).filter(|zone| !zone.is_empty()),
            "wal": match &directories[..] {
                [] => None,
                [one] => Some(wal_state(one).to_owned()),
                several => Some(format!("{} directories", several.len())),
            },
            "roles": seen.said.get(id).map(|about| about.roles.as_str()),
        })
    });
    json!({
        "cluster_id": image.format().cluster_id,
        "node": seen.me,
        "nodes": nodes.collect::<Vec<_>>(),
        "feature_level": image.feature_level(),
        "write_quorum": image.write_quorum(),
        "wrong": wrong(seen, image),
    })
}

fn is_of(node_id: i32, id: u64) -> bool {
    u64::try_from(node_id) == Ok(id)
}

fn wal_state(directory: &DirectoryRecord) -> &'static str {
    if directory.takes_streams() { "registered" } else { "draining" }
}

fn state_of(session: &SessionRecord) -> &'static str {
    match SessionState::try_from(session.state) {
        Ok(SessionState::Live) => "live",
        Ok(SessionState::Suspect) => "suspect",
        Ok(SessionState::Draining) => "draining",
        Ok(SessionState::Fenced) | Err(_) => "fenced",
    }
}

/// Each with what to do.
fn wrong(seen: &Seen<'_>, image: &Image) -> Vec<String> {
    let mut wrong = Vec::new();
    if seen.leader.id.is_none() {
        let voters = seen.members.iter().filter(|member| member.is_voter).count();
        wrong.push(format!(
            "the metadata quorum has no leader: nothing is written until {} of its {voters} voters reach each other; start \
             those that are down, and look at the network between them",
            voters / 2 + 1
        ));
    }
    for member in seen.members {
        wrong.extend(wrong_with(member, seen, image));
    }
    let replicas: BTreeSet<i32> = image.directories().map(|directory| directory.node_id).collect();
    if replicas.len() < image.write_quorum() as usize {
        wrong.push(format!(
            "an acknowledgement needs {} WAL replicas, and {} nodes have one: start more nodes with the role wal",
            image.write_quorum(),
            replicas.len()
        ));
    }
    let known = seen.said.values().map(|about| about.feature_level).min().unwrap_or(0);
    let everybody = seen.members.iter().all(|member| seen.said.contains_key(&member.id));
    if everybody && known == FEATURE_LEVEL && image.feature_level() < FEATURE_LEVEL {
        wrong.push(format!(
            "every node runs a release of feature level {known}, and the cluster is at {}: `isobar cluster upgrade` raises it, \
             once there is no way back to the older release",
            image.feature_level()
        ));
    }
    if image.expiry_held_until_ms() > 0 {
        wrong.push(
            "the clocks of most metadata nodes jumped by more than ten minutes: nothing expires until they are trusted \
             again; look at the nodes' clocks"
                .to_owned(),
        );
    }
    wrong.extend(wrong_clocks(seen));
    wrong.extend(lacking_copies(seen, image));
    wrong
}

/// Metadata's time is the median of its voters' clocks; but brokers write their own into what they answer.
fn wrong_clocks(seen: &Seen<'_>) -> Vec<String> {
    let told =
        || seen.said.iter().map(|(id, about)| (*id, about.clock_ms)).filter(|(_, clock_ms)| *clock_ms > 0);
    let mut clocks: Vec<i64> = told().map(|(_, clock_ms)| clock_ms).collect();
    clocks.sort_unstable();
    let Some(median_ms) = clocks.get(clocks.len() / 2).copied() else { return Vec::new() };
    let off =
        told().map(|(id, clock_ms)| (id, clock_ms - median_ms)).filter(|(_, off)| off.abs() > CLOCK_OFF_MS);
    off.map(|(id, off_ms)| {
        let (seconds, side) = (off_ms.abs() / 1000, if off_ms > 0 { "ahead of" } else { "behind" });
        format!("the clock of node {id} is {seconds} s {side} the others': see that its time service runs")
    })
    .collect()
}

/// What metadata knows to be lost counts at once; of replicas that are only silent each node with one judges for itself, later, and
/// who sees most has looked last.
fn lacking_copies(seen: &Seen<'_>, image: &Image) -> Option<String> {
    let told = seen.said.values().map(|about| about.lacking_chunks);
    let chunks = told.fold(image.lacking_chunks() as u64, u64::max);
    (chunks > 0).then(|| {
        format!(
            "{chunks} WAL chunks that are not uploaded yet have lost a copy: nothing is missing, but another lost disk may take them. \
             They are uploaded within seconds. If not, see why the store takes none; they are copied then, as soon as a node with the \
             role wal that has none of them is there: start the one that is down, or one more"
        )
    })
}

fn wrong_with(member: &MemberInfo, seen: &Seen<'_>, image: &Image) -> Option<String> {
    let MemberInfo { id, address, .. } = member;
    let session = image.brokers().into_iter().find(|session| is_of(session.node_id, *id));
    let Some(about) = seen.said.get(id) else {
        return Some(format!(
            "node {id} ({address}) does not answer node {}: it is down, paused or cut off. Start it again with its data directory \
             as it was; if that is lost for good, with an empty one, and then `isobar cluster replace {id}`",
            seen.me
        ));
    };
    if let Some(why) = &about.wal_stopped {
        return Some(format!(
            "the WAL of node {id} takes nothing any more: {why}; look at its disk, then restart the node"
        ));
    }
    let has_role = |role: &str| about.roles.split(',').any(|word| word == role);
    if has_role("broker") && session.is_none() {
        return Some(format!(
            "node {id} ({address}) serves no clients: it is starting, or finds too few WAL replicas; its log says which"
        ));
    }
    if session.is_some_and(|session| state_of(session) == "suspect") {
        return Some(format!(
            "node {id} is not heard of by the leader: it is paused, cut off, or has just died; it is fenced in seconds"
        ));
    }
    match image.directories().filter(|directory| is_of(directory.node_id, *id)).count() {
        0 if has_role("wal") => Some(format!("node {id} ({address}) has no WAL replica yet: it is starting")),
        0 | 1 => None,
        several => Some(format!(
            "node {id} has {several} WAL directories, of which it uses one: `isobar cluster replace {id}` takes out those that were lost"
        )),
    }
}

#[cfg(test)]
mod tests {
    use isobar_metadata::{ClusterFormat, StateMachine};

    use super::*;

    #[test]
    fn a_node_that_is_down_and_a_missing_leader_are_told() {
        let format = ClusterFormat::dev("c".to_owned(), "s".to_owned());
        let image = StateMachine::new(format).image();
        let member = |id| MemberInfo { id, address: format!("h:{id}"), incarnation: [0; 16], is_voter: true };
        let members = [member(1), member(2), member(3)];
        let about = |roles: &str| About { roles: roles.to_owned(), ..About::default() };
        let said = BTreeMap::from([(1, about("broker,wal,metadata")), (3, about("metadata"))]);
        let answer =
            |leader: &Leader| standing(&Seen { me: 1, members: &members, leader, said: &said }, &image);
        let unled = answer(&Leader::default());
        let wrong: Vec<&str> =
            unled["wrong"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert!(wrong[0].contains("2 of its 3 voters"), "{}", wrong[0]);
        assert!(wrong[1].starts_with("node 1 (h:1) serves no clients"), "{}", wrong[1]);
        assert!(wrong[2].starts_with("node 2 (h:2) does not answer node 1"), "{}", wrong[2]);
        assert!(wrong[3].contains("needs 1 WAL replicas, and 0 nodes"), "{}", wrong[3]);
        assert_eq!(unled["nodes"][2]["metadata"], "voter");
        let led = answer(&Leader { id: Some(2), ..Leader::default() });
        assert_eq!(led["nodes"][1]["metadata"], "leader");
    }

    #[test]
    fn what_has_lost_a_copy_is_told_once() {
        let said = |lacking: [u64; 2]| {
            let about = |lacking_chunks| About { lacking_chunks, ..About::default() };
            BTreeMap::from([(1, about(lacking[0])), (2, about(lacking[1]))])
        };
        let leader = Leader::default();
        let format = ClusterFormat::dev("c".to_owned(), "s".to_owned());
        let image = StateMachine::new(format).image();
        let told = |said: BTreeMap<u64, About>| {
            lacking_copies(&Seen { me: 1, members: &[], leader: &leader, said: &said }, &image)
        };
        assert_eq!(told(said([0, 0])), None);
        let words = told(said([3, 4])).unwrap();
        assert!(words.starts_with("4 WAL chunks that are not uploaded yet have lost a copy"), "{words}");
    }

    #[test]
    fn a_clock_that_is_far_off_is_told() {
        let at = |clock_ms| About { clock_ms, ..About::default() };
        let said =
            |clocks: &[(u64, i64)]| clocks.iter().map(|(id, ms)| (*id, at(1_000_000_000 + ms))).collect();
        let leader = Leader::default();
        let wrong = |said: BTreeMap<u64, About>| {
            wrong_clocks(&Seen { me: 1, members: &[], leader: &leader, said: &said })
        };
        assert!(wrong(said(&[(1, 0), (2, 9_000), (3, -9_000)])).is_empty());
        let told = wrong(said(&[(1, -7_200_000), (2, 50), (3, 0)]));
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("the clock of node 1 is 7200 s behind the others'"), "{}", told[0]);
        let of_older_releases = BTreeMap::from([(1, About::default()), (2, at(5))]);
        assert!(wrong(of_older_releases).is_empty());
    }
}
