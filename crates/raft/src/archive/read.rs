//! Reading an archive back, for recovery.

use bytes::{Bytes, BytesMut};

use super::format::{decode_log, decode_part};
use super::names::{Listing, LogPiece, log_dir, log_name, part_name, snapshot_dir};
use super::{Archive, ArchiveError};
use crate::records::EntryRecord;
use crate::snapshots::{self, SnapshotHeader};

/// A snapshot from the archive.
#[derive(Debug, Clone, PartialEq)]
pub struct ArchivedSnapshot {
    /// Whose archive it is, as each part says.
    pub cluster_id: String,
    /// What it says about itself.
    pub header: SnapshotHeader,
    /// The state machine's part.
    pub body: Bytes,
}

/// What lies in the archive of an incarnation.
pub async fn survey(archive: &dyn Archive, incarnation: u32) -> Result<Listing, ArchiveError> {
    let log = archive.list(&log_dir(incarnation)).await?;
    let snapshots = archive.list(&snapshot_dir(incarnation)).await?;
    Ok(Listing::new(&log, &snapshots))
}

/// One whole snapshot, all in memory.
pub async fn read_snapshot(
    archive: &dyn Archive,
    incarnation: u32,
    listing: &Listing,
    index: u64,
) -> Result<ArchivedSnapshot, ArchiveError> {
    let count = listing
        .parts(index)
        .ok_or_else(|| ArchiveError::NotFound(format!("{}/{index:020}", snapshot_dir(incarnation))))?;
    let mut file = BytesMut::new();
    let mut cluster_id = String::new();
    for part in 0..count {
        let last = part + 1 == count;
        let name = part_name(incarnation, index, part, last);
        let damaged = |why: String| ArchiveError::Damaged { name: name.clone(), why };
        let (header, body) = decode_part(&archive.get(&name).await?).map_err(|e| damaged(e.to_string()))?;
        let expected = (incarnation, index, part, last, file.len() as u64);
        if (header.incarnation, header.index, header.part, header.last, header.position) != expected {
            return Err(damaged("it says that it is another part".to_owned()));
        }
        cluster_id = header.cluster_id;
        file.extend_from_slice(&body);
    }
    let name = format!("{}/{index:020}", snapshot_dir(incarnation));
    let damaged = |why: String| ArchiveError::Damaged { name: name.clone(), why };
    let (header, body) = snapshots::parse(&file.freeze()).map_err(|error| damaged(error.to_string()))?;
    if header.last.index != index {
        return Err(damaged(format!("it is a snapshot of entry {}", header.last.index)));
    }
    Ok(ArchivedSnapshot { cluster_id, header, body })
}

/// The entries of one object of the log, and the cluster it belongs to.
pub async fn read_log(
    archive: &dyn Archive,
    incarnation: u32,
    piece: LogPiece,
) -> Result<(String, Vec<EntryRecord>), ArchiveError> {
    let name = log_name(incarnation, piece);
    let damaged = |why: String| ArchiveError::Damaged { name: name.clone(), why };
    let (header, entries) = decode_log(&archive.get(&name).await?).map_err(|e| damaged(e.to_string()))?;
    if (header.incarnation, header.first, header.last) != (incarnation, piece.first, piece.last) {
        return Err(damaged("it says that it is another piece of the log".to_owned()));
    }
    Ok((header.cluster_id, entries))
}
