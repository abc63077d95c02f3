//! The log store dies at random steps of a simulated disk. What comes back must be the state after one of the calls that
//! were made, and not an earlier one than the last that was confirmed.

use std::path::Path;
use std::sync::Arc;

use isobar_host::Host;
use isobar_host::disk::Faults;
use isobar_host::sim::{SimDisk, SimRng, World};
use isobar_metadata::{Command as MetadataCommand, Entry as MetadataEntry, Envelope, command::ExpireObjects};
use openraft::EntryPayload;
use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;

use super::small_options;
use crate::log_store::LogStore;
use crate::metrics::RaftMetrics;
use crate::open::open_log;
use crate::runtime::Runtime;
use crate::types::{Command, LogEntry, LogId, Types, Vote, log_id};

const DIR: &str = "/raft";

/// What the log should hold after one call.
#[derive(Debug, Clone, PartialEq, Default)]
struct Model {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: Vec<LogEntry>,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|e| e.log_id).or(self.purged)
    }

    fn next_index(&self) -> u64 {
        self.last().map_or(0, |id| id.index + 1)
    }
}

/// The states after each call of this life, and which of them was confirmed last.
#[derive(Debug, Default)]
struct History {
    states: Vec<Model>,
    confirmed: usize,
    found: Option<Result<Model, String>>,
}

fn entry(term: u64, index: u64, size: u64) -> LogEntry {
    let command = Envelope::unnumbered(MetadataCommand::ExpireObjects(ExpireObjects { limit: 1 << 20 }));
    let commands = vec![command; usize::try_from(size).expect("small")];
    let payload = EntryPayload::Normal(Command::new(MetadataEntry::new(index as i64, commands)));
    LogEntry { log_id: log_id(term, 1, index), payload }
}

async fn read_back(store: &mut LogStore) -> Result<Model, String> {
    let state = store.get_log_state().await.map_err(|e| e.to_string())?;
    let entries = store.try_get_log_entries(..).await.map_err(|e| e.to_string())?;
    let model = Model {
        vote: store.read_vote().await.map_err(|e| e.to_string())?,
        committed: store.read_committed().await.map_err(|e| e.to_string())?,
        purged: state.last_purged_log_id,
        entries,
    };
    if state.last_log_id == model.last() {
        Ok(model)
    } else {
        Err(format!("{state:?} but {:?}", model.last()))
    }
}

/// Opens the store, tells what it found, then makes random calls until something fails.
async fn life(host: Host, rng: SimRng, history: Arc<Mutex<History>>) {
    let metrics = Arc::new(RaftMetrics::default());
    let mut store = match open_log(&host, &small_options(Path::new(DIR)), &metrics).await {
        Ok(store) => store,
        Err(error) => {
            history.lock().found = Some(Err(error.to_string()));
            return;
        }
    };
    let found = read_back(&mut store).await;
    history.lock().found = Some(found.clone());
    let Ok(mut model) = found else { return };
    *history.lock() = History { states: vec![model.clone()], confirmed: 0, found: Some(Ok(model.clone())) };
    let mut rng = rng;
    loop {
        if call(&mut store, &mut model, &mut rng, &history).await.is_err() {
            return;
        }
        if rng.below(4) == 0 {
            tokio::task::yield_now().await;
        }
    }
}

/// One random call, as openraft might make it.
async fn call(
    store: &mut LogStore,
    model: &mut Model,
    rng: &mut SimRng,
    history: &Arc<Mutex<History>>,
) -> std::io::Result<()> {
    let term = model.vote.map_or(1, |vote| vote.leader_id.term);
    match rng.below(12) {
        0 => {
            let vote = Vote::new(term + 1, 1);
            model.vote = Some(vote);
            let at = issue(history, model);
            store.save_vote(&vote).await?;
            confirm(history, at);
        }
        1 if !model.entries.is_empty() => {
            let keep = rng.below(model.entries.len() as u64 + 1);
            model.entries.truncate(usize::try_from(keep).expect("small"));
            let after = model.last();
            if model.committed > after {
                // Raft never cuts what is committed; the entries come back with the next call.
                model.committed = after;
                store.save_committed(after).await?;
            }
            issue(history, model);
            store.truncate_after(after).await?;
        }
        2 if model.entries.len() > 4 => {
            let count = usize::try_from(1 + rng.below(model.entries.len() as u64)).expect("small");
            let upto = model.entries.drain(..count).next_back().map(|e| e.log_id);
            model.purged = upto;
            issue(history, model);
            store.purge(upto.expect("at least one")).await?;
        }
        3 => {
            model.committed = model.last();
            store.save_committed(model.committed).await?;
        }
        _ => {
            let first = model.next_index();
            let sizes: Vec<u64> = (0..1 + rng.below(3)).map(|_| rng.below(400)).collect();
            let entries: Vec<LogEntry> = (first..).zip(sizes).map(|(i, size)| entry(term, i, size)).collect();
            model.entries.extend(entries.iter().cloned());
            let at = issue(history, model);
            let (tx, rx) = Types::oneshot();
            store.append(entries, IOFlushed::signal(tx)).await?;
            let readable = store.try_get_log_entries(first..).await?;
            assert_eq!(readable.len() as u64, model.next_index() - first, "entries are readable at once");
            if rng.below(2) == 0 {
                rx.await.map_err(std::io::Error::other)??;
                confirm(history, at);
            }
        }
    }
    Ok(())
}

fn issue(history: &Mutex<History>, model: &Model) -> usize {
    let mut history = history.lock();
    history.states.push(model.clone());
    history.states.len() - 1
}

fn confirm(history: &Mutex<History>, at: usize) {
    let mut history = history.lock();
    history.confirmed = history.confirmed.max(at);
}

/// Checks what a life found against what the one before it did. Gives the number of calls whose loss it allowed.
fn check(before: &History, found: &Model, context: &str) {
    let allowed = &before.states[before.confirmed..];
    assert!(
        allowed.contains(found),
        "{context}: came back as none of {} states since the last confirmed one\nfound {found:#?}\nconfirmed {:#?}",
        allowed.len(),
        allowed.first()
    );
}

/// What a disk does wrong during one life.
fn draw_faults(world: &World, disk: &SimDisk) -> Faults {
    let per_million = [3_000, 30_000, 200_000][world.below(3) as usize];
    match world.below(5) {
        0 => Faults { write_errors_per_million: per_million, ..Faults::default() },
        1 => Faults { sync_errors_per_million: per_million, ..Faults::default() },
        2 => Faults { read_errors_per_million: per_million, ..Faults::default() },
        3 => {
            let capacity_bytes = Some(disk.used_bytes() + world.below(200_000));
            Faults { capacity_bytes, ..Faults::default() }
        }
        _ => Faults::default(),
    }
}

/// Lives with death at random steps; with `faulty`, on a disk that fails, and ended by SIGKILL as well as by power cuts.
fn run(seed: u64, lives: u64, faulty: bool) -> u64 {
    let mut world = World::new(seed);
    let disk = Arc::new(SimDisk::new(seed));
    world.add_node("a", Arc::clone(&disk));
    let mut before = History { states: vec![Model::default()], ..History::default() };
    let mut crashes = 0;
    for number in 0..lives {
        let history = Arc::new(Mutex::new(History::default()));
        let (rng, told) = (SimRng::new(world.below(u64::MAX)), Arc::clone(&history));
        world.boot("a", |host| Runtime::scope(seed, life(host, rng, told)));
        // Every few lives the death comes while the store is still opening.
        let steps = if number % 4 == 3 { 1 + world.below(12) } else { 1 + world.below(150) };
        let killed = faulty && world.below(3) == 0;
        let faults = if faulty { draw_faults(&world, &disk) } else { Faults::default() };
        disk.set_faults(faults);
        if !killed {
            world.arm("a", steps);
        }
        // One that is killed, or whose disk has failed, lives on until somebody ends it.
        let ticks = if faulty { 1 + world.below(100) } else { 2000 };
        for _ in 0..ticks {
            if !world.step().is_empty() {
                crashes += 1;
                break;
            }
        }
        if killed {
            world.kill("a")
        } else {
            world.crash("a")
        }
        disk.set_faults(Faults::default());
        let mut history = std::mem::take(&mut *history.lock());
        match history.found.take() {
            Some(Ok(found)) => {
                check(&before, &found, &format!("seed {seed} life {number}"));
                before = history;
            }
            Some(Err(error)) if error.contains("powered off") || error.contains("died") => {}
            Some(Err(_)) if faults != Faults::default() => {}
            Some(Err(error)) => panic!("seed {seed} life {number}: {error}"),
            // Died while opening.
            None => {}
        }
    }
    crashes
}

#[test]
fn a_crash_at_any_step_loses_nothing_confirmed() {
    let crashes: u64 = (0..120).map(|seed| run(seed, 12, false)).sum();
    assert!(crashes > 800, "only {crashes} crashes happened");
}

#[test]
fn a_failing_disk_loses_nothing_confirmed() {
    let seeds = std::env::var("RAFT_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(150);
    let crashes: u64 = (1000..1000 + seeds).map(|seed| run(seed, 12, true)).sum();
    assert!(crashes > 2 * seeds, "only {crashes} crashes happened");
}
