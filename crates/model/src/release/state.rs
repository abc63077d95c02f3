//! Who holds which bytes, and what metadata says of them.

/// A replica's copy of the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Copy {
    /// None.
    None,
    /// Written, not synced.
    Unsynced,
    /// As it was written.
    Sound,
    /// Its CRC does not match.
    Flipped,
}

/// A WAL replica's node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    /// Of its directory.
    pub(super) incarnation: u8,
    pub(super) wiped: bool,
    pub(super) copy: Copy,
    /// It has all that is live of the stream, as far as it has looked, and says so.
    pub(super) whole: bool,
}

/// How many nodes there are. The last one is in no ensemble at first.
pub(super) const NODES: usize = 4;

/// By node: the incarnation that is named.
pub(super) type Ensemble = [Option<u8>; NODES];

/// The stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub(super) closed: bool,
    pub(super) ensemble: Ensemble,
    /// Who has acknowledged, as bits.
    pub(super) acknowledged: u8,
}

/// What metadata says of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Record {
    Free,
    Prepared,
    Committed,
    Unreferenced,
    Deleted,
}

/// Where its PUT stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Put {
    NotSent,
    UnderWay,
    Landed,
    Deleted,
}

/// An object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Object {
    pub(super) record: Record,
    pub(super) put: Put,
    /// Its bytes are what was written.
    pub(super) sound: bool,
}

impl Object {
    pub(super) fn landed_late(&self) -> bool {
        self.record == Record::Deleted && self.put == Put::Landed
    }
}

/// A location.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Wal,
    Object(usize),
}

/// A topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Topic {
    There,
    Deleted,
    Purged,
}

/// Somebody who reads the chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Reader {
    pub(super) place: Place,
    /// Of the stream, as metadata said then.
    pub(super) ensemble: Ensemble,
    /// Replicas that said they do not have it, as bits.
    pub(super) absent: u8,
    /// The place was not found once already.
    pub(super) again: bool,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) nodes: [Node; NODES],
    pub(super) stream: Stream,
    pub(super) committed: bool,
    /// An extent points at the chunk in the WAL.
    pub(super) in_wal: bool,
    /// By store: the object in its list of extents.
    pub(super) stored: [Option<usize>; 2],
    pub(super) objects: [Object; 2],
    pub(super) lost_store: Option<usize>,
    pub(super) wipes: u8,
    pub(super) flipped: bool,
    /// A replica was named in the place of another.
    pub(super) replaced: bool,
    pub(super) draining: bool,
    pub(super) removed: bool,
    pub(super) topic: Topic,
    pub(super) reader: Option<Reader>,
    pub(super) reader_moved: bool,
    pub(super) read_wrong: bool,
    pub(super) read_nothing: bool,
}

impl State {
    pub(super) fn new() -> Self {
        let node = Node { incarnation: 0, wiped: false, copy: Copy::None, whole: false };
        let ensemble = [Some(0), Some(0), Some(0), None];
        let object = Object { record: Record::Free, put: Put::NotSent, sound: true };
        Self {
            nodes: [node.clone(), node.clone(), node.clone(), node],
            stream: Stream { closed: false, ensemble, acknowledged: 0 },
            committed: false,
            in_wal: false,
            stored: [None; 2],
            objects: [object.clone(), object],
            lost_store: None,
            wipes: 0,
            flipped: false,
            replaced: false,
            draining: false,
            removed: false,
            topic: Topic::There,
            reader: None,
            reader_moved: false,
            read_wrong: false,
            read_nothing: false,
        }
    }

    /// Its producer was told, and its topic is there or can be brought back.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.committed && self.topic != Topic::Purged
    }

    pub(super) fn is_removed(&self, node: usize) -> bool {
        self.removed && node == 0
    }

    /// Whether the node is, under the incarnation it has now, one of the ensemble.
    pub(super) fn is_member(&self, node: usize) -> bool {
        self.is_in(&self.stream.ensemble, node)
    }

    pub(super) fn is_in(&self, ensemble: &Ensemble, node: usize) -> bool {
        !self.is_removed(node) && ensemble[node] == Some(self.nodes[node].incarnation)
    }

    /// Copies of the chunk that can be asked for.
    pub(super) fn copies(&self) -> impl Iterator<Item = Copy> + '_ {
        let members = (0..NODES).filter(|node| self.is_member(*node));
        members.map(|node| self.nodes[node].copy).filter(|copy| *copy != Copy::None)
    }

    pub(super) fn has_sound(&self) -> bool {
        self.copies().any(|copy| matches!(copy, Copy::Sound | Copy::Unsynced))
    }

    /// Where metadata says that the WAL has it, it has it.
    pub(super) fn is_kept(&self) -> bool {
        self.in_wal && self.has_sound()
    }

    /// In the store, or on its way there: what is never lost must not be lost with who sends it either.
    pub(super) fn in_store(&self, store: usize) -> bool {
        self.lost_store != Some(store)
            && self.stored[store].is_some_and(|object| {
                let object = &self.objects[object];
                matches!(object.put, Put::Landed | Put::UnderWay) && object.sound
            })
    }

    pub(super) fn is_there(&self, place: Place) -> bool {
        match place {
            Place::Wal => true,
            Place::Object(object) => self.objects[object].put == Put::Landed,
        }
    }

    pub(super) fn acks(&self) -> u32 {
        self.stream.acknowledged.count_ones()
    }

    /// Where metadata says the chunk is.
    pub(super) fn place(&self) -> Option<Place> {
        let stored = || self.stored.iter().flatten().next().map(|object| Place::Object(*object));
        self.in_wal.then_some(Place::Wal).or_else(stored)
    }

    /// Whether the promise covers that the node's disk, or its copy, is lost now: no other replica of the ensemble has been lost,
    /// as far as anyone can know. What was removed by an operator is not lost.
    pub(super) fn may_lose(&self, node: usize) -> bool {
        let counts = self.in_wal || (!self.stream.closed && !self.is_over());
        let named = |node: usize| self.stream.ensemble[node].is_some();
        let lost = |other: usize| {
            let gone = !self.is_member(other) || self.nodes[other].copy == Copy::Flipped;
            other != node && !self.is_removed(other) && named(other) && gone
        };
        !counts || !named(node) || !(0..NODES).any(lost)
    }

    /// Its chunk was named and is released.
    pub(super) fn is_over(&self) -> bool {
        self.committed && !self.in_wal
    }

    /// What metadata tells a replica to drop.
    pub(super) fn is_garbage(&self) -> bool {
        self.is_over() || (self.stream.closed && !self.committed)
    }
}
