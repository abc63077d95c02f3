//! Whom a new stream is written to: those who answer now, by the rules of [`crate::ensemble`].

use std::collections::BTreeSet;
use std::time::Duration;

use isobar_metadata::Image;
use isobar_metadata::ids::DirectoryId;
use tokio::time::{Instant, sleep_until};

use super::QuorumWal;
use super::read::Race;
use crate::ensemble::{Candidate, TooFewReplicas, choose_ensemble};

/// How long a choice waits for a replica that is not connected, if the others suffice.
const CONNECT_PATIENCE: Duration = Duration::from_millis(100);

impl QuorumWal {
    /// Chooses the ensemble of a new stream among the directories of the image that take streams, of those that answer within
    /// [`crate::RemoteOptions::probe_timeout`]; who is not connected, or was too slow of late, is not waited for so long if the others
    /// suffice. `asker`: see [`choose_ensemble`].
    pub async fn choose(&self, image: &Image, asker: u64) -> Result<Vec<DirectoryId>, TooFewReplicas> {
        choose_ensemble(&self.candidates(image, asker).await, image.write_quorum(), asker)
    }

    /// The same of those only that have room and were not too slow of late: nobody leaves a stream that works for one that has to
    /// do with less.
    pub async fn choose_good(&self, image: &Image, asker: u64) -> Result<Vec<DirectoryId>, TooFewReplicas> {
        let mut candidates = self.candidates(image, asker).await;
        candidates.retain(|candidate| candidate.has_room && !candidate.is_suspect);
        choose_ensemble(&candidates, image.write_quorum(), asker)
    }

    /// Everybody, and what came of asking them.
    async fn candidates(&self, image: &Image, asker: u64) -> Vec<Candidate> {
        let shared = &self.shared;
        let write_quorum = image.write_quorum();
        let mut candidates = Vec::new();
        let mut probes = Race::default();
        // Those that are worth waiting for.
        let mut awaited = BTreeSet::new();
        for (place, (record, handle)) in (image.directories())
            .filter(|record| record.takes_streams())
            .filter_map(|record| Some((record, shared.handle(record.directory).ok()?)))
            .enumerate()
        {
            candidates.push(Candidate {
                directory: record.directory,
                node_id: record.node_id,
                zone: record.zone.clone(),
                is_local: handle.replica.is_local(),
                is_connected: false,
                has_room: false,
                is_suspect: handle.is_suspect(),
            });
            if handle.replica.is_connected() && !handle.is_suspect() {
                awaited.insert(place);
            }
            probes.add(async move { (place, handle.replica.probe().await) });
        }
        let began = Instant::now();
        while !probes.is_empty() {
            let suffices = awaited.is_empty() && choose_ensemble(&candidates, write_quorum, asker).is_ok();
            let patience = shared.options.remote.probe_timeout;
            let patience = if suffices { patience.min(CONNECT_PATIENCE) } else { patience };
            let (place, answer) = tokio::select! {
                biased;
                answer = probes.next() => answer,
                () = sleep_until(began + patience) => break,
            };
            awaited.remove(&place);
            match answer {
                Ok(has_room) => {
                    candidates[place].is_connected = true;
                    candidates[place].has_room = has_room;
                }
                Err(error) => {
                    tracing::debug!(%error, directory = %candidates[place].directory, "no candidate")
                }
            }
        }
        candidates
    }
}
