//! What each kind of call comes to when nothing goes wrong on the way.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::rig::{
    CLUSTER, DROP, ECHO, Event, KEEP, NO, Notes, PANIC, PARTS, address, finish, options, parts_of, serve,
    soon, world,
};
use crate::{CallError, Channel, Method, Rpc, RpcOptions, Secret, ServiceId, codes};

/// Runs `main` on node 1 while node 2 serves; what node 2 noted.
fn with_server<F>(seed: u64, main: impl FnOnce(Rpc) -> F + Send + 'static) -> Arc<Notes>
where
    F: Future<Output = ()> + Send + 'static,
{
    let notes = Arc::new(Notes::default());
    let mut world = world(seed, &["one", "two"]);
    let served = Arc::clone(&notes);
    world.boot("two", move |host| async move {
        let _rpc = serve(&host, options(2), &served).await;
        std::future::pending::<()>().await;
    });
    let done = Arc::new(Mutex::new(false));
    let told = Arc::clone(&done);
    world.boot("one", move |host| async move {
        let rpc = Rpc::start(&host, options(1)).await.unwrap();
        main(rpc.clone()).await;
        rpc.stop().await;
        *told.lock() = true;
    });
    finish(&mut world, &done);
    for _ in 0..20 {
        world.step();
    }
    notes
}

#[test]
fn a_call_is_answered_refused_dropped_or_timed_out() {
    let notes = with_server(1, |rpc| async move {
        let peer = rpc.peer(2, &address(2));
        assert!(!peer.is_connected(Channel::Wal), "nothing was asked yet");
        let body = vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")];
        let answer = peer.call(Channel::Wal, ECHO, body, soon()).await;
        assert_eq!(answer, Ok(Bytes::from_static(b"abc")));
        assert!(peer.is_connected(Channel::Wal) && !peer.is_connected(Channel::Raft));
        let refused = peer.call(Channel::Wal, NO, vec![], soon()).await;
        assert_eq!(refused, Err(CallError::Refused { code: 7, message: "no".to_owned() }));
        let dropped = peer.call(Channel::Wal, DROP, vec![], soon()).await;
        assert!(matches!(dropped, Err(CallError::Refused { code: codes::DROPPED, .. })));
        let nobody = Method::new(ServiceId(99), 1);
        let nobody = peer.call(Channel::Raft, nobody, vec![], soon()).await.unwrap_err();
        assert!(matches!(nobody, CallError::Refused { code: codes::NO_SERVICE, .. }));
        assert!(!nobody.may_have_happened());
        let began = Instant::now();
        let kept = peer.call(Channel::Wal, KEEP, vec![], began + Duration::from_millis(300)).await;
        assert_eq!(kept, Err(CallError::TimedOut));
        assert!(began.elapsed() < Duration::from_millis(310));
        let late = peer.call(Channel::Wal, ECHO, vec![], began).await;
        assert!(matches!(late, Err(CallError::NotSent(_))));
        let stream = peer.call(Channel::Wal, PARTS, parts_of(1, 1), soon()).await;
        assert!(matches!(stream, Err(CallError::Refused { code: codes::NOT_A_STREAM, .. })));
    });
    let events = notes.events.lock();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Request(..))).count(), 5);
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Closed(_))).count(), 2, "two channels");
}

#[test]
fn a_stream_comes_whole_and_a_slow_taker_holds_it_up() {
    let notes = with_server(2, |rpc| async move {
        let peer = rpc.peer(2, &address(2));
        let mut all = peer.stream(Channel::Bulk, PARTS, parts_of(300, 100_000)).await.unwrap();
        for number in 0..300_u32 {
            let part = all.next().await.unwrap().unwrap();
            assert_eq!((part.len(), part[0]), (100_000, number as u8));
        }
        assert_eq!(all.next().await, Ok(None));
        assert_eq!(all.next().await, Ok(None));
        // Larger than the window, between small ones.
        for bytes in [5 << 20, 0, 1] {
            let mut large = peer.stream(Channel::Bulk, PARTS, parts_of(3, bytes)).await.unwrap();
            for _ in 0..3 {
                assert_eq!(large.next().await.unwrap().unwrap().len(), bytes as usize);
            }
            assert_eq!(large.next().await, Ok(None));
        }
        // An answer is a stream's only part, a refusal its end.
        let mut one = peer.stream(Channel::Bulk, ECHO, vec![Bytes::from_static(b"x")]).await.unwrap();
        assert_eq!(one.next().await, Ok(Some(Bytes::from_static(b"x"))));
        assert_eq!(one.next().await, Ok(None));
        let mut no = peer.stream(Channel::Bulk, NO, vec![]).await.unwrap();
        assert!(matches!(no.next().await, Err(CallError::Refused { code: 7, .. })));
        let slow = peer.stream(Channel::Bulk, PARTS, parts_of(1_000, 100_000)).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        drop(slow);
        sleep(Duration::from_millis(100)).await;
    });
    // 300 and 9, and what the window lets through before somebody takes: 41 and 1 of 100,000 bytes fill 4 MiB.
    let parts = *notes.parts.lock();
    assert_eq!(parts, 300 + 9 + 41, "a stream that is not taken stops at its window");
}

#[test]
fn a_node_that_is_not_there_is_not_sent_to() {
    with_server(3, |rpc| async move {
        let peer = rpc.peer(3, &address(3));
        let error = peer.call(Channel::Control, ECHO, vec![], soon()).await.unwrap_err();
        assert!(matches!(&error, CallError::NotSent(why) if why.contains("nobody listens")), "{error}");
        rpc.close_peer(3, &address(3));
        let closed = peer.call(Channel::Control, ECHO, vec![], soon()).await;
        assert_eq!(closed, Err(CallError::NotSent("the peer was closed".to_owned())));
        let peer = rpc.peer(2, &address(2));
        rpc.stop().await;
        assert_eq!(peer.call(Channel::Raft, ECHO, vec![], soon()).await, Err(CallError::Stopped));
        let after = rpc.peer(4, &address(4));
        assert_eq!(after.call(Channel::Raft, ECHO, vec![], soon()).await, Err(CallError::Stopped));
    });
}

#[test]
fn the_secret_is_never_shown_and_a_short_one_refused() {
    let options = RpcOptions::new("127.0.0.1:0", 1, CLUSTER, Secret::new("hush hush"));
    assert!(!format!("{options:?}").contains("hush"));
    assert!(options.check().is_err());
}

#[test]
fn a_service_that_panics_loses_the_connection_and_nothing_else() {
    let notes = with_server(4, |rpc| async move {
        let peer = rpc.peer(2, &address(2));
        let began = Instant::now();
        let error = peer.call(Channel::Wal, PANIC, vec![], soon()).await.unwrap_err();
        // Its reply was dropped in the panic; whether that is heard before the end of the connection is open.
        assert!(
            matches!(error, CallError::Lost(_) | CallError::Refused { code: codes::DROPPED, .. }),
            "{error}"
        );
        assert!(began.elapsed() < Duration::from_millis(100), "not only after the silence");
        let again = peer.call(Channel::Wal, ECHO, vec![], soon()).await;
        let again = match again {
            // It went out just before the end was seen.
            Err(CallError::Lost(_) | CallError::NotSent(_)) => {
                peer.call(Channel::Wal, ECHO, vec![], soon()).await
            }
            other => other,
        };
        assert_eq!(again, Ok(Bytes::new()));
    });
    let events = notes.events.lock();
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Closed(_))).count(), 2);
}
