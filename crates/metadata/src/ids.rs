//! Names of things. Every 64-bit id carries the cluster incarnation in its top 16 bits, so an id granted before a
//! `recover` is never granted again. Ids are protobuf messages of one fixed64 field, so that they stay typed on the wire.

use bytes::{Buf, BufMut};
use prost::DecodeError;
use prost::encoding::{DecodeContext, WireType, fixed64, key_len, skip_field, uint32};
use std::fmt;
use uuid::Uuid;

/// Bits of an id below the cluster incarnation.
pub const INCARNATION_SHIFT: u32 = 48;
/// The highest cluster incarnation: leader epochs have eight bits for it.
pub const MAX_INCARNATION: u32 = 255;
/// Bits of a leader epoch that hold the shard's map version, which saturates.
pub const LEADER_VERSION_BITS: u32 = 23;

/// An id from the cluster incarnation and a counter.
pub const fn compose_id(incarnation: u32, counter: u64) -> u64 {
    ((incarnation as u64) << INCARNATION_SHIFT) | (counter & ((1 << INCARNATION_SHIFT) - 1))
}

/// The lowest leader epoch of a cluster incarnation; the one batches are stamped with.
pub const fn base_leader_epoch(incarnation: u32) -> i32 {
    ((incarnation & MAX_INCARNATION) << LEADER_VERSION_BITS) as i32
}

/// Leader epoch: 8 bits of cluster incarnation, 23 of the shard's map version, which saturates.
pub const fn leader_epoch(incarnation: u32, map_version: u32) -> i32 {
    let top = (1 << LEADER_VERSION_BITS) - 1;
    base_leader_epoch(incarnation) | (if map_version > top { top } else { map_version }) as i32
}

/// The cluster incarnation of a leader epoch. A client's current epoch is compared by this only. Negative epochs
/// (unknown) have none.
pub const fn incarnation_of_leader_epoch(epoch: i32) -> Option<u32> {
    if epoch < 0 { None } else { Some((epoch as u32) >> LEADER_VERSION_BITS) }
}

macro_rules! id64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);

        impl $name {
            /// The id with this counter in this cluster incarnation.
            pub const fn new(incarnation: u32, counter: u64) -> Self {
                Self(compose_id(incarnation, counter))
            }
            /// The cluster incarnation that granted it.
            pub const fn incarnation(self) -> u32 {
                (self.0 >> INCARNATION_SHIFT) as u32
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}:{})", stringify!($name), self.incarnation(), self.0 & ((1 << INCARNATION_SHIFT) - 1))
            }
        }
        /// Decimal, as in logs and object names.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                if self.0 != 0 {
                    fixed64::encode(1, &self.0, buf);
                }
            }
            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    1 => fixed64::merge(wire_type, &mut self.0, buf, ctx),
                    _ => skip_field(wire_type, tag, buf, ctx),
                }
            }
            fn encoded_len(&self) -> usize {
                if self.0 == 0 { 0 } else { key_len(1) + 8 }
            }
            fn clear(&mut self) {
                self.0 = 0;
            }
        }
    };
}

macro_rules! id32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                if self.0 != 0 {
                    uint32::encode(1, &self.0, buf);
                }
            }
            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    1 => uint32::merge(wire_type, &mut self.0, buf, ctx),
                    _ => skip_field(wire_type, tag, buf, ctx),
                }
            }
            fn encoded_len(&self) -> usize {
                if self.0 == 0 { 0 } else { uint32::encoded_len(1, &self.0) }
            }
            fn clear(&mut self) {
                self.0 = 0;
            }
        }
    };
}

macro_rules! id128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub Uuid);

        impl $name {
            pub const NIL: Self = Self(Uuid::nil());
            /// The 16 bytes, big-endian, as Kafka sends them.
            pub const fn bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
            fn halves(self) -> (u64, u64) {
                self.0.as_u64_pair()
            }
        }
        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
        impl From<[u8; 16]> for $name {
            fn from(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl prost::Message for $name {
            fn encode_raw(&self, buf: &mut impl BufMut) {
                let (high, low) = self.halves();
                fixed64::encode(1, &high, buf);
                fixed64::encode(2, &low, buf);
            }
            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buf: &mut impl Buf,
                ctx: DecodeContext,
            ) -> Result<(), DecodeError> {
                let (mut high, mut low) = self.halves();
                match tag {
                    1 => fixed64::merge(wire_type, &mut high, buf, ctx)?,
                    2 => fixed64::merge(wire_type, &mut low, buf, ctx)?,
                    _ => return skip_field(wire_type, tag, buf, ctx),
                }
                self.0 = Uuid::from_u64_pair(high, low);
                Ok(())
            }
            fn encoded_len(&self) -> usize {
                key_len(1) + 8 + key_len(2) + 8
            }
            fn clear(&mut self) {
                self.0 = Uuid::nil();
            }
        }
    };
}

id64!(
    /// One life of a broker. 0 is nobody: what the metadata leader itself proposes.
    SessionId
);
id64!(
    /// A lane's chunks on one ensemble of WAL replicas.
    StreamId
);
id64!(
    /// An object in a store. Its name is made of it; a name is used once.
    ObjectId
);
id32!(
    /// A session's ordered line of commits; see [`lane_of`].
    LaneId
);
id32!(
    /// A store, as numbered in the cluster's format.
    StoreId
);
id32!(
    /// A placement class: the stores topics may use, must use, and are mirrored to. 0 is the default class.
    PlacementId
);
id128!(
    /// A topic's id. Never reused; a deleted topic's name gets another.
    TopicId
);
id128!(
    /// The incarnation of a `wal` directory: a random id written when it is formatted.
    DirectoryId
);

impl SessionId {
    /// The metadata leader's own commands, which need no session because they repeat harmlessly.
    pub const NONE: Self = Self(0);
}

impl LaneId {
    /// The unordered lane for everything that is no chunk.
    pub const CONTROL: Self = Self(0);
}

impl PlacementId {
    pub const DEFAULT: Self = Self(0);
}

/// Durability class of a topic (`isobar.durability`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Durability {
    /// Durable on a write quorum of WAL replicas.
    #[default]
    Wal,
    /// Durable as an object in every required store.
    Object,
}

/// The lane of a durability class and a placement class. Lane 0 is [`LaneId::CONTROL`].
pub const fn lane_of(class: Durability, placement: PlacementId) -> LaneId {
    let class = match class {
        Durability::Wal => 0,
        Durability::Object => 1,
    };
    LaneId(1 + (placement.0 << 1 | class))
}

/// The inverse of [`lane_of`]; `None` for the control lane.
pub const fn classes_of(lane: LaneId) -> Option<(Durability, PlacementId)> {
    if lane.0 == 0 {
        return None;
    }
    let class = if (lane.0 - 1) & 1 == 0 { Durability::Wal } else { Durability::Object };
    Some((class, PlacementId((lane.0 - 1) >> 1)))
}

/// A partition of a topic, ordered by topic id and number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PartitionKey {
    pub topic_id: TopicId,
    pub partition: i32,
}

impl PartitionKey {
    pub const fn new(topic_id: TopicId, partition: i32) -> Self {
        Self { topic_id, partition }
    }
}

/// The shard of a partition: `(hash(topic id) + partition) mod shards`. The hash is fixed for ever: the 64-bit finalizer
/// of MurmurHash3 over the exclusive-or of the id's big-endian halves, the low half rotated left by 32.
pub fn shard_of(key: PartitionKey, shards: u32) -> u32 {
    let (high, low) = key.topic_id.0.as_u64_pair();
    let hash = mix64(high ^ low.rotate_left(32));
    (hash.wrapping_add(key.partition as u32 as u64) % u64::from(shards.max(1))) as u32
}

/// The 64-bit finalizer of MurmurHash3 (Appleby, public domain): every input bit reaches every output bit.
pub const fn mix64(mut h: u64) -> u64 {
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn ids_survive_the_wire() {
        let topic = TopicId::from([7u8; 16]);
        assert_eq!(TopicId::decode(topic.encode_to_vec().as_slice()).unwrap(), topic);
        let stream = StreamId::new(3, 9);
        assert_eq!(StreamId::decode(stream.encode_to_vec().as_slice()).unwrap(), stream);
        assert_eq!((stream.incarnation(), stream.encoded_len()), (3, stream.encode_to_vec().len()));
        assert_eq!(LaneId::decode(LaneId(300).encode_to_vec().as_slice()).unwrap(), LaneId(300));
    }

    #[test]
    fn leader_epochs_order_by_incarnation_then_version() {
        assert_eq!(leader_epoch(0, 5), 5);
        assert_eq!(leader_epoch(1, u32::MAX), base_leader_epoch(2) - 1);
        assert!(base_leader_epoch(MAX_INCARNATION) > 0);
        assert_eq!(incarnation_of_leader_epoch(leader_epoch(200, 77)), Some(200));
        assert_eq!(incarnation_of_leader_epoch(-1), None);
    }

    #[test]
    fn lanes_name_their_classes() {
        for (class, placement) in [(Durability::Wal, 0), (Durability::Object, 0), (Durability::Wal, 9)] {
            let lane = lane_of(class, PlacementId(placement));
            assert_ne!(lane, LaneId::CONTROL);
            assert_eq!(classes_of(lane), Some((class, PlacementId(placement))));
        }
        assert_eq!(classes_of(LaneId::CONTROL), None);
    }

    #[test]
    fn the_shard_hash_never_changes() {
        let key = |n: u8, p| PartitionKey::new(TopicId::from([n; 16]), p);
        let first = shard_of(key(1, 0), 64);
        assert_eq!(shard_of(key(1, 1), 64), (first + 1) % 64);
        // Written down when the format was fixed.
        let id = TopicId(Uuid::from_u128(0x0123_4567_89ab_cdef_0011_2233_4455_6677));
        assert_eq!(shard_of(PartitionKey::new(id, 0), 64), SHARD_OF_FIXED_ID);
    }
    const SHARD_OF_FIXED_ID: u32 = 31;
}
