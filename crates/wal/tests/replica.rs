//! The local replica on the simulated disk and on a real one: the conformance suite, restarts, power cuts, full and failing
//! disks, reconciling with metadata.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::disk::{Faults, Operation};
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::StateMachine;
use isobar_metadata::ids::StreamId;
use isobar_metadata::record::ClusterFormat;
use isobar_wal::conformance::{
    append, batch, chunk, committed, effects, key, released, small_chunk, stream_changed, suite,
};
use isobar_wal::{Acked, LocalReplica, ReplicaOptions, Wal, WalError, WalMetrics};
use parking_lot::Mutex;

const DIR: &str = "wal";
const STREAM: StreamId = StreamId(7);

fn options() -> ReplicaOptions {
    let journal = isobar_journal::Options {
        segment_bytes: 256 << 10,
        first_segment_bytes: 64 << 10,
        ..isobar_journal::Options::default()
    };
    ReplicaOptions { max_memory_bytes: 64 << 10, journal, ..ReplicaOptions::default() }
}

async fn open(host: &Host, options: ReplicaOptions) -> LocalReplica {
    LocalReplica::open(host, Path::new(DIR), options, WalMetrics::default()).await.unwrap()
}

/// An image that knows nothing.
fn empty_image() -> isobar_metadata::Image {
    StateMachine::new(ClusterFormat::dev("test".to_owned(), "store".to_owned())).image()
}

/// Runs `main` on a node of this disk until it ends or the node dies; says whether it ended.
fn on_node<F: Future<Output = ()> + Send + 'static>(
    disk: &Arc<SimDisk>,
    seed: u64,
    die_at: Option<u64>,
    main: impl FnOnce(Host) -> F,
) -> bool {
    let mut world = World::new(seed);
    world.add_node("n", Arc::clone(disk));
    let ended = Arc::new(Mutex::new(false));
    let tell = Arc::clone(&ended);
    world.boot("n", |host| {
        let main = main(host);
        async move {
            main.await;
            *tell.lock() = true;
        }
    });
    if let Some(steps) = die_at {
        world.arm("n", steps);
    }
    for _ in 0..100_000 {
        if *ended.lock() {
            return true;
        }
        if !world.step().is_empty() {
            return false;
        }
    }
    panic!("neither ended nor died");
}

#[test]
fn conforms_in_simulation() {
    on_node(&Arc::new(SimDisk::new(1)), 1, None, |host| async move {
        let mut count = 0;
        suite(|| {
            count += 1;
            let host = host.clone();
            async move {
                let dir = format!("wal{count}");
                let replica = LocalReplica::open(&host, Path::new(&dir), options(), WalMetrics::default())
                    .await
                    .unwrap();
                replica.reconcile(&empty_image());
                let directory = replica.directory();
                (Arc::new(replica) as Arc<dyn Wal>, vec![directory])
            }
        })
        .await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut count = 0;
    suite(|| {
        count += 1;
        let path = dir.path().join(format!("wal{count}"));
        async move {
            let replica =
                LocalReplica::open(&Host::real(), &path, options(), WalMetrics::default()).await.unwrap();
            replica.reconcile(&empty_image());
            let directory = replica.directory();
            (Arc::new(replica) as Arc<dyn Wal>, vec![directory])
        }
    })
    .await;
}

#[test]
fn reads_from_disk_what_memory_does_not_hold() {
    on_node(&Arc::new(SimDisk::new(2)), 2, None, |host| async move {
        let replica = open(&host, ReplicaOptions { max_memory_bytes: 0, ..options() }).await;
        replica.reconcile(&empty_image());
        let batches: Vec<_> = (0..9).map(|n| (key(n % 2, 0), batch(n, 3000))).collect();
        append(&replica, chunk(STREAM, 0, &batches)).await.unwrap();
        let second: Vec<Bytes> =
            batches.iter().filter(|(k, _)| *k == key(1, 0)).map(|(_, b)| b.clone()).collect();
        assert_eq!(replica.read(STREAM, 0, 5..9).await.unwrap(), second);
        let disk_reads =
            replica.metrics().reads.get_or_create(&isobar_wal::ReadLabels { from: "disk" }).get();
        assert_eq!(disk_reads, 1);
    });
}

#[test]
fn a_read_of_the_disk_brings_along_the_next_chunks_of_its_stream_and_trips_over_none() {
    let disk = Arc::new(SimDisk::new(22));
    let faulty = Arc::clone(&disk);
    on_node(&disk, 22, None, |host| async move {
        let replica = open(&host, options()).await;
        replica.reconcile(&empty_image());
        let streams = [STREAM, StreamId(STREAM.0 + 1)];
        let content = |stream: StreamId, number: u64| batch((stream.0 * 50 % 100 + number) as u8, 3000);
        for (number, stream) in (0..40).flat_map(|number| streams.map(|stream| (number, stream))) {
            append(&replica, chunk(stream, number, &[(key(1, 0), content(stream, number))])).await.unwrap();
        }
        let reads = |from| replica.metrics().reads.get_or_create(&isobar_wal::ReadLabels { from }).get();
        for number in 0..20 {
            let read = replica.read(STREAM, number, 0..1).await.unwrap();
            assert_eq!(read, [content(STREAM, number)]);
        }
        assert_eq!(reads("disk") + reads("memory"), 20);
        assert!(reads("disk") <= 4, "{} of 20", reads("disk"));

        let segments = host.disk().list(Path::new("wal/journal")).unwrap();
        let segment = segments.iter().filter(|name| name.ends_with(".seg")).min().unwrap();
        assert!(faulty.flip_bit(&Path::new("wal/journal").join(segment), 30_000, 3));
        let mut damaged = 0;
        for stream in streams {
            for number in 0..40 {
                match replica.read(stream, number, 0..1).await {
                    Ok(read) => assert_eq!(read, [content(stream, number)]),
                    Err(WalError::Corrupt(_)) => damaged += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        assert_eq!(damaged, 1);
    });
}

#[test]
fn a_chunk_that_others_made_durable_is_read_before_it_is_durable_here() {
    on_node(&Arc::new(SimDisk::new(4)), 4, None, |host| async move {
        let replica = open(&host, ReplicaOptions { max_memory_bytes: 0, ..options() }).await;
        replica.reconcile(&empty_image());
        let one = batch(1, 3000);
        let answer = Arc::new(Mutex::new(None));
        let note = Arc::clone(&answer);
        let done = Box::new(move |result| *note.lock() = Some(result));
        replica.append(chunk(STREAM, 0, &[(key(1, 0), one.clone())]), done);
        assert_eq!(replica.read(STREAM, 0, 0..1).await.unwrap(), vec![one]);
        assert_eq!(*answer.lock(), None, "it was durable already: this shows nothing");
        assert_eq!(replica.read(STREAM, 1, 0..1).await, Err(WalError::NotFound));
    });
}

#[test]
fn keeps_its_incarnation_and_never_formats_unasked() {
    let disk = Arc::new(SimDisk::new(3));
    on_node(&disk, 3, None, |host| async move {
        let refused = LocalReplica::open(
            &host,
            Path::new(DIR),
            ReplicaOptions { format: false, ..options() },
            WalMetrics::default(),
        );
        assert!(matches!(refused.await.err(), Some(WalError::NotFormatted(_))));
        let first = open(&host, options()).await;
        let directory = first.directory();
        first.close().await;
        drop(first);
        let again = open(&host, ReplicaOptions { format: false, ..options() }).await;
        assert_eq!(again.directory(), directory);
        again.close().await;
        drop(again);
        // The identity is lost, the chunks are not: somebody has to look.
        host.disk().remove(&Path::new(DIR).join("incarnation")).unwrap();
        let refused = LocalReplica::open(&host, Path::new(DIR), options(), WalMetrics::default()).await;
        assert!(matches!(refused.err(), Some(WalError::NotFormatted(_))));
    });
}

/// What was acknowledged, and is not yet released.
type Kept = Arc<Mutex<BTreeMap<(StreamId, u64), Vec<Bytes>>>>;

/// Appends to two streams, commits and releases as metadata would, until it dies.
async fn live(host: Host, acked: Kept, first_stream: u64, seed: u64) {
    let Ok(replica) = LocalReplica::open(&host, Path::new(DIR), options(), WalMetrics::default()).await
    else {
        return;
    };
    // Until metadata says otherwise all that was acknowledged must be there, whatever the crash did.
    let expected = acked.lock().clone();
    for ((stream, number), batches) in &expected {
        match replica.read(*stream, *number, 0..batches.len() as u32).await {
            Ok(found) => assert_eq!(&found, batches),
            Err(WalError::Io(_)) => return,
            Err(error) => panic!("{stream}/{number}: {error}"),
        }
    }
    // The former life's streams are closed and their chunks stay named: only these effects drop anything.
    let former: Vec<_> = expected.keys().map(|(stream, number)| committed(*stream, *number, 1)).collect();
    replica.follow(&effects(former));
    let mut number = [0_u64; 2];
    for round in 0..40 {
        for (which, next) in number.iter_mut().enumerate() {
            let stream = StreamId(first_stream + which as u64);
            let n = *next;
            let size = ((seed * 31 + round * 7 + n) % 9000) as usize;
            let batches = vec![(key(1, 0), batch(n as u8, size)), (key(2, 0), batch(n as u8 + 1, 10))];
            let id = (stream, n);
            let bytes: Vec<Bytes> = batches.iter().map(|(_, batch)| batch.clone()).collect();
            let acked = Arc::clone(&acked);
            let note = move |result: Result<Acked, WalError>| {
                if result.is_ok() {
                    acked.lock().insert(id, bytes);
                }
            };
            replica.append(chunk(stream, n, &batches), Box::new(note));
            *next += 1;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        if round % 4 == 3 {
            let old: Vec<_> = {
                let mut acked = acked.lock();
                let all: Vec<_> = acked.keys().copied().collect();
                let old: Vec<_> = all.iter().take(all.len() / 2).copied().collect();
                old.iter().for_each(|id| drop(acked.remove(id)));
                old
            };
            let commit = old.iter().map(|&(stream, number)| committed(stream, number, 1));
            let release = old.iter().map(|&(stream, number)| released(stream, &[number]));
            replica.follow(&effects(commit.chain(release).collect()));
            // Something goes over the segments that were given back.
        }
    }
    replica.close().await;
}

#[test]
fn what_was_acknowledged_survives_power_cuts_at_any_step() {
    let (mut died, mut checked) = (0, 0);
    for seed in 0..60_u64 {
        let disk = Arc::new(SimDisk::new(seed));
        let acked = Kept::default();
        for life in 0..4 {
            checked += acked.lock().len();
            let die_at = 5 + (seed * 37 + life * 101) % 400;
            let acked = Arc::clone(&acked);
            if !on_node(&disk, seed * 10 + life, Some(die_at), |host| live(host, acked, 10 * life, seed)) {
                died += 1;
            }
            disk.crash(seed * 7 + life);
        }
    }
    assert!(died > 120 && checked > 2000, "{died} deaths, {checked} chunks checked");
}

#[test]
fn after_a_restart_metadata_says_what_is_garbage() {
    let disk = Arc::new(SimDisk::new(5));
    on_node(&disk, 5, None, |host| async move {
        let replica = open(&host, options()).await;
        replica.reconcile(&empty_image());
        for number in 0..30 {
            append(&replica, chunk(STREAM, number, &[(key(1, 0), batch(number as u8, 20_000))]))
                .await
                .unwrap();
        }
        replica.close().await;
    });
    on_node(&disk, 6, None, |host| async move {
        let replica = open(&host, options()).await;
        assert_eq!(replica.live().0, 30);
        assert!(replica.read(STREAM, 29, 0..1).await.is_ok());
        // The image has never heard of the stream, so it is forgotten.
        replica.reconcile(&empty_image());
        assert_eq!(replica.live(), (0, 0));
        assert_eq!(replica.read(STREAM, 29, 0..1).await, Err(WalError::NotFound));
        assert!(replica.metrics().recycled.get() > 2);
        assert_eq!(append(&replica, small_chunk(STREAM, 30)).await, Err(WalError::Closed));
        append(&replica, small_chunk(StreamId(8), 0)).await.unwrap();
    });
}

#[test]
fn a_full_disk_refuses_and_goes_on_once_chunks_are_released() {
    on_node(&Arc::new(SimDisk::new(7)), 7, None, |host| async move {
        let replica = open(&host, ReplicaOptions { max_disk_bytes: 600 << 10, ..options() }).await;
        replica.reconcile(&empty_image());
        let large = |number| chunk(STREAM, number, &[(key(1, 0), batch(number as u8, 50_000))]);
        let (mut number, mut without_room) = (0, 0);
        let refused = loop {
            without_room += u64::from(!replica.has_room());
            match append(&replica, large(number)).await {
                Ok(_) => number += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(refused, WalError::Full);
        assert!((8..=11).contains(&number), "{number}");
        assert!(without_room > 0 && without_room < number, "told beforehand: {without_room}");
        assert_eq!(append(&replica, large(number)).await, Err(WalError::Full));
        assert!(replica.read(STREAM, 0, 0..1).await.is_ok());
        for old in 0..number {
            replica.follow(&effects(vec![committed(STREAM, old, 1), released(STREAM, &[old])]));
        }
        assert!(replica.has_room());
        append(&replica, large(number)).await.unwrap();
    });
}

#[test]
fn a_disk_that_runs_full_by_itself_refuses_without_a_gap() {
    let disk = Arc::new(SimDisk::new(8));
    disk.set_faults(Faults { capacity_bytes: Some(700 << 10), ..Faults::default() });
    on_node(&disk, 8, None, |host| async move {
        let replica = open(&host, options()).await;
        replica.reconcile(&empty_image());
        let answers = Arc::new(Mutex::new(Vec::new()));
        for number in 0..24 {
            let answers = Arc::clone(&answers);
            let large = chunk(STREAM, number, &[(key(1, 0), batch(number as u8, 50_000))]);
            replica.append(large, Box::new(move |result| answers.lock().push(result)));
        }
        while answers.lock().len() < 24 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let taken = answers.lock().iter().take_while(|result| result.is_ok()).count() as u64;
        assert!(taken > 2 && taken < 20, "{taken}");
        assert!(answers.lock()[taken as usize..].iter().all(Result::is_err), "{:?}", answers.lock());
        for old in 0..taken {
            replica.follow(&effects(vec![committed(STREAM, old, 1), released(STREAM, &[old])]));
        }
        // The journal makes its next segment in its own time.
        let mut tries = 0;
        while let Err(error) = append(&replica, small_chunk(STREAM, taken)).await {
            assert_eq!(error, WalError::Full);
            tries += 1;
            assert!(tries < 1000, "still full");
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        append(&replica, small_chunk(STREAM, taken + 1)).await.unwrap();
    });
}

/// What one replica among others says it did not keep, it does not have after a restart either: another chunk may have its number.
#[test]
fn what_was_refused_strictly_is_not_found_again() {
    let mut refused = 0;
    for seed in 0..40_u64 {
        let disk = Arc::new(SimDisk::new(seed));
        disk.set_faults(Faults { capacity_bytes: Some((400 + seed * 9) << 10), ..Faults::default() });
        let answers = Arc::new(Mutex::new(BTreeMap::new()));
        let heard = Arc::clone(&answers);
        on_node(&disk, seed, None, move |host| async move {
            let replica = open(&host, options()).await;
            replica.reconcile(&empty_image());
            for number in 0..60 {
                let answers = Arc::clone(&heard);
                let bytes = if number % 4 == 0 { 50_000 } else { 500 };
                let made = chunk(STREAM, number, &[(key(1, 0), batch(number as u8, bytes))]);
                let done = move |result| drop(answers.lock().insert(number, result));
                isobar_wal::Replica::append(&replica, made, Box::new(done));
                if number % 7 == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
            }
            while heard.lock().len() < 60 {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            replica.close().await;
        });
        let heard = answers.lock().clone();
        refused += heard.values().filter(|result| result.is_err()).count();
        disk.set_faults(Faults::default());
        on_node(&disk, seed + 1000, None, move |host| async move {
            let replica = open(&host, options()).await;
            for (number, result) in heard {
                let read = Wal::read(&replica, STREAM, number, 0..1).await;
                match result {
                    Ok(_) => assert!(read.is_ok(), "seed {seed}: {number}"),
                    Err(WalError::Full | WalError::Gap { .. }) => {
                        assert_eq!(read, Err(WalError::NotFound), "seed {seed}: {number}");
                    }
                    Err(_) => {}
                }
            }
        });
    }
    assert!(refused > 400, "{refused}");
}

#[test]
fn a_failed_sync_is_told_and_nothing_is_taken_after_it() {
    let disk = Arc::new(SimDisk::new(9));
    let faulty = Arc::clone(&disk);
    on_node(&disk, 9, None, |host| async move {
        let replica = open(&host, options()).await;
        replica.reconcile(&empty_image());
        append(&replica, small_chunk(STREAM, 0)).await.unwrap();
        faulty.fail_next(Operation::Sync, "", 0);
        assert!(matches!(append(&replica, small_chunk(STREAM, 1)).await, Err(WalError::Failed(_))));
        assert_eq!(append(&replica, small_chunk(STREAM, 1)).await, Err(WalError::Closed));
        assert!(matches!(append(&replica, small_chunk(StreamId(8), 0)).await, Err(WalError::Failed(_))));
        assert!(replica.read(STREAM, 0, 0..1).await.is_ok());
        assert_eq!(replica.read(STREAM, 1, 0..1).await, Err(WalError::NotFound));
    });
}

#[test]
fn a_flipped_bit_is_an_error_never_an_answer() {
    let disk = Arc::new(SimDisk::new(10));
    let faulty = Arc::clone(&disk);
    on_node(&disk, 10, None, |host| async move {
        let replica = open(&host, ReplicaOptions { max_memory_bytes: 0, ..options() }).await;
        replica.reconcile(&empty_image());
        append(&replica, chunk(STREAM, 0, &[(key(1, 0), batch(1, 30_000))])).await.unwrap();
        let segments = host.disk().list(Path::new("wal/journal")).unwrap();
        let segment = segments.iter().find(|name| name.ends_with(".seg")).unwrap();
        assert!(faulty.flip_bit(&Path::new("wal/journal").join(segment), 20_000, 3));
        assert!(matches!(replica.read(STREAM, 0, 0..1).await, Err(WalError::Corrupt(_))));
        let directory = replica.directory();
        replica.follow(&effects(vec![stream_changed(STREAM, directory, true)]));
    });
}
