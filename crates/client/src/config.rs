//! Settings that all parts of a client share.

use std::time::Duration;

/// How a client reaches its cluster.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Brokers to ask first, each `host:port`.
    pub bootstrap: Vec<String>,
    /// What the broker's logs and metrics call this client.
    pub client_id: String,
    /// The zone this client runs in (`client.rack`).
    pub rack: Option<String>,
    /// For making one connection.
    pub connect_timeout: Duration,
    /// For one request; the broker may use most of it.
    pub request_timeout: Duration,
    /// For one call with all its retries.
    pub api_timeout: Duration,
    /// Requests on one connection that wait for their answer.
    pub max_in_flight: usize,
    /// Bytes of requests on one connection that wait for their answer; one larger request still goes alone.
    pub max_in_flight_bytes: usize,
    /// The longest response accepted.
    pub max_response_bytes: usize,
}

impl ClientConfig {
    /// Defaults, for a comma-separated list of `host:port`.
    pub fn new(bootstrap: &str) -> Self {
        ClientConfig {
            bootstrap: bootstrap
                .split(',')
                .map(|addr| addr.trim().to_owned())
                .filter(|addr| !addr.is_empty())
                .collect(),
            client_id: "isobar".to_owned(),
            rack: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            api_timeout: Duration::from_secs(60),
            max_in_flight: 64,
            max_in_flight_bytes: 64 * 1024 * 1024,
            max_response_bytes: 256 * 1024 * 1024,
        }
    }
}
