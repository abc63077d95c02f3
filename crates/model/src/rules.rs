//! The rules that a model can be run without: those of DESIGN.md section 2 by the invariant's number, and those of sections 4 and 5
//! that the invariants rest on.

macro_rules! rules {
    ($($name:ident, $place:literal, $says:literal;)*) => {
        /// One rule, named after what holds while it is there.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Rule {
            $(#[doc = $says] $name,)*
        }

        impl Rule {
            /// Each of them.
            pub const EVERY: &[Self] = &[$(Self::$name),*];

            /// The number of its invariant, or its section.
            pub const fn place(self) -> &'static str {
                match self { $(Self::$name => $place,)* }
            }

            /// What it says.
            pub const fn says(self) -> &'static str {
                match self { $(Self::$name => $says,)* }
            }
        }
    };
}

rules! {
    OnlyCommittedIsRead, "1", "Readers see what a commit points at, never what merely lies in the WAL";
    ToldAfterApplied, "2", "A producer is told after the commit was applied";
    ProposedAfterQuorum, "2", "A commit is proposed after a write quorum has acknowledged";
    AcknowledgedAfterSync, "2", "A replica acknowledges after its sync";
    CrcIsChecked, "4", "A CRC is checked whenever bytes are read, and what does not match is not served and not uploaded";
    CacheHoldsNothingAlone, "5", "An object is in the store, not in a broker's cache, when its commit is proposed";
    WipedReplicaIsAnother, "6", "A WAL directory that was wiped comes back under another incarnation";
    WipedVoterIsAnother, "6", "A voter that was wiped comes back as another, and votes only once a membership change made it a voter";
    IdsAreNotReused, "6", "After a recovery ids are of the new incarnation";
    ReleasedByCommit, "7", "The WAL drops a chunk on the word of a committed object, not of a finished upload";
    EveryRequiredStore, "7", "The WAL drops a chunk once every required store has it";
    UndeleteWindowIsOver, "7", "What a deleted topic holds stays until it can no longer be brought back";
    ReplacedWhenWhole, "7", "A replica takes the place of a lost one once it has all that is live of the stream";
    ReplacedWhenClosed, "7", "A replica takes the place of a lost one only in a closed stream: nothing becomes live there any more";
    ReplacedByWhoStays, "7", "A replica that is drained or removed takes nobody's place";
    DrainedBeforeRemoved, "7", "A replica is removed once no extent points into a stream that names it";
    RemovedAfterItsStreams, "§4", "A replica is removed once every stream that names it is closed";
    OnlyUnreferencedIsDeleted, "7", "Only what no extent points at is deleted from a store";
    FirstOfExpiryAndCommit, "7", "The first of an object's expiry and the commit that names it wins";
    GraceForReaders, "7", "No object is deleted before the grace period for readers is over";
    CutBeforeDelete, "7", "No object is deleted before the recovery cut has passed";
    ApplyIsDeterministic, "8", "What apply does depends on the log alone";
    RepeatIsAnswered, "9", "A number that was applied is not applied again";
    RepeatBeforeFence, "9", "Apply looks for a repeat before it looks at the fence";
    OnlyTheNextNumber, "9", "In a commit lane only the next number is accepted";
    BelowFloorIsRefused, "9", "Numbers below the floor, whose results are dropped, are refused";
    RefusalUsesNoNumber, "9", "A refusal uses up no number";
    NumberKeepsItsChunk, "9", "A number that was ever proposed keeps its chunk";
    NeverUnderAnotherSession, "9", "What a fenced session left unanswered is never sent again under its successor";
    FencedCommitsNothing, "9", "A fenced session commits nothing: it is refused, and its streams are closed";
    ClosedStreamTakesNothing, "§4", "A closed stream takes no commit: its unnamed chunks are garbage already";
    SequenceIsChecked, "§4", "A producer's sequence is checked when its batch gets an offset";
    BarrierBeforeEnds, "10", "A barrier comes before an answer that states an end";
    WaiterJoinsTheNext, "10", "A waiter joins the next round of the barrier, never one already sent";
    LeadershipIsConfirmed, "10", "A leader answers a barrier after a quorum has confirmed that it leads";
    FailedBarrierIsAnError, "10", "If the barrier fails the answer is an error, never an older value";
    OneView, "11", "A fetch takes all it says of a partition from one view";
    NotFoundIsStale, "12", "A location that is not found is resolved again before anything is said";
    EveryIncarnationAnswers, "12", "“Not found” in the WAL means that every incarnation of the ensemble said so";
    CutBeforeWhatIsMissing, "§5", "The cut stops before the oldest commit whose bytes some store lacks";
    FirstCommitCounts, "§5", "Bytes that were appended again count with their first commit";
    OneCut, "§5", "All partitions are cut at one point";
    SwapsAfterCutAreFollowed, "§5", "Swaps to objects after the cut are followed, for offsets below it";
    LogStartsAfterCutAreFollowed, "§5", "Log starts that moved after the cut are followed";
    EpochsRise, "§5", "Leader epochs are of the new incarnation";
    ClaimBeforeDelete, "§5", "The claim is looked at before each batch of deletes";
    ArchiveReadAfterClaim, "§5", "A recovery reads the archive after it has claimed the incarnation";
}

/// Rules that hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules(u64);

impl Rules {
    /// All of them.
    pub const ALL: Self = Self(u64::MAX);

    /// All of these but one.
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self(self.0 & !(1 << rule as u8))
    }

    /// Whether it holds.
    pub const fn hold(self, rule: Rule) -> bool {
        self.0 & (1 << rule as u8) != 0
    }
}
