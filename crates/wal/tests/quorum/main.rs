//! The quorum writer on replicas of the simulated disk: the conformance suite, with the replicas beside it and over the transport;
//! a paused replica; disks that are full or fail; and seeds in which replicas die, lose power, are cut off and come back.

#![expect(clippy::unwrap_used, reason = "tests")]

mod repair;
mod rig;
mod seeds;

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_rpc::Rpc;
use isobar_wal::conformance::{STREAMS, append, batch, chunk, key, small_chunk, suite};
use isobar_wal::{Chunk, QuorumOptions, Replica, ReplicaOptions, Wal, WalError};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use rig::*;

// ---- conformance ----

fn conforms(memory_bytes: usize) {
    on_node(1, move |host| async move {
        let mut count = 0;
        suite(|| {
            count += 1;
            let (host, dir) = (host.clone(), PathBuf::from(format!("case{count}")));
            async move {
                let three = three(&host, &dir, |_| replica_options()).await;
                let wal = three
                    .map
                    .wal(&host, QuorumOptions { max_memory_bytes: memory_bytes, ..quorum_options() });
                STREAMS.iter().for_each(|stream| wal.opened(*stream, &three.ensemble, 2));
                let wal = WithReplicas { wal, locals: three.locals };
                (Arc::new(wal) as Arc<dyn Wal>, three.ensemble)
            }
        })
        .await;
    });
}

#[test]
fn conforms_with_replicas_beside_it() {
    conforms(0);
}

fn conforms_over_the_transport(memory_bytes: usize) {
    on_node(2, move |host| async move {
        let mut node_id = 100;
        let mut transports = Vec::new();
        let kept = Arc::new(Mutex::new(Vec::new()));
        suite(|| {
            node_id += 10;
            let (host, first, kept) = (host.clone(), node_id, Arc::clone(&kept));
            async move {
                let rpc = Rpc::start(&host, rpc_options(first)).await.unwrap();
                let map = Map::default();
                let (mut locals, mut ensemble) = (Vec::new(), Vec::new());
                for node_id in first + 1..first + 4 {
                    let dir = PathBuf::from(format!("node{node_id}"));
                    let (served, replica) = serve(&host, node_id, &dir, replica_options()).await;
                    map.add(replica.directory(), remote(&rpc, node_id, replica.directory()));
                    ensemble.push(replica.directory());
                    locals.push(replica);
                    kept.lock().push(served);
                }
                kept.lock().push(rpc);
                let wal =
                    map.wal(&host, QuorumOptions { max_memory_bytes: memory_bytes, ..quorum_options() });
                STREAMS.iter().for_each(|stream| wal.opened(*stream, &ensemble, 2));
                (Arc::new(WithReplicas { wal, locals }) as Arc<dyn Wal>, ensemble)
            }
        })
        .await;
        transports.append(&mut kept.lock());
        for rpc in transports {
            rpc.stop().await;
        }
    });
}

#[test]
fn conforms_over_the_transport_from_the_replicas() {
    conforms_over_the_transport(0);
}

#[test]
fn conforms_over_the_transport_from_its_own_memory() {
    conforms_over_the_transport(1 << 20);
}

// ---- what a replica says over the transport ----

#[test]
fn a_repeat_is_acknowledged_again_and_another_content_or_incarnation_is_refused() {
    on_node(3, |host| async move {
        let (served, local) = serve(&host, 1, Path::new("wal"), replica_options()).await;
        let rpc = Rpc::start(&host, rpc_options(2)).await.unwrap();
        let there = remote(&rpc, 1, local.directory());
        let say = async |replica: &Arc<dyn Replica>, chunk: Chunk| {
            let (tell, heard) = oneshot::channel();
            replica.append(chunk, Box::new(move |result| drop(tell.send(result))));
            heard.await.unwrap().map(|_| ())
        };
        let other = |number| chunk(STREAM, number, &[(key(1, 0), batch(99, 100))]);
        assert_eq!(say(&there, small_chunk(STREAM, 1)).await, Err(WalError::Gap { expected: 0 }));
        // Both are under way at once.
        let (first, again) =
            tokio::join!(say(&there, small_chunk(STREAM, 0)), say(&there, small_chunk(STREAM, 0)));
        assert_eq!((first, again), (Ok(()), Ok(())));
        let (first, differs) = tokio::join!(say(&there, small_chunk(STREAM, 1)), say(&there, other(1)));
        assert_eq!((first, differs), (Ok(()), Err(WalError::Gap { expected: 2 })));
        assert_eq!(say(&there, small_chunk(STREAM, 0)).await, Ok(()));
        assert_eq!(say(&there, other(0)).await, Err(WalError::Gap { expected: 1 }));
        assert_eq!(there.read(STREAM, 0, 0..1).await.unwrap(), [batch(0, 100)]);
        assert_eq!(there.read(STREAM, 2, 0..1).await, Err(WalError::NotFound));
        assert_eq!(there.read(STREAM, 0, 0..2).await, Err(WalError::NotFound));
        assert_eq!(there.probe().await, Ok(true));
        let wiped = remote(&rpc, 1, DirectoryId::from([9; 16]));
        for error in [
            say(&wiped, small_chunk(STREAM, 2)).await.unwrap_err(),
            wiped.read(STREAM, 0, 0..1).await.unwrap_err(),
            wiped.probe().await.unwrap_err(),
        ] {
            assert!(matches!(error, WalError::Unavailable(_)), "{error}");
        }
        rpc.stop().await;
        served.stop().await;
        assert!(matches!(there.read(STREAM, 0, 0..1).await, Err(WalError::Unavailable(_))));
    });
}

// ---- one replica in trouble ----

async fn append_all(wal: &dyn Wal, stream: StreamId, numbers: Range<u64>) -> Vec<u32> {
    let mut acknowledged = Vec::new();
    for number in numbers {
        acknowledged.push(append(wal, small_chunk(stream, number)).await.unwrap().acknowledged);
    }
    acknowledged
}

#[test]
fn a_paused_replica_stalls_nobody_and_is_left_behind() {
    for (answers, seed) in [(false, 4), (true, 5)] {
        on_node(seed, move |host| async move {
            let three = three(&host, Path::new(""), |_| replica_options()).await;
            let wal = three.map.wal(&host, quorum_options());
            wal.opened(STREAM, &three.ensemble, 2);
            append_all(&wal, STREAM, 0..5).await;
            {
                let mut gate = three.gates[1].gate.lock();
                (gate.requests_held, gate.answers_held) = (!answers, answers);
            }
            let mut changes = wal.changes();
            for number in 5..200 {
                let began = Instant::now();
                append_all(&wal, STREAM, number..number + 1).await;
                assert!(began.elapsed() <= Duration::from_millis(20), "{:?}", began.elapsed());
            }
            assert_eq!(wal.standing(STREAM).unwrap().live, 0b111, "not yet");
            timeout(Duration::from_secs(4), changes.changed()).await.unwrap().unwrap();
            assert_eq!(wal.standing(STREAM).unwrap().live, 0b101);
            let waits = three.gates[1].gate.lock().requests.len();
            append_all(&wal, STREAM, 200..210).await;
            assert_eq!(three.gates[1].gate.lock().requests.len(), waits, "it is sent nothing more");
            // It comes back, has what was on its way, and stays behind.
            three.gates[1].release();
            let acknowledged = append_all(&wal, STREAM, 210..220).await;
            assert!(acknowledged.iter().all(|bits| *bits == 0b101));
            // The slow one is not chosen for the next stream at first, and again later.
            let image = image(&three.ensemble);
            let others = BTreeSet::from([three.ensemble[0], three.ensemble[2]]);
            let chosen = async || wal.choose(&image, 1).await.unwrap().into_iter().collect::<BTreeSet<_>>();
            assert_eq!(chosen().await, others);
            sleep(Duration::from_secs(31)).await;
            assert_eq!(chosen().await.len(), 3);
            for number in 0..220 {
                assert_eq!(wal.read(STREAM, number, 0..1).await.unwrap(), [batch(number as u8, 100)]);
            }
        });
    }
}

#[test]
fn a_silent_majority_closes_the_stream_and_no_read_says_not_found_for_it() {
    on_node(6, |host| async move {
        let three = three(&host, Path::new(""), |_| replica_options()).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        append_all(&wal, STREAM, 0..3).await;
        for gate in &three.gates[1..] {
            gate.gate.lock().requests_held = true;
        }
        let began = Instant::now();
        assert_eq!(append(&wal, small_chunk(STREAM, 3)).await, Err(WalError::Closed));
        assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
        assert_eq!(append(&wal, small_chunk(STREAM, 4)).await, Err(WalError::Closed));
        assert!(wal.standing(STREAM).unwrap().is_closed);
        assert!(wal.read(STREAM, 2, 0..1).await.is_ok());
        // Nothing is there, but who is silent may have it.
        assert!(matches!(wal.read(STREAM, 9, 0..1).await, Err(WalError::Unavailable(_))));
        three.gates.iter().for_each(|gate| gate.release());
        assert_eq!(wal.read(STREAM, 9, 0..1).await, Err(WalError::NotFound));
        // A stream that metadata has not told of is not known yet; one that it passed by is forgotten.
        assert!(matches!(wal.read(StreamId(8), 0, 0..1).await, Err(WalError::Unavailable(_))));
        let opened = isobar_wal::conformance::stream_on(StreamId(9), &three.ensemble, false);
        wal.follow(&isobar_wal::conformance::effects(vec![opened]));
        assert_eq!(wal.read(StreamId(8), 0, 0..1).await, Err(WalError::NotFound));
        let stream = StreamId(9);
        assert_eq!(append_all(&wal, stream, 0..1).await.len(), 1);
    });
}

#[test]
fn a_full_replica_is_left_behind_and_all_full_is_full() {
    on_node(7, |host| async move {
        // The first is full after a few chunks, the others after some more.
        let bounds = [500 << 10, 900 << 10, 900 << 10];
        let options = |n| ReplicaOptions { max_disk_bytes: bounds[n], ..replica_options() };
        let three = three(&host, Path::new(""), options).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        let large = |number: u64| chunk(STREAM, number, &[(key(1, 0), batch(number as u8, 50_000))]);
        let (mut number, mut told_beforehand) = (0, false);
        let refused = loop {
            told_beforehand |= !wal.has_room();
            match append(&wal, large(number)).await {
                Ok(_) => number += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, WalError::Full);
        assert!(told_beforehand && number > 12, "{number}");
        assert_eq!(wal.standing(STREAM).unwrap().live, 0b110);
        assert_eq!(append(&wal, large(number)).await, Err(WalError::Full));
        let room = wal.room();
        for old in 0..number {
            let gone = [
                isobar_wal::conformance::committed(STREAM, old, 1),
                isobar_wal::conformance::released(STREAM, &[old]),
            ];
            let gone = isobar_wal::conformance::effects(gone.to_vec());
            three.locals.iter().for_each(|replica| replica.follow(&gone));
        }
        timeout(Duration::from_secs(1), room).await.unwrap();
        assert!(wal.has_room());
        append_all(&wal, STREAM, number..number + 5).await;
    });
}

#[test]
fn slow_reads_are_hedged_and_what_one_lost_another_has() {
    on_node(8, |host| async move {
        let three = three(&host, Path::new(""), |_| replica_options()).await;
        let wal = three.map.wal(&host, quorum_options());
        wal.opened(STREAM, &three.ensemble, 2);
        append_all(&wal, STREAM, 0..3).await;
        sleep(Duration::from_millis(50)).await;
        three.gates[0].gate.lock().answers_held = true;
        let began = Instant::now();
        for number in 0..3 {
            assert!(wal.read(STREAM, number, 0..1).await.is_ok());
        }
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
        assert!(wal.metrics().hedged.get() > 0);
    });
}
