//! What can go wrong, by what the caller must do.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::report::Damage;

/// Why a journal refused or failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// No space for another segment. Nothing of the frame was written; reads go on, and appends are taken again once
    /// there is space (freed on the disk, or by [`recycle`](crate::Journal::recycle)).
    #[error("the journal's disk is full")]
    DiskFull,
    /// More bytes wait than the queue may hold. Nothing was taken; try again when some were written
    /// ([`append_wait`](crate::Journal::append_wait) does).
    #[error("the journal's queue is full")]
    QueueFull,
    /// The frame can never fit into a segment.
    #[error("a frame of {bytes} bytes; at most {max_bytes} fit into a segment")]
    TooLarge { bytes: u64, max_bytes: u64 },
    /// A frame of a kind that the journal keeps for itself.
    #[error("kind {0} belongs to the journal itself")]
    ReservedKind(u8),
    /// A write or sync failed. Whether the frame is on the disk is unknown, and no later one will be: the journal takes
    /// nothing until it is opened anew, which finds out what is there. Reads go on.
    #[error("the journal has stopped: {cause}")]
    Stopped { cause: Arc<str> },
    /// The journal was closed.
    #[error("the journal is closed")]
    Closed,
    /// No synced frame starts at this position: it was never written, or its segment has been recycled.
    #[error("no frame at position {position}")]
    NotFound { position: u64 },
    /// What lies on the disk is not what was written. Never served.
    #[error("{}, byte {offset}: {what}", path.display())]
    Corrupt { path: PathBuf, offset: u64, what: String },
    /// At opening: bytes that were synced are damaged, and the options do not allow to go on without them.
    #[error("damaged below the synced position: {}", listed(damage))]
    Damaged { damage: Vec<Damage> },
    /// The disk failed outside of an append.
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: Arc<io::Error> },
}

impl JournalError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_owned(), source: Arc::new(source) }
    }

    pub(crate) fn stopped(cause: impl Into<Arc<str>>) -> Self {
        Self::Stopped { cause: cause.into() }
    }

    /// Whether the disk said that it is full.
    pub(crate) fn is_disk_full(&self) -> bool {
        match self {
            Self::DiskFull => true,
            Self::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}

fn listed(damage: &[Damage]) -> String {
    damage.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
