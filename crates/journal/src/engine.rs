//! Opens a journal and puts its parts together; nothing here waits or spawns.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isobar_host::disk::DirLock;
use isobar_host::watch;
use isobar_host::{BufferPool, Disk, Open};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::core::{Core, Limits};
use crate::error::JournalError;
use crate::keeper::{Keeper, Spare};
use crate::lives::{self, Lives};
use crate::options::Options;
use crate::recover::{self, Found, Judged, Survey, damage_of_file};
use crate::report::{Recovered, Report};
use crate::segment::{Identity, Segment};
use crate::shared::{Shared, Wake};
use crate::writer::{GROUP_FRAMES_MAX, Writer};

/// Bytes of read buffers kept for the next read.
const READ_BUFFERS_KEPT_BYTES: usize = 8 << 20;

/// What the machine gives a journal.
pub(crate) struct Machine {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) point: Box<dyn Fn(&'static str) + Send + Sync>,
    /// Random; used if the journal is new.
    pub(crate) key: u32,
    /// On the directory.
    pub(crate) lock: Option<DirLock>,
}

pub(crate) struct Engine {
    pub(crate) writer: Writer,
    pub(crate) keeper: Keeper,
    pub(crate) report: Report,
}

impl Engine {
    pub(crate) fn open(
        machine: Machine,
        dir: &Path,
        options: Options,
        on_frame: &mut (dyn FnMut(Recovered) + Send),
    ) -> Result<Self, JournalError> {
        let options = options.checked();
        let disk = Arc::clone(&machine.disk);
        let pool = BufferPool::new(READ_BUFFERS_KEPT_BYTES);
        disk.create_dir_all(dir).map_err(JournalError::io(dir))?;
        let how = if options.direct { Open::READ_WRITE.direct() } else { Open::READ_WRITE };
        let mut survey = recover::survey(&*disk, dir, how)?;
        let lives = lives_of(&survey, dir, machine.key)?;
        let judged = recover::judge(&mut survey.segments, &lives, &pool, on_frame)?;
        (machine.point)("journal.recover.read");
        options.metrics.damaged.set(i64::try_from(judged.report.damage.len()).unwrap_or(i64::MAX));
        if !judged.report.damage.is_empty() && !options.allow_quarantine {
            return Err(JournalError::Damaged { damage: judged.report.damage });
        }
        for damage in &judged.report.damage {
            tracing::error!(%damage, "journal is damaged below its synced position");
        }
        recover::settle(&survey.segments, judged.synced, &pool)?;
        (machine.point)("journal.recover.settled");
        for path in &survey.leftovers {
            disk.remove(path).map_err(JournalError::io(path))?;
        }
        // Names that were changed before may be seen and yet not be durable. They are relied on from here on: a segment
        // that was gone must not come back when its lives have been forgotten.
        disk.sync_dir(dir).map_err(JournalError::io(dir))?;
        (machine.point)("journal.recover.named");
        let spares = spares_of(&*disk, &survey.spares)?;
        let mut engine = assemble(machine, dir, options, lives, survey, judged, (spares, pool));
        match engine.keeper.claim() {
            Err(error) if error.is_disk_full() => {
                tracing::warn!(dir = %dir.display(), "journal opens on a full disk: reads only until there is space");
                engine.writer.shared().core.lock().out_of_space();
            }
            claimed => claimed?,
        }
        Ok(engine)
    }
}

fn lives_of(survey: &Survey, dir: &Path, key: u32) -> Result<Lives, JournalError> {
    let what = match &survey.lives {
        Some(Some(lives)) => return Ok(lives.clone()),
        None if survey.segments.is_empty() => return Ok(Lives::new(key)),
        None => "missing, yet there are segments: without it, frames cannot be told from leftovers",
        Some(None) => "both copies in it are damaged: without it, frames cannot be told from leftovers",
    };
    Err(JournalError::Damaged {
        damage: vec![damage_of_file(&dir.join(lives::NAME), None, 0, what.to_owned())],
    })
}

fn spares_of(disk: &dyn Disk, paths: &[PathBuf]) -> Result<Vec<Spare>, JournalError> {
    let mut spares = Vec::new();
    for path in paths {
        let file = disk.open(path, Open::READ).map_err(JournalError::io(path))?;
        let capacity = file.len().map_err(JournalError::io(path))?;
        if recover::whole_blocks(capacity) == capacity {
            spares.push(Spare { path: path.clone(), capacity });
        } else {
            // Somebody cut it: segments are whole blocks.
            disk.remove(path).map_err(JournalError::io(path))?;
        }
    }
    Ok(spares)
}

fn assemble(
    machine: Machine,
    dir: &Path,
    options: Options,
    lives: Lives,
    survey: Survey,
    judged: Judged,
    (spares, pool): (Vec<Spare>, BufferPool),
) -> Engine {
    let Judged { report, active, .. } = judged;
    let active_index = active.unwrap_or(survey.segments.len());
    let newest = survey.segments.last().map(|found| found.identity);
    let next_base = newest.map_or(0, |identity| identity.end()).max(report.end);
    let active = active.map(|index| (survey.segments[index].identity, survey.segments[index].end));
    let prepared: VecDeque<Identity> =
        survey.segments.iter().skip(active_index + 1).map(|found| found.identity).collect();
    let limits = Limits {
        group_bytes: options.group_bytes,
        group_frames: GROUP_FRAMES_MAX,
        queue_bytes: options.queue_bytes,
        segment_bytes: options.segment_bytes,
    };
    let core = Core::new(limits, active, prepared, (survey.highest_id + 1, next_base), report.end);
    let segments = survey.segments.into_iter().enumerate();
    let segments =
        segments.map(|(index, found)| (found.identity.base, segment_of(found, index < active_index)));
    let shared = Arc::new(Shared {
        disk: machine.disk,
        dir: dir.to_owned(),
        point: machine.point,
        core: Mutex::new(core),
        segments: RwLock::new(segments.collect()),
        lives: RwLock::new(Arc::new(lives)),
        recycled: Mutex::default(),
        writer_wake: Wake::default(),
        keeper_wake: Wake::default(),
        room: Notify::new(),
        writer_ended: watch::Sender::new(false),
        keeper_ended: watch::Sender::new(false),
        pool,
        options,
        lock: Mutex::new(machine.lock),
    });
    shared.note_segments();
    let newest_bytes = newest.map_or(0, |identity| identity.capacity);
    let keeper = Keeper::new(Arc::clone(&shared), spares, newest_bytes, report.end);
    Engine { writer: Writer::new(shared), keeper, report }
}

fn segment_of(found: Found, sealed: bool) -> Arc<Segment> {
    let segment = Segment::found(found.identity, found.path, found.file, found.damaged);
    segment.set_end(found.end);
    if sealed {
        segment.seal();
    }
    Arc::new(segment)
}
