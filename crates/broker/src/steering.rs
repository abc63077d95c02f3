//! Who comes to a broker that does not lead a partition for its zone is sent to the one that does, once.
//!
//! Any broker serves any partition, so nothing depends on it: it gathers a zone's traffic where Metadata says, and gives a broker that
//! has joined or come back its share at once instead of at the clients' next look at the metadata, minutes later.
//! Produce and Fetch are steered by NOT_LEADER_OR_FOLLOWER with the leader beside it (KIP-951), Produce before anything of the batch is
//! appended and never with acks=0; a reader that says its zone in Fetch alone (`client.rack`), by a preferred read replica (KIP-392).
//! For half a second on a connection and partition after each change of the map; whoever still comes then cannot or will not go,
//! and is served.

use std::collections::BTreeMap;
use std::time::Duration;

use isobar_metadata::{Image, PartitionKey};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long one connection is sent away for one partition and one version of the map.
const INSISTS: Duration = Duration::from_millis(500);
/// Partitions that a connection is remembered to have been sent away for; with more, all may be sent once again.
const MOST_PARTITIONS: usize = 10_000;

/// What one connection has been told. See the module.
#[derive(Debug, Default)]
pub(crate) struct Steering {
    told: Mutex<BTreeMap<PartitionKey, Told>>,
}

#[derive(Debug)]
struct Told {
    leader_epoch: i32,
    since: Instant,
}

/// Where to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) node_id: i32,
    pub(crate) leader_epoch: i32,
    pub(crate) host: String,
    pub(crate) port: i32,
    pub(crate) rack: String,
}

impl Steering {
    /// Whom to send a client of `zone` to that came to the broker `me`; `None`: nobody, serve it.
    pub(crate) fn away(
        &self,
        image: &Image,
        me: i32,
        key: PartitionKey,
        zone: &str,
        now: Instant,
    ) -> Option<Leader> {
        let node_id = image.leader(key, zone).map(|leader| leader.node_id).filter(|leader| *leader != me)?;
        let leader_epoch = image.leader_epoch(key);
        let mut told = self.told.lock();
        if told.len() >= MOST_PARTITIONS && !told.contains_key(&key) {
            told.clear();
        }
        let said = told.entry(key).or_insert(Told { leader_epoch, since: now });
        if said.leader_epoch != leader_epoch {
            *said = Told { leader_epoch, since: now };
        }
        if now >= said.since + INSISTS {
            return None;
        }
        drop(told);
        let session = image.broker(node_id)?;
        let (host, port, rack) = (session.host.clone(), session.port, session.zone.clone());
        Some(Leader { node_id, leader_epoch, host, port, rack })
    }
}
