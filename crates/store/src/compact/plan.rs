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
//! It is a function of its input: the same lists give the same job, so after a crash the same job is found again. What it looks
//! at is followed from image to image ([`Inventory`]), so that a look costs what has changed.

mod inventory;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use isobar_metadata::Image;
use isobar_metadata::ids::{ObjectId, PartitionKey, TopicId};
use isobar_metadata::record::{Extent, object_level};

pub use inventory::Inventory;
use inventory::{Share, Source, Sum};

/// Bounds of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// How far extents of a topic may be joined.
#[derive(Debug, Clone, Copy)]
struct Joining {
    span_ms: i64,
    run_bytes: u64,
}

impl Joining {
    fn of(image: &Image, topic_id: TopicId, limits: &Limits) -> Self {
        let Some(topic) = image.topic(topic_id) else {
            return Self { span_ms: i64::MAX, run_bytes: limits.run_bytes };
        };
        let part = |whole: i64| u64::try_from(whole).ok().map(|whole| whole / RETENTION_PARTS);
        let span_ms = part(topic.settings.retention_ms)
            .map_or(i64::MAX, |span| i64::try_from(span).unwrap_or(i64::MAX).max(SPAN_MIN_MS));
        let run_bytes = part(topic.settings.retention_bytes).unwrap_or(u64::MAX);
        Self { span_ms, run_bytes: run_bytes.min(limits.run_bytes).max(1) }
    }
}

impl Inventory {
    /// The best job, if anything is worth one.
    pub fn plan(&self) -> Option<Job> {
        self.uploads().or_else(|| self.dead()).or_else(|| self.single()).or_else(|| self.small())
    }

    fn uploads(&self) -> Option<Job> {
        let (limits, files) = (&self.limits, &self.files);
        let is_due = files.uploaded.bytes >= limits.merge_bytes
            || files.uploads.len() >= limits.merge_objects
            || files.uploaded.extents >= limits.merge_extents;
        let oldest = is_due.then(|| self.take(&files.uploads, limits.merge_bytes))?;
        self.job(Kind::Uploads, &oldest, None)
    }

    fn take<'a>(
        &self,
        objects: impl IntoIterator<Item = &'a ObjectId>,
        enough_bytes: u64,
    ) -> BTreeSet<ObjectId> {
        let sums = objects.into_iter().filter_map(|object| {
            let source = self.sources.get(object)?;
            Some((*object, Sum { bytes: source.listed_bytes, extents: source.extents }))
        });
        self.take_sums(sums, enough_bytes)
    }

    /// Objects in order until they have so many listed bytes, within what one job may read.
    fn take_sums(
        &self,
        sums: impl IntoIterator<Item = (ObjectId, Sum)>,
        enough_bytes: u64,
    ) -> BTreeSet<ObjectId> {
        let (mut taken, mut bytes, mut extents) = (BTreeSet::new(), 0, 0);
        for (object, sum) in sums {
            let full = taken.len() >= self.limits.merge_objects
                || extents + sum.extents > self.limits.merge_extents
                || bytes + sum.bytes > self.limits.single_max_bytes;
            if !taken.is_empty() && (full || bytes >= enough_bytes) {
                break;
            }
            taken.insert(object);
            bytes += sum.bytes;
            extents += sum.extents;
        }
        taken
    }

    fn dead(&self) -> Option<Job> {
        let groups = self.files.dead.iter();
        let (_, worst) =
            groups.max_by_key(|(topic, group)| (group.dead_bytes, std::cmp::Reverse(**topic)))?;
        let too_much = self.files.dead_bytes > self.limits.dead_slack_bytes + self.files.live_bytes / 4;
        if !too_much && worst.listed_bytes < self.limits.merge_bytes {
            return None;
        }
        // The deadest first: they give the most for the least.
        let mut objects: Vec<ObjectId> = worst.objects.iter().copied().collect();
        objects.sort_by_key(|object| (self.sources.get(object).map_or(0, Source::live_share), *object));
        self.job(Kind::Dead, &self.take(&objects, self.limits.merge_bytes), None)
    }

    fn single(&self) -> Option<Job> {
        let limits = &self.limits;
        let is_due = |share: &Share| {
            let factor = (share.partitions.len() as u64).div_ceil(SINGLE_PARTITIONS).max(1);
            share.bytes >= limits.single_min_bytes.saturating_mul(factor).min(limits.single_max_bytes)
        };
        let (topic, share) = (self.files.shares.iter())
            .filter(|(_, share)| is_due(share))
            .max_by_key(|(topic, share)| (share.bytes, std::cmp::Reverse(**topic)))?;
        let of_topic = share.objects.iter().map(|(object, sum)| (*object, *sum));
        self.job(Kind::Single, &self.take_sums(of_topic, limits.single_max_bytes), Some(*topic))
    }

    fn small(&self) -> Option<Job> {
        let limits = &self.limits;
        let mut small: Vec<(u64, ObjectId)> =
            self.files.small.iter().take(limits.merge_objects).copied().collect();
        let bytes = |small: &[(u64, ObjectId)]| small.iter().map(|(bytes, _)| bytes).sum::<u64>();
        if bytes(&small) < limits.merge_bytes {
            if small.len() < limits.merge_objects / 2 {
                return None;
            }
            // Each byte's object at least doubles.
            while small.last().is_some_and(|(largest, _)| largest * 2 > bytes(&small)) {
                small.pop();
            }
        }
        if small.len() < 2 {
            return None;
        }
        let objects = self.take(small.iter().map(|(_, object)| object), limits.merge_bytes);
        self.job(Kind::Small, &objects, None)
    }

    /// What the lists hold in these objects (of one topic), in order.
    fn extents(&self, objects: &BTreeSet<ObjectId>, topic: Option<TopicId>) -> Vec<(PartitionKey, Extent)> {
        let Some(image) = &self.seen else { return Vec::new() };
        let mut spans: BTreeMap<PartitionKey, RangeInclusive<i64>> = BTreeMap::new();
        for (key, part) in objects.iter().filter_map(|object| self.sources.get(object)).flat_map(|s| &s.parts)
        {
            if topic.is_none_or(|topic| key.topic_id == topic) {
                let span = spans.entry(*key).or_insert(part.from..=part.to);
                *span = part.from.min(*span.start())..=part.to.max(*span.end());
            }
        }
        let mut chosen = Vec::new();
        for (key, span) in spans {
            let Some(listed) = image.view(key).and_then(|view| view.stores.get(&self.store)) else {
                continue;
            };
            let extents = listed.range(span).filter_map(|(_, extent)| self.counted(extent));
            let extents = extents.filter(|(object, _)| objects.contains(object));
            chosen.extend(extents.map(|(_, extent)| (key, extent.clone())));
        }
        chosen
    }

    /// All that the lists hold in these objects (of one topic), as runs.
    fn job(&self, kind: Kind, objects: &BTreeSet<ObjectId>, topic: Option<TopicId>) -> Option<Job> {
        let image = self.seen.as_ref()?;
        let mut runs: Vec<MergeRun> = Vec::new();
        let (mut run_bytes, mut since_ms, mut bytes) = (0_u64, 0, 0_u64);
        let mut joining = None;
        for (key, extent) in self.extents(objects, topic) {
            bytes += extent.size_bytes;
            if runs.last().is_none_or(|run| run.key.topic_id != key.topic_id) {
                joining = Some(Joining::of(image, key.topic_id, &self.limits));
            }
            let Some(joining) = joining else { continue };
            let joins = runs.last().is_some_and(|run| {
                run.key == key
                    && run.extents.len() < RUN_EXTENTS
                    && run.extents.last().is_some_and(|last| last.end_offset() == extent.base_offset)
                    && run_bytes + extent.size_bytes <= joining.run_bytes
                    && extent.max_timestamp_ms.saturating_sub(since_ms) <= joining.span_ms
            });
            if !joins {
                (run_bytes, since_ms) = (0, extent.max_timestamp_ms);
                runs.push(MergeRun { key, extents: Vec::new() });
            }
            run_bytes += extent.size_bytes;
            if let Some(run) = runs.last_mut() {
                run.extents.push(extent);
            }
        }
        let first = runs.first()?.key.topic_id;
        let is_single = runs.iter().all(|run| run.key.topic_id == first);
        let was_single = objects.iter().all(|object| {
            self.sources.get(object).and_then(Source::level) == Some(object_level::SINGLE_TOPIC)
        });
        let level = if is_single && (was_single || bytes >= self.limits.single_min_bytes) {
            object_level::SINGLE_TOPIC
        } else {
            object_level::MERGED
        };
        Some(Job { kind, level, runs })
    }
}
