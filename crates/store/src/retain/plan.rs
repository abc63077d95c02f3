//! How far retention moves a log start. Pure.
//!
//! Kafka's rules (KIP-32, `log.retention.*`), with extents in the place of its segments:
//! 1. By time: from the front, an extent goes while its greatest timestamp lies more than `retention.ms` back; the first that
//!    stays ends it. An extent without any timestamp counts as old as its object.
//! 2. By bytes: from the front, an extent goes while the log without it still has at least `retention.bytes`.
//! 3. Whole extents only; the log start comes to lie at the beginning of the first that stays, or at the high watermark.
//!
//! An indexed stretch is asked for its extents ([`Step::Open`]) only when it neither goes nor stays whole.

use isobar_metadata::config_table::TopicSettings;
use isobar_metadata::{Extent, Found, IndexPointer, PartitionView};

/// What a topic's configs say; -1: without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `retention.ms`.
    pub retention_ms: i64,
    /// `retention.bytes`, of each partition.
    pub retention_bytes: i64,
}

impl Policy {
    /// `None`: nothing is ever deleted.
    pub fn of(settings: &TopicSettings) -> Option<Self> {
        let policy = Self { retention_ms: settings.retention_ms, retention_bytes: settings.retention_bytes };
        let bounded = policy.retention_ms >= 0 || policy.retention_bytes >= 0;
        (settings.cleanup_delete && bounded).then_some(policy)
    }
}

/// Contiguous offsets that go or stay together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// One past its last offset.
    pub end_offset: i64,
    /// Bytes of its batches.
    pub size_bytes: u64,
    /// The greatest in it, or when its object was written if no record has one.
    pub max_timestamp_ms: i64,
}

impl Piece {
    fn of(extent: &Extent, written_ms: i64) -> Self {
        Self {
            end_offset: extent.end_offset(),
            size_bytes: extent.size_bytes,
            max_timestamp_ms: timestamp_or(extent.max_timestamp_ms, written_ms),
        }
    }
}

fn timestamp_or(timestamp_ms: i64, written_ms: i64) -> i64 {
    if timestamp_ms >= 0 { timestamp_ms } else { written_ms }
}

/// How far to go.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// The log start comes to lie here; `None`: where it is.
    Done(Option<i64>),
    /// Some of what this lists goes: [`Walk::opened`] wants its extents.
    Open(IndexPointer),
}

/// Retention's walk along one partition, from its log start.
pub struct Walk<'a> {
    view: &'a PartitionView,
    policy: Policy,
    now_ms: i64,
    /// Bytes of the log from `next` on.
    left_bytes: u64,
    next: i64,
}

impl<'a> Walk<'a> {
    /// Begins. `now_ms`: the state machine's time.
    pub fn new(view: &'a PartitionView, policy: Policy, now_ms: i64) -> Self {
        let left_bytes = if policy.retention_bytes < 0 { 0 } else { size_bytes(view) };
        Self { view, policy, now_ms, left_bytes, next: view.log_start }
    }

    /// Goes on. `written_ms` says when an extent's bytes were written.
    pub fn step(&mut self, written_ms: &dyn Fn(&Extent) -> i64) -> Step {
        while let Some(found) = self.view.locate(self.next, &[]) {
            match found {
                Found::Extent(extent) => {
                    if !self.take(Piece::of(extent, written_ms(extent))) {
                        break;
                    }
                }
                Found::Indexed(pointer) => {
                    let whole = Piece {
                        end_offset: pointer.end_offset(),
                        size_bytes: pointer.bytes,
                        max_timestamp_ms: pointer.max_timestamp_ms,
                    };
                    // One whose greatest timestamp is none at all lists extents that have none.
                    if whole.max_timestamp_ms < 0 || !self.take(whole) {
                        return Step::Open(pointer.clone());
                    }
                }
            }
        }
        Step::Done((self.next > self.view.log_start).then_some(self.next))
    }

    /// The extents that the pointer lists. False: the walk has ended, and [`Walk::end`] says where.
    pub fn opened(&mut self, extents: &[Extent], written_ms: &dyn Fn(&Extent) -> i64) -> bool {
        let inside = extents.iter().filter(|extent| extent.last_offset >= self.view.log_start);
        for extent in inside {
            if extent.end_offset() > self.next && !self.take(Piece::of(extent, written_ms(extent))) {
                return false;
            }
        }
        true
    }

    /// Where the log start comes to lie by what was seen so far; `None`: where it is.
    pub fn end(&self) -> Option<i64> {
        (self.next > self.view.log_start).then_some(self.next)
    }

    /// Lets a piece go if the policy says so.
    fn take(&mut self, piece: Piece) -> bool {
        let Policy { retention_ms, retention_bytes } = self.policy;
        let is_old = retention_ms >= 0 && self.now_ms.saturating_sub(piece.max_timestamp_ms) > retention_ms;
        let without = self.left_bytes.saturating_sub(piece.size_bytes);
        let is_surplus = u64::try_from(retention_bytes)
            .is_ok_and(|keep| self.left_bytes >= piece.size_bytes && without >= keep);
        if !(is_old || is_surplus) {
            return false;
        }
        self.left_bytes = without;
        self.next = piece.end_offset.min(self.view.high_watermark);
        true
    }
}

/// Bytes of the log, as far as whole extents tell: one that the log start cuts counts whole, as Kafka's segments do.
pub fn size_bytes(view: &PartitionView) -> u64 {
    let (mut next, mut sum) = (view.log_start, 0);
    while let Some(found) = view.locate(next, &[]) {
        sum += found.size_bytes();
        next = found.end_offset();
    }
    sum
}

#[cfg(test)]
mod tests;
