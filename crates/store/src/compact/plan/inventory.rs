//! What the planner looks at: the lists of one store, followed from one image to the next.
//!
//! It is kept from round to round, so that a round costs what has changed since the last and what is to be done, not all that is
//! retained: a busy broker plans every few seconds, and nearly all that it holds is done and will not change until it expires.
//!
//! Invariants
//! 1. Once [`Inventory::advance`] says that it is there, it equals an inventory made anew of that image. So plans are a function of
//!    the image still, whatever came before, and a process that begins with an empty one plans the same.
//! 2. A source is *filed* (it is in the sums and in the sets that jobs are chosen from) unless it is among the touched. It is taken
//!    out whole before anything in it changes, and put back once all changes are in.

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::ids::{ObjectId, PartitionKey, StoreId, TopicId};
use isobar_metadata::record::{Extent, ObjectState, object_level};
use isobar_metadata::{Image, Object, PartitionView};

use super::Limits;

/// An object that extents of the lists lie in, or one that may come to be.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Source {
    /// `None`: metadata does not say that it is whole, in this store and to be compacted; then what lies in it does not count.
    facts: Option<Facts>,
    /// Live bytes that the lists show: the rest is in index blocks or of deleted topics, and stays where it is.
    pub(super) listed_bytes: u64,
    pub(super) extents: usize,
    pub(super) parts: BTreeMap<PartitionKey, Part>,
}

/// What metadata says of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Facts {
    level: u32,
    size_bytes: u64,
    live_bytes: u64,
}

impl Facts {
    fn of(object: &Object, store: StoreId) -> Option<Self> {
        let is_done = object.state == ObjectState::Committed as i32 && object.complete;
        let is_here = object.store == store && object.level <= object_level::SINGLE_TOPIC;
        let (size_bytes, live_bytes) = (object.size_bytes, object.live_bytes);
        (is_done && is_here).then_some(Self { level: object.level, size_bytes, live_bytes })
    }

    fn dead_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.live_bytes)
    }

    fn is_mostly_dead(&self) -> bool {
        self.live_bytes.saturating_mul(2) < self.size_bytes
    }
}

impl Source {
    /// Its level, if it counts.
    pub(super) fn level(&self) -> Option<u32> {
        self.facts.map(|facts| facts.level)
    }

    /// Orders by how much of it is alive.
    pub(super) fn live_share(&self) -> u64 {
        let size_bytes = self.facts.map_or(0, |facts| facts.size_bytes);
        self.listed_bytes.saturating_mul(1_000) / size_bytes.max(1)
    }

    /// Nothing of it is where compaction cannot move it.
    fn is_whole(&self, facts: &Facts) -> bool {
        self.listed_bytes >= facts.live_bytes
    }

    fn add(&mut self, key: PartitionKey, extent: &Extent) {
        let base_offset = extent.base_offset;
        let fresh = Part { bytes: 0, extents: 0, from: base_offset, to: base_offset };
        let part = self.parts.entry(key).or_insert(fresh);
        (part.from, part.to) = (part.from.min(base_offset), part.to.max(base_offset));
        part.bytes += extent.size_bytes;
        part.extents += 1;
        self.listed_bytes += extent.size_bytes;
        self.extents += 1;
    }

    fn remove(&mut self, key: PartitionKey, extent: &Extent) {
        let Some(part) = self.parts.get_mut(&key) else { return };
        part.bytes -= extent.size_bytes;
        part.extents -= 1;
        if part.extents == 0 {
            self.parts.remove(&key);
        }
        self.listed_bytes -= extent.size_bytes;
        self.extents -= 1;
    }
}

/// What a partition's list has in one object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    bytes: u64,
    extents: usize,
    /// All their base offsets lie in here.
    pub(super) from: i64,
    pub(super) to: i64,
}

/// The span only says where to look; it does not shrink with what goes.
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        (self.bytes, self.extents) == (other.bytes, other.extents)
    }
}

/// Mostly dead objects that may be merged with one another.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Dead {
    pub(super) dead_bytes: u64,
    pub(super) listed_bytes: u64,
    pub(super) objects: BTreeSet<ObjectId>,
}

/// A topic's share of the merges.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Share {
    pub(super) bytes: u64,
    /// And in how many objects each has something.
    pub(super) partitions: BTreeMap<i32, usize>,
    pub(super) objects: BTreeMap<ObjectId, Sum>,
}

/// Extents, together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sum {
    pub(super) bytes: u64,
    pub(super) extents: usize,
}

/// The sums and sets that jobs are chosen from. Each holds a source or does not, by what the source alone says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Files {
    pub(super) live_bytes: u64,
    pub(super) dead_bytes: u64,
    /// All of the lowest level, and what lies in them.
    pub(super) uploads: BTreeSet<ObjectId>,
    pub(super) uploaded: Sum,
    /// Merges that stayed small, the smallest first.
    pub(super) small: BTreeSet<(u64, ObjectId)>,
    /// Objects of one topic by their topic, all others together: they would have to be moved out of a merge again.
    pub(super) dead: BTreeMap<Option<TopicId>, Dead>,
    pub(super) shares: BTreeMap<TopicId, Share>,
}

impl Files {
    fn file(&mut self, object: ObjectId, source: &Source, limits: &Limits) {
        let Some(facts) = &source.facts else { return };
        self.live_bytes += facts.live_bytes;
        self.dead_bytes += facts.dead_bytes();
        if source.extents == 0 {
            return;
        }
        if facts.level == object_level::UPLOAD {
            self.uploads.insert(object);
            self.uploaded.bytes += source.listed_bytes;
            self.uploaded.extents += source.extents;
            return;
        }
        if is_dead(source, facts) {
            let dead = self.dead.entry(dead_group(source, facts)).or_default();
            dead.objects.insert(object);
            dead.dead_bytes += facts.dead_bytes();
            dead.listed_bytes += source.listed_bytes;
        }
        if facts.level == object_level::MERGED {
            if source.listed_bytes < limits.merge_bytes / 2 && source.is_whole(facts) {
                self.small.insert((source.listed_bytes, object));
            }
            for (key, part) in &source.parts {
                let share = self.shares.entry(key.topic_id).or_default();
                share.bytes += part.bytes;
                *share.partitions.entry(key.partition).or_insert(0) += 1;
                let of_object = share.objects.entry(object).or_default();
                of_object.bytes += part.bytes;
                of_object.extents += part.extents;
            }
        }
    }

    /// Takes back what [`Files::file`] did with the same source.
    fn unfile(&mut self, object: ObjectId, source: &Source) {
        let Some(facts) = &source.facts else { return };
        self.live_bytes -= facts.live_bytes;
        self.dead_bytes -= facts.dead_bytes();
        if self.uploads.remove(&object) {
            self.uploaded.bytes -= source.listed_bytes;
            self.uploaded.extents -= source.extents;
        }
        let group = dead_group(source, facts);
        if let Some(dead) = self.dead.get_mut(&group)
            && dead.objects.remove(&object)
        {
            dead.dead_bytes -= facts.dead_bytes();
            dead.listed_bytes -= source.listed_bytes;
            if dead.objects.is_empty() {
                self.dead.remove(&group);
            }
        }
        self.small.remove(&(source.listed_bytes, object));
        if facts.level == object_level::MERGED {
            self.unfile_shares(object, source);
        }
    }

    fn unfile_shares(&mut self, object: ObjectId, source: &Source) {
        for (key, part) in &source.parts {
            let Some(share) = self.shares.get_mut(&key.topic_id) else { continue };
            share.bytes -= part.bytes;
            if let Some(objects) = share.partitions.get_mut(&key.partition) {
                *objects -= 1;
                if *objects == 0 {
                    share.partitions.remove(&key.partition);
                }
            }
            share.objects.remove(&object);
            if share.partitions.is_empty() {
                self.shares.remove(&key.topic_id);
            }
        }
    }
}

fn is_dead(source: &Source, facts: &Facts) -> bool {
    facts.level > object_level::UPLOAD && facts.is_mostly_dead() && source.is_whole(facts)
}

/// Its topic, if it is an object of one topic.
fn dead_group(source: &Source, facts: &Facts) -> Option<TopicId> {
    let first = source.parts.keys().next().map(|key| key.topic_id);
    first.filter(|_| facts.level == object_level::SINGLE_TOPIC)
}

/// See the module.
#[derive(Debug, PartialEq)]
pub struct Inventory {
    pub(super) store: StoreId,
    pub(super) limits: Limits,
    /// Extents at these places do not count.
    pub(super) skip: BTreeSet<(ObjectId, u64)>,
    pub(super) sources: BTreeMap<ObjectId, Source>,
    pub(super) files: Files,
    touched: BTreeSet<ObjectId>,
    /// The image that all this is of.
    pub(super) seen: Option<Image>,
    coming: Option<Coming>,
}

/// The way from one image to the next.
#[derive(Debug, PartialEq)]
struct Coming {
    earlier: Image,
    now: Image,
    /// The next to be looked at.
    shard: u32,
}

impl Inventory {
    /// Nothing yet.
    pub fn new(store: StoreId, limits: Limits) -> Self {
        Self {
            store,
            limits,
            skip: BTreeSet::new(),
            sources: BTreeMap::new(),
            files: Files::default(),
            touched: BTreeSet::new(),
            seen: None,
            coming: None,
        }
    }

    /// Goes to an image at once; [`Inventory::begin`] and [`Inventory::advance`] do it in parts.
    pub fn follow(&mut self, image: &Image, skip: &BTreeSet<(ObjectId, u64)>) {
        self.begin(image, skip);
        while self.advance() {}
    }

    /// Turns to an image, but for extents at the places to be skipped. Its objects come first.
    pub fn begin(&mut self, image: &Image, skip: &BTreeSet<(ObjectId, u64)>) {
        while self.advance() {}
        if self.skip != *skip {
            // Rare: bytes were found damaged, or are tried again.
            *self = Self { skip: skip.clone(), ..Self::new(self.store, self.limits) };
        }
        let earlier = self.seen.take().unwrap_or_else(|| Image::new(image.format().as_ref().clone()));
        for (was, is) in image.objects_since(&earlier) {
            let Some(object) = is.or(was).map(|object| object.object) else { continue };
            let facts = is.and_then(|object| Facts::of(object, self.store));
            self.touch(object).facts = facts;
        }
        self.coming = Some(Coming { earlier, now: image.clone(), shard: 0 });
    }

    /// Takes in the next shard's partitions. False: it is there.
    pub fn advance(&mut self) -> bool {
        let Some(mut coming) = self.coming.take() else { return false };
        if coming.shard < coming.now.shards() {
            for (was, is) in coming.now.shard_since(&coming.earlier, coming.shard) {
                self.follow_view(was.map(AsRef::as_ref), is.map(AsRef::as_ref));
            }
            coming.shard += 1;
            self.coming = Some(coming);
            return true;
        }
        for object in std::mem::take(&mut self.touched) {
            let Some(source) = self.sources.get(&object) else { continue };
            if source.facts.is_none() && source.extents == 0 {
                self.sources.remove(&object);
            } else {
                self.files.file(object, source, &self.limits);
            }
        }
        self.seen = Some(coming.now);
        false
    }

    fn follow_view(&mut self, earlier: Option<&PartitionView>, now: Option<&PartitionView>) {
        let Some(key) = now.or(earlier).map(PartitionView::key) else { return };
        for (was, is) in PartitionView::stored_since(earlier, now, self.store) {
            if let Some((object, extent)) = was.and_then(|extent| self.counted(extent)) {
                self.touch(object).remove(key, extent);
            }
            if let Some((object, extent)) = is.and_then(|extent| self.counted(extent)) {
                self.touch(object).add(key, extent);
            }
        }
    }

    /// The object of an extent that counts.
    pub(super) fn counted<'a>(&self, extent: &'a Extent) -> Option<(ObjectId, &'a Extent)> {
        let location = extent.object()?;
        let is_skipped = self.skip.contains(&(location.object, location.position));
        (!is_skipped).then_some((location.object, extent))
    }

    fn touch(&mut self, object: ObjectId) -> &mut Source {
        let source = self.sources.entry(object).or_default();
        if self.touched.insert(object) {
            self.files.unfile(object, source);
        }
        source
    }
}
