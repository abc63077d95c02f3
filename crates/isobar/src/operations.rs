//! What an operator asks of a running node over its admin port: `fsck`, deleted topics, and how the cluster is.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use isobar_admin::{Call, LINE_QUEUE, Operations, Reply};
use isobar_host::Host;
use isobar_metadata::command::{PurgeTopics, UndeleteTopic};
use isobar_metadata::result::TopicResult;
use isobar_metadata::{Command, CommandResult, DeletedTopic, TopicId};
use isobar_protocol::Uuid;
use isobar_protocol::error::ErrorCode;
use isobar_raft::Quorum;
use isobar_store::fsck::{Finding, FsckOptions, FsckParts, Line, Summary, fsck};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::member::Roles;
use crate::membership::{About, Change, Kind, Membership};
use crate::standing::{Seen, standing};

/// Implements [`Operations`] for a node.
pub(crate) struct NodeOperations {
    pub(crate) host: Host,
    /// `None`: it is no broker.
    pub(crate) fsck: Option<FsckParts>,
    pub(crate) store: isobar_metadata::StoreId,
    pub(crate) quorum: Quorum,
    /// `None`: it is alone.
    pub(crate) membership: Option<Membership>,
}

/// `POST /v1/fsck`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct FsckCall {
    deep: bool,
    repair: bool,
}

/// `POST /v1/topics/undelete` and `/v1/topics/purge`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicCall {
    /// A deleted topic's name or id; a name means the one deleted last.
    topic: String,
    /// Undelete under another name.
    #[serde(default)]
    name: Option<String>,
}

/// `POST /v1/cluster/…`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ChangeCall {
    node: u64,
    /// Replace: where it is reached, if that is not where the group knows it.
    address: String,
    /// Remove: its disk is gone.
    lost: bool,
}

/// An answer that is no success: HTTP status and why.
type Refusal = (u16, String);

#[async_trait]
impl Operations for NodeOperations {
    async fn call(&self, call: Call) -> Option<Reply> {
        let answer = match (call.post, call.path.as_str()) {
            (true, "fsck") => match parse::<FsckCall>(&call.body).and_then(|asked| self.start_fsck(&asked)) {
                Ok(lines) => return Some(Reply::Lines(lines)),
                Err(refusal) => Err(refusal),
            },
            (false, "cluster") => Ok(self.cluster().await),
            (true, "cluster/add") => self.change(Kind::Add, &call.body).await,
            (true, "cluster/replace") => self.change(Kind::Replace, &call.body).await,
            (true, "cluster/remove") => self.change(Kind::Remove, &call.body).await,
            (true, "cluster/drain") => self.change(Kind::Drain, &call.body).await,
            (true, "cluster/undrain") => self.change(Kind::Undrain, &call.body).await,
            (true, "cluster/upgrade") => self.change(Kind::Upgrade, &call.body).await,
            (false, "topics/deleted") => self.deleted().await,
            (true, "topics/undelete") => self.undelete(&call.body).await,
            (true, "topics/purge") => self.purge(&call.body).await,
            _ => return None,
        };
        let (status, value) = match answer {
            Ok(value) => (200, value),
            Err((status, why)) => (status, json!({ "error": why })),
        };
        Some(Reply::Json { status, text: value.to_string() })
    }
}

fn parse<T: for<'a> Deserialize<'a>>(body: &Bytes) -> Result<T, Refusal> {
    let body: &[u8] = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| (400, error.to_string()))
}

impl NodeOperations {
    /// As of now and as this node knows it: what is wrong may be that no barrier can be had.
    async fn cluster(&self) -> Value {
        let quorum = &self.quorum;
        let said = match &self.membership {
            Some(membership) => membership.about_all().await,
            None => BTreeMap::from([(
                quorum.node_id(),
                About { roles: Roles::default().names(), ..About::default() },
            )]),
        };
        let leader = quorum.leader().borrow().clone();
        let seen = Seen { me: quorum.node_id(), members: &quorum.membership(), leader: &leader, said: &said };
        standing(&seen, &quorum.subscribe().0)
    }

    async fn change(&self, kind: Kind, body: &Bytes) -> Result<Value, Refusal> {
        let asked: ChangeCall = parse(body)?;
        let Some(membership) = &self.membership else {
            return Err((409, "this node is alone: give it a [cluster] first".to_owned()));
        };
        let ChangeCall { node, address, lost } = asked;
        let change = Change { kind: kind as i32, node, address, lost, passed_on: false };
        let done = membership.change(change).await.map_err(|refusal| (409, refusal.message))?;
        Ok(json!({
            "said": done.said, "open_streams": done.open_streams, "waiting_chunks": done.waiting_chunks,
        }))
    }

    fn fsck(&self) -> Result<&FsckParts, Refusal> {
        self.fsck.as_ref().ok_or_else(|| (409, "this node is no broker: ask one that is".to_owned()))
    }

    fn start_fsck(&self, asked: &FsckCall) -> Result<mpsc::Receiver<Bytes>, Refusal> {
        let (lines, reader) = mpsc::channel(LINE_QUEUE);
        let parts = self.fsck()?.clone();
        let options = FsckOptions { store: self.store, deep: asked.deep, repair: asked.repair };
        self.host.spawn("fsck", async move {
            let (tell, mut told) = mpsc::channel(LINE_QUEUE);
            let to = lines.clone();
            let pass_on = async move {
                // Ending drops `told`, which ends the work.
                while let Some(line) = told.recv().await {
                    if to.send(line_json(&line)).await.is_err() {
                        return;
                    }
                }
            };
            let (result, ()) = tokio::join!(fsck(&parts, options, tell), pass_on);
            if let Err(error) = result {
                let text = format!("{}\n", json!({ "error": error.to_string() }));
                let _ = lines.send(Bytes::from(text)).await;
            }
        });
        Ok(reader)
    }

    async fn settled(&self) -> Result<isobar_metadata::Image, Refusal> {
        let proposer = &self.fsck()?.proposer;
        proposer.barrier().await.map_err(|error| (503, error.to_string()))?;
        Ok(proposer.image())
    }

    async fn deleted(&self) -> Result<Value, Refusal> {
        let image = self.settled().await?;
        let mut topics: Vec<&Arc<DeletedTopic>> = image.deleted_topics().collect();
        topics.sort_by(|a, b| (&a.record.name, a.deleted_ms).cmp(&(&b.record.name, b.deleted_ms)));
        let topics: Vec<Value> = topics.into_iter().map(|topic| topic_json(topic)).collect();
        Ok(json!({ "topics": topics, "time_ms": image.time_ms() }))
    }

    /// The deleted topic that a name or id means: of several of one name that which was deleted last.
    async fn find(&self, asked: &str) -> Result<Arc<DeletedTopic>, Refusal> {
        let image = self.settled().await?;
        let id = Uuid::try_parse(asked).ok().map(TopicId);
        let named =
            |topic: &&Arc<DeletedTopic>| topic.record.name == asked || Some(topic.record.topic_id) == id;
        let found = image.deleted_topics().filter(named).max_by_key(|topic| topic.deleted_ms);
        found.cloned().ok_or_else(|| {
            let why = format!("there is no deleted topic {asked:?}; `isobar topic deleted` lists them");
            (404, why)
        })
    }

    async fn undelete(&self, body: &Bytes) -> Result<Value, Refusal> {
        let asked: TopicCall = parse(body)?;
        let topic = self.find(&asked.topic).await?;
        let name = asked.name.unwrap_or_default();
        let command = UndeleteTopic { topic_id: topic.record.topic_id, name };
        let result = self.propose(Command::UndeleteTopic(command)).await?;
        // Whoever has this answer finds the topic at this node.
        self.settled().await?;
        Ok(
            json!({ "undeleted": result.name, "id": result.topic_id.to_string(), "partitions": result.partitions }),
        )
    }

    async fn purge(&self, body: &Bytes) -> Result<Value, Refusal> {
        let asked: TopicCall = parse(body)?;
        let topic = self.find(&asked.topic).await?;
        let topic_id = topic.record.topic_id;
        self.propose(Command::PurgeTopics(PurgeTopics { topic_ids: vec![topic_id] })).await?;
        Ok(json!({ "purged": topic.record.name, "id": topic_id.to_string() }))
    }

    async fn propose(&self, command: Command) -> Result<TopicResult, Refusal> {
        match self.fsck()?.proposer.propose(command).await {
            Ok(CommandResult::Topics(results)) => match results.topics.into_iter().next() {
                Some(result) if result.error_code == 0 => Ok(result),
                Some(result) => {
                    let code = ErrorCode::from_i16(i16::try_from(result.error_code).unwrap_or(-1));
                    let why = result.message.unwrap_or_else(|| code.message().to_owned());
                    Err((409, format!("{}: {why}", code.name())))
                }
                None => Err((500, "metadata gave no answer".to_owned())),
            },
            Ok(other) => Err((409, format!("metadata refused it: {other:?}"))),
            Err(error) => Err((503, error.to_string())),
        }
    }
}

fn topic_json(topic: &DeletedTopic) -> Value {
    json!({
        "name": topic.record.name,
        "id": topic.record.topic_id.to_string(),
        "partitions": topic.record.partitions,
        "deleted_ms": topic.deleted_ms,
        "purge_ms": topic.purge_ms,
    })
}

fn line_json(line: &Line) -> Bytes {
    let value = match line {
        Line::Progress { step, done, total } => json!({ "progress": step, "done": done, "total": total }),
        Line::Finding(finding) => finding_json(finding),
        Line::Done(summary) => summary_json(summary),
    };
    Bytes::from(format!("{value}\n"))
}

fn finding_json(finding: &Finding) -> Value {
    let extents: Vec<Value> = finding
        .extents
        .iter()
        .map(|(key, first, last)| {
            json!({ "topic_id": key.topic_id.to_string(), "partition": key.partition, "first": first, "last": last })
        })
        .collect();
    json!({
        "finding": finding.kind.name(),
        "is_loss": finding.kind.is_loss(),
        "key": finding.key,
        "bytes": finding.size_bytes,
        "what": finding.what,
        "extents": extents,
        "extent_count": finding.extent_count,
        "repaired": finding.repaired,
    })
}

fn summary_json(summary: &Summary) -> Value {
    let found: serde_json::Map<String, Value> =
        summary.found.iter().map(|(kind, count)| (kind.name().to_owned(), json!(count))).collect();
    json!({
        "done": true,
        "clean": summary.is_clean(),
        "listed": summary.listed,
        "listed_bytes": summary.listed_bytes,
        "referenced": summary.referenced,
        "live_bytes": summary.live_bytes,
        "awaiting_delete": summary.awaiting_delete,
        "prepared": summary.prepared,
        "read": summary.read,
        "found": found,
        "repaired": summary.repaired,
    })
}
