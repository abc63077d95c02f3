//! From a decoded request to its handler.

use std::sync::Arc;

use isobar_protocol::api::api_versions_response;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::{ApiVersionsRequest, ApiVersionsResponse};
use isobar_protocol::request::{Body, Request, RequestHeader};
use isobar_protocol::response::encode_response;

use crate::Broker;
use crate::connection::{Answer, Client};
use crate::{cluster, configs, delete_records, fetch, group, list_offsets, producer_ids, topics};

/// Handles any request but a Produce, which the connection starts itself.
pub(crate) async fn handle(broker: &Arc<Broker>, client: &Client, request: Request) -> Answer {
    let Request { header, body } = request;
    match body {
        Body::Produce(_) => Answer::Close,
        Body::Fetch(body) => fetch::handle(broker, client, &header, body).await,
        Body::ApiVersions(body) => api_versions(&header, &body),
        Body::UnsupportedApiVersions => api_versions(&header, &ApiVersionsRequest::default()),
        Body::Metadata(body) => Answer::of(&header, &cluster::metadata(broker, &header, body).await),
        Body::DescribeCluster(body) => Answer::of(&header, &cluster::describe(broker, &body)),
        Body::CreateTopics(body) => Answer::of(&header, &topics::create(broker, header.version, body).await),
        Body::DeleteTopics(body) => Answer::of(&header, &topics::delete(broker, header.version, body).await),
        Body::CreatePartitions(body) => Answer::of(&header, &topics::create_partitions(broker, body).await),
        Body::DescribeConfigs(body) => Answer::of(&header, &configs::describe(broker, &body).await),
        Body::IncrementalAlterConfigs(body) => Answer::of(&header, &configs::alter(broker, body).await),
        Body::ListOffsets(body) => {
            Answer::of(&header, &list_offsets::list(broker, header.version, body).await)
        }
        Body::OffsetForLeaderEpoch(body) => {
            Answer::of(&header, &list_offsets::for_leader_epoch(broker, body).await)
        }
        Body::DeleteRecords(body) => Answer::of(&header, &delete_records::handle(broker, body).await),
        Body::InitProducerId(body) => Answer::of(&header, &producer_ids::init(broker, body).await),
        body => group::handle(broker, client, &header, body).await,
    }
}

fn api_versions(header: &RequestHeader, body: &ApiVersionsRequest) -> Answer {
    let (mut response, version) = api_versions_response(header.version);
    let named = header.version >= 3 && version == header.version;
    let valid = isobar_protocol::api::is_valid_software_name;
    if named && !(valid(&body.client_software_name) && valid(&body.client_software_version)) {
        response = ApiVersionsResponse::default().with_error_code(ErrorCode::InvalidRequest.code());
    }
    match encode_response(header.api, version, header.correlation_id, &response) {
        Ok(bytes) => Answer::Send(bytes.into()),
        Err(error) => Answer::unencodable(header, &error),
    }
}
