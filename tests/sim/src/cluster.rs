//! Three nodes: what is done to them and the network between them, what they were seen to do, and when they agree.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use isobar_host::sim::Link;
use isobar_metadata::record::StreamRecord;
use isobar_metadata::{LaneId, SessionId, StreamId};
use isobar_testkit::bucket::FaultPlan;

use crate::machine::Armed;
use crate::node::Place;
use crate::plan::Draw as _;
use crate::plan::cluster::ClusterPlan;
use crate::run::{CLIENTS, Driver};

/// Between two looks at what the nodes know.
const LOOK_TICKS: u64 = 50;

/// A fault that lasts.
pub(crate) struct Effect {
    /// In ticks.
    pub until: u64,
    what: What,
}

enum What {
    /// From one machine to another.
    Link(usize, usize, Link),
    Paused(usize),
    BucketAway(usize),
    Clock(usize),
}

/// What was seen of the nodes, whichever said it.
#[derive(Default)]
pub(crate) struct Seen {
    /// Terms in which somebody led.
    terms: BTreeSet<u64>,
    fenced: BTreeSet<SessionId>,
    streams: BTreeMap<StreamId, (SessionId, LaneId)>,
    pub(crate) lives_over: u64,
    pub(crate) zone_blocks: u64,
    /// Links that are not as usual.
    links: BTreeMap<(usize, usize), Link>,
}

impl Driver {
    // ---- what happens ----

    /// Something of the plan's kinds happens.
    pub(crate) fn inject_into(&mut self, cluster: &ClusterPlan) {
        let kind = self.rng.pick(&cluster.faults);
        let at = if kind.starts_with("leader-") { self.leader() } else { Some(self.any_node()) };
        let Some(at) = at else { return };
        match kind {
            "kill" | "power-cut" => _ = self.strike(at, kind),
            "crash" if self.is_on(at) && matches!(self.nodes[at].armed, Armed::No) => self.arm(at),
            "stop" => self.stop(at),
            "vanish" => self.vanish(at),
            "leader-dies" => self.die_together(&[at], kind),
            "two-die" => self.die_together(&[at, (at + 1) % self.nodes.len()], kind),
            "all-die" => {
                let all: Vec<usize> = (0..self.nodes.len()).collect();
                self.die_together(&all, kind);
            }
            "pause" | "leader-pauses" => self.pause(at, kind),
            "disk" => self.disk_fault(at),
            "clock" => self.shift_clock(at),
            "reset" => self.reset(at),
            "bucket" => self.bucket_fault(),
            "bucket-slow" => self.slow_bucket(),
            "bucket-away" => {
                let until = self.lasts();
                self.nodes[at].reach.away.store(true, Ordering::Relaxed);
                self.begin(kind, until, vec![What::BucketAway(at)]);
            }
            _ => self.network_fault(kind, at),
        }
    }

    fn network_fault(&mut self, kind: &str, at: usize) {
        let cut = Link { cut: true, ..Link::default() };
        let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != at).collect();
        let both = |to: &[usize], link: Link| -> Vec<What> {
            let pairs = to.iter().flat_map(|to| [(at, *to), (*to, at)]);
            pairs.map(|(from, to)| What::Link(from, to, link)).collect()
        };
        let effects = match kind {
            "cut-off" | "leader-cut-off" => {
                let with_clients = self.rng.percent(50);
                let clients = with_clients.then_some(self.outside());
                both(&others.into_iter().chain(clients).collect::<Vec<_>>(), cut)
            }
            "cut-from-clients" => both(&[self.outside()], cut),
            "cut-pair" => both(&[self.rng.pick(&others)], cut),
            "cut-one-way" => {
                let (outwards, to_all) = (self.rng.percent(50), self.rng.percent(50));
                let to = if to_all { others } else { vec![self.rng.pick(&others)] };
                let way = |to: usize| if outwards { (at, to) } else { (to, at) };
                to.into_iter().map(way).map(|(from, to)| What::Link(from, to, cut)).collect()
            }
            "slow-links" => {
                let delay = Duration::from_millis(self.rng.pick(&[20, 100, 400]));
                both(&[others.as_slice(), &[self.outside()]].concat(), Link { delay, ..Link::default() })
            }
            "lossy-links" => {
                let lost_ppm = self.rng.pick(&[10_000, 100_000, 300_000]);
                both(&[others.as_slice(), &[self.outside()]].concat(), Link { lost_ppm, ..Link::default() })
            }
            _ => return,
        };
        let until = self.lasts();
        self.begin(kind, until, effects);
    }

    fn any_node(&mut self) -> usize {
        self.rng.below(self.nodes.len() as u64) as usize
    }

    fn is_on(&self, at: usize) -> bool {
        self.world.is_up(self.nodes[at].name)
    }

    /// Who leads the metadata quorum, in the newest term.
    fn leader(&self) -> Option<usize> {
        let place = |at: &usize| self.nodes[*at].life.lock().place.filter(|place| place.leads);
        let leading = (0..self.nodes.len()).filter(|at| self.is_on(*at));
        let leading = leading.filter_map(|at| Some((place(&at)?.term, at)));
        leading.max().map(|(_, at)| at)
    }

    /// When what begins now ends: soon, or after the session timeout.
    fn lasts(&mut self) -> u64 {
        let most = self.rng.pick(&[300, 3_000, 15_000]);
        self.tick + self.rng.between(20, most)
    }

    fn strike(&mut self, at: usize, kind: &str) -> bool {
        let is_on = self.is_on(at);
        if is_on {
            self.end(at, kind);
        }
        is_on
    }

    fn die_together(&mut self, who: &[usize], kind: &str) {
        let how = self.rng.pick(&["kill", "power-cut"]);
        let mut died = 0;
        for at in who {
            died += usize::from(self.strike(*at, how));
        }
        if died == who.len() {
            self.fault(kind, None);
        }
    }

    /// A machine loses power and nobody hears of it before it is on again.
    fn vanish(&mut self, at: usize) {
        if !self.is_on(at) {
            return;
        }
        let until = self.lasts();
        let cut = Link { cut: true, ..Link::default() };
        let others = (0..=self.outside()).filter(|other| *other != at);
        let links = others.flat_map(|other| [What::Link(at, other, cut), What::Link(other, at, cut)]);
        self.begin("vanish", until, links.collect());
        self.end(at, "power-cut");
        self.nodes[at].boot_at = until;
    }

    fn pause(&mut self, at: usize, kind: &str) {
        if self.is_on(at) {
            let until = self.lasts();
            self.world.pause(self.nodes[at].name);
            self.begin(kind, until, vec![What::Paused(at)]);
        }
    }

    fn shift_clock(&mut self, at: usize) {
        let ms = self.rng.pick(&[-3_600_000, -60_000, -2_000, -50, 50, 2_000, 60_000, 3_600_000]);
        let until = self.lasts();
        self.world.shift_clock(self.nodes[at].name, ms);
        self.begin("clock", until, vec![What::Clock(at)]);
    }

    /// All connections between two machines are lost.
    fn reset(&mut self, at: usize) {
        let others: Vec<usize> = (0..=self.outside()).filter(|other| *other != at).collect();
        let other = self.rng.pick(&others);
        self.world.reset(self.nodes[at].name, self.machine_name(other));
        self.fault("reset", None);
    }

    fn slow_bucket(&mut self) {
        let max_delay = Duration::from_millis(self.rng.pick(&[200, 2_000, 10_000]));
        self.bucket.set_plan(FaultPlan { delay_ppm: 900_000, max_delay, ..FaultPlan::NONE });
        self.fault("bucket-slow", None);
        self.bucket_faults_until = self.lasts();
    }

    /// The clients' machine among the nodes, where a link is named by numbers.
    fn outside(&self) -> usize {
        self.nodes.len()
    }

    fn machine_name(&self, at: usize) -> &'static str {
        self.nodes.get(at).map_or(CLIENTS, |node| node.name)
    }

    fn begin(&mut self, kind: &str, until: u64, what: Vec<What>) {
        self.fault(kind, None);
        self.effects.extend(what.into_iter().map(|what| Effect { until, what }));
        self.set_links();
    }

    /// Ends the effects whose time is over.
    pub(crate) fn end_effects(&mut self) {
        let tick = self.tick;
        let ended: Vec<Effect> = self.effects.extract_if(.., |effect| effect.until <= tick).collect();
        if ended.is_empty() {
            return;
        }
        for effect in ended {
            match effect.what {
                What::Link(..) => {}
                What::Paused(at) => self.world.resume(self.nodes[at].name),
                What::BucketAway(at) => self.nodes[at].reach.away.store(false, Ordering::Relaxed),
                What::Clock(at) => self.world.shift_clock(self.nodes[at].name, 0),
            }
        }
        self.set_links();
    }

    /// Makes the network what the effects that are on say together.
    fn set_links(&mut self) {
        let mut wanted: BTreeMap<(usize, usize), Link> = BTreeMap::new();
        for effect in &self.effects {
            if let What::Link(from, to, link) = &effect.what {
                let merged = wanted.entry((*from, *to)).or_default();
                merged.cut |= link.cut;
                merged.delay = merged.delay.max(link.delay);
                merged.lost_ppm = merged.lost_ppm.max(link.lost_ppm);
            }
        }
        let before = std::mem::take(&mut self.seen.links);
        let pairs: BTreeSet<&(usize, usize)> = wanted.keys().chain(before.keys()).collect();
        for pair in pairs {
            let link = wanted.get(pair).copied().unwrap_or_default();
            if before.get(pair).copied().unwrap_or_default() != link {
                self.world.set_link(self.machine_name(pair.0), self.machine_name(pair.1), link);
            }
        }
        self.seen.links = wanted;
    }

    /// Whether a node of a cluster may fail to start because it depends on others.
    pub(crate) fn others_are_ill(&self) -> bool {
        self.plan.cluster.is_some() && !self.healing
    }

    // ---- what was seen ----

    /// Takes what the nodes know, now and then.
    pub(crate) fn observe(&mut self) {
        if !self.tick.is_multiple_of(LOOK_TICKS) {
            return;
        }
        for node in &self.nodes {
            let (place, image) = {
                let mut life = node.life.lock();
                (life.place, life.image.take())
            };
            self.seen.terms.extend(place.filter(|place| place.leads).map(|place| place.term));
            let Some(image) = image else { continue };
            let fenced = image.sessions().filter(|session| session.is_fenced());
            self.seen.fenced.extend(fenced.map(|session| session.session));
            let of = |record: &StreamRecord| (record.stream, (record.session, record.lane));
            self.seen.streams.extend(image.streams().map(|stream| of(&stream.record)));
        }
    }

    /// Into the counters.
    pub(crate) fn tell_seen(&mut self) {
        if self.plan.cluster.is_none() {
            return;
        }
        let lanes: BTreeSet<_> = self.seen.streams.values().collect();
        let again = self.passed.get("produce.again").copied().unwrap_or(0);
        let counts = [
            ("leader changes", (self.seen.terms.len() as u64).saturating_sub(1)),
            ("sessions fenced", self.seen.fenced.len() as u64),
            ("streams opened", self.seen.streams.len() as u64),
            ("streams rolled", (self.seen.streams.len() - lanes.len()) as u64),
            ("chunks appended again", again),
            ("lives over", self.seen.lives_over),
            ("blocks from the zone", self.seen.zone_blocks),
        ];
        for (name, count) in counts {
            *self.counters.cluster.entry(name.to_owned()).or_default() += count;
        }
    }

    /// Uploads stop, or may go on: what is sent lies in the WAL.
    pub(crate) fn set_read_only(&self, read_only: bool) {
        self.nodes.iter().for_each(|node| node.reach.read_only.store(read_only, Ordering::Relaxed));
    }

    /// One node goes and stays away; which.
    pub(crate) fn one_goes(&mut self) -> usize {
        let at = self.any_node();
        self.strike(at, "power-cut");
        self.nodes[at].boot_at = u64::MAX;
        at
    }

    /// Waits until all nodes of a cluster are up, know the same leader and of each other, and stand at the same place.
    pub(crate) fn agree(&mut self) {
        if self.plan.cluster.is_none() {
            return;
        }
        self.wait("all nodes to agree", Self::is_agreed);
    }

    fn is_agreed(&self) -> bool {
        let place = |at: usize| -> Option<Place> {
            let node = &self.nodes[at];
            (self.world.is_up(node.name) && node.is_up()).then(|| node.life.lock().place)?
        };
        let places: Vec<Place> = (0..self.nodes.len()).filter_map(place).collect();
        let Some(first) = places.first().filter(|_| places.len() == self.nodes.len()) else { return false };
        let same = |place: &Place| (place.index, place.term) == (first.index, first.term);
        let of_members = places.iter().filter_map(|place| Some((place.index, place.hash?)));
        let of_members: BTreeSet<(u64, u64)> = of_members.collect();
        let indexes: BTreeSet<u64> = of_members.iter().map(|(index, _)| *index).collect();
        if indexes.len() < of_members.len() {
            self.recorder.problem("members of the metadata quorum have different states at the same index");
        }
        let leaders = places.iter().filter(|place| place.leads).count();
        let all_live = places.iter().all(|place| place.brokers_live == self.nodes.len());
        places.iter().all(same) && leaders == 1 && all_live
    }
}
