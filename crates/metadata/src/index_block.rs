//! Index blocks: extents that have left metadata's memory for an index object in the bucket.
//!
//! Layout of a block: a protobuf [`IndexBlock`], then the CRC-32C of it (u32, little-endian). An index object is blocks one after
//! the other; metadata's [`IndexPointer`]s say where each lies, so the object needs no footer to be read. A block's bytes never
//! change: extents that are indexed are not compacted any more.

use crate::error::MetadataError;
use crate::ids::{PartitionKey, TopicId};
use crate::record::{Extent, IndexPointer};
use bytes::{BufMut, Bytes};
use prost::Message;

/// Version of the block format that this binary writes, and the highest it reads.
pub const INDEX_BLOCK_VERSION: u32 = 1;
const CRC_BYTES: usize = 4;

/// Extents of one partition in one store, in offset order, each beginning where the one before ends.
#[derive(Clone, PartialEq, Message)]
pub struct IndexBlock {
    /// [`INDEX_BLOCK_VERSION`] of its writer.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(message, required, tag = "2")]
    pub topic_id: TopicId,
    #[prost(int32, tag = "3")]
    pub partition: i32,
    #[prost(message, repeated, tag = "4")]
    pub extents: Vec<Extent>,
}

impl IndexBlock {
    pub fn new(key: PartitionKey, extents: Vec<Extent>) -> Self {
        let PartitionKey { topic_id, partition } = key;
        Self { version: INDEX_BLOCK_VERSION, topic_id, partition, extents }
    }

    /// The block as it lies in the index object.
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.encoded_len() + CRC_BYTES);
        self.encode_raw(&mut bytes);
        bytes.put_u32_le(crc32c::crc32c(&bytes));
        bytes.into()
    }

    /// Decodes a block. Damage and later versions are errors.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, MetadataError> {
        let Some(len) = bytes.len().checked_sub(CRC_BYTES) else {
            return Err(corrupt(format!("{} bytes are too few", bytes.len())));
        };
        let (body, sum) = bytes.split_at(len);
        if crc32c::crc32c(body).to_le_bytes() != sum {
            return Err(corrupt("CRC mismatch"));
        }
        let block = Self::decode(bytes.slice(..len))?;
        if block.version == 0 || block.version > INDEX_BLOCK_VERSION {
            let (found, known) = (block.version, INDEX_BLOCK_VERSION);
            return Err(MetadataError::Version { what: "index block", found, known });
        }
        if block.extents.iter().any(|extent| extent.location.is_none()) {
            return Err(MetadataError::Unknown { what: "location" });
        }
        Ok(block)
    }

    /// Decodes the block that a pointer names, and checks that it is that one.
    pub fn of_pointer(
        bytes: &Bytes,
        key: PartitionKey,
        pointer: &IndexPointer,
    ) -> Result<Self, MetadataError> {
        let block = Self::from_bytes(bytes)?;
        let found = PartitionKey::new(block.topic_id, block.partition);
        if found != key {
            return Err(corrupt(format!("it is of {found:?}, not {key:?}")));
        }
        let span = block.extents.first().zip(block.extents.last());
        let span = span.map(|(first, last)| (first.base_offset, last.last_offset));
        if span != Some((pointer.base_offset, pointer.last_offset))
            || block.extents.len() != pointer.extents as usize
            || !is_contiguous(&block.extents)
        {
            return Err(corrupt(format!("it does not hold the extents of {pointer:?}")));
        }
        Ok(block)
    }

    /// The extent that holds `offset`.
    pub fn find(&self, offset: i64) -> Option<&Extent> {
        let after = self.extents.partition_point(|extent| extent.base_offset <= offset);
        self.extents[..after].last().filter(|extent| extent.contains(offset))
    }
}

/// Whether each begins where the one before ends.
pub fn is_contiguous<'a>(extents: impl IntoIterator<Item = &'a Extent>) -> bool {
    let mut next = None;
    extents.into_iter().all(|extent| {
        let follows = next.is_none_or(|next| next == extent.base_offset);
        next = Some(extent.end_offset());
        follows && extent.base_offset <= extent.last_offset
    })
}

/// By this the state machine knows that the extents an index block was made of are still those that it has. Fixed for ever:
/// the state machine's rolling hash over each extent's encoding, in order, from 0.
pub fn extents_hash<'a>(extents: impl IntoIterator<Item = &'a Extent>) -> u64 {
    let mut buffer = Vec::with_capacity(128);
    extents.into_iter().fold(0, |hash, extent| {
        buffer.clear();
        extent.encode_raw(&mut buffer);
        crate::state::hash_bytes(hash, &buffer)
    })
}

fn corrupt(detail: impl Into<String>) -> MetadataError {
    MetadataError::Corrupt { what: "index block", detail: detail.into() }
}

#[cfg(test)]
#[path = "index_block/tests.rs"]
mod tests;
