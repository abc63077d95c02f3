//! What the handle, the writer and the keeper of one journal share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::disk::DirLock;
use isobar_host::watch;
use isobar_host::{BufferPool, Disk};
use parking_lot::{Condvar, Mutex, RwLock};
use tokio::sync::Notify;

use crate::core::Core;
use crate::error::JournalError;
use crate::frame::{BLOCK_BYTES, Frame, FrameError, Header};
use crate::lives::Lives;
use crate::options::Options;
use crate::segment::{Segment, Segments};

/// Where a frame was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Where it starts; rises from frame to frame. No two acknowledged frames ever share one.
    pub position: u64,
    pub segment: u64,
    /// Bytes on disk, padding included.
    pub len: u32,
}

pub(crate) type Done = Box<dyn FnOnce(Result<Written, JournalError>) + Send>;

/// Wakes a thread or a task; a poke that comes before the wait is not lost.
#[derive(Default)]
pub(crate) struct Wake {
    poked: Mutex<bool>,
    thread: Condvar,
    task: Notify,
}

impl Wake {
    pub(crate) fn poke(&self) {
        let mut poked = self.poked.lock();
        if !*poked {
            *poked = true;
            drop(poked);
            self.thread.notify_one();
            self.task.notify_one();
        }
    }

    pub(crate) fn wait_blocking(&self, at_most: Option<Duration>) {
        let mut poked = self.poked.lock();
        match at_most {
            Some(at_most) if !*poked => {
                self.thread.wait_for(&mut poked, at_most);
            }
            Some(_) => {}
            None => {
                while !*poked {
                    self.thread.wait(&mut poked);
                }
            }
        }
        *poked = false;
    }

    pub(crate) async fn wait(&self, at_most: Option<Duration>) {
        match at_most {
            Some(at_most) => drop(tokio::time::timeout(at_most, self.task.notified()).await),
            None => self.task.notified().await,
        }
        *self.poked.lock() = false;
    }
}

pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) dir: PathBuf,
    pub(crate) options: Options,
    pub(crate) point: Box<dyn Fn(&'static str) + Send + Sync>,
    pub(crate) core: Mutex<Core<Done>>,
    pub(crate) segments: Segments,
    pub(crate) lives: RwLock<Arc<Lives>>,
    /// Segments given back and not yet put away.
    pub(crate) recycled: Mutex<Vec<Arc<Segment>>>,
    pub(crate) writer_wake: Wake,
    pub(crate) keeper_wake: Wake,
    /// Told when the queue has shrunk, space was given back or found, and when the journal stops.
    pub(crate) room: Notify,
    pub(crate) writer_ended: watch::Sender<bool>,
    pub(crate) keeper_ended: watch::Sender<bool>,
    pub(crate) pool: BufferPool,
    /// Held until nothing of this journal touches the disk.
    pub(crate) lock: Mutex<Option<DirLock>>,
}

impl Shared {
    pub(crate) fn append(&self, frame: Frame, done: Done) -> Result<(), JournalError> {
        let mut core = self.core.lock();
        let taken = core.push(frame, done);
        let queued = core.queued_bytes();
        drop(core);
        self.note_queued(queued);
        taken.inspect_err(|error| self.count_refused(1, error))?;
        self.writer_wake.poke();
        Ok(())
    }

    pub(crate) fn note_queued(&self, bytes: u64) {
        self.options.metrics.queued_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    pub(crate) fn count_refused(&self, count: usize, error: &JournalError) {
        if matches!(error, JournalError::DiskFull) {
            self.options.metrics.refused.inc_by(count as u64);
        }
    }

    /// Stops for good. The writer tells who waits.
    pub(crate) fn stop(&self, error: &JournalError) {
        tracing::error!(%error, dir = %self.dir.display(), "journal stops");
        self.core.lock().stop(error.clone());
        self.options.metrics.stopped.set(1);
        self.room.notify_waiters();
        self.writer_wake.poke();
        self.keeper_wake.poke();
    }

    pub(crate) fn close(&self) {
        self.core.lock().close();
        self.room.notify_waiters();
        self.writer_wake.poke();
        self.keeper_wake.poke();
    }

    pub(crate) fn sealed_segments(&self) -> Vec<u64> {
        let segments = self.segments.read();
        segments.values().filter(|segment| segment.is_sealed()).map(|segment| segment.identity.id).collect()
    }

    pub(crate) fn recycle(&self, id: u64) {
        let segment = {
            let mut segments = self.segments.write();
            let found =
                segments.values().find(|s| s.identity.id == id && s.is_sealed()).map(|s| s.identity.base);
            found.and_then(|base| segments.remove(&base))
        };
        if let Some(segment) = segment {
            self.options.metrics.recycled.inc();
            self.recycled.lock().push(segment);
            self.note_segments();
            self.room.notify_waiters();
            self.keeper_wake.poke();
        }
    }

    pub(crate) fn bytes_live(&self) -> u64 {
        self.segments.read().values().map(|segment| segment.used_bytes()).sum()
    }

    pub(crate) fn note_segments(&self) {
        let (count, bytes) = {
            let segments = self.segments.read();
            (segments.len(), segments.values().map(|segment| segment.used_bytes()).sum::<u64>())
        };
        self.options.metrics.segments.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.options.metrics.live_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The segment that holds a synced position.
    pub(crate) fn locate(&self, position: u64) -> Result<Arc<Segment>, JournalError> {
        let not_found = JournalError::NotFound { position };
        let segments = self.segments.read();
        let (base, segment) = segments.range(..=position).next_back().ok_or_else(|| not_found.clone())?;
        if position - base < segment.end() { Ok(Arc::clone(segment)) } else { Err(not_found) }
    }

    /// Reads frames and checks all of each. The segment may be recycled meanwhile; then they are not found.
    pub(crate) fn read(&self, segment: &Segment, places: &[(u64, u32)]) -> Result<Vec<Frame>, JournalError> {
        self.read_checked(segment, places).map_err(|error| {
            if self.segments.read().get(&segment.identity.base).is_none() {
                return JournalError::NotFound { position: places.first().map_or(0, |place| place.0) };
            }
            if matches!(error, JournalError::Corrupt { .. }) {
                self.options.metrics.corrupt_reads.inc();
            }
            error
        })
    }

    fn read_checked(&self, segment: &Segment, places: &[(u64, u32)]) -> Result<Vec<Frame>, JournalError> {
        let (Some(&(first, _)), Some(&(last, last_bytes))) = (places.first(), places.last()) else {
            return Ok(Vec::new());
        };
        let offset = first - segment.identity.base;
        let bytes = (last - first) as usize + last_bytes as usize;
        if !offset.is_multiple_of(BLOCK_BYTES as u64) || offset + bytes as u64 > segment.end() {
            return Err(JournalError::NotFound { position: first });
        }
        let lives = Arc::clone(&self.lives.read());
        let mut buf = self.pool.take(bytes);
        segment.file.read_at(&mut buf[..bytes], offset).map_err(JournalError::io(&segment.path))?;
        let run = buf.freeze();
        let mut frames = Vec::with_capacity(places.len());
        for &(position, len) in places {
            let at = (position - first) as usize;
            match whole_frame(&lives, run.slice(at..at + len as usize), position) {
                Ok(frame) => frames.push(frame),
                Err(_) if !frames.is_empty() => break,
                Err(why) => {
                    let (path, what) = (segment.path.clone(), why.to_string());
                    return Err(JournalError::Corrupt { path, offset, what });
                }
            }
        }
        Ok(frames)
    }
}

/// The frame that lies at `position`, if these are its bytes, all of them as they were written.
fn whole_frame(lives: &Lives, bytes: Bytes, position: u64) -> Result<Frame, FrameError> {
    let header = Header::decode(&bytes, lives.key)?;
    let stamp = header.stamp;
    let is_it = stamp.position == position && lives.owns(stamp.generation, position);
    if !is_it || header.frame_bytes as usize != bytes.len() {
        return Err(FrameError::NoFrame);
    }
    Frame::check(bytes, header)
}
