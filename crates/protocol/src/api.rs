//! The one table of served APIs: what is advertised, what a frame may name, and which header each version has.
//!
//! Kafka 4 advertises Produce from version 0 although it serves 3 and up, because librdkafka before 2.8 takes
//! a missing 0 for a broker without Produce (KAFKA-18659). Nothing else is advertised that is not served.

use crate::messages::ApiVersionsResponse;
use crate::messages::api_versions_response::ApiVersion;

/// What a client may send, and what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Lowest version named in an ApiVersions response.
    pub advertised_min: i16,
    /// Lowest version served.
    pub min: i16,
    /// Highest version served and advertised.
    pub max: i16,
    /// First flexible version (KIP-482): compact lengths and tagged fields.
    pub flexible: i16,
}

macro_rules! api_table {
    ($($(#[$doc:meta])* $api:ident = $key:literal, $min:literal..=$max:literal, advertised $adv:literal, flexible $flex:literal;)*) => {
        /// An API that Isobar serves.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i16)]
        pub enum ApiKey {
            $(#[doc = concat!("Versions ", stringify!($min), " to ", stringify!($max), ".")] $(#[$doc])* $api = $key,)*
        }

        impl ApiKey {
            /// Every served API, by key.
            pub const ALL: &[ApiKey] = &[$(ApiKey::$api),*];

            /// The API of a request header's key; `None` if it is not served.
            pub const fn from_wire(key: i16) -> Option<ApiKey> {
                match key {
                    $($key => Some(ApiKey::$api),)*
                    _ => None,
                }
            }

            /// Kafka's name, such as `OffsetCommit`; also the `api` label of metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(ApiKey::$api => stringify!($api),)*
                }
            }

            /// The version numbers of this API.
            pub const fn versions(self) -> Versions {
                match self {
                    $(ApiKey::$api => Versions { advertised_min: $adv, min: $min, max: $max, flexible: $flex },)*
                }
            }
        }
    };
}

api_table! {
    Produce = 0, 3..=13, advertised 0, flexible 9;
    Fetch = 1, 4..=18, advertised 4, flexible 12;
    ListOffsets = 2, 1..=10, advertised 1, flexible 6;
    Metadata = 3, 0..=13, advertised 0, flexible 9;
    OffsetCommit = 8, 2..=9, advertised 2, flexible 8;
    OffsetFetch = 9, 1..=9, advertised 1, flexible 6;
    FindCoordinator = 10, 0..=6, advertised 0, flexible 3;
    JoinGroup = 11, 0..=9, advertised 0, flexible 6;
    Heartbeat = 12, 0..=4, advertised 0, flexible 4;
    LeaveGroup = 13, 0..=5, advertised 0, flexible 4;
    SyncGroup = 14, 0..=5, advertised 0, flexible 4;
    DescribeGroups = 15, 0..=6, advertised 0, flexible 5;
    ListGroups = 16, 0..=5, advertised 0, flexible 3;
    ApiVersions = 18, 0..=4, advertised 0, flexible 3;
    CreateTopics = 19, 2..=7, advertised 2, flexible 5;
    DeleteTopics = 20, 1..=6, advertised 1, flexible 4;
    DeleteRecords = 21, 0..=2, advertised 0, flexible 2;
    InitProducerId = 22, 0..=5, advertised 0, flexible 2;
    OffsetForLeaderEpoch = 23, 2..=4, advertised 2, flexible 4;
    DescribeConfigs = 32, 1..=4, advertised 1, flexible 4;
    CreatePartitions = 37, 0..=3, advertised 0, flexible 2;
    DeleteGroups = 42, 0..=2, advertised 0, flexible 2;
    IncrementalAlterConfigs = 44, 0..=1, advertised 0, flexible 1;
    DescribeCluster = 60, 0..=2, advertised 0, flexible 0;
}

impl ApiKey {
    /// The key on the wire.
    pub const fn key(self) -> i16 {
        self as i16
    }

    /// Whether requests of this version are answered.
    pub const fn is_served(self, version: i16) -> bool {
        let versions = self.versions();
        version >= versions.min && version <= versions.max
    }

    /// Whether this version has compact lengths and tagged fields (KIP-482).
    pub const fn is_flexible(self, version: i16) -> bool {
        version >= self.versions().flexible
    }

    /// Version of the response header: 1 (with tagged fields) in flexible versions, else 0. That of ApiVersions is
    /// always 0, so that a client can read it before it knows the broker's versions (KIP-511).
    pub const fn response_header_version(self, version: i16) -> i16 {
        if matches!(self, ApiKey::ApiVersions) { 0 } else { self.is_flexible(version) as i16 }
    }
}

/// The answer to an ApiVersions request of the given version, and the version to encode it with.
///
/// A version above the served ones gets error 35 and the whole table in a version 0 body, from which the client
/// picks a version it knows (KIP-511).
pub fn api_versions_response(request_version: i16) -> (ApiVersionsResponse, i16) {
    let served = ApiKey::ApiVersions.is_served(request_version);
    let error =
        if served { crate::error::ErrorCode::None } else { crate::error::ErrorCode::UnsupportedVersion };
    let table = ApiKey::ALL
        .iter()
        .map(|api| {
            let versions = api.versions();
            ApiVersion::default()
                .with_api_key(api.key())
                .with_min_version(versions.advertised_min)
                .with_max_version(versions.max)
        })
        .collect();
    let response = ApiVersionsResponse::default().with_error_code(error.code()).with_api_keys(table);
    (response, if served { request_version } else { 0 })
}

/// Whether a client's software name or version is one that Kafka accepts (KIP-511): letters and digits, with `-`
/// and `.` inside. Anything else is answered with INVALID_REQUEST.
pub fn is_valid_software_name(name: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::ApiKey as Theirs;

    #[test]
    fn table_agrees_with_the_generated_schemas() {
        for &api in ApiKey::ALL {
            let theirs = Theirs::try_from(api.key()).unwrap();
            assert_eq!(format!("{theirs:?}"), api.name());
            let versions = api.versions();
            for version in versions.min..=versions.max {
                assert_eq!(
                    theirs.request_header_version(version),
                    1 + api.is_flexible(version) as i16,
                    "{api:?} {version}"
                );
                assert_eq!(
                    theirs.response_header_version(version),
                    api.response_header_version(version),
                    "{api:?} {version}"
                );
            }
            assert!(versions.advertised_min <= versions.min);
            assert!(
                theirs.valid_versions().min <= versions.min && theirs.valid_versions().max >= versions.max
            );
            assert_eq!(ApiKey::from_wire(api.key()), Some(api));
        }
        assert_eq!(ApiKey::from_wire(17), None);
    }

    #[test]
    fn unknown_api_versions_get_the_table_as_version_0() {
        let (response, version) = api_versions_response(99);
        assert_eq!((response.error_code, version), (35, 0));
        assert_eq!(response.api_keys.len(), ApiKey::ALL.len());
        let (response, version) = api_versions_response(3);
        assert_eq!((response.error_code, version), (0, 3));
        let produce = response.api_keys.iter().find(|row| row.api_key == 0).unwrap();
        assert_eq!((produce.min_version, produce.max_version), (0, 13));
    }

    #[test]
    fn software_names() {
        for good in ["librdkafka", "apache-kafka-java", "2.13.0", "a"] {
            assert!(is_valid_software_name(good), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "ä", "."] {
            assert!(!is_valid_software_name(bad), "{bad}");
        }
    }
}
