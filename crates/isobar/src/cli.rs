//! The command line. Help texts are written for someone who has never run Isobar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// A Kafka broker that keeps its data in a bucket and acknowledges in milliseconds.
#[derive(Debug, Parser)]
#[command(name = "isobar", version, about, propagate_version = true, arg_required_else_help = true)]
#[command(
    after_help = "Start with:\n  isobar dev                 a broker on 127.0.0.1:9092, data in ./isobar-data\n  \
    isobar topic create events --partitions 4\n  echo hello | isobar produce events\n  \
    isobar consume events --from earliest --exit-at-end"
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How log lines look.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "ISOBAR_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
    /// What is logged, as tracing's EnvFilter reads it: "info", "warn,isobar_raft=debug", …
    #[arg(
        long,
        global = true,
        default_value = "info,openraft=warn",
        env = "ISOBAR_LOG",
        hide_default_value = true
    )]
    pub(crate) log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole broker in one process, for development: no other software needed.
    ///
    /// Data survives restart and `kill -9`. Stop it with Ctrl-C or SIGTERM.
    Dev(DevArgs),
    /// Load a real data set into a broker of its own, read it back and check every record.
    ///
    /// Ends by itself with exit code 0 only if every record came back right.
    Demo(DemoArgs),
    /// Create, list, describe, change and delete topics.
    #[command(subcommand)]
    Topic(TopicCommand),
    /// Write records from standard input or a file, one a line.
    Produce(ProduceArgs),
    /// Read records from a topic and print them, one a line.
    Consume(ConsumeArgs),
    /// List, describe and delete consumer groups.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Look at a bucket before or while it is used.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show what is inside a journal, object or snapshot, in readable form. The broker need not run.
    Dump(DumpArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DevArgs {
    /// Directory for the WAL, the metadata log and (without --store) the bucket.
    #[arg(long, value_name = "DIR", default_value = "./isobar-data", env = "ISOBAR_DATA")]
    pub(crate) data: PathBuf,
    /// Address for Kafka clients.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092", env = "ISOBAR_LISTEN")]
    pub(crate) listen: String,
    /// Address that clients are told to connect to, if it is not the one listened on.
    #[arg(long, value_name = "HOST:PORT", env = "ISOBAR_ADVERTISE")]
    pub(crate) advertise: Option<String>,
    /// Address for metrics and health; "off" for none.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9644", env = "ISOBAR_ADMIN")]
    pub(crate) admin: String,
    /// Bucket to write objects to, as a URL: s3://bucket/prefix, gs://…, az://…, file:///path (default: DIR/bucket).
    ///
    /// `isobar store check URL` tells whether it works and what is missing.
    #[arg(long, value_name = "URL", env = "ISOBAR_STORE")]
    pub(crate) store: Option<String>,
    /// Partitions of topics that are created by their first use (Kafka's num.partitions).
    #[arg(long, value_name = "N", default_value_t = 1, env = "ISOBAR_NUM_PARTITIONS")]
    pub(crate) num_partitions: i32,
    /// Whether a topic is created by its first use (Kafka's auto.create.topics.enable).
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set, env = "ISOBAR_AUTO_CREATE_TOPICS")]
    pub(crate) auto_create_topics: bool,
    /// Zone of this broker (Kafka's broker.rack).
    #[arg(long, value_name = "ZONE", env = "ISOBAR_RACK")]
    pub(crate) rack: Option<String>,
    /// Longest time that acknowledged records stay in the WAL only, in milliseconds.
    #[arg(long, value_name = "MS", default_value_t = 3_000, env = "ISOBAR_UPLOAD_INTERVAL_MS")]
    pub(crate) upload_interval_ms: u64,
    // For tests that must see what else takes gigabytes: small segments are recycled, small memory is read past.
    #[arg(long, value_name = "BYTES", hide = true, env = "ISOBAR_SEGMENT_BYTES")]
    pub(crate) segment_bytes: Option<u64>,
    #[arg(long, value_name = "BYTES", hide = true, env = "ISOBAR_SNAPSHOT_AFTER_BYTES")]
    pub(crate) snapshot_after_bytes: Option<u64>,
    #[arg(long, value_name = "BYTES", hide = true, env = "ISOBAR_TAIL_BYTES")]
    pub(crate) tail_bytes: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the broker running afterwards, for your own client.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Directory for the demo's data; a temporary one, deleted at the end, unless given.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address for Kafka clients; port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:0")]
    pub(crate) listen: String,
}

/// Where the broker is and how answers look.
#[derive(Debug, Clone, Args)]
pub(crate) struct Remote {
    /// Broker to ask.
    #[arg(
        long,
        short = 'b',
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:9092",
        env = "ISOBAR_BOOTSTRAP"
    )]
    pub(crate) bootstrap: String,
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TopicCommand {
    /// Create a topic.
    Create {
        /// Its name: letters, digits, '.', '_' and '-', at most 249 of them.
        name: String,
        /// Number of partitions.
        #[arg(long, short, default_value_t = 1)]
        partitions: i32,
        /// A config, name=value; may be given several times.
        #[arg(long, short, value_name = "NAME=VALUE")]
        config: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// List topics.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a topic's partitions, offsets and configs.
    Describe {
        /// The topic.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Change a topic's configs or add partitions.
    Alter {
        /// The topic.
        name: String,
        /// New total number of partitions; can only grow.
        #[arg(long, short)]
        partitions: Option<i32>,
        /// Set a config, name=value; may be given several times.
        #[arg(long, value_name = "NAME=VALUE")]
        set: Vec<String>,
        /// Give a config its default again; may be given several times.
        #[arg(long, value_name = "NAME")]
        unset: Vec<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a topic and its records.
    Delete {
        /// The topic.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProduceArgs {
    /// The topic.
    pub(crate) topic: String,
    /// Read records from this file instead of standard input.
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// A line is KEY, this separator, VALUE; without it a line is a value.
    #[arg(long, short = 'K', value_name = "SEPARATOR")]
    pub(crate) key_separator: Option<String>,
    /// Partition to write to; otherwise by the key's hash as Kafka's clients do, or in turn.
    #[arg(long, short)]
    pub(crate) partition: Option<i32>,
    /// Compression.
    #[arg(long, short = 'z', default_value = "none", value_parser = ["none", "gzip", "snappy", "lz4", "zstd"])]
    pub(crate) compression: String,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Args)]
pub(crate) struct ConsumeArgs {
    /// The topic.
    pub(crate) topic: String,
    /// Where to begin: "earliest", "latest", an offset, or a time as @MILLISECONDS since 1970.
    #[arg(long, short, default_value = "latest")]
    pub(crate) from: String,
    /// Only this partition.
    #[arg(long, short)]
    pub(crate) partition: Option<i32>,
    /// Read as a member of this consumer group, and commit what was printed.
    #[arg(long, short, conflicts_with = "partition")]
    pub(crate) group: Option<String>,
    /// Stop after this many records.
    #[arg(long, short = 'n', value_name = "N")]
    pub(crate) max: Option<u64>,
    /// Stop at the end of the topic, as it was at the start.
    #[arg(long, short)]
    pub(crate) exit_at_end: bool,
    /// Print the key and this separator before each value.
    #[arg(long, short = 'K', value_name = "SEPARATOR")]
    pub(crate) key_separator: Option<String>,
    #[command(flatten)]
    pub(crate) remote: Remote,
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// List groups.
    List {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show a group's members, committed offsets and lag.
    Describe {
        /// The group.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Delete a group that has no members, with its offsets.
    Delete {
        /// The group.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum StoreCommand {
    /// Check step by step whether a store is fit for Isobar, and say what is missing.
    ///
    /// URL is file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix?account=NAME or
    /// abfss://container@account.dfs.core.windows.net/prefix. Options follow as a query, for example
    /// s3://bucket/prefix?endpoint=http://127.0.0.1:9000&region=us-east-1; a wrong one lists all. Credentials come from the
    /// environment. It writes below probe/ and deletes what it wrote. Exit code 0 only if the store is fit.
    Check {
        /// The store.
        url: String,
        /// Print JSON, one object a step, for programs.
        #[arg(long)]
        json: bool,
        /// Races of 16 writers for one object.
        #[arg(long, value_name = "N", default_value_t = 20)]
        races: usize,
        /// Skip the measurement of latencies.
        #[arg(long)]
        quick: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DumpArgs {
    /// A data directory, a journal directory, an object file or a snapshot file.
    pub(crate) path: PathBuf,
    /// One JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Also the keys and values of records.
    #[arg(long)]
    pub(crate) records: bool,
}
