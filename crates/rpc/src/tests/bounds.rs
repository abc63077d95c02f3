//! A peer that stops reading, or a service that stops answering, costs a bounded number of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep};

use super::rig::{ECHO, KEEP, Notes, address, finish, options, serve, world};
use crate::frame::{Frame, Kind};
use crate::handshake::{self, Identity, VERSIONS};
use crate::{CallError, Channel, Rpc, RpcOptions};

fn run<F, G>(
    seed: u64,
    server: RpcOptions,
    notes: &Arc<Notes>,
    then: impl FnOnce(Rpc) -> G + Send + 'static,
    main: impl FnOnce(Host) -> F + Send + 'static,
) where
    F: Future<Output = ()> + Send + 'static,
    G: Future<Output = ()> + Send + 'static,
{
    let mut world = world(seed, &["one", "two"]);
    let served = Arc::clone(notes);
    world.boot("two", move |host| async move {
        let rpc = serve(&host, server, &served).await;
        then(rpc).await;
        std::future::pending::<()>().await;
    });
    let done = Arc::new(Mutex::new(false));
    let told = Arc::clone(&done);
    world.boot("one", move |host| async move {
        main(host).await;
        *told.lock() = true;
    });
    finish(&mut world, &done);
}

#[test]
fn a_service_that_does_not_answer_stops_the_reading_and_the_caller_is_told() {
    let mut server = options(2);
    server.max_inbound_bytes = 4 << 20;
    let held = server.metrics.of(Channel::Wal).inbound_bytes;
    let notes = Arc::new(Notes::default());
    let kept = Arc::clone(&notes);
    run(
        1,
        server,
        &notes,
        |_| async {},
        move |host| async move {
            let mut mine = options(1);
            mine.max_queue_bytes = 2 << 20;
            let queued = mine.metrics.of(Channel::Wal).queued_bytes;
            let rpc = Rpc::start(&host, mine).await.unwrap();
            let peer = rpc.peer(2, &address(2));
            let (not_sent, timed_out) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let body = Bytes::from(vec![7; 100_000]);
            for _ in 0..200 {
                let deadline = Instant::now() + Duration::from_secs(5);
                let (not_sent, timed_out) = (Arc::clone(&not_sent), Arc::clone(&timed_out));
                peer.call_with(
                    Channel::Wal,
                    KEEP,
                    vec![body.clone()],
                    deadline,
                    move |result| match result {
                        Err(CallError::NotSent(_)) => drop(not_sent.fetch_add(1, Ordering::Relaxed)),
                        Err(CallError::TimedOut) => drop(timed_out.fetch_add(1, Ordering::Relaxed)),
                        other => panic!("{other:?}"),
                    },
                );
                sleep(Duration::from_millis(5)).await;
                assert!(queued.get() <= 2 << 20);
                assert!(held.get() <= 1 << 20, "a channel has a quarter");
            }
            // 10 in the quarter; the pipe's 1 MiB, a batch and the queue hold the rest of what was taken.
            assert_eq!(kept.kept.lock().len(), 10);
            sleep(Duration::from_secs(5)).await;
            let (not_sent, timed_out) = (not_sent.load(Ordering::Relaxed), timed_out.load(Ordering::Relaxed));
            assert_eq!(not_sent + timed_out, 200);
            assert!((20..50).contains(&timed_out), "{timed_out} had gone out");
            // Another channel is not held up, and this one goes on when the service answers.
            let deadline = Instant::now() + Duration::from_secs(60);
            assert_eq!(peer.call(Channel::Raft, ECHO, vec![], deadline).await, Ok(Bytes::new()));
            let (told, answer) = tokio::sync::oneshot::channel();
            peer.call_with(Channel::Wal, ECHO, vec![body.clone()], deadline, move |result| {
                told.send(result).unwrap()
            });
            let answer = async { answer.await.unwrap() };
            let free = async {
                loop {
                    let replies = std::mem::take(&mut *kept.kept.lock());
                    replies.into_iter().for_each(|reply| reply.send(Ok(vec![])));
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                biased;
                answer = answer => assert_eq!(answer, Ok(body)),
                () = free => {}
            }
            kept.kept.lock().clear();
            assert_eq!(held.get(), 0);
        },
    );
}

#[test]
fn a_peer_that_does_not_read_is_not_read_and_then_given_up() {
    let server = options(2);
    let outbound = server.metrics.outbound_bytes.clone();
    let silent = server.metrics.of(Channel::Bulk).silent;
    let notes = Arc::new(Notes::default());
    let noted = Arc::clone(&notes);
    run(
        2,
        server,
        &notes,
        |_| async {},
        move |host| async move {
            let me = Identity {
                node_id: 1,
                cluster_id: super::rig::CLUSTER.to_owned(),
                key: options(1).secret.key().clone(),
                max_message_bytes: 1 << 20,
                versions: VERSIONS,
                features: 0,
            };
            let mut conn = host.connect(&address(2)).await.unwrap();
            let mut sealer =
                handshake::call(&host, &mut conn, &me, 2, Channel::Bulk, 1).await.unwrap().sealer;
            // It asks and asks, and takes no answer. Sooner or later its own words are not taken either.
            let body = Bytes::from(vec![1; 100_000]);
            for id in 1..2_000 {
                let body = vec![body.clone()];
                let frame = Frame { kind: Kind::Request, service: 3, method: 1, id, argument: 0, body };
                let mut bytes = sealer.seal(&frame).to_vec();
                bytes.extend(&frame.body[0]);
                let wrote = tokio::time::timeout(Duration::from_secs(3), conn.write_all(&bytes)).await;
                assert!(outbound.get() < 17 << 20, "{} bytes of answers wait", outbound.get());
                if wrote.is_err() {
                    break;
                }
            }
            let asked = noted.events.lock().len();
            assert!((150..250).contains(&asked), "{asked} were read: 16 MiB of answers, and the pipe");
            sleep(Duration::from_secs(31)).await;
            assert_eq!(silent.get(), 1);
            assert_eq!(outbound.get(), 0, "all is let go");
        },
    );
}
