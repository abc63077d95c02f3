//! A member of the metadata quorum: what it is made of, how it comes up and goes down.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::watch;
use isobar_host::{Host, Spawner};
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, oneshot};

use crate::barrier::{self, Barriers};
use crate::clocks::Clocks;
use crate::error::RaftError;
use crate::format::FormatRecord;
use crate::formation;
use crate::keeper::Keeper;
use crate::leader::{self, Lead, Leader};
use crate::log_store::LogStore;
use crate::machine::{Machine, MachineWorker};
use crate::members;
use crate::metrics::RaftMetrics;
use crate::open::{claim_directory, open_log, open_machine};
use crate::options::QuorumOptions;
use crate::propose::{self, InFlight, Proposer, Queue, Raft};
use crate::remote::network::Network;
use crate::remote::service::{self, Inbound, MetadataService, RaftService};
use crate::remote::{Line, Remote, Timing, snapshot};
use crate::runtime::Runtime;
use crate::types::{Membership, Peer};

/// Longest wait for the leadership of a group of one, and for what is on its way at a stop.
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// A leader that stops waits so long for its successor.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// See the module.
pub(crate) struct Member {
    pub(crate) queue: Arc<Queue>,
    pub(crate) barriers: Arc<Barriers>,
    pub(crate) machine: Arc<Machine>,
    pub(crate) store: LogStore,
    pub(crate) raft: Raft,
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) lead: Lead,
    pub(crate) remote: Option<Arc<Remote>>,
    pub(crate) inbound: Option<Arc<Inbound>>,
    pub(crate) options: QuorumOptions,
    pub(crate) format: FormatRecord,
    pub(crate) metrics: Arc<RaftMetrics>,
    pub(crate) stop: watch::Sender<bool>,
    pub(crate) host: Host,
    pub(crate) keeper: Keeper,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.close();
        self.slots.close();
        if let Some(inbound) = &self.inbound {
            inbound.close();
        }
    }
}

impl Member {
    /// Opens the directory, replays it and starts what works on it.
    pub(crate) async fn open(
        host: Host,
        options: QuorumOptions,
        spawner: Spawner,
    ) -> Result<Self, RaftError> {
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
                line: Line {
                    rpc: network.rpc.clone(),
                    node_id: options.node_id,
                    cluster_incarnation: format.cluster.incarnation,
                    incarnation: format.incarnation(),
                    is_member: true,
                    heard: machine.heard(),
                },
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
        let line = remote.as_ref().map(|remote| remote.line.clone());
        let lead = Lead { me: options.node_id, leader, line };
        // It draws nothing.
        let told = leader::watch(raft.clone(), options.node_id, tell, Arc::clone(&metrics));
        spawner.spawn("raft-leader", Runtime::scope(0, boxed(told)));
        let seeded = |name, task| spawner.spawn(name, Runtime::scope(host.random_u64(), task));
        let proposer = Proposer {
            queue: Arc::clone(&queue),
            slots: Arc::clone(&slots),
            here: Some(propose::Here { raft: raft.clone(), host: host.clone(), remote: remote.clone() }),
            lead: lead.clone(),
            in_flight: Arc::new(InFlight::default()),
        };
        let in_flight = Arc::clone(&proposer.in_flight);
        seeded("raft-propose", boxed(proposer.run()));
        seeded(
            "raft-barrier",
            boxed(barrier::run(
                Arc::clone(&barriers),
                Some(barrier::Here { raft: raft.clone(), machine: Arc::clone(&machine) }),
                machine.applied(),
                lead.clone(),
            )),
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
        if let (Some(remote), Some(network)) = (&remote, &options.network) {
            let serving = Arc::new(Inbound::new(
                Arc::clone(remote),
                store.clone(),
                Arc::clone(&queue),
                Arc::clone(&barriers),
                lead.leader.clone(),
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
        Ok(Self {
            queue,
            barriers,
            machine,
            store,
            raft,
            slots,
            lead,
            remote,
            inbound,
            options,
            format,
            metrics,
            stop,
            host: host.clone(),
            keeper,
        })
    }

    fn close(&self) {
        self.queue.close();
        self.barriers.close();
        self.machine.ring.close();
        self.stop.send_replace(true);
    }

    /// Refuses new commands, waits for those on their way, hands the leadership over if it has it, writes a snapshot and stops.
    /// Later calls do nothing.
    pub(crate) async fn shutdown(&self) -> Result<(), RaftError> {
        self.close();
        let (keeper, raft) = (self.keeper.clone(), self.raft.clone());
        let (slots, store) = (Arc::clone(&self.slots), self.store.clone());
        let (inbound, lead) = (self.inbound.clone(), self.lead.clone());
        let all = u32::try_from(self.options.entries_in_flight).unwrap_or(u32::MAX);
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
        on_runtime(&self.host, &self.keeper.spawner, work)
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
