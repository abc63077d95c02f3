//! What the archive holds the log's purge back by.

use std::sync::atomic::{AtomicU64, Ordering};

/// No archive: purge as the snapshots allow.
const OFF: u64 = u64::MAX;

/// Up to where the log is archived, for the keeper.
#[derive(Debug)]
pub(crate) struct Gate {
    archived: AtomicU64,
    lag_bytes: u64,
}

impl Gate {
    /// `lag_bytes`: how much log may wait for the archive; `None`: there is no archive.
    pub(crate) fn new(lag_bytes: Option<u64>) -> Self {
        let archived = if lag_bytes.is_some() { 0 } else { OFF };
        Self { archived: AtomicU64::new(archived), lag_bytes: lag_bytes.unwrap_or(OFF) }
    }

    pub(crate) fn archived(&self, through: u64) {
        self.archived.store(through, Ordering::Release);
    }

    /// Another member has archived so far; true if that is news.
    pub(crate) fn raise(&self, through: u64) -> bool {
        // Without an archive this is the highest number there is.
        self.archived.fetch_max(through, Ordering::AcqRel) < through
    }

    /// How far the log is archived, as far as this member knows; 0: it does not, or there is no archive.
    pub(crate) fn known(&self) -> u64 {
        match self.archived.load(Ordering::Acquire) {
            OFF => 0,
            through => through,
        }
    }

    /// How far the log may be purged, of which the snapshots allow `upto` and which has `log_bytes`.
    pub(crate) fn allows(&self, upto: u64, log_bytes: u64) -> u64 {
        if log_bytes > self.lag_bytes { upto } else { upto.min(self.archived.load(Ordering::Acquire)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_waits_for_the_archive_up_to_a_bound() {
        let gate = Gate::new(Some(100));
        assert_eq!(gate.allows(50, 90), 0);
        gate.archived(30);
        assert_eq!(gate.allows(50, 90), 30);
        assert_eq!(gate.allows(20, 90), 20);
        assert_eq!(gate.allows(50, 101), 50, "it has lagged for too long");
        assert_eq!(Gate::new(None).allows(50, 0), 50);
    }
}
