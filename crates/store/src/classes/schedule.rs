//! Whose request is next. Pure.
//!
//! Rules
//! 1. All classes together have at most `requests` and `bytes` under way, and each at most its own share; the shares of those
//!    below `Tail` add up to less than the whole, so a tail read never waits for them to end.
//! 2. `Tail` and `Control` go first, in this order. Among the others the one that has moved the fewest bytes for its weight
//!    goes next, so each gets its part while all are busy, none starves, and what one leaves is the others'.
//! 3. Within a class: in the order of coming. The first that does not fit waits, and those behind it: a large request is not
//!    overtaken for ever by small ones.
//! 4. A request larger than its class's share goes when the class has nothing under way.

use std::collections::VecDeque;

use super::Class;

/// A place in a queue; grows.
pub(crate) type Ticket = u64;

/// A class's share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClassLimits {
    /// Requests under way.
    pub requests: u32,
    /// Bytes under way.
    pub bytes: u64,
    /// Its part of the bytes while others want some too.
    pub weight: u64,
}

/// Bounds of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests under way, all classes.
    pub requests: u32,
    /// Bytes under way, all classes.
    pub bytes: u64,
    /// For each class, in the order of [`Class::ALL`].
    pub classes: [ClassLimits; 5],
}

impl Default for Limits {
    fn default() -> Self {
        let class = |requests, mib: u64, weight| ClassLimits { requests, bytes: mib << 20, weight };
        Self {
            requests: 80,
            bytes: 256 << 20,
            // Tail, CatchUp, Upload, Compaction, Control.
            classes: [
                class(32, 64, 1),
                class(16, 64, 4),
                class(16, 96, 8),
                class(8, 32, 1),
                class(16, 16, 1),
            ],
        }
    }
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<(Ticket, u64)>,
    requests: u32,
    bytes: u64,
    /// Bytes moved over weight, in the lanes' common time.
    pass: u64,
}

#[derive(Default)]
pub(crate) struct Schedule {
    limits: Limits,
    lanes: [Lane; 5],
    requests: u32,
    bytes: u64,
    tickets: Ticket,
    /// The pass of the lane that was served last: where a lane that was idle begins.
    now: u64,
}

/// A request moves at least this much for the purpose of weighing, so that empty ones count.
const LEAST_BYTES: u64 = 16 << 10;

impl Schedule {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(crate) fn enqueue(&mut self, class: Class, bytes: u64) -> Ticket {
        let ticket = self.tickets;
        self.tickets += 1;
        let lane = &mut self.lanes[class as usize];
        if lane.queue.is_empty() && lane.requests == 0 {
            // What it did not use while it was idle is gone.
            lane.pass = lane.pass.max(self.now);
        }
        lane.queue.push_back((ticket, bytes));
        ticket
    }

    pub(crate) fn cancel(&mut self, ticket: Ticket) {
        for lane in &mut self.lanes {
            lane.queue.retain(|(queued, _)| *queued != ticket);
        }
    }

    /// Takes the next request that may start now.
    pub(crate) fn next(&mut self) -> Option<(Ticket, Class, u64)> {
        let mut best: Option<(u64, Class)> = None;
        for class in [Class::Tail, Class::Control, Class::CatchUp, Class::Upload, Class::Compaction] {
            let lane = &self.lanes[class as usize];
            let Some(&(_, bytes)) = lane.queue.front() else { continue };
            if !self.fits(class, bytes) {
                continue;
            }
            if matches!(class, Class::Tail | Class::Control) {
                best = Some((0, class));
                break;
            }
            if best.is_none_or(|(pass, _)| lane.pass < pass) {
                best = Some((lane.pass, class));
            }
        }
        let (_, class) = best?;
        let (ticket, bytes) = self.lanes[class as usize].queue.pop_front()?;
        self.start(class, bytes);
        Some((ticket, class, bytes))
    }

    /// Starts a request that does not wait, if nobody of its class does and it fits.
    pub(crate) fn try_start(&mut self, class: Class, bytes: u64) -> bool {
        let may = self.lanes[class as usize].queue.is_empty() && self.fits(class, bytes);
        if may {
            self.start(class, bytes);
        }
        may
    }

    fn fits(&self, class: Class, bytes: u64) -> bool {
        let (lane, limits) = (&self.lanes[class as usize], &self.limits.classes[class as usize]);
        let own = lane.requests < limits.requests && lane.bytes + bytes <= limits.bytes;
        let all = self.requests < self.limits.requests && self.bytes + bytes <= self.limits.bytes;
        (own && all) || lane.requests == 0
    }

    fn start(&mut self, class: Class, bytes: u64) {
        let lane = &mut self.lanes[class as usize];
        lane.requests += 1;
        lane.bytes += bytes;
        self.requests += 1;
        self.bytes += bytes;
        if !matches!(class, Class::Tail | Class::Control) {
            self.now = self.now.max(lane.pass);
            lane.pass += bytes.max(LEAST_BYTES) / self.limits.classes[class as usize].weight.max(1);
        }
    }

    pub(crate) fn finish(&mut self, class: Class, bytes: u64) {
        let lane = &mut self.lanes[class as usize];
        lane.requests -= 1;
        lane.bytes -= bytes;
        self.requests -= 1;
        self.bytes -= bytes;
    }

    pub(crate) fn load(&self, class: Class) -> (u32, u64, usize) {
        let lane = &self.lanes[class as usize];
        (lane.requests, lane.bytes, lane.queue.len())
    }
}
