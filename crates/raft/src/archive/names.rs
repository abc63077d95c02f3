//! Names in the archive, and what a listing of them says. Pure.
//!
//! ```text
//! archive/<incarnation, 3 digits>/log/<first index, 20 digits>-<last index, 20 digits>
//! archive/<incarnation, 3 digits>/snapshot/<index, 20 digits>-<part, 5 digits>[-last]
//! ```
//! A snapshot counts once all its parts are there, which the names alone say. Objects of the log may overlap: a PUT of a
//! life that died may land late, with the same entries in it.

use std::collections::{BTreeMap, BTreeSet};

/// Entries `first..=last` of one object of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogPiece {
    /// Index of its first entry.
    pub first: u64,
    /// Index of its last entry.
    pub last: u64,
}

pub(crate) fn log_dir(incarnation: u32) -> String {
    format!("archive/{incarnation:03}/log")
}

pub(crate) fn snapshot_dir(incarnation: u32) -> String {
    format!("archive/{incarnation:03}/snapshot")
}

pub(crate) fn log_name(incarnation: u32, piece: LogPiece) -> String {
    format!("{}/{:020}-{:020}", log_dir(incarnation), piece.first, piece.last)
}

pub(crate) fn part_name(incarnation: u32, index: u64, part: u32, last: bool) -> String {
    let end = if last { "-last" } else { "" };
    format!("{}/{index:020}-{part:05}{end}", snapshot_dir(incarnation))
}

fn parse_log(name: &str) -> Option<LogPiece> {
    let (first, last) = name.rsplit_once('/')?.1.split_once('-')?;
    let piece = LogPiece { first: first.parse().ok()?, last: last.parse().ok()? };
    (piece.first <= piece.last).then_some(piece)
}

fn parse_part(name: &str) -> Option<(u64, u32, bool)> {
    let mut fields = name.rsplit_once('/')?.1.split('-');
    let (index, part) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    match (fields.next(), fields.next()) {
        (None, _) => Some((index, part, false)),
        (Some("last"), None) => Some((index, part, true)),
        _ => None,
    }
}

/// The parts of one snapshot that are there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Parts {
    seen: BTreeSet<u32>,
    last: Option<u32>,
}

impl Parts {
    fn count(&self) -> Option<u32> {
        let count = self.last?.checked_add(1)?;
        (self.seen.iter().copied().eq(0..count)).then_some(count)
    }
}

/// A run of history without a gap: a snapshot, and every entry after it up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// The lowest snapshot from which every entry up to `end` is there; 0: none at all.
    pub start: u64,
    /// The newest snapshot in it.
    pub newest: u64,
    /// The last entry.
    pub end: u64,
}

/// What lies in one incarnation's archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    snapshots: BTreeMap<u64, Parts>,
    log: BTreeSet<LogPiece>,
}

impl Listing {
    /// From the names in the two directories; names of another form are not ours and are left alone.
    pub(crate) fn new(log: &[String], snapshots: &[String]) -> Self {
        let mut listing = Self { log: log.iter().filter_map(|n| parse_log(n)).collect(), ..Self::default() };
        for (index, part, last) in snapshots.iter().filter_map(|name| parse_part(name)) {
            listing.add_part(index, part, last);
        }
        listing
    }

    pub(crate) fn add_log(&mut self, piece: LogPiece) {
        self.log.insert(piece);
    }

    pub(crate) fn add_part(&mut self, index: u64, part: u32, last: bool) {
        let parts = self.snapshots.entry(index).or_default();
        parts.seen.insert(part);
        if last {
            parts.last = Some(part);
        }
    }

    /// Nothing is there.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.log.is_empty()
    }

    /// Whole snapshots, ascending.
    pub fn snapshots(&self) -> Vec<u64> {
        self.snapshots.iter().filter(|(_, parts)| parts.count().is_some()).map(|(index, _)| *index).collect()
    }

    /// How many parts a whole snapshot has.
    pub fn parts(&self, index: u64) -> Option<u32> {
        self.snapshots.get(&index)?.count()
    }

    /// Names of what is there of a snapshot.
    pub(crate) fn part_names(&self, incarnation: u32, index: u64) -> Vec<String> {
        let Some(parts) = self.snapshots.get(&index) else { return Vec::new() };
        let name = |part: &u32| part_name(incarnation, index, *part, parts.last == Some(*part));
        parts.seen.iter().map(name).collect()
    }

    /// Every index with some part of a snapshot.
    pub(crate) fn snapshot_indexes(&self) -> Vec<u64> {
        self.snapshots.keys().copied().collect()
    }

    pub(crate) fn forget_snapshot(&mut self, index: u64) {
        self.snapshots.remove(&index);
    }

    pub(crate) fn forget_log(&mut self, piece: LogPiece) {
        self.log.remove(&piece);
    }

    /// Objects of the log, ascending.
    pub fn log(&self) -> impl Iterator<Item = LogPiece> + '_ {
        self.log.iter().copied()
    }

    /// The last entry that follows `index` without a gap.
    fn reach(&self, index: u64) -> u64 {
        let mut end = index;
        for piece in &self.log {
            if piece.first > end + 1 {
                break;
            }
            end = end.max(piece.last);
        }
        end
    }

    /// Every run of history, the furthest first. They differ where entries are missing.
    pub fn chains(&self) -> Vec<Chain> {
        let mut chains: Vec<Chain> = Vec::new();
        for snapshot in self.snapshots() {
            let end = self.reach(snapshot);
            match chains.last_mut() {
                Some(chain) if chain.end == end => chain.newest = snapshot,
                _ => chains.push(Chain { start: snapshot, newest: snapshot, end }),
            }
        }
        chains.reverse();
        chains
    }

    /// The objects of the log that hold `after + 1..=end`, as few as possible, in order.
    pub fn pieces(&self, after: u64, end: u64) -> Vec<LogPiece> {
        let mut pieces = Vec::new();
        let (mut have, mut best) = (after, None::<LogPiece>);
        for piece in &self.log {
            if have >= end {
                break;
            }
            if piece.first > have + 1 {
                let Some(found) = best.take().filter(|found| found.last > have) else { break };
                pieces.push(found);
                have = found.last;
            }
            if have < end && piece.first <= have + 1 && best.is_none_or(|best| piece.last > best.last) {
                best = Some(*piece);
            }
        }
        pieces.extend(best.filter(|found| found.last > have && have < end));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(log: &[(u64, u64)], snapshots: &[u64]) -> Listing {
        let log: Vec<_> =
            log.iter().map(|(first, last)| log_name(3, LogPiece { first: *first, last: *last })).collect();
        let snapshots: Vec<_> = snapshots
            .iter()
            .flat_map(|index| [part_name(3, *index, 0, false), part_name(3, *index, 1, true)])
            .collect();
        Listing::new(&log, &snapshots)
    }

    #[test]
    fn names_are_what_they_were() {
        assert_eq!(
            log_name(3, LogPiece { first: 1, last: 20 }),
            "archive/003/log/00000000000000000001-00000000000000000020"
        );
        assert_eq!(part_name(0, 7, 2, false), "archive/000/snapshot/00000000000000000007-00002");
        assert_eq!(part_name(0, 7, 3, true), "archive/000/snapshot/00000000000000000007-00003-last");
    }

    #[test]
    fn a_snapshot_counts_once_every_part_is_there() {
        let mut listing = Listing::default();
        listing.add_part(5, 0, false);
        listing.add_part(5, 2, true);
        assert_eq!(listing.snapshots(), Vec::<u64>::new());
        listing.add_part(5, 1, false);
        assert_eq!(listing.snapshots(), vec![5]);
        assert_eq!(listing.part_names(0, 5).len(), 3);
        assert!(listing.part_names(0, 5)[2].ends_with("-last"));
    }

    #[test]
    fn chains_end_at_gaps_and_pieces_overlap() {
        let whole = listing(&[(6, 10), (6, 8), (11, 20), (9, 12)], &[5, 12]);
        assert_eq!(whole.chains(), vec![Chain { start: 5, newest: 12, end: 20 }]);
        let pieces = |l: &Listing, a, e| l.pieces(a, e).iter().map(|p| (p.first, p.last)).collect::<Vec<_>>();
        assert_eq!(pieces(&whole, 5, 20), vec![(6, 10), (11, 20)]);
        assert_eq!(pieces(&whole, 12, 20), vec![(11, 20)]);
        assert_eq!(pieces(&whole, 20, 20), vec![]);

        let torn = listing(&[(6, 10), (31, 40)], &[5, 30]);
        assert_eq!(
            torn.chains(),
            vec![Chain { start: 30, newest: 30, end: 40 }, Chain { start: 5, newest: 5, end: 10 }]
        );
        assert_eq!(listing(&[(6, 10)], &[]).chains(), vec![]);
        assert_eq!(listing(&[], &[9]).chains(), vec![Chain { start: 9, newest: 9, end: 9 }]);
    }
}
