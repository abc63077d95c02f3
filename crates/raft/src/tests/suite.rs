//! openraft's own suite for storage, on a real directory and on the simulated disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use parking_lot::Mutex;

use super::{open_stores, small_options};
use crate::log_store::LogStore;
use crate::machine::MachineWorker;
use crate::runtime::Runtime;
use crate::types::Types;

/// Builds each store in a directory of its own.
struct Builder {
    host: Host,
    root: PathBuf,
    built: AtomicU64,
}

impl Builder {
    fn new(host: Host, root: PathBuf) -> Self {
        Self { host, root, built: AtomicU64::new(0) }
    }
}

impl StoreBuilder<Types, LogStore, MachineWorker> for Builder {
    async fn build(&self) -> Result<((), LogStore, MachineWorker), StorageError<Types>> {
        let dir = self.root.join(self.built.fetch_add(1, Ordering::Relaxed).to_string());
        let (store, machine) =
            open_stores(&self.host, &small_options(&dir)).await.expect("an empty directory opens");
        Ok(((), store, machine))
    }
}

#[test]
fn openrafts_suite_passes_on_a_real_disk() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let builder = Builder::new(Host::real(), dir.path().to_path_buf());
    runtime
        .block_on(Runtime::scope(1, async move { Suite::test_all(builder).await }))
        .expect("the suite passes");
}

#[test]
fn openrafts_suite_passes_on_the_simulated_disk() {
    let mut world = World::new(7);
    world.add_node("a", Arc::new(SimDisk::new(7)));
    let outcome = Arc::new(Mutex::new(None));
    let told = Arc::clone(&outcome);
    world.boot("a", |host| {
        Runtime::scope(7, async move {
            let result = Suite::test_all(Builder::new(host, PathBuf::from("/suite"))).await;
            *told.lock() = Some(result.map_err(|error| error.to_string()));
        })
    });
    for _ in 0..100_000 {
        if outcome.lock().is_some() {
            break;
        }
        world.step();
    }
    assert_eq!(*outcome.lock(), Some(Ok(())));
}
