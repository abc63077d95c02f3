//! Static members (KIP-345, KIP-814), leaving, and bounds.

mod rig;

use isobar_groups::GroupError::*;
use isobar_groups::*;
use rig::*;

fn two_static(rig: &mut Rig) -> i32 {
    let a = rig.join(static_join("", "one", "one-a"));
    let b = rig.join(static_join("", "two", "two-a"));
    assert!(rig.waits(b) && !rig.waits(a));
    let a = rig.join(static_join("one-a", "one", ""));
    let answers = [rig.joined(a).clone(), rig.joined(b).clone()];
    rig.sync_all(&answers)
}

#[test]
fn a_static_follower_comes_back_without_a_rebalance() {
    let mut rig = Rig::new(config());
    let generation = two_static(&mut rig);
    rig.auto_persist = false;
    let back = rig.join(static_join("", "two", "two-b"));
    assert!(rig.waits(back), "its new id is durable first");
    rig.persisted();
    let answer = rig.joined(back);
    assert_eq!((answer.error, answer.generation, &*answer.member_id), (None, generation, "two-b"));
    assert_eq!((&*answer.leader, answer.skip_assignment, answer.members.len()), ("one-a", false, 0));
    assert_eq!(rig.group.state(), State::Stable);
    let back = Sync { instance_id: Some(name("two")), ..sync("two-b", generation) };
    assert_eq!(rig.sync_result(back), Ok(format!("two-a@{generation}")));
    // Its former self is fenced wherever it shows up.
    assert_eq!(rig.heartbeat_as("two-a", Some("two"), generation), Err(FencedInstanceId));
    assert_eq!(rig.commit("two-a", Some("two"), generation), Err(FencedInstanceId));
    let fenced = Sync { instance_id: Some(name("two")), ..sync("two-a", generation) };
    assert_eq!(rig.sync_result(fenced), Err(FencedInstanceId));
    let fenced = rig.join(static_join("two-a", "two", ""));
    assert_eq!((rig.joined(fenced).error, &*rig.joined(fenced).member_id), (Some(FencedInstanceId), "two-a"));
    let left = rig.leave(&[("two-a", Some("two"))]);
    assert_eq!(rig.left(left), [Some(FencedInstanceId)]);
    assert_eq!(rig.heartbeat("two-a", generation), Err(UnknownMemberId));
    assert_eq!(rig.heartbeat_as("two-b", Some("two"), generation), Ok(()));
    assert_eq!(rig.heartbeat_as("two-b", Some("three"), generation), Err(UnknownMemberId));
}

#[test]
fn a_static_leader_comes_back_and_skips_the_assignment() {
    let mut rig = Rig::new(config());
    let generation = two_static(&mut rig);
    let back = rig.join(static_join("", "one", "one-b"));
    let answer = rig.joined(back);
    assert_eq!((answer.generation, &*answer.leader), (generation, "one-b"));
    assert!(answer.skip_assignment);
    assert_eq!(answer.members.len(), 2, "it still leads, and watches the metadata");
    // A client that knows no KIP-814 is told that its former self leads, so that it computes nothing.
    let back = rig.join(Join { supports_skip_assignment: false, ..static_join("", "one", "one-c") });
    let answer = rig.joined(back);
    assert_eq!((&*answer.leader, answer.skip_assignment, answer.members.len()), ("one-b", false, 0));
    assert_eq!(rig.group.state(), State::Stable);
    assert_eq!(rig.durable.as_ref().unwrap().leader.as_deref(), Some("one-c"));
}

#[test]
fn a_static_member_that_changes_the_chosen_protocol_rebalances() {
    let mut rig = Rig::new(config());
    let both = |j: Join| Join { protocols: protocols(&[("range", ""), ("sticky", "")]), ..j };
    let a = rig.join(both(static_join("", "one", "one-a")));
    rig.sync_all(&[rig.joined(a).clone()]);
    let back = rig.join(Join { protocols: protocols(&[("sticky", "")]), ..static_join("", "one", "one-b") });
    let answer = rig.joined(back);
    assert_eq!((answer.generation, answer.protocol.as_deref()), (2, Some("sticky")));
    assert_eq!(rig.group.state(), State::CompletingRebalance);
}

#[test]
fn a_static_member_that_comes_back_during_a_rebalance() {
    let mut rig = Rig::new(config());
    let generation = two_static(&mut rig);
    // While the others are awaited: who waited under the old id is fenced.
    let first = rig.join(Join { protocols: protocols(&[("range", "x")]), ..static_join("two-a", "two", "") });
    let second = rig.join(static_join("", "two", "two-b"));
    let answer = rig.joined(first);
    assert_eq!((answer.error, &*answer.member_id), (Some(FencedInstanceId), "two-a"));
    assert!(rig.waits(second));
    let one = rig.join(static_join("one-a", "one", ""));
    assert_eq!((rig.joined(one).generation, rig.joined(second).generation), (generation + 1, generation + 1));
    // While the assignment is awaited: a new rebalance, since the leader assigns to the old id.
    let two = rig.sync(Sync { instance_id: Some(name("two")), ..sync("two-b", generation + 1) });
    let third = rig.join(static_join("", "two", "two-c"));
    assert_eq!(rig.synced(two), Err(FencedInstanceId));
    assert!(rig.waits(third));
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    rig.join(static_join("one-a", "one", ""));
    assert_eq!(rig.joined(third).generation, generation + 2);
}

#[test]
fn a_static_member_in_a_full_group_comes_back() {
    let mut rig = Rig::new(GroupConfig { max_size: 2, ..config() });
    let generation = two_static(&mut rig);
    let back = rig.join(static_join("", "two", "two-b"));
    assert_eq!((rig.joined(back).error, rig.joined(back).generation), (None, generation));
    assert_eq!(rig.join_error(static_join("", "three", "three-a")), Some(GroupMaxSizeReached));
}

#[test]
fn a_static_members_new_id_that_cannot_be_stored() {
    let mut rig = Rig::new(config());
    two_static(&mut rig);
    rig.auto_persist = false;
    let back = rig.join(static_join("", "two", "two-b"));
    rig.persist_failed(UnknownServerError);
    let answer = rig.joined(back);
    assert_eq!((answer.error, &*answer.member_id), (Some(UnknownServerError), ""));
    rig.auto_persist = true;
    let back = rig.join(static_join("", "two", "two-c"));
    assert_eq!(rig.joined(back).error, None);
    assert_eq!(rig.group.state(), State::Stable);
}

#[test]
fn several_members_leave_at_once() {
    let mut rig = Rig::new(config());
    let generation = two_static(&mut rig);
    rig.join_dynamic("dyn");
    let _ = generation;
    let left = rig.leave(&[
        ("", Some("one")),
        ("two-x", Some("two")),
        ("nobody", None),
        ("dyn", Some("none")),
        ("dyn", None),
    ]);
    assert_eq!(
        rig.left(left),
        [None, Some(FencedInstanceId), Some(UnknownMemberId), Some(UnknownMemberId), None]
    );
    assert_eq!(rig.group.describe().members.len(), 1);
    let left = rig.leave(&[("two-a", Some("two")), ("two-a", Some("two"))]);
    assert_eq!(rig.left(left), [None, Some(UnknownMemberId)]);
    assert_eq!(rig.group.state(), State::Empty);
}

#[test]
fn the_last_one_to_leave_is_answered_when_the_empty_group_is_durable() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a"]);
    rig.auto_persist = false;
    let left = rig.leave(&[("a", None)]);
    assert_eq!(rig.group.state(), State::Empty);
    assert!(rig.waits(left) && !rig.forgotten);
    rig.persisted();
    assert_eq!(rig.left(left), [None]);
    assert!(rig.forgotten);
    let durable = rig.durable.clone().unwrap();
    assert_eq!((durable.phase, durable.generation, durable.members.len()), (PersistedPhase::Empty, 2, 0));
    assert_eq!(
        (durable.protocol_type.as_deref(), durable.protocol, durable.leader),
        (Some("consumer"), None, None)
    );
}

#[test]
fn a_member_that_leaves_while_its_requests_wait_gets_them_answered() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    let a = rig.join(join("a"));
    rig.leave(&[("a", None)]);
    assert_eq!(rig.joined(a).error, Some(UnknownMemberId));
    let b = rig.join(join("b"));
    let c = rig.join_dynamic("c");
    let b2 = rig.join(join("b"));
    assert_eq!((rig.joined(b).generation, rig.joined(b2).generation, rig.joined(c).generation), (3, 4, 4));
    let c = rig.sync(sync("c", 4));
    rig.leave(&[("c", None)]);
    assert_eq!(rig.synced(c), Err(UnknownMemberId), "Kafka never answers this one");
}

#[test]
fn group_max_size() {
    let mut rig = Rig::new(GroupConfig { max_size: 2, ..config() });
    rig.stabilise(&["a", "b"]);
    let c = rig.join(Join { new_member_id: name("c"), ..join("") });
    assert_eq!((rig.joined(c).error, &*rig.joined(c).member_id), (Some(GroupMaxSizeReached), ""));
    // While the members come back, places go to who comes first; the one that finds none is out.
    let mut wide = Rig::new(config());
    wide.stabilise(&["a", "b", "c"]);
    let mut rig = Rig::new(GroupConfig { max_size: 2, ..config() });
    rig.durable = wide.durable.clone();
    rig.crash();
    assert_eq!(rig.group.state(), State::PreparingRebalance, "loaded above the limit");
    let c = rig.join(join("c"));
    let a = rig.join(join("a"));
    let again = rig.join(join("c"));
    assert_eq!(rig.joined(c).error, Some(RebalanceInProgress), "the second request of one member takes over");
    assert!(rig.waits(again));
    let b = rig.join(join("b"));
    assert_eq!(rig.joined(b).error, Some(GroupMaxSizeReached));
    let generation = wide.group.generation() + 1;
    assert_eq!((rig.joined(a).generation, rig.joined(again).generation), (generation, generation));
}

#[test]
fn bytes_and_pending_ids_are_bounded() {
    let small =
        GroupConfig { max_member_bytes: 400, max_group_bytes: 1_000, max_pending_members: 2, ..config() };
    let mut rig = Rig::new(small);
    let heavy = |id: &str, n: usize| Join {
        new_member_id: name(id),
        protocols: protocols(&[("range", &"x".repeat(n))]),
        ..join("")
    };
    assert_eq!(rig.join_error(heavy("a", 400)), Some(InvalidRequest));
    for id in ["a", "b"] {
        assert_eq!(rig.join_error(heavy(id, 200)), Some(MemberIdRequired));
    }
    assert_eq!(rig.join_error(heavy("c", 200)), Some(CoordinatorLoadInProgress));
    let a = rig.join(Join { member_id: name("a"), ..heavy("", 200) });
    assert_eq!(rig.joined(a).error, None);
    let c = rig.join(Join { requires_member_id: false, ..heavy("c", 200) });
    let b = rig.join(Join { member_id: name("b"), ..heavy("", 200) });
    assert!(rig.waits(b) && rig.waits(c));
    assert_eq!(
        rig.join_error(Join { requires_member_id: false, ..heavy("d", 200) }),
        Some(GroupMaxSizeReached)
    );
    rig.join(Join { member_id: name("a"), ..heavy("", 200) });
    assert_eq!((rig.joined(b).error, rig.joined(c).error), (None, None));
    // An assignment that the group has no room for fails who waits for it, as in Kafka where a record is too large.
    let generation = rig.joined(b).generation;
    let leader = rig.joined(b).leader.to_string();
    let synced = rig.sync_result(assigning(&leader, generation, &[("a", &"x".repeat(1_000))]));
    assert_eq!(synced, Err(UnknownServerError));
    assert_eq!(rig.group.state(), State::PreparingRebalance);
}

#[test]
fn a_second_request_of_a_member_takes_the_place_of_the_first() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    let first = rig.join(join("a"));
    let second = rig.join(join("a"));
    assert_eq!(rig.joined(first).error, Some(RebalanceInProgress));
    rig.join(join("b"));
    assert_eq!(rig.joined(second).generation, 3);
    let first = rig.sync(sync("b", 3));
    let second = rig.sync(sync("b", 3));
    assert_eq!(rig.synced(first), Err(RebalanceInProgress));
    rig.sync(assigning("a", 3, &[("b", "x")]));
    assert_eq!(rig.synced(second), Ok("x"));
}
