//! The demo's data set: every flight that left New York City in 2013 (see `data/README.md` for source and licence).

use std::ops::Range;

use crate::Failure;

static PACKED: &[u8] = include_bytes!("../../data/flights.csv.zst");

/// What the CSV takes unpacked, with room to spare; a bound, not a promise.
const UNPACKED_BYTES: usize = 64 << 20;

/// The flights, one CSV row each, in the order of the file.
pub(crate) struct Flights {
    text: Vec<u8>,
    rows: Vec<Range<usize>>,
}

impl Flights {
    /// Unpacks the data set that is part of the binary.
    pub(crate) fn load() -> Result<Self, Failure> {
        let text = zstd::bulk::decompress(PACKED, UNPACKED_BYTES)?;
        let mut rows = Vec::with_capacity(340_000);
        let mut start = 0;
        while start < text.len() {
            let end =
                text[start..].iter().position(|&byte| byte == b'\n').map_or(text.len(), |at| start + at);
            rows.push(start..end);
            start = end + 1;
        }
        // The first row names the columns.
        if rows.len() < 2 {
            return Err("the built-in data set is empty".into());
        }
        rows.remove(0);
        Ok(Self { text, rows })
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// A flight's row.
    pub(crate) fn row(&self, index: usize) -> Option<&[u8]> {
        self.rows.get(index).map(|row| &self.text[row.clone()])
    }

    /// What a flight's record is keyed by: carrier and flight number, so that the flights of one line stay in order.
    pub(crate) fn key(row: &[u8]) -> Vec<u8> {
        let field = |index: usize| row.split(|&byte| byte == b',').nth(index).unwrap_or_default();
        [field(CARRIER), b"-", field(FLIGHT)].concat()
    }
}

const CARRIER: usize = 9;
const FLIGHT: usize = 10;

/// Ticks off what came back, and refuses what is not as it was sent.
pub(crate) struct Checklist<'a> {
    flights: &'a Flights,
    /// Where each row was found: partition and offset.
    seen: Vec<Option<(i32, i64)>>,
    right: usize,
    redelivered: u64,
}

impl<'a> Checklist<'a> {
    pub(crate) fn new(flights: &'a Flights) -> Self {
        Self { flights, seen: vec![None; flights.len()], right: 0, redelivered: 0 }
    }

    /// A record that was read: which row it says it is, its place, key and value. False if the very same record was
    /// delivered before, as a group may after a rebalance.
    pub(crate) fn check(
        &mut self,
        index: usize,
        place: (i32, i64),
        key: Option<&[u8]>,
        value: Option<&[u8]>,
    ) -> Result<bool, Failure> {
        let Some(row) = self.flights.row(index) else {
            return Err(
                format!("a record came back that says it is row {index}, which was never sent").into()
            );
        };
        if value != Some(row) {
            return Err(format!("row {index} came back with other content").into());
        }
        if key != Some(Flights::key(row).as_slice()) {
            return Err(format!("row {index} came back with another key").into());
        }
        match self.seen[index] {
            None => {
                self.seen[index] = Some(place);
                self.right += 1;
                Ok(true)
            }
            Some(before) if before == place => {
                self.redelivered += 1;
                Ok(false)
            }
            Some(before) => Err(format!(
                "row {index} is in the log twice, at (partition, offset) {before:?} and {place:?}"
            )
            .into()),
        }
    }

    pub(crate) fn right(&self) -> usize {
        self.right
    }

    pub(crate) fn redelivered(&self) -> u64 {
        self.redelivered
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.right == self.flights.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_set_is_whole() {
        let flights = Flights::load().unwrap();
        assert_eq!(flights.len(), 336_776);
        let first = flights.row(0).unwrap();
        assert_eq!(Flights::key(first), b"UA-1545");
    }

    #[test]
    fn the_checklist_finds_wrong_foreign_and_repeated_records() {
        let flights = Flights::load().unwrap();
        let mut list = Checklist::new(&flights);
        let row = flights.row(5).unwrap();
        let key = Flights::key(row);
        assert!(list.check(5, (0, 9), Some(&key), Some(row)).unwrap());
        assert!(!list.check(5, (0, 9), Some(&key), Some(row)).unwrap(), "delivered again");
        assert!(list.check(5, (0, 10), Some(&key), Some(row)).is_err(), "twice in the log");
        assert!(list.check(6, (0, 11), Some(&key), Some(row)).is_err(), "another row's content");
        assert!(list.check(usize::MAX, (0, 12), Some(&key), Some(row)).is_err(), "no such row");
        assert!(list.check(7, (0, 13), None, flights.row(7)).is_err(), "no key");
        assert_eq!(list.right(), 1);
        assert!(!list.is_complete());
    }
}
