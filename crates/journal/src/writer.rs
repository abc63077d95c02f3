//! Writes and syncs groups: one thread (or, simulated, one task) per journal.
//!
//! The stamp of a frame is known only when it is written, and a sealed frame is immutable and shared. So the first block
//! of each frame is copied into a scratch block and stamped there; everything behind it is written from where it lies.

use std::io::IoSlice;
use std::sync::Arc;

use isobar_host::AlignedBuf;
use isobar_host::buffer::ALIGN;
use tokio::time::Instant;

use crate::core::{Group, Step};
use crate::error::JournalError;
use crate::frame::{BLOCK_BYTES, Frame, FrameWriter, HEADER_BYTES, KIND_SEAL};
use crate::segment::Segment;
use crate::shared::{Done, Shared, Written};

/// Two parts a frame and a seal stay below the 1024 parts of one write.
pub(crate) const GROUP_FRAMES_MAX: usize = 500;

pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// First blocks, one behind the other.
    scratch: AlignedBuf,
    seal: Frame,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        let seal = FrameWriter::new(AlignedBuf::unpooled(BLOCK_BYTES)).seal(KIND_SEAL, &[]);
        Self { shared, scratch: AlignedBuf::unpooled(64 * BLOCK_BYTES), seal }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What to do next; who is refused hears so here.
    pub(crate) fn step(&mut self) -> Step<Done> {
        loop {
            let step = self.shared.core.lock().step();
            match step {
                Step::Refuse(waiting, error) => self.refuse(waiting, &error),
                Step::WaitForKeeper => {
                    self.shared.keeper_wake.poke();
                    return step;
                }
                Step::Write(_) => {
                    self.shared.room.notify_waiters(); // what was gathered has left the queue
                    return step;
                }
                Step::Wait | Step::Exit => return step,
            }
        }
    }

    fn refuse(&self, waiting: Vec<Done>, error: &JournalError) {
        tracing::warn!(%error, dir = %self.shared.dir.display(), appends = waiting.len(), "journal refuses");
        self.shared.count_refused(waiting.len(), error);
        self.shared.note_queued(0);
        for done in waiting {
            done(Err(error.clone()));
        }
        self.shared.room.notify_waiters();
    }

    /// Writes and syncs one group and tells who waits for it.
    pub(crate) fn run(&mut self, group: Group<Done>) {
        let result = self.write(&group).and_then(|segment| self.sync(segment));
        self.finish(group, result);
    }

    pub(crate) fn write(&mut self, group: &Group<Done>) -> Result<Arc<Segment>, JournalError> {
        let segment = self.shared.segments.read().get(&group.segment.base).cloned();
        let segment = segment.ok_or_else(|| JournalError::stopped("the active segment is gone"))?;
        (self.shared.point)("journal.write");
        let begun = Instant::now();
        self.write_parts(group, &segment).map_err(|error| {
            JournalError::stopped(format!("write to {}: {error}", segment.path.display()))
        })?;
        self.shared.options.metrics.write_seconds.observe(begun.elapsed().as_secs_f64());
        (self.shared.point)("journal.written");
        Ok(segment)
    }

    fn write_parts(&mut self, group: &Group<Done>, segment: &Segment) -> std::io::Result<()> {
        let key = self.shared.lives.read().key;
        let frames = group.frames.len() + usize::from(group.seal);
        if self.scratch.capacity() < frames * BLOCK_BYTES {
            self.scratch = AlignedBuf::unpooled(frames * BLOCK_BYTES);
        }
        let all = || group.frames.iter().map(|queued| &queued.frame).chain(group.seal.then_some(&self.seal));
        let mut at = group.offset;
        for (head, frame) in self.scratch.chunks_exact_mut(BLOCK_BYTES).zip(all()) {
            head.copy_from_slice(&frame.as_slice()[..BLOCK_BYTES]);
            head[..HEADER_BYTES].copy_from_slice(&frame.stamped(group.stamp_at(at)).encode(key));
            at += u64::from(frame.len());
        }
        let direct = segment.file.is_direct();
        // A frame that was read or received lies anywhere; a direct write wants it aligned.
        let bodies: Vec<Body<'_>> = all().map(|frame| Body::of(frame, direct)).collect();
        let mut parts = Vec::with_capacity(2 * frames);
        let mut heads_from = 0;
        for (index, body) in bodies.iter().enumerate() {
            let body = body.bytes();
            if !body.is_empty() || index + 1 == bodies.len() {
                let heads = heads_from * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
                parts.push(IoSlice::new(&self.scratch[heads]));
                heads_from = index + 1;
            }
            if !body.is_empty() {
                parts.push(IoSlice::new(body));
            }
        }
        segment.file.write_at(&parts, group.offset)
    }

    pub(crate) fn sync(&self, segment: Arc<Segment>) -> Result<Arc<Segment>, JournalError> {
        let begun = Instant::now();
        segment
            .file
            .sync_data()
            .map_err(|error| JournalError::stopped(format!("sync of {}: {error}", segment.path.display())))?;
        self.shared.options.metrics.sync_seconds.observe(begun.elapsed().as_secs_f64());
        (self.shared.point)("journal.synced");
        Ok(segment)
    }

    /// Books the outcome and calls back, in order.
    pub(crate) fn finish(&mut self, group: Group<Done>, result: Result<Arc<Segment>, JournalError>) {
        let segment = match result {
            Ok(segment) => segment,
            Err(error) => {
                self.shared.core.lock().failed(error.clone());
                self.shared.stop(&error);
                for queued in group.frames {
                    (queued.done)(Err(error.clone()));
                }
                return;
            }
        };
        segment.set_end(group.offset + group.bytes);
        if group.seal {
            segment.seal();
        }
        let (wants_segment, queued) = {
            let mut core = self.shared.core.lock();
            core.synced(&group);
            (core.wants_segment().is_some(), core.queued_bytes())
        };
        let metrics = &self.shared.options.metrics;
        metrics.appended_bytes.inc_by(group.bytes);
        metrics.frames.inc_by(group.frames.len() as u64);
        metrics.groups.inc();
        metrics.group_bytes.observe(group.bytes as f64);
        self.shared.note_queued(queued);
        if wants_segment {
            self.shared.keeper_wake.poke();
        }
        if group.seal {
            self.shared.note_segments();
            (self.shared.point)("journal.rotated");
        }
        let mut position = group.segment.base + group.offset;
        for queued in group.frames {
            let len = queued.frame.len();
            (queued.done)(Ok(Written { position, segment: group.segment.id, len }));
            position += u64::from(len);
        }
    }
}

/// What of a frame is written from where it lies.
enum Body<'a> {
    There(&'a [u8]),
    Moved(AlignedBuf, usize),
}

impl<'a> Body<'a> {
    fn of(frame: &'a Frame, direct: bool) -> Self {
        let body = &frame.as_slice()[BLOCK_BYTES..];
        if !direct || (body.as_ptr() as usize).is_multiple_of(ALIGN) {
            return Self::There(body);
        }
        let mut moved = AlignedBuf::unpooled(body.len());
        moved[..body.len()].copy_from_slice(body);
        Self::Moved(moved, body.len())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::There(bytes) => bytes,
            Self::Moved(buf, len) => &buf[..*len],
        }
    }
}
