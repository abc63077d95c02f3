//! What a node's transport is started with.

use std::fmt;
use std::time::Duration;

use ring::hmac;

use crate::error::RpcError;
use crate::metrics::RpcMetrics;

/// Fewer bytes than these are guessed too easily.
pub const MIN_SECRET_BYTES: usize = 16;

/// The cluster secret: every node has the same. Never shown.
#[derive(Clone)]
pub struct Secret {
    key: hmac::Key,
    bytes: usize,
}

impl Secret {
    /// A secret of at least [`MIN_SECRET_BYTES`] bytes; fewer are refused at [`crate::Rpc::start`].
    pub fn new(secret: impl AsRef<[u8]>) -> Self {
        let secret = secret.as_ref();
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret), bytes: secret.len() }
    }

    pub(crate) fn key(&self) -> &hmac::Key {
        &self.key
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

/// Options of [`crate::Rpc::start`].
#[derive(Debug, Clone)]
pub struct RpcOptions {
    /// `host:port`; port 0 picks a free one.
    pub listen: String,
    /// This node.
    pub node_id: i32,
    /// The cluster, at most 64 bytes; both ends must name the same.
    pub cluster_id: String,
    /// The cluster secret.
    pub secret: Secret,
    /// Largest body of a request, an answer or a part of a stream. The smaller of both ends' counts. 160 MiB.
    pub max_message_bytes: usize,
    /// Bytes of requests that came and are not answered; each channel has a quarter, and reading stops at it. (A message
    /// larger than the quarter takes all of it.) 512 MiB.
    pub max_inbound_bytes: usize,
    /// Bytes of answers that wait to be written, over all connections; a connection that goes beyond is closed. 512 MiB.
    pub max_outbound_bytes: usize,
    /// Bytes of requests of one peer and channel that wait to be written; beyond it calls are [`crate::CallError::NotSent`].
    /// A single request may be larger. 64 MiB.
    pub max_queue_bytes: usize,
    /// Calls of one peer and channel without an answer yet. 65,536.
    pub max_calls: usize,
    /// Bytes of a stream's parts that were sent and not taken. 4 MiB.
    pub stream_window_bytes: u32,
    /// For connecting and the handshake together. 2 s.
    pub connect_timeout: Duration,
    /// A connection that has sent nothing for as long sends a ping. 1 s.
    pub ping_interval: Duration,
    /// A connection that has heard nothing for as long is dead. 5 s.
    pub dead_after: Duration,
    /// A peer that lives and takes no byte for as long is not waited for any longer. 30 s.
    pub write_stall: Duration,
    /// Counts into these.
    pub metrics: RpcMetrics,
}

impl RpcOptions {
    /// Defaults for the rest.
    pub fn new(
        listen: impl Into<String>,
        node_id: i32,
        cluster_id: impl Into<String>,
        secret: Secret,
    ) -> Self {
        Self {
            listen: listen.into(),
            node_id,
            cluster_id: cluster_id.into(),
            secret,
            max_message_bytes: 160 << 20,
            max_inbound_bytes: 512 << 20,
            max_outbound_bytes: 512 << 20,
            max_queue_bytes: 64 << 20,
            max_calls: 65_536,
            stream_window_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(2),
            ping_interval: Duration::from_secs(1),
            dead_after: Duration::from_secs(5),
            write_stall: Duration::from_secs(30),
            metrics: RpcMetrics::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), RpcError> {
        let wrong = |why: &str| Err(RpcError::Options(why.to_owned()));
        if self.secret.bytes < MIN_SECRET_BYTES {
            return wrong("the cluster secret has fewer than 16 bytes");
        }
        if self.cluster_id.is_empty() || self.cluster_id.len() > 64 {
            return wrong("the cluster id must have 1 to 64 bytes");
        }
        if self.max_message_bytes == 0 || self.max_message_bytes > 1 << 30 {
            return wrong("the largest message must be of 1 byte to 1 GiB");
        }
        if self.stream_window_bytes == 0 || self.stream_window_bytes > crate::inbound::MAX_WINDOW_BYTES {
            return wrong("a stream's window must be of 1 byte to 256 MiB");
        }
        if self.max_inbound_bytes < 4 || self.ping_interval.is_zero() || self.dead_after <= self.ping_interval
        {
            return wrong("no inbound bytes, no ping interval, or dead before the first ping");
        }
        Ok(())
    }
}
