//! A frame: what is written and synced as one.
//!
//! Layout (little-endian; every frame starts at a multiple of 4 KiB and is one long, on disk and in memory)
//!
//! ```text
//!  0 magic u32 · 4 version u8 · 5 kind u8 · 6 zero u16
//!  8 generation u64 · 16 position u64 · 24 synced_before u64          the stamp: filled in when it is written
//! 32 frame_bytes u32 · 36 section_count u32 · 40 table_offset u32 · 44 meta_bytes u32 · 48 content_crc u32 · 52 zero u64
//! 60 header_crc u32                                                  CRC-32C of 0..60, started from the journal's key
//! 64 sections back to back · table: {end u32, crc u32} a section · meta · zeroes
//! ```
//!
//! A section is a Kafka record batch. Its CRC-32C (its bytes 17..21, big-endian) covers its bytes from 21 on and was
//! checked on the way in, so those are not summed again here: `content_crc` covers each section's first 21 bytes, the
//! table (which repeats each batch's CRC) and the meta. The header covers `content_crc`, and with it everything.
//!
//! Invariants
//! 1. A frame that parses has been checked to the last byte but the padding, except where a caller says that the bytes
//!    never left memory.
//! 2. `generation` and `position` are covered, so bytes that are read at another place or from an earlier life of the
//!    journal are never taken for this frame.
//! 3. The header's CRC starts from a random key of the journal, so a record that looks like a frame is none.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use isobar_host::AlignedBuf;
use isobar_host::buffer::ALIGN;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// Frames start at multiples of this on disk.
pub const BLOCK_BYTES: usize = ALIGN;
/// A section's first bytes, which its own CRC does not cover.
pub(crate) const SECTION_HEAD_BYTES: usize = 21;

/// Kind of the frame that ends a segment.
pub(crate) const KIND_SEAL: u8 = 0;

const MAGIC: u32 = u32::from_le_bytes(*b"IFR1");
const VERSION: u8 = 1;
const TABLE_ENTRY_BYTES: usize = 8;
const SECTION_CRC: Range<usize> = 17..21;

/// Where and when a frame is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// The life of the journal that wrote it; see `lives.rs`.
    pub generation: u64,
    pub position: u64,
    /// Everything below this position was synced before this frame was written.
    pub synced_before: u64,
}

/// A frame's header, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) stamp: Stamp,
    pub(crate) frame_bytes: u32,
    section_count: u32,
    table_offset: u32,
    meta_bytes: u32,
    content_crc: u32,
}

/// Why bytes are no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("no frame starts here")]
    NoFrame,
    #[error("unknown frame version {0}")]
    Version(u8),
    #[error("the header's lengths contradict each other")]
    Lengths,
    #[error("the frame's own CRC does not match")]
    Content,
    #[error("the CRC of section {0} does not match")]
    Section(u32),
}

impl Header {
    /// Reads and checks a header; `key` is the journal's.
    pub(crate) fn decode(bytes: &[u8], key: u32) -> Result<Self, FrameError> {
        let header = bytes.first_chunk::<HEADER_BYTES>().ok_or(FrameError::NoFrame)?;
        if u32_at(header, 0) != MAGIC || crc32c::crc32c_append(key, &header[..60]) != u32_at(header, 60) {
            return Err(FrameError::NoFrame);
        }
        if header[4] != VERSION {
            return Err(FrameError::Version(header[4]));
        }
        let decoded = Self {
            kind: header[5],
            stamp: Stamp {
                generation: u64_at(header, 8),
                position: u64_at(header, 16),
                synced_before: u64_at(header, 24),
            },
            frame_bytes: u32_at(header, 32),
            section_count: u32_at(header, 36),
            table_offset: u32_at(header, 40),
            meta_bytes: u32_at(header, 44),
            content_crc: u32_at(header, 48),
        };
        let content_end = decoded.meta_offset() + decoded.meta_bytes as usize;
        let consistent = decoded.table_offset as usize >= HEADER_BYTES
            && decoded.frame_bytes as usize == content_end.next_multiple_of(BLOCK_BYTES);
        if consistent { Ok(decoded) } else { Err(FrameError::Lengths) }
    }

    pub(crate) fn encode(&self, key: u32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4] = VERSION;
        header[5] = self.kind;
        header[8..16].copy_from_slice(&self.stamp.generation.to_le_bytes());
        header[16..24].copy_from_slice(&self.stamp.position.to_le_bytes());
        header[24..32].copy_from_slice(&self.stamp.synced_before.to_le_bytes());
        header[32..36].copy_from_slice(&self.frame_bytes.to_le_bytes());
        header[36..40].copy_from_slice(&self.section_count.to_le_bytes());
        header[40..44].copy_from_slice(&self.table_offset.to_le_bytes());
        header[44..48].copy_from_slice(&self.meta_bytes.to_le_bytes());
        header[48..52].copy_from_slice(&self.content_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(key, &header[..60]);
        header[60..].copy_from_slice(&crc.to_le_bytes());
        header
    }

    fn meta_offset(&self) -> usize {
        self.table_offset as usize + self.section_count as usize * TABLE_ENTRY_BYTES
    }

    fn meta_range(&self) -> Range<usize> {
        self.meta_offset()..self.meta_offset() + self.meta_bytes as usize
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(four)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

/// Builds a frame in its own buffer. Pushing is one copy and one table entry.
pub struct FrameWriter {
    buf: AlignedBuf,
    /// End of the body so far.
    end: usize,
    table: Vec<[u8; TABLE_ENTRY_BYTES]>,
    /// Running CRC of the sections' heads.
    heads_crc: u32,
}

impl FrameWriter {
    /// A frame that grows in `buf`.
    pub fn new(buf: AlignedBuf) -> Self {
        Self { buf, end: HEADER_BYTES, table: Vec::new(), heads_crc: 0 }
    }

    /// Bytes that a buffer needs for a frame with `meta_bytes` of meta and no section.
    pub const fn capacity_for(meta_bytes: usize) -> usize {
        HEADER_BYTES + meta_bytes
    }

    /// Bytes of one more section that fit beside its table entry and `meta_reserve` bytes of meta.
    pub fn room(&self, meta_reserve: usize) -> usize {
        let taken = self.end + (self.table.len() + 1) * TABLE_ENTRY_BYTES + meta_reserve;
        self.buf.capacity().saturating_sub(taken)
    }

    /// Sections so far.
    pub fn section_count(&self) -> usize {
        self.table.len()
    }

    /// Bytes of the sections so far.
    pub fn body_bytes(&self) -> usize {
        self.end - HEADER_BYTES
    }

    /// Copies a record batch whose CRC the caller has checked. Answers where in the frame it lies. One that does not fit
    /// (see [`room`](Self::room)) moves the frame into a larger buffer.
    pub fn push(&mut self, section: &[u8]) -> Range<usize> {
        self.push_parts(&[section])
    }

    /// The same for a batch in several pieces.
    pub fn push_parts(&mut self, parts: &[&[u8]]) -> Range<usize> {
        let start = self.end;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        self.reserve(start + len);
        for part in parts {
            self.buf[self.end..self.end + part.len()].copy_from_slice(part);
            self.end += part.len();
        }
        let section = &self.buf[start..self.end];
        let head = &section[..len.min(SECTION_HEAD_BYTES)];
        self.heads_crc = crc32c::crc32c_append(self.heads_crc, head);
        let crc = head.get(SECTION_CRC).map_or(0, |crc| u32_at(crc, 0).swap_bytes());
        let mut entry = [0; TABLE_ENTRY_BYTES];
        entry[..4].copy_from_slice(&(self.end as u32).to_le_bytes());
        entry[4..].copy_from_slice(&crc.to_le_bytes());
        self.table.push(entry);
        start..self.end
    }

    /// Ends the frame. `kind` tells frames apart for their owner; 0 is the journal's own.
    pub fn seal(mut self, kind: u8, meta: &[u8]) -> Frame {
        let table = self.table.as_flattened();
        let meta_offset = self.end + table.len();
        let content_end = meta_offset + meta.len();
        let frame_bytes = content_end.next_multiple_of(BLOCK_BYTES);
        let content_crc = crc32c::crc32c_append(crc32c::crc32c_append(self.heads_crc, table), meta);
        let header = Header {
            kind,
            stamp: Stamp::default(),
            frame_bytes: frame_bytes as u32,
            section_count: self.table.len() as u32,
            table_offset: self.end as u32,
            meta_bytes: meta.len() as u32,
            content_crc,
        };
        self.reserve(frame_bytes);
        self.buf[..HEADER_BYTES].copy_from_slice(&header.encode(0));
        self.buf[self.end..meta_offset].copy_from_slice(self.table.as_flattened());
        self.buf[meta_offset..content_end].copy_from_slice(meta);
        self.buf[content_end..frame_bytes].fill(0);
        Frame { bytes: self.buf.freeze().slice(..frame_bytes), header }
    }

    fn reserve(&mut self, bytes: usize) {
        // Lengths are u32 on disk; the journal refuses far smaller frames.
        assert!(bytes <= u32::MAX as usize, "a frame of {bytes} bytes");
        if bytes > self.buf.capacity() {
            let larger = bytes.max(self.buf.capacity() + self.buf.capacity() / 2);
            let buf = std::mem::replace(&mut self.buf, AlignedBuf::unpooled(0));
            self.buf = buf.grown(self.end, larger);
        }
    }
}

/// A sealed frame. Cheap to clone; immutable.
#[derive(Clone)]
pub struct Frame {
    bytes: Bytes,
    header: Header,
}

impl Frame {
    /// A frame with meta only.
    pub fn of_meta(buf: AlignedBuf, kind: u8, meta: &[u8]) -> Self {
        FrameWriter::new(buf).seal(kind, meta)
    }

    /// Reads a sealed frame that came over a network, all CRCs checked. `bytes` is the frame and nothing more.
    pub fn parse(bytes: Bytes) -> Result<Self, FrameError> {
        let header = Header::decode(&bytes, 0)?;
        if header.frame_bytes as usize != bytes.len() {
            return Err(FrameError::Lengths);
        }
        Self::check(bytes, header)
    }

    /// Checks what a checked header covers. `bytes` starts with the frame.
    pub(crate) fn check(bytes: Bytes, header: Header) -> Result<Self, FrameError> {
        if bytes.len() < header.frame_bytes as usize {
            return Err(FrameError::Lengths);
        }
        let frame = Self { bytes: bytes.slice(..header.frame_bytes as usize), header };
        frame.check_table()?;
        let mut crc = 0;
        for index in 0..frame.section_count() {
            let section = &frame.bytes[frame.section_range(index)];
            crc = crc32c::crc32c_append(crc, &section[..section.len().min(SECTION_HEAD_BYTES)]);
        }
        let rest = &frame.bytes[header.table_offset as usize..header.meta_range().end];
        if crc32c::crc32c_append(crc, rest) != header.content_crc {
            return Err(FrameError::Content);
        }
        for index in 0..frame.section_count() {
            let section = &frame.bytes[frame.section_range(index)];
            let covered = section.get(SECTION_HEAD_BYTES..).unwrap_or_default();
            // A section shorter than a batch's head has nothing of its own to check: the frame's CRC covers it.
            if !covered.is_empty() && crc32c::crc32c(covered) != frame.section_crc(index) {
                return Err(FrameError::Section(index as u32));
            }
        }
        Ok(frame)
    }

    /// Section ends must not go back nor leave the body; lengths are then safe to slice by.
    fn check_table(&self) -> Result<(), FrameError> {
        let mut at = HEADER_BYTES;
        for index in 0..self.section_count() {
            let end = self.section_end(index);
            if end < at {
                return Err(FrameError::Content);
            }
            at = end;
        }
        if at == self.header.table_offset as usize { Ok(()) } else { Err(FrameError::Content) }
    }

    /// The whole frame. Its header bears no stamp (or that of an earlier write): the journal stamps what it writes.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// The frame without its padding, for where bytes cost; [`Frame::padded_bytes`] says how long the whole is.
    pub fn content(&self) -> Bytes {
        self.bytes.slice(..self.header.meta_range().end)
    }

    /// How long the frame is of which these are the bytes with or without padding, which is zeroes.
    pub fn padded_bytes(bytes: &[u8]) -> Result<usize, FrameError> {
        let header = Header::decode(bytes, 0)?;
        let whole = header.frame_bytes as usize;
        if bytes.len() == whole || bytes.len() == header.meta_range().end {
            Ok(whole)
        } else {
            Err(FrameError::Lengths)
        }
    }

    /// Bytes on disk and in memory, padding included.
    pub fn len(&self) -> u32 {
        self.header.frame_bytes
    }

    /// Never: a frame has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The same frame in memory of its own, just as long, for who keeps it longer than its buffer should be held.
    pub fn copied(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), header: self.header }
    }

    /// Whether both hold the same, wherever and whenever they were written.
    pub fn has_content_of(&self, other: &Self) -> bool {
        let content = |frame: &Self| Header { stamp: Stamp::default(), ..frame.header };
        content(self) == content(other) && self.bytes.get(HEADER_BYTES..) == other.bytes.get(HEADER_BYTES..)
    }

    pub fn kind(&self) -> u8 {
        self.header.kind
    }

    pub fn meta(&self) -> Bytes {
        self.bytes.slice(self.header.meta_range())
    }

    pub fn section_count(&self) -> usize {
        self.header.section_count as usize
    }

    /// Where a section lies in [`bytes`](Self::bytes). Panics, as an index does, if there is no such section.
    pub fn section_range(&self, index: usize) -> Range<usize> {
        let start = match index.checked_sub(1) {
            Some(before) => self.section_end(before),
            None => HEADER_BYTES,
        };
        start..self.section_end(index)
    }

    /// A section, without a copy. Panics, as an index does, if there is no such section.
    pub fn section(&self, index: usize) -> Bytes {
        self.bytes.slice(self.section_range(index))
    }

    /// The stamp it was written with; of a frame read from a journal.
    pub fn stamp(&self) -> Stamp {
        self.header.stamp
    }

    pub(crate) fn stamped(&self, stamp: Stamp) -> Header {
        Header { stamp, ..self.header }
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    fn table_entry(&self, index: usize) -> &[u8] {
        assert!(index < self.section_count(), "section {index} of {}", self.section_count());
        let at = self.header.table_offset as usize + index * TABLE_ENTRY_BYTES;
        &self.bytes[at..at + TABLE_ENTRY_BYTES]
    }

    fn section_end(&self, index: usize) -> usize {
        u32_at(self.table_entry(index), 0) as usize
    }

    fn section_crc(&self, index: usize) -> u32 {
        u32_at(self.table_entry(index), 4)
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind())
            .field("bytes", &self.len())
            .field("sections", &self.section_count())
            .field("meta_bytes", &self.header.meta_bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod tests;
