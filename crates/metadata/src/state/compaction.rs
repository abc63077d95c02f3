//! Compaction: swaps of object extents to larger objects, and to pointers into index objects.
//!
//! Both name what they replace and count only while that is unchanged, so they need no claim and may race with each other,
//! with retention and with the deletion of topics: what has changed is dead bytes.

use super::StateMachine;
use super::objects::{extent_of, not_open};
use crate::codes;
use crate::command::{CommitIndex, CompactObjects, CompactedRun, IndexRun};
use crate::effect::{EffectKind, Indexed, Replaced};
use crate::ids::{ObjectId, PartitionKey, StoreId};
use crate::image::PartitionView;
use crate::index_block::{extents_hash, is_contiguous};
use crate::record::{Extent, IndexPointer, ObjectRecord, ObjectState, object_level};
use crate::result::{CommandResult, ObjectCommitted};
use std::collections::BTreeMap;

impl StateMachine {
    pub(super) fn compact_objects(&mut self, c: &CompactObjects) -> CommandResult {
        let Some(record) = self.open_object(c.object, c.store) else { return not_open() };
        self.put_object(ObjectRecord {
            state: ObjectState::Committed as i32,
            store: c.store,
            size_bytes: c.size_bytes,
            complete: !c.more_parts,
            level: c.level,
            ..record
        });
        let applied = (0..c.runs.len()).filter(|index| self.compact_run(c, &c.runs[*index]));
        let applied = applied.map(|index| index as u32).collect();
        self.unreference(c.object);
        CommandResult::ObjectCommitted(ObjectCommitted { error_code: codes::NONE, applied })
    }

    fn compact_run(&mut self, c: &CompactObjects, compacted: &CompactedRun) -> bool {
        let run = &compacted.run;
        let view = self.image.stored_view(PartitionKey::new(run.topic_id, run.partition));
        if !view.is_some_and(|view| still_there(view, c.store, compacted)) {
            return false;
        }
        self.emit(EffectKind::Replaced(Replaced {
            topic_id: run.topic_id,
            partition: run.partition,
            store: c.store,
            base_offsets: compacted.replaces.iter().map(|replaced| replaced.base_offset).collect(),
            extent: extent_of(c.object, run),
        }));
        true
    }

    pub(super) fn commit_index(&mut self, c: &CommitIndex) -> CommandResult {
        let Some(record) = self.open_object(c.object, c.store) else { return not_open() };
        self.put_object(ObjectRecord {
            state: ObjectState::Committed as i32,
            store: c.store,
            size_bytes: c.size_bytes,
            complete: true,
            level: object_level::INDEX,
            ..record
        });
        let applied = (0..c.runs.len()).filter(|index| self.index_run(c.object, c.store, &c.runs[*index]));
        let applied = applied.map(|index| index as u32).collect();
        self.unreference(c.object);
        CommandResult::ObjectCommitted(ObjectCommitted { error_code: codes::NONE, applied })
    }

    fn index_run(&mut self, object: ObjectId, store: StoreId, run: &IndexRun) -> bool {
        let key = PartitionKey::new(run.topic_id, run.partition);
        let Some(view) = self.image.stored_view(key) else { return false };
        let Some(pointer) = pointer_to(view, object, store, run) else { return false };
        let (topic_id, partition) = (run.topic_id, run.partition);
        self.emit(EffectKind::Indexed(Indexed { topic_id, partition, store, pointer }));
        true
    }
}

/// Whether the store's list holds what the run replaces, and nothing else in its offsets.
fn still_there(view: &PartitionView, store: StoreId, compacted: &CompactedRun) -> bool {
    let Some(extents) = view.stores.get(&store) else { return false };
    let mut next = compacted.run.base_offset;
    for replaced in &compacted.replaces {
        let found = extents.get(&replaced.base_offset).filter(|extent| extent.base_offset == next);
        let Some((extent, location)) = found.and_then(|extent| Some((extent, extent.object()?))) else {
            return false;
        };
        if location.object != replaced.object || location.position != replaced.position {
            return false;
        }
        next = extent.end_offset();
    }
    !compacted.replaces.is_empty() && next == compacted.run.last_offset.saturating_add(1)
}

/// The pointer that takes the place of the run's extents, if they are what the block was made of.
fn pointer_to(
    view: &PartitionView,
    object: ObjectId,
    store: StoreId,
    run: &IndexRun,
) -> Option<IndexPointer> {
    if run.extents == 0 || run.base_offset > run.last_offset {
        return None;
    }
    let extents = view.stores.get(&store)?.range(run.base_offset..=run.last_offset);
    // One more than is wanted shows that there are too many.
    let extents = extents.map(|(_, extent)| extent).take(run.extents as usize + 1);
    let extents: Vec<&Extent> = extents.collect();
    let span = (extents.first()?.base_offset, extents.last()?.last_offset);
    if extents.len() != run.extents as usize
        || span != (run.base_offset, run.last_offset)
        || !is_contiguous(extents.iter().copied())
        || extents_hash(extents.iter().copied()) != run.hash
    {
        return None;
    }
    let mut objects: BTreeMap<ObjectId, u64> = BTreeMap::new();
    let (mut bytes, mut max_timestamp_ms) = (0, i64::MIN);
    for extent in extents {
        let location = extent.object().filter(|location| !location.unstamped)?;
        *objects.entry(location.object).or_insert(0) += extent.size_bytes;
        bytes += extent.size_bytes;
        max_timestamp_ms = max_timestamp_ms.max(extent.max_timestamp_ms);
    }
    Some(IndexPointer {
        base_offset: run.base_offset,
        last_offset: run.last_offset,
        object,
        position: run.position,
        size_bytes: run.size_bytes,
        extents: run.extents,
        bytes,
        max_timestamp_ms,
        objects: IndexPointer::pack_objects(&objects),
    })
}
