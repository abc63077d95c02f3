//! A chunk's bytes from the replicas' disks to the store, and when each copy may go.
//!
//! Models: `wal/quorum/stream.rs` and `wal/index.rs` (who acknowledges, what a replica drops), `metadata/state/commits.rs` (commit,
//! closing of streams), `state/objects.rs` and `state/compaction.rs` (swaps, expiry, deletes), `store/upload.rs`, `store/delete.rs`,
//! `wal/quorum/read.rs` and `broker/fetch/read.rs` (reads, "not found"); `wal/repair.rs` and `replace_replica` (a replica in the
//! place of a lost one). One chunk, a stream on three nodes, and one node more.
//!
//! Commands come as late and as often as they like: the numbers that would stop repeats are [`crate::commit`]'s. What a store was
//! sent lands at any time, or never.
//!
//! What may be lost ([`State::may_lose`]): one replica of an ensemble before what it held has another place; one required store.
//! Leaves out: offsets and order ([`crate::commit`]), the recovery cut ([`crate::recovery`]), objects of the class `object`, several
//! chunks of a stream.
//!
//! One state space with everything would be too large, so a [`Scene`] says what happens in it.
//!
//! Properties: [`Release::properties`]. Rules: those of invariants 2, 4, 5, 6, 7 and 12, and of closed streams.

use stateright::{Model, Property};

use crate::{Rule, Rules};

mod bytes;
mod reader;
mod state;
pub use state::{Object, State};

/// What happens besides append, commit and upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// How many stores there are, all of them required; one may be lost if there are two.
    pub stores: u8,
    /// How many disks are wiped.
    pub wipes: u8,
    /// A bit flips in a replica's copy.
    pub flips: bool,
    /// Replicas are named in the place of others.
    pub repair: bool,
    /// Node 0 is drained and removed.
    pub drain: bool,
    /// The object is merged into another.
    pub compaction: bool,
    /// Somebody reads.
    pub reader: bool,
    /// The topic is deleted, perhaps brought back, perhaps purged.
    pub deletion: bool,
}

impl Scene {
    const NONE: Self = Self {
        stores: 1,
        wipes: 0,
        flips: false,
        repair: false,
        drain: false,
        compaction: false,
        reader: false,
        deletion: false,
    };
    /// From the append to the release: disks that die, bits that flip, topics that go.
    pub const WRITE: Self = Self { wipes: 1, flips: true, compaction: true, deletion: true, ..Self::NONE };
    /// Two stores, of which one is lost.
    pub const STORES: Self = Self { stores: 2, wipes: 1, flips: true, deletion: true, ..Self::NONE };
    /// Replicas that take the place of others, and one that is removed.
    pub const REPAIR: Self = Self { wipes: 2, repair: true, drain: true, ..Self::NONE };
    /// A reader, among releases, merges and deletes.
    pub const READ: Self = Self { flips: true, compaction: true, reader: true, deletion: true, ..Self::NONE };
    /// A reader, while replicas take the place of others and a disk dies.
    pub const MOVE: Self = Self { wipes: 1, repair: true, reader: true, ..Self::NONE };
}

/// The model.
#[derive(Debug, Clone)]
pub struct Release {
    /// What holds.
    pub rules: Rules,
    /// What happens.
    pub scene: Scene,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A replica has the chunk and acknowledges.
    Append(u8),
    /// What it wrote is synced; only where it acknowledges earlier.
    Sync(u8),
    /// A replica dies and starts again.
    Restart(u8),
    /// The chunk's commit arrives, and its producer is told.
    Commit,
    /// The session is fenced, and its stream closed.
    Fence,
    /// A replica drops its copy.
    Drop(u8),
    /// A disk is lost for good; its node comes back with an empty one.
    Wipe(u8),
    /// A bit flips in a copy.
    Flip(u8),
    /// An uploader has read the chunk, and sends it to a store.
    Put {
        /// As which object.
        object: u8,
        /// Whether what it read is what was written.
        sound: bool,
    },
    /// The broker that was to send it dies; only where it counts as sent before it is.
    LoseCache(u8),
    /// It is in the store.
    Land(u8),
    /// The object's commit arrives.
    CommitObject(u8),
    /// The object's deadline passes.
    Expire(u8),
    /// The deleter deletes it.
    Delete(u8),
    /// Object 1 is made of object 0, and sent.
    Merge,
    /// A store is lost for good.
    LoseStore(u8),
    /// A replica that the ensemble does not name has copied all that is live.
    Fill(u8),
    /// It is named in the place of another.
    Replace {
        /// Who is named no more: it is lost, or seems so.
        from: u8,
        /// Who has copied.
        to: u8,
    },
    /// Node 0 is to be removed.
    Drain,
    /// It is removed, with its disk.
    Remove,
    /// The topic is deleted.
    DeleteTopic,
    /// It is brought back.
    BringBack,
    /// It is too late to bring it back.
    Purge,
    /// A reader looks where the chunk is.
    Look,
    /// It asks a replica.
    AskReplica(u8),
    /// It asks the store.
    AskStore,
}

impl Release {
    pub(crate) fn hold(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    fn stores(&self) -> std::ops::Range<usize> {
        0..usize::from(self.scene.stores)
    }

    /// Objects: one to each store, or one and what it is merged into.
    pub(crate) fn objects(&self) -> std::ops::Range<usize> {
        0..usize::from(self.scene.stores.max(1 + u8::from(self.scene.compaction)))
    }

    /// Which store an object is for.
    pub(crate) fn store_of(&self, object: usize) -> usize {
        if self.scene.stores == 2 { object } else { 0 }
    }
}

impl Model for Release {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::new()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.wal_actions(state, actions);
        self.object_actions(state, actions);
        self.repair_actions(state, actions);
        if self.scene.deletion {
            self.topic_actions(state, actions);
        }
        if self.scene.reader {
            self.reader_actions(state, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.wal_step(&mut state, &action);
        self.object_step(&mut state, &action);
        self.repair_step(&mut state, &action);
        self.topic_step(&mut state, &action);
        self.reader_step(&mut state, &action);
        // Commands without an effect are no steps.
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("what was acknowledged is somewhere", |model: &Self, state: &State| {
                !state.is_acknowledged()
                    || state.is_kept()
                    || model.stores().any(|store| state.in_store(store))
            }),
            Property::always("what metadata says is in the WAL is there", |_, state: &State| {
                !state.in_wal || state.is_kept() || !state.is_acknowledged()
            }),
            Property::always("an object is there while somebody looks at it", |_, state: &State| {
                state.reader.is_none_or(|reader| state.is_there(reader.place))
            }),
            Property::always("a read is never answered with other bytes", |_, state: &State| {
                !state.read_wrong
            }),
            Property::always("a read is never answered as empty or lost", |_, state: &State| {
                !state.read_nothing
            }),
            Property::sometimes("the WAL has dropped what the store has", |_, state: &State| {
                state.is_acknowledged() && !state.in_wal && state.copies().count() == 0
            }),
            Property::sometimes(
                "a closed stream's chunk is dropped, and its commit comes late",
                |_, state: &State| {
                    state.stream.closed
                        && !state.committed
                        && state.acks() >= 2
                        && state.copies().count() == 0
                },
            ),
            Property::sometimes("a PUT lands after its object was deleted", |_, state: &State| {
                state.objects.iter().any(Object::landed_late)
            }),
        ];
        if self.scene.repair && self.scene.wipes > 1 {
            properties.push(Property::sometimes(
                "one is replaced, and both that had acknowledged lose their disks",
                |_, state: &State| {
                    let lost =
                        |node: usize| state.nodes[node].wiped && state.stream.acknowledged & (1 << node) != 0;
                    state.replaced && state.is_kept() && (0..3).filter(|node| lost(*node)).count() == 2
                },
            ));
        }
        if self.scene.drain {
            properties.push(Property::sometimes(
                "a replica is removed after another took its place",
                |_, state: &State| state.removed && state.is_kept(),
            ));
        }
        if self.scene.reader {
            properties.push(Property::sometimes(
                "a reader's place is gone, and it finds the next",
                |_, state: &State| state.reader_moved,
            ));
        }
        if self.scene.stores > 1 {
            properties.push(Property::sometimes("a store is lost after the release", |_, state: &State| {
                !state.in_wal && state.is_acknowledged() && state.lost_store.is_some()
            }));
        }
        properties
    }
}
