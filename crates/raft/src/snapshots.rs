//! Snapshot files of the metadata state machine.
//!
//! Owns: `<dir>/snapshots/<index, 20 digits>-<term>-<node>.snapshot`, at most two of them.
//!
//! Layout: `"ISOBSNAP"`, version (u32), header length (u32), header (protobuf [`SnapshotHeader`]), body (the state
//! machine's own format), body length (u64), CRC-32C of all before it (u32), `"PANS"`. Integers are little-endian.
//!
//! Invariants
//! 1. A file under its final name is whole and synced: it is written as `.tmp`, synced, renamed, the directory synced.
//! 2. The CRC is checked before a byte of the body is believed.
//! 3. The older of the two goes only after a newer one is durable, and the log is purged only up to the older one. So
//!    one damaged snapshot costs a longer replay, not the member.
//!
//! Failure: a write that fails removes its `.tmp` and is tried again later; the log just stays longer. Crash cases: a
//! `.tmp` is removed at the next start; a third file left by a crash before pruning goes with the next snapshot.
//! Accepted leak: a damaged file is kept as `.damaged` for a person to look at.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::{Disk, DiskFile, Host, Open};
use parking_lot::Mutex;
use prost::Message;

use crate::error::RaftError;
use crate::records::{LogIdRecord, MembershipRecord};
use crate::types::{LogId, SnapshotMeta, StoredMembership};

const MAGIC: &[u8; 8] = b"ISOBSNAP";
const END_MAGIC: &[u8; 4] = b"PANS";
const VERSION: u32 = 1;
const TRAILER_BYTES: usize = 16;
const PREFIX_BYTES: usize = 16;
const WRITE_BYTES: usize = 1 << 20;
const KEPT: usize = 2;
const SUFFIX: &str = ".snapshot";

/// What a snapshot says about itself.
#[derive(Clone, PartialEq, Message)]
pub struct SnapshotHeader {
    /// The last entry it contains.
    #[prost(message, required, tag = "1")]
    pub last: LogIdRecord,
    /// The membership in force there.
    #[prost(message, optional, tag = "2")]
    pub membership: Option<MembershipRecord>,
    /// The entry that set it; absent before any did.
    #[prost(message, optional, tag = "3")]
    pub membership_id: Option<LogIdRecord>,
    /// When it was written, Kafka time.
    #[prost(int64, tag = "4")]
    pub created_ms: i64,
    /// Which state machine format the body has, as the metadata crate counts it; 0 if it says so itself.
    #[prost(uint32, tag = "5")]
    pub body_version: u32,
}

impl SnapshotHeader {
    fn new(meta: &SnapshotMeta, created_ms: i64) -> Option<Self> {
        Some(Self {
            last: LogIdRecord::of(meta.last_log_id.as_ref()?),
            membership: Some(MembershipRecord::of(meta.last_membership.membership())),
            membership_id: meta.last_membership.log_id().as_ref().map(LogIdRecord::of),
            created_ms,
            body_version: 0,
        })
    }

    fn meta(&self) -> Result<SnapshotMeta, String> {
        let membership = match &self.membership {
            Some(record) => record.decode_membership()?,
            None => Default::default(),
        };
        Ok(SnapshotMeta {
            last_log_id: Some(self.last.log_id()),
            last_membership: StoredMembership::new(
                self.membership_id.as_ref().map(LogIdRecord::log_id),
                membership,
            ),
        })
    }
}

/// A snapshot on disk.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) meta: SnapshotMeta,
    pub(crate) path: PathBuf,
    pub(crate) len_bytes: u64,
}

impl Stored {
    /// The last entry it contains.
    pub(crate) fn index(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |id| id.index)
    }
}

/// What travels through openraft as snapshot data: where to read it.
#[derive(Clone)]
pub(crate) struct SnapshotHandle {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl SnapshotHandle {
    /// Begins the file anew.
    pub(crate) fn create(&self) -> io::Result<Box<dyn DiskFile>> {
        self.remove()?;
        self.disk.open(&self.path, Open::CREATE)
    }

    /// Removes the file, which may be gone already.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match self.disk.remove(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The body, checked.
    pub(crate) fn read(&self) -> io::Result<Bytes> {
        Ok(self.parse()?.1)
    }

    /// What is in it, after all of it was checked.
    pub(crate) fn meta(&self) -> io::Result<SnapshotMeta> {
        let meta = self.parse()?.0.meta();
        meta.map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
    }

    /// The file, which can be read on after a newer snapshot has taken its place.
    pub(crate) fn open(&self) -> io::Result<Box<dyn DiskFile>> {
        self.disk.open(&self.path, Open::READ)
    }

    fn parse(&self) -> io::Result<(SnapshotHeader, Bytes)> {
        let bytes = Bytes::from(self.disk.read(&self.path)?);
        parse(&bytes)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {e}", self.path.display())))
    }
}

/// The snapshot directory.
pub(crate) struct Snapshots {
    host: Host,
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Ascending by index, whole ones only.
    kept: Mutex<Vec<Stored>>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ParseError {
    #[error("{0}")]
    Damaged(String),
    #[error("snapshot version {0} is not known; this binary knows up to {VERSION}")]
    Version(u32),
}

impl Snapshots {
    /// Opens the directory and reads the newest snapshot that `restore` takes. Damaged ones are set aside.
    pub(crate) fn open<T>(
        host: &Host,
        dir: &Path,
        mut restore: impl FnMut(&SnapshotMeta, &[u8]) -> Result<T, String>,
    ) -> Result<(Self, Option<(SnapshotMeta, T)>), RaftError> {
        let disk = host.disk();
        disk.create_dir_all(dir).map_err(RaftError::disk(dir))?;
        let mut names: Vec<(LogIdRecord, String)> = Vec::new();
        for name in disk.list(dir).map_err(RaftError::disk(dir))? {
            if name.ends_with(".tmp") {
                disk.remove(&dir.join(&name)).map_err(RaftError::disk(dir.join(&name)))?;
            } else if let Some(id) = parse_name(&name) {
                names.push((id, name));
            }
        }
        names.sort_by_key(|(id, _)| (id.index, id.term, id.node));

        let mut kept = Vec::new();
        let mut restored = None;
        for (_, name) in names.into_iter().rev() {
            let path = dir.join(name);
            let bytes = Bytes::from(disk.read(&path).map_err(RaftError::disk(&path))?);
            let outcome = parse(&bytes).and_then(|(header, body)| {
                let meta = header.meta().map_err(ParseError::Damaged)?;
                if restored.is_none() {
                    let state = restore(&meta, &body).map_err(ParseError::Damaged)?;
                    restored = Some((meta.clone(), state));
                }
                Ok(meta)
            });
            match outcome {
                Ok(meta) => kept.push(Stored { meta, path, len_bytes: bytes.len() as u64 }),
                Err(ParseError::Damaged(what)) => {
                    tracing::error!(path = %path.display(), what, "damaged snapshot set aside");
                    let aside = path.with_extension("damaged");
                    disk.rename(&path, &aside).map_err(RaftError::disk(&path))?;
                    disk.sync_dir(dir).map_err(RaftError::disk(dir))?;
                }
                Err(error @ ParseError::Version(_)) => {
                    return Err(RaftError::WrongDirectory { path, what: error.to_string() });
                }
            }
        }
        kept.reverse();
        let snapshots = Self { host: host.clone(), disk, dir: dir.to_path_buf(), kept: Mutex::new(kept) };
        Ok((snapshots, restored))
    }

    /// Writes one snapshot durably and removes what is older than the newest two. Blocks.
    pub(crate) fn write(
        &self,
        meta: &SnapshotMeta,
        encode: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) -> io::Result<Stored> {
        let header = SnapshotHeader::new(meta, self.host.now_ms())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a snapshot of nothing"))?;
        let path = self.dir.join(file_name(&header.last));
        let temporary = path.with_extension("tmp");
        let result = self.write_file(&temporary, &path, &header, encode);
        match result {
            Ok(len_bytes) => {
                let stored = Stored { meta: meta.clone(), path, len_bytes };
                self.keep(stored.clone());
                Ok(stored)
            }
            Err(error) => {
                // What is left of it goes at the next start; the error is the one to report.
                let _ = self.disk.remove(&temporary);
                Err(error)
            }
        }
    }

    fn write_file(
        &self,
        temporary: &Path,
        path: &Path,
        header: &SnapshotHeader,
        encode: impl FnOnce(&mut dyn FnMut(&[u8])),
    ) -> io::Result<u64> {
        match self.disk.remove(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = self.disk.open(temporary, Open::CREATE)?;
        let mut writer = Writer::new(&*file);
        let header = header.encode_to_vec();
        writer.put(MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&u32::try_from(header.len()).unwrap_or(u32::MAX).to_le_bytes());
        writer.put(&header);
        let body_start = writer.len_bytes();
        encode(&mut |piece| writer.put(piece));
        let body_bytes = writer.len_bytes() - body_start;
        writer.put(&body_bytes.to_le_bytes());
        let len_bytes = writer.finish()?;
        file.sync_data()?;
        self.host.crash_point("raft.snapshot.synced");
        self.disk.rename(temporary, path)?;
        self.disk.sync_dir(&self.dir)?;
        self.host.crash_point("raft.snapshot.renamed");
        Ok(len_bytes)
    }

    fn keep(&self, stored: Stored) {
        let dropped = {
            let mut kept = self.kept.lock();
            kept.retain(|other| other.path != stored.path);
            kept.push(stored);
            kept.sort_by_key(|s| s.meta.last_log_id.map(|id| id.index));
            let surplus = kept.len().saturating_sub(KEPT);
            kept.drain(..surplus).collect::<Vec<_>>()
        };
        for old in dropped {
            if let Err(error) = self.disk.remove(&old.path) {
                tracing::warn!(path = %old.path.display(), %error, "an old snapshot could not be removed");
            }
        }
    }

    /// The newest one.
    pub(crate) fn newest(&self) -> Option<Stored> {
        self.kept.lock().last().cloned()
    }

    /// Size of the newest one; 0 if there is none.
    pub(crate) fn newest_bytes(&self) -> u64 {
        self.kept.lock().last().map_or(0, |stored| stored.len_bytes)
    }

    /// Up to where the log may go: the last entry of the older of two.
    pub(crate) fn purgeable(&self) -> Option<LogId> {
        let kept = self.kept.lock();
        if kept.len() < KEPT { None } else { kept.first()?.meta.last_log_id }
    }

    /// Where a snapshot that is coming from another member is gathered. What is left of it goes at the next start.
    pub(crate) fn incoming(&self, transfer: u64) -> SnapshotHandle {
        self.handle_of(self.dir.join(format!("incoming-{transfer:016x}.tmp")))
    }

    pub(crate) fn handle_of(&self, path: impl Into<PathBuf>) -> SnapshotHandle {
        SnapshotHandle { disk: Arc::clone(&self.disk), path: path.into() }
    }
}

/// Buffers, counts and sums what is written; keeps the first error for the end.
struct Writer<'a> {
    file: &'a dyn DiskFile,
    buffer: Vec<u8>,
    offset: u64,
    crc: u32,
    error: Option<io::Error>,
}

impl<'a> Writer<'a> {
    fn new(file: &'a dyn DiskFile) -> Self {
        Self { file, buffer: Vec::with_capacity(WRITE_BYTES), offset: 0, crc: 0, error: None }
    }

    fn len_bytes(&self) -> u64 {
        self.offset + self.buffer.len() as u64
    }

    fn put(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            let (now, later) = piece.split_at(piece.len().min(WRITE_BYTES - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            piece = later;
            if self.buffer.len() == WRITE_BYTES {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        if self.error.is_none() {
            self.crc = crc32c::crc32c_append(self.crc, &self.buffer);
            if let Err(error) = self.file.write_at(&[IoSlice::new(&self.buffer)], self.offset) {
                self.error = Some(error);
            }
        }
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
    }

    fn finish(mut self) -> io::Result<u64> {
        self.flush();
        let mut end = self.crc.to_le_bytes().to_vec();
        end.extend_from_slice(END_MAGIC);
        match self.error {
            Some(error) => Err(error),
            None => {
                self.file.write_at(&[IoSlice::new(&end)], self.offset)?;
                Ok(self.offset + end.len() as u64)
            }
        }
    }
}

fn file_name(id: &LogIdRecord) -> String {
    format!("{:020}-{}-{}{SUFFIX}", id.index, id.term, id.node)
}

fn parse_name(name: &str) -> Option<LogIdRecord> {
    let mut parts = name.strip_suffix(SUFFIX)?.split('-');
    let index = parts.next()?.parse().ok()?;
    let term = parts.next()?.parse().ok()?;
    let node = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(LogIdRecord { term, node, index })
}

/// Takes a snapshot file apart and checks all of it.
pub(crate) fn parse(file: &Bytes) -> Result<(SnapshotHeader, Bytes), ParseError> {
    let damaged = |what: &str| ParseError::Damaged(what.to_owned());
    if file.len() < PREFIX_BYTES + TRAILER_BYTES || &file[..8] != MAGIC {
        return Err(damaged("not a snapshot"));
    }
    let word = |at: usize| u32::from_le_bytes([file[at], file[at + 1], file[at + 2], file[at + 3]]);
    let trailer = file.len() - TRAILER_BYTES;
    let crc_at = trailer + 8;
    if &file[crc_at + 4..] != END_MAGIC {
        return Err(damaged("it has no end"));
    }
    if crc32c::crc32c(&file[..crc_at]) != word(crc_at) {
        return Err(damaged("its checksum does not match"));
    }
    if word(8) != VERSION {
        return Err(ParseError::Version(word(8)));
    }
    let header_end = PREFIX_BYTES + word(12) as usize;
    let body_bytes = u64::from(word(trailer)) | (u64::from(word(trailer + 4)) << 32);
    if header_end > trailer || (trailer - header_end) as u64 != body_bytes {
        return Err(damaged("its lengths do not add up"));
    }
    let header =
        SnapshotHeader::decode(file.slice(PREFIX_BYTES..header_end)).map_err(|e| damaged(&e.to_string()))?;
    Ok((header, file.slice(header_end..trailer)))
}
