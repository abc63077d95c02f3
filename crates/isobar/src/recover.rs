//! A node from the bucket alone: every directory is gone, the archive and the objects are left (DESIGN.md section 5).
//!
//! Owns: the data directory while it makes it, marked by the file `RECOVERING`.
//!
//! Order: everything is read and checked first, and nothing is changed ([`find`] ends here) · the marker · the claim on the
//! next incarnation · everything is read again, for the old node may have archived, and then deleted, until the claim was
//! there · the metadata directory, the WAL directory, `node.json` · the marker goes.
//!
//! Crash cases: a directory with the marker is not started, and the next recovery empties it and begins anew; the incarnation
//! that was claimed for it is left out. Once the marker is gone the node is whole.
//!
//! What it does not do: read what is left of a Raft log or a WAL. A directory that still has them is not recovered but
//! started. If only one of the two is left, nothing of it is used.

mod history;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::join_all;
use isobar_host::Host;
use isobar_metadata::ids::MAX_INCARNATION;
use isobar_metadata::{Image, ObjectId, StateMachine};
use isobar_raft::archive::ArchiveError;
use isobar_raft::{QuorumOptions, RaftError};
use isobar_store::format::object_key;
use isobar_store::{Bucket, StoreError, StoreMetrics, claim, claimed, read_claim};
use isobar_wal::{LocalReplica, ReplicaOptions, WalError, WalMetrics};

use crate::archive::StoreArchive;
use crate::directory::{RECOVERING, write_format};
use crate::node::{self, Store};

/// What to recover, and where to.
#[derive(Clone)]
pub struct RecoverOptions {
    /// The new node's data directory; holds no node.
    pub data: PathBuf,
    /// The store that the lost node used.
    pub store: Store,
    /// Look at every object that the state refers to; else at some.
    pub check_every_object: bool,
    /// Journal segments of WAL and Raft log.
    pub segment_bytes: Option<u64>,
}

impl RecoverOptions {
    /// From a store into an empty directory, every object checked.
    pub fn new(data: impl Into<PathBuf>, store: Store) -> Self {
        Self { data: data.into(), store, check_every_object: true, segment_bytes: None }
    }
}

/// Why there was no recovery. Each says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The directory holds a node, or another process is at it.
    #[error("{0}")]
    Directory(String),
    /// The store has no cluster, or no archive that can be used.
    #[error("{0}")]
    NoArchive(String),
    /// Objects that the state refers to are not there.
    #[error(
        "{missing} of {checked} objects that the recovered cluster needs are not in the store, the first ones: {examples}. \
             Is it the right bucket and prefix, and all of it? Nothing was changed{}",
        stepped_over(.notes)
    )]
    Missing {
        /// How many.
        missing: usize,
        /// Of how many that were looked for.
        checked: usize,
        /// Some of their keys.
        examples: String,
        /// What was stepped over in the archive before: without it the state would be a later one.
        notes: Vec<String>,
    },
    /// Somebody else claimed the incarnation at the same moment.
    #[error(
        "incarnation {0} was claimed by somebody else just now: is another recovery of this cluster running?"
    )]
    Claimed(u32),
    /// All incarnations are used up.
    #[error("this cluster was recovered {MAX_INCARNATION} times; leader epochs have no room for more")]
    TooMany,
    /// The store.
    #[error("store: {0}")]
    Store(#[from] StoreError),
    /// The archive.
    #[error("archive: {0}")]
    Archive(#[from] ArchiveError),
    /// What is archived does not make a state.
    #[error("the archive does not fit together: {0}")]
    History(#[from] isobar_metadata::recover::RecoverError),
    /// The new metadata directory.
    #[error("metadata: {0}")]
    Raft(#[from] RaftError),
    /// The new WAL directory.
    #[error("WAL: {0}")]
    Wal(#[from] WalError),
    /// The node's own files.
    #[error(transparent)]
    Node(#[from] node::NodeError),
}

fn stepped_over(notes: &[String]) -> String {
    if notes.is_empty() { String::new() } else { format!(". The archive is not whole: {}", notes.join("; ")) }
}

/// What lies in a store, and what a recovery would make of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The cluster.
    pub cluster_id: String,
    /// Its node.
    pub node_id: i32,
    /// The incarnation whose archive is used.
    pub incarnation: u32,
    /// The newest one that was claimed.
    pub claimed: u32,
    /// The last entry archived, and its time in ms.
    pub end: u64,
    /// Its time in ms.
    pub end_ms: i64,
    /// The entry that everything comes back to.
    pub cut: u64,
    /// The state machine's time there in ms.
    pub cut_ms: i64,
    /// Objects that the state refers to, and how many of them were looked for.
    pub objects: usize,
    /// How many of them were looked for.
    pub checked: usize,
    /// By topic and partition.
    pub partitions: BTreeMap<(String, i32), PartitionFound>,
    /// Topics that the end has and the cut has not.
    pub topics_lost: Vec<String>,
    /// Consumer groups.
    pub groups: usize,
    /// What was stepped over, for the operator.
    pub notes: Vec<String>,
}

impl Found {
    /// How much of the archived history lies after the cut, in ms.
    pub fn lacks_ms(&self) -> i64 {
        (self.end_ms - self.cut_ms).max(0)
    }
}

/// One partition at the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionFound {
    /// Its first offset.
    pub log_start: i64,
    /// Its end.
    pub log_end: i64,
    /// Offsets from its end on that were archived, but lie after the cut.
    pub cut_off: i64,
}

/// What a recovery made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Out of what.
    pub found: Found,
    /// The cluster's incarnation from now on.
    pub incarnation: u32,
}

/// Crash points of a process that is no node.
const CLAIMED: &str = "recover.claimed";
const FOUNDED: &str = "recover.founded";
const WRITTEN: &str = "recover.written";
/// Objects looked for where not all are.
const SAMPLE: usize = 200;
/// Requests under way at once.
const CHECKS_AT_ONCE: usize = 16;
/// Missing objects that an error names.
const EXAMPLES: usize = 5;

/// Reads and checks everything that [`recover`] needs, and changes nothing.
pub async fn find(host: &Host, options: &RecoverOptions) -> Result<Found, RecoverError> {
    let bucket = open_bucket(host, options).await?;
    let source = Source::of(host, &bucket).await?;
    let (found, _) = source.build(options, source.claimed + 1).await?;
    Ok(found)
}

/// Recovers the cluster as its next incarnation; the directory can be started then.
pub async fn recover(host: &Host, options: &RecoverOptions) -> Result<Recovered, RecoverError> {
    let disk = host.disk();
    let data_error = |source| node::NodeError::Data { path: options.data.clone(), source };
    refuse_a_node(host, &options.data)?;
    let bucket = open_bucket(host, options).await?;
    let source = Source::of(host, &bucket).await?;
    source.build(options, source.claimed + 1).await?;

    disk.create_dir_all(&options.data).map_err(data_error)?;
    let _lock = disk.lock(&options.data).map_err(data_error)?;
    refuse_a_node(host, &options.data)?;
    let marker = options.data.join(RECOVERING);
    disk.write_durable(&marker, b"isobar recover is making this directory\n").map_err(data_error)?;
    empty(host, &options.data)?;

    let incarnation = source.claimed + 1;
    let owner = host.random_uuid();
    if !claim(&bucket, &source.cluster_id, incarnation, owner, host.now_ms()).await? {
        return Err(RecoverError::Claimed(incarnation));
    }
    host.crash_point(CLAIMED);
    let (found, state) = source.build(options, incarnation).await?;
    write_node(host, options, &found, owner, &state).await?;
    host.crash_point(WRITTEN);
    disk.remove(&marker).map_err(data_error)?;
    disk.sync_dir(&options.data).map_err(data_error)?;
    Ok(Recovered { found, incarnation })
}

async fn open_bucket(host: &Host, options: &RecoverOptions) -> Result<Bucket, RecoverError> {
    let mut node = node::NodeOptions::new(&options.data);
    node.store = options.store.clone();
    Ok(node::open_bucket(host, &node, &StoreMetrics::default()).await?)
}

/// An empty directory, one with a bucket in it, or one that an earlier recovery did not finish.
fn refuse_a_node(host: &Host, data: &Path) -> Result<(), RecoverError> {
    let is_there = |name: &str| host.disk().open(&data.join(name), isobar_host::Open::READ).is_ok();
    if is_there(RECOVERING) {
        return Ok(());
    }
    for name in ["node.json", "metadata/FORMAT", "wal/incarnation"] {
        if is_there(name) {
            return Err(RecoverError::Directory(format!(
                "{} holds a node ({name} is there): start it with `isobar dev --data {}`. It knows more than the archive. \
                 Only if it cannot be started, move it away and recover into an empty directory",
                data.display(),
                data.display()
            )));
        }
    }
    Ok(())
}

/// Removes what an earlier recovery left half made.
fn empty(host: &Host, data: &Path) -> Result<(), RecoverError> {
    let disk = host.disk();
    for dir in ["metadata", "metadata/log", "metadata/snapshots", "wal", "wal/journal"] {
        let dir = data.join(dir);
        let failed = |source| node::NodeError::Data { path: dir.clone(), source };
        let names = match disk.list(&dir) {
            Ok(names) => names,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(source) => return Err(failed(source).into()),
        };
        for name in names {
            disk.remove(&dir.join(name)).map_err(failed)?;
        }
        disk.sync_dir(&dir).map_err(failed)?;
    }
    Ok(())
}

async fn write_node(
    host: &Host,
    options: &RecoverOptions,
    found: &Found,
    owner: [u8; 16],
    state: &StateMachine,
) -> Result<(), RecoverError> {
    let mut quorum =
        QuorumOptions::new(options.data.join("metadata"), u64::try_from(found.node_id).unwrap_or(1));
    let mut replica = ReplicaOptions { format: true, ..ReplicaOptions::default() };
    if let Some(segment_bytes) = options.segment_bytes {
        quorum.segment_bytes = segment_bytes;
        replica.journal.segment_bytes = segment_bytes;
    }
    isobar_raft::found(host, &quorum, owner, state).await?;
    host.crash_point(FOUNDED);
    let wal = LocalReplica::open(host, &options.data.join("wal"), replica, WalMetrics::default()).await?;
    wal.close().await;
    write_format(host, &options.data, found.node_id, &found.cluster_id, Some(owner))?;
    Ok(())
}

/// Where the history is read from.
struct Source {
    cluster_id: String,
    claimed: u32,
    bucket: Bucket,
    archive: Arc<StoreArchive>,
}

impl Source {
    async fn of(host: &Host, bucket: &Bucket) -> Result<Self, RecoverError> {
        let newest = claimed(bucket).await?.last().copied();
        let first = match newest {
            Some(newest) => read_claim(bucket, newest).await?.map(|claim| (newest, claim)),
            None => None,
        };
        let Some((claimed, claim)) = first else {
            return Err(RecoverError::NoArchive(format!(
                "the store {} holds no cluster of Isobar (no object below claim/). Check the URL and its prefix; if they are \
                 right, the node never archived anything",
                bucket.name()
            )));
        };
        if claimed >= MAX_INCARNATION {
            return Err(RecoverError::TooMany);
        }
        let archive = StoreArchive { host: host.clone(), bucket: bucket.clone(), guard: None };
        Ok(Self { cluster_id: claim.cluster_id, claimed, bucket: bucket.clone(), archive: Arc::new(archive) })
    }

    /// The state that begins `begin`, and what there is to say about it.
    async fn build(
        &self,
        options: &RecoverOptions,
        begin: u32,
    ) -> Result<(Found, StateMachine), RecoverError> {
        let mut notes = Vec::new();
        let mut history = history::newest(&*self.archive, &self.cluster_id, self.claimed, &mut notes).await?;
        if self.archive.host.sabotaged("recover-forgets-an-append") {
            history.forget_an_append();
        }
        let before = log_ends(&history.end_image);
        let (state, cut_ms) = history.rebuild(&self.bucket, begin).await?;
        let image = state.view();
        let after = log_ends(image);
        let lost =
            |(name, partition): &(String, i32)| *partition == 0 && !after.contains_key(&(name.clone(), 0));
        let topics_lost = before.keys().filter(|key| lost(key)).map(|(name, _)| name.clone()).collect();
        let partitions = after.iter().map(|(key, (log_start, log_end))| {
            let cut_off = before.get(key).map_or(0, |(_, end)| (end - log_end).max(0));
            (key.clone(), PartitionFound { log_start: *log_start, log_end: *log_end, cut_off })
        });
        let partitions = partitions.collect();
        let groups = image.groups().count();
        let (objects, checked) = self.check_objects(&state, options.check_every_object, &notes).await?;
        let found = Found {
            cluster_id: self.cluster_id.clone(),
            node_id: history.node_id,
            incarnation: history.incarnation,
            claimed: self.claimed,
            end: history.end,
            end_ms: history.end_image.time_ms(),
            cut: history.cut,
            cut_ms,
            objects,
            checked,
            partitions,
            topics_lost,
            groups,
            notes,
        };
        Ok((found, state))
    }

    /// Looks for the objects that extents refer to. Gives how many there are, and how many were looked for.
    async fn check_objects(
        &self,
        state: &StateMachine,
        all: bool,
        notes: &[String],
    ) -> Result<(usize, usize), RecoverError> {
        let objects = history::objects_of(state.view());
        let step = if all { 1 } else { objects.len().div_ceil(SAMPLE).max(1) };
        let wanted: Vec<_> = objects.iter().step_by(step).copied().collect();
        let mut missing = Vec::new();
        for some in wanted.chunks(CHECKS_AT_ONCE) {
            let answers: Vec<_> =
                some.iter().map(|(object, bytes)| looked_for(self.bucket.clone(), *object, *bytes)).collect();
            for answer in join_all(answers).await {
                missing.extend(answer?);
            }
        }
        if missing.is_empty() {
            return Ok((objects.len(), wanted.len()));
        }
        missing.sort();
        let examples = missing.iter().take(EXAMPLES).cloned().collect::<Vec<_>>().join(", ");
        let notes = notes.to_vec();
        Err(RecoverError::Missing { missing: missing.len(), checked: wanted.len(), examples, notes })
    }
}

/// Log start and log end of every partition, by topic name.
fn log_ends(image: &Image) -> BTreeMap<(String, i32), (i64, i64)> {
    let mut ends = BTreeMap::new();
    for topic in image.topics() {
        for partition in 0..topic.partitions {
            if let Some(view) = image.partition(topic.topic_id, partition) {
                ends.insert((topic.name.clone(), partition), (view.log_start, view.high_watermark));
            }
        }
    }
    ends
}

/// What is wrong with an object, if anything is.
async fn looked_for(bucket: Bucket, object: ObjectId, size_bytes: u64) -> Result<Option<String>, StoreError> {
    let key = object_key(object);
    match bucket.size(&key).await {
        Ok(size) if size == size_bytes => Ok(None),
        Ok(size) => Ok(Some(format!("{key} ({size} bytes, not {size_bytes})"))),
        Err(StoreError::NotFound(_)) => Ok(Some(key)),
        Err(error) => Err(error),
    }
}
