//! The task that archives. The module above says what it promises.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::watch;
use isobar_host::{Host, Open, Task};
use isobar_metadata::command::ArchiveAdvanced;
use isobar_metadata::{Command, Envelope};
use openraft::EntryPayload;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::format::{LogHeader, PartHeader, encode_log, encode_part};
use super::names::{Listing, LogPiece, log_name, part_name};
use super::{Archive, ArchiveError, ArchiveOptions, Status, survey};
use crate::barrier::Barriers;
use crate::keeper::Keeper;
use crate::leader::{Lead, Way};
use crate::log_store::LogStore;
use crate::machine::Machine;
use crate::metrics::{RaftMetrics, gauge};
use crate::propose::Queue;
use crate::records::EntryRecord;
use crate::snapshots::Stored;

/// A look at the claim that is older than this is repeated before the next write.
const CLAIM_FRESH: Duration = Duration::from_secs(1);
/// Removals of one pass: the next entries must not wait behind many.
const REMOVALS_MAX: usize = 64;
/// Where the entry after the cut may be a blank one, the next with a time is looked for in so many bytes.
const LOOK_BYTES: usize = 64 << 10;

/// The member that is archived.
pub(crate) struct Member {
    pub(crate) host: Host,
    pub(crate) cluster_id: String,
    pub(crate) machine: Arc<Machine>,
    pub(crate) store: LogStore,
    pub(crate) keeper: Keeper,
    pub(crate) queue: Arc<Queue>,
    pub(crate) barriers: Arc<Barriers>,
    pub(crate) lead: Lead,
    pub(crate) metrics: Arc<RaftMetrics>,
}

impl Member {
    fn leads(&self) -> bool {
        matches!(self.lead.way(), Way::Here)
    }
}

#[derive(Default)]
struct Signals {
    wake: Notify,
    flushes: Mutex<Vec<oneshot::Sender<()>>>,
    status: Mutex<Status>,
}

/// The running archiver. Dropped, it goes on until the member stops.
pub struct Archiver {
    task: Task,
    signals: Arc<Signals>,
    lost: watch::Receiver<Option<String>>,
}

impl Archiver {
    pub(crate) fn start(
        member: Member,
        archive: Arc<dyn Archive>,
        options: ArchiveOptions,
        mut stopped: watch::Receiver<bool>,
    ) -> Self {
        let signals = Arc::new(Signals::default());
        let (tell_lost, lost) = watch::channel(None);
        let host = member.host.clone();
        let work = Work {
            member,
            archive,
            options,
            signals: Arc::clone(&signals),
            known: None,
            checked: None,
            retiring: VecDeque::new(),
            old_ones_gone: false,
        };
        let task = host.spawn("archiver", async move {
            tokio::select! {
                biased;
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = work.run(tell_lost) => {}
            }
        });
        Self { task, signals, lost }
    }

    /// How far it has come.
    pub fn status(&self) -> Status {
        *self.signals.status.lock()
    }

    /// Returns once everything that had effects before this call is archived; at a member that does not lead, at once. While
    /// the store fails this does not return: bound it.
    pub async fn flush(&self) {
        let (tell, done) = oneshot::channel();
        self.signals.flushes.lock().push(tell);
        self.signals.wake.notify_one();
        // An error: the task is gone, and nothing will be archived any more.
        let _ = done.await;
    }

    /// Why this member must not go on: the cluster was recovered elsewhere, or its directory has lost history. By the time
    /// this says so, no command is taken and no barrier answered any more.
    pub fn lost(&self) -> watch::Receiver<Option<String>> {
        self.lost.clone()
    }

    /// Stops at the next await.
    pub async fn stop(self) {
        self.task.abort();
        self.task.join().await;
    }
}

/// What is in the archive.
struct Known {
    incarnation: u32,
    listing: Listing,
    through: u64,
    cut: u64,
    log_objects: u64,
}

struct Work {
    member: Member,
    archive: Arc<dyn Archive>,
    options: ArchiveOptions,
    signals: Arc<Signals>,
    known: Option<Known>,
    checked: Option<Instant>,
    /// What lies below an index goes at a time.
    retiring: VecDeque<(Instant, u64)>,
    /// Archives of earlier incarnations were removed, or there are none.
    old_ones_gone: bool,
}

fn io_failed(error: std::io::Error) -> ArchiveError {
    ArchiveError::Unavailable(error.to_string())
}

impl Work {
    async fn run(mut self, tell_lost: watch::Sender<Option<String>>) {
        let mut last = Instant::now();
        loop {
            // A pass much later than it was due: the process, or the machine, was paused.
            let paused = last.elapsed() > self.options.interval + CLAIM_FRESH;
            let flushes = std::mem::take(&mut *self.signals.flushes.lock());
            let passed = if self.member.leads() {
                self.pass(paused || !flushes.is_empty()).await
            } else {
                self.stand_by();
                Ok(())
            };
            match passed {
                Ok(()) => {
                    for flush in flushes {
                        // Whoever asked may have gone.
                        let _ = flush.send(());
                    }
                }
                Err(ArchiveError::Lost(why)) => {
                    tracing::error!(why, "this member must stop: no more commands are taken");
                    self.member.queue.close();
                    self.member.barriers.close();
                    tell_lost.send_replace(Some(why));
                    return;
                }
                Err(error) => {
                    self.member.metrics.archive_failures.inc();
                    tracing::warn!(%error, "the metadata log is not archived; again later");
                    self.signals.flushes.lock().extend(flushes);
                }
            }
            self.measure().await;
            last = Instant::now();
            tokio::select! {
                biased;
                () = self.signals.wake.notified() => {}
                () = tokio::time::sleep(self.options.interval) => {}
            }
        }
    }

    /// Another member archives. What is known of the archive is no longer true when this one leads again.
    fn stand_by(&mut self) {
        self.known = None;
        self.checked = None;
        self.retiring.clear();
        self.old_ones_gone = false;
        let machine = &self.member.machine;
        let cut = machine.archivable().0.archived_cut();
        *self.signals.status.lock() = Status { through: machine.archive.known(), cut };
    }

    /// Brings the archive up to now.
    async fn pass(&mut self, look: bool) -> Result<(), ArchiveError> {
        let mut known = match self.known.take() {
            Some(known) => known,
            None => self.begin().await?,
        };
        let result = self.pass_with(&mut known, look).await;
        *self.signals.status.lock() = Status { through: known.through, cut: known.cut };
        self.known = Some(known);
        result
    }

    async fn pass_with(&mut self, known: &mut Known, look: bool) -> Result<(), ArchiveError> {
        let newer = self.newer_snapshot(known).is_some();
        let many = known.log_objects >= self.options.snapshot_after_objects;
        let news = self.member.machine.archivable().1 > known.through;
        let removals = self.retiring.front().is_some_and(|(at, _)| *at <= Instant::now());
        if known.through > 0 && !(newer || many || news || removals) {
            let stale = self.checked.is_none_or(|checked| checked.elapsed() >= self.options.idle_check);
            if look || stale {
                self.check().await?;
            }
            self.advance(known);
            return Ok(());
        }
        if known.through == 0 || self.member.store.first_index() > known.through + 1 {
            self.bridge(known).await?;
        }
        if many {
            // Before the log is written, so that the archive gets past it.
            self.member.keeper.take_now().await;
        }
        let applied = self.member.machine.archivable().0.index();
        self.write_log(known, applied).await?;
        if let Some(stored) = self.newer_snapshot(known) {
            self.write_snapshot(known, &stored).await?;
        }
        self.advance(known);
        self.remove(known).await
    }

    /// Sees what an earlier life has archived.
    async fn begin(&mut self) -> Result<Known, ArchiveError> {
        self.check().await?;
        let incarnation = self.member.machine.archivable().0.incarnation();
        let listing = survey(&*self.archive, incarnation).await?;
        if self.member.lead.in_group() {
            // Everything that another leader has archived by then was committed: it must be applied here before it is missed.
            // Not earlier: the next leader may have come, and archived, while this one was paused over its survey.
            let caught_up = self.member.barriers.wait().await;
            caught_up.map_err(|error| ArchiveError::Unavailable(error.to_string()))?;
        }
        let (image, _) = self.member.machine.archivable();
        let through = listing.chains().first().map_or(0, |chain| chain.end);
        if through > image.index() {
            return Err(ArchiveError::Lost(format!(
                "the archive has entry {through} of the metadata log, this directory ends at {}: it has lost what was \
                 acknowledged. Bring its disk back, or recover the cluster from the archive with `isobar recover`",
                image.index()
            )));
        }
        let newest = listing.snapshots().last().copied().unwrap_or(0);
        let log_objects = listing.log().filter(|piece| piece.last > newest).count() as u64;
        self.member.machine.archive.archived(through);
        Ok(Known { incarnation, listing, through, cut: 0, log_objects })
    }

    async fn check(&mut self) -> Result<(), ArchiveError> {
        self.archive.check().await?;
        self.checked = Some(Instant::now());
        Ok(())
    }

    async fn check_unless_fresh(&mut self) -> Result<(), ArchiveError> {
        match self.checked {
            Some(checked) if checked.elapsed() < CLAIM_FRESH => Ok(()),
            _ => self.check().await,
        }
    }

    async fn put(&mut self, name: &str, parts: Vec<Bytes>) -> Result<(), ArchiveError> {
        self.check_unless_fresh().await?;
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        self.archive.put(name, parts).await?;
        self.member.metrics.archive_bytes.inc_by(bytes as u64);
        Ok(())
    }

    /// Begins the archive, or goes on behind a hole, with a snapshot.
    async fn bridge(&mut self, known: &mut Known) -> Result<(), ArchiveError> {
        let usable = |stored: &Stored| stored.index() > known.through;
        let stored = match self.member.machine.snapshots.newest().filter(usable) {
            Some(stored) => stored,
            None => {
                self.member.keeper.take_now().await;
                let taken = self.member.machine.snapshots.newest().filter(usable);
                taken.ok_or_else(|| ArchiveError::Unavailable("no snapshot could be taken".to_owned()))?
            }
        };
        if known.through > 0 {
            tracing::warn!(
                from = known.through + 1,
                to = stored.index(),
                "the archive has lagged too far: these entries are left out of it, a snapshot takes their place"
            );
        }
        self.write_snapshot(known, &stored).await?;
        self.reached(known, stored.index());
        Ok(())
    }

    fn reached(&self, known: &mut Known, through: u64) {
        known.through = through;
        self.member.machine.archive.archived(through);
        self.member.metrics.archived_index.set(gauge(through));
    }

    async fn write_log(&mut self, known: &mut Known, upto: u64) -> Result<(), ArchiveError> {
        while known.through < upto {
            let range = known.through + 1..upto + 1;
            let entries =
                self.member.store.read(range, self.options.log_object_bytes).await.map_err(io_failed)?;
            let records: Vec<EntryRecord> = entries.iter().map(EntryRecord::of).collect();
            let (Some(first), Some(last)) = (records.first(), records.last()) else {
                return Err(ArchiveError::Unavailable(
                    "the log does not reach as far as the state".to_owned(),
                ));
            };
            let piece = LogPiece { first: first.id.index, last: last.id.index };
            if piece.first != known.through + 1 {
                return Err(ArchiveError::Unavailable("the log was purged meanwhile".to_owned()));
            }
            let header = LogHeader {
                cluster_id: self.member.cluster_id.clone(),
                incarnation: known.incarnation,
                first: piece.first,
                last: piece.last,
            };
            let object = encode_log(&header, &records);
            self.put(&log_name(known.incarnation, piece), vec![object]).await?;
            self.member.host.crash_point("archive.after_log");
            known.listing.add_log(piece);
            known.log_objects += 1;
            self.reached(known, piece.last);
        }
        Ok(())
    }

    /// A snapshot on disk that the archive has the entries of, but not it.
    fn newer_snapshot(&self, known: &Known) -> Option<Stored> {
        let stored = self.member.machine.snapshots.newest()?;
        let newest = known.listing.snapshots().last().copied().unwrap_or(0);
        (stored.index() > newest && stored.index() <= known.through).then_some(stored)
    }

    async fn write_snapshot(&mut self, known: &mut Known, stored: &Stored) -> Result<(), ArchiveError> {
        let (index, part_bytes) = (stored.index(), self.options.part_bytes.max(1) as u64);
        let count = u32::try_from(stored.len_bytes.div_ceil(part_bytes).max(1)).unwrap_or(u32::MAX);
        for part in 0..count {
            let position = u64::from(part) * part_bytes;
            let length = part_bytes.min(stored.len_bytes - position);
            let body = self.read_part(stored, position, length).await?;
            let last = part + 1 == count;
            let cluster_id = self.member.cluster_id.clone();
            let header =
                PartHeader { cluster_id, incarnation: known.incarnation, index, part, last, position };
            self.put(&part_name(known.incarnation, index, part, last), encode_part(&header, body)).await?;
            self.member.host.crash_point("archive.after_part");
            known.listing.add_part(index, part, last);
        }
        known.log_objects = known.listing.log().filter(|piece| piece.last > index).count() as u64;
        tracing::info!(index, bytes = stored.len_bytes, "metadata snapshot archived");
        Ok(())
    }

    async fn read_part(&self, stored: &Stored, position: u64, length: u64) -> Result<Bytes, ArchiveError> {
        let (disk, path) = (self.member.host.disk(), stored.path.clone());
        let work = move || {
            let mut buffer = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
            disk.open(&path, Open::READ)?.read_at(&mut buffer, position)?;
            Ok(Bytes::from(buffer))
        };
        // A newer one may have taken its place; the next pass sees that.
        let read = self.member.host.run_blocking(work).await;
        read.unwrap_or_else(|| Err(std::io::Error::other("the blocking pool is going away")))
            .map_err(io_failed)
    }

    /// Once all that matters is archived the cut may move, and with it the log's purge and the deletes in the store.
    fn advance(&mut self, known: &mut Known) {
        let (image, last_effective) = self.member.machine.archivable();
        let start = known.listing.chains().first().map_or(u64::MAX, |chain| chain.start);
        let cut = image.recovery_cut().min(known.through);
        if last_effective <= known.through && cut >= start && cut > known.cut {
            known.cut = cut;
            self.member.metrics.archive_cut.set(gauge(cut));
        }
        self.member.keeper.purge_soon();
        if super::someone_waits(&image, known.cut) {
            let advanced = ArchiveAdvanced { through: known.through, cut: known.cut };
            let command = Envelope::unnumbered(Command::ArchiveAdvanced(advanced));
            // If it is lost, the next pass says it again.
            self.member.queue.push(command, Box::new(|_| ()));
        }
        let covered: Vec<u64> = known
            .listing
            .snapshots()
            .into_iter()
            .filter(|index| *index <= known.cut && *index >= start)
            .collect();
        // The newest at or below the cut, and the one before it.
        if let [.., keep, _] = covered[..]
            && self.retiring.back().is_none_or(|(_, below)| *below < keep)
            && (!self.old_ones_gone || known.listing.snapshot_indexes().first() < Some(&keep))
        {
            self.retiring.push_back((Instant::now() + self.options.grace, keep));
        }
    }

    /// Removes what no recovery needs any more.
    async fn remove(&mut self, known: &mut Known) -> Result<(), ArchiveError> {
        let Some((_, keep)) = self.retiring.front().copied().filter(|(at, _)| *at <= Instant::now()) else {
            return Ok(());
        };
        let mut left = REMOVALS_MAX;
        let old: Vec<u64> =
            known.listing.snapshot_indexes().into_iter().filter(|index| *index < keep).collect();
        for index in old {
            for name in known.listing.part_names(known.incarnation, index) {
                self.remove_one(&name, &mut left).await?;
            }
            known.listing.forget_snapshot(index);
        }
        let old: Vec<LogPiece> = known.listing.log().filter(|piece| piece.last <= keep).collect();
        for piece in old {
            if left == 0 {
                return Ok(());
            }
            self.remove_one(&log_name(known.incarnation, piece), &mut left).await?;
            known.listing.forget_log(piece);
        }
        if self.remove_old_ones(known.incarnation, &mut left).await? {
            self.retiring.pop_front();
        }
        Ok(())
    }

    async fn remove_one(&mut self, name: &str, left: &mut usize) -> Result<(), ArchiveError> {
        self.check_unless_fresh().await?;
        *left = left.saturating_sub(1);
        self.archive.delete(name).await
    }

    /// The archives of earlier incarnations: this one can be recovered by itself now. False: there is more.
    async fn remove_old_ones(&mut self, incarnation: u32, left: &mut usize) -> Result<bool, ArchiveError> {
        if self.old_ones_gone {
            return Ok(true);
        }
        for old in 0..incarnation {
            // The log first: a snapshot without it is still a state of the cluster.
            let names = [super::names::log_dir(old), super::names::snapshot_dir(old)];
            for dir in names {
                for name in self.archive.list(&dir).await? {
                    if *left == 0 {
                        return Ok(false);
                    }
                    self.remove_one(&name, left).await?;
                }
            }
        }
        self.old_ones_gone = true;
        Ok(true)
    }

    /// How old the oldest thing is that a recovery from the archive alone would lack now.
    async fn measure(&self) {
        let cut = self.signals.status.lock().cut;
        let mut age_seconds = 0;
        if self.member.leads() && self.member.machine.archivable().1 > cut {
            let entries = self.member.store.read(cut + 1..u64::MAX, LOOK_BYTES).await.unwrap_or_default();
            let time_ms = entries.iter().find_map(|entry| match &entry.payload {
                EntryPayload::Normal(command) => Some(command.entry().time_ms),
                EntryPayload::Blank | EntryPayload::Membership(_) => None,
            });
            let now_ms = self.member.host.now_ms();
            age_seconds = time_ms.map_or(0, |time_ms| (now_ms - time_ms).max(0) / 1000);
        }
        self.member.metrics.archive_cut_age_seconds.set(age_seconds);
    }
}
