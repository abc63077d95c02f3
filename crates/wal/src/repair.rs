//! Gives chunks that stay long in the WAL the copies that they lack: the store is down, and a replica was lost or left behind.
//!
//! Owns: one task beside a replica. It looks at the closed streams of the image; what lies in one of them longer than
//! [`RepairOptions::patience`], because it could not be uploaded, is fetched from the others whole and made durable here: if the
//! ensemble names this replica, and it lacks chunks; or if the ensemble names one that is lost, and this one is the one to take
//! its place ([`plan`]), which metadata is told then ([`ReplaceReplica`]). Chunks keep their stream and number, so no extent
//! moves and no reader sees a change.
//!
//! Invariants
//! 1. Only closed streams: what is live there only becomes less. So a replica that has all that is live in one image has all
//!    that is live in any later one, and may be named in the ensemble, though whom it replaces had something alone.
//! 2. [`ReplaceReplica`] is proposed only after all of that is durable here.
//! 3. A chunk is taken up only while an image says that it is live that is as new as what this replica has followed, so that its
//!    release is still to come and nothing stays here for ever.
//! 4. Every CRC is checked on the way: at whom it comes from, by the transport, and of the frame and each batch here.
//! 5. At most [`AT_ONCE`] chunks are on their way, and [`RepairOptions::bytes_per_s`] on average: clients come first. Nor is the
//!    room used that is kept for them.
//!
//! Failure: a stream of which a chunk cannot be had is left for the next look. Whether the proposal was applied shows in the image.
//!
//! Crash: what was copied for a stream that is still live is found and kept ([`LocalReplica::reconcile`]), and the next life goes on.
//!
//! Accepted leaks: two that see others differently may both copy; of the one that came late the copies stay until the stream's
//! chunks are released, as with one that was replaced and comes back.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use isobar_host::{Host, Task};
use isobar_metadata::Image;
use isobar_metadata::command::ReplaceReplica;
use isobar_metadata::ids::{DirectoryId, StreamId};
use isobar_metadata::record::StreamRecord;
use tokio::time::{Instant, sleep};

use crate::quorum::{Directories, Found};
use crate::remote::{RemoteOptions, RemoteReplica};
use crate::replica::Filled;
use crate::{Chunk, LocalReplica, Replica, WalError};
use plan::{Known, Role, Standing, lost_of, role};

/// Chunks on their way here.
const AT_ONCE: usize = 8;
/// The feature level of [`ReplaceReplica`].
const REPLACE_LEVEL: u32 = 4;

/// Settings of the repairer.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Between two looks.
    pub interval: Duration,
    /// How long a stream is closed and not uploaded, and how long a replica is silent, until something is done.
    pub patience: Duration,
    /// Bytes copied in a second, at most.
    pub bytes_per_s: u64,
    /// How other replicas are spoken with.
    pub remote: RemoteOptions,
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            patience: Duration::from_secs(10),
            bytes_per_s: 32 << 20,
            remote: RemoteOptions::default(),
        }
    }
}

/// Metadata, as the repairer needs it.
#[async_trait]
pub trait Truth: Send + Sync {
    /// As of now: at least as new as what the replica beside it has followed.
    fn image(&self) -> Image;
    /// Proposes it; `Err` says why it was refused, or that nobody knows.
    async fn replace(&self, replace: ReplaceReplica) -> Result<(), String>;
}

/// What the repairer works with.
pub struct RepairParts {
    /// The machine.
    pub host: Host,
    /// The replica beside it.
    pub replica: LocalReplica,
    /// Where the others are.
    pub directories: Arc<dyn Directories>,
    /// Metadata.
    pub truth: Arc<dyn Truth>,
}

/// Starts the task. It ends when it is aborted.
pub fn start_repairer(parts: RepairParts, options: RepairOptions) -> Task {
    let host = parts.host.clone();
    let work = Work {
        parts,
        options,
        closed_since: BTreeMap::new(),
        silent_since: BTreeMap::new(),
        others: BTreeMap::new(),
        has_failed: false,
    };
    host.spawn("wal-repair", work.run())
}

struct Work {
    parts: RepairParts,
    options: RepairOptions,
    /// Streams that are closed and not uploaded.
    closed_since: BTreeMap<StreamId, Instant>,
    silent_since: BTreeMap<DirectoryId, Instant>,
    others: BTreeMap<DirectoryId, RemoteReplica>,
    /// At the last look: it was said then.
    has_failed: bool,
}

impl Work {
    async fn run(mut self) {
        loop {
            sleep(self.options.interval).await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let image = self.parts.truth.image();
        let now = Instant::now();
        let closed = image.streams().filter(|stream| stream.closed && !stream.live.is_empty());
        let closed: BTreeSet<StreamId> = closed.map(|stream| stream.record.stream).collect();
        self.closed_since.retain(|stream, _| closed.contains(stream));
        for stream in closed {
            self.closed_since.entry(stream).or_insert(now);
        }
        let is_old = |(_, since): &(&StreamId, &Instant)| now - **since >= self.options.patience;
        let old: Vec<StreamId> = self.closed_since.iter().filter(is_old).map(|(stream, _)| *stream).collect();
        if old.is_empty() {
            self.parts.replica.metrics().lacking_chunks.set(0);
            return self.silent_since.clear();
        }
        let known = self.standings(&image).await;
        let me = self.parts.replica.directory();
        let (mut lacking, mut failed) = (0, None);
        for stream in old {
            let Some(found) = image.stream(stream) else { continue };
            lacking += lost_of(&found.ensemble, &known).map_or(0, |_| found.live.len());
            let Some(role) = role(&found.record, me, &known) else { continue };
            if role != Role::Member && image.feature_level() < REPLACE_LEVEL {
                continue;
            }
            let wanted = self.parts.replica.lacking(stream, found.live.keys().copied());
            if let Err(error) = self.fill(&found.record, role, wanted).await {
                failed.get_or_insert((stream, role, error));
            }
        }
        if let Some((stream, role, error)) = failed.as_ref().filter(|_| !self.has_failed) {
            tracing::warn!(%error, %stream, ?role, "chunks that cannot be uploaded lack a copy, and get none yet");
        }
        self.has_failed = failed.is_some();
        self.parts.replica.metrics().lacking_chunks.set(i64::try_from(lacking).unwrap_or(i64::MAX));
    }

    /// Every registered directory, as this node sees it now.
    async fn standings(&mut self, image: &Image) -> Vec<Known> {
        let records: Vec<_> = image.directories().map(Arc::clone).collect();
        self.silent_since.retain(|directory, _| records.iter().any(|record| record.directory == *directory));
        let mut known = Vec::with_capacity(records.len());
        for record in records {
            let standing = self.standing(record.directory).await;
            known.push(Known {
                directory: record.directory,
                node_id: record.node_id,
                zone: record.zone.clone(),
                takes_streams: record.takes_streams(),
                standing,
            });
        }
        known
    }

    async fn standing(&mut self, directory: DirectoryId) -> Standing {
        let is_up = match self.other(directory) {
            Some(Other::Me) => true,
            Some(Other::Remote(replica)) => replica.probe().await.is_ok(),
            None => false,
        };
        if is_up {
            self.silent_since.remove(&directory);
            return Standing::Up;
        }
        let since = *self.silent_since.entry(directory).or_insert_with(Instant::now);
        if since.elapsed() >= self.options.patience { Standing::Lost } else { Standing::Silent }
    }

    fn other(&mut self, directory: DirectoryId) -> Option<Other> {
        if directory == self.parts.replica.directory() {
            return Some(Other::Me);
        }
        let Found::Remote(peer) = self.parts.directories.find(directory) else {
            self.others.remove(&directory);
            return None;
        };
        if let Some(known) = self.others.get(&directory).filter(|known| known.takes(&peer)) {
            return Some(Other::Remote(known.clone()));
        }
        let replica = RemoteReplica::new(peer, directory, self.options.remote.clone());
        self.others.insert(directory, replica.clone());
        Some(Other::Remote(replica))
    }

    /// Copies these chunks of a closed stream, and says so if this replica takes another's place.
    async fn fill(&mut self, record: &StreamRecord, role: Role, wanted: Vec<u64>) -> Result<(), WalError> {
        let mut sources = Vec::with_capacity(record.ensemble.len());
        for directory in &record.ensemble {
            // A silent one costs its timeout for each chunk.
            if !self.silent_since.contains_key(directory)
                && let Some(Other::Remote(replica)) = self.other(*directory)
            {
                sources.push(replica);
            }
        }
        let (parts, stream, count) = (&self.parts, record.stream, wanted.len());
        let copies = stream::iter(wanted).map(|number| copy(parts, &sources, stream, number));
        let mut copies = std::pin::pin!(copies.buffer_unordered(AT_ONCE));
        let mut bytes = 0;
        while let Some(copied) = copies.next().await {
            let chunk_bytes = copied?;
            bytes += chunk_bytes;
            sleep(Duration::from_secs_f64(chunk_bytes as f64 / self.options.bytes_per_s as f64)).await;
        }
        if count > 0 {
            tracing::info!(%stream, chunks = count, bytes, ?role, "chunks that cannot be uploaded have another copy");
        }
        parts.host.crash_point("wal.filled");
        if let Role::InPlaceOf(from) = role {
            let to = parts.replica.directory();
            let replaced = parts.truth.replace(ReplaceReplica { stream, from, to }).await;
            replaced.map_err(WalError::Unavailable)?;
        }
        Ok(())
    }
}

enum Other {
    Me,
    Remote(RemoteReplica),
}

/// Makes one chunk durable here, if it is still live; its bytes.
async fn copy(
    parts: &RepairParts,
    sources: &[RemoteReplica],
    stream: StreamId,
    number: u64,
) -> Result<u64, WalError> {
    let is_live = |image: &Image| image.stream(stream).is_some_and(|found| found.live.contains_key(&number));
    let chunk = match fetch(sources, stream, number).await {
        Ok(chunk) => chunk,
        // It may just have been uploaded and released.
        Err(_) if !is_live(&parts.truth.image()) => return Ok(0),
        Err(error) => return Err(error),
    };
    loop {
        let image = parts.truth.image();
        if !is_live(&image) {
            return Ok(0);
        }
        match parts.replica.fill(chunk.clone(), image.index()).await? {
            Filled::Stale => tokio::task::yield_now().await,
            Filled::Durable => {
                let bytes = u64::from(chunk.frame().len());
                let metrics = parts.replica.metrics();
                metrics.filled_chunks.inc();
                metrics.filled_bytes.inc_by(bytes);
                return Ok(bytes);
            }
        }
    }
}

/// From the first that has it.
async fn fetch(sources: &[RemoteReplica], stream: StreamId, number: u64) -> Result<Chunk, WalError> {
    let mut last = WalError::Unavailable("no other replica of the stream can be reached".to_owned());
    for source in sources {
        match source.fetch(stream, number).await {
            Ok(chunk) if (chunk.stream(), chunk.number()) == (stream, number) => return Ok(chunk),
            Ok(_) => last = WalError::Corrupt("a replica sent another chunk".to_owned()),
            Err(error) => last = error,
        }
    }
    Err(last)
}
