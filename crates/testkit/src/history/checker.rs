//! The checker. See the module's page for what it assumes.

use std::collections::BTreeMap;

use super::HistoryError;
use super::event::{Event, Op, Read};
use super::groups::{Groups, Outcome};
use super::log::{ACKED, Holder, LAST, Log, READ, Timeline};
use super::report::{Anomaly, Found, Kind, Report, Summary};
use super::sends::{Fate, Sends};

/// What to expect of the log.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Every offset below the end holds a record: no transactions, no compaction, no retention.
    pub dense: bool,
    /// Examples kept of each kind.
    pub examples: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { dense: false, examples: 5 }
    }
}

struct Producer {
    once: bool,
    ordered: bool,
}

struct Partition {
    topic: String,
    partition: i32,
    log: Log,
    /// How far acknowledgements reach.
    acked: Timeline,
    /// How far reads and answered ends reach.
    seen: Timeline,
    drained: Option<i64>,
}

/// Where a consumer is in a partition.
#[derive(Default)]
struct Position {
    next: Option<i64>,
    /// It begins where this group's commit is, looked up at this time or later.
    from_group: Option<(String, u64)>,
}

/// A consumer went from `from` to `to` in one step.
struct Gap {
    client: u32,
    partition: u32,
    from: i64,
    to: i64,
    time_ns: u64,
}

/// Takes events in order of time, then gives the verdict.
pub struct Checker {
    options: Options,
    time_ns: u64,
    producers: BTreeMap<u32, Producer>,
    sends: Sends,
    topics: BTreeMap<String, BTreeMap<i32, u32>>,
    partitions: Vec<Partition>,
    positions: BTreeMap<(u32, u32), Position>,
    gaps: Vec<Gap>,
    groups: Groups,
    found: BTreeMap<Kind, Found>,
    summary: Summary,
}

impl Checker {
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            options,
            time_ns: 0,
            producers: BTreeMap::new(),
            sends: Sends::default(),
            topics: BTreeMap::new(),
            partitions: Vec::new(),
            positions: BTreeMap::new(),
            gaps: Vec::new(),
            groups: Groups::default(),
            found: BTreeMap::new(),
            summary: Summary::default(),
        }
    }

    /// Takes the next event.
    ///
    /// # Errors
    /// [`HistoryError::Contradiction`]: the history is wrong, not the broker.
    pub fn event(&mut self, event: &Event) -> Result<(), HistoryError> {
        let time_ns = event.time_ns;
        let contradiction = |what| HistoryError::Contradiction { time_ns, what };
        if time_ns < self.time_ns {
            return Err(contradiction(format!("after an event at {} ns", self.time_ns)));
        }
        self.time_ns = time_ns;
        self.summary.events += 1;
        self.take(event.client, &event.op).map_err(contradiction)
    }

    fn take(&mut self, client: u32, op: &Op) -> Result<(), String> {
        let now = self.time_ns;
        match op {
            Op::Producer { producer, once, ordered } => {
                let new = Producer { once: *once, ordered: *ordered };
                if self.producers.insert(*producer, new).is_some() {
                    return Err(format!("producer {producer} begins twice"));
                }
            }
            Op::Send { producer, topic, partition, records } => {
                if !self.producers.contains_key(producer) {
                    return Err(format!("producer {producer} sends but did not begin"));
                }
                let p = self.partition(topic, *partition);
                for (id, sum) in records {
                    self.sends.add(*id, *sum, *producer, p)?;
                }
                self.summary.sends += records.len() as u64;
            }
            Op::Acked { records } => {
                for (id, offset) in records {
                    let index = self.sends.answer(*id, Fate::Acked)?;
                    self.acked(index, *offset);
                }
            }
            Op::Failed { ids } => self.answered(ids, Fate::Failed)?,
            Op::Unknown { ids } => self.answered(ids, Fate::Unknown)?,
            Op::Assign { topic, partition, offset, group } => {
                let p = self.partition(topic, *partition);
                let from_group = group.as_ref().filter(|_| offset.is_none()).map(|g| (g.clone(), now));
                self.positions.insert((client, p), Position { next: *offset, from_group });
            }
            Op::Poll { topic, partition, last, records } => {
                let p = self.partition(topic, *partition);
                for read in records {
                    self.position(client, p, read.0);
                    self.read(p, *read, *last);
                }
                self.summary.reads += records.len() as u64;
            }
            Op::Drained { topic, partition, end } => {
                let p = self.partition(topic, *partition);
                self.partitions[p as usize].drained = Some(*end);
            }
            Op::Ends { topic, partition, began, end } => {
                let p = self.partition(topic, *partition);
                self.ends(p, *began, *end);
            }
            Op::Commit { commit, group, topic, partition, offset } => {
                let p = self.partition(topic, *partition);
                self.groups.begin(*commit, group, p, *offset, now)?;
            }
            Op::CommitAcked { commit } => {
                self.groups.end(*commit, Outcome::Acked(now))?;
                self.summary.commits_acked += 1;
            }
            Op::CommitFailed { commit } => self.groups.end(*commit, Outcome::Failed)?,
            Op::CommitUnknown { commit } => self.groups.end(*commit, Outcome::Unknown)?,
            Op::Committed { group, topic, partition, began, offset } => {
                let p = self.partition(topic, *partition);
                self.committed(group, p, *began, *offset);
            }
            Op::Restart => self.summary.restarts += 1,
            Op::Fault { kind, point } => {
                *self.summary.faults.entry(kind.clone()).or_default() += 1;
                if let Some(point) = point {
                    *self.summary.crash_points.entry(point.clone()).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    fn partition(&mut self, topic: &str, partition: i32) -> u32 {
        if let Some(found) = self.topics.get(topic).and_then(|of| of.get(&partition)) {
            return *found;
        }
        let index = self.partitions.len() as u32;
        self.topics.entry(topic.to_owned()).or_default().insert(partition, index);
        self.partitions.push(Partition {
            topic: topic.to_owned(),
            partition,
            log: Log::default(),
            acked: Timeline::default(),
            seen: Timeline::default(),
            drained: None,
        });
        index
    }

    fn anomaly(&mut self, kind: Kind, partition: u32, time_ns: Option<u64>, what: impl FnOnce() -> String) {
        let found = self.found.entry(kind).or_insert_with(|| Found { kind, count: 0, examples: Vec::new() });
        found.count += 1;
        if found.examples.len() < self.options.examples {
            let p = &self.partitions[partition as usize];
            let (topic, partition) = (p.topic.clone(), p.partition);
            found.examples.push(Anomaly { kind, topic, partition, time_ns, what: what() });
        }
    }

    fn answered(&mut self, ids: &[u64], fate: Fate) -> Result<(), String> {
        for id in ids {
            self.sends.answer(*id, fate)?;
        }
        Ok(())
    }

    fn acked(&mut self, index: u32, offset: Option<i64>) {
        let send = self.sends.get_mut(index);
        let (id, p) = (send.id, send.partition);
        let Some(offset) = offset else { return };
        send.acked_at = Some(offset);
        let now = Some(self.time_ns);
        if offset < 0 {
            self.anomaly(Kind::InconsistentOffsets, p, now, || {
                format!("record {id} acknowledged at offset {offset}")
            });
            return;
        }
        let at = &mut self.partitions[p as usize];
        at.acked.raise(self.time_ns, offset.saturating_add(1));
        match at.log.get(offset).holder {
            Holder::Nothing => at.log.put(offset, Holder::Send(index), ACKED),
            Holder::Send(other) if other == index => at.log.put(offset, Holder::Send(index), ACKED),
            // What was read stays; what was only acknowledged is as likely right as this.
            Holder::Send(other) => {
                let other = self.sends.get(other).id;
                let what =
                    || format!("offset {offset} acknowledged for record {id}, but record {other} has it");
                self.anomaly(Kind::InconsistentOffsets, p, now, what);
            }
            Holder::Stranger => {
                let what =
                    || format!("offset {offset} acknowledged for record {id}, but another record is there");
                self.anomaly(Kind::InconsistentOffsets, p, now, what);
            }
        }
    }

    fn position(&mut self, client: u32, p: u32, offset: i64) {
        let now = self.time_ns;
        let position = self.positions.entry((client, p)).or_default();
        let next = position.next.replace(offset.saturating_add(1));
        let from_group = position.from_group.take();
        match (next, from_group) {
            (Some(next), _) if offset < next => {
                let what = || format!("client {client} got offset {offset} where it had got to {next}");
                self.anomaly(Kind::NonmonotonicPoll, p, Some(now), what);
            }
            (Some(next), _) => self.gap(client, p, next, offset),
            (None, Some((group, began))) => self.group_begins(client, p, &group, began, offset),
            (None, None) => {}
        }
    }

    fn gap(&mut self, client: u32, partition: u32, from: i64, to: i64) {
        if from < to {
            self.gaps.push(Gap { client, partition, from, to, time_ns: self.time_ns });
        }
    }

    /// The first offset that a member of a group gets in a partition is where the group's commit is.
    fn group_begins(&mut self, client: u32, p: u32, group: &str, began_ns: u64, offset: i64) {
        let allowed = self.groups.allowed(group, p, began_ns, self.time_ns);
        self.summary.commits_checked += 1;
        let mut starts = allowed.offsets;
        if allowed.none {
            starts.insert(0, 0);
        }
        match starts.iter().rev().find(|start| **start <= offset) {
            Some(start) => self.gap(client, p, *start, offset),
            None => {
                let kind = if offset == 0 { Kind::LostCommit } else { Kind::CommitWentBack };
                let what =
                    || format!("client {client} of group {group} begins at {offset}; committed: {starts:?}");
                self.anomaly(kind, p, Some(self.time_ns), what);
            }
        }
    }

    fn read(&mut self, p: u32, read: Read, last: bool) {
        let Read(offset, id, sum) = read;
        let now = Some(self.time_ns);
        if offset < 0 {
            self.anomaly(Kind::ForeignContent, p, now, || format!("a record at offset {offset}"));
            return;
        }
        self.partitions[p as usize].seen.raise(self.time_ns, offset.saturating_add(1));
        let holder = self.holder(p, offset, id, sum);
        let flags = if last { READ | LAST } else { READ };
        let before = self.partitions[p as usize].log.get(offset);
        self.partitions[p as usize].log.put(offset, holder, flags);
        if let (Holder::Send(old), Holder::Send(new)) = (before.holder, holder)
            && old != new
        {
            let (old, new) = (self.sends.get(old).id, self.sends.get(new).id);
            let had = if before.flags & READ != 0 { "held" } else { "was acknowledged for" };
            let what = || format!("offset {offset} {had} record {old}, now holds record {new}");
            self.anomaly(Kind::InconsistentOffsets, p, now, what);
        }
        if let Holder::Send(index) = holder {
            let first_time_here = before.holder != holder || before.flags & READ == 0;
            self.occurrence(p, index, offset, first_time_here);
        }
    }

    /// Whose record this is, by id, partition and checksum.
    fn holder(&mut self, p: u32, offset: i64, id: Option<u64>, sum: u32) -> Holder {
        let now = Some(self.time_ns);
        let Some(id) = id else {
            self.anomaly(Kind::TornContent, p, now, || {
                format!("the value at offset {offset} does not parse")
            });
            return Holder::Stranger;
        };
        let Some(index) = self.sends.find(id) else {
            self.anomaly(Kind::ForeignContent, p, now, || {
                format!("record {id} at offset {offset} was never sent")
            });
            return Holder::Stranger;
        };
        let send = self.sends.get(index);
        if send.partition != p {
            let to = &self.partitions[send.partition as usize];
            let what = format!("record {id} at offset {offset} was sent to {}-{}", to.topic, to.partition);
            self.anomaly(Kind::ForeignContent, p, now, || what);
            return Holder::Stranger;
        }
        if send.sum != sum {
            let sent = send.sum;
            let what =
                || format!("record {id} at offset {offset} has sum {sum:08x}, was sent with {sent:08x}");
            self.anomaly(Kind::TornContent, p, now, what);
        }
        Holder::Send(index)
    }

    fn occurrence(&mut self, p: u32, index: u32, offset: i64, first_time_here: bool) {
        let send = self.sends.get_mut(index);
        let Some(first) = send.read_at else {
            send.read_at = Some(offset);
            return;
        };
        let (id, producer) = (send.id, send.producer);
        let still_there = self.partitions[p as usize].log.get(first).holder == Holder::Send(index);
        if first == offset || !first_time_here || !still_there {
            return;
        }
        if self.producers.get(&producer).is_some_and(|p| p.once) {
            let what =
                || format!("record {id} of idempotent producer {producer} at offsets {first} and {offset}");
            self.anomaly(Kind::Duplicate, p, Some(self.time_ns), what);
        } else {
            self.summary.repeats_allowed += 1;
        }
    }

    fn ends(&mut self, p: u32, began_ns: u64, end: i64) {
        self.summary.ends_checked += 1;
        let at = &mut self.partitions[p as usize];
        let acked = at.acked.before(began_ns).unwrap_or(0);
        let seen = at.seen.before(began_ns).unwrap_or(0);
        at.seen.raise(self.time_ns, end);
        let now = Some(self.time_ns);
        if end < acked {
            let what =
                || format!("end {end}, but offset {} was acknowledged before it was asked for", acked - 1);
            self.anomaly(Kind::StaleEnd, p, now, what);
        } else if end < seen {
            let what = || format!("end {end}, but {seen} had been seen before it was asked for");
            self.anomaly(Kind::WatermarkWentBack, p, now, what);
        }
    }

    fn committed(&mut self, group: &str, p: u32, began_ns: u64, offset: Option<i64>) {
        self.summary.commits_checked += 1;
        let allowed = self.groups.allowed(group, p, began_ns, self.time_ns);
        let now = Some(self.time_ns);
        match offset {
            None if allowed.none => {}
            None => {
                let what =
                    || format!("group {group} has no committed offset; committed: {:?}", allowed.offsets);
                self.anomaly(Kind::LostCommit, p, now, what);
            }
            Some(offset) if allowed.offsets.contains(&offset) => {}
            Some(offset) => {
                let back = allowed.offsets.first().is_some_and(|least| offset < *least);
                let kind = if back { Kind::CommitWentBack } else { Kind::ForeignCommit };
                let what = || format!("group {group} answers {offset}; committed: {:?}", allowed.offsets);
                self.anomaly(kind, p, now, what);
            }
        }
    }

    /// The verdict.
    #[must_use]
    pub fn finish(mut self) -> Report {
        for gap in std::mem::take(&mut self.gaps) {
            let (count, first) = self.partitions[gap.partition as usize].log.held_in(gap.from..gap.to);
            if let Some(first) = first {
                let Gap { client, from, to, .. } = gap;
                let what = || {
                    format!("client {client} went from {from} to {to} past {count} records, first {first}")
                };
                self.anomaly(Kind::PollSkip, gap.partition, Some(gap.time_ns), what);
            }
        }
        for p in 0..self.partitions.len() as u32 {
            self.walk(p);
        }
        self.judge_sends();
        Report { found: self.found.into_values().collect(), summary: self.summary }
    }

    /// In the log at the end, as the last read saw it.
    fn is_in_log(&self, index: u32) -> bool {
        let send = self.sends.get(index);
        let log = &self.partitions[send.partition as usize].log;
        [send.acked_at, send.read_at].into_iter().flatten().any(|offset| {
            let slot = log.get(offset);
            slot.holder == Holder::Send(index) && slot.flags & LAST != 0
        })
    }

    /// One partition in order of offsets.
    fn walk(&mut self, p: u32) {
        let log = std::mem::take(&mut self.partitions[p as usize].log);
        let drained = self.partitions[p as usize].drained;
        let mut newest: BTreeMap<u32, u32> = BTreeMap::new();
        let mut wrong: Vec<(Kind, String)> = Vec::new();
        let (mut dense_to, mut hole) = (0, None);
        for (offset, slot) in log.iter() {
            if slot.flags & LAST != 0 {
                if offset > dense_to {
                    hole.get_or_insert(dense_to);
                }
                dense_to = offset + 1;
            }
            let Holder::Send(index) = slot.holder else { continue };
            if slot.flags & READ != 0 {
                wrong.extend(self.out_of_order(&mut newest, index, offset));
            }
            if drained.is_some() && slot.flags & LAST == 0 {
                wrong.extend(self.gone(&log, index, offset, slot.flags));
            }
        }
        self.partitions[p as usize].log = log;
        for (kind, what) in wrong {
            self.anomaly(kind, p, None, || what);
        }
        let Some(end) = drained else { return };
        if self.options.dense {
            let hole = hole.or_else(|| (dense_to < end).then_some(dense_to));
            if let Some(hole) = hole {
                self.anomaly(Kind::OffsetHole, p, None, || format!("no record at offset {hole}; end {end}"));
            }
        }
    }

    fn out_of_order(
        &mut self,
        newest: &mut BTreeMap<u32, u32>,
        index: u32,
        offset: i64,
    ) -> Option<(Kind, String)> {
        let send = self.sends.get_mut(index);
        let (id, producer) = (send.id, send.producer);
        let promised = self.producers.get(&producer)?;
        if std::mem::replace(&mut send.met, true) || !promised.ordered {
            return None;
        }
        let may_be_late = !promised.once;
        let before = newest.insert(producer, index).filter(|before| *before > index)?;
        newest.insert(producer, before);
        if may_be_late && self.sends.was_given_up_first(index, before) {
            self.summary.late_after_given_up += 1;
            return None;
        }
        let before = self.sends.get(before).id;
        let what = format!(
            "producer {producer} sent record {id} before record {before}, but at {offset} it comes after"
        );
        Some((Kind::Reordered, what))
    }

    /// What it means that the last read did not find the record that an offset held.
    fn gone(&self, log: &Log, index: u32, offset: i64, flags: u8) -> Option<(Kind, String)> {
        let send = self.sends.get(index);
        let id = send.id;
        let elsewhere = [send.acked_at, send.read_at].into_iter().flatten().find(|at| {
            let slot = log.get(*at);
            slot.holder == Holder::Send(index) && slot.flags & LAST != 0
        });
        match elsewhere {
            Some(at) if flags & READ == 0 => {
                Some((Kind::InconsistentOffsets, format!("record {id} acknowledged at {offset} is at {at}")))
            }
            // Said of the record as a lost write.
            None if send.fate == Fate::Acked => None,
            _ => {
                let what = format!("record {id}, once read at offset {offset}, is not there any more");
                Some((Kind::VanishedRecord, what))
            }
        }
    }

    fn judge_sends(&mut self) {
        let mut undrained: BTreeMap<u32, u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (index, send) in self.sends.iter() {
            let p = send.partition;
            let id = send.id;
            match send.fate {
                Fate::Acked if self.partitions[p as usize].drained.is_none() => {
                    *undrained.entry(p).or_default() += 1
                }
                Fate::Acked => {
                    self.summary.acks_checked += 1;
                    if !self.is_in_log(index) {
                        let at =
                            send.acked_at.map_or_else(String::new, |offset| format!(" at offset {offset}"));
                        wrong.push((
                            Kind::LostWrite,
                            p,
                            format!("record {id}, acknowledged{at}, is not in the log"),
                        ));
                    }
                }
                Fate::Failed => {
                    if let Some(offset) = send.read_at {
                        let what = format!("record {id}, reported as failed, is at offset {offset}");
                        wrong.push((Kind::FailedWriteVisible, p, what));
                    }
                }
                Fate::Unknown | Fate::Pending => {
                    self.summary.unknown += 1;
                    self.summary.unknown_in_log += u64::from(send.read_at.is_some());
                }
            }
        }
        for (kind, p, what) in wrong {
            self.anomaly(kind, p, None, || what);
        }
        for (p, acks) in undrained {
            let what = || format!("no last read to its end, but {acks} acknowledged records");
            self.anomaly(Kind::NotDrained, p, None, what);
        }
    }
}
