//! The events of a history.

use serde::{Deserialize, Serialize};

/// One line of a history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Monotonic time in nanoseconds.
    #[serde(rename = "t")]
    pub time_ns: u64,
    /// Who saw it: a producer, a consumer, or the driver; a number of the writer's choice.
    #[serde(rename = "c")]
    pub client: u32,
    /// What.
    #[serde(flatten)]
    pub op: Op,
}

/// A record that a consumer was given: (offset, id, checksum). No id: the value does not parse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read(pub i64, pub Option<u64>, pub u32);

/// What happened. Lists are in order; one event may hold one record or thousands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// A producer begins its life. `once`: it is idempotent, so none of its records may be in the log twice.
    /// `ordered`: the first occurrences of its records in a partition are in the order of sending. Without `once`, a record
    /// that it gave up as unknown may come after those of which it had no answer by then: it sends them next, and nothing
    /// tells a broker that a client which closed its connection does not want any more what is on the way.
    Producer { producer: u32, once: bool, ordered: bool },
    /// Records (id, checksum) are handed to the producer's client, which sends them in this order.
    Send { producer: u32, topic: String, partition: i32, records: Vec<(u64, u32)> },
    /// The broker acknowledged records (id, offset), with acks=1 or all. No offset: it was acknowledged as a repeat
    /// whose offset the client does not know.
    Acked { records: Vec<(u64, Option<i64>)> },
    /// Records are certain not to be in the log, now and ever.
    Failed { ids: Vec<u64> },
    /// Records may be in the log or not. Said of acks=0 too. Ids that are never answered count as unknown.
    Unknown { ids: Vec<u64> },

    /// A consumer takes up a partition. With an offset it begins there; without one and with a group it begins at the
    /// group's committed offset, or at offset 0 where there is none (`auto.offset.reset=earliest`).
    Assign {
        topic: String,
        partition: i32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<i64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        group: Option<String>,
    },
    /// Records that a consumer got. `last`: by a read from offset 0 that began after all sending ended.
    Poll {
        topic: String,
        partition: i32,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
        records: Vec<Read>,
    },
    /// The last read of this partition got to `end`, as ListOffsets gave it after all sending ended.
    Drained { topic: String, partition: i32, end: i64 },
    /// ListOffsets (latest), asked at `began`, answered `end`.
    Ends { topic: String, partition: i32, began: u64, end: i64 },

    /// A consumer commits `offset` for its group; `commit` names this commit, unique in the history.
    Commit { commit: u64, group: String, topic: String, partition: i32, offset: i64 },
    /// The broker accepted it.
    CommitAcked { commit: u64 },
    /// The broker refused it for good (stale generation, unknown member): it never counts.
    CommitFailed { commit: u64 },
    /// It may count, now or later. Commits that are never answered are unknown.
    CommitUnknown { commit: u64 },
    /// OffsetFetch, asked at `began`, answered `offset` (none: no commit known).
    Committed {
        group: String,
        topic: String,
        partition: i32,
        began: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        offset: Option<i64>,
    },

    /// The broker was started again.
    Restart,
    /// A fault was injected: `kill`, `power-cut`, `pause` … `point`: the named crash point at which it happened.
    Fault {
        kind: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        point: Option<String>,
    },
}

impl Event {
    /// The line without its end.
    ///
    /// # Panics
    /// Never: an event holds nothing that JSON cannot say.
    #[must_use]
    #[expect(clippy::expect_used, reason = "numbers, strings and lists always serialize")]
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("an event serializes")
    }
}
