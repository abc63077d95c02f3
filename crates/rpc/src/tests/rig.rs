//! Worlds of nodes that call each other, and a service that notes what it is asked.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Caller, Method, Refusal, Reply, Rpc, RpcOptions, Secret, Service, ServiceId};

pub(super) const CLUSTER: &str = "abcdefghijklmnopqrstuv";
pub(super) const ECHO: Method = Method::new(ServiceId::WAL, 1);
/// Answered with a no.
pub(super) const NO: Method = Method::new(ServiceId::WAL, 2);
/// The reply is dropped.
pub(super) const DROP: Method = Method::new(ServiceId::WAL, 3);
/// The reply is kept, and never given.
pub(super) const KEEP: Method = Method::new(ServiceId::WAL, 4);
/// A stream of as many parts as the first 4 bytes say, of as many bytes as the next 4 say.
pub(super) const PARTS: Method = Method::new(ServiceId::WAL, 5);

/// The service panics.
pub(super) const PANIC: Method = Method::new(ServiceId::WAL, 6);

pub(super) fn options(node_id: i32) -> RpcOptions {
    RpcOptions::new(address(node_id), node_id, CLUSTER, Secret::new("the secret of the tests"))
}

pub(super) fn address(node_id: i32) -> String {
    format!("127.0.0.1:{}", 7000 + node_id)
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

/// A world with these nodes, off.
pub(super) fn world(seed: u64, names: &[&str]) -> World {
    let mut world = World::new(seed);
    for name in names {
        world.add_node(name, Arc::new(SimDisk::new(seed)));
    }
    world
}

/// Steps until it is done.
pub(super) fn finish(world: &mut World, done: &Mutex<bool>) {
    for _ in 0..120_000 {
        world.step();
        if *done.lock() {
            return;
        }
    }
    panic!("not done after two minutes");
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    Request(Caller, u8, Bytes),
    Closed(Caller),
}

#[derive(Default)]
pub(super) struct Notes {
    pub(super) events: Mutex<Vec<Event>>,
    pub(super) kept: Mutex<Vec<Reply>>,
    /// Parts that streams have sent.
    pub(super) parts: Mutex<usize>,
}

pub(super) struct Noting {
    pub(super) host: Host,
    pub(super) notes: Arc<Notes>,
}

impl Service for Noting {
    fn request(&self, from: Caller, method: u8, body: Bytes, reply: Reply) {
        self.notes.events.lock().push(Event::Request(from, method, body.clone()));
        match method {
            1 => reply.send(Ok(vec![body])),
            2 => reply.send(Err(Refusal::new(7, "no"))),
            3 => drop(reply),
            4 => self.notes.kept.lock().push(reply),
            6 => panic!("as the test wants it"),
            _ => {
                let notes = Arc::clone(&self.notes);
                let word = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().unwrap());
                let (count, bytes) = (word(0), word(4) as usize);
                self.host.spawn("parts", async move {
                    let mut out = reply.into_stream();
                    for number in 0..count {
                        let part = vec![Bytes::from(vec![number as u8; bytes])];
                        if out.send(part).await.is_err() {
                            return;
                        }
                        *notes.parts.lock() += 1;
                    }
                    out.end();
                });
            }
        }
    }

    fn connection_closed(&self, from: Caller) {
        self.notes.events.lock().push(Event::Closed(from));
    }
}

/// Starts a transport whose WAL service notes.
pub(super) async fn serve(host: &Host, options: RpcOptions, notes: &Arc<Notes>) -> Rpc {
    let rpc = Rpc::start(host, options).await.unwrap();
    rpc.register(ServiceId::WAL, Arc::new(Noting { host: host.clone(), notes: Arc::clone(notes) }));
    rpc
}

pub(super) fn parts_of(count: u32, bytes: u32) -> Vec<Bytes> {
    let mut body = count.to_le_bytes().to_vec();
    body.extend(bytes.to_le_bytes());
    vec![body.into()]
}
