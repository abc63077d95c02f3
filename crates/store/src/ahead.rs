//! How far to read ahead of one reader. Pure.
//!
//! A reader that moves on from block to block gets requests of 1, 2, 4, … blocks up to a bound, as Linux's read-ahead does: the
//! next one is sent when the reader enters what the last one brought, if there is room for both, else when it has reached
//! its end. One who jumps begins anew; one who stops causes nothing more. So a single read of one batch costs one block, and a
//! long one few requests.

use std::ops::Range;

/// What bounds a request now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// First block that the reader cannot need: the end of its run.
    pub(crate) end: u32,
    /// Blocks in one request, at most; at least 1.
    pub(crate) request_max: u32,
    /// Blocks that may be read ahead now, over all readers.
    pub(crate) room: u32,
}

/// One reader's read-ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Ahead {
    /// Blocks of the last request; 0: there was none.
    window: u32,
    /// First block that was not requested yet.
    next: u32,
    /// The reader's reaching this block sends the next request.
    trigger: u32,
}

impl Ahead {
    /// The same reader goes on in another object.
    pub(crate) fn elsewhere(self) -> Self {
        Self { window: self.window, next: 0, trigger: 0 }
    }

    /// The reader needs `block`: what to request now. Begins with `block` if that was not requested before.
    pub(crate) fn touch(&mut self, block: u32, limits: Limits) -> Range<u32> {
        if block >= self.next {
            // It waits for this one; what comes along with it costs no request.
            let window = self.grown(limits);
            self.window = window;
            self.next = reach(block, window, limits.end);
            self.trigger = block + 1;
            return block..self.next;
        }
        if block < self.trigger || self.next >= limits.end {
            return block..block;
        }
        let window = self.grown(limits);
        let end = reach(self.next, window, limits.end);
        let ahead = self.next..end;
        // Half the room: others read ahead too.
        if ahead.len() as u32 > limits.room / 2 {
            return block..block;
        }
        self.window = window;
        self.trigger = ahead.start;
        self.next = end;
        ahead
    }

    fn grown(&self, limits: Limits) -> u32 {
        (self.window * 2).clamp(1, limits.request_max.max(1))
    }
}

/// Where a request from `start` ends: a rest that is not worth a request of its own comes along.
fn reach(start: u32, window: u32, end: u32) -> u32 {
    let reach = start.saturating_add(window);
    if reach.saturating_add(window / 2) >= end { end.max(start + 1) } else { reach }
}

#[cfg(test)]
mod tests;
