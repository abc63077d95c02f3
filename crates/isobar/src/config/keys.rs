//! The table of keys.

use isobar_metadata::config_table::{BROKER_CONFIGS, FIXED_BROKER_CONFIGS};

use super::value::{Kind, Value, nodes};
use crate::node::{NodeOptions, Roles, Store};

/// Options below this prefix go to the store as they are; so do variables that begin with [`STORE_OPTIONS_ENV`].
pub(super) const STORE_OPTIONS: &str = "store.options.";
pub(super) const STORE_OPTIONS_ENV: &str = "ISOBAR_STORE_OPTIONS_";
/// The section of Kafka's own configs.
pub(super) const KAFKA: &str = "kafka";

/// One key.
#[derive(Debug)]
pub struct Key {
    /// Section and key, with a dot; Kafka's own keys have more.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// As the file has it.
    pub default: &'static str,
    /// What it means.
    pub doc: &'static str,
    /// The flag that sets it, with its dashes.
    pub flag: Option<&'static str>,
    /// Whether it is never shown.
    pub secret: bool,
    variable: Option<&'static str>,
    pub(super) apply: fn(&mut NodeOptions, &Value),
}

impl Key {
    /// The variable that sets it.
    pub fn env(&self) -> String {
        match self.variable {
            Some(name) => name.to_owned(),
            None => format!("ISOBAR_{}", self.name.replace('.', "_").to_ascii_uppercase()),
        }
    }

    /// The default, checked by a test to be one.
    pub(super) fn default_value(&self) -> Value {
        self.kind.of_text(self.default.trim_matches('"')).unwrap_or(Value::Text(String::new()))
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn variable(mut self, name: &'static str) -> Self {
        self.variable = Some(name);
        self
    }
}

const fn key(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    doc: &'static str,
    apply: fn(&mut NodeOptions, &Value),
) -> Key {
    Key { name, kind, default, doc, flag: None, secret: false, variable: None, apply }
}

fn or_none(value: &Value) -> Option<String> {
    Some(value.text()).filter(|text| !text.is_empty()).map(str::to_owned)
}

const SPAN_MAX_MS: u64 = 365 * 86_400_000;
const INT: Kind = Kind::Int(1, i32::MAX as i64);

pub(super) const ROLES: &[&str] = &["broker", "wal", "metadata"];

fn roles(text: &str) -> Roles {
    let has = |role: &str| text.split(',').any(|word| word.trim() == role);
    Roles { broker: has("broker"), wal: has("wal"), metadata: has("metadata") }
}

/// Every key, by section in the order of the example file.
pub static KEYS: &[Key] = &[
    key(
        "node.data",
        Kind::Text { empty: "the working directory" },
        "\"./isobar-data\"",
        "Directory for the WAL, the metadata log and, without store.url, the bucket.",
        |o, v| o.data = v.text().into(),
    )
    .flag("--data"),
    key(
        "node.id",
        Kind::Int(0, i32::MAX as i64),
        "1",
        "This node's id; Kafka's node.id. It is written into a new data directory and may not change.",
        |o, v| o.broker.node_id = v.int() as i32,
    ),
    key(
        "node.roles",
        Kind::SomeOf(ROLES),
        "\"broker,wal,metadata\"",
        "What this node does in a cluster: serve clients, keep what is not uploaded yet, vote on metadata. Kafka's process.roles.",
        |o, v| o.roles = roles(v.text()),
    ),
    key(
        "node.zone",
        Kind::Text { empty: "none" },
        "\"\"",
        "Zone of this broker; Kafka's broker.rack.",
        |o, v| o.broker.rack = or_none(v),
    )
    .flag("--rack"),
    key(
        "listeners.kafka",
        Kind::Address(&[]),
        "\"127.0.0.1:9092\"",
        "Address for Kafka clients; port 0 takes a free one.",
        |o, v| o.broker.listen = v.text().to_owned(),
    )
    .flag("--listen"),
    key(
        "listeners.advertised",
        Kind::Address(&[""]),
        "\"\"",
        "Address that clients are told to connect to, if it is not the one listened on.",
        |o, v| o.broker.advertise = or_none(v),
    )
    .flag("--advertise"),
    key(
        "listeners.admin",
        Kind::Address(&["off"]),
        "\"127.0.0.1:9644\"",
        "Address for metrics and health.",
        |o, v| o.admin = or_none(v).filter(|text| text != "off"),
    )
    .flag("--admin"),
    key(
        "listeners.cluster",
        Kind::Address(&[""]),
        "\"\"",
        "Address for other nodes, if it is not this node's in cluster.voters. A node that is not among them is also reached there.",
        |o, v| o.cluster.listen = or_none(v),
    ),
    key(
        "cluster.voters",
        Kind::Nodes,
        "\"\"",
        "The metadata voters that the cluster began with, as others reach them; the same at all. A node that is not among them joins \
         by them. Kafka's controller.quorum.voters. Empty: this node is alone.",
        |o, v| o.cluster.voters = nodes(v.text()).unwrap_or_default(),
    ),
    key(
        "cluster.id",
        Kind::Text { empty: "one of its own, of a node that is alone" },
        "\"\"",
        "Kafka's cluster id, the same at all nodes.",
        |o, v| o.cluster.id = v.text().to_owned(),
    ),
    key(
        "cluster.secret_file",
        Kind::Text { empty: "none, of a node that is alone" },
        "\"\"",
        "File with the secret by which nodes know each other, the same at all nodes.",
        |o, v| o.cluster.secret_file = v.text().into(),
    ),
    key(
        "store.url",
        Kind::Text { empty: "a directory within node.data" },
        "\"\"",
        "Bucket to write objects to. What its kind of store takes beside it goes into [store.options].",
        |o, v| {
            if let Some(url) = or_none(v) {
                o.store = Store::Url(url)
            }
        },
    )
    .flag("--store"),
    key(
        "wal.max_disk",
        Kind::Bytes(64 << 20, u64::MAX),
        "\"4GiB\"",
        "Disk for records that are not uploaded yet; at this bound producers are held up.",
        |o, v| o.wal_max_disk_bytes = v.int() as u64,
    ),
    key(
        "wal.memory",
        Kind::Bytes(64 << 10, 1 << 40),
        "\"128MiB\"",
        "Memory for recent records, which tail reads and uploads are served from.",
        |o, v| o.tail_bytes = v.size(),
    )
    .flag("--tail-bytes"),
    key(
        "wal.segment",
        Kind::AutoBytes(8 << 20, 1 << 40),
        "\"auto\"",
        "Length of a full-grown segment of the WAL and of the metadata log; auto: 128 MiB and 32 MiB.",
        |o, v| o.segment_bytes = v.bytes(),
    )
    .flag("--segment-bytes"),
    key(
        "metadata.snapshot_after",
        Kind::Bytes(1 << 10, 1 << 40),
        "\"64MiB\"",
        "A snapshot of the metadata is taken when its log has grown by this since the last.",
        |o, v| o.snapshot_after_bytes = v.int() as u64,
    )
    .flag("--snapshot-after-bytes"),
    key(
        "cache.memory",
        Kind::Bytes(1 << 20, 1 << 40),
        "\"64MiB\"",
        "Memory for blocks of objects that are read.",
        |o, v| o.cache_bytes = v.size(),
    ),
    key(
        "cache.disk",
        Kind::AutoBytes(0, 1 << 50),
        "\"auto\"",
        "Disk for blocks of objects, below DATA/cache; 0: none; auto: 1 GiB, if four times that is free and the bucket is no directory.",
        |o, v| o.disk_cache_bytes = v.bytes(),
    ),
    key(
        "upload.interval",
        Kind::Duration(1, SPAN_MAX_MS),
        "\"3s\"",
        "Longest time that acknowledged records stay in the WAL only.",
        |o, v| o.upload_interval = v.duration(),
    )
    .flag("--upload-interval-ms"),
    key(
        "upload.trigger",
        Kind::Bytes(4 << 10, 1 << 40),
        "\"16MiB\"",
        "As many waiting bytes start an upload sooner.",
        |o, v| o.upload_trigger_bytes = v.int() as u64,
    ),
    key(
        "upload.deadline",
        Kind::Duration(1000, SPAN_MAX_MS),
        "\"10m\"",
        "How long an upload may take: longer than a slow store needs for 32 MiB. What a killed broker left is deleted after it.",
        |o, v| o.upload_deadline = v.duration(),
    ),
    key(
        "compaction.interval",
        Kind::Duration(10, SPAN_MAX_MS),
        "\"10s\"",
        "How often objects that are worth merging are looked for.",
        |o, v| o.jobs.compaction.interval = v.duration(),
    ),
    key(
        "compaction.bytes_per_s",
        Kind::Bytes(64 << 10, 1 << 40),
        "\"64MiB\"",
        "The most that merging reads in a second.",
        |o, v| o.jobs.compaction.bytes_per_s = v.int() as u64,
    ),
    key(
        "compaction.deadline",
        Kind::Duration(1000, SPAN_MAX_MS),
        "\"1h\"",
        "The least time that a merge is given. What a killed broker left is deleted after it.",
        |o, v| o.jobs.compaction.grant_lifetime = v.duration(),
    ),
    key(
        "index.interval",
        Kind::Duration(10, SPAN_MAX_MS),
        "\"30s\"",
        "How often extents of merged objects leave metadata's memory for index objects.",
        |o, v| o.jobs.index.interval = v.duration(),
    ),
    key(
        "index.deadline",
        Kind::Duration(1000, SPAN_MAX_MS),
        "\"10m\"",
        "How long writing an index object may take.",
        |o, v| o.jobs.index.grant_lifetime = v.duration(),
    ),
    key(
        "object.linger",
        Kind::Duration(0, 60_000),
        "\"250ms\"",
        "How long records of topics with isobar.durability=object gather before they are put: latency against the cost of PUTs.",
        |o, v| o.broker.object_linger_ms = v.duration().as_millis() as u64,
    ),
    key(
        "object.target",
        Kind::Bytes(4 << 10, 64 << 20),
        "\"8MiB\"",
        "As many gathered bytes are put sooner.",
        |o, v| o.broker.object_target_bytes = v.size(),
    ),
    key(
        "archive.interval",
        Kind::Duration(10, SPAN_MAX_MS),
        "\"3s\"",
        "Longest time that the metadata log stays on this node's disk only.",
        |o, v| o.archive.interval = v.duration(),
    ),
    key(
        "delete.interval",
        Kind::Duration(10, SPAN_MAX_MS),
        "\"10s\"",
        "How often objects that nothing refers to are looked for.",
        |o, v| o.deleter.interval = v.duration(),
    ),
    key(
        "delete.grace",
        Kind::Duration(0, SPAN_MAX_MS),
        "\"5m\"",
        "How long such an object stays: longer than any read takes.",
        |o, v| o.deleter.grace = v.duration(),
    ),
    key(
        "delete.repeat",
        Kind::Duration(1000, SPAN_MAX_MS),
        "\"6h\"",
        "How often a delete is repeated, as a late PUT may still land.",
        |o, v| o.deleter.repeat = v.duration(),
    ),
    key(
        "log.filter",
        Kind::Text { empty: "nothing" },
        "\"info,openraft=error\"",
        "What is logged, as tracing's EnvFilter reads it.",
        |_, _| {},
    )
    .flag("--log")
    .variable("ISOBAR_LOG"),
    key(
        "log.format",
        Kind::OneOf(&["text", "json"]),
        "\"text\"",
        "How log lines look: text for people, json for programs.",
        |_, _| {},
    )
    .flag("--log-format"),
    key(
        "kafka.auto.create.topics.enable",
        Kind::Bool,
        "true",
        "Whether a topic is created by its first use.",
        |o, v| o.broker.auto_create_topics_enable = v.is_true(),
    )
    .flag("--auto-create-topics"),
    key(
        "kafka.connections.max.idle.ms",
        Kind::Millis(1, i64::MAX),
        "600000",
        "Idle connections are closed after this.",
        |o, v| o.broker.connections_max_idle_ms = v.int() as u64,
    ),
    key(
        "kafka.fetch.max.bytes",
        Kind::Bytes(1024, i32::MAX as u64),
        "57671680",
        "The most that one Fetch response carries.",
        |o, v| o.broker.fetch_max_bytes = v.size(),
    ),
    key(
        "kafka.group.initial.rebalance.delay.ms",
        Kind::Millis(0, i32::MAX as i64),
        "0",
        "How long a new group waits for more members. Kafka's default is 3000.",
        |o, v| o.broker.group_initial_rebalance_delay_ms = v.int() as u64,
    ),
    key(
        "kafka.group.max.session.timeout.ms",
        Kind::Millis(1, i32::MAX as i64),
        "1800000",
        "The longest session timeout that a member may ask for.",
        |o, v| o.broker.group_max_session_timeout_ms = v.int() as u32,
    ),
    key("kafka.group.max.size", INT, "2147483647", "Members of one group.", |o, v| {
        o.broker.group_max_size = v.size()
    }),
    key(
        "kafka.group.min.session.timeout.ms",
        Kind::Millis(1, i32::MAX as i64),
        "6000",
        "The shortest session timeout that a member may ask for.",
        |o, v| o.broker.group_min_session_timeout_ms = v.int() as u32,
    ),
    key(
        "kafka.log.retention.check.interval.ms",
        Kind::Millis(1, i64::MAX),
        "300000",
        "How often log starts are moved by retention.ms and retention.bytes, and deleted topics end.",
        |o, v| o.broker.log_retention_check_interval_ms = v.int() as u64,
    ),
    key(
        "kafka.max.connections",
        INT,
        "10000",
        "Connections; more are closed at once. Kafka's default is 2147483647.",
        |o, v| o.broker.max_connections = v.size(),
    ),
    key(
        "kafka.max.incremental.fetch.session.cache.slots",
        Kind::Int(0, i32::MAX as i64),
        "1000",
        "Fetch sessions kept (KIP-227).",
        |o, v| o.broker.fetch_session_slots = v.size(),
    ),
    key("kafka.num.partitions", INT, "1", "Partitions of topics that do not say.", |o, v| {
        o.broker.num_partitions = v.int() as i32
    })
    .flag("--num-partitions"),
    key(
        "kafka.offset.metadata.max.bytes",
        Kind::Int(0, i32::MAX as i64),
        "4096",
        "The longest metadata of a committed offset.",
        |o, v| o.broker.offset_metadata_max_bytes = v.size(),
    ),
    key(
        "kafka.offsets.retention.minutes",
        INT,
        "10080",
        "Offsets of an empty group are kept this long.",
        |o, v| o.broker.offsets_retention_minutes = v.int() as u64,
    ),
    key(
        "kafka.queued.max.request.bytes",
        Kind::Bytes(1 << 20, 1 << 40),
        "268435456",
        "Request bytes held while they are read and handled. Kafka's default is -1, unbounded.",
        |o, v| o.broker.queued_max_request_bytes = v.size(),
    ),
    key(
        "kafka.socket.request.max.bytes",
        Kind::Bytes(1024, i32::MAX as u64),
        "104857600",
        "The largest request.",
        |o, v| o.broker.socket_request_max_bytes = v.size(),
    ),
];

/// The key of this name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// The sections, in order.
pub(super) fn sections() -> impl Iterator<Item = &'static str> {
    let mut last = "";
    KEYS.iter().filter_map(move |key| {
        let section = key.name.split_once('.').map_or(key.name, |(section, _)| section);
        (std::mem::replace(&mut last, section) != section).then_some(section)
    })
}

/// Whether a variable is named as a key of some section would be.
pub(super) fn env_of_a_section(variable: &str) -> bool {
    let Some(rest) = variable.strip_prefix("ISOBAR_") else { return false };
    sections().any(|section| {
        let section = section.to_ascii_uppercase();
        rest.strip_prefix(&section).is_some_and(|rest| rest.starts_with('_'))
    })
}

/// Where a config of Kafka's is set that this section does not take.
pub(super) fn kafka_elsewhere(name: &str) -> Option<String> {
    let own = match name {
        "listeners" => Some("listeners.kafka"),
        "advertised.listeners" => Some("listeners.advertised"),
        "broker.id" | "node.id" => Some("node.id"),
        "broker.rack" => Some("node.zone"),
        "log.dir" | "log.dirs" | "metadata.log.dir" => Some("node.data"),
        _ => None,
    };
    if let Some(key) = own {
        return Some(format!("set {key} instead"));
    }
    if BROKER_CONFIGS.iter().any(|def| def.name == name) {
        return Some(format!(
            "{name} is the whole cluster's: set it with `kafka-configs --alter --entity-type brokers --entity-default`"
        ));
    }
    let fixed = FIXED_BROKER_CONFIGS.iter().any(|def| def.name == name);
    fixed.then(|| format!("{name} is fixed in Isobar"))
}
