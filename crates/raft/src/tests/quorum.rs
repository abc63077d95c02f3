//! The quorum on a real disk: answers, order, restart, snapshots, refusals.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_metadata::command::CommitChunk;
use isobar_metadata::{Command, CommandResult, Envelope};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{cluster, register, session_of};
use crate::{ProposeError, Quorum, QuorumOptions, RaftError};

fn options(dir: &Path) -> QuorumOptions {
    QuorumOptions { format: Some(cluster()), ..QuorumOptions::new(dir, 1) }
}

fn run<T>(test: impl AsyncFnOnce(Host, PathBuf) -> T) -> T {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(test(Host::real(), dir.path().join("meta")))
}

/// Ends a member without a word, and waits until none of its threads touches the disk any more.
async fn kill(quorum: Quorum) {
    let store = quorum.log_store();
    drop(quorum);
    store.close().await;
}

async fn refused(host: &Host, options: QuorumOptions) -> RaftError {
    match Quorum::start(host, options).await {
        Ok(_) => panic!("started"),
        Err(error) => error,
    }
}

/// Registers lives `from..to` and gives their sessions.
async fn register_all(quorum: &Quorum, from: u64, to: u64) -> BTreeMap<u64, u64> {
    let mut sessions = BTreeMap::new();
    for n in from..to {
        let result = quorum.propose(register(n)).await.expect("an answer");
        sessions.insert(n, session_of(&result).expect("a session"));
    }
    sessions
}

#[test]
fn answers_survive_a_stop_and_a_kill() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let first = register_all(&quorum, 0, 40).await;
        let position = quorum.position();
        quorum.shutdown().await.expect("stops");

        let unformatted = QuorumOptions { format: None, ..options(&dir) };
        let quorum = Quorum::start(&host, unformatted.clone()).await.expect("starts again");
        assert!(quorum.position().0 > position.0, "its own term's entry is applied");
        assert_eq!(register_all(&quorum, 0, 40).await, first, "a repeat is answered with the first result");
        let second = register_all(&quorum, 40, 60).await;
        kill(quorum).await;

        let quorum = Quorum::start(&host, unformatted).await.expect("starts after the kill");
        assert_eq!(register_all(&quorum, 40, 60).await, second);
    });
}

#[test]
fn a_replay_gives_the_same_state() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        register_all(&quorum, 0, 30).await;
        let (index, hash) = quorum.position();
        kill(quorum).await;
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts again");
        // The ring still holds what the replay pushed, so the hash can be compared where the first life ended.
        assert_eq!(quorum.position().0, index + 1);
        assert_ne!(hash, 0);
        let mut effects = quorum.resume(1).expect("the whole replay is in the ring");
        let mut last = 1;
        while let Some(batch) = effects.try_next().expect("no gap") {
            assert_eq!(batch.previous, last);
            last = batch.index;
        }
        assert_eq!(last, index + 1);
    });
}

#[test]
fn it_starts_fast() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        register_all(&quorum, 0, 100).await;
        quorum.shutdown().await.expect("stops");
        let started = Instant::now();
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts again");
        register_all(&quorum, 100, 101).await;
        let took = started.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?} from start to answer");
        assert!(quorum.is_leader());
    });
}

#[test]
fn commands_are_applied_in_the_order_of_the_calls_and_effects_come_before_answers() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let (_, mut effects) = quorum.subscribe();
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (tx, rx) = oneshot::channel();
        let mut tx = Some(tx);
        let count = 3000;
        for n in 0..count {
            let (answers, last) = (Arc::clone(&answers), if n == count - 1 { tx.take() } else { None });
            let applied = quorum.applied();
            quorum.propose_with(register(n), move |result| {
                let session = session_of(&result.expect("an answer")).expect("a session");
                answers.lock().push((n, session, *applied.borrow()));
                if let Some(last) = last {
                    let _ = last.send(());
                }
            });
        }
        rx.await.expect("the last answer");
        let answers = std::mem::take(&mut *answers.lock());
        assert!(answers.is_sorted_by(|a, b| a.0 < b.0 && a.1 < b.1), "in order");
        let end = answers.last().expect("answers").2;
        let mut last = None;
        while let Some(batch) = effects.try_next().expect("no gap") {
            assert!(last.is_none_or(|last| batch.previous == last));
            last = Some(batch.index);
        }
        assert_eq!(last, Some(end), "every effect was in the stream when the last answer came");
        let entries = quorum.metrics().entries.get();
        assert!(entries < count, "{entries} entries for {count} commands: they are grouped");
    });
}

#[test]
fn barriers_share_rounds_and_see_what_was_answered() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let applied = quorum.applied();
        for n in 0..20 {
            quorum.propose(register(n)).await.expect("an answer");
            let index = *applied.borrow();
            assert!(quorum.barrier().await.expect("a barrier") >= index);
        }
        let rounds = quorum.metrics().barrier_rounds.get();
        let many: Vec<_> = (0..200)
            .map(|_| {
                let quorum = quorum.clone();
                Box::pin(async move { quorum.barrier().await })
            })
            .collect();
        for result in futures_util::future::join_all(many).await {
            result.expect("a barrier");
        }
        let more = quorum.metrics().barrier_rounds.get() - rounds;
        assert!(more <= 10, "{more} rounds for 200 barriers at once");
    });
}

#[test]
fn snapshots_bound_the_log_and_a_damaged_one_is_stepped_over() {
    run(async |host, dir| {
        let small = QuorumOptions { snapshot_after_bytes: 8_000, ..options(&dir) };
        let quorum = Quorum::start(&host, small.clone()).await.expect("starts");
        let sessions = register_all(&quorum, 0, 400).await;
        // The keeper works beside the answers.
        let deadline = Instant::now() + Duration::from_secs(10);
        while quorum.metrics().snapshots.get() < 2 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(quorum.metrics().snapshots.get() >= 2, "{} snapshots", quorum.metrics().snapshots.get());
        kill(quorum).await;

        let disk = host.disk();
        let snapshots = dir.join("snapshots");
        let names = disk.list(&snapshots).expect("a list");
        assert_eq!(names.len(), 2, "{names:?}");
        let newest = snapshots.join(&names[1]);
        let mut bytes = disk.read(&newest).expect("a snapshot");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        disk.write_durable(&newest, &bytes).expect("written");

        let quorum = Quorum::start(&host, small.clone()).await.expect("starts from the older snapshot");
        assert_eq!(register_all(&quorum, 0, 400).await, sessions);
        kill(quorum).await;
        let names = disk.list(&snapshots).expect("a list");
        assert!(names.iter().any(|name| name.ends_with(".damaged")), "{names:?}");

        for name in names.iter().filter(|name| name.ends_with(".snapshot")) {
            disk.remove(&snapshots.join(name)).expect("removed");
        }
        let error = refused(&host, small).await;
        assert!(matches!(error, RaftError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains("no good snapshot"), "{error}");
    });
}

#[test]
fn a_directory_that_is_not_ours_or_has_forgotten_is_refused() {
    run(async |host, dir| {
        let disk = host.disk();
        let error = refused(&host, QuorumOptions { format: None, ..options(&dir) }).await;
        assert!(matches!(error, RaftError::NotFormatted { .. }), "{error}");

        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let incarnation = quorum.incarnation();
        assert_ne!(incarnation, [0; 16]);
        register_all(&quorum, 0, 3).await;
        kill(quorum).await;

        let error = refused(&host, QuorumOptions { node_id: 2, ..options(&dir) }).await;
        assert!(matches!(error, RaftError::WrongDirectory { .. }), "{error}");

        let log = dir.join("log");
        for name in disk.list(&log).expect("a list") {
            disk.remove(&log.join(name)).expect("removed");
        }
        let error = refused(&host, options(&dir)).await;
        assert!(error.to_string().contains("forgot"), "a lost log is not begun anew: {error}");

        disk.remove(&dir.join("FORMAT")).expect("removed");
        disk.write_durable(&log.join("something"), b"x").expect("written");
        let error = refused(&host, options(&dir)).await;
        assert!(error.to_string().contains("no FORMAT"), "not formatted over somebody's files: {error}");

        disk.write_durable(&dir.join("FORMAT"), b"ISOBRAFT\0\0\0\0nonsense").expect("written");
        let error = refused(&host, options(&dir)).await;
        assert!(matches!(error, RaftError::Damaged { .. }), "{error}");
    });
}

#[test]
fn what_does_not_fit_is_refused_and_did_not_happen() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, QuorumOptions { queue_bytes: 2 << 20, ..options(&dir) })
            .await
            .expect("starts");
        let huge = super::register_from(1, "x".repeat(1 << 20));
        let error = quorum.propose(huge).await.expect_err("too large");
        assert!(matches!(error, ProposeError::TooLarge { .. }) && error.did_not_happen(), "{error}");

        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let wide = "h".repeat(200_000);
        for n in 0..200 {
            let outcomes = Arc::clone(&outcomes);
            quorum.propose_with(super::register_from(n, wide.clone()), move |result| {
                outcomes.lock().push(result.map(|_| ()));
            });
        }
        // A chunk is durable when its commit comes: however many others wait, there is room for it.
        let commit = Envelope::unnumbered(Command::CommitChunk(CommitChunk::default()));
        let committed = quorum.propose(commit).await;
        assert!(!matches!(committed, Err(ProposeError::Busy { .. })), "{committed:?}");

        let deadline = Instant::now() + Duration::from_secs(20);
        while outcomes.lock().len() < 200 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let outcomes = outcomes.lock();
        assert_eq!(outcomes.len(), 200);
        let busy = outcomes.iter().filter(|o| matches!(o, Err(ProposeError::Busy { .. }))).count();
        assert!(busy > 0, "40 MB do not fit half a queue of 2 MiB");
        assert!(outcomes.iter().any(Result::is_ok));
        assert_eq!(quorum.metrics().proposals_refused.get(), busy as u64);
    });
}

#[test]
fn after_a_stop_everything_is_refused_and_streams_end() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let (_, mut effects) = quorum.subscribe();
        register_all(&quorum, 0, 2).await;
        quorum.shutdown().await.expect("stops");
        quorum.shutdown().await.expect("stopping twice is no error");
        assert_eq!(quorum.propose(register(9)).await, Err(ProposeError::Stopping));
        assert_eq!(quorum.barrier().await, Err(ProposeError::Stopping));
        let mut batches = 0;
        while let Some(_batch) = effects.next().await.expect("no gap") {
            batches += 1;
        }
        assert_eq!(batches, 2);
        assert!(
            host.disk().list(&dir.join("snapshots")).expect("a list").len() == 1,
            "a snapshot at the stop"
        );
    });
}

#[test]
fn the_result_of_every_command_goes_to_its_own_caller() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        let callers = (0..64_u64).map(|n| {
            let quorum = quorum.clone();
            async move { (n, quorum.propose(register(n)).await) }
        });
        let mut seen = BTreeMap::new();
        for (n, result) in futures_util::future::join_all(callers).await {
            let result: CommandResult = result.expect("an answer");
            seen.insert(n, session_of(&result).expect("a session"));
        }
        // A repeat names the same life, so a mixed-up answer would show.
        assert_eq!(register_all(&quorum, 0, 64).await, seen);
    });
}

#[test]
fn a_directory_can_be_read_by_people() {
    run(async |host, dir| {
        let quorum = Quorum::start(&host, options(&dir)).await.expect("starts");
        register_all(&quorum, 0, 3).await;
        quorum.shutdown().await.expect("stops");
        let mut text = String::new();
        crate::inspect(&host, &dir, &mut |item| text.push_str(&format!("{item:#}\n")))
            .expect("it can be read");
        for wanted in [
            "format: cluster AAAA",
            "snapshot ",
            "membership, voters",
            "vote 1-1",
            "RegisterSession",
            "blank",
        ] {
            assert!(text.contains(wanted), "{wanted} is missing in\n{text}");
        }
    });
}
