//! Prepares segments ahead, puts recycled ones away, claims the life: everything slow that no append should wait for.
//!
//! Order of effects
//! - A new file is filled with zeroes under a name that means nothing, gets its header, is synced, and only then gets
//!   its name as a segment; the directory is synced before the writer hears of it. So a segment that has
//!   frames is whole, and a synced frame's file cannot lose its name.
//! - A recycled file gives up its name as a segment, durably, before anything in it is overwritten. So a file with a
//!   segment's name never has another's header.
//!
//! Crash cases: a file between names is a spare, or (`.new`) is removed at the next opening. A segment whose recycling
//! was not yet durable is back, with its old frames; its owner knows that they mean nothing and gives it back again.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use isobar_host::{AlignedBuf, DiskFile, Open};

use crate::error::JournalError;
use crate::frame::BLOCK_BYTES;
use crate::lives;
use crate::segment::{Identity, Segment, new_path, spare_path};
use crate::shared::Shared;

const FILL_BYTES: usize = 1 << 20;

pub(crate) struct Spare {
    pub(crate) path: PathBuf,
    pub(crate) capacity: u64,
}

pub(crate) struct Keeper {
    shared: Arc<Shared>,
    spares: Vec<Spare>,
    /// Length of the newest segment; 0 before the first.
    newest_bytes: u64,
    /// Where this life begins.
    start: u64,
    /// A filled file that did not get its name, for want of space.
    unfinished: Option<PathBuf>,
}

/// What came of a round.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Round {
    Worked,
    Idle,
    /// No space: to be tried again after a while.
    Full,
    Exit,
}

enum Chore {
    PutAway(Arc<Segment>),
    Claim,
    Prepare { min_capacity: u64 },
}

impl Keeper {
    pub(crate) fn new(shared: Arc<Shared>, spares: Vec<Spare>, newest_bytes: u64, start: u64) -> Self {
        Self { shared, spares, newest_bytes, start, unfinished: None }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Does one chore, if there is one.
    pub(crate) fn round(&mut self) -> Round {
        let Some(chore) = self.next() else {
            if !*self.shared.writer_ended.borrow() {
                return Round::Idle;
            }
            self.note_clean_end();
            return Round::Exit;
        };
        match self.work(chore) {
            Ok(()) => Round::Worked,
            Err(error) if error.is_disk_full() => {
                self.shared.core.lock().out_of_space();
                self.shared.writer_wake.poke();
                // Closing does not wait for space: what waits is refused, and then there is nothing left to prepare for.
                if *self.shared.writer_ended.borrow() { Round::Exit } else { Round::Full }
            }
            Err(error) => {
                self.shared.stop(&JournalError::stopped(error.to_string()));
                Round::Worked
            }
        }
    }

    /// Space is made before it is asked for.
    fn next(&self) -> Option<Chore> {
        if let Some(segment) = self.shared.recycled.lock().pop() {
            return Some(Chore::PutAway(segment));
        }
        let core = self.shared.core.lock();
        if core.stopped().is_some() || *self.shared.writer_ended.borrow() {
            return None;
        }
        if core.needs_claim() {
            return Some(Chore::Claim);
        }
        core.wants_segment().map(|min_capacity| Chore::Prepare { min_capacity })
    }

    fn work(&mut self, chore: Chore) -> Result<(), JournalError> {
        match chore {
            Chore::PutAway(segment) => self.put_away(&segment),
            Chore::Claim => self.claim(),
            Chore::Prepare { min_capacity } => self.prepare(min_capacity),
        }
    }

    /// Makes this life's number durable before it is used.
    pub(crate) fn claim(&mut self) -> Result<(), JournalError> {
        let shared = &self.shared;
        let lowest = shared.segments.read().keys().next().copied().unwrap_or(self.start);
        let (lives, life) = shared.lives.read().claimed(self.start, lowest);
        let path = shared.dir.join(lives::NAME);
        (shared.point)("journal.claim");
        shared.disk.write_durable(&path, &lives.encode()).map_err(JournalError::io(&path))?;
        (shared.point)("journal.claimed");
        *shared.lives.write() = Arc::new(lives);
        shared.core.lock().claimed(life);
        shared.room.notify_waiters();
        shared.writer_wake.poke();
        Ok(())
    }

    fn prepare(&mut self, min_capacity: u64) -> Result<(), JournalError> {
        let shared = Arc::clone(&self.shared);
        let (id, base) = shared.core.lock().next_segment();
        (shared.point)("journal.prepare");
        let spare = self.fitting_spare(min_capacity);
        let (unnamed, file, capacity) = match spare {
            Some(index) => {
                let path = self.spares[index].path.clone();
                let file =
                    shared.disk.open(&path, self.how(Open::READ_WRITE)).map_err(JournalError::io(&path))?;
                (path, file, self.spares[index].capacity)
            }
            None => self.make(id, min_capacity)?,
        };
        let identity = Identity { id, base, capacity };
        let key = shared.lives.read().key;
        let mut block = AlignedBuf::unpooled(BLOCK_BYTES);
        identity.encode(key, &mut block);
        let written = file.write_at(&[IoSlice::new(&block)], 0).and_then(|()| file.sync_data());
        written.map_err(JournalError::io(&unnamed))?;
        (shared.point)("journal.prepare.header");
        let path = shared.dir.join(identity.file_name());
        shared.disk.rename(&unnamed, &path).map_err(JournalError::io(&path))?;
        spare.map(|index| self.spares.swap_remove(index));
        (shared.point)("journal.prepare.named");
        shared.disk.sync_dir(&shared.dir).map_err(JournalError::io(&shared.dir))?;
        (shared.point)("journal.prepared");
        self.unfinished = None;
        self.newest_bytes = capacity;
        shared.segments.write().insert(base, Arc::new(Segment::new(identity, path, file)));
        shared.core.lock().prepared(identity);
        shared.options.metrics.prepared.inc();
        shared.note_segments();
        shared.room.notify_waiters();
        shared.writer_wake.poke();
        Ok(())
    }

    fn how(&self, how: Open) -> Open {
        if self.shared.options.direct { how.direct() } else { how }
    }

    fn fitting_spare(&self, min_capacity: u64) -> Option<usize> {
        let fitting = self.spares.iter().enumerate().filter(|(_, spare)| spare.capacity >= min_capacity);
        fitting.max_by_key(|(_, spare)| spare.capacity).map(|(index, _)| index)
    }

    /// A new file, its blocks written once, so that later writes change no metadata.
    fn make(
        &mut self,
        id: u64,
        min_capacity: u64,
    ) -> Result<(PathBuf, Box<dyn DiskFile>, u64), JournalError> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let grown = if self.newest_bytes == 0 { options.first_segment_bytes } else { self.newest_bytes * 2 };
        let capacity =
            grown.min(options.segment_bytes).max(min_capacity).next_multiple_of(BLOCK_BYTES as u64);
        let files = shared.segments.read().values().map(|segment| segment.identity.capacity).sum::<u64>()
            + self.spares.iter().map(|spare| spare.capacity).sum::<u64>();
        if options.bytes_max.is_some_and(|max| files + capacity > max) {
            return Err(JournalError::DiskFull);
        }
        let path = new_path(&shared.dir, id);
        if self.unfinished.take().is_some() {
            shared.disk.remove(&path).map_err(JournalError::io(&path))?;
        }
        let made = self.fill(&path, capacity);
        if made.is_err() {
            // Gives the space back; if it stays, the next opening removes it.
            let _ = shared.disk.remove(&path);
        }
        let file = made.map_err(JournalError::io(&path))?;
        self.unfinished = Some(path.clone());
        (shared.point)("journal.prepare.filled");
        Ok((path, file, capacity))
    }

    fn fill(&self, path: &std::path::Path, capacity: u64) -> io::Result<Box<dyn DiskFile>> {
        let file = self.shared.disk.open(path, self.how(Open::CREATE))?;
        file.allocate(capacity)?;
        let zeroes = AlignedBuf::unpooled(FILL_BYTES);
        let mut at = 0;
        while at < capacity {
            let len = (capacity - at).min(FILL_BYTES as u64);
            file.write_at(&[IoSlice::new(&zeroes[..len as usize])], at)?;
            at += len;
        }
        Ok(file)
    }

    fn put_away(&mut self, segment: &Segment) -> Result<(), JournalError> {
        let shared = Arc::clone(&self.shared);
        let capacity = segment.identity.capacity;
        // Segments of a young journal are small; keeping them would keep it from growing up.
        let keep = !segment.damaged
            && capacity >= shared.options.segment_bytes
            && self.spares.len() < shared.options.spare_segments;
        (shared.point)("journal.recycle");
        let spare = spare_path(&shared.dir, segment.identity.id);
        let changed =
            if keep { shared.disk.rename(&segment.path, &spare) } else { shared.disk.remove(&segment.path) };
        changed.map_err(JournalError::io(&segment.path))?;
        (shared.point)("journal.recycle.renamed");
        shared.disk.sync_dir(&shared.dir).map_err(JournalError::io(&shared.dir))?;
        (shared.point)("journal.recycled");
        if keep {
            self.spares.push(Spare { path: spare, capacity });
        }
        Ok(())
    }

    /// A clean end says so: everything below was synced, so that damage at the very end is not taken for a torn one.
    fn note_clean_end(&self) {
        let shared = &self.shared;
        let (synced, running) = {
            let core = shared.core.lock();
            (core.synced_position(), core.stopped().is_none() && !core.needs_claim())
        };
        let lives = shared.lives.read().ended(synced);
        if running
            && let Err(error) = shared.disk.write_durable(&shared.dir.join(lives::NAME), &lives.encode())
        {
            tracing::warn!(%error, dir = %shared.dir.display(), "journal closed without its note");
        }
    }
}
