//! Three members in one world: leaders that die, hang behind a cut, or stop; members that stay away; members that come and go.
//!
//! On every node somebody registers lives and asks for barriers. What is checked at all times: a life has one session, two
//! lives never the same one, and a barrier shows at least what any member had applied when it was asked.

mod observer;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_rpc::{Rpc, RpcOptions, Secret};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::archive::{Shelf, quick};
use super::{cluster, register, session_of};
use crate::{MemberInfo, MembershipError, ProposeError, Quorum, QuorumOptions, RaftNetwork};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What all of them have seen.
#[derive(Default)]
struct Told {
    quiet: bool,
    next: u64,
    sessions: BTreeMap<u64, u64>,
    barriers: u64,
    barriers_failed: u64,
    unknown: u64,
    problem: Option<String>,
}

/// `ISOBAR_RAFT_SEEDS` asks for so many times as many.
fn seeds(from: u64, count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("ISOBAR_RAFT_SEEDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    from..from + count * times
}

type Slots = Arc<Mutex<BTreeMap<usize, Quorum>>>;

fn address(node: usize) -> String {
    format!("127.0.0.1:{}", 7001 + node)
}

fn id(node: usize) -> u64 {
    node as u64 + 1
}

fn voters(count: usize) -> Vec<(u64, String)> {
    (0..count).map(|node| (id(node), address(node))).collect()
}

async fn start(
    host: &Host,
    node: usize,
    listen: &str,
    voters: Vec<(u64, String)>,
    dir: &str,
    archive: bool,
) -> Option<Quorum> {
    let mut rpc = RpcOptions::new(listen, node as i32 + 1, cluster().cluster_id, Secret::new([7; 32]));
    rpc.dead_after = Duration::from_secs(3);
    let rpc = Rpc::start(host, rpc).await.ok()?;
    let address = voters.iter().find(|(voter, _)| *voter == id(node)).map(|(_, address)| address.clone());
    let options = QuorumOptions {
        format: Some(cluster()),
        address: address.unwrap_or_else(|| listen.to_owned()),
        network: Some(RaftNetwork::new(rpc)),
        initial_voters: voters,
        snapshot_after_bytes: 4000,
        log_cache_bytes: 4096,
        segment_bytes: 8 << 20,
        effects_bytes: 32 << 10,
        archive_lag_bytes: archive.then_some(1 << 30),
        ..QuorumOptions::new(dir, id(node))
    };
    Quorum::start(host, options).await.ok()
}

/// A member of a group of three, for other tests.
pub(super) async fn start_member(host: &Host, node: usize, voters: Vec<(u64, String)>) -> Option<Quorum> {
    start(host, node, &address(node), voters, "m", false).await
}

pub(super) fn voters_of_three() -> Vec<(u64, String)> {
    voters(3)
}

async fn life(
    host: Host,
    node: usize,
    dir: String,
    told: Arc<Mutex<Told>>,
    slots: Slots,
    shelf: Option<Arc<Shelf>>,
) {
    let started = start(&host, node, &address(node), voters(3), &dir, shelf.is_some()).await;
    let Some(quorum) = started else { return };
    let _archiver = shelf.and_then(|shelf| quorum.archive(shelf, quick()));
    slots.lock().insert(node, quorum.clone());
    live(&host, quorum, told, slots).await;
}

/// Asks for barriers and registers lives, until the quorum has stopped.
async fn live(host: &Host, quorum: Quorum, told: Arc<Mutex<Told>>, slots: Slots) {
    host.spawn("reader", read(quorum.clone(), Arc::clone(&told), Arc::clone(&slots)));
    loop {
        let n = {
            let mut told = told.lock();
            if told.quiet {
                None
            } else {
                told.next += 1;
                Some(told.next)
            }
        };
        let Some(n) = n else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        // Until it is answered, as a broker does.
        loop {
            match quorum.propose(register(n)).await {
                Ok(result) => {
                    note(&mut told.lock(), n, session_of(&result));
                    break;
                }
                Err(ProposeError::Stopping) => return,
                Err(error) => {
                    told.lock().unknown += u64::from(!error.did_not_happen());
                    sleep(Duration::from_millis(15)).await;
                }
            }
        }
        // Each life is a session, and the state machine's work grows with them.
        sleep(Duration::from_millis(10)).await;
    }
}

fn note(told: &mut Told, n: u64, session: Option<u64>) {
    let Some(session) = session else {
        told.problem = Some(format!("life {n} got no session"));
        return;
    };
    if told.sessions.get(&n).is_some_and(|known| *known != session) {
        told.problem = Some(format!("life {n} was session {:?}, now {session}", told.sessions.get(&n)));
    }
    if told.sessions.iter().any(|(other, known)| *other != n && *known == session) {
        told.problem = Some(format!("session {session} was given twice"));
    }
    told.sessions.insert(n, session);
}

async fn read(quorum: Quorum, told: Arc<Mutex<Told>>, slots: Slots) {
    loop {
        let floor = slots.lock().values().map(|quorum| quorum.position().0).max().unwrap_or(0);
        match quorum.barrier().await {
            Ok(index) if index < floor => {
                told.lock().problem = Some(format!("a barrier showed {index}, applied was {floor}"));
            }
            Ok(_) => told.lock().barriers += 1,
            Err(ProposeError::Stopping) => return,
            Err(_) => told.lock().barriers_failed += 1,
        }
        sleep(Duration::from_millis(25)).await;
    }
}

struct Cluster {
    world: World,
    told: Arc<Mutex<Told>>,
    slots: Slots,
    shelf: Option<Arc<Shelf>>,
    seed: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        Self::archived(seed, None)
    }

    fn archived(seed: u64, shelf: Option<Arc<Shelf>>) -> Self {
        let mut world = World::new(seed);
        for (n, name) in NAMES.iter().enumerate() {
            world.add_node(name, Arc::new(SimDisk::new(seed * 10 + n as u64)));
        }
        let mut cluster = Self { world, told: Arc::default(), slots: Slots::default(), shelf, seed };
        for node in 0..3 {
            cluster.boot(node);
        }
        cluster.until(20_000, "the first leader", |c| c.acked() > 0);
        cluster
    }

    fn boot(&mut self, node: usize) {
        self.boot_from(node, "/meta");
    }

    fn boot_from(&mut self, node: usize, dir: &str) {
        let (told, slots, shelf) = (Arc::clone(&self.told), Arc::clone(&self.slots), self.shelf.clone());
        let dir = dir.to_owned();
        self.world.boot(NAMES[node], |host| life(host, node, dir, told, slots, shelf));
    }

    fn kill(&mut self, node: usize) {
        self.slots.lock().remove(&node);
        self.world.kill(NAMES[node]);
    }

    fn acked(&self) -> usize {
        self.told.lock().sessions.len()
    }

    fn leader(&self) -> Option<usize> {
        self.slots.lock().iter().find(|(_, quorum)| quorum.is_leader()).map(|(node, _)| *node)
    }

    /// Whether a member has applied what the leader has, or nearly.
    fn is_current(&self, node: usize) -> bool {
        let slots = self.slots.lock();
        let place = |node: usize| slots.get(&node).map_or(0, |quorum| quorum.position().0);
        let leader = slots.iter().find(|(_, quorum)| quorum.is_leader()).map(|(node, _)| *node);
        leader.is_some_and(|leader| place(node) + 20 > place(leader))
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.world.step();
        }
        self.check();
    }

    fn check(&self) {
        if let Some(problem) = &self.told.lock().problem {
            panic!("seed {}: {problem}", self.seed);
        }
        for (node, quorum) in self.slots.lock().iter() {
            assert_eq!(quorum.diverged().borrow().as_deref(), None, "seed {}, node {node}", self.seed);
        }
    }

    /// Runs until it is so; gives the milliseconds that took.
    fn until(&mut self, limit_ms: u64, what: &str, mut such: impl FnMut(&Self) -> bool) -> u64 {
        for ms in 0..limit_ms {
            if such(self) {
                self.check();
                return ms;
            }
            self.world.step();
        }
        self.check();
        panic!("seed {}: waited {limit_ms} ms for {what}", self.seed);
    }

    fn until_acked(&mut self, more: usize) -> u64 {
        let wanted = self.acked() + more;
        self.until(20_000, "answers", |c| c.acked() >= wanted)
    }

    /// How far metadata's time is from the world's: the same at any time while it goes with that. And whether expiry is held.
    fn time_off(&self) -> (i64, bool) {
        let newest = self.slots.lock().values().max_by_key(|quorum| quorum.position().0).cloned();
        let (image, _) = newest.expect("a member").subscribe();
        (image.time_ms() - (self.world.now_us() / 1000) as i64, image.expiry_held_until_ms() > 0)
    }

    /// Stops the load and waits until all members that are up stand at the same place with the same hash.
    fn settle(&mut self, members: usize) {
        self.told.lock().quiet = true;
        self.run(1500);
        self.until(20_000, "equal members", |c| {
            let slots = c.slots.lock();
            let mut positions: Vec<_> = slots.values().map(Quorum::position).collect();
            positions.dedup();
            slots.len() == members && positions.len() == 1
        });
        self.verify();
        self.told.lock().quiet = false;
    }

    /// Asks for every life that was answered once more, at some member.
    fn verify(&mut self) {
        let quorum = self.slots.lock().values().next().cloned().expect("a member");
        let (told, done) = (Arc::clone(&self.told), Arc::new(Mutex::new(false)));
        let finished = Arc::clone(&done);
        // On a node of its own, whose clock the world moves as well.
        self.world.add_node("verifier", Arc::new(SimDisk::new(1)));
        self.world.boot("verifier", |_| async move {
            let known: Vec<_> = told.lock().sessions.keys().copied().collect();
            for n in known {
                loop {
                    match quorum.propose(register(n)).await {
                        Ok(result) => break note(&mut told.lock(), n, session_of(&result)),
                        Err(_) => sleep(Duration::from_millis(20)).await,
                    }
                }
            }
            *finished.lock() = true;
        });
        self.until(60_000, "the verifier", |_| *done.lock());
        self.world.crash("verifier");
    }
}

#[test]
fn a_killed_leader_is_replaced_and_nothing_is_lost() {
    let mut slowest = 0;
    for seed in seeds(1, 2) {
        let mut cluster = Cluster::new(seed);
        for _ in 0..3 {
            cluster.until_acked(60);
            let leader = cluster.leader().expect("a leader");
            cluster.kill(leader);
            let before = cluster.acked();
            let took = cluster.until(5000, "a new leader", |c| c.acked() > before);
            slowest = slowest.max(took);
            cluster.until_acked(40);
            cluster.boot(leader);
            cluster.until(10_000, "its return", |c| c.slots.lock().len() == 3);
        }
        cluster.settle(3);
        let told = cluster.told.lock();
        println!(
            "seed {seed}: {} lives, {} barriers, {} failed, {} unknown",
            told.sessions.len(),
            told.barriers,
            told.barriers_failed,
            told.unknown
        );
        assert!(told.barriers > 50);
    }
    println!("slowest: {slowest} ms from the kill to the next answer");
    assert!(slowest < 1500, "{slowest} ms without a leader");
}

#[test]
fn a_clock_that_is_wrong_does_not_move_metadatas_time() {
    const FAR_MS: i64 = 2 * 3_600_000;
    for seed in seeds(71, 1) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(50);
        let (before, _) = cluster.time_off();
        let unmoved = |cluster: &Cluster, when: &str| {
            let (now, held) = cluster.time_off();
            assert!((now - before).abs() < 500 && !held, "seed {seed}, {when}: {now}, was {before}");
        };
        for wrong_ms in [FAR_MS, -FAR_MS] {
            let leader = cluster.leader().expect("a leader");
            cluster.world.shift_clock(NAMES[leader], wrong_ms);
            cluster.until_acked(50);
            unmoved(&cluster, "the leader's clock is wrong");
            // Its successor knows its clock, and that of the third, which is the one that leads after that.
            for _ in 0..2 {
                let leads = cluster.leader().expect("a leader");
                cluster.kill(leads);
                cluster.until_acked(50);
                unmoved(&cluster, "and a leader is gone");
                cluster.boot(leads);
                cluster.until(10_000, "its return", |c| c.slots.lock().len() == 3);
                cluster.until_acked(50);
                unmoved(&cluster, "and it is back");
            }
            cluster.world.shift_clock(NAMES[leader], 0);
        }
        // If most are wrong, so is the time.
        for node in [0, 1] {
            cluster.world.shift_clock(NAMES[node], FAR_MS);
        }
        cluster.until_acked(50);
        let (now, held) = cluster.time_off();
        assert!((now - before - FAR_MS).abs() < 500 && held, "seed {seed}: {now}, was {before}");
    }
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_shows_nothing_stale() {
    for seed in seeds(101, 1) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(50);
        let leader = cluster.leader().expect("a leader");
        for node in (0..3).filter(|node| *node != leader) {
            cluster.world.cut(NAMES[leader], NAMES[node]);
        }
        let before = cluster.acked();
        let took = cluster.until(5000, "a leader on the other side", |c| c.acked() > before + 3);
        assert!(took < 2500, "{took} ms");
        let old = cluster.slots.lock().get(&leader).cloned().expect("it is up");
        let place = old.position();
        cluster.run(4000);
        assert_eq!(old.position(), place, "seed {seed}: it applies nothing");
        for node in (0..3).filter(|node| *node != leader) {
            cluster.world.heal(NAMES[leader], NAMES[node]);
        }
        cluster.run(3000);
        cluster.settle(3);
        assert!(cluster.told.lock().barriers_failed > 0);
    }
}

#[test]
fn a_member_that_was_away_long_gets_a_snapshot_and_its_followers_an_image() {
    for seed in seeds(201, 1) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(30);
        let away = (0..3).find(|node| Some(*node) != cluster.leader()).expect("a follower");
        cluster.kill(away);
        // Two snapshots, so that the log before the older one goes.
        cluster.until(60_000, "snapshots", |c| {
            c.slots.lock().values().all(|quorum| quorum.log_store().purged().is_some_and(|id| id.index > 150))
        });
        cluster.boot(away);
        cluster.until(20_000, "the snapshot", |c| {
            c.slots.lock().get(&away).is_some_and(|quorum| quorum.metrics().snapshot_received_bytes.get() > 0)
        });
        cluster.settle(3);
        let quorum = cluster.slots.lock().get(&away).cloned().expect("it is back");
        assert!(quorum.resume(5).is_none(), "what came before the snapshot is not in the ring");
        assert!(quorum.resume(quorum.position().0).is_some());
    }
}

#[test]
fn a_power_cut_of_all_of_them_loses_nothing_answered() {
    for seed in seeds(301, 2) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(80);
        cluster.slots.lock().clear();
        for name in &NAMES[..3] {
            cluster.world.crash(name);
        }
        for node in 0..3 {
            cluster.boot(node);
        }
        cluster.until_acked(20);
        cluster.settle(3);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(40);
        let leader = cluster.leader().expect("a leader");
        cluster.kill(leader);
        cluster.run(3000);
        (cluster.world.trace(), cluster.told.lock().sessions.clone())
    };
    assert_eq!(run(41), run(41));
    assert_ne!(run(41).0, run(42).0);
}

#[test]
fn a_member_that_lost_its_directory_is_no_member() {
    for (seed, node) in [(71, 0), (72, 2)] {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(30);
        cluster.kill(node);
        cluster.boot_from(node, "/another");
        cluster.until_acked(100);
        cluster.run(3000);
        let lost = cluster.slots.lock().remove(&node).expect("it is up");
        assert_eq!(lost.position().0, 0, "it was sent nothing");
        assert!(lost.membership().is_empty(), "it has begun nothing");
        cluster.settle(2);
    }
}

#[test]
fn the_leader_archives_and_its_successor_goes_on() {
    let shelf = Arc::new(Shelf::default());
    let mut cluster = Cluster::archived(81, Some(Arc::clone(&shelf)));
    for _ in 0..3 {
        cluster.until_acked(150);
        let leader = cluster.leader().expect("a leader");
        cluster.kill(leader);
        cluster.until_acked(50);
        cluster.boot(leader);
    }
    cluster.until(60_000, "logs that were let go", |c| {
        let slots = c.slots.lock();
        slots.len() == 3 && slots.values().all(|quorum| quorum.log_store().first_index() > 100)
    });
    cluster.told.lock().quiet = true;
    cluster.run(3000);
    let applied = cluster.slots.lock().values().map(|quorum| quorum.position().0).max().expect("a member");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let listing = runtime.block_on(crate::archive::survey(&*shelf, 0)).expect("a listing");
    let chains = listing.chains();
    assert_eq!(chains.len(), 1, "nothing is left out: {chains:?}");
    // An entry without effects waits for the next that has some.
    assert!(chains[0].end + 20 > applied, "{chains:?}, applied {applied}");
    cluster.settle(3);
}

/// What an operator asks of the leader.
fn change(cluster: &mut Cluster, what: &'static str, node: usize) -> Result<(), MembershipError> {
    let done = Arc::new(Mutex::new(None));
    let (tell, leader) = (Arc::clone(&done), cluster.leader().expect("a leader"));
    let quorum = cluster.slots.lock().get(&leader).cloned().expect("it is up");
    cluster.world.add_node("operator", Arc::new(SimDisk::new(1)));
    cluster.world.boot("operator", |_| async move {
        let result = match what {
            "add" => quorum.add_voter(id(node), &address(node)).await,
            "let in" => quorum.add_learner(id(node), &address(node)).await,
            "replace" => quorum.replace(id(node), &address(node)).await,
            _ => quorum.remove_voter(id(node)).await,
        };
        *tell.lock() = Some(result);
    });
    cluster.until(60_000, what, |_| done.lock().is_some());
    cluster.world.crash("operator");
    let result = done.lock().take();
    result.expect("an answer")
}

#[test]
fn a_directory_that_was_lost_is_replaced_and_does_not_come_back() {
    for seed in seeds(61, 2) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(100);
        let leader = cluster.leader().expect("a leader");
        let lost = (leader + 1) % 3;
        cluster.kill(lost);
        cluster.boot_from(lost, "/new");
        cluster.run(3000);
        assert!(!cluster.is_current(lost), "it is let in by nobody but an operator");
        assert!(change(&mut cluster, "add", lost).is_err(), "the old directory may still be there");
        change(&mut cluster, "replace", lost).expect("replaced");
        change(&mut cluster, "replace", lost).expect("and again");
        cluster.until(10_000, "the new directory", |c| c.is_current(lost));
        // With its vote: the group stands with one of the others down.
        let other = (lost + 1) % 3;
        cluster.kill(other);
        cluster.until_acked(50);
        cluster.boot(other);
        cluster.run(1000);
        // Now the old one comes back: nobody speaks with it.
        cluster.kill(lost);
        cluster.boot(lost);
        cluster.run(3000);
        assert!(!cluster.is_current(lost), "the old directory is one of the group again");
        cluster.kill(lost);
        cluster.boot_from(lost, "/new");
        cluster.until_acked(50);
        cluster.settle(3);
    }
}

#[test]
fn members_come_and_go() {
    let mut cluster = Cluster::new(51);
    cluster.until_acked(200);
    cluster.boot(3);
    cluster.until(5000, "the fourth", |c| c.slots.lock().contains_key(&3));
    change(&mut cluster, "add", 3).expect("added");
    let leader = cluster.leader().expect("a leader");
    change(&mut cluster, "remove", leader).expect("removed");
    cluster.until(10_000, "another leader", |c| c.leader().is_some_and(|node| node != leader));
    cluster.kill(leader);
    cluster.until_acked(50);
    let members = |c: &Cluster| c.slots.lock().values().next().map(Quorum::membership).unwrap_or_default();
    let ids: Vec<_> =
        members(&cluster).iter().map(|MemberInfo { id, is_voter, .. }| (*id, *is_voter)).collect();
    let expected: Vec<_> = (0..4).filter(|node| *node != leader).map(|node| (id(node), true)).collect();
    assert_eq!(ids, expected);
    cluster.settle(3);
    assert!(change(&mut cluster, "add", leader).is_err(), "nobody listens there");
}

#[test]
fn a_leader_that_stops_hands_over() {
    for seed in seeds(401, 1) {
        let mut cluster = Cluster::new(seed);
        cluster.until_acked(50);
        let leader = cluster.leader().expect("a leader");
        let quorum = cluster.slots.lock().remove(&leader).expect("it is up");
        let stopped = Arc::new(Mutex::new(false));
        let tell = Arc::clone(&stopped);
        cluster.world.add_node("operator", Arc::new(SimDisk::new(1)));
        cluster.world.boot("operator", |_| async move {
            quorum.shutdown().await.expect("stops");
            *tell.lock() = true;
        });
        let before = cluster.acked();
        let took = cluster.until(2000, "another leader", |c| {
            c.acked() > before + 3 && c.leader().is_some_and(|node| node != leader)
        });
        assert!(took < 300, "{took} ms");
        cluster.until(5000, "the stop", |_| *stopped.lock());
        cluster.kill(leader);
        cluster.boot(leader);
        cluster.run(1000);
        cluster.settle(3);
    }
}

#[test]
fn a_member_whose_state_differs_is_told_apart() {
    let mut cluster = Cluster::new(91);
    cluster.until_acked(30);
    let quorum = cluster.slots.lock().values().next().cloned().expect("a member");
    let (index, hash) = quorum.position();
    quorum.compare(9, index, hash);
    assert_eq!(*quorum.diverged().borrow(), None);
    // Of an entry that is still to come: held against the state once it is there.
    for _ in 0..2000 {
        if quorum.diverged().borrow().is_some() {
            break;
        }
        quorum.compare(9, quorum.position().0 + 1, 1);
        cluster.world.step();
    }
    assert!(quorum.diverged().borrow().as_ref().is_some_and(|why| why.contains("node 9")));
    assert!(quorum.metrics().hash_mismatches.get() > 0);
}

/// Over TCP, on one machine: how long a killed leader's place stays empty.
#[test]
fn an_election_over_tcp() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let host = Host::real();
        let mut listeners = Vec::new();
        for _ in 0..3 {
            listeners
                .push(host.listen("127.0.0.1:0").await.expect("a port").local_addr().expect("its address"));
        }
        let voters: Vec<_> =
            listeners.iter().enumerate().map(|(node, addr)| (id(node), addr.to_string())).collect();
        let mut quorums = Vec::new();
        for node in 0..3 {
            let path = dir.path().join(NAMES[node]);
            let path = path.to_str().expect("a path");
            quorums.push(
                start(&host, node, &voters[node].1, voters.clone(), path, false).await.expect("starts"),
            );
        }
        let began = tokio::time::Instant::now();
        for quorum in &quorums {
            quorum.wait_ready(Duration::from_secs(20)).await.expect("ready");
        }
        println!("ready {:?} after the start", began.elapsed());
        let mut n = 0;
        for _ in 0..300 {
            n += 1;
            quorums[n as usize % 3].propose(register(n)).await.expect("an answer");
        }
        println!("{:?} for a command, one after another, at all three", began.elapsed() / 300);
        let leader = quorums.iter().position(Quorum::is_leader).expect("a leader");
        let dead = quorums.remove(leader);
        let network = dead.network().expect("a network");
        let killed = tokio::time::Instant::now();
        network.rpc.stop().await;
        drop(dead);
        let quorum = quorums[0].clone();
        loop {
            match quorum.propose(register(10_000)).await {
                Ok(_) => break,
                Err(_) => sleep(Duration::from_millis(5)).await,
            }
        }
        let took = killed.elapsed();
        println!("{took:?} from the leader's end to the next answer");
        assert!(took < Duration::from_secs(3), "{took:?}");
        for quorum in quorums {
            quorum.shutdown().await.expect("stops");
        }
    });
}
