//! What is known of one partition: which record each offset holds, and how far the log was seen to reach.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: i64 = 4096;

/// Given to a consumer.
pub(super) const READ: u8 = 1;
/// Named by an acknowledgement.
pub(super) const ACKED: u8 = 2;
/// Given to the last read.
pub(super) const LAST: u8 = 4;

/// Who is at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Nothing,
    /// Index of a send.
    Send(u32),
    /// A record that no send can be named for.
    Stranger,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) holder: Holder,
    pub(super) flags: u8,
}

struct Page {
    holders: [u32; PAGE as usize],
    flags: [u8; PAGE as usize],
}

const NOTHING: u32 = u32::MAX;
const STRANGER: u32 = u32::MAX - 1;
/// Sends are numbered below this.
pub(super) const MAX_SENDS: usize = STRANGER as usize;

/// Offsets to records, in pages, so that a broker that gives absurd offsets costs no more than it says.
#[derive(Default)]
pub(super) struct Log {
    pages: BTreeMap<i64, Box<Page>>,
}

impl Log {
    pub(super) fn get(&self, offset: i64) -> Slot {
        match self.pages.get(&offset.div_euclid(PAGE)) {
            None => Slot { holder: Holder::Nothing, flags: 0 },
            Some(page) => slot(page, offset.rem_euclid(PAGE) as usize),
        }
    }

    /// Sets the holder and adds flags; a new holder loses the flags of the old one.
    pub(super) fn put(&mut self, offset: i64, holder: Holder, flags: u8) {
        let page = self.pages.entry(offset.div_euclid(PAGE)).or_insert_with(|| {
            Box::new(Page { holders: [NOTHING; PAGE as usize], flags: [0; PAGE as usize] })
        });
        let at = offset.rem_euclid(PAGE) as usize;
        let code = match holder {
            Holder::Nothing => NOTHING,
            Holder::Stranger => STRANGER,
            Holder::Send(index) => index,
        };
        if page.holders[at] != code {
            page.holders[at] = code;
            page.flags[at] = 0;
        }
        page.flags[at] |= flags;
    }

    /// Offsets that hold something, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, Slot)> + '_ {
        self.pages.iter().flat_map(|(number, page)| {
            (0..PAGE as usize).filter_map(move |at| {
                let slot = slot(page, at);
                (slot.holder != Holder::Nothing).then_some((number * PAGE + at as i64, slot))
            })
        })
    }

    /// How many offsets of the range hold something, and the first that does.
    pub(super) fn held_in(&self, range: Range<i64>) -> (u64, Option<i64>) {
        let (mut count, mut first) = (0, None);
        let pages = range.start.div_euclid(PAGE)..=range.end.div_euclid(PAGE);
        for (number, page) in self.pages.range(pages) {
            for at in 0..PAGE as usize {
                let offset = number * PAGE + at as i64;
                if range.contains(&offset) && slot(page, at).holder != Holder::Nothing {
                    count += 1;
                    first.get_or_insert(offset);
                }
            }
        }
        (count, first)
    }
}

fn slot(page: &Page, at: usize) -> Slot {
    let holder = match page.holders[at] {
        NOTHING => Holder::Nothing,
        STRANGER => Holder::Stranger,
        index => Holder::Send(index),
    };
    Slot { holder, flags: page.flags[at] }
}

/// The greatest value known at each time: a point is kept only where it rises.
#[derive(Default)]
pub(super) struct Timeline(Vec<(u64, i64)>);

impl Timeline {
    pub(super) fn raise(&mut self, time_ns: u64, value: i64) {
        match self.0.last_mut() {
            Some((_, last)) if value <= *last => {}
            Some((time, last)) if *time == time_ns => *last = value,
            _ => self.0.push((time_ns, value)),
        }
    }

    /// The greatest value known strictly before the time.
    pub(super) fn before(&self, time_ns: u64) -> Option<i64> {
        let after = self.0.partition_point(|(time, _)| *time < time_ns);
        self.0[..after].last().map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_holder_loses_the_flags_of_the_old_one() {
        let mut log = Log::default();
        log.put(5000, Holder::Send(1), ACKED | LAST);
        log.put(5000, Holder::Send(2), READ);
        assert_eq!(log.get(5000).flags, READ);
        assert_eq!(log.get(5000).holder, Holder::Send(2));
        assert_eq!(log.get(4999).holder, Holder::Nothing);
        log.put(i64::MAX, Holder::Stranger, READ);
        assert_eq!(log.iter().map(|(o, _)| o).collect::<Vec<_>>(), [5000, i64::MAX]);
        assert_eq!(log.held_in(0..6000), (1, Some(5000)));
        assert_eq!(log.held_in(0..5000), (0, None));
    }

    #[test]
    fn a_timeline_knows_what_was_known_before() {
        let mut line = Timeline::default();
        line.raise(10, 5);
        line.raise(20, 3);
        line.raise(30, 9);
        assert_eq!(line.before(10), None);
        assert_eq!(line.before(11), Some(5));
        assert_eq!(line.before(30), Some(5));
        assert_eq!(line.before(31), Some(9));
    }
}
