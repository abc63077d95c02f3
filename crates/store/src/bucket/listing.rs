//! Listings with sizes, for `fsck`.

use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::ObjectStore;

use super::{Backend, Bucket, Failure, Seen};
use crate::StoreError;

/// Of one attempt: a listing may have many pages.
const PATIENCE: Duration = Duration::from_secs(120);
/// Of a listing with its retries.
const TOTAL: Duration = Duration::from_secs(300);

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedObject {
    /// Its key, without the bucket's prefix.
    pub key: String,
    /// Its length.
    pub size_bytes: u64,
}

impl Bucket {
    /// The objects right below `dir`, sorted by key.
    pub async fn list_sized(&self, dir: &str) -> Result<Vec<ListedObject>, StoreError> {
        let Backend::Cloud(store) = &self.inner.backend else {
            let mut listed = Vec::new();
            for key in self.list(dir).await? {
                match self.size(&key).await {
                    Ok(size_bytes) => listed.push(ListedObject { key, size_bytes }),
                    // Deleted meanwhile.
                    Err(StoreError::NotFound(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            return Ok(listed);
        };
        let attempt = |seen: Seen| async move {
            let page = store.list(Some(&self.key(dir))).try_collect::<Vec<_>>().await;
            let objects = page.map_err(|error| Failure::of_store(&error, false, &seen.lock()))?;
            let mut listed: Vec<ListedObject> = objects
                .into_iter()
                .filter_map(|meta| {
                    let name = meta.location.filename()?;
                    Some(ListedObject { key: format!("{dir}/{name}"), size_bytes: meta.size })
                })
                .collect();
            listed.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(listed)
        };
        let _permit = self.permit("list", dir, 0, TOTAL).await?;
        self.read_within("list", dir, (PATIENCE, TOTAL), attempt).await
    }
}
