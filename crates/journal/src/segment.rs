//! Segment files: their names, their header, and the ones in use.
//!
//! A segment is a file of fixed length: one header block, then frames. Segment n+1 begins where the *capacity* of n ends,
//! so the base of a segment is known before the one in front of it is full, and it can be prepared ahead. Positions
//! rise, and no two acknowledged frames ever share one; between the last frame of a segment and the base of the next there is a gap.
//!
//! Names: `<id>-<base>.seg` in use or prepared, `<id>.spare` recycled, `<id>.new` being filled (16 hex digits each).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use isobar_host::DiskFile;

use crate::frame::BLOCK_BYTES;

/// Where the first frame of a segment starts.
pub(crate) const FIRST_OFFSET: u64 = BLOCK_BYTES as u64;
/// The frame that ends a segment; always kept free for it.
pub(crate) const SEAL_BYTES: u64 = BLOCK_BYTES as u64;
/// Bytes of a segment that hold no frame of the caller's.
pub(crate) const OVERHEAD_BYTES: u64 = FIRST_OFFSET + SEAL_BYTES;

const MAGIC: &[u8; 8] = b"ISOBSEG1";

/// What a segment is, as its first block and its name say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) id: u64,
    /// Position of the file's first byte.
    pub(crate) base: u64,
    /// Length of the file.
    pub(crate) capacity: u64,
}

impl Identity {
    pub(crate) fn end(&self) -> u64 {
        self.base + self.capacity
    }

    /// `None` for a base that only a file's name can have made up: nothing could come behind it.
    pub(crate) fn checked_end(&self) -> Option<u64> {
        let end = self.base.checked_add(self.capacity)?;
        end.checked_add(u64::from(u32::MAX)).map(|_| end)
    }

    /// The header block: magic [8] · id u64 · base u64 · capacity u64 · key u32 · crc u32, little-endian.
    pub(crate) fn encode(&self, key: u32, block: &mut [u8]) {
        block.fill(0);
        block[..8].copy_from_slice(MAGIC);
        block[8..16].copy_from_slice(&self.id.to_le_bytes());
        block[16..24].copy_from_slice(&self.base.to_le_bytes());
        block[24..32].copy_from_slice(&self.capacity.to_le_bytes());
        block[32..36].copy_from_slice(&key.to_le_bytes());
        let crc = crc32c::crc32c(&block[..36]);
        block[36..40].copy_from_slice(&crc.to_le_bytes());
    }

    /// Whether a header block says just this.
    pub(crate) fn is_in(&self, key: u32, block: &[u8]) -> bool {
        let mut expected = [0; 40];
        self.encode(key, &mut expected);
        block.get(..40) == Some(&expected)
    }

    pub(crate) fn file_name(&self) -> String {
        format!("{:016x}-{:016x}.seg", self.id, self.base)
    }
}

/// What a file in a journal's directory is, by its name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Named {
    Segment {
        id: u64,
        base: u64,
    },
    Spare {
        id: u64,
    },
    /// Left over from a crash while it was filled.
    New,
    Other,
}

impl Named {
    pub(crate) fn of(name: &str) -> Self {
        let hex = |text: &str| (text.len() == 16).then(|| u64::from_str_radix(text, 16).ok()).flatten();
        let segment = || {
            let (id, base) = name.strip_suffix(".seg")?.split_once('-')?;
            Some(Self::Segment { id: hex(id)?, base: hex(base)? })
        };
        let spare = || name.strip_suffix(".spare").and_then(hex).map(|id| Self::Spare { id });
        let new = || name.strip_suffix(".new").and_then(hex).map(|_| Self::New);
        segment().or_else(spare).or_else(new).unwrap_or(Self::Other)
    }
}

pub(crate) fn spare_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.spare"))
}

pub(crate) fn new_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.new"))
}

/// A segment in use: prepared, active or sealed.
pub(crate) struct Segment {
    pub(crate) identity: Identity,
    pub(crate) path: PathBuf,
    pub(crate) file: Box<dyn DiskFile>,
    /// End of its synced frames, within the file.
    end: AtomicU64,
    sealed: AtomicBool,
    /// Some of it was found damaged: the file is not used again.
    pub(crate) damaged: bool,
}

impl Segment {
    pub(crate) fn new(identity: Identity, path: PathBuf, file: Box<dyn DiskFile>) -> Self {
        Self {
            identity,
            path,
            file,
            end: AtomicU64::new(FIRST_OFFSET),
            sealed: AtomicBool::new(false),
            damaged: false,
        }
    }

    /// One that was there at opening.
    pub(crate) fn found(identity: Identity, path: PathBuf, file: Box<dyn DiskFile>, damaged: bool) -> Self {
        Self { damaged, ..Self::new(identity, path, file) }
    }

    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(crate) fn set_end(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
    }

    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.end() - FIRST_OFFSET
    }
}

/// Segments by their base, shared by writer, keeper and readers.
pub(crate) type Segments = parking_lot::RwLock<std::collections::BTreeMap<u64, Arc<Segment>>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_and_strangers_are_left_alone() {
        let identity = Identity { id: 0x1f, base: 0xabc0_0000_0000_1000, capacity: 8192 };
        assert_eq!(Named::of(&identity.file_name()), Named::Segment { id: 0x1f, base: identity.base });
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Named::of(&name(spare_path(Path::new("d"), 7))), Named::Spare { id: 7 });
        assert_eq!(Named::of(&name(new_path(Path::new("d"), 7))), Named::New);
        for other in
            ["lives", "x.seg", "1-2.seg", "LOCK", "000000000000000g.new", "0000000000000001.spare.tmp"]
        {
            assert_eq!(Named::of(other), Named::Other, "{other}");
        }
    }

    #[test]
    fn a_header_is_believed_only_where_it_belongs() {
        let identity = Identity { id: 3, base: 8192, capacity: 1 << 20 };
        let mut block = vec![0xff; BLOCK_BYTES];
        identity.encode(5, &mut block);
        assert!(identity.is_in(5, &block));
        assert!(!identity.is_in(6, &block));
        assert!(!Identity { id: 4, ..identity }.is_in(5, &block));
        block[35] ^= 1;
        assert!(!identity.is_in(5, &block));
    }
}
