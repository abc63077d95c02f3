//! What a broker can be told, with Kafka's names and defaults where Kafka has them.

/// Settings of one broker.
#[derive(Debug, Clone)]
pub struct Options {
    /// `node.id`: this broker's id in metadata responses.
    pub node_id: i32,
    /// Address to listen on, `host:port`.
    pub listen: String,
    /// Address that clients are told, `host:port`; the listening one if `None`.
    pub advertise: Option<String>,
    /// `broker.rack`, Kafka's word for the zone.
    pub rack: Option<String>,
    /// `socket.request.max.bytes`: the largest frame.
    pub socket_request_max_bytes: usize,
    /// `connections.max.idle.ms`.
    pub connections_max_idle_ms: u64,
    /// `max.connections`: more are closed at once.
    pub max_connections: usize,
    /// `queued.max.request.bytes`: request bytes held while they are read and handled.
    pub queued_max_request_bytes: usize,
    /// `auto.create.topics.enable`.
    pub auto_create_topics_enable: bool,
    /// `num.partitions` of topics that do not say.
    pub num_partitions: i32,
    /// `group.initial.rebalance.delay.ms`. Kafka's default is 3 s; a broker that is alone need not wait for others.
    pub group_initial_rebalance_delay_ms: u64,
    /// `group.min.session.timeout.ms`.
    pub group_min_session_timeout_ms: u32,
    /// `group.max.session.timeout.ms`.
    pub group_max_session_timeout_ms: u32,
    /// `group.max.size`: members of one group.
    pub group_max_size: usize,
    /// `offset.metadata.max.bytes`, counted as Kafka does, in UTF-16 units.
    pub offset_metadata_max_bytes: usize,
    /// `offsets.retention.minutes`.
    pub offsets_retention_minutes: u64,
    /// `log.retention.check.interval.ms`: how often log starts are moved and deleted topics end.
    pub log_retention_check_interval_ms: u64,
    /// `fetch.max.bytes` of the broker: the most that one Fetch response carries.
    pub fetch_max_bytes: usize,
    /// `max.incremental.fetch.session.cache.slots` (KIP-227).
    pub fetch_session_slots: usize,
    /// Bytes of one lane that wait for their acknowledgement before producers are held up.
    pub lane_max_bytes: usize,
    /// Appends of one lane that may be under way at once.
    pub lane_max_in_flight: usize,
    /// A chunk that has grown to this size is sent although another append is under way.
    pub chunk_target_bytes: usize,
    /// The same for the durability class `object`, where a chunk is a PUT.
    pub object_target_bytes: usize,
    /// How long batches of the class `object` gather before they are put: what a PUT costs against latency.
    pub object_linger_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            node_id: 1,
            listen: "127.0.0.1:9092".to_owned(),
            advertise: None,
            rack: None,
            socket_request_max_bytes: isobar_protocol::frame::DEFAULT_MAX_REQUEST_BYTES,
            connections_max_idle_ms: 600_000,
            max_connections: 10_000,
            queued_max_request_bytes: 256 << 20,
            auto_create_topics_enable: true,
            num_partitions: 1,
            group_initial_rebalance_delay_ms: 0,
            group_min_session_timeout_ms: 6_000,
            group_max_session_timeout_ms: 1_800_000,
            group_max_size: i32::MAX as usize,
            offset_metadata_max_bytes: 4_096,
            offsets_retention_minutes: 10_080,
            log_retention_check_interval_ms: 300_000,
            fetch_max_bytes: 55 << 20,
            fetch_session_slots: 1_000,
            lane_max_bytes: 64 << 20,
            lane_max_in_flight: 4,
            chunk_target_bytes: 1 << 20,
            object_target_bytes: 8 << 20,
            object_linger_ms: 250,
        }
    }
}
