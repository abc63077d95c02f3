//! Reads everything from offset 0 to the end, when the driver asks for it.

use std::collections::BTreeMap;
use std::time::Duration;

use isobar_client::{Client, Consumer, Reset, TopicPartition};
use isobar_testkit::history::Op;
use tokio::time::{Instant, sleep};

use super::{Drain, Me, observer, reader};

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) async fn serve(mut me: Me) {
    loop {
        sleep(Duration::from_millis(5)).await;
        let wanted = *me.load.drain.lock();
        if let Drain::Wanted { last } = wanted {
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
    let config = reader::config(me, Reset::Fail);
    let mut consumer = Consumer::new(client, config);
    for at in &partitions {
        reader::assign(me, &mut consumer, at, 0);
    }
    let mut at: BTreeMap<TopicPartition, i64> = BTreeMap::new();
    let left = |at: &BTreeMap<TopicPartition, i64>| -> Vec<TopicPartition> {
        let short = |(of, end): &(&TopicPartition, &i64)| at.get(of).copied().unwrap_or(0) < **end;
        ends.iter().filter(short).map(|(of, _)| of.clone()).collect()
    };
    while !left(&at).is_empty() && Instant::now() < deadline {
        match consumer.poll(Duration::from_millis(200)).await {
            Ok(fetched) => at.extend(me.polled(&fetched, last)),
            Err(error) if error.is_retriable() => me.pause(50).await,
            Err(error) => return me.problem("the last read", &error),
        }
    }
    let short = left(&at);
    for (of, end) in &ends {
        let got = at.get(of).copied().unwrap_or(0);
        if short.contains(of) || ends.len() < partitions.len() {
            me.load.recorder.problem(format!("the last read of {of} got to {got}, end {end}"));
        } else if last {
            me.add(Op::Drained { topic: of.topic.clone(), partition: of.partition, end: *end });
        }
    }
    observer::committed(me, client, &partitions).await;
}
