//! Index objects: extents that have left metadata's memory, so that it is bounded by what is active and not by what is retained.
//!
//! Owns: the [`Indexer`], one task that writes blocks of extents into an object and has metadata swap the extents for pointers;
//! and the [`IndexReader`], which opens the blocks again. What a block looks like is metadata's
//! ([`isobar_metadata::index_block`]); the object that holds them has a footer of its own
//! ([`crate::format::index_object`]).
//!
//! Invariants
//! 1. `CommitIndex` is proposed only after the store has acknowledged the object. It names number and hash of the extents, and
//!    apply takes a block only while the list holds exactly these.
//! 2. A block is checked against its CRC and against its pointer before anything is believed of it.
//! 3. An object id is used once; one that failed is given up, and its deadline expires it.
//!
//! Failure: tried again at the next round. A damaged block is fetched once more, then it is an error that names the place.
//!
//! Crash, at any step: the extents are still listed, and the object is garbage that its deadline expires; or the commit counted.

pub mod plan;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, Task};
use isobar_metadata::command::{CommitIndex, GrantObjects, IndexRun};
use isobar_metadata::ids::{ObjectId, PartitionKey, StoreId};
use isobar_metadata::index_block::{IndexBlock, extents_hash};
use isobar_metadata::{Command, CommandResult, Extent, IndexPointer};
use parking_lot::Mutex;

use crate::cluster::{JOBS_FEATURE_LEVEL, Proposer, keeps_cluster};
use crate::format::{index_object, object_key};
use crate::metrics::JobLabels;
use crate::{Bucket, ObjectReader, StoreError};
use plan::{Limits, Planned, plan};

/// Extents in decoded blocks that are kept, over all blocks.
const DECODED_EXTENTS: usize = 32 << 10;

/// Opens index blocks. Cheap to clone; clones share what they have decoded.
#[derive(Clone)]
pub struct IndexReader {
    objects: ObjectReader,
    decoded: Arc<Mutex<Decoded>>,
}

type BlockPlace = (ObjectId, u64);

/// The blocks decoded last.
#[derive(Default)]
struct Decoded {
    blocks: BTreeMap<BlockPlace, Arc<IndexBlock>>,
    order: VecDeque<BlockPlace>,
    extents: usize,
}

impl Decoded {
    fn insert(&mut self, place: BlockPlace, block: &Arc<IndexBlock>) {
        if self.blocks.insert(place, Arc::clone(block)).is_none() {
            self.order.push_back(place);
            self.extents += block.extents.len();
        }
        while self.extents > DECODED_EXTENTS
            && self.order.len() > 1
            && let Some(oldest) = self.order.pop_front()
        {
            self.extents -= self.blocks.remove(&oldest).map_or(0, |block| block.extents.len());
        }
    }
}

impl IndexReader {
    /// Reads blocks through this reader's cache.
    pub fn new(objects: ObjectReader) -> Self {
        Self { objects, decoded: Arc::default() }
    }

    /// The block that a pointer of this partition names. `NotFound`: the pointer is stale.
    pub async fn block(
        &self,
        key: PartitionKey,
        pointer: &IndexPointer,
    ) -> Result<Arc<IndexBlock>, StoreError> {
        let place = (pointer.object, pointer.position);
        if let Some(block) = self.decoded.lock().blocks.get(&place) {
            return Ok(Arc::clone(block));
        }
        let mut last_try = false;
        loop {
            let bytes = self.objects.bytes(pointer.object, pointer.range()).await?;
            match IndexBlock::of_pointer(&bytes, key, pointer) {
                Ok(block) => {
                    let block = Arc::new(block);
                    self.decoded.lock().insert(place, &block);
                    return Ok(block);
                }
                Err(error) if last_try => {
                    let why = format!("index block at {:?}: {error}", pointer.range());
                    return Err(StoreError::Damaged { key: object_key(pointer.object), why });
                }
                Err(error) => {
                    tracing::warn!(%error, object = %pointer.object, "fetching a damaged index block again");
                    self.objects.forget(pointer.object, pointer.range());
                    last_try = true;
                }
            }
        }
    }

    /// The extent that holds an offset inside the pointer's.
    pub async fn resolve(
        &self,
        key: PartitionKey,
        pointer: &IndexPointer,
        offset: i64,
    ) -> Result<Extent, StoreError> {
        let block = self.block(key, pointer).await?;
        let found = block.find(offset);
        found.cloned().ok_or_else(|| StoreError::Damaged {
            key: object_key(pointer.object),
            why: format!("the index block at {:?} lacks offset {offset}", pointer.range()),
        })
    }
}

/// Settings of the indexer.
#[derive(Debug, Clone)]
pub struct IndexerOptions {
    /// The bucket's number in metadata.
    pub store: StoreId,
    /// How often it looks.
    pub interval: Duration,
    /// What is moved.
    pub limits: Limits,
    /// How long a granted id may wait for its commit.
    pub grant_lifetime: Duration,
}

impl Default for IndexerOptions {
    fn default() -> Self {
        Self {
            store: StoreId(1),
            interval: Duration::from_secs(30),
            limits: Limits::default(),
            grant_lifetime: Duration::from_secs(600),
        }
    }
}

/// The running indexer.
pub struct Indexer {
    task: Task,
}

impl Indexer {
    /// Starts the task.
    pub fn start(host: &Host, bucket: Bucket, proposer: Arc<dyn Proposer>, options: IndexerOptions) -> Self {
        let work = Work { host: host.clone(), bucket, proposer, options };
        let task = host.spawn("indexer", async move {
            loop {
                tokio::time::sleep(work.options.interval).await;
                while work.round().await {}
            }
        });
        Self { task }
    }

    /// Stops at the next await; what is under way is given up, as in a crash.
    pub async fn stop(self) {
        self.task.abort();
        self.task.join().await;
    }
}

struct Work {
    host: Host,
    bucket: Bucket,
    proposer: Arc<dyn Proposer>,
    options: IndexerOptions,
}

impl Work {
    /// Writes one index object if one is due. True: a full one, and there is more.
    async fn round(&self) -> bool {
        let image = self.proposer.image();
        if image.feature_level() < JOBS_FEATURE_LEVEL || !keeps_cluster(&image, self.proposer.session()) {
            return false;
        }
        let planned = plan(&image, self.options.store, &self.options.limits);
        if planned.is_empty() {
            return false;
        }
        let is_full = planned.len() == self.options.limits.blocks;
        let cluster_id = image.format().cluster_id.clone();
        match self.write(cluster_id, planned).await {
            Some(applied) => {
                self.bucket.metrics().jobs.get_or_create(&JobLabels { job: "index" }).inc();
                // None applied: the image is behind; it will have moved by the next round.
                is_full && applied > 0
            }
            None => {
                self.bucket.metrics().failed_jobs.get_or_create(&JobLabels { job: "index" }).inc();
                false
            }
        }
    }

    async fn write(&self, cluster_id: String, planned: Vec<Planned>) -> Option<usize> {
        let lifetime_ms = i64::try_from(self.options.grant_lifetime.as_millis()).unwrap_or(i64::MAX);
        let grant = Command::GrantObjects(GrantObjects { count: 1, lifetime_ms });
        let object = match self.proposer.propose(grant).await {
            Ok(CommandResult::Objects(granted)) if granted.error_code == 0 && granted.count > 0 => {
                granted.first
            }
            other => {
                tracing::warn!(answer = ?other, "no object id granted for an index");
                return None;
            }
        };
        let blocks = planned.iter().map(|planned| {
            let (first, last) = span(&planned.extents);
            (planned.key, first, last, IndexBlock::new(planned.key, planned.extents.clone()).to_bytes())
        });
        let (parts, placed) = index_object(cluster_id, object, self.host.now_ms(), blocks.collect());
        let size_bytes = parts.iter().map(|part| part.len() as u64).sum();
        self.host.crash_point("index.before_put");
        if let Err(error) = self.bucket.put(&object_key(object), parts).await {
            tracing::warn!(%error, %object, "index object not written; again later");
            return None;
        }
        self.host.crash_point("index.after_put");
        let runs = planned.iter().zip(&placed).map(|(planned, block)| IndexRun {
            topic_id: planned.key.topic_id,
            partition: planned.key.partition,
            base_offset: block.first_offset,
            last_offset: block.last_offset,
            extents: planned.extents.len() as u32,
            hash: extents_hash(&planned.extents),
            position: block.range.start,
            // A block lists some hundred extents.
            size_bytes: (block.range.end - block.range.start) as u32,
        });
        let command = CommitIndex { object, store: self.options.store, size_bytes, runs: runs.collect() };
        match self.proposer.propose(Command::CommitIndex(command)).await {
            Ok(CommandResult::ObjectCommitted(result)) if result.error_code == 0 => {
                self.host.crash_point("index.after_commit");
                let extents = result.applied.iter().filter_map(|run| planned.get(*run as usize));
                let extents: usize = extents.map(|planned| planned.extents.len()).sum();
                self.bucket.metrics().indexed_extents.inc_by(extents as u64);
                tracing::info!(%object, blocks = planned.len(), applied = result.applied.len(), extents, "extents indexed");
                Some(result.applied.len())
            }
            other => {
                tracing::warn!(answer = ?other, %object, "an index object was not committed");
                None
            }
        }
    }
}

fn span(extents: &[Extent]) -> (i64, i64) {
    let first = extents.first().map_or(0, |extent| extent.base_offset);
    (first, extents.last().map_or(-1, |extent| extent.last_offset))
}
