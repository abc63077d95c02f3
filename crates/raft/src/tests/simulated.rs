//! The whole quorum in the simulation: dies at random steps, comes back, and has everything it answered; the same seed
//! gives the same run.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use parking_lot::Mutex;

use super::{cluster, register, session_of};
use crate::{Quorum, QuorumOptions};

/// Lives registered and answered, over all of a node's lives.
#[derive(Default)]
struct Told {
    sessions: BTreeMap<u64, u64>,
    next: u64,
    starts: u64,
    repeats: u64,
    problem: Option<String>,
}

async fn life(host: Host, told: Arc<Mutex<Told>>) {
    let options = QuorumOptions {
        format: Some(cluster()),
        snapshot_after_bytes: 3000,
        segment_bytes: 8 << 20,
        ..QuorumOptions::new("/meta", 1)
    };
    let quorum = match Quorum::start(&host, options).await {
        Ok(quorum) => quorum,
        Err(error) => {
            // Errors of a disk that died under it are expected; refusals of its own directory are not.
            if matches!(error, crate::RaftError::Damaged { .. } | crate::RaftError::WrongDirectory { .. }) {
                told.lock().problem = Some(error.to_string());
            }
            return;
        }
    };
    told.lock().starts += 1;
    let answered: Vec<(u64, u64)> =
        told.lock().sessions.iter().rev().take(5).map(|(n, s)| (*n, *s)).collect();
    for (n, session) in answered {
        match quorum.propose(register(n)).await {
            Ok(result) if session_of(&result) == Some(session) => told.lock().repeats += 1,
            Ok(result) => {
                told.lock().problem = Some(format!("life {n} was session {session}, now {result:?}"))
            }
            Err(_) => return,
        }
    }
    loop {
        let n = {
            let mut told = told.lock();
            told.next += 1;
            told.next
        };
        let Ok(result) = quorum.propose(register(n)).await else { return };
        let Some(session) = session_of(&result) else {
            told.lock().problem = Some(format!("{result:?}"));
            return;
        };
        let mut told = told.lock();
        if told.sessions.values().any(|other| *other == session) {
            told.problem = Some(format!("session {session} was given twice"));
        }
        told.sessions.insert(n, session);
    }
}

/// Runs one world; gives its trace and what was told.
fn run(seed: u64) -> ((u64, u64), Told) {
    let mut world = World::new(seed);
    world.add_node("a", Arc::new(SimDisk::new(seed)));
    let told = Arc::new(Mutex::new(Told::default()));
    for _ in 0..8 {
        let shared = Arc::clone(&told);
        world.boot("a", |host| life(host, shared));
        world.arm("a", 1 + world.below(400));
        for _ in 0..400 {
            if !world.step().is_empty() {
                break;
            }
        }
        world.crash("a");
        if let Some(problem) = &told.lock().problem {
            panic!("seed {seed}: {problem}");
        }
    }
    let trace = world.trace();
    drop(world);
    (trace, std::mem::take(&mut *told.lock()))
}

#[test]
fn what_was_answered_survives_a_crash_at_any_step() {
    let (mut starts, mut repeats) = (0, 0);
    for seed in 0..25 {
        let (_, told) = run(seed);
        starts += told.starts;
        repeats += told.repeats;
    }
    assert!(starts > 50 && repeats > 100, "only {starts} starts and {repeats} repeats");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [1, 2] {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.0, second.0, "seed {seed}");
        assert_eq!(first.1.sessions, second.1.sessions, "seed {seed}");
    }
    assert_ne!(run(1).0, run(2).0, "another seed gives another run");
}
