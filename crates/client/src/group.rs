//! A member of a consumer group (classic protocol, eager rebalancing, range assignor).
//!
//! Owns: the member's standing in its group. Two parties touch it: [`GroupConsumer::poll`], which joins, and a task
//! that sends heartbeats while the member belongs and tells `poll` to join again when it does not.
//! Invariants: (1) heartbeats and commits carry the member id and generation of one successful join; an answer to an
//! older one changes nothing. (2) No record of a partition is handed out between the loss of membership being seen and the next
//! successful join. (3) Positions are committed only for records handed out by an earlier `poll`.
//! Failure: what passes is tried again until `api_timeout`; being fenced, or a group that cannot be joined, is final.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use isobar_host::Task;
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use isobar_protocol::messages::leave_group_request::MemberIdentity;
use isobar_protocol::messages::offset_fetch_request::{OffsetFetchRequestGroup, OffsetFetchRequestTopics};
use isobar_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use isobar_protocol::messages::{
    HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, SyncGroupRequest, TopicName,
};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use crate::assign::{
    PROTOCOL_TYPE, RANGE, Subscriber, assigned_partitions, assignment, range, subscribed_topics, subscription,
};
use crate::client::{Client, Retry};
use crate::consume::{Consumer, ConsumerConfig, Fetched};
use crate::coordinator::Coordinator;
use crate::error::{Action, ClientError};
use crate::groups::{
    OFFSET_COMMIT_MIN, commit_outcome, commit_request, fetch_offsets, first_coordinator_error,
};
use crate::metadata::TopicPartition;

const JOIN_GROUP_MIN: i16 = 5;
const SYNC_GROUP_MIN: i16 = 5;
const HEARTBEAT_MIN: i16 = 3;
const LEAVE_GROUP_MIN: i16 = 3;
const NO_GENERATION: i32 = -1;
const REJOIN_PAUSE: Duration = Duration::from_millis(20);
/// How often the leader looks whether topics have grown.
const TOPICS_LOOK: Duration = Duration::from_secs(10);

/// How a member takes part.
#[derive(Clone, Debug)]
pub struct GroupConfig {
    /// The group.
    pub group: String,
    /// The topics wanted.
    pub topics: Vec<String>,
    /// For a static member (KIP-345).
    pub instance_id: Option<String>,
    /// Without a heartbeat for this long the coordinator drops the member.
    pub session_timeout: Duration,
    /// How long the coordinator waits for members to join again.
    pub rebalance_timeout: Duration,
    /// Time between heartbeats.
    pub heartbeat_interval: Duration,
    /// How often `poll` commits what earlier polls handed out; `None`: never by itself.
    pub auto_commit: Option<Duration>,
    /// How partitions are read.
    pub consumer: ConsumerConfig,
}

impl GroupConfig {
    /// Kafka's defaults for a group and its topics; commits are the caller's.
    pub fn new(group: impl Into<String>, topics: &[&str]) -> Self {
        GroupConfig {
            group: group.into(),
            topics: topics.iter().map(|topic| (*topic).to_owned()).collect(),
            instance_id: None,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
            heartbeat_interval: Duration::from_secs(3),
            auto_commit: None,
            consumer: ConsumerConfig::default(),
        }
    }
}

/// What a poll brought.
#[derive(Clone, Debug, Default)]
pub struct Polled {
    /// Records.
    pub fetched: Vec<Fetched>,
    /// Whether the member has joined (again), so that its partitions may be others.
    pub rebalanced: bool,
}

/// Who one is in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Given by the coordinator.
    pub member_id: String,
    /// Counts rebalances.
    pub generation: i32,
}

#[derive(Debug)]
enum Standing {
    /// Not in the group, or about to join again: no heartbeats.
    Outside,
    Inside,
    Failed(ClientError),
}

struct State {
    member: Member,
    standing: Standing,
}

impl State {
    /// Takes an error that says one no longer belongs. `of`: who one was when asking.
    fn lose(&mut self, of: &Member, error: &ClientError) {
        if self.member != *of {
            return;
        }
        match (error.code(), error.action()) {
            (Some(ErrorCode::UnknownMemberId), _) => {
                self.member = Member { member_id: String::new(), generation: NO_GENERATION };
                self.standing = Standing::Outside;
            }
            (_, Action::Rejoin) => self.standing = Standing::Outside,
            (_, Action::Fatal) => self.standing = Standing::Failed(error.clone()),
            (_, Action::Retry) => {}
        }
    }
}

/// A member of a group, with the partitions given to it. Dropping it stops its heartbeats; [`GroupConsumer::leave`] tells the
/// group at once.
pub struct GroupConsumer {
    client: Client,
    config: GroupConfig,
    coordinator: Coordinator,
    consumer: Consumer,
    state: Arc<Mutex<State>>,
    heartbeats: Task,
    committed_at: Instant,
    /// If one is the leader: the partitions that were shared out, and when they were last looked at.
    led: Option<(BTreeMap<String, usize>, Instant)>,
}

impl GroupConsumer {
    /// A member that joins at its first `poll`.
    pub fn new(client: &Client, config: GroupConfig) -> GroupConsumer {
        let member = Member { member_id: String::new(), generation: NO_GENERATION };
        let state = Arc::new(Mutex::new(State { member, standing: Standing::Outside }));
        let heart = Heart {
            coordinator: Coordinator::new(client, &config.group),
            instance_id: config.instance_id.clone(),
            interval: config.heartbeat_interval,
            state: Arc::clone(&state),
        };
        GroupConsumer {
            heartbeats: client.host().spawn("client-heartbeats", heart.run()),
            coordinator: Coordinator::new(client, &config.group),
            consumer: Consumer::new(client, config.consumer.clone()),
            client: client.clone(),
            state,
            config,
            committed_at: Instant::now(),
            led: None,
        }
    }

    /// Who one is; the generation is -1 before the first join.
    pub fn member(&self) -> Member {
        self.state.lock().member.clone()
    }

    /// The partitions that are one's own.
    pub fn assignment(&self) -> BTreeSet<TopicPartition> {
        self.consumer.positions().map(|(at, _)| at.clone()).collect()
    }

    /// The offset after the last record handed out.
    pub fn position(&self, at: &TopicPartition) -> Option<i64> {
        self.consumer.position(at)
    }

    /// Moves within a partition that is one's own, for the next poll.
    pub fn seek(&mut self, at: &TopicPartition, offset: i64) {
        if self.consumer.positions().any(|(own, _)| own == at) {
            self.consumer.assign(at.clone(), Some(offset));
        }
    }

    /// Joins if need be (which takes as long as it takes, up to `api_timeout` and the rebalance timeout), then waits for
    /// records, at most `timeout`. Returns at once after a rebalance.
    pub async fn poll(&mut self, timeout: Duration) -> Result<Polled, ClientError> {
        let deadline = Instant::now() + timeout;
        self.look_at_topics().await;
        loop {
            if let Some(every) = self.config.auto_commit
                && self.committed_at + every <= Instant::now()
            {
                self.commit_quietly().await;
            }
            if !self.is_inside()? {
                if self.config.auto_commit.is_some() {
                    self.commit_quietly().await;
                }
                self.join().await?;
                return Ok(Polled { fetched: Vec::new(), rebalanced: true });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let fetched = self.consumer.poll(left.min(self.config.heartbeat_interval)).await?;
            if !self.is_inside()? {
                // Somebody else may own these partitions now; positions are taken from the commits when joining.
                continue;
            }
            if !fetched.is_empty() || Instant::now() >= deadline {
                return Ok(Polled { fetched, rebalanced: false });
            }
        }
    }

    /// Commits the positions of all partitions. An error with [`Action::Rejoin`] means that they went to others.
    pub async fn commit(&mut self) -> Result<(), ClientError> {
        let offsets: BTreeMap<TopicPartition, i64> =
            self.consumer.positions().filter_map(|(at, position)| Some((at.clone(), position?))).collect();
        self.commit_offsets(&offsets).await
    }

    /// Commits offsets of one's own choice.
    pub async fn commit_offsets(
        &mut self,
        offsets: &BTreeMap<TopicPartition, i64>,
    ) -> Result<(), ClientError> {
        self.committed_at = Instant::now();
        if offsets.is_empty() {
            return Ok(());
        }
        let member = self.member();
        let request =
            commit_request(self.coordinator.group_id(), offsets.iter().map(|(at, offset)| (at, *offset)))
                .with_generation_id_or_member_epoch(member.generation)
                .with_member_id(StrBytes::from_string(member.member_id.clone()))
                .with_group_instance_id(self.instance_id());
        let deadline = self.client.deadline();
        let result =
            match self.coordinator.call(&request, OFFSET_COMMIT_MIN, deadline, first_coordinator_error).await
            {
                Ok(response) => commit_outcome(&self.config.group, &response),
                Err(error) => Err(error),
            };
        if let Err(error) = &result
            && error.action() == Action::Rejoin
        {
            self.state.lock().lose(&member, error);
        }
        result
    }

    /// Leaves the group, so that its partitions go to others at once. Commits nothing.
    pub async fn leave(self) -> Result<(), ClientError> {
        self.heartbeats.abort();
        let member = self.member();
        if member.member_id.is_empty() {
            return Ok(());
        }
        let identity = MemberIdentity::default()
            .with_member_id(StrBytes::from_string(member.member_id))
            .with_group_instance_id(self.instance_id());
        let request = LeaveGroupRequest::default()
            .with_group_id(self.coordinator.group_id())
            .with_members(vec![identity]);
        let deadline = self.client.deadline();
        let left =
            self.coordinator.call(&request, LEAVE_GROUP_MIN, deadline, |response| response.error_code).await;
        match left {
            // Gone already.
            Err(error) if error.code() == Some(ErrorCode::UnknownMemberId) => Ok(()),
            left => left.map(drop),
        }
    }

    fn instance_id(&self) -> Option<StrBytes> {
        self.config.instance_id.clone().map(StrBytes::from_string)
    }

    fn is_inside(&self) -> Result<bool, ClientError> {
        match &self.state.lock().standing {
            Standing::Outside => Ok(false),
            Standing::Inside => Ok(true),
            Standing::Failed(error) => Err(error.clone()),
        }
    }

    async fn commit_quietly(&mut self) {
        if let Err(error) = self.commit().await {
            tracing::debug!(group = self.config.group, %error, "automatic commit failed");
        }
    }

    /// The leader has the group share out its topics anew when they have grown.
    async fn look_at_topics(&mut self) {
        let Some((shared_out, looked_at)) = &mut self.led else { return };
        if *looked_at + TOPICS_LOOK > Instant::now() {
            return;
        }
        *looked_at = Instant::now();
        let topics: Vec<&str> = shared_out.keys().map(String::as_str).collect();
        let counts = partition_counts(&self.client, &topics).await;
        if counts.is_ok_and(|counts| counts != *shared_out) {
            self.state.lock().standing = Standing::Outside;
        }
    }

    async fn join(&mut self) -> Result<(), ClientError> {
        self.consumer.unassign_all();
        self.led = None;
        let deadline = self.client.deadline() + self.config.rebalance_timeout;
        let mut retry = Retry::until(deadline);
        loop {
            let error = match self.join_once(deadline).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            self.coordinator.heed(&error);
            match (error.code(), error.action()) {
                // The coordinator has given an id to come back with.
                (Some(ErrorCode::MemberIdRequired), _) => {}
                (code, Action::Rejoin) if Instant::now() < deadline => {
                    if code == Some(ErrorCode::UnknownMemberId) {
                        self.state.lock().member.member_id.clear();
                    }
                    sleep(REJOIN_PAUSE).await;
                }
                _ => retry.after(error).await?,
            }
        }
    }

    /// Join, sync, and look up where to go on.
    async fn join_once(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let joined = self.join_group().await?;
        let member = Member { member_id: joined.member_id.to_string(), generation: joined.generation_id };
        let shares = if joined.leader == joined.member_id && !joined.skip_assignment {
            self.share_out(&joined).await?
        } else {
            Vec::new()
        };
        let request = SyncGroupRequest::default()
            .with_group_id(self.coordinator.group_id())
            .with_generation_id(member.generation)
            .with_member_id(joined.member_id)
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(Some(StrBytes::from_static_str(PROTOCOL_TYPE)))
            .with_protocol_name(joined.protocol_name)
            .with_assignments(shares);
        let extra = self.config.rebalance_timeout;
        let synced =
            self.coordinator.connection().await?.send(&request, SYNC_GROUP_MIN, extra).await?.await?;
        match ErrorCode::from_i16(synced.error_code) {
            ErrorCode::None => {}
            code => return Err(self.coordinator.refused("sync", code)),
        }
        {
            let mut state = self.state.lock();
            state.member = member.clone();
            state.standing = Standing::Inside;
        }
        // Inside already, so that heartbeats go on during this; but a member without its partitions is not one.
        let taken = self.take(synced.assignment, deadline).await;
        if taken.is_err() {
            self.state.lock().standing = Standing::Outside;
        }
        tracing::debug!(group = self.config.group, ?member, ?taken, "joined");
        taken
    }

    /// Goes on with these partitions where the group has committed.
    async fn take(&mut self, assignment: Bytes, deadline: Instant) -> Result<(), ClientError> {
        let own = assigned_partitions(assignment)?;
        let committed = self.committed(&own, deadline).await?;
        for at in own {
            let offset = committed.get(&at).copied();
            self.consumer.assign(at, offset);
        }
        Ok(())
    }

    async fn join_group(&mut self) -> Result<JoinGroupResponse, ClientError> {
        let member_id = {
            let mut state = self.state.lock();
            state.standing = Standing::Outside;
            state.member.generation = NO_GENERATION;
            state.member.member_id.clone()
        };
        let range = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(RANGE))
            .with_metadata(subscription(&self.config.topics)?);
        let request = JoinGroupRequest::default()
            .with_group_id(self.coordinator.group_id())
            .with_session_timeout_ms(self.config.session_timeout.as_millis() as i32)
            .with_rebalance_timeout_ms(self.config.rebalance_timeout.as_millis() as i32)
            .with_member_id(StrBytes::from_string(member_id))
            .with_group_instance_id(self.instance_id())
            .with_protocol_type(StrBytes::from_static_str(PROTOCOL_TYPE))
            .with_protocols(vec![range]);
        let extra = self.config.rebalance_timeout;
        let joined =
            self.coordinator.connection().await?.send(&request, JOIN_GROUP_MIN, extra).await?.await?;
        let code = ErrorCode::from_i16(joined.error_code);
        if code.is_none() || code == ErrorCode::MemberIdRequired {
            self.state.lock().member.member_id = joined.member_id.to_string();
        }
        if code.is_none() { Ok(joined) } else { Err(self.coordinator.refused("join", code)) }
    }

    /// The leader's part: shares the partitions of all subscribed topics out.
    async fn share_out(
        &mut self,
        joined: &JoinGroupResponse,
    ) -> Result<Vec<SyncGroupRequestAssignment>, ClientError> {
        let mut members = Vec::new();
        for member in &joined.members {
            members.push(Subscriber {
                member_id: member.member_id.to_string(),
                instance_id: member.group_instance_id.as_deref().map(str::to_owned),
                topics: subscribed_topics(Bytes::clone(&member.metadata))?,
            });
        }
        let topics: BTreeSet<&str> =
            members.iter().flat_map(|member| &member.topics).map(String::as_str).collect();
        let topics: Vec<&str> = topics.into_iter().collect();
        let counts = partition_counts(&self.client, &topics).await?;
        let mut shares = Vec::new();
        for (member_id, partitions) in range(&members, &counts) {
            shares.push(
                SyncGroupRequestAssignment::default()
                    .with_member_id(StrBytes::from_string(member_id))
                    .with_assignment(assignment(&partitions)?),
            );
        }
        self.led = Some((counts, Instant::now()));
        Ok(shares)
    }

    async fn committed(
        &self,
        own: &BTreeSet<TopicPartition>,
        deadline: Instant,
    ) -> Result<BTreeMap<TopicPartition, i64>, ClientError> {
        if own.is_empty() {
            return Ok(BTreeMap::new());
        }
        let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
        for at in own {
            topics.entry(&at.topic).or_default().push(at.partition);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            let name = TopicName(StrBytes::from_string(name.to_owned()));
            OffsetFetchRequestTopics::default().with_name(name).with_partition_indexes(partitions)
        });
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(self.coordinator.group_id())
            .with_member_epoch(-1)
            .with_topics(Some(topics.collect()));
        let offsets = fetch_offsets(&self.coordinator, asked, deadline).await?;
        Ok(offsets.into_iter().map(|(at, committed)| (at, committed.offset)).collect())
    }
}

impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.heartbeats.abort();
    }
}

/// Partitions of each topic; one that does not exist has none.
async fn partition_counts(client: &Client, topics: &[&str]) -> Result<BTreeMap<String, usize>, ClientError> {
    let metadata = client.metadata(Some(topics)).await?;
    let count = |topic: &str| metadata.topics.get(topic).map_or(0, |topic| topic.partitions.len());
    Ok(topics.iter().map(|topic| ((*topic).to_owned(), count(topic))).collect())
}

/// Sends heartbeats while one is inside. On connections of its own, as a join holds its connection up.
struct Heart {
    coordinator: Coordinator,
    instance_id: Option<String>,
    interval: Duration,
    state: Arc<Mutex<State>>,
}

impl Heart {
    async fn run(self) {
        loop {
            sleep(self.interval).await;
            let member = {
                let state = self.state.lock();
                if !matches!(state.standing, Standing::Inside) {
                    continue;
                }
                state.member.clone()
            };
            if let Err(error) = self.beat(&member).await {
                tracing::debug!(?member, %error, "heartbeat failed");
                self.coordinator.heed(&error);
                self.state.lock().lose(&member, &error);
            }
        }
    }

    async fn beat(&self, member: &Member) -> Result<(), ClientError> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.coordinator.group_id())
            .with_generation_id(member.generation)
            .with_member_id(StrBytes::from_string(member.member_id.clone()))
            .with_group_instance_id(self.instance_id.clone().map(StrBytes::from_string));
        let response = self.coordinator.connection().await?.call(&request, HEARTBEAT_MIN).await?;
        match ErrorCode::from_i16(response.error_code) {
            ErrorCode::None => Ok(()),
            code => Err(self.coordinator.refused("heartbeat", code)),
        }
    }
}
