//! Reads everything from offset 0 to the end, when the driver asks for it; of a cluster, by each of its nodes, which must all
//! give the same.

use std::collections::BTreeMap;
use std::time::Duration;

use isobar_client::{Acks, Client, Consumer, Reset, TopicPartition};
use isobar_testkit::history::Op;
use tokio::time::{Instant, sleep};

use super::{Drain, Me, observer, reader};

/// Little at a time is read slowly by a node without a replica of its own.
const PATIENCE: Duration = Duration::from_secs(110);

pub(super) async fn serve(mut me: Me) {
    loop {
        sleep(Duration::from_millis(5)).await;
        let wanted = *me.load.drain.lock();
        if let Drain::Wanted { last, from } = wanted {
            me.at = from;
            if let Some(client) = me.connect(|_| true).await {
                drain(&mut me, &client, last).await;
            }
            *me.load.drain.lock() = Drain::Done;
        }
    }
}

async fn drain(me: &mut Me, client: &Client, last: bool) {
    let deadline = Instant::now() + PATIENCE;
    let partitions = me.load.partitions();
    let mut ends: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    while ends.len() < partitions.len() && Instant::now() < deadline {
        let missing: Vec<_> = partitions.iter().filter(|at| !ends.contains_key(at)).cloned().collect();
        ends.extend(observer::ends(me, client, &missing).await);
    }
    agree_on_ends(me, &ends, last);
    let config = reader::config(me, Reset::Fail);
    let mut consumer = Consumer::new(client, config);
    for at in &partitions {
        reader::assign(me, &mut consumer, at, 0);
    }
    let mut at: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let mut records: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let left = |at: &BTreeMap<TopicPartition, i64>| -> Vec<TopicPartition> {
        let short = |(of, end): &(&TopicPartition, &i64)| at.get(of).copied().unwrap_or(0) < **end;
        ends.iter().filter(short).map(|(of, _)| of.clone()).collect()
    };
    while !left(&at).is_empty() && Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(200)).await {
            Ok(fetched) => {
                at.extend(me.polled(&fetched, last));
                for of in &fetched {
                    // What cannot be read is told by `polled`.
                    let _ = of.for_each(|_| *records.entry(of.at.clone()).or_default() += 1);
                }
            }
            Err(error) if error.is_retriable() => me.pause(50).await,
            Err(error) => return me.problem("the last read", &error),
        }
    }
    let short = left(&at);
    for (of, end) in &ends {
        let got = at.get(of).copied().unwrap_or(0);
        if short.contains(of) || ends.len() < partitions.len() {
            me.load.recorder.problem(format!("the last read of {of} got to {got}, end {end}{}", by(me)));
        } else if records.get(of).copied().unwrap_or(0) < got {
            me.load.recorder.problem(format!("the last read of {of} left out offsets{}", by(me)));
        } else if last {
            me.add(Op::Drained { topic: of.topic.clone(), partition: of.partition, end: *end });
        }
    }
    observer::committed(me, client, &partitions).await;
}

/// Nothing is sent any more, so all nodes say the same. What was sent with acks=0 may still wait for its object when its
/// sender has ended, and may get its offset between two answers (seed 2418 of the cluster); not after all nodes were restarted.
fn agree_on_ends(me: &Me, ends: &BTreeMap<TopicPartition, i64>, last: bool) {
    let may_grow = !last && me.load.plan.senders.iter().any(|sender| sender.acks == Acks::None);
    let mut known = me.load.drained.lock();
    for (of, end) in ends {
        let before = known.insert(of.clone(), *end);
        if let Some(first) = before.filter(|first| if may_grow { first > end } else { first != end }) {
            me.load.recorder.problem(format!("{of} ends at {first}, and at {end}{}", by(me)));
        }
    }
}

fn by(me: &Me) -> String {
    me.at.map(|at| format!(", by node {}", at + 1)).unwrap_or_default()
}
