//! What clients saw, and whether a Kafka log can have made them see it.
//!
//! A history is JSON lines, one [`Event`] each, written by the clients (several files are merged by time). Times are
//! one monotonic clock in nanoseconds, the same for all writers. Every value that a producer sends has an id, unique in
//! the history, and a checksum of all that was sent (key, value, headers); a reader finds the id in the value and sums
//! what it got. So content is checked although the history holds none.
//!
//! Time stands for what a client *knows*: an event of beginning is stamped before the request leaves, an event of an
//! answer after it came. Stamps that are late (answers) or early (beginnings) hide anomalies, they never invent them.
//!
//! The checker streams: it keeps about 60 bytes for each record sent and 5 for each offset, not the events.
//!
//! The anomalies are after jepsen.tests.kafka (see [`Kind`]), plus committed offsets as a register per group and
//! partition, and ends (ListOffsets) as monotonic in real time.

mod checker;
mod event;
mod groups;
mod input;
mod log;
mod report;
mod sends;

pub use checker::{Checker, Options};
pub use event::{Event, Op, Read};
pub use input::{Merge, check_files};
pub use report::{Anomaly, Found, Kind, Report, Requirement, Summary};

/// Why a history is no history. Not an anomaly of the broker: the writer of the history is wrong.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// A line that is no event.
    #[error("{file}:{line}: {source}")]
    Json { file: String, line: u64, source: serde_json::Error },
    /// A line over the bound of one event.
    #[error("{file}:{line}: longer than {limit} bytes")]
    TooLong { file: String, line: u64, limit: u64 },
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Io { file: String, source: std::io::Error },
    /// Events that contradict each other whatever the broker did: an id sent twice, an answer without a request.
    #[error("event at {time_ns} ns: {what}")]
    Contradiction { time_ns: u64, what: String },
}
