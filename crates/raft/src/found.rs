//! Writes the directory of a member that begins with a given state: what recovery puts in the place of lost ones.
//!
//! Crash cases: a directory that is not finished has a `FORMAT` that is not bootstrapped. The caller keeps it from being
//! started and begins anew in an empty one; nothing here is repeated in place.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_host::Host;
use isobar_metadata::StateMachine;
use openraft::storage::RaftLogStorage as _;

use crate::error::RaftError;
use crate::format::FormatRecord;
use crate::metrics::RaftMetrics;
use crate::open::open_log;
use crate::options::QuorumOptions;
use crate::snapshots::Snapshots;
use crate::types::{Membership, Peer, SnapshotMeta, StoredMembership, Vote, log_id};

/// The term that the state's last entry is given: the first election is of the next.
const TERM: u64 = 1;

/// Formats `options.dir`, which must be empty, for a group of this one voter whose log begins after what `state` has applied.
/// `incarnation` is the directory's new random id. [`crate::Quorum::start`] goes on from there.
pub async fn found(
    host: &Host,
    options: &QuorumOptions,
    incarnation: [u8; 16],
    state: &StateMachine,
) -> Result<(), RaftError> {
    let dir = &options.dir;
    if FormatRecord::read(host, dir)?.is_some() {
        let what = "it is formatted already".to_owned();
        return Err(RaftError::WrongDirectory { path: dir.clone(), what });
    }
    host.disk().create_dir_all(dir).map_err(RaftError::disk(dir))?;
    let cluster = state.view().format().as_ref().clone();
    let mut format = FormatRecord::of(host, options.node_id, incarnation, cluster);
    format.write(host, dir)?;

    let last = log_id(TERM, options.node_id, state.applied_index());
    let me = Peer { incarnation, address: options.address.clone() };
    let membership = Membership::new(
        vec![[options.node_id].into_iter().collect()],
        BTreeMap::from([(options.node_id, me)]),
    )
    .map_err(|error| RaftError::BadOption(error.to_string()))?;
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), membership),
    };
    let snapshot_dir = dir.join("snapshots");
    let (snapshots, _) = Snapshots::open(host, &snapshot_dir, |_, _| Ok(()))?;
    let frozen = state.freeze();
    let written = host.run_blocking(move || snapshots.write(&meta, |put| frozen.encode(put))).await;
    written
        .unwrap_or_else(|| Err(std::io::Error::other("the snapshot writer died")))
        .map_err(RaftError::disk(snapshot_dir))?;

    let mut log = open_log(host, options, &Arc::new(RaftMetrics::default())).await?;
    let log_failed = RaftError::disk(dir.join("log"));
    let begun = async {
        log.save_committed(Some(last)).await?;
        log.purge(last).await?;
        // Synced when it returns, and with it the frames before it.
        log.save_vote(&Vote::new_committed(TERM, options.node_id)).await
    };
    let begun = begun.await;
    log.close().await;
    begun.map_err(log_failed)?;
    format.bootstrapped = true;
    format.write(host, dir)
}
