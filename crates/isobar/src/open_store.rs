//! Opening a node's store: is it fit, and is it this cluster's?
//!
//! A node that is being formatted probes its store (`isobar_store::Probe`) and makes the cluster's marker there; a store that is
//! unfit, out of reach or another cluster's ends the start with its words. A known node looks at the marker:
//! - ours: it starts;
//! - another's, or none where one had been: it refuses to start;
//! - none, and none was ever made (data directories from before there were markers): it makes it;
//! - the store is out of reach: it starts, because acknowledgements do not need the store, but nothing is written to
//!   the bucket until the marker has been seen ([`verify_later`]);
//! - the store answers that a person has to act (no bucket, wrong credentials, a wrong clock): it refuses to start.

use std::time::Duration;

use isobar_host::{Host, Task};
use isobar_store::{Bucket, MarkerFound, Probe, StoreError};

/// Rounds of racing creates at format.
const RACE_ROUNDS: usize = 6;
/// How long a known node's start waits for its store.
const START_PATIENCE: Duration = Duration::from_secs(3);
/// Beyond any deadline of the bucket's.
const FORMAT_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a store that did not answer.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// What the data directory knows about its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Known {
    /// The node is being formatted.
    Fresh,
    /// Formatted before there were markers.
    Unmarked,
    /// The marker was made or seen.
    Marked,
}

/// Checks `bucket`, and makes it the cluster's if it is nobody's. `true`: its marker was seen or made. `false`: the
/// store did not answer, and its writes are held until [`verify_later`] has seen the marker.
pub(crate) async fn verify(bucket: &Bucket, cluster_id: &str, known: Known) -> Result<bool, StoreError> {
    // A known node does not wait long: its clients need the WAL only.
    let patience = if known == Known::Fresh { FORMAT_PATIENCE } else { START_PATIENCE };
    let looked = tokio::time::timeout(patience, bucket.check_marker(cluster_id)).await;
    let found = match looked {
        Ok(Ok(found)) => found,
        Ok(Err(error)) if known == Known::Fresh || !error.is_transient() => return Err(error),
        answer => {
            let error = answer.map_or_else(|_| "no answer yet".to_owned(), |found| error_text(&found));
            tracing::error!(
                error,
                "the store cannot be looked at; records are acknowledged and wait in the WAL, what lies in the store cannot \
                 be read"
            );
            bucket.hold_writes();
            return Ok(false);
        }
    };
    match (found, known) {
        (MarkerFound::Ours, _) => {}
        (MarkerFound::None, Known::Marked) => return Err(lost_marker(cluster_id)),
        (MarkerFound::None, Known::Fresh) => {
            if bucket.any_below("data").await? {
                return Err(StoreError::WrongBucket(
                    "the bucket holds objects below data/ but no cluster marker, so they may be another cluster's. Name \
                     an empty prefix"
                        .to_owned(),
                ));
            }
            Probe::new(bucket, RACE_ROUNDS).run().await?;
            bucket.claim(cluster_id).await?;
        }
        (MarkerFound::None, Known::Unmarked) => bucket.claim(cluster_id).await?,
    }
    bucket.allow_writes();
    Ok(true)
}

fn error_text(found: &Result<MarkerFound, StoreError>) -> String {
    found.as_ref().err().map_or_else(String::new, ToString::to_string)
}

fn lost_marker(cluster_id: &str) -> StoreError {
    StoreError::WrongBucket(format!(
        "the bucket has no cluster marker, and cluster {cluster_id} had made one: this is another bucket or prefix, or \
         it was emptied. Correct the store's URL; if the objects are lost, so are the records in them"
    ))
}

/// Looks at the marker until the store answers, then lets writes go or refuses them for good. `seen` is called once the
/// bucket is known to be ours.
pub(crate) fn verify_later(
    host: &Host,
    bucket: Bucket,
    cluster_id: String,
    known: Known,
    seen: impl FnOnce() + Send + 'static,
) -> Task {
    host.spawn("store-verify", async move {
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let verified = match bucket.check_marker(&cluster_id).await {
                Ok(MarkerFound::Ours) => Ok(()),
                Ok(MarkerFound::None) if known == Known::Unmarked => {
                    // The claim is a write.
                    bucket.allow_writes();
                    let claimed = bucket.claim(&cluster_id).await;
                    if claimed.is_err() {
                        bucket.hold_writes();
                    }
                    claimed
                }
                Ok(MarkerFound::None) => Err(lost_marker(&cluster_id)),
                Err(error) => Err(error),
            };
            match verified {
                Ok(()) => {
                    bucket.allow_writes();
                    tracing::info!("the store answers and is this cluster's");
                    seen();
                    return;
                }
                Err(error @ (StoreError::WrongBucket(_) | StoreError::Damaged { .. })) => {
                    tracing::error!(%error, "nothing will be uploaded: stop this node and correct its store");
                    bucket.refuse_writes(&error.to_string());
                    return;
                }
                // Logged by the bucket, once for each change of its state.
                Err(error) => tracing::debug!(%error, "the store cannot be looked at yet"),
            }
        }
    })
}
