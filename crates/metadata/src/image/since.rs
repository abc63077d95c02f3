//! What differs between two versions of an image, for those who follow it from time to time and not effect by effect.
//!
//! Versions of one image share what did not change, and what they share is not looked at: a comparison costs what
//! differs, not what there is. Of versions that share nothing it is still right.

use super::{Extents, Image, Object, PartitionView};
use crate::ids::StoreId;
use crate::record::Extent;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use std::sync::Arc;

/// A thing as it was and as it is; at least one of them is there.
pub type Difference<'a, T> = (Option<&'a T>, Option<&'a T>);

impl Image {
    /// Objects whose record, references or live bytes are not what they were, ordered by id.
    pub fn objects_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = Difference<'a, Object>> {
        differences(&earlier.objects, &self.objects)
    }

    /// Partitions of a shard that are not what they were, ordered by topic id and number; a partition of a deleted topic that
    /// can be brought back is not there. Both images are of one cluster.
    pub fn shard_since<'a>(
        &'a self,
        earlier: &'a Self,
        shard: u32,
    ) -> impl Iterator<Item = Difference<'a, Arc<PartitionView>>> {
        let shards = earlier.shards.get(shard as usize).zip(self.shards.get(shard as usize));
        shards.into_iter().flat_map(|(was, is)| differences(&was.partitions, &is.partitions))
    }
}

impl PartitionView {
    /// How a store's list of extents differs between two versions of a partition; `None`: it was or is not there.
    pub fn stored_since<'a>(
        earlier: Option<&'a Self>,
        now: Option<&'a Self>,
        store: StoreId,
    ) -> impl Iterator<Item = Difference<'a, Extent>> {
        let list = |view: &'a Self| view.stores.get(&store);
        let (was, is) = (earlier.and_then(list), now.and_then(list));
        let gone = was.filter(|_| is.is_none()).into_iter().flat_map(Extents::values);
        let come = is.filter(|_| was.is_none()).into_iter().flat_map(Extents::values);
        let both = was.zip(is).into_iter().flat_map(|(was, is)| differences(was, is));
        gone.map(|extent| (Some(extent), None)).chain(come.map(|extent| (None, Some(extent)))).chain(both)
    }
}

fn differences<'a, K: Ord, V: PartialEq>(
    earlier: &'a OrdMap<K, V>,
    now: &'a OrdMap<K, V>,
) -> impl Iterator<Item = Difference<'a, V>> {
    earlier.diff(now).map(|item| match item {
        DiffItem::Add(_, is) => (None, Some(is)),
        DiffItem::Update { old: (_, was), new: (_, is) } => (Some(was), Some(is)),
        DiffItem::Remove(_, was) => (Some(was), None),
    })
}
