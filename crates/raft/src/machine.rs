//! The metadata state machine under openraft: applies, answers, tells, freezes.
//!
//! Invariants
//! 1. For each entry in order: apply, then effects into the ring, then the applied index, then the answers. Whoever has
//!    an answer finds its effects already there.
//! 2. Applying never waits for a disk: a snapshot is written from a frozen view by another thread.
//! 3. The state changes only under the lock, with the ring, so that an image and the place in the ring where it goes on
//!    are taken together.
//! 4. Members at one index have one hash. Each keeps the hashes of its last entries and compares what others say of theirs
//!    (in appends and their answers); a difference is an alarm, told in [`Machine::diverged`].
//! 5. A panic in apply ends the process: the state may be half changed, and every other member would do the same.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use isobar_host::Host;
use isobar_host::watch;
use isobar_metadata::{CommandResult, EffectKind, Frozen, Image, StateMachine};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::archive::Gate;
use crate::effects::{EffectStream, Ring};
use crate::metrics::{RaftMetrics, gauge};
use crate::remote::wire::Position;
use crate::snapshots::{SnapshotHandle, Snapshots, Stored};
use crate::types::{LogEntry, LogId, SnapshotMeta, StoredMembership, Types};

/// Hashes of the last entries applied, for comparing with other members.
const HASHES_KEPT: usize = 4096;
/// Longest run of applying before others on the thread get their turn.
const SLICE: Duration = Duration::from_micros(500);

type OpenraftSnapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotHandle>;

/// The state machine and what hangs on it; shared by openraft's worker and the handle.
pub(crate) struct Machine {
    host: Host,
    state: Mutex<State>,
    pub(crate) ring: Arc<Ring>,
    /// Index of the last entry applied; what an image reaches.
    applied: watch::Sender<u64>,
    /// Highest index that a leader named beside results for this member's commands.
    heard: Arc<AtomicU64>,
    pub(crate) snapshots: Snapshots,
    /// Told when enough log has passed since the last snapshot.
    pub(crate) snapshot_due: Notify,
    snapshot_after_bytes: u64,
    pub(crate) archive: Gate,
    diverged: watch::Sender<Option<String>>,
    metrics: Arc<RaftMetrics>,
}

struct State {
    machine: StateMachine,
    last_applied: Option<LogId>,
    membership: StoredMembership,
    /// Bytes of entries applied since the last snapshot was frozen.
    log_bytes: u64,
    /// The last entry that did something that a recovery would want. Others only keep time, or say what is archived.
    last_effective: u64,
    /// Where the state was after each of the last entries, without gaps.
    hashes: VecDeque<Position>,
    /// What another member says of an entry that is not applied here yet.
    claimed: Option<(u64, Position)>,
}

/// A view to write as a snapshot.
pub(crate) struct View {
    meta: SnapshotMeta,
    frozen: Frozen,
    log_bytes: u64,
}

impl Machine {
    /// With the state of `restored` (meta and machine), or a fresh machine.
    pub(crate) fn new(
        host: &Host,
        snapshots: Snapshots,
        meta: SnapshotMeta,
        machine: StateMachine,
        ring: Arc<Ring>,
        snapshot_after_bytes: u64,
        metrics: Arc<RaftMetrics>,
    ) -> Self {
        let machine = sabotaged(host, machine);
        let applied = watch::Sender::new(machine.applied_index());
        metrics.applied_index.set(gauge(machine.applied_index()));
        metrics.snapshot_bytes.set(gauge(snapshots.newest_bytes()));
        let state = State {
            last_effective: machine.applied_index(),
            machine,
            last_applied: meta.last_log_id,
            membership: meta.last_membership,
            log_bytes: 0,
            hashes: VecDeque::new(),
            claimed: None,
        };
        Self {
            host: host.clone(),
            state: Mutex::new(state),
            ring,
            applied,
            heard: Arc::default(),
            snapshots,
            snapshot_due: Notify::new(),
            snapshot_after_bytes,
            archive: Gate::new(None),
            diverged: watch::Sender::new(None),
            metrics,
        }
    }

    /// The same with a log that waits for an archive.
    pub(crate) fn archived(self, lag_bytes: Option<u64>) -> Self {
        Self { archive: Gate::new(lag_bytes), ..self }
    }

    /// The leader has archived the log so far: this member's may go as well.
    pub(crate) fn archived_elsewhere(&self, through: u64) {
        if self.archive.raise(through) {
            self.snapshot_due.notify_one();
        }
    }

    /// The state as it is now, shared, and the last entry in it that a recovery would want.
    pub(crate) fn archivable(&self) -> (Image, u64) {
        let state = self.state.lock();
        (state.machine.image(), state.last_effective)
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Where that is kept.
    pub(crate) fn heard(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.heard)
    }

    /// Every command of this member that has its result was applied up to this index; maybe not here yet.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.heard.load(Ordering::Acquire).max(*self.applied.borrow())
    }

    /// Index of the last entry applied, and the state's rolling hash there.
    pub(crate) fn position(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.machine.applied_index(), state.machine.rolling_hash())
    }

    /// The same, for another member.
    pub(crate) fn standing(&self) -> Position {
        let (index, hash) = self.position();
        Position { index, hash }
    }

    /// Why this member's state cannot be the same as another's, once that is so.
    pub(crate) fn diverged(&self) -> watch::Receiver<Option<String>> {
        self.diverged.subscribe()
    }

    /// Holds what another member says of its state against this one's. What is too old to know is passed over; what is
    /// not applied yet is compared when it is, one at a time.
    pub(crate) fn compare(&self, node: u64, position: Position) {
        if position.index == 0 {
            // Before the first entry and after it look the same.
            return;
        }
        let mut state = self.state.lock();
        let Some(known) = state.hash_at(position.index) else {
            if position.index > state.machine.applied_index() && state.claimed.is_none() {
                state.claimed = Some((node, position));
            }
            return;
        };
        drop(state);
        self.check(node, position, known);
    }

    fn check(&self, node: u64, theirs: Position, ours: u64) {
        if theirs.hash == ours {
            return;
        }
        self.metrics.hash_mismatches.inc();
        let why = format!(
            "after entry {} the metadata state of node {node} has the hash {:016x}, this node's {ours:016x}: one of them is \
             wrong",
            theirs.index, theirs.hash
        );
        self.diverged.send_if_modified(|told| {
            if told.is_some() {
                return false;
            }
            tracing::error!(why, "members of the metadata quorum differ");
            *told = Some(why);
            true
        });
    }

    pub(crate) fn last_applied(&self) -> Option<LogId> {
        self.state.lock().last_applied
    }

    pub(crate) fn membership(&self) -> StoredMembership {
        self.state.lock().membership.clone()
    }

    pub(crate) fn voters(&self) -> Vec<u64> {
        self.state.lock().membership.membership().voter_ids().collect()
    }

    /// The state as it is now, to be written down for an observer.
    pub(crate) fn view(&self) -> Frozen {
        self.state.lock().machine.freeze()
    }

    /// What comes after the batch of this index; `None` if that is not kept, or not here yet.
    pub(crate) fn resume(&self, after: u64) -> Option<EffectStream> {
        let state = self.state.lock();
        // Of a member that has just started the ring is empty.
        if state.machine.applied_index() == after {
            Some(self.ring.follow())
        } else {
            self.ring.resume(after)
        }
    }

    /// An image, and the stream that goes on where it ends.
    pub(crate) fn subscribe(&self) -> (Image, EffectStream) {
        let state = self.state.lock();
        (state.machine.image(), self.ring.follow())
    }

    fn apply_entry(&self, entry: LogEntry) -> Vec<CommandResult> {
        let started = Instant::now();
        let index = entry.log_id.index;
        let mut state = self.state.lock();
        let guard = AbortOnPanic { armed: !self.host.is_simulated() };
        let (results, effects) = match &entry.payload {
            EntryPayload::Normal(command) => {
                state.log_bytes += command.bytes().len() as u64;
                let applied = state.machine.apply(index, command.entry());
                (applied.results, applied.effects)
            }
            EntryPayload::Blank => (Vec::new(), state.machine.skip(index)),
            EntryPayload::Membership(membership) => {
                state.membership = StoredMembership::new(Some(entry.log_id), membership.clone());
                (Vec::new(), state.machine.skip(index))
            }
        };
        drop(guard);
        if effects.effects.iter().any(|effect| !matches!(effect.kind, Some(EffectKind::Cluster(_)))) {
            state.last_effective = index;
        }
        state.last_applied = Some(entry.log_id);
        let claim = state.applied(index);
        if index > 0 {
            // Entry 0 founds the group; a fresh image starts there.
            self.ring.push(effects);
        }
        let snapshot_due = state.log_bytes >= self.snapshot_threshold_bytes();
        drop(state);
        if let Some((node, theirs, ours)) = claim {
            self.check(node, theirs, ours);
        }
        if snapshot_due {
            self.snapshot_due.notify_one();
        }
        self.applied.send_replace(index);
        self.metrics.applied_index.set(gauge(index));
        self.metrics.effects_bytes.set(gauge(self.ring.bytes()));
        self.metrics.apply_seconds.observe(started.elapsed().as_secs_f64());
        results
    }

    fn snapshot_threshold_bytes(&self) -> u64 {
        self.snapshot_after_bytes.max(self.snapshots.newest_bytes())
    }

    /// True if entries were applied since the last snapshot.
    pub(crate) fn is_ahead_of_snapshot(&self) -> bool {
        let newest = self.snapshots.newest().and_then(|s| s.meta.last_log_id);
        self.last_applied() > newest
    }

    /// True if the log since the last snapshot is long enough for another.
    pub(crate) fn wants_snapshot(&self) -> bool {
        self.state.lock().log_bytes >= self.snapshot_threshold_bytes()
    }

    /// A frozen view of now; `None` before anything was applied.
    pub(crate) fn freeze(&self) -> Option<View> {
        let mut state = self.state.lock();
        state.last_applied?;
        let meta =
            SnapshotMeta { last_log_id: state.last_applied, last_membership: state.membership.clone() };
        Some(View { meta, frozen: state.machine.freeze(), log_bytes: std::mem::take(&mut state.log_bytes) })
    }

    /// Writes a view, away from the thread that applies.
    pub(crate) async fn write(self: &Arc<Self>, view: View) -> io::Result<Stored> {
        let machine = Arc::clone(self);
        let started = Instant::now();
        let log_bytes = view.log_bytes;
        let work = move || machine.snapshots.write(&view.meta, |put| view.frozen.encode(put));
        let result = match self.host.run_blocking(work).await {
            Some(result) => result,
            None => Err(io::Error::other("the snapshot writer died")),
        };
        match &result {
            Ok(stored) => {
                self.metrics.snapshots.inc();
                self.metrics.snapshot_bytes.set(gauge(stored.len_bytes));
                self.metrics.snapshot_seconds.observe(started.elapsed().as_secs_f64());
            }
            Err(_) => {
                self.metrics.snapshots_failed.inc();
                self.state.lock().log_bytes += log_bytes;
            }
        }
        result
    }

    fn stored_snapshot(&self, stored: &Stored) -> OpenraftSnapshot {
        OpenraftSnapshot { meta: stored.meta.clone(), snapshot: self.snapshots.handle_of(&stored.path) }
    }
}

impl State {
    /// The state's hash after that entry, if it is known.
    fn hash_at(&self, index: u64) -> Option<u64> {
        let first = self.hashes.front()?.index;
        let place = usize::try_from(index.checked_sub(first)?).ok()?;
        self.hashes.get(place).map(|position| position.hash)
    }

    /// Notes where the state is after an entry; gives what another member has claimed of this one, and the hash here.
    fn applied(&mut self, index: u64) -> Option<(u64, Position, u64)> {
        let hash = self.machine.rolling_hash();
        self.hashes.push_back(Position { index, hash });
        if self.hashes.len() > HASHES_KEPT {
            self.hashes.pop_front();
        }
        let (node, theirs) = self.claimed.filter(|(_, theirs)| theirs.index <= index)?;
        self.claimed = None;
        (theirs.index == index).then_some((node, theirs, hash))
    }
}

/// Ends the process if dropped by a panic.
struct AbortOnPanic {
    armed: bool,
}

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if self.armed && std::thread::panicking() {
            tracing::error!("the metadata state machine panicked; ending the process");
            std::process::abort();
        }
    }
}

/// The state machine without the rule that a test of the tests takes away.
#[cfg(feature = "sabotage")]
fn sabotaged(host: &Host, machine: StateMachine) -> StateMachine {
    use isobar_metadata::Rule;
    let promises = [("late-commit-object", Rule::Deadline), ("reused-id", Rule::FreshIds)];
    match promises.into_iter().find(|(promise, _)| host.sabotaged(promise)) {
        Some((_, rule)) => machine.without(rule),
        None => machine,
    }
}

#[cfg(not(feature = "sabotage"))]
fn sabotaged(_host: &Host, machine: StateMachine) -> StateMachine {
    machine
}

/// openraft's hold on the machine.
pub(crate) struct MachineWorker(pub(crate) Arc<Machine>);

impl RaftStateMachine<Types> for MachineWorker {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.0.last_applied(), self.0.membership()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut slice = Instant::now();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let results = self.0.apply_entry(entry);
            if let Some(responder) = responder {
                responder.send(results);
            }
            if slice.elapsed() >= SLICE {
                tokio::task::yield_now().await;
                slice = Instant::now();
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        let newest = self.0.snapshots.newest();
        if !force {
            // The keeper has written it already; openraft only wants to know.
            return newest.map(|stored| Builder { machine: Arc::clone(&self.0), work: Work::Known(stored) });
        }
        let view = self.0.freeze();
        let work = match (view, newest) {
            (Some(view), newest) if newest.as_ref().map(|s| &s.meta) != Some(&view.meta) => {
                Work::Write(Box::new(view))
            }
            (_, Some(stored)) => Work::Known(stored),
            (Some(view), None) => Work::Write(Box::new(view)),
            (None, None) => Work::Nothing,
        };
        Some(Builder { machine: Arc::clone(&self.0), work })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let machine = Arc::clone(&self.0);
        self.try_create_snapshot_builder(true).await.unwrap_or(Builder { machine, work: Work::Nothing })
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotHandle,
    ) -> Result<(), io::Error> {
        let machine = Arc::clone(&self.0);
        let meta = meta.clone();
        let work = move || {
            let body = snapshot.read()?;
            let restored = StateMachine::restore(&body)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            machine.snapshots.write(&meta, |put| put(&body))?;
            let restored = sabotaged(&machine.host, restored);
            let index = restored.applied_index();
            {
                let mut state = machine.state.lock();
                *state = State {
                    machine: restored,
                    last_applied: meta.last_log_id,
                    membership: meta.last_membership,
                    log_bytes: 0,
                    last_effective: index,
                    hashes: VecDeque::new(),
                    claimed: None,
                };
                machine.ring.reset();
            }
            machine.applied.send_replace(index);
            Ok(())
        };
        self.0
            .host
            .run_blocking(work)
            .await
            .unwrap_or_else(|| Err(io::Error::other("the snapshot reader died")))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<OpenraftSnapshot>, io::Error> {
        Ok(self.0.snapshots.newest().map(|stored| self.0.stored_snapshot(&stored)))
    }
}

enum Work {
    Known(Stored),
    Write(Box<View>),
    Nothing,
}

/// Builds one snapshot for openraft.
pub(crate) struct Builder {
    machine: Arc<Machine>,
    work: Work,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> Result<OpenraftSnapshot, io::Error> {
        let stored = match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Known(stored) => stored,
            Work::Write(view) => self.machine.write(*view).await?,
            // openraft asks for this only if the log was purged without a snapshot, and such a directory does not open.
            Work::Nothing => {
                let snapshot = self.machine.snapshots.handle_of("nothing was applied");
                return Ok(OpenraftSnapshot { meta: SnapshotMeta::default(), snapshot });
            }
        };
        Ok(self.machine.stored_snapshot(&stored))
    }
}
