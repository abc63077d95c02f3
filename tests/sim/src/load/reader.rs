//! Assigns itself every partition and reads; begins again somewhere now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use isobar_client::{Consumer, ConsumerConfig, Reset, TopicPartition};
use isobar_testkit::history::Op;

use super::{Load, Me};
use crate::plan::Draw as _;

/// A log that lost its end must not be taken for a new beginning.
pub(super) fn config(me: &mut Me, reset: Reset) -> ConsumerConfig {
    ConsumerConfig {
        max_wait: Duration::from_millis(100),
        partition_max_bytes: me.rng.pick(&[2_000, 32_000, 1 << 20]),
        reset,
        ..ConsumerConfig::default()
    }
}

pub(super) async fn run(mut me: Me) {
    if let Some(client) = me.connect(Load::reads).await {
        let config = config(&mut me, Reset::Fail);
        let mut consumer = Consumer::new(&client, config);
        let mut at: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        while me.load.reads() {
            let known = me.load.partitions();
            let again = me.rng.percent(3);
            for partition in known {
                let next = at.get(&partition).copied();
                let begin = match next {
                    None => 0,
                    Some(next) if again => next - i64::try_from(me.rng.below(200)).unwrap_or(0).min(next),
                    Some(_) => continue,
                };
                assign(&me, &mut consumer, &partition, begin);
                at.insert(partition, begin);
            }
            match consumer.poll(Duration::from_millis(100)).await {
                Ok(fetched) => at.extend(me.polled(&fetched, false)),
                Err(error) if error.is_retriable() => me.pause(50).await,
                Err(error) => {
                    me.problem("a reader", &error);
                    me.pause(1_000).await;
                }
            }
        }
    }
    me.load.reading.lock().remove(&me.number);
}

pub(super) fn assign(me: &Me, consumer: &mut Consumer, at: &TopicPartition, offset: i64) {
    let (topic, partition) = (at.topic.clone(), at.partition);
    me.add(Op::Assign { topic, partition, offset: Some(offset), group: None });
    consumer.assign(at.clone(), Some(offset));
}
