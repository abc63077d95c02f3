//! The archive: the applied log and the snapshots, copied to a store, for the day when every directory is gone.
//!
//! Owns: everything below `archive/` in the archive store ([`names`] says what lies where, [`format`] what is inside).
//!
//! Promises
//! 1. What [`Status::through`] says is in the store: a whole snapshot, and every entry after it up to there.
//! 2. What [`Status::cut`] says can be recovered: there is a whole snapshot at or below it, every entry since, and by
//!    [`Status::through`] every object that it needs. It never goes back, and nothing that it needs is removed.
//! 3. The log on disk is purged only below what is archived, unless the archive lags by more than
//!    [`crate::QuorumOptions::archive_lag_bytes`]: then entries are left out, and the archive goes on from a new snapshot. What was there
//!    before the hole stays until the cut has passed that snapshot.
//! 4. Nothing is written or removed without a look at the claim first. If a later incarnation has claimed the cluster, this
//!    member takes no more commands and answers no barrier.
//! 5. A member that only keeps time comes to rest: an entry without effects is archived with the next that has some.
//!
//! 6. In a group of several the leader archives. A new one looks at what is there and goes on behind it, after it has applied
//!    everything that was committed before. One that was deposed meanwhile may still write what it was writing: entries that
//!    were applied, so the same ones. The others let their log go as far as the leader says (in its appends).
//!
//! Ordering: claim; entries before the snapshot that contains them; the parts of a snapshot in order, the last one says so.
//!
//! Failure: a store that fails stalls the archive and nothing else; the next pass goes on where this one ended.
//!
//! Crash cases: at any moment; the next life lists what is there and goes on. A PUT of the old life may land late: it holds the
//! same entries as what was written since. A snapshot whose parts are not all there counts for nothing.
//!
//! Accepted leaks: parts of a snapshot that was given up, until a newer one has replaced it.

mod format;
mod gate;
mod names;
mod read;
mod task;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_metadata::Image;
use isobar_metadata::record::{ObjectRecord, ObjectState};

pub use format::{FormatError, LogHeader, PartHeader, decode_log, decode_part};
pub(crate) use gate::Gate;
pub use names::{Chain, Listing, LogPiece};
pub use read::{ArchivedSnapshot, read_log, read_snapshot, survey};
pub use task::Archiver;
pub(crate) use task::Member;

/// The feature level from which metadata knows of the archive.
const ARCHIVE_LEVEL: u32 = 2;

/// Where the archive lies. Implemented above, over the archive store.
#[async_trait]
pub trait Archive: Send + Sync {
    /// Stores an object; the bytes of a name never change.
    async fn put(&self, name: &str, parts: Vec<Bytes>) -> Result<(), ArchiveError>;
    /// A whole object.
    async fn get(&self, name: &str) -> Result<Bytes, ArchiveError>;
    /// Names of the objects right below `dir`, with `dir` before them.
    async fn list(&self, dir: &str) -> Result<Vec<String>, ArchiveError>;
    /// Removes an object; one that is not there is removed already.
    async fn delete(&self, name: &str) -> Result<(), ArchiveError>;
    /// Looks whether the cluster's incarnation is still this member's.
    async fn check(&self) -> Result<(), ArchiveError>;
}

/// Why the archive did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// The store does not answer, or does not let us: try again later.
    #[error("{0}")]
    Unavailable(String),
    /// This member may not go on: a later incarnation has claimed the cluster, or the directory has lost history. Stop.
    #[error("{0}")]
    Lost(String),
    /// There is no such object.
    #[error("{0} is not in the archive")]
    NotFound(String),
    /// What is there is not what was written.
    #[error("{name}: {why}")]
    Damaged {
        /// Which object.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// How a member archives.
#[derive(Debug, Clone)]
pub struct ArchiveOptions {
    /// Between two looks at what is new.
    pub interval: Duration,
    /// With nothing to write, the claim is looked at so often: for so long a member that was overtaken without having been
    /// paused may go on. One HEAD each time.
    pub idle_check: Duration,
    /// What the archive does not need any more is removed after so long: somebody may be reading it.
    pub grace: Duration,
    /// About the largest object of the log.
    pub log_object_bytes: usize,
    /// Length of a part of a snapshot.
    pub part_bytes: usize,
    /// After so many objects of the log a snapshot is taken, so that a recovery has few to read.
    pub snapshot_after_objects: u64,
}

impl Default for ArchiveOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(3),
            idle_check: Duration::from_secs(5),
            grace: Duration::from_secs(60),
            log_object_bytes: 4 << 20,
            part_bytes: 8 << 20,
            snapshot_after_objects: 1000,
        }
    }
}

/// How far the archive has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status {
    /// The last entry archived; 0: nothing yet.
    pub through: u64,
    /// The recovery cut; 0: nothing can be recovered yet.
    pub cut: u64,
}

/// Whether objects wait to be deleted until the archived cut has reached this index.
fn someone_waits(image: &Image, cut: u64) -> bool {
    let waits = |record: &ObjectRecord| {
        record.state == ObjectState::Unreferenced as i32
            && record.since_index > image.archived_cut()
            && record.since_index <= cut
    };
    image.feature_level() >= ARCHIVE_LEVEL && image.objects().any(|object| waits(&object.record))
}
