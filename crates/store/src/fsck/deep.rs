//! Reads every object that metadata refers to: footer, every batch or block, and metadata's extents against both.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use isobar_metadata::Image;
use isobar_metadata::ids::{ObjectId, PartitionKey};
use isobar_metadata::index_block::IndexBlock;
use isobar_metadata::record::{Extent, IndexPointer};
use isobar_protocol::batch::{BatchHeader, crc32c, verify_crc};

use super::{Check, FsckError, Kind, plain};
use crate::format::{Footer, RunBatch, TRAILER_BYTES, Trailer, object_key};
use crate::{Bucket, StoreError};

/// Bytes of one read.
const WINDOW_BYTES: u64 = 4 << 20;
/// What a batch's own CRC leaves out, and the footer's index covers.
const HEAD_BYTES: usize = 21;

/// What metadata says of one object.
#[derive(Default)]
struct Claims {
    extents: Vec<(PartitionKey, Extent)>,
    blocks: Vec<(PartitionKey, IndexPointer)>,
}

impl Check<'_> {
    pub(super) async fn deep(&mut self, present: &BTreeMap<ObjectId, u64>) -> Result<(), FsckError> {
        let image = self.fresh().await?;
        let claims = self.claims(&image).await?;
        let total = present.len() as u64;
        for (done, (object, size_bytes)) in present.iter().enumerate() {
            if done % 16 == 0 {
                self.progress("reading", done as u64, total).await?;
            }
            let Some(record) = image.object(*object).filter(|record| self.is_referenced(record)) else {
                continue;
            };
            if *size_bytes < record.size_bytes {
                // Told already.
                continue;
            }
            let nothing = Claims::default();
            let claims = claims.get(object).unwrap_or(&nothing);
            let cluster_id = &image.format().cluster_id;
            let result = check_object(&self.parts.bucket, *object, *size_bytes, cluster_id, claims).await;
            self.summary.read += 1;
            match result {
                Ok(()) => {}
                Err(Trouble::Wrong(kind, what)) => self.lost(kind, *object, *size_bytes, what).await?,
                // Deleted meanwhile, or it is missing, which was told already.
                Err(Trouble::Store(StoreError::NotFound(_))) => {}
                Err(Trouble::Store(error)) => {
                    let key = object_key(*object);
                    self.found(plain(Kind::Unreadable, key, *size_bytes, error.to_string())).await?;
                }
            }
        }
        Ok(())
    }

    /// All extents, listed and indexed, by object.
    async fn claims(&mut self, image: &Image) -> Result<BTreeMap<ObjectId, Claims>, FsckError> {
        let store = self.options.store;
        let mut claims: BTreeMap<ObjectId, Claims> = BTreeMap::new();
        let mut damaged: BTreeMap<ObjectId, String> = BTreeMap::new();
        for shard in 0..image.shards() {
            for view in image.shard_stored(shard) {
                for extent in view.stores.get(&store).into_iter().flat_map(|extents| extents.values()) {
                    if let Some(location) = extent.object() {
                        let claims = claims.entry(location.object).or_default();
                        claims.extents.push((view.key(), extent.clone()));
                    }
                }
                for pointer in view.indexed.get(&store).into_iter().flat_map(|pointers| pointers.values()) {
                    let claim = claims.entry(pointer.object).or_default();
                    claim.blocks.push((view.key(), pointer.clone()));
                    match self.parts.index.block(view.key(), pointer).await {
                        Ok(block) => {
                            for extent in &block.extents {
                                if let Some(location) = extent.object() {
                                    let claims = claims.entry(location.object).or_default();
                                    claims.extents.push((view.key(), extent.clone()));
                                }
                            }
                        }
                        Err(error @ StoreError::Damaged { .. }) => {
                            damaged.entry(pointer.object).or_insert_with(|| error.to_string());
                        }
                        // Missing is told already; what cannot be read now is told when it is read.
                        Err(_) => {}
                    }
                }
            }
        }
        for (object, what) in damaged {
            self.lost(Kind::Damaged, object, 0, what).await?;
        }
        Ok(claims)
    }
}

enum Trouble {
    Wrong(Kind, String),
    Store(StoreError),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn damaged(what: impl Into<String>) -> Trouble {
    Trouble::Wrong(Kind::Damaged, what.into())
}

fn mismatch(what: impl Into<String>) -> Trouble {
    Trouble::Wrong(Kind::Mismatch, what.into())
}

async fn check_object(
    bucket: &Bucket,
    object: ObjectId,
    size_bytes: u64,
    cluster_id: &str,
    claims: &Claims,
) -> Result<(), Trouble> {
    let key = object_key(object);
    let footer = footer(bucket, &key, size_bytes).await?;
    if footer.cluster_id != cluster_id || footer.object != object {
        let what = format!("it says it is object {} of cluster {}", footer.object, footer.cluster_id);
        return Err(mismatch(what));
    }
    let mut window = Window { bucket, key: &key, end: footer.body_bytes, start: 0, buffer: Bytes::new() };
    for batch in footer.runs.iter().flat_map(|run| &run.batches) {
        let bytes = window.take(batch.start..batch.start + u64::from(batch.bytes)).await?;
        check_batch(&bytes, batch)?;
    }
    for block in &footer.blocks {
        let bytes = window.take(block.range.clone()).await?;
        IndexBlock::from_bytes(&bytes)
            .map_err(|error| damaged(format!("index block at {:?}: {error}", block.range)))?;
    }
    check_claims(&footer, claims)
}

async fn footer(bucket: &Bucket, key: &str, size_bytes: u64) -> Result<Footer, Trouble> {
    let Some(at) = size_bytes.checked_sub(TRAILER_BYTES as u64) else {
        return Err(damaged("shorter than a trailer"));
    };
    let trailer = bucket.get_range(key, at..size_bytes).await?;
    let trailer = Trailer::decode(&trailer).map_err(|error| damaged(error.to_string()))?;
    let Some(start) = at.checked_sub(u64::from(trailer.footer_bytes)) else {
        return Err(damaged("footer longer than the object"));
    };
    let bytes = bucket.get_range(key, start..at).await?;
    let footer = Footer::decode(&bytes, trailer).map_err(|error| damaged(error.to_string()))?;
    if footer.body_bytes != start {
        return Err(damaged("the body's length is not what the footer says"));
    }
    Ok(footer)
}

fn check_batch(bytes: &[u8], batch: &RunBatch) -> Result<(), Trouble> {
    let wrong = |what: String| damaged(format!("batch at byte {}: {what}", batch.start));
    let header = BatchHeader::parse(bytes).map_err(|error| wrong(error.to_string()))?;
    verify_crc(bytes).map_err(|error| wrong(error.to_string()))?;
    if header.total_bytes() != bytes.len() || crc32c(&bytes[..HEAD_BYTES]) != batch.head_crc {
        return Err(wrong("its head is not what was written".to_owned()));
    }
    Ok(())
}

/// Every extent must begin and end with a batch of its partition, and hold its offsets; every pointer must name a block.
fn check_claims(footer: &Footer, claims: &Claims) -> Result<(), Trouble> {
    // By where a batch starts, and by where it ends.
    let mut starts: BTreeMap<u64, (PartitionKey, &RunBatch)> = BTreeMap::new();
    let mut ends: BTreeMap<u64, (PartitionKey, &RunBatch)> = BTreeMap::new();
    for run in &footer.runs {
        for batch in &run.batches {
            starts.insert(batch.start, (run.key, batch));
            ends.insert(batch.start + u64::from(batch.bytes), (run.key, batch));
        }
    }
    for (key, extent) in &claims.extents {
        let Some(location) = extent.object() else { continue };
        let range = location.range();
        let (first, last) = (starts.get(&range.start), ends.get(&range.end));
        let (Some((first_key, first)), Some((last_key, last))) = (first, last) else {
            return Err(mismatch(format!("extent at {range:?} does not begin and end with a batch")));
        };
        if first_key != key || last_key != key {
            return Err(mismatch(format!("extent at {range:?} is another partition's")));
        }
        // Of an object of the durability class `object` the footer knows distances only.
        let spans = last.last_offset - first.base_offset == extent.last_offset - extent.base_offset;
        let is_there = location.unstamped || first.base_offset == extent.base_offset;
        if !spans || !is_there {
            let (found, end) = (first.base_offset, last.last_offset);
            let (base, to) = (extent.base_offset, extent.last_offset);
            return Err(mismatch(format!(
                "extent at {range:?} holds offsets {found} to {end}, metadata says {base} to {to}"
            )));
        }
    }
    for (key, pointer) in &claims.blocks {
        let found = footer.blocks.iter().find(|block| block.range == pointer.range());
        if !found.is_some_and(|block| block.key == *key && block.first_offset == pointer.base_offset) {
            return Err(mismatch(format!("no index block of {key:?} at {:?}", pointer.range())));
        }
    }
    Ok(())
}

/// A window that moves over the body.
struct Window<'a> {
    bucket: &'a Bucket,
    key: &'a str,
    /// Where the body ends.
    end: u64,
    start: u64,
    buffer: Bytes,
}

impl Window<'_> {
    async fn take(&mut self, wanted: Range<u64>) -> Result<Bytes, StoreError> {
        let have = self.start + self.buffer.len() as u64;
        if wanted.start < self.start || wanted.end > have {
            let kept = if (self.start..have).contains(&wanted.start) {
                self.buffer.slice((wanted.start - self.start) as usize..)
            } else {
                Bytes::new()
            };
            let from = wanted.start + kept.len() as u64;
            let to = (from + WINDOW_BYTES).min(self.end).max(wanted.end);
            let read = self.bucket.get_range(self.key, from..to).await?;
            let mut joined = BytesMut::with_capacity(kept.len() + read.len());
            joined.extend_from_slice(&kept);
            joined.extend_from_slice(&read);
            (self.start, self.buffer) = (wanted.start, joined.freeze());
        }
        let at = (wanted.start - self.start) as usize;
        Ok(self.buffer.slice(at..at + (wanted.end - wanted.start) as usize))
    }
}
