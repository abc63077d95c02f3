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
    /// In stream 0 and in the repair stream.
    pub(super) copies: [Copy; 2],
}

/// A stream.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Stream {
    pub(super) opened: bool,
    pub(super) closed: bool,
    /// By node: the incarnation that it names.
    pub(super) ensemble: [Option<u8>; 3],
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
    Wal(usize),
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
    /// Replicas that said they do not have it, as bits.
    pub(super) absent: u8,
    /// The place was not found once already.
    pub(super) again: bool,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) nodes: [Node; 3],
    pub(super) streams: [Stream; 2],
    pub(super) committed: bool,
    /// The stream in which the chunk's WAL extent lies.
    pub(super) wal: Option<usize>,
    /// By store: the object in its list of extents.
    pub(super) stored: [Option<usize>; 2],
    pub(super) objects: [Object; 2],
    pub(super) lost_store: Option<usize>,
    pub(super) wipes: u8,
    pub(super) flipped: bool,
    /// The swap was applied once.
    pub(super) swapped: bool,
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
        let node = Node { incarnation: 0, wiped: false, copies: [Copy::None; 2] };
        let repair = Stream { opened: false, closed: false, ensemble: [None; 3], acknowledged: 0 };
        let first = Stream { opened: true, closed: false, ensemble: [Some(0); 3], acknowledged: 0 };
        let object = Object { record: Record::Free, put: Put::NotSent, sound: true };
        Self {
            nodes: [node.clone(), node.clone(), node],
            streams: [first, repair],
            committed: false,
            wal: None,
            stored: [None; 2],
            objects: [object.clone(), object],
            lost_store: None,
            wipes: 0,
            flipped: false,
            swapped: false,
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

    /// Whether the node is, under the incarnation it has now, one of the stream's ensemble.
    pub(super) fn is_member(&self, stream: usize, node: usize) -> bool {
        !self.is_removed(node) && self.streams[stream].ensemble[node] == Some(self.nodes[node].incarnation)
    }

    /// Copies of a stream's chunk that can be asked for.
    pub(super) fn copies(&self, stream: usize) -> impl Iterator<Item = Copy> + '_ {
        let members = (0..3).filter(move |node| self.is_member(stream, *node));
        members.map(move |node| self.nodes[node].copies[stream]).filter(|copy| *copy != Copy::None)
    }

    pub(super) fn has_sound(&self, stream: usize) -> bool {
        self.copies(stream).any(|copy| matches!(copy, Copy::Sound | Copy::Unsynced))
    }

    pub(super) fn in_wal(&self) -> bool {
        self.wal.is_some_and(|stream| self.has_sound(stream))
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
            Place::Wal(_) => true,
            Place::Object(object) => self.objects[object].put == Put::Landed,
        }
    }

    pub(super) fn acks(&self, stream: usize) -> u32 {
        self.streams[stream].acknowledged.count_ones()
    }

    /// Where metadata says the chunk is.
    pub(super) fn place(&self) -> Option<Place> {
        let stored = || self.stored.iter().flatten().next().map(|object| Place::Object(*object));
        self.wal.map(Place::Wal).or_else(stored)
    }

    /// Whether the promise covers that the node's disk, or its copy, is lost now: no other replica of an ensemble that counts has
    /// been lost, as far as anyone can know. What was removed by an operator is not lost.
    pub(super) fn may_lose(&self, node: usize) -> bool {
        (0..2).all(|stream| {
            let it = &self.streams[stream];
            let counts = it.opened && (self.wal == Some(stream) || (!it.closed && !self.is_over(stream)));
            let others = (0..3).filter(|other| *other != node && !self.is_removed(*other));
            let lost = |other: usize| {
                let named = it.ensemble[other].is_some();
                named && (!self.is_member(stream, other) || self.nodes[other].copies[stream] == Copy::Flipped)
            };
            !counts || it.ensemble[node].is_none() || !others.into_iter().any(lost)
        })
    }

    /// Its chunk was named and is released.
    pub(super) fn is_over(&self, stream: usize) -> bool {
        let named = if stream == 0 { self.committed } else { self.swapped };
        named && self.wal != Some(stream)
    }

    /// What metadata tells a replica to drop.
    pub(super) fn is_garbage(&self, stream: usize) -> bool {
        let named = if stream == 0 { self.committed } else { self.swapped };
        self.is_over(stream) || (self.streams[stream].closed && !named)
    }
}
