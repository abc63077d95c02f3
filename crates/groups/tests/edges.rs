//! Kafka's edges, one by one. Names of errors and states are the protocol's.

mod rig;

use isobar_groups::GroupError::*;
use isobar_groups::*;
use rig::*;

#[test]
fn the_group_id_and_member_ids() {
    assert_eq!(validate_group_id(""), Err(InvalidGroupId));
    assert_eq!(validate_group_id("g"), Ok(()));
    assert_eq!(&*member_id("c", None, "u-u"), "c-u-u");
    assert_eq!(&*member_id("c", Some("i"), "u-u"), "i-u-u");
}

#[test]
fn error_codes_are_kafkas() {
    let codes = [
        (UnknownServerError, -1),
        (CoordinatorLoadInProgress, 14),
        (CoordinatorNotAvailable, 15),
        (NotCoordinator, 16),
        (IllegalGeneration, 22),
        (InconsistentGroupProtocol, 23),
        (InvalidGroupId, 24),
        (UnknownMemberId, 25),
        (InvalidSessionTimeout, 26),
        (RebalanceInProgress, 27),
        (InvalidRequest, 42),
        (NonEmptyGroup, 68),
        (GroupIdNotFound, 69),
        (MemberIdRequired, 79),
        (GroupMaxSizeReached, 81),
        (FencedInstanceId, 82),
    ];
    for (error, code) in codes {
        assert_eq!(error.code(), code, "{error:?}");
    }
}

#[test]
fn an_unknown_group_or_member_is_unknown_member_id_and_nothing_is_kept() {
    let mut rig = Rig::new(config());
    assert_eq!(rig.join_error(join("stranger")), Some(UnknownMemberId));
    assert!(rig.forgotten);
    assert_eq!(rig.heartbeat("stranger", 1), Err(UnknownMemberId));
    assert_eq!(rig.sync_result(sync("stranger", 1)), Err(UnknownMemberId));
    assert_eq!(rig.commit("stranger", None, 1), Err(UnknownMemberId));
    let left = rig.leave(&[("stranger", None), ("", Some("nobody")), ("", None)]);
    assert_eq!(rig.left(left), [Some(UnknownMemberId); 3]);
    assert!(rig.forgotten);
    assert_eq!(rig.durable, None);
}

#[test]
fn a_dynamic_member_needs_an_id_from_version_4_on() {
    let mut rig = Rig::new(config());
    let first = rig.join(Join { new_member_id: name("a"), ..join("") });
    let answer = rig.joined(first).clone();
    assert_eq!((answer.error, &*answer.member_id), (Some(MemberIdRequired), "a"));
    assert_eq!((answer.generation, &*answer.leader), (-1, ""));
    assert_eq!(rig.group.state(), State::Empty);
    assert!(!rig.forgotten, "the id given out is kept");
    // Older versions and static members are let in at once.
    let old = rig.join(Join { new_member_id: name("old"), requires_member_id: false, ..join("") });
    assert_eq!(rig.joined(old).error, None);
    let mut rig = Rig::new(config());
    let known = rig.join(static_join("", "i", "i-1"));
    assert_eq!((rig.joined(known).error, &*rig.joined(known).member_id), (None, "i-1"));
}

#[test]
fn an_id_given_out_and_not_used_lapses_with_the_session_timeout() {
    let mut rig = Rig::new(config());
    rig.join(Join { new_member_id: name("a"), ..join("") });
    rig.advance(9_999);
    assert!(!rig.forgotten);
    rig.advance(1);
    assert!(rig.forgotten);
    assert_eq!(rig.join_error(join("a")), Some(UnknownMemberId));
}

#[test]
fn a_pending_id_holds_up_the_join_phase_and_may_leave() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a"]);
    rig.join(Join { new_member_id: name("b"), ..join("") });
    assert_eq!(rig.group.state(), State::Stable, "an id alone starts no rebalance");
    let again = rig.join(join("a"));
    assert!(rig.waits(again), "b may still come");
    let left = rig.leave(&[("b", None)]);
    assert_eq!(rig.left(left), [None]);
    assert_eq!(rig.joined(again).generation, 2);
    // A pending id that lapses ends the wait, too; and in a stable group it does nothing.
    rig.sync(assigning("a", 2, &[]));
    rig.join(Join { new_member_id: name("c"), ..join("") });
    rig.advance(5_000);
    let again = rig.join(join("a"));
    rig.advance(5_000);
    assert_eq!(rig.joined(again).generation, 3);
    rig.sync(assigning("a", 3, &[]));
    rig.join(Join { new_member_id: name("d"), session_timeout_ms: 6_000, ..join("") });
    rig.advance(6_000);
    assert_eq!(rig.group.state(), State::Stable);
}

#[test]
fn the_session_timeout_has_bounds() {
    let mut rig = Rig::new(config());
    for (ms, refused) in
        [(5_999, true), (6_000, false), (1_800_000, false), (1_800_001, true), (-1, true), (i32::MIN, true)]
    {
        let error =
            rig.join_error(Join { session_timeout_ms: ms, new_member_id: name(&ms.to_string()), ..join("") });
        assert_eq!(error == Some(InvalidSessionTimeout), refused, "{ms}: {error:?}");
    }
}

#[test]
fn protocols_must_fit() {
    let mut rig = Rig::new(config());
    assert_eq!(rig.join_error(Join { protocols: vec![], ..join("") }), Some(InconsistentGroupProtocol));
    assert_eq!(rig.join_error(Join { protocol_type: name(""), ..join("") }), Some(InconsistentGroupProtocol));
    rig.stabilise(&["a"]);
    let none_shared = Join { protocols: protocols(&[("sticky", "")]), ..join("") };
    assert_eq!(rig.join_error(none_shared.clone()), Some(InconsistentGroupProtocol));
    assert_eq!(
        rig.join_error(Join { protocol_type: name("connect"), ..join("") }),
        Some(InconsistentGroupProtocol)
    );
    let own = rig.join(Join { member_id: name("a"), ..none_shared });
    assert_eq!((rig.joined(own).error, &*rig.joined(own).member_id), (Some(InconsistentGroupProtocol), "a"));
    // KIP-559
    let other = Sync { protocol_type: Some(name("connect")), ..sync("a", 1) };
    assert_eq!(rig.sync_result(other), Err(InconsistentGroupProtocol));
    let other = Sync { protocol: Some(name("sticky")), ..sync("a", 1) };
    assert_eq!(rig.sync_result(other), Err(InconsistentGroupProtocol));
    let unsaid = Sync { protocol: None, protocol_type: None, ..sync("a", 1) };
    assert_eq!(rig.sync_result(unsaid), Ok("a@1".to_owned()));
}

#[test]
fn the_protocol_is_voted_for_among_the_common_ones() {
    let mut rig = Rig::new(GroupConfig { initial_rebalance_delay_ms: 3_000, ..config() });
    let with = |id: &str, list: &[(&str, &str)]| Join {
        new_member_id: name(id),
        protocols: protocols(list),
        ..join("")
    };
    let a = rig.join_dynamic_with(with("a", &[("range", "ra"), ("sticky", "sa")]));
    let b = rig.join_dynamic_with(with("b", &[("sticky", "sb"), ("range", "rb")]));
    let c = rig.join_dynamic_with(with("c", &[("own", ""), ("sticky", "sc"), ("range", "rc")]));
    rig.advance(10_000);
    let answer = rig.joined(a);
    assert_eq!((answer.protocol.as_deref(), &*answer.leader), (Some("sticky"), "a"));
    assert_eq!(answer.protocol_type.as_deref(), Some("consumer"));
    let members: Vec<_> = answer.members.iter().map(|m| (&*m.member_id, m.metadata.clone())).collect();
    assert_eq!(members, [("a", bytes("sa")), ("b", bytes("sb")), ("c", bytes("sc"))]);
    assert!(
        rig.joined(b).members.is_empty() && rig.joined(c).members.is_empty(),
        "only the leader sees the members"
    );
    assert_eq!(&*rig.joined(c).leader, "a");
    // Of equals, the leader's favourite.
    let mut rig = Rig::new(GroupConfig { initial_rebalance_delay_ms: 3_000, ..config() });
    let a = rig.join_dynamic_with(with("a", &[("sticky", ""), ("range", "")]));
    rig.join_dynamic_with(with("b", &[("range", ""), ("sticky", "")]));
    rig.advance(10_000);
    assert_eq!(rig.joined(a).protocol.as_deref(), Some("sticky"));
}

#[test]
fn the_first_rebalance_waits_and_new_members_extend_it() {
    let mut rig = Rig::new(GroupConfig { initial_rebalance_delay_ms: 3_000, ..config() });
    let a = rig.join_dynamic("a");
    rig.advance(2_999);
    assert!(rig.waits(a));
    rig.advance(1);
    assert_eq!(rig.joined(a).generation, 1, "alone, it waits once");
    // With others, another delay for each that comes, up to the rebalance timeout.
    let mut rig = Rig::new(GroupConfig { initial_rebalance_delay_ms: 3_000, ..config() });
    let short = |id: &str| Join { new_member_id: name(id), rebalance_timeout_ms: 7_000, ..join("") };
    let a = rig.join_dynamic_with(short("a"));
    let mut all = vec![a];
    for id in ["b", "c", "d"] {
        rig.advance(2_000);
        all.push(rig.join_dynamic_with(short(id)));
        assert!(rig.waits(a));
    }
    rig.advance(1_000);
    assert!(all.iter().all(|r| rig.joined(*r).generation == 1), "at the rebalance timeout, whoever is there");
}

#[test]
fn without_a_delay_the_first_is_alone_at_once() {
    let mut rig = Rig::new(config());
    let a = rig.join_dynamic("a");
    assert_eq!((rig.joined(a).generation, &*rig.joined(a).leader), (1, "a"));
}

#[test]
fn who_does_not_rejoin_within_the_rebalance_timeout_is_out() {
    let mut rig = Rig::new(config());
    let long = Join { new_member_id: name("a"), rebalance_timeout_ms: 20_000, ..join("") };
    let a = rig.join_dynamic_with(Join {
        rebalance_timeout_ms: 15_000,
        session_timeout_ms: 60_000,
        ..long.clone()
    });
    rig.sync_all(&[rig.joined(a).clone()]);
    let b = rig.join_dynamic_with(Join { new_member_id: name("b"), session_timeout_ms: 60_000, ..long });
    assert!(rig.waits(b));
    assert_eq!(rig.heartbeat("a", 1), Err(RebalanceInProgress));
    rig.advance(19_999);
    assert!(rig.waits(b), "the longest rebalance timeout of all counts");
    rig.advance(1);
    let answer = rig.joined(b);
    assert_eq!((answer.generation, &*answer.leader, answer.members.len()), (2, "b", 1));
    assert_eq!(rig.heartbeat("a", 1), Err(UnknownMemberId));
}

#[test]
fn a_silent_member_is_out_after_its_session_timeout() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.advance(6_000);
    assert_eq!(rig.heartbeat("a", 2), Ok(()));
    rig.advance(3_999);
    assert_eq!(rig.group.state(), State::Stable);
    rig.advance(1);
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    assert_eq!(rig.heartbeat("b", 2), Err(UnknownMemberId));
    assert_eq!(rig.heartbeat("a", 2), Err(RebalanceInProgress));
    let a = rig.join(join("a"));
    assert_eq!((rig.joined(a).generation, rig.joined(a).members.len()), (3, 1));
}

#[test]
fn commits_keep_the_session_too() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a"]);
    for _ in 0..5 {
        rig.advance(9_000);
        assert_eq!(rig.commit("a", None, 1), Ok(()));
    }
    rig.advance(10_000);
    assert_eq!(rig.commit("a", None, 1), Err(UnknownMemberId));
    assert_eq!(rig.group.state(), State::Empty);
}

#[test]
fn a_new_members_join_may_wait_five_minutes_and_no_session() {
    let mut rig = Rig::new(config());
    let slow = Join { new_member_id: name("a"), rebalance_timeout_ms: 400_000, ..join("") };
    let a = rig.join_dynamic_with(slow.clone());
    rig.sync_all(&[rig.joined(a).clone()]);
    let b = rig.join_dynamic_with(Join { new_member_id: name("b"), ..slow });
    for _ in 0..33 {
        rig.advance(9_000);
        assert_eq!(rig.heartbeat("a", 1), Err(RebalanceInProgress));
    }
    assert!(rig.waits(b), "its session timeout of 10 s does not count");
    rig.advance(3_000);
    let answer = rig.joined(b);
    assert_eq!((answer.error, &*answer.member_id), (Some(UnknownMemberId), ""));
    // A known member that waits has no limit but the rebalance timeout.
    let a = rig.join(join("a"));
    assert_eq!(rig.joined(a).generation, 2);
}

#[test]
fn who_does_not_sync_within_the_rebalance_timeout_is_out() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    let long = |id: &str| Join { session_timeout_ms: 600_000, ..join(id) };
    let a = rig.join(long("a"));
    let b = rig.join(long("b"));
    assert_eq!((rig.joined(a).generation, rig.joined(b).generation), (3, 3));
    let synced = rig.sync(assigning("a", 3, &[("a", "x")]));
    assert_eq!(rig.synced(synced), Ok("x"));
    rig.advance(59_000);
    assert_eq!(rig.heartbeat("b", 3), Ok(()), "heartbeats are no sync");
    assert_eq!(rig.heartbeat("a", 3), Ok(()));
    rig.advance(999);
    assert_eq!(rig.group.state(), State::Stable);
    rig.advance(1);
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    assert_eq!(rig.heartbeat("b", 3), Err(UnknownMemberId));
    // The leader that never syncs goes the same way, and who waits for it is told to join again.
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    let b = rig.sync(sync("b", 3));
    for _ in 0..7 {
        rig.advance(9_000);
        let _ = rig.heartbeat("a", 3);
    }
    assert_eq!(rig.synced(b), Err(RebalanceInProgress));
    assert_eq!(rig.heartbeat("a", 3), Err(UnknownMemberId));
}

#[test]
fn sync_of_another_generation_state_or_member() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    assert_eq!(rig.sync_result(sync("a", 1)), Err(IllegalGeneration));
    assert_eq!(rig.sync_result(sync("a", 3)), Err(IllegalGeneration));
    assert_eq!(rig.sync_result(sync("c", 2)), Err(UnknownMemberId));
    assert_eq!(rig.sync_result(sync("b", 2)), Ok("b@2".to_owned()), "a stable group repeats the assignment");
    rig.join(join("a"));
    assert_eq!(rig.sync_result(sync("b", 2)), Err(RebalanceInProgress));
}

#[test]
fn members_the_leader_leaves_out_get_nothing_and_strangers_are_ignored() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    let b = rig.sync(sync("b", 3));
    let a = rig.sync(assigning("a", 3, &[("a", "all"), ("ghost", "x")]));
    assert_eq!((rig.synced(a), rig.synced(b)), (Ok("all"), Ok("")));
    assert_eq!(rig.durable.as_ref().unwrap().members.len(), 2);
}

#[test]
fn assignments_sent_by_a_follower_count_for_nothing() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    let b = rig.sync(assigning("b", 3, &[("b", "mine")]));
    assert!(rig.waits(b));
    rig.sync(assigning("a", 3, &[("b", "given")]));
    assert_eq!(rig.synced(b), Ok("given"));
}

#[test]
fn joins_into_a_stable_group() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    // A follower that has changed nothing is told what is.
    let b = rig.join(join("b"));
    let answer = rig.joined(b);
    assert_eq!((answer.generation, &*answer.leader, answer.members.len()), (2, "a", 0));
    assert_eq!(rig.group.state(), State::Stable);
    // One that has changed its subscription starts a rebalance, and so does the leader in any case.
    let b = rig.join(Join { protocols: protocols(&[("range", "other topics")]), ..join("b") });
    assert!(rig.waits(b));
    let a = rig.join(join("a"));
    assert_eq!((rig.joined(a).generation, rig.joined(b).generation), (3, 3));
    assert_eq!(rig.joined(a).members[1].metadata, bytes("other topics"));
    rig.sync(assigning("a", 3, &[]));
    let a = rig.join(join("a"));
    assert!(rig.waits(a));
    assert_eq!(rig.group.state(), State::PreparingRebalance);
}

#[test]
fn joins_into_a_rebalance_that_completes() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    assert_eq!(rig.group.state(), State::CompletingRebalance);
    // It may have missed the answer: it gets the same again, the leader with the members.
    let a = rig.join(join("a"));
    let b = rig.join(join("b"));
    assert_eq!((rig.joined(a).generation, rig.joined(a).members.len()), (3, 2));
    assert_eq!((rig.joined(b).generation, rig.joined(b).members.len()), (3, 0));
    // With a change it rebalances again, and who synced is told.
    let synced = rig.sync(sync("b", 3));
    let a = rig.join(Join { protocols: protocols(&[("range", "other")]), ..join("a") });
    assert_eq!(rig.synced(synced), Err(RebalanceInProgress));
    assert!(rig.waits(a));
    let b = rig.join(join("b"));
    assert_eq!(rig.joined(a).generation, 4);
    assert_eq!(rig.joined(b).generation, 4);
}

#[test]
fn the_leader_that_does_not_rejoin_is_replaced_by_one_that_did() {
    let mut rig = Rig::new(config());
    let a = rig.join(static_join("", "one", "one-a"));
    rig.sync_all(&[rig.joined(a).clone()]);
    let b =
        rig.join_dynamic_with(Join { new_member_id: name("zed"), rebalance_timeout_ms: 5_000, ..join("") });
    for _ in 0..7 {
        rig.advance(9_000);
        let _ = rig.heartbeat_as("one-a", Some("one"), 1);
    }
    let answer = rig.joined(b);
    assert_eq!((answer.generation, &*answer.leader), (2, "zed"));
    assert_eq!(answer.members.len(), 2, "a static member stays until its session ends");
}

#[test]
fn only_static_members_and_none_rejoins() {
    let mut rig = Rig::new(config());
    let a = rig.join(static_join("", "one", "one-a"));
    rig.sync_all(&[rig.joined(a).clone()]);
    let b = rig.join(static_join("", "two", "two-a"));
    let left = rig.leave(&[("two-a", Some("two"))]);
    assert_eq!((rig.left(left), rig.joined(b).error), (vec![None], Some(UnknownMemberId)));
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    for _ in 0..20 {
        rig.advance(9_000);
        assert_eq!(rig.heartbeat_as("one-a", Some("one"), 1), Err(RebalanceInProgress));
    }
    rig.advance(10_000);
    assert_eq!((rig.group.state(), rig.group.generation()), (State::Empty, 2));
    assert!(rig.forgotten);
}

#[test]
fn who_may_commit() {
    let mut rig = Rig::new(config());
    assert_eq!(rig.commit("", None, -1), Ok(()), "no group: a simple consumer");
    assert_eq!(rig.commit("", None, 5), Err(UnknownMemberId));
    rig.stabilise(&["a", "b"]);
    assert_eq!(rig.commit("a", None, 2), Ok(()));
    assert_eq!(rig.commit("", None, -1), Err(UnknownMemberId), "not while the group has members");
    assert_eq!(rig.commit("a", None, -1), Err(IllegalGeneration));
    assert_eq!(rig.commit("a", None, 1), Err(IllegalGeneration));
    assert_eq!(rig.commit("c", None, 2), Err(UnknownMemberId));
    assert_eq!(rig.commit("a", Some("i"), 2), Err(UnknownMemberId));
    rig.join(join("a"));
    assert_eq!(rig.commit("b", None, 2), Ok(()), "before it rejoins");
    rig.join(join("b"));
    assert_eq!(rig.commit("b", None, 2), Err(IllegalGeneration));
    assert_eq!(rig.commit("b", None, 3), Err(RebalanceInProgress));
    rig.leave(&[("a", None), ("b", None)]);
    assert_eq!(rig.commit("", None, -1), Ok(()));
    assert_eq!(
        rig.commit("a", None, -1),
        Ok(()),
        "as in Kafka, an empty group takes any commit without a generation"
    );
}

#[test]
fn heartbeats_by_state() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    assert_eq!(rig.heartbeat("a", 2), Ok(()));
    assert_eq!(rig.heartbeat("a", 1), Err(IllegalGeneration));
    assert_eq!(rig.heartbeat("c", 2), Err(UnknownMemberId));
    rig.join(join("a"));
    assert_eq!(rig.heartbeat("b", 2), Err(RebalanceInProgress));
    rig.auto_persist = false;
    rig.join(join("b"));
    assert_eq!(rig.heartbeat("a", 2), Err(RebalanceInProgress), "its join is decided and not answered yet");
    assert_eq!(rig.sync_result(sync("a", 3)), Err(RebalanceInProgress), "nobody can know of this generation");
    rig.persisted();
    assert_eq!(rig.heartbeat("a", 2), Err(IllegalGeneration));
    assert_eq!(rig.heartbeat("a", 3), Ok(()), "while the assignment is awaited");
}

#[test]
fn views_by_state() {
    let mut rig = Rig::new(config());
    assert_eq!(rig.group.describe().state, State::Empty);
    assert_eq!(rig.group.check_delete(), Ok(()));
    rig.stabilise(&["a", "b"]);
    assert_eq!(rig.group.check_delete(), Err(NonEmptyGroup));
    let stable = rig.group.describe();
    assert_eq!(
        (stable.state.as_str(), &*stable.protocol_type, &*stable.protocol),
        ("Stable", "consumer", "range")
    );
    assert_eq!(stable.members[0].metadata, bytes("topics"));
    assert_eq!(stable.members[1].assignment, bytes("b@2"));
    assert_eq!(&*stable.members[1].client_host, "/127.0.0.1");
    assert_eq!(Description::of_stored(rig.durable.as_ref().unwrap()), stable);
    rig.join(join("a"));
    let preparing = rig.group.describe();
    assert_eq!((preparing.state.as_str(), &*preparing.protocol), ("PreparingRebalance", ""));
    assert!(preparing.members.iter().all(|m| m.metadata.is_empty()));
    rig.join(join("b"));
    assert_eq!(rig.group.describe().state.as_str(), "CompletingRebalance");
    assert_eq!(Description::of_stored(rig.durable.as_ref().unwrap()).state, State::CompletingRebalance);
    rig.handle(Event::Unload(NotCoordinator));
    assert_eq!(rig.group.check_delete(), Err(GroupIdNotFound));
}
