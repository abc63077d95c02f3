//! What is durable before what is answered, and what another coordinator makes of it.

mod rig;

use isobar_groups::GroupError::*;
use isobar_groups::*;
use rig::*;

#[test]
fn nothing_is_answered_before_it_is_durable() {
    let mut rig = Rig::new(config());
    rig.auto_persist = false;
    let a = rig.join_dynamic("a");
    assert!(rig.waits(a));
    rig.persisted();
    assert_eq!(rig.joined(a).generation, 1);
    let durable = rig.durable.clone().unwrap();
    assert_eq!((durable.phase, durable.generation), (PersistedPhase::CompletingRebalance, 1));
    let a = rig.sync(assigning("a", 1, &[("a", "x")]));
    assert!(rig.waits(a));
    assert_eq!(rig.group.state(), State::CompletingRebalance);
    rig.persisted();
    assert_eq!(rig.synced(a), Ok("x"));
    let durable = rig.durable.clone().unwrap();
    assert_eq!((durable.phase, durable.members[0].assignment.clone()), (PersistedPhase::Stable, bytes("x")));
}

#[test]
fn a_rebalance_overtakes_a_state_under_way() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.auto_persist = false;
    rig.join(join("a"));
    let b = rig.join(join("b"));
    // Generation 3 is under way; c's join makes it pointless, and a and b still count as joined.
    let c = rig.join(Join { new_member_id: name("c"), requires_member_id: false, ..join("") });
    assert_eq!(rig.group.generation(), 4);
    rig.persisted();
    assert!(rig.waits(b) && rig.waits(c));
    rig.persisted();
    assert_eq!((rig.joined(b).generation, rig.joined(c).generation), (4, 4));
    // The same with an assignment under way: it never counts.
    let a = rig.sync(assigning("a", 4, &[("a", "x")]));
    rig.join(Join { protocols: protocols(&[("range", "new")]), ..join("b") });
    assert_eq!(rig.synced(a), Err(RebalanceInProgress));
    rig.persisted();
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    assert_eq!(rig.sync_result(sync("a", 4)), Err(RebalanceInProgress));
}

#[test]
fn a_state_that_is_refused() {
    let mut rig = Rig::new(config());
    rig.auto_persist = false;
    let a = rig.join_dynamic("a");
    rig.persist_failed(UnknownServerError);
    let answer = rig.joined(a);
    assert_eq!((answer.error, &*answer.member_id), (Some(UnknownServerError), "a"));
    let a = rig.join(join("a"));
    rig.persisted();
    assert_eq!(rig.joined(a).generation, 2, "a generation is never used twice");
    let a = rig.sync(assigning("a", 2, &[("a", "x")]));
    rig.persist_failed(UnknownServerError);
    assert_eq!(rig.synced(a), Err(UnknownServerError));
    assert_eq!(rig.group.state(), State::PreparingRebalance);
    let left = rig.leave(&[("a", None)]);
    assert!(rig.waits(left));
    rig.persist_failed(UnknownServerError);
    assert_eq!(rig.answers[&left], Response::Leave(Err(UnknownServerError)));
}

#[test]
fn unloading_answers_everyone_and_leaves_nothing() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    let synced = rig.sync(sync("b", 3));
    rig.handle(Event::Unload(NotCoordinator));
    assert_eq!(rig.synced(synced), Err(NotCoordinator));
    assert!(rig.forgotten && rig.unanswered().is_empty());
    assert_eq!(rig.join_error(join("a")), Some(CoordinatorNotAvailable));
    assert_eq!(rig.heartbeat("a", 3), Err(CoordinatorNotAvailable));
    assert_eq!(rig.commit("a", None, 3), Err(CoordinatorNotAvailable));
    assert_eq!(rig.sync_result(sync("a", 3)), Err(CoordinatorNotAvailable));
    let left = rig.leave(&[("a", None)]);
    assert_eq!(rig.answers[&left], Response::Leave(Err(CoordinatorNotAvailable)));
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.auto_persist = false;
    let joined = rig.join(join("a"));
    rig.handle(Event::Unload(NotCoordinator));
    assert_eq!((rig.joined(joined).error, &*rig.joined(joined).member_id), (Some(NotCoordinator), "a"));
}

#[test]
fn a_stable_group_survives_its_coordinator() {
    let mut rig = Rig::new(config());
    let generation = rig.stabilise(&["a", "b"]);
    rig.advance(9_000);
    rig.crash();
    assert_eq!(rig.group.state(), State::Stable);
    rig.advance(9_999);
    assert_eq!(rig.heartbeat("a", generation), Ok(()), "a full session timeout from the loading");
    assert_eq!(rig.commit("b", None, generation), Ok(()));
    assert_eq!(rig.sync_result(sync("b", generation)), Ok(format!("b@{generation}")));
    let b = rig.join(join("b"));
    assert_eq!(rig.joined(b).generation, generation, "its protocols are stored, so it has changed nothing");
    rig.advance(9_000);
    assert_eq!(rig.heartbeat("b", generation), Ok(()));
    rig.advance(999);
    assert_eq!(rig.group.state(), State::Stable);
    rig.advance(1);
    assert_eq!(rig.group.state(), State::PreparingRebalance, "a has been silent");
}

#[test]
fn a_rebalance_goes_on_under_another_coordinator() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    rig.join(join("a"));
    rig.join(join("b"));
    rig.crash();
    assert_eq!((rig.group.state(), rig.group.generation()), (State::CompletingRebalance, 3));
    // b missed the answer to its join, a has it.
    let b = rig.join(join("b"));
    assert_eq!((rig.joined(b).generation, &*rig.joined(b).leader), (3, "a"));
    let b = rig.sync(sync("b", 3));
    let a = rig.sync(assigning("a", 3, &[("a", "x"), ("b", "y")]));
    assert_eq!((rig.synced(a), rig.synced(b)), (Ok("x"), Ok("y")));
    // And if the leader is gone with the old coordinator, the sync timeout finds out.
    rig.join(join("a"));
    rig.join(join("b"));
    rig.crash();
    let b = rig.sync(sync("b", 4));
    rig.advance(60_000);
    assert_eq!(rig.synced(b), Err(RebalanceInProgress));
}

#[test]
fn a_generation_goes_on_growing_after_the_group_was_empty_and_forgotten() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a"]);
    rig.leave(&[("a", None)]);
    assert!(rig.forgotten);
    rig.crash();
    assert_eq!((rig.group.state(), rig.group.generation()), (State::Empty, 2));
    let b = rig.join_dynamic("b");
    assert_eq!(rig.joined(b).generation, 3);
}

#[test]
fn a_stored_group_that_does_not_hang_together_starts_over() {
    let mut rig = Rig::new(config());
    rig.stabilise(&["a", "b"]);
    let good = rig.durable.clone().unwrap();
    let mut twice = good.clone();
    twice.members[1].member_id = name("a");
    let mut other = good.clone();
    other.protocol = Some(name("sticky"));
    let mut none = good.clone();
    none.protocol = None;
    for bad in [twice, other, none] {
        rig.durable = Some(bad);
        rig.crash();
        assert_eq!((rig.group.state(), rig.group.generation()), (State::Empty, good.generation));
    }
    rig.durable = Some(GroupState { leader: Some(name("gone")), ..good });
    rig.crash();
    assert_eq!(rig.group.state(), State::Stable, "any member can lead");
}

#[test]
fn a_version_0_join_and_odd_timeouts() {
    let mut rig = Rig::new(config());
    let odd =
        Join { rebalance_timeout_ms: -1, requires_member_id: false, new_member_id: name("a"), ..join("") };
    let a = rig.join(odd.clone());
    assert_eq!(rig.joined(a).error, None);
    rig.sync(assigning("a", 1, &[]));
    let b = rig.join(Join { new_member_id: name("b"), ..odd });
    rig.advance(0);
    assert_eq!(rig.joined(b).generation, 2, "no rebalance timeout: no waiting");
    // Static members without a rebalance timeout do not make the timer spin.
    let mut rig = Rig::new(config());
    let odd = |i: &str, n: &str| Join { rebalance_timeout_ms: 0, ..static_join("", i, n) };
    let a = rig.join(odd("one", "one-a"));
    assert_eq!(rig.joined(a).error, None);
    rig.sync(Sync { instance_id: Some(name("one")), ..assigning("one-a", 1, &[]) });
    rig.join(odd("two", "two-a"));
    rig.leave(&[("two-a", None)]);
    rig.advance(9_000);
}
