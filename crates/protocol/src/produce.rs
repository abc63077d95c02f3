//! Produce requests, versions 3 to 13: a view of the frame for the broker, and an encoder for clients.
//!
//! The whole layout is checked once, in decode; walking the partitions afterwards cannot fail, builds nothing and
//! hands out records as slices of the frame.

use bytes::{BufMut, Bytes};

use crate::api::ApiKey;
use crate::response::{EncodeError, Segments, put_count, put_string, request_header};
use crate::segments::Builder;
use crate::wire::{Malformed, Reader};
use crate::{StrBytes, TopicRef};

/// First version that names topics by id instead of by name (KIP-516).
const FIRST_WITH_IDS: i16 = 13;

/// A Produce request as it lies in its frame.
#[derive(Clone, Debug, PartialEq)]
pub struct ProduceRequest {
    /// The API version.
    pub version: i16,
    /// 0: no answer; 1 and -1 (all): an answer. Other values are to be refused with INVALID_REQUIRED_ACKS.
    pub acks: i16,
    /// How long the client waits, in milliseconds.
    pub timeout_ms: i32,
    /// Set by transactional producers. A slice of the frame.
    pub transactional_id: Option<StrBytes>,
    body: Bytes,
    topics_at: usize,
    topics: usize,
    partitions: usize,
    records_bytes: usize,
}

/// What a request sends to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// The topic. Slices the frame.
    pub topic: TopicRef,
    /// Which topic entry of the request this is, from 0: responses are grouped as the request was.
    pub topic_ordinal: usize,
    /// The partition's index.
    pub index: i32,
    /// The record batches, a slice of the frame; `None` if the client sent null.
    pub records: Option<Bytes>,
}

impl ProduceRequest {
    /// Checks the layout of a body. Bytes behind it are ignored.
    pub fn decode(body: Bytes, version: i16) -> Result<ProduceRequest, Malformed> {
        let layout = Layout::of(version);
        let mut reader = Reader::new(&body);
        let transactional_id = reader.string(layout.flexible)?.map(|id| str_slice(&body, id));
        let acks = reader.i16()?;
        let timeout_ms = reader.i32()?;
        let topics = layout.count(&mut reader)?;
        let topics_at = reader.position();
        let (mut partitions, mut records_bytes) = (0, 0);
        for _ in 0..topics {
            layout.topic(&mut reader)?;
            for _ in 0..layout.count(&mut reader)? {
                let (_, records) = layout.partition(&mut reader)?;
                partitions += 1;
                records_bytes += records.map_or(0, <[u8]>::len);
            }
            layout.tags(&mut reader)?;
        }
        layout.tags(&mut reader)?;
        Ok(ProduceRequest {
            version,
            acks,
            timeout_ms,
            transactional_id,
            topics_at,
            topics,
            partitions,
            records_bytes,
            body,
        })
    }

    /// The partitions in the order of the request; one may come twice.
    pub fn partitions(&self) -> Partitions<'_> {
        Partitions {
            layout: Layout::of(self.version),
            reader: Reader::at(&self.body, self.topics_at),
            body: &self.body,
            topics_left: self.topics,
            next_ordinal: 0,
            topic: None,
        }
    }

    /// Number of topic entries.
    pub fn topic_count(&self) -> usize {
        self.topics
    }

    /// Number of partition entries.
    pub fn partition_count(&self) -> usize {
        self.partitions
    }

    /// Bytes of records over all partitions.
    pub fn records_bytes(&self) -> usize {
        self.records_bytes
    }
}

/// Iterator over [`Partition`]s.
#[derive(Clone, Debug)]
pub struct Partitions<'a> {
    layout: Layout,
    reader: Reader<'a>,
    body: &'a Bytes,
    topics_left: usize,
    next_ordinal: usize,
    topic: Option<(TopicRef, usize)>,
}

impl Partitions<'_> {
    /// `Ok(None)` at the end. The layout was checked by decode, so an error cannot come; it would end the walk.
    fn step(&mut self) -> Result<Option<Partition>, Malformed> {
        loop {
            if let Some((topic, partitions_left)) = &mut self.topic {
                if *partitions_left > 0 {
                    *partitions_left -= 1;
                    let (index, records) = self.layout.partition(&mut self.reader)?;
                    let records = records.map(|records| self.body.slice_ref(records));
                    let topic_ordinal = self.next_ordinal - 1;
                    return Ok(Some(Partition { topic: topic.clone(), topic_ordinal, index, records }));
                }
                self.topic = None;
                self.layout.tags(&mut self.reader)?;
            }
            if self.topics_left == 0 {
                return Ok(None);
            }
            self.topics_left -= 1;
            self.next_ordinal += 1;
            let topic = match self.layout.topic(&mut self.reader)? {
                RawTopic::Name(name) => TopicRef::Name(str_slice(self.body, name)),
                RawTopic::Id(id) => TopicRef::Id(id),
            };
            self.topic = Some((topic, self.layout.count(&mut self.reader)?));
        }
    }
}

impl Iterator for Partitions<'_> {
    type Item = Partition;

    fn next(&mut self) -> Option<Partition> {
        let step = self.step();
        debug_assert!(step.is_ok(), "decode checked this layout: {step:?}");
        step.ok().flatten()
    }
}

enum RawTopic<'a> {
    Name(&'a str),
    Id(uuid::Uuid),
}

/// How one version lays a request out.
#[derive(Clone, Copy, Debug)]
struct Layout {
    flexible: bool,
    ids: bool,
}

impl Layout {
    fn of(version: i16) -> Layout {
        Layout { flexible: ApiKey::Produce.is_flexible(version), ids: version >= FIRST_WITH_IDS }
    }

    fn count(self, reader: &mut Reader<'_>) -> Result<usize, Malformed> {
        let count = reader.length(self.flexible, true)?.ok_or(Malformed::Length(-1))?;
        let left_bytes = reader.left();
        // Nothing is allocated by this count; it only ends a hostile walk at once.
        if count > left_bytes { Err(Malformed::Count { count: count as u64, left_bytes }) } else { Ok(count) }
    }

    fn topic<'a>(self, reader: &mut Reader<'a>) -> Result<RawTopic<'a>, Malformed> {
        if self.ids {
            reader.uuid().map(RawTopic::Id)
        } else {
            Ok(RawTopic::Name(reader.string(self.flexible)?.ok_or(Malformed::Length(-1))?))
        }
    }

    fn partition<'a>(self, reader: &mut Reader<'a>) -> Result<(i32, Option<&'a [u8]>), Malformed> {
        let index = reader.i32()?;
        let records = match reader.length(self.flexible, true)? {
            Some(len) => Some(reader.take(len)?),
            None => None,
        };
        self.tags(reader)?;
        Ok((index, records))
    }

    fn tags(self, reader: &mut Reader<'_>) -> Result<(), Malformed> {
        if self.flexible { reader.skip_tags() } else { Ok(()) }
    }
}

/// `text` has to lie in `bytes`.
fn str_slice(bytes: &Bytes, text: &str) -> StrBytes {
    // It was read as UTF-8; checking it again is cheaper than an unsafe way round.
    StrBytes::from_utf8(bytes.slice_ref(text.as_bytes())).unwrap_or_default()
}

/// What a client sends.
#[derive(Clone, Debug)]
pub struct Outgoing<'a> {
    /// 0, 1 or -1.
    pub acks: i16,
    /// How long the broker may take, in milliseconds.
    pub timeout_ms: i32,
    /// For transactional producers.
    pub transactional_id: Option<&'a str>,
    /// Batches by topic and partition.
    pub topics: Vec<(TopicRef, Vec<(i32, Bytes)>)>,
}

/// A Produce request, ready to be written; records are not copied.
pub fn encode_request(
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    request: Outgoing<'_>,
) -> Result<Segments, EncodeError> {
    let error = |reason: String| EncodeError { what: "Produce", version, reason };
    let Layout { flexible, ids } = Layout::of(version);
    let partitions: usize = request.topics.iter().map(|(_, partitions)| partitions.len()).sum();
    let mut builder = Builder::new(64 + request.topics.len() * 64 + partitions * 16, partitions);
    let header = request_header(ApiKey::Produce.key(), version, correlation_id, client_id, flexible);
    let out = builder.out();
    out.put_slice(&header);
    put_string(out, request.transactional_id, flexible);
    out.put_i16(request.acks);
    out.put_i32(request.timeout_ms);
    put_count(out, request.topics.len(), flexible);
    for (topic, partitions) in request.topics {
        let out = builder.out();
        match (&topic, ids) {
            (TopicRef::Name(name), false) => put_string(out, Some(name.as_str()), flexible),
            (TopicRef::Id(id), true) => out.put_slice(id.as_bytes()),
            _ => return Err(error(format!("topic named as {topic:?}"))),
        }
        put_count(out, partitions.len(), flexible);
        for (index, records) in partitions {
            builder.out().put_i32(index);
            put_count(builder.out(), records.len(), flexible);
            builder.put_slice(records);
            builder.out().put_bytes(0, flexible as usize);
        }
        builder.out().put_bytes(0, flexible as usize);
    }
    builder.out().put_bytes(0, flexible as usize);
    builder.finish().map_err(|bytes| error(format!("{bytes} bytes")))
}
