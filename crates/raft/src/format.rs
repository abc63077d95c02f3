//! The file that says whose directory this is: `<dir>/FORMAT`.
//!
//! Layout: `"ISOBRAFT"`, CRC-32C of the rest (u32, little-endian), protobuf [`FormatRecord`].
//!
//! Invariants
//! 1. It is the first thing written into an empty directory, and a directory with anything else in it but without this
//!    file is never formatted.
//! 2. `bootstrapped` is set only after the first entry of the group is synced. A directory that has it, but no log,
//!    has lost its log: it is refused, for a voter that forgets its vote can undo what was acknowledged.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use isobar_host::Host;
use isobar_metadata::ClusterFormat;
use prost::Message;

use crate::error::RaftError;

const MAGIC: &[u8; 8] = b"ISOBRAFT";
const VERSION: u32 = 1;
const FILE: &str = "FORMAT";

/// Contents of the file.
#[derive(Clone, PartialEq, Message)]
pub struct FormatRecord {
    /// Version of this record.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// The member.
    #[prost(uint64, tag = "2")]
    pub node_id: u64,
    /// Random id of this directory, 16 bytes, never reused.
    #[prost(bytes = "bytes", tag = "3")]
    pub incarnation: Bytes,
    /// What the cluster was formatted with.
    #[prost(message, required, tag = "4")]
    pub cluster: ClusterFormat,
    /// When, Kafka time.
    #[prost(int64, tag = "5")]
    pub created_ms: i64,
    /// The group's first entry is in the log.
    #[prost(bool, tag = "6")]
    pub bootstrapped: bool,
}

impl FormatRecord {
    pub(crate) fn new(host: &Host, node_id: u64, cluster: ClusterFormat) -> Self {
        Self::of(host, node_id, host.random_uuid(), cluster)
    }

    /// The same with an incarnation that the caller has drawn.
    pub(crate) fn of(host: &Host, node_id: u64, incarnation: [u8; 16], cluster: ClusterFormat) -> Self {
        Self {
            version: VERSION,
            node_id,
            incarnation: Bytes::copy_from_slice(&incarnation),
            cluster,
            created_ms: host.now_ms(),
            bootstrapped: false,
        }
    }

    pub(crate) fn incarnation(&self) -> [u8; 16] {
        // `read` lets no other length through, `new` makes none.
        self.incarnation.as_ref().try_into().unwrap_or_default()
    }

    /// `None` if there is no such file.
    pub(crate) fn read(host: &Host, dir: &Path) -> Result<Option<Self>, RaftError> {
        let path = path(dir);
        let bytes = match host.disk().read(&path) {
            Ok(bytes) => Bytes::from(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(RaftError::Disk { path, source: error }),
        };
        let damaged = |what: &str| RaftError::Damaged { path: path.clone(), what: what.to_owned() };
        if bytes.len() < 12 || &bytes[..8] != MAGIC {
            return Err(damaged("not the format file of a metadata directory"));
        }
        if crc32c::crc32c(&bytes[12..]).to_le_bytes() != bytes[8..12] {
            return Err(damaged("its checksum does not match"));
        }
        let record = Self::decode(bytes.slice(12..)).map_err(|e| damaged(&e.to_string()))?;
        if record.version == 0 || record.version > VERSION {
            let what =
                format!("format version {} is not known; this binary knows up to {VERSION}", record.version);
            return Err(RaftError::WrongDirectory { path, what });
        }
        if record.incarnation.len() != 16 {
            return Err(damaged("its incarnation has a wrong length"));
        }
        Ok(Some(record))
    }

    pub(crate) fn write(&self, host: &Host, dir: &Path) -> Result<(), RaftError> {
        let body = self.encode_to_vec();
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        let path = path(dir);
        host.disk().write_durable(&path, &bytes).map_err(RaftError::disk(path))
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}
