//! Somebody who reads the chunk where metadata said it was, at the time of the look.

use super::state::{Copy, NODES, Place, Put, Reader, State};
use super::{Action, Release};
use crate::Rule;

impl Release {
    pub(super) fn reader_actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.reader.map(|reader| reader.place) {
            None if state.is_acknowledged() && state.place().is_some() => actions.push(Action::Look),
            None => {}
            Some(Place::Object(_)) => actions.push(Action::AskStore),
            // A replica that is never asked is one that is down.
            Some(Place::Wal) => {
                let Some(Reader { ensemble, .. }) = &state.reader else { return };
                let there = (0..NODES).filter(|node| state.is_in(ensemble, *node));
                actions.extend(there.map(|node| Action::AskReplica(node as u8)));
            }
        }
    }

    pub(super) fn reader_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Look => {
                let ensemble = state.stream.ensemble;
                state.reader = state.place().map(|place| Reader { place, ensemble, absent: 0, again: false });
            }
            Action::AskReplica(node) => self.ask_replica(state, node),
            Action::AskStore => {
                let Some(Place::Object(object)) = state.reader.map(|reader| reader.place) else { return };
                let object = &state.objects[object];
                if object.put == Put::Landed {
                    state.read_wrong |= !object.sound && !self.hold(Rule::CrcIsChecked);
                    state.reader = None;
                } else {
                    self.not_found(state);
                }
            }
            _ => {}
        }
    }

    fn ask_replica(&self, state: &mut State, node: u8) {
        match state.nodes[usize::from(node)].copy {
            Copy::Sound | Copy::Unsynced => state.reader = None,
            Copy::Flipped if self.hold(Rule::CrcIsChecked) => {}
            Copy::Flipped => {
                state.read_wrong = true;
                state.reader = None;
            }
            Copy::None => {
                let Some(reader) = &mut state.reader else { return };
                reader.absent |= 1 << node;
                let Reader { absent, ensemble, .. } = *reader;
                let asked = |node: usize| absent & (1 << node) != 0 || state.is_removed(node);
                let all = (0..NODES).all(|node| ensemble[node].is_none() || asked(node));
                if all || !self.hold(Rule::EveryIncarnationAnswers) {
                    self.not_found(state);
                }
            }
        }
    }

    /// The place does not have it: behind a barrier the reader looks again, once for each place.
    fn not_found(&self, state: &mut State) {
        let Some(reader) = state.reader.take() else { return };
        let place = state.place().filter(|_| state.is_acknowledged());
        if !self.hold(Rule::NotFoundIsStale) {
            state.read_nothing = true;
            return;
        }
        let Some(place) = place else { return };
        let same = place == reader.place;
        if same && reader.again {
            state.read_nothing = true;
            return;
        }
        state.reader_moved |= !same;
        let ensemble = state.stream.ensemble;
        state.reader = Some(Reader { place, ensemble, absent: 0, again: same });
    }
}
