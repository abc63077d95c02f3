//! A coordinator's shell in miniature: time, one timer, a metadata that stores states, and checks on every action.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use isobar_groups::*;

pub fn name(s: &str) -> Name {
    Name::from(s)
}

pub fn bytes(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

pub fn config() -> GroupConfig {
    GroupConfig { initial_rebalance_delay_ms: 0, ..GroupConfig::default() }
}

pub fn protocols(list: &[(&str, &str)]) -> Vec<Protocol> {
    list.iter().map(|(n, m)| Protocol { name: name(n), metadata: bytes(m) }).collect()
}

/// A join of version 9 of a consumer with protocol `range`, session 10 s, rebalance 60 s.
pub fn join(member: &str) -> Join {
    Join {
        member_id: name(member),
        instance_id: None,
        client_id: name("client"),
        client_host: name("/127.0.0.1"),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 60_000,
        protocol_type: name("consumer"),
        protocols: protocols(&[("range", "topics")]),
        new_member_id: name("new"),
        requires_member_id: true,
        supports_skip_assignment: true,
        reason: None,
    }
}

pub fn static_join(member: &str, instance: &str, new: &str) -> Join {
    Join { instance_id: Some(name(instance)), new_member_id: name(new), ..join(member) }
}

pub fn sync(member: &str, generation: i32) -> Sync {
    Sync {
        member_id: name(member),
        instance_id: None,
        generation,
        protocol_type: Some(name("consumer")),
        protocol: Some(name("range")),
        assignments: Vec::new(),
    }
}

pub fn assigning(member: &str, generation: i32, to: &[(&str, &str)]) -> Sync {
    Sync { assignments: to.iter().map(|(m, a)| (name(m), bytes(a))).collect(), ..sync(member, generation) }
}

pub struct Rig {
    pub config: Arc<GroupConfig>,
    pub group: Group,
    pub now: MonoMs,
    pub armed: Option<MonoMs>,
    pub next_request: u64,
    pub asked: BTreeSet<RequestId>,
    pub answers: BTreeMap<RequestId, Response>,
    /// States under way; at most one.
    pub under_way: VecDeque<(u64, GroupState)>,
    pub auto_persist: bool,
    pub durable: Option<GroupState>,
    pub durable_count: usize,
    pub forgotten: bool,
    pub moves: Vec<(State, i32)>,
}

impl Rig {
    pub fn new(config: GroupConfig) -> Self {
        let config = Arc::new(config);
        Self {
            group: Group::new(config.clone()),
            config,
            now: 1_000,
            armed: None,
            next_request: 0,
            asked: BTreeSet::new(),
            answers: BTreeMap::new(),
            under_way: VecDeque::new(),
            auto_persist: true,
            durable: None,
            durable_count: 0,
            forgotten: false,
            moves: Vec::new(),
        }
    }

    pub fn handle(&mut self, event: Event) {
        self.forgotten = false;
        let mut out = Vec::new();
        self.group.handle(self.now, event, &mut out);
        self.take(out);
        while self.auto_persist && !self.under_way.is_empty() {
            self.persisted();
        }
    }

    pub fn take(&mut self, out: Vec<Action>) {
        for action in out {
            assert!(!self.forgotten, "nothing comes after Forget");
            match action {
                Action::Answer(request, response) => {
                    assert!(self.asked.contains(&request), "answer to nothing: {request:?}");
                    let earlier = self.answers.insert(request, response);
                    assert!(earlier.is_none(), "{request:?} answered twice");
                }
                Action::Persist { number, state } => {
                    assert!(self.under_way.is_empty(), "two states under way");
                    self.under_way.push_back((number, *state));
                }
                Action::SetTimer(at) => self.armed = Some(at),
                Action::ClearTimer => assert!(self.armed.take().is_some(), "cleared an unarmed timer"),
                Action::Moved { to, generation, .. } => self.moves.push((to, generation)),
                Action::Forget => self.forgotten = true,
            }
        }
        if self.forgotten {
            assert_eq!(self.armed, None, "forgotten with an armed timer");
            let dead = self.group.state() == State::Dead;
            assert!(dead || self.under_way.is_empty(), "forgotten with a state under way");
            self.under_way.clear();
        }
    }

    pub fn persisted(&mut self) {
        let (number, state) = self.under_way.pop_front().unwrap();
        if let Some(before) = &self.durable {
            assert!(state.generation >= before.generation, "a durable generation goes back");
        }
        self.durable = Some(state);
        self.durable_count += 1;
        let mut out = Vec::new();
        self.forgotten = false;
        self.group.handle(self.now, Event::Persisted(number), &mut out);
        self.take(out);
    }

    pub fn persist_failed(&mut self, error: GroupError) {
        let (number, _) = self.under_way.pop_front().unwrap();
        self.handle(Event::PersistFailed(number, error));
    }

    /// The coordinator dies, and another one loads what is durable.
    pub fn crash(&mut self) {
        self.asked.clear();
        self.answers.clear();
        self.reload();
    }

    /// The shell drops a forgotten group and loads it for the next request.
    pub fn reload(&mut self) {
        self.under_way.clear();
        self.armed = None;
        self.forgotten = false;
        let mut out = Vec::new();
        self.group = match self.durable.clone() {
            Some(state) => Group::load(self.config.clone(), state, self.now, &mut out),
            None => Group::new(self.config.clone()),
        };
        self.take(out);
        while self.auto_persist && !self.under_way.is_empty() {
            self.persisted();
        }
    }

    /// Time passes; the timer fires whenever it is due.
    pub fn advance(&mut self, ms: u64) {
        let end = self.now + ms;
        let mut fired = 0;
        while let Some(at) = self.armed.filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.armed = None;
            self.handle(Event::TimerFired);
            fired += 1;
            assert!(fired < 10_000, "the timer spins");
        }
        self.now = end;
    }

    pub fn request(&mut self) -> RequestId {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.asked.insert(request);
        request
    }

    pub fn unanswered(&self) -> Vec<RequestId> {
        self.asked.iter().filter(|r| !self.answers.contains_key(r)).copied().collect()
    }

    // ---- requests ----

    pub fn join(&mut self, join: Join) -> RequestId {
        let request = self.request();
        self.handle(Event::Join(request, join));
        request
    }

    pub fn sync(&mut self, sync: Sync) -> RequestId {
        let request = self.request();
        self.handle(Event::Sync(request, sync));
        request
    }

    pub fn joined(&self, request: RequestId) -> &JoinAnswer {
        match self.answers.get(&request) {
            Some(Response::Join(answer)) => answer,
            other => panic!("not a join's answer: {other:?}"),
        }
    }

    pub fn synced(&self, request: RequestId) -> Result<&str, GroupError> {
        match self.answers.get(&request) {
            Some(Response::Sync(Ok(answer))) => Ok(std::str::from_utf8(&answer.assignment).unwrap()),
            Some(Response::Sync(Err(error))) => Err(*error),
            other => panic!("not a sync's answer: {other:?}"),
        }
    }

    pub fn waits(&self, request: RequestId) -> bool {
        !self.answers.contains_key(&request)
    }

    pub fn join_error(&mut self, join: Join) -> Option<GroupError> {
        let request = self.join(join);
        self.joined(request).error
    }

    pub fn sync_result(&mut self, sync: Sync) -> Result<String, GroupError> {
        let request = self.sync(sync);
        self.synced(request).map(str::to_owned)
    }

    pub fn heartbeat(&mut self, member: &str, generation: i32) -> Result<(), GroupError> {
        self.heartbeat_as(member, None, generation)
    }

    pub fn heartbeat_as(
        &mut self,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        let request = self.request();
        let heartbeat = Heartbeat { member_id: name(member), instance_id: instance.map(name), generation };
        self.handle(Event::Heartbeat(request, heartbeat));
        match self.answers.get(&request) {
            Some(Response::Heartbeat(result)) => *result,
            other => panic!("not a heartbeat's answer: {other:?}"),
        }
    }

    pub fn commit(
        &mut self,
        member: &str,
        instance: Option<&str>,
        generation: i32,
    ) -> Result<(), GroupError> {
        let request = self.request();
        let check = CommitCheck { member_id: name(member), instance_id: instance.map(name), generation };
        self.handle(Event::CommitCheck(request, check));
        match self.answers.get(&request) {
            Some(Response::CommitCheck(result)) => *result,
            other => panic!("not a commit's answer: {other:?}"),
        }
    }

    pub fn leave(&mut self, members: &[(&str, Option<&str>)]) -> RequestId {
        let request = self.request();
        let leaving = |(m, i): &(&str, Option<&str>)| Leaving {
            member_id: name(m),
            instance_id: i.map(name),
            reason: Some("closing".to_owned()),
        };
        self.handle(Event::Leave(request, Leave { members: members.iter().map(leaving).collect() }));
        request
    }

    /// The error of each member of a `LeaveGroup`.
    pub fn left(&self, request: RequestId) -> Vec<Option<GroupError>> {
        match self.answers.get(&request) {
            Some(Response::Leave(Ok(answer))) => answer.members.iter().map(|m| m.error).collect(),
            other => panic!("not a leave's answer: {other:?}"),
        }
    }

    // ---- whole phases ----

    /// A dynamic member joins by KIP-394's two requests; gives the second, under the member id.
    pub fn join_dynamic(&mut self, id: &str) -> RequestId {
        self.join_dynamic_with(Join { new_member_id: name(id), ..join("") })
    }

    pub fn join_dynamic_with(&mut self, first: Join) -> RequestId {
        let request = self.join(first.clone());
        let answer = self.joined(request).clone();
        assert_eq!(answer.error, Some(GroupError::MemberIdRequired));
        self.join(Join { member_id: answer.member_id, ..first })
    }

    /// These members form a stable generation; the first leads. Everyone is assigned `id@generation`.
    pub fn stabilise(&mut self, ids: &[&str]) -> i32 {
        let requests: Vec<_> = ids
            .iter()
            .map(|id| if self.knows(id) { self.join(join(id)) } else { self.join_dynamic(id) })
            .collect();
        // With no initial delay the first joins alone, and has to come back for the others.
        let requests: Vec<_> = ids
            .iter()
            .zip(requests)
            .map(|(id, r)| if self.answers.contains_key(&r) { self.join(join(id)) } else { r })
            .collect();
        let answers: Vec<_> = requests.iter().map(|r| self.joined(*r).clone()).collect();
        assert!(answers.iter().all(|a| a.error.is_none()), "{answers:?}");
        self.sync_all(&answers)
    }

    pub fn sync_all(&mut self, answers: &[JoinAnswer]) -> i32 {
        let generation = answers[0].generation;
        let leader = answers.iter().find(|a| a.leader == a.member_id).expect("a leader").clone();
        let assignments = leader
            .members
            .iter()
            .map(|m| (m.member_id.clone(), bytes(&format!("{}@{generation}", m.member_id))));
        let by_leader = Sync { assignments: assignments.collect(), ..sync(&leader.member_id, generation) };
        let mut requests = Vec::new();
        for answer in answers.iter().filter(|a| a.leader != a.member_id) {
            requests.push((answer.member_id.clone(), self.sync(sync(&answer.member_id, generation))));
        }
        let request = self.sync(by_leader);
        requests.push((leader.member_id.clone(), request));
        for (id, request) in requests {
            assert_eq!(self.synced(request), Ok(format!("{id}@{generation}").as_str()));
        }
        assert_eq!(self.group.state(), State::Stable);
        generation
    }

    fn knows(&self, id: &str) -> bool {
        self.group.describe().members.iter().any(|m| &*m.member_id == id)
    }
}
