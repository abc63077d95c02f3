//! One partition at one version.

use crate::ids::{PartitionKey, StoreId, TopicId};
use crate::record::{EpochStart, Extent, Location};
use imbl::OrdMap;
use std::sync::Arc;

/// Extents by base offset; they do not overlap.
pub type Extents = OrdMap<i64, Extent>;

/// What a fetch takes of a partition: all from one version.
#[derive(Clone, Debug, PartialEq)]
pub struct PartitionView {
    pub topic_id: TopicId,
    pub partition: i32,
    pub log_start: i64,
    pub high_watermark: i64,
    /// The high watermark until transactions are built.
    pub last_stable_offset: i64,
    /// Ascending by offset; the first starts at 0.
    pub epochs: Arc<[EpochStart]>,
    /// WAL and Inline extents: those that some required store still lacks.
    pub wal: Extents,
    /// Object extents, one list for each store.
    pub stores: OrdMap<StoreId, Extents>,
    /// Sum of the sizes in `wal`.
    pub wal_bytes: u64,
}

impl PartitionView {
    pub(crate) fn new(key: PartitionKey, leader_epoch: i32) -> Self {
        Self {
            topic_id: key.topic_id,
            partition: key.partition,
            log_start: 0,
            high_watermark: 0,
            last_stable_offset: 0,
            epochs: Arc::new([EpochStart { leader_epoch, start_offset: 0 }]),
            wal: Extents::new(),
            stores: OrdMap::new(),
            wal_bytes: 0,
        }
    }

    pub fn key(&self) -> PartitionKey {
        PartitionKey::new(self.topic_id, self.partition)
    }

    /// The leader epoch that the batch at `offset` is stamped with.
    pub fn epoch_at(&self, offset: i64) -> i32 {
        let after = self.epochs.partition_point(|epoch| epoch.start_offset <= offset);
        self.epochs.get(after.saturating_sub(1)).map_or(0, |epoch| epoch.leader_epoch)
    }

    /// The leader epoch that the next batch is stamped with.
    pub fn leader_epoch(&self) -> i32 {
        self.epochs.last().map_or(0, |epoch| epoch.leader_epoch)
    }

    /// OffsetForLeaderEpoch: the greatest epoch at or below `epoch` and its end offset. `None`: `epoch` is below all.
    pub fn end_of_epoch(&self, epoch: i32) -> Option<(i32, i64)> {
        let after = self.epochs.partition_point(|start| start.leader_epoch <= epoch);
        let found = self.epochs.get(after.checked_sub(1)?)?;
        let end = self.epochs.get(after).map_or(self.high_watermark, |next| next.start_offset);
        Some((found.leader_epoch, end))
    }

    /// The extent to read `offset` from: the WAL's while it has one (own memory is nearest), else that of the first of
    /// `prefer` that has one, else any. `None` only outside `[log_start, high_watermark)`.
    pub fn locate(&self, offset: i64, prefer: &[StoreId]) -> Option<&Extent> {
        if offset < self.log_start || offset >= self.high_watermark {
            return None;
        }
        if let Some(extent) = find(&self.wal, offset) {
            return Some(extent);
        }
        let preferred = prefer.iter().filter_map(|store| self.stores.get(store));
        let all = self.stores.values();
        preferred.chain(all).find_map(|extents| find(extents, offset))
    }

    /// The WAL or Inline extent that holds `offset`.
    pub fn locate_in_wal(&self, offset: i64) -> Option<&Extent> {
        find(&self.wal, offset)
    }

    /// The store's extent that holds `offset`.
    pub fn locate_in_store(&self, store: StoreId, offset: i64) -> Option<&Extent> {
        find(self.stores.get(&store)?, offset)
    }

    /// The location of the same bytes in an object, for when a chunk is gone.
    pub fn object_at(&self, offset: i64) -> Option<&Extent> {
        self.stores
            .values()
            .find_map(|extents| find(extents, offset))
            .filter(|extent| matches!(extent.location, Some(Location::Object(_))))
    }
}

/// The extent of a list that holds `offset`.
pub(crate) fn find(extents: &Extents, offset: i64) -> Option<&Extent> {
    let (_, extent) = extents.get_prev(&offset)?;
    extent.contains(offset).then_some(extent)
}
