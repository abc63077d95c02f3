//! The command line. Help texts are written for someone who has never run Isobar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    /// How log lines look: text for people, json for programs [env: ISOBAR_LOG_FORMAT].
    #[arg(long, global = true, value_name = "FORMAT")]
    pub(crate) log_format: Option<String>,
    /// What is logged, as tracing's EnvFilter reads it: "info", "warn,isobar_raft=debug", … [env: ISOBAR_LOG]
    #[arg(long, global = true, value_name = "FILTER")]
    pub(crate) log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole broker in one process, for development: no other software needed.
    ///
    /// Data survives restart and `kill -9`. Stop it with Ctrl-C or SIGTERM.
    Dev(DevArgs),
    /// Run a node as its configuration file says, alone or as one of a cluster.
    ///
    /// `isobar cluster init` writes the files of a new cluster. Stop it with Ctrl-C or SIGTERM: it lets its clients go to the other nodes
    /// first.
    Serve(ServeArgs),
    /// Make the files of a new cluster, and ask how one is.
    #[command(subcommand)]
    Cluster(ClusterCommand),
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
    /// Make a node from the bucket alone, when every directory of the old one is gone.
    ///
    /// Without --yes it only says what it finds: the cluster, up to when it can be brought back, and what is missing then. A
    /// Raft log or WAL that survived is not read: a directory that still has both is started, not recovered.
    Recover(RecoverArgs),
    /// Check a configuration file, and show what holds.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at a bucket before or while it is used.
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show what is inside a journal, object or snapshot, in readable form. The broker need not run.
    Dump(DumpArgs),
    /// Hold a running node's store against its metadata: objects that nothing refers to, and data that is missing or damaged.
    ///
    /// Ends with exit code 0 only if all is as it should be. It may run while clients write.
    Fsck(FsckArgs),
}

/// Whatever is not given is taken from the environment, the file, or the default: `isobar config example` lists all keys.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct DevArgs {
    /// Configuration file; `isobar config check FILE` explains what is wrong with one.
    #[arg(long, value_name = "FILE", env = "ISOBAR_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Directory for the WAL, the metadata log and (without --store) the bucket [default: ./isobar-data].
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
    /// Address for Kafka clients [default: 127.0.0.1:9092].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,
    /// Address that clients are told to connect to, if it is not the one listened on.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// Address for metrics and health; "off" for none [default: 127.0.0.1:9644].
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) admin: Option<String>,
    /// Bucket to write objects to, as a URL; file:///path for a directory [default: DIR/bucket].
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
    /// Partitions of topics that are created by their first use (Kafka's num.partitions) [default: 1].
    #[arg(long, value_name = "N")]
    pub(crate) num_partitions: Option<String>,
    /// Whether a topic is created by its first use (Kafka's auto.create.topics.enable) [default: true].
    #[arg(long, value_name = "BOOL")]
    pub(crate) auto_create_topics: Option<String>,
    /// Zone of this broker (Kafka's broker.rack).
    #[arg(long, value_name = "ZONE")]
    pub(crate) rack: Option<String>,
    /// Longest time that acknowledged records stay in the WAL only, in milliseconds [default: 3000].
    #[arg(long, value_name = "MS")]
    pub(crate) upload_interval_ms: Option<u64>,
    // For tests that must see what else takes gigabytes: small segments are recycled, small memory is read past.
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) segment_bytes: Option<u64>,
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) snapshot_after_bytes: Option<u64>,
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) tail_bytes: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file; `isobar config check FILE` explains what is wrong with one.
    #[arg(long, value_name = "FILE", env = "ISOBAR_CONFIG")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Write a configuration file for each node of a new cluster, and the secret by which they know each other.
    ///
    /// Take node-ID.toml and cluster.secret to each node and run `isobar serve --config node-ID.toml` there. The cluster begins once
    /// all of them have been up at the same time.
    Init(InitArgs),
    /// Make a node that has joined a voter of the metadata quorum.
    ///
    /// A node joins by itself when it is started with the cluster's id, secret and voters and with an address of its own
    /// (listeners.cluster). It then serves clients and keeps chunks by its roles; it votes only once it was added.
    Add(ChangeArgs),
    /// Bring a node back that has lost its data directory and was started again with an empty one.
    ///
    /// The old directory must be gone for good: what it promised no longer counts, and should it come back it is refused.
    Replace {
        #[command(flatten)]
        change: ChangeArgs,
        /// Where the other nodes reach it, if that is another place than before.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Take a node out for good. Drain it first.
    Remove {
        #[command(flatten)]
        change: ChangeArgs,
        /// Its disk is gone for good: do not wait for what is not uploaded yet. What only that disk had is lost then.
        #[arg(long)]
        lost: bool,
    },
    /// Move everything off a node: new chunks, clients, and what waits in its WAL. Ends when nothing needs the node any more.
    Drain {
        #[command(flatten)]
        change: ChangeArgs,
        /// Take it back: the node takes chunks and clients again.
        #[arg(long)]
        cancel: bool,
    },
    /// Let the cluster use what the newest release brought, once all nodes run it. Older releases cannot join it any more.
    Upgrade {
        #[command(flatten)]
        remote: AdminRemote,
    },
    /// Show the nodes of a cluster, who leads, and what is wrong. Exit code 0 only if nothing is.
    Status {
        #[command(flatten)]
        remote: AdminRemote,
    },
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// A node, as ID@HOST:PORT, where the other nodes reach it; given once for each, best three in three zones.
    #[arg(long = "node", value_name = "ID@HOST:PORT", required = true)]
    pub(crate) nodes: Vec<String>,
    /// Zone of each node, in the same order (Kafka's broker.rack).
    #[arg(long = "zone", value_name = "ZONE")]
    pub(crate) zones: Vec<String>,
    /// What each node does, in the same order: broker, wal, metadata, or some of them with commas between; all by default.
    ///
    /// Those with metadata are the first voters: one, or better three. Brokers and WAL replicas may also join later.
    #[arg(long = "roles", value_name = "ROLES")]
    pub(crate) roles: Vec<String>,
    /// The bucket of the cluster, as `isobar store check` takes it.
    #[arg(long, value_name = "URL")]
    pub(crate) store: String,
    /// Where to write the files.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// The node's id.
    #[arg(value_name = "NODE")]
    pub(crate) node: u64,
    #[command(flatten)]
    pub(crate) remote: AdminRemote,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Say what is wrong with a configuration file: key, line, and what was expected. The environment counts too.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Print what holds and where each value comes from: a flag, the environment, a line of the file, or the default.
    Show {
        #[command(flatten)]
        dev: Box<DevArgs>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Print a file with every key, its default and its meaning, all commented out.
    Example,
}

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    /// Directory for the new node; empty, or with nothing but the old node's bucket in it.
    #[arg(long, value_name = "DIR", env = "ISOBAR_DATA")]
    pub(crate) data: PathBuf,
    /// The bucket of the lost node, as a URL (default: DIR/bucket).
    #[arg(long, value_name = "URL", env = "ISOBAR_STORE")]
    pub(crate) store: Option<String>,
    /// Do it: claim the cluster, so that no older node of it may go on, and write the directory.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Look for some of the objects only, not for every one.
    #[arg(long)]
    pub(crate) quick: bool,
    #[arg(long, value_name = "BYTES", hide = true, env = "ISOBAR_SEGMENT_BYTES")]
    pub(crate) segment_bytes: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Leave the broker running afterwards, for your own client.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Directory for the demo's data; a temporary one, deleted at the end, unless given.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The bucket, as `isobar store check` takes it; a directory beside the data unless given. What the demo writes there stays.
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<String>,
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

/// Where a node's admin port is and how answers look.
#[derive(Debug, Clone, Args)]
pub(crate) struct AdminRemote {
    /// Admin port of the node.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9644", env = "ISOBAR_ADMIN")]
    pub(crate) admin: String,
    /// Print JSON, for programs.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Read every object and check every byte; reads the whole store.
    #[arg(long)]
    pub(crate) deep: bool,
    /// Delete objects whose ids expired, are deleted or were never granted; nothing else.
    #[arg(long)]
    pub(crate) repair: bool,
    #[command(flatten)]
    pub(crate) remote: AdminRemote,
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
    /// Delete a topic and its records. `isobar topic undelete` brings it back for a day (isobar.undelete.window.ms).
    Delete {
        /// The topic.
        name: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// List deleted topics that can be brought back.
    Deleted {
        #[command(flatten)]
        remote: AdminRemote,
    },
    /// Bring a deleted topic back: its records, offsets, configs and groups' offsets.
    Undelete {
        /// Its name, or its id where several of one name were deleted.
        topic: String,
        /// Bring it back under this name.
        #[arg(long = "as", value_name = "NAME")]
        rename: Option<String>,
        #[command(flatten)]
        remote: AdminRemote,
    },
    /// Give up a deleted topic before its time: it cannot be brought back any more.
    Purge {
        /// Its name, or its id where several of one name were deleted.
        topic: String,
        #[command(flatten)]
        remote: AdminRemote,
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
    /// Make an S3 bucket, with a rule that removes unfinished uploads.
    ///
    /// Only in builds with the cargo feature aws, as release packages are. The region is the URL's, AWS_REGION or the
    /// profile's; a bucket of yours that is there already is left as it is.
    Make {
        /// s3://bucket?region=REGION
        url: String,
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
