//! The clients: producers, readers, group members, an observer and one who makes and deletes topics. They live on a machine
//! that does not die, and record what they saw when they saw it.

mod churner;
mod drain;
pub(crate) mod hand;
mod member;
mod observer;
mod reader;
mod sender;
mod switcher;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use isobar_client::{Client, ClientConfig, ClientError, Fetched, NewTopic, Producer, TopicPartition};
use isobar_host::Host;
use isobar_protocol::error::ErrorCode;
use isobar_testkit::Rng;
use isobar_testkit::history::{Op, Read};
use parking_lot::Mutex;
use tokio::time::sleep;

use crate::history::{Recorder, read_of};
use crate::plan::{Draw as _, Plan};

/// The group of all members.
const GROUP: &str = "sim-group";
/// The config that says a topic's durability class.
const DURABILITY: &str = "isobar.durability";

/// A read of everything, asked for by the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drain {
    No,
    /// `last`: the one that is judged.
    /// `from`: by this node of a cluster.
    Wanted {
        last: bool,
        from: Option<usize>,
    },
    Done,
}

/// What all clients of a run share.
pub(crate) struct Load {
    pub recorder: Recorder,
    pub plan: Plan,
    pub stop_sending: AtomicBool,
    pub stop: AtomicBool,
    /// Clients that send or make topics and have not ended: number and what they do.
    pub sending: Mutex<BTreeMap<u32, &'static str>>,
    /// The others.
    pub reading: Mutex<BTreeMap<u32, &'static str>>,
    pub drain: Mutex<Drain>,
    /// Where each partition ended for the first node that was asked in this round of reads.
    pub drained: Mutex<BTreeMap<TopicPartition, i64>>,
    /// Partitions of the history's topics that exist.
    partitions: Mutex<Vec<TopicPartition>>,
    /// What the hand is to do; `None` once it has.
    pub errand: Mutex<Option<hand::Errand>>,
    /// What it saw.
    pub survey: Mutex<hand::Survey>,
    /// Producer ids that were handed out.
    pub producers: Mutex<BTreeSet<i64>>,
    /// How often the clients' machine was started anew.
    pub turn: u32,
}

impl Load {
    pub(crate) fn new(plan: Plan, recorder: Recorder) -> Arc<Self> {
        Arc::new(Self::blank(plan, recorder, 0))
    }

    fn blank(plan: Plan, recorder: Recorder, turn: u32) -> Self {
        Self {
            recorder,
            plan,
            stop_sending: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sending: Mutex::default(),
            reading: Mutex::default(),
            drain: Mutex::new(Drain::No),
            drained: Mutex::default(),
            partitions: Mutex::default(),
            errand: Mutex::default(),
            survey: Mutex::default(),
            producers: Mutex::default(),
            turn,
        }
    }

    /// For new clients after these.
    pub(crate) fn again(&self) -> Arc<Self> {
        let next = Self::blank(self.plan.clone(), self.recorder.clone(), self.turn + 1);
        *next.partitions.lock() = self.partitions();
        *next.producers.lock() = self.producers.lock().clone();
        Arc::new(next)
    }

    /// The marks are part of every survey from now on.
    fn knows_marks(&self) {
        let partitions = &mut *self.partitions.lock();
        if !partitions.iter().any(|at| at.topic == hand::MARKS) {
            partitions.extend((0..3).map(|partition| TopicPartition::new(hand::MARKS, partition)));
        }
    }

    fn saw_producer(&self, producer: &Producer) {
        self.producers.lock().extend(producer.producer_id().map(|(id, _)| id));
    }

    pub(crate) fn partitions(&self) -> Vec<TopicPartition> {
        self.partitions.lock().clone()
    }

    fn sends(&self) -> bool {
        !self.stop_sending.load(Ordering::Relaxed)
    }

    fn reads(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// One client: its number in the history, its dice, its way to the broker.
struct Me {
    host: Host,
    load: Arc<Load>,
    number: u32,
    rng: Rng,
    /// The node of a cluster that serves it, as far as it can; `None`: now this one, now that.
    at: Option<usize>,
}

impl Me {
    fn new(host: &Host, load: &Arc<Load>, number: u32) -> Self {
        let rng = Rng::new(load.plan.seed.wrapping_mul(1_000_003) ^ u64::from(number));
        Self { host: host.clone(), load: Arc::clone(load), number, rng, at: None }
    }

    fn add(&self, op: Op) {
        self.load.recorder.add(self.number, op);
    }

    fn problem(&self, what: &str, error: &ClientError) {
        self.load.recorder.problem(format!("{what}: {error}"));
    }

    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.rng.between(1, most_ms))).await;
    }

    fn config(&mut self) -> ClientConfig {
        let (client_id, bootstrap) = match self.load.plan.cluster {
            None => (format!("sim-{}", self.number), Plan::broker(0)),
            Some(_) => self.way_in(),
        };
        ClientConfig {
            client_id,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(self.rng.pick(&[2, 5])),
            api_timeout: Duration::from_secs(8),
            ..ClientConfig::new(&bootstrap)
        }
    }

    /// Client id and addresses. Each node of a cluster is a zone, so the zone that a client says chooses who serves it; in one
    /// that does not exist the nodes share the partitions.
    fn way_in(&mut self) -> (String, String) {
        let nodes = self.load.plan.nodes();
        let zone = match self.at {
            None => self.rng.below(nodes as u64 + 1) as usize,
            Some(at) => at,
        };
        let first = self.rng.below(nodes as u64) as usize;
        let addresses: Vec<String> = (0..nodes).map(|at| Plan::broker((first + at) % nodes)).collect();
        (format!("sim-{},zone={}", self.number, Plan::zone(zone)), addresses.join(","))
    }

    /// A client, as soon as the broker can be reached. `None` when it is time to go.
    async fn connect(&mut self, go_on: impl Fn(&Load) -> bool) -> Option<Client> {
        while go_on(&self.load) {
            let config = self.config();
            match Client::connect(&self.host, config).await {
                Ok(client) => return Some(client),
                Err(error) if error.is_retriable() => self.pause(50).await,
                Err(error) => {
                    self.problem("connect", &error);
                    return None;
                }
            }
        }
        None
    }

    /// Records what a consumer was given; the next offset of each partition.
    fn polled(&self, fetched: &[Fetched], last: bool) -> BTreeMap<TopicPartition, i64> {
        let mut ends = BTreeMap::new();
        for of in fetched {
            let mut records: Vec<Read> = Vec::new();
            if let Err(error) = of.for_each(|record| records.push(read_of(record, of.at.partition))) {
                self.problem("a batch that cannot be read", &error);
            }
            if let Some(end) = records.last().map(|read| read.0 + 1) {
                ends.insert(of.at.clone(), end);
                let (topic, partition) = (of.at.topic.clone(), of.at.partition);
                self.add(Op::Poll { topic, partition, last, records });
            }
        }
        ends
    }
}

/// The main task of the clients' machine.
pub(crate) async fn run(host: Host, load: Arc<Load>) {
    let plan = &load.plan;
    let mut number = 0;
    let mut next = || {
        number += 1;
        Me::new(&host, &load, number)
    };
    let (maker, drainer) = (next(), next());
    let start =
        |clients: &Mutex<BTreeMap<u32, &'static str>>, me: &Me, what| clients.lock().insert(me.number, what);
    start(&load.sending, &maker, "makes topics");
    let _ = host.spawn("sim.topics", make_topics(maker));
    for sender in plan.senders.clone() {
        let me = next();
        start(&load.sending, &me, "sends");
        let _ = host.spawn("sim.sender", sender::run(me, sender));
    }
    if plan.churn {
        let me = next();
        start(&load.sending, &me, "churns");
        let _ = host.spawn("sim.churner", churner::run(me));
    }
    if let Some(every_ms) = plan.switch_every_ms {
        let me = next();
        start(&load.sending, &me, "switches classes");
        let _ = host.spawn("sim.switcher", switcher::run(me, every_ms));
    }
    for _ in 0..plan.readers {
        let me = next();
        start(&load.reading, &me, "reads");
        let _ = host.spawn("sim.reader", reader::run(me));
    }
    for _ in 0..plan.members {
        let me = next();
        start(&load.reading, &me, "is in the group");
        let _ = host.spawn("sim.member", member::run(me));
    }
    for at in 0..plan.nodes() {
        let mut me = next();
        me.at = Some(at);
        start(&load.reading, &me, "observes");
        let _ = host.spawn("sim.observer", observer::run(me));
    }
    drain::serve(drainer).await;
}

/// Makes the topics of the history, each at its time; asks again until it is there.
async fn make_topics(mut me: Me) {
    let load = Arc::clone(&me.load);
    let mut waited_ms = 0;
    for topic in &load.plan.topics {
        sleep(Duration::from_millis(topic.at_ms.saturating_sub(waited_ms))).await;
        waited_ms = waited_ms.max(topic.at_ms);
        // What is asked for once is asked until it is answered, also when sending has ended meanwhile.
        let Some(client) = me.connect(|_| true).await else { break };
        let class = if topic.object { "object" } else { "wal" };
        let wanted = NewTopic {
            configs: vec![(DURABILITY.to_owned(), class.to_owned())],
            ..NewTopic::new(&topic.name, topic.partitions)
        };
        loop {
            let made = client.create_topics(std::slice::from_ref(&wanted)).await;
            match made.and_then(|mut each| each.pop().unwrap_or(Ok(()))) {
                Ok(()) => break,
                Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => break,
                Err(error) if error.is_retriable() || error.is_ambiguous() => me.pause(100).await,
                Err(error) => return me.problem("create a topic", &error),
            }
        }
        let of = (0..topic.partitions).map(|partition| TopicPartition::new(&topic.name, partition));
        load.partitions.lock().extend(of);
    }
    load.sending.lock().remove(&me.number);
}
