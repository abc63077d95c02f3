//! A member of the group: commits now and then, leaves or falls silent and comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use isobar_client::{Client, GroupConfig, GroupConsumer, Reset, TopicPartition};
use isobar_protocol::error::ErrorCode;
use isobar_testkit::history::Op;
use tokio::time::Instant;

use super::{GROUP, Load, Me, reader};
use crate::plan::Draw as _;

const WENT_ON: [ErrorCode; 3] =
    [ErrorCode::IllegalGeneration, ErrorCode::RebalanceInProgress, ErrorCode::UnknownMemberId];

pub(super) async fn run(mut me: Me) {
    if let Some(client) = me.connect(Load::reads).await {
        while me.load.reads() {
            life(&mut me, &client).await;
        }
    }
    me.load.reading.lock().remove(&me.number);
}

async fn life(me: &mut Me, client: &Client) {
    let topics: Vec<String> = me.load.plan.topics.iter().map(|topic| topic.name.clone()).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let config = GroupConfig {
        session_timeout: Duration::from_secs(6),
        rebalance_timeout: Duration::from_secs(4),
        heartbeat_interval: Duration::from_millis(300),
        instance_id: me.rng.percent(20).then(|| format!("static-{}", me.number)),
        consumer: reader::config(me, Reset::Earliest),
        ..GroupConfig::new(GROUP, &topics)
    };
    let mut consumer = GroupConsumer::new(client, config);
    let mut at: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let until = Instant::now() + Duration::from_millis(me.rng.between(1_000, 10_000));
    while me.load.reads() && Instant::now() < until {
        // A join looks up commits somewhere within the poll: those in force at its beginning are allowed.
        let before = me.load.recorder.stamp();
        match consumer.poll(Duration::from_millis(100)).await {
            Ok(polled) if polled.rebalanced => {
                at.clear();
                for own in consumer.assignment() {
                    let (topic, partition) = (own.topic, own.partition);
                    let group = Some(GROUP.to_owned());
                    let op = Op::Assign { topic, partition, offset: None, group };
                    me.load.recorder.add_at(before, me.number, op);
                }
            }
            Ok(polled) => at.extend(me.polled(&polled.fetched, false)),
            Err(error) if error.is_retriable() => me.pause(50).await,
            // What it is told at last after it was out of reach: the group went on without it.
            Err(error) if error.code().is_some_and(|code| WENT_ON.contains(&code)) => return,
            Err(error) => {
                me.problem("a member", &error);
                me.pause(1_000).await;
                return;
            }
        }
        if !at.is_empty() && me.rng.percent(30) {
            commit(me, &mut consumer, &at).await;
        }
    }
    if me.rng.percent(70) {
        // Whether it was heard does not matter: the session ends by itself.
        let _ = consumer.leave().await;
    }
}

async fn commit(me: &Me, consumer: &mut GroupConsumer, at: &BTreeMap<TopicPartition, i64>) {
    let mut numbers = Vec::new();
    for (at, offset) in at {
        let commit = me.load.recorder.commit();
        numbers.push(commit);
        let (group, topic, partition) = (GROUP.to_owned(), at.topic.clone(), at.partition);
        me.add(Op::Commit { commit, group, topic, partition, offset: *offset });
    }
    let done = consumer.commit_offsets(at).await;
    for commit in numbers {
        // A refusal may answer a repeat of a request that did count.
        me.add(if done.is_ok() { Op::CommitAcked { commit } } else { Op::CommitUnknown { commit } });
    }
}
