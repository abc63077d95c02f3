//! `isobar cluster`: the files of a new cluster, how a running one is, and its nodes that come and go.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use isobar_host::Host;
use isobar_node::config::{Config, nodes};
use isobar_node::node::new_cluster_id;
use serde_json::{Value, json};

use crate::Failure;
use crate::admin_client::ask;
use crate::cli::{AdminRemote, ChangeArgs, ClusterCommand, InitArgs};
use crate::output::Output;

/// Between two looks at a node that is drained.
const DRAIN_LOOK: Duration = Duration::from_secs(1);
const SECRET: &str = "cluster.secret";
/// Kafka's port, and the default of `listeners.admin`; of several nodes at one address each has the next.
const KAFKA_PORT: u16 = 9092;
const ADMIN_PORT: u16 = 9644;

pub(crate) async fn run(command: ClusterCommand) -> Result<(), Failure> {
    match command {
        ClusterCommand::Init(new) => init(&new),
        ClusterCommand::Add(change) => ask_for(&change, "add", json!({})).await,
        ClusterCommand::Replace { change, address } => {
            ask_for(&change, "replace", json!({ "address": address.unwrap_or_default() })).await
        }
        ClusterCommand::Remove { change, lost } => ask_for(&change, "remove", json!({ "lost": lost })).await,
        ClusterCommand::Drain { change, cancel: true } => ask_for(&change, "undrain", json!({})).await,
        ClusterCommand::Drain { change, cancel: false } => drain(&change).await,
        ClusterCommand::Upgrade { remote } => {
            let done = ask(&Host::real(), &remote, "/v1/cluster/upgrade", Some(json!({}))).await?;
            tell(&remote, &done)
        }
        ClusterCommand::Status { remote } => status(&remote).await,
    }
}

/// Has the leader do something to a node; any node passes it on.
async fn ask_for(change: &ChangeArgs, what: &str, mut body: Value) -> Result<(), Failure> {
    body["node"] = json!(change.node);
    let done = ask(&Host::real(), &change.remote, &format!("/v1/cluster/{what}"), Some(body)).await?;
    tell(&change.remote, &done)
}

fn tell(remote: &AdminRemote, done: &Value) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let said =
        if remote.json { done.to_string() } else { done["said"].as_str().unwrap_or_default().to_owned() };
    Ok(writeln!(stdout, "{said}")?)
}

/// Until nothing needs the node; what is left is told as it changes.
async fn drain(change: &ChangeArgs) -> Result<(), Failure> {
    let host = Host::real();
    let mut said = Value::Null;
    loop {
        let body = json!({ "node": change.node });
        let done = ask(&host, &change.remote, "/v1/cluster/drain", Some(body)).await?;
        if done["said"] != said {
            tell(&change.remote, &done)?;
            said = done["said"].clone();
        }
        if done["open_streams"] == 0 && done["waiting_chunks"] == 0 {
            return Ok(());
        }
        tokio::time::sleep(DRAIN_LOOK).await;
    }
}

fn init(new: &InitArgs) -> Result<(), Failure> {
    let given = new.nodes.join(",");
    let members = nodes(&given).filter(|members| members.len() == new.nodes.len()).ok_or_else(|| {
        format!("{given:?} are no nodes: each is ID@HOST:PORT, and none may be there twice")
    })?;
    for (option, count) in [("zone", new.zones.len()), ("roles", new.roles.len())] {
        if count != 0 && count != members.len() {
            return Err(format!("give --{option} for each --node, or for none").into());
        }
    }
    let voters = members.iter().enumerate().filter(|(place, _)| has_role(new, *place, "metadata"));
    let voters: Vec<String> = voters.map(|(_, (id, address))| format!("{id}@{address}")).collect();
    if voters.is_empty() {
        return Err("a cluster begins with its voters: give a node the role metadata".into());
    }
    let host = Host::real();
    let id = new_cluster_id(&host);
    let secret: String = (0..4).fold(String::new(), |mut text, _| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{:016x}", host.random_u64());
        text
    });
    let mut files = vec![(SECRET.to_owned(), format!("{secret}\n"))];
    for (place, (node_id, _)) in members.iter().enumerate() {
        let text = node_file(new, &id, &voters.join(","), &members, place)?;
        let file = format!("node-{node_id}.toml");
        // What is written must be good.
        Config::load(Some((Path::new(&file), &text)), [], &[])?;
        files.push((file, text));
    }
    for (file, text) in &files {
        write_new(&new.out.join(file), text)?;
    }
    let mut stdout = std::io::stdout().lock();
    writeln!(
        stdout,
        "cluster {id}: wrote {SECRET} and {} node files to {}",
        members.len(),
        new.out.display()
    )?;
    for (node_id, address) in &members {
        writeln!(stdout, "  at {address}: isobar serve --config node-{node_id}.toml")?;
    }
    Ok(writeln!(
        stdout,
        "keep {SECRET} to yourself; it must lie beside each node's file, where the node is started"
    )?)
}

fn has_role(new: &InitArgs, place: usize, role: &str) -> bool {
    new.roles.get(place).is_none_or(|roles| roles.split(',').any(|one| one.trim() == role))
}

/// The file of the node at `place`.
fn node_file(
    new: &InitArgs,
    cluster_id: &str,
    voters: &str,
    members: &[(u64, String)],
    place: usize,
) -> Result<String, Failure> {
    let (node_id, address) = &members[place];
    let name = address.rsplit_once(':').map_or(address.as_str(), |(name, _)| name);
    let before = members[..place].iter().filter(|(_, other)| other.starts_with(&format!("{name}:")));
    let nth = u16::try_from(before.count())?;
    let line =
        |key: &str, value: Option<&String>| value.map_or(String::new(), |v| format!("{key} = {v:?}\n"));
    let kafka = has_role(new, place, "broker").then(|| format!("{name}:{}", KAFKA_PORT + nth));
    // Voters are reached where they are said to be.
    let own_address = (!has_role(new, place, "metadata")).then_some(address);
    Ok(format!(
        "# Node {node_id} of cluster {cluster_id}: isobar serve --config node-{node_id}.toml\n\n\
         [node]\nid = {node_id}\ndata = \"./isobar-{node_id}\"\n{}{}\n\
         [listeners]\n{}{}admin = \"127.0.0.1:{}\"\n\n\
         [cluster]\nid = \"{cluster_id}\"\nvoters = {voters:?}\nsecret_file = \"{SECRET}\"\n\n\
         [store]\nurl = {:?}\n",
        line("zone", new.zones.get(place)),
        line("roles", new.roles.get(place)),
        line("kafka", kafka.as_ref()),
        line("cluster", own_address),
        ADMIN_PORT + nth,
        new.store,
    ))
}

/// Readable by its owner alone, and never over another cluster's.
#[expect(
    clippy::disallowed_methods,
    reason = "a command's own files; there is no node yet whose disk it could be"
)]
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    Ok(file.sync_all().map_err(failed)?)
}

async fn status(remote: &AdminRemote) -> Result<(), Failure> {
    let answer = ask(&Host::real(), remote, "/v1/cluster", None).await?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    let mut output = Output::of(remote.json);
    output.heading(&format!(
        "cluster {}, seen by node {}",
        text(&answer["cluster_id"]),
        text(&answer["node"])
    ));
    output.columns(&["NODE", "ADDRESS", "METADATA", "BROKER", "KAFKA", "ZONE", "WAL"]);
    for node in answer["nodes"].as_array().into_iter().flatten() {
        let cells =
            ["id", "address", "metadata", "broker", "kafka", "zone", "wal"].map(|name| text(&node[name]));
        output.row(&cells, node.clone());
    }
    let wrong: Vec<String> = answer["wrong"].as_array().into_iter().flatten().map(text).collect();
    for what in &wrong {
        output.heading(what);
    }
    output.end()?;
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} thing(s) are wrong", wrong.len()).into()) }
}
