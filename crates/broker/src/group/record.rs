//! A group's durable state: the machine's words and metadata's.

use std::sync::Arc;

use isobar_groups::{GroupState, MemberState, Name, PersistedPhase, Protocol};
use isobar_metadata::record::{GroupKind, GroupRecord, GroupState as Recorded, MemberProtocol, MemberRecord};

fn millis(ms: u32) -> i32 {
    i32::try_from(ms).unwrap_or(i32::MAX)
}

/// What is put into metadata.
pub(super) fn of_state(state: &GroupState) -> GroupRecord {
    let phase = match state.phase {
        PersistedPhase::Empty => Recorded::Empty,
        PersistedPhase::CompletingRebalance => Recorded::CompletingRebalance,
        PersistedPhase::Stable => Recorded::Stable,
    };
    let text = |name: &Option<Name>| name.as_ref().map(|name| name.to_string());
    let member = |member: &MemberState| MemberRecord {
        member_id: member.member_id.to_string(),
        instance_id: text(&member.instance_id),
        client_id: member.client_id.to_string(),
        client_host: member.client_host.to_string(),
        session_timeout_ms: millis(member.session_timeout_ms),
        rebalance_timeout_ms: millis(member.rebalance_timeout_ms),
        protocols: (member.protocols.iter())
            .map(|p| MemberProtocol { name: p.name.to_string(), metadata: p.metadata.clone() })
            .collect(),
        assignment: member.assignment.clone(),
    };
    GroupRecord {
        kind: GroupKind::Classic.into(),
        state: phase.into(),
        generation: state.generation,
        protocol_type: text(&state.protocol_type).unwrap_or_default(),
        protocol: text(&state.protocol),
        leader: text(&state.leader),
        members: state.members.iter().map(member).collect(),
    }
}

/// What is loaded from metadata.
pub(super) fn state(record: &GroupRecord) -> GroupState {
    let name = |text: &Option<String>| text.as_deref().map(Name::from);
    let member = |member: &MemberRecord| MemberState {
        member_id: Arc::from(member.member_id.as_str()),
        instance_id: name(&member.instance_id),
        client_id: Arc::from(member.client_id.as_str()),
        client_host: Arc::from(member.client_host.as_str()),
        session_timeout_ms: member.session_timeout_ms.max(0).unsigned_abs(),
        rebalance_timeout_ms: member.rebalance_timeout_ms.max(0).unsigned_abs(),
        protocols: (member.protocols.iter())
            .map(|p| Protocol { name: Arc::from(p.name.as_str()), metadata: p.metadata.clone() })
            .collect(),
        assignment: member.assignment.clone(),
    };
    GroupState {
        phase: match record.state() {
            Recorded::Empty => PersistedPhase::Empty,
            Recorded::PreparingRebalance | Recorded::CompletingRebalance => {
                PersistedPhase::CompletingRebalance
            }
            Recorded::Stable => PersistedPhase::Stable,
        },
        generation: record.generation,
        protocol_type: (!record.protocol_type.is_empty()).then(|| Name::from(record.protocol_type.as_str())),
        protocol: name(&record.protocol),
        leader: name(&record.leader),
        members: record.members.iter().map(member).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn a_state_comes_back_as_it_was_put() {
        let member = MemberState {
            member_id: "i-1".into(),
            instance_id: Some("i".into()),
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            session_timeout_ms: 10_000,
            rebalance_timeout_ms: 60_000,
            protocols: vec![
                Protocol { name: "range".into(), metadata: Bytes::from_static(b"r") },
                Protocol { name: "sticky".into(), metadata: Bytes::from_static(b"s") },
            ],
            assignment: Bytes::from_static(b"all"),
        };
        for phase in [PersistedPhase::CompletingRebalance, PersistedPhase::Stable] {
            let before = GroupState {
                phase,
                generation: 7,
                protocol_type: Some("consumer".into()),
                protocol: Some("range".into()),
                leader: Some("i-1".into()),
                members: vec![member.clone()],
            };
            assert_eq!(state(&of_state(&before)), before);
        }
        let empty = state(&GroupRecord::default());
        assert_eq!((empty.phase, empty.generation, empty.protocol_type), (PersistedPhase::Empty, 0, None));
    }
}
