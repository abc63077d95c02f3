//! The object format. Pure: bytes in, bytes out.
//!
//! ```text
//! [run][run]…[footer: protobuf][trailer: 24 bytes]
//! run     = whole batches of one partition, back to back, final offsets and leader epoch stamped
//! trailer = footer length u32 · footer CRC-32C u32 · format version u32 · CRC-32C of these 12 bytes u32 · magic 8 bytes
//! ```
//! All integers little-endian. A run's byte range is what metadata's `Object` location names, so a ranged GET of it is
//! what a consumer gets, and the footer is only needed by whoever has nothing but the object (`isobar dump`, fsck,
//! compaction, recovery).
//!
//! An object of the durability class `object` is put before its batches have offsets: they lie in it as the producers sent them,
//! the footer counts offsets from 0 in each run, and says which chunk it is ([`Origin`]). Whoever reads such a run stamps it
//! with the offsets that metadata gives.
//!
//! Every byte is under a CRC: a batch from its 21st byte on by its own, its first 21 bytes by the footer's index,
//! the footer by the trailer, the trailer by itself. Records are never summed a second time.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use isobar_metadata::ids::{ObjectId, PartitionKey, TopicId};
use isobar_protocol::batch::{BatchHeader, HEADER_BYTES, STAMP_BYTES, crc32c, verify_crc};
use prost::Message;

/// Version of objects whose batches have their final offsets.
pub const VERSION: u32 = 1;
/// Version of objects that hold a chunk of the durability class `object`, whose offsets were not known when it was put. A
/// reader refuses a higher one.
pub const CHUNK_VERSION: u32 = 2;
/// Length of the trailer.
pub const TRAILER_BYTES: usize = 24;
/// No footer is larger; a longer one in a trailer is damage.
pub const MAX_FOOTER_BYTES: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"ISOBAROB";
/// What a batch's own CRC leaves out.
const HEAD_BYTES: usize = 21;

/// Where an object lies below the bucket's prefix: `data/<spread>/<id>`. The spread comes from a hash, so that stores
/// which split by key range see writes all over.
pub fn object_key(object: ObjectId) -> String {
    format!("data/{:02x}/{:020}", spread(object), object.0)
}

/// The id in a key that [`object_key`] made.
pub fn parse_object_key(key: &str) -> Option<ObjectId> {
    let (_, name) = key.rsplit_once('/')?;
    let object = ObjectId(name.parse().ok()?);
    key.ends_with(&object_key(object)).then_some(object)
}

/// SplitMix64's finisher: neighbouring ids land far apart.
fn spread(object: ObjectId) -> u8 {
    let mut z = object.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as u8
}

/// Why bytes are no object of ours. Whatever they are, reading them neither panics nor allocates beyond their size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FormatError {
    /// Not written by us, or cut off.
    #[error("not an object of this format: {0}")]
    NotAnObject(&'static str),
    /// A newer Isobar wrote it.
    #[error("object format version {0} is newer than this program knows")]
    Version(u32),
    /// Damaged.
    #[error("object is damaged: {0}")]
    Damaged(String),
}

fn damaged(why: impl Into<String>) -> FormatError {
    FormatError::Damaged(why.into())
}

#[derive(Clone, PartialEq, Message)]
struct FooterProto {
    #[prost(string, tag = "1")]
    cluster_id: String,
    #[prost(uint64, tag = "2")]
    object_id: u64,
    #[prost(int64, tag = "3")]
    created_ms: i64,
    #[prost(uint64, tag = "4")]
    body_bytes: u64,
    #[prost(message, repeated, tag = "5")]
    runs: Vec<RunProto>,
    /// Of an index object, which has no runs.
    #[prost(message, repeated, tag = "6")]
    blocks: Vec<BlockProto>,
    #[prost(message, optional, tag = "7")]
    origin: Option<Origin>,
}

/// Which chunk an object of the class `object` holds.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Origin {
    /// Of the broker that put it.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Its lane.
    #[prost(uint32, tag = "2")]
    pub lane: u32,
    /// The commit's number in the lane.
    #[prost(uint64, tag = "3")]
    pub number: u64,
}

/// A block of an index object.
#[derive(Clone, PartialEq, Message)]
struct BlockProto {
    #[prost(bytes = "vec", tag = "1")]
    topic_id: Vec<u8>,
    #[prost(int32, tag = "2")]
    partition: i32,
    #[prost(int64, tag = "3")]
    first_offset: i64,
    #[prost(int64, tag = "4")]
    last_offset: i64,
    #[prost(uint64, tag = "5")]
    start: u64,
    #[prost(uint64, tag = "6")]
    bytes: u64,
}

/// Columns have one value a batch.
#[derive(Clone, PartialEq, Message)]
struct RunProto {
    #[prost(bytes = "vec", tag = "1")]
    topic_id: Vec<u8>,
    #[prost(int32, tag = "2")]
    partition: i32,
    #[prost(int64, tag = "3")]
    first_offset: i64,
    #[prost(int64, tag = "4")]
    last_offset: i64,
    #[prost(uint64, tag = "5")]
    start: u64,
    /// Lengths.
    #[prost(uint32, repeated, packed = "true", tag = "6")]
    batch_bytes: Vec<u32>,
    /// Base offsets, each as the difference to the one before (the first: to `first_offset`).
    #[prost(uint64, repeated, packed = "true", tag = "7")]
    base_offset_deltas: Vec<u64>,
    /// Last offset delta of each batch.
    #[prost(uint32, repeated, packed = "true", tag = "8")]
    last_offset_deltas: Vec<u32>,
    /// Each but the first as the difference to the one before.
    #[prost(sint64, repeated, packed = "true", tag = "9")]
    max_timestamp_deltas_ms: Vec<i64>,
    /// CRC-32C of each batch's first 21 bytes.
    #[prost(fixed32, repeated, packed = "true", tag = "10")]
    head_crcs: Vec<u32>,
}

/// A run that lies in an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub key: PartitionKey,
    /// First offset.
    pub first_offset: i64,
    /// Last offset, inclusive.
    pub last_offset: i64,
    /// Bytes in the object.
    pub range: Range<u64>,
    /// Largest timestamp, milliseconds since the epoch.
    pub max_timestamp_ms: i64,
    /// In offset order.
    pub batches: Vec<RunBatch>,
}

/// A batch of a run, as the footer knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunBatch {
    /// First offset.
    pub base_offset: i64,
    /// Last offset, inclusive.
    pub last_offset: i64,
    /// Where it starts in the object.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u32,
    /// Largest timestamp, milliseconds since the epoch.
    pub max_timestamp_ms: i64,
    /// CRC-32C of its first 21 bytes.
    pub head_crc: u32,
}

/// Batches shorter than this are copied together: a slice each would cost more than the copy.
const COPY_BELOW_BYTES: usize = 512;
/// Copied bytes and stamps gather in pieces of this.
const ARENA_BYTES: usize = 64 << 10;

/// Writes an object as a list of slices: no record byte of a batch of some length is copied.
pub struct ObjectBuilder {
    cluster_id: String,
    object: ObjectId,
    created_ms: i64,
    origin: Option<Origin>,
    parts: Vec<Bytes>,
    arena: BytesMut,
    body_bytes: u64,
    runs: Vec<Run>,
    /// Bytes at which a run ends though its next batch follows.
    max_run_bytes: u64,
    run_ended: bool,
}

impl ObjectBuilder {
    /// An empty object.
    pub fn new(cluster_id: String, object: ObjectId, created_ms: i64) -> Self {
        Self {
            cluster_id,
            object,
            created_ms,
            origin: None,
            parts: Vec::new(),
            arena: BytesMut::new(),
            body_bytes: 0,
            runs: Vec::new(),
            max_run_bytes: u64::MAX,
            run_ended: false,
        }
    }

    /// An empty object for a chunk, whose batches are pushed with [`push_raw`](Self::push_raw).
    pub fn of_chunk(cluster_id: String, object: ObjectId, created_ms: i64, origin: Origin) -> Self {
        Self { origin: Some(origin), ..Self::new(cluster_id, object, created_ms) }
    }

    /// Ends a run once it has this many bytes: a reader walks a run from its start.
    pub fn with_max_run_bytes(self, max_run_bytes: u64) -> Self {
        Self { max_run_bytes, ..self }
    }

    /// The next batch begins a run, whatever it is.
    pub fn end_run(&mut self) {
        self.run_ended = true;
    }

    /// The bytes so far, but for what was taken already: so that an object need not be in memory as a whole.
    pub fn take_parts(&mut self) -> Vec<Bytes> {
        self.flush();
        std::mem::take(&mut self.parts)
    }

    /// Bytes of all runs so far.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Appends a batch, of which `header` was parsed, with these final offsets. It goes on with the current run if it is of
    /// the same partition and begins where the run ends; else it begins the next. Its CRC has been checked by whoever it
    /// came from.
    pub fn push(
        &mut self,
        key: PartitionKey,
        batch: &Bytes,
        header: &BatchHeader,
        base_offset: i64,
        leader_epoch: i32,
    ) {
        let stamp = header.stamp(base_offset, leader_epoch);
        let mut head = [0; HEAD_BYTES];
        head[..STAMP_BYTES].copy_from_slice(&stamp);
        head[STAMP_BYTES..].copy_from_slice(&batch[STAMP_BYTES..HEAD_BYTES]);
        self.note(key, batch.len(), header, base_offset, crc32c(&head));
        if batch.len() < COPY_BELOW_BYTES {
            self.gather(&stamp);
            self.gather(&batch[STAMP_BYTES..]);
        } else if batch[..STAMP_BYTES] == stamp {
            self.flush();
            self.parts.push(batch.clone());
        } else {
            self.gather(&stamp);
            self.flush();
            self.parts.push(batch.slice(STAMP_BYTES..));
        }
    }

    /// Appends a batch of a chunk as it is. `base_offset` counts from 0 in its run.
    pub fn push_raw(&mut self, key: PartitionKey, batch: &Bytes, header: &BatchHeader, base_offset: i64) {
        self.note(key, batch.len(), header, base_offset, crc32c(&batch[..HEAD_BYTES]));
        if batch.len() < COPY_BELOW_BYTES {
            self.gather(batch);
        } else {
            self.flush();
            self.parts.push(batch.clone());
        }
    }

    /// Adds a batch to the index.
    fn note(
        &mut self,
        key: PartitionKey,
        bytes: usize,
        header: &BatchHeader,
        base_offset: i64,
        head_crc: u32,
    ) {
        let last_offset = base_offset + i64::from(header.last_offset_delta);
        let entry = RunBatch {
            base_offset,
            last_offset,
            start: self.body_bytes,
            bytes: bytes as u32,
            max_timestamp_ms: header.max_timestamp_ms,
            head_crc,
        };
        match self.runs.last_mut() {
            Some(run)
                if run.key == key
                    && run.last_offset + 1 == base_offset
                    && !self.run_ended
                    && run.range.end - run.range.start < self.max_run_bytes =>
            {
                run.last_offset = last_offset;
                run.max_timestamp_ms = run.max_timestamp_ms.max(header.max_timestamp_ms);
                run.range.end += bytes as u64;
                run.batches.push(entry);
            }
            _ => self.runs.push(Run {
                key,
                first_offset: base_offset,
                last_offset,
                range: self.body_bytes..self.body_bytes + bytes as u64,
                max_timestamp_ms: header.max_timestamp_ms,
                batches: vec![entry],
            }),
        }
        self.run_ended = false;
        self.body_bytes += bytes as u64;
    }

    fn gather(&mut self, bytes: &[u8]) {
        if self.arena.capacity() - self.arena.len() < bytes.len() {
            self.flush();
            self.arena = BytesMut::with_capacity(ARENA_BYTES.max(bytes.len()));
        }
        self.arena.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        if !self.arena.is_empty() {
            self.parts.push(self.arena.split().freeze());
        }
    }

    /// The object's bytes in order, and the runs in it.
    pub fn finish(mut self) -> (Vec<Bytes>, Vec<Run>) {
        let footer = FooterProto {
            cluster_id: self.cluster_id.clone(),
            object_id: self.object.0,
            created_ms: self.created_ms,
            body_bytes: self.body_bytes,
            runs: self.runs.iter().map(run_proto).collect(),
            origin: self.origin,
            blocks: Vec::new(),
        }
        .encode_to_vec();
        self.flush();
        let version = if self.origin.is_some() { CHUNK_VERSION } else { VERSION };
        let trailer = encode_trailer(&footer, version);
        self.parts.push(Bytes::from(footer));
        self.parts.push(Bytes::copy_from_slice(&trailer));
        (self.parts, self.runs)
    }
}

fn check_batch(batch: &[u8]) -> Result<BatchHeader, FormatError> {
    let header = BatchHeader::parse(batch).map_err(|error| damaged(error.to_string()))?;
    if header.total_bytes() != batch.len() || header.last_offset_delta < 0 {
        return Err(damaged("a batch's length or offsets do not fit"));
    }
    verify_crc(batch).map_err(|error| damaged(error.to_string()))?;
    Ok(header)
}

fn run_proto(run: &Run) -> RunProto {
    let mut proto = RunProto {
        topic_id: run.key.topic_id.bytes().to_vec(),
        partition: run.key.partition,
        first_offset: run.first_offset,
        last_offset: run.last_offset,
        start: run.range.start,
        ..RunProto::default()
    };
    let (mut base_offset, mut max_timestamp_ms) = (run.first_offset, 0);
    for batch in &run.batches {
        proto.batch_bytes.push(batch.bytes);
        proto.base_offset_deltas.push((batch.base_offset - base_offset).cast_unsigned());
        proto.last_offset_deltas.push((batch.last_offset - batch.base_offset) as u32);
        proto.max_timestamp_deltas_ms.push(batch.max_timestamp_ms.wrapping_sub(max_timestamp_ms));
        proto.head_crcs.push(batch.head_crc);
        (base_offset, max_timestamp_ms) = (batch.base_offset, batch.max_timestamp_ms);
    }
    proto
}

fn encode_trailer(footer: &[u8], version: u32) -> [u8; TRAILER_BYTES] {
    let mut trailer = [0; TRAILER_BYTES];
    trailer[0..4].copy_from_slice(&(footer.len() as u32).to_le_bytes());
    trailer[4..8].copy_from_slice(&crc32c(footer).to_le_bytes());
    trailer[8..12].copy_from_slice(&version.to_le_bytes());
    let crc = crc32c(&trailer[..12]);
    trailer[12..16].copy_from_slice(&crc.to_le_bytes());
    trailer[16..].copy_from_slice(&MAGIC);
    trailer
}

/// The last bytes of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// Length of the footer, which lies just before the trailer.
    pub footer_bytes: u32,
    footer_crc: u32,
}

impl Trailer {
    /// Reads the last [`TRAILER_BYTES`] of an object.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let trailer: &[u8; TRAILER_BYTES] =
            bytes.try_into().map_err(|_| FormatError::NotAnObject("shorter than a trailer"))?;
        if trailer[16..] != MAGIC {
            return Err(FormatError::NotAnObject("no magic at its end"));
        }
        let word =
            |at: usize| u32::from_le_bytes([trailer[at], trailer[at + 1], trailer[at + 2], trailer[at + 3]]);
        if word(12) != crc32c(&trailer[..12]) {
            return Err(damaged("trailer's CRC"));
        }
        if word(8) == 0 || word(8) > CHUNK_VERSION {
            return Err(FormatError::Version(word(8)));
        }
        if word(0) as usize > MAX_FOOTER_BYTES {
            return Err(damaged("footer's length"));
        }
        Ok(Self { footer_bytes: word(0), footer_crc: word(4) })
    }
}

/// What an object says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The cluster that wrote it.
    pub cluster_id: String,
    /// Its id.
    pub object: ObjectId,
    /// When it was written, milliseconds since the epoch by the writer's clock.
    pub created_ms: i64,
    /// Bytes before the footer.
    pub body_bytes: u64,
    /// In order of their bytes.
    pub runs: Vec<Run>,
    /// The chunk it holds, if it is of the class `object`: offsets count from 0 in each run then.
    pub origin: Option<Origin>,
    /// Of an index object, which has no runs: [`isobar_metadata::index_block`]s, in order of their bytes.
    pub blocks: Vec<Block>,
}

/// Where a block lies in an index object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Whose extents it lists.
    pub key: PartitionKey,
    /// First offset of them.
    pub first_offset: i64,
    /// Last offset, inclusive.
    pub last_offset: i64,
    /// Bytes in the object.
    pub range: Range<u64>,
}

/// The bytes of an index object, and where the blocks lie in it.
pub fn index_object(
    cluster_id: String,
    object: ObjectId,
    created_ms: i64,
    blocks: Vec<(PartitionKey, i64, i64, Bytes)>,
) -> (Vec<Bytes>, Vec<Block>) {
    let (mut parts, mut placed, mut start) = (Vec::with_capacity(blocks.len() + 2), Vec::new(), 0);
    for (key, first_offset, last_offset, bytes) in blocks {
        let range = start..start + bytes.len() as u64;
        start = range.end;
        placed.push(Block { key, first_offset, last_offset, range });
        parts.push(bytes);
    }
    let proto = |block: &Block| BlockProto {
        topic_id: block.key.topic_id.bytes().to_vec(),
        partition: block.key.partition,
        first_offset: block.first_offset,
        last_offset: block.last_offset,
        start: block.range.start,
        bytes: block.range.end - block.range.start,
    };
    let footer = FooterProto {
        cluster_id,
        object_id: object.0,
        created_ms,
        body_bytes: start,
        runs: Vec::new(),
        blocks: placed.iter().map(proto).collect(),
        origin: None,
    }
    .encode_to_vec();
    let trailer = encode_trailer(&footer, VERSION);
    parts.push(Bytes::from(footer));
    parts.push(Bytes::copy_from_slice(&trailer));
    (parts, placed)
}

impl Footer {
    /// Reads a footer and checks that all in it fits together.
    pub fn decode(bytes: &[u8], trailer: Trailer) -> Result<Self, FormatError> {
        if bytes.len() != trailer.footer_bytes as usize || crc32c(bytes) != trailer.footer_crc {
            return Err(damaged("footer's CRC"));
        }
        let proto = FooterProto::decode(bytes).map_err(|error| damaged(error.to_string()))?;
        let mut runs = Vec::with_capacity(proto.runs.len());
        let mut end = 0;
        for run in &proto.runs {
            let run = decode_run(run)?;
            if run.range.start != end {
                return Err(damaged("runs are not back to back"));
            }
            end = run.range.end;
            runs.push(run);
        }
        let mut blocks = Vec::with_capacity(proto.blocks.len());
        for block in &proto.blocks {
            let range = end..end.checked_add(block.bytes).ok_or_else(|| damaged("length"))?;
            if block.start != end {
                return Err(damaged("blocks are not back to back"));
            }
            end = range.end;
            let key = PartitionKey::new(TopicId::from(id_bytes(&block.topic_id)?), block.partition);
            let (first_offset, last_offset) = (block.first_offset, block.last_offset);
            blocks.push(Block { key, first_offset, last_offset, range });
        }
        if end != proto.body_bytes {
            return Err(damaged("runs do not fill the body"));
        }
        Ok(Self {
            cluster_id: proto.cluster_id,
            object: ObjectId(proto.object_id),
            created_ms: proto.created_ms,
            body_bytes: proto.body_bytes,
            runs,
            origin: proto.origin,
            blocks,
        })
    }

    /// Reads the footer of a whole object in memory.
    pub fn of_object(object: &[u8]) -> Result<Self, FormatError> {
        let at = object.len().checked_sub(TRAILER_BYTES).ok_or(FormatError::NotAnObject("too short"))?;
        let trailer = Trailer::decode(&object[at..])?;
        let start = at
            .checked_sub(trailer.footer_bytes as usize)
            .ok_or_else(|| damaged("footer longer than the object"))?;
        let footer = Self::decode(&object[start..at], trailer)?;
        if footer.body_bytes != start as u64 {
            return Err(damaged("the body's length is not what the footer says"));
        }
        Ok(footer)
    }

    /// Checks every batch of a whole object against the footer and its own CRC.
    pub fn verify_body(&self, object: &[u8]) -> Result<(), FormatError> {
        for batch in self.runs.iter().flat_map(|run| &run.batches) {
            let range = batch.start as usize..batch.start as usize + batch.bytes as usize;
            let bytes = object.get(range).ok_or_else(|| damaged("a batch beyond the object's end"))?;
            let header = check_batch(bytes)?;
            let offsets_fit = match self.origin {
                None => header.base_offset == batch.base_offset && header.last_offset() == batch.last_offset,
                Some(_) => i64::from(header.last_offset_delta) == batch.last_offset - batch.base_offset,
            };
            if !offsets_fit || crc32c(&bytes[..HEAD_BYTES]) != batch.head_crc {
                return Err(damaged(format!("the head of the batch at byte {}", batch.start)));
            }
        }
        Ok(())
    }
}

fn id_bytes(bytes: &[u8]) -> Result<[u8; 16], FormatError> {
    bytes.try_into().map_err(|_| damaged("an id is not 16 bytes"))
}

fn decode_run(proto: &RunProto) -> Result<Run, FormatError> {
    let count = proto.batch_bytes.len();
    if count == 0
        || proto.base_offset_deltas.len() != count
        || proto.last_offset_deltas.len() != count
        || proto.max_timestamp_deltas_ms.len() != count
        || proto.head_crcs.len() != count
    {
        return Err(damaged("columns of different lengths"));
    }
    let mut batches = Vec::with_capacity(count);
    let (mut start, mut base_offset, mut timestamp_ms) = (proto.start, proto.first_offset, 0_i64);
    let mut previous_last = proto.first_offset.checked_sub(1).ok_or_else(|| damaged("offset"))?;
    let mut max_timestamp_ms = i64::MIN;
    for row in 0..count {
        let bytes = proto.batch_bytes[row];
        let delta = i64::try_from(proto.base_offset_deltas[row]).map_err(|_| damaged("offset"))?;
        base_offset = base_offset.checked_add(delta).ok_or_else(|| damaged("offset"))?;
        let last_offset = base_offset
            .checked_add(i64::from(proto.last_offset_deltas[row]))
            .ok_or_else(|| damaged("offset"))?;
        if (bytes as usize) < HEADER_BYTES || base_offset <= previous_last {
            return Err(damaged("batches that overlap or are too short"));
        }
        timestamp_ms = timestamp_ms.wrapping_add(proto.max_timestamp_deltas_ms[row]);
        max_timestamp_ms = max_timestamp_ms.max(timestamp_ms);
        batches.push(RunBatch {
            base_offset,
            last_offset,
            start,
            bytes,
            max_timestamp_ms: timestamp_ms,
            head_crc: proto.head_crcs[row],
        });
        start = start.checked_add(u64::from(bytes)).ok_or_else(|| damaged("length"))?;
        previous_last = last_offset;
    }
    if previous_last != proto.last_offset {
        return Err(damaged("a run's last offset"));
    }
    Ok(Run {
        key: PartitionKey::new(TopicId::from(id_bytes(&proto.topic_id)?), proto.partition),
        first_offset: proto.first_offset,
        last_offset: proto.last_offset,
        range: proto.start..start,
        max_timestamp_ms,
        batches,
    })
}

#[cfg(test)]
mod tests;
