//! What a state machine that stands at the recovery cut takes from later entries; see [`crate::recover`].

use super::StateMachine;
use super::objects::run_applies;
use super::topics::fold;
use crate::command::ObjectRun;
use crate::effect::{EffectBatch, EffectKind, LogStartMoved, Stored};
use crate::ids::{PartitionKey, TopicId};
use crate::image::Image;
use crate::record::{Extent, Location, ObjectLocation, ObjectRecord, ObjectState, TopicRecord};
use crate::recover::{Clip, Clipped};

impl StateMachine {
    /// Takes from an entry's effects; `full` is the image after them, of the machine that made them.
    pub(crate) fn follow_after_cut(&mut self, effects: &EffectBatch, full: &Image, clips: &mut Vec<Clip>) {
        self.work.index = effects.index;
        self.image.time_ms = effects.time_ms;
        for kind in effects.effects.iter().filter_map(|effect| effect.kind.as_ref()) {
            match kind {
                EffectKind::Object(record) if record.state == ObjectState::Prepared as i32 => {
                    self.put_object(*record);
                }
                EffectKind::Stored(stored) => self.follow_stored(stored, full, clips),
                EffectKind::LogStartMoved(moved) => self.follow_log_start(*moved),
                EffectKind::TopicDeleted(_)
                | EffectKind::TopicSoftDeleted(_)
                | EffectKind::TopicUndeleted(_)
                | EffectKind::TopicPurged(_) => self.follow_topic(kind),
                // Level, holds and what is archived; an incarnation begins epochs at the log ends, as it did.
                EffectKind::Cluster(_) => self.emit(kind.clone()),
                _ => {}
            }
        }
        self.settle();
        // Whoever follows the recovered cluster begins with its snapshot.
        self.work.effects.clear();
        self.work.index = 0;
        self.image.index = effects.index;
    }

    fn follow_stored(&mut self, stored: &Stored, full: &Image, clips: &mut Vec<Clip>) {
        let key = PartitionKey::new(stored.topic_id, stored.partition);
        let (Some(view), Some(location)) = (self.image.stored_view(key), stored.extent.object()) else {
            return;
        };
        let end_offset = stored.extent.end_offset().min(view.high_watermark);
        let run = ObjectRun {
            topic_id: stored.topic_id,
            partition: stored.partition,
            base_offset: stored.extent.base_offset,
            last_offset: end_offset - 1,
            ..ObjectRun::default()
        };
        if !run_applies(view, stored.store, &run) {
            return;
        }
        let Some(record) = self.image.object(location.object).map(|object| object.record) else { return };
        // More parts may follow; if not, its deadline makes it complete.
        let size_bytes = full.object(location.object).map_or(0, |object| object.size_bytes);
        let state = ObjectState::Committed as i32;
        self.put_object(ObjectRecord { state, store: stored.store, size_bytes, ..record });
        if end_offset < stored.extent.end_offset() {
            clips.push(Clip {
                partition: key,
                store: stored.store,
                object: location.object,
                position: location.position,
                size_bytes: location.size_bytes,
                base_offset: stored.extent.base_offset,
                last_offset: stored.extent.last_offset,
                end_offset,
            });
        }
        let extent = Extent { last_offset: end_offset - 1, ..stored.extent.clone() };
        self.emit(EffectKind::Stored(Stored { extent, ..stored.clone() }));
        self.unlist_covered(key, run.base_offset, run.last_offset);
    }

    fn follow_log_start(&mut self, moved: LogStartMoved) {
        let key = PartitionKey::new(moved.topic_id, moved.partition);
        let Some(view) = self.image.stored_view(key) else { return };
        let log_start = moved.log_start.min(view.high_watermark);
        if log_start > view.log_start {
            self.emit(EffectKind::LogStartMoved(LogStartMoved { log_start, ..moved }));
            self.unlist_covered(key, log_start, log_start);
        }
    }

    /// Topics that were made after the cut are not there. A topic comes back as it was at the cut, but for its name.
    fn follow_topic(&mut self, effect: &EffectKind) {
        let known = |machine: &Self, id: TopicId| machine.image.stored_topic(id).cloned();
        match effect {
            EffectKind::TopicDeleted(e) => {
                if let Some(record) = known(self, e.topic_id) {
                    self.folded_names.remove(&fold(&record.name));
                    self.forget_producers(&record);
                    self.emit(effect.clone());
                }
            }
            EffectKind::TopicSoftDeleted(e) => {
                if let Some(record) = known(self, e.topic_id) {
                    self.folded_names.remove(&fold(&record.name));
                    self.purges.insert((e.purge_ms, e.topic_id));
                    self.emit(effect.clone());
                }
            }
            EffectKind::TopicUndeleted(e) => {
                if let Some(deleted) = self.image.deleted_topic(e.topic_id).cloned() {
                    let record = TopicRecord { name: e.name.clone(), ..deleted.record.clone() };
                    self.purges.remove(&(deleted.purge_ms, e.topic_id));
                    self.folded_names.insert(fold(&record.name), e.topic_id);
                    self.emit(EffectKind::TopicUndeleted(record));
                }
            }
            EffectKind::TopicPurged(e) => _ = self.purge(e.topic_id),
            _ => {}
        }
    }

    /// A clipped run gets the size and timestamp that it has.
    pub(crate) fn resize_clipped(&mut self, clip: &Clip, clipped: &Clipped) {
        let mut extent = {
            let view = self.image.stored_view(clip.partition);
            let extents = view.and_then(|view| view.stores.get(&clip.store));
            match extents.and_then(|extents| extents.get(&clip.base_offset)) {
                Some(extent) if extent.object().is_some_and(|found| found.object == clip.object) => {
                    extent.clone()
                }
                // Its topic or its offsets have gone since.
                _ => return,
            }
        };
        extent.size_bytes = u64::from(clipped.size_bytes);
        extent.max_timestamp_ms = clipped.max_timestamp_ms;
        let location = ObjectLocation::new(clip.object, clip.position, clipped.size_bytes);
        extent.location = Some(Location::Object(location));
        let PartitionKey { topic_id, partition } = clip.partition;
        self.emit(EffectKind::Replaced(crate::effect::Replaced {
            topic_id,
            partition,
            store: clip.store,
            base_offsets: vec![clip.base_offset],
            extent,
        }));
        self.settle();
        self.work.effects.clear();
    }
}
