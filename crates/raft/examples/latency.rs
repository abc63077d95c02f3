//! Measures `propose` on a fresh one-voter group: `cargo run --profile ci -p isobar-raft --example latency [DIR]`.
//! Prints the start's time, p50/p99 of a command by how many are in flight, commands/s, and barriers.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a measurement for a terminal")]

use std::path::PathBuf;
use std::time::Duration;

use isobar_host::Host;
use isobar_metadata::command::ExpireObjects;
use isobar_metadata::{ClusterFormat, Command, Envelope};
use isobar_raft::{Quorum, QuorumOptions};
use tokio::time::Instant;

fn command() -> Envelope {
    // Changes nothing in an empty cluster, so that applying costs next to nothing.
    Envelope::unnumbered(Command::ExpireObjects(ExpireObjects { limit: 1 }))
}

async fn in_flight(quorum: &Quorum, callers: usize, per_caller: usize) {
    let started = Instant::now();
    let tasks = (0..callers).map(|_| {
        let quorum = quorum.clone();
        async move {
            let mut times = Vec::with_capacity(per_caller);
            for _ in 0..per_caller {
                let asked = Instant::now();
                quorum.propose(command()).await.expect("an answer");
                times.push(asked.elapsed());
            }
            times
        }
    });
    let mut times: Vec<Duration> =
        futures_util::future::join_all(tasks).await.into_iter().flatten().collect();
    let took = started.elapsed();
    times.sort_unstable();
    let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
    println!(
        "{callers:>4} in flight: p50 {:>9.1?}  p99 {:>9.1?}  p99.9 {:>9.1?}  {:>9.0} commands/s",
        at(0.5),
        at(0.99),
        at(0.999),
        times.len() as f64 / took.as_secs_f64()
    );
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let temporary = tempfile::tempdir_in(".").expect("a temporary directory");
    let dir = std::env::args().nth(1).map_or_else(|| temporary.path().join("meta"), PathBuf::from);
    let host = Host::real();
    let format = Some(ClusterFormat::dev("AAAAAAAAAAAAAAAAAAAAAA".to_owned(), "store".to_owned()));
    let options = QuorumOptions { format, ..QuorumOptions::new(&dir, 1) };
    let started = Instant::now();
    let quorum = Quorum::start(&host, options.clone()).await.expect("starts");
    println!("formatted and leading after {:.1?}", started.elapsed());
    in_flight(&quorum, 1, 500).await;
    for (callers, per_caller) in [(1, 4000), (8, 3000), (64, 1000), (1000, 100)] {
        in_flight(&quorum, callers, per_caller).await;
    }
    let mut times = Vec::new();
    for _ in 0..2000 {
        let asked = Instant::now();
        quorum.barrier().await.expect("a barrier");
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    println!("barrier: p50 {:.1?}", times[times.len() / 2]);
    quorum.shutdown().await.expect("stops");
    drop(quorum);
    let started = Instant::now();
    let quorum = Quorum::start(&host, options).await.expect("starts again");
    println!("started again after {:.1?}, at index {}", started.elapsed(), quorum.position().0);
}
