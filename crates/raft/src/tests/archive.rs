//! The archive of a running member: what is in it, what it holds back, what it survives, and that it can be gone back to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::ExpireProducers;
use isobar_metadata::{Command, Entry, Envelope, StateMachine};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{cluster, register, session_of};
use crate::archive::{
    Archive, ArchiveError, ArchiveOptions, Archiver, Listing, read_log, read_snapshot, survey,
};
use crate::{ProposeError, Quorum, QuorumOptions, found};

/// A store that can fail and that can be claimed by somebody else.
#[derive(Default)]
pub(crate) struct Shelf {
    objects: Mutex<BTreeMap<String, Bytes>>,
    down: AtomicBool,
    claimed: AtomicBool,
    puts: AtomicU64,
}

impl Shelf {
    fn answer(&self) -> Result<(), ArchiveError> {
        match self.down.load(Ordering::Relaxed) {
            true => Err(ArchiveError::Unavailable("the shelf is down".to_owned())),
            false => Ok(()),
        }
    }

    fn puts(&self) -> u64 {
        self.puts.load(Ordering::Relaxed)
    }

    fn names(&self, part: &str) -> Vec<String> {
        self.objects.lock().keys().filter(|name| name.contains(part)).cloned().collect()
    }
}

#[async_trait]
impl Archive for Shelf {
    async fn put(&self, name: &str, parts: Vec<Bytes>) -> Result<(), ArchiveError> {
        sleep(Duration::from_millis(1)).await;
        self.answer()?;
        assert!(!self.claimed.load(Ordering::Relaxed), "{name} was written under a lost claim");
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.objects.lock().insert(name.to_owned(), parts.concat().into());
        Ok(())
    }

    async fn get(&self, name: &str) -> Result<Bytes, ArchiveError> {
        self.answer()?;
        self.objects.lock().get(name).cloned().ok_or_else(|| ArchiveError::NotFound(name.to_owned()))
    }

    async fn list(&self, dir: &str) -> Result<Vec<String>, ArchiveError> {
        self.answer()?;
        let under = format!("{dir}/");
        Ok(self.objects.lock().keys().filter(|name| name.starts_with(&under)).cloned().collect())
    }

    async fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        self.answer()?;
        self.objects.lock().remove(name);
        Ok(())
    }

    async fn check(&self) -> Result<(), ArchiveError> {
        self.answer()?;
        match self.claimed.load(Ordering::Relaxed) {
            true => Err(ArchiveError::Lost("claimed by another".to_owned())),
            false => Ok(()),
        }
    }
}

fn options(dir: &Path) -> QuorumOptions {
    QuorumOptions {
        format: Some(cluster()),
        archive_lag_bytes: Some(1 << 30),
        log_cache_bytes: 4096,
        ..QuorumOptions::new(dir, 1)
    }
}

pub(crate) fn quick() -> ArchiveOptions {
    ArchiveOptions {
        interval: Duration::from_millis(10),
        grace: Duration::from_millis(20),
        log_object_bytes: 4096,
        part_bytes: 1000,
        ..ArchiveOptions::default()
    }
}

fn run<T>(test: impl AsyncFnOnce(Host, PathBuf) -> T) -> T {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test(Host::real(), dir.path().join("meta")))
}

async fn started(host: &Host, options: QuorumOptions, shelf: &Arc<Shelf>) -> (Quorum, Archiver) {
    let quorum = Quorum::start(host, options).await.expect("starts");
    let archive: Arc<dyn Archive> = shelf.clone();
    let archiver = quorum.archive(archive, quick()).unwrap();
    (quorum, archiver)
}

async fn register_all(quorum: &Quorum, from: u64, to: u64) -> BTreeMap<u64, u64> {
    let mut sessions = BTreeMap::new();
    for n in from..to {
        let result = quorum.propose(register(n)).await.expect("an answer");
        sessions.insert(n, session_of(&result).expect("a session"));
    }
    sessions
}

async fn until(what: &str, so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if so() {
            return;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain for {what}");
}

/// The state at the end of the furthest chain, and the index of the snapshot it was made from.
async fn replayed(shelf: &Shelf, incarnation: u32) -> (StateMachine, u64, Listing) {
    let listing = survey(shelf, incarnation).await.expect("a listing");
    let chain = *listing.chains().first().expect("a chain");
    let snapshot = read_snapshot(shelf, incarnation, &listing, chain.newest).await.expect("a snapshot");
    assert_eq!(snapshot.cluster_id, cluster().cluster_id);
    let mut state = StateMachine::restore(&snapshot.body).expect("a state");
    for piece in listing.pieces(chain.newest, chain.end) {
        let (cluster_id, entries) = read_log(shelf, incarnation, piece).await.expect("a piece");
        assert_eq!(cluster_id, cluster().cluster_id);
        for entry in
            entries.iter().filter(|entry| entry.id.index > state.applied_index()).cloned().collect::<Vec<_>>()
        {
            match entry.command {
                Some(bytes) => {
                    state.apply(entry.id.index, &Entry::from_bytes(bytes).expect("an entry"));
                }
                None => {
                    state.skip(entry.id.index);
                }
            }
        }
    }
    assert_eq!(state.applied_index(), chain.end);
    (state, chain.newest, listing)
}

#[test]
fn the_archive_holds_the_state_and_a_member_can_be_founded_on_it() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let (quorum, archiver) = started(&host, options(&dir), &shelf).await;
        let sessions = register_all(&quorum, 0, 300).await;
        archiver.flush().await;
        let position = quorum.position();
        assert_eq!(archiver.status().through, position.0);
        let (state, _, _) = replayed(&shelf, 0).await;
        assert_eq!((state.applied_index(), state.rolling_hash()), position);

        // Over a restart it goes on where it was.
        quorum.shutdown().await.expect("stops");
        let (quorum, archiver) = started(&host, options(&dir), &shelf).await;
        let more = register_all(&quorum, 300, 320).await;
        archiver.flush().await;
        quorum.shutdown().await.expect("stops");

        let (state, _, listing) = replayed(&shelf, 0).await;
        assert_eq!(listing.chains().len(), 1, "no hole");
        let elsewhere = QuorumOptions { format: None, ..options(&dir.with_extension("new")) };
        found(&host, &elsewhere, [9; 16], &state).await.expect("founded");
        assert!(found(&host, &elsewhere, [8; 16], &state).await.is_err(), "not twice in one directory");
        for _ in 0..2 {
            let quorum = Quorum::start(&host, elsewhere.clone()).await.expect("starts");
            assert_eq!(quorum.incarnation(), [9; 16]);
            assert_eq!(register_all(&quorum, 0, 300).await, sessions);
            assert_eq!(register_all(&quorum, 300, 320).await, more);
            quorum.shutdown().await.expect("stops");
        }
    });
}

#[test]
fn the_log_waits_for_the_archive_and_a_store_that_is_down_stops_nothing() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let small = QuorumOptions { snapshot_after_bytes: 4_000, ..options(&dir) };
        let (quorum, archiver) = started(&host, small.clone(), &shelf).await;
        register_all(&quorum, 0, 20).await;
        archiver.flush().await;
        let through = archiver.status().through;
        shelf.down.store(true, Ordering::Relaxed);
        register_all(&quorum, 20, 500).await;
        until("snapshots", || quorum.metrics().snapshots.get() >= 3).await;
        assert!(quorum.log_store().first_index() <= through + 1, "the log went before it was archived");
        assert!(quorum.metrics().archive_failures.get() > 0);

        shelf.down.store(false, Ordering::Relaxed);
        archiver.flush().await;
        until("the purge", || quorum.log_store().first_index() > through + 1).await;
        assert_eq!(survey(&*shelf, 0).await.expect("a listing").chains().len(), 1, "no hole");
        let (state, _, _) = replayed(&shelf, 0).await;
        assert_eq!((state.applied_index(), state.rolling_hash()), quorum.position());
        quorum.shutdown().await.expect("stops");
    });
}

#[test]
fn a_long_outage_leaves_a_hole_that_a_snapshot_bridges() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let small =
            QuorumOptions { snapshot_after_bytes: 4_000, archive_lag_bytes: Some(0), ..options(&dir) };
        let (quorum, archiver) = started(&host, small, &shelf).await;
        register_all(&quorum, 0, 20).await;
        archiver.flush().await;
        let through = archiver.status().through;
        shelf.down.store(true, Ordering::Relaxed);
        register_all(&quorum, 20, 300).await;
        until("the purge", || quorum.log_store().first_index() > through + 1).await;
        shelf.down.store(false, Ordering::Relaxed);
        archiver.flush().await;
        assert_eq!(archiver.status().through, quorum.position().0);
        let (state, _, _) = replayed(&shelf, 0).await;
        assert_eq!((state.applied_index(), state.rolling_hash()), quorum.position());
        quorum.shutdown().await.expect("stops");
    });
}

#[test]
fn an_idle_member_comes_to_rest_and_old_pieces_go() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let (quorum, archiver) = started(&host, options(&dir), &shelf).await;
        for round in 0..4 {
            register_all(&quorum, round * 10, round * 10 + 10).await;
            assert!(quorum.snapshot().await);
            archiver.flush().await;
        }
        register_all(&quorum, 40, 41).await;
        archiver.flush().await;
        // The newest snapshot at or below the cut, and the one before it; and nothing of the log below that.
        until("the removals", || {
            let indexes: std::collections::BTreeSet<_> = shelf
                .names("/snapshot/")
                .iter()
                .map(|name| name.split('-').next().map(str::to_owned))
                .collect();
            indexes.len() == 2
        })
        .await;
        replayed(&shelf, 0).await;
        sleep(Duration::from_millis(100)).await;
        let puts = shelf.puts();
        let idle = Command::ExpireProducers(ExpireProducers { shard: 0 });
        quorum.propose(Envelope::unnumbered(idle)).await.expect("an answer");
        sleep(Duration::from_millis(100)).await;
        assert_eq!(shelf.puts(), puts, "nothing but time went on");
        quorum.shutdown().await.expect("stops");
    });
}

#[test]
fn a_member_whose_claim_is_gone_takes_no_more_commands() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let (quorum, archiver) = started(&host, options(&dir), &shelf).await;
        register_all(&quorum, 0, 5).await;
        archiver.flush().await;
        sleep(Duration::from_millis(1100)).await;
        shelf.claimed.store(true, Ordering::Relaxed);
        let _ = quorum.propose(register(6)).await;
        let mut lost = archiver.lost();
        let why = lost.wait_for(Option::is_some).await.expect("told").clone();
        assert_eq!(why.as_deref(), Some("claimed by another"));
        assert_eq!(quorum.propose(register(7)).await, Err(ProposeError::Stopping));
        assert_eq!(quorum.barrier().await, Err(ProposeError::Stopping));
        quorum.shutdown().await.expect("stops");
    });
}

#[test]
fn a_directory_behind_its_archive_is_refused() {
    run(async |host, dir| {
        let shelf = Arc::new(Shelf::default());
        let (quorum, archiver) = started(&host, options(&dir), &shelf).await;
        register_all(&quorum, 0, 50).await;
        archiver.flush().await;
        quorum.shutdown().await.expect("stops");
        let younger = options(&dir.with_extension("younger"));
        let (quorum, archiver) = started(&host, younger, &shelf).await;
        let mut lost = archiver.lost();
        let why = lost.wait_for(Option::is_some).await.expect("told").clone().expect("a reason");
        assert!(why.contains("has lost"), "{why}");
        quorum.shutdown().await.expect("stops");
    });
}

/// Lives of a member in the simulation, each ended at some step; the archive outlives them all.
#[test]
fn what_is_archived_is_what_was_applied_over_crashes_at_any_step() {
    let mut pieces = 0;
    for seed in 0..12 {
        let mut world = World::new(seed);
        world.add_node("a", Arc::new(SimDisk::new(seed)));
        let shelf = Arc::new(Shelf::default());
        let next = Arc::new(AtomicU64::new(0));
        let problem: Arc<Mutex<Option<String>>> = Arc::default();
        for _ in 0..6 {
            let (shelf, next, problem_of) = (shelf.clone(), next.clone(), problem.clone());
            world.boot("a", |host| async move {
                let options = QuorumOptions {
                    snapshot_after_bytes: 3000,
                    segment_bytes: 8 << 20,
                    archive_lag_bytes: Some(1 << 30),
                    format: Some(cluster()),
                    ..QuorumOptions::new("/meta", 1)
                };
                let Ok(quorum) = Quorum::start(&host, options).await else { return };
                let archive: Arc<dyn Archive> = shelf;
                let archiver = quorum.archive(archive, quick()).unwrap();
                let lost = archiver.lost();
                while quorum.propose(register(next.fetch_add(1, Ordering::Relaxed))).await.is_ok() {
                    if let Some(why) = lost.borrow().clone() {
                        *problem_of.lock() = Some(why);
                    }
                    sleep(Duration::from_millis(1)).await;
                }
            });
            world.arm("a", 1 + world.below(1500));
            for _ in 0..1500 {
                if !world.step().is_empty() {
                    break;
                }
            }
            world.crash("a");
        }
        assert_eq!(*problem.lock(), None, "seed {seed}");
        drop(world);
        if shelf.puts() == 0 {
            continue;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (state, start, listing) = runtime.block_on(replayed(&shelf, 0));
        assert_eq!(listing.chains().len(), 1, "seed {seed}: a hole");
        assert!(state.applied_index() >= start);
        pieces += listing.log().count();
    }
    assert!(pieces > 50, "only {pieces} pieces of log");
}
