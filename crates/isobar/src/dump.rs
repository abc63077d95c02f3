//! `isobar dump`: journals, objects and snapshots in readable form. Reads files only; changes nothing.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isobar_host::Host;
use isobar_protocol::batch::{BatchHeader, Batches};
use isobar_protocol::records::decode_batch;
use isobar_store::MARKER_KEY;
use isobar_store::format::Footer;
use serde_json::{Value, json};

use crate::Failure;
use crate::cli::DumpArgs;
use crate::records::json_of;

/// The most that a batch may hold once decompressed, to be shown.
const DECOMPRESSED_CAP_BYTES: usize = 256 << 20;

pub(crate) fn run(args: &DumpArgs) -> Result<(), Failure> {
    let host = Host::real();
    let mut dump =
        Dump { host, json: args.json, records: args.records, out: BufWriter::new(std::io::stdout().lock()) };
    dump.any(&args.path)?;
    Ok(dump.out.flush()?)
}

struct Dump<'a> {
    host: Host,
    json: bool,
    records: bool,
    out: BufWriter<std::io::StdoutLock<'a>>,
}

impl Dump<'_> {
    fn say(&mut self, text: &str, value: &Value) -> Result<(), Failure> {
        if self.json {
            writeln!(self.out, "{value}")?
        } else {
            writeln!(self.out, "{text}")?
        }
        Ok(())
    }

    /// Finds out what a path is by what lies there.
    fn any(&mut self, path: &Path) -> Result<(), Failure> {
        let has = |name: &str| path.join(name).exists();
        if path.is_file() {
            return self.object(path);
        }
        if !path.is_dir() {
            return Err(format!("{}: there is no such file or directory", path.display()).into());
        }
        if has("node.json") {
            self.quorum(&path.join("metadata"))?;
            self.wal(&path.join("wal").join("journal"))?;
            return self.bucket(&path.join("bucket"));
        }
        if has("FORMAT") {
            return self.quorum(path);
        }
        if has("incarnation") {
            return self.wal(&path.join("journal"));
        }
        if has("data") {
            return self.bucket(path);
        }
        if has("lives") {
            return self.wal(path);
        }
        Err(format!("{}: neither a data directory, a journal nor a bucket", path.display()).into())
    }

    fn quorum(&mut self, dir: &Path) -> Result<(), Failure> {
        self.say(&format!("== metadata log {}", dir.display()), &json!({ "metadata_log": dir }))?;
        let mut lines = Vec::new();
        isobar_raft::inspect(&self.host, dir, &mut |found| lines.push(format!("{found:#}")))?;
        for line in lines {
            self.say(&line, &json!({ "metadata": line }))?;
        }
        Ok(())
    }

    fn wal(&mut self, dir: &Path) -> Result<(), Failure> {
        self.say(&format!("== WAL journal {}", dir.display()), &json!({ "wal_journal": dir }))?;
        let mut failed: Result<(), Failure> = Ok(());
        let host = self.host.clone();
        isobar_journal::inspect(&*host.disk(), dir, &mut |found| {
            if failed.is_ok() {
                failed = self.in_journal(found);
            }
        })?;
        failed
    }

    fn in_journal(&mut self, found: isobar_journal::Inspected) -> Result<(), Failure> {
        let isobar_journal::Inspected::Frame { offset, frame } = found else {
            let text = format!("{found:?}");
            return self.say(&text, &json!({ "journal": text }));
        };
        let chunk = match isobar_wal::Chunk::from_frame(frame) {
            Ok(chunk) => chunk,
            Err(error) => {
                let text = format!("  frame at {offset}: no chunk: {error}");
                return self.say(&text, &json!({ "frame": offset, "error": error.to_string() }));
            }
        };
        let (stream, number) = (chunk.stream(), chunk.number());
        let text = format!(
            "  frame at {offset}: stream {stream}, chunk {number}, {} batches, {} bytes",
            chunk.len(),
            chunk.batch_bytes()
        );
        self.say(
            &text,
            &json!({
                "frame": offset, "stream": stream.to_string(), "chunk": number, "batches": chunk.len(),
                "bytes": chunk.batch_bytes(),
            }),
        )?;
        for partition in chunk.partitions() {
            for (ordinal, _) in (partition.first_ordinal..).zip(partition.batches) {
                let place =
                    format!("ordinal {ordinal}, {}-{}", partition.key.topic_id, partition.key.partition);
                if let Some(batch) = chunk.batch(ordinal) {
                    self.batch(&place, partition.key.partition, &batch)?;
                }
            }
        }
        Ok(())
    }

    fn bucket(&mut self, dir: &Path) -> Result<(), Failure> {
        self.say(&format!("== bucket {}", dir.display()), &json!({ "bucket": dir }))?;
        let mut objects = files_below(dir)?;
        objects.sort();
        for object in objects {
            if object == dir.join(MARKER_KEY) {
                self.marker(&object)?;
            } else {
                self.object(&object)?;
            }
        }
        Ok(())
    }

    fn marker(&mut self, path: &Path) -> Result<(), Failure> {
        let bytes = self.host.read_file(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.say(&format!("marker {}: {text}", path.display()), &json!({ "marker": path, "text": text }))
    }

    fn object(&mut self, path: &Path) -> Result<(), Failure> {
        let bytes =
            Bytes::from(self.host.read_file(path).map_err(|error| format!("{}: {error}", path.display()))?);
        let footer =
            match Footer::of_object(&bytes).and_then(|footer| footer.verify_body(&bytes).map(|()| footer)) {
                Ok(footer) => footer,
                Err(error) => {
                    let text = format!("object {}: {error}", path.display());
                    return self.say(&text, &json!({ "object": path, "error": error.to_string() }));
                }
            };
        let text = format!("object {}: {} bytes, {} runs", path.display(), bytes.len(), footer.runs.len());
        self.say(&text, &json!({ "object": path, "bytes": bytes.len(), "runs": footer.runs.len() }))?;
        for run in &footer.runs {
            let (topic_id, partition) = (run.key.topic_id, run.key.partition);
            let text = format!(
                "  run {topic_id}-{partition}: offsets {} to {}, bytes {} to {}, {} batches",
                run.first_offset,
                run.last_offset,
                run.range.start,
                run.range.end,
                run.batches.len()
            );
            self.say(
                &text,
                &json!({
                    "topic_id": topic_id.to_string(), "partition": partition, "first_offset": run.first_offset,
                    "last_offset": run.last_offset, "range": [run.range.start, run.range.end],
                }),
            )?;
            let body = bytes.slice(usize::try_from(run.range.start)?..usize::try_from(run.range.end)?);
            for batch in Batches::new(&body) {
                let (_, batch) = batch?;
                self.batch("  batch", partition, &body.slice_ref(batch))?;
            }
        }
        Ok(())
    }

    fn batch(&mut self, place: &str, partition: i32, batch: &Bytes) -> Result<(), Failure> {
        let header = BatchHeader::parse(batch)?;
        let codec = header.attributes.codec().map_or_else(|| "?".to_owned(), |codec| codec.to_string());
        let text = format!(
            "    {place}: base offset {}, {} records, {} bytes, {codec}, producer {} epoch {} sequence {}, max timestamp {}",
            header.base_offset,
            header.count,
            batch.len(),
            header.producer_id,
            header.producer_epoch,
            header.base_sequence,
            header.max_timestamp_ms
        );
        self.say(
            &text,
            &json!({
                "batch": place.trim(), "base_offset": header.base_offset, "records": header.count,
                "bytes": batch.len(), "codec": codec, "producer_id": header.producer_id,
                "producer_epoch": header.producer_epoch, "base_sequence": header.base_sequence,
                "max_timestamp_ms": header.max_timestamp_ms,
            }),
        )?;
        if self.records {
            for record in decode_batch(batch, DECOMPRESSED_CAP_BYTES)?.iter() {
                let value = json_of(partition, &record?);
                self.say(&format!("      {value}"), &value)?;
            }
        }
        Ok(())
    }
}

fn files_below(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.push(path);
        }
    }
    Ok(found)
}
