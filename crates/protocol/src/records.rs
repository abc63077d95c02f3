//! The records inside a batch: reading, checking and building them. [`check_records`] is on the hot path: every produced batch
//! goes through it; the rest is for clients, compaction and tests.
//!
//! A record is `length varint | attributes i8 | timestamp delta varlong | offset delta varint | key | value | headers`, key
//! and value with a varint length of -1 for null. Source: Kafka's `DefaultRecord`.

use bytes::Bytes;

use crate::batch::{
    BatchError, BatchHeader, HEADER_BYTES, LOG_OVERHEAD_BYTES, NO_PRODUCER_EPOCH, NO_PRODUCER_ID,
    NO_SEQUENCE, NO_TIMESTAMP, TimestampType, write_crc,
};
pub use crate::check::{RecordRules, check_records};
use crate::compression::{Codec, CompressionError};
use crate::wire::{Malformed, Reader, put_varint, put_varlong, varlong_len};

/// Why the records of a batch cannot be read or built.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// Not a batch.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// A codec id that Kafka does not know.
    #[error("unknown codec {0}")]
    UnknownCodec(i16),
    /// The codec failed, or yields more than the cap.
    #[error(transparent)]
    Compression(#[from] CompressionError),
    /// A record does not have a record's layout.
    #[error("record {index} is malformed: {reason}")]
    Record {
        /// Which record of the batch, from 0.
        index: usize,
        /// What is wrong.
        reason: Malformed,
    },
    /// The header announces another number of records.
    #[error("batch announces {announced} records and has {found}")]
    Count {
        /// By the header.
        announced: i32,
        /// Found, or the first that is too many.
        found: usize,
    },
    /// A batch without records, or one of 2 GiB or more, cannot be built.
    #[error("a batch of {count} records and {bytes} bytes cannot be built")]
    Build {
        /// Records.
        count: usize,
        /// Bytes.
        bytes: usize,
    },
}

/// The records of one batch, decompressed.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    bytes: Bytes,
}

/// One record; its slices live in the batch, or in what it was decompressed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its offset.
    pub offset: i64,
    /// Its timestamp, in milliseconds; -1 for none.
    pub timestamp_ms: i64,
    /// Its key.
    pub key: Option<&'a [u8]>,
    /// Its value.
    pub value: Option<&'a [u8]>,
    /// Its headers.
    pub headers: Headers<'a>,
}

/// The headers of a record in order, repeated keys included. Iterates (key, value).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Headers<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl Headers<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Iterator for Headers<'a> {
    /// Kafka's keys are UTF-8 strings by convention; nobody checks it.
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        // Checked when the record was read.
        let item = (sized(&mut reader).ok()??, sized(&mut reader).ok()?);
        self.bytes = &self.bytes[reader.position()..];
        self.count -= 1;
        Some(item)
    }
}

/// Reads one whole batch, decompressing at most `cap_bytes`. The CRC is not checked here.
pub fn decode_batch(batch: &Bytes, cap_bytes: usize) -> Result<Records, RecordsError> {
    let header = BatchHeader::parse(batch)?;
    let codec = header.attributes.codec().ok_or(RecordsError::UnknownCodec(header.attributes.0 & 7))?;
    let payload = batch.slice(HEADER_BYTES..header.total_bytes());
    let bytes = if codec == Codec::None { payload } else { codec.decompress(&payload, cap_bytes)?.into() };
    Ok(Records { header, bytes })
}

impl Records {
    /// The batch's header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The records in order. An error ends the iteration; so does a number of records that is not the header's.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter { header: &self.header, reader: Reader::new(&self.bytes), index: 0, failed: false }
    }
}

/// Iterator over the records of a batch.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    header: &'a BatchHeader,
    reader: Reader<'a>,
    index: usize,
    failed: bool,
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        let announced = self.header.count;
        let at_end = self.reader.left() == 0;
        if self.failed || (at_end && self.index as i64 == i64::from(announced)) {
            return None;
        }
        let record = if at_end || self.index as i64 >= i64::from(announced) {
            Err(RecordsError::Count { announced, found: self.index + usize::from(!at_end) })
        } else {
            let index = self.index;
            read_record(&mut self.reader).map_err(|reason| RecordsError::Record { index, reason })
        };
        self.index += 1;
        self.failed = record.is_err();
        Some(record.map(|raw| raw.into_record(self.header)))
    }
}

pub(crate) struct RawRecord<'a> {
    timestamp_delta: i64,
    offset_delta: i32,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    headers: Headers<'a>,
}

impl<'a> RawRecord<'a> {
    fn into_record(self, header: &BatchHeader) -> Record<'a> {
        Record {
            offset: header.base_offset.wrapping_add(i64::from(self.offset_delta)),
            timestamp_ms: match header.attributes.timestamp_type() {
                TimestampType::CreateTime => header.base_timestamp_ms.wrapping_add(self.timestamp_delta),
                TimestampType::LogAppendTime => header.max_timestamp_ms,
            },
            key: self.key,
            value: self.value,
            headers: self.headers,
        }
    }
}

/// A varint length and that many bytes; -1 is null.
#[inline]
fn sized<'a>(reader: &mut Reader<'a>) -> Result<Option<&'a [u8]>, Malformed> {
    match reader.varint()? {
        -1 => Ok(None),
        len => {
            let len = usize::try_from(len).map_err(|_| Malformed::Length(i64::from(len)))?;
            reader.take(len).map(Some)
        }
    }
}

#[inline]
pub(crate) fn read_record<'a>(reader: &mut Reader<'a>) -> Result<RawRecord<'a>, Malformed> {
    let body = sized(reader)?.ok_or(Malformed::Length(-1))?;
    let mut reader = Reader::new(body);
    reader.u8()?;
    let timestamp_delta = reader.varlong()?;
    let offset_delta = reader.varint()?;
    let key = sized(&mut reader)?;
    let value = sized(&mut reader)?;
    let count = reader.varint()?;
    let left_bytes = reader.left();
    let count = usize::try_from(count).map_err(|_| Malformed::Length(i64::from(count)))?;
    if count > left_bytes / 2 {
        return Err(Malformed::Count { count: count as u64, left_bytes });
    }
    let headers = Headers { count, bytes: &body[reader.position()..] };
    for _ in 0..count {
        sized(&mut reader)?.ok_or(Malformed::Length(-1))?;
        sized(&mut reader)?;
    }
    if reader.left() > 0 {
        return Err(Malformed::Length(body.len() as i64));
    }
    Ok(RawRecord { timestamp_delta, offset_delta, key, value, headers })
}

/// Builds a batch from records, as a producer sends it: base offset 0, offsets counting up.
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    codec: Codec,
    producer_id: i64,
    producer_epoch: i16,
    base_sequence: i32,
    transactional: bool,
    count: usize,
    base_timestamp_ms: i64,
    max_timestamp_ms: i64,
    records: Vec<u8>,
}

impl BatchBuilder {
    /// An empty batch.
    pub fn new(codec: Codec) -> Self {
        BatchBuilder {
            codec,
            producer_id: NO_PRODUCER_ID,
            producer_epoch: NO_PRODUCER_EPOCH,
            base_sequence: NO_SEQUENCE,
            transactional: false,
            count: 0,
            base_timestamp_ms: NO_TIMESTAMP,
            max_timestamp_ms: NO_TIMESTAMP,
            records: Vec::new(),
        }
    }

    /// Makes the batch one of an idempotent producer.
    pub fn producer(mut self, id: i64, epoch: i16, base_sequence: i32) -> Self {
        (self.producer_id, self.producer_epoch, self.base_sequence) = (id, epoch, base_sequence);
        self
    }

    /// Makes the batch part of a transaction.
    pub fn transactional(mut self) -> Self {
        self.transactional = true;
        self
    }

    /// Appends a record.
    pub fn push<K: AsRef<[u8]>>(
        &mut self,
        timestamp_ms: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[(K, Option<&[u8]>)],
    ) {
        if self.count == 0 {
            self.base_timestamp_ms = timestamp_ms;
        }
        self.max_timestamp_ms = self.max_timestamp_ms.max(timestamp_ms);
        let timestamp_delta = timestamp_ms.wrapping_sub(self.base_timestamp_ms);
        let offset_delta = self.count as i32;
        let headers_bytes: usize =
            headers.iter().map(|(key, value)| sized_len(Some(key.as_ref())) + sized_len(*value)).sum();
        let length = 1
            + varlong_len(timestamp_delta)
            + varlong_len(i64::from(offset_delta))
            + sized_len(key)
            + sized_len(value)
            + varlong_len(headers.len() as i64)
            + headers_bytes;
        let out = &mut self.records;
        put_varint(out, length as i32);
        out.push(0);
        put_varlong(out, timestamp_delta);
        put_varint(out, offset_delta);
        put_sized(out, key);
        put_sized(out, value);
        put_varint(out, headers.len() as i32);
        for (key, value) in headers {
            put_sized(out, Some(key.as_ref()));
            put_sized(out, *value);
        }
        self.count += 1;
    }

    /// Records so far.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the batch so far, before compression.
    pub fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.records.len()
    }

    /// The batch with its CRC.
    pub fn build(self) -> Result<Bytes, RecordsError> {
        let packed;
        let payload = if self.codec == Codec::None {
            &self.records
        } else {
            packed = self.codec.compress(&self.records)?;
            &packed
        };
        let bytes = HEADER_BYTES + payload.len();
        let too_much = RecordsError::Build { count: self.count, bytes: self.size_bytes().max(bytes) };
        let (Ok(count), Ok(length), Ok(_)) = (
            i32::try_from(self.count),
            i32::try_from(bytes - LOG_OVERHEAD_BYTES),
            i32::try_from(self.records.len()),
        ) else {
            return Err(too_much);
        };
        if count == 0 {
            return Err(too_much);
        }
        let header = BatchHeader {
            base_offset: 0,
            length,
            leader_epoch: -1,
            crc: 0,
            attributes: crate::batch::Attributes::default().with(self.codec, self.transactional),
            last_offset_delta: count - 1,
            base_timestamp_ms: self.base_timestamp_ms,
            max_timestamp_ms: self.max_timestamp_ms,
            producer_id: self.producer_id,
            producer_epoch: self.producer_epoch,
            base_sequence: self.base_sequence,
            count,
        };
        let mut batch = Vec::with_capacity(bytes);
        batch.extend_from_slice(&header.encode());
        batch.extend_from_slice(payload);
        write_crc(&mut batch);
        Ok(batch.into())
    }
}

fn sized_len(bytes: Option<&[u8]>) -> usize {
    bytes.map_or(1, |bytes| varlong_len(bytes.len() as i64) + bytes.len())
}

fn put_sized(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => put_varint(out, -1),
        Some(bytes) => {
            put_varint(out, bytes.len() as i32);
            out.extend_from_slice(bytes);
        }
    }
}
