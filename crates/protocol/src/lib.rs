//! Kafka's wire protocol as Isobar speaks it.
//!
//! Owns: framing and its bounds, the table of served APIs, the view of a record batch, the codecs, error codes, and
//! the hand-written Produce request and Fetch response, the two messages that carry records.
//!
//! Promises:
//! 1. No input panics, and none makes it allocate more than the bytes that arrived justify: requests are walked
//!    by a schema ([`request`]) before kafka-protocol decodes them, and decompression has a cap.
//! 2. Record bytes are never copied: a Produce request lends slices of its frame, a Fetch response is a list of
//!    heads, 16-byte stamps and slices. (Batches under 512 bytes are copied, which costs less than a slice.)
//! 3. What is advertised, what is accepted and what is encoded come from one table ([`api`]).
//!
//! May not know: sockets, clocks, tasks, storage, metadata.

pub mod api;
pub mod batch;
mod check;
pub mod compression;
pub mod error;
pub mod fetch;
pub mod frame;
pub mod produce;
pub mod records;
pub mod request;
pub mod response;
mod scan;
mod schema;
mod segments;
mod validate;
mod wire;

pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::{
    Decodable, Encodable, HeaderVersion, Message, Request as KafkaRequest, StrBytes,
};
pub use uuid::Uuid;

/// How a request or response names a topic: by name, and from Produce v13 and Fetch v13 on by id (KIP-516).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TopicRef {
    /// The topic's name. A slice of the frame when it comes from a request: copy it to keep it.
    Name(StrBytes),
    /// The topic's id.
    Id(Uuid),
}
