//! Opening a member's directory: its format, its log, its snapshots.

use std::sync::Arc;

use bytes::Bytes;
use isobar_host::{BufferPool, Host};
use isobar_journal::Journal;
use isobar_metadata::StateMachine;

use crate::effects::Ring;
use crate::error::RaftError;
use crate::format::FormatRecord;
use crate::log::{Log, Place};
use crate::log_store::LogStore;
use crate::machine::Machine;
use crate::metrics::RaftMetrics;
use crate::options::QuorumOptions;
use crate::records::FrameRecord;
use crate::snapshots::Snapshots;
use crate::types::SnapshotMeta;

/// A fresh log is small and ready soon.
const FIRST_SEGMENT_BYTES: u64 = 8 << 20;
/// Buffers for frames that are kept for reuse.
const BUFFERS_KEPT_BYTES: usize = 8 << 20;

/// Reads the directory's format, or formats it if it is empty and that is allowed.
pub(crate) fn claim_directory(host: &Host, options: &QuorumOptions) -> Result<FormatRecord, RaftError> {
    let dir = &options.dir;
    if let Some(format) = FormatRecord::read(host, dir)? {
        if format.node_id != options.node_id {
            let what = format!("it belongs to node {}, not to node {}", format.node_id, options.node_id);
            return Err(RaftError::WrongDirectory { path: dir.clone(), what });
        }
        return Ok(format);
    }
    let Some(cluster) = &options.format else {
        return Err(RaftError::NotFormatted { dir: dir.clone() });
    };
    let disk = host.disk();
    for part in [dir.clone(), dir.join("log"), dir.join("snapshots")] {
        match disk.list(&part) {
            // The temporary file is our own, of a format that was cut off.
            Ok(names) if names.iter().all(|name| name == "FORMAT.tmp") => {}
            Ok(_) => {
                let what = "it holds files but no FORMAT; it is not formatted over them".to_owned();
                return Err(RaftError::WrongDirectory { path: part, what });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(RaftError::Disk { path: part, source }),
        }
    }
    disk.create_dir_all(dir).map_err(RaftError::disk(dir))?;
    let format = FormatRecord::new(host, options.node_id, cluster.clone());
    format.write(host, dir)?;
    tracing::info!(dir = %dir.display(), node = options.node_id, cluster = cluster.cluster_id, "formatted");
    Ok(format)
}

/// Opens the journal and replays the log from it.
pub(crate) async fn open_log(
    host: &Host,
    options: &QuorumOptions,
    metrics: &Arc<RaftMetrics>,
) -> Result<LogStore, RaftError> {
    let dir = options.dir.join("log");
    let buffers = BufferPool::new(BUFFERS_KEPT_BYTES);
    let mut log = Log::new(options.log_cache_bytes);
    let mut damage = None;
    let journal_options = isobar_journal::Options {
        segment_bytes: options.segment_bytes,
        first_segment_bytes: FIRST_SEGMENT_BYTES.min(options.segment_bytes),
        spare_segments: 1,
        metrics: options.journal_metrics.clone(),
        ..isobar_journal::Options::default()
    };
    let (journal, report) = Journal::open(host, &dir, journal_options, &mut |frame| {
        if damage.is_none() {
            let place = Place { position: frame.position, segment: frame.segment, len_bytes: frame.len };
            // A copy, for the frame is a slice of a much larger read and some entries are kept.
            let meta = Bytes::copy_from_slice(&frame.meta());
            let replayed = FrameRecord::parse(meta).and_then(|record| log.replay(place, &record));
            damage = replayed.err().map(|what| format!("frame at {}: {what}", frame.position));
        }
    })
    .await?;
    tracing::debug!(?report, "metadata log recovered");
    if let Some(what) = damage.or_else(|| log.finish().err()) {
        return Err(RaftError::Damaged { path: dir, what });
    }
    Ok(LogStore::new(log, journal, buffers, Arc::clone(metrics)))
}

/// Opens the snapshots and restores the newest good one, if the log goes on from there.
pub(crate) fn open_machine(
    host: &Host,
    options: &QuorumOptions,
    format: &FormatRecord,
    store: &LogStore,
    metrics: &Arc<RaftMetrics>,
) -> Result<Machine, RaftError> {
    let dir = options.dir.join("snapshots");
    let restore = |_: &SnapshotMeta, body: &[u8]| StateMachine::restore(body).map_err(|e| e.to_string());
    let (snapshots, restored) = Snapshots::open(host, &dir, restore)?;
    let reaches = restored.as_ref().and_then(|(meta, _)| meta.last_log_id).map(|id| id.index);
    let purged = store.purged().map(|id| id.index);
    if purged > reaches {
        let have = reaches
            .map_or_else(|| "no good snapshot".to_owned(), |i| format!("the newest good one ends at {i}"));
        let mut aside = host.disk().list(&dir).unwrap_or_default();
        aside.retain(|name| name.ends_with(".damaged"));
        let what = format!(
            "the log starts after entry {}, but there is {have} (set aside because they are damaged: {}); restore this \
             member from another or from the archive",
            purged.unwrap_or_default(),
            if aside.is_empty() { "none".to_owned() } else { aside.join(", ") }
        );
        return Err(RaftError::Damaged { path: dir, what });
    }
    let (meta, machine) =
        restored.unwrap_or_else(|| (SnapshotMeta::default(), StateMachine::new(format.cluster.clone())));
    let ring = Arc::new(Ring::new(options.effects_bytes));
    let machine =
        Machine::new(host, snapshots, meta, machine, ring, options.snapshot_after_bytes, Arc::clone(metrics));
    Ok(machine.archived(options.archive_lag_bytes))
}
