//! Random interleavings: what must hold whatever clients, timers, storage and crashes do.
//!
//! `chaos` sends anything in any order, also what no client would. `clients` are well-behaved ones that crash, leave, come
//! back and change their subscriptions, over coordinators that die; in the end they must all be in one stable generation.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod rig;

use std::collections::{BTreeMap, BTreeSet};

use isobar_groups::*;
use proptest::prelude::*;
use rig::*;

// ---- anything in any order ----

#[derive(Debug, Clone)]
enum Step {
    /// Who, with which subscription, as which version.
    Join {
        who: usize,
        as_new: bool,
        metadata: u8,
        protocols: u8,
        old_version: bool,
    },
    Sync {
        who: usize,
        back: i32,
        wrong_protocol: bool,
    },
    Heartbeat {
        who: usize,
        back: i32,
    },
    Commit {
        who: usize,
        back: i32,
    },
    Leave {
        who: Vec<usize>,
        by_instance: bool,
    },
    Persisted,
    PersistFailed,
    Advance(u64),
    Crash {
        applied: bool,
    },
    Unload,
}

const PEOPLE: usize = 6;

/// The first three are dynamic, the others static.
fn instance(who: usize) -> Option<Name> {
    (who >= 3).then(|| name(&format!("i{who}")))
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..PEOPLE;
    prop_oneof![
        8 => (who.clone(), any::<bool>(), 0u8..3, 0u8..4, prop::bool::weighted(0.2)).prop_map(
            |(who, as_new, metadata, protocols, old_version)| Step::Join { who, as_new, metadata, protocols, old_version }),
        8 => (who.clone(), 0..2, prop::bool::weighted(0.05))
            .prop_map(|(who, back, wrong_protocol)| Step::Sync { who, back, wrong_protocol }),
        3 => (who.clone(), 0..2).prop_map(|(who, back)| Step::Heartbeat { who, back }),
        2 => (who.clone(), 0..2).prop_map(|(who, back)| Step::Commit { who, back }),
        2 => (prop::collection::vec(who, 1..3), any::<bool>())
            .prop_map(|(who, by_instance)| Step::Leave { who, by_instance }),
        12 => Just(Step::Persisted),
        1 => Just(Step::PersistFailed),
        4 => prop_oneof![Just(1u64), 1u64..2_000, 5_000u64..12_000, 40_000u64..70_000].prop_map(Step::Advance),
        1 => any::<bool>().prop_map(|applied| Step::Crash { applied }),
        1 => Just(Step::Unload),
    ]
}

/// What the protocol promises, over all answers seen.
#[derive(Default)]
struct Promises {
    /// Leader and protocol of each generation, by those who were told to lead.
    generations: BTreeMap<i32, (Name, Option<Name>)>,
    highest: i32,
}

struct Chaos {
    rig: Rig,
    ids: Vec<Name>,
    fresh: usize,
    joins: BTreeMap<RequestId, usize>,
    syncs: BTreeMap<RequestId, (i32, Name)>,
    seen: BTreeSet<RequestId>,
    promises: Promises,
}

impl Chaos {
    fn new(delay_ms: u32, max_size: usize) -> Self {
        let config = GroupConfig { initial_rebalance_delay_ms: delay_ms, max_size, ..config() };
        let mut rig = Rig::new(config);
        rig.auto_persist = false;
        Self {
            rig,
            ids: vec![name(""); PEOPLE],
            fresh: 0,
            joins: BTreeMap::new(),
            syncs: BTreeMap::new(),
            seen: BTreeSet::new(),
            promises: Promises::default(),
        }
    }

    fn step(&mut self, step: Step) {
        let generation = self.rig.group.generation();
        match step {
            Step::Join { who, as_new, metadata, protocols: which, old_version } => {
                let list: &[(&str, &str)] = match which {
                    0 => &[("range", ""), ("sticky", "")],
                    1 => &[("sticky", ""), ("range", "")],
                    2 => &[("range", "")],
                    _ => &[("range", ""), ("own", "")],
                };
                let mut list = protocols(list);
                list[0].metadata = bytes(&"m".repeat(metadata.into()));
                self.fresh += 1;
                let request = self.rig.join(Join {
                    member_id: if as_new { name("") } else { self.ids[who].clone() },
                    instance_id: instance(who),
                    new_member_id: name(&format!("{who}-{:04}", self.fresh)),
                    protocols: list,
                    requires_member_id: !old_version,
                    supports_skip_assignment: !old_version,
                    ..join("")
                });
                self.joins.insert(request, who);
            }
            Step::Sync { who, back, wrong_protocol } => {
                let generation = generation - back;
                let members = self.rig.group.describe().members;
                let tag = |m: &MemberDescription| (m.member_id.clone(), bytes(&format!("{generation}")));
                let request = self.rig.sync(Sync {
                    member_id: self.ids[who].clone(),
                    instance_id: instance(who),
                    generation,
                    protocol_type: None,
                    protocol: wrong_protocol.then(|| name("wrong")),
                    assignments: members.iter().map(tag).collect(),
                });
                self.syncs.insert(request, (generation, self.ids[who].clone()));
            }
            Step::Heartbeat { who, back } => {
                let id = self.ids[who].clone();
                let _ = self.rig.heartbeat_as(&id, instance(who).as_deref(), generation - back);
            }
            Step::Commit { who, back } => {
                let id = self.ids[who].clone();
                let result = self.rig.commit(&id, instance(who).as_deref(), generation - back);
                let stored = self.rig.durable.as_ref();
                let told = (1..=self.promises.highest).contains(&(generation - back));
                if result.is_ok() && self.rig.group.state() != State::Empty && told {
                    // What apply will check, too. It refuses a generation that was guessed.
                    let stored = stored.expect("a member's generation is durable");
                    assert_eq!(stored.generation, generation - back);
                }
            }
            Step::Leave { who, by_instance } => {
                let ids: Vec<_> = who.iter().map(|w| (self.ids[*w].clone(), instance(*w))).collect();
                let leaving = |(id, i): &(Name, Option<Name>)| {
                    (if by_instance && i.is_some() { name("") } else { id.clone() }, i.clone())
                };
                let leaving: Vec<_> = ids.iter().map(leaving).collect();
                let leaving: Vec<_> = leaving.iter().map(|(id, i)| (&**id, i.as_deref())).collect();
                self.rig.leave(&leaving);
            }
            Step::Persisted if !self.rig.under_way.is_empty() => self.rig.persisted(),
            Step::PersistFailed if !self.rig.under_way.is_empty() => {
                self.rig.persist_failed(GroupError::UnknownServerError)
            }
            Step::Persisted | Step::PersistFailed => {}
            Step::Advance(ms) => self.rig.advance(ms),
            Step::Crash { applied } => {
                if applied && let Some((_, state)) = self.rig.under_way.pop_front() {
                    self.rig.durable = Some(state);
                }
                self.restart();
            }
            Step::Unload => {
                self.rig.handle(Event::Unload(GroupError::NotCoordinator));
                assert!(self.rig.unanswered().is_empty(), "unloaded with requests unanswered");
                self.check_answers();
                self.restart();
            }
        }
        self.check_answers();
        if self.rig.forgotten {
            assert!(self.rig.unanswered().is_empty(), "forgotten with requests unanswered");
            let before = self.rig.group.generation();
            self.restart();
            assert!(self.rig.group.generation() <= before);
        }
    }

    fn restart(&mut self) {
        self.rig.crash();
        self.joins.clear();
        self.syncs.clear();
        self.seen.clear();
    }

    fn check_answers(&mut self) {
        let new: Vec<_> = self.rig.answers.keys().filter(|r| !self.seen.contains(r)).copied().collect();
        for request in new {
            self.seen.insert(request);
            match self.rig.answers[&request].clone() {
                Response::Join(answer) => self.check_join(self.joins[&request], &answer),
                Response::Sync(Ok(answer)) => {
                    let (generation, id) = self.syncs[&request].clone();
                    self.check_sync(generation, &id, &answer);
                }
                _ => {}
            }
        }
    }

    fn check_join(&mut self, who: usize, answer: &JoinAnswer) {
        if !answer.member_id.is_empty() {
            self.ids[who] = answer.member_id.clone();
        }
        if answer.error.is_some() {
            assert!(answer.members.is_empty() && answer.generation == -1);
            return;
        }
        let promises = &mut self.promises;
        assert!(answer.generation >= promises.highest, "a generation went back");
        promises.highest = answer.generation;
        let durable = self.rig.durable.as_ref().expect("durable before it is answered");
        assert_eq!(durable.generation, answer.generation, "told of a generation that is not durable");
        assert!(durable.members.iter().any(|m| m.member_id == answer.member_id), "told, and not durable");
        let leads = answer.leader == answer.member_id;
        assert!(leads || answer.members.is_empty(), "members for a follower");
        if leads {
            assert!(answer.members.iter().any(|m| m.member_id == answer.member_id));
            let told = (answer.leader.clone(), answer.protocol.clone());
            let first = promises.generations.entry(answer.generation).or_insert_with(|| told.clone());
            // A static leader that comes back is the same leader under another id.
            let same =
                first.0 == told.0 || (self_of(&first.0) == self_of(&told.0) && instance(who).is_some());
            assert!(same, "two leaders of one generation: {first:?} and {told:?}");
            assert_eq!(first.1, told.1, "two protocols of one generation");
        }
        assert!(answer.protocol.is_some() && answer.protocol_type.is_some());
    }

    fn check_sync(&mut self, generation: i32, id: &Name, answer: &SyncAnswer) {
        let durable = self.rig.durable.as_ref().expect("durable before it is answered");
        assert_eq!((durable.phase, durable.generation), (PersistedPhase::Stable, generation));
        let stored = durable.members.iter().find(|m| m.member_id == *id).expect("a durable member");
        assert_eq!(stored.assignment, answer.assignment, "given something that is not durable");
        let of = std::str::from_utf8(&answer.assignment).unwrap();
        assert!(
            of.is_empty() || of == generation.to_string(),
            "an assignment of generation {of} in {generation}"
        );
    }

    /// Everyone goes silent: the group must come to rest, empty, with everything answered and no timer.
    fn finish(mut self) {
        for _ in 0..200 {
            while !self.rig.under_way.is_empty() {
                self.rig.persisted();
            }
            self.rig.advance(60_000);
            let _ = self.rig.heartbeat("stranger", 0);
            self.check_answers();
            if self.rig.forgotten {
                break;
            }
        }
        assert!(self.rig.forgotten, "not at rest: {:?}", self.rig.group.describe());
        assert_eq!(self.rig.armed, None);
        assert!(self.rig.unanswered().is_empty(), "never answered: {:?}", self.rig.unanswered());
    }
}

fn self_of(id: &str) -> &str {
    id.split('-').next().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chaos(steps in prop::collection::vec(step(), 1..120), delay_ms in prop_oneof![Just(0u32), Just(3_000)], max_size in prop_oneof![Just(usize::MAX), Just(3)]) {
        let mut chaos = Chaos::new(delay_ms, max_size);
        for step in steps {
            chaos.step(step);
        }
        chaos.finish();
    }

    #[test]
    fn the_same_events_give_the_same_actions(steps in prop::collection::vec(step(), 1..60)) {
        let run = |steps: &[Step]| {
            let mut chaos = Chaos::new(0, usize::MAX);
            for step in steps {
                chaos.step(step.clone());
            }
            (format!("{:?}", chaos.rig.group), chaos.rig.moves, chaos.rig.durable, chaos.rig.armed)
        };
        prop_assert_eq!(run(&steps), run(&steps));
    }
}

// ---- well-behaved clients ----

/// A consumer as the Java client is one: one request at a time, heartbeats beside it.
#[derive(Debug, Default)]
struct Client {
    alive: bool,
    instance: Option<Name>,
    id: String,
    generation: i32,
    metadata: u8,
    waiting: Option<RequestId>,
    /// Joined, and with which assignment.
    assignment: Option<String>,
    needs_sync: Option<(bool, Vec<Name>)>,
}

#[derive(Debug, Clone)]
enum Act {
    Poll(usize),
    Start(usize),
    Die(usize),
    Leave(usize),
    Resubscribe(usize),
    Persisted,
    Advance(u64),
    Crash(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let who = 0..PEOPLE;
    prop_oneof![
        20 => who.clone().prop_map(Act::Poll),
        4 => who.clone().prop_map(Act::Start),
        1 => who.clone().prop_map(Act::Die),
        1 => who.clone().prop_map(Act::Leave),
        2 => who.prop_map(Act::Resubscribe),
        8 => Just(Act::Persisted),
        3 => (1u64..3_000).prop_map(Act::Advance),
        1 => any::<bool>().prop_map(Act::Crash),
    ]
}

struct World {
    rig: Rig,
    clients: Vec<Client>,
    fresh: usize,
}

impl World {
    fn new() -> Self {
        let mut rig = Rig::new(GroupConfig { initial_rebalance_delay_ms: 1_000, ..config() });
        rig.auto_persist = false;
        let client = |who| Client { instance: instance(who), ..Client::default() };
        Self { rig, clients: (0..PEOPLE).map(client).collect(), fresh: 0 }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Poll(who) => self.poll(who),
            Act::Start(who) if !self.clients[who].alive => {
                let instance = self.clients[who].instance.clone();
                self.clients[who] = Client { alive: true, instance, ..Client::default() };
            }
            Act::Die(who) => self.clients[who].alive = false,
            Act::Leave(who) if self.clients[who].alive => {
                let client = &mut self.clients[who];
                client.alive = false;
                let (id, instance) = (client.id.clone(), client.instance.clone());
                if !id.is_empty() && instance.is_none() {
                    self.rig.leave(&[(&id, None)]);
                }
            }
            Act::Resubscribe(who) if self.clients[who].alive && self.clients[who].waiting.is_none() => {
                let client = &mut self.clients[who];
                client.metadata += 1;
                client.assignment = None;
                client.needs_sync = None;
            }
            Act::Persisted if !self.rig.under_way.is_empty() => self.rig.persisted(),
            Act::Advance(ms) => {
                self.rig.advance(ms);
                self.heartbeats();
            }
            Act::Crash(applied) => {
                if applied && let Some((_, state)) = self.rig.under_way.pop_front() {
                    self.rig.durable = Some(state);
                }
                self.rig.crash();
                for client in &mut self.clients {
                    client.waiting = None;
                }
            }
            Act::Start(_) | Act::Leave(_) | Act::Resubscribe(_) | Act::Persisted => {}
        }
        if self.rig.forgotten {
            self.rig.reload();
        }
    }

    fn heartbeats(&mut self) {
        for who in 0..PEOPLE {
            let client = &self.clients[who];
            if !client.alive
                || client.waiting.is_some()
                || (client.assignment.is_none() && client.needs_sync.is_none())
            {
                continue;
            }
            let (id, instance, generation) = (client.id.clone(), client.instance.clone(), client.generation);
            let result = self.rig.heartbeat_as(&id, instance.as_deref(), generation);
            let client = &mut self.clients[who];
            match result {
                Ok(()) => {}
                Err(GroupError::RebalanceInProgress) => client.rejoin(),
                Err(GroupError::UnknownMemberId | GroupError::IllegalGeneration) => client.start_over(),
                Err(error) => panic!("{error:?} to a well-behaved client"),
            }
        }
    }

    fn poll(&mut self, who: usize) {
        let client = &self.clients[who];
        if !client.alive {
            return;
        }
        if let Some(request) = client.waiting {
            let Some(answer) = self.rig.answers.get(&request).cloned() else { return };
            self.clients[who].waiting = None;
            return self.clients[who].take(answer);
        }
        if client.assignment.is_some() {
            return;
        }
        let request = if let Some((leads, members)) = client.needs_sync.clone() {
            let tag = |m: Name| (m.clone(), bytes(&format!("{}@{}", self_of(&m), client.generation)));
            let sync = Sync {
                instance_id: client.instance.clone(),
                assignments: if leads { members.into_iter().map(tag).collect() } else { Vec::new() },
                ..sync(&client.id, client.generation)
            };
            self.rig.sync(sync)
        } else {
            self.fresh += 1;
            let join = Join {
                instance_id: client.instance.clone(),
                new_member_id: name(&format!("{who}-{:04}", self.fresh)),
                protocols: protocols(&[("range", &"m".repeat(client.metadata.into()))]),
                ..join(&client.id)
            };
            self.rig.join(join)
        };
        self.clients[who].waiting = Some(request);
    }

    /// No more faults: everyone alive must end up in one stable generation.
    fn converges(mut self) {
        let wanted: Vec<usize> = (0..PEOPLE).filter(|w| self.clients[*w].alive).collect();
        for _ in 0..400 {
            for who in 0..PEOPLE {
                self.poll(who);
                if !self.rig.under_way.is_empty() {
                    self.rig.persisted();
                }
            }
            self.act(&Act::Advance(500));
            let members = self.rig.group.member_count();
            if self.rig.group.state() == State::Stable
                && members == wanted.len()
                && wanted.iter().all(|w| self.clients[*w].assignment.is_some())
            {
                break;
            }
        }
        let generation = self.rig.group.generation();
        for who in &wanted {
            let client = &self.clients[*who];
            let stable = (self.rig.group.state(), client.generation, client.assignment.clone());
            assert_eq!(
                stable,
                (State::Stable, generation, Some(format!("{who}@{generation}"))),
                "{client:?}"
            );
        }
        if wanted.is_empty() {
            assert_eq!(self.rig.group.state(), State::Empty);
            return;
        }
        // And it stays so over the death of the coordinator.
        self.rig.crash();
        for _ in 0..60 {
            self.act(&Act::Advance(1_000));
        }
        assert_eq!((self.rig.group.state(), self.rig.group.generation()), (State::Stable, generation));
    }
}

impl Client {
    fn rejoin(&mut self) {
        self.assignment = None;
        self.needs_sync = None;
    }

    fn start_over(&mut self) {
        self.rejoin();
        self.id.clear();
    }

    fn take(&mut self, answer: Response) {
        use GroupError::*;
        match answer {
            Response::Join(answer) => match answer.error {
                None => {
                    self.id = answer.member_id.to_string();
                    self.generation = answer.generation;
                    let leads = answer.leader == answer.member_id && !answer.skip_assignment;
                    self.needs_sync =
                        Some((leads, answer.members.into_iter().map(|m| m.member_id).collect()));
                }
                Some(MemberIdRequired) => self.id = answer.member_id.to_string(),
                Some(UnknownMemberId) => self.start_over(),
                Some(RebalanceInProgress) => {}
                Some(error) => panic!("{error:?} to a well-behaved client"),
            },
            Response::Sync(Ok(answer)) => {
                self.needs_sync = None;
                self.assignment = Some(String::from_utf8(answer.assignment.to_vec()).unwrap());
            }
            Response::Sync(Err(RebalanceInProgress)) => self.rejoin(),
            Response::Sync(Err(UnknownMemberId | IllegalGeneration)) => self.start_over(),
            other => panic!("{other:?} to a well-behaved client"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clients(acts in prop::collection::vec(act(), 1..150)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
        }
        world.converges();
    }
}
