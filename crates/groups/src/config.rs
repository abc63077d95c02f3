//! The coordinator's settings, under Kafka's names.

use crate::GroupError;

/// Settings of all groups of a coordinator. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// `group.min.session.timeout.ms`.
    pub min_session_timeout_ms: u32,
    /// `group.max.session.timeout.ms`.
    pub max_session_timeout_ms: u32,
    /// `group.initial.rebalance.delay.ms`: how long an empty group waits for more members before its first generation;
    /// each new member adds as much again, up to the rebalance timeout. 0 completes the join phase at once.
    pub initial_rebalance_delay_ms: u32,
    /// How long a new member's first `JoinGroup` may wait before the member is forgotten (Kafka: 5 minutes, not configurable).
    pub new_member_join_timeout_ms: u32,
    /// `group.max.size`: members of one group.
    pub max_size: usize,
    /// Member ids given out by MEMBER_ID_REQUIRED and not yet used; beyond it joins are told to retry.
    pub max_pending_members: usize,
    /// Bytes of one member: ids and all its protocols' metadata.
    pub max_member_bytes: usize,
    /// Bytes of all members and their assignments; a group is stored in one command of at most 1 MiB.
    pub max_group_bytes: usize,
}

impl Default for GroupConfig {
    /// Kafka's defaults; the byte bounds keep a group well inside one Raft entry of 1 MiB.
    fn default() -> Self {
        Self {
            min_session_timeout_ms: 6_000,
            max_session_timeout_ms: 1_800_000,
            initial_rebalance_delay_ms: 3_000,
            new_member_join_timeout_ms: 300_000,
            max_size: usize::MAX,
            max_pending_members: 10_000,
            max_member_bytes: 256 * 1024,
            max_group_bytes: 896 * 1024,
        }
    }
}

impl GroupConfig {
    /// Is the session timeout within the configured range? Asked before a group is looked for, too.
    pub fn check_session_timeout(&self, session_timeout_ms: i32) -> Result<(), GroupError> {
        match u32::try_from(session_timeout_ms) {
            Ok(ms) if (self.min_session_timeout_ms..=self.max_session_timeout_ms).contains(&ms) => Ok(()),
            _ => Err(GroupError::InvalidSessionTimeout),
        }
    }
}
