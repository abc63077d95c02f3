//! What opening a journal found.

use std::fmt;
use std::path::PathBuf;

use bytes::Bytes;

use crate::frame::Frame;

/// A frame found when a journal was opened, its CRCs checked. It is a slice of a larger read: who keeps a part of it for
/// long copies that part.
#[derive(Debug, Clone)]
pub struct Recovered {
    pub position: u64,
    pub segment: u64,
    /// Bytes on disk, padding included.
    pub len: u32,
    pub kind: u8,
    pub frame: Frame,
}

impl Recovered {
    pub fn meta(&self) -> Bytes {
        self.frame.meta()
    }
}

/// What opening found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames handed to `on_frame`, and their bytes.
    pub frames: u64,
    pub bytes: u64,
    /// Segments in use, the active one included.
    pub segments: usize,
    /// Where the next frame goes.
    pub end: u64,
    /// What was cut off behind the last good frame, if there was something to tell from leftovers: appends that were
    /// never acknowledged.
    pub torn: Option<Torn>,
    /// Synced bytes that are gone; empty unless quarantine was allowed.
    pub damage: Vec<Damage>,
}

/// An unsynced end that a crash tore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    pub path: PathBuf,
    pub offset: u64,
    /// Whole frames behind the first torn one that were cut with it.
    pub frames_dropped: u64,
}

/// A region of a segment that had been synced and is not what was written. It stays where it is and is reported at each
/// opening until its segment is recycled, whose file is then removed and not used again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    /// `None` for a file that is no segment.
    pub segment: Option<u64>,
    /// Bytes within the file: from, to.
    pub from: u64,
    pub to: u64,
    pub what: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes {}..{}: {}", self.path.display(), self.from, self.to, self.what)
    }
}
