//! The simulated machine: the same seed lives the same life, and the dead leave no trace.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use isobar_host::Host;
use isobar_host::sim::{Link, SimDisk, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn echo(host: Host) {
    let listener = host.listen("127.0.0.1:9").await.unwrap();
    while let Ok((conn, _)) = listener.accept().await {
        let (mut read, mut write) = conn.into_split();
        host.spawn("echo", async move {
            let mut buf = [0; 64];
            while let Ok(n @ 1..) = read.read(&mut buf).await {
                if write.write_all(&buf[..n]).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn ping(host: Host, answered: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(Duration::from_millis(host.random_u64() % 20)).await;
        let Ok(mut conn) = host.connect("127.0.0.1:9").await else { continue };
        for _ in 0..5 {
            let sent = host.random_u64().to_be_bytes();
            if conn.write_all(&sent).await.is_err() {
                break;
            }
            let mut back = [0; 8];
            match conn.read_exact(&mut back).await {
                Ok(_) => {
                    assert_eq!(back, sent);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Err(_) => break,
            }
        }
    }
}

/// (trace, pings answered)
fn live(seed: u64) -> ((u64, u64), u64) {
    let mut world = World::new(seed);
    let answered = Arc::new(AtomicU64::new(0));
    world.add_node("server", Arc::new(SimDisk::new(seed)));
    world.add_node("client", Arc::new(SimDisk::new(seed + 1)));
    world.boot("server", echo);
    let counter = Arc::clone(&answered);
    world.boot("client", move |host| ping(host, counter));
    for tick in 0..2_000 {
        if tick % 300 == 299 {
            world.arm("server", 1 + world.below(20));
        }
        for name in world.step() {
            assert_eq!(name, "server");
            world.boot("server", echo);
        }
    }
    (world.trace(), answered.load(Ordering::Relaxed))
}

#[test]
fn a_seed_gives_one_trace_and_another_seed_another() {
    let (trace, answered) = live(7);
    assert_eq!((trace, answered), live(7));
    assert_ne!(trace, live(8).0);
    assert!(answered > 100, "only {answered} pings were answered");
}

#[test]
fn a_dead_node_writes_nothing() {
    let mut world = World::new(1);
    let disk = Arc::new(SimDisk::new(1));
    world.add_node("node", Arc::clone(&disk));
    world.boot("node", |host| async move {
        let disk = host.disk();
        disk.create_dir_all(Path::new("d")).unwrap();
        disk.write_durable(Path::new("d/before"), b"kept").unwrap();
        host.crash_point("here");
        assert!(disk.write_durable(Path::new("d/after"), b"never").is_err());
        assert!(host.connect("127.0.0.1:9").await.is_err());
    });
    world.arm_point("node", "here");
    assert_eq!(world.step(), ["node"]);
    assert_eq!(world.points_passed("node")["here"], 1);
    world.boot("node", |host| async move {
        assert_eq!(host.read_file(Path::new("d/before")).unwrap(), b"kept");
        assert!(host.read_file(Path::new("d/after")).is_err());
        host.crash_point("seen");
    });
    world.step();
    assert_eq!(world.points_passed("node")["seen"], 1);
}

/// Two nodes, `a` that asks all the time and `b` that answers, and how many answers there were.
fn asking(seed: u64) -> (World, Arc<AtomicU64>) {
    let mut world = World::new(seed);
    let answered = Arc::new(AtomicU64::new(0));
    for name in ["a", "b"] {
        world.add_node(name, Arc::new(SimDisk::new(seed)));
    }
    world.boot("b", echo);
    let counter = Arc::clone(&answered);
    world.boot("a", move |host| ping(host, counter));
    (world, answered)
}

fn answers_in(world: &mut World, answered: &AtomicU64, ms: u64) -> u64 {
    let before = answered.load(Ordering::Relaxed);
    for _ in 0..ms {
        world.step();
    }
    answered.load(Ordering::Relaxed) - before
}

#[test]
fn a_cut_in_either_direction_stops_the_answers_and_heals() {
    for (from, to) in [("a", "b"), ("b", "a")] {
        let (mut world, answered) = asking(3);
        assert!(answers_in(&mut world, &answered, 500) > 20);
        world.set_link(from, to, Link { cut: true, ..Link::default() });
        answers_in(&mut world, &answered, 20);
        assert_eq!(answers_in(&mut world, &answered, 500), 0);
        world.set_link(from, to, Link::default());
        assert!(answers_in(&mut world, &answered, 5_000) > 20, "a new connection is asked for after seconds");
    }
}

#[test]
fn a_slow_or_lossy_link_answers_all_the_same() {
    for link in [
        Link { delay: Duration::from_millis(40), ..Link::default() },
        Link { lost_ppm: 100_000, ..Link::default() },
    ] {
        let (mut world, answered) = asking(4);
        let usual = answers_in(&mut world, &answered, 2_000);
        world.set_link("a", "b", link);
        let slow = answers_in(&mut world, &answered, 2_000);
        assert!(slow > 10 && slow * 2 < usual, "{slow} of {usual} with {link:?}");
    }
}

/// Who dies behind a cut is silent; whoever waits hears of it when the cut is over.
#[test]
fn nobody_hears_of_a_death_behind_a_cut() {
    let mut world = World::new(5);
    for name in ["a", "b"] {
        world.add_node(name, Arc::new(SimDisk::new(5)));
    }
    world.boot("b", echo);
    let heard = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&heard);
    world.boot("a", move |host| async move {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let (mut read, _write) = host.connect("127.0.0.1:9").await.unwrap().into_split();
        assert!(read.read(&mut [0; 8]).await.is_err());
        tell.fetch_add(1, Ordering::Relaxed);
    });
    answers_in(&mut world, &heard, 50);
    world.cut("a", "b");
    world.crash("b");
    assert_eq!(answers_in(&mut world, &heard, 5_000), 0);
    world.heal("a", "b");
    assert_eq!(answers_in(&mut world, &heard, 50), 1);
}

#[test]
fn a_paused_node_stands_still_and_its_clocks_jump() {
    let (mut world, answered) = asking(6);
    let clock = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&clock);
    world.add_node("clock", Arc::new(SimDisk::new(6)));
    world.boot("clock", move |host| async move {
        loop {
            tell.store(host.now_ms() as u64, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    assert!(answers_in(&mut world, &answered, 500) > 20);
    let before = clock.load(Ordering::Relaxed);
    world.pause("b");
    world.pause("clock");
    answers_in(&mut world, &answered, 20);
    assert_eq!(answers_in(&mut world, &answered, 500), 0);
    assert_eq!(clock.load(Ordering::Relaxed), before);
    world.resume("b");
    world.resume("clock");
    assert!(answers_in(&mut world, &answered, 500) > 20);
    assert!(clock.load(Ordering::Relaxed) >= before + 1_015);
    world.shift_clock("clock", -500);
    answers_in(&mut world, &answered, 2);
    assert!(clock.load(Ordering::Relaxed) < before + 1_015);
}
