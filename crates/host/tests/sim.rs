//! The simulated machine: the same seed lives the same life, and the dead leave no trace.

#![allow(clippy::unwrap_used, reason = "a test's helpers")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
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
        tokio::time::sleep(std::time::Duration::from_millis(host.random_u64() % 20)).await;
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
