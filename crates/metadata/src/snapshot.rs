//! Snapshots of the state machine.
//!
//! Layout: magic `ISOBMETA`, format version (u32), then frames `[length u32][CRC32C of the payload u32][payload]`, all
//! little-endian. A payload is a protobuf list of parts; a thing that is large (a partition's extents, a group's offsets) comes
//! in several. The last part counts the parts, so a snapshot that was cut off is known.
//!
//! Within a topic's partitions the extents of a list come before its pointers; streams and objects come before topics.
//!
//! What follows from the rest (reference counts, live chunks, folded names, parsed configs) is not written but made again.
//!
//! Restore refuses any damage, any part it does not know, and any later format; it never restores in part.

mod parts;
mod read;
mod write;

use crate::state::StateMachine;

/// First bytes of a snapshot.
pub const MAGIC: [u8; 8] = *b"ISOBMETA";
/// The highest version that this binary reads. It writes 1 while the cluster's feature level is 1, so that a node of that level
/// can take the snapshot, and then 2, which adds deleted topics, index pointers and the log indexes of live chunks.
pub const SNAPSHOT_VERSION: u32 = 2;

/// The version that a snapshot of a cluster at this feature level has. No checksum covers it, so it is checked by this.
fn version_at(feature_level: u32) -> u32 {
    if feature_level < 2 { 1 } else { SNAPSHOT_VERSION }
}

/// A frame is written when it holds this much.
const FRAME_BYTES: usize = 64 << 10;
/// A longer frame is damage: one part is at most an entry's worth.
const MAX_FRAME_BYTES: usize = 16 << 20;
/// Entries of a long list in one part.
const PART_ENTRIES: usize = 512;

/// The state machine as it was at one index. Shares everything with it; may be sent to another thread and encoded there.
#[derive(Clone, Debug)]
pub struct Frozen(pub(crate) StateMachine);

impl StateMachine {
    /// A frozen view; O(shards). What is applied later is copied on write.
    pub fn freeze(&self) -> Frozen {
        Frozen(self.clone())
    }
}

impl Frozen {
    /// The index of the newest entry in it.
    pub fn applied_index(&self) -> u64 {
        self.0.applied_index()
    }
    /// The rolling hash at that index.
    pub fn rolling_hash(&self) -> u64 {
        self.0.rolling_hash()
    }
}
