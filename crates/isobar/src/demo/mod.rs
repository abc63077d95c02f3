//! `isobar demo`: a real data set through a real broker and back, every record checked.

mod data;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use isobar_client::{
    Client, ClientConfig, Delivery, GroupConfig, GroupConsumer, NewTopic, OutgoingRecord, Producer,
    ProducerConfig, TopicPartition, partition_for_key,
};
use isobar_host::Host;
use isobar_node::node::{Node, NodeOptions, Store};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Failure;
use crate::cli::DemoArgs;
use crate::serve::Stop;
use data::{Checklist, Flights};

const TOPIC: &str = "flights";
const GROUP: &str = "demo";
const PARTITIONS: i32 = 4;
const MEMBERS: usize = 2;
/// The header that says which row of the data set a record is.
const ROW_HEADER: &str = "row";
/// No record for this long means that some will never come.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one direction took.
struct Leg {
    records: usize,
    bytes: u64,
    took: Duration,
}

impl Leg {
    fn describe(&self) -> String {
        let seconds = self.took.as_secs_f64().max(1e-9);
        format!(
            "{:>9.0} records/s {:>7.1} MB/s   ({} records, {:.1} MB, {:.2} s)",
            self.records as f64 / seconds,
            self.bytes as f64 / 1e6 / seconds,
            self.records,
            self.bytes as f64 / 1e6,
            seconds
        )
    }
}

pub(crate) async fn run(args: DemoArgs) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    let host = Host::real();
    let temporary = if args.data.is_none() { Some(tempfile::tempdir()?) } else { None };
    let data = match (&args.data, &temporary) {
        (Some(data), _) => data.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err("no directory for the demo's data".into()),
    };
    say(&format!("starting a broker with its data in {}", data.display()));
    let mut options = NodeOptions::new(&data);
    options.broker.listen.clone_from(&args.listen);
    if let Some(url) = &args.store {
        options.store = Store::Url(url.clone());
    }
    let started = Instant::now();
    let node = Node::start(&host, options).await?;
    say(&format!("it serves Kafka clients on {} after {} ms", kafka(&node), started.elapsed().as_millis()));

    let outcome = tokio::select! {
        biased;
        signal = stop.wait() => Err(format!("stopped by {signal} before the end").into()),
        outcome = load_and_check(&host, &node) => outcome,
    };
    if outcome.is_ok() && args.keep {
        say(&format!(
            "the broker stays: try  kcat -b {} -t {TOPIC} -C -c 3   (Ctrl-C stops it)",
            kafka(&node)
        ));
        stop.wait().await;
    }
    node.stop().await?;
    outcome
}

/// Where clients connect; a node that is alone is a broker.
fn kafka(node: &Node) -> String {
    node.local_addr().map(|addr| addr.to_string()).unwrap_or_default()
}

async fn load_and_check(host: &Host, node: &Node) -> Result<(), Failure> {
    let flights = Arc::new(Flights::load()?);
    let addr = kafka(node);
    let client = Client::connect(host, ClientConfig::new(&addr)).await?;
    for created in client.create_topics(&[NewTopic::new(TOPIC, PARTITIONS)]).await? {
        created?;
    }
    let (written, latency) = load(host, &client, &flights).await?;
    let flushed = node.flush(PATIENCE).await;
    let (read, redelivered) = read_back(host, &client, &flights).await?;

    let millis = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    let mut lines = vec![
        String::new(),
        format!("every one of {} flights came back right, key and value", flights.len()),
        format!("in    {}", written.describe()),
        format!("out   {}", read.describe()),
        format!(
            "acknowledged, each synced to disk: p50 {:.2} ms, p99 {:.2} ms, at full load with 1 MiB under way",
            millis(0.5),
            millis(0.99)
        ),
        format!(
            "bucket: {} objects written; {} PUT, {} GET requests",
            node.store_requests("put"),
            node.store_requests("put"),
            node.store_requests("get")
        ),
        format!(
            "your own client: bootstrap.servers={addr}, topic {TOPIC} (with --keep; or run `isobar dev`)"
        ),
    ];
    if redelivered > 0 {
        lines.push(format!(
            "{redelivered} records were delivered again after the group's rebalance, as Kafka's are"
        ));
    }
    if !flushed {
        lines.push("some of it was read from the WAL: its upload had not finished".to_owned());
    }
    say(&lines.join("\n"));
    Ok(())
}

async fn load(
    host: &Host,
    client: &Client,
    flights: &Arc<Flights>,
) -> Result<(Leg, Histogram<u64>), Failure> {
    let config = ProducerConfig {
        linger: Duration::from_millis(1),
        batch_bytes: 64 << 10,
        buffer_bytes: 1 << 20,
        ..ProducerConfig::default()
    };
    let producer = Producer::new(client, config).await?;
    let (sent, mut deliveries) = mpsc::channel::<(Instant, Delivery)>(16 << 10);
    let (finished, finish) = tokio::sync::oneshot::channel();
    let total = flights.len();
    host.spawn("demo.acknowledged", async move {
        let outcome = async {
            let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
            let mut progress = Progress::new("written", total);
            while let Some((at, delivery)) = deliveries.recv().await {
                delivery.await?;
                latency.saturating_record(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
                progress.step();
            }
            progress.end();
            Ok::<_, Failure>(latency)
        };
        let _ = finished.send(outcome.await);
    });

    let started = Instant::now();
    let mut bytes = 0;
    for index in 0..total {
        let Some(row) = flights.row(index) else { break };
        let key = Flights::key(row);
        bytes += (key.len() + row.len()) as u64;
        let to = TopicPartition::new(TOPIC, partition_for_key(&key, PARTITIONS));
        let record = OutgoingRecord {
            timestamp_ms: None,
            key: Some(Bytes::from(key)),
            value: Some(Bytes::copy_from_slice(row)),
            headers: vec![(ROW_HEADER.to_owned(), Some(Bytes::from(index.to_string())))],
        };
        let at = Instant::now();
        let delivery = producer.send(&to, record).await?;
        if sent.send((at, delivery)).await.is_err() {
            break;
        }
    }
    drop(sent);
    let latency = finish.await.map_err(|_| "the task that awaits acknowledgements ended")??;
    Ok((Leg { records: total, bytes, took: started.elapsed() }, latency))
}

/// A record as it was read.
struct Back {
    partition: i32,
    offset: i64,
    row: Option<usize>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

async fn read_back(host: &Host, client: &Client, flights: &Flights) -> Result<(Leg, u64), Failure> {
    let started = Instant::now();
    let (found, mut back) = mpsc::channel::<Result<Vec<Back>, String>>(8);
    let (enough, stop) = isobar_host::watch::channel(false);
    let members: Vec<_> = (0..MEMBERS)
        .map(|_| {
            let member = GroupConsumer::new(client, GroupConfig::new(GROUP, &[TOPIC]));
            host.spawn("demo.member", consume(member, found.clone(), stop.clone()))
        })
        .collect();
    drop(found);
    let mut checklist = Checklist::new(flights);
    let mut progress = Progress::new("read and checked", flights.len());
    let mut bytes = 0;
    while !checklist.is_complete() {
        let batch = tokio::time::timeout(PATIENCE, back.recv()).await.map_err(|_| {
            format!(
                "{} of {} records came back, then none for {PATIENCE:?}",
                checklist.right(),
                flights.len()
            )
        })?;
        for record in batch.ok_or("the group's members ended early")?? {
            let row = record.row.ok_or("a record came back without its row")?;
            let place = (record.partition, record.offset);
            if checklist.check(row, place, record.key.as_deref(), record.value.as_deref())? {
                bytes += (record.key.map_or(0, |key| key.len()) + record.value.map_or(0, |value| value.len()))
                    as u64;
                progress.step();
            }
        }
    }
    progress.end();
    let took = started.elapsed();
    enough.send_replace(true);
    // Members may wait for room in the channel: let them see the end.
    back.close();
    while back.recv().await.is_some() {}
    for member in members {
        member.join().await;
    }
    Ok((Leg { records: checklist.right(), bytes, took }, checklist.redelivered()))
}

async fn consume(
    mut member: GroupConsumer,
    found: mpsc::Sender<Result<Vec<Back>, String>>,
    stop: isobar_host::watch::Receiver<bool>,
) {
    let outcome = async {
        while !*stop.borrow() {
            let polled = member.poll(Duration::from_millis(200)).await.map_err(|error| error.to_string())?;
            for fetched in polled.fetched {
                let mut records = Vec::new();
                let partition = fetched.at.partition;
                let each = |record: &isobar_protocol::records::Record<'_>| {
                    let row = record
                        .headers
                        .clone()
                        .find(|(name, _)| *name == ROW_HEADER.as_bytes())
                        .and_then(|(_, row)| row);
                    records.push(Back {
                        partition,
                        offset: record.offset,
                        row: row.and_then(|row| std::str::from_utf8(row).ok()?.parse().ok()),
                        key: record.key.map(<[u8]>::to_vec),
                        value: record.value.map(<[u8]>::to_vec),
                    });
                };
                fetched.for_each(each).map_err(|error| error.to_string())?;
                if found.send(Ok(records)).await.is_err() {
                    break;
                }
            }
        }
        member.commit().await.map_err(|error| error.to_string())
    };
    let outcome: Result<(), String> = outcome.await;
    if let Err(error) = outcome {
        let _ = found.send(Err(error)).await;
    }
    if let Err(error) = member.leave().await {
        tracing::warn!(%error, "a member could not leave its group");
    }
}

/// A line that counts, where somebody watches; a few lines, where nobody does.
struct Progress {
    what: &'static str,
    total: usize,
    done: usize,
    live: bool,
}

impl Progress {
    fn new(what: &'static str, total: usize) -> Self {
        Self { what, total, done: 0, live: std::io::stdout().is_terminal() }
    }

    fn step(&mut self) {
        self.done += 1;
        let parts = if self.live { 100 } else { 4 };
        if self.done.is_multiple_of((self.total / parts).max(1)) {
            self.show(if self.live { "\r" } else { "" }, if self.live { "" } else { "\n" });
        }
    }

    fn end(&self) {
        if self.live {
            self.show("\r", "\n");
        }
    }

    fn show(&self, before: &str, after: &str) {
        let mut out = std::io::stdout();
        let percent = self.done * 100 / self.total.max(1);
        // A closed terminal is no reason to stop.
        let _ = write!(
            out,
            "{before}{:>7} of {} flights {} ({percent} %){after}",
            self.done, self.total, self.what
        );
        let _ = out.flush();
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
