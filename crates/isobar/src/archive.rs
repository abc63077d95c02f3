//! The metadata archive in the archive store: raft's trait over a bucket, behind the incarnation's claim.

use async_trait::async_trait;
use bytes::Bytes;
use isobar_host::Host;
use isobar_raft::archive::{Archive, ArchiveError};
use isobar_store::{Bucket, ClaimError, ClaimGuard, StoreError};

/// No object of the archive is longer: a part of a snapshot, or a log object with one large entry.
const LONGEST_BYTES: u64 = 64 << 20;

/// See the module.
pub(crate) struct StoreArchive {
    pub(crate) host: Host,
    pub(crate) bucket: Bucket,
    /// `None`: whoever recovers reads, and writes under a claim that it has just made.
    pub(crate) guard: Option<ClaimGuard>,
}

fn failed(error: StoreError) -> ArchiveError {
    match error {
        StoreError::NotFound(name) => ArchiveError::NotFound(name),
        StoreError::Damaged { key, why } => ArchiveError::Damaged { name: key, why },
        other => ArchiveError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Archive for StoreArchive {
    async fn put(&self, name: &str, parts: Vec<Bytes>) -> Result<(), ArchiveError> {
        self.bucket.put(name, parts).await.map_err(failed)
    }

    async fn get(&self, name: &str) -> Result<Bytes, ArchiveError> {
        self.bucket.get_up_to(name, 0..LONGEST_BYTES).await.map_err(failed)
    }

    async fn list(&self, dir: &str) -> Result<Vec<String>, ArchiveError> {
        self.bucket.list(dir).await.map_err(failed)
    }

    async fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        self.bucket.delete(name).await.map_err(failed)
    }

    async fn check(&self) -> Result<(), ArchiveError> {
        let Some(guard) = &self.guard else { return Ok(()) };
        guard.check(self.host.now_ms()).await.map_err(|error| match error {
            ClaimError::Lost(why) => ArchiveError::Lost(why),
            ClaimError::Store(error) => failed(error),
        })
    }
}
