//! One partition at one version.

use crate::ids::{PartitionKey, StoreId, TopicId};
use crate::record::{EpochStart, Extent, IndexPointer, epoch_at};
use imbl::OrdMap;
use std::sync::Arc;

/// Extents by base offset; they do not overlap.
pub type Extents = OrdMap<i64, Extent>;

/// Index pointers by base offset; they overlap neither each other nor the extents of the same store.
pub type Pointers = OrdMap<i64, IndexPointer>;

/// What says where an offset lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found<'a> {
    Extent(&'a Extent),
    /// The extent is in a block of an index object; see [`crate::index_block`].
    Indexed(&'a IndexPointer),
}

impl<'a> Found<'a> {
    pub fn base_offset(self) -> i64 {
        match self {
            Self::Extent(extent) => extent.base_offset,
            Self::Indexed(pointer) => pointer.base_offset,
        }
    }
    /// Inclusive.
    pub fn last_offset(self) -> i64 {
        match self {
            Self::Extent(extent) => extent.last_offset,
            Self::Indexed(pointer) => pointer.last_offset,
        }
    }
    /// One past the last offset.
    pub fn end_offset(self) -> i64 {
        self.last_offset() + 1
    }
    pub fn contains(self, offset: i64) -> bool {
        self.base_offset() <= offset && offset <= self.last_offset()
    }
    /// The greatest in it.
    pub fn max_timestamp_ms(self) -> i64 {
        match self {
            Self::Extent(extent) => extent.max_timestamp_ms,
            Self::Indexed(pointer) => pointer.max_timestamp_ms,
        }
    }
    /// Bytes of batches.
    pub fn size_bytes(self) -> u64 {
        match self {
            Self::Extent(extent) => extent.size_bytes,
            Self::Indexed(pointer) => pointer.bytes,
        }
    }
    /// `None`: it is in an index object.
    pub fn extent(self) -> Option<&'a Extent> {
        match self {
            Self::Extent(extent) => Some(extent),
            Self::Indexed(_) => None,
        }
    }
}

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
    /// Where the object extents went that are in a store's list no more.
    pub indexed: OrdMap<StoreId, Pointers>,
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
            indexed: OrdMap::new(),
            wal_bytes: 0,
        }
    }

    pub fn key(&self) -> PartitionKey {
        PartitionKey::new(self.topic_id, self.partition)
    }

    /// The leader epoch that the batch at `offset` is stamped with.
    pub fn epoch_at(&self, offset: i64) -> i32 {
        epoch_at(&self.epochs, offset)
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

    /// Where to read `offset` from: the WAL's extent while it has one (own memory is nearest), else what the first of
    /// `prefer` has that has any, else any. `None` only outside `[log_start, high_watermark)`.
    pub fn locate(&self, offset: i64, prefer: &[StoreId]) -> Option<Found<'_>> {
        if offset < self.log_start || offset >= self.high_watermark {
            return None;
        }
        if let Some(extent) = find(&self.wal, offset) {
            return Some(Found::Extent(extent));
        }
        prefer.iter().find_map(|store| self.locate_in_store(*store, offset)).or_else(|| {
            let listed = self.stores.values().find_map(|extents| find(extents, offset));
            let indexed = || self.indexed.values().find_map(|pointers| find_pointer(pointers, offset));
            listed.map(Found::Extent).or_else(|| indexed().map(Found::Indexed))
        })
    }

    /// The WAL or Inline extent that holds `offset`.
    pub fn locate_in_wal(&self, offset: i64) -> Option<&Extent> {
        find(&self.wal, offset)
    }

    /// What holds `offset` in the store, whether inside the log or not.
    pub fn locate_in_store(&self, store: StoreId, offset: i64) -> Option<Found<'_>> {
        if let Some(extent) = self.stores.get(&store).and_then(|extents| find(extents, offset)) {
            return Some(Found::Extent(extent));
        }
        find_pointer(self.indexed.get(&store)?, offset).map(Found::Indexed)
    }

    /// Whether the store has every offset of `[from, to]`, in objects that extents or pointers name.
    pub fn is_stored(&self, store: StoreId, from: i64, to: i64) -> bool {
        let mut next = from;
        while next <= to {
            match self.locate_in_store(store, next) {
                Some(found) => next = found.end_offset(),
                None => return false,
            }
        }
        true
    }

    /// Whether the store has any offset of `[from, to]`.
    pub fn is_partly_stored(&self, store: StoreId, from: i64, to: i64) -> bool {
        let listed = self.stores.get(&store).and_then(|extents| extents.get_prev(&to));
        let indexed = self.indexed.get(&store).and_then(|pointers| pointers.get_prev(&to));
        listed.is_some_and(|(_, extent)| extent.last_offset >= from)
            || indexed.is_some_and(|(_, pointer)| pointer.last_offset >= from)
    }
}

/// The extent of a list that holds `offset`.
fn find(extents: &Extents, offset: i64) -> Option<&Extent> {
    let (_, extent) = extents.get_prev(&offset)?;
    extent.contains(offset).then_some(extent)
}

fn find_pointer(pointers: &Pointers, offset: i64) -> Option<&IndexPointer> {
    let (_, pointer) = pointers.get_prev(&offset)?;
    pointer.contains(offset).then_some(pointer)
}
