//! The driver's hand among the clients once the load has ended: it does one errand at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isobar_client::{
    Acked, Client, ClientError, Consumer, ConsumerConfig, NewTopic, OffsetSpec, OutgoingRecord, Producer,
    ProducerConfig, Reset, TopicPartition,
};
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::error::ErrorCode;
use isobar_testkit::history::{Op, Read};
use tokio::time::{Instant, sleep, timeout};

use super::{DURABILITY, GROUP, Load, Me, sender};
use crate::history::{read_of, sum_of, value_of};
use crate::plan::Draw as _;

/// The topic and the group of those who write one mark after the other.
pub(crate) const MARKS: &str = "marks";
const MARK_PARTITIONS: i32 = 3;
/// A partition that gives nothing for so long is not waited for any more.
const SILENCE: Duration = Duration::from_secs(8);
/// What a doomed topic's window is.
const DOOMED_WINDOW_MS: u64 = 3_000;

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Errand {
    /// Read everything.
    Survey,
    /// Make the topic of the marks.
    Marks,
    /// Senders and marks, until [`Load::stop_sending`]; is done when they have begun.
    Write,
    /// One mark, acknowledged.
    Mark,
    Delete(String),
    /// Make a topic with a short window, fill it and delete it.
    Doom(String),
}

/// One batch of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Batch {
    pub base: i64,
    pub end: i64,
    pub epoch: i32,
    pub producer: i64,
    /// Of all its bytes.
    pub sum: u32,
    pub records: Vec<Read>,
}

/// What a partition gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Log {
    pub batches: Vec<Batch>,
    /// As ListOffsets says.
    pub start: i64,
    pub end: i64,
    /// Why it gave no more.
    pub error: Option<String>,
    /// The error is one that a node must never cause: bytes that are not what was written.
    pub wrong: bool,
}

impl Log {
    /// The offset up to which it was read.
    pub(crate) fn read_to(&self) -> i64 {
        self.batches.last().map_or(self.start, |batch| batch.end)
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = &Read> {
        self.batches.iter().flat_map(|batch| &batch.records)
    }
}

/// Everything that clients can see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Survey {
    pub logs: BTreeMap<TopicPartition, Log>,
    /// By group.
    pub offsets: BTreeMap<(String, TopicPartition), i64>,
    /// Producer ids: those in the logs, and a new one.
    pub producers: BTreeSet<i64>,
    pub new_producer: Option<i64>,
    pub errors: Vec<String>,
}

/// The clients' main task.
pub(crate) async fn serve(host: isobar_host::Host, load: std::sync::Arc<Load>) {
    let mut me = Me::new(&host, &load, 100 + load.turn);
    loop {
        sleep(Duration::from_millis(10)).await;
        let Some(errand) = load.errand.lock().clone() else { continue };
        let survey = run(&mut me, &errand).await;
        *load.survey.lock() = survey;
        *load.errand.lock() = None;
    }
}

async fn run(me: &mut Me, errand: &Errand) -> Survey {
    let mut survey = Survey::default();
    let Some(client) = me.connect(|_| true).await else { return survey };
    let done = match errand {
        Errand::Survey => read_all(me, &client, &mut survey).await,
        Errand::Marks => make_marks(me, &client).await,
        Errand::Write => {
            write(me);
            Ok(())
        }
        Errand::Mark => mark(me, &client).await,
        Errand::Delete(topic) => delete(me, &client, topic).await,
        Errand::Doom(topic) => doom(me, &client, topic).await,
    };
    if let Err(error) = done {
        survey.errors.push(format!("{errand:?}: {error}"));
    }
    survey
}

/// Again until it is done or cannot be.
macro_rules! insist {
    ($me:expr, $call:expr) => {{
        let until = Instant::now() + SILENCE;
        loop {
            match $call.await {
                Err(error) if (error.is_retriable() || error.is_ambiguous()) && Instant::now() < until => {
                    $me.pause(100).await
                }
                other => break other,
            }
        }
    }};
}

async fn make(me: &mut Me, client: &Client, topic: &NewTopic) -> Result<(), ClientError> {
    let made = insist!(me, async {
        client.create_topics(std::slice::from_ref(topic)).await?.pop().unwrap_or(Ok(()))
    });
    match made {
        Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => Ok(()),
        other => other,
    }
}

async fn delete(me: &mut Me, client: &Client, topic: &str) -> Result<(), ClientError> {
    let gone = insist!(me, async { client.delete_topics(&[topic]).await?.pop().unwrap_or(Ok(())) });
    match gone {
        Err(error) if error.code() == Some(ErrorCode::UnknownTopicOrPartition) => Ok(()),
        other => other,
    }
}

async fn doom(me: &mut Me, client: &Client, name: &str) -> Result<(), ClientError> {
    let mut topic = NewTopic::new(name, 2);
    topic.configs.push(("isobar.undelete.window.ms".to_owned(), DOOMED_WINDOW_MS.to_string()));
    make(me, client, &topic).await?;
    let producer = Producer::new(client, ProducerConfig::default()).await?;
    for n in 0..20 {
        let value = Some(vec![b'd'; 1000].into());
        let record = OutgoingRecord { value, ..OutgoingRecord::default() };
        let _ = producer.send(&TopicPartition::new(name, n % 2), record).await;
    }
    producer.flush().await;
    delete(me, client, name).await
}

async fn make_marks(me: &mut Me, client: &Client) -> Result<(), ClientError> {
    let class = if me.rng.percent(30) { "object" } else { "wal" };
    let marks = NewTopic {
        configs: vec![(DURABILITY.to_owned(), class.to_owned())],
        ..NewTopic::new(MARKS, MARK_PARTITIONS)
    };
    make(me, client, &marks).await?;
    me.load.knows_marks();
    Ok(())
}

fn write(me: &mut Me) {
    let mut number = me.number * 100;
    for plan in me.load.plan.senders.clone() {
        number += 1;
        let sender = Me::new(&me.host, &me.load, number);
        me.load.sending.lock().insert(number, "sends");
        let _ = me.host.spawn("sim.sender", sender::run(sender, plan));
    }
    number += 1;
    let marker = Me::new(&me.host, &me.load, number);
    me.load.sending.lock().insert(number, "marks");
    let _ = me.host.spawn("sim.marker", write_marks(marker));
}

async fn mark(me: &mut Me, client: &Client) -> Result<(), ClientError> {
    let config = ProducerConfig { delivery_timeout: SILENCE, ..ProducerConfig::default() };
    let producer = Producer::new(client, config).await?;
    let number = me.load.recorder.producer(me.number, true, true);
    one_mark(me, &producer, number, 0).await.map(|_| ())
}

/// One after the other, each begun when the one before it is known to be done: what lies before what is then certain.
async fn write_marks(mut me: Me) {
    if let Some(client) = me.connect(Load::sends).await {
        let config =
            ProducerConfig { delivery_timeout: Duration::from_secs(3600), ..ProducerConfig::default() };
        if let Ok(producer) = Producer::new(&client, config).await {
            me.load.saw_producer(&producer);
            let number = me.load.recorder.producer(me.number, true, true);
            let mut turn = 0;
            while me.load.sends() {
                let at = turn % MARK_PARTITIONS;
                turn += 1;
                let offset = match one_mark(&mut me, &producer, number, at).await {
                    Ok(offset) => offset,
                    Err(error) => {
                        me.problem("a mark", &error);
                        break;
                    }
                };
                if turn % 4 == 0
                    && let Some(offset) = offset
                {
                    commit(&mut me, &client, at, offset + 1).await;
                }
            }
        }
    }
    me.load.sending.lock().remove(&me.number);
}

async fn one_mark(
    me: &mut Me,
    producer: &Producer,
    number: u32,
    partition: i32,
) -> Result<Option<i64>, ClientError> {
    let id = me.load.recorder.ids(1).start;
    let value = value_of(id, partition, 20);
    let sum = sum_of(None, Some(&value), std::iter::empty());
    let (topic, records) = (MARKS.to_owned(), vec![(id, sum)]);
    me.add(Op::Send { producer: number, topic, partition, records });
    let record = OutgoingRecord { value: Some(value.into()), ..OutgoingRecord::default() };
    let Acked { offset, .. } = producer.send(&TopicPartition::new(MARKS, partition), record).await?.await?;
    let offset = (offset >= 0).then_some(offset);
    me.add(Op::Acked { records: vec![(id, offset)] });
    Ok(offset)
}

async fn commit(me: &mut Me, client: &Client, partition: i32, offset: i64) {
    let commit = me.load.recorder.commit();
    let (group, topic) = (MARKS.to_owned(), MARKS.to_owned());
    me.add(Op::Commit { commit, group, topic, partition, offset });
    let offsets = BTreeMap::from([(TopicPartition::new(MARKS, partition), offset)]);
    let done = client.commit_group_offsets(MARKS, &offsets).await;
    me.add(if done.is_ok() { Op::CommitAcked { commit } } else { Op::CommitUnknown { commit } });
}

async fn read_all(me: &mut Me, client: &Client, survey: &mut Survey) -> Result<(), ClientError> {
    for at in me.load.partitions() {
        let log = read_log(client, &at).await;
        survey.producers.extend(log.batches.iter().map(|batch| batch.producer));
        survey.logs.insert(at, log);
    }
    for group in [GROUP, MARKS] {
        match insist!(me, client.group_offsets(group)) {
            Ok(offsets) => {
                survey.offsets.extend(offsets.into_iter().map(|(at, of)| ((group.to_owned(), at), of.offset)))
            }
            Err(error) if error.code() == Some(ErrorCode::GroupIdNotFound) => {}
            Err(error) => survey.errors.push(format!("offsets of {group}: {error}")),
        }
    }
    let producer = Producer::new(client, ProducerConfig::default()).await?;
    survey.new_producer = producer.producer_id().map(|(id, _)| id);
    Ok(())
}

async fn bound(client: &Client, at: &TopicPartition, what: OffsetSpec) -> Result<i64, String> {
    let until = Instant::now() + SILENCE;
    loop {
        let answer = client.list_offsets(&[(at.clone(), what)]).await;
        let answer = answer.map(|answers| answers.into_iter().next());
        let why = match answer {
            Ok(Some((_, Ok(listed)))) => return listed.offset.ok_or_else(|| "no offset".to_owned()),
            Ok(Some((_, Err(error)))) | Err(error) => error.to_string(),
            Ok(None) => "no answer".to_owned(),
        };
        if Instant::now() >= until {
            return Err(why);
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn read_log(client: &Client, at: &TopicPartition) -> Log {
    let mut log = Log::default();
    match (bound(client, at, OffsetSpec::Earliest).await, bound(client, at, OffsetSpec::Latest).await) {
        (Ok(start), Ok(end)) => (log.start, log.end) = (start, end),
        (Err(why), _) | (_, Err(why)) => {
            log.error = Some(format!("ListOffsets: {why}"));
            return log;
        }
    }
    let config = ConsumerConfig {
        max_wait: Duration::from_millis(50),
        reset: Reset::Fail,
        ..ConsumerConfig::default()
    };
    let mut consumer = Consumer::new(client, config);
    consumer.assign(at.clone(), Some(log.start));
    let mut since = Instant::now();
    let mut why = "nothing comes".to_owned();
    while log.read_to() < log.end {
        if since.elapsed() > SILENCE {
            log.error = Some(why);
            break;
        }
        match timeout(SILENCE, consumer.poll(Duration::from_millis(200))).await {
            Ok(Ok(fetched)) => {
                for bytes in fetched.iter().flat_map(|of| &of.batches) {
                    since = Instant::now();
                    match batch_of(bytes, at.partition) {
                        Ok(batch) => log.batches.push(batch),
                        Err(why) => {
                            (log.error, log.wrong) = (Some(why), true);
                            return log;
                        }
                    }
                }
            }
            Ok(Err(error)) => {
                why = error.to_string();
                if matches!(error, ClientError::Malformed { .. }) {
                    (log.error, log.wrong) = (Some(why), true);
                    break;
                }
                if !error.is_retriable() {
                    log.error = Some(why);
                    break;
                }
                sleep(Duration::from_millis(100)).await;
            }
            Err(_) => {}
        }
    }
    log
}

fn batch_of(bytes: &bytes::Bytes, partition: i32) -> Result<Batch, String> {
    let batch = isobar_protocol::records::decode_batch(bytes, 64 << 20).map_err(|error| error.to_string())?;
    let header: &BatchHeader = batch.header();
    let mut records = Vec::new();
    for record in batch.iter() {
        records.push(read_of(&record.map_err(|error| error.to_string())?, partition));
    }
    Ok(Batch {
        base: header.base_offset,
        end: header.base_offset + i64::from(header.last_offset_delta) + 1,
        epoch: header.leader_epoch,
        producer: header.producer_id,
        sum: crc32c::crc32c(bytes),
        records,
    })
}
