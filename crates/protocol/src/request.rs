//! A request frame decoded: header and body.
//!
//! Bodies are kafka-protocol's structs, except Produce, which is our zero-copy view. Before a body is decoded it is
//! walked by a schema (module `scan`), so decoding takes memory in proportion to the frame, at most
//! [`MAX_DECODED_BYTES`], and fails only on what the walk refuses. As in Kafka, bytes behind the body are ignored.
//! Strings are slices of the frame: whoever keeps one copies it, or keeps the frame alive.

use bytes::{Buf, Bytes};

use crate::api::ApiKey;
use crate::frame::{FrameError, served};
use crate::messages::*;
use crate::produce::ProduceRequest;
use crate::scan::{Budget, walk};
pub use crate::wire::Malformed;
use crate::wire::Reader;
use crate::{Decodable, StrBytes, schema};

/// The most that decoding one request allocates; a frame of record bytes does not count, as they are not copied.
pub const MAX_DECODED_BYTES: usize = 64 * 1024 * 1024;

/// The header of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// The API.
    pub api: ApiKey,
    /// Its version; served, except with [`Body::UnsupportedApiVersions`].
    pub version: i16,
    /// To be sent back in the response.
    pub correlation_id: i32,
    /// The client's name for itself; a copy, so it may be kept.
    pub client_id: Option<StrBytes>,
}

/// A decoded request.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its header.
    pub header: RequestHeader,
    /// Its body.
    pub body: Body,
}

/// Why a frame is no request; closes the connection, as in Kafka.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The API or version is not served.
    #[error(transparent)]
    NotServed(#[from] FrameError),
    /// The header does not have its layout.
    #[error("malformed request header: {0}")]
    Header(#[source] Malformed),
    /// The body does not have the layout of its API and version.
    #[error("malformed {api:?} request of version {version}: {reason}")]
    Body {
        /// The API.
        api: ApiKey,
        /// The version.
        version: i16,
        /// What is wrong.
        reason: Malformed,
    },
    /// The walk let something pass that the decoder refuses; cannot happen, and is tested not to.
    #[error("undecodable {api:?} request of version {version}: {reason}")]
    Undecodable {
        /// The API.
        api: ApiKey,
        /// The version.
        version: i16,
        /// What the decoder said.
        reason: String,
    },
}

macro_rules! bodies {
    ($($api:ident($message:ident)),* $(,)?) => {
        /// The body of a request.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Body {
            /// Produce, as a view of the frame.
            Produce(ProduceRequest),
            $(#[doc = concat!(stringify!($api), ".")] $api($message),)*
            /// ApiVersions of a version that is not served: answer with
            /// [`crate::api::api_versions_response`], encoded as version 0.
            UnsupportedApiVersions,
        }

        fn decode_body(api: ApiKey, version: i16, mut body: Bytes) -> Result<Body, String> {
            match api {
                ApiKey::Produce => Err("Produce is decoded by its own view".to_owned()),
                $(ApiKey::$api => $message::decode(&mut body, version).map(Body::$api).map_err(|e| e.to_string()),)*
            }
        }
    };
}

bodies! {
    Fetch(FetchRequest),
    ListOffsets(ListOffsetsRequest),
    Metadata(MetadataRequest),
    OffsetCommit(OffsetCommitRequest),
    OffsetFetch(OffsetFetchRequest),
    FindCoordinator(FindCoordinatorRequest),
    JoinGroup(JoinGroupRequest),
    Heartbeat(HeartbeatRequest),
    LeaveGroup(LeaveGroupRequest),
    SyncGroup(SyncGroupRequest),
    DescribeGroups(DescribeGroupsRequest),
    ListGroups(ListGroupsRequest),
    ApiVersions(ApiVersionsRequest),
    CreateTopics(CreateTopicsRequest),
    DeleteTopics(DeleteTopicsRequest),
    DeleteRecords(DeleteRecordsRequest),
    InitProducerId(InitProducerIdRequest),
    OffsetForLeaderEpoch(OffsetForLeaderEpochRequest),
    DescribeConfigs(DescribeConfigsRequest),
    CreatePartitions(CreatePartitionsRequest),
    DeleteGroups(DeleteGroupsRequest),
    IncrementalAlterConfigs(IncrementalAlterConfigsRequest),
    DescribeCluster(DescribeClusterRequest),
}

/// Decodes a frame, without its 4-byte length. Never panics, and allocates at most [`MAX_DECODED_BYTES`].
pub fn decode_request(mut frame: Bytes) -> Result<Request, DecodeError> {
    let (header, body_at) = decode_header(&frame)?;
    let RequestHeader { api, version, .. } = header;
    if !api.is_served(version) {
        return Ok(Request { header, body: Body::UnsupportedApiVersions });
    }
    let malformed = |reason| DecodeError::Body { api, version, reason };
    frame.advance(body_at);
    let body = if api == ApiKey::Produce {
        Body::Produce(ProduceRequest::decode(frame, version).map_err(malformed)?)
    } else {
        let mut budget = Budget::for_request(frame.len(), MAX_DECODED_BYTES);
        walk(&mut Reader::new(&frame), schema::request(api), version, api.is_flexible(version), &mut budget)
            .map_err(malformed)?;
        decode_body(api, version, frame).map_err(|reason| DecodeError::Undecodable {
            api,
            version,
            reason,
        })?
    };
    Ok(Request { header, body })
}

/// The header and where the body begins.
fn decode_header(frame: &[u8]) -> Result<(RequestHeader, usize), DecodeError> {
    let mut reader = Reader::new(frame);
    let key = reader.i16().map_err(DecodeError::Header)?;
    let version = reader.i16().map_err(DecodeError::Header)?;
    let (api, version) = served(key, version)?;
    let correlation_id = reader.i32().map_err(DecodeError::Header)?;
    if !api.is_served(version) {
        // ApiVersions from the future: only the correlation id is sure to be where it was.
        return Ok((RequestHeader { api, version, correlation_id, client_id: None }, frame.len()));
    }
    let client_id = reader.string(false).map_err(DecodeError::Header)?;
    let client_id = client_id.map(|name| StrBytes::from_string(name.to_owned()));
    if api.is_flexible(version) {
        reader.skip_tags().map_err(DecodeError::Header)?;
    }
    Ok((RequestHeader { api, version, correlation_id, client_id }, reader.position()))
}
