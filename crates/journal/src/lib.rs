//! A segmented append log with group commit: what the WAL and the Raft log stand on.
//!
//! What it owns: one directory of preallocated segment files that are recycled, and the threads that write to them.
//!
//! Layout: `lives` (key and lives), `*.seg` (a header block, then frames), `*.spare`. See `frame.rs`, `segment.rs`
//! and `lives.rs` for the bytes, `recover.rs` for what is believed after a crash, `keeper.rs` for the order of renames.
//!
//! Invariants
//! 1. `done(Ok)` is called only after the frame's bytes were written and a later `sync_data` of its file succeeded, and
//!    after the file's name was durable. Such a frame is found by every later opening until its segment is recycled.
//! 2. Frames are found in the order of the appends, byte for byte, or reported as damaged. Nothing is found that was
//!    not appended, and nothing that was cut once comes back.
//! 3. Frames of a recycled segment may be found after a crash until its file was overwritten; never after.
//! 4. Callbacks come in the order of the appends.
//!
//! Ordering: frames are written in groups, each with one write and one sync, one at a time, without lingering: while one
//! syncs, the next gathers. A segment is sealed in the sync before the first write to the next.
//!
//! Failure: a failed write or sync stops the journal for good ([`JournalError::Stopped`]); it is never tried again,
//! because a second sync proves nothing about the first. Disk full ([`JournalError::DiskFull`]) refuses and goes on when
//! there is space. A bad CRC is an error that names file and offset. Reads go on in all of these.
//!
//! Accepted leaks: a last group that was synced, acknowledged and then damaged *before any later write or a clean close*
//! cannot be told from a torn one by this disk alone. Files of a damaged segment are removed when it is recycled.
//!
//! May not know: chunks, Raft. A frame's kind and meta mean nothing here; of its sections it knows where a record batch
//! has its CRC.

mod core;
mod engine;
mod error;
mod frame;
mod inspect;
mod journal;
mod keeper;
mod lives;
mod metrics;
mod options;
mod recover;
mod report;
mod scan;
mod segment;
mod shared;
mod writer;

pub use error::JournalError;
pub use frame::{BLOCK_BYTES, Frame, FrameError, FrameWriter, HEADER_BYTES, Stamp};
pub use inspect::{Inspected, inspect};
pub use journal::Journal;
pub use metrics::{JournalMetrics, Metrics};
pub use options::Options;
pub use report::{Damage, Recovered, Report, Torn};
pub use shared::Written;

#[cfg(test)]
mod tests;
