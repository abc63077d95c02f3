//! Each model with all rules, and without each. docs/model.md says what came of it, and is held against it here.

use crate::check::{Found, check};
use crate::commit::Commit;
use crate::read::Read;
use crate::recovery::Recovery;
use crate::release::{Release, Scene};
use crate::voters::Voters;
use crate::{Rule, Rules};

const PAGE: &str = include_str!("../../../docs/model.md");

/// A model at one size.
#[derive(Debug, Clone, Copy)]
enum Run {
    CommitPlain,
    CommitIdempotent,
    ReleaseWrite,
    ReleaseStores,
    ReleaseRepair,
    ReleaseRead,
    ReleaseMove,
    Recovery,
    Read,
    Voters,
}

impl Run {
    fn name(self) -> &'static str {
        match self {
            Self::CommitPlain => "commit, plain producer",
            Self::CommitIdempotent => "commit, idempotent producer",
            Self::ReleaseWrite => "release, write",
            Self::ReleaseStores => "release, two stores",
            Self::ReleaseRepair => "release, repair",
            Self::ReleaseRead => "release, read",
            Self::ReleaseMove => "release, read while repaired",
            Self::Recovery => "recovery",
            Self::Read => "read",
            Self::Voters => "voters",
        }
    }

    fn check(self, rules: Rules) -> Found {
        match self {
            Self::CommitPlain => check(Commit { rules, idempotent: false, attempts: 3 }),
            Self::CommitIdempotent => check(Commit { rules, idempotent: true, attempts: 2 }),
            Self::ReleaseWrite => check(Release { rules, scene: Scene::WRITE }),
            Self::ReleaseStores => check(Release { rules, scene: Scene::STORES }),
            Self::ReleaseRepair => check(Release { rules, scene: Scene::REPAIR }),
            Self::ReleaseRead => check(Release { rules, scene: Scene::READ }),
            Self::ReleaseMove => check(Release { rules, scene: Scene::MOVE }),
            Self::Recovery => check(Recovery { rules }),
            Self::Read => check(Read { rules }),
            Self::Voters => check(Voters { rules }),
        }
    }
}

fn is_on_the_page(row: &str) {
    assert!(PAGE.lines().any(|line| line == row), "docs/model.md lacks this row, or has another:\n{row}");
}

/// Nothing is found in the whole state space, which has at least so many states, and all that is to be reached is reached.
fn whole(run: Run, least: usize) {
    let Found { states, depth, broken, missed } = run.check(Rules::ALL);
    assert_eq!(broken, None, "a counterexample with all rules");
    assert!(missed.is_empty(), "never reached: {missed:?}");
    assert!(states >= least, "{states} states");
    // The checker counts states on the way, of which there is one more than steps.
    is_on_the_page(&format!("| {} | {states} | {} |", run.name(), depth - 1));
}

/// Without the rule this property is broken.
fn without(rule: Rule, run: Run, property: &str) {
    let broken = run.check(Rules::ALL.without(rule)).broken.expect("a counterexample");
    assert_eq!(broken.property, property, "{:?}", broken.steps);
    let steps = broken.steps.join(", ").replace(" { ", "(").replace(" }", ")");
    is_on_the_page(&format!(
        "| {} | {} | {} | {property} | {steps} |",
        rule.place(),
        rule.says(),
        run.name()
    ));
}

macro_rules! whole {
    ($($test:ident: $run:ident, $least:literal;)*) => {
        mod with_all_rules {
            use super::{Run, whole};
            $(#[test] fn $test() { whole(Run::$run, $least); })*
        }
    };
}

whole! {
    commit_plain: CommitPlain, 500_000;
    commit_idempotent: CommitIdempotent, 60_000;
    release_write: ReleaseWrite, 5_000;
    release_stores: ReleaseStores, 8_000;
    release_repair: ReleaseRepair, 100_000;
    release_read: ReleaseRead, 15_000;
    release_move: ReleaseMove, 200_000;
    recovery: Recovery, 150_000;
    read: Read, 150_000;
    voters: Voters, 10_000;
}

macro_rules! without {
    ($($rule:ident $test:ident: $run:ident, $property:literal;)*) => {
        mod without_the_rule {
            use super::{Run, without};
            use crate::Rule;
            $(#[test] fn $test() { without(Rule::$rule, Run::$run, $property); })*
        }

        #[test]
        fn every_rule_is_taken_away() {
            assert_eq!(Rule::EVERY, [$(Rule::$rule),*]);
        }
    };
}

without! {
    OnlyCommittedIsRead only_committed_is_read: CommitPlain, "no offset has two contents";
    ToldAfterApplied told_after_applied: CommitPlain, "an acknowledged batch is at its offset";
    ProposedAfterQuorum proposed_after_quorum: ReleaseWrite, "what was acknowledged is somewhere";
    AcknowledgedAfterSync acknowledged_after_sync: ReleaseWrite, "what was acknowledged is somewhere";
    CrcIsChecked crc_is_checked: ReleaseRead, "a read is never answered with other bytes";
    CacheHoldsNothingAlone cache_holds_nothing_alone: ReleaseWrite, "what was acknowledged is somewhere";
    WipedReplicaIsAnother wiped_replica_is_another: ReleaseRepair, "what was acknowledged is somewhere";
    WipedVoterIsAnother wiped_voter_is_another: Voters, "a term has one leader";
    IdsAreNotReused ids_are_not_reused: Recovery, "what is recovered, and what comes after, has its bytes";
    ReleasedByCommit released_by_commit: ReleaseWrite, "what was acknowledged is somewhere";
    EveryRequiredStore every_required_store: ReleaseStores, "what was acknowledged is somewhere";
    UndeleteWindowIsOver undelete_window_is_over: ReleaseWrite, "what was acknowledged is somewhere";
    ReplacedWhenWhole replaced_when_whole: ReleaseRepair, "what was acknowledged is somewhere";
    ReplacedWhenClosed replaced_when_closed: ReleaseRepair, "what was acknowledged is somewhere";
    ReplacedByWhoStays replaced_by_who_stays: ReleaseRepair, "what was acknowledged is somewhere";
    DrainedBeforeRemoved drained_before_removed: ReleaseRepair, "what was acknowledged is somewhere";
    RemovedAfterItsStreams removed_after_its_streams: ReleaseRepair, "what was acknowledged is somewhere";
    OnlyUnreferencedIsDeleted only_unreferenced_is_deleted: ReleaseRead, "what was acknowledged is somewhere";
    FirstOfExpiryAndCommit first_of_expiry_and_commit: ReleaseWrite, "what was acknowledged is somewhere";
    GraceForReaders grace_for_readers: ReleaseRead, "an object is there while somebody looks at it";
    CutBeforeDelete cut_before_delete: Recovery, "what is recovered, and what comes after, has its bytes";
    ApplyIsDeterministic apply_is_deterministic: Read, "no offset has two contents";
    RepeatIsAnswered repeat_is_answered: CommitPlain, "no batch has two offsets";
    RepeatBeforeFence repeat_before_fence: CommitPlain, "what was told as not written is not in the log";
    OnlyTheNextNumber only_the_next_number: CommitPlain, "a producer's batches keep their order";
    BelowFloorIsRefused below_floor_is_refused: CommitPlain, "no batch has two offsets";
    RefusalUsesNoNumber refusal_uses_no_number: CommitPlain, "no open number is passed by";
    NumberKeepsItsChunk number_keeps_its_chunk: CommitPlain, "an acknowledged batch is at its offset";
    NeverUnderAnotherSession never_under_another_session: CommitPlain, "no batch has two offsets";
    FencedCommitsNothing fenced_commits_nothing: CommitPlain, "no batch has two offsets";
    ClosedStreamTakesNothing closed_stream_takes_nothing: ReleaseWrite, "what was acknowledged is somewhere";
    SequenceIsChecked sequence_is_checked: CommitIdempotent, "no batch has two offsets";
    BarrierBeforeEnds barrier_before_ends: Read, "an end is never below what anyone was told before";
    WaiterJoinsTheNext waiter_joins_the_next: Read, "an end is never below what anyone was told before";
    LeadershipIsConfirmed leadership_is_confirmed: Read, "an end is never below what anyone was told before";
    FailedBarrierIsAnError failed_barrier_is_an_error: Read, "an end is never below what anyone was told before";
    OneView one_view: Read, "aborted records are never read as committed";
    NotFoundIsStale not_found_is_stale: ReleaseRead, "a read is never answered as empty or lost";
    EveryIncarnationAnswers every_incarnation_answers: ReleaseRead, "a read is never answered as empty or lost";
    CutBeforeWhatIsMissing cut_before_what_is_missing: Recovery, "what is recovered, and what comes after, has its bytes";
    FirstCommitCounts first_commit_counts: Recovery, "what is recovered, and what comes after, has its bytes";
    OneCut one_cut: Recovery, "what is recovered is all there was up to one point";
    SwapsAfterCutAreFollowed swaps_after_cut_are_followed: Recovery, "what is recovered, and what comes after, has its bytes";
    LogStartsAfterCutAreFollowed log_starts_after_cut_are_followed: Recovery, "what is recovered, and what comes after, has its bytes";
    EpochsRise epochs_rise: Recovery, "no offset has two contents under one leader epoch";
    ClaimBeforeDelete claim_before_delete: Recovery, "what is recovered, and what comes after, has its bytes";
    ArchiveReadAfterClaim archive_read_after_claim: Recovery, "what is recovered, and what comes after, has its bytes";
}
