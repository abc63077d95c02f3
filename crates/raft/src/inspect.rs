//! Reads a member's directory as it lies there, for people. Changes nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isobar_host::Host;
use isobar_journal::Inspected as InJournal;
use isobar_metadata::Entry as MetadataEntry;

use crate::error::RaftError;
use crate::format::FormatRecord;
use crate::records::{EntryRecord, FrameRecord, LogIdRecord, kind};
use crate::snapshots::{self, SnapshotHeader};

/// One thing found in the directory. `{}` gives one line; `{:#}` also the commands of entries.
#[derive(Debug, Clone)]
pub enum Inspected {
    /// Whose directory it is.
    Format(FormatRecord),
    /// A snapshot that is whole.
    Snapshot {
        /// Its file.
        path: PathBuf,
        /// What it says about itself.
        header: SnapshotHeader,
        /// Size of the state machine's part; read it with `isobar_metadata`.
        body_bytes: u64,
    },
    /// A segment of the log begins.
    Segment {
        /// Its file.
        path: PathBuf,
        /// Its number.
        id: u64,
    },
    /// A frame of the log.
    Frame {
        /// Position in the journal.
        position: u64,
        /// Why it was written, see [`FrameRecord`] for what.
        reason: &'static str,
        /// Its contents.
        record: FrameRecord,
    },
    /// Something that is not as it should be, or the journal's own findings.
    Note(String),
}

/// Shows the format file, the snapshots and every frame of the log, in this order.
pub fn inspect(host: &Host, dir: &Path, each: &mut dyn FnMut(Inspected)) -> Result<(), RaftError> {
    match FormatRecord::read(host, dir)? {
        Some(format) => each(Inspected::Format(format)),
        None => each(Inspected::Note("there is no FORMAT file".to_owned())),
    }
    inspect_snapshots(host, &dir.join("snapshots"), each)?;
    let disk = host.disk();
    isobar_journal::inspect(&*disk, &dir.join("log"), &mut |item| each(translated(item)))?;
    Ok(())
}

fn inspect_snapshots(host: &Host, dir: &Path, each: &mut dyn FnMut(Inspected)) -> Result<(), RaftError> {
    let disk = host.disk();
    let names = match disk.list(dir) {
        Ok(names) => names,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(RaftError::Disk { path: dir.to_owned(), source }),
    };
    for name in names {
        let path = dir.join(name);
        let bytes = Bytes::from(disk.read(&path).map_err(RaftError::disk(&path))?);
        each(match snapshots::parse(&bytes) {
            Ok((header, body)) => Inspected::Snapshot { path, header, body_bytes: body.len() as u64 },
            Err(what) => Inspected::Note(format!("{}: {what}", path.display())),
        });
    }
    Ok(())
}

fn translated(item: InJournal) -> Inspected {
    match item {
        InJournal::Segment { path, id, header_ok: true, .. } => Inspected::Segment { path, id },
        InJournal::Segment { path, .. } => {
            Inspected::Note(format!("{}: its header is damaged", path.display()))
        }
        InJournal::Frame { frame, .. } => {
            let position = frame.stamp().position;
            match FrameRecord::parse(frame.meta()) {
                Ok(record) => Inspected::Frame { position, reason: reason(frame.kind()), record },
                Err(what) => Inspected::Note(format!("frame at {position}: {what}")),
            }
        }
        InJournal::Seal { offset } => Inspected::Note(format!("sealed at byte {offset}")),
        InJournal::Hole { from, to, why } => Inspected::Note(format!("bytes {from}..{to}: {why}")),
        InJournal::Spare { path } => Inspected::Note(format!("spare {}", path.display())),
        InJournal::Done { report, synced } => {
            Inspected::Note(format!("synced below {synced}; opening finds {report:?}"))
        }
    }
}

fn reason(frame_kind: u8) -> &'static str {
    match frame_kind {
        kind::APPEND => "append",
        kind::VOTE => "vote",
        kind::TRUNCATE => "truncate",
        kind::PURGE => "purge",
        _ => "unknown",
    }
}

/// `term-node-index`, or `none`.
struct Id<'a>(Option<&'a LogIdRecord>);

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "{}-{}-{}", id.term, id.node, id.index),
            None => f.write_str("none"),
        }
    }
}

impl fmt::Display for Inspected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(format) => write!(
                f,
                "format: cluster {} (incarnation {}, {} shards), node {}, directory {}, formatted at {} ms{}",
                format.cluster.cluster_id,
                format.cluster.incarnation,
                format.cluster.shards,
                format.node_id,
                Hex(&format.incarnation),
                format.created_ms,
                if format.bootstrapped { "" } else { ", not bootstrapped" }
            ),
            Self::Snapshot { path, header, body_bytes } => write!(
                f,
                "snapshot {}: up to {}, membership of {}, written at {} ms, {body_bytes} bytes of state",
                path.display(),
                Id(Some(&header.last)),
                Id(header.membership_id.as_ref()),
                header.created_ms
            ),
            Self::Segment { path, id } => write!(f, "segment {id}: {}", path.display()),
            Self::Frame { position, reason, record } => {
                write_frame(f, *position, reason, record)?;
                if f.alternate() {
                    record.entries.iter().try_for_each(|entry| write_entry(f, entry))?;
                }
                Ok(())
            }
            Self::Note(note) => f.write_str(note),
        }
    }
}

fn write_frame(f: &mut fmt::Formatter<'_>, position: u64, reason: &str, record: &FrameRecord) -> fmt::Result {
    write!(f, "frame {} at {position}: {reason}", record.serial)?;
    if let Some(vote) = &record.vote {
        let granted = if vote.committed { "granted" } else { "asked" };
        write!(f, ", vote {}-{} {granted}", vote.term, vote.node)?;
    }
    write!(f, ", committed {}, purged {}", Id(record.committed.as_ref()), Id(record.purged.as_ref()))?;
    if let Some(truncate) = &record.truncate {
        write!(f, ", cut after {}", Id(truncate.after.as_ref()))?;
    }
    if let (Some(first), Some(last)) = (record.entries.first(), record.entries.last()) {
        write!(f, ", entries {} to {}", Id(Some(&first.id)), Id(Some(&last.id)))?;
    }
    Ok(())
}

fn write_entry(f: &mut fmt::Formatter<'_>, entry: &EntryRecord) -> fmt::Result {
    write!(f, "\n  entry {}: ", Id(Some(&entry.id)))?;
    match (&entry.command, &entry.membership) {
        (Some(bytes), _) => match MetadataEntry::from_bytes(bytes.clone()) {
            Ok(entry) => {
                write!(
                    f,
                    "{} bytes, {} commands, time {} ms",
                    bytes.len(),
                    entry.commands.len(),
                    entry.time_ms
                )?;
                entry.commands.iter().try_for_each(|command| write!(f, "\n    {command:?}"))
            }
            Err(error) => write!(f, "{} bytes: {error}", bytes.len()),
        },
        (None, Some(membership)) => {
            let voters: Vec<_> = membership.voters.iter().map(|set| &set.nodes).collect();
            write!(f, "membership, voters {voters:?}, {} members", membership.members.len())
        }
        (None, None) => f.write_str("blank"),
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
