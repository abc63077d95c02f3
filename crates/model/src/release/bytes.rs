//! Appends, commits, uploads, copies in the place of lost ones: what happens to the bytes.

use super::state::{Copy, NODES, Node, Put, Record, State, Topic};
use super::{Action, Release};
use crate::Rule;

impl Release {
    pub(super) fn wal_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let late_sync = !self.hold(Rule::AcknowledgedAfterSync);
        for node in 0..NODES {
            let (at, copy) = (node as u8, state.nodes[node].copy);
            let takes = state.stream.acknowledged & (1 << at) == 0 && !state.stream.closed;
            if takes && !state.committed && state.is_member(node) {
                actions.push(Action::Append(at));
            }
            if late_sync && copy == Copy::Unsynced {
                actions.extend([Action::Sync(at), Action::Restart(at)]);
            }
            let by_upload = !self.hold(Rule::ReleasedByCommit) && self.is_in_some_store(state);
            let drops = state.is_garbage() || (state.committed && by_upload);
            if copy != Copy::None && drops {
                actions.push(Action::Drop(at));
            }
            if state.wipes < self.scene.wipes
                && !state.nodes[node].wiped
                && !state.is_removed(node)
                && (state.stream.ensemble[node].is_some() || copy != Copy::None)
                && state.may_lose(node)
            {
                actions.push(Action::Wipe(at));
            }
            if self.scene.flips && !state.flipped && copy == Copy::Sound && state.may_lose(node) {
                actions.push(Action::Flip(at));
            }
        }
        if !state.committed && state.acks() >= self.write_quorum() {
            actions.push(Action::Commit);
        }
        actions.push(Action::Fence);
    }

    pub(super) fn wal_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Append(node) => {
                let synced = self.hold(Rule::AcknowledgedAfterSync);
                let copy = if synced { Copy::Sound } else { Copy::Unsynced };
                state.nodes[usize::from(node)].copy = copy;
                state.stream.acknowledged |= 1 << node;
            }
            Action::Sync(node) => state.nodes[usize::from(node)].copy = Copy::Sound,
            Action::Restart(node) => state.nodes[usize::from(node)].copy = Copy::None,
            Action::Commit => {
                let refused = state.stream.closed && self.hold(Rule::ClosedStreamTakesNothing);
                if !refused && state.topic == Topic::There {
                    (state.committed, state.in_wal) = (true, true);
                }
            }
            Action::Fence => state.stream.closed = true,
            Action::Drop(node) => state.nodes[usize::from(node)].copy = Copy::None,
            Action::Wipe(node) => {
                state.wipes += 1;
                let node = &mut state.nodes[usize::from(node)];
                let incarnation = node.incarnation + u8::from(self.hold(Rule::WipedReplicaIsAnother));
                *node = Node { incarnation, wiped: true, copy: Copy::None, whole: false };
            }
            Action::Flip(node) => {
                state.flipped = true;
                state.nodes[usize::from(node)].copy = Copy::Flipped;
            }
            _ => {}
        }
    }

    fn write_quorum(&self) -> u32 {
        if self.hold(Rule::ProposedAfterQuorum) { 2 } else { 1 }
    }

    fn is_in_some_store(&self, state: &State) -> bool {
        self.objects().any(|object| state.objects[object].put == Put::Landed)
    }

    pub(super) fn object_actions(&self, state: &State, actions: &mut Vec<Action>) {
        for at in self.objects() {
            let (object, number) = (&state.objects[at], at as u8);
            let is_merged = self.scene.compaction && at == 1;
            if object.record == Record::Free && !is_merged && state.in_wal {
                if state.has_sound() {
                    actions.push(Action::Put { object: number, sound: true });
                }
                let flipped = state.copies().any(|copy| copy == Copy::Flipped);
                if flipped && !self.hold(Rule::CrcIsChecked) {
                    actions.push(Action::Put { object: number, sound: false });
                }
            }
            match object.put {
                Put::UnderWay if !self.hold(Rule::CacheHoldsNothingAlone) => {
                    actions.extend([
                        Action::CommitObject(number),
                        Action::LoseCache(number),
                        Action::Land(number),
                    ]);
                }
                Put::UnderWay => actions.push(Action::Land(number)),
                // Whoever proposes it has seen it land, once.
                Put::Landed | Put::Deleted => actions.push(Action::CommitObject(number)),
                Put::NotSent => {}
            }
            if object.record == Record::Prepared {
                actions.push(Action::Expire(number));
            }
            if self.may_delete(state, at) {
                actions.push(Action::Delete(number));
            }
        }
        let merges = self.scene.compaction && state.objects[1].record == Record::Free;
        if merges && state.stored[0] == Some(0) && state.objects[0].put == Put::Landed {
            actions.push(Action::Merge);
        }
        if self.scene.stores == 2 && state.lost_store.is_none() {
            actions.extend([Action::LoseStore(0), Action::LoseStore(1)]);
        }
    }

    fn may_delete(&self, state: &State, at: usize) -> bool {
        let is_read = state.reader.is_some_and(|reader| reader.place == super::state::Place::Object(at));
        if is_read && self.hold(Rule::GraceForReaders) {
            return false;
        }
        match state.objects[at].record {
            Record::Unreferenced => true,
            // Again, for a PUT may land late.
            Record::Deleted => state.objects[at].put == Put::Landed,
            // Its successor is in the store already.
            Record::Committed => {
                let merged = self.scene.compaction && at == 0 && state.objects[1].put == Put::Landed;
                merged && !self.hold(Rule::OnlyUnreferencedIsDeleted)
            }
            Record::Free | Record::Prepared => false,
        }
    }

    pub(super) fn object_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Put { object, sound } => {
                let object = &mut state.objects[usize::from(object)];
                (object.record, object.put, object.sound) = (Record::Prepared, Put::UnderWay, sound);
            }
            Action::LoseCache(object) => state.objects[usize::from(object)].put = Put::Deleted,
            Action::Land(object) => state.objects[usize::from(object)].put = Put::Landed,
            Action::CommitObject(object) => self.commit_object(state, usize::from(object)),
            Action::Expire(object) => state.objects[usize::from(object)].record = Record::Unreferenced,
            Action::Delete(object) => {
                let object = &mut state.objects[usize::from(object)];
                object.record = Record::Deleted;
                if object.put == Put::Landed {
                    object.put = Put::Deleted;
                }
            }
            Action::Merge => {
                let sound = state.objects[0].sound;
                let object = &mut state.objects[1];
                (object.record, object.put, object.sound) = (Record::Prepared, Put::UnderWay, sound);
            }
            Action::LoseStore(store) => state.lost_store = Some(usize::from(store)),
            _ => {}
        }
    }

    /// CommitObject, or CompactObjects for what was merged.
    fn commit_object(&self, state: &mut State, at: usize) {
        let over = matches!(state.objects[at].record, Record::Unreferenced | Record::Deleted);
        let is_open = state.objects[at].record == Record::Prepared
            || (over && !self.hold(Rule::FirstOfExpiryAndCommit));
        if !is_open {
            return;
        }
        let store = self.store_of(at);
        let applies = if self.scene.compaction && at == 1 {
            state.stored[store] == Some(0)
        } else {
            state.in_wal && state.stored[store].is_none()
        };
        if !applies {
            state.objects[at].record = Record::Unreferenced;
            return;
        }
        state.objects[at].record = Record::Committed;
        if let Some(replaced) = state.stored[store].replace(at) {
            state.objects[replaced].record = Record::Unreferenced;
        }
        let everywhere = (0..usize::from(self.scene.stores)).all(|store| state.stored[store].is_some());
        if everywhere || !self.hold(Rule::EveryRequiredStore) {
            state.in_wal = false;
        }
    }

    pub(super) fn repair_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.scene.repair {
            let ensemble = &state.stream.ensemble;
            for (to, node) in state.nodes.iter().enumerate() {
                let is_named = ensemble[to] == Some(node.incarnation);
                if self.may_fill(state, to) && !is_named && !node.whole {
                    actions.push(Action::Fill(to as u8));
                }
                if !node.whole || is_named || (!Self::stays(state, to) && self.hold(Rule::ReplacedByWhoStays))
                {
                    continue;
                }
                // Who looks lost to the one that asks may be none of it; in its own place stands only what a node was before.
                for from in (0..NODES).filter(|from| ensemble[*from].is_some()) {
                    if from == to || ensemble[to].is_none() {
                        actions.push(Action::Replace { from: from as u8, to: to as u8 });
                    }
                }
            }
        }
        if self.scene.drain && !state.removed {
            actions.push(Action::Drain);
            let points = state.in_wal && self.hold(Rule::DrainedBeforeRemoved);
            let takes = !state.stream.closed && !state.is_over() && self.hold(Rule::RemovedAfterItsStreams);
            let needed = state.stream.ensemble[0].is_some() && (points || takes);
            if state.draining && !needed {
                actions.push(Action::Remove);
            }
        }
    }

    /// It is neither drained nor removed.
    fn stays(state: &State, node: usize) -> bool {
        !(node == 0 && (state.draining || state.removed))
    }

    /// Whether the node may copy what is live.
    fn may_fill(&self, state: &State, node: usize) -> bool {
        if !Self::stays(state, node) {
            return false;
        }
        let is_closed = state.stream.closed || !self.hold(Rule::ReplacedWhenClosed);
        let is_there = if state.in_wal { state.has_sound() } else { !state.stream.closed };
        is_closed && is_there
    }

    pub(super) fn repair_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Fill(node) => {
                let copies = state.in_wal && self.hold(Rule::ReplacedWhenWhole);
                let node = &mut state.nodes[usize::from(node)];
                node.whole = true;
                if copies {
                    node.copy = Copy::Sound;
                }
            }
            Action::Replace { from, to } => {
                state.stream.ensemble[usize::from(from)] = None;
                state.stream.ensemble[usize::from(to)] = Some(state.nodes[usize::from(to)].incarnation);
                state.replaced = true;
            }
            Action::Drain => state.draining = true,
            Action::Remove => {
                state.removed = true;
                state.nodes[0].copy = Copy::None;
            }
            _ => {}
        }
    }

    pub(super) fn topic_actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.topic {
            Topic::There => actions.push(Action::DeleteTopic),
            Topic::Deleted => actions.extend([Action::BringBack, Action::Purge]),
            Topic::Purged => {}
        }
    }

    pub(super) fn topic_step(&self, state: &mut State, action: &Action) {
        match action {
            Action::DeleteTopic => {
                state.topic = Topic::Deleted;
                if !self.hold(Rule::UndeleteWindowIsOver) {
                    state.in_wal = false;
                }
            }
            Action::BringBack => state.topic = Topic::There,
            Action::Purge => {
                state.topic = Topic::Purged;
                state.in_wal = false;
                for object in std::mem::take(&mut state.stored).into_iter().flatten() {
                    state.objects[object].record = Record::Unreferenced;
                }
            }
            _ => {}
        }
    }
}
