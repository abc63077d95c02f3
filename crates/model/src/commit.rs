//! A chunk's way from its producer into the log, over lost and late proposals, fencing, and the change of streams.
//!
//! Models: `broker/commits.rs` and `sequencing.rs` (a lane: numbers, proposals, what becomes of them, the move to another stream),
//! `metadata/state/lanes.rs` (repeat, fence, floor, gap), `state/sessions.rs` (fencing, registration), `state/producers.rs` (the
//! sequence check). One partition. Broker 0 has a lane on which producer P sends two batches; another producer's batch is
//! committed elsewhere at any time. A proposal arrives at any time after it was sent, also after its sender gave it up, or never.
//!
//! Leaves out: how a chunk becomes durable ([`crate::release`]); Raft, whose log is a state machine that takes one command after
//! the other; results that a lane lacks memory for; chunks of several batches. A lane's second stream never closes.
//!
//! Two kinds of producer. A plain one takes no answer for an answer, so whatever it is told must be true for good. An idempotent
//! one sends again, through another broker, whatever was not acknowledged, with its sequence numbers.
//!
//! Properties: [`Commit::properties`]. Rules: those of invariants 1, 2 and 9, closed streams, and the sequence check.

use stateright::{Model, Property};

use crate::{Rule, Rules};

mod apply;
use apply::Metadata;
pub use apply::{Answer, Proposal};

/// Producer P's first batch; its second is 1.
const FIRST: u8 = 0;
const SECOND: u8 = 1;
/// The other producer's.
const OTHER: u8 = 2;
/// The model.
#[derive(Debug, Clone)]
pub struct Commit {
    /// What holds.
    pub rules: Rules,
    /// What producer P is.
    pub idempotent: bool,
    /// How often one number is proposed at most: first, and again while its outcome is unknown or its stream was closed.
    pub attempts: u8,
}

/// What P knows of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Told {
    /// Not sent yet.
    Nothing,
    /// It waits.
    Waits,
    /// Acknowledged at this offset.
    At(u8),
    /// It was not written, and never will be.
    NotWritten,
    /// It may have been.
    Unknown,
}

/// Where a number of the lane stands (`commits.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stage {
    Appending,
    Ready,
    Proposed,
    Displaced,
}

/// A number without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Entry {
    number: u8,
    batch: u8,
    stage: Stage,
    attempts: u8,
}

/// The first of a session's two streams.
const fn first_stream(session: u8) -> u8 {
    session * 2
}

/// The lane of broker 0.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Lane {
    session: u8,
    stream: u8,
    next: u8,
    open: Vec<Entry>,
    /// A proposal came back without a result: nothing is proposed until all are back.
    gathering: bool,
    /// It has heard that its session is fenced.
    fenced: bool,
}

impl Lane {
    fn of(session: u8) -> Self {
        Self {
            session,
            stream: first_stream(session),
            next: 1,
            open: Vec::new(),
            gathering: false,
            fenced: false,
        }
    }

    fn floor(&self) -> u8 {
        self.open.first().map_or(self.next, |entry| entry.number)
    }

    fn position(&self, number: u8) -> Option<usize> {
        self.open.iter().position(|entry| entry.number == number)
    }

    fn under_way(&self) -> bool {
        self.open.iter().any(|entry| entry.stage == Stage::Proposed)
    }
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    lane: Lane,
    metadata: Metadata,
    /// All that were ever sent; what arrives does so once.
    sent: Vec<Proposal>,
    told: [Told; 2],
    /// What a reader was shown: (offset, batch).
    shown: Option<(u8, u8)>,
    crashed: bool,
}

impl State {
    fn at(&self, batch: u8) -> Option<usize> {
        self.metadata.log.iter().position(|other| *other == batch)
    }
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// P sends its next batch, which gets a number.
    Send(u8),
    /// A write quorum has it.
    Durable(u8),
    /// The next number is proposed.
    Propose(u8),
    /// A proposal arrives and is applied.
    Apply {
        /// Who sent it.
        session: u8,
        /// Under which number.
        number: u8,
        /// For the how-manieth time.
        attempt: u8,
        /// What.
        batch: u8,
    },
    /// Its answer arrives.
    Hear(u8, Answer),
    /// The answer is lost or too late.
    GiveUp(u8),
    /// The lane goes on over another stream.
    Move,
    /// Metadata closes the lane's first stream.
    CloseStream,
    /// Metadata fences the session.
    Fence,
    /// The broker dies, and its connections with it.
    Crash,
    /// The broker registers anew.
    Register,
    /// The other producer's batch is committed.
    Other,
    /// P sends a batch again through another broker.
    SendElsewhere(u8),
    /// A reader looks for what lies behind the end.
    ReadUncommitted(u8),
}

impl Commit {
    fn hold(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    fn lane_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let lane = &state.lane;
        let next = state.told.iter().position(|told| *told == Told::Nothing);
        // The second is sent without waiting for the first.
        if let Some(batch) = next
            && !lane.fenced
            && !state.crashed
        {
            actions.push(Action::Send(batch as u8));
        }
        let mut may_propose = !lane.gathering;
        for entry in &lane.open {
            let number = entry.number;
            match entry.stage {
                Stage::Appending if state.metadata.is_open(lane.stream) => {
                    actions.push(Action::Durable(number))
                }
                Stage::Ready if may_propose && entry.attempts < self.attempts => {
                    actions.push(Action::Propose(number))
                }
                Stage::Proposed => {
                    actions.push(Action::GiveUp(number));
                    let latest = state.sent.iter().find(|sent| {
                        (sent.session, sent.number, sent.attempt, sent.batch)
                            == (lane.session, number, entry.attempts, entry.batch)
                    });
                    if let Some(answer) = latest.and_then(|sent| sent.answer) {
                        actions.push(Action::Hear(number, answer));
                    }
                }
                _ => {}
            }
            // Numbers go out in order.
            may_propose &= entry.stage == Stage::Proposed;
        }
        let waits = lane.open.iter().any(|entry| entry.stage == Stage::Appending);
        let moves = waits && !lane.under_way() && !state.metadata.is_open(lane.stream);
        if moves && lane.stream == first_stream(lane.session) {
            actions.push(Action::Move);
        }
        let resolved = lane.open.is_empty() || !self.hold(Rule::NeverUnderAnotherSession);
        if lane.session == 0 && (state.crashed || (lane.fenced && resolved)) {
            actions.push(Action::Register);
        }
        if lane.session == 0 && !state.crashed && !lane.fenced {
            actions.push(Action::Crash);
        }
    }

    /// Everything that is open goes again, once nothing is under way.
    fn gather(lane: &mut Lane) {
        lane.gathering = true;
        if !lane.under_way() {
            lane.gathering = false;
            for entry in &mut lane.open {
                if entry.stage == Stage::Displaced {
                    entry.stage = Stage::Appending;
                }
            }
        }
    }

    fn hear(&self, state: &mut State, number: u8, answer: Answer) {
        let State { lane, told, .. } = state;
        let Some(position) = lane.position(number) else { return };
        let batch = usize::from(lane.open[position].batch);
        match answer {
            Answer::At(offset) => {
                told[batch] = Told::At(offset);
                lane.open.remove(position);
            }
            // Nothing of it is in the log, and whoever sends it again does so under its sequence.
            Answer::OutOfOrder => {
                told[batch] = Told::NotWritten;
                lane.open.remove(position);
            }
            Answer::Gap => {
                lane.open[position].stage = Stage::Ready;
                Self::gather(lane);
                return;
            }
            Answer::StreamClosed => {
                lane.open[position].stage = Stage::Displaced;
                Self::gather(lane);
                return;
            }
            Answer::Fenced => {
                // Looked up first and not found: it was not applied, and will not be.
                told[batch] = Told::NotWritten;
                lane.open.remove(position);
                lane.fenced = true;
                self.refuse_unproposed(state);
            }
            Answer::BelowFloor | Answer::UnknownSession => {
                told[batch] = Told::Unknown;
                lane.open.remove(position);
            }
        }
        if state.lane.gathering {
            Self::gather(&mut state.lane);
        }
    }

    /// Of a lane that ends: what never left the broker was certainly not written.
    fn refuse_unproposed(&self, state: &mut State) {
        let State { lane, told, .. } = state;
        for entry in &lane.open {
            if entry.attempts == 0 {
                told[usize::from(entry.batch)] = Told::NotWritten;
            }
        }
        lane.open.retain(|entry| entry.attempts > 0);
    }

    fn give_up(&self, state: &mut State, number: u8) {
        let Some(position) = state.lane.position(number) else { return };
        let entry = &mut state.lane.open[position];
        if !self.hold(Rule::NumberKeepsItsChunk) {
            // Answered as unknown, and the number is free for another chunk.
            state.told[usize::from(entry.batch)] = Told::Unknown;
            let freed = state.lane.open.split_off(position);
            for entry in &freed {
                state.told[usize::from(entry.batch)] = Told::Unknown;
            }
            state.lane.next = number;
            return;
        }
        // After the last attempt it waits for good: the model's end, not the broker's, which goes on asking.
        entry.stage = Stage::Ready;
        Self::gather(&mut state.lane);
    }

    fn register(&self, state: &mut State) {
        state.metadata.register(self.rules);
        let earlier = std::mem::replace(&mut state.lane, Lane::of(1));
        state.crashed = false;
        for entry in earlier.open {
            // Only without the rule is anything left.
            let number = state.lane.next;
            state.lane.next += 1;
            state.lane.open.push(Entry { number, stage: Stage::Appending, attempts: 0, ..entry });
        }
    }

    fn crash(state: &mut State) {
        state.crashed = true;
        for entry in std::mem::take(&mut state.lane.open) {
            state.told[usize::from(entry.batch)] = Told::Unknown;
        }
    }
}

impl Model for Commit {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            lane: Lane::of(0),
            metadata: Metadata::new(self.idempotent),
            sent: Vec::new(),
            told: [Told::Nothing; 2],
            shown: None,
            crashed: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.lane_actions(state, actions);
        let metadata = &state.metadata;
        actions.extend(state.sent.iter().filter(|sent| sent.answer.is_none()).map(Proposal::arrival));
        if metadata.is_open(0) {
            actions.push(Action::CloseStream);
        }
        if !metadata.is_fenced(0) {
            actions.push(Action::Fence);
        }
        if !metadata.log.contains(&OTHER) {
            actions.push(Action::Other);
        }
        if self.idempotent {
            let again = |told: &Told| matches!(told, Told::NotWritten | Told::Unknown);
            let first = state.told.iter().position(|told| !matches!(told, Told::At(_)));
            // In order: the second one only after the first is acknowledged.
            if let Some(batch) = first.filter(|batch| again(&state.told[*batch])) {
                actions.push(Action::SendElsewhere(batch as u8));
            }
        }
        if !self.hold(Rule::OnlyCommittedIsRead) && state.shown.is_none() {
            let durable = state.lane.open.iter().filter(|entry| entry.stage != Stage::Appending);
            actions.extend(durable.map(|entry| Action::ReadUncommitted(entry.batch)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Send(batch) => {
                let number = state.lane.next;
                state.lane.next += 1;
                state.lane.open.push(Entry { number, batch, stage: Stage::Appending, attempts: 0 });
                state.told[usize::from(batch)] = Told::Waits;
            }
            Action::Durable(number) => {
                let position = state.lane.position(number)?;
                let entry = &mut state.lane.open[position];
                entry.stage = Stage::Ready;
                if !self.hold(Rule::ToldAfterApplied) {
                    // It guesses the offset.
                    state.told[usize::from(entry.batch)] = Told::At(state.metadata.log.len() as u8);
                }
            }
            Action::Propose(number) => {
                let floor = state.lane.floor();
                let position = state.lane.position(number)?;
                let Lane { session, stream, .. } = state.lane;
                let entry = &mut state.lane.open[position];
                entry.stage = Stage::Proposed;
                entry.attempts += 1;
                let Entry { batch, attempts: attempt, .. } = *entry;
                state.sent.push(Proposal { session, stream, number, floor, batch, attempt, answer: None });
                state.sent.sort_unstable();
            }
            Action::Apply { .. } => {
                let sent = state.sent.iter_mut().find(|sent| sent.arrival() == action)?;
                sent.answer = Some(state.metadata.apply(self.rules, sent));
            }
            Action::Hear(number, answer) => self.hear(&mut state, number, answer),
            Action::GiveUp(number) => self.give_up(&mut state, number),
            Action::Move => state.lane.stream += 1,
            Action::CloseStream => state.metadata.close(0),
            Action::Fence => state.metadata.fence(self.rules, 0),
            Action::Crash => Self::crash(&mut state),
            Action::Register => self.register(&mut state),
            Action::Other => state.metadata.log.push(OTHER),
            Action::SendElsewhere(batch) => {
                state.told[usize::from(batch)] = match state.metadata.sequence(self.rules, batch) {
                    Answer::At(offset) => Told::At(offset),
                    _ => Told::NotWritten,
                };
            }
            Action::ReadUncommitted(batch) => state.shown = Some((state.metadata.log.len() as u8, batch)),
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an acknowledged batch is at its offset", |_, state: &State| {
                (0..2).all(|batch| match state.told[usize::from(batch)] {
                    Told::At(offset) => state.metadata.log.get(usize::from(offset)) == Some(&batch),
                    _ => true,
                })
            }),
            Property::always("no batch has two offsets", |_, state: &State| {
                (0..2).all(|batch| state.metadata.log.iter().filter(|other| **other == batch).count() <= 1)
            }),
            Property::always("a producer's batches keep their order", |_, state: &State| {
                state.at(FIRST).zip(state.at(SECOND)).is_none_or(|(first, second)| first < second)
            }),
            Property::always("an idempotent producer's log has no gap", |model: &Self, state: &State| {
                !model.idempotent || state.at(SECOND).is_none() || state.at(FIRST).is_some()
            }),
            Property::always(
                "what was told as not written is not in the log",
                |model: &Self, state: &State| {
                    model.idempotent
                        || (0..2).all(|batch| {
                            state.told[usize::from(batch)] != Told::NotWritten
                                || !state.metadata.log.contains(&batch)
                        })
                },
            ),
            Property::always("no open number is passed by", |model: &Self, state: &State| {
                let lane = &state.lane;
                let passed = |number| state.metadata.passed_by(model.rules, lane.session, number);
                lane.fenced || !lane.open.iter().any(|entry| passed(entry.number))
            }),
            Property::always("no offset has two contents", |_, state: &State| {
                state.shown.is_none_or(|(offset, batch)| {
                    state.metadata.log.get(usize::from(offset)).is_none_or(|other| *other == batch)
                })
            }),
            Property::sometimes("both are acknowledged, around another's", |_, state: &State| {
                state.told == [Told::At(0), Told::At(2)]
            }),
            Property::sometimes("a repeat is answered with the first result", |_, state: &State| {
                state.sent.iter().filter(|sent| matches!(sent.answer, Some(Answer::At(_)))).count() == 3
            }),
            Property::sometimes("a fenced broker learns that it was written", |_, state: &State| {
                state.lane.fenced && matches!(state.told, [Told::At(_), Told::NotWritten])
            }),
            Property::sometimes("a lane moved, and its batches were acknowledged", |_, state: &State| {
                state.lane.stream == 1 && matches!(state.told, [Told::At(_), Told::At(_)])
            }),
            Property::sometimes("an old proposal comes after the next session began", |_, state: &State| {
                state.sent.iter().any(|sent| sent.answer == Some(Answer::UnknownSession))
            }),
            Property::sometimes("the next session's batch is acknowledged", |_, state: &State| {
                state.lane.session == 1 && state.told[usize::from(SECOND)] == Told::At(1)
            }),
        ]
    }
}
