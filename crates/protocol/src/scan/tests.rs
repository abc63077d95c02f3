//! The table against kafka-protocol. Requests are made up from the table at random, field by field; if
//! kafka-protocol decodes each to its last byte and encodes it back to the same bytes, both know the same layout.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::api::ApiKey;
use crate::messages::*;
use crate::request::{Body, DecodeError, MAX_DECODED_BYTES, decode_request};
use crate::response::{encode_request, put_count, put_string, request_header};
use crate::schema::{self, Tag};
use crate::wire::put_uvarint;
use crate::{Encodable, KafkaRequest};

/// A small generator of choices; proptest gives and shrinks its seed.
struct Choices(u64);

impl Choices {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % below
    }
}

struct Writer<'a> {
    choices: &'a mut Choices,
    version: i16,
    flexible: bool,
    unknown_tags: bool,
    out: Vec<u8>,
}

impl Writer<'_> {
    fn layout(&mut self, layout: &Layout) {
        for field in layout.fields {
            if self.version >= field.since && self.version <= field.until {
                self.value(&field.ty);
            }
        }
        if !self.flexible {
            return;
        }
        let known: Vec<&Tag> =
            layout.tags.iter().filter(|tag| self.version >= tag.since && self.choices.next(2) == 0).collect();
        let unknown = if self.unknown_tags { self.choices.next(3) as usize } else { 0 };
        put_uvarint(&mut self.out, (known.len() + unknown) as u32);
        for tag in known {
            put_uvarint(&mut self.out, tag.tag);
            let outer = std::mem::take(&mut self.out);
            // What a tagged field defaults to is left out by encoders, so strings are given here.
            match &tag.ty {
                Ty::Str(_) => put_string(&mut self.out, Some("cluster"), true),
                ty => self.value(ty),
            }
            let content = std::mem::replace(&mut self.out, outer);
            put_uvarint(&mut self.out, content.len() as u32);
            self.out.extend_from_slice(&content);
        }
        for number in 0..unknown {
            put_uvarint(&mut self.out, 100 + number as u32);
            let len = self.choices.next(5) as usize;
            put_uvarint(&mut self.out, len as u32);
            self.out.put_bytes(7, len);
        }
    }

    fn value(&mut self, ty: &Ty) {
        match ty {
            // 1 is a valid boolean, and no default of a tagged field.
            Ty::Fixed(bytes) => self.out.put_bytes(1, *bytes),
            Ty::Str(null_since) => {
                if self.version >= *null_since && self.choices.next(3) == 0 {
                    put_string(&mut self.out, None, self.flexible);
                } else {
                    let text = "naïve".repeat(self.choices.next(40) as usize);
                    put_string(&mut self.out, Some(&text), self.flexible);
                }
            }
            Ty::Bytes => {
                let len = self.choices.next(300) as usize;
                put_count(&mut self.out, len, self.flexible);
                self.out.put_bytes(9, len);
            }
            Ty::Array { null_since, of, .. } => {
                if self.version >= *null_since && self.choices.next(3) == 0 {
                    return if self.flexible { self.out.push(0) } else { self.out.put_i32(-1) };
                }
                let count = self.choices.next(4) as usize;
                put_count(&mut self.out, count, self.flexible);
                for _ in 0..count {
                    self.value(of);
                }
            }
            Ty::Struct(layout) => self.layout(layout),
        }
    }
}

fn random_body(choices: &mut Choices, api: ApiKey, version: i16, unknown_tags: bool) -> Vec<u8> {
    let flexible = api.is_flexible(version);
    let mut writer = Writer { choices, version, flexible, unknown_tags, out: Vec::new() };
    writer.layout(schema::request(api));
    writer.out
}

fn frame(api: ApiKey, version: i16, body: &[u8]) -> Bytes {
    let mut frame = request_header(api.key(), version, 7, Some("test"), api.is_flexible(version));
    frame.extend_from_slice(body);
    frame.into()
}

fn encode_again(body: &Body, version: i16) -> BytesMut {
    fn one<R: Encodable>(body: &R, version: i16) -> BytesMut {
        let mut out = BytesMut::new();
        body.encode(&mut out, version).unwrap();
        out
    }
    match body {
        Body::Produce(_) | Body::UnsupportedApiVersions => unreachable!(),
        Body::Fetch(body) => one(body, version),
        Body::ListOffsets(body) => one(body, version),
        Body::Metadata(body) => one(body, version),
        Body::OffsetCommit(body) => one(body, version),
        Body::OffsetFetch(body) => one(body, version),
        Body::FindCoordinator(body) => one(body, version),
        Body::JoinGroup(body) => one(body, version),
        Body::Heartbeat(body) => one(body, version),
        Body::LeaveGroup(body) => one(body, version),
        Body::SyncGroup(body) => one(body, version),
        Body::DescribeGroups(body) => one(body, version),
        Body::ListGroups(body) => one(body, version),
        Body::ApiVersions(body) => one(body, version),
        Body::CreateTopics(body) => one(body, version),
        Body::DeleteTopics(body) => one(body, version),
        Body::DeleteRecords(body) => one(body, version),
        Body::InitProducerId(body) => one(body, version),
        Body::OffsetForLeaderEpoch(body) => one(body, version),
        Body::DescribeConfigs(body) => one(body, version),
        Body::CreatePartitions(body) => one(body, version),
        Body::DeleteGroups(body) => one(body, version),
        Body::IncrementalAlterConfigs(body) => one(body, version),
        Body::DescribeCluster(body) => one(body, version),
    }
}

fn scanned_apis() -> impl Iterator<Item = (ApiKey, i16)> {
    ApiKey::ALL.iter().filter(|api| **api != ApiKey::Produce).flat_map(|&api| {
        let versions = api.versions();
        (versions.min..=versions.max).map(move |version| (api, version))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn table_and_kafka_protocol_agree_on_every_version(seed in 1u64.., unknown_tags: bool) {
        let mut choices = Choices(seed);
        for (api, version) in scanned_apis() {
            let body = random_body(&mut choices, api, version, unknown_tags);
            let request = decode_request(frame(api, version, &body))
                .map_err(|e| TestCaseError::fail(format!("{api:?} {version}: {e}")))?;
            prop_assert_eq!(request.header.correlation_id, 7);
            prop_assert_eq!(request.header.client_id.as_deref(), Some("test"));
            prop_assert_eq!(&encode_again(&request.body, version)[..], &body[..], "{:?} {}", api, version);
        }
    }

    /// What the walk accepts, the decoder accepts: no other error may come out of it.
    #[test]
    fn mutated_requests_are_refused_by_the_walk_or_decoded(seed in 1u64..) {
        let mut choices = Choices(seed);
        for (api, version) in scanned_apis() {
            let mut bytes = frame(api, version, &random_body(&mut choices, api, version, true)).to_vec();
            for _ in 0..=choices.next(3) {
                let at = 8 + choices.next(bytes.len() as u64 - 8) as usize;
                match choices.next(4) {
                    0 => bytes[at] = choices.next(256) as u8,
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][choices.next(5) as usize],
                    2 => bytes.truncate(at.max(9)),
                    _ => bytes.insert(at, choices.next(256) as u8),
                }
            }
            if let Err(DecodeError::Undecodable { reason, .. }) = decode_request(bytes.into()) {
                prop_assert!(false, "{:?} {}: {}", api, version, reason);
            }
        }
    }

    #[test]
    fn junk_never_panics(key in 0i16..70, version in -1i16..20, junk in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = [&key.to_be_bytes()[..], &version.to_be_bytes()].concat();
        bytes.extend_from_slice(&junk);
        let _ = decode_request(bytes.into());
    }
}

#[test]
fn default_requests_of_clients_decode() {
    fn check<R: KafkaRequest + Default>() {
        let api = ApiKey::from_wire(R::KEY).unwrap();
        for version in api.versions().min..=api.versions().max {
            let bytes = encode_request(version, -5, None, &R::default()).unwrap();
            let request =
                decode_request(bytes.slice(4..)).unwrap_or_else(|e| panic!("{api:?} {version}: {e}"));
            assert_eq!((request.header.api, request.header.version), (api, version));
            assert_eq!((request.header.correlation_id, request.header.client_id), (-5, None));
        }
    }
    check::<FetchRequest>();
    check::<ListOffsetsRequest>();
    check::<MetadataRequest>();
    check::<OffsetCommitRequest>();
    check::<OffsetFetchRequest>();
    check::<FindCoordinatorRequest>();
    check::<JoinGroupRequest>();
    check::<HeartbeatRequest>();
    check::<LeaveGroupRequest>();
    check::<SyncGroupRequest>();
    check::<DescribeGroupsRequest>();
    check::<ListGroupsRequest>();
    check::<ApiVersionsRequest>();
    check::<CreateTopicsRequest>();
    check::<DeleteTopicsRequest>();
    check::<DeleteRecordsRequest>();
    check::<InitProducerIdRequest>();
    check::<OffsetForLeaderEpochRequest>();
    check::<DescribeConfigsRequest>();
    check::<CreatePartitionsRequest>();
    check::<DeleteGroupsRequest>();
    check::<IncrementalAlterConfigsRequest>();
    check::<DescribeClusterRequest>();
    check::<ProduceRequest>();
}

#[test]
fn the_eight_byte_request_that_asks_for_gigabytes() {
    for (version, count) in [(1, &[0x7f, 0xff, 0xff, 0xff][..]), (9, &[0, 0xff, 0xff, 0xff, 0xff, 0x0f][..])]
    {
        let mut bytes = request_header(ApiKey::Metadata.key(), version, 0, None, false);
        bytes.extend_from_slice(count);
        let error = decode_request(bytes.into()).unwrap_err();
        assert!(matches!(error, DecodeError::Body { reason: Malformed::Count { .. }, .. }), "{error}");
    }
}

#[test]
fn unknown_tags_cannot_cost_more_than_the_budget() {
    // Each struct with one empty unknown tag costs a map node for three bytes of request.
    let mut body = Vec::new();
    let count = 2_000_000;
    put_count(&mut body, count, true);
    for _ in 0..count {
        body.extend_from_slice(&[1, 1, 1, 5, 0]); // name "", no partitions, one tag
    }
    body.extend_from_slice(&[0, 0]);
    let error = decode_request(frame(ApiKey::OffsetFetch, 6, &[&[1][..], &body].concat())).unwrap_err();
    assert!(
        matches!(error, DecodeError::Body { reason: Malformed::TooCostly(MAX_DECODED_BYTES), .. }),
        "{error}"
    );
}

#[test]
fn api_versions_from_the_future_and_unserved_requests() {
    let mut bytes = request_header(ApiKey::ApiVersions.key(), 99, 42, None, true);
    bytes.extend_from_slice(&[1, 2, 3]);
    let request = decode_request(bytes.into()).unwrap();
    assert_eq!((request.header.correlation_id, request.body), (42, Body::UnsupportedApiVersions));
    let produce_v2 = request_header(0, 2, 1, None, false);
    assert!(matches!(decode_request(produce_v2.into()), Err(DecodeError::NotServed(_))));
    assert!(matches!(decode_request(Bytes::new()), Err(DecodeError::Header(Malformed::Short))));
}
