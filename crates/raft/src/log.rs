//! The Raft log in memory: where each entry lies in the journal, the newest entries themselves, and the small state.
//! Pure: the shell around it (`log_store`) writes and reads the frames.
//!
//! Invariants
//! 1. Entries are contiguous from `purged + 1` (or the first one ever) to `last`.
//! 2. The cache holds a suffix of them. An entry leaves it only after its frame is synced.
//! 3. Spans are ascending and do not overlap; the unsynced ones are the newest, for the journal answers in order.
//! 4. A segment is given back only together with all before it, when no entry ever written to it lies above what a *synced* frame says is purged.
//!    Hence whichever of them survive a crash in the middle hold nothing but what the newest frame declares purged.
//! 5. Frames are numbered without gaps. A frame whose number does not follow was queued behind a failed one and is void;
//!    only a gap in the segments, given back before a crash, explains another number.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use crate::records::{EntryRecord, FrameRecord, LogIdRecord, TruncateRecord, VERSION, VoteRecord};
use crate::types::{LogEntry, LogId, Vote};

/// What an entry costs in memory besides the command's bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Where a synced frame lies in the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) position: u64,
    pub(crate) segment: u64,
    pub(crate) len_bytes: u32,
}

/// The entries of one frame that are still part of the log.
#[derive(Debug)]
struct Span {
    ticket: u64,
    first: u64,
    last: u64,
    place: Option<Place>,
}

#[derive(Debug)]
struct Cached {
    entry: LogEntry,
    bytes: usize,
}

/// What to fetch for a read: the frames on disk in order, then the entries found in memory.
#[derive(Debug, Default)]
pub(crate) struct ReadPlan {
    pub(crate) frames: Vec<(Place, Range<u64>)>,
    pub(crate) cached: Vec<LogEntry>,
}

/// The log's memory. See the module.
#[derive(Debug)]
pub(crate) struct Log {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    first: u64,
    spans: VecDeque<Span>,
    cache: VecDeque<Cached>,
    cache_bytes: usize,
    cache_limit_bytes: usize,
    next_ticket: u64,
    next_serial: u64,
    /// The newest frame replayed.
    replayed: Option<Place>,
    /// In replay, behind a gap in the segments: whether the log's start has not yet met what is purged.
    adrift: bool,
    /// For every segment with frames of ours: the highest index ever written there, purged and cut ones included.
    segments: BTreeMap<u64, Option<u64>>,
}

pub(crate) fn entry_bytes(entry: &LogEntry) -> usize {
    let payload = match &entry.payload {
        openraft::EntryPayload::Normal(command) => 2 * command.bytes().len(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    };
    ENTRY_OVERHEAD_BYTES + payload
}

impl Log {
    pub(crate) fn new(cache_limit_bytes: usize) -> Self {
        Self {
            vote: None,
            committed: None,
            purged: None,
            last: None,
            first: 0,
            spans: VecDeque::new(),
            cache: VecDeque::new(),
            cache_bytes: 0,
            cache_limit_bytes,
            next_ticket: 0,
            next_serial: 1,
            replayed: None,
            adrift: false,
            segments: BTreeMap::new(),
        }
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.vote
    }

    pub(crate) fn set_vote(&mut self, vote: Vote) {
        self.vote = Some(vote);
    }

    pub(crate) fn committed(&self) -> Option<LogId> {
        self.committed
    }

    pub(crate) fn set_committed(&mut self, committed: Option<LogId>) {
        self.committed = committed;
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.purged
    }

    /// The newest entry's id, or that of the newest purged one.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.last.or(self.purged)
    }

    /// Indexes of the entries that the log holds.
    pub(crate) fn range(&self) -> Range<u64> {
        match &self.last {
            Some(last) => self.first..last.index + 1,
            None => self.first..self.first,
        }
    }

    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// The next frame, with the small state and no news. It must be written next.
    pub(crate) fn frame(&mut self) -> FrameRecord {
        let serial = self.next_serial;
        self.next_serial += 1;
        FrameRecord {
            version: VERSION,
            serial,
            vote: self.vote.as_ref().map(VoteRecord::of),
            committed: self.committed.as_ref().map(LogIdRecord::of),
            purged: self.purged.as_ref().map(LogIdRecord::of),
            truncate: None,
            entries: Vec::new(),
        }
    }

    /// Takes entries that are about to be written as one frame. Returns the ticket that [`Log::written`] wants, or
    /// what is wrong with them.
    pub(crate) fn append(&mut self, entries: Vec<LogEntry>) -> Result<u64, String> {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let Some(first) = entries.first().map(|e| e.log_id.index) else {
            return Ok(ticket);
        };
        for (entry, index) in entries.iter().zip(first..) {
            if entry.log_id.index != index {
                return Err(format!("entry {} follows {}", entry.log_id.index, index - 1));
            }
        }
        if let Some(last) = self.last()
            && first != last.index + 1
        {
            return Err(format!("entry {first} follows {}", last.index));
        }
        if self.last.is_none() {
            self.first = first;
        }
        let last = first + entries.len() as u64 - 1;
        self.spans.push_back(Span { ticket, first, last, place: None });
        for entry in entries {
            self.last = Some(entry.log_id);
            self.cache_push(entry);
        }
        self.evict();
        Ok(ticket)
    }

    /// A frame is synced; `ticket` if it held entries. `highest` is the highest index it holds.
    pub(crate) fn written(&mut self, ticket: Option<u64>, place: Place, highest: Option<u64>) {
        self.saw_segment(place.segment, highest);
        // The span is gone if its entries were cut off or purged meanwhile.
        let pending = self.spans.iter().rposition(|span| Some(span.ticket) == ticket);
        if let Some(span) = pending.and_then(|i| self.spans.get_mut(i)) {
            span.place = Some(place);
        }
        self.evict();
    }

    fn saw_segment(&mut self, segment: u64, highest: Option<u64>) {
        let seen = self.segments.entry(segment).or_insert(None);
        *seen = (*seen).max(highest);
    }

    /// Drops every entry after `after` (all of them for `None`).
    pub(crate) fn truncate_after(&mut self, after: Option<LogId>) {
        let keep_end = after.map_or(0, |id| id.index + 1);
        while let Some(span) = self.spans.back_mut() {
            if span.first >= keep_end {
                self.spans.pop_back();
            } else {
                span.last = span.last.min(keep_end - 1);
                break;
            }
        }
        while self.cache.back().is_some_and(|c| c.entry.log_id.index >= keep_end) {
            if let Some(cached) = self.cache.pop_back() {
                self.cache_bytes -= cached.bytes;
            }
        }
        if self.last.is_some_and(|last| last.index >= keep_end) {
            self.last = after.filter(|id| id.index >= self.first && !self.spans.is_empty());
        }
    }

    /// Drops every entry up to and with `upto`, which may lie above the newest.
    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return;
        }
        let keep_from = upto.index + 1;
        while let Some(span) = self.spans.front_mut() {
            if span.last < keep_from {
                self.spans.pop_front();
            } else {
                span.first = span.first.max(keep_from);
                break;
            }
        }
        while self.cache.front().is_some_and(|c| c.entry.log_id.index < keep_from) {
            if let Some(cached) = self.cache.pop_front() {
                self.cache_bytes -= cached.bytes;
            }
        }
        if self.last.is_some_and(|last| last.index < keep_from) {
            self.last = None;
        }
        self.first = self.first.max(keep_from);
        self.purged = Some(upto);
    }

    /// Which of these sealed segments (ascending) hold nothing of the log any more, once a frame with this purged index is
    /// synced. They are forgotten here.
    pub(crate) fn recyclable(&mut self, sealed: &[u64], purged: Option<u64>) -> Vec<u64> {
        let free: Vec<u64> = sealed
            .iter()
            .copied()
            .take_while(|segment| self.segments.get(segment).copied().flatten() <= purged)
            .collect();
        for segment in &free {
            self.segments.remove(segment);
        }
        free
    }

    /// Plans a read of the entries of `range` that the log holds, at most about `max_bytes`, but at least one.
    pub(crate) fn plan(&self, range: Range<u64>, max_bytes: usize) -> ReadPlan {
        let held = self.range();
        let (start, end) = (range.start.max(held.start), range.end.min(held.end));
        let mut plan = ReadPlan::default();
        if start >= end {
            return plan;
        }
        let cached_from = self.cache.front().map_or(held.end, |c| c.entry.log_id.index);
        let mut bytes = 0;
        let from = self.spans.partition_point(|span| span.last < start);
        for span in self.spans.range(from..) {
            let wanted = span.first.max(start)..(span.last + 1).min(end).min(cached_from);
            if wanted.is_empty() {
                break;
            }
            // Always synced: what is below the cache has been evicted from it (invariant 2).
            let Some(place) = span.place else { break };
            if bytes > 0 && bytes + place.len_bytes as usize > max_bytes {
                return plan;
            }
            bytes += place.len_bytes as usize;
            plan.frames.push((place, wanted));
        }
        let skip = usize::try_from(start.saturating_sub(cached_from)).unwrap_or(usize::MAX);
        for cached in self.cache.iter().skip(skip) {
            if cached.entry.log_id.index >= end || (bytes > 0 && bytes + cached.bytes > max_bytes) {
                break;
            }
            bytes += cached.bytes;
            plan.cached.push(cached.entry.clone());
        }
        plan
    }

    fn cache_push(&mut self, entry: LogEntry) {
        let bytes = entry_bytes(&entry);
        self.cache_bytes += bytes;
        self.cache.push_back(Cached { entry, bytes });
    }

    fn evict(&mut self) {
        if self.cache_bytes <= self.cache_limit_bytes {
            return;
        }
        let unsynced =
            self.spans.iter().rev().take_while(|span| span.place.is_none()).last().map(|span| span.first);
        let evictable_end = unsynced.unwrap_or(u64::MAX);
        while self.cache_bytes > self.cache_limit_bytes
            && self.cache.front().is_some_and(|c| c.entry.log_id.index < evictable_end)
        {
            if let Some(cached) = self.cache.pop_front() {
                self.cache_bytes -= cached.bytes;
            }
        }
    }

    /// Takes in one frame found on disk; in the order of the journal.
    pub(crate) fn replay(&mut self, place: Place, record: &FrameRecord) -> Result<(), String> {
        let highest = record.entries.last().map(|e| e.id.index);
        let gap = self.replayed.replace(place).is_none_or(|before| place.segment > before.segment + 1);
        if record.serial != self.next_serial && !gap {
            self.saw_segment(place.segment, highest);
            return if record.serial > self.next_serial {
                tracing::warn!(
                    ?place,
                    record.serial,
                    expected = self.next_serial,
                    "void frame in the metadata log"
                );
                Ok(())
            } else {
                Err(format!("frame {} comes after frame {}", record.serial, self.next_serial - 1))
            };
        }
        if gap {
            self.skip_gap();
        }
        self.next_serial = record.serial + 1;
        self.vote = record.vote.as_ref().map(VoteRecord::vote);
        self.committed = record.committed.as_ref().map(LogIdRecord::log_id);
        if let Some(TruncateRecord { after }) = &record.truncate {
            self.truncate_after(after.as_ref().map(LogIdRecord::log_id));
        }
        if let Some(purged) = &record.purged {
            self.purge(purged.log_id());
        }
        if self.adrift
            && self.last.is_none()
            && let Some(first) = record.entries.first()
        {
            self.purged = self.purged.filter(|purged| purged.index + 1 == first.id.index);
        }
        let entries = record.entries.iter().map(EntryRecord::decode_entry).collect::<Result<Vec<_>, _>>()?;
        let ticket = self.append(entries)?;
        self.written(Some(ticket), place, highest);
        self.adrift &= self.last.is_none() || self.purged.is_none_or(|purged| purged.index + 1 != self.first);
        Ok(())
    }

    /// Segments are missing before the next frame. The entries in them are purged by a frame that comes later, which
    /// [`Log::finish`] checks; until then the log may begin anywhere.
    fn skip_gap(&mut self) {
        self.spans.clear();
        self.cache.clear();
        self.cache_bytes = 0;
        self.last = None;
        self.purged = None;
        self.adrift = true;
    }

    /// Checks, after the last frame, that nothing is missing.
    pub(crate) fn finish(&self) -> Result<(), String> {
        let held = self.range();
        let expected = self.purged.map_or(0, |id| id.index + 1);
        if !held.is_empty() && held.start != expected {
            return Err(format!("entries {expected} to {} are missing", held.start - 1));
        }
        if let Some(committed) = &self.committed
            && self.last().is_none_or(|last| last.index < committed.index)
        {
            return Err(format!(
                "entry {} was committed, but the log ends at {:?}",
                committed.index,
                self.last().map(|id| id.index)
            ));
        }
        Ok(())
    }
}
