//! Two brokers and one group: who coordinates it while one of them is suspect, drains or comes back.

use std::sync::Arc;
use std::time::Duration;

use isobar_metadata::command::{ClaimGroups, FIRST_NUMBER, UpdateSession};
use isobar_metadata::record::SessionState;
use isobar_metadata::{Command, Envelope, LaneId, SessionId};
use isobar_protocol::messages::FindCoordinatorRequest;
use tokio::time::sleep;

use super::node::{Kafka, join_group, text};
use crate::Broker;
use crate::cluster_tests::{OTHER, beside_another, propose};
use crate::connection::Client;

const US: i32 = 1;
const NOT_COORDINATOR: i16 = 16;
/// Of a commit: its error, and whether the connection was closed.
const TAKEN: (i16, bool) = (0, false);
const LOADING: (i16, bool) = (14, true);

async fn coordinator(kafka: &Kafka, group: &str) -> i32 {
    let request = FindCoordinatorRequest::default().with_coordinator_keys(vec![text(group)]);
    kafka.call(4, request).await.coordinators[0].node_id.0
}

/// The other broker takes the group over.
async fn claim(broker: &Broker, other: SessionId, number: u64, group: &str) {
    let claim = Command::ClaimGroups(ClaimGroups { groups: vec![group.to_owned()] });
    let envelope = Envelope::new(other, LaneId::CONTROL, number, number, claim);
    broker.quorum.propose(envelope).await.unwrap();
    broker.settled().await;
}

async fn set(broker: &Broker, session: SessionId, state: SessionState) {
    propose(broker, Command::UpdateSession(UpdateSession { session, state: state as i32 })).await;
}

fn kafka(broker: &Arc<Broker>) -> Kafka {
    Kafka { broker: Arc::clone(broker), running: None, notes: Arc::default() }
}

#[test]
fn who_is_suspect_or_drains_is_passed_over() {
    beside_another(|_, broker, other| async move {
        let kafka = kafka(&broker);
        for (number, state) in (FIRST_NUMBER..).zip([SessionState::Suspect, SessionState::Draining]) {
            let group = format!("g{number}");
            set(&broker, other, SessionState::Live).await;
            claim(&broker, other, number, &group).await;
            assert_eq!(coordinator(&kafka, &group).await, OTHER);
            assert_eq!(kafka.heartbeat(&group, "m", 1).await, NOT_COORDINATOR);
            set(&broker, other, state).await;
            assert_eq!(coordinator(&kafka, &group).await, US);
            assert_eq!(kafka.call(9, join_group(&group, "")).await.error_code, 79, "it is ours to ask");
            set(&broker, other, SessionState::Live).await;
            assert_eq!(coordinator(&kafka, &group).await, US, "a group that has moved stays");
        }
    });
}

#[test]
fn where_nobody_is_live_suspicion_says_nothing() {
    beside_another(|_, broker, other| async move {
        let kafka = kafka(&broker);
        claim(&broker, other, FIRST_NUMBER, "theirs").await;
        set(&broker, other, SessionState::Suspect).await;
        kafka.two_members("ours").await;
        set(&broker, broker.session.id(), SessionState::Suspect).await;
        assert_eq!(coordinator(&kafka, "theirs").await, OTHER);
        assert_eq!(coordinator(&kafka, "ours").await, US);
        assert!([US, OTHER].contains(&coordinator(&kafka, "nobody's").await));
    });
}

#[test]
fn a_group_that_another_has_claimed_is_let_go() {
    beside_another(|_, broker, other| async move {
        let kafka = kafka(&broker);
        let (a, b, generation) = kafka.two_members("g").await;
        assert_eq!(kafka.heartbeat("g", &a, generation).await, 0);
        // One waits for the other while the group moves.
        let waits = kafka.start(9, join_group("g", &a));
        sleep(Duration::from_millis(20)).await;
        claim(&broker, other, FIRST_NUMBER, "g").await;
        assert_eq!(kafka.heartbeat("g", &b, generation).await, NOT_COORDINATOR, "its epoch is over");
        assert_eq!(waits.await.unwrap().error_code, NOT_COORDINATOR);
        // Without a request for it, too.
        let (a, _, _) = kafka.two_members("h").await;
        let waits = kafka.start(9, join_group("h", &a));
        sleep(Duration::from_millis(20)).await;
        claim(&broker, other, FIRST_NUMBER + 1, "h").await;
        assert_eq!(waits.await.unwrap().error_code, NOT_COORDINATOR);
        // And it may come back, with its members.
        set(&broker, other, SessionState::Suspect).await;
        assert_eq!(kafka.describe("g").await.members.len(), 2);
        assert_eq!(kafka.heartbeat("g", &b, generation).await, 0, "the join was not durable");
    });
}

#[test]
fn a_commit_that_lay_in_its_connection_while_others_coordinated_is_not_taken() {
    beside_another(|_, broker, other| async move {
        let kafka = kafka(&broker);
        kafka.create_topic("t", 1).await;
        let connect = || Client::new("127.0.0.1:5000".parse().unwrap());
        let pause = || sleep(Duration::from_millis(5));
        let first = connect();
        pause().await;
        let (a, _, generation) = kafka.two_members("g").await;
        assert_eq!(kafka.commit_by(&first, "g", (&a, generation), 10).await, TAKEN, "a generation of ours");
        assert_eq!(kafka.commit_by(&first, "simple", ("", -1), 10).await, TAKEN, "a new group");
        for (number, group) in (FIRST_NUMBER..).zip(["g", "simple"]) {
            claim(&broker, other, number, group).await;
        }
        set(&broker, other, SessionState::Suspect).await;
        pause().await;
        // The group is back; meanwhile the other broker may have answered commits.
        assert_eq!(kafka.commit_by(&first, "g", (&a, generation), 11).await, LOADING);
        assert_eq!(kafka.commit_by(&first, "simple", ("", -1), 11).await, LOADING);
        assert_eq!(kafka.fetch_offset("g", "t", 0).await, (10, 0));
        assert_eq!(kafka.fetch_offset("simple", "t", 0).await, (10, 0));
        pause().await;
        let second = connect();
        assert_eq!(kafka.commit_by(&second, "g", (&a, generation), 12).await, TAKEN);
        assert_eq!(kafka.commit_by(&second, "simple", ("", -1), 12).await, TAKEN);
        pause().await;
        assert_eq!(kafka.commit_by(&second, "simple", ("", -1), 13).await, TAKEN, "though loaded anew");
        assert_eq!(kafka.commit_by(&first, "g", (&a, generation), 11).await, LOADING, "for ever");
        assert_eq!(kafka.fetch_offset("g", "t", 0).await, (12, 0));
    });
}
