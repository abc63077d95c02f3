//! A lane whose streams end under it: by the log, and by metadata.

use std::collections::BTreeMap;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use isobar_metadata::command::{CloseStream, CreateTopics, GrantProducerId, NewTopic};
use isobar_metadata::{
    Command, CommandResult, DirectoryId, Durability, EffectBatch, PartitionKey, PlacementId, StreamId,
    TopicId,
};
use isobar_protocol::Uuid;
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::compression::Codec;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::records::BatchBuilder;
use isobar_testkit::Rng;
use isobar_wal::{AppendDone, BatchInfo, Chunk, LocalReplica, Wal, WalError};
use parking_lot::Mutex;

use crate::accumulator::{Checked, Waiting};
use crate::group::tests::node::boot_on;
use crate::{Alone, Broker, Ensembles};

/// Ends each stream after some chunks.
struct Breaking {
    wal: LocalReplica,
    host: Host,
    /// What each stream will still take.
    left: Mutex<BTreeMap<StreamId, u64>>,
}

#[async_trait]
impl Wal for Breaking {
    fn append(&self, chunk: Chunk, done: AppendDone) {
        let takes = {
            let mut left = self.left.lock();
            let left = left.entry(chunk.stream()).or_insert_with(|| self.host.random_u64() % 12);
            let takes = *left > 0;
            *left = left.saturating_sub(1);
            takes
        };
        if takes {
            return self.wal.append(chunk, done);
        }
        // A refusal may come within the call.
        let wait = Duration::from_micros(self.host.random_u64() % 3_000);
        if wait.subsec_micros().is_multiple_of(2) {
            return done(Err(WalError::Closed));
        }
        let _ = self.host.spawn("test.broken", async move {
            tokio::time::sleep(wait).await;
            done(Err(WalError::Closed));
        });
    }

    fn max_chunk_bytes(&self) -> usize {
        self.wal.max_chunk_bytes()
    }

    fn has_room(&self) -> bool {
        self.wal.has_room()
    }

    async fn room(&self) {
        self.wal.room().await;
    }

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        self.wal.read(stream, number, ordinals).await
    }

    fn follow(&self, batch: &EffectBatch) {
        self.wal.follow(batch);
    }
}

/// Has something better now and then, whatever is under way.
struct Restless(Alone, Host);

#[async_trait]
impl Ensembles for Restless {
    async fn choose(&self) -> Result<(Vec<DirectoryId>, u32), String> {
        self.0.choose().await
    }

    fn opened(&self, stream: StreamId, ensemble: &[DirectoryId], write_quorum: u32) {
        self.0.opened(stream, ensemble, write_quorum);
    }

    async fn until_better(&self, _: StreamId) {
        tokio::time::sleep(Duration::from_micros(self.1.random_u64() % 50_000)).await;
    }
}

fn checked(key: PartitionKey, producer: i64, sequence: i32, records: i32) -> Checked {
    let mut builder = BatchBuilder::new(Codec::None).producer(producer, 0, sequence);
    for n in 0..records {
        let value = format!("{}", sequence + n);
        builder.push(1_000, None, Some(value.as_bytes()), &[("", None); 0]);
    }
    let bytes = builder.build().unwrap();
    let header = BatchHeader::parse(&bytes).unwrap();
    let info = BatchInfo::new(&header, 0);
    Checked { key, info, bytes, durability: Durability::Wal, class_epoch: 0, index: 0 }
}

async fn make_topic(broker: &Broker) -> TopicId {
    let topic_id = TopicId(Uuid::from_u128(7));
    let new = NewTopic {
        name: "t".to_owned(),
        topic_id,
        partitions: 1,
        replication_factor: 1,
        configs: BTreeMap::new(),
        placement: PlacementId::DEFAULT,
    };
    let topics = Command::CreateTopics(CreateTopics { topics: vec![new], validate_only: false });
    broker.session.propose(topics).await.unwrap();
    topic_id
}

/// What was taken in under another version of the topic's class is refused, and no batch behind it covers that up.
async fn of_two_class_epochs(host: Host) {
    let running = boot_on(&host, |wal| Arc::new(wal), |directory| Arc::new(Alone(directory))).await;
    let broker = Arc::clone(&running.broker);
    let key = PartitionKey::new(make_topic(&broker).await, 0);
    let stale = Checked { class_epoch: 7, ..checked(key, -1, -1, 1) };
    let fresh = Checked { index: 1, ..checked(key, -1, -1, 1) };
    let waiting = Waiting::new(2, 2, Vec::new());
    broker.lanes.wal.push([&stale, &fresh].into_iter(), &waiting);
    let errors: Vec<ErrorCode> = waiting.outcomes().await.into_iter().map(|outcome| outcome.error).collect();
    assert_eq!(errors, [ErrorCode::NotLeaderOrFollower, ErrorCode::None]);
}

fn in_a_world<T: Send + 'static>(
    seed: u64,
    scenario: impl FnOnce(Host) -> Pin<Box<dyn Future<Output = T> + Send>> + Send + 'static,
) -> T {
    let mut world = World::new(seed);
    world.add_node("a", Arc::new(SimDisk::new(seed)));
    let ended = Arc::new(Mutex::new(None));
    let told = Arc::clone(&ended);
    world.boot("a", move |host| async move {
        let result = scenario(host).await;
        *told.lock() = Some(result);
    });
    for _ in 0..200_000 {
        world.step();
        if ended.lock().is_some() {
            break;
        }
    }
    ended.lock().take().expect("everything is answered in time")
}

#[test]
fn a_chunk_is_of_one_class_epoch() {
    in_a_world(1, |host| Box::pin(of_two_class_epochs(host)));
}

async fn scenario(host: Host, seed: u64) -> u64 {
    let replica =
        |wal| -> Arc<dyn Wal> { Arc::new(Breaking { wal, host: host.clone(), left: Mutex::default() }) };
    let restless = |directory| -> Arc<dyn Ensembles> { Arc::new(Restless(Alone(directory), host.clone())) };
    let running = boot_on(&host, replica, restless).await;
    let broker = Arc::clone(&running.broker);
    let topic_id = make_topic(&broker).await;
    let granted = broker.session.propose(Command::GrantProducerId(GrantProducerId { count: 1 })).await;
    let Ok(CommandResult::ProducerIds(granted)) = granted else { panic!("{granted:?}") };
    let lane = Arc::clone(&broker.lanes.wal);
    let mut rng = Rng::new(seed);
    let mut sent = Vec::new();
    let mut next = 0;
    for _ in 0..150 {
        let records = 1 + rng.below(3) as i32;
        let batch = checked(PartitionKey::new(topic_id, 0), granted.first, next, records);
        let waiting = Waiting::new(1, 1, Vec::new());
        lane.push(std::iter::once(&batch), &waiting);
        sent.push((i64::from(next), waiting));
        next += records;
        if rng.below(3) == 0 {
            tokio::time::sleep(Duration::from_micros(rng.below(4_000))).await;
        }
        if rng.below(20) == 0 {
            // Metadata ends the stream: what is durable there and not committed has to move as well.
            let stream = lane.state.lock().stream;
            broker.session.propose(Command::CloseStream(CloseStream { stream })).await.unwrap();
        }
    }
    for (offset, waiting) in sent {
        let outcomes = waiting.outcomes().await;
        assert_eq!((outcomes[0].error, outcomes[0].base_offset), (ErrorCode::None, offset));
    }
    assert_eq!(lane.queued_bytes(), 0);
    // What was left is closed, although the lane goes on to others.
    let mut tidy = false;
    for _ in 0..400 {
        let open = broker.image.with(|image| image.streams().filter(|stream| !stream.record.closed).count());
        tidy |= open == 1 && lane.state.lock().left.is_empty();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(tidy, "{} streams were left and not closed", lane.state.lock().left.len());
    let last = lane.state.lock().stream;
    last.0
}

#[test]
fn a_lane_goes_on_over_other_streams_and_keeps_its_order() {
    let mut streams = 0;
    for seed in 0..12 {
        streams += in_a_world(seed, move |host| Box::pin(scenario(host, seed))) & 0xffff;
    }
    assert!(streams > 12 * 5, "{streams} streams: too few ended");
}
