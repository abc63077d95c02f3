//! Brokers on three members: who lives is left alone, who dies is out at once, and a change of leader fences nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::SessionId;
use isobar_metadata::record::SessionState;
use parking_lot::Mutex;
use tokio::time::sleep;

use super::group::{start_member, voters_of_three};
use super::{register, session_of};
use crate::heartbeat::Heartbeats;
use crate::liveness::Limits;
use crate::{ProposeError, Quorum};

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Default)]
struct Told {
    quorums: BTreeMap<usize, Quorum>,
    sessions: BTreeMap<usize, SessionId>,
    /// Brokers whose beating ended, and why.
    over: Vec<(usize, String)>,
}

/// A member with a broker on it, which registers once and beats.
async fn life(host: Host, node: usize, told: Arc<Mutex<Told>>) {
    let Some(quorum) = start_member(&host, node, voters_of_three()).await else { return };
    let rpc = quorum.network().expect("a network").rpc;
    let (heartbeats, _task) = Heartbeats::start(&host, &quorum, &rpc, Limits::default());
    told.lock().quorums.insert(node, quorum.clone());
    let session = loop {
        match quorum.propose(register(node as u64 + 100)).await {
            Ok(result) => break SessionId(session_of(&result).expect("a session")),
            Err(ProposeError::Stopping) => return,
            Err(_) => sleep(Duration::from_millis(15)).await,
        }
    };
    told.lock().sessions.insert(node, session);
    let why = heartbeats.keep(session).await;
    told.lock().over.push((node, why));
}

struct Three {
    world: World,
    told: Arc<Mutex<Told>>,
    seed: u64,
}

impl Three {
    /// All three registered.
    fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let told: Arc<Mutex<Told>> = Arc::default();
        for (node, name) in NAMES.into_iter().enumerate() {
            world.add_node(name, Arc::new(SimDisk::new(seed + node as u64)));
            let told = Arc::clone(&told);
            world.boot(name, move |host| life(host, node, told));
        }
        let mut three = Self { world, told, seed };
        three.until(20_000, "three sessions", |three| three.told.lock().sessions.len() == 3);
        three
    }

    fn until(&mut self, limit_ms: u64, what: &str, mut such: impl FnMut(&Self) -> bool) -> u64 {
        for ms in 0..limit_ms {
            if such(self) {
                return ms;
            }
            self.world.step();
        }
        panic!("seed {}: waited {limit_ms} ms for {what}; over: {:?}", self.seed, self.told.lock().over);
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.world.step();
        }
    }

    fn leader(&self) -> usize {
        let told = self.told.lock();
        let leading = told.quorums.iter().find(|(_, quorum)| quorum.is_leader());
        *leading.expect("a leader").0
    }

    fn crash(&mut self, node: usize) {
        self.world.crash(NAMES[node]);
        self.told.lock().quorums.remove(&node);
    }

    /// The state of a node's session as another member has it.
    fn state(&self, of: usize) -> Option<SessionState> {
        let told = self.told.lock();
        let (image, _) = told.quorums.iter().find(|(node, _)| **node != of)?.1.subscribe();
        SessionState::try_from(image.session(told.sessions[&of])?.state).ok()
    }

    fn no_other_is_over(&self, but: usize) {
        let told = self.told.lock();
        let over: Vec<_> = told.over.iter().filter(|(node, _)| *node != but).collect();
        assert!(over.is_empty(), "seed {}: {over:?}", self.seed);
    }
}

#[test]
fn a_broker_that_has_just_registered_is_known_and_stays() {
    for seed in 0..8 {
        let mut three = Three::new(seed);
        three.run(12_000);
        three.no_other_is_over(usize::MAX);
        for node in 0..3 {
            assert_eq!(three.state(node), Some(SessionState::Live), "seed {seed}");
        }
    }
}

#[test]
fn a_killed_broker_is_suspect_at_once_and_fenced_within_a_second() {
    for seed in 20..23 {
        let mut three = Three::new(seed);
        three.run(3_000);
        let node = (three.leader() + 1) % 3;
        three.crash(node);
        let suspect = three.until(1_000, "suspicion", |three| three.state(node) != Some(SessionState::Live));
        let fenced = three.until(2_000, "the fence", |three| three.state(node) == Some(SessionState::Fenced));
        assert!(suspect < 300 && suspect + fenced < 1_200, "seed {seed}: {suspect} ms, {fenced} ms");
        three.run(3_000);
        three.no_other_is_over(node);
    }
}

#[test]
fn a_new_leader_fences_nobody_but_the_old_one_which_is_gone() {
    for seed in 40..43 {
        let mut three = Three::new(seed);
        three.run(3_000);
        let old = three.leader();
        three.crash(old);
        three.until(15_000, "the fence of the old leader's broker", |three| {
            three.state(old) == Some(SessionState::Fenced)
        });
        three.run(12_000);
        three.no_other_is_over(old);
    }
}

#[test]
fn a_broker_that_is_cut_off_ends_itself_and_is_fenced() {
    let mut three = Three::new(60);
    three.run(3_000);
    let node = (three.leader() + 1) % 3;
    for other in (0..3).filter(|other| *other != node) {
        three.world.cut(NAMES[node], NAMES[other]);
    }
    three.until(15_000, "the fence", |three| three.state(node) == Some(SessionState::Fenced));
    three.until(15_000, "its own end", |three| three.told.lock().over.iter().any(|(over, _)| *over == node));
    three.no_other_is_over(node);
}
