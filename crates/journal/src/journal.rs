//! The handle, and what drives writer and keeper: two threads, or, simulated, two tasks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use tokio::sync::oneshot;

use crate::core::Step;
use crate::engine::{Engine, Machine};
use crate::error::JournalError;
use crate::frame::Frame;
use crate::keeper::{Keeper, Round};
use crate::options::Options;
use crate::report::{Recovered, Report};
use crate::shared::{Shared, Written};
use crate::writer::Writer;

/// How long the keeper waits before it asks a full disk again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// An open journal. A clone is the same journal; when the last is dropped, what waits is still written in the
/// background; until then the directory cannot be opened again ([`close`](Self::close) waits for it).
#[derive(Clone)]
pub struct Journal {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    host: Host,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl Journal {
    /// Opens the journal in `dir`, made if it is not there, and hands every frame that was synced to `on_frame`, in the
    /// order of the appends; frames that were written and not acknowledged may come too. Reads the directory before it
    /// answers, in place. Only one may have it open: the directory is locked until it is closed.
    pub async fn open(
        host: &Host,
        dir: &Path,
        options: Options,
        on_frame: &mut (dyn FnMut(Recovered) + Send),
    ) -> Result<(Self, Report), JournalError> {
        let points = host.clone();
        let disk = host.disk();
        disk.create_dir_all(dir).map_err(JournalError::io(dir))?;
        let lock = disk.lock(dir).map_err(JournalError::io(dir))?;
        let machine = Machine {
            disk,
            lock: Some(lock),
            point: Box::new(move |name| points.crash_point(name)),
            key: host.random_u64() as u32,
        };
        let Engine { writer, keeper, report } = Engine::open(machine, dir, options, on_frame)?;
        let shared = Arc::clone(writer.shared());
        let journal = Self { handle: Arc::new(Handle { shared, host: host.clone() }) };
        if host.is_simulated() {
            let _ = host.spawn("journal-keeper", keep_in_task(keeper, host.clone()));
            let _ = host.spawn("journal", write_in_task(writer, host.clone()));
        } else {
            host.os_thread("journal-keeper", move || keep(keeper)).map_err(JournalError::io(dir))?;
            let started = host.os_thread("journal", move || write(writer)).map_err(JournalError::io(dir));
            if let Err(error) = started {
                let _ = journal.handle.shared.writer_ended.send_replace(true);
                return Err(error);
            }
        }
        Ok((journal, report))
    }

    /// Queues a frame. `done` is called once, in the order of the appends, from the journal's thread: it must be quick
    /// and must neither block nor panic. On an error here nothing was taken and `done` is dropped uncalled.
    pub fn append(
        &self,
        frame: Frame,
        done: impl FnOnce(Result<Written, JournalError>) + Send + 'static,
    ) -> Result<(), JournalError> {
        self.handle.shared.append(frame, Box::new(done))
    }

    /// Appends, waits for room in the queue if need be, and answers when the frame is synced.
    pub async fn append_wait(&self, frame: Frame) -> Result<Written, JournalError> {
        let shared = &self.handle.shared;
        loop {
            let mut room = std::pin::pin!(shared.room.notified());
            room.as_mut().enable();
            let (tell, told) = oneshot::channel();
            let taken = self.append(frame.clone(), move |result| {
                let _ = tell.send(result); // the waiter may have gone
            });
            match taken {
                Err(JournalError::QueueFull) => room.await,
                taken => {
                    taken?;
                    return told.await.unwrap_or(Err(JournalError::Closed));
                }
            }
        }
    }

    /// Reads synced frames of one segment by one read of the disk, which covers all that lies from the first of the `places`
    /// (position and length, in rising order) to the last: the caller bounds it. Every CRC is checked, and of the frames those
    /// before the first damaged one are returned; an error, if that is the first of all.
    pub async fn read(&self, places: Vec<(u64, u32)>) -> Result<Vec<Frame>, JournalError> {
        let Some(&(position, _)) = places.first() else { return Ok(Vec::new()) };
        let shared = Arc::clone(&self.handle.shared);
        let segment = shared.locate(position)?;
        let read = self.handle.host.run_blocking(move || shared.read(&segment, &places)).await;
        read.unwrap_or(Err(JournalError::Closed))
    }

    /// Nothing in this sealed segment is needed any more; in any order. Its frames are not found from now on, though
    /// after a crash they may be there once more. Anything but a sealed segment is left alone.
    pub fn recycle(&self, segment: u64) {
        self.handle.shared.recycle(segment);
    }

    /// Segments that are full, oldest first: those that may be recycled.
    pub fn sealed_segments(&self) -> Vec<u64> {
        self.handle.shared.sealed_segments()
    }

    /// Waits until `has_room`, which is asked now and whenever there may be more of it: the queue has shrunk, a segment was
    /// given back, a full disk has space again, the journal has stopped.
    pub async fn wait_for_room(&self, has_room: impl Fn() -> bool) {
        loop {
            let mut room = std::pin::pin!(self.handle.shared.room.notified());
            room.as_mut().enable();
            if has_room() {
                return;
            }
            room.await;
        }
    }

    /// The largest frame it takes: a frame lies in one segment.
    pub fn max_frame_bytes(&self) -> u64 {
        self.handle.shared.core.lock().max_frame_bytes()
    }

    /// Bytes of frames in segments in use.
    pub fn bytes_live(&self) -> u64 {
        self.handle.shared.bytes_live()
    }

    /// Bytes of frames that wait to be written.
    pub fn bytes_queued(&self) -> u64 {
        self.handle.shared.core.lock().queued_bytes()
    }

    /// Everything below this position is on stable storage.
    pub fn synced_position(&self) -> u64 {
        self.handle.shared.core.lock().synced_position()
    }

    /// Why it takes no appends, if it does not.
    pub fn refusal(&self) -> Option<JournalError> {
        let core = self.handle.shared.core.lock();
        match core.stopped() {
            None if core.is_refusing() => Some(JournalError::DiskFull),
            None if !core.is_open() => Some(JournalError::Closed),
            stopped => stopped,
        }
    }

    /// Writes and syncs what waits, takes nothing more, and answers when nothing of this journal touches the disk.
    pub async fn close(&self) {
        let shared = &self.handle.shared;
        shared.close();
        for ended in [&shared.writer_ended, &shared.keeper_ended] {
            // The sender lives in `shared`.
            let _ = ended.subscribe().wait_for(|ended| *ended).await;
        }
    }
}

#[derive(PartialEq)]
enum Part {
    Writer,
    Keeper,
}

/// Says that a thread or task has ended, also when it panicked: then nobody may wait for it in vain.
struct Ending {
    shared: Arc<Shared>,
    what: Part,
    orderly: bool,
}

impl Ending {
    fn new(shared: &Arc<Shared>, what: Part) -> Self {
        Self { shared: Arc::clone(shared), what, orderly: false }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.orderly {
            self.shared.stop(&JournalError::stopped("its thread has died"));
        }
        if self.what == Part::Keeper {
            // The last to go: it waits for the writer.
            *self.shared.lock.lock() = None;
        }
        let ended = match self.what {
            Part::Writer => &self.shared.writer_ended,
            Part::Keeper => &self.shared.keeper_ended,
        };
        ended.send_replace(true);
        self.shared.keeper_wake.poke();
    }
}

fn write(mut writer: Writer) {
    let shared = Arc::clone(writer.shared());
    let mut ending = Ending::new(&shared, Part::Writer);
    loop {
        match writer.step() {
            Step::Write(group) => writer.run(group),
            Step::Exit => break,
            _ => shared.writer_wake.wait_blocking(None),
        }
    }
    ending.orderly = true;
}

fn keep(mut keeper: Keeper) {
    let shared = Arc::clone(keeper.shared());
    let mut ending = Ending::new(&shared, Part::Keeper);
    loop {
        match keeper.round() {
            Round::Worked => {}
            Round::Idle => shared.keeper_wake.wait_blocking(None),
            Round::Full => shared.keeper_wake.wait_blocking(Some(FULL_RETRY)),
            Round::Exit => break,
        }
    }
    ending.orderly = true;
}

/// The same as a task, with time passing between the steps as a disk lets it.
async fn write_in_task(mut writer: Writer, host: Host) {
    let shared = Arc::clone(writer.shared());
    let mut ending = Ending::new(&shared, Part::Writer);
    loop {
        match writer.step() {
            Step::Write(group) => {
                disk_takes_a_moment(&host).await;
                let written = writer.write(&group);
                disk_takes_a_moment(&host).await;
                let sync = |segment| {
                    if host.sabotaged("journal-not-synced") { Ok(segment) } else { writer.sync(segment) }
                };
                let synced = written.and_then(sync);
                writer.finish(group, synced);
            }
            Step::Exit => break,
            _ => shared.writer_wake.wait(None).await,
        }
    }
    ending.orderly = true;
}

async fn keep_in_task(mut keeper: Keeper, host: Host) {
    let shared = Arc::clone(keeper.shared());
    let mut ending = Ending::new(&shared, Part::Keeper);
    loop {
        disk_takes_a_moment(&host).await;
        match keeper.round() {
            Round::Worked => {}
            Round::Idle => shared.keeper_wake.wait(None).await,
            Round::Full => shared.keeper_wake.wait(Some(FULL_RETRY)).await,
            Round::Exit => break,
        }
    }
    ending.orderly = true;
}

async fn disk_takes_a_moment(host: &Host) {
    tokio::time::sleep(Duration::from_micros(50 + host.random_u64() % 500)).await;
}
