//! Encoding whole messages: 4-byte length, header of the right version, body.

use bytes::{BufMut, Bytes, BytesMut};

use crate::api::ApiKey;
pub use crate::segments::Segments;
use crate::wire::{put_uvarint, uvarint_len};
use crate::{Decodable, Encodable, HeaderVersion, KafkaRequest};

/// A message that its version cannot express, such as a field set that the version does not have. The caller built
/// the message for another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot encode version {version} of {what}: {reason}")]
pub struct EncodeError {
    /// The message.
    pub what: &'static str,
    /// The version.
    pub version: i16,
    /// What does not fit.
    pub reason: String,
}

/// A response that does not have the layout of its API and version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed response: {0}")]
pub struct ResponseError(pub String);

/// A response, ready to be written. `version` is that of the request (for an unknown version of ApiVersions: 0).
pub fn encode_response<R: Encodable>(
    api: ApiKey,
    version: i16,
    correlation_id: i32,
    body: &R,
) -> Result<Bytes, EncodeError> {
    let tags = api.response_header_version(version) as usize;
    encode(api.name(), version, body, 4 + tags, |out| {
        out.put_i32(correlation_id);
        out.put_bytes(0, tags);
    })
}

/// A request, ready to be written.
pub fn encode_request<R: KafkaRequest>(
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    body: &R,
) -> Result<Bytes, EncodeError> {
    let header = request_header(R::KEY, version, correlation_id, client_id, R::header_version(version) >= 2);
    encode(std::any::type_name::<R>(), version, body, header.len(), |out| out.put_slice(&header))
}

/// The header of a request, without the length before it.
pub(crate) fn request_header(
    key: i16,
    version: i16,
    correlation_id: i32,
    client_id: Option<&str>,
    flexible: bool,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + client_id.map_or(0, str::len));
    out.put_i16(key);
    out.put_i16(version);
    out.put_i32(correlation_id);
    put_string(&mut out, client_id, false);
    if flexible {
        out.put_u8(0);
    }
    out
}

/// Reads a response frame, without its length: the correlation id, and the rest, from which
/// [`decode_response`] takes header and body once the request is known.
pub fn response_correlation_id(frame: &[u8]) -> Result<i32, ResponseError> {
    match frame.first_chunk::<4>() {
        Some(id) => Ok(i32::from_be_bytes(*id)),
        None => Err(ResponseError(format!("{} bytes are no response", frame.len()))),
    }
}

/// Decodes the response to a request of type `R` and the given version; `frame` is without its length. Byte fields
/// are slices of the frame. For responses of brokers that are trusted: arrays are allocated by their counts.
pub fn decode_response<R: KafkaRequest>(version: i16, frame: Bytes) -> Result<R::Response, ResponseError> {
    let header_bytes = 4;
    if frame.len() < header_bytes {
        return Err(ResponseError(format!("{} bytes are no response", frame.len())));
    }
    let mut body = frame.slice(header_bytes..);
    if R::Response::header_version(version) >= 1 {
        let mut reader = crate::wire::Reader::new(&body);
        reader.skip_tags().map_err(|e| ResponseError(e.to_string()))?;
        let at = reader.position();
        body = body.slice(at..);
    }
    R::Response::decode(&mut body, version).map_err(|e| ResponseError(e.to_string()))
}

fn encode<R: Encodable>(
    what: &'static str,
    version: i16,
    body: &R,
    header_bytes: usize,
    put_header: impl FnOnce(&mut BytesMut),
) -> Result<Bytes, EncodeError> {
    let error = |reason: String| EncodeError { what, version, reason };
    let body_bytes = body.compute_size(version).map_err(|e| error(e.to_string()))?;
    let frame_bytes = header_bytes + body_bytes;
    let length = i32::try_from(frame_bytes).map_err(|_| error(format!("{frame_bytes} bytes")))?;
    let mut out = BytesMut::with_capacity(4 + frame_bytes);
    out.put_i32(length);
    put_header(&mut out);
    body.encode(&mut out, version).map_err(|e| error(e.to_string()))?;
    debug_assert_eq!(out.len(), 4 + frame_bytes, "{what} version {version}: size and encoding differ");
    Ok(out.freeze())
}

/// A nullable string, compact or with a 2-byte length. Longer ones than a 2-byte length can say are cut by the callers'
/// own bounds: names are at most 249 bytes, client ids come from our own configuration.
pub(crate) fn put_string(out: &mut Vec<u8>, text: Option<&str>, compact: bool) {
    match (text, compact) {
        (None, true) => out.push(0),
        (None, false) => out.put_i16(-1),
        (Some(text), true) => {
            out.reserve(uvarint_len(text.len() as u32 + 1) + text.len());
            put_uvarint(out, text.len() as u32 + 1);
            out.put_slice(text.as_bytes());
        }
        (Some(text), false) => {
            let text = &text.as_bytes()[..text.len().min(i16::MAX as usize)];
            out.put_i16(text.len() as i16);
            out.put_slice(text);
        }
    }
}

/// An array's count, compact or as 4 bytes.
pub(crate) fn put_count(out: &mut Vec<u8>, count: usize, compact: bool) {
    if compact { put_uvarint(out, count as u32 + 1) } else { out.put_i32(count as i32) }
}
