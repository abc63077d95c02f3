//! The background jobs of a node's store: retention, compaction, index objects.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_metadata::StoreId;
use isobar_store::{
    Bucket, Class, Compactor, CompactorOptions, IndexReader, Indexer, IndexerOptions, Proposer, Retainer,
    RetainerOptions, RetainerParts,
};

/// Settings of the jobs that have no name in Kafka.
#[derive(Debug, Clone, Default)]
pub struct JobOptions {
    /// When objects are merged.
    pub compaction: CompactorOptions,
    /// When extents leave metadata's memory.
    pub index: IndexerOptions,
}

/// The running jobs.
pub(crate) struct Jobs {
    retainer: Retainer,
    compactor: Compactor,
    indexer: Indexer,
}

impl Jobs {
    pub(crate) fn start(
        host: &Host,
        store: StoreId,
        bucket: &Bucket,
        proposer: &Arc<dyn Proposer>,
        index: IndexReader,
        retention_interval: Duration,
        options: &JobOptions,
    ) -> Self {
        let parts = RetainerParts {
            host: host.clone(),
            proposer: Arc::clone(proposer),
            index,
            metrics: bucket.metrics().clone(),
        };
        let jobs = bucket.with_class(Class::Compaction);
        let compaction = CompactorOptions { store, ..options.compaction.clone() };
        let indexing = IndexerOptions { store, ..options.index.clone() };
        Self {
            retainer: Retainer::start(parts, RetainerOptions { interval: retention_interval }),
            compactor: Compactor::start(host, jobs.clone(), Arc::clone(proposer), compaction),
            indexer: Indexer::start(host, jobs, Arc::clone(proposer), indexing),
        }
    }

    /// What is under way is given up; its ids expire.
    pub(crate) async fn stop(self) {
        self.retainer.stop().await;
        self.compactor.stop().await;
        self.indexer.stop().await;
    }
}
