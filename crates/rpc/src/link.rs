//! One connection after its handshake: frames out, frames in, and the signs of life. Both ends run this.
//!
//! Three things run side by side until one of them ends: the *writer* (takes frames from the end's [`Side`], seals and
//! writes them, vectored; pings when it has nothing to say), the *reader* (a task of its own; gives whole, checked frames
//! to the [`Side`], one after the other), and the *watch* on silence.
//!
//! Invariants:
//! 1. [`Side::frame`] is called for frames in the order in which they came, by one task, and never again once [`run`] has
//!    returned.
//! 2. [`Side::fill`] is called by one task, and never again once [`run`] has returned. What it has given out may have
//!    reached the peer; what it has not, has not.
//! 3. No memory is taken for a body before [`Side::admit`] has let it in, and then only as its bytes arrive.
//! 4. Silence is counted only while this end reads: an end that has stopped reading for lack of room calls nobody dead.
//!    An end that was itself held up (its timer came late) begins to count anew.

use std::collections::VecDeque;
use std::future::Future;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use isobar_host::{Conn, ReadHalf, Spawner, WriteHalf};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::error::{Ended, FrameError};
use crate::frame::{Frame, HEAD_BYTES, Head, Kind, Opener, Sealer};
use crate::metrics::ChannelMetrics;

/// What a reader takes off the socket at once; bodies larger than it are read straight into their own memory.
const READ_BUFFER_BYTES: usize = 16 << 10;
/// Memory that a body is given before its bytes arrive; from then on it doubles.
const FIRST_BODY_BYTES: usize = 1 << 20;
/// Bodies up to this are copied behind their heads, which costs less than a slice of their own.
const SMALL_BODY_BYTES: usize = 256;
/// A write begins with what is there, up to this.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_FRAMES: usize = 128;

/// Set once; whoever waits for it is woken.
#[derive(Debug, Default)]
pub(crate) struct Flag {
    set: AtomicBool,
    told: Notify,
}

impl Flag {
    pub(crate) fn set(&self) {
        self.set.store(true, Ordering::Release);
        self.told.notify_waiters();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.set.load(Ordering::Acquire)
    }

    pub(crate) async fn wait(&self) {
        let mut told = std::pin::pin!(self.told.notified());
        told.as_mut().enable();
        if !self.is_set() {
            told.await;
        }
    }
}

/// What the two ends do differently.
pub(crate) trait Side: Send + Sync + 'static {
    /// What a frame holds while it is read and handled.
    type Permit: Send;
    /// Looks at a head and waits until there is room for its body.
    fn admit(&self, head: &Head) -> impl Future<Output = Result<Self::Permit, FrameError>> + Send;
    /// Handles a frame. Must not block.
    fn frame(self: &Arc<Self>, head: Head, body: Bytes, permit: Self::Permit) -> Result<(), FrameError>;
    /// Gives out the frames to write next.
    fn fill(&self, batch: &mut Batch);
    /// All that was given out has been written.
    fn written(&self);
}

/// Timing of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) ping_interval: Duration,
    pub(crate) dead_after: Duration,
    pub(crate) write_stall: Duration,
}

/// What the parts of a connection share.
pub(crate) struct Link {
    pace: Pace,
    metrics: Arc<ChannelMetrics>,
    /// Wakes the writer: there is something to [`Side::fill`].
    pub(crate) wake: Arc<Notify>,
    began: Instant,
    heard_ms: AtomicU64,
    reads: AtomicBool,
    pong: Mutex<Option<u64>>,
    end: Flag,
    why: Mutex<Option<Ended>>,
}

impl Link {
    pub(crate) fn new(pace: Pace, metrics: Arc<ChannelMetrics>, wake: Arc<Notify>) -> Self {
        Self {
            pace,
            metrics,
            wake,
            began: Instant::now(),
            heard_ms: AtomicU64::new(0),
            reads: AtomicBool::new(true),
            pong: Mutex::default(),
            end: Flag::default(),
            why: Mutex::default(),
        }
    }

    /// Ends the connection; the first reason counts.
    pub(crate) fn end(&self, why: Ended) {
        self.why.lock().get_or_insert(why);
        self.end.set();
    }

    async fn ended(&self) -> Ended {
        self.end.wait().await;
        self.why.lock().clone().unwrap_or(Ended::Here("ended"))
    }

    fn heard(&self) {
        self.heard_ms.store(self.now_ms(), Ordering::Relaxed);
    }

    fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    async fn silence(&self) -> Ended {
        let allowed = self.pace.dead_after;
        loop {
            let heard = self.began + Duration::from_millis(self.heard_ms.load(Ordering::Relaxed));
            let until = heard + allowed;
            let now = Instant::now();
            if until > now {
                sleep_until(until).await;
                if until.elapsed() > self.pace.ping_interval / 2 {
                    // This process was held up; the peer's words may lie in the socket unread.
                    self.heard();
                }
            } else if self.reads.load(Ordering::Relaxed) {
                return Ended::Silence((now - heard).as_millis());
            } else {
                sleep(allowed).await;
            }
        }
    }
}

/// Runs a connection to its end.
pub(crate) async fn run<S: Side>(
    spawner: &Spawner,
    link: &Arc<Link>,
    conn: Conn,
    sealer: Sealer,
    opener: Opener,
    side: &Arc<S>,
) -> Ended {
    let (read, write) = conn.into_split();
    let reader = spawner.spawn("rpc-reader", {
        let (link, side) = (Arc::clone(link), Arc::clone(side));
        async move {
            // Also where a service or a callback panics.
            let _ends = EndOnDrop(&link, "a service panicked");
            let why = tokio::select! {
                biased;
                why = link.ended() => why,
                why = read_frames(&link, read, opener, &side) => why,
            };
            link.end(why);
        }
    });
    let _ends = EndOnDrop(link, "dropped");
    let why = tokio::select! {
        biased;
        why = link.ended() => why,
        why = link.silence() => why,
        why = write_frames(link, write, sealer, &**side) => why,
    };
    link.end(why.clone());
    reader.join().await;
    if let Ended::Frame(_) = why {
        link.metrics.malformed.inc();
    }
    if let Ended::Silence(_) | Ended::Stalled(_) = why {
        link.metrics.silent.inc();
    }
    why
}

/// Neither half of a connection outlives the other, however it goes.
struct EndOnDrop<'a>(&'a Link, &'static str);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end(Ended::Here(self.1));
    }
}

async fn read_frames<S: Side>(link: &Link, read: ReadHalf, mut opener: Opener, side: &Arc<S>) -> Ended {
    let mut read = BufReader::with_capacity(READ_BUFFER_BYTES, read);
    loop {
        if let Err(why) = read_frame(link, &mut read, &mut opener, side).await {
            return why;
        }
    }
}

async fn read_frame<S: Side>(
    link: &Link,
    read: &mut BufReader<ReadHalf>,
    opener: &mut Opener,
    side: &Arc<S>,
) -> Result<(), Ended> {
    let mut head = [0; HEAD_BYTES];
    let mut have = 0;
    while have < HEAD_BYTES {
        match read.read(&mut head[have..]).await? {
            0 if have == 0 => return Err(Ended::ByPeer),
            0 => return Err(Ended::Io("the connection ended inside a frame".to_owned())),
            n => have += n,
        }
        link.heard();
    }
    let head = opener.open(&head)?;
    link.metrics.received_bytes.inc_by((HEAD_BYTES + head.body_bytes) as u64);
    match head.kind {
        Kind::Ping => {
            *link.pong.lock() = Some(head.id);
            link.wake.notify_one();
            return Ok(());
        }
        Kind::Pong => {
            // The token is this end's clock; a wrong one spoils a figure, nothing else.
            let rtt_us = (link.began.elapsed().as_micros() as u64).saturating_sub(head.id);
            link.metrics.ping.observe(rtt_us as f64 / 1e6);
            return Ok(());
        }
        _ => {}
    }
    link.reads.store(false, Ordering::Relaxed);
    let permit = side.admit(&head).await?;
    link.heard();
    link.reads.store(true, Ordering::Relaxed);
    let body = read_body(link, read, opener, &head).await?;
    if link.end.is_set() {
        return Err(Ended::Here("ended"));
    }
    Ok(side.frame(head, body, permit)?)
}

async fn read_body(
    link: &Link,
    read: &mut BufReader<ReadHalf>,
    opener: &Opener,
    head: &Head,
) -> Result<Bytes, Ended> {
    let mut body: Vec<u8> = Vec::new();
    let mut sum = opener.key();
    while body.len() < head.body_bytes {
        let left = head.body_bytes - body.len();
        if body.len() == body.capacity() {
            body.reserve_exact(next_room(body.len(), left));
        }
        let had = body.len();
        let room = left.min(body.capacity() - had);
        if read.read_buf(&mut (&mut body).limit(room)).await? == 0 {
            return Err(Ended::Io("the connection ended inside a frame".to_owned()));
        }
        link.heard();
        sum = crc32c::crc32c_append(sum, &body[had..]);
    }
    opener.check_body(head, sum)?;
    Ok(Bytes::from(body))
}

/// Memory for the next bytes of a body: as much as has come, and never all that was told at once.
pub(crate) fn next_room(have_bytes: usize, left_bytes: usize) -> usize {
    left_bytes.min(have_bytes.max(FIRST_BODY_BYTES))
}

/// Frames on their way to the socket.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) frames: Vec<Frame>,
    body_bytes: usize,
}

impl Batch {
    pub(crate) fn push(&mut self, frame: Frame) {
        self.body_bytes += frame.body_bytes();
        self.frames.push(frame);
    }

    pub(crate) fn is_full(&self) -> bool {
        self.body_bytes >= BATCH_BYTES || self.frames.len() >= BATCH_FRAMES
    }
}

async fn write_frames<S: Side>(link: &Link, mut write: WriteHalf, mut sealer: Sealer, side: &S) -> Ended {
    let interval = link.pace.ping_interval;
    let mut sent = Instant::now();
    let mut idle = std::pin::pin!(sleep(interval));
    let mut batch = Batch::default();
    let mut heads = BytesMut::new();
    loop {
        if let Some(token) = link.pong.lock().take() {
            batch.push(Frame::bare(Kind::Pong, token, 0));
        }
        side.fill(&mut batch);
        if batch.frames.is_empty() {
            tokio::select! {
                biased;
                () = link.wake.notified() => {}
                () = &mut idle => {
                    if sent.elapsed() >= interval {
                        let token = link.began.elapsed().as_micros() as u64;
                        batch.push(Frame::bare(Kind::Ping, token, 0));
                    } else {
                        idle.as_mut().reset(sent + interval);
                    }
                }
            }
            if batch.frames.is_empty() {
                continue;
            }
        }
        let mut parts = Parts::default();
        for frame in batch.frames.drain(..) {
            let body_bytes = frame.body_bytes();
            let head = sealer.seal(&frame);
            heads.reserve(HEAD_BYTES + SMALL_BODY_BYTES);
            heads.put_slice(&head);
            if body_bytes <= SMALL_BODY_BYTES {
                frame.body.iter().for_each(|part| heads.put_slice(part));
            } else {
                parts.push(heads.split().freeze());
                frame.body.into_iter().for_each(|part| parts.push(part));
            }
        }
        parts.push(heads.split().freeze());
        link.metrics.sent_bytes.inc_by(parts.bytes as u64);
        while parts.has_remaining() {
            match timeout(link.pace.write_stall, write.write_buf(&mut parts)).await {
                Ok(Ok(0)) => return Ended::Io("the socket takes nothing".to_owned()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return Ended::Stalled(link.pace.write_stall.as_millis()),
            }
        }
        batch.body_bytes = 0;
        side.written();
        sent = Instant::now();
        if idle.is_elapsed() {
            idle.as_mut().reset(sent + interval);
        }
    }
}

/// Slices that are written one after the other.
#[derive(Default)]
struct Parts {
    parts: VecDeque<Bytes>,
    bytes: usize,
}

impl Parts {
    fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.bytes += part.len();
            self.parts.push_back(part);
        }
    }
}

impl Buf for Parts {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], |part| part)
    }

    fn advance(&mut self, mut count: usize) {
        self.bytes -= count;
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let filled = self.parts.len().min(slices.len());
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
        }
        filled
    }
}
