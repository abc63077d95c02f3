//! The handle on the metadata quorum: of a member, or of an observer.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, watch};
use isobar_metadata::{ClusterFormat, CommandResult, Envelope, Image};
use tokio::sync::oneshot;

use crate::archive::{self, Archive, ArchiveOptions, Archiver};
use crate::effects::EffectStream;
use crate::error::{ProposeError, RaftError};
use crate::leader::{Lead, Leader};
#[cfg(test)]
use crate::log_store::LogStore;
use crate::member::{Member, on_runtime};
use crate::members::{self, MemberInfo, MembershipError};
use crate::metrics::RaftMetrics;
use crate::observer::{Observer, ObserverOptions};
use crate::options::QuorumOptions;
use crate::propose::{Queue, Raft};
use crate::remote::Remote;

/// Between two tries of [`Quorum::wait_ready`].
const READY_AGAIN: Duration = Duration::from_millis(20);

/// A node's part in the metadata quorum: as a member, or as an observer, which has no directory and no vote. Clones are the same;
/// when the last one of a member is dropped without [`Quorum::shutdown`], it stops as in a crash.
#[derive(Clone)]
pub struct Quorum(Kind);

#[derive(Clone)]
enum Kind {
    Member(Arc<Member>),
    Observer(Arc<Observer>),
}

impl Quorum {
    /// Opens the directory and replays it. In a group of one it takes the leadership and applies the whole log, so that when
    /// this returns commands and barriers are answered. In a group of several it returns once the directory is open:
    /// [`Quorum::wait_ready`] waits for the rest.
    pub async fn start(host: &Host, options: QuorumOptions) -> Result<Self, RaftError> {
        options.check(host)?;
        let spawner = host.thread_runtime("raft").map_err(RaftError::disk(&options.dir))?;
        let (host, own) = (host.clone(), spawner.clone());
        let member =
            on_runtime(&host.clone(), &spawner, async move { Member::open(host, options, own).await }).await;
        let member =
            member.unwrap_or_else(|| Err(RaftError::Stopped("the raft runtime ended".to_owned())))?;
        Ok(Self(Kind::Member(Arc::new(member))))
    }

    /// Follows a quorum without being a member: no directory, no log, no vote, only what members tell of what was applied.
    /// [`Quorum::wait_ready`] waits until there is something.
    pub fn observe(host: &Host, options: ObserverOptions) -> Self {
        Self(Kind::Observer(Arc::new(Observer::start(host, options))))
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
        self.lead().leader.clone()
    }

    /// Why this member's state and another's cannot both be right, once that was found. A node should end then.
    pub fn diverged(&self) -> watch::Receiver<Option<String>> {
        match &self.0 {
            Kind::Member(member) => member.machine.diverged(),
            Kind::Observer(observer) => observer.diverged.subscribe(),
        }
    }

    /// Who belongs to the group, as of the last entry applied here; ascending by node id.
    pub fn membership(&self) -> Vec<MemberInfo> {
        match &self.0 {
            Kind::Member(member) => members::list(member.machine.membership().membership()),
            Kind::Observer(observer) => observer.seen.members(),
        }
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
        let leader = self.leader().borrow().id;
        let Kind::Member(member) = &self.0 else { return Err(MembershipError::NotLeader { leader }) };
        let Some(remote) = member.remote.clone() else {
            return Err(MembershipError::Refused("this member has no network".to_owned()));
        };
        if leader != Some(member.options.node_id) {
            return Err(MembershipError::NotLeader { leader });
        }
        let work = work(member.raft.clone(), remote);
        on_runtime(&member.host, &member.keeper.spawner, work)
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
        self.queue().push(command, Box::new(done));
    }

    /// As [`Quorum::propose`], but refused unless this member leads: for what only a leader may decide.
    pub(crate) async fn propose_as_leader(&self, command: Envelope) -> Result<CommandResult, ProposeError> {
        let (done, answer) = oneshot::channel();
        // Nobody waits for it any longer: so be it.
        let tell = Box::new(move |result| drop(done.send(result)));
        self.queue().push_forwarded(command, tell);
        answer.await.unwrap_or(Err(ProposeError::Stopping))
    }

    /// Its node id.
    pub fn node_id(&self) -> u64 {
        self.lead().me
    }

    /// Waits until everything that was acknowledged to anyone before this call is applied here (ReadIndex). Returns the
    /// index that an image must have reached to show all of it.
    pub async fn barrier(&self) -> Result<u64, ProposeError> {
        let barriers = match &self.0 {
            Kind::Member(member) => &member.barriers,
            Kind::Observer(observer) => &observer.barriers,
        };
        barriers.wait().await
    }

    /// An image of now, and every later effect batch.
    pub fn subscribe(&self) -> (Image, EffectStream) {
        match &self.0 {
            Kind::Member(member) => member.machine.subscribe(),
            Kind::Observer(observer) => observer.seen.subscribe(),
        }
    }

    /// Every effect batch after that of `index`, if the ring still reaches back so far; else [`Quorum::subscribe`].
    pub fn resume(&self, index: u64) -> Option<EffectStream> {
        match &self.0 {
            Kind::Member(member) => member.machine.ring.resume(index),
            Kind::Observer(observer) => observer.seen.ring.resume(index),
        }
    }

    /// The index of the last entry applied here. Its effects are in every stream by then.
    pub fn applied(&self) -> watch::Receiver<u64> {
        match &self.0 {
            Kind::Member(member) => member.machine.applied(),
            Kind::Observer(observer) => observer.seen.applied.subscribe(),
        }
    }

    /// An image at this index shows what every command proposed here and answered by now has done. No lower than
    /// [`Quorum::applied`]; a member that does not lead may have to wait for it.
    pub fn acknowledged(&self) -> u64 {
        match &self.0 {
            Kind::Member(member) => member.machine.acknowledged(),
            Kind::Observer(observer) => observer.acknowledged(),
        }
    }

    /// The index of the last entry applied, and the state's rolling hash there, for comparing members;
    /// an observer has no state, and 0.
    pub fn position(&self) -> (u64, u64) {
        match &self.0 {
            Kind::Member(member) => member.machine.position(),
            Kind::Observer(observer) => (*observer.seen.applied.borrow(), 0),
        }
    }

    /// Whether this node is no member.
    pub fn is_observer(&self) -> bool {
        matches!(self.0, Kind::Observer(_))
    }

    /// True while this member leads.
    pub fn is_leader(&self) -> bool {
        match &self.0 {
            Kind::Member(member) => member.raft.is_leader(),
            Kind::Observer(_) => false,
        }
    }

    /// What the cluster was formatted with.
    pub fn cluster(&self) -> &ClusterFormat {
        match &self.0 {
            Kind::Member(member) => &member.format.cluster,
            Kind::Observer(observer) => &observer.cluster,
        }
    }

    /// The random id of this member's directory.
    pub fn incarnation(&self) -> [u8; 16] {
        match &self.0 {
            Kind::Member(member) => member.format.incarnation(),
            Kind::Observer(observer) => observer.line.incarnation,
        }
    }

    /// Its metrics, for registration.
    pub fn metrics(&self) -> &Arc<RaftMetrics> {
        match &self.0 {
            Kind::Member(member) => &member.metrics,
            Kind::Observer(observer) => &observer.metrics,
        }
    }

    /// Writes a snapshot now. False if the disk refused: the log stays then; and of an observer, which has none.
    pub async fn snapshot(&self) -> bool {
        match &self.0 {
            Kind::Member(member) => member.keeper.take_now().await,
            Kind::Observer(_) => false,
        }
    }

    /// Archives from now on, whenever this member leads, until it stops. To be called once, where
    /// [`QuorumOptions::archive_lag_bytes`] is set. `None`: an observer has nothing to archive.
    pub fn archive(&self, archive: Arc<dyn Archive>, options: ArchiveOptions) -> Option<Archiver> {
        let Kind::Member(own) = &self.0 else { return None };
        let member = archive::Member {
            host: own.host.clone(),
            cluster_id: own.format.cluster.cluster_id.clone(),
            machine: Arc::clone(&own.machine),
            store: own.store.clone(),
            keeper: own.keeper.clone(),
            queue: Arc::clone(&own.queue),
            barriers: Arc::clone(&own.barriers),
            lead: own.lead.clone(),
            metrics: Arc::clone(&own.metrics),
        };
        Some(Archiver::start(member, archive, options, own.stop.subscribe()))
    }

    #[cfg(test)]
    pub(crate) fn compare(&self, node: u64, index: u64, hash: u64) {
        self.member().machine.compare(node, crate::remote::wire::Position { index, hash });
    }

    #[cfg(test)]
    pub(crate) fn network(&self) -> Option<crate::RaftNetwork> {
        self.member().options.network.clone()
    }

    #[cfg(test)]
    pub(crate) fn log_store(&self) -> LogStore {
        self.member().store.clone()
    }

    /// Refuses new commands, waits for those on their way, hands the leadership over if it has it, writes a snapshot and stops.
    /// An observer only stops. Later calls do nothing.
    pub async fn shutdown(&self) -> Result<(), RaftError> {
        match &self.0 {
            Kind::Member(member) => member.shutdown().await,
            Kind::Observer(observer) => {
                observer.stop();
                Ok(())
            }
        }
    }

    fn lead(&self) -> &Lead {
        match &self.0 {
            Kind::Member(member) => &member.lead,
            Kind::Observer(observer) => &observer.lead,
        }
    }

    fn queue(&self) -> &Queue {
        match &self.0 {
            Kind::Member(member) => &member.queue,
            Kind::Observer(observer) => &observer.queue,
        }
    }

    #[cfg(test)]
    fn member(&self) -> &Member {
        match &self.0 {
            Kind::Member(member) => member,
            Kind::Observer(_) => panic!("an observer is asked for what only a member has"),
        }
    }
}
