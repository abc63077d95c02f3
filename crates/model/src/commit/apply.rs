//! The metadata state machine, as far as the numbers of one broker's lanes reach.

use super::Action;
use crate::{Rule, Rules};

/// Sessions of broker 0, one after the other.
const SESSIONS: usize = 2;
/// Streams: two of each session.
const STREAMS: usize = 4;
/// Numbers of a lane, from 1.
const NUMBERS: usize = 3;

/// A proposal of a chunk's commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Proposal {
    pub(super) session: u8,
    pub(super) stream: u8,
    pub(super) number: u8,
    pub(super) floor: u8,
    pub(super) batch: u8,
    pub(super) attempt: u8,
    /// What came of it, once it arrived.
    pub(super) answer: Option<Answer>,
}

impl Proposal {
    pub(super) fn arrival(&self) -> Action {
        let Self { session, number, attempt, batch, .. } = *self;
        Action::Apply { session, number, attempt, batch }
    }
}

/// What a proposal is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    /// The batch has this offset.
    At(u8),
    /// Its sequence does not follow.
    OutOfOrder,
    /// Refusals, which are no result.
    Gap,
    /// See [`Answer::Gap`].
    StreamClosed,
    /// See [`Answer::Gap`].
    Fenced,
    /// See [`Answer::Gap`].
    BelowFloor,
    /// See [`Answer::Gap`].
    UnknownSession,
}

/// One lane of a session (`lanes.rs`: `Lane`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Lane {
    floor: u8,
    next: u8,
    results: [Option<Answer>; NUMBERS],
    fenced: bool,
    forgotten: bool,
}

/// What every proposal is applied to, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Metadata {
    /// Batches by offset.
    pub(super) log: Vec<u8>,
    lanes: [Lane; SESSIONS],
    closed: [bool; STREAMS],
    idempotent: bool,
}

impl Metadata {
    pub(super) fn new(idempotent: bool) -> Self {
        let lane = Lane { floor: 1, next: 1, results: [None; NUMBERS], fenced: false, forgotten: false };
        Self { log: Vec::new(), lanes: [lane; SESSIONS], closed: [false; STREAMS], idempotent }
    }

    pub(super) fn is_open(&self, stream: u8) -> bool {
        !self.closed[usize::from(stream)]
    }

    pub(super) fn is_fenced(&self, session: u8) -> bool {
        self.lanes[usize::from(session)].fenced
    }

    pub(super) fn close(&mut self, stream: u8) {
        self.closed[usize::from(stream)] = true;
    }

    pub(super) fn fence(&mut self, rules: Rules, session: u8) {
        self.lanes[usize::from(session)].fenced = true;
        if rules.hold(Rule::FencedCommitsNothing) {
            let first = usize::from(session) * 2;
            self.closed[first..first + 2].fill(true);
        }
    }

    /// The broker's next session; fences and forgets the one before.
    pub(super) fn register(&mut self, rules: Rules) {
        self.fence(rules, 0);
        self.lanes[0] = Lane { floor: 1, next: 1, results: [None; NUMBERS], fenced: true, forgotten: true };
    }

    /// Whether a number can no longer be applied although it has no result.
    pub(super) fn passed_by(&self, rules: Rules, session: u8, number: u8) -> bool {
        let lane = &self.lanes[usize::from(session)];
        match lane.results[usize::from(number) - 1] {
            Some(Answer::At(_) | Answer::OutOfOrder) => false,
            Some(_) => true,
            None => !lane.forgotten && number < lane.next && rules.hold(Rule::OnlyTheNextNumber),
        }
    }

    /// A command under its number (`StateMachine::numbered`).
    pub(super) fn apply(&mut self, rules: Rules, proposal: &Proposal) -> Answer {
        let Proposal { session, number, floor, .. } = *proposal;
        let lane = &mut self.lanes[usize::from(session)];
        let refuses = |rule| rules.hold(rule);
        if lane.forgotten && refuses(Rule::FencedCommitsNothing) {
            return Answer::UnknownSession;
        }
        lane.floor = lane.floor.max(floor);
        for (at, result) in lane.results.iter_mut().enumerate() {
            if (at as u8) + 1 < lane.floor {
                *result = None;
            }
        }
        let repeat = lane.results[usize::from(number) - 1].filter(|_| refuses(Rule::RepeatIsAnswered));
        let fenced = lane.fenced && refuses(Rule::FencedCommitsNothing);
        if let Some(first) = repeat.filter(|_| !fenced || refuses(Rule::RepeatBeforeFence)) {
            return first;
        }
        if fenced {
            return Answer::Fenced;
        }
        if let Some(refusal) = self.out_of_turn(rules, proposal) {
            return refusal;
        }
        if !self.is_open(proposal.stream) {
            return self.refused(rules, proposal, Answer::StreamClosed);
        }
        let answer = self.sequence(rules, proposal.batch);
        self.keep(proposal, answer);
        answer
    }

    /// Below the floor, or not the next.
    fn out_of_turn(&mut self, rules: Rules, proposal: &Proposal) -> Option<Answer> {
        let lane = &self.lanes[usize::from(proposal.session)];
        let number = proposal.number;
        if rules.hold(Rule::RepeatIsAnswered) && rules.hold(Rule::BelowFloorIsRefused) {
            let in_order = rules.hold(Rule::OnlyTheNextNumber);
            if number < lane.floor || (in_order && number < lane.next) {
                return Some(Answer::BelowFloor);
            }
        }
        if rules.hold(Rule::OnlyTheNextNumber) && number > lane.next {
            return Some(self.refused(rules, proposal, Answer::Gap));
        }
        None
    }

    fn refused(&mut self, rules: Rules, proposal: &Proposal, refusal: Answer) -> Answer {
        if !rules.hold(Rule::RefusalUsesNoNumber) {
            self.keep(proposal, refusal);
        }
        refusal
    }

    fn keep(&mut self, proposal: &Proposal, answer: Answer) {
        let lane = &mut self.lanes[usize::from(proposal.session)];
        lane.next = lane.next.max(proposal.number + 1);
        lane.results[usize::from(proposal.number) - 1] = Some(answer);
    }

    /// Gives a batch its offset (`commits.rs`: `sequence_batch`).
    pub(super) fn sequence(&mut self, rules: Rules, batch: u8) -> Answer {
        if self.idempotent && rules.hold(Rule::SequenceIsChecked) {
            // A batch's number is its sequence.
            let known = self.log.iter().position(|other| *other == batch);
            if let Some(offset) = known {
                return Answer::At(offset as u8);
            }
            let written = self.log.iter().filter(|other| **other < super::OTHER).count();
            if usize::from(batch) != written {
                return Answer::OutOfOrder;
            }
        }
        self.log.push(batch);
        Answer::At(self.log.len() as u8 - 1)
    }
}
