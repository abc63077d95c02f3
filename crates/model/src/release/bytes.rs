//! Appends, commits, uploads, moves: what happens to the copies.

use super::state::{Copy, Node, Put, Record, State, Topic};
use super::{Action, Release};
use crate::Rule;

impl Release {
    pub(super) fn wal_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let late_sync = !self.hold(Rule::AcknowledgedAfterSync);
        for at in 0..3_u8 {
            let node = usize::from(at);
            let copy = state.nodes[node].copies[0];
            let takes = state.streams[0].acknowledged & (1 << at) == 0 && !state.streams[0].closed;
            if takes && !state.committed && state.is_member(0, node) {
                actions.push(Action::Append(at));
            }
            if late_sync && copy == Copy::Unsynced {
                actions.extend([Action::Sync(at), Action::Restart(at)]);
            }
            for stream in 0..2 {
                let by_upload = !self.hold(Rule::ReleasedByCommit) && self.is_in_some_store(state);
                let drops = state.is_garbage(stream) || (stream == 0 && state.committed && by_upload);
                if state.nodes[node].copies[stream] != Copy::None && drops {
                    actions.push(Action::Drop { node: at, stream: stream as u8 });
                }
            }
            if state.wipes < self.scene.wipes
                && !state.nodes[node].wiped
                && !state.is_removed(node)
                && state.may_lose(node)
            {
                actions.push(Action::Wipe(at));
            }
            if self.scene.flips && !state.flipped && copy == Copy::Sound && state.may_lose(node) {
                actions.push(Action::Flip(at));
            }
        }
        if !state.committed && state.acks(0) >= self.write_quorum() {
            actions.push(Action::Commit);
        }
        actions.push(Action::Fence);
    }

    pub(super) fn wal_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Append(node) => {
                let synced = self.hold(Rule::AcknowledgedAfterSync);
                let copy = if synced { Copy::Sound } else { Copy::Unsynced };
                state.nodes[usize::from(node)].copies[0] = copy;
                state.streams[0].acknowledged |= 1 << node;
            }
            Action::Sync(node) => state.nodes[usize::from(node)].copies[0] = Copy::Sound,
            Action::Restart(node) => state.nodes[usize::from(node)].copies[0] = Copy::None,
            Action::Commit => {
                let refused = state.streams[0].closed && self.hold(Rule::ClosedStreamTakesNothing);
                if !refused && state.topic == Topic::There {
                    (state.committed, state.wal) = (true, Some(0));
                }
            }
            Action::Fence => state.streams[0].closed = true,
            Action::Drop { node, stream } => {
                state.nodes[usize::from(node)].copies[usize::from(stream)] = Copy::None;
            }
            Action::Wipe(node) => {
                state.wipes += 1;
                let node = &mut state.nodes[usize::from(node)];
                let incarnation = node.incarnation + u8::from(self.hold(Rule::WipedReplicaIsAnother));
                *node = Node { incarnation, wiped: true, copies: [Copy::None; 2] };
            }
            Action::Flip(node) => {
                state.flipped = true;
                state.nodes[usize::from(node)].copies[0] = Copy::Flipped;
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
            if object.record == Record::Free
                && !is_merged
                && let Some(stream) = state.wal
            {
                if state.has_sound(stream) {
                    actions.push(Action::Put { object: number, sound: true });
                }
                let flipped = state.copies(stream).any(|copy| copy == Copy::Flipped);
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
            state.wal.is_some() && state.stored[store].is_none()
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
            state.wal = None;
        }
    }

    pub(super) fn repair_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.scene.repair {
            let is_due = state.wal == Some(0) && !state.streams[1].opened;
            let ready = (0..3).filter(|node| Self::takes_repairs(state, *node)).count();
            if is_due && ready >= 2 {
                actions.push(Action::OpenRepair);
            }
            let bytes = state.streams[1].acknowledged != 0 || state.has_sound(0);
            for at in 0..3_u8 {
                let takes = state.streams[1].acknowledged & (1 << at) == 0 && !state.streams[1].closed;
                if takes && bytes && state.is_member(1, usize::from(at)) {
                    actions.push(Action::AppendAgain(at));
                }
            }
            if state.streams[1].opened {
                actions.push(Action::CloseRepair);
            }
            if state.acks(1) >= self.write_quorum() {
                actions.push(Action::Swap);
            }
        }
        if self.scene.drain && !state.removed {
            actions.push(Action::Drain);
            let needed = (0..2).any(|stream| {
                let it = &state.streams[stream];
                let points = state.wal == Some(stream) && self.hold(Rule::DrainedBeforeRemoved);
                let takes = !it.closed && !state.is_over(stream) && self.hold(Rule::RemovedAfterItsStreams);
                it.ensemble[0].is_some() && (points || takes)
            });
            if state.draining && !needed {
                actions.push(Action::Remove);
            }
        }
    }

    fn takes_repairs(state: &State, node: usize) -> bool {
        !(node == 0 && state.draining)
    }

    pub(super) fn repair_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::OpenRepair => {
                state.streams[1].opened = true;
                for node in (0..3).filter(|node| Self::takes_repairs(state, *node)).collect::<Vec<_>>() {
                    state.streams[1].ensemble[node] = Some(state.nodes[node].incarnation);
                }
            }
            Action::AppendAgain(node) => {
                state.nodes[usize::from(node)].copies[1] = Copy::Sound;
                state.streams[1].acknowledged |= 1 << node;
            }
            Action::Swap => {
                let stays = state.wal == Some(0) || !self.hold(Rule::SwapFromWhereItWas);
                let refused = state.streams[1].closed && self.hold(Rule::ClosedStreamTakesNothing);
                if stays && !refused && state.topic != Topic::Purged {
                    (state.wal, state.swapped) = (Some(1), true);
                }
            }
            Action::CloseRepair => state.streams[1].closed = true,
            Action::Drain => state.draining = true,
            Action::Remove => {
                state.removed = true;
                state.nodes[0].copies = [Copy::None; 2];
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
                    state.wal = None;
                }
            }
            Action::BringBack => state.topic = Topic::There,
            Action::Purge => {
                state.topic = Topic::Purged;
                state.wal = None;
                for object in std::mem::take(&mut state.stored).into_iter().flatten() {
                    state.objects[object].record = Record::Unreferenced;
                }
            }
            _ => {}
        }
    }
}
