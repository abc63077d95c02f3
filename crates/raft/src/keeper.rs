//! Takes snapshots when the log has grown enough, and lets the log go up to the older of the two kept.
//!
//! Outside openraft, because openraft stops for good when a snapshot cannot be written; here a full disk only means that
//! the log stays longer and that the next try comes later.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::watch;

use crate::machine::Machine;
use crate::propose::Raft;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// Runs until `stop` is true or its sender is gone.
pub(crate) async fn run(machine: Arc<Machine>, raft: Raft, mut stop: watch::Receiver<bool>) {
    let mut retry = RETRY_FIRST;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = machine.snapshot_due.notified() => {}
        }
        if !machine.wants_snapshot() {
            continue;
        }
        if take(&machine, &raft).await {
            retry = RETRY_FIRST;
            continue;
        }
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(retry) => {}
        }
        retry = (retry * 2).min(RETRY_MAX);
        machine.snapshot_due.notify_one();
    }
}

/// Takes one snapshot now. False if it could not be written.
pub(crate) async fn take(machine: &Arc<Machine>, raft: &Raft) -> bool {
    let Some(view) = machine.freeze() else { return true };
    match machine.write(view).await {
        Ok(stored) => {
            tracing::info!(path = %stored.path.display(), bytes = stored.len_bytes, "metadata snapshot written");
        }
        Err(error) => {
            tracing::error!(%error, "the metadata snapshot could not be written; the log stays");
            return false;
        }
    }
    // If openraft has stopped meanwhile, the snapshot is there all the same.
    if raft.trigger().snapshot().await.is_ok()
        && let Some(upto) = machine.snapshots.purgeable()
    {
        let _ = raft.trigger().purge_log(upto.index).await;
    }
    true
}
