//! The journal's decisions, without I/O: what is written next, where, and who hears of it.
//!
//! Invariants
//! 1. One group at a time is being written. It lies in one segment, frame behind frame.
//! 2. A frame's `synced_before` is the end of the last group that was synced.
//! 3. Callbacks are handed back in the order of the appends, whatever their outcome.
//! 4. A segment is left only with a seal behind its last frame, and room for it is always kept.
//! 5. After a failure nothing is ever written again. Disk full is no failure: what waits is refused as one, and so is
//!    what comes, until there is space, so no frame is written whose predecessor was refused in between.

use std::collections::VecDeque;

use crate::error::JournalError;
use crate::frame::{Frame, KIND_SEAL, Stamp};
use crate::segment::{FIRST_OFFSET, Identity, OVERHEAD_BYTES, SEAL_BYTES};

/// Bounds of what is gathered and what may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) group_bytes: u64,
    pub(crate) group_frames: usize,
    pub(crate) queue_bytes: u64,
    pub(crate) segment_bytes: u64,
}

pub(crate) struct Queued<D> {
    pub(crate) frame: Frame,
    pub(crate) done: D,
}

/// Frames to be written and synced together.
pub(crate) struct Group<D> {
    pub(crate) segment: Identity,
    /// Where in the file it starts.
    pub(crate) offset: u64,
    pub(crate) generation: u64,
    pub(crate) synced_before: u64,
    pub(crate) frames: Vec<Queued<D>>,
    /// Ends the segment behind the frames.
    pub(crate) seal: bool,
    pub(crate) bytes: u64,
}

impl<D> Group<D> {
    /// The stamp of the frame at `offset` of the file.
    pub(crate) fn stamp_at(&self, offset: u64) -> Stamp {
        Stamp {
            generation: self.generation,
            position: self.segment.base + offset,
            synced_before: self.synced_before,
        }
    }
}

pub(crate) enum Step<D> {
    /// Nothing waits.
    Wait,
    /// What waits needs a segment or a life first.
    WaitForKeeper,
    Write(Group<D>),
    /// Answer these with the error: disk full, or the journal has stopped.
    Refuse(Vec<D>, JournalError),
    /// Closed or stopped, and nothing waits.
    Exit,
}

#[derive(Debug, Clone)]
enum Mode {
    Open,
    /// Writes what waits, takes nothing more.
    Closing,
    Stopped(JournalError),
}

struct Place {
    identity: Identity,
    offset: u64,
}

pub(crate) struct Core<D> {
    limits: Limits,
    mode: Mode,
    queue: VecDeque<Queued<D>>,
    queued_bytes: u64,
    generation: Option<u64>,
    active: Option<Place>,
    prepared: VecDeque<Identity>,
    /// End of the newest segment, where the next will begin, and its id.
    next_base: u64,
    next_id: u64,
    synced: u64,
    in_flight: bool,
    /// The keeper found no space; cleared when it gets some.
    no_space: bool,
    refusing: bool,
}

impl<D> Core<D> {
    /// `active`: a segment and the offset where it goes on. `next`: id and base of the next segment to be made.
    pub(crate) fn new(
        limits: Limits,
        active: Option<(Identity, u64)>,
        prepared: VecDeque<Identity>,
        next: (u64, u64),
        synced: u64,
    ) -> Self {
        Self {
            limits,
            mode: Mode::Open,
            queue: VecDeque::new(),
            queued_bytes: 0,
            generation: None,
            active: active.map(|(identity, offset)| Place { identity, offset }),
            prepared,
            next_base: next.1,
            next_id: next.0,
            synced,
            in_flight: false,
            no_space: false,
            refusing: false,
        }
    }

    /// The largest frame that a segment holds.
    pub(crate) fn max_frame_bytes(&self) -> u64 {
        self.limits.segment_bytes - OVERHEAD_BYTES
    }

    /// Takes a frame. On an error nothing was taken and `done` is dropped.
    pub(crate) fn push(&mut self, frame: Frame, done: D) -> Result<(), JournalError> {
        match &self.mode {
            Mode::Open => {}
            Mode::Closing => return Err(JournalError::Closed),
            Mode::Stopped(error) => return Err(error.clone()),
        }
        let bytes = u64::from(frame.len());
        let max_bytes = self.max_frame_bytes();
        if frame.kind() == KIND_SEAL {
            return Err(JournalError::ReservedKind(KIND_SEAL));
        }
        if bytes > max_bytes {
            return Err(JournalError::TooLarge { bytes, max_bytes });
        }
        if self.refusing {
            return Err(JournalError::DiskFull);
        }
        // One frame is always taken, however large, or it could never be.
        if !self.queue.is_empty() && self.queued_bytes + bytes > self.limits.queue_bytes {
            return Err(JournalError::QueueFull);
        }
        self.queued_bytes += bytes;
        self.queue.push_back(Queued { frame, done });
        Ok(())
    }

    /// What the writer does next.
    pub(crate) fn step(&mut self) -> Step<D> {
        if self.in_flight {
            return Step::Wait;
        }
        if self.queue.is_empty() {
            return if matches!(self.mode, Mode::Open) { Step::Wait } else { Step::Exit };
        }
        if let Mode::Stopped(error) = &self.mode {
            let error = error.clone();
            return Step::Refuse(self.drain(), error);
        }
        let Some(generation) = self.generation else { return self.wait_for_keeper() };
        if self.active.is_none() {
            match self.prepared.pop_front() {
                Some(identity) => self.active = Some(Place { identity, offset: FIRST_OFFSET }),
                None => return self.wait_for_keeper(),
            }
        }
        match self.gather(generation) {
            Some(group) => {
                self.in_flight = true;
                Step::Write(group)
            }
            None => self.wait_for_keeper(),
        }
    }

    fn wait_for_keeper(&mut self) -> Step<D> {
        if !self.no_space {
            return Step::WaitForKeeper;
        }
        self.refusing = true;
        Step::Refuse(self.drain(), JournalError::DiskFull)
    }

    fn drain(&mut self) -> Vec<D> {
        self.queued_bytes = 0;
        self.queue.drain(..).map(|queued| queued.done).collect()
    }

    /// As many waiting frames as the bounds and the segment take; with a seal if the next does not fit and there is
    /// somewhere to go. `None` if there is not.
    fn gather(&mut self, generation: u64) -> Option<Group<D>> {
        let place = self.active.as_ref()?;
        let mut group = Group {
            segment: place.identity,
            offset: place.offset,
            generation,
            synced_before: self.synced,
            frames: Vec::new(),
            seal: false,
            bytes: 0,
        };
        while let Some(next) = self.queue.front() {
            let bytes = u64::from(next.frame.len());
            if group.offset + group.bytes + bytes + SEAL_BYTES > group.segment.capacity {
                group.seal = !self.prepared.is_empty();
                break;
            }
            let full = group.bytes + bytes > self.limits.group_bytes && !group.frames.is_empty();
            if full || group.frames.len() == self.limits.group_frames {
                break;
            }
            group.bytes += bytes;
            group.frames.extend(self.queue.pop_front());
        }
        self.queued_bytes -= group.bytes;
        if group.seal {
            group.bytes += SEAL_BYTES;
        }
        (group.bytes > 0).then_some(group)
    }

    /// The group is written and synced.
    pub(crate) fn synced(&mut self, group: &Group<D>) {
        self.in_flight = false;
        let end = group.offset + group.bytes;
        self.synced = group.segment.base + end;
        match &mut self.active {
            Some(_) if group.seal => self.active = None,
            Some(place) => place.offset = end,
            None => {}
        }
    }

    /// Stops for good, with the first error that is given. Who waits is answered by the writer's next step, behind the
    /// group in flight.
    pub(crate) fn stop(&mut self, error: JournalError) {
        if !matches!(self.mode, Mode::Stopped(_)) {
            self.mode = Mode::Stopped(error);
        }
    }

    /// The group in flight failed.
    pub(crate) fn failed(&mut self, error: JournalError) {
        self.in_flight = false;
        self.stop(error);
    }

    pub(crate) fn close(&mut self) {
        if matches!(self.mode, Mode::Open) {
            self.mode = Mode::Closing;
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.mode, Mode::Open)
    }

    pub(crate) fn stopped(&self) -> Option<JournalError> {
        match &self.mode {
            Mode::Stopped(error) => Some(error.clone()),
            Mode::Open | Mode::Closing => None,
        }
    }

    pub(crate) fn synced_position(&self) -> u64 {
        self.synced
    }

    pub(crate) fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    pub(crate) fn is_refusing(&self) -> bool {
        self.refusing
    }

    /// The keeper's part: the life is durable.
    pub(crate) fn claimed(&mut self, generation: u64) {
        self.generation = Some(generation);
        self.found_space();
    }

    pub(crate) fn needs_claim(&self) -> bool {
        self.generation.is_none()
    }

    /// Smallest capacity of the segment that is wanted now: one ahead, once a quarter of the active one is used.
    pub(crate) fn wants_segment(&self) -> Option<u64> {
        let waiting = self.queue.front().map_or(0, |next| u64::from(next.frame.len()));
        match &self.active {
            _ if !self.prepared.is_empty() => None,
            None => Some(waiting + OVERHEAD_BYTES),
            Some(place) => {
                let full = place.offset + waiting + SEAL_BYTES > place.identity.capacity;
                let used = place.offset > place.identity.capacity / 4;
                (full || used).then_some(waiting + OVERHEAD_BYTES)
            }
        }
    }

    /// Id and base of the next segment.
    pub(crate) fn next_segment(&self) -> (u64, u64) {
        (self.next_id, self.next_base)
    }

    /// The keeper's part: the next segment is durable and can be written to.
    pub(crate) fn prepared(&mut self, identity: Identity) {
        self.next_id = identity.id + 1;
        self.next_base = identity.end();
        self.prepared.push_back(identity);
        self.found_space();
    }

    pub(crate) fn out_of_space(&mut self) {
        self.no_space = true;
    }

    fn found_space(&mut self) {
        self.no_space = false;
        self.refusing = false;
    }
}

#[cfg(test)]
mod tests;
