//! Who is let in, and what happens to those who break the rules.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::{Conn, Host};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::rig::{ECHO, Event, Notes, address, finish, options, serve, soon, world};
use crate::error::HandshakeError;
use crate::frame::{Frame, Kind, Sealer};
use crate::handshake::{self, Agreed, Identity, VERSIONS};
use crate::{CallError, Channel, Rpc, RpcMetrics, RpcOptions, Secret};

/// Runs `main` on node 1 while node 2 serves with these options; what node 2 noted.
fn with_server<F>(seed: u64, server: RpcOptions, main: impl FnOnce(Host) -> F + Send + 'static) -> Arc<Notes>
where
    F: Future<Output = ()> + Send + 'static,
{
    let notes = Arc::new(Notes::default());
    let mut world = world(seed, &["one", "two"]);
    let served = Arc::clone(&notes);
    world.boot("two", move |host| async move {
        let _rpc = serve(&host, server, &served).await;
        std::future::pending::<()>().await;
    });
    let done = Arc::new(Mutex::new(false));
    let told = Arc::clone(&done);
    world.boot("one", move |host| async move {
        main(host).await;
        *told.lock() = true;
    });
    finish(&mut world, &done);
    notes
}

/// How a call of a node with these options to node `to` fails.
async fn refused(host: &Host, options: RpcOptions, to: i32) -> String {
    let rpc = Rpc::start(host, options).await.unwrap();
    let peer = rpc.peer(to, &address(2));
    let error = peer.call(Channel::Control, ECHO, vec![], soon()).await.unwrap_err();
    assert!(!peer.is_connected(Channel::Control));
    rpc.stop().await;
    match error {
        CallError::NotSent(why) => why,
        other => panic!("{other}"),
    }
}

fn failures(metrics: &RpcMetrics, direction: &'static str, reason: &'static str) -> u64 {
    metrics.failed_handshakes.get_or_create(&crate::ReasonLabels { direction, reason }).get()
}

#[test]
fn strangers_are_refused_with_a_named_error() {
    let server = options(2);
    let (metrics, shown) = (server.metrics.clone(), server.metrics.clone());
    let notes = with_server(1, server, move |host| async move {
        let port = |n: u16| format!("127.0.0.1:{n}");
        let mut wrong = options(1);
        (wrong.listen, wrong.secret) = (port(7101), Secret::new("not the secret of the tests"));
        let why = refused(&host, wrong, 2).await;
        assert!(why.contains("refused by the peer: wrong cluster secret"), "{why}");
        let mut other = options(1);
        (other.listen, other.cluster_id) = (port(7102), "another\ncluster".to_owned());
        let why = refused(&host, other, 2).await;
        assert!(why.contains("other cluster: another\\"), "{why}");
        assert!(!why.contains('\n'), "a stranger's words are escaped before they are logged");
        let mut third = options(1);
        third.listen = port(7103);
        let why = refused(&host, third, 3).await;
        assert!(why.contains("other node: 2 is there, not 3"), "{why}");
        for reason in ["wrong_secret", "other_cluster", "other_node"] {
            assert!(failures(&metrics, "in", reason) > 0, "{reason}");
        }
    });
    assert_eq!(*notes.events.lock(), [], "nothing reached the service, and nobody had come");
    assert_eq!(failures(&shown, "in", "version"), 0);
}

fn identity(node_id: i32, versions: (u16, u16)) -> Identity {
    let options = options(node_id);
    Identity {
        node_id,
        cluster_id: options.cluster_id.clone(),
        key: options.secret.key().clone(),
        max_message_bytes: 1 << 20,
        versions,
        features: 0,
    }
}

async fn knock(host: &Host, versions: (u16, u16)) -> (Conn, Result<Agreed, HandshakeError>) {
    let mut conn = host.connect(&address(2)).await.unwrap();
    let agreed =
        handshake::call(host, &mut conn, &identity(1, versions), 2, Channel::Wal, host.random_u64()).await;
    (conn, agreed)
}

#[test]
fn versions_must_meet() {
    with_server(2, options(2), |host| async move {
        let newer = knock(&host, (VERSIONS.1 + 1, VERSIONS.1 + 3)).await.1.err().unwrap();
        assert!(newer.to_string().contains("refused by the peer: rpc version 2 to 4"), "{newer}");
        assert!(knock(&host, (1, 9)).await.1.is_ok(), "the older of both is spoken");
    });
}

#[test]
fn a_server_that_does_not_know_the_secret_is_not_believed() {
    // It says yes to whatever proof it gets.
    let mut world = world(3, &["one", "two"]);
    world.boot("two", |host| async move {
        let listener = host.listen(&address(2)).await.unwrap();
        while let Ok((mut conn, _)) = listener.accept().await {
            let mut key = identity(2, VERSIONS);
            key.key = Secret::new("some other secret of theirs").key().clone();
            // Its own check of the caller fails; a liar goes on, which `take` cannot: it answers the refusal.
            let taken = handshake::take(&host, &mut conn, &key).await;
            assert!(matches!(taken, Err((Some(1), HandshakeError::WrongSecret))));
        }
    });
    let done = Arc::new(Mutex::new(false));
    let told = Arc::clone(&done);
    world.boot("one", move |host| async move {
        // Who merely sends the caller's own proof back is found out, for roles are under the proof.
        let (mut here, mut there) = tokio::io::duplex(4096);
        let host_there = host.clone();
        let mirror = host.spawn("mirror", async move {
            let mut frame = vec![0; 1024];
            let _hello = there.read(&mut frame).await.unwrap();
            let mut challenge = vec![2, 1, 0];
            challenge.extend(0_u64.to_le_bytes());
            challenge.extend((1_u32 << 20).to_le_bytes());
            challenge.extend(2_i32.to_le_bytes());
            challenge.push(22);
            challenge.extend(super::rig::CLUSTER.as_bytes());
            challenge.extend([host_there.random_u64() as u8; 32]);
            let mut message = b"ISBR".to_vec();
            message.extend((challenge.len() as u16).to_le_bytes());
            message.extend(challenge);
            there.write_all(&message).await.unwrap();
            let n = there.read(&mut frame).await.unwrap();
            there.write_all(&frame[..n]).await.unwrap();
        });
        let me = identity(1, VERSIONS);
        let error = handshake::call(&host, &mut here, &me, 2, Channel::Raft, 1).await.err().unwrap();
        assert!(matches!(error, HandshakeError::WrongSecret), "{error}");
        assert!(mirror.join().await);
        let why = refused(&host, options(1), 2).await;
        assert!(why.contains("wrong cluster secret"), "{why}");
        *told.lock() = true;
    });
    finish(&mut world, &done);
}

/// Reads until the other end closes; false if it does not.
async fn is_closed(conn: &mut Conn) -> bool {
    let mut buffer = vec![0; 4096];
    let end = async { while let Ok(1..) = conn.read(&mut buffer).await {} };
    timeout(Duration::from_secs(2), end).await.is_ok()
}

fn wire(sealer: &mut Sealer, frame: &Frame) -> Vec<u8> {
    let mut bytes = sealer.seal(frame).to_vec();
    frame.body.iter().for_each(|part| bytes.extend(part));
    bytes
}

#[test]
fn whoever_breaks_the_rules_loses_the_connection() {
    let server = options(2);
    let metrics = server.metrics.of(Channel::Wal);
    let notes = with_server(4, server, move |host| async move {
        let echo = |id| {
            let body = vec![Bytes::from_static(b"hello")];
            Frame { kind: Kind::Request, service: 3, method: 1, id, argument: 0, body }
        };
        let open = |id, window| Frame { kind: Kind::Open, method: 4, argument: window, ..echo(id) };
        let bad: Vec<Vec<Frame>> = vec![
            vec![echo(2), echo(2)],
            vec![echo(5), echo(4)],
            vec![Frame::bare(Kind::End, 1, 0)],
            vec![Frame::with_body(Kind::Answer, 1, vec![])],
            vec![Frame::bare(Kind::Credit, 1, 1)],
            vec![open(1, 0)],
            vec![open(1, u32::MAX)],
            vec![open(1, 1000), Frame::bare(Kind::Credit, 1, 1)],
        ];
        let count = bad.len() as u64;
        for (number, frames) in bad.into_iter().enumerate() {
            let (mut conn, agreed) = knock(&host, VERSIONS).await;
            let mut sealer = agreed.unwrap().sealer;
            for frame in &frames {
                conn.write_all(&wire(&mut sealer, frame)).await.unwrap();
            }
            assert!(is_closed(&mut conn).await, "case {number}");
        }
        assert_eq!(metrics.malformed.get(), count);
        // A head that tells of more than a message may have, and bytes that are no frame.
        let (mut conn, agreed) = knock(&host, VERSIONS).await;
        let large = Frame::with_body(Kind::Request, 1, vec![Bytes::from(vec![0; 161 << 20])]);
        conn.write_all(&agreed.unwrap().sealer.seal(&large)).await.unwrap();
        assert!(is_closed(&mut conn).await);
        let (mut conn, agreed) = knock(&host, VERSIONS).await;
        agreed.unwrap();
        conn.write_all(&[0xff; 100]).await.unwrap();
        assert!(is_closed(&mut conn).await);
        // Before the handshake: other words, a length of 64 KiB, silence.
        for junk in [b"GET / HTTP/1.1\r\n".to_vec(), b"ISBR\xff\xff".to_vec(), b"ISBR\x01\x00\x09".to_vec()] {
            let mut conn = host.connect(&address(2)).await.unwrap();
            conn.write_all(&junk).await.unwrap();
            assert!(is_closed(&mut conn).await);
        }
        let mut conn = host.connect(&address(2)).await.unwrap();
        sleep(Duration::from_secs(5)).await;
        assert!(is_closed(&mut conn).await, "who says nothing is not waited for");
        assert_eq!(metrics.malformed.get(), count + 2);
        // Whoever keeps to them is served, meanwhile.
        let rpc = Rpc::start(&host, options(1)).await.unwrap();
        let answer = rpc.peer(2, &address(2)).call(Channel::Wal, ECHO, vec![], soon()).await;
        assert_eq!(answer, Ok(Bytes::new()));
    });
    let closed = notes.events.lock().iter().filter(|event| matches!(event, Event::Closed(_))).count();
    assert_eq!(closed, 10, "each proved connection is told of");
}

#[test]
fn any_first_bytes_are_survived() {
    let server = options(2);
    with_server(5, server, |host| async move {
        for round in 0..200 {
            let mut conn = host.connect(&address(2)).await.unwrap();
            let mut junk = b"ISBR".to_vec();
            let len = host.random_u64() % 90;
            junk.extend((len as u16).to_le_bytes());
            junk.push(1);
            junk.extend((1..len).map(|_| host.random_u64() as u8));
            conn.write_all(&junk).await.unwrap();
            if round % 2 == 0 {
                drop(conn);
            }
        }
        sleep(Duration::from_secs(6)).await;
        let rpc = Rpc::start(&host, options(1)).await.unwrap();
        let answer = rpc.peer(2, &address(2)).call(Channel::Wal, ECHO, vec![], soon()).await;
        assert_eq!(answer, Ok(Bytes::new()));
    });
}

#[test]
fn a_later_connection_of_a_line_ends_the_earlier_first() {
    let notes = with_server(6, options(2), |host| async move {
        let connect = async |line| {
            let mut conn = host.connect(&address(2)).await.unwrap();
            let me = identity(1, VERSIONS);
            let agreed = handshake::call(&host, &mut conn, &me, 2, Channel::Wal, line).await.unwrap();
            (conn, agreed.sealer)
        };
        let echo = |id: u64| {
            let body = vec![Bytes::from(id.to_le_bytes().to_vec())];
            Frame { kind: Kind::Request, service: 3, method: 1, id, argument: 0, body }
        };
        let (mut other, mut other_sealer) = connect(8).await;
        let (mut earlier, mut sealer) = connect(7).await;
        earlier.write_all(&wire(&mut sealer, &echo(1))).await.unwrap();
        // What is still on its way when the later one comes must not follow what the later one brings.
        let late = wire(&mut sealer, &echo(2));
        earlier.write_all(&late[..20]).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        let (mut later, mut later_sealer) = connect(7).await;
        later.write_all(&wire(&mut later_sealer, &echo(3))).await.unwrap();
        sleep(Duration::from_millis(10)).await;
        // It is closed already, or will be.
        let _ = earlier.write_all(&late[20..]).await;
        assert!(is_closed(&mut earlier).await);
        other.write_all(&wire(&mut other_sealer, &echo(4))).await.unwrap();
        sleep(Duration::from_millis(10)).await;
    });
    let seen: Vec<_> = (notes.events.lock().iter())
        .map(|event| match event {
            Event::Request(from, _, body) => (from.connection, Some(body[0])),
            Event::Closed(from) => (from.connection, None),
        })
        .take(4)
        .collect();
    assert_eq!(seen, [(2, Some(1)), (2, None), (3, Some(3)), (1, Some(4))]);
}
