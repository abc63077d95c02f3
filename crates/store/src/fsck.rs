//! Holds a store against metadata, on a live node.
//!
//! Owns: nothing; it reads, and deletes only what it was asked to and what nobody can need.
//!
//! What it finds
//! - *garbage*: objects whose id was never granted (or is forgotten), expired before any commit, or is deleted and came back with a
//!   late PUT; what a *probe* of the store left; and *foreign* names, which it never touches;
//! - *missing* and *short* objects that extents point at, with the offsets that are lost;
//! - with `deep`: *damaged* ones, by reading every byte that has a CRC, and those in which metadata's extents do not lie
//!   (*mismatch*).
//!
//! Invariants
//! 1. Live work is no finding. The store is listed before the image is taken behind a read barrier: whatever was listed had its id by
//!    then, so what this image does not know was never granted or is long forgotten. An object that is missing or wrong is looked at
//!    again with an image from behind another barrier, and counts only if that still names it.
//! 2. Repair deletes an object only if an image from behind a barrier of its own still says that its id is unknown, deleted, or
//!    expired before any commit. An id leaves none of these states. Of probes it deletes what is older than any probe takes.
//! 3. Memory: the listing of one spread, extents of the image (with `deep`), one window of an object.

mod deep;

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_host::Host;
use isobar_metadata::Image;
use isobar_metadata::ids::{ObjectId, PartitionKey, StoreId};
use isobar_metadata::record::{Extent, ObjectRecord, ObjectState};
use tokio::sync::mpsc;

use crate::bucket::ListedObject;
use crate::cluster::Proposer;
use crate::format::{object_key, parse_object_key};
use crate::index::IndexReader;
use crate::{Bucket, StoreError, probe};

/// Extents that a finding names.
const LOST_SHOWN: usize = 5;

/// What to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsckOptions {
    /// The bucket's number in metadata.
    pub store: StoreId,
    /// Read every object.
    pub deep: bool,
    /// Delete garbage.
    pub repair: bool,
}

/// What it works with.
#[derive(Clone)]
pub struct FsckParts {
    /// The machine.
    pub host: Host,
    /// The store.
    pub bucket: Bucket,
    /// The way to metadata.
    pub proposer: Arc<dyn Proposer>,
    /// Opens index blocks.
    pub index: IndexReader,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The id was never granted, or is forgotten.
    NeverGranted,
    /// The id expired before any commit, so long ago that the deleter should have been there.
    Expired,
    /// The id was deleted.
    Deleted,
    /// Left by a probe that was killed.
    Probe,
    /// No name of ours.
    Foreign,
    /// Extents point at it, and it is not there.
    Missing,
    /// Shorter than metadata says.
    Short,
    /// Bytes that are not what was written.
    Damaged,
    /// Whole, but metadata's extents do not lie in it as they say.
    Mismatch,
    /// The store would not let us look.
    Unreadable,
}

impl Kind {
    /// One word, for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NeverGranted => "never_granted",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
            Self::Probe => "probe",
            Self::Foreign => "foreign",
            Self::Missing => "missing",
            Self::Short => "short",
            Self::Damaged => "damaged",
            Self::Mismatch => "mismatch",
            Self::Unreadable => "unreadable",
        }
    }

    /// Whether data is lost or at risk; the rest only takes room.
    pub const fn is_loss(self) -> bool {
        matches!(self, Self::Missing | Self::Short | Self::Damaged | Self::Mismatch)
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: Kind,
    /// Where.
    pub key: String,
    /// Its length, if it is there.
    pub size_bytes: u64,
    /// For a person.
    pub what: String,
    /// Topic id, partition, first and last offset of what lies there, some of it.
    pub extents: Vec<(PartitionKey, i64, i64)>,
    /// How many extents lie there.
    pub extent_count: usize,
    /// It was deleted.
    pub repaired: bool,
}

/// What was looked at, and what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Objects in the store.
    pub listed: u64,
    /// Bytes of them.
    pub listed_bytes: u64,
    /// Objects that metadata refers to.
    pub referenced: u64,
    /// Bytes that extents and pointers name.
    pub live_bytes: u64,
    /// Objects that nothing refers to and the deleter will delete by itself.
    pub awaiting_delete: u64,
    /// Objects that are being written.
    pub prepared: u64,
    /// Objects read whole.
    pub read: u64,
    /// Findings by kind.
    pub found: BTreeMap<Kind, u64>,
    /// Objects deleted.
    pub repaired: u64,
}

impl Summary {
    /// Nothing is wrong that was not mended.
    pub fn is_clean(&self) -> bool {
        self.found.values().sum::<u64>() == self.repaired
    }
}

/// What is told while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// How far it is, for whoever waits.
    Progress {
        /// `listing`, `checking` or `reading`.
        step: &'static str,
        /// Of `total`.
        done: u64,
        /// How much there is to do in this step.
        total: u64,
    },
    /// As soon as it is found.
    Finding(Finding),
    /// Last.
    Done(Summary),
}

/// Why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The store cannot be listed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Metadata did not answer.
    #[error("metadata: {0}")]
    Metadata(#[from] crate::ProposeFailed),
    /// Nobody listens.
    #[error("nobody listens any more")]
    Gone,
}

/// Looks at everything once, and tells of it as it goes; it ends when nobody listens any more.
pub async fn fsck(
    parts: &FsckParts,
    options: FsckOptions,
    tell: mpsc::Sender<Line>,
) -> Result<Summary, FsckError> {
    let mut check = Check { parts, options, tell, summary: Summary::default() };
    let mut present = BTreeMap::new();
    for spread in 0..=255_u64 {
        check.progress("listing", spread, 256).await?;
        let listed = parts.bucket.list_sized(&format!("data/{spread:02x}")).await?;
        check.listed(listed, &mut present).await?;
    }
    check.probes().await?;
    let image = check.fresh().await?;
    check.referenced(&image, &present).await?;
    if options.deep {
        check.deep(&present).await?;
    }
    let summary = check.summary.clone();
    check.say(Line::Done(summary.clone())).await?;
    Ok(summary)
}

struct Check<'a> {
    parts: &'a FsckParts,
    options: FsckOptions,
    tell: mpsc::Sender<Line>,
    summary: Summary,
}

/// The deleter's grace, its rounds and a store that was away for some minutes, generously.
const DELETER_OVERDUE_MS: i64 = 30 * 60_000;

/// Longer than a probe takes, and than clocks differ.
const PROBE_OVER_MS: i64 = 60 * 60_000;

/// What an id's record says of an object that is in the store, at a time in the state machine's milliseconds.
fn garbage(record: Option<&ObjectRecord>, now_ms: i64) -> Option<Kind> {
    let Some(record) = record else { return Some(Kind::NeverGranted) };
    match ObjectState::try_from(record.state) {
        Ok(ObjectState::Deleted) => Some(Kind::Deleted),
        // No commit ever said where it lies.
        Ok(ObjectState::Unreferenced)
            if record.store == StoreId::default() && record.since_ms + DELETER_OVERDUE_MS < now_ms =>
        {
            Some(Kind::Expired)
        }
        _ => None,
    }
}

impl Check<'_> {
    async fn say(&self, line: Line) -> Result<(), FsckError> {
        self.tell.send(line).await.map_err(|_| FsckError::Gone)
    }

    async fn progress(&self, step: &'static str, done: u64, total: u64) -> Result<(), FsckError> {
        self.say(Line::Progress { step, done, total }).await
    }

    async fn found(&mut self, finding: Finding) -> Result<(), FsckError> {
        *self.summary.found.entry(finding.kind).or_insert(0) += 1;
        self.summary.repaired += u64::from(finding.repaired);
        self.say(Line::Finding(finding)).await
    }

    /// An image that shows all that was applied before now.
    async fn fresh(&self) -> Result<Image, FsckError> {
        self.parts.proposer.barrier().await?;
        Ok(self.parts.proposer.image())
    }

    /// Judges what one listing shows, with an image from after it.
    async fn listed(
        &mut self,
        listed: Vec<ListedObject>,
        present: &mut BTreeMap<ObjectId, u64>,
    ) -> Result<(), FsckError> {
        if listed.is_empty() {
            return Ok(());
        }
        let image = self.fresh().await?;
        for ListedObject { key, size_bytes } in listed {
            self.summary.listed += 1;
            self.summary.listed_bytes += size_bytes;
            let Some(object) = parse_object_key(&key) else {
                let what = "no name that Isobar gives; left alone".to_owned();
                self.found(plain(Kind::Foreign, key, size_bytes, what)).await?;
                continue;
            };
            let record = image.object(object).map(|object| object.record);
            if let Some(kind) = garbage(record.as_ref(), image.time_ms()) {
                self.garbage(kind, object, key, size_bytes).await?;
                continue;
            }
            match record.and_then(|record| ObjectState::try_from(record.state).ok()) {
                Some(ObjectState::Prepared) => self.summary.prepared += 1,
                Some(ObjectState::Unreferenced) => self.summary.awaiting_delete += 1,
                _ => {
                    present.insert(object, size_bytes);
                }
            }
        }
        Ok(())
    }

    async fn garbage(
        &mut self,
        kind: Kind,
        object: ObjectId,
        key: String,
        size_bytes: u64,
    ) -> Result<(), FsckError> {
        // The deleter may have been at it between the listing and the image.
        if matches!(self.parts.bucket.size(&key).await, Err(StoreError::NotFound(_))) {
            return Ok(());
        }
        let mut what = match kind {
            Kind::Deleted => "its id is deleted: a late PUT, or a delete that did not hold",
            Kind::Expired => "its id expired before any commit",
            _ => "its id was never granted, or was forgotten long ago",
        }
        .to_owned();
        let mut repaired = false;
        if self.options.repair {
            let image = self.fresh().await?;
            if garbage(image.object(object).map(|object| &object.record), image.time_ms()).is_some() {
                match self.parts.bucket.delete(&key).await {
                    Ok(()) => repaired = true,
                    Err(error) => what = format!("{what}; not deleted: {error}"),
                }
            }
        }
        self.found(Finding { repaired, ..plain(kind, key, size_bytes, what) }).await
    }

    async fn probes(&mut self) -> Result<(), FsckError> {
        for ListedObject { key, size_bytes } in probe::leftovers(&self.parts.bucket).await? {
            let Some(began_ms) = probe::began_ms(&key) else {
                let what = "no name that Isobar gives; left alone".to_owned();
                self.found(plain(Kind::Foreign, key, size_bytes, what)).await?;
                continue;
            };
            if began_ms.saturating_add(PROBE_OVER_MS) > self.parts.host.now_ms() {
                continue;
            }
            let mut what = "left by a first start or a `store check` that was killed".to_owned();
            let mut repaired = false;
            if self.options.repair {
                match self.parts.bucket.delete(&key).await {
                    Ok(()) => repaired = true,
                    Err(error) => what = format!("{what}; not deleted: {error}"),
                }
            }
            self.found(Finding { repaired, ..plain(Kind::Probe, key, size_bytes, what) }).await?;
        }
        Ok(())
    }

    /// Judges what metadata refers to.
    async fn referenced(
        &mut self,
        image: &Image,
        present: &BTreeMap<ObjectId, u64>,
    ) -> Result<(), FsckError> {
        let referenced: Vec<_> =
            image.objects().filter(|object| self.is_referenced(object)).copied().collect();
        let total = referenced.len() as u64;
        for (done, object) in referenced.iter().enumerate() {
            if done % 1000 == 0 {
                self.progress("checking", done as u64, total).await?;
            }
            self.summary.referenced += 1;
            self.summary.live_bytes += object.live_bytes;
            let key = object_key(object.object);
            let size_bytes = match present.get(&object.object) {
                Some(size_bytes) => Ok(*size_bytes),
                // It may have come after its spread was listed.
                None => self.parts.bucket.size(&key).await,
            };
            match size_bytes {
                Ok(size_bytes) if size_bytes >= object.size_bytes => {}
                Ok(size_bytes) => {
                    let what = format!("{size_bytes} bytes, metadata says {}", object.size_bytes);
                    self.lost(Kind::Short, object.object, size_bytes, what).await?;
                }
                Err(StoreError::NotFound(_)) => {
                    let what = "metadata refers to it and it is not in the store".to_owned();
                    self.lost(Kind::Missing, object.object, 0, what).await?;
                }
                Err(error) => self.found(plain(Kind::Unreadable, key, 0, error.to_string())).await?,
            }
        }
        Ok(())
    }

    fn is_referenced(&self, object: &isobar_metadata::Object) -> bool {
        let is_committed = object.state == ObjectState::Committed as i32;
        is_committed && object.refs > 0 && object.store == self.options.store
    }

    /// Tells of an object that should be whole, unless nothing refers to it any more.
    async fn lost(
        &mut self,
        kind: Kind,
        object: ObjectId,
        size_bytes: u64,
        what: String,
    ) -> Result<(), FsckError> {
        let image = self.fresh().await?;
        if !image.object(object).is_some_and(|object| self.is_referenced(object)) {
            return Ok(());
        }
        let extents = extents_in(&image, self.options.store, object);
        let extent_count = extents.len();
        let shown = extents.into_iter().take(LOST_SHOWN);
        let extents = shown.map(|(key, extent)| (key, extent.base_offset, extent.last_offset)).collect();
        let finding = plain(kind, object_key(object), size_bytes, what);
        self.found(Finding { extents, extent_count, ..finding }).await
    }
}

fn plain(kind: Kind, key: String, size_bytes: u64, what: String) -> Finding {
    Finding { kind, key, size_bytes, what, extents: Vec::new(), extent_count: 0, repaired: false }
}

/// The listed extents that lie in an object.
fn extents_in(image: &Image, store: StoreId, object: ObjectId) -> Vec<(PartitionKey, Extent)> {
    let mut found = Vec::new();
    for shard in 0..image.shards() {
        for view in image.shard_stored(shard) {
            let listed = view.stores.get(&store).into_iter().flat_map(|extents| extents.values());
            let inside =
                listed.filter(|extent| extent.object().is_some_and(|location| location.object == object));
            found.extend(inside.map(|extent| (view.key(), extent.clone())));
        }
    }
    found
}
