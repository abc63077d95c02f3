//! How a cluster is, as one of its nodes sees it: for `isobar cluster status`.

use std::collections::BTreeSet;

use isobar_metadata::Image;
use isobar_metadata::record::{SessionRecord, SessionState};
use isobar_raft::{Leader, MemberInfo};
use serde_json::{Value, json};

/// The answer of `GET /v1/cluster`. Pure: `members`, `leader` and `image` are what node `me` knows.
pub(crate) fn standing(me: u64, members: &[MemberInfo], leader: &Leader, image: &Image) -> Value {
    let brokers = image.brokers();
    let mut ids: BTreeSet<u64> = members.iter().map(|member| member.id).collect();
    ids.extend(image.directories().filter_map(|directory| u64::try_from(directory.node_id).ok()));
    ids.extend(brokers.iter().filter_map(|session| u64::try_from(session.node_id).ok()));
    let nodes = ids.iter().map(|id| {
        let member = members.iter().find(|member| member.id == *id);
        let session = brokers.iter().find(|session| u64::try_from(session.node_id) == Ok(*id));
        let directories = image.directories().filter(|directory| u64::try_from(directory.node_id) == Ok(*id));
        json!({
            "id": id,
            "address": member.map(|member| member.address.as_str()),
            "metadata": member.map(|member| match (member.is_voter, leader.id == Some(*id)) {
                (_, true) => "leader",
                (true, false) => "voter",
                (false, false) => "learner",
            }),
            "broker": session.map(|session| state_of(session)),
            "kafka": session.map(|session| format!("{}:{}", session.host, session.port)),
            "zone": session.map(|session| session.zone.as_str()).filter(|zone| !zone.is_empty()),
            "wal": match directories.count() {
                0 => None,
                1 => Some("registered".to_owned()),
                several => Some(format!("{several} directories")),
            },
        })
    });
    json!({
        "cluster_id": image.format().cluster_id,
        "node": me,
        "nodes": nodes.collect::<Vec<_>>(),
        "wrong": wrong(members, leader, image),
    })
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
fn wrong(members: &[MemberInfo], leader: &Leader, image: &Image) -> Vec<String> {
    let mut wrong = Vec::new();
    let brokers = image.brokers();
    if leader.id.is_none() {
        let voters = members.iter().filter(|member| member.is_voter).count();
        wrong.push(format!(
            "the metadata quorum has no leader: nothing is written until {} of its {voters} voters reach each other; start \
             those that are down, and look at the network between them",
            voters / 2 + 1
        ));
    }
    for member in members {
        let session = brokers.iter().find(|session| u64::try_from(session.node_id) == Ok(member.id));
        match session.map(|session| (state_of(session), session)) {
            Some(("suspect", _)) => wrong.push(format!(
                "node {} is not heard of by the leader: it is paused, cut off, or has just died; it is fenced in seconds",
                member.id
            )),
            Some(_) => {}
            None => wrong.push(format!(
                "node {} ({}) serves no clients: it is down; start it again with its data directory as it was",
                member.id, member.address
            )),
        }
    }
    if image.expiry_held_until_ms() > 0 {
        wrong.push(
            "the clock of a metadata leader jumped by more than ten minutes: nothing expires until it is trusted again; \
             look at the nodes' clocks"
                .to_owned(),
        );
    }
    wrong
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
        let answer = standing(1, &members, &Leader::default(), &image);
        let wrong: Vec<&str> =
            answer["wrong"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert!(wrong[0].contains("2 of its 3 voters"), "{}", wrong[0]);
        assert!(wrong[1].starts_with("node 1 (h:1) serves no clients"), "{}", wrong[1]);
        assert_eq!(answer["nodes"][2]["metadata"], "voter");
        let led = Leader { id: Some(2), ..Leader::default() };
        assert_eq!(standing(1, &members, &led, &image)["nodes"][1]["metadata"], "leader");
    }
}
