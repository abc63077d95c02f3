//! From a byte stream to frames: a request is a 4-byte length and then that many bytes, of which the first four
//! name the API and its version.
//!
//! All of it is decided on the first eight bytes, before a body is read or memory for it taken. Every error here
//! closes the connection, as Kafka's does, since nothing after it can be told apart.

use crate::api::ApiKey;

/// Kafka's `socket.request.max.bytes`.
pub const DEFAULT_MAX_REQUEST_BYTES: usize = 104_857_600;

/// The bytes that [`FrameHead::parse`] needs.
pub const HEAD_BYTES: usize = 8;

/// API key, version and correlation id: no request is shorter.
const MIN_FRAME_BYTES: usize = 8;

/// What the first eight bytes of a request say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHead {
    /// Bytes of the frame after its 4-byte length.
    pub len_bytes: usize,
    /// The API.
    pub api: ApiKey,
    /// Its version; served, except that for ApiVersions it may be any (see [`crate::api::api_versions_response`]).
    pub version: i16,
}

/// Why a connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length is negative.
    #[error("request announces a negative length of {0}: not a Kafka client?")]
    Negative(i32),
    /// Longer than `socket.request.max.bytes`.
    #[error("request of {len_bytes} bytes is longer than socket.request.max.bytes = {max_bytes}")]
    TooLarge {
        /// Bytes announced.
        len_bytes: usize,
        /// The configured bound.
        max_bytes: usize,
    },
    /// Too short for a request header.
    #[error("request of {0} bytes is shorter than a request header")]
    TooSmall(usize),
    /// An API that is not served.
    #[error("request names API key {0}, which this broker does not serve")]
    UnknownApi(i16),
    /// A version that is not served.
    #[error("request names version {version} of {api:?}, which this broker does not serve")]
    UnsupportedVersion {
        /// The API.
        api: ApiKey,
        /// The version asked for.
        version: i16,
    },
}

impl FrameHead {
    /// Reads the head of a frame from what has arrived so far. `None`: fewer than [`HEAD_BYTES`] and nothing wrong
    /// yet; a bad length is an error from the fourth byte on. Bytes behind the head are ignored.
    pub fn parse(first: &[u8], max_bytes: usize) -> Result<Option<FrameHead>, FrameError> {
        let Some((length, rest)) = first.split_first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*length);
        let Ok(len_bytes) = usize::try_from(length) else { return Err(FrameError::Negative(length)) };
        if len_bytes > max_bytes {
            return Err(FrameError::TooLarge { len_bytes, max_bytes });
        }
        if len_bytes < MIN_FRAME_BYTES {
            return Err(FrameError::TooSmall(len_bytes));
        }
        let Some(&[k0, k1, v0, v1]) = rest.first_chunk::<4>() else { return Ok(None) };
        let (api, version) = served(i16::from_be_bytes([k0, k1]), i16::from_be_bytes([v0, v1]))?;
        Ok(Some(FrameHead { len_bytes, api, version }))
    }

    /// Bytes of the frame with its length.
    pub fn total_bytes(&self) -> usize {
        4 + self.len_bytes
    }
}

/// The API of a key and version, if it is answered.
pub(crate) fn served(key: i16, version: i16) -> Result<(ApiKey, i16), FrameError> {
    let api = ApiKey::from_wire(key).ok_or(FrameError::UnknownApi(key))?;
    if api.is_served(version) || api == ApiKey::ApiVersions {
        Ok((api, version))
    } else {
        Err(FrameError::UnsupportedVersion { api, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(length: i32, key: i16, version: i16) -> Vec<u8> {
        [&length.to_be_bytes()[..], &key.to_be_bytes(), &version.to_be_bytes()].concat()
    }

    #[test]
    fn bounds() {
        let max = DEFAULT_MAX_REQUEST_BYTES;
        let parse = |length, key, version| FrameHead::parse(&head(length, key, version), max);
        assert_eq!(parse(-1, 0, 3), Err(FrameError::Negative(-1)));
        assert_eq!(parse(7, 0, 3), Err(FrameError::TooSmall(7)));
        assert_eq!(
            parse(max as i32 + 1, 0, 3),
            Err(FrameError::TooLarge { len_bytes: max + 1, max_bytes: max })
        );
        assert_eq!(
            parse(max as i32, 0, 3),
            Ok(Some(FrameHead { len_bytes: max, api: ApiKey::Produce, version: 3 }))
        );
        assert_eq!(parse(100, 17, 0), Err(FrameError::UnknownApi(17)));
        assert_eq!(
            parse(100, 0, 2),
            Err(FrameError::UnsupportedVersion { api: ApiKey::Produce, version: 2 })
        );
        assert_eq!(parse(100, 18, 77).unwrap().unwrap().version, 77);
        // "GET / HT": an HTTP client is refused on its first four bytes.
        assert!(matches!(FrameHead::parse(b"GET ", max), Err(FrameError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn waits_for_eight_bytes_and_never_changes_its_mind(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            let whole = FrameHead::parse(&bytes, 1 << 20);
            for n in 0..bytes.len() {
                match FrameHead::parse(&bytes[..n], 1 << 20) {
                    Ok(None) => prop_assert!(n < HEAD_BYTES),
                    decided => prop_assert_eq!(decided, whole),
                }
            }
        }
    }
}
