//! openraft's messages on their way to one member.
//!
//! Appends are pipelined: the next one goes out while the ones before it are being synced at the follower. The window is
//! bounded in messages and bytes. Answers are handed to openraft in the order of the requests, and after the first one that
//! is not plain success the rest are dropped: a later conflict would tell of a state that is gone.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use isobar_rpc::{CallError, Channel, Method};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Remote, snapshot, wire};
use crate::snapshots::SnapshotHandle;
use crate::types::{LogId, Peer, Types, Vote};

/// Appends on the way to one follower, and their bytes.
const WINDOW: usize = 8;
const WINDOW_BYTES: usize = 8 << 20;
/// An append is answered when it is synced; a busy disk may take its time. The transport notices a dead peer by itself.
const APPEND_TIMEOUT: Duration = Duration::from_secs(3);

/// Makes the ways to other members. Without a transport there is none, and every message says so.
#[derive(Clone)]
pub(crate) struct Network(pub(crate) Option<Arc<Remote>>);

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &Peer) -> Link {
        Link { remote: self.0.clone(), target, peer: node.clone() }
    }
}

/// The way to one member.
#[derive(Clone)]
pub(crate) struct Link {
    remote: Option<Arc<Remote>>,
    target: u64,
    peer: Peer,
}

fn rpc_error(error: &CallError) -> RPCError<Types> {
    match error {
        // Both wait before the next try: nobody is there, or whoever is there does not want us.
        CallError::NotSent(_) | CallError::Stopped | CallError::Refused { .. } => {
            Unreachable::new(error).into()
        }
        CallError::Lost(_) | CallError::TimedOut => NetworkError::new(error).into(),
    }
}

fn malformed(what: String) -> RPCError<Types> {
    Unreachable::from_string(what).into()
}

impl Link {
    fn remote(&self) -> Result<&Arc<Remote>, RPCError<Types>> {
        let nobody = || Unreachable::from_string(format!("no transport to node {}", self.target)).into();
        self.remote.as_ref().ok_or_else(nobody)
    }

    async fn ask(
        &self,
        method: Method,
        body: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, RPCError<Types>> {
        let asked = self.remote()?.line.ask(self.target, &self.peer, Channel::Raft, method, body, timeout);
        asked.await.map_err(|error| rpc_error(&error))
    }

    /// Sends one append; the answer comes later.
    fn send_append(&self, request: &AppendEntriesRequest<Types>) -> Result<Sent, RPCError<Types>> {
        let remote = self.remote()?;
        let route = remote.line.route(Some(&self.peer.incarnation));
        let (standing, archived) = (remote.machine.standing(), remote.machine.archive.known());
        let body = wire::encode_append(route, request, standing, archived, remote.host.now_ms());
        let (tell, answer) = oneshot::channel();
        let sent = Sent {
            previous: request.prev_log_id,
            last: request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id),
            bytes: body.iter().map(Bytes::len).sum(),
            answer,
        };
        let peer = remote.line.peer(self.target, &self.peer).map_err(|error| rpc_error(&error))?;
        let deadline = Instant::now() + APPEND_TIMEOUT;
        peer.call_with(Channel::Raft, wire::APPEND, body, deadline, move |result| {
            // Nobody waits any more: openraft has begun anew.
            let _ = tell.send(result);
        });
        Ok(sent)
    }

    fn append_answer(
        &self,
        answer: Result<Result<Bytes, CallError>, oneshot::error::RecvError>,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let dropped = |_| Err(CallError::Lost("the transport dropped the call".to_owned()));
        let body = answer.unwrap_or_else(dropped).map_err(|error| rpc_error(&error))?;
        let (answer, _): (wire::AppendAnswer, _) = wire::decode(&body).map_err(malformed)?;
        let remote = self.remote()?;
        if let Some(position) = answer.position {
            remote.machine.compare(self.target, position);
        }
        remote.clocks.heard(self.target, answer.clock_ms, Instant::now());
        answer.response().map_err(malformed)
    }

    async fn ask_vote(
        &self,
        method: Method,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let ask = wire::VoteAsk::of(self.remote()?.line.route(Some(&self.peer.incarnation)), &request);
        let body = self.ask(method, wire::encode(&ask), option.hard_ttl()).await?;
        let (answer, _): (wire::VoteAnswer, _) = wire::decode(&body).map_err(malformed)?;
        Ok(answer.response())
    }
}

/// An append on its way.
struct Sent {
    previous: Option<LogId>,
    last: Option<LogId>,
    bytes: usize,
    answer: oneshot::Receiver<Result<Bytes, CallError>>,
}

/// A stream of appends and what is on the way of it.
struct Pipe<S> {
    link: Link,
    input: Option<S>,
    sent: VecDeque<Sent>,
    bytes: usize,
}

impl<S: Stream<Item = AppendEntriesRequest<Types>> + Unpin> Pipe<S> {
    /// The next answer. `None`: there is none left.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<Types>, RPCError<Types>>> {
        loop {
            let room = self.sent.len() < WINDOW && self.bytes < WINDOW_BYTES;
            let input = self.input.as_mut().filter(|_| room);
            let request = match (self.sent.front_mut(), input) {
                (None, None) => return None,
                (None, Some(input)) => input.next().await,
                (Some(front), None) => {
                    let answer = (&mut front.answer).await;
                    return Some(self.answered(answer));
                }
                (Some(front), Some(input)) => tokio::select! {
                    biased;
                    answer = &mut front.answer => return Some(self.answered(answer)),
                    request = input.next() => request,
                },
            };
            let Some(request) = request else {
                self.input = None;
                continue;
            };
            match self.link.send_append(&request) {
                Ok(sent) => {
                    self.bytes += sent.bytes;
                    self.sent.push_back(sent);
                }
                Err(error) => {
                    self.end();
                    return Some(Err(error));
                }
            }
        }
    }

    /// Takes no more, and waits for nothing that is on its way.
    fn end(&mut self) {
        self.input = None;
        self.sent.clear();
    }

    fn answered(
        &mut self,
        answer: Result<Result<Bytes, CallError>, oneshot::error::RecvError>,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        let (previous, last) = match self.sent.pop_front() {
            Some(sent) => {
                self.bytes -= sent.bytes;
                (sent.previous, sent.last)
            }
            None => (None, None),
        };
        let response = match self.link.append_answer(answer) {
            // Without a previous entry there is nothing to conflict with.
            Ok(AppendEntriesResponse::Conflict) if previous.is_none() => {
                Err(malformed("a conflict with nothing".to_owned()))
            }
            response => response,
        };
        if !matches!(response, Ok(AppendEntriesResponse::Success)) {
            self.end();
        }
        Ok(response?.into_stream_result(previous, last))
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let sent = self.send_append(&request)?;
        self.append_answer(sent.answer.await)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let pipe = Pipe { link: self.clone(), input: Some(input), sent: VecDeque::new(), bytes: 0 };
        let answers = futures_util::stream::unfold(pipe, |mut pipe| async move {
            let answer = pipe.next().await?;
            Some((answer, pipe))
        });
        let answers: BoxStream<'s, _> = Box::pin(answers);
        Box::pin(async move { Ok(answers) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(wire::VOTE, request, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ask_vote(wire::PRE_VOTE, request, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let remote = self.remote()?;
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = snapshot::send(remote, self.target, &self.peer, &vote, snapshot) => {
                let answer = sent.map_err(|error| rpc_error(&error))?;
                Ok(SnapshotResponse::new(answer))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let ask = wire::Transfer::of(self.remote()?.line.route(Some(&self.peer.incarnation)), &request);
        let body = self.ask(wire::TRANSFER, wire::encode(&ask), option.hard_ttl()).await?;
        let (answer, _): (wire::TransferAnswer, _) = wire::decode(&body).map_err(malformed)?;
        Ok(answer.response(&request))
    }

    /// Short: the transport has a backoff of its own, and a member that comes back must hear of its leader soon.
    fn backoff(&self) -> Option<Backoff> {
        let steps = [50, 100, 200, 400].into_iter().chain(std::iter::repeat(500));
        Some(Backoff::new(steps.map(Duration::from_millis)))
    }
}
