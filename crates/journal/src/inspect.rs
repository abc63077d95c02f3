//! Reads a journal's directory as it lies there, for people. Changes nothing and claims nothing.

use std::path::{Path, PathBuf};

use isobar_host::{BufferPool, Disk, Open};

use crate::error::JournalError;
use crate::frame::{Frame, FrameError, KIND_SEAL};
use crate::lives::Lives;
use crate::recover::{self, Found, Survey};
use crate::report::Report;
use crate::scan::{Item, Scan};
use crate::segment::FIRST_OFFSET;

/// One thing found in a journal's directory.
#[derive(Debug, Clone)]
pub enum Inspected {
    /// A segment's file begins.
    Segment { path: PathBuf, id: u64, base: u64, capacity_bytes: u64, header_ok: bool },
    /// A genuine frame, in order within its segment; also one that opening would cut (see the end in `Done`). Its
    /// `stamp` tells life and position.
    Frame { offset: u64, frame: Frame },
    /// The segment ends here, in order.
    Seal { offset: u64 },
    /// No genuine frame: unused or cut off, or damaged; `Done` tells.
    Hole { from: u64, to: u64, why: FrameError },
    /// A recycled or unfinished file.
    Spare { path: PathBuf },
    /// What opening would make of it all, and the position below which everything had been synced.
    Done { report: Report, synced: u64 },
}

/// Shows all of the journal in `dir`. Frames come once here, though damaged journals are read twice.
pub fn inspect(disk: &dyn Disk, dir: &Path, each: &mut dyn FnMut(Inspected)) -> Result<(), JournalError> {
    let pool = BufferPool::new(4 << 20);
    let mut survey = recover::survey(disk, dir, Open::READ)?;
    let lives = match &survey.lives {
        Some(Some(lives)) => lives.clone(),
        _ => {
            let what = "missing or damaged: frames cannot be told from leftovers".to_owned();
            let path = dir.join(crate::lives::NAME);
            return Err(JournalError::Damaged {
                damage: vec![recover::damage_of_file(&path, None, 0, what)],
            });
        }
    };
    show_all(&survey, &lives, &pool, each)?;
    let judged = recover::judge(&mut survey.segments, &lives, &pool, &mut |_| {})?;
    each(Inspected::Done { report: judged.report, synced: judged.synced });
    Ok(())
}

fn show_all(
    survey: &Survey,
    lives: &Lives,
    pool: &BufferPool,
    each: &mut dyn FnMut(Inspected),
) -> Result<(), JournalError> {
    for found in &survey.segments {
        show(found, lives, pool, each)?;
    }
    for path in survey.spares.iter().chain(&survey.leftovers) {
        each(Inspected::Spare { path: path.clone() });
    }
    Ok(())
}

fn show(
    found: &Found,
    lives: &Lives,
    pool: &BufferPool,
    each: &mut dyn FnMut(Inspected),
) -> Result<(), JournalError> {
    let identity = found.identity;
    let failed = JournalError::io(&found.path);
    let mut block = vec![0; (FIRST_OFFSET).min(identity.capacity) as usize];
    found.file.read_at(&mut block, 0).map_err(&failed)?;
    each(Inspected::Segment {
        path: found.path.clone(),
        id: identity.id,
        base: identity.base,
        capacity_bytes: identity.capacity,
        header_ok: identity.is_in(lives.key, &block),
    });
    let mut scan = Scan::new(identity, &*found.file, lives, pool);
    let mut hole: Option<(u64, u64, FrameError)> = None;
    while let Some(item) = scan.next().map_err(&failed)? {
        match item {
            Item::Other { offset, len, why } => {
                hole.get_or_insert((offset, offset, why)).1 = offset + len;
            }
            Item::Frame { offset, header, frame } => {
                if let Some((from, to, why)) = hole.take() {
                    each(Inspected::Hole { from, to, why });
                }
                if header.kind == KIND_SEAL {
                    each(Inspected::Seal { offset });
                    return Ok(());
                }
                each(Inspected::Frame { offset, frame });
            }
        }
    }
    if let Some((from, to, why)) = hole {
        each(Inspected::Hole { from, to, why });
    }
    Ok(())
}
