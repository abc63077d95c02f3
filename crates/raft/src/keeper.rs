//! Takes snapshots when the log has grown enough, and lets the log go up to the older of the two kept.
//!
//! Outside openraft, because openraft stops for good when a snapshot cannot be written; here a full disk only means that
//! the log stays longer and that the next try comes later.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, Spawner, watch};

use crate::log_store::LogStore;
use crate::machine::Machine;
use crate::member::on_runtime;
use crate::propose::Raft;

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// See the module. Clones are the same keeper.
#[derive(Clone)]
pub(crate) struct Keeper {
    pub(crate) host: Host,
    pub(crate) spawner: Spawner,
    pub(crate) machine: Arc<Machine>,
    pub(crate) raft: Raft,
    pub(crate) store: LogStore,
}

impl Keeper {
    /// Runs until `stop` is true or its sender is gone.
    pub(crate) async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut retry = RETRY_FIRST;
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = self.machine.snapshot_due.notified() => {}
            }
            self.purge().await;
            if !self.machine.wants_snapshot() {
                continue;
            }
            if self.take().await {
                retry = RETRY_FIRST;
                continue;
            }
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(retry) => {}
            }
            retry = (retry * 2).min(RETRY_MAX);
            self.machine.snapshot_due.notify_one();
        }
    }

    /// Takes one snapshot now. False if it could not be written. On the raft runtime only.
    pub(crate) async fn take(&self) -> bool {
        let Some(view) = self.machine.freeze() else { return true };
        match self.machine.write(view).await {
            Ok(stored) => {
                tracing::info!(path = %stored.path.display(), bytes = stored.len_bytes, "metadata snapshot written");
            }
            Err(error) => {
                tracing::error!(%error, "the metadata snapshot could not be written; the log stays");
                return false;
            }
        }
        // If openraft has stopped meanwhile, the snapshot is there all the same.
        if self.raft.trigger().snapshot().await.is_ok() {
            self.purge().await;
        }
        true
    }

    /// The same from any runtime.
    pub(crate) async fn take_now(&self) -> bool {
        let keeper = self.clone();
        on_runtime(&self.host, &self.spawner, async move { keeper.take().await }).await.unwrap_or(false)
    }

    /// Lets the log go as far as the older snapshot and the archive allow. On the raft runtime only.
    async fn purge(&self) {
        let Some(allowed) = self.machine.snapshots.purgeable() else { return };
        let upto = self.machine.archive.allows(allowed.index, self.store.bytes());
        if self.store.purged().map_or(0, |id| id.index) < upto {
            // An error: openraft has stopped.
            let _ = self.raft.trigger().purge_log(upto).await;
        }
    }

    /// The archive has moved on: has the log let go.
    pub(crate) fn purge_soon(&self) {
        self.machine.snapshot_due.notify_one();
    }
}
