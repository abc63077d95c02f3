//! Kafka's error codes, as far as `apply` answers them (the protocol crate has them all; this crate may not know it).

pub const NONE: i32 = 0;
pub const OFFSET_OUT_OF_RANGE: i32 = 1;
pub const UNKNOWN_TOPIC_OR_PARTITION: i32 = 3;
pub const NOT_LEADER_OR_FOLLOWER: i32 = 6;
pub const NOT_COORDINATOR: i32 = 16;
pub const INVALID_TOPIC_EXCEPTION: i32 = 17;
pub const ILLEGAL_GENERATION: i32 = 22;
pub const INVALID_GROUP_ID: i32 = 24;
pub const UNKNOWN_MEMBER_ID: i32 = 25;
pub const REBALANCE_IN_PROGRESS: i32 = 27;
pub const TOPIC_ALREADY_EXISTS: i32 = 36;
pub const INVALID_PARTITIONS: i32 = 37;
pub const INVALID_REPLICATION_FACTOR: i32 = 38;
pub const INVALID_CONFIG: i32 = 40;
pub const INVALID_REQUEST: i32 = 42;
pub const POLICY_VIOLATION: i32 = 44;
pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i32 = 45;
pub const INVALID_PRODUCER_EPOCH: i32 = 47;
pub const INVALID_TXN_STATE: i32 = 48;
pub const KAFKA_STORAGE_ERROR: i32 = 56;
pub const UNKNOWN_PRODUCER_ID: i32 = 59;
pub const NON_EMPTY_GROUP: i32 = 68;
pub const GROUP_ID_NOT_FOUND: i32 = 69;
pub const FENCED_INSTANCE_ID: i32 = 82;
pub const INVALID_RECORD: i32 = 87;
pub const UNKNOWN_TOPIC_ID: i32 = 100;
