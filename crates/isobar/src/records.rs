//! `isobar produce` and `isobar consume`: records as lines.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use isobar_client::{
    Client, Consumer, ConsumerConfig, Fetched, GroupConfig, GroupConsumer, OffsetSpec, OutgoingRecord,
    Producer, ProducerConfig, Reset, TopicPartition, partition_for_key,
};
use isobar_host::Host;
use isobar_protocol::records::Record;
use serde_json::json;
use tokio::sync::mpsc;

use crate::Failure;
use crate::cli::{ConsumeArgs, ProduceArgs};
use crate::output::{Output, connect};
use crate::serve::Stop;
use crate::topic::ends;

/// Lines read ahead of what is sent.
const LINES_AHEAD: usize = 1_000;
const POLL: Duration = Duration::from_millis(250);

pub(crate) async fn produce(args: ProduceArgs) -> Result<(), Failure> {
    let host = Host::real();
    let client = connect(&host, &args.remote).await?;
    // The first use of a topic may create it, as with every Kafka client.
    let partitions = i32::try_from(client.topic(&args.topic).await?.partitions.len())?;
    let config = ProducerConfig {
        codec: args.compression.parse().map_err(|_| format!("no compression {:?}", args.compression))?,
        linger: Duration::from_millis(5),
        ..ProducerConfig::default()
    };
    let producer = Producer::new(&client, config).await?;
    let mut lines = read_lines(&host, args.file.as_deref())?;
    let mut deliveries = std::collections::VecDeque::new();
    let mut count = 0_u64;
    while let Some(line) = lines.recv().await {
        let (key, value) = split(&line?, args.key_separator.as_deref());
        let partition = match (args.partition, &key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, partitions),
            (None, None) => i32::try_from(count % u64::from(partitions.unsigned_abs().max(1)))?,
        };
        let record = OutgoingRecord { key, value: Some(value), ..OutgoingRecord::default() };
        deliveries.push_back(producer.send(&TopicPartition::new(&args.topic, partition), record).await?);
        count += 1;
        while deliveries.len() > LINES_AHEAD {
            if let Some(delivery) = deliveries.pop_front() {
                delivery.await?;
            }
        }
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Output::new(&args.remote)
        .done(&format!("{count} record(s) acknowledged"), json!({ "acknowledged": count }))
}

/// Reads lines on a thread of its own: standard input knows no other way.
fn read_lines(host: &Host, file: Option<&Path>) -> Result<mpsc::Receiver<Result<Vec<u8>, Failure>>, Failure> {
    let (found, lines) = mpsc::channel(LINES_AHEAD);
    let input: Box<dyn BufRead + Send> = match file {
        #[expect(clippy::disallowed_methods, reason = "a file that the user named, read by a command")]
        Some(path) => Box::new(BufReader::new(
            std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?,
        )),
        None => Box::new(BufReader::new(std::io::stdin())),
    };
    host.os_thread("lines", move || {
        for line in input.split(b'\n') {
            let failed = line.is_err();
            if found.blocking_send(line.map_err(Into::into)).is_err() || failed {
                return;
            }
        }
    })?;
    Ok(lines)
}

fn split(line: &[u8], separator: Option<&str>) -> (Option<Bytes>, Bytes) {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let found = separator.filter(|separator| !separator.is_empty()).and_then(|separator| {
        let at = line.windows(separator.len()).position(|window| window == separator.as_bytes())?;
        Some((&line[..at], &line[at + separator.len()..]))
    });
    match found {
        Some((key, value)) => (Some(Bytes::copy_from_slice(key)), Bytes::copy_from_slice(value)),
        None => (None, Bytes::copy_from_slice(line)),
    }
}

pub(crate) async fn consume(args: ConsumeArgs) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    tokio::select! {
        biased;
        _ = stop.wait() => Ok(()),
        outcome = read(&args) => outcome,
    }
}

async fn read(args: &ConsumeArgs) -> Result<(), Failure> {
    let host = Host::real();
    let client = connect(&host, &args.remote).await?;
    let topic = client.topic(&args.topic).await?;
    let wanted: Vec<i32> =
        topic.partitions.keys().copied().filter(|p| args.partition.is_none_or(|q| q == *p)).collect();
    if wanted.is_empty() {
        return Err(format!("topic {} has no such partition", args.topic).into());
    }
    let mut printer = Printer { args, left: args.max.unwrap_or(u64::MAX) };
    let mut until = Until::new(args, &client, &wanted).await?;
    if let Some(group) = &args.group {
        return read_as_member(&client, group, args, &mut printer, &mut until).await;
    }
    let mut consumer = Consumer::new(&client, ConsumerConfig::default());
    for (at, offset) in start_offsets(&client, args, &wanted).await? {
        until.starts_at(at.partition, offset);
        consumer.assign(at, Some(offset));
    }
    while printer.left > 0 && !until.reached() {
        for fetched in consumer.poll(POLL).await? {
            printer.print(&fetched)?;
            until.read(&fetched);
        }
    }
    Ok(())
}

async fn read_as_member(
    client: &Client,
    group: &str,
    args: &ConsumeArgs,
    printer: &mut Printer<'_>,
    until: &mut Until,
) -> Result<(), Failure> {
    let mut config = GroupConfig::new(group, &[&args.topic]);
    config.consumer.reset = match args.from.as_str() {
        "earliest" => Reset::Earliest,
        "latest" => Reset::Latest,
        other => return Err(format!("with --group, --from is earliest or latest, not {other:?}").into()),
    };
    let mut member = GroupConsumer::new(client, config);
    while printer.left > 0 && !until.reached() {
        let polled = member.poll(POLL).await?;
        for fetched in &polled.fetched {
            printer.print(fetched)?;
            until.read(fetched);
        }
        let assigned = member.assignment();
        until.assigned(assigned.iter().map(|at| (at.partition, member.position(at))));
        if !polled.fetched.is_empty() {
            member.commit().await?;
        }
    }
    Ok(member.leave().await?)
}

async fn start_offsets(
    client: &Client,
    args: &ConsumeArgs,
    wanted: &[i32],
) -> Result<Vec<(TopicPartition, i64)>, Failure> {
    let spec = match args.from.as_str() {
        "earliest" | "beginning" => OffsetSpec::Earliest,
        "latest" | "end" => OffsetSpec::Latest,
        from => match from.strip_prefix('@') {
            Some(time) => OffsetSpec::At(time.parse().map_err(|_| format!("{from:?} is not @MILLISECONDS"))?),
            None => {
                let offset = from.parse().map_err(|_| {
                    format!("--from {from:?}: give earliest, latest, an offset or @MILLISECONDS")
                })?;
                return Ok(wanted
                    .iter()
                    .map(|&index| (TopicPartition::new(&args.topic, index), offset))
                    .collect());
            }
        },
    };
    let asked: Vec<_> = wanted.iter().map(|&index| (TopicPartition::new(&args.topic, index), spec)).collect();
    let listed = client.list_offsets(&asked).await?;
    let ends = ends(client, &args.topic, wanted.iter().copied()).await?;
    let mut starts = Vec::new();
    for (at, found) in listed {
        // No record that young: begin at the end.
        let end = ends.iter().find(|(index, ..)| *index == at.partition).map_or(0, |(_, _, next)| *next);
        starts.push((at, found?.offset.unwrap_or(end)));
    }
    Ok(starts)
}

/// When `--exit-at-end` is reached: every partition has been read to where it ended at the start.
struct Until {
    active: bool,
    /// Partition, how far it was read, its end.
    partitions: Vec<(i32, i64, i64)>,
}

impl Until {
    async fn new(args: &ConsumeArgs, client: &Client, wanted: &[i32]) -> Result<Self, Failure> {
        let ends = if args.exit_at_end {
            ends(client, &args.topic, wanted.iter().copied()).await?
        } else {
            Vec::new()
        };
        Ok(Self { active: args.exit_at_end, partitions: ends })
    }

    fn starts_at(&mut self, partition: i32, offset: i64) {
        for entry in &mut self.partitions {
            if entry.0 == partition {
                entry.1 = offset;
            }
        }
    }

    fn assigned(&mut self, positions: impl Iterator<Item = (i32, Option<i64>)>) {
        for (partition, position) in positions {
            if let Some(position) = position {
                self.starts_at(partition, position);
            }
        }
    }

    fn read(&mut self, fetched: &Fetched) {
        self.starts_at(fetched.at.partition, fetched.next_offset);
    }

    fn reached(&self) -> bool {
        self.active && self.partitions.iter().all(|(_, position, end)| position >= end)
    }
}

struct Printer<'a> {
    args: &'a ConsumeArgs,
    left: u64,
}

impl Printer<'_> {
    fn print(&mut self, fetched: &Fetched) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        let mut failed = Ok(());
        fetched.for_each(|record| {
            if self.left > 0 && failed.is_ok() {
                self.left -= 1;
                failed = self.line(&mut out, fetched.at.partition, record);
            }
        })?;
        failed?;
        Ok(out.flush()?)
    }

    fn line(&self, out: &mut impl Write, partition: i32, record: &Record<'_>) -> std::io::Result<()> {
        if self.args.remote.json {
            return writeln!(out, "{}", json_of(partition, record));
        }
        if let Some(separator) = &self.args.key_separator {
            out.write_all(record.key.unwrap_or_default())?;
            out.write_all(separator.as_bytes())?;
        }
        out.write_all(record.value.unwrap_or_default())?;
        out.write_all(b"\n")
    }
}

/// A record for programs; bytes that are no UTF-8 are shown with replacement characters.
pub(crate) fn json_of(partition: i32, record: &Record<'_>) -> serde_json::Value {
    let text = |bytes: Option<&[u8]>| bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let headers: Vec<_> = (record.headers.clone())
        .map(|(name, value)| json!([String::from_utf8_lossy(name), text(value)]))
        .collect();
    json!({
        "partition": partition, "offset": record.offset, "timestamp_ms": record.timestamp_ms,
        "key": text(record.key), "value": text(record.value), "headers": headers,
    })
}
