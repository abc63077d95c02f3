//! Over the loopback's TCP. The figures are for people; nothing is asserted of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::rig::{CLUSTER, ECHO, Notes, PARTS, parts_of, serve};
use crate::{Caller, Channel, Method, Reply, Rpc, RpcOptions, Secret, Service, ServiceId};

/// Takes and forgets.
struct Sink;

impl Service for Sink {
    fn request(&self, _: Caller, _: u8, body: Bytes, reply: Reply) {
        reply.send(Ok(vec![Bytes::from(body.len().to_le_bytes().to_vec())]));
    }
}

const SINK: Method = Method::new(ServiceId(100), 1);

fn options(node_id: i32) -> RpcOptions {
    RpcOptions::new("127.0.0.1:0", node_id, CLUSTER, Secret::new("the secret of the tests"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_over_loopback() {
    let host = Host::real();
    let notes = Arc::new(Notes::default());
    let two = serve(&host, options(2), &notes).await;
    two.register(SINK.service, Arc::new(Sink));
    let one = Rpc::start(&host, options(1)).await.unwrap();
    let peer = one.peer(2, &two.local_addr().to_string());
    let deadline = Instant::now() + Duration::from_secs(60);

    let body: Vec<Bytes> = (0..100).map(|n| Bytes::from(vec![n; 50_000])).collect();
    let answer = peer.call(Channel::Wal, ECHO, body.clone(), deadline).await.unwrap();
    assert!(answer == body.concat(), "5 MB in 100 pieces come back as they went");
    let mut inbound = two.inbound();
    assert!(inbound.borrow_and_update().contains(&(1, Channel::Wal)));

    append(&peer, deadline).await;
    pings(&peer, deadline).await;

    let began = Instant::now();
    let mut stream = peer.stream(Channel::Bulk, PARTS, parts_of(256, 1 << 20)).await.unwrap();
    let mut bytes = 0;
    while let Some(part) = stream.next().await.unwrap() {
        bytes += part.len();
    }
    println!("stream of 1 MiB parts: {:.0} MiB/s", (bytes >> 20) as f64 / began.elapsed().as_secs_f64());
    assert_eq!(bytes, 256 << 20);

    one.stop().await;
    inbound.wait_for(|set| set.is_empty()).await.unwrap();
    two.stop().await;
}

/// 512 MiB in requests of 1 MiB, 32 in flight.
async fn append(peer: &crate::Peer, deadline: Instant) {
    let body = Bytes::from(vec![3; 1 << 20]);
    let (began, permits) = (Instant::now(), Arc::new(Semaphore::new(32)));
    for _ in 0..512 {
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        peer.call_with(Channel::Wal, SINK, vec![body.clone()], deadline, move |result| {
            assert_eq!(result.unwrap(), (1_usize << 20).to_le_bytes()[..]);
            drop(permit);
        });
    }
    let _all = permits.acquire_many(32).await.unwrap();
    println!("1 MiB requests: {:.0} MiB/s", 512.0 / began.elapsed().as_secs_f64());
}

async fn pings(peer: &crate::Peer, deadline: Instant) {
    let mut took = Vec::new();
    for _ in 0..3_000 {
        let began = Instant::now();
        peer.call(Channel::Control, ECHO, vec![Bytes::from_static(&[1; 100])], deadline).await.unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    println!("100 B calls one by one: p50 {:?}, p99 {:?}", took[1_500], took[2_970]);
    let (count, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let began = Instant::now();
    for _ in 0..50_000 {
        let (count, all) = (Arc::clone(&count), Arc::clone(&all));
        peer.call_with(Channel::Raft, SINK, vec![Bytes::from_static(&[1; 100])], deadline, move |result| {
            result.unwrap();
            if count.fetch_add(1, Ordering::Relaxed) == 49_999 {
                all.notify_one();
            }
        });
    }
    all.notified().await;
    println!("100 B calls together: {:.0} a second", 50_000.0 / began.elapsed().as_secs_f64());
}
