//! What can go wrong, by what the caller must do.

use std::io;
use std::path::PathBuf;

use isobar_journal::JournalError;

/// Why a quorum member could not start, or had to stop. None of these goes away by trying again in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RaftError {
    /// The directory holds nothing and the caller did not allow formatting. A known node whose directory is gone
    /// must come back under a new id (DESIGN.md, invariant 6).
    #[error("{} is not formatted; a node that has been a voter before must join under a new id", dir.display())]
    NotFormatted {
        /// The directory asked for.
        dir: PathBuf,
    },
    /// The directory belongs to another cluster, node or incarnation, or has lost a part.
    #[error("{}: {what}", path.display())]
    WrongDirectory {
        /// Where it was found.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
    /// Bytes on disk are not what was written there: restore from another member or from the archive.
    #[error("{}: {what}", path.display())]
    Damaged {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, with the place.
        what: String,
    },
    /// The log's journal failed.
    #[error("metadata log: {0}")]
    Journal(#[from] JournalError),
    /// The disk failed outside the journal.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// openraft stopped by itself: a storage error or a broken promise; see the log.
    #[error("raft stopped: {0}")]
    Stopped(String),
    /// An option is out of its range.
    #[error("raft option: {0}")]
    BadOption(String),
}

impl RaftError {
    pub(crate) fn disk(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Disk { path, source }
    }
}

/// Why a command or a barrier was not answered. The kinds say whether the command happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProposeError {
    /// It did not happen: too many bytes are waiting. Try again here, later.
    #[error("the metadata quorum has {queued_bytes} bytes waiting; try again")]
    Busy {
        /// Bytes of commands waiting, as the queue counts them.
        queued_bytes: usize,
    },
    /// It did not happen and never will: larger than an entry may be.
    #[error("a command of {bytes} bytes does not fit an entry")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
    },
    /// It did not happen: this node does not lead. Try at the leader.
    #[error("not the leader")]
    NotLeader {
        /// The leader's node id, if known here.
        leader: Option<u64>,
    },
    /// It did not happen: this node is stopping. Try at another.
    #[error("the metadata node is stopping")]
    Stopping,
    /// It may have happened: the answer was lost with the leadership or the node. Send the same (session, lane,
    /// number) again, here or at the next leader; apply answers a repeat with the first result.
    #[error("the outcome is unknown: {reason}")]
    Unknown {
        /// Why, for the log.
        reason: &'static str,
    },
}

impl ProposeError {
    /// True if the command is certain not to have been applied and never to be, unless it is sent again.
    pub fn did_not_happen(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }

    /// True if another member may answer where this one could not.
    pub fn retry_elsewhere(&self) -> bool {
        matches!(self, Self::NotLeader { .. } | Self::Stopping | Self::Unknown { .. })
    }
}
