//! Asks for ends and for the group's committed offsets.

use isobar_client::{Client, OffsetSpec, TopicPartition};
use isobar_testkit::history::Op;

use super::{GROUP, Load, Me};
use crate::plan::Draw as _;

pub(super) async fn run(mut me: Me) {
    if let Some(client) = me.connect(Load::reads).await {
        while me.load.reads() {
            me.pause(200).await;
            let partitions = me.load.partitions();
            if partitions.is_empty() {
                continue;
            }
            let at = me.rng.pick(&partitions);
            ends(&me, &client, &[at]).await;
            if me.rng.percent(50) {
                committed(&me, &client, &partitions).await;
            }
        }
    }
    me.load.reading.lock().remove(&me.number);
}

/// The ends that the broker told.
pub(super) async fn ends(me: &Me, client: &Client, of: &[TopicPartition]) -> Vec<(TopicPartition, i64)> {
    let began = me.load.recorder.stamp();
    let asked: Vec<_> = of.iter().map(|at| (at.clone(), OffsetSpec::Latest)).collect();
    let mut ends = Vec::new();
    for (at, answer) in client.list_offsets(&asked).await.unwrap_or_default() {
        match answer.map(|listed| listed.offset) {
            Ok(Some(end)) => {
                let (topic, partition) = (at.topic.clone(), at.partition);
                me.add(Op::Ends { topic, partition, began, end });
                ends.push((at, end));
            }
            Ok(None) => me.load.recorder.problem("a partition without an end"),
            Err(error) if error.is_retriable() => {}
            Err(error) => me.problem("ListOffsets", &error),
        }
    }
    ends
}

/// What the group has committed, for each of these partitions.
pub(super) async fn committed(me: &Me, client: &Client, of: &[TopicPartition]) {
    let began = me.load.recorder.stamp();
    match client.group_offsets(GROUP).await {
        Ok(offsets) => {
            for at in of {
                let (group, topic, partition) = (GROUP.to_owned(), at.topic.clone(), at.partition);
                let offset = offsets.get(at).map(|committed| committed.offset);
                me.add(Op::Committed { group, topic, partition, began, offset });
            }
        }
        Err(error) if error.is_retriable() => {}
        Err(error) => me.problem("OffsetFetch", &error),
    }
}
