//! Objects' lives, and the swap of WAL extents to objects.

use super::rules::Rule;
use super::{StateMachine, done};
use crate::codes;
use crate::command::{
    CommitObject, ExpireObjects, GrantObjects, LogStartReason, MoveLogStart, NewLogStart, ObjectRun,
    ObjectsDeleted,
};
use crate::effect::{EffectKind, LogStartMoved, ObjectForgotten, Stored, Unlisted};
use crate::ids::{ObjectId, PartitionKey, SessionId, StoreId};
use crate::image::{Extents, PartitionView};
use crate::record::{Extent, Location, ObjectLocation, ObjectRecord, ObjectState};
use crate::result::{
    CommandResult, Expired, LogStartResult, LogStartResults, ObjectCommitted, ObjectsGranted,
};

/// Object ids granted, expired or reported by one command.
const MAX_OBJECTS: u32 = 1000;
/// Deletes are repeated for so long, because a late PUT may land.
const REPEAT_DELETES_MS: i64 = 24 * 60 * 60 * 1000;

impl StateMachine {
    pub(super) fn grant_objects(&mut self, session: SessionId, c: &GrantObjects) -> CommandResult {
        if c.count == 0 || c.count > MAX_OBJECTS || c.lifetime_ms <= 0 {
            return CommandResult::Objects(ObjectsGranted {
                error_code: codes::INVALID_REQUEST,
                ..ObjectsGranted::default()
            });
        }
        let incarnation = self.image.incarnation();
        let first = ObjectId::new(incarnation, self.counters.object);
        let deadline_ms = self.image.time_ms.saturating_add(c.lifetime_ms);
        for _ in 0..c.count {
            let object = ObjectId::new(incarnation, self.counters.object);
            self.counters.object += 1;
            self.put_object(ObjectRecord {
                object,
                state: ObjectState::Prepared as i32,
                deadline_ms,
                session,
                ..ObjectRecord::default()
            });
        }
        CommandResult::Objects(ObjectsGranted { error_code: codes::NONE, first, count: c.count, deadline_ms })
    }

    /// Writes an object's record, with now as the time it reached its state.
    pub(super) fn put_object(&mut self, record: ObjectRecord) {
        let (since_ms, since_index) = (self.image.time_ms, self.work.index);
        let due = (record.deadline_ms, record.object);
        if is_open(&record) {
            self.open_objects.insert(due);
        } else {
            self.open_objects.remove(&due);
        }
        self.emit(EffectKind::Object(ObjectRecord { since_ms, since_index, ..record }));
    }

    /// An object lost its last reference: it is unreferenced unless more parts may follow.
    pub(super) fn unreference(&mut self, object: ObjectId) {
        let Some(record) = self.image.object(object) else { return };
        let spent = record.state == ObjectState::Committed as i32 && record.complete;
        if spent && record.refs == 0 {
            let record = ObjectRecord { state: ObjectState::Unreferenced as i32, ..record.record };
            self.put_object(record);
        }
    }

    /// The object, if a commit may still name it in this store.
    pub(super) fn open_object(&self, object: ObjectId, store: StoreId) -> Option<ObjectRecord> {
        let record = self.image.object(object)?.record;
        let other_store = record.state == ObjectState::Committed as i32 && record.store != store;
        let open = is_open(&record) || !self.rules.keep(Rule::Deadline);
        (open && !other_store && self.image.store_name(store).is_some()).then_some(record)
    }

    pub(super) fn commit_object(&mut self, c: &CommitObject) -> CommandResult {
        let Some(record) = self.open_object(c.object, c.store) else { return not_open() };
        self.put_object(ObjectRecord {
            state: ObjectState::Committed as i32,
            store: c.store,
            size_bytes: c.size_bytes,
            complete: !c.more_parts,
            ..record
        });
        let mut applied = Vec::new();
        for (index, run) in c.runs.iter().enumerate() {
            if self.commit_run(c.object, c.store, run) {
                applied.push(index as u32);
            }
        }
        self.unreference(c.object);
        CommandResult::ObjectCommitted(ObjectCommitted { error_code: codes::NONE, applied })
    }

    /// Applies a run whole, or not at all: at least one of its offsets is inside the log, and every such offset is in a WAL
    /// or Inline extent and not yet in that store's list.
    fn commit_run(&mut self, object: ObjectId, store: StoreId, run: &ObjectRun) -> bool {
        let key = PartitionKey::new(run.topic_id, run.partition);
        let stored = (self.image.stored_view(key), self.image.stored_topic(run.topic_id));
        let (Some(view), Some(topic)) = stored else {
            return false;
        };
        let Some(placement) = self.image.placement(topic.placement) else { return false };
        let allowed = placement.allow.is_empty() || placement.allow.contains(&store);
        if !allowed || !run_applies(view, store, run) {
            return false;
        }
        self.emit(EffectKind::Stored(Stored {
            topic_id: run.topic_id,
            partition: run.partition,
            store,
            extent: extent_of(object, run),
        }));
        self.unlist_covered(key, run.base_offset, run.last_offset);
        true
    }

    /// Takes WAL and Inline extents that touch `[from, to]` off the list where every required store has all of them that is
    /// inside the log (any store, if the placement requires none).
    pub(super) fn unlist_covered(&mut self, key: PartitionKey, from: i64, to: i64) {
        let Some(view) = self.image.stored_view(key) else { return };
        let placement =
            self.image.stored_topic(key.topic_id).and_then(|topic| self.image.placement(topic.placement));
        let Some(placement) = placement else { return };
        let first = view.wal.get_prev(&from).map_or(from, |(base, _)| *base);
        let mut base_offsets = Vec::new();
        for (base, extent) in view.wal.range(first..=to) {
            let inside = extent.base_offset.max(view.log_start)..=extent.last_offset;
            if extent.last_offset >= from
                && is_stored(view, &placement.require, *inside.start(), *inside.end())
            {
                base_offsets.push(*base);
            }
        }
        if !base_offsets.is_empty() {
            let (topic_id, partition) = (key.topic_id, key.partition);
            self.emit(EffectKind::Unlisted(Unlisted { topic_id, partition, base_offsets }));
        }
    }

    pub(super) fn expire_objects(&mut self, c: &ExpireObjects) -> CommandResult {
        if self.expiry_held() {
            return CommandResult::Expired(Expired { held: true, ..Expired::default() });
        }
        let limit = if c.limit == 0 { MAX_OBJECTS } else { c.limit.min(MAX_OBJECTS) } as usize;
        let now_ms = self.image.time_ms;
        let due = self.open_objects.iter().take_while(|(deadline_ms, _)| *deadline_ms < now_ms).take(limit);
        let overdue: Vec<_> = due.filter_map(|(_, object)| self.image.object(*object).copied()).collect();
        for object in &overdue {
            // After its deadline no part counts; without any reference it goes.
            let state = if object.refs == 0 { ObjectState::Unreferenced as i32 } else { object.state };
            self.put_object(ObjectRecord { state, complete: true, ..object.record });
        }
        CommandResult::Expired(Expired { count: overdue.len() as u64, ..Expired::default() })
    }

    pub(super) fn objects_deleted(&mut self, c: &ObjectsDeleted) -> CommandResult {
        for object in &c.objects {
            let Some(record) = self.image.object(*object).map(|object| object.record) else { continue };
            if record.state == ObjectState::Unreferenced as i32 {
                self.put_object(ObjectRecord { state: ObjectState::Deleted as i32, ..record });
            } else if record.state == ObjectState::Deleted as i32
                && record.since_ms.saturating_add(REPEAT_DELETES_MS) <= self.image.time_ms
                && !self.expiry_held()
            {
                self.emit(EffectKind::ObjectForgotten(ObjectForgotten { object: *object }));
            }
        }
        done()
    }

    // ---- log start ----

    pub(super) fn move_log_start(&mut self, c: &MoveLogStart) -> CommandResult {
        let held = c.reason != LogStartReason::DeleteRecords as i32 && self.expiry_held();
        let partitions = c.partitions.iter().map(|partition| self.move_one(partition, held)).collect();
        CommandResult::LogStarts(LogStartResults { partitions })
    }

    fn move_one(&mut self, c: &NewLogStart, held: bool) -> LogStartResult {
        let key = PartitionKey::new(c.topic_id, c.partition);
        let Some(view) = self.image.view(key) else {
            return LogStartResult {
                error_code: codes::UNKNOWN_TOPIC_OR_PARTITION,
                log_start: -1,
                held: false,
            };
        };
        let log_start = if c.log_start == -1 { view.high_watermark } else { c.log_start };
        if log_start < 0 || log_start > view.high_watermark {
            return LogStartResult { error_code: codes::OFFSET_OUT_OF_RANGE, log_start: -1, held: false };
        }
        if held || log_start <= view.log_start {
            return LogStartResult { error_code: codes::NONE, log_start: view.log_start, held };
        }
        let (topic_id, partition) = (c.topic_id, c.partition);
        self.emit(EffectKind::LogStartMoved(LogStartMoved { topic_id, partition, log_start }));
        // What is left inside the log of the extent that the new start cuts may be stored already.
        self.unlist_covered(key, log_start, log_start);
        LogStartResult { error_code: codes::NONE, log_start, held: false }
    }
}

pub(super) fn not_open() -> CommandResult {
    let (error_code, applied) = (codes::INVALID_REQUEST, Vec::new());
    CommandResult::ObjectCommitted(ObjectCommitted { error_code, applied })
}

/// Where a run's bytes are: final.
pub(super) fn extent_of(object: ObjectId, run: &ObjectRun) -> Extent {
    Extent {
        base_offset: run.base_offset,
        last_offset: run.last_offset,
        max_timestamp_ms: run.max_timestamp_ms,
        append_time_ms: -1,
        size_bytes: u64::from(run.size_bytes),
        location: Some(Location::Object(ObjectLocation::new(object, run.position, run.size_bytes))),
    }
}

/// Whether a commit may still name the object.
pub(crate) fn is_open(record: &ObjectRecord) -> bool {
    let in_parts = record.state == ObjectState::Committed as i32 && !record.complete;
    record.state == ObjectState::Prepared as i32 || in_parts
}

pub(super) fn run_applies(view: &PartitionView, store: StoreId, run: &ObjectRun) -> bool {
    let (from, to) = (run.base_offset.max(view.log_start), run.last_offset);
    if run.base_offset < 0 || from > to || to >= view.high_watermark {
        return false;
    }
    !view.is_partly_stored(store, from, to) && covers(&view.wal, from, to)
}

/// Whether every offset of `[from, to]` is in one of these extents.
fn covers(extents: &Extents, from: i64, to: i64) -> bool {
    let Some((first, _)) = extents.get_prev(&from) else { return false };
    let mut next = from;
    for (base, extent) in extents.range(*first..=to) {
        if *base > next {
            return false;
        }
        next = next.max(extent.end_offset());
    }
    next > to
}

/// Whether `[from, to]` is in every one of `required`, or, if that names none, each offset in any store.
fn is_stored(view: &PartitionView, required: &[StoreId], from: i64, to: i64) -> bool {
    if !required.is_empty() {
        return required.iter().all(|store| view.is_stored(*store, from, to));
    }
    let stores = || view.stores.keys().chain(view.indexed.keys());
    let mut next = from;
    while next <= to {
        match stores().find_map(|store| view.locate_in_store(*store, next)) {
            Some(found) => next = found.end_offset(),
            None => return false,
        }
    }
    true
}
