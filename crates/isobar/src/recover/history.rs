//! What an archive says: the furthest run of history that a recovery can use, its end, its cut, and the state at the cut.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Known;

use isobar_metadata::recover::{Clip, Clipped, Recovery};
use isobar_metadata::{Command, Entry, Envelope, Image, ObjectId, StateMachine};
use isobar_raft::archive::{
    Archive, ArchiveError, ArchivedSnapshot, Chain, Listing, read_log, read_snapshot, survey,
};
use isobar_raft::records::EntryRecord;
use isobar_store::format::{Footer, TRAILER_BYTES, Trailer, object_key};
use isobar_store::{Bucket, StoreError};

use super::RecoverError;

/// A usable run of history.
pub(super) struct History {
    pub(super) incarnation: u32,
    pub(super) node_id: i32,
    pub(super) end: u64,
    pub(super) cut: u64,
    /// As everything was at the end.
    pub(super) end_image: Image,
    /// A state at or below the cut.
    base: StateMachine,
    /// Every entry after it.
    entries: Vec<EntryRecord>,
}

/// The newest incarnation's furthest run of history that has its cut.
pub(super) async fn newest(
    archive: &dyn Archive,
    cluster_id: &str,
    claimed: u32,
    notes: &mut Vec<String>,
) -> Result<History, RecoverError> {
    for incarnation in (0..=claimed).rev() {
        let listing = survey(archive, incarnation).await?;
        let reader = Reader { archive, cluster_id, incarnation, listing: &listing };
        for chain in listing.chains() {
            if let Some(history) = reader.history(chain, notes).await? {
                return Ok(history);
            }
        }
        if !listing.is_empty() {
            notes.push(format!("the archive of incarnation {incarnation} holds nothing that can be used"));
        }
    }
    Err(RecoverError::NoArchive(format!(
        "cluster {cluster_id} has no archive that can be recovered from: {}",
        if notes.is_empty() { "there is none".to_owned() } else { notes.join("; ") }
    )))
}

struct Reader<'a> {
    archive: &'a dyn Archive,
    cluster_id: &'a str,
    incarnation: u32,
    listing: &'a Listing,
}

impl Reader<'_> {
    /// `None`: no snapshot lies at or below the cut of what can be read.
    async fn history(&self, chain: Chain, notes: &mut Vec<String>) -> Result<Option<History>, RecoverError> {
        let mut snapshots: Vec<u64> = self.listing.snapshots();
        snapshots.retain(|index| (chain.start..=chain.newest).contains(index));
        let mut read = None::<(u64, u64, Image)>;
        while let Some(index) = snapshots.pop() {
            if let Some((cut, ..)) = &read
                && index > *cut
            {
                continue;
            }
            let Some((base, node_id)) = self.snapshot(index, notes).await? else { continue };
            let entries = self.entries(index, chain.end, notes).await?;
            let end = entries.last().map_or(index, |entry| entry.id.index);
            // From an older snapshot less may be readable, and its cut is then an earlier one.
            if read.as_ref().is_none_or(|(_, known, _)| *known != end) {
                let whole = replayed(base.clone(), &entries)?;
                read = Some((whole.view().recovery_cut(), end, whole.image()));
            }
            if let Some((cut, end, end_image)) = read.take_if(|(cut, ..)| *cut >= index) {
                let incarnation = self.incarnation;
                return Ok(Some(History { incarnation, node_id, end, cut, end_image, base, entries }));
            }
        }
        notes.push(format!(
            "entries up to {} of incarnation {} have no snapshot at or below their cut",
            chain.end, self.incarnation
        ));
        Ok(None)
    }

    async fn snapshot(
        &self,
        index: u64,
        notes: &mut Vec<String>,
    ) -> Result<Option<(StateMachine, i32)>, RecoverError> {
        let read = read_snapshot(self.archive, self.incarnation, self.listing, index).await;
        let ArchivedSnapshot { cluster_id, header, body } = match read {
            Ok(snapshot) => snapshot,
            Err(error @ (ArchiveError::Damaged { .. } | ArchiveError::NotFound(_))) => {
                notes.push(format!("a snapshot is stepped over: {error}"));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        self.same_cluster(&cluster_id)?;
        let node = header.membership.as_ref().and_then(|m| m.voters.first()?.nodes.first().copied());
        let node_id = node.and_then(|node| i32::try_from(node).ok()).unwrap_or(1);
        match StateMachine::restore(&body) {
            Ok(machine) => Ok(Some((machine, node_id))),
            Err(error) => Err(RecoverError::NoArchive(format!("the snapshot of entry {index}: {error}"))),
        }
    }

    fn same_cluster(&self, cluster_id: &str) -> Result<(), RecoverError> {
        if cluster_id == self.cluster_id {
            return Ok(());
        }
        Err(RecoverError::NoArchive(format!(
            "the archive holds pieces of cluster {cluster_id} beside those of {}: two clusters have written to one prefix",
            self.cluster_id
        )))
    }

    /// Entries `after + 1..=end`, or fewer, if a piece is damaged.
    async fn entries(
        &self,
        after: u64,
        end: u64,
        notes: &mut Vec<String>,
    ) -> Result<Vec<EntryRecord>, RecoverError> {
        let mut entries: Vec<EntryRecord> = Vec::new();
        let mut next = after + 1;
        for piece in self.listing.pieces(after, end) {
            let (cluster_id, read) = match read_log(self.archive, self.incarnation, piece).await {
                Ok(read) => read,
                Err(error @ (ArchiveError::Damaged { .. } | ArchiveError::NotFound(_))) => {
                    notes.push(format!("the history ends before entry {next}: {error}"));
                    return Ok(entries);
                }
                Err(error) => return Err(error.into()),
            };
            self.same_cluster(&cluster_id)?;
            entries.extend(read.into_iter().filter(|entry| entry.id.index >= next));
            next = entries.last().map_or(next, |entry| entry.id.index + 1);
        }
        Ok(entries)
    }
}

fn decoded(record: &EntryRecord) -> Result<Option<Entry>, RecoverError> {
    let decode = |bytes: &bytes::Bytes| {
        Entry::from_bytes(bytes.clone())
            .map_err(|error| RecoverError::NoArchive(format!("entry {}: {error}", record.id.index)))
    };
    record.command.as_ref().map(decode).transpose()
}

fn replayed(mut machine: StateMachine, entries: &[EntryRecord]) -> Result<StateMachine, RecoverError> {
    for record in entries {
        match decoded(record)? {
            Some(entry) => {
                machine.apply(record.id.index, &entry);
            }
            None => {
                machine.skip(record.id.index);
            }
        }
    }
    Ok(machine)
}

impl History {
    /// Sabotage: one append of before the cut did not happen, so that a partition's log is another one.
    pub(super) fn forget_an_append(&mut self) {
        let appends = |record: &&mut EntryRecord| {
            let commands = decoded(record).ok().flatten().map(|entry| entry.commands).unwrap_or_default();
            let append = |envelope: &Envelope| matches!(envelope.command, Some(Command::CommitChunk(_)));
            record.id.index <= self.cut && commands.iter().any(append)
        };
        if let Some(record) = self.entries.iter_mut().rev().find(appends) {
            record.command = None;
        }
    }

    /// The state at the cut with its objects, as the beginning of `incarnation`, and its time at the cut in ms.
    pub(super) async fn rebuild(
        &self,
        bucket: &Bucket,
        incarnation: u32,
    ) -> Result<(StateMachine, i64), RecoverError> {
        let mut cut_ms = self.base.time_ms();
        let mut recovery = Recovery::new(self.base.clone(), self.cut)?;
        for record in &self.entries {
            let entry = decoded(record)?;
            recovery.entry(record.id.index, entry.as_ref())?;
            if record.id.index <= self.cut {
                cut_ms = recovery.time_ms();
            }
        }
        let mut footers: BTreeMap<ObjectId, Footer> = BTreeMap::new();
        let mut answers = Vec::new();
        for clip in recovery.clips() {
            let footer = match footers.entry(clip.object) {
                Known::Occupied(known) => known.into_mut(),
                Known::Vacant(none) => none.insert(read_footer(bucket, clip.object).await?),
            };
            let answer = clipped(footer, clip);
            let why = || StoreError::Damaged {
                key: object_key(clip.object),
                why: format!(
                    "its footer does not have the batches of {:?} up to offset {}",
                    clip.partition, clip.end_offset
                ),
            };
            answers.push(answer.ok_or_else(why)?);
        }
        let time_ms = recovery.time_ms();
        Ok((recovery.finish(&answers, incarnation, time_ms)?, cut_ms))
    }
}

/// Where the batches of a run that stay end. `None`: the footer does not have them.
fn clipped(footer: &Footer, clip: &Clip) -> Option<Clipped> {
    let end = clip.position + u64::from(clip.size_bytes);
    let staying =
        footer.runs.iter().filter(|run| run.key == clip.partition).flat_map(|run| &run.batches).filter(
            |batch| batch.start >= clip.position && batch.start < end && batch.last_offset < clip.end_offset,
        );
    let (mut next_offset, mut next_byte, mut max_timestamp_ms) = (clip.base_offset, clip.position, i64::MIN);
    for batch in staying {
        if (batch.base_offset, batch.start) != (next_offset, next_byte) {
            return None;
        }
        next_offset = batch.last_offset + 1;
        next_byte += u64::from(batch.bytes);
        max_timestamp_ms = max_timestamp_ms.max(batch.max_timestamp_ms);
    }
    let size_bytes = u32::try_from(next_byte - clip.position).ok()?;
    (next_offset == clip.end_offset).then_some(Clipped { size_bytes, max_timestamp_ms })
}

async fn read_footer(bucket: &Bucket, object: ObjectId) -> Result<Footer, RecoverError> {
    let key = object_key(object);
    let damaged = |why: String| StoreError::Damaged { key: key.clone(), why };
    let size = bucket.size(&key).await?;
    let trailer_at =
        size.checked_sub(TRAILER_BYTES as u64).ok_or_else(|| damaged("shorter than a trailer".to_owned()))?;
    let trailer = bucket.get_range(&key, trailer_at..size).await?;
    let trailer = Trailer::decode(&trailer).map_err(|error| damaged(error.to_string()))?;
    let footer_at = trailer_at
        .checked_sub(u64::from(trailer.footer_bytes))
        .ok_or_else(|| damaged("its footer is longer than the object".to_owned()))?;
    let footer = bucket.get_range(&key, footer_at..trailer_at).await?;
    Ok(Footer::decode(&footer, trailer).map_err(|error| damaged(error.to_string()))?)
}

/// Every object that the state refers to, and its size.
pub(super) fn objects_of(image: &Image) -> Vec<(ObjectId, u64)> {
    let wanted = image.objects().filter(|object| object.refs > 0);
    wanted.map(|object| (object.record.object, object.record.size_bytes)).collect()
}
