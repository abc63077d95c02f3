//! Fetch responses, versions 4 to 18, encoded by hand so that records are sent from where they lie.
//!
//! The encoder writes heads and stamps into one arena and leaves record bytes as slices between them
//! ([`Segments`]). Fetch requests carry no records and are kafka-protocol's.

use bytes::{BufMut, Bytes, BytesMut};

use crate::api::ApiKey;
use crate::batch::{BatchHeader, STAMP_BYTES};
use crate::error::ErrorCode;
use crate::response::{EncodeError, Segments, put_count, put_string};
use crate::segments::Builder;
use crate::wire::{put_uvarint, uvarint_len};
use crate::{StrBytes, TopicRef};

const FIRST_WITH_LOG_START: i16 = 5;
const FIRST_WITH_SESSIONS: i16 = 7;
const FIRST_WITH_PREFERRED_REPLICA: i16 = 11;
const FIRST_WITH_IDS: i16 = 13;
const FIRST_WITH_ENDPOINTS: i16 = 16;

/// A Fetch response. What a version cannot say is left out, except the way a topic is named.
#[derive(Clone, Debug, Default)]
pub struct FetchResponse {
    /// Throttling, in milliseconds.
    pub throttle_time_ms: i32,
    /// Error of the whole request, such as an unknown session (v7+).
    pub error: ErrorCode,
    /// The session, 0 for none (v7+, KIP-227).
    pub session_id: i32,
    /// The topics in the order in which they are sent.
    pub topics: Vec<FetchTopic>,
    /// Where the current leaders named in partitions live (v16+, KIP-951).
    pub node_endpoints: Vec<NodeEndpoint>,
}

/// The partitions of one topic.
#[derive(Clone, Debug)]
pub struct FetchTopic {
    /// By name up to version 12, by id from 13.
    pub topic: TopicRef,
    /// Its partitions.
    pub partitions: Vec<FetchPartition>,
}

/// The answer for one partition.
#[derive(Clone, Debug)]
pub struct FetchPartition {
    /// The partition's index.
    pub index: i32,
    /// What went wrong, if anything.
    pub error: ErrorCode,
    /// One past the last committed offset; -1 if unknown.
    pub high_watermark: i64,
    /// Every transaction below it is decided; -1 if unknown.
    pub last_stable_offset: i64,
    /// The first offset that can be read; -1 if unknown (v5+).
    pub log_start_offset: i64,
    /// Aborted transactions that reach into the records; `None` for read_uncommitted.
    pub aborted: Option<Vec<AbortedTransaction>>,
    /// The broker to fetch from instead, or -1 (v11+, KIP-392).
    pub preferred_read_replica: i32,
    /// The leader to turn to, with NOT_LEADER_OR_FOLLOWER or FENCED_LEADER_EPOCH (v12+).
    pub current_leader: Option<LeaderIdAndEpoch>,
    /// Where the client's log leaves the broker's (v12+, KIP-595).
    pub diverging_epoch: Option<EpochEndOffset>,
    /// The batches.
    pub records: RecordSet,
}

impl FetchPartition {
    /// A partition without records and with unknown offsets.
    pub fn failed(index: i32, error: ErrorCode) -> Self {
        FetchPartition {
            index,
            error,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start_offset: -1,
            aborted: None,
            preferred_read_replica: -1,
            current_leader: None,
            diverging_epoch: None,
            records: RecordSet::default(),
        }
    }
}

/// An aborted transaction of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    /// The producer.
    pub producer_id: i64,
    /// The transaction's first offset in this partition.
    pub first_offset: i64,
}

/// A partition's leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaderIdAndEpoch {
    /// Broker id, -1 if unknown.
    pub leader_id: i32,
    /// Leader epoch, -1 if unknown.
    pub leader_epoch: i32,
}

/// The end of a leader epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEndOffset {
    /// The epoch.
    pub epoch: i32,
    /// The offset after its last record.
    pub end_offset: i64,
}

/// The address of a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEndpoint {
    /// Broker id.
    pub node_id: i32,
    /// Host name.
    pub host: StrBytes,
    /// Port.
    pub port: i32,
    /// Zone.
    pub rack: Option<StrBytes>,
}

/// Batches of one partition as they will be sent.
#[derive(Clone, Debug, Default)]
pub struct RecordSet {
    parts: Vec<Part>,
    len_bytes: usize,
}

#[derive(Clone, Debug)]
enum Part {
    Final(Bytes),
    Stamped([u8; STAMP_BYTES], Bytes),
}

impl RecordSet {
    /// Adds bytes that are final: batches that carry their offsets already.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len_bytes += bytes.len();
            self.parts.push(Part::Final(bytes));
        }
    }

    /// Adds one batch, giving it its base offset and leader epoch. `header` is the parsed header of `batch`.
    /// A batch that carries both already is sent as it is.
    pub fn push_stamped(
        &mut self,
        mut batch: Bytes,
        header: &BatchHeader,
        base_offset: i64,
        leader_epoch: i32,
    ) {
        debug_assert_eq!(batch.len(), header.total_bytes(), "not the header of this batch");
        if header.base_offset == base_offset && header.leader_epoch == leader_epoch {
            return self.push(batch);
        }
        if batch.len() < STAMP_BYTES {
            return;
        }
        self.len_bytes += batch.len();
        let rest = batch.split_off(STAMP_BYTES);
        self.parts.push(Part::Stamped(header.stamp(base_offset, leader_epoch), rest));
    }

    /// Bytes of all batches.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len_bytes == 0
    }

    /// All batches as one copy, for whoever has to look into them.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(self.len_bytes);
        for part in &self.parts {
            match part {
                Part::Final(batches) => bytes.extend_from_slice(batches),
                Part::Stamped(stamp, rest) => {
                    bytes.extend_from_slice(stamp);
                    bytes.extend_from_slice(rest);
                }
            }
        }
        bytes.freeze()
    }
}

impl From<Bytes> for RecordSet {
    fn from(bytes: Bytes) -> Self {
        let mut records = RecordSet::default();
        records.push(bytes);
        records
    }
}

impl FetchResponse {
    /// Encodes the response, with its length and header. Fails only if a topic is not named as the version names
    /// topics, or if the whole is 2 GiB or more.
    pub fn encode(self, version: i16, correlation_id: i32) -> Result<Segments, EncodeError> {
        let mut builder = Builder::new(self.heads_estimate_bytes(), self.part_count());
        self.encode_into(&mut builder, version, correlation_id)
            .and_then(|()| builder.finish().map_err(|bytes| format!("{bytes} bytes")))
            .map_err(|reason| EncodeError { what: "Fetch response", version, reason })
    }

    fn part_count(&self) -> usize {
        self.topics
            .iter()
            .flat_map(|topic| &topic.partitions)
            .map(|partition| partition.records.parts.len())
            .sum()
    }

    fn heads_estimate_bytes(&self) -> usize {
        let partitions: usize = self.topics.iter().map(|topic| topic.partitions.len()).sum();
        64 + self.topics.len() * 64 + partitions * 72 + self.part_count() * STAMP_BYTES
    }

    fn encode_into(self, builder: &mut Builder, version: i16, correlation_id: i32) -> Result<(), String> {
        let flexible = ApiKey::Fetch.is_flexible(version);
        let out = builder.out();
        out.put_i32(correlation_id);
        out.put_bytes(0, flexible as usize);
        out.put_i32(self.throttle_time_ms);
        if version >= FIRST_WITH_SESSIONS {
            out.put_i16(self.error.code());
            out.put_i32(self.session_id);
        }
        put_count(out, self.topics.len(), flexible);
        for topic in self.topics {
            let out = builder.out();
            match (&topic.topic, version >= FIRST_WITH_IDS) {
                (TopicRef::Name(name), false) => put_string(out, Some(name), flexible),
                (TopicRef::Id(id), true) => out.put_slice(id.as_bytes()),
                _ => return Err(format!("topic named as {:?}", topic.topic)),
            }
            put_count(out, topic.partitions.len(), flexible);
            for partition in topic.partitions {
                partition.encode_into(builder, version, flexible);
            }
            builder.out().put_bytes(0, flexible as usize);
        }
        if flexible {
            put_endpoints(builder.out(), &self.node_endpoints, version);
        }
        Ok(())
    }
}

impl FetchPartition {
    fn encode_into(self, builder: &mut Builder, version: i16, flexible: bool) {
        let out = builder.out();
        out.put_i32(self.index);
        out.put_i16(self.error.code());
        out.put_i64(self.high_watermark);
        out.put_i64(self.last_stable_offset);
        if version >= FIRST_WITH_LOG_START {
            out.put_i64(self.log_start_offset);
        }
        put_aborted(out, self.aborted.as_deref(), flexible);
        if version >= FIRST_WITH_PREFERRED_REPLICA {
            out.put_i32(self.preferred_read_replica);
        }
        put_count(out, self.records.len_bytes, flexible);
        for part in self.records.parts {
            match part {
                Part::Final(bytes) => builder.put_slice(bytes),
                Part::Stamped(stamp, rest) => {
                    builder.out().put_slice(&stamp);
                    builder.put_slice(rest);
                }
            }
        }
        if flexible {
            put_partition_tags(builder.out(), self.diverging_epoch, self.current_leader);
        }
    }
}

fn put_aborted(out: &mut Vec<u8>, aborted: Option<&[AbortedTransaction]>, flexible: bool) {
    match aborted {
        None if flexible => out.put_u8(0),
        None => out.put_i32(-1),
        Some(aborted) => {
            put_count(out, aborted.len(), flexible);
            for transaction in aborted {
                out.put_i64(transaction.producer_id);
                out.put_i64(transaction.first_offset);
                out.put_bytes(0, flexible as usize);
            }
        }
    }
}

/// Tagged fields of a partition, each with its number, its length, its fields and an empty tag section of its own.
fn put_partition_tags(
    out: &mut Vec<u8>,
    diverging: Option<EpochEndOffset>,
    leader: Option<LeaderIdAndEpoch>,
) {
    out.put_u8(diverging.is_some() as u8 + leader.is_some() as u8);
    if let Some(EpochEndOffset { epoch, end_offset }) = diverging {
        out.put_slice(&[0, 13]);
        out.put_i32(epoch);
        out.put_i64(end_offset);
        out.put_u8(0);
    }
    if let Some(LeaderIdAndEpoch { leader_id, leader_epoch }) = leader {
        out.put_slice(&[1, 9]);
        out.put_i32(leader_id);
        out.put_i32(leader_epoch);
        out.put_u8(0);
    }
}

fn put_endpoints(out: &mut Vec<u8>, endpoints: &[NodeEndpoint], version: i16) {
    if version < FIRST_WITH_ENDPOINTS || endpoints.is_empty() {
        return out.put_u8(0);
    }
    let mut field = Vec::with_capacity(endpoints.len() * 48);
    put_count(&mut field, endpoints.len(), true);
    for endpoint in endpoints {
        field.put_i32(endpoint.node_id);
        put_string(&mut field, Some(&endpoint.host), true);
        field.put_i32(endpoint.port);
        put_string(&mut field, endpoint.rack.as_deref(), true);
        field.put_u8(0);
    }
    out.reserve(2 + uvarint_len(field.len() as u32) + field.len());
    out.put_slice(&[1, 0]);
    put_uvarint(out, field.len() as u32);
    out.put_slice(&field);
}
