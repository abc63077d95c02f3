//! What uploads, compaction and indexes commit.

use super::{World, pick, pick_useful};
use crate::rig::*;
use isobar_metadata::command::*;
use isobar_metadata::record::*;
use isobar_metadata::*;

impl World {
    /// An object that a commit may name, mostly.
    pub(super) fn open_object(&self, n: usize) -> Option<ObjectId> {
        let image = self.rig.machine.view();
        let open = |id: &ObjectId| {
            image.object(*id).is_some_and(|object| object.state < ObjectState::Unreferenced as i32)
        };
        pick_useful(&self.objects, n, open)
    }

    /// A partition and store with extents in its list.
    pub(super) fn listed(&self, n: usize) -> Option<(PartitionKey, StoreId, Vec<Extent>)> {
        let image = self.rig.machine.view();
        let views = (0..image.shards()).flat_map(|shard| image.shard_stored(shard));
        let lists = views.flat_map(|view| view.stores.iter().map(|(store, list)| (view.key(), *store, list)));
        let lists: Vec<_> = lists.collect();
        let (key, store, list) = *lists.get(n % lists.len().max(1))?;
        Some((key, store, list.values().cloned().collect()))
    }

    pub(super) fn compact(&mut self, session: usize, object: usize, runs: Vec<(usize, u8, u8)>, more: bool) {
        let Some(object) = self.open_object(object) else { return };
        let mut to = StoreId(1);
        let runs: Vec<CompactedRun> = runs
            .into_iter()
            .filter_map(|(list, from, len)| {
                let (key, store, extents) = self.listed(list)?;
                to = store;
                let first = usize::from(from) % extents.len();
                let last = (first + usize::from(len) % 4).min(extents.len() - 1);
                let chosen = &extents[first..=last];
                let mut replaces: Vec<ReplacedExtent> = chosen
                    .iter()
                    .map(|extent| {
                        let location = extent.object().unwrap();
                        let (object, position) = (location.object, location.position);
                        ReplacedExtent { base_offset: extent.base_offset, object, position }
                    })
                    .collect();
                if len > 240 {
                    replaces.pop();
                }
                let (base, last) = (chosen[0].base_offset, chosen[chosen.len() - 1].last_offset);
                Some(CompactedRun { run: run_of(key.topic_id, key.partition, base, last), replaces })
            })
            .collect();
        let level = object_level::MERGED;
        let command = CompactObjects { object, store: to, size_bytes: 9, more_parts: more, level, runs };
        let result = self.control(session, Command::CompactObjects(command));
        if let Some(CommandResult::ObjectCommitted(committed)) = result {
            self.done.compacted += committed.applied.len() as u64;
        }
    }

    pub(super) fn index(&mut self, session: usize, object: usize, runs: Vec<(usize, u8)>) {
        let Some(object) = self.open_object(object) else { return };
        let fresh = self.rig.machine.view().object(object).is_some_and(|object| object.refs == 0);
        // A name is used once: a recovery may go back to before this object lost what pointed at it.
        let written = self.rig.blocks.range((object, 0)..=(object, u64::MAX)).next().is_some();
        if !fresh || written {
            return;
        }
        let (mut to, mut position) = (StoreId(1), 0);
        let mut index_runs = vec![];
        for (list, len) in runs {
            let Some((key, store, extents)) = self.listed(list) else { continue };
            to = store;
            let chosen = &extents[..=(usize::from(len) % 8).min(extents.len() - 1)];
            let run = self.rig.index_run(object, position, key.topic_id, key.partition, chosen);
            position += u64::from(run.size_bytes);
            index_runs.push(IndexRun { hash: run.hash ^ u64::from(len == 255), ..run });
        }
        let command = CommitIndex { object, store: to, size_bytes: position, runs: index_runs };
        let result = self.control(session, Command::CommitIndex(command));
        if let Some(CommandResult::ObjectCommitted(committed)) = result {
            self.done.indexed += committed.applied.len() as u64;
        }
    }

    pub(super) fn upload(
        &mut self,
        session: usize,
        object: usize,
        store: u32,
        runs: Vec<(usize, i32, u8, u8)>,
        more: bool,
    ) {
        let Some(object) = self.open_object(object) else { return };
        let runs = runs.into_iter().filter_map(|(topic, partition, from, len)| {
            let image = self.rig.machine.view();
            let in_wal: Vec<_> = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)).collect();
            let (topic_id, partition) = match pick(&in_wal, topic) {
                Some(view) if topic % 8 != 1 => (view.topic_id, view.partition),
                _ => (self.some_topic(topic, None)?, partition),
            };
            let view = image.stored_view(PartitionKey::new(topic_id, partition))?;
            // Mostly whole extents from the WAL, as an uploader takes them; else any range at all.
            let extents: Vec<_> = view.wal.values().collect();
            if len % 8 == 0 || extents.is_empty() {
                let from = i64::from(from) % (view.high_watermark + 2);
                return Some(run_of(topic_id, partition, from, from + i64::from(len % 16)));
            }
            let first = usize::from(from) % extents.len();
            let last = (first + usize::from(len) % 6).min(extents.len() - 1);
            Some(run_of(topic_id, partition, extents[first].base_offset, extents[last].last_offset))
        });
        let command = CommitObject {
            object,
            store: StoreId(store),
            runs: runs.collect(),
            more_parts: more,
            size_bytes: 9,
        };
        if let Some(CommandResult::ObjectCommitted(committed)) =
            self.control(session, Command::CommitObject(command))
        {
            self.done.swapped += committed.applied.len() as u64;
        }
    }

    /// What an uploader does: all of the WAL, but for every second partition, in long runs or, where a part of one is stored
    /// already, in short ones.
    pub(crate) fn upload_most(&mut self, but: usize) {
        let image = self.rig.machine.image();
        let Some(session) = image.brokers().first().map(|session| session.session) else { return };
        for store in [StoreId(1), StoreId(2)] {
            let in_wal = (0..image.shards()).flat_map(|shard| image.shard_in_wal(shard)).enumerate();
            let mut runs = vec![];
            for (_, view) in in_wal.filter(|(n, _)| (n + but).is_multiple_of(2)) {
                let placement = image.stored_topic(view.topic_id).unwrap().placement;
                if placement.0 == 0 && store.0 == 2 {
                    continue;
                }
                let run = |base, last| run_of(view.topic_id, view.partition, base, last);
                let (first, last) = (&view.wal.get_min().unwrap().1, &view.wal.get_max().unwrap().1);
                runs.push(run(first.base_offset, last.last_offset));
                runs.extend(view.wal.values().map(|extent| run(extent.base_offset, extent.last_offset)));
            }
            if !runs.is_empty() {
                let object = self.rig.objects(session, 1);
                self.rig.upload(session, object, store, runs);
            }
        }
    }
}
