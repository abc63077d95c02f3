//! Writes histories the way a driver would.

#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses its part; these are tests")]

use isobar_testkit::history::{Checker, Event, HistoryError, Op, Options, Read, Report};

pub(crate) const TOPIC: &str = "t";
/// The consumer of the last read.
pub(crate) const LAST_READER: u32 = 900;

/// The sum that record `id` is sent with.
pub(crate) fn sum(id: u64) -> u32 {
    (id as u32).wrapping_mul(0x9e37_79b9)
}

pub(crate) fn read(offset: i64, id: u64) -> Read {
    Read(offset, Some(id), sum(id))
}

#[derive(Default, Clone)]
pub(crate) struct History {
    pub(crate) events: Vec<Event>,
}

impl History {
    /// Producer 1 is idempotent, producer 2 is ordered only, producer 3 promises nothing.
    pub(crate) fn new() -> Self {
        let mut h = Self::default();
        for (producer, once, ordered) in [(1, true, true), (2, false, true), (3, false, false)] {
            h.push(producer, Op::Producer { producer, once, ordered });
        }
        h
    }

    /// Ten nanoseconds after the event before; its time.
    pub(crate) fn push(&mut self, client: u32, op: Op) -> u64 {
        let time_ns = self.now() + 10;
        self.events.push(Event { time_ns, client, op });
        time_ns
    }

    pub(crate) fn now(&self) -> u64 {
        self.events.last().map_or(0, |e| e.time_ns)
    }

    pub(crate) fn send(&mut self, producer: u32, ids: &[u64]) -> &mut Self {
        let records = ids.iter().map(|id| (*id, sum(*id))).collect();
        self.push(producer, Op::Send { producer, topic: TOPIC.into(), partition: 0, records });
        self
    }

    pub(crate) fn ack(&mut self, records: &[(u64, i64)]) -> &mut Self {
        self.push(1, Op::Acked { records: records.iter().map(|(id, at)| (*id, Some(*at))).collect() });
        self
    }

    pub(crate) fn assign(&mut self, client: u32, offset: Option<i64>, group: Option<&str>) -> &mut Self {
        let op = Op::Assign { topic: TOPIC.into(), partition: 0, offset, group: group.map(str::to_owned) };
        self.push(client, op);
        self
    }

    pub(crate) fn poll(&mut self, client: u32, records: &[Read]) -> &mut Self {
        let (topic, records) = (TOPIC.into(), records.to_vec());
        self.push(client, Op::Poll { topic, partition: 0, last: client == LAST_READER, records });
        self
    }

    /// ListOffsets, asked after all that came before.
    pub(crate) fn ends(&mut self, end: i64) -> &mut Self {
        let began = self.now() + 1;
        self.push(0, Op::Ends { topic: TOPIC.into(), partition: 0, began, end });
        self
    }

    pub(crate) fn commit(&mut self, commit: u64, offset: i64) -> &mut Self {
        let op = Op::Commit { commit, group: "g".into(), topic: TOPIC.into(), partition: 0, offset };
        self.push(5, op);
        self
    }

    pub(crate) fn committed(&mut self, offset: Option<i64>) -> &mut Self {
        let began = self.now() + 1;
        self.push(5, Op::Committed { group: "g".into(), topic: TOPIC.into(), partition: 0, began, offset });
        self
    }

    /// The last read finds these ids at offset 0 and on.
    pub(crate) fn drain(&mut self, ids: &[u64]) -> &mut Self {
        let records: Vec<Read> = ids.iter().enumerate().map(|(at, id)| read(at as i64, *id)).collect();
        self.drain_reads(&records)
    }

    pub(crate) fn drain_reads(&mut self, records: &[Read]) -> &mut Self {
        let end = records.last().map_or(0, |r| r.0 + 1);
        self.ends(end).assign(LAST_READER, Some(0), None).poll(LAST_READER, records);
        self.push(LAST_READER, Op::Drained { topic: TOPIC.into(), partition: 0, end });
        self
    }

    pub(crate) fn try_check(&self, options: Options) -> Result<Report, HistoryError> {
        let mut checker = Checker::new(options);
        for event in &self.events {
            checker.event(event)?;
        }
        Ok(checker.finish())
    }

    pub(crate) fn check(&self) -> Report {
        self.try_check(Options { dense: true, ..Options::default() }).unwrap()
    }
}
