//! The order of a lane's commits: pure, told of every event, says what to propose next.
//!
//! Owns: the chunks of one lane from the moment they have a commit number until that number is answered.
//!
//! Invariants
//! 1. Numbers are proposed in their order, and only once durable: the next one never overtakes a lower one that is not durable.
//! 2. A number keeps its chunk for good: whatever is proposed again under it is what was proposed first (DESIGN.md section 2,
//!    invariant 9). Whether the first one arrived is not known, so nothing else may ever be said under that number.
//! 3. After an answer that settles nothing (no leader, a lost connection, a gap that such a loss made) nothing is proposed until
//!    every proposal under way has its answer; then all that are open go again, the lowest first. So a lane never has two
//!    copies of one number under way, and a new leader sees them in order.
//! 4. The floor is the lowest number without an answer; it never goes back.

use std::collections::BTreeMap;

use isobar_metadata::command::FIRST_NUMBER;

/// Where a number stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its chunk is not durable yet.
    Appending,
    /// To be proposed.
    Ready,
    /// Under way to the quorum.
    Proposed,
    /// Answered [`Answer::Elsewhere`].
    Displaced,
}

#[derive(Debug)]
struct Entry<T> {
    stage: Stage,
    chunk: T,
}

/// What an answer to a proposal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The number has its result.
    Settled,
    /// It has none, or none that is known: propose it again.
    Again,
    /// It has none, and its chunk must become durable in another place first.
    Elsewhere,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Commits<T> {
    open: BTreeMap<u64, Entry<T>>,
    next_number: u64,
    under_way: usize,
    /// An answer has settled nothing, and others are still under way.
    gathering: bool,
}

impl<T> Default for Commits<T> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), next_number: FIRST_NUMBER, under_way: 0, gathering: false }
    }
}

impl<T> Commits<T> {
    /// The lowest number without an answer.
    pub(crate) fn floor(&self) -> u64 {
        self.open.first_key_value().map_or(self.next_number, |(number, _)| *number)
    }

    /// The number that the next chunk gets.
    pub(crate) fn next_number(&self) -> u64 {
        self.next_number
    }

    /// A chunk is on its way to be durable; its number.
    pub(crate) fn begin(&mut self, chunk: T) -> u64 {
        let number = self.next_number;
        self.next_number += 1;
        self.open.insert(number, Entry { stage: Stage::Appending, chunk });
        number
    }

    /// The chunk of a number that is not answered.
    pub(crate) fn chunk_mut(&mut self, number: u64) -> Option<&mut T> {
        self.open.get_mut(&number).map(|entry| &mut entry.chunk)
    }

    /// The chunk is durable: it may be proposed once those before it are.
    pub(crate) fn durable(&mut self, number: u64) {
        if let Some(entry) = self.open.get_mut(&number)
            && entry.stage == Stage::Appending
        {
            entry.stage = Stage::Ready;
        }
    }

    /// This number and all above it were refused before they became durable: their chunks, in order. Their numbers will be
    /// given to others. What lies below something durable stays, and must be appended again: no number may be left out.
    pub(crate) fn take_back(&mut self, from: u64) -> Vec<T> {
        // What is durable keeps its number, and so does all before it.
        let kept = self.open.iter().rev().find(|(_, entry)| entry.stage != Stage::Appending);
        let from = from.max(kept.map_or(FIRST_NUMBER, |(number, _)| number + 1));
        let taken = self.open.split_off(&from);
        self.next_number = self.next_number.min(from);
        taken.into_values().map(|entry| entry.chunk).collect()
    }

    /// The next number to propose now, if there is one. It is under way from here on.
    pub(crate) fn propose(&mut self) -> Option<(u64, &T)> {
        if self.gathering {
            return None;
        }
        let number = self.open.iter().find_map(|(number, entry)| match entry.stage {
            Stage::Proposed => None,
            Stage::Ready => Some(Some(*number)),
            Stage::Appending | Stage::Displaced => Some(None),
        })??;
        let entry = self.open.get_mut(&number)?;
        entry.stage = Stage::Proposed;
        self.under_way += 1;
        Some((number, &entry.chunk))
    }

    /// An answer. Gives the chunk back if it is settled; and whether the caller should now wait a little and then propose again.
    pub(crate) fn answered(&mut self, number: u64, answer: Answer) -> (Option<T>, bool) {
        self.under_way -= 1;
        let settled = match answer {
            Answer::Settled => self.open.remove(&number).map(|entry| entry.chunk),
            Answer::Again | Answer::Elsewhere => {
                self.gathering = true;
                if answer == Answer::Elsewhere
                    && let Some(entry) = self.open.get_mut(&number)
                {
                    entry.stage = Stage::Displaced;
                }
                None
            }
        };
        let all_back = self.gathering && self.under_way == 0;
        if all_back {
            self.gathering = false;
            for entry in self.open.values_mut() {
                entry.stage = match entry.stage {
                    Stage::Proposed => Stage::Ready,
                    Stage::Displaced => Stage::Appending,
                    stage => stage,
                };
            }
        }
        (settled, all_back)
    }

    /// The chunks that are not durable, in order, with their numbers.
    pub(crate) fn appending(&mut self) -> impl Iterator<Item = (u64, &mut T)> {
        let appending = self.open.iter_mut().filter(|(_, entry)| entry.stage == Stage::Appending);
        appending.map(|(number, entry)| (*number, &mut entry.chunk))
    }

    /// Numbers without an answer.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Everything that is left, in order; for a lane that ends.
    pub(crate) fn drain(&mut self) -> Vec<T> {
        std::mem::take(&mut self.open).into_values().map(|entry| entry.chunk).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use isobar_testkit::Rng;

    use super::*;

    /// A lane on a quorum that loses proposals, answers, and leaders.
    struct World {
        commits: Commits<u32>,
        /// Number by number as the state machine has them.
        applied: BTreeMap<u64, u32>,
        next: u64,
        under_way: Vec<(u64, u32)>,
        appending: Vec<u64>,
        settled: Vec<u64>,
        made: u32,
    }

    impl World {
        fn propose_all(&mut self) {
            let mut last = None;
            while let Some((number, chunk)) = self.commits.propose() {
                assert!(last.is_none_or(|last| number > last), "in order");
                assert!(!self.under_way.iter().any(|(other, _)| *other == number), "one copy under way");
                self.under_way.push((number, *chunk));
                last = Some(number);
            }
        }

        /// The state machine: repeats first, then only the next number.
        fn apply(&mut self, number: u64, chunk: u32) -> Answer {
            match self.applied.get(&number) {
                Some(before) => {
                    assert_eq!(*before, chunk, "a number has one chunk for good");
                    Answer::Settled
                }
                None if number == self.next => {
                    self.applied.insert(number, chunk);
                    self.next += 1;
                    Answer::Settled
                }
                None => {
                    assert!(number > self.next);
                    Answer::Again
                }
            }
        }

        fn answer(&mut self, place: usize, rng: &mut Rng) {
            let (number, chunk) = self.under_way.remove(place);
            let answer = match rng.below(10) {
                // It never arrived.
                0 => Answer::Again,
                // It was applied and nobody heard of it.
                1 => {
                    self.apply(number, chunk);
                    Answer::Again
                }
                // Its stream is closed; only said of what was not applied.
                2 if !self.applied.contains_key(&number) => Answer::Elsewhere,
                _ => self.apply(number, chunk),
            };
            let floor = self.commits.floor();
            let (settled, _) = self.commits.answered(number, answer);
            assert_eq!(settled.is_some(), answer == Answer::Settled);
            assert!(self.commits.floor() >= floor);
            self.settled.extend(settled.map(|_| number));
            if self.under_way.is_empty() {
                // What was displaced is appended anew, with what never became durable.
                let again: Vec<u64> = self.commits.appending().map(|(number, _)| number).collect();
                self.appending = again;
            }
        }
    }

    #[test]
    fn every_number_is_applied_once_in_order_whatever_is_lost() {
        for seed in 0..300 {
            let mut rng = Rng::new(seed);
            let mut world = World {
                commits: Commits::default(),
                applied: BTreeMap::new(),
                next: FIRST_NUMBER,
                under_way: Vec::new(),
                appending: Vec::new(),
                settled: Vec::new(),
                made: 0,
            };
            for step in 0..400 {
                match rng.below(4) {
                    0 if step < 300 => {
                        world.made += 1;
                        let number = world.commits.begin(world.made);
                        world.appending.push(number);
                    }
                    1 if !world.appending.is_empty() && rng.below(8) == 0 => {
                        // The sink refuses this one, and so all behind it.
                        let place = rng.below(world.appending.len() as u64) as usize;
                        let refused = world.commits.take_back(world.appending[place]);
                        assert!(refused.len() <= world.appending.len() - place);
                        // What is left of them lies below something durable and is appended again.
                        world.appending = world.commits.appending().map(|(number, _)| number).collect();
                    }
                    1 if !world.appending.is_empty() => {
                        // Appends end in order.
                        let number = world.appending.remove(0);
                        world.commits.durable(number);
                    }
                    2 if !world.under_way.is_empty() => {
                        let place = rng.below(world.under_way.len() as u64) as usize;
                        world.answer(place, &mut rng);
                    }
                    _ => world.propose_all(),
                }
            }
            for number in std::mem::take(&mut world.appending) {
                world.commits.durable(number);
            }
            for _ in 0..10_000 {
                world.propose_all();
                if world.under_way.is_empty() && world.appending.is_empty() {
                    break;
                }
                for number in std::mem::take(&mut world.appending) {
                    world.commits.durable(number);
                }
                if !world.under_way.is_empty() {
                    world.answer(0, &mut rng);
                }
            }
            let all: Vec<u64> = (FIRST_NUMBER..world.commits.next_number).collect();
            assert_eq!(world.applied.keys().copied().collect::<Vec<_>>(), all, "seed {seed}");
            world.settled.sort_unstable();
            assert_eq!(world.settled, all, "seed {seed}: each settled once");
            assert_eq!(world.commits.floor(), world.commits.next_number);
        }
    }

    #[test]
    fn what_is_not_durable_holds_up_what_is_behind_it() {
        let mut commits = Commits::default();
        let (first, second) = (commits.begin("a"), commits.begin("b"));
        commits.durable(second);
        assert!(commits.propose().is_none());
        commits.durable(first);
        assert_eq!(commits.propose().map(|(number, _)| number), Some(first));
        assert_eq!(commits.propose().map(|(number, _)| number), Some(second));
        assert_eq!(commits.answered(second, Answer::Again), (None, false));
        assert!(commits.propose().is_none(), "the first is still under way");
        assert_eq!(commits.answered(first, Answer::Settled), (Some("a"), true));
        assert_eq!(commits.propose().map(|(number, chunk)| (number, *chunk)), Some((second, "b")));
    }
}
