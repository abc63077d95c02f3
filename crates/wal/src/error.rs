//! What can go wrong with a WAL, by what the caller must do.

/// An error of this crate. Cheap to clone: many may wait for one append.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// The chunk, or a batch of it, is not here. The location is stale: resolve it anew. Never an empty answer.
    #[error("not found in the WAL")]
    NotFound,
    /// Not found where it could be looked for, but not every replica that may have it has answered. Try again; it proves nothing.
    #[error("not every replica has answered: {0}")]
    Unavailable(String),
    /// No room on the disk until chunks are released. The chunk's number is not used up; try again later.
    #[error("the WAL is full")]
    Full,
    /// The chunk is larger than the log takes. Its number is not used up.
    #[error("{0}")]
    TooLarge(String),
    /// The stream is closed. Open another.
    #[error("the stream is closed")]
    Closed,
    /// The chunk's number is not the next one of its stream. A replica with a gap leaves the stream: open another.
    #[error("the stream takes chunk {expected} next")]
    Gap {
        /// The only number it would take.
        expected: u64,
    },
    /// Bytes on the disk are not what was written. Never served.
    #[error("the WAL is damaged: {0}")]
    Corrupt(String),
    /// A write or sync failed: this replica takes no more appends until it is started anew. Whether the chunk is durable
    /// is unknown. Reads go on.
    #[error("the WAL has stopped: {0}")]
    Failed(String),
    /// The directory was never formatted, or lacks what a format writes. A known node does not format by itself.
    #[error("{0}")]
    NotFormatted(String),
    /// The disk did not answer as it should, outside of appends.
    #[error("{0}")]
    Io(String),
}
