//! Reads a segment from front to back and tells frames from everything else.

use std::io;

use bytes::Bytes;
use isobar_host::{BufferPool, DiskFile};

use crate::frame::{BLOCK_BYTES, Frame, FrameError, Header};
use crate::lives::Lives;
use crate::segment::{FIRST_OFFSET, Identity};

/// Bytes read at a time.
const WINDOW_BYTES: u64 = 8 << 20;

/// One step through a segment.
pub(crate) enum Item {
    /// A genuine frame, checked to the last byte.
    Frame { offset: u64, header: Header, frame: Frame },
    /// Anything else: never written, older than this use of the file, cut off, torn or damaged.
    Other { offset: u64, len: u64, why: FrameError },
}

/// Walks a segment's blocks.
pub(crate) struct Scan<'a> {
    identity: Identity,
    file: &'a dyn DiskFile,
    lives: &'a Lives,
    pool: &'a BufferPool,
    offset: u64,
    window: Bytes,
    window_start: u64,
}

impl<'a> Scan<'a> {
    pub(crate) fn new(
        identity: Identity,
        file: &'a dyn DiskFile,
        lives: &'a Lives,
        pool: &'a BufferPool,
    ) -> Self {
        Self::from(identity, file, lives, pool, FIRST_OFFSET)
    }

    /// Starts at `offset`.
    pub(crate) fn from(
        identity: Identity,
        file: &'a dyn DiskFile,
        lives: &'a Lives,
        pool: &'a BufferPool,
        offset: u64,
    ) -> Self {
        Self { identity, file, lives, pool, offset, window: Bytes::new(), window_start: 0 }
    }

    /// The next step, or `None` at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Item>> {
        let offset = self.offset;
        if offset + BLOCK_BYTES as u64 > self.identity.capacity {
            return Ok(None);
        }
        let (len, why) = match self.header_at(offset)? {
            Ok(header) => match self.frame_at(offset, header)? {
                Ok(frame) => {
                    self.offset += u64::from(header.frame_bytes);
                    return Ok(Some(Item::Frame { offset, header, frame }));
                }
                // Its header is genuine, so its length is: what its body holds is not looked at as frames.
                Err(why) => (u64::from(header.frame_bytes), why),
            },
            Err(why) => (BLOCK_BYTES as u64, why),
        };
        self.offset += len;
        Ok(Some(Item::Other { offset, len, why }))
    }

    fn header_at(&mut self, offset: u64) -> io::Result<Result<Header, FrameError>> {
        let identity = self.identity;
        let block = self.read(offset, BLOCK_BYTES as u64)?;
        let header = Header::decode(&block, self.lives.key);
        Ok(header.and_then(|header| {
            let genuine = header.stamp.position == identity.base + offset
                && self.lives.owns(header.stamp.generation, header.stamp.position)
                && offset + u64::from(header.frame_bytes) <= identity.capacity;
            if genuine { Ok(header) } else { Err(FrameError::NoFrame) }
        }))
    }

    fn frame_at(&mut self, offset: u64, header: Header) -> io::Result<Result<Frame, FrameError>> {
        let bytes = self.read(offset, u64::from(header.frame_bytes))?;
        Ok(Frame::check(bytes, header))
    }

    /// A slice of the file, from the window if it has it. Within the file by the checks above.
    fn read(&mut self, offset: u64, len: u64) -> io::Result<Bytes> {
        let end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || offset + len > end {
            let want = len.max(WINDOW_BYTES).min(self.identity.capacity - offset) as usize;
            self.window = Bytes::new(); // back to the pool before the next is taken
            let mut buf = self.pool.take(want);
            self.file.read_at(&mut buf[..want], offset)?;
            self.window = buf.freeze().slice(..want);
            self.window_start = offset;
        }
        let from = (offset - self.window_start) as usize;
        Ok(self.window.slice(from..from + len as usize))
    }
}
