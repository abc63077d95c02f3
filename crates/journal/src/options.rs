//! How a journal behaves.

use crate::metrics::JournalMetrics;

/// Options of a journal. All sizes in bytes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of a full-grown segment; a multiple of 4 KiB, at least 64 KiB. The largest frame is 8 KiB less.
    pub segment_bytes: u64,
    /// Length of the first segment; each new one is twice as long as the last until `segment_bytes`, so that a fresh
    /// journal is small and ready soon.
    pub first_segment_bytes: u64,
    /// Recycled segments kept for the next ones; more are removed.
    pub spare_segments: usize,
    /// Bound on all files together; reaching it is as a full disk.
    pub bytes_max: Option<u64>,
    /// Bytes of frames that may wait to be written.
    pub queue_bytes: u64,
    /// Frames are written and synced together up to this many bytes.
    pub group_bytes: u64,
    /// Write past the page cache where the file system allows it.
    pub direct: bool,
    /// Go on without synced bytes that are damaged, and report them. Never for a Raft log: a voter that forgets may
    /// vote twice.
    pub allow_quarantine: bool,
    pub metrics: JournalMetrics,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 128 << 20,
            first_segment_bytes: 16 << 20,
            spare_segments: 2,
            bytes_max: None,
            queue_bytes: 64 << 20,
            group_bytes: 8 << 20,
            direct: true,
            allow_quarantine: false,
            metrics: JournalMetrics::default(),
        }
    }
}

impl Options {
    /// The same with sizes that fit together.
    pub(crate) fn checked(mut self) -> Self {
        const BLOCK: u64 = crate::frame::BLOCK_BYTES as u64;
        const LEAST: u64 = 16 * BLOCK;
        self.segment_bytes = self.segment_bytes.max(LEAST).next_multiple_of(BLOCK);
        self.first_segment_bytes =
            self.first_segment_bytes.clamp(LEAST, self.segment_bytes).next_multiple_of(BLOCK);
        self.group_bytes = self.group_bytes.max(BLOCK);
        self
    }
}
