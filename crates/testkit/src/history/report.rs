//! What the checker says.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// The names of what can be wrong. Where jepsen.tests.kafka has the same anomaly its name is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An acknowledged record is not in the log at the end (`:lost-write`, `:unseen`).
    LostWrite,
    /// A record that a consumer had read, acknowledged or not, is not in the log at the end.
    VanishedRecord,
    /// A record of an idempotent producer is in the log twice (`:duplicate`).
    Duplicate,
    /// What was read is not what was sent: the checksum differs, or the value does not parse.
    TornContent,
    /// A record that nobody sent, or sent to another partition.
    ForeignContent,
    /// A record that the client was told is not in the log is there (`:G1a`).
    FailedWriteVisible,
    /// A producer's records are in the log in another order than it sent them (`:nonmonotonic-send`).
    Reordered,
    /// One offset with two records, or one record acknowledged at another offset than it has (`:inconsistent-offsets`).
    InconsistentOffsets,
    /// A consumer was given an offset again, or a lower one, without having gone back (`:nonmonotonic-poll`).
    NonmonotonicPoll,
    /// A consumer went past an offset that holds a record (`:poll-skip`).
    PollSkip,
    /// An end (high watermark) lower than one that had been seen before it was asked for.
    WatermarkWentBack,
    /// An end that lacks a record which had been acknowledged before it was asked for: a stale read.
    StaleEnd,
    /// No committed offset although a commit had been acknowledged.
    LostCommit,
    /// A committed offset lower than every one that may be in force.
    CommitWentBack,
    /// A committed offset that is none of those that may be in force, and not lower.
    ForeignCommit,
    /// An offset below the end without a record, in a log that has no reason for one (option `dense`).
    OffsetHole,
    /// No last read to the end of a partition with acknowledged records: nothing is decided.
    NotDrained,
}

impl Kind {
    /// The name as it is printed, `lost-write`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LostWrite => "lost-write",
            Self::VanishedRecord => "vanished-record",
            Self::Duplicate => "duplicate",
            Self::TornContent => "torn-content",
            Self::ForeignContent => "foreign-content",
            Self::FailedWriteVisible => "failed-write-visible",
            Self::Reordered => "reordered",
            Self::InconsistentOffsets => "inconsistent-offsets",
            Self::NonmonotonicPoll => "nonmonotonic-poll",
            Self::PollSkip => "poll-skip",
            Self::WatermarkWentBack => "watermark-went-back",
            Self::StaleEnd => "stale-end",
            Self::LostCommit => "lost-commit",
            Self::CommitWentBack => "commit-went-back",
            Self::ForeignCommit => "foreign-commit",
            Self::OffsetHole => "offset-hole",
            Self::NotDrained => "not-drained",
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anomaly {
    pub kind: Kind,
    pub topic: String,
    pub partition: i32,
    /// Time of the event that showed it; none where the end of the history did.
    pub time_ns: Option<u64>,
    pub what: String,
}

/// All of one kind: how many, and the first few.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    pub kind: Kind,
    pub count: u64,
    pub examples: Vec<Anomaly>,
}

/// How much was checked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub events: u64,
    pub sends: u64,
    /// Acknowledgements whose record the last read was searched for.
    pub acks_checked: u64,
    /// Sends that the client could not decide, and how many of them are in the log.
    pub unknown: u64,
    pub unknown_in_log: u64,
    /// Further occurrences of records of producers that are not idempotent; allowed.
    pub repeats_allowed: u64,
    /// Records of producers that are not idempotent which come after what was sent once they had been given up; allowed.
    pub late_after_given_up: u64,
    /// Records given to consumers, all reads together.
    pub reads: u64,
    pub ends_checked: u64,
    pub commits_acked: u64,
    /// OffsetFetch answers and positions of group members that were compared with the commits.
    pub commits_checked: u64,
    pub restarts: u64,
    pub faults: BTreeMap<String, u64>,
    pub crash_points: BTreeMap<String, u64>,
}

/// What a run must have done to count; see [`Report::missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    Acks,
    Reads,
    Faults,
    CrashPoints,
    Restarts,
    Commits,
    Ends,
}

impl Requirement {
    /// From the name that the command line uses.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "acks" => Self::Acks,
            "reads" => Self::Reads,
            "faults" => Self::Faults,
            "crash-points" => Self::CrashPoints,
            "restarts" => Self::Restarts,
            "commits" => Self::Commits,
            "ends" => Self::Ends,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Acks => "acknowledgements checked",
            Self::Reads => "records read",
            Self::Faults => "faults injected",
            Self::CrashPoints => "named crash points hit",
            Self::Restarts => "restarts",
            Self::Commits => "committed offsets checked",
            Self::Ends => "ends checked",
        }
    }
}

/// The verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub found: Vec<Found>,
    pub summary: Summary,
}

impl Report {
    /// No anomaly.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.found.is_empty()
    }

    /// How often this kind was found.
    #[must_use]
    pub fn count(&self, kind: Kind) -> u64 {
        self.found.iter().filter(|f| f.kind == kind).map(|f| f.count).sum()
    }

    /// The required numbers that are below their least value (1 unless told otherwise), as sentences. A run in which
    /// nothing was acknowledged, or nothing was killed, has shown nothing.
    #[must_use]
    pub fn missing(&self, required: &[(Requirement, u64)]) -> Vec<String> {
        let s = &self.summary;
        let mut missing = Vec::new();
        for &(requirement, least) in required {
            let got = match requirement {
                Requirement::Acks => s.acks_checked,
                Requirement::Reads => s.reads,
                Requirement::Faults => s.faults.values().sum(),
                Requirement::CrashPoints => s.crash_points.values().sum(),
                Requirement::Restarts => s.restarts,
                Requirement::Commits => s.commits_checked,
                Requirement::Ends => s.ends_checked,
            };
            if got < least {
                missing.push(format!("{}: {got}, required {least}", requirement.name()));
            }
        }
        missing
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.summary;
        writeln!(f, "acknowledgements checked  {}", s.acks_checked)?;
        writeln!(
            f,
            "records sent              {} ({} undecided, {} of them in the log)",
            s.sends, s.unknown, s.unknown_in_log
        )?;
        writeln!(f, "records read              {}", s.reads)?;
        writeln!(f, "repeats allowed           {} (producers that are not idempotent)", s.repeats_allowed)?;
        writeln!(f, "late records allowed      {} (given up by such producers)", s.late_after_given_up)?;
        writeln!(f, "ends checked              {}", s.ends_checked)?;
        writeln!(
            f,
            "commits acknowledged      {}, committed offsets checked {}",
            s.commits_acked, s.commits_checked
        )?;
        writeln!(f, "restarts                  {}", s.restarts)?;
        writeln!(f, "faults injected           {}{}", s.faults.values().sum::<u64>(), listed(&s.faults))?;
        writeln!(
            f,
            "named crash points hit    {}{}",
            s.crash_points.values().sum::<u64>(),
            listed(&s.crash_points)
        )?;
        for found in &self.found {
            writeln!(f, "ANOMALY {}: {}", found.kind.name(), found.count)?;
            for a in &found.examples {
                let time = a.time_ns.map_or_else(String::new, |t| format!(" at {t} ns"));
                writeln!(f, "  {}-{}{time}: {}", a.topic, a.partition, a.what)?;
            }
        }
        write!(f, "{}", if self.is_clean() { "no anomaly" } else { "ANOMALIES FOUND" })
    }
}

fn listed(counts: &BTreeMap<String, u64>) -> String {
    if counts.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = counts.iter().map(|(name, n)| format!("{name} {n}")).collect();
    format!(" ({})", parts.join(", "))
}
