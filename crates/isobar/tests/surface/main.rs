//! Every advertised API in every advertised version, asked of a running node: each version's request with content, and
//! with something to refuse, gets an answer of exactly that version's layout with Kafka's codes.
//!
//! kafka-protocol does not encode a field that a version lacks unless it has its default: such an answer kills the
//! connection, and this test is to find it. The same cases hold against
//! Apache Kafka 4.3, which calibrates them:
//!
//! ```text
//! PEER=kafka python3 tests/lib/broker.py cargo ct -p isobar --test surface -- --test-threads=1
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, where a failure is the finding"
)]

mod admin;
mod groups;
mod records;
mod wire;

use std::collections::BTreeSet;

use isobar_protocol::api::ApiKey;
use wire::Rig;

/// Runs a case in every advertised version that is served.
async fn in_every_version(api: ApiKey, case: impl AsyncFn(&mut Rig, i16)) {
    let mut rig = Rig::start().await;
    let versions = api.versions();
    for version in versions.min..=versions.max {
        case(&mut rig, version).await;
    }
    rig.stop().await;
}

macro_rules! cases {
    ($($test:ident: $api:ident => $case:path;)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                in_every_version(ApiKey::$api, async |rig, version| $case(rig, version).await).await;
            }
        )*

        #[test]
        fn every_advertised_api_has_a_case() {
            let cases = BTreeSet::from([$(ApiKey::$api),*]);
            let advertised: BTreeSet<ApiKey> = ApiKey::ALL.iter().copied().collect();
            assert_eq!(cases, advertised);
        }
    };
}

cases! {
    produce: Produce => records::produce;
    fetch: Fetch => records::fetch;
    list_offsets: ListOffsets => records::list_offsets;
    delete_records: DeleteRecords => records::delete_records;
    offset_for_leader_epoch: OffsetForLeaderEpoch => records::offset_for_leader_epoch;
    init_producer_id: InitProducerId => records::init_producer_id;
    offset_commit: OffsetCommit => groups::offset_commit;
    offset_fetch: OffsetFetch => groups::offset_fetch;
    find_coordinator: FindCoordinator => groups::find_coordinator;
    join_group: JoinGroup => groups::join_group;
    sync_group: SyncGroup => groups::sync_group;
    heartbeat: Heartbeat => groups::heartbeat;
    leave_group: LeaveGroup => groups::leave_group;
    describe_groups: DescribeGroups => groups::describe_groups;
    list_groups: ListGroups => groups::list_groups;
    delete_groups: DeleteGroups => groups::delete_groups;
    metadata: Metadata => admin::metadata;
    api_versions: ApiVersions => admin::api_versions;
    describe_cluster: DescribeCluster => admin::describe_cluster;
    create_topics: CreateTopics => admin::create_topics;
    delete_topics: DeleteTopics => admin::delete_topics;
    create_partitions: CreatePartitions => admin::create_partitions;
    describe_configs: DescribeConfigs => admin::describe_configs;
    incremental_alter_configs: IncrementalAlterConfigs => admin::incremental_alter_configs;
}

#[tokio::test]
async fn produce_0_to_2_is_advertised_and_closes_the_connection() {
    records::produce_before_3().await;
}

#[tokio::test]
async fn api_versions_of_the_future_gets_the_table() {
    admin::api_versions_of_the_future().await;
}
