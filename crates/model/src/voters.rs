//! Three voters of the metadata quorum, one of whom loses its disk.
//!
//! Models: what openraft and `raft/{formation,members}.rs` must give together: elections, replication, commit, and that a directory
//! that was wiped is no voter. An election is one step: a candidate and one other voter suffice.
//!
//! Leaves out: messages on their way, heartbeats, snapshots, and the membership change by which the wiped one becomes a voter
//! again (openraft's own tests).
//!
//! Properties: [`Voters::properties`]. Rule: [`Rule::WipedVoterIsAnother`].

use stateright::{Model, Property};

use crate::{Rule, Rules};

/// Terms that are tried.
const TERMS: u8 = 3;
/// Entries of a log.
const LENGTH: usize = 2;

/// The model.
#[derive(Debug, Clone)]
pub struct Voters {
    /// What holds.
    pub rules: Rules,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Voter {
    term: u8,
    leads: bool,
    /// The term of each entry.
    log: Vec<u8>,
    is_voter: bool,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    voters: [Voter; 3],
    /// The terms of the entries that were committed, in order.
    committed: Vec<u8>,
    /// Terms in which somebody was elected.
    elected: Vec<u8>,
    wiped: bool,
    elected_twice: bool,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A candidate is elected by itself and another.
    Elect {
        /// The candidate.
        candidate: u8,
        /// Who votes for it.
        voter: u8,
    },
    /// A leader appends an entry.
    Append(u8),
    /// A leader's log reaches another voter.
    Replicate {
        /// The leader.
        from: u8,
        /// The other.
        to: u8,
    },
    /// A leader commits what a majority holds.
    Commit(u8),
    /// A disk is lost, and the node comes back empty.
    Wipe(u8),
}

impl Voters {
    fn elects(state: &State, candidate: usize, voter: usize) -> bool {
        let [c, v] = [&state.voters[candidate], &state.voters[voter]];
        // The voter has not seen the term, and its log is not ahead.
        let behind = (v.log.last(), v.log.len()) <= (c.log.last(), c.log.len());
        c.is_voter && v.is_voter && v.term <= c.term && c.term < TERMS && behind
    }

    /// How many voters hold the leader's newest entry at its place.
    fn holders(state: &State, leader: usize) -> usize {
        let log = &state.voters[leader].log;
        state.voters.iter().filter(|voter| voter.is_voter && voter.log.starts_with(log)).count()
    }
}

impl Model for Voters {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let voter = Voter { term: 0, leads: false, log: Vec::new(), is_voter: true };
        let voters = [voter.clone(), voter.clone(), voter];
        vec![State { voters, committed: Vec::new(), elected: Vec::new(), wiped: false, elected_twice: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in 0..3 {
            let one = &state.voters[at];
            for other in (0..3).filter(|other| *other != at) {
                let (candidate, voter) = (at as u8, other as u8);
                if Self::elects(state, at, other) {
                    actions.push(Action::Elect { candidate, voter });
                }
                if one.leads && state.voters[other].is_voter && state.voters[other].term <= one.term {
                    actions.push(Action::Replicate { from: candidate, to: voter });
                }
            }
            if one.leads && one.log.len() < LENGTH {
                actions.push(Action::Append(at as u8));
            }
            if one.leads && one.log.last() == Some(&one.term) && Self::holders(state, at) >= 2 {
                actions.push(Action::Commit(at as u8));
            }
            if !state.wiped {
                actions.push(Action::Wipe(at as u8));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Elect { candidate, voter } => {
                let term = state.voters[usize::from(candidate)].term + 1;
                state.elected_twice |= state.elected.contains(&term);
                state.elected.push(term);
                for at in [candidate, voter] {
                    let one = &mut state.voters[usize::from(at)];
                    (one.term, one.leads) = (term, at == candidate);
                }
            }
            Action::Append(at) => {
                let leader = &mut state.voters[usize::from(at)];
                leader.log.push(leader.term);
            }
            Action::Replicate { from, to } => {
                let (term, log) = {
                    let leader = &state.voters[usize::from(from)];
                    (leader.term, leader.log.clone())
                };
                let other = &mut state.voters[usize::from(to)];
                (other.term, other.log) = (term, log);
                other.leads = false;
            }
            Action::Commit(at) => {
                let log = &state.voters[usize::from(at)].log;
                if log.len() <= state.committed.len() {
                    return None;
                }
                state.committed.clone_from(log);
            }
            Action::Wipe(at) => {
                state.wiped = true;
                let is_voter = !self.rules.hold(Rule::WipedVoterIsAnother);
                state.voters[usize::from(at)] = Voter { term: 0, leads: false, log: Vec::new(), is_voter };
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every later leader has what was committed", |_, state: &State| {
                let newest = state.elected.iter().max();
                let holds = |voter: &Voter| voter.log.starts_with(&state.committed);
                let leader = |voter: &&Voter| voter.leads && Some(&voter.term) == newest;
                state.voters.iter().filter(leader).all(holds)
            }),
            Property::always("a term has one leader", |_, state: &State| !state.elected_twice),
            Property::sometimes("an entry is committed by the two that are left", |_, state: &State| {
                state.wiped && state.committed.len() == LENGTH && state.elected.len() == 2
            }),
            Property::sometimes("an entry that was not committed is replaced", |_, state: &State| {
                state.voters.iter().any(|voter| voter.log == [1]) && state.committed == [2]
            }),
        ]
    }
}
