//! Seeds: connections that are cut, held, or flip bits, and a peer that is killed, under calls and streams.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::World;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep};

use super::rig::{Event, Notes, Noting, options, parts_of, world};
use crate::{CallError, Caller, Channel, Method, Reply, Rpc, Service, ServiceId};

const CHAOS: Method = Method::new(ServiceId(100), 1);
const CHANNELS: [Channel; 3] = [Channel::Raft, Channel::Wal, Channel::Bulk];

/// What goes wrong between the nodes.
#[derive(Default)]
struct Faults {
    held: bool,
    /// One of so many pieces has a bit flipped; 0: none.
    flips: u64,
    /// Raised: all connections of now are closed.
    cut: u64,
}

/// Node `net`: passes on what comes to port 8002 to port 7002, and back.
async fn net(host: Host, faults: Arc<Mutex<Faults>>) {
    let listener = host.listen("127.0.0.1:8002").await.unwrap();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = host.connect("127.0.0.1:7002").await else { continue };
        let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
        for (mut read, mut write) in [(near_read, far_write), (far_read, near_write)] {
            let (inside, faults) = (host.clone(), Arc::clone(&faults));
            let cut = faults.lock().cut;
            host.spawn("pump", async move {
                let mut piece = vec![0; 8 << 10];
                loop {
                    let n = tokio::select! {
                        biased;
                        n = read.read(&mut piece) => n,
                        () = sleep(Duration::from_millis(20)) => {
                            if faults.lock().cut != cut { return }
                            continue;
                        }
                    };
                    let Ok(n @ 1..) = n else { return };
                    let is_held = || {
                        let faults = faults.lock();
                        faults.held && faults.cut == cut
                    };
                    while is_held() {
                        sleep(Duration::from_millis(5)).await;
                    }
                    let Faults { cut: now, flips, .. } = *faults.lock();
                    if now != cut {
                        return;
                    }
                    if flips > 0 && inside.random_u64().is_multiple_of(flips) {
                        piece[inside.random_u64() as usize % n] ^= 1 << (inside.random_u64() % 8);
                    }
                    if write.write_all(&piece[..n]).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

/// Answers, at once or later; drops; or keeps.
struct Chaotic {
    host: Host,
    noting: Noting,
}

fn number_of(body: &[u8]) -> u64 {
    u64::from_le_bytes(body[..8].try_into().unwrap())
}

impl Service for Chaotic {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        let number = body.slice(..8);
        self.noting.notes.events.lock().push(Event::Request(from, method, number.clone()));
        match self.host.random_u64() % 10 {
            0 => drop(reply),
            1 => self.noting.notes.kept.lock().push(reply),
            2 | 3 => {
                let wait = Duration::from_millis(self.host.random_u64() % 500);
                self.host.spawn("later", async move {
                    sleep(wait).await;
                    reply.send(Ok(vec![number]));
                });
            }
            _ => reply.send(Ok(vec![number])),
        }
    }

    fn connection_closed(&self, from: Caller) {
        self.noting.connection_closed(from);
    }
}

type Answers = BTreeMap<u64, Vec<(Channel, Instant, Result<Bytes, CallError>)>>;

#[derive(Default)]
struct Asked {
    made: Mutex<u64>,
    answers: Mutex<Answers>,
    streams: Mutex<[u32; 2]>,
    last: Mutex<bool>,
    inbound: Mutex<BTreeSet<(i32, Channel)>>,
}

async fn ask(host: Host, asked: Arc<Asked>) {
    let rpc = Rpc::start(&host, options(1)).await.unwrap();
    let peer = rpc.peer(2, "127.0.0.1:8002");
    for channel in CHANNELS {
        let (host, peer, asked) = (host.clone(), peer.clone(), Arc::clone(&asked));
        let inside = host.clone();
        host.spawn("asks", async move {
            while !*asked.last.lock() {
                sleep(Duration::from_millis(inside.random_u64() % 30)).await;
                for _ in 0..inside.random_u64() % 4 {
                    let number = {
                        let mut made = asked.made.lock();
                        *made += 1;
                        *made
                    };
                    let large = inside.random_u64().is_multiple_of(20);
                    let padding = Bytes::from(vec![5; if large { 200_000 } else { 20 }]);
                    let body = vec![Bytes::from(number.to_le_bytes().to_vec()), padding];
                    let wait = Duration::from_millis(inside.random_u64() % 3_000);
                    let told = Arc::clone(&asked);
                    peer.call_with(channel, CHAOS, body, Instant::now() + wait, move |result| {
                        told.answers.lock().entry(number).or_default().push((
                            channel,
                            Instant::now(),
                            result,
                        ));
                    });
                }
            }
        });
    }
    let (streams, from) = (Arc::clone(&asked), peer.clone());
    host.spawn("streams", async move {
        loop {
            sleep(Duration::from_millis(20)).await;
            let parts = Method::new(ServiceId::WAL, 5);
            let Ok(mut stream) = from.stream(Channel::Bulk, parts, parts_of(30, 50_000)).await else {
                continue;
            };
            let mut count = 0_u32;
            let whole = loop {
                match stream.next().await {
                    Ok(Some(part)) => {
                        assert!(part.len() == 50_000 && part.iter().all(|byte| *byte == count as u8))
                    }
                    Ok(None) => break true,
                    Err(_) => break false,
                }
                count += 1;
            };
            assert!(count == 30 || !whole, "a stream that broke off looked whole");
            streams.streams.lock()[usize::from(whole)] += 1;
        }
    });
    while !*asked.last.lock() {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(Duration::from_secs(4)).await;
    rpc.stop().await;
}

fn boot_two(world: &mut World, lives: &mut Vec<Arc<Notes>>, asked: &Arc<Asked>) {
    let notes = Arc::new(Notes::default());
    lives.push(Arc::clone(&notes));
    let asked = Arc::clone(asked);
    world.boot("two", move |host| async move {
        let rpc = Rpc::start(&host, options(2)).await.unwrap();
        let noting = |notes: &Arc<Notes>| Noting { host: host.clone(), notes: Arc::clone(notes) };
        rpc.register(CHAOS.service, Arc::new(Chaotic { host: host.clone(), noting: noting(&notes) }));
        rpc.register(ServiceId::WAL, Arc::new(noting(&Arc::new(Notes::default()))));
        let mut inbound = rpc.inbound();
        loop {
            *asked.inbound.lock() = inbound.borrow_and_update().clone();
            inbound.changed().await.unwrap();
        }
    });
}

/// (trace, calls by how they ended, streams that broke off and that came whole)
fn live(seed: u64) -> ((u64, u64), BTreeMap<&'static str, u64>, [u32; 2]) {
    let mut world = world(seed, &["one", "two", "net"]);
    let (faults, asked) = (Arc::new(Mutex::new(Faults::default())), Arc::new(Asked::default()));
    let mut lives = Vec::new();
    boot_two(&mut world, &mut lives, &asked);
    let between = Arc::clone(&faults);
    world.boot("net", move |host| net(host, between));
    let asks = Arc::clone(&asked);
    world.boot("one", move |host| ask(host, asks));
    let steps = |world: &mut World, lives: &mut Vec<Arc<Notes>>, count: u64| {
        for _ in 0..count {
            world.step();
            if !world.is_up("two") && world.below(300) == 0 {
                boot_two(world, lives, &asked);
            }
        }
    };
    for _ in 0..12 {
        let long = 50 + world.below(2_000);
        match world.below(5) {
            0 => faults.lock().cut += 1,
            1 => {
                faults.lock().held = true;
                let more = long * world.below(5);
                steps(&mut world, &mut lives, more);
            }
            2 => faults.lock().flips = 1 + world.below(200),
            3 => world.kill("two"),
            _ => {}
        }
        steps(&mut world, &mut lives, long);
        {
            let mut faults = faults.lock();
            (faults.held, faults.flips) = (false, 0);
        }
        steps(&mut world, &mut lives, 200);
    }
    // Healed: within the silence that is allowed and a retry, all is well again.
    steps(&mut world, &mut lives, 9_000);
    let well = *asked.made.lock();
    steps(&mut world, &mut lives, 1_000);
    assert_eq!(*asked.inbound.lock(), CHANNELS.map(|channel| (1, channel)).into());
    *asked.last.lock() = true;
    steps(&mut world, &mut lives, 6_000);
    assert!(asked.inbound.lock().is_empty());
    let ended = judge(&asked, &lives, well);
    let streams = *asked.streams.lock();
    (world.trace(), ended, streams)
}

/// Holds what the caller was told against what the peer's lives have seen.
fn judge(asked: &Asked, lives: &[Arc<Notes>], well: u64) -> BTreeMap<&'static str, u64> {
    let answers = asked.answers.lock();
    let made = *asked.made.lock();
    assert_eq!(answers.len() as u64, made, "every call is answered");
    let mut seen: BTreeMap<u64, Channel> = BTreeMap::new();
    let mut last: BTreeMap<Channel, u64> = BTreeMap::new();
    for (life, notes) in lives.iter().enumerate() {
        let mut closed = BTreeSet::new();
        let mut open = BTreeSet::new();
        for event in &*notes.events.lock() {
            match event {
                Event::Request(from, _, body) => {
                    let number = number_of(body);
                    assert_eq!(from.node_id, 1);
                    assert!(!closed.contains(from), "a request after its connection was closed");
                    assert!(seen.insert(number, from.channel).is_none(), "{number} came twice");
                    let before = last.insert(from.channel, number);
                    assert!(before.is_none_or(|before| before < number), "{number} came after {before:?}");
                    open.insert(*from);
                }
                Event::Closed(from) => {
                    assert!(closed.insert(*from), "told twice that {from:?} was closed");
                    open.remove(from);
                }
            }
        }
        assert!(life + 1 < lives.len() || open.is_empty(), "not told that {open:?} were closed");
    }
    let mut ended: BTreeMap<&'static str, u64> = BTreeMap::new();
    for (number, told) in &*answers {
        assert_eq!(told.len(), 1, "{number} was answered {told:?}");
        let (channel, _, result) = &told[0];
        let reached = seen.get(number);
        assert!(reached.is_none_or(|reached| reached == channel));
        let kind = match result {
            Ok(body) => {
                assert_eq!(number_of(body), *number);
                "ok"
            }
            Err(CallError::NotSent(why)) => {
                assert!(reached.is_none(), "{number} was said to be not sent and was seen");
                assert!(*number <= well || why.contains("deadline"), "{number} after all was well: {why}");
                "not sent"
            }
            Err(CallError::Lost(why)) => {
                assert!(*number <= well, "{number} after all was well: {why}");
                "lost"
            }
            Err(CallError::TimedOut) => "timed out",
            Err(CallError::Refused { .. }) => "refused",
            Err(CallError::Stopped) => "stopped",
        };
        assert!(!matches!(kind, "ok" | "refused") || reached.is_some(), "an answer to what was not seen");
        *ended.entry(kind).or_default() += 1;
    }
    ended
}

#[test]
fn calls_keep_their_promises_whatever_happens() {
    let mut all: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut streams = [0, 0];
    for seed in 0..5 {
        let (_, ended, parts) = live(seed);
        for (kind, count) in ended {
            *all.entry(kind).or_default() += count;
        }
        streams = [streams[0] + parts[0], streams[1] + parts[1]];
    }
    println!("{all:?}, streams broken and whole {streams:?}");
    for kind in ["ok", "not sent", "lost", "timed out", "refused"] {
        assert!(all.get(kind).is_some_and(|count| *count > 20), "hardly any call was {kind}: {all:?}");
    }
    assert!(streams[0] > 10 && streams[1] > 100, "{streams:?}");
}

#[test]
fn a_seed_gives_one_run() {
    assert_eq!(live(1_000), live(1_000));
}
