//! What `DescribeGroups`, `ListGroups` and `DeleteGroups` see of a group, loaded or only stored.

use bytes::Bytes;

use crate::group::Group;
use crate::{GroupError, GroupState, Name, PersistedPhase, State};

/// `DescribeGroups`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    pub state: State,
    /// Empty where the group never had members.
    pub protocol_type: Name,
    /// Only of a stable group; else empty.
    pub protocol: Name,
    pub members: Vec<MemberDescription>,
}

/// A member in [`Description`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDescription {
    pub member_id: Name,
    pub instance_id: Option<Name>,
    pub client_id: Name,
    pub client_host: Name,
    /// Of the chosen protocol; only of a stable group.
    pub metadata: Bytes,
    pub assignment: Bytes,
}

/// The state that a stored group would be loaded in.
#[must_use]
pub fn state_from_persisted(phase: PersistedPhase) -> State {
    match phase {
        PersistedPhase::Empty => State::Empty,
        PersistedPhase::CompletingRebalance => State::CompletingRebalance,
        PersistedPhase::Stable => State::Stable,
    }
}

impl Description {
    /// Of a group that is stored and not loaded.
    #[must_use]
    pub fn of_stored(stored: &GroupState) -> Self {
        let state = state_from_persisted(stored.phase);
        let protocol = stored.protocol.clone().filter(|_| state == State::Stable);
        let member = |m: &crate::MemberState| MemberDescription {
            member_id: m.member_id.clone(),
            instance_id: m.instance_id.clone(),
            client_id: m.client_id.clone(),
            client_host: m.client_host.clone(),
            metadata: m
                .protocols
                .iter()
                .find(|p| Some(&p.name) == protocol.as_ref())
                .map(|p| p.metadata.clone())
                .unwrap_or_default(),
            assignment: m.assignment.clone(),
        };
        Self {
            state,
            protocol_type: stored.protocol_type.clone().unwrap_or_else(|| "".into()),
            members: stored.members.iter().map(member).collect(),
            protocol: protocol.unwrap_or_else(|| "".into()),
        }
    }
}

impl Group {
    /// The group's state.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// The current generation.
    #[must_use]
    pub fn generation(&self) -> i32 {
        self.generation
    }

    /// `consumer`, `connect`, …; none where the group never had a member.
    #[must_use]
    pub fn protocol_type(&self) -> Option<&Name> {
        self.protocol_type.as_ref()
    }

    /// Members, without those that were only given an id.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// For `DescribeGroups`.
    #[must_use]
    pub fn describe(&self) -> Description {
        let protocol = self.protocol.clone().filter(|_| self.state == State::Stable);
        let member = |m: &crate::members::Member| MemberDescription {
            member_id: m.id.clone(),
            instance_id: m.instance_id.clone(),
            client_id: m.client_id.clone(),
            client_host: m.client_host.clone(),
            metadata: protocol.as_deref().map(|p| m.metadata(p)).unwrap_or_default(),
            assignment: m.assignment.clone(),
        };
        Description {
            state: self.state,
            protocol_type: self.protocol_type.clone().unwrap_or_else(|| "".into()),
            members: self.members.iter().map(member).collect(),
            protocol: protocol.clone().unwrap_or_else(|| "".into()),
        }
    }

    /// May the group be deleted?
    pub fn check_delete(&self) -> Result<(), GroupError> {
        match self.state {
            State::Empty => Ok(()),
            State::Dead => Err(GroupError::GroupIdNotFound),
            State::PreparingRebalance | State::CompletingRebalance | State::Stable => {
                Err(GroupError::NonEmptyGroup)
            }
        }
    }
}
