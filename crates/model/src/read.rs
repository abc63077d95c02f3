//! What a broker says of a partition while its image is behind.
//!
//! Models: `raft/barrier.rs` (rounds of the read barrier, forwarding to the leader), `broker/live.rs` and `list_offsets.rs` (the image
//! and who waits on it), `broker/fetch` (one view for one fetch), `metadata/image/view.rs`. The metadata log is a fixed list of
//! three entries, committed one after the other: a plain batch takes offset 0, a transactional one offset 1, and the transaction is
//! aborted (offset 2). Two metadata nodes apply it, each in its time; leadership changes once, and the old leader may not know it.
//! The broker follows either node.
//!
//! Leaves out: how leaders are elected ([`crate::voters`]), and where bytes lie ([`crate::release`]).
//!
//! Properties: [`Read::properties`]. Rules: those of invariants 8, 10 and 11.

use stateright::{Model, Property};

use crate::{Rule, Rules};

/// Entries of the metadata log.
const ENTRIES: u8 = 3;
/// The entry that ends the transaction, counted from 1.
const ABORT: u8 = 3;
/// The entry that a node with its own clock may refuse; the next one then takes its offset.
const JUDGED: u8 = 1;

/// The model.
#[derive(Debug, Clone)]
pub struct Read {
    /// What holds.
    pub rules: Rules,
}

/// A metadata node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Node {
    applied: u8,
    /// Up to where it knows the log to be committed.
    knows: u8,
    leads: bool,
    /// It refused entry [`JUDGED`]; only without the rule that apply is deterministic.
    refused: bool,
}

/// A client has asked for a partition's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Question {
    /// What anyone had been told when it asked.
    told: u8,
    /// It has joined the round that is under way.
    joined: bool,
    /// The image has to be as new as this.
    wanted: Option<u8>,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    committed: u8,
    nodes: [Node; 2],
    /// Whom the broker follows, and how far its image is.
    follows: u8,
    image: u8,
    /// The newest commit that anyone was told of.
    told: u8,
    question: Option<Question>,
    /// The round of the barrier that is under way, with the index that it will give.
    round: Option<u8>,
    /// A fetch that took the aborted transactions from a view of this index; only without the rule of one view.
    half_fetched: Option<u8>,
    /// An end was answered.
    answered: bool,
    stale: bool,
    aborted_was_read: bool,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The leader commits the next entry.
    Commit,
    /// Somebody is told of all that is committed.
    Tell,
    /// A node hears how far the log is committed.
    Hear(u8),
    /// A node applies its next entry.
    Apply(u8),
    /// A node applies its next entry and refuses it, by its own clock.
    ApplyByItsClock(u8),
    /// The other node is elected; the old leader does not know.
    Elect,
    /// The old leader learns of it.
    StepDown(u8),
    /// The broker follows the other node.
    Follow,
    /// The image takes in what its node has applied.
    Advance,
    /// A client asks for the end.
    Ask,
    /// The barrier sends a round.
    BeginRound,
    /// The round is answered.
    EndRound,
    /// The barrier fails.
    FailBarrier,
    /// The client is answered.
    Answer,
    /// A fetch that reads committed data, from one view.
    Fetch,
    /// The first half of one.
    FetchAborted,
    /// The second.
    FetchRest,
}

/// The last stable offset in a view, and whether it lists the aborted transaction.
fn view(index: u8) -> (u8, bool) {
    if index < ABORT { (index.min(1), false) } else { (index, true) }
}

impl Read {
    fn hold(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    /// What the node that the broker asks gives as the index of a round, if it gives one.
    fn round_index(&self, state: &State) -> Option<u8> {
        let node = state.nodes[usize::from(state.follows)];
        if node.leads && !self.hold(Rule::LeadershipIsConfirmed) {
            return Some(node.knows);
        }
        // Itself, or the one it forwards to, after a quorum has confirmed that it leads: it has all that was committed.
        Some(state.committed)
    }

    fn answer(state: &mut State) {
        let Some(question) = state.question.take() else { return };
        state.answered = true;
        state.stale |= state.image < question.told;
    }

    fn question_actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.question {
            None if !state.answered => actions.push(Action::Ask),
            None => {}
            Some(question) => {
                let ready = question.wanted.is_some_and(|wanted| state.image >= wanted);
                if ready || !self.hold(Rule::BarrierBeforeEnds) {
                    actions.push(Action::Answer);
                }
                if question.wanted.is_none() {
                    actions.push(Action::FailBarrier);
                }
            }
        }
        // Other questions have their rounds too.
        actions.push(if state.round.is_none() { Action::BeginRound } else { Action::EndRound });
    }

    fn fetch_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.hold(Rule::OneView) {
            actions.push(Action::Fetch);
        } else if state.half_fetched.is_none() {
            actions.push(Action::FetchAborted);
        } else {
            actions.push(Action::FetchRest);
        }
    }

    fn fetched(state: &mut State, aborted_at: u8, rest_at: u8) {
        let ((_, lists_it), (last_stable, _)) = (view(aborted_at), view(rest_at));
        state.aborted_was_read |= last_stable > 1 && !lists_it;
    }
}

impl Model for Read {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = Node { applied: 0, knows: 0, leads: false, refused: false };
        vec![State {
            committed: 0,
            nodes: [Node { leads: true, ..node }, node],
            follows: 0,
            image: 0,
            told: 0,
            question: None,
            round: None,
            half_fetched: None,
            answered: false,
            stale: false,
            aborted_was_read: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.committed < ENTRIES {
            actions.push(Action::Commit);
        }
        if state.told < state.committed {
            actions.push(Action::Tell);
        }
        for (at, node) in (0..).zip(&state.nodes) {
            if node.knows < state.committed {
                actions.push(Action::Hear(at));
            }
            if node.applied < node.knows {
                actions.push(Action::Apply(at));
                if node.applied + 1 == JUDGED && !self.hold(Rule::ApplyIsDeterministic) {
                    actions.push(Action::ApplyByItsClock(at));
                }
            }
        }
        // Node 1 leads after it; node 0 goes on to think it does.
        if !state.nodes[1].leads {
            actions.push(Action::Elect);
        } else if state.nodes[0].leads {
            actions.push(Action::StepDown(0));
        }
        actions.push(Action::Follow);
        if state.image < state.nodes[usize::from(state.follows)].applied {
            actions.push(Action::Advance);
        }
        self.question_actions(state, actions);
        self.fetch_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Commit => {
                state.committed += 1;
                let leader = usize::from(state.nodes[1].leads);
                state.nodes[leader].knows = state.committed;
            }
            Action::Tell => state.told = state.committed,
            // What was deposed hears nothing before it knows.
            Action::Hear(0) if state.nodes[0].leads => return None,
            Action::Hear(at) => state.nodes[usize::from(at)].knows = state.committed,
            Action::Apply(at) => state.nodes[usize::from(at)].applied += 1,
            Action::ApplyByItsClock(at) => {
                let node = &mut state.nodes[usize::from(at)];
                node.applied += 1;
                node.refused = true;
            }
            Action::Elect => {
                state.nodes[1].leads = true;
                state.nodes[1].knows = state.committed;
            }
            Action::StepDown(at) => state.nodes[usize::from(at)].leads = false,
            Action::Follow => state.follows = 1 - state.follows,
            // It never goes back: effects are resumed by index.
            Action::Advance => state.image = state.image.max(state.nodes[usize::from(state.follows)].applied),
            Action::Ask => {
                let joined = state.round.is_some() && !self.hold(Rule::WaiterJoinsTheNext);
                state.question = Some(Question { told: state.told, joined, wanted: None });
            }
            Action::BeginRound => {
                state.round = Some(self.round_index(&state)?);
                if let Some(question) = &mut state.question {
                    question.joined = question.wanted.is_none();
                }
            }
            Action::EndRound => {
                let index = state.round.take();
                if let Some(question) = state.question.as_mut().filter(|question| question.joined) {
                    question.joined = false;
                    question.wanted = index;
                }
            }
            Action::FailBarrier if self.hold(Rule::FailedBarrierIsAnError) => {
                state.question = None;
                state.answered = true;
            }
            Action::FailBarrier | Action::Answer => Self::answer(&mut state),
            Action::Fetch => {
                let image = state.image;
                Self::fetched(&mut state, image, image);
            }
            Action::FetchAborted => state.half_fetched = Some(state.image),
            Action::FetchRest => {
                let (aborted_at, rest_at) = (state.half_fetched.take()?, state.image);
                Self::fetched(&mut state, aborted_at, rest_at);
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an end is never below what anyone was told before", |_, state: &State| {
                !state.stale
            }),
            Property::always("aborted records are never read as committed", |_, state: &State| {
                !state.aborted_was_read
            }),
            Property::always("no offset has two contents", |_, state: &State| {
                // Where the entry was refused the one behind it has its offset.
                let [a, b] = state.nodes.map(|node| (node.applied, node.refused));
                a.1 == b.1 || a.0.min(b.0) <= JUDGED
            }),
            Property::sometimes("an end is answered beside a deposed leader", |_, state: &State| {
                state.answered && state.image == ENTRIES && state.nodes[0].leads && state.nodes[1].leads
            }),
            Property::sometimes("a question waits for the round after the one it met", |_, state: &State| {
                state.round.is_some() && state.question.is_some_and(|question| !question.joined)
            }),
            Property::sometimes("an image is behind what was told", |_, state: &State| {
                state.image + 1 < state.told && state.question.is_some()
            }),
        ]
    }
}
