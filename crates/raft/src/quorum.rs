//! The handle on this member of the metadata quorum, and how it comes up and goes down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::watch;
use isobar_host::{Host, Spawner};
use isobar_metadata::{ClusterFormat, CommandResult, Envelope, Image};
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, oneshot};

use crate::archive::{Archive, ArchiveOptions, Archiver, Member};
use crate::barrier::{self, Barriers};
use crate::clocks::Clocks;
use crate::effects::EffectStream;
use crate::error::{ProposeError, RaftError};
use crate::format::FormatRecord;
use crate::formation;
use crate::keeper::Keeper;
use crate::leader::{self, Lead, Leader};
use crate::log_store::LogStore;
use crate::machine::{Machine, MachineWorker};
use crate::members::{self, MemberInfo, MembershipError};
use crate::metrics::RaftMetrics;
use crate::open::{claim_directory, open_log, open_machine};
use crate::options::QuorumOptions;
use crate::propose::{self, InFlight, Proposer, Queue, Raft};
use crate::remote::network::Network;
use crate::remote::service::{self, Inbound, MetadataService, RaftService};
use crate::remote::{Remote, Timing, snapshot};
use crate::runtime::Runtime;
use crate::types::{Membership, Peer};

/// Longest wait for the leadership of a group of one, and for what is on its way at a stop.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// A leader that stops waits so long for its successor.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two tries of [`Quorum::wait_ready`].
const READY_AGAIN: Duration = Duration::from_millis(20);

/// A member of the metadata quorum. Clones are the same member; when the last one is dropped without
/// [`Quorum::shutdown`], it stops as in a crash.
#[derive(Clone)]
pub struct Quorum {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Arc<Queue>,
    barriers: Arc<Barriers>,
    machine: Arc<Machine>,
    store: LogStore,
    raft: Raft,
    slots: Arc<Semaphore>,
    lead: Lead,
    inbound: Option<Arc<Inbound>>,
    options: QuorumOptions,
    format: FormatRecord,
    metrics: Arc<RaftMetrics>,
    stop: watch::Sender<bool>,
    host: Host,
    keeper: Keeper,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
        self.slots.close();
        if let Some(inbound) = &self.inbound {
            inbound.close();
        }
    }
}

impl Shared {
    fn close(&self) {
        self.queue.close();
        self.barriers.close();
        self.machine.ring.close();
        self.stop.send_replace(true);
    }
}

impl Quorum {
    /// Opens the directory and replays it. In a group of one it takes the leadership and applies the whole log, so that when
    /// this returns commands and barriers are answered. In a group of several it returns once the directory is open:
    /// [`Quorum::wait_ready`] waits for the rest.
    pub async fn start(host: &Host, options: QuorumOptions) -> Result<Self, RaftError> {
        options.check(host)?;
        let spawner = host.thread_runtime("raft").map_err(RaftError::disk(&options.dir))?;
        let (host, own) = (host.clone(), spawner.clone());
        on_runtime(&host.clone(), &spawner, async move { Self::open(host, options, own).await })
            .await
            .unwrap_or_else(|| Err(RaftError::Stopped("the raft runtime ended".to_owned())))
    }

    async fn open(host: Host, options: QuorumOptions, spawner: Spawner) -> Result<Self, RaftError> {
        let mut format = claim_directory(&host, &options)?;
        let metrics = Arc::new(RaftMetrics::default());
        let store = open_log(&host, &options, &metrics).await?;
        let pristine = store.is_pristine();
        if format.bootstrapped && pristine {
            let what = "the log is gone; a voter that forgot its vote must join under a new id".to_owned();
            return Err(RaftError::WrongDirectory { path: options.dir.join("log"), what });
        }
        let machine = Arc::new(open_machine(&host, &options, &format, &store, &metrics)?);
        let remote = options.network.as_ref().map(|network| {
            Arc::new(Remote {
                host: host.clone(),
                rpc: network.rpc.clone(),
                node_id: options.node_id,
                cluster_incarnation: format.cluster.incarnation,
                incarnation: format.incarnation(),
                machine: Arc::clone(&machine),
                clocks: Clocks::new(tokio::time::Instant::now()),
                metrics: Arc::clone(&metrics),
            })
        });

        let config = raft_config(&format, &options)?;
        let worker = MachineWorker(Arc::clone(&machine));
        let network = Network(remote.clone());
        let raft = Raft::new(options.node_id, Arc::new(config), network, store.clone(), worker)
            .await
            .map_err(|fatal| RaftError::Stopped(fatal.to_string()))?;
        if stands_alone(&raft, &options, &format, pristine).await? {
            take_lead(&raft, &machine, &options, &format, pristine).await?;
            if remote.is_some() {
                let me = Peer { incarnation: format.incarnation(), address: options.address.clone() };
                members::readdress(&raft, options.node_id, me).await.map_err(|error| {
                    RaftError::Stopped(format!("the own address could not be entered: {error}"))
                })?;
            }
            if !format.bootstrapped {
                format.bootstrapped = true;
                format.write(&host, &options.dir)?;
            }
        }

        let queue = Arc::new(Queue::new(options.queue_bytes, Arc::clone(&metrics)));
        let barriers = Arc::new(Barriers::new(Arc::clone(&metrics)));
        let slots = Arc::new(Semaphore::new(options.entries_in_flight));
        let (stop, stopped) = watch::channel(false);
        let (tell, leader) = watch::channel(Leader::default());
        let lead = Lead { me: options.node_id, leader, remote };
        // It draws nothing.
        let told = leader::watch(raft.clone(), options.node_id, tell, Arc::clone(&metrics));
        spawner.spawn("raft-leader", Runtime::scope(0, boxed(told)));
        let seeded = |name, task| spawner.spawn(name, Runtime::scope(host.random_u64(), task));
        let proposer = Proposer {
            queue: Arc::clone(&queue),
            slots: Arc::clone(&slots),
            raft: raft.clone(),
            host: host.clone(),
            lead: lead.clone(),
            in_flight: Arc::new(InFlight::default()),
        };
        let in_flight = Arc::clone(&proposer.in_flight);
        seeded("raft-propose", boxed(proposer.run()));
        seeded(
            "raft-barrier",
            boxed(barrier::run(Arc::clone(&barriers), raft.clone(), Arc::clone(&machine), lead.clone())),
        );
        let keeper = Keeper {
            host: host.clone(),
            spawner: spawner.clone(),
            machine: Arc::clone(&machine),
            raft: raft.clone(),
            store: store.clone(),
        };
        seeded("raft-snapshot", boxed(keeper.clone().run(stopped)));
        let mut inbound = None;
        if let (Some(remote), Some(network)) = (&lead.remote, &options.network) {
            let serving = Arc::new(Inbound::new(
                Arc::clone(remote),
                store.clone(),
                Arc::clone(&queue),
                Arc::clone(&barriers),
                &options,
            ));
            seeded("raft-sweep", boxed(propose::sweep(in_flight, Arc::clone(&slots), lead.leader.clone())));
            let to_raft = Arc::clone(&serving.to_raft);
            seeded("raft-serve", boxed(service::serve(to_raft, raft.clone(), Arc::clone(remote))));
            let (closed, heard) = (Arc::clone(&serving.closed), Arc::clone(&serving.heard));
            seeded(
                "raft-closed",
                boxed(service::watch_closed(closed, heard, raft.clone(), Arc::clone(remote))),
            );
            let parts = Arc::clone(&serving.parts);
            seeded("raft-receive", boxed(snapshot::take_in(parts, raft.clone(), Arc::clone(remote))));
            network.rpc.register(isobar_rpc::ServiceId::RAFT, Arc::new(RaftService(Arc::clone(&serving))));
            network
                .rpc
                .register(isobar_rpc::ServiceId::METADATA, Arc::new(MetadataService(Arc::clone(&serving))));
            if !format.bootstrapped {
                let noted =
                    note_bootstrapped(host.clone(), options.dir.clone(), format.clone(), store.clone());
                seeded("raft-format", boxed(noted));
            }
            if pristine && begins(&options) {
                let begin =
                    formation::begin(raft.clone(), Arc::clone(remote), options.initial_voters.clone());
                seeded("raft-begin", boxed(begin));
            }
            inbound = Some(serving);
        }
        let shared = Shared {
            queue,
            barriers,
            machine,
            store,
            raft,
            slots,
            lead,
            inbound,
            options,
            format,
            metrics,
            stop,
            host: host.clone(),
            keeper,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns once this member takes part no more: it was stopped, or its disk has failed under it.
    pub async fn stopped(&self) {
        let mut leader = self.leader();
        while leader.changed().await.is_ok() {}
    }

    /// Waits until a leader is known and everything that is acknowledged by now is applied here. The last error if that takes
    /// longer.
    pub async fn wait_ready(&self, timeout: Duration) -> Result<(), ProposeError> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let answer = tokio::select! {
                biased;
                // The others' answers alone would not say so.
                () = self.stopped() => return Err(ProposeError::Stopping),
                answer = tokio::time::timeout_at(deadline, self.barrier()) => answer,
            };
            let error = match answer {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error @ ProposeError::Stopping)) => return Err(error),
                Ok(Err(error)) => error,
                Err(_) => ProposeError::NotLeader { leader: self.leader().borrow().id },
            };
            if tokio::time::Instant::now() + READY_AGAIN >= deadline {
                return Err(error);
            }
            tokio::time::sleep(READY_AGAIN).await;
        }
    }

    /// The leader that this member follows, and every change of it.
    pub fn leader(&self) -> watch::Receiver<Leader> {
        self.shared.lead.leader.clone()
    }

    /// Why this member's state and another's cannot both be right, once that was found. A node should end then.
    pub fn diverged(&self) -> watch::Receiver<Option<String>> {
        self.shared.machine.diverged()
    }

    /// Who belongs to the group, as of the last entry applied here; ascending by node id.
    pub fn membership(&self) -> Vec<MemberInfo> {
        members::list(self.shared.machine.membership().membership())
    }

    /// Adds a member that gets the log and has no vote; returns when it has caught up. It must run, with an empty
    /// directory of this cluster. Only at the leader; asking again is safe.
    pub async fn add_learner(&self, node_id: u64, address: &str) -> Result<(), MembershipError> {
        let address = address.to_owned();
        self.change(async move |raft, remote| members::add_learner(&raft, &remote, node_id, &address).await)
            .await
    }

    /// The same, and makes it a voter once it has caught up.
    pub async fn add_voter(&self, node_id: u64, address: &str) -> Result<(), MembershipError> {
        let address = address.to_owned();
        self.change(async move |raft, remote| {
            members::add_learner(&raft, &remote, node_id, &address).await?;
            members::promote(&raft, &remote, node_id).await
        })
        .await
    }

    /// Makes a learner a voter, if its node may be one ([`QuorumOptions::may_vote`]). Only at the leader; asking again is safe.
    pub async fn promote(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change(async move |raft, remote| members::promote(&raft, &remote, node_id).await).await
    }

    /// Takes out the directory that a member has lost, and brings in the empty one that it runs with now at `address`, with the
    /// vote that it had. Only at the leader; asking again is safe. One that was cut off may leave it a learner ([`Self::promote`]).
    pub async fn replace(&self, node_id: u64, address: &str) -> Result<(), MembershipError> {
        let address = address.to_owned();
        self.change(async move |raft, remote| members::replace(&raft, &remote, node_id, &address).await).await
    }

    /// Takes a voter, or a learner, out of the group for good. A leader that takes out itself hands over. Only at the leader;
    /// asking again is safe.
    pub async fn remove_voter(&self, node_id: u64) -> Result<(), MembershipError> {
        self.change(async move |raft, _| members::remove(&raft, node_id).await).await
    }

    async fn change<F>(
        &self,
        work: impl FnOnce(Raft, Arc<Remote>) -> F + Send + 'static,
    ) -> Result<(), MembershipError>
    where
        F: Future<Output = Result<(), MembershipError>> + Send + 'static,
    {
        let Some(remote) = self.shared.lead.remote.clone() else {
            return Err(MembershipError::Refused("this member has no network".to_owned()));
        };
        let leader = self.leader().borrow().id;
        if leader != Some(self.shared.options.node_id) {
            return Err(MembershipError::NotLeader { leader });
        }
        let work = work(self.shared.raft.clone(), remote);
        on_runtime(&self.shared.host, &self.shared.keeper.spawner, work)
            .await
            .unwrap_or_else(|| Err(MembershipError::Unknown("the raft runtime ended".to_owned())))
    }

    /// Proposes a command and waits for its result. Commands of one caller are applied in the order of its calls to
    /// this or [`Quorum::propose_with`].
    pub async fn propose(&self, command: Envelope) -> Result<CommandResult, ProposeError> {
        let (tx, rx) = oneshot::channel();
        self.propose_with(command, move |result| {
            // The caller may have stopped waiting.
            let _ = tx.send(result);
        });
        rx.await.unwrap_or(Err(ProposeError::Unknown { reason: "the metadata node stopped" }))
    }

    /// Proposes a command; `done` is called exactly once, on the raft thread after the command was applied, or at once
    /// on this thread if it was refused. It must be short and must not block.
    pub fn propose_with(
        &self,
        command: Envelope,
        done: impl FnOnce(Result<CommandResult, ProposeError>) + Send + 'static,
    ) {
        self.shared.queue.push(command, Box::new(done));
    }

    /// As [`Quorum::propose`], but refused unless this member leads: for what only a leader may decide.
    pub(crate) async fn propose_as_leader(&self, command: Envelope) -> Result<CommandResult, ProposeError> {
        let (done, answer) = oneshot::channel();
        // Nobody waits for it any longer: so be it.
        let tell = Box::new(move |result| drop(done.send(result)));
        self.shared.queue.push_forwarded(command, tell);
        answer.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// Its node id.
    pub fn node_id(&self) -> u64 {
        self.shared.options.node_id
    }

    /// Waits until everything that was acknowledged to anyone before this call is applied here (ReadIndex). Returns the
    /// index that an image must have reached to show all of it.
    pub async fn barrier(&self) -> Result<u64, ProposeError> {
        self.shared.barriers.wait().await
    }

    /// An image of now, and every later effect batch.
    pub fn subscribe(&self) -> (Image, EffectStream) {
        self.shared.machine.subscribe()
    }

    /// Every effect batch after that of `index`, if the ring still reaches back so far; else [`Quorum::subscribe`].
    pub fn resume(&self, index: u64) -> Option<EffectStream> {
        self.shared.machine.ring.resume(index)
    }

    /// The index of the last entry applied here. Its effects are in every stream by then.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.machine.applied()
    }

    /// An image at this index shows what every command proposed here and answered by now has done. No lower than
    /// [`Quorum::applied`]; a member that does not lead may have to wait for it.
    pub fn acknowledged(&self) -> u64 {
        self.shared.machine.acknowledged()
    }

    /// The index of the last entry applied, and the state's rolling hash there, for comparing members.
    pub fn position(&self) -> (u64, u64) {
        self.shared.machine.position()
    }

    /// True while this member leads.
    pub fn is_leader(&self) -> bool {
        self.shared.raft.is_leader()
    }

    /// What the cluster was formatted with.
    pub fn cluster(&self) -> &ClusterFormat {
        &self.shared.format.cluster
    }

    /// The random id of this member's directory.
    pub fn incarnation(&self) -> [u8; 16] {
        self.shared.format.incarnation()
    }

    /// Its metrics, for registration.
    pub fn metrics(&self) -> &Arc<RaftMetrics> {
        &self.shared.metrics
    }

    /// Writes a snapshot now. False if the disk refused; the log stays then.
    pub async fn snapshot(&self) -> bool {
        self.shared.keeper.take_now().await
    }

    /// Archives from now on, whenever this member leads, until it stops. To be called once, where
    /// [`QuorumOptions::archive_lag_bytes`] is set.
    pub fn archive(&self, archive: Arc<dyn Archive>, options: ArchiveOptions) -> Archiver {
        let shared = &self.shared;
        let member = Member {
            host: shared.host.clone(),
            cluster_id: shared.format.cluster.cluster_id.clone(),
            machine: Arc::clone(&shared.machine),
            store: shared.store.clone(),
            keeper: shared.keeper.clone(),
            queue: Arc::clone(&shared.queue),
            barriers: Arc::clone(&shared.barriers),
            lead: shared.lead.clone(),
            metrics: Arc::clone(&shared.metrics),
        };
        Archiver::start(member, archive, options, shared.stop.subscribe())
    }

    #[cfg(test)]
    pub(crate) fn compare(&self, node: u64, index: u64, hash: u64) {
        self.shared.machine.compare(node, crate::remote::wire::Position { index, hash });
    }

    #[cfg(test)]
    pub(crate) fn network(&self) -> Option<crate::RaftNetwork> {
        self.shared.options.network.clone()
    }

    #[cfg(test)]
    pub(crate) fn log_store(&self) -> LogStore {
        self.shared.store.clone()
    }

    /// Refuses new commands, waits for those on their way, hands the leadership over if it has it, writes a snapshot and stops.
    /// Later calls do nothing.
    pub async fn shutdown(&self) -> Result<(), RaftError> {
        self.shared.close();
        let (keeper, raft) = (self.shared.keeper.clone(), self.shared.raft.clone());
        let (slots, store) = (Arc::clone(&self.shared.slots), self.shared.store.clone());
        let (inbound, lead) = (self.shared.inbound.clone(), self.shared.lead.clone());
        let all = u32::try_from(self.shared.options.entries_in_flight).unwrap_or(u32::MAX);
        let work = async move {
            if tokio::time::timeout(STOP_TIMEOUT, slots.acquire_many(all)).await.is_err() {
                tracing::warn!("commands were still on their way when the metadata node stopped");
            }
            slots.close();
            if lead.in_group() {
                hand_over(&raft, &lead).await;
            }
            if keeper.machine.is_ahead_of_snapshot() {
                keeper.take().await;
            }
            if let Some(inbound) = inbound {
                inbound.close();
            }
            let stopped = raft.shutdown().await.map_err(|error| RaftError::Stopped(error.to_string()));
            store.close().await;
            stopped
        };
        on_runtime(&self.shared.host, &self.shared.keeper.spawner, work)
            .await
            .unwrap_or_else(|| Err(RaftError::Stopped("the raft runtime ended".to_owned())))
    }
}

fn boxed(
    task: impl Future<Output = ()> + Send + 'static,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'static>> {
    Box::pin(task)
}

/// Runs work on the raft runtime, where openraft finds its seed. `None` if that runtime ended first.
pub(crate) async fn on_runtime<T: Send + 'static>(
    host: &Host,
    spawner: &Spawner,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (tx, rx) = oneshot::channel();
    let task = async move {
        // The caller may have stopped waiting; the work is done all the same.
        let _ = tx.send(work.await);
    };
    spawner.spawn("raft-call", Runtime::scope(host.random_u64(), boxed(task)));
    rx.await.ok()
}

fn raft_config(format: &FormatRecord, options: &QuorumOptions) -> Result<Config, RaftError> {
    let timing = options.network.as_ref().map_or(Timing::ALONE, |network| network.timing);
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: format.cluster.cluster_id.clone(),
        heartbeat_interval: ms(timing.heartbeat),
        election_timeout_min: ms(timing.election_min),
        election_timeout_max: ms(timing.election_max),
        // The keeper takes snapshots and purges.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        enable_pre_vote: Some(true),
        // A leader that comes back runs an election: then its own term's first entry commits the whole log, which the
        // committed id on disk, being lazy, need not cover.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config.validate().map_err(|error| RaftError::BadOption(error.to_string()))
}

/// Whether this member begins a new group with the others: the one with the lowest node id does.
fn begins(options: &QuorumOptions) -> bool {
    let lowest = options.initial_voters.iter().map(|(node, _)| *node).min();
    options.initial_voters.len() > 1 && lowest == Some(options.node_id)
}

/// Whether this member is its whole group, and need ask nobody.
async fn stands_alone(
    raft: &Raft,
    options: &QuorumOptions,
    format: &FormatRecord,
    pristine: bool,
) -> Result<bool, RaftError> {
    if pristine {
        return Ok(options.initial_voters.iter().all(|(node, _)| *node == options.node_id));
    }
    // From the core itself: its metrics say nothing before it has run.
    let membership = raft
        .with_raft_state(|state| state.membership_state.effective().membership().clone())
        .await
        .map_err(|error| RaftError::Stopped(error.to_string()))?;
    check_membership(&membership, options, format.incarnation())?;
    Ok(membership.voter_ids().eq([options.node_id]))
}

/// Notes in FORMAT that the log has been begun, once something in it is synced. Until then an empty log is no lost one.
async fn note_bootstrapped(host: Host, dir: PathBuf, mut format: FormatRecord, store: LogStore) {
    if store.is_pristine() {
        store.first_synced().await;
    }
    format.bootstrapped = true;
    if let Err(error) = format.write(&host, &dir) {
        // The next start does it; only the loss of the log alone would go unnoticed until then.
        tracing::error!(%error, "FORMAT could not be written");
    }
}

/// Gives the leadership to the voter that has most of the log, if this member has it.
async fn hand_over(raft: &Raft, lead: &Lead) {
    use openraft_rt::watch::WatchReceiver as _;
    if !raft.is_leader() {
        return;
    }
    let successor = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = |id: &u64| metrics.replication.as_ref().and_then(|all| all.get(id).copied().flatten());
        let voters = metrics.membership_config.membership().voter_ids();
        voters.filter(|id| *id != lead.me).max_by_key(|id| (matched(id), std::cmp::Reverse(*id)))
    };
    let Some(successor) = successor else { return };
    tracing::info!(successor, "handing over the metadata leadership");
    if raft.trigger().transfer_leader(successor).await.is_err() {
        return;
    }
    let mut leader = lead.leader.clone();
    let other = leader.wait_for(|leader| leader.id.is_some_and(|id| id != lead.me));
    if tokio::time::timeout(HAND_OVER_TIMEOUT, other).await.is_err() {
        tracing::warn!(successor, "nobody took the metadata leadership over; an election will find a leader");
    }
}

/// In a group of one: begins it if it is fresh, takes the leadership and waits until all of the log is applied.
async fn take_lead(
    raft: &Raft,
    machine: &Machine,
    options: &QuorumOptions,
    format: &FormatRecord,
    pristine: bool,
) -> Result<(), RaftError> {
    let stopped = |error: &dyn std::fmt::Display| RaftError::Stopped(error.to_string());
    if pristine {
        let me = Peer { incarnation: format.incarnation(), address: options.address.clone() };
        let members = BTreeMap::from([(options.node_id, me)]);
        raft.initialize(members).await.map_err(|error| stopped(&error))?;
    } else {
        raft.trigger().elect(false).await.map_err(|error| stopped(&error))?;
    }
    raft.wait(Some(START_TIMEOUT))
        .state(ServerState::Leader, "start")
        .await
        .map_err(|error| stopped(&error))?;
    barrier::round(raft, machine, None).await.map_err(|error| stopped(&error))?;
    Ok(())
}

/// Refuses a directory that the group knows under another incarnation.
fn check_membership(
    membership: &Membership,
    options: &QuorumOptions,
    incarnation: [u8; 16],
) -> Result<(), RaftError> {
    match membership.get_node(&options.node_id) {
        Some(peer) if peer.incarnation != incarnation => Err(RaftError::WrongDirectory {
            path: options.dir.clone(),
            what: format!("the group knows node {} under another incarnation", options.node_id),
        }),
        _ => Ok(()),
    }
}
