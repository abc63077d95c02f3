//! A fourth node that is no member and follows the three.

use isobar_metadata::Image;

use super::*;
use crate::ObserverOptions;

const NODE: usize = 3;

/// What is seen of the observer.
#[derive(Default)]
struct Watched {
    quorum: Option<Quorum>,
    /// What its own followers make of its effects.
    image: Option<Image>,
    lagged: u64,
    barriers: u64,
    failed: u64,
}

type Seen = Arc<Mutex<Watched>>;

async fn observe(host: Host, told: Arc<Mutex<Told>>, slots: Slots, seen: Seen) {
    let mut rpc = RpcOptions::new(address(NODE), id(NODE) as i32, cluster().cluster_id, Secret::new([7; 32]));
    rpc.dead_after = Duration::from_secs(3);
    let Ok(rpc) = Rpc::start(&host, rpc).await else { return };
    let quorum = Quorum::observe(&host, ObserverOptions::new(id(NODE), cluster(), rpc, voters(3)));
    seen.lock().quorum = Some(quorum.clone());
    host.spawn("mirror", mirror(quorum.clone(), Arc::clone(&seen)));
    host.spawn("asker", ask(quorum.clone(), seen));
    live(&host, quorum, told, slots).await;
}

async fn mirror(quorum: Quorum, seen: Seen) {
    loop {
        let (image, mut effects) = quorum.subscribe();
        seen.lock().image = Some(image);
        loop {
            match effects.next().await {
                Ok(Some(batch)) => {
                    let mut seen = seen.lock();
                    let image = seen.image.as_mut().expect("subscribed");
                    image.apply(&batch).expect("effects fit");
                }
                Ok(None) => return,
                Err(_) => break,
            }
        }
        seen.lock().lagged += 1;
    }
}

/// Every barrier is kept: what it named is in the image by then.
async fn ask(quorum: Quorum, seen: Seen) {
    loop {
        let answer = quorum.barrier().await;
        match answer {
            Ok(index) => {
                assert!(quorum.subscribe().0.index() >= index && quorum.acknowledged() >= index);
                seen.lock().barriers += 1;
            }
            Err(_) => seen.lock().failed += 1,
        }
        sleep(Duration::from_millis(30)).await;
    }
}

struct Followed {
    cluster: Cluster,
    seen: Seen,
}

impl Followed {
    fn new(seed: u64) -> Self {
        let mut followed = Self { cluster: Cluster::new(seed), seen: Seen::default() };
        followed.boot();
        followed.until_it_is_told(5_000);
        followed
    }

    fn boot(&mut self) {
        *self.seen.lock() = Watched::default();
        let (told, slots) = (Arc::clone(&self.cluster.told), Arc::clone(&self.cluster.slots));
        let seen = Arc::clone(&self.seen);
        self.cluster.world.boot(NAMES[NODE], |host| observe(host, told, slots, seen));
    }

    /// Until a barrier that begins now is answered.
    fn until_it_is_told(&mut self, limit_ms: u64) -> u64 {
        let seen = Arc::clone(&self.seen);
        let wanted = seen.lock().barriers + 2;
        self.cluster.until(limit_ms, "the observer", |_| seen.lock().barriers >= wanted)
    }

    /// Nothing changes any more: it has what members have, and so have those who follow it.
    fn settle(&mut self) {
        self.cluster.settle(3);
        self.cluster.told.lock().quiet = true;
        let seen = Arc::clone(&self.seen);
        self.cluster.until(20_000, "the same place", |c| {
            let member = c.slots.lock().values().map(|quorum| quorum.position().0).max();
            let seen = seen.lock();
            let own = seen.quorum.as_ref().map(|quorum| quorum.position().0);
            member == own && member == seen.image.as_ref().map(Image::index)
        });
        let member = self.cluster.slots.lock().values().next().expect("a member").subscribe().0;
        let seen = self.seen.lock();
        let quorum = seen.quorum.as_ref().expect("an observer");
        assert!(quorum.subscribe().0 == member, "seed {}: another image", self.cluster.seed);
        assert!(seen.image.as_ref() == Some(&member), "seed {}: another image by effects", self.cluster.seed);
        assert_eq!(quorum.membership(), self.cluster.slots.lock()[&0].membership());
        drop(seen);
        self.cluster.told.lock().quiet = false;
    }
}

#[test]
fn an_observer_has_what_members_have_whoever_dies() {
    for seed in seeds(901, 2) {
        let mut followed = Followed::new(seed);
        for turn in 0..6 {
            followed.cluster.until_acked(20);
            let leader = followed.cluster.leader().expect("a leader");
            // The leader, or one of those whom the observer may follow.
            let dies = (leader + turn % 3) % 3;
            followed.cluster.kill(dies);
            let took = followed.until_it_is_told(5_000);
            assert!(took < 2_500, "seed {seed}: {took} ms without an answer");
            followed.cluster.boot(dies);
            followed.cluster.until(10_000, "its return", |c| c.slots.lock().len() == 3);
        }
        followed.cluster.world.crash(NAMES[NODE]);
        followed.cluster.until_acked(20);
        followed.boot();
        followed.until_it_is_told(5_000);
        assert!(followed.seen.lock().lagged <= 1, "only for the first state");
        followed.settle();
    }
}

#[test]
fn an_observer_that_was_cut_off_takes_the_whole_state_and_shows_nothing_stale_before() {
    for seed in seeds(921, 2) {
        let mut followed = Followed::new(seed);
        for member in &NAMES[..NODE] {
            followed.cluster.world.cut(NAMES[NODE], member);
        }
        let (barriers, lagged) = {
            let seen = followed.seen.lock();
            (seen.barriers, seen.lagged)
        };
        // More than a member keeps.
        followed.cluster.until_acked(600);
        assert!(followed.seen.lock().barriers <= barriers + 1, "seed {seed}: a barrier without a leader");
        for member in &NAMES[..NODE] {
            followed.cluster.world.heal(NAMES[NODE], member);
        }
        followed.until_it_is_told(10_000);
        assert!(followed.seen.lock().lagged > lagged, "seed {seed}: it fell behind nothing");
        followed.settle();
    }
}

#[test]
fn an_observer_leaves_a_member_that_is_cut_off_from_the_others() {
    for seed in seeds(941, 1) {
        let mut followed = Followed::new(seed);
        for alone in &NAMES[..NODE] {
            let others = NAMES[..NODE].iter().filter(|node| *node != alone);
            followed.cluster.until_acked(20);
            for node in others.clone() {
                followed.cluster.world.cut(alone, node);
            }
            // Two leaders' time, and the observer is told by the others all the while.
            for _ in 0..5 {
                let took = followed.until_it_is_told(5_000);
                assert!(took < 4_000, "seed {seed}: {took} ms without an answer");
            }
            for node in others {
                followed.cluster.world.heal(alone, node);
            }
            followed.cluster.run(3_000);
        }
        followed.settle();
    }
}

/// Releases before had every broker among the learners; an upgraded one comes back with nothing, under its old id.
#[test]
fn a_node_that_was_a_learner_observes_and_is_then_taken_out() {
    let mut cluster = Cluster::new(961);
    cluster.until_acked(20);
    cluster.boot(NODE);
    cluster.until(10_000, "the learner", |c| c.slots.lock().contains_key(&NODE));
    change(&mut cluster, "let in", NODE).expect("let in");
    cluster.kill(NODE);
    let mut followed = Followed { cluster, seen: Seen::default() };
    followed.boot();
    followed.until_it_is_told(5_000);
    let members = |followed: &Followed| {
        let seen = followed.seen.lock();
        seen.quorum.as_ref().map_or(0, |quorum| quorum.membership().len())
    };
    assert_eq!(members(&followed), 4);
    change(&mut followed.cluster, "remove", NODE).expect("taken out");
    followed.cluster.until_acked(20);
    followed.settle();
    assert_eq!(members(&followed), 3);
}
