//! The shell over a real quorum, in the simulation: what Kafka clients see of groups, also over power cuts.

mod coordinators;
pub(crate) mod node;
mod survival;

use bytes::Bytes;
use isobar_protocol::StrBytes;
use isobar_protocol::messages::leave_group_request::MemberIdentity;
use isobar_protocol::messages::list_groups_response::ListedGroup;
use isobar_protocol::messages::*;

use node::{Kafka, live, text};

#[test]
fn a_simple_consumer_commits_and_fetches() {
    live(
        1,
        vec![
            Box::new(|kafka: Kafka| Box::pin(simple_consumer(kafka))),
            Box::new(|k| Box::pin(still_there(k))),
        ],
    );
}

async fn simple_consumer(kafka: Kafka) {
    kafka.create_topic("t", 2).await;
    assert_eq!(kafka.fetch_offset("g", "t", 0).await, (-1, 0), "nothing is committed, and that is no error");
    for version in 2..=9 {
        let offset = i64::from(version) * 10;
        assert_eq!(kafka.commit_at(version, "g", ("", -1), "t", 0, offset).await, 0);
        for fetch in 1..=9 {
            assert_eq!(kafka.fetch_offset_at(fetch, "g", "t", 0).await, (offset, 0), "version {fetch}");
        }
    }
    assert_eq!(kafka.commit("g", ("", -1), "none", 0, 1).await, 3);
    assert_eq!(kafka.commit("g", ("", -1), "t", 2, 1).await, 3);
    assert_eq!(kafka.commit("", ("", -1), "t", 1, 7).await, 0, "Kafka allows offsets under the empty group");
    // A generation in a group that does not exist.
    assert_eq!(kafka.commit_at(9, "none", ("m", 1), "t", 0, 1).await, 69);
    assert_eq!(kafka.commit_at(8, "none", ("m", 1), "t", 0, 1).await, 22);
    assert_eq!(kafka.commit("g", ("m", 1), "t", 0, 1).await, 25);
    // Everything, and what was never committed.
    let all = kafka.call(9, node::fetch_all("g")).await;
    let topic = &all.groups[0].topics[0];
    assert_eq!((&*topic.name.0, topic.partitions.len(), topic.partitions[0].committed_offset), ("t", 1, 90));
    assert_eq!(kafka.fetch_offset("g", "none", 5).await, (-1, 0));
}

async fn still_there(kafka: Kafka) {
    assert_eq!(kafka.fetch_offset("g", "t", 0).await, (90, 0));
    assert_eq!(kafka.commit("g", ("", -1), "t", 0, 91).await, 0);
    assert_eq!(kafka.fetch_offset("g", "t", 0).await, (91, 0));
}

#[test]
fn the_metadata_of_a_commit_is_bounded() {
    live(
        2,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                kafka.create_topic("t", 1).await;
                for (length, code) in [(4096, 0), (4097, 12)] {
                    let mut request = node::offset_commit("g", ("", -1), "t", 0, 5);
                    request.topics[0].partitions[0].committed_metadata =
                        Some(StrBytes::from_string("x".repeat(length)));
                    let answer = kafka.call(8, request).await;
                    assert_eq!(answer.topics[0].partitions[0].error_code, code);
                }
            })
        })],
    );
}

#[test]
fn a_stable_group_survives_a_power_cut_without_a_rebalance() {
    live(
        3,
        vec![
            Box::new(|kafka: Kafka| {
                Box::pin(async move {
                    kafka.create_topic("t", 1).await;
                    let (a, b, generation) = kafka.two_members("g").await;
                    assert_eq!(kafka.commit("g", (&a, generation), "t", 0, 5).await, 0);
                    assert_eq!(kafka.commit("g", (&b, generation - 1), "t", 0, 6).await, 22);
                    kafka.note(&format!("{a} {b} {generation}"));
                })
            }),
            Box::new(|kafka: Kafka| {
                Box::pin(async move {
                    let noted = kafka.noted();
                    let words: Vec<&str> = noted.split(' ').collect();
                    let generation: i32 = words[2].parse().unwrap();
                    let described = kafka.describe("g").await;
                    assert_eq!((&*described.group_state, described.members.len()), ("Stable", 2));
                    for member in &words[..2] {
                        assert_eq!(kafka.heartbeat("g", member, generation).await, 0);
                        assert_eq!(kafka.commit("g", (member, generation), "t", 0, 8).await, 0);
                    }
                    let again = kafka.sync("g", words[1], generation, &[]).await;
                    assert_eq!((again.error_code, &again.assignment[..]), (0, words[1].as_bytes()));
                    assert_eq!(kafka.fetch_offset("g", "t", 0).await, (8, 0));
                })
            }),
            // Nobody comes back: the new coordinator finds out although nobody asks for the group.
            Box::new(|kafka: Kafka| {
                Box::pin(async move {
                    tokio::time::sleep(std::time::Duration::from_millis(7_500)).await;
                    let described = kafka.describe("g").await;
                    assert_eq!((&*described.group_state, described.members.len()), ("Empty", 0));
                    assert_eq!(kafka.commit("g", ("", -1), "t", 0, 9).await, 0);
                })
            }),
        ],
    );
}

#[test]
fn closing_a_consumer_frees_its_group_at_once() {
    live(4, vec![Box::new(|kafka: Kafka| Box::pin(closing(kafka)))]);
}

async fn closing(kafka: Kafka) {
    kafka.create_topic("t", 1).await;
    let (a, b, generation) = kafka.two_members("g").await;
    assert_eq!(kafka.commit("g", ("", -1), "t", 0, 5).await, 25, "not while it has members");
    assert_eq!(kafka.delete(&["g"]).await, [("g".to_owned(), 68)]);
    let listed = kafka.list(&[], &[]).await;
    let of =
        |l: &ListedGroup| (l.group_id.0.to_string(), l.group_state.to_string(), l.protocol_type.to_string());
    assert_eq!(of(&listed[0]), ("g".to_owned(), "Stable".to_owned(), "consumer".to_owned()));
    let leaving = [&a, &b].map(|m| MemberIdentity::default().with_member_id(text(m)));
    let left = kafka
        .call(5, LeaveGroupRequest::default().with_group_id(node::group("g")).with_members(leaving.into()));
    let left = left.await;
    assert_eq!((left.error_code, left.members[0].error_code, left.members[1].error_code), (0, 0, 0));
    assert_eq!(kafka.heartbeat("g", &a, generation).await, 25);
    assert_eq!(kafka.commit("g", ("", -1), "t", 0, 5).await, 0, "empty, and that is durable");
    assert_eq!(kafka.list(&["Empty"], &["classic"]).await.len(), 1);
    assert_eq!(kafka.list(&["empty"], &[]).await.len(), 1);
    assert!(kafka.list(&["Stable"], &[]).await.is_empty() && kafka.list(&[], &["consumer"]).await.is_empty());
    let deleted = kafka.delete(&["g", "none"]).await;
    assert_eq!(deleted, [("g".to_owned(), 0), ("none".to_owned(), 69)]);
    assert_eq!(kafka.fetch_offset("g", "t", 0).await, (-1, 0));
    for version in 0..=6 {
        let described = kafka.describe_at(version, "g").await;
        assert_eq!(
            (&*described.group_state, described.error_code),
            ("Dead", if version < 6 { 0 } else { 69 })
        );
    }
    assert!(kafka.list(&[], &[]).await.is_empty());
}

#[test]
fn refusals_before_any_group_is_made() {
    live(5, vec![Box::new(|kafka: Kafka| Box::pin(refusals(kafka)))]);
}

async fn refusals(kafka: Kafka) {
    let join = kafka.call(9, node::join_group("", "")).await;
    assert_eq!(join.error_code, 24);
    let join = kafka.call(9, node::join_group("g", "").with_session_timeout_ms(5_999)).await;
    assert_eq!(join.error_code, 26);
    let join = kafka.call(9, node::join_group("g", "stranger")).await;
    assert_eq!((join.error_code, &*join.member_id), (25, "stranger"));
    assert_eq!(kafka.heartbeat("g", "stranger", 1).await, 25);
    assert_eq!(kafka.sync("g", "stranger", 1, &[]).await.error_code, 25);
    for version in 0..=5 {
        let member = MemberIdentity::default().with_member_id(text("stranger"));
        let request = LeaveGroupRequest::default().with_group_id(node::group("g"));
        let request = if version < 3 {
            request.with_member_id(text("stranger"))
        } else {
            request.with_members(vec![member])
        };
        let left = kafka.call(version, request).await;
        let code = left.members.first().map_or(left.error_code, |member| member.error_code);
        assert_eq!(code, 25);
    }
    assert_eq!(kafka.describe("").await.error_code, 24);
    assert!(kafka.list(&[], &[]).await.is_empty(), "none of these leaves a group behind");
}

#[test]
fn every_version_joins() {
    live(
        6,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                for version in 0..=9 {
                    let group = format!("g{version}");
                    let mut request = node::join_group(&group, "");
                    if version == 0 {
                        request.rebalance_timeout_ms = -1;
                    }
                    let mut joined = kafka.call(version, request.clone()).await;
                    if version >= 4 {
                        assert_eq!(joined.error_code, 79);
                        assert!(joined.member_id.starts_with("test-"));
                        joined = kafka.call(version, request.with_member_id(joined.member_id)).await;
                    }
                    assert_eq!(
                        (joined.error_code, joined.generation_id, joined.members.len()),
                        (0, 1, 1),
                        "{version}"
                    );
                    assert_eq!(joined.protocol_name.as_deref(), Some("range"));
                    assert_eq!(joined.protocol_type.as_deref(), (version >= 7).then_some("consumer"));
                    let sync = node::sync_group(&group, &joined.member_id, 1, &[(&joined.member_id, "all")]);
                    let synced = kafka.call(version.min(5), sync).await;
                    assert_eq!((synced.error_code, &synced.assignment[..]), (0, &b"all"[..]));
                    let beat = node::heartbeat(&group, &joined.member_id, 1);
                    assert_eq!(kafka.call(version.min(4), beat).await.error_code, 0);
                }
            })
        })],
    );
}

#[test]
fn coordinators_are_found() {
    live(
        7,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                for version in 0..=6 {
                    let mut request = FindCoordinatorRequest::default();
                    if version < 4 {
                        request = request.with_key(text("g"));
                    } else {
                        request = request.with_coordinator_keys(vec![text("g"), text("h")]);
                    }
                    let found = kafka.call(version, request).await;
                    let (code, node, port) = match found.coordinators.first() {
                        Some(first) => (first.error_code, first.node_id, first.port),
                        None => (found.error_code, found.node_id, found.port),
                    };
                    assert_eq!((code, node, port), (0, BrokerId(1), 9092));
                    assert_eq!(found.coordinators.len(), if version < 4 { 0 } else { 2 });
                }
                let transactional = FindCoordinatorRequest::default().with_key(text("tx")).with_key_type(1);
                let found = kafka.call(3, transactional).await;
                assert_eq!((found.error_code, found.node_id, found.port), (42, BrokerId(-1), -1));
            })
        })],
    );
}

#[test]
fn a_draining_broker_lets_nobody_wait() {
    live(
        8,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                let (a, _, _) = kafka.two_members("g").await;
                let waiting = kafka.start(9, node::join_group("g", &a));
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                kafka.drain().await;
                assert_eq!(waiting.await.unwrap().error_code, 16);
                assert_eq!(kafka.heartbeat("g", &a, 2).await, 16);
            })
        })],
    );
}

#[test]
fn a_fenced_broker_coordinates_nothing() {
    live(
        9,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                kafka.create_topic("t", 1).await;
                let (a, b, generation) = kafka.two_members("g").await;
                kafka.fence().await;
                assert_eq!(kafka.commit("g", (&a, generation), "t", 0, 5).await, 16);
                assert_eq!(kafka.heartbeat("g", &b, generation).await, 16);
                assert_eq!(kafka.call(9, node::join_group("g", &a)).await.error_code, 16);
                assert_eq!(kafka.call(9, node::join_group("new", "")).await.error_code, 16);
            })
        })],
    );
}

#[test]
fn a_static_member_comes_back_without_a_rebalance() {
    live(
        10,
        vec![Box::new(|kafka: Kafka| {
            Box::pin(async move {
                let first = node::join_group("g", "").with_group_instance_id(Some(text("one")));
                let joined = kafka.call(9, first.clone()).await;
                assert_eq!((joined.error_code, joined.member_id.starts_with("one-")), (0, true));
                kafka.sync("g", &joined.member_id, 1, &[(&joined.member_id, "all")]).await;
                let again = kafka.call(9, first).await;
                assert_eq!((again.error_code, again.generation_id, again.skip_assignment), (0, 1, true));
                assert_ne!(again.member_id, joined.member_id);
                let synced = kafka.sync("g", &again.member_id, 1, &[]).await;
                assert_eq!((synced.error_code, &synced.assignment[..]), (0, &Bytes::from_static(b"all")[..]));
                let fenced =
                    node::heartbeat("g", &joined.member_id, 1).with_group_instance_id(Some(text("one")));
                assert_eq!(kafka.call(4, fenced).await.error_code, 82);
            })
        })],
    );
}
