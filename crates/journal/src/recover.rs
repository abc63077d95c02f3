//! What a directory holds, and which of it counts: the rules of recovery, shared by opening and inspecting.
//!
//! A place where no genuine frame starts is a *hole*. In a healthy journal the only holes are the unwritten rest of the
//! active segment and whole prepared ones. Let S be the highest `synced_before` of all genuine frames, also of those
//! behind a hole, and of the `lives` file. Then
//!
//! 1. a hole that begins at or above S is the torn end: the journal is cut there, and whole frames behind it go with it
//!    (they were never acknowledged: nothing at or above S was);
//! 2. a hole that begins below S is damage: those bytes had been synced. Opening fails, or, where the caller allows it,
//!    reports the region and goes on with the good frames on both sides;
//! 3. a segment that was left behind ends in a seal, so the end of a damaged segment is no guess, whatever became of its
//!    neighbours. If the file of the segment where the journal goes on, or of one
//!    prepared behind it, was cut so short that no seal fits, it grows by one.
//!
//! What is cut cannot come back: see `lives.rs`. What is kept above S may not be on stable storage yet (it can be in a
//! page cache, even as "clean" after a failed sync), so opening writes it again, in place and the same, and syncs it
//! before anyone believes it. Opening changes nothing else, so a crash within it changes nothing.

use std::io::IoSlice;
use std::path::{Path, PathBuf};

use isobar_host::buffer::ALIGN;
use isobar_host::{AlignedBuf, BufferPool, Disk, DiskFile, Open};

use crate::error::JournalError;
use crate::frame::{BLOCK_BYTES, Frame, FrameError, Header, KIND_SEAL};
use crate::lives::{self, Lives};
use crate::report::{Damage, Recovered, Report, Torn};
use crate::scan::{Item, Scan};
use crate::segment::{FIRST_OFFSET, Identity, Named, SEAL_BYTES};

/// A segment as it was found.
pub(crate) struct Found {
    pub(crate) identity: Identity,
    pub(crate) path: PathBuf,
    pub(crate) file: Box<dyn DiskFile>,
    /// End of the last frame that counts, within the file.
    pub(crate) end: u64,
    pub(crate) sealed: bool,
    pub(crate) damaged: bool,
}

/// A directory's files.
pub(crate) struct Survey {
    /// `None`: there is no such file. `Some(None)`: it is damaged.
    pub(crate) lives: Option<Option<Lives>>,
    /// By id; bases rise too.
    pub(crate) segments: Vec<Found>,
    pub(crate) spares: Vec<PathBuf>,
    /// Files that were never finished.
    pub(crate) leftovers: Vec<PathBuf>,
    /// Of all names; ids are not used twice.
    pub(crate) highest_id: u64,
}

pub(crate) fn survey(disk: &dyn Disk, dir: &Path, how: Open) -> Result<Survey, JournalError> {
    let mut found = Survey {
        lives: None,
        segments: Vec::new(),
        spares: Vec::new(),
        leftovers: Vec::new(),
        highest_id: 0,
    };
    for name in disk.list(dir).map_err(JournalError::io(dir))? {
        let path = dir.join(&name);
        match Named::of(&name) {
            Named::Segment { id, base } => {
                found.highest_id = found.highest_id.max(id);
                let file = disk.open(&path, how).map_err(JournalError::io(&path))?;
                let capacity = file.len().map_err(JournalError::io(&path))?;
                let identity = Identity { id, base, capacity };
                let whole = whole_blocks(base) == base;
                if identity.checked_end().is_none() || id == u64::MAX || !whole {
                    let what = "no segment can have this name: its positions are not whole blocks, or they or its id have \
                                no successor"
                        .to_owned();
                    return Err(JournalError::Damaged {
                        damage: vec![damage_of_file(&path, Some(id), capacity, what)],
                    });
                }
                found.segments.push(Found {
                    identity,
                    path,
                    file,
                    end: FIRST_OFFSET,
                    sealed: false,
                    damaged: false,
                });
            }
            Named::Spare { id } => {
                found.spares.push(path);
                found.highest_id = found.highest_id.max(id);
            }
            Named::New => found.leftovers.push(path),
            Named::Other if name == lives::NAME => {
                let bytes = disk.read(&path).map_err(JournalError::io(&path))?;
                found.lives = Some(Lives::decode(&bytes));
            }
            Named::Other => {}
        }
    }
    found.segments.sort_by_key(|segment| segment.identity.id);
    for pair in found.segments.windows(2) {
        let (before, after) = (&pair[0].identity, &pair[1].identity);
        if before.id == after.id || after.base < before.end() {
            let what = "this segment overlaps the one in front of it".to_owned();
            return Err(JournalError::Damaged {
                damage: vec![damage_of_file(&pair[1].path, Some(after.id), after.capacity, what)],
            });
        }
    }
    Ok(found)
}

pub(crate) fn damage_of_file(path: &Path, segment: Option<u64>, len: u64, what: String) -> Damage {
    Damage { path: path.to_owned(), segment, from: 0, to: len, what }
}

/// A place without a genuine frame.
struct Hole {
    segment: usize,
    from: u64,
    to: u64,
    why: FrameError,
}

/// Frames behind the first hole, whose worth is known only at the end.
struct Held {
    segment: usize,
    offset: u64,
}

struct Walk<'a> {
    segments: &'a mut [Found],
    lives: &'a Lives,
    pool: &'a BufferPool,
    on_frame: &'a mut (dyn FnMut(Recovered) + Send),
    report: Report,
    synced: u64,
    holes: Vec<Hole>,
    held: Vec<Held>,
}

/// Where the journal goes on.
pub(crate) struct Judged {
    pub(crate) report: Report,
    /// Index of the segment that is cut, which is the active one; `None` if the next frame needs a new segment.
    pub(crate) active: Option<usize>,
    /// Everything below was synced before this opening.
    pub(crate) synced: u64,
}

/// Reads all segments, hands over every frame that counts, in order, and decides where the end is.
pub(crate) fn judge(
    segments: &mut [Found],
    lives: &Lives,
    pool: &BufferPool,
    on_frame: &mut (dyn FnMut(Recovered) + Send),
) -> Result<Judged, JournalError> {
    let report = Report { segments: segments.len(), ..Report::default() };
    let synced = whole_blocks(lives.synced);
    let mut walk =
        Walk { segments, lives, pool, on_frame, report, synced, holes: Vec::new(), held: Vec::new() };
    for index in 0..walk.segments.len() {
        walk.check_header(index)?;
        walk.segment(index)?;
    }
    let active = walk.cut();
    walk.deliver_held()?;
    if let Some(index) = active {
        walk.leave_room_for_seals(index)?;
    }
    Ok(Judged { active, synced: walk.synced, report: walk.report })
}

/// Frames begin and end with blocks, and so do synced positions; one that does not was made up, and must not lead anywhere else.
pub(crate) fn whole_blocks(position: u64) -> u64 {
    position - position % BLOCK_BYTES as u64
}

impl Walk<'_> {
    fn check_header(&mut self, index: usize) -> Result<(), JournalError> {
        let found = &mut self.segments[index];
        let mut block = AlignedBuf::unpooled(BLOCK_BYTES);
        if found.identity.capacity >= BLOCK_BYTES as u64 {
            found.file.read_at(&mut block, 0).map_err(JournalError::io(&found.path))?;
        }
        if !found.identity.is_in(self.lives.key, &block) {
            found.damaged = true;
            let what = "the segment's header is not what its name and length say".to_owned();
            let damage = damage_of_file(&found.path, Some(found.identity.id), BLOCK_BYTES as u64, what);
            self.report.damage.push(damage);
        }
        Ok(())
    }

    fn segment(&mut self, index: usize) -> Result<(), JournalError> {
        let found = &mut self.segments[index];
        let identity = found.identity;
        let mut scan = Scan::new(identity, &*found.file, self.lives, self.pool);
        let mut hole: Option<Hole> = None;
        let mut at = FIRST_OFFSET;
        while let Some(item) = scan.next().map_err(JournalError::io(&found.path))? {
            match item {
                Item::Frame { offset, header, frame } => {
                    self.holes.extend(hole.take());
                    self.synced = self.synced.max(whole_blocks(header.stamp.synced_before));
                    at = offset + u64::from(header.frame_bytes);
                    if self.holes.is_empty() {
                        found.end = at;
                        deliver(&mut self.report, self.on_frame, identity, header, frame);
                    } else {
                        self.held.push(Held { segment: index, offset });
                    }
                    if header.kind == KIND_SEAL {
                        found.sealed = true;
                        return Ok(());
                    }
                }
                Item::Other { offset, why: why @ FrameError::Version(_), .. } => {
                    // Its CRC is right: a newer Isobar wrote it, and cutting there would throw its log away.
                    return Err(JournalError::Corrupt {
                        path: found.path.clone(),
                        offset,
                        what: why.to_string(),
                    });
                }
                Item::Other { offset, len, why } => {
                    let hole = hole.get_or_insert(Hole { segment: index, from: offset, to: offset, why });
                    hole.to = offset + len;
                    at = hole.to;
                }
            }
        }
        let capacity = identity.capacity;
        let mut last = hole.unwrap_or(Hole { segment: index, from: at, to: at, why: FrameError::NoFrame });
        last.to = capacity;
        self.holes.push(last);
        Ok(())
    }

    /// Applies rules 1 and 2 to the holes. Answers the active segment.
    fn cut(&mut self) -> Option<usize> {
        let mut cut = None;
        for hole in std::mem::take(&mut self.holes) {
            let found = &mut self.segments[hole.segment];
            let base = found.identity.base;
            if base + hole.from >= self.synced {
                cut = Some((hole.segment, hole.from, hole.why));
                break;
            }
            found.damaged = true;
            let to = hole.to.min(self.synced - base);
            self.report.damage.push(Damage {
                path: found.path.clone(),
                segment: Some(found.identity.id),
                from: hole.from,
                to,
                what: hole.why.to_string(),
            });
            if to < hole.to {
                cut = Some((hole.segment, to, FrameError::NoFrame));
                break;
            }
        }
        let Some((index, offset, why)) = cut else {
            let end = self.segments.last().map_or(0, |found| found.identity.end());
            // A file can have been cut anywhere.
            self.report.end = end.next_multiple_of(BLOCK_BYTES as u64).max(self.lives.last_start());
            return None;
        };
        let found = &self.segments[index];
        self.report.end = found.identity.base + offset;
        let whole = self.held.len();
        self.held.retain(|held| (held.segment, held.offset) < (index, offset));
        let frames_dropped = (whole - self.held.len()) as u64;
        if frames_dropped > 0 || why != FrameError::NoFrame {
            self.report.torn = Some(Torn { path: found.path.clone(), offset, frames_dropped });
        }
        // Seals behind the cut go with it.
        for (later, found) in self.segments.iter_mut().enumerate().skip(index) {
            found.sealed = false;
            if later == index {
                found.end = offset;
            }
        }
        Some(index)
    }

    /// In the segment where the journal goes on, and in those prepared behind it.
    fn leave_room_for_seals(&mut self, active: usize) -> Result<(), JournalError> {
        for index in active..self.segments.len() {
            let next_base = self.segments.get(index + 1).map_or(u64::MAX, |next| next.identity.base);
            let found = &mut self.segments[index];
            let needed =
                found.identity.capacity.max(found.end + SEAL_BYTES).next_multiple_of(BLOCK_BYTES as u64);
            found.identity.capacity = needed;
            if found.identity.checked_end().is_none_or(|end| end > next_base) {
                let what = "there is no room for a seal in front of the next segment".to_owned();
                let damage = vec![damage_of_file(&found.path, Some(found.identity.id), needed, what)];
                return Err(JournalError::Damaged { damage });
            }
        }
        Ok(())
    }

    /// Good frames behind damage.
    fn deliver_held(&mut self) -> Result<(), JournalError> {
        for held in std::mem::take(&mut self.held) {
            let found = &mut self.segments[held.segment];
            let path = &found.path;
            let mut scan = Scan::from(found.identity, &*found.file, self.lives, self.pool, held.offset);
            match scan.next().map_err(JournalError::io(path))? {
                Some(Item::Frame { header, frame, offset }) => {
                    found.end = found.end.max(offset + u64::from(header.frame_bytes));
                    deliver(&mut self.report, self.on_frame, found.identity, header, frame);
                }
                _ => {
                    let what = "a frame was good at first and is not any more".to_owned();
                    return Err(JournalError::Corrupt { path: path.clone(), offset: held.offset, what });
                }
            }
        }
        Ok(())
    }
}

fn deliver(
    report: &mut Report,
    on_frame: &mut (dyn FnMut(Recovered) + Send),
    identity: Identity,
    header: Header,
    frame: Frame,
) {
    if header.kind == KIND_SEAL {
        return;
    }
    report.frames += 1;
    report.bytes += u64::from(header.frame_bytes);
    on_frame(Recovered {
        position: header.stamp.position,
        segment: identity.id,
        len: header.frame_bytes,
        kind: header.kind,
        frame,
    });
}

/// Makes sure that what was kept above `synced` is on stable storage.
pub(crate) fn settle(segments: &[Found], synced: u64, pool: &BufferPool) -> Result<(), JournalError> {
    const PIECE_BYTES: u64 = 1 << 20;
    for found in segments {
        let base = found.identity.base;
        let mut at = FIRST_OFFSET.max(synced.saturating_sub(base));
        if at >= found.end {
            continue;
        }
        while at < found.end {
            let len = (found.end - at).min(PIECE_BYTES) as usize;
            debug_assert!(len.is_multiple_of(ALIGN));
            let mut buf = pool.take(len);
            found.file.read_at(&mut buf[..len], at).map_err(JournalError::io(&found.path))?;
            found.file.write_at(&[IoSlice::new(&buf[..len])], at).map_err(JournalError::io(&found.path))?;
            at += len as u64;
        }
        found.file.sync_data().map_err(JournalError::io(&found.path))?;
    }
    Ok(())
}
