//! Whose a bucket is.
//!
//! The object `cluster` right below the prefix names the cluster that writes there. It is made by a create when a node is
//! formatted, so of two clusters that are pointed at one prefix one is refused, and looked at before anything else is written
//! at each start. Object ids are counted from the same start in every cluster: without it two of them would overwrite each
//! other's objects.
//!
//! Layout: JSON, because people look at it with their cloud's tools: `{"version": 1, "cluster_id": "…", "writer": "…",
//! "created_ms": …}`. `writer` is random, so that a repeated create knows its own bytes. Fields may come; a higher version
//! means that this binary must not write here.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bucket::{Bucket, Created};
use crate::{Cause, StoreError};

/// Its key.
pub const MARKER_KEY: &str = "cluster";
const VERSION: u32 = 1;
const LONGEST_BYTES: u64 = 64 << 10;

/// What the object `cluster` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Of this format, and of the layout of the bucket.
    pub version: u32,
    /// Kafka's form of the cluster's id.
    pub cluster_id: String,
    /// Random: of the process that made it.
    pub writer: String,
    /// When, wall-clock milliseconds.
    pub created_ms: i64,
}

/// What [`Bucket::check_marker`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MarkerFound {
    /// The bucket is this cluster's.
    Ours,
    /// Nobody's.
    None,
}

impl Bucket {
    /// The marker, if there is one.
    pub async fn read_marker(&self) -> Result<Option<Marker>, StoreError> {
        let bytes = match self.get_up_to(MARKER_KEY, 0..LONGEST_BYTES).await {
            Ok(bytes) => bytes,
            Err(StoreError::NotFound(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let damaged = |why: String| StoreError::Damaged { key: MARKER_KEY.to_owned(), why };
        let marker: Marker = serde_json::from_slice(&bytes)
            .map_err(|error| damaged(format!("this is no cluster marker of Isobar: {error}")))?;
        if marker.version > VERSION {
            return Err(StoreError::WrongBucket(format!(
                "the bucket was formatted by a newer isobar (version {}; this one writes {VERSION}). Run that release",
                marker.version
            )));
        }
        Ok(Some(marker))
    }

    /// Whether the bucket is this cluster's; another's is an error that names both.
    pub async fn check_marker(&self, cluster_id: &str) -> Result<MarkerFound, StoreError> {
        match self.read_marker().await? {
            None => Ok(MarkerFound::None),
            Some(marker) if marker.cluster_id == cluster_id => Ok(MarkerFound::Ours),
            Some(marker) => Err(other_cluster(&marker, cluster_id)),
        }
    }

    /// Makes the bucket this cluster's, unless it is another's.
    pub async fn claim(&self, cluster_id: &str) -> Result<(), StoreError> {
        let writer = self.host().random_uuid().iter().map(|byte| format!("{byte:02x}")).collect();
        let marker = Marker {
            version: VERSION,
            cluster_id: cluster_id.to_owned(),
            writer,
            created_ms: self.host().now_ms(),
        };
        let bytes = serde_json::to_vec(&marker).map_err(|error| StoreError::Config(error.to_string()))?;
        match self.create(MARKER_KEY, Bytes::from(bytes)).await? {
            Created::Mine => Ok(()),
            Created::Exists => match self.check_marker(cluster_id).await? {
                MarkerFound::Ours => Ok(()),
                MarkerFound::None => Err(StoreError::DidNotHappen {
                    op: "create",
                    key: MARKER_KEY.to_owned(),
                    cause: Cause::Other,
                    why: "the cluster marker was there and went".to_owned(),
                }),
            },
        }
    }
}

fn other_cluster(marker: &Marker, ours: &str) -> StoreError {
    StoreError::WrongBucket(format!(
        "{}: it is of cluster {}, and this is cluster {ours}. {}",
        Cause::OtherCluster.words(),
        marker.cluster_id,
        "Give each cluster a bucket or prefix of its own; or start with the data directory that belongs to this bucket"
    ))
}
