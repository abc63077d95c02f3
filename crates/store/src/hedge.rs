//! When a GET that has not answered is sent a second time. Pure, but for a lock.
//!
//! A store's slow answers are mostly slow by chance: one sick server, one lost packet. So a GET that takes longer than
//! nineteen of twenty of its size took lately is asked once more, and the first answer is used. What bounds it: at most
//! [`PART_MAX`] of a hundred requests are sent twice, so a store that is slow as a whole is not made slower.

use std::time::Duration;

use parking_lot::Mutex;

/// Of a hundred requests, those that may be sent twice.
const PART_MAX: u32 = 5;
/// Hedges that may come one after the other when there were none for long.
const BURST: u32 = 8;
/// Answers remembered for each size class, and needed before there is any hedging.
const REMEMBERED: usize = 128;
const NEEDED: usize = 20;
const DELAY_MIN: Duration = Duration::from_millis(20);
const DELAY_MAX: Duration = Duration::from_secs(2);

/// Upper ends of the size classes in bytes; beyond the last is one more.
const SIZES: [u64; 3] = [64 << 10, 1 << 20, 4 << 20];

#[derive(Default)]
struct Recent {
    took_us: Vec<u32>,
    next: usize,
}

impl Recent {
    fn note(&mut self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        if self.took_us.len() < REMEMBERED {
            self.took_us.push(took);
        } else {
            self.took_us[self.next] = took;
            self.next = (self.next + 1) % REMEMBERED;
        }
    }

    fn p95(&self) -> Option<Duration> {
        if self.took_us.len() < NEEDED {
            return None;
        }
        let mut sorted = self.took_us.clone();
        let at = sorted.len() * 95 / 100;
        let (_, p95, _) = sorted.select_nth_unstable(at);
        Some(Duration::from_micros(u64::from(*p95)))
    }
}

#[derive(Default)]
struct State {
    recent: [Recent; SIZES.len() + 1],
    /// Hundredths of a hedge that may be sent.
    tokens: u32,
}

/// What one bucket's GETs took lately, and how many hedges are left.
#[derive(Default)]
pub(crate) struct Hedging {
    state: Mutex<State>,
}

fn size_class(bytes: u64) -> usize {
    SIZES.partition_point(|end| *end < bytes)
}

impl Hedging {
    /// A GET of so many bytes was answered.
    pub(crate) fn note(&self, bytes: u64, took: Duration) {
        let mut state = self.state.lock();
        state.recent[size_class(bytes)].note(took);
        state.tokens = (state.tokens + PART_MAX).min(BURST * 100);
    }

    /// How long to wait for the answer to a GET of so many bytes before it is sent again; `None`: too little is known.
    pub(crate) fn delay(&self, bytes: u64) -> Option<Duration> {
        let p95 = self.state.lock().recent[size_class(bytes)].p95()?;
        Some(p95.clamp(DELAY_MIN, DELAY_MAX))
    }

    /// Takes one hedge from the budget.
    pub(crate) fn take(&self) -> bool {
        let mut state = self.state.lock();
        let may = state.tokens >= 100;
        if may {
            state.tokens -= 100;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_long_as_most_take_and_knows_nothing_at_first() {
        let hedging = Hedging::default();
        assert_eq!(hedging.delay(1000), None);
        for n in 1..=100 {
            hedging.note(1000, Duration::from_millis(n));
        }
        assert_eq!(hedging.delay(1000), Some(Duration::from_millis(96)));
        assert_eq!(hedging.delay(8 << 20), None, "another size");
        // What is long ago is forgotten, and the delay has bounds.
        for _ in 0..REMEMBERED {
            hedging.note(1000, Duration::from_millis(1));
        }
        assert_eq!(hedging.delay(1000), Some(DELAY_MIN));
        for _ in 0..REMEMBERED {
            hedging.note(1000, Duration::from_secs(100));
        }
        assert_eq!(hedging.delay(1000), Some(DELAY_MAX));
    }

    #[test]
    fn the_budget_holds() {
        let hedging = Hedging::default();
        assert!(!hedging.take());
        let mut hedges = 0;
        for _ in 0..10_000 {
            hedging.note(1, Duration::ZERO);
            hedges += u32::from(hedging.take());
        }
        assert!((450..=500).contains(&hedges), "{hedges}");
        for _ in 0..10_000 {
            hedging.note(1, Duration::ZERO);
        }
        assert_eq!(
            std::iter::repeat_with(|| hedging.take()).take_while(|took| *took).count(),
            BURST as usize
        );
    }
}
