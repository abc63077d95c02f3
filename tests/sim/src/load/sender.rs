//! A producer, one life after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use isobar_client::{
    Acked, Acks, Client, ClientError, Delivery, OutgoingRecord, Producer, ProducerConfig, TopicPartition,
};
use isobar_testkit::history::Op;
use tokio::time::sleep;

use super::{Load, Me};
use crate::history::{sum_of, value_of};
use crate::plan::{Draw as _, Sender};

pub(super) async fn run(mut me: Me, plan: Sender) {
    if let Some(client) = me.connect(Load::sends).await {
        while me.load.sends() {
            life(&mut me, &plan, &client).await;
        }
    }
    me.load.sending.lock().remove(&me.number);
}

/// One producer, until it is time for another or all must end. Every send is decided when this returns.
async fn life(me: &mut Me, plan: &Sender, client: &Client) {
    let config = ProducerConfig {
        acks: plan.acks,
        idempotent: plan.once,
        codec: plan.codec,
        linger: plan.linger,
        batch_bytes: plan.batch_bytes,
        buffer_bytes: 32 << 10,
        max_in_flight: plan.max_in_flight,
        delivery_timeout: plan.delivery_timeout,
        retries: plan.retries,
    };
    let producer = match Producer::new(client, config).await {
        Ok(producer) => producer,
        Err(error) if error.is_retriable() => return me.pause(50).await,
        Err(error) => {
            me.problem("a producer id", &error);
            return me.pause(1_000).await;
        }
    };
    me.load.saw_producer(&producer);
    let number = me.load.recorder.producer(me.number, plan.once, plan.ordered);
    let undecided = Arc::new(AtomicUsize::new(0));
    for _ in 0..me.rng.between(5, 200) {
        if !me.load.sends() {
            break;
        }
        let partitions = me.load.partitions();
        if partitions.is_empty() {
            me.pause(50).await;
            continue;
        }
        let to = me.rng.pick(&partitions);
        if !burst(me, plan, &producer, number, &to, &undecided).await {
            break;
        }
        me.pause(plan.pause_ms).await;
    }
    while undecided.load(Ordering::Relaxed) > 0 {
        sleep(Duration::from_millis(5)).await;
    }
}

/// Sends some records to one partition. False if this producer takes no more.
async fn burst(
    me: &mut Me,
    plan: &Sender,
    producer: &Producer,
    number: u32,
    to: &TopicPartition,
    undecided: &Arc<AtomicUsize>,
) -> bool {
    let count = me.rng.between(1, plan.burst);
    let records: Vec<(u64, OutgoingRecord)> =
        me.load.recorder.ids(count).map(|id| (id, record(me, plan, to.partition, id))).collect();
    let sums = records.iter().map(|(id, record)| (*id, sum(record))).collect();
    let (topic, partition) = (to.topic.clone(), to.partition);
    me.add(Op::Send { producer: number, topic, partition, records: sums });
    let mut deliveries = Vec::new();
    let mut refused = None;
    let mut left = Vec::new();
    for (id, record) in records {
        if refused.is_some() {
            left.push(id);
            continue;
        }
        match producer.send(to, record).await {
            Ok(delivery) => deliveries.push((id, delivery)),
            Err(error) => {
                left.push(id);
                refused = Some(error);
            }
        }
    }
    if let Some(error) = &refused {
        if plan.once {
            me.problem("an idempotent producer stopped", error);
        }
        // Never handed over: these are certain not to be in the log.
        me.add(Op::Failed { ids: left });
    }
    undecided.fetch_add(1, Ordering::Relaxed);
    let waiting = Waiting { me: Me::new(&me.host, &me.load, me.number), plan: plan.clone() };
    let undecided = Arc::clone(undecided);
    let _ = me.host.spawn("sim.acks", async move {
        waiting.run(deliveries).await;
        undecided.fetch_sub(1, Ordering::Relaxed);
    });
    refused.is_none()
}

fn record(me: &mut Me, plan: &Sender, partition: i32, id: u64) -> OutgoingRecord {
    let size = if me.rng.percent(70) { me.rng.between(0, 50) } else { me.rng.between(0, plan.largest_bytes) };
    let mut record = OutgoingRecord {
        value: Some(value_of(id, partition, size as usize).into()),
        ..OutgoingRecord::default()
    };
    if me.rng.percent(60) {
        record.key = Some(Bytes::from(format!("k{}", id % 50)));
    }
    if me.rng.percent(20) {
        record.headers = vec![("h".into(), Some(Bytes::from(id.to_string()))), ("h".into(), None)];
    }
    record
}

fn sum(record: &OutgoingRecord) -> u32 {
    let headers = record.headers.iter().map(|(name, content)| (name.as_bytes(), content.as_deref()));
    sum_of(record.key.as_deref(), record.value.as_deref(), headers)
}

/// Waits for the outcomes of one burst.
struct Waiting {
    me: Me,
    plan: Sender,
}

impl Waiting {
    async fn run(&self, deliveries: Vec<(u64, Delivery)>) {
        let (mut acked, mut unknown, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        for (id, mut delivery) in deliveries {
            let outcome = match (&mut delivery).now_or_never() {
                Some(outcome) => outcome,
                None => {
                    self.tell(&mut acked, &mut unknown, &mut failed);
                    delivery.await
                }
            };
            match outcome {
                Ok(_) if self.plan.acks == Acks::None => unknown.push(id),
                Ok(Acked { offset, .. }) => acked.push((id, (offset >= 0).then_some(offset))),
                Err(error) => {
                    self.undelivered(&error);
                    if error.is_ambiguous() { unknown.push(id) } else { failed.push(id) }
                }
            }
        }
        self.tell(&mut acked, &mut unknown, &mut failed);
    }

    fn undelivered(&self, error: &ClientError) {
        if self.plan.once {
            self.me.problem("an idempotent send failed", error);
        } else if !error.is_retriable() {
            self.me.problem("a send failed", error);
        }
    }

    fn tell(&self, acked: &mut Vec<(u64, Option<i64>)>, unknown: &mut Vec<u64>, failed: &mut Vec<u64>) {
        if !acked.is_empty() {
            self.me.add(Op::Acked { records: std::mem::take(acked) });
        }
        if !unknown.is_empty() {
            self.me.add(Op::Unknown { ids: std::mem::take(unknown) });
        }
        if !failed.is_empty() {
            self.me.add(Op::Failed { ids: std::mem::take(failed) });
        }
    }
}
