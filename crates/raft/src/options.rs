//! How a member is started.

use std::path::PathBuf;

use isobar_host::Host;
use isobar_journal::JournalMetrics;
use isobar_metadata::ClusterFormat;

use crate::error::RaftError;
use crate::remote::RaftNetwork;

/// A segment must hold the largest frame.
const LEAST_SEGMENT_BYTES: u64 = 8 << 20;

/// How to start a member.
#[derive(Debug, Clone)]
pub struct QuorumOptions {
    /// Its directory: the file `FORMAT`, `log/` and `snapshots/`.
    pub dir: PathBuf,
    /// Its node id in the group.
    pub node_id: u64,
    /// What to format an empty directory with, as a new group of one voter. `None`: an empty directory is an error.
    /// Ignored if the directory is formatted already.
    pub format: Option<ClusterFormat>,
    /// Where other members reach it, `host:port`; may be empty in a group of one.
    pub address: String,
    /// How it reaches the others. `None`: it is alone, and stays so.
    pub network: Option<RaftNetwork>,
    /// Who the group begins with, as (node id, address); for an empty directory only, and the same at all of them. Empty, or this
    /// node alone: a group of one. Others, without this node: it waits until the leader adds it ([`crate::Quorum::add_voter`]).
    pub initial_voters: Vec<(u64, String)>,
    /// It may be made a voter; else it stays a learner, which has all and decides nothing.
    pub may_vote: bool,
    /// Bytes of commands that may wait, half of them others than commits of chunks; more are refused with
    /// [`ProposeError::Busy`].
    pub queue_bytes: usize,
    /// Entries that may be on their way at once.
    pub entries_in_flight: usize,
    /// Bytes of recent log entries kept in memory.
    pub log_cache_bytes: usize,
    /// Bytes of recent effect batches kept for followers.
    pub effects_bytes: usize,
    /// A snapshot is due when the log since the last one exceeds this and that one's size.
    pub snapshot_after_bytes: u64,
    /// The log waits for an archive ([`crate::Quorum::archive`]), but no more of it than this; `None`: there is none.
    pub archive_lag_bytes: Option<u64>,
    /// Size of a full-grown journal segment.
    pub segment_bytes: u64,
    /// Where the log's journal counts.
    pub journal_metrics: JournalMetrics,
}

impl QuorumOptions {
    /// The defaults for `dir`; an empty directory is an error.
    pub fn new(dir: impl Into<PathBuf>, node_id: u64) -> Self {
        Self {
            dir: dir.into(),
            node_id,
            format: None,
            address: String::new(),
            network: None,
            initial_voters: Vec::new(),
            may_vote: true,
            queue_bytes: 64 << 20,
            entries_in_flight: 4,
            log_cache_bytes: 16 << 20,
            effects_bytes: 64 << 20,
            snapshot_after_bytes: 64 << 20,
            archive_lag_bytes: None,
            segment_bytes: 32 << 20,
            journal_metrics: JournalMetrics::default(),
        }
    }

    /// A simulated life is short: there segments may be small, so that they are rotated and recycled in it.
    pub(crate) fn check(&self, host: &Host) -> Result<(), RaftError> {
        if self.entries_in_flight == 0 {
            return Err(RaftError::BadOption("entries_in_flight is 0".to_owned()));
        }
        if self.segment_bytes < LEAST_SEGMENT_BYTES && !host.is_simulated() {
            return Err(RaftError::BadOption(format!("segment_bytes is less than {LEAST_SEGMENT_BYTES}")));
        }
        let alone = self.network.is_none();
        if alone && self.initial_voters.iter().any(|(node, _)| *node != self.node_id) {
            return Err(RaftError::BadOption("other voters without a network".to_owned()));
        }
        if !alone && self.address.is_empty() {
            return Err(RaftError::BadOption("a network without an address".to_owned()));
        }
        let own = self.initial_voters.iter().find(|(node, _)| *node == self.node_id);
        if own.is_some_and(|(_, address)| *address != self.address) {
            return Err(RaftError::BadOption("initial_voters has this node at another address".to_owned()));
        }
        if self.queue_bytes / 2 < isobar_metadata::command::MAX_ENTRY_BYTES {
            return Err(RaftError::BadOption("queue_bytes is less than two entries".to_owned()));
        }
        Ok(())
    }
}
