//! The layout of every served request, field by field and version by version, as Kafka 4.1's message definitions
//! give it. [`crate::scan`] walks a request by this table before kafka-protocol decodes it.
//!
//! Produce is not here: [`crate::produce`] walks it itself. A property test holds the table against kafka-protocol's
//! own encoder and decoder in every version.

use std::mem::size_of;

use crate::api::ApiKey;
use crate::messages::*;
use crate::{StrBytes, Uuid};

/// A field's type.
#[derive(Debug)]
pub(crate) enum Ty {
    /// A fixed number of bytes.
    Fixed(usize),
    /// A string; null is allowed from the given version on.
    Str(i16),
    /// Bytes, not nullable.
    Bytes,
    /// An array of the given type; null is allowed from the given version on. `element_bytes` is what one element
    /// takes in memory when decoded, not counting what it points at.
    Array { null_since: i16, of: &'static Ty, element_bytes: usize },
    /// A nested struct; in flexible versions it ends with tagged fields.
    Struct(&'static Layout),
}

/// The fields of a struct in order, and its known tagged fields.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) fields: &'static [Field],
    pub(crate) tags: &'static [Tag],
}

#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) since: i16,
    pub(crate) until: i16,
    pub(crate) ty: Ty,
}

#[derive(Debug)]
pub(crate) struct Tag {
    pub(crate) tag: u32,
    pub(crate) since: i16,
    pub(crate) ty: Ty,
}

const NEVER: i16 = i16::MAX;
const BOOL: Ty = Ty::Fixed(1);
const I8: Ty = Ty::Fixed(1);
const I16: Ty = Ty::Fixed(2);
const I32: Ty = Ty::Fixed(4);
const I64: Ty = Ty::Fixed(8);
const UUID: Ty = Ty::Fixed(size_of::<Uuid>());
const STR: Ty = Ty::Str(NEVER);
const NULL_STR: Ty = Ty::Str(0);

const fn all(ty: Ty) -> Field {
    Field { since: 0, until: NEVER, ty }
}

const fn since(since: i16, ty: Ty) -> Field {
    Field { since, until: NEVER, ty }
}

const fn until(until: i16, ty: Ty) -> Field {
    Field { since: 0, until, ty }
}

const fn between(since: i16, until: i16, ty: Ty) -> Field {
    Field { since, until, ty }
}

const fn array<T>(of: &'static Ty) -> Ty {
    Ty::Array { null_since: NEVER, of, element_bytes: size_of::<T>() }
}

const fn null_array<T>(null_since: i16, of: &'static Ty) -> Ty {
    Ty::Array { null_since, of, element_bytes: size_of::<T>() }
}

macro_rules! layout {
    ($($field:expr),* $(,)?) => { layout!($($field),* ; ) };
    ($($field:expr),* ; $($tag:expr),*) => { Layout { fields: &[$($field),*], tags: &[$($tag),*] } };
}

macro_rules! structure {
    ($($tokens:tt)*) => { &Ty::Struct(&layout!($($tokens)*)) };
}

/// The body of a request.
pub(crate) const fn request(api: ApiKey) -> &'static Layout {
    match api {
        ApiKey::Produce => &EMPTY,
        ApiKey::Fetch => &FETCH,
        ApiKey::ListOffsets => &LIST_OFFSETS,
        ApiKey::Metadata => &METADATA,
        ApiKey::OffsetCommit => &OFFSET_COMMIT,
        ApiKey::OffsetFetch => &OFFSET_FETCH,
        ApiKey::FindCoordinator => &FIND_COORDINATOR,
        ApiKey::JoinGroup => &JOIN_GROUP,
        ApiKey::Heartbeat => &HEARTBEAT,
        ApiKey::LeaveGroup => &LEAVE_GROUP,
        ApiKey::SyncGroup => &SYNC_GROUP,
        ApiKey::DescribeGroups => &DESCRIBE_GROUPS,
        ApiKey::ListGroups => &LIST_GROUPS,
        ApiKey::ApiVersions => &API_VERSIONS,
        ApiKey::CreateTopics => &CREATE_TOPICS,
        ApiKey::DeleteTopics => &DELETE_TOPICS,
        ApiKey::DeleteRecords => &DELETE_RECORDS,
        ApiKey::InitProducerId => &INIT_PRODUCER_ID,
        ApiKey::OffsetForLeaderEpoch => &OFFSET_FOR_LEADER_EPOCH,
        ApiKey::DescribeConfigs => &DESCRIBE_CONFIGS,
        ApiKey::CreatePartitions => &CREATE_PARTITIONS,
        ApiKey::DeleteGroups => &DELETE_GROUPS,
        ApiKey::IncrementalAlterConfigs => &INCREMENTAL_ALTER_CONFIGS,
        ApiKey::DescribeCluster => &DESCRIBE_CLUSTER,
    }
}

static EMPTY: Layout = layout!();

static FETCH: Layout = layout!(
    until(14, I32), // replica id
    all(I32),       // max wait
    all(I32),       // min bytes
    all(I32),       // max bytes
    all(I8),        // isolation level
    since(7, I32),  // session id
    since(7, I32),  // session epoch
    all(array::<fetch_request::FetchTopic>(structure!(
        until(12, STR),
        since(13, UUID),
        all(array::<fetch_request::FetchPartition>(structure!(
            all(I32),       // partition
            since(9, I32),  // current leader epoch
            all(I64),       // fetch offset
            since(12, I32), // last fetched epoch
            since(5, I64),  // log start offset
            all(I32);       // partition max bytes
            Tag { tag: 0, since: 17, ty: UUID }, // replica directory id
            Tag { tag: 1, since: 18, ty: I64 }   // high watermark
        ))),
    ))),
    since(7, array::<fetch_request::ForgottenTopic>(structure!(
        until(12, STR),
        since(13, UUID),
        all(array::<i32>(&I32)),
    ))),
    since(11, STR); // rack id
    Tag { tag: 0, since: 12, ty: NULL_STR }, // cluster id
    Tag { tag: 1, since: 15, ty: Ty::Struct(&layout!(all(I32), all(I64))) } // replica state
);

static LIST_OFFSETS: Layout = layout!(
    all(I32),     // replica id
    since(2, I8), // isolation level
    all(array::<list_offsets_request::ListOffsetsTopic>(structure!(
        all(STR),
        all(array::<list_offsets_request::ListOffsetsPartition>(structure!(
            all(I32),      // partition
            since(4, I32), // current leader epoch
            all(I64),      // timestamp
        ))),
    ))),
    since(10, I32), // timeout
);

static METADATA: Layout = layout!(
    all(null_array::<metadata_request::MetadataRequestTopic>(
        1,
        structure!(since(10, UUID), all(Ty::Str(10)))
    )),
    since(4, BOOL),       // allow auto topic creation
    between(8, 10, BOOL), // include cluster authorized operations
    since(8, BOOL),       // include topic authorized operations
);

static DELETE_RECORDS: Layout = layout!(
    all(array::<delete_records_request::DeleteRecordsTopic>(structure!(
        all(STR),
        all(array::<delete_records_request::DeleteRecordsPartition>(structure!(
            all(I32), // partition
            all(I64), // offset
        ))),
    ))),
    all(I32), // timeout
);

static OFFSET_COMMIT: Layout = layout!(
    all(STR),           // group
    all(I32),           // generation
    all(STR),           // member
    since(7, NULL_STR), // instance
    between(2, 4, I64), // retention time
    all(array::<offset_commit_request::OffsetCommitRequestTopic>(structure!(
        all(STR),
        all(array::<offset_commit_request::OffsetCommitRequestPartition>(structure!(
            all(I32),      // partition
            all(I64),      // committed offset
            since(6, I32), // committed leader epoch
            all(NULL_STR), // metadata
        ))),
    ))),
);

static OFFSET_FETCH: Layout = layout!(
    until(7, STR), // group
    until(
        7,
        null_array::<offset_fetch_request::OffsetFetchRequestTopic>(
            2,
            structure!(all(STR), all(array::<i32>(&I32)),)
        )
    ),
    since(
        8,
        array::<offset_fetch_request::OffsetFetchRequestGroup>(structure!(
            all(STR),           // group
            since(9, NULL_STR), // member
            since(9, I32),      // member epoch
            all(null_array::<offset_fetch_request::OffsetFetchRequestTopics>(
                0,
                structure!(all(STR), all(array::<i32>(&I32)),)
            )),
        ))
    ),
    since(7, BOOL), // require stable
);

static FIND_COORDINATOR: Layout = layout!(
    until(3, STR), // key
    since(1, I8),  // key type
    since(4, array::<StrBytes>(&STR)),
);

static JOIN_GROUP: Layout = layout!(
    all(STR),           // group
    all(I32),           // session timeout
    since(1, I32),      // rebalance timeout
    all(STR),           // member
    since(5, NULL_STR), // instance
    all(STR),           // protocol type
    all(array::<join_group_request::JoinGroupRequestProtocol>(structure!(all(STR), all(Ty::Bytes)))),
    since(8, NULL_STR), // reason
);

static HEARTBEAT: Layout = layout!(all(STR), all(I32), all(STR), since(3, NULL_STR));

static LEAVE_GROUP: Layout = layout!(
    all(STR),      // group
    until(2, STR), // member
    since(
        3,
        array::<leave_group_request::MemberIdentity>(structure!(
            all(STR),           // member
            all(NULL_STR),      // instance
            since(5, NULL_STR), // reason
        ))
    ),
);

static SYNC_GROUP: Layout = layout!(
    all(STR),           // group
    all(I32),           // generation
    all(STR),           // member
    since(3, NULL_STR), // instance
    since(5, NULL_STR), // protocol type
    since(5, NULL_STR), // protocol name
    all(array::<sync_group_request::SyncGroupRequestAssignment>(structure!(all(STR), all(Ty::Bytes)))),
);

static DESCRIBE_GROUPS: Layout = layout!(all(array::<StrBytes>(&STR)), since(3, BOOL));

static LIST_GROUPS: Layout = layout!(since(4, array::<StrBytes>(&STR)), since(5, array::<StrBytes>(&STR)));

static API_VERSIONS: Layout = layout!(since(3, STR), since(3, STR));

static CREATE_TOPICS: Layout = layout!(
    all(array::<create_topics_request::CreatableTopic>(structure!(
        all(STR),
        all(I32), // partitions
        all(I16), // replication factor
        all(array::<create_topics_request::CreatableReplicaAssignment>(structure!(
            all(I32),
            all(array::<i32>(&I32)),
        ))),
        all(array::<create_topics_request::CreatableTopicConfig>(structure!(all(STR), all(NULL_STR)))),
    ))),
    all(I32),  // timeout
    all(BOOL), // validate only
);

static DELETE_TOPICS: Layout = layout!(
    since(6, array::<delete_topics_request::DeleteTopicState>(structure!(all(NULL_STR), all(UUID)))),
    until(5, array::<StrBytes>(&STR)),
    all(I32), // timeout
);

static DELETE_GROUPS: Layout = layout!(all(array::<GroupId>(&STR)));

static INIT_PRODUCER_ID: Layout = layout!(
    all(NULL_STR), // transactional id
    all(I32),      // transaction timeout
    since(3, I64), // producer id
    since(3, I16), // producer epoch
);

static OFFSET_FOR_LEADER_EPOCH: Layout = layout!(
    since(3, I32), // replica id
    all(array::<offset_for_leader_epoch_request::OffsetForLeaderTopic>(structure!(
        all(STR),
        all(array::<offset_for_leader_epoch_request::OffsetForLeaderPartition>(structure!(
            all(I32), // partition
            all(I32), // current leader epoch
            all(I32), // leader epoch
        ))),
    ))),
);

static DESCRIBE_CONFIGS: Layout = layout!(
    all(array::<describe_configs_request::DescribeConfigsResource>(structure!(
        all(I8),
        all(STR),
        all(null_array::<StrBytes>(0, &STR)),
    ))),
    all(BOOL),      // include synonyms
    since(3, BOOL), // include documentation
);

static CREATE_PARTITIONS: Layout = layout!(
    all(array::<create_partitions_request::CreatePartitionsTopic>(structure!(
        all(STR),
        all(I32), // count
        all(null_array::<create_partitions_request::CreatePartitionsAssignment>(
            0,
            structure!(all(array::<i32>(&I32))),
        )),
    ))),
    all(I32),  // timeout
    all(BOOL), // validate only
);

static INCREMENTAL_ALTER_CONFIGS: Layout = layout!(
    all(array::<incremental_alter_configs_request::AlterConfigsResource>(structure!(
        all(I8),
        all(STR),
        all(array::<incremental_alter_configs_request::AlterableConfig>(structure!(
            all(STR),
            all(I8), // operation
            all(NULL_STR),
        ))),
    ))),
    all(BOOL), // validate only
);

static DESCRIBE_CLUSTER: Layout = layout!(all(BOOL), since(1, I8), since(2, BOOL));
