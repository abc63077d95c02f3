//! What a bucket's last requests say about it.
//!
//! Reading, writing and deleting are told apart, because a full store still reads and deletes. A state changes on the first failure
//! that a person has to act on, or on the third in a row of any other, and back on the first success; each change is logged
//! once, with its remedy, and shown in `isobar_store_failing`.

use parking_lot::Mutex;

use super::Inner;
use crate::cause::{Cause, Failure};
use crate::metrics::{CauseLabels, FailingLabels};

/// Failures in a row that may pass, until they count as a state.
const PATIENCE: u32 = 3;

/// What is wrong with a store just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// What kind of thing.
    pub cause: Cause,
    /// The store's words.
    pub why: String,
    /// Since when, wall-clock milliseconds.
    pub since_ms: i64,
}

/// Whether a store reads, writes and deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketHealth {
    /// Why it does not read.
    pub reading: Option<Trouble>,
    /// Why it does not write.
    pub writing: Option<Trouble>,
    /// Why it does not delete.
    pub deleting: Option<Trouble>,
}

#[derive(Default)]
pub(super) struct HealthState {
    sides: Mutex<[Side; 3]>,
}

#[derive(Default)]
struct Side {
    in_a_row: u32,
    trouble: Option<Trouble>,
}

const READING: usize = 0;
const WRITING: usize = 1;
const DELETING: usize = 2;
const NAMES: [&str; 3] = ["reading", "writing", "deleting"];

fn side_of(op: &str) -> usize {
    match op {
        "put" | "create" => WRITING,
        "delete" => DELETING,
        _ => READING,
    }
}

impl HealthState {
    pub(super) fn get(&self) -> BucketHealth {
        let sides = self.sides.lock();
        BucketHealth {
            reading: sides[READING].trouble.clone(),
            writing: sides[WRITING].trouble.clone(),
            deleting: sides[DELETING].trouble.clone(),
        }
    }

    pub(super) fn succeeded(&self, inner: &Inner, op: &str) {
        let index = side_of(op);
        let side = &mut self.sides.lock()[index];
        side.in_a_row = 0;
        let Some(trouble) = side.trouble.take() else { return };
        inner.metrics.failing.get_or_create(&labels(inner, index, trouble.cause)).set(0);
        // The wall clock may have been set back.
        let lasted_ms = (inner.host.now_ms() - trouble.since_ms).max(0);
        tracing::info!(
            store = %inner.name, lasted_ms, cause = trouble.cause.name(),
            "{} the store works again", NAMES[index]
        );
    }

    pub(super) fn failed(&self, inner: &Inner, op: &str, failure: &Failure) {
        // An answer about an object, not about the store.
        if failure.not_found || failure.exists {
            return self.succeeded(inner, op);
        }
        let cause_labels = CauseLabels { store: inner.name.clone(), cause: failure.cause.name() };
        inner.metrics.failures.get_or_create(&cause_labels).inc();
        let index = side_of(op);
        let side = &mut self.sides.lock()[index];
        side.in_a_row = side.in_a_row.saturating_add(1);
        let counts = side.in_a_row >= PATIENCE || !failure.cause.may_pass();
        if !counts || side.trouble.as_ref().is_some_and(|known| known.cause == failure.cause) {
            return;
        }
        let since_ms = inner.host.now_ms();
        let trouble = Trouble { cause: failure.cause, why: failure.why.clone(), since_ms };
        if let Some(before) = side.trouble.replace(trouble) {
            inner.metrics.failing.get_or_create(&labels(inner, index, before.cause)).set(0);
        }
        inner.metrics.failing.get_or_create(&labels(inner, index, failure.cause)).set(1);
        tracing::error!(
            store = %inner.name, cause = failure.cause.name(), remedy = failure.cause.remedy(),
            "{} the store fails: {}", NAMES[index], failure.why
        );
    }
}

fn labels(inner: &Inner, side: usize, cause: Cause) -> FailingLabels {
    FailingLabels { store: inner.name.clone(), kind: NAMES[side], cause: cause.name() }
}
