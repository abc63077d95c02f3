//! Listings with sizes, for `fsck`.

use std::time::Duration;

use futures_util::TryStreamExt;
use object_store::ObjectStore;
use tokio::time::timeout;

use super::{Backend, Bucket};
use crate::StoreError;

/// A listing is asked for as often.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// Of one attempt: a listing may have many pages.
const PATIENCE: Duration = Duration::from_secs(120);

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
        let mut why = String::new();
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(PAUSE * attempt).await;
            }
            let prefix = self.key(dir);
            let page = store.list(Some(&prefix)).try_collect::<Vec<_>>();
            match timeout(PATIENCE, page).await {
                Ok(Ok(objects)) => {
                    let mut listed: Vec<ListedObject> = objects
                        .into_iter()
                        .filter_map(|meta| {
                            let name = meta.location.filename()?;
                            Some(ListedObject { key: format!("{dir}/{name}"), size_bytes: meta.size })
                        })
                        .collect();
                    listed.sort_by(|a, b| a.key.cmp(&b.key));
                    return Ok(listed);
                }
                Ok(Err(error)) => why = error.to_string(),
                Err(_) => why = format!("no answer in {} s", PATIENCE.as_secs()),
            }
        }
        Err(StoreError::DidNotHappen { op: "list", key: dir.to_owned(), why })
    }
}
