//! Every answer can be encoded in every version that is served, and says there what Kafka says.

use bytes::Bytes;
use isobar_groups::{
    Description, GroupError, JoinAnswer, JoinedMember, LeaveAnswer, LeftMember, MemberDescription, Name,
    State, SyncAnswer,
};
use isobar_protocol::StrBytes;
use isobar_protocol::api::ApiKey;
use isobar_protocol::messages::leave_group_request::MemberIdentity;
use isobar_protocol::messages::{DescribeGroupsResponse, GroupId, JoinGroupRequest, LeaveGroupRequest};
use isobar_protocol::response::encode_response;

use super::*;

fn versions(api: ApiKey) -> std::ops::RangeInclusive<i16> {
    api.versions().min..=api.versions().max
}

fn n(text: &str) -> Name {
    Name::from(text)
}

fn joined() -> JoinAnswer {
    JoinAnswer {
        error: None,
        generation: 3,
        protocol_type: Some(n("consumer")),
        protocol: Some(n("range")),
        leader: n("i-1"),
        skip_assignment: false,
        member_id: n("i-1"),
        members: vec![JoinedMember {
            member_id: n("i-1"),
            instance_id: Some(n("i")),
            metadata: Bytes::from_static(b"topics"),
        }],
    }
}

#[test]
fn join_answers() {
    for version in versions(ApiKey::JoinGroup) {
        for error in [None, Some(GroupError::MemberIdRequired)] {
            let answer = error.map_or_else(joined, |error| JoinAnswer::refused(error, n("given")));
            let response = join_response(version, &answer);
            encode_response(ApiKey::JoinGroup, version, 1, &response).unwrap();
            assert_eq!(response.error_code, error.map_or(0, |_| 79));
            assert_eq!(response.generation_id, if error.is_some() { -1 } else { 3 });
            let null = error.is_some() && version >= 7;
            assert_eq!(response.protocol_name.is_none(), null, "null is not known before version 7");
        }
        let skipping = JoinAnswer { skip_assignment: version >= 9, ..joined() };
        encode_response(ApiKey::JoinGroup, version, 1, &join_response(version, &skipping)).unwrap();
    }
}

#[test]
fn join_requests_by_version() {
    let request = JoinGroupRequest::default().with_session_timeout_ms(7_000).with_rebalance_timeout_ms(-1);
    let of = |version| join_request(version, n("c"), n("/127.0.0.1"), n("c-1"), &request);
    assert_eq!(of(0).rebalance_timeout_ms, 7_000, "version 0 has one timeout");
    assert_eq!(of(1).rebalance_timeout_ms, -1);
    assert!(!of(3).requires_member_id && of(4).requires_member_id);
    assert!(!of(8).supports_skip_assignment && of(9).supports_skip_assignment);
}

#[test]
fn sync_answers() {
    let answer = SyncAnswer {
        protocol_type: Some(n("consumer")),
        protocol: Some(n("range")),
        assignment: Bytes::from_static(b"all"),
    };
    for version in versions(ApiKey::SyncGroup) {
        for answer in [Ok(answer.clone()), Err(GroupError::RebalanceInProgress)] {
            let response = sync_response(&answer);
            assert_eq!(response.error_code, if answer.is_ok() { 0 } else { 27 });
            encode_response(ApiKey::SyncGroup, version, 1, &response).unwrap();
        }
    }
}

#[test]
fn leave_answers_and_requests() {
    let left = |id: &str, error| LeftMember { member_id: n(id), instance_id: None, error };
    let answer = LeaveAnswer { members: vec![left("a", Some(GroupError::UnknownMemberId))] };
    let member = MemberIdentity::default().with_member_id(StrBytes::from_static_str("b"));
    let request = LeaveGroupRequest::default()
        .with_member_id(StrBytes::from_static_str("a"))
        .with_members(vec![member.clone(), member]);
    for version in versions(ApiKey::LeaveGroup) {
        let response = leave_response(version, &Ok(answer.clone()));
        encode_response(ApiKey::LeaveGroup, version, 1, &response).unwrap();
        let top = if version < 3 { 25 } else { 0 };
        assert_eq!((response.error_code, response.members.len()), (top, usize::from(version >= 3)));
        let failed = leave_response(version, &Err(GroupError::NotCoordinator));
        assert_eq!(failed.error_code, 16);
        encode_response(ApiKey::LeaveGroup, version, 1, &failed).unwrap();
        let ids: Vec<_> = leaving(version, &request).iter().map(|l| l.member_id.to_string()).collect();
        assert_eq!(ids, if version < 3 { vec!["a"] } else { vec!["b", "b"] });
    }
}

#[test]
fn descriptions() {
    let description = Description {
        state: State::Stable,
        protocol_type: n("consumer"),
        protocol: n("range"),
        members: vec![MemberDescription {
            member_id: n("i-1"),
            instance_id: Some(n("i")),
            client_id: n("c"),
            client_host: n("/127.0.0.1"),
            metadata: Bytes::from_static(b"m"),
            assignment: Bytes::from_static(b"a"),
        }],
    };
    for version in versions(ApiKey::DescribeGroups) {
        let id = || GroupId(StrBytes::from_static_str("g"));
        let absent = described_absent(version, id());
        assert_eq!(&*absent.group_state, "Dead");
        assert_eq!(absent.error_code, if version < 6 { 0 } else { 69 });
        let groups =
            vec![described(id(), &description), absent, described_error(id(), GroupError::InvalidGroupId)];
        let response = DescribeGroupsResponse::default().with_groups(groups);
        encode_response(ApiKey::DescribeGroups, version, 1, &response).unwrap();
    }
}
