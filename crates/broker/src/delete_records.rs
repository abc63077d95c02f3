//! DeleteRecords: the log start of a partition rises, and what lies below it is gone for everybody at once.

use std::sync::Arc;

use isobar_metadata::command::{LogStartReason, MoveLogStart, NewLogStart};
use isobar_metadata::{Command, CommandResult};
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use isobar_protocol::messages::{DeleteRecordsRequest, DeleteRecordsResponse, TopicName};

use crate::Broker;
use crate::session::retriable;

/// "The high watermark" in a request.
const HIGH_WATERMARK: i64 = -1;
/// What an answer with an error says: Kafka's `INVALID_LOW_WATERMARK`.
const NO_LOW_WATERMARK: i64 = -1;
/// Partitions of one command: far below what a Raft entry holds.
const COMMAND_PARTITIONS: usize = 5_000;

pub(crate) async fn handle(broker: &Arc<Broker>, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let barrier_error = broker.barrier().await.err();
    let mut topics = Vec::with_capacity(request.topics.len());
    // What goes to metadata, and where its answer belongs: topic and partition in the response.
    let mut asked: Vec<(NewLogStart, usize, usize)> = Vec::new();
    for topic in request.topics {
        let mut results = Vec::with_capacity(topic.partitions.len());
        for partition in topic.partitions {
            let mut result = DeleteRecordsPartitionResult::default()
                .with_partition_index(partition.partition_index)
                .with_low_watermark(NO_LOW_WATERMARK);
            match check(broker, &topic.name, partition.partition_index, partition.offset, barrier_error) {
                Ok(new) => asked.push((new, topics.len(), results.len())),
                Err(error) => result.error_code = error.code(),
            }
            results.push(result);
        }
        topics.push(DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(results));
    }
    for part in asked.chunks(COMMAND_PARTITIONS) {
        let answers = propose(broker, part.iter().map(|(new, ..)| *new).collect()).await;
        for (position, (_, topic, partition)) in part.iter().enumerate() {
            let result = &mut topics[*topic].partitions[*partition];
            let answer = match &answers {
                Ok(answers) => answers.get(position).copied().unwrap_or(Err(ErrorCode::UnknownServerError)),
                Err(error) => Err(*error),
            };
            match answer {
                Ok(low_watermark) => result.low_watermark = low_watermark,
                Err(error) => result.error_code = error.code(),
            }
        }
    }
    DeleteRecordsResponse::default().with_topics(topics)
}

fn check(
    broker: &Broker,
    topic: &TopicName,
    partition: i32,
    offset: i64,
    barrier_error: Option<ErrorCode>,
) -> Result<NewLogStart, ErrorCode> {
    let found = broker.image.with(|image| image.topic_by_name(topic).cloned());
    let known = found.filter(|topic| (0..topic.partitions).contains(&partition));
    let Some(known) = known else {
        return Err(barrier_error.unwrap_or(ErrorCode::UnknownTopicOrPartition));
    };
    if !known.settings.cleanup_delete {
        return Err(ErrorCode::PolicyViolation);
    }
    if offset < HIGH_WATERMARK {
        return Err(ErrorCode::OffsetOutOfRange);
    }
    Ok(NewLogStart { topic_id: known.topic_id, partition, log_start: offset })
}

/// The log starts after the command, in its order.
async fn propose(
    broker: &Broker,
    partitions: Vec<NewLogStart>,
) -> Result<Vec<Result<i64, ErrorCode>>, ErrorCode> {
    let command = MoveLogStart { partitions, reason: LogStartReason::DeleteRecords as i32 };
    match broker.session.propose(Command::MoveLogStart(command)).await {
        Ok(CommandResult::LogStarts(results)) => {
            // Whoever has this answer finds the new log start at this broker.
            broker.settled().await;
            let told = results.partitions.iter().map(|result| match i16::try_from(result.error_code) {
                Ok(0) => Ok(result.log_start),
                Ok(code) => Err(ErrorCode::from_i16(code)),
                Err(_) => Err(ErrorCode::UnknownServerError),
            });
            Ok(told.collect())
        }
        Ok(other) => {
            tracing::error!(answer = ?other, "a move of log starts was refused");
            Err(ErrorCode::UnknownServerError)
        }
        Err(error) => Err(retriable(&error)),
    }
}
