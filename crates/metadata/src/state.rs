//! The state machine: what every metadata voter makes of the same log.
//!
//! Owns: the [`Image`], and what brokers never see: numbers and results of lanes, producers, reference counts of chunks and
//! objects, id counters.
//!
//! Invariants
//! 1. `apply` depends on the state and the entry alone: no clock, no randomness, no hash order, not the binary's version.
//! 2. The image changes by effects only ([`StateMachine::emit`]), and every effect is in the entry's batch; so whoever
//!    follows the effects has this image.
//! 3. A command under a (session, lane, number) that was applied before answers with the first result and changes
//!    nothing; this is looked up before anything else, the fence too.
//! 4. A refusal changes nothing but the lane's floor, and uses up no number.
//! 5. Offsets of a partition are dense and given once. Each in `[log_start, high_watermark)` has a location at all times.
//! 6. A chunk's extents are made by one commit only, so a chunk that is released is never pointed at again.
//!
//! Accepted leaks: a fenced session's results stay until its node registers again or, an hour later, any session is
//! registered or fenced; offsets of topics that are gone stay until offsets are expired.

mod commits;
mod compaction;
mod configs;
mod follow;
mod groups;
mod lanes;
mod leaders;
mod objects;
mod producers;
mod rules;
mod sessions;
mod topics;

pub use configs::check_topic_configs;
pub(crate) use lanes::{Lane, result_len};
pub(crate) use objects::is_open;
pub(crate) use producers::{KEPT_BATCHES, KeptBatch, ProducerState, Producers};

pub use rules::Rule;
pub use topics::check_name;
pub(crate) use topics::fold;

use self::rules::Rules;
use crate::command::{Command, Entry, Envelope, LogStartReason};
use crate::effect::{ClusterChanged, EFFECT_VERSION, Effect, EffectBatch, EffectKind, Released};
use crate::ids::{LaneId, ObjectId, PartitionKey, SessionId, StreamId, TopicId};
use crate::image::{Dropped, Image};
use crate::record::ClusterFormat;
use crate::result::{CommandResult, Outcome, RefusalKind, Refused};
use imbl::{OrdMap, OrdSet};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A clock that runs ahead by more than this in one step holds expiry for as long (invariant 8).
pub const TIME_JUMP_MS: i64 = 10 * 60 * 1000;

/// See the module. A clone shares everything (O(shards)).
#[derive(Clone, Debug, PartialEq)]
pub struct StateMachine {
    pub(crate) image: Image,
    pub(crate) hash: u64,
    pub(crate) counters: Counters,
    pub(crate) lanes: OrdMap<(SessionId, LaneId), Lane>,
    /// How many lives each node id has had.
    pub(crate) node_epochs: OrdMap<i32, u64>,
    /// How many `Wal` extents point at a chunk; none: not here. (Those of objects are the image's.)
    pub(crate) chunk_refs: OrdMap<(StreamId, u64), u32>,
    /// Objects that a commit may still name, by deadline. Follows from the image.
    pub(crate) open_objects: OrdSet<(i64, ObjectId)>,
    /// Deleted topics by the end of their window. Follows from the image.
    pub(crate) purges: OrdSet<(i64, TopicId)>,
    /// By shard.
    pub(crate) producers: Vec<OrdMap<PartitionKey, Producers>>,
    /// Next producer id at some time, at most one a minute: bounds when an id was granted.
    pub(crate) grants: OrdMap<i64, i64>,
    /// Topic names with '.' made '_', which may not collide. Follows from the image.
    pub(crate) folded_names: OrdMap<String, TopicId>,
    /// Of the entry being applied.
    work: Work,
    /// All, but in tests of the tests.
    rules: Rules,
}

/// The next of each kind of id, without the incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) session: u64,
    pub(crate) stream: u64,
    pub(crate) object: u64,
    pub(crate) producer: u64,
    pub(crate) coordinator_epoch: u64,
}

impl Counters {
    /// What each incarnation begins with.
    pub(crate) const FIRST: Self =
        Self { session: 1, stream: 1, object: 1, producer: 1, coordinator_epoch: 1 };
}

/// Scratch of one entry; empty between entries.
#[derive(Clone, Debug, PartialEq, Default)]
struct Work {
    index: u64,
    effects: Vec<Effect>,
    dropped: Dropped,
    released: BTreeMap<StreamId, Vec<u64>>,
    /// Objects that lost their last reference.
    bare: Vec<ObjectId>,
}

/// What applying one entry gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// One per command, in order.
    pub results: Vec<CommandResult>,
    pub effects: Arc<EffectBatch>,
}

impl StateMachine {
    pub fn new(format: ClusterFormat) -> Self {
        let shards = format.shards.max(1) as usize;
        Self {
            image: Image::new(format),
            hash: 0,
            counters: Counters::FIRST,
            lanes: OrdMap::new(),
            node_epochs: OrdMap::new(),
            chunk_refs: OrdMap::new(),
            open_objects: OrdSet::new(),
            purges: OrdSet::new(),
            producers: vec![OrdMap::new(); shards],
            grants: OrdMap::new(),
            folded_names: OrdMap::new(),
            work: Work::default(),
            rules: Rules::default(),
        }
    }

    /// Breaks a rule from now on.
    #[cfg(feature = "sabotage")]
    pub fn without(self, rule: Rule) -> Self {
        Self { rules: Rules::all_but(rule), ..self }
    }

    /// Applies the entry at `index`, which must lie above all applied so far.
    pub fn apply(&mut self, index: u64, entry: &Entry) -> Applied {
        debug_assert!(index > self.image.index, "entry {index} applied after {}", self.image.index);
        self.work.index = index;
        self.advance_time(entry.time_ms);
        let results: Vec<_> = entry.commands.iter().map(|envelope| self.command(envelope)).collect();
        let effects = self.finish(index);
        self.roll_hash(&effects, &results);
        Applied { results, effects: Arc::new(effects) }
    }

    /// Takes note of a log entry that holds no commands (membership, a new leader's blank).
    pub fn skip(&mut self, index: u64) -> Arc<EffectBatch> {
        let effects = self.finish(index);
        self.roll_hash(&effects, &[]);
        Arc::new(effects)
    }

    /// The index of the newest entry applied.
    pub fn applied_index(&self) -> u64 {
        self.image.index
    }
    /// Of all effects and results so far. Voters compare it; two that differ at one index have diverged.
    pub fn rolling_hash(&self) -> u64 {
        self.hash
    }
    /// The cluster's level. A binary whose [`crate::command::FEATURE_LEVEL`] is lower must stop.
    pub fn feature_level(&self) -> u32 {
        self.image.cluster.feature_level
    }
    /// Time of the state machine in ms: the maximum of all entries' times.
    pub fn time_ms(&self) -> i64 {
        self.image.time_ms
    }
    /// A copy that shares everything; what a broker that takes a snapshot starts from.
    pub fn image(&self) -> Image {
        self.image.clone()
    }
    /// The same without the copy, for the one who holds the state machine.
    pub fn view(&self) -> &Image {
        &self.image
    }

    // ---- one entry ----

    fn advance_time(&mut self, given_ms: i64) {
        let previous = self.image.time_ms;
        if given_ms <= previous {
            return;
        }
        self.image.time_ms = given_ms;
        if previous != 0 && given_ms - previous > TIME_JUMP_MS {
            let until = given_ms.saturating_add(TIME_JUMP_MS);
            self.emit(EffectKind::Cluster(ClusterChanged {
                expiry_held_until_ms: until,
                ..self.image.cluster
            }));
        }
    }

    /// Whether expiry does nothing now.
    fn expiry_held(&self) -> bool {
        self.image.time_ms < self.image.cluster.expiry_held_until_ms
    }

    fn finish(&mut self, index: u64) -> EffectBatch {
        let previous = self.image.index;
        self.image.index = index;
        self.work.index = 0;
        EffectBatch {
            version: EFFECT_VERSION,
            index,
            previous,
            time_ms: self.image.time_ms,
            effects: std::mem::take(&mut self.work.effects),
        }
    }

    fn roll_hash(&mut self, effects: &EffectBatch, results: &[CommandResult]) {
        let mut buffer = Vec::with_capacity(effects.encoded_len() + 64 * results.len());
        effects.encode_raw(&mut buffer);
        self.hash = hash_bytes(self.hash, &buffer);
        for result in results {
            buffer.clear();
            result.encode(&mut buffer);
            self.hash = hash_bytes(self.hash, &buffer);
        }
    }

    // ---- one command ----

    fn command(&mut self, envelope: &Envelope) -> CommandResult {
        let Some(command) = &envelope.command else {
            return refuse(RefusalKind::Feature, 0);
        };
        let result = if envelope.session == SessionId::NONE {
            self.unnumbered(command)
        } else {
            self.numbered(envelope, command)
        };
        debug_assert!(self.work.bare.is_empty() && self.work.released.is_empty());
        result
    }

    /// Commands that name no session: each repeats harmlessly.
    fn unnumbered(&mut self, command: &Command) -> CommandResult {
        if self.feature_level() < feature_of(command) {
            return refuse(RefusalKind::Feature, u64::from(feature_of(command)));
        }
        let result = match command {
            Command::RegisterSession(c) => self.register_session(c),
            Command::FenceSession(c) => self.fence_session(c.session),
            Command::UpdateSession(c) => self.update_session(c),
            Command::RegisterDirectory(c) => self.register_directory(c),
            Command::SetFeatureLevel(c) => self.set_feature_level(c.level),
            Command::SetWriteQuorum(c) => self.set_write_quorum(c.write_quorum),
            Command::RaiseIncarnation(c) => self.raise_incarnation(c.incarnation),
            Command::ArchiveAdvanced(c) => self.archive_advanced(c),
            Command::UpdateDirectory(c) => self.update_directory(c),
            Command::ReplaceReplica(c) => self.replace_replica(c),
            other => match self.expiry(other) {
                Some(result) => result,
                None => return refuse(RefusalKind::Malformed, 0),
            },
        };
        self.settle();
        result
    }

    /// Expiry, which may come under a session's number or without.
    fn expiry(&mut self, command: &Command) -> Option<CommandResult> {
        Some(match command {
            Command::ExpireObjects(c) => self.expire_objects(c),
            Command::ExpireProducers(c) => self.expire_producers(c),
            Command::ExpireOffsets(c) => self.expire_offsets(c),
            Command::ExpireTopics(c) => self.expire_topics(c),
            _ => return None,
        })
    }

    /// The control lane's commands, once numbering and fence have let them through. `None`: not a command of this lane.
    fn control(&mut self, session: SessionId, command: &Command) -> Option<CommandResult> {
        Some(match command {
            Command::OpenStream(c) => self.open_stream(session, c),
            Command::CloseStream(c) => self.close_stream(session, c.stream),
            Command::GrantObjects(c) => self.grant_objects(session, c),
            Command::CommitObject(c) => self.commit_object(c),
            Command::CompactObjects(c) => self.compact_objects(c),
            Command::CommitIndex(c) => self.commit_index(c),
            Command::ObjectsDeleted(c) => self.objects_deleted(c),
            Command::CreateTopics(c) => self.create_topics(c),
            Command::DeleteTopics(c) => self.delete_topics(c),
            Command::UndeleteTopic(c) => self.undelete_topic(c),
            Command::PurgeTopics(c) => self.purge_topics(c),
            Command::CreatePartitions(c) => self.create_partitions(c),
            Command::AlterConfigs(c) => self.alter_configs(c),
            Command::MoveLogStart(c) => self.move_log_start(c),
            Command::GrantProducerId(c) => self.grant_producer_ids(c),
            Command::ClaimGroups(c) => self.claim_groups(session, c),
            Command::PutGroup(c) => self.put_group(session, c),
            Command::CommitOffsets(c) => self.commit_offsets(session, c),
            Command::DeleteGroups(c) => self.delete_groups(c),
            Command::DeleteOffsets(c) => self.delete_offsets(session, c),
            other => return self.expiry(other),
        })
    }

    // ---- effects and references ----

    /// Changes the image, and only this does.
    fn emit(&mut self, effect: EffectKind) {
        self.image.effect(&effect, self.work.index, Some(&mut self.work.dropped));
        self.work.effects.push(Effect { kind: Some(effect) });
        self.work.bare.append(&mut self.work.dropped.bare);
        while let Some(key) = self.work.dropped.chunks.pop() {
            let Some(refs) = self.chunk_refs.get_mut(&key) else { continue };
            *refs -= 1;
            if *refs == 0 {
                self.chunk_refs.remove(&key);
                self.work.released.entry(key.0).or_default().push(key.1);
            }
        }
    }

    /// At the end of a command: says which chunks were released, which streams and objects nothing points at any more.
    fn settle(&mut self) {
        while let Some((stream, mut chunks)) = self.work.released.pop_first() {
            chunks.sort_unstable();
            self.emit(EffectKind::Released(Released { stream, chunks }));
            self.forget_if_spent(stream);
        }
        let mut bare = std::mem::take(&mut self.work.bare);
        bare.sort_unstable();
        bare.dedup();
        for object in bare {
            self.unreference(object);
        }
    }
}

/// The feature level that a command needs. Whoever proposes it looks first ([`Image::feature_level`]): a binary of an older
/// level answers otherwise than with this refusal.
fn feature_of(command: &Command) -> u32 {
    match command {
        Command::UndeleteTopic(_)
        | Command::PurgeTopics(_)
        | Command::ExpireTopics(_)
        | Command::CompactObjects(_)
        | Command::CommitIndex(_)
        | Command::ArchiveAdvanced(_) => 2,
        Command::UpdateDirectory(_) => 3,
        Command::ReplaceReplica(_) => 4,
        Command::RegisterSession(c) if !c.rpc.is_empty() => 5,
        Command::CommitChunk(c) if c.object.is_some() => 2,
        Command::MoveLogStart(c) if c.reason != LogStartReason::DeleteRecords as i32 => 2,
        _ => 1,
    }
}

fn refuse(kind: RefusalKind, expected: u64) -> CommandResult {
    CommandResult::Refused(Refused { kind: kind as i32, expected })
}

fn done() -> CommandResult {
    CommandResult::Done(Outcome::OK)
}

fn failed(error_code: i32, message: impl Into<String>) -> Outcome {
    Outcome { error_code, message: Some(message.into()) }
}

/// Eight bytes at a time, each multiplied in; not against an adversary, but any difference shows.
pub(crate) fn hash_bytes(seed: u64, bytes: &[u8]) -> u64 {
    let mut hash = seed ^ (bytes.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut words = bytes.chunks_exact(8);
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        hash = (hash ^ u64::from_le_bytes(eight)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        hash ^= hash >> 32;
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    crate::ids::mix64(hash ^ u64::from_le_bytes(last))
}
