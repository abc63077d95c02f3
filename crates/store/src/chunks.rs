//! Chunks of the durability class `object`: each is put as an object of its own, and committed with that location.
//!
//! Owns: the PUTs of one lane that are under way, and the order in which they are told.
//! Layout: [`format`](crate::format)'s objects of a chunk: the partitions' batches in the order of the chunk's table, as the
//! producers sent them.
//!
//! Invariants
//! 1. `done` is told of success only after the store has acknowledged the whole object.
//! 2. `done`s are told in the order of the appends, whatever order the PUTs end in.
//! 3. Once one append has failed, all that were under way behind it are told that they failed, whatever became of their
//!    PUTs; so whoever goes on takes the numbers back from the failed one on and no chunk overtakes an earlier one.
//! 4. An object id is used for one PUT. One whose chunk was not committed is given up: its deadline expires it.
//!
//! Failure and retry: the bucket retries within its deadline; then the append fails and its clients try again.
//! Crash cases: before the commit the object is garbage that its deadline expires; its batches were not acknowledged.
//! Leaks accepted: none beyond that deadline.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use isobar_host::{Host, Spawner};
use isobar_metadata::ids::{LaneId, ObjectId, SessionId, StoreId};
use isobar_protocol::batch::BatchHeader;
use isobar_wal::Chunk;
use parking_lot::Mutex;

use crate::cache::{BLOCK_BYTES, BlockCache, BlockKey, BlockSource};
use crate::cause::Cause;
use crate::cluster::Proposer;
use crate::format::{ObjectBuilder, Origin, object_key};
use crate::ids::ObjectIds;
use crate::{Bucket, StoreError};

/// Ids asked for at a time: many, as each chunk takes one.
const GRANT_COUNT: u32 = 64;
/// How long a granted id may wait for its commit.
const GRANT_LIFETIME: Duration = Duration::from_secs(600);

/// Where a chunk was put: what its commit names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacedChunk {
    /// The object. Its body begins with the first partition's batches; each partition's follow the one before.
    pub object: ObjectId,
    /// The store it lies in.
    pub store: StoreId,
    /// The whole object's size in bytes.
    pub size_bytes: u64,
}

/// Told once how an append went. An error: the chunk is not committed and its number is not used up.
pub type PlacedDone = Box<dyn FnOnce(Result<PlacedChunk, StoreError>) + Send>;

/// What a lane of the class `object` writes to. A clone is the same.
#[derive(Clone)]
pub struct ChunkStore {
    shared: Arc<Shared>,
}

/// What a [`ChunkStore`] works with.
pub struct ChunkStoreParts {
    /// The machine.
    pub host: Host,
    /// Where objects go.
    pub bucket: Bucket,
    /// The bucket's number in metadata.
    pub store: StoreId,
    /// What was put is what tail readers ask for next: its blocks go here.
    pub cache: Arc<dyn BlockCache>,
    /// The way to metadata, for ids.
    pub proposer: Arc<dyn Proposer>,
    /// Whose chunks they are.
    pub session: SessionId,
    /// The lane.
    pub lane: LaneId,
}

struct Shared {
    parts: ChunkStoreParts,
    /// Of whoever made it: appends come on threads that are not for PUTs.
    spawner: Spawner,
    ids: ObjectIds,
    line: Mutex<Line>,
}

/// PUTs in the order of their appends.
#[derive(Default)]
struct Line {
    /// Tickets given so far.
    issued: u64,
    /// Tickets told so far.
    told: u64,
    /// Ended, but an earlier one has not.
    ended: BTreeMap<u64, (Result<PlacedChunk, StoreError>, PlacedDone)>,
    /// One has failed; what is under way fails with it.
    failed: Option<StoreError>,
    /// Somebody is telling; whoever else would leaves it to him.
    telling: bool,
}

impl ChunkStore {
    /// For one lane of one session.
    pub fn new(parts: ChunkStoreParts) -> Self {
        let ids = ObjectIds::new(&parts.host, Arc::clone(&parts.proposer), GRANT_COUNT, GRANT_LIFETIME);
        let spawner = Spawner::current();
        Self { shared: Arc::new(Shared { parts, spawner, ids, line: Mutex::default() }) }
    }

    /// Puts a chunk. `number` is the one its commit will have.
    pub fn append(&self, chunk: Chunk, number: u64, done: PlacedDone) {
        let ticket = {
            let mut line = self.shared.line.lock();
            line.issued += 1;
            line.issued - 1
        };
        let shared = Arc::clone(&self.shared);
        self.shared.spawner.spawn("chunk-put", async move {
            let landing = Landing { shared: Arc::clone(&shared), ticket, done: Some(done) };
            let put = shared.put(&chunk, number).await;
            landing.land(put);
        });
    }
}

impl Shared {
    async fn put(&self, chunk: &Chunk, number: u64) -> Result<PlacedChunk, StoreError> {
        let ChunkStoreParts { host, bucket, store, proposer, session, lane, .. } = &self.parts;
        let Some(object) = self.ids.take().await else {
            return Err(StoreError::DidNotHappen {
                op: "put",
                key: format!("chunk {number}"),
                cause: Cause::Unreachable,
                why: "metadata granted no object id".to_owned(),
            });
        };
        let origin = Origin { session: session.0, lane: lane.0, number };
        let cluster_id = proposer.image().format().cluster_id.clone();
        let parts = build(chunk, ObjectBuilder::of_chunk(cluster_id, object, host.now_ms(), origin))?;
        let size_bytes = parts.iter().map(|part| part.len() as u64).sum();
        host.crash_point("object.before_put");
        bucket.put(&object_key(object), parts.clone()).await?;
        host.crash_point("object.after_put");
        self.keep(object, &parts).await;
        Ok(PlacedChunk { object, store: *store, size_bytes })
    }

    /// Puts the object's blocks into the cache.
    async fn keep(&self, object: ObjectId, parts: &[Bytes]) {
        let blocks = blocks_of(parts);
        let count = blocks.len() as u32;
        let written: Arc<dyn BlockSource> = Arc::new(Written(blocks));
        for block in 0..count {
            if let Err(error) = self.parts.cache.get(BlockKey { object, block }, &written).await {
                tracing::debug!(%error, %object, "a chunk's block was not kept");
            }
        }
    }

    /// Tells whoever is next in line, one at a time.
    fn tell(&self) {
        let mut line = self.line.lock();
        if line.telling {
            return;
        }
        line.telling = true;
        loop {
            let next = line.told;
            let Some((result, done)) = line.ended.remove(&next) else { break };
            line.told += 1;
            if let Err(error) = &result {
                line.failed.get_or_insert_with(|| error.clone());
            }
            let result = match &line.failed {
                Some(error) => Err(error.clone()),
                None => result,
            };
            if line.told == line.issued {
                line.failed = None;
            }
            drop(line);
            done(result);
            line = self.line.lock();
        }
        line.telling = false;
    }
}

/// Copies an object into blocks of their own: its parts are slices of the chunk's buffer, which is to be given back, and a
/// block that stays must not keep the others alive.
fn blocks_of(parts: &[Bytes]) -> Vec<Bytes> {
    let mut blocks = Vec::new();
    let mut open = BytesMut::with_capacity(BLOCK_BYTES as usize);
    for part in parts {
        let mut rest = &part[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(BLOCK_BYTES as usize - open.len()));
            open.extend_from_slice(now);
            rest = later;
            if open.len() == BLOCK_BYTES as usize {
                blocks.push(open.split().freeze());
                open = BytesMut::with_capacity(BLOCK_BYTES as usize);
            }
        }
    }
    if !open.is_empty() {
        blocks.push(Bytes::copy_from_slice(&open));
    }
    blocks
}

/// An object that was just put, as a source of its blocks.
struct Written(Vec<Bytes>);

#[async_trait]
impl BlockSource for Written {
    async fn load(
        &self,
        _: ObjectId,
        blocks: Range<u32>,
        found: &mut (dyn FnMut(Bytes) + Send),
    ) -> Result<(), StoreError> {
        blocks.filter_map(|block| self.0.get(block as usize)).for_each(|bytes| found(bytes.clone()));
        Ok(())
    }
}

/// An append under way. If its task dies, the line goes on.
struct Landing {
    shared: Arc<Shared>,
    ticket: u64,
    done: Option<PlacedDone>,
}

impl Landing {
    fn land(mut self, result: Result<PlacedChunk, StoreError>) {
        self.end(result);
    }

    fn end(&mut self, result: Result<PlacedChunk, StoreError>) {
        if let Some(done) = self.done.take() {
            self.shared.line.lock().ended.insert(self.ticket, (result, done));
            self.shared.tell();
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.end(Err(StoreError::Stopping));
    }
}

/// The object of a chunk.
fn build(chunk: &Chunk, mut builder: ObjectBuilder) -> Result<Vec<Bytes>, StoreError> {
    for partition in chunk.partitions() {
        let mut base_offset = 0;
        for ordinal in (partition.first_ordinal..).take(partition.batches.len()) {
            let batch = chunk.batch(ordinal).ok_or_else(|| damaged(ordinal, "is not in it"))?;
            let header = BatchHeader::parse(&batch).map_err(|error| damaged(ordinal, &error.to_string()))?;
            builder.push_raw(partition.key, &batch, &header, base_offset);
            base_offset += i64::from(header.last_offset_delta) + 1;
        }
    }
    Ok(builder.finish().0)
}

fn damaged(ordinal: u32, why: &str) -> StoreError {
    StoreError::Damaged { key: "an open chunk".to_owned(), why: format!("batch {ordinal}: {why}") }
}

#[cfg(test)]
mod tests;
