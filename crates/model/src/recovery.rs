//! A cluster from its bucket alone, while the one it came from may still be running.
//!
//! Models: `metadata/recover.rs` and `state/follow.rs` (the cut, what is taken from behind it), `metadata/image.rs`
//! (`recovery_cut`), `raft/archive/task.rs`, `store/delete.rs` and `store/claim.rs` (what the old leader archives and deletes, and
//! when it looks at the claim), `isobar/recover.rs` (claim, then read). Two partitions; each entry of the old log is a commit, a
//! swap to an object, a merge, a Wal→Wal swap (which the code can do without so far), or a log start that moves. The old cluster is never told that it is dead: it goes on
//! until it looks, and what it had decided before it looked may still happen. The new one commits and uploads one batch.
//!
//! Leaves out: snapshots of the archive, damaged pieces, topics that are deleted, several recoveries, groups (which are cut
//! with the partitions: they are one more partition here).
//!
//! What is lost by design: what was acknowledged after the cut.
//!
//! Properties: [`Recovery::properties`]. Rules: those of DESIGN.md section 5 that invariants 6 and 7 rest on.

use stateright::{Model, Property};

use crate::{Rule, Rules};

/// Batches that the old cluster commits.
const COMMITS: usize = 2;
/// What the new one commits.
const NEW: u8 = 9;
/// Objects of the old cluster: an upload of each batch, and one merge.
const OBJECTS: usize = COMMITS + 1;
/// The first object id of the new incarnation.
const NEW_OBJECT: usize = OBJECTS;

/// The model.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// What holds.
    pub rules: Rules,
}

/// An entry of the old metadata log. Batches are named by the order of their commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Entry {
    Commit {
        partition: u8,
    },
    /// The batch is now in this object.
    Stored {
        batch: usize,
        object: usize,
    },
    /// It was, and is now in this one.
    Merged {
        batch: usize,
        from: usize,
        object: usize,
    },
    /// It is in another stream.
    Moved {
        batch: usize,
    },
    /// The log start has passed it.
    Trimmed {
        batch: usize,
    },
}

/// What the recovered cluster has of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Batch {
    /// It was never committed.
    Absent,
    /// It lies below the log start.
    Trimmed,
    /// It is in this object, or, which is a fault, in none.
    In(Option<usize>),
}

/// The recovered cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Recovered {
    batches: [Batch; COMMITS],
    /// Objects that its state knows.
    objects: usize,
    /// Partition, offset and object of what it commits itself.
    new: Option<(u8, usize, Option<usize>)>,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    log: Vec<Entry>,
    /// Entries in the archive.
    archived: usize,
    /// Entries up to the cut that metadata knows to be archived.
    archived_cut: usize,
    /// An object that the deleter decided to delete, after its look at the claim.
    deleting: Option<usize>,
    /// The old cluster has seen the claim.
    stopped: bool,
    /// By object: the batch in it.
    bucket: [Option<u8>; OBJECTS + 1],
    claimed: bool,
    /// Entries that the recovery has read.
    read: Option<usize>,
    recovered: Option<Recovered>,
}

/// What may happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// The old cluster commits a batch and acknowledges it.
    Commit {
        /// Where.
        partition: u8,
    },
    /// It uploads a batch, and commits the object.
    Upload(usize),
    /// It merges a batch's object into another.
    Merge(usize),
    /// It moves a batch to another stream.
    Move(usize),
    /// It moves a log start past a batch.
    Trim(usize),
    /// It archives its log.
    Archive,
    /// It learns that its archive has got on.
    Advance,
    /// Its deleter decides on an object and looks at the claim.
    Decide(usize),
    /// The delete arrives.
    Delete,
    /// It looks at the claim, and stops.
    Stop,
    /// A recovery claims the next incarnation.
    Claim,
    /// It reads the archive.
    Read,
    /// The recovered cluster starts.
    Start,
    /// It commits a batch.
    CommitAnew {
        /// Where.
        partition: u8,
    },
    /// It uploads it.
    UploadAnew,
}

impl State {
    /// The entry by which each batch was committed.
    fn commits(&self) -> impl Iterator<Item = (usize, u8)> + '_ {
        self.log.iter().enumerate().filter_map(|(index, entry)| match entry {
            Entry::Commit { partition } => Some((index, *partition)),
            _ => None,
        })
    }

    /// The object that holds the batch after so many entries; swaps alone, or merges too.
    fn object_of(&self, batch: usize, entries: usize, merges: bool) -> Option<usize> {
        self.log[..entries].iter().rev().find_map(|entry| match *entry {
            Entry::Stored { batch: stored, object } if stored == batch => Some(object),
            Entry::Merged { batch: merged, object, .. } if merged == batch && merges => Some(object),
            _ => None,
        })
    }

    fn next_object(&self) -> usize {
        self.log.iter().filter(|entry| matches!(entry, Entry::Stored { .. } | Entry::Merged { .. })).count()
    }

    /// Whether the log start has passed the batch after so many entries.
    fn is_trimmed(&self, batch: usize, entries: usize) -> bool {
        self.log[..entries].contains(&Entry::Trimmed { batch })
    }

    fn moved_at(&self, batch: usize) -> Option<usize> {
        self.log.iter().position(|entry| *entry == Entry::Moved { batch })
    }
}

impl Recovery {
    fn hold(&self, rule: Rule) -> bool {
        self.rules.hold(rule)
    }

    /// How many of the first entries lie before the oldest commit that no object has by then (`Image::recovery_cut`).
    fn cut(&self, state: &State, entries: usize) -> usize {
        let missing = state.commits().enumerate().filter(|(batch, (index, _))| {
            let lacks = state.object_of(*batch, entries, true).is_none();
            *index < entries && lacks && !state.is_trimmed(*batch, entries)
        });
        let counts_as = |(batch, (index, _)): (usize, (usize, u8))| {
            let moved = state.moved_at(batch).filter(|moved| *moved < entries);
            moved.filter(|_| !self.hold(Rule::FirstCommitCounts)).unwrap_or(index)
        };
        missing.map(counts_as).min().unwrap_or(entries)
    }

    fn old_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let commits = state.commits().count();
        if commits < COMMITS {
            actions.extend([0, 1].map(|partition| Action::Commit { partition }));
        }
        let mut merged = state.log.iter().any(|entry| matches!(entry, Entry::Merged { .. }));
        for batch in 0..commits {
            let entries = state.log.len();
            // One batch at most, and no gap: the first of its partition.
            let trims = (0..commits).all(|batch| !state.is_trimmed(batch, entries));
            if trims && batch == 0 {
                actions.push(Action::Trim(batch));
            }
            match state.object_of(batch, entries, true) {
                _ if state.is_trimmed(batch, entries) => {}
                None => {
                    actions.push(Action::Upload(batch));
                    if (0..commits).all(|batch| state.moved_at(batch).is_none()) {
                        actions.push(Action::Move(batch));
                    }
                }
                Some(_) if !merged => {
                    actions.push(Action::Merge(batch));
                    merged = true;
                }
                Some(_) => {}
            }
        }
        if state.archived < state.log.len() {
            actions.push(Action::Archive);
        }
        if state.archived_cut < self.cut(state, state.archived) {
            actions.push(Action::Advance);
        }
        for (index, entry) in state.log.iter().enumerate() {
            // What the entry left without a reference.
            let from = match *entry {
                Entry::Merged { from, .. } => Some(from),
                Entry::Trimmed { batch } => state.object_of(batch, index, true),
                _ => None,
            };
            let Some(from) = from else { continue };
            let passed = index < state.archived_cut || !self.hold(Rule::CutBeforeDelete);
            let looked = !state.claimed || !self.hold(Rule::ClaimBeforeDelete);
            if passed && looked && state.deleting.is_none() && state.bucket[from].is_some() {
                actions.push(Action::Decide(from));
            }
        }
    }

    /// What `isobar recover` makes of what it has read.
    fn recover(&self, state: &State, read: usize) -> Recovered {
        let cut = self.cut(state, read);
        let end = if self.hold(Rule::CutBeforeWhatIsMissing) { cut } else { read };
        let follows = if self.hold(Rule::SwapsAfterCutAreFollowed) { read } else { cut };
        let starts = if self.hold(Rule::LogStartsAfterCutAreFollowed) { read } else { end };
        let mut batches = [Batch::Absent; COMMITS];
        let mut torn = [false; 2];
        for (batch, (index, partition)) in state.commits().enumerate() {
            // Merges behind the cut are not followed.
            let object =
                state.object_of(batch, end, true).or_else(|| state.object_of(batch, follows.max(end), false));
            let is_there = if self.hold(Rule::OneCut) {
                index < end
            } else {
                // As far as each partition's own bytes reach.
                torn[usize::from(partition)] |= object.is_none() && !state.is_trimmed(batch, read);
                index < read && !torn[usize::from(partition)]
            };
            batches[batch] = match is_there {
                true if state.is_trimmed(batch, starts) => Batch::Trimmed,
                true => Batch::In(object),
                false => Batch::Absent,
            };
        }
        let objects = state.log[..read].iter();
        let objects =
            objects.filter(|entry| matches!(entry, Entry::Stored { .. } | Entry::Merged { .. })).count();
        Recovered { batches, objects, new: None }
    }

    fn old_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Commit { partition } => state.log.push(Entry::Commit { partition }),
            Action::Upload(batch) => {
                let object = state.next_object();
                state.bucket[object] = Some(batch as u8);
                state.log.push(Entry::Stored { batch, object });
            }
            Action::Merge(batch) => {
                let object = state.next_object();
                let Some(from) = state.object_of(batch, state.log.len(), true) else { return };
                state.bucket[object] = Some(batch as u8);
                state.log.push(Entry::Merged { batch, from, object });
            }
            Action::Move(batch) => state.log.push(Entry::Moved { batch }),
            Action::Trim(batch) => state.log.push(Entry::Trimmed { batch }),
            Action::Archive => state.archived = state.log.len(),
            Action::Advance => state.archived_cut = self.cut(state, state.archived),
            Action::Decide(object) => state.deleting = Some(object),
            Action::Delete => {
                if let Some(object) = state.deleting.take() {
                    state.bucket[object] = None;
                }
            }
            _ => {}
        }
    }

    fn new_step(&self, state: &mut State, action: &Action) {
        match *action {
            Action::Stop => state.stopped = true,
            Action::Claim => state.claimed = true,
            Action::Read => state.read = Some(state.archived),
            Action::Start => state.recovered = state.read.map(|read| self.recover(state, read)),
            Action::CommitAnew { partition } => {
                let of_it = |(batch, _): &(usize, (usize, u8))| {
                    state
                        .recovered
                        .as_ref()
                        .is_some_and(|recovered| recovered.batches[*batch] != Batch::Absent)
                };
                let in_partition = state.commits().enumerate().filter(of_it);
                let offset = in_partition.filter(|(_, (_, of))| *of == partition).count();
                if let Some(recovered) = &mut state.recovered {
                    recovered.new = Some((partition, offset, None));
                }
            }
            Action::UploadAnew => {
                let reuses = !self.hold(Rule::IdsAreNotReused);
                let Some(recovered) = &mut state.recovered else { return };
                let object = if reuses { recovered.objects } else { NEW_OBJECT };
                if let Some((_, _, at)) = &mut recovered.new {
                    *at = Some(object);
                }
                state.bucket[object] = Some(NEW);
            }
            _ => {}
        }
    }

    fn has_its_bytes(state: &State) -> bool {
        let Some(recovered) = &state.recovered else { return true };
        let old = recovered.batches.iter().zip(0_u8..).all(|(at, batch)| match at {
            Batch::In(object) => object.is_some_and(|object| state.bucket[object] == Some(batch)),
            Batch::Absent | Batch::Trimmed => true,
        });
        let new = recovered
            .new
            .is_none_or(|(_, _, object)| object.is_none_or(|object| state.bucket[object] == Some(NEW)));
        old && new
    }

    /// Whether what the new cluster wrote has the offset of something else, under one leader epoch.
    fn is_ambiguous(&self, state: &State) -> bool {
        let Some((partition, offset, _)) = state.recovered.as_ref().and_then(|recovered| recovered.new)
        else {
            return false;
        };
        let there = state.commits().filter(|(_, of)| *of == partition).count();
        !self.hold(Rule::EpochsRise) && offset < there
    }

    fn is_behind_cut(&self, state: &State) -> bool {
        let read = state.read.unwrap_or(0);
        state.recovered.is_some() && self.cut(state, read) < read
    }
}

impl Model for Recovery {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            log: Vec::new(),
            archived: 0,
            archived_cut: 0,
            deleting: None,
            stopped: false,
            bucket: [None; OBJECTS + 1],
            claimed: false,
            read: None,
            recovered: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.stopped {
            self.old_actions(state, actions);
            if state.claimed {
                actions.push(Action::Stop);
            }
        }
        // What was decided may be on its way when its process has long stopped.
        if state.deleting.is_some() {
            actions.push(Action::Delete);
        }
        if !state.claimed {
            actions.push(Action::Claim);
        }
        if state.read.is_none() && (state.claimed || !self.hold(Rule::ArchiveReadAfterClaim)) {
            actions.push(Action::Read);
        }
        match &state.recovered {
            None if state.claimed && state.read.is_some() => actions.push(Action::Start),
            None => {}
            Some(recovered) => match recovered.new {
                None => actions.extend([0, 1].map(|partition| Action::CommitAnew { partition })),
                Some((_, _, None)) => actions.push(Action::UploadAnew),
                Some(_) => {}
            },
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.old_step(&mut state, &action);
        self.new_step(&mut state, &action);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what is recovered, and what comes after, has its bytes", |_, state: &State| {
                Self::has_its_bytes(state)
            }),
            Property::always("what is recovered is all there was up to one point", |_, state: &State| {
                let there = |recovered: &Recovered| recovered.batches.map(|batch| batch != Batch::Absent);
                state.recovered.as_ref().is_none_or(|recovered| there(recovered).is_sorted_by(|a, b| a >= b))
            }),
            Property::always("what was in the store and archived comes back", |_, state: &State| {
                let Some((recovered, read)) = state.recovered.as_ref().zip(state.read) else { return true };
                let stored = |batch: usize| {
                    state.object_of(batch, read, true).is_some() || state.is_trimmed(batch, read)
                };
                let safe = (0..COMMITS).take_while(|batch| stored(*batch)).count();
                recovered.batches[..safe].iter().all(|batch| *batch != Batch::Absent)
            }),
            Property::always(
                "no offset has two contents under one leader epoch",
                |model: &Self, state: &State| !model.is_ambiguous(state),
            ),
            Property::sometimes(
                "the cut is before the archive's end, and is recovered to",
                |model: &Self, state: &State| {
                    let kept =
                        |recovered: &Recovered| recovered.batches == [Batch::In(Some(0)), Batch::Absent];
                    model.is_behind_cut(state) && state.recovered.as_ref().is_some_and(kept)
                },
            ),
            Property::sometimes(
                "a batch is found by a swap behind the cut",
                |model: &Self, state: &State| {
                    let one =
                        |recovered: &Recovered| matches!(recovered.batches, [Batch::In(_), Batch::Absent]);
                    let last = state.read.and_then(|read| state.log[..read].last().copied());
                    model.is_behind_cut(state)
                        && state.recovered.as_ref().is_some_and(one)
                        && matches!(last, Some(Entry::Stored { batch: 0, .. }))
                },
            ),
            Property::sometimes(
                "a merged object is deleted, and what it became is recovered",
                |_, state: &State| {
                    let merged = |recovered: &Recovered| recovered.batches[0] == Batch::In(Some(1));
                    state.bucket[0].is_none() && state.recovered.as_ref().is_some_and(merged)
                },
            ),
            Property::sometimes("a delete arrives after the new cluster started", |_, state: &State| {
                state.deleting.is_some()
                    && state.recovered.as_ref().is_some_and(|recovered| recovered.new.is_some())
            }),
            Property::sometimes("the old cluster goes on beside the new one", |_, state: &State| {
                let new = state.recovered.as_ref().and_then(|recovered| recovered.new);
                new.is_some() && !state.stopped && state.read.is_some_and(|read| read + 2 < state.archived)
            }),
        ]
    }
}
