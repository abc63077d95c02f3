//! ListOffsets: where logs begin and end.

use std::collections::BTreeMap;

use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use isobar_protocol::messages::{BrokerId, ListOffsetsRequest, TopicName};

use crate::client::{Client, Retry};
use crate::error::ClientError;
use crate::metadata::TopicPartition;

/// First ListOffsets version that can ask for the record with the largest timestamp (KIP-734).
const LIST_OFFSETS_MIN: i16 = 7;

/// Which offset is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The first that can be read.
    Earliest,
    /// The one after the last (read_committed: the last stable offset).
    Latest,
    /// That of the record with the largest timestamp.
    MaxTimestamp,
    /// The first whose record has this timestamp or a later one, in milliseconds.
    At(i64),
}

impl OffsetSpec {
    fn timestamp(self) -> i64 {
        match self {
            OffsetSpec::Latest => -1,
            OffsetSpec::Earliest => -2,
            OffsetSpec::MaxTimestamp => -3,
            OffsetSpec::At(timestamp_ms) => timestamp_ms,
        }
    }
}

/// An offset found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedOffset {
    /// The offset; `None` if no record matches.
    pub offset: Option<i64>,
    /// The timestamp of its record, where one was asked by.
    pub timestamp_ms: Option<i64>,
    /// The leader epoch.
    pub leader_epoch: i32,
}

type Answers = BTreeMap<TopicPartition, Result<ListedOffset, ClientError>>;

impl Client {
    /// Looks up offsets, each at its partition's leader; retriable errors are tried again until `api_timeout`, and
    /// what then still fails has its error in the answer.
    pub async fn list_offsets(&self, asked: &[(TopicPartition, OffsetSpec)]) -> Result<Answers, ClientError> {
        self.list_offsets_as(asked, false).await
    }

    pub(crate) async fn list_offsets_as(
        &self,
        asked: &[(TopicPartition, OffsetSpec)],
        committed: bool,
    ) -> Result<Answers, ClientError> {
        let mut answers = Answers::new();
        let mut left: BTreeMap<TopicPartition, OffsetSpec> = asked.iter().cloned().collect();
        let mut retry = Retry::until(self.deadline());
        while !left.is_empty() {
            let mut by_leader: BTreeMap<String, Vec<(&TopicPartition, OffsetSpec)>> = BTreeMap::new();
            let mut found = Answers::new();
            for (at, spec) in &left {
                match self.leader_once(at).await {
                    Ok(addr) => by_leader.entry(addr).or_default().push((at, *spec)),
                    Err(error) => drop(found.insert(at.clone(), Err(error))),
                }
            }
            for (addr, asked) in by_leader {
                match self.list_offsets_of(&addr, &asked, committed).await {
                    Ok(answers) => found.extend(answers),
                    Err(error) => {
                        found.extend(asked.iter().map(|(at, _)| ((*at).clone(), Err(error.clone()))))
                    }
                }
            }
            let mut again = None;
            for (at, answer) in found {
                match answer {
                    // A topic that is not there is an answer, not a reason to wait.
                    Err(error)
                        if error.is_retriable()
                            && error.code() != Some(ErrorCode::UnknownTopicOrPartition) =>
                    {
                        again = Some(error);
                    }
                    answer => {
                        left.remove(&at);
                        answers.insert(at, answer);
                    }
                }
            }
            let Some(error) = again else {
                // A broker that leaves partitions out of its answer will do so again.
                let silent = |at: TopicPartition| {
                    let error = ClientError::malformed(format!("ListOffsets of {at}"), "no answer for it");
                    (at, Err(error))
                };
                answers.extend(std::mem::take(&mut left).into_keys().map(silent));
                break;
            };
            if let Err(error) = retry.after(error).await {
                answers.extend(std::mem::take(&mut left).into_keys().map(|at| (at, Err(error.clone()))));
                break;
            }
            let mut topics: Vec<&str> = left.keys().map(|at| at.topic.as_str()).collect();
            topics.dedup();
            // If that fails, the next round finds out by itself.
            let _ = self.refresh_once(Some(&topics)).await;
        }
        Ok(answers)
    }

    async fn list_offsets_of(
        &self,
        addr: &str,
        asked: &[(&TopicPartition, OffsetSpec)],
        committed: bool,
    ) -> Result<Answers, ClientError> {
        let mut topics: BTreeMap<&str, Vec<ListOffsetsPartition>> = BTreeMap::new();
        for (at, spec) in asked {
            let partition = ListOffsetsPartition::default()
                .with_partition_index(at.partition)
                .with_timestamp(spec.timestamp());
            topics.entry(&at.topic).or_default().push(partition);
        }
        let topics = topics.into_iter().map(|(name, partitions)| {
            let name = TopicName(StrBytes::from_string(name.to_owned()));
            ListOffsetsTopic::default().with_name(name).with_partitions(partitions)
        });
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(committed as i8)
            .with_timeout_ms(self.config().request_timeout.as_millis() as i32)
            .with_topics(topics.collect());
        let response = self.connection_to(addr).await?.call(&request, LIST_OFFSETS_MIN).await?;
        let mut answers = Answers::new();
        for topic in response.topics {
            for partition in topic.partitions {
                let at = TopicPartition::new(topic.name.to_string(), partition.partition_index);
                let answer = match ErrorCode::from_i16(partition.error_code) {
                    ErrorCode::None => Ok(ListedOffset {
                        offset: (partition.offset >= 0).then_some(partition.offset),
                        timestamp_ms: (partition.timestamp >= 0).then_some(partition.timestamp),
                        leader_epoch: partition.leader_epoch,
                    }),
                    code => Err(ClientError::broker(format!("ListOffsets of {at}"), code, None)),
                };
                answers.insert(at, answer);
            }
        }
        Ok(answers)
    }
}
