//! Groups: claims, members, offsets. Timing is the coordinator's; what must outlive it is here.

use super::StateMachine;
use crate::codes;
use crate::command::{
    ClaimGroups, CommitOffsets, DeleteGroups, DeleteOffsets, ExpireOffsets, PutGroup, TopicPartition,
};
use crate::effect::{CommittedOffset, EffectKind, GroupChanged, GroupDeleted, OffsetsChanged};
use crate::ids::{PartitionKey, SessionId};
use crate::image::Group;
use crate::record::{GroupRecord, OffsetRecord};
use crate::result::{CommandResult, Expired, GroupResult, GroupResults, OffsetResults, Outcome};
use std::ops::Bound;
use std::sync::Arc;

/// Groups that one expiry looks at.
const MAX_GROUPS: u32 = 1000;
/// A group's name is a Kafka string.
const MAX_NAME: usize = i16::MAX as usize;

impl StateMachine {
    pub(super) fn claim_groups(&mut self, session: SessionId, c: &ClaimGroups) -> CommandResult {
        let groups = c.groups.iter().map(|group| {
            if group.len() > MAX_NAME {
                return GroupResult { error_code: codes::INVALID_GROUP_ID, coordinator_epoch: 0 };
            }
            let coordinator_epoch = self.counters.coordinator_epoch;
            self.counters.coordinator_epoch += 1;
            let known = self.image.group(group);
            self.emit(EffectKind::Group(GroupChanged {
                group: group.clone(),
                coordinator_epoch,
                coordinator: session,
                state_since_ms: known.map_or(self.image.time_ms, |group| group.state_since_ms),
                record: known.map_or_else(GroupRecord::default, |group| group.record.clone()),
            }));
            GroupResult { error_code: codes::NONE, coordinator_epoch }
        });
        CommandResult::Groups(GroupResults { groups: groups.collect() })
    }

    /// The group, if this session coordinates it in this epoch.
    fn coordinated(&self, session: SessionId, group: &str, epoch: u64) -> Option<&Arc<Group>> {
        self.image
            .group(group)
            .filter(|group| group.coordinator == session && group.coordinator_epoch == epoch)
    }

    pub(super) fn put_group(&mut self, session: SessionId, c: &PutGroup) -> CommandResult {
        let Some(group) = self.coordinated(session, &c.group, c.coordinator_epoch) else {
            return CommandResult::Done(Outcome { error_code: codes::NOT_COORDINATOR, message: None });
        };
        let same = group.record.state == c.record.state;
        let state_since_ms = if same { group.state_since_ms } else { self.image.time_ms };
        self.emit(EffectKind::Group(GroupChanged {
            group: c.group.clone(),
            coordinator_epoch: c.coordinator_epoch,
            coordinator: session,
            state_since_ms,
            record: c.record.clone(),
        }));
        super::done()
    }

    pub(super) fn commit_offsets(&mut self, session: SessionId, c: &CommitOffsets) -> CommandResult {
        let checked = match self.coordinated(session, &c.group, c.coordinator_epoch) {
            None => Err(codes::NOT_COORDINATOR),
            Some(group) => check_member(&group.record, c),
        };
        if let Err(error_code) = checked {
            return CommandResult::Offsets(OffsetResults { error_code, error_codes: Vec::new() });
        }
        let commit_time_ms = self.image.time_ms;
        let mut committed = Vec::with_capacity(c.offsets.len());
        let mut error_codes = Vec::with_capacity(c.offsets.len());
        for offset in &c.offsets {
            if self.image.view(PartitionKey::new(offset.topic_id, offset.partition)).is_none() {
                error_codes.push(codes::UNKNOWN_TOPIC_OR_PARTITION);
                continue;
            }
            error_codes.push(codes::NONE);
            committed.push(CommittedOffset {
                topic_id: offset.topic_id,
                partition: offset.partition,
                offset: OffsetRecord {
                    offset: offset.offset,
                    leader_epoch: offset.leader_epoch,
                    metadata: offset.metadata.clone(),
                    commit_time_ms,
                },
            });
        }
        if !committed.is_empty() {
            let group = c.group.clone();
            self.emit(EffectKind::Offsets(OffsetsChanged { group, committed, removed: Vec::new() }));
        }
        CommandResult::Offsets(OffsetResults { error_code: codes::NONE, error_codes })
    }

    pub(super) fn delete_groups(&mut self, c: &DeleteGroups) -> CommandResult {
        let groups = c.groups.iter().map(|group| {
            let error_code = match self.image.group(group) {
                None => codes::GROUP_ID_NOT_FOUND,
                Some(known) if !known.record.members.is_empty() => codes::NON_EMPTY_GROUP,
                Some(_) => {
                    self.emit(EffectKind::GroupDeleted(GroupDeleted { group: group.clone() }));
                    codes::NONE
                }
            };
            GroupResult { error_code, coordinator_epoch: 0 }
        });
        CommandResult::Groups(GroupResults { groups: groups.collect() })
    }

    pub(super) fn delete_offsets(&mut self, session: SessionId, c: &DeleteOffsets) -> CommandResult {
        let Some(group) = self.coordinated(session, &c.group, c.coordinator_epoch) else {
            let error_code = codes::NOT_COORDINATOR;
            return CommandResult::Offsets(OffsetResults { error_code, error_codes: Vec::new() });
        };
        let mut removed = Vec::new();
        let mut error_codes = Vec::with_capacity(c.partitions.len());
        for partition in &c.partitions {
            let key = PartitionKey::new(partition.topic_id, partition.partition);
            let exists = self.image.view(key).is_some();
            error_codes.push(if exists { codes::NONE } else { codes::UNKNOWN_TOPIC_OR_PARTITION });
            if group.offsets.contains_key(&key) {
                removed.push(*partition);
            }
        }
        if !removed.is_empty() {
            let group = c.group.clone();
            self.emit(EffectKind::Offsets(OffsetsChanged { group, committed: Vec::new(), removed }));
        }
        CommandResult::Offsets(OffsetResults { error_code: codes::NONE, error_codes })
    }

    pub(super) fn expire_offsets(&mut self, c: &ExpireOffsets) -> CommandResult {
        if self.expiry_held() {
            return CommandResult::Expired(Expired { held: true, ..Expired::default() });
        }
        let limit = if c.limit == 0 { MAX_GROUPS } else { c.limit.min(MAX_GROUPS) } as usize;
        let from = if c.after.is_empty() { Bound::Unbounded } else { Bound::Excluded(c.after.as_str()) };
        let range = self.image.groups.range::<_, str>((from, Bound::Unbounded)).take(limit);
        let groups: Vec<Arc<Group>> = range.map(|(_, group)| group.clone()).collect();
        let before = self.image.time_ms.saturating_sub(c.retention_ms.max(0));
        let mut count = 0;
        for group in &groups {
            let removed = self.expired_of(group, before);
            count += removed.len() as u64;
            let spent = group.record.members.is_empty() && removed.len() == group.offsets.len();
            let name = group.group.to_string();
            if spent && group.state_since_ms <= before {
                self.emit(EffectKind::GroupDeleted(GroupDeleted { group: name }));
            } else if !removed.is_empty() {
                self.emit(EffectKind::Offsets(OffsetsChanged {
                    group: name,
                    committed: Vec::new(),
                    removed,
                }));
            }
        }
        let next = match groups.last() {
            Some(group) if groups.len() == limit => group.group.to_string(),
            _ => String::new(),
        };
        CommandResult::Expired(Expired { count, next, held: false })
    }

    /// Offsets of topics that are gone for good; and in a group without members those whose commit, or in a group that had members
    /// the group's becoming empty, lies before `before`.
    fn expired_of(&self, group: &Group, before: i64) -> Vec<TopicPartition> {
        let empty = group.record.members.is_empty();
        let simple = group.record.protocol_type.is_empty();
        let mut removed = Vec::new();
        for (key, offset) in &group.offsets {
            let since =
                if simple { offset.commit_time_ms } else { offset.commit_time_ms.max(group.state_since_ms) };
            if (empty && since <= before) || self.image.stored_view(*key).is_none() {
                removed.push(TopicPartition { topic_id: key.topic_id, partition: key.partition });
            }
        }
        removed
    }
}

/// Whether this member may commit now, as Kafka's `ClassicGroup.validateOffsetCommit`.
fn check_member(record: &GroupRecord, c: &CommitOffsets) -> Result<(), i32> {
    if c.generation < 0 && c.member_id.is_empty() && c.instance_id.is_none() {
        // A simple consumer or an admin client.
        return if record.members.is_empty() { Ok(()) } else { Err(codes::UNKNOWN_MEMBER_ID) };
    }
    if let Some(instance_id) = &c.instance_id {
        let owner = record.members.iter().find(|member| member.instance_id.as_ref() == Some(instance_id));
        match owner {
            None => return Err(codes::UNKNOWN_MEMBER_ID),
            Some(member) if member.member_id != c.member_id => return Err(codes::FENCED_INSTANCE_ID),
            Some(_) => {}
        }
    } else if !record.members.iter().any(|member| member.member_id == c.member_id) {
        return Err(codes::UNKNOWN_MEMBER_ID);
    }
    if c.generation == record.generation { Ok(()) } else { Err(codes::ILLEGAL_GENERATION) }
}
