//! How many retries a bucket may make.
//!
//! A store that fails gets fewer requests, not more: every retry takes a token, every success gives a tenth back, and time
//! gives some, so that a lasting storm sees no more than the callers' own requests and a few probes a second. A retry that
//! finds no token waits its turn, as long as its deadline allows.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Retries that may come at once.
const CAPACITY: f64 = 50.0;
/// Retries a second, whatever happens.
const PER_SECOND: f64 = 5.0;
/// What a success gives back.
const PER_SUCCESS: f64 = 0.1;

pub(super) struct Budget {
    state: Mutex<State>,
}

struct State {
    /// Below zero: retries that wait for their turn.
    tokens: f64,
    at: Option<Instant>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { state: Mutex::new(State { tokens: CAPACITY, at: None }) }
    }

    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        state.tokens = (state.tokens + PER_SUCCESS).min(CAPACITY);
    }

    /// Takes a token; how long to wait until it is there. `None`: it would not be there within `longest`, and is not taken.
    pub(super) fn take(&self, longest: Duration) -> Option<Duration> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(before) = state.at.replace(now) {
            let gained = now.saturating_duration_since(before).as_secs_f64() * PER_SECOND;
            state.tokens = (state.tokens + gained).min(CAPACITY);
        }
        let missing = 1.0 - state.tokens;
        let wait =
            if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / PER_SECOND) };
        if wait > longest {
            return None;
        }
        state.tokens -= 1.0;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_held_to_a_few_a_second_and_success_restores() {
        let budget = Budget::new();
        let mut at_once = 0;
        while budget.take(Duration::ZERO).is_some() {
            at_once += 1;
        }
        assert_eq!(at_once, 50);
        // Those who may wait get turns one after the other.
        let waits: Vec<_> = (0..5).map(|_| budget.take(Duration::from_secs(60)).unwrap()).collect();
        for (turn, wait) in (1..).zip(&waits) {
            let expected = f64::from(turn) / PER_SECOND;
            assert!((wait.as_secs_f64() - expected).abs() < 1e-6, "{turn}: {wait:?}");
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut later = 0;
        while budget.take(Duration::ZERO).is_some() {
            later += 1;
        }
        assert_eq!(later, 5, "10 of 2 seconds, of which 5 had been promised");
        for _ in 0..100 {
            budget.succeeded();
        }
        assert!((0..9).all(|_| budget.take(Duration::ZERO).is_some()));
    }
}
