//! Histories of a model broker that does everything right are clean; one wrong thing in them is found under its name.

#![allow(clippy::unwrap_used, reason = "the model is part of the test")]

mod common;

use std::collections::BTreeMap;

use common::{History, LAST_READER, TOPIC, read, sum};
use isobar_testkit::Rng;
use isobar_testkit::history::{Event, Kind, Op, Read};
use proptest::prelude::*;

const READERS: std::ops::Range<u32> = 10..13;

/// A log as a right broker keeps it, and clients that are told the truth, late or not at all.
struct Model {
    rng: Rng,
    history: History,
    log: Vec<u64>,
    /// Sent, landed or not, not yet told: (id, offset).
    open: Vec<(u64, Option<i64>)>,
    positions: BTreeMap<u32, usize>,
    committed: Option<i64>,
    next_id: u64,
    next_commit: u64,
}

impl Model {
    fn run(seed: u64, steps: u32) -> Self {
        let mut m = Self {
            rng: Rng::new(seed),
            history: History::new(),
            log: Vec::new(),
            open: Vec::new(),
            positions: BTreeMap::new(),
            committed: None,
            next_id: 100,
            next_commit: 1,
        };
        for reader in READERS {
            m.history.assign(reader, Some(0), None);
            m.positions.insert(reader, 0);
        }
        for _ in 0..steps {
            match m.rng.below(10) {
                0..=3 => m.send(),
                4 | 5 => m.answer(),
                6 | 7 => m.read(),
                8 => {
                    let end = m.log.len() as i64;
                    m.history.ends(end);
                }
                _ => m.group(),
            }
        }
        while !m.open.is_empty() {
            m.answer();
        }
        for reader in READERS {
            m.read_as(reader, usize::MAX);
        }
        let log = m.log.clone();
        m.history.drain(&log);
        m
    }

    fn send(&mut self) {
        let producer = 1 + self.rng.below(3) as u32;
        let ids: Vec<u64> = (0..=self.rng.below(4)).map(|n| self.next_id + n).collect();
        self.next_id += ids.len() as u64;
        self.history.send(producer, &ids);
        // A batch lands whole or not at all; that of the producer without idempotence perhaps twice.
        if self.rng.below(6) == 0 {
            self.open.extend(ids.iter().map(|id| (*id, None)));
            return;
        }
        let base = self.log.len() as i64;
        self.open.extend(ids.iter().enumerate().map(|(n, id)| (*id, Some(base + n as i64))));
        self.log.extend(&ids);
        if producer != 1 && self.rng.below(8) == 0 {
            self.log.extend(&ids);
        }
    }

    fn answer(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.rng.below(self.open.len() as u64) as usize;
        let (id, offset) = self.open.swap_remove(at);
        let op = match offset {
            Some(_) if self.rng.below(8) == 0 => Op::Unknown { ids: vec![id] },
            Some(offset) => Op::Acked { records: vec![(id, Some(offset))] },
            None if self.rng.below(2) == 0 => Op::Unknown { ids: vec![id] },
            None => Op::Failed { ids: vec![id] },
        };
        self.history.push(1, op);
    }

    fn read(&mut self) {
        let reader = READERS.start + self.rng.below(3) as u32;
        if self.rng.below(10) == 0 {
            let from = self.rng.below(self.log.len() as u64 + 1);
            self.positions.insert(reader, from as usize);
            self.history.assign(reader, Some(from as i64), None);
        }
        let most = self.rng.below(8) as usize;
        self.read_as(reader, most);
    }

    fn read_as(&mut self, reader: u32, most: usize) {
        let from = self.positions[&reader];
        let to = self.log.len().min(from.saturating_add(most));
        let records: Vec<Read> = (from..to).map(|at| read(at as i64, self.log[at])).collect();
        self.positions.insert(reader, to);
        self.history.poll(reader, &records);
    }

    fn group(&mut self) {
        let at = self.committed.unwrap_or(0);
        match self.rng.below(3) {
            0 => {
                let offset = (at + 1 + self.rng.below(4) as i64).min(self.log.len() as i64);
                if offset <= at {
                    return;
                }
                let commit = self.next_commit;
                self.next_commit += 1;
                self.history.commit(commit, offset);
                let lands = self.rng.below(4) != 0;
                let told = self.rng.below(3) != 0;
                self.committed = if lands { Some(offset) } else { self.committed };
                let op = match (lands, told) {
                    (true, true) => Op::CommitAcked { commit },
                    (false, true) => Op::CommitFailed { commit },
                    (_, false) => Op::CommitUnknown { commit },
                };
                self.history.push(5, op);
            }
            1 => _ = self.history.committed(self.committed),
            _ => {
                self.history.assign(6, None, Some("g"));
                if let Some(id) = self.log.get(at as usize) {
                    let record = read(at, *id);
                    self.history.poll(6, &[record]);
                }
            }
        }
    }

    /// Where the events are that this picks, with one of them chosen.
    fn pick(&mut self, wanted: impl Fn(&Event) -> bool) -> Option<usize> {
        let all: Vec<usize> =
            self.history.events.iter().enumerate().filter(|(_, e)| wanted(e)).map(|(at, _)| at).collect();
        let at = self.rng.below(all.len() as u64) as usize;
        all.get(at).copied()
    }

    fn last_poll(&mut self) -> &mut Vec<Read> {
        let found = self.history.events.iter_mut().find_map(|e| match &mut e.op {
            Op::Poll { last: true, records, .. } => Some(records),
            _ => None,
        });
        found.unwrap()
    }

    fn insert_after(&mut self, at: usize, client: u32, op: Op) {
        let time_ns = self.history.events[at].time_ns + 1;
        self.history.events.insert(at + 1, Event { time_ns, client, op });
    }

    /// Makes one thing wrong; none where this history offers no place for it.
    fn spoil(&mut self, kind: Kind) -> Option<()> {
        match kind {
            Kind::LostWrite => {
                // An acknowledged record that the last read does not find, nor any of its repeats.
                let at = self.pick(|e| matches!(e.op, Op::Acked { .. }))?;
                let Op::Acked { records } = &self.history.events[at].op else { return None };
                let id = records[0].0;
                self.last_poll().retain(|r| r.1 != Some(id));
            }
            Kind::Duplicate => {
                let idempotent: Vec<u64> = self
                    .history
                    .events
                    .iter()
                    .filter_map(|e| match &e.op {
                        Op::Send { producer: 1, records, .. } => Some(records.iter().map(|r| r.0)),
                        _ => None,
                    })
                    .flatten()
                    .collect();
                let id = *idempotent.iter().find(|id| self.log.contains(id))?;
                let end = self.log.len() as i64;
                self.last_poll().push(read(end, id));
            }
            Kind::TornContent => {
                let at = self.rng.below(self.log.len() as u64) as usize;
                self.last_poll().get_mut(at)?.2 ^= 1;
            }
            Kind::ForeignContent => {
                let end = self.log.len() as i64;
                self.last_poll().push(read(end, 7));
            }
            Kind::FailedWriteVisible => {
                let at = self.pick(|e| matches!(e.op, Op::Failed { .. }))?;
                let Op::Failed { ids } = &self.history.events[at].op else { return None };
                let (id, end) = (ids[0], self.log.len() as i64);
                self.last_poll().push(read(end, id));
            }
            Kind::Reordered => {
                // The first two records of one idempotent batch change places for everybody.
                let at = self
                    .pick(|e| matches!(&e.op, Op::Send { producer: 1, records, .. } if records.len() > 1))?;
                let Op::Send { records, .. } = &self.history.events[at].op else { return None };
                let (a, b) = (records[0].0, records[1].0);
                self.log.iter().find(|id| **id == a)?;
                self.swap(a, b);
            }
            Kind::InconsistentOffsets => {
                // One reader sees another record than the last read does: an earlier one, since a later one may not have been
                // sent when it reads, which has another name.
                let at = self.pick(
                    |e| matches!(&e.op, Op::Poll { records, last, .. } if !last && e.client >= 10 && records.first().is_some_and(|r| r.0 > 0)),
                )?;
                let Op::Poll { records, .. } = &mut self.history.events[at].op else { return None };
                let (offset, id) = (records[0].0, records[0].1);
                let other = self.log[..offset as usize].iter().find(|other| Some(**other) != id)?;
                records[0] = read(offset, *other);
            }
            Kind::NonmonotonicPoll => {
                let at = self.pick(
                    |e| matches!(&e.op, Op::Poll { records, .. } if !records.is_empty() && READERS.contains(&e.client)),
                )?;
                let Op::Poll { records, .. } = &mut self.history.events[at].op else { return None };
                let again = records[0];
                records.push(again);
            }
            Kind::PollSkip => {
                let at = self.pick(
                    |e| matches!(&e.op, Op::Poll { records, .. } if records.len() > 1 && READERS.contains(&e.client)),
                )?;
                let Op::Poll { records, .. } = &mut self.history.events[at].op else { return None };
                records.remove(0);
            }
            Kind::StaleEnd => {
                let at = self.pick(|e| matches!(e.op, Op::Acked { .. }))?;
                let Op::Acked { records } = &self.history.events[at].op else { return None };
                let (end, began) = (records[0].1?, self.history.events[at].time_ns + 1);
                let op = Op::Ends { topic: TOPIC.into(), partition: 0, began, end };
                self.insert_after(at, 0, op);
            }
            Kind::LostCommit => {
                let at = self.pick(|e| matches!(e.op, Op::CommitAcked { .. }))?;
                let began = self.history.events[at].time_ns + 1;
                let (group, topic) = ("g".into(), TOPIC.into());
                self.insert_after(at, 5, Op::Committed { group, topic, partition: 0, began, offset: None });
            }
            Kind::NotDrained => self.history.events.retain(|e| !matches!(e.op, Op::Drained { .. })),
            other => unreachable!("{other:?} has its own tests"),
        }
        Some(())
    }

    /// Two records change places: in every read and in every acknowledgement.
    fn swap(&mut self, a: u64, b: u64) {
        let other = |id: u64| {
            if id == a {
                b
            } else if id == b {
                a
            } else {
                id
            }
        };
        for event in &mut self.history.events {
            match &mut event.op {
                Op::Poll { records, .. } => {
                    for r in records {
                        *r = read(r.0, other(r.1.unwrap()));
                    }
                }
                Op::Acked { records } => {
                    for r in records {
                        r.1 = r.1.map(|at| {
                            if r.0 == a {
                                at + 1
                            } else if r.0 == b {
                                at - 1
                            } else {
                                at
                            }
                        });
                    }
                }
                _ => {}
            }
        }
    }
}

const SPOILABLE: [Kind; 12] = [
    Kind::LostWrite,
    Kind::Duplicate,
    Kind::TornContent,
    Kind::ForeignContent,
    Kind::FailedWriteVisible,
    Kind::Reordered,
    Kind::InconsistentOffsets,
    Kind::NonmonotonicPoll,
    Kind::PollSkip,
    Kind::StaleEnd,
    Kind::LostCommit,
    Kind::NotDrained,
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn right_histories_are_clean(seed: u64, steps in 1_u32..300) {
        let report = Model::run(seed, steps).history.check();
        prop_assert!(report.is_clean(), "{}", report);
    }

    #[test]
    fn one_wrong_thing_is_found_under_its_name(seed: u64, which in 0..SPOILABLE.len()) {
        let kind = SPOILABLE[which];
        let mut model = Model::run(seed, 200);
        prop_assume!(model.spoil(kind).is_some());
        let report = model.history.check();
        prop_assert!(report.count(kind) > 0, "{:?} not in {}", kind, report);
    }
}

/// The checker is asked for a few million events; this many must pass in the time of a test.
#[test]
fn many_events() {
    const RECORDS: u64 = 400_000;
    let mut h = History::new();
    for id in 0..RECORDS {
        h.send(1, &[id]).ack(&[(id, id as i64)]);
    }
    h.ends(RECORDS as i64).assign(LAST_READER, Some(0), None);
    for from in (0..RECORDS).step_by(500) {
        let records: Vec<Read> = (from..from + 500).map(|id| Read(id as i64, Some(id), sum(id))).collect();
        h.poll(LAST_READER, &records);
    }
    h.push(0, Op::Drained { topic: TOPIC.into(), partition: 0, end: RECORDS as i64 });
    let report = h.check();
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.summary.acks_checked, report.summary.reads), (RECORDS, RECORDS));
}
