//! Tests that need the crate's inside: openraft's own storage suite, and crashes of the log store.

mod archive;
mod crash;
mod group;
mod heartbeat;
mod quorum;
mod simulated;
mod suite;

use std::path::Path;
use std::sync::Arc;

use isobar_host::Host;
use isobar_metadata::command::RegisterSession;
use isobar_metadata::{ClusterFormat, Command, CommandResult, DirectoryId, Envelope, StoreId};

use crate::error::RaftError;
use crate::format::FormatRecord;
use crate::log_store::LogStore;
use crate::machine::MachineWorker;
use crate::metrics::RaftMetrics;
use crate::open::{open_log, open_machine};
use crate::options::QuorumOptions;

pub(crate) fn cluster() -> ClusterFormat {
    ClusterFormat::dev("AAAAAAAAAAAAAAAAAAAAAA".to_owned(), "store".to_owned())
}

/// Small enough that segments fill, caches overflow and snapshots come.
pub(crate) fn small_options(dir: &Path) -> QuorumOptions {
    QuorumOptions { log_cache_bytes: 2048, segment_bytes: 64 << 10, ..QuorumOptions::new(dir, 1) }
}

/// A log store and a state machine on one directory, as `Quorum::start` opens them.
pub(crate) async fn open_stores(
    host: &Host,
    options: &QuorumOptions,
) -> Result<(LogStore, MachineWorker), RaftError> {
    let metrics = Arc::new(RaftMetrics::default());
    let format = FormatRecord::new(host, options.node_id, cluster());
    let store = open_log(host, options, &metrics).await?;
    let machine = open_machine(host, options, &format, &store, &metrics)?;
    Ok((store, MachineWorker(Arc::new(machine))))
}

/// Registers the n-th life. A repeat of it answers with the session that the first one got.
pub(crate) fn register(n: u64) -> Envelope {
    register_from(n, "localhost".to_owned())
}

pub(crate) fn register_from(n: u64, host: String) -> Envelope {
    let mut life = [7; 16];
    life[..8].copy_from_slice(&(n + 1).to_be_bytes());
    Envelope::unnumbered(Command::RegisterSession(RegisterSession {
        node_id: i32::try_from(n % (1 << 20)).expect("small"),
        life: DirectoryId::from(uuid::Uuid::from_bytes(life)),
        host,
        port: 9092,
        home_store: StoreId(1),
        feature_level: isobar_metadata::command::FEATURE_LEVEL,
        ..RegisterSession::default()
    }))
}

pub(crate) fn session_of(result: &CommandResult) -> Option<u64> {
    match result {
        CommandResult::Session(granted) => Some(granted.session.0),
        _ => None,
    }
}
