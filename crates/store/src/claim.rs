//! Who may write the cluster's history: the claims of its incarnations.
//!
//! Owns: `claim/<incarnation, 3 digits>` in the archive store, one for each incarnation of the cluster, never removed and never
//! changed. It is made by a create, so of two that want an incarnation one gets it.
//!
//! Layout: JSON, because people look at it: `{"version": 1, "cluster_id": "…", "incarnation": 0, "owner": "…", "created_ms": …}`.
//! `owner` is a random id that the owner keeps in its metadata directory.
//!
//! Invariants
//! 1. Incarnations are claimed one after the other, so there is a later one if the next one is there: one request tells.
//! 2. A guard that has seen a later claim never says yes again.
//!
//! What it cannot do: between a look and the write after it some time passes. What is written then lies in the archive of an
//! incarnation that nobody reads any more, or is the delete of an object that was unreferenced at the cut already.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::{Bucket, Created, StoreError};

const DIR: &str = "claim";
const VERSION: u32 = 1;
const LONGEST_BYTES: u64 = 64 << 10;

/// What an object `claim/…` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of this format.
    pub version: u32,
    /// The cluster.
    pub cluster_id: String,
    /// Its incarnation.
    pub incarnation: u32,
    /// Who has it: 32 hexadecimal digits.
    pub owner: String,
    /// Since when, wall-clock milliseconds.
    pub created_ms: i64,
}

/// Why a claim does not hold, or is not known to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It is another's: this process must acknowledge nothing more.
    #[error("{0}")]
    Lost(String),
    /// The store did not say: try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Claim {
    /// As it was given to [`claim`]. `None`: damaged.
    pub fn owner(&self) -> Option<[u8; 16]> {
        u128::from_str_radix(&self.owner, 16).ok().map(u128::to_be_bytes)
    }
}

fn key(incarnation: u32) -> String {
    format!("{DIR}/{incarnation:03}")
}

fn hex(owner: [u8; 16]) -> String {
    owner.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The claim of an incarnation, if there is one.
pub async fn read_claim(bucket: &Bucket, incarnation: u32) -> Result<Option<Claim>, StoreError> {
    let key = key(incarnation);
    let bytes = match bucket.get_up_to(&key, 0..LONGEST_BYTES).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = |why: String| StoreError::Damaged { key: key.clone(), why };
    let claim: Claim = serde_json::from_slice(&bytes)
        .map_err(|error| damaged(format!("this is no claim of Isobar: {error}")))?;
    if claim.version > VERSION {
        return Err(StoreError::Config(format!(
            "{key} was written by a newer isobar (version {}; this one knows {VERSION}). Run that release",
            claim.version
        )));
    }
    Ok(Some(claim))
}

/// Every incarnation that was claimed, ascending.
pub async fn claimed(bucket: &Bucket) -> Result<Vec<u32>, StoreError> {
    let names = bucket.list(DIR).await?;
    let mut found: Vec<u32> = names.iter().filter_map(|name| name.rsplit_once('/')?.1.parse().ok()).collect();
    found.sort_unstable();
    Ok(found)
}

/// Claims an incarnation for `owner`. False: another has it.
pub async fn claim(
    bucket: &Bucket,
    cluster_id: &str,
    incarnation: u32,
    owner: [u8; 16],
    now_ms: i64,
) -> Result<bool, StoreError> {
    let claim = Claim {
        version: VERSION,
        cluster_id: cluster_id.to_owned(),
        incarnation,
        owner: hex(owner),
        created_ms: now_ms,
    };
    let text = serde_json::to_vec_pretty(&claim).map_err(|error| StoreError::Config(error.to_string()))?;
    if bucket.create(&key(incarnation), Bytes::from(text)).await? == Created::Mine {
        return Ok(true);
    }
    // An earlier attempt of ours may have got through without an answer.
    let found = read_claim(bucket, incarnation).await?;
    Ok(found.is_some_and(|found| found.owner == claim.owner))
}

/// Looks whether an incarnation is still its owner's. Clones are the same guard.
#[derive(Debug, Clone)]
pub struct ClaimGuard {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bucket: Bucket,
    cluster_id: String,
    incarnation: u32,
    owner: [u8; 16],
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    mine: bool,
    lost: Option<String>,
}

impl ClaimGuard {
    /// Of the incarnation that a metadata directory is in; `owner` is the directory's own random id.
    pub fn new(bucket: Bucket, cluster_id: &str, incarnation: u32, owner: [u8; 16]) -> Self {
        let cluster_id = cluster_id.to_owned();
        Self { inner: Arc::new(Inner { bucket, cluster_id, incarnation, owner, seen: Mutex::default() }) }
    }

    /// One request, once the own claim was seen. Makes the own claim where there is none: a cluster that was formatted
    /// just now, or by a release that made none.
    pub async fn check(&self, now_ms: i64) -> Result<(), ClaimError> {
        let inner = &*self.inner;
        let mine = {
            let seen = inner.seen.lock();
            if let Some(why) = &seen.lost {
                return Err(ClaimError::Lost(why.clone()));
            }
            seen.mine
        };
        let next = inner.incarnation + 1;
        match inner.bucket.size(&key(next)).await {
            Ok(_) => return Err(self.lost(self.superseded().await)),
            Err(StoreError::NotFound(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if mine {
            return Ok(());
        }
        let claim = match read_claim(&inner.bucket, inner.incarnation).await? {
            Some(claim) => Some(claim),
            None if claim(&inner.bucket, &inner.cluster_id, inner.incarnation, inner.owner, now_ms)
                .await? =>
            {
                None
            }
            None => read_claim(&inner.bucket, inner.incarnation).await?,
        };
        if let Some(claim) = claim {
            if claim.cluster_id != inner.cluster_id {
                return Err(self.lost(format!(
                    "the store belongs to cluster {}, not to {}: point this node at its own bucket or prefix",
                    claim.cluster_id, inner.cluster_id
                )));
            }
            if claim.owner != hex(inner.owner) {
                return Err(self.lost(format!(
                    "{} in the store {} is held by another metadata directory ({}; this node's node.json says {}): two copies of \
                     cluster {} must not run. Stop the other one, or remove this directory",
                    key(inner.incarnation),
                    inner.bucket.name(),
                    claim.owner,
                    hex(inner.owner),
                    inner.cluster_id
                )));
            }
        }
        inner.seen.lock().mine = true;
        Ok(())
    }

    async fn superseded(&self) -> String {
        let inner = &*self.inner;
        // Only for the message; the claim's being there says all.
        let since = match read_claim(&inner.bucket, inner.incarnation + 1).await {
            Ok(Some(claim)) => format!(" at {} ms after 1970", claim.created_ms),
            _ => String::new(),
        };
        format!(
            "cluster {} was recovered elsewhere{since}: {} in the store {} is claimed, this node is of incarnation {}. It \
             has stopped acknowledging; what it acknowledged since then is not in the recovered cluster. Point clients at \
             the recovered node and remove this node's data directory",
            inner.cluster_id,
            key(inner.incarnation + 1),
            inner.bucket.name(),
            inner.incarnation
        )
    }

    fn lost(&self, why: String) -> ClaimError {
        self.inner.seen.lock().lost.get_or_insert_with(|| why.clone());
        ClaimError::Lost(why)
    }
}
