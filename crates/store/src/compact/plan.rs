//! Which extents are merged into which object next. Pure.
//!
//! Levels: uploads (0: many topics, a few seconds each), merges of them (1: larger, several topics), and large objects of one
//! topic (2). The planner looks at what the lists of one store hold and names the best job, or none.
//!
//! Goals, and the rule that serves each
//! 1. *Few objects and extents per retained GiB*: uploads are merged once enough of them have gathered, by bytes, objects or
//!    extents; a topic's share of the merges moves to an object of its own once it is large; merges that stayed small are
//!    merged again once there are many. Neighbouring extents become one run of up to [`Limits::run_bytes`].
//! 2. *Little write amplification*: a byte is written by its upload, by one merge, and by the move to its topic's object. A
//!    merge of merges at least doubles the object a byte lies in, and takes none that is large already; what is rewritten for
//!    its dead neighbours is paid for by as many dead bytes.
//! 3. *Little dead space*: objects of which less than half is live are rewritten, but only while dead bytes are more than a
//!    quarter of the live ones, or enough for a full object: most die by themselves when the rest expires.
//! 4. *Small jobs first*, so that lists are short when the large ones come; what is done is never merged again.
//!
//! It is a function of its input: the same lists give the same job, so after a crash the same job is found again.

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::ids::{ObjectId, PartitionKey, StoreId, TopicId};
use isobar_metadata::record::{Extent, ObjectState, object_level};
use isobar_metadata::{Image, PartitionView};

/// Bounds of jobs.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Uploads are merged once they hold so many live bytes; about the size of a merge.
    pub merge_bytes: u64,
    /// Or once there are so many of them; also the most objects that one job reads.
    pub merge_objects: usize,
    /// Or once so many extents lie in them; also the most extents of one job.
    pub merge_extents: usize,
    /// Least size of an object of one topic.
    pub single_min_bytes: u64,
    /// Largest size of any object made here.
    pub single_max_bytes: u64,
    /// Extents are joined into runs of at most this: a reader walks a run from its start.
    pub run_bytes: u64,
    /// Dead bytes that are borne in any case.
    pub dead_slack_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            merge_bytes: 256 << 20,
            merge_objects: 256,
            merge_extents: 50_000,
            single_min_bytes: 256 << 20,
            single_max_bytes: 1 << 30,
            run_bytes: 8 << 20,
            dead_slack_bytes: 256 << 20,
        }
    }
}

/// Extents replaced by one run at most: one command carries them all.
const RUN_EXTENTS: usize = 2_000;
/// Partitions for which a topic's object of the least size is large enough: with more, it waits for a larger one.
const SINGLE_PARTITIONS: u64 = 64;
/// A run spans at most this part of a topic's retention, so that what is old goes.
const RETENTION_PARTS: u64 = 16;
/// But may always span this.
const SPAN_MIN_MS: i64 = 60_000;

/// Why a job is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Uploads that have gathered.
    Uploads,
    /// Objects that are more dead than alive.
    Dead,
    /// A topic's share of the merges.
    Single,
    /// Merges that stayed small.
    Small,
}

impl Kind {
    /// For logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uploads => "uploads",
            Self::Dead => "dead",
            Self::Single => "single",
            Self::Small => "small",
        }
    }
}

/// Extents that become one run: of one partition, neighbours, in offset order.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeRun {
    /// Whose.
    pub key: PartitionKey,
    /// At least one.
    pub extents: Vec<Extent>,
}

impl MergeRun {
    /// Bytes of its batches.
    pub fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.size_bytes).sum()
    }
}

/// One object to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// Why.
    pub kind: Kind,
    /// [`object_level`] of the new object.
    pub level: u32,
    /// Ordered by partition and offset.
    pub runs: Vec<MergeRun>,
}

impl Job {
    /// Bytes of batches to be read and written.
    pub fn size_bytes(&self) -> u64 {
        self.runs.iter().map(MergeRun::size_bytes).sum()
    }

    /// The objects it reads.
    pub fn sources(&self) -> BTreeSet<ObjectId> {
        let extents = self.runs.iter().flat_map(|run| &run.extents);
        extents.filter_map(|extent| extent.object().map(|location| location.object)).collect()
    }
}

/// An object that extents of the lists lie in.
#[derive(Debug, Clone, Copy, Default)]
struct Source {
    level: u32,
    size_bytes: u64,
    live_bytes: u64,
    /// Live bytes that the lists show: the rest is in index blocks or of deleted topics, and stays where it is.
    listed_bytes: u64,
    extents: usize,
}

impl Source {
    fn is_whole(&self) -> bool {
        self.listed_bytes >= self.live_bytes
    }

    fn dead_bytes(&self) -> u64 {
        self.size_bytes.saturating_sub(self.live_bytes)
    }
}

struct Listed {
    key: PartitionKey,
    extent: Extent,
    object: ObjectId,
}

/// How far extents of a topic may be joined.
#[derive(Debug, Clone, Copy)]
struct Joining {
    span_ms: i64,
    run_bytes: u64,
}

/// What the planner looks at: the lists of one store, gathered shard by shard.
pub struct Inventory {
    store: StoreId,
    limits: Limits,
    sources: BTreeMap<ObjectId, Source>,
    listed: Vec<Listed>,
    joining: BTreeMap<TopicId, Joining>,
    live_bytes: u64,
    dead_bytes: u64,
}

impl Inventory {
    /// Nothing yet.
    pub fn new(store: StoreId, limits: Limits) -> Self {
        Self {
            store,
            limits,
            sources: BTreeMap::new(),
            listed: Vec::new(),
            joining: BTreeMap::new(),
            live_bytes: 0,
            dead_bytes: 0,
        }
    }

    /// All of an image at once; [`Inventory::add_shard`] does it in parts.
    pub fn of(image: &Image, store: StoreId, limits: Limits, skip: &BTreeSet<(ObjectId, u64)>) -> Self {
        let mut inventory = Self::new(store, limits);
        inventory.add_objects(image);
        for shard in 0..image.shards() {
            inventory.add_shard(image, shard, skip);
        }
        inventory
    }

    /// Objects come first.
    pub fn add_objects(&mut self, image: &Image) {
        for object in image.objects() {
            let is_done = object.state == ObjectState::Committed as i32 && object.complete;
            if !is_done || object.store != self.store || object.level > object_level::SINGLE_TOPIC {
                continue;
            }
            let source = Source {
                level: object.level,
                size_bytes: object.size_bytes,
                live_bytes: object.live_bytes,
                ..Source::default()
            };
            self.live_bytes += source.live_bytes;
            self.dead_bytes += source.dead_bytes();
            self.sources.insert(object.object, source);
        }
    }

    /// The partitions of one shard, but for extents at the places to be skipped.
    pub fn add_shard(&mut self, image: &Image, shard: u32, skip: &BTreeSet<(ObjectId, u64)>) {
        for view in image.shard_partitions(shard) {
            if let Some(topic) = image.topic(view.topic_id) {
                let part = |whole: i64| u64::try_from(whole).ok().map(|whole| whole / RETENTION_PARTS);
                let span_ms = part(topic.settings.retention_ms)
                    .map_or(i64::MAX, |span| i64::try_from(span).unwrap_or(i64::MAX).max(SPAN_MIN_MS));
                let run_bytes = part(topic.settings.retention_bytes).unwrap_or(u64::MAX);
                let run_bytes = run_bytes.min(self.limits.run_bytes).max(1);
                self.joining.insert(view.topic_id, Joining { span_ms, run_bytes });
                self.add_view(view, skip);
            }
        }
    }

    fn add_view(&mut self, view: &PartitionView, skip: &BTreeSet<(ObjectId, u64)>) {
        let Some(extents) = view.stores.get(&self.store) else { return };
        for extent in extents.values() {
            let Some(location) = extent.object() else { continue };
            let Some(source) = self.sources.get_mut(&location.object) else { continue };
            if skip.contains(&(location.object, location.position)) {
                continue;
            }
            source.listed_bytes += extent.size_bytes;
            source.extents += 1;
            // What is done and mostly alive is only counted.
            if source.level < object_level::SINGLE_TOPIC || is_mostly_dead(source) {
                let (key, object) = (view.key(), location.object);
                self.listed.push(Listed { key, extent: extent.clone(), object });
            }
        }
    }

    /// The best job, if anything is worth one.
    pub fn plan(&self) -> Option<Job> {
        self.uploads().or_else(|| self.dead()).or_else(|| self.single()).or_else(|| self.small())
    }

    fn of_level(&self, level: u32) -> impl Iterator<Item = (ObjectId, &Source)> {
        let sources = self.sources.iter().map(|(object, source)| (*object, source));
        sources.filter(move |(_, source)| source.level == level && source.extents > 0)
    }

    fn uploads(&self) -> Option<Job> {
        let limits = &self.limits;
        let (mut bytes, mut objects, mut extents) = (0, 0, 0);
        for (_, source) in self.of_level(object_level::UPLOAD) {
            bytes += source.listed_bytes;
            objects += 1;
            extents += source.extents;
        }
        let due =
            bytes >= limits.merge_bytes || objects >= limits.merge_objects || extents >= limits.merge_extents;
        let oldest = due.then(|| self.take(self.of_level(object_level::UPLOAD), limits.merge_bytes))?;
        self.job(Kind::Uploads, &oldest, None)
    }

    /// Objects in order until they have so many listed bytes, within what one job may read.
    fn take<'a>(
        &self,
        sources: impl IntoIterator<Item = (ObjectId, &'a Source)>,
        enough_bytes: u64,
    ) -> BTreeSet<ObjectId> {
        let (mut taken, mut bytes, mut extents) = (BTreeSet::new(), 0, 0);
        for (object, source) in sources {
            let full = taken.len() >= self.limits.merge_objects
                || extents + source.extents > self.limits.merge_extents
                || bytes + source.listed_bytes > self.limits.single_max_bytes;
            if !taken.is_empty() && (full || bytes >= enough_bytes) {
                break;
            }
            taken.insert(object);
            bytes += source.listed_bytes;
            extents += source.extents;
        }
        taken
    }

    fn dead(&self) -> Option<Job> {
        // Objects of one topic stay among themselves: they would have to be moved out of a merge again.
        let mut groups: BTreeMap<Option<TopicId>, Vec<(ObjectId, &Source)>> = BTreeMap::new();
        let mut topics: BTreeMap<ObjectId, TopicId> = BTreeMap::new();
        for listed in &self.listed {
            topics.entry(listed.object).or_insert(listed.key.topic_id);
        }
        for (object, source) in &self.sources {
            if source.level > object_level::UPLOAD
                && source.extents > 0
                && is_mostly_dead(source)
                && source.is_whole()
            {
                let single = source.level == object_level::SINGLE_TOPIC;
                let group = single.then(|| topics.get(object).copied()).flatten();
                groups.entry(group).or_default().push((*object, source));
            }
        }
        let sum = |group: &[(ObjectId, &Source)], of: fn(&Source) -> u64| {
            group.iter().map(|(_, source)| of(source)).sum::<u64>()
        };
        let (_, mut worst) = groups
            .into_iter()
            .max_by_key(|(topic, group)| (sum(group, Source::dead_bytes), std::cmp::Reverse(*topic)))?;
        let too_much = self.dead_bytes > self.limits.dead_slack_bytes + self.live_bytes / 4;
        if !too_much && sum(&worst, |source| source.listed_bytes) < self.limits.merge_bytes {
            return None;
        }
        // The deadest first: they give the most for the least.
        worst.sort_by_key(|(object, source)| {
            (source.listed_bytes.saturating_mul(1_000) / source.size_bytes.max(1), *object)
        });
        self.job(Kind::Dead, &self.take(worst, self.limits.merge_bytes), None)
    }

    fn single(&self) -> Option<Job> {
        #[derive(Default)]
        struct Share {
            bytes: u64,
            partitions: BTreeSet<i32>,
            objects: BTreeMap<ObjectId, Source>,
        }
        let mut shares: BTreeMap<TopicId, Share> = BTreeMap::new();
        for listed in &self.listed {
            let Some(source) = self.sources.get(&listed.object) else { continue };
            if source.level == object_level::MERGED {
                let share = shares.entry(listed.key.topic_id).or_default();
                share.bytes += listed.extent.size_bytes;
                share.partitions.insert(listed.key.partition);
                let of_topic = share.objects.entry(listed.object).or_default();
                of_topic.listed_bytes += listed.extent.size_bytes;
                of_topic.extents += 1;
            }
        }
        let limits = &self.limits;
        let is_due = |share: &Share| {
            let factor = (share.partitions.len() as u64).div_ceil(SINGLE_PARTITIONS).max(1);
            share.bytes >= limits.single_min_bytes.saturating_mul(factor).min(limits.single_max_bytes)
        };
        let (topic, share) = (shares.iter())
            .filter(|(_, share)| is_due(share))
            .max_by_key(|(topic, share)| (share.bytes, std::cmp::Reverse(**topic)))?;
        let of_topic = share.objects.iter().map(|(object, source)| (*object, source));
        self.job(Kind::Single, &self.take(of_topic, limits.single_max_bytes), Some(*topic))
    }

    fn small(&self) -> Option<Job> {
        let limits = &self.limits;
        let mut small: Vec<(ObjectId, &Source)> = self
            .of_level(object_level::MERGED)
            .filter(|(_, source)| source.listed_bytes < limits.merge_bytes / 2 && source.is_whole())
            .collect();
        small.sort_by_key(|(object, source)| (source.listed_bytes, *object));
        small.truncate(limits.merge_objects);
        let bytes = |sources: &[(ObjectId, &Source)]| -> u64 {
            sources.iter().map(|(_, source)| source.listed_bytes).sum()
        };
        if bytes(&small) < limits.merge_bytes {
            if small.len() < limits.merge_objects / 2 {
                return None;
            }
            // Each byte's object at least doubles.
            while small.last().is_some_and(|(_, largest)| largest.listed_bytes * 2 > bytes(&small)) {
                small.pop();
            }
        }
        if small.len() < 2 {
            return None;
        }
        self.job(Kind::Small, &self.take(small, limits.merge_bytes), None)
    }

    /// All that the lists hold in these objects (of one topic), as runs.
    fn job(&self, kind: Kind, objects: &BTreeSet<ObjectId>, topic: Option<TopicId>) -> Option<Job> {
        let mut chosen: Vec<&Listed> = self
            .listed
            .iter()
            .filter(|listed| objects.contains(&listed.object))
            .filter(|listed| topic.is_none_or(|topic| listed.key.topic_id == topic))
            .collect();
        chosen.sort_by_key(|listed| (listed.key, listed.extent.base_offset));
        let mut runs: Vec<MergeRun> = Vec::new();
        let (mut run_bytes, mut since_ms, mut bytes) = (0_u64, 0, 0_u64);
        for Listed { key, extent, .. } in chosen {
            bytes += extent.size_bytes;
            let joining = self.joining.get(&key.topic_id).copied();
            let joining = joining.unwrap_or(Joining { span_ms: i64::MAX, run_bytes: self.limits.run_bytes });
            let joins = runs.last().is_some_and(|run| {
                run.key == *key
                    && run.extents.len() < RUN_EXTENTS
                    && run.extents.last().is_some_and(|last| last.end_offset() == extent.base_offset)
                    && run_bytes + extent.size_bytes <= joining.run_bytes
                    && extent.max_timestamp_ms.saturating_sub(since_ms) <= joining.span_ms
            });
            match runs.last_mut().filter(|_| joins) {
                Some(run) => run.extents.push(extent.clone()),
                None => {
                    (run_bytes, since_ms) = (0, extent.max_timestamp_ms);
                    runs.push(MergeRun { key: *key, extents: vec![extent.clone()] });
                }
            }
            run_bytes += extent.size_bytes;
        }
        let first = runs.first()?.key.topic_id;
        let is_single = runs.iter().all(|run| run.key.topic_id == first);
        let was_single = objects.iter().all(|object| {
            self.sources.get(object).is_some_and(|source| source.level == object_level::SINGLE_TOPIC)
        });
        let level = if is_single && (was_single || bytes >= self.limits.single_min_bytes) {
            object_level::SINGLE_TOPIC
        } else {
            object_level::MERGED
        };
        Some(Job { kind, level, runs })
    }
}

fn is_mostly_dead(source: &Source) -> bool {
    source.live_bytes.saturating_mul(2) < source.size_bytes
}
