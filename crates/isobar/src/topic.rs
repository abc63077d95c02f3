//! `isobar topic`: topics and their configs.

use isobar_client::{Client, ConfigResource, NewTopic, OffsetSpec, TopicPartition};
use isobar_host::Host;
use serde_json::json;

use crate::Failure;
use crate::admin_client::ask;
use crate::cli::{AdminRemote, Remote, TopicCommand};
use crate::output::{Output, connect};

pub(crate) async fn run(command: TopicCommand) -> Result<(), Failure> {
    let host = Host::real();
    match command {
        TopicCommand::Create { name, partitions, config, remote } => {
            create(&host, &name, partitions, &config, &remote).await
        }
        TopicCommand::List { remote } => list(&host, &remote).await,
        TopicCommand::Describe { name, remote } => describe(&host, &name, &remote).await,
        TopicCommand::Alter { name, partitions, set, unset, remote } => {
            alter(&host, &name, partitions, &set, &unset, &remote).await
        }
        TopicCommand::Delete { name, remote } => {
            let client = connect(&host, &remote).await?;
            for outcome in client.delete_topics(&[&name]).await? {
                outcome?;
            }
            Output::new(&remote).done(&format!("deleted topic {name}"), json!({ "deleted": name }))
        }
        TopicCommand::Deleted { remote } => deleted(&host, &remote).await,
        TopicCommand::Undelete { topic, rename, remote } => {
            let asked = json!({ "topic": topic, "name": rename });
            let answer = ask(&host, &remote, "/v1/topics/undelete", Some(asked)).await?;
            let name = answer["undeleted"].as_str().unwrap_or(&topic).to_owned();
            Output::of(remote.json).done(&format!("topic {name} is back"), answer)
        }
        TopicCommand::Purge { topic, remote } => {
            let answer = ask(&host, &remote, "/v1/topics/purge", Some(json!({ "topic": topic }))).await?;
            Output::of(remote.json).done(&format!("topic {topic} is gone"), answer)
        }
    }
}

async fn deleted(host: &Host, remote: &AdminRemote) -> Result<(), Failure> {
    let answer = ask(host, remote, "/v1/topics/deleted", None).await?;
    let now_ms = answer["time_ms"].as_i64().unwrap_or(0);
    let mut output = Output::of(remote.json);
    output.columns(&["TOPIC", "PARTITIONS", "DELETED AGO", "GONE IN", "ID"]);
    for topic in answer["topics"].as_array().into_iter().flatten() {
        let time = |name: &str| topic[name].as_i64().unwrap_or(0);
        let text = |name: &str| topic[name].as_str().unwrap_or_default().to_owned();
        let row = [
            text("name"),
            topic["partitions"].to_string(),
            span(now_ms - time("deleted_ms")),
            span(time("purge_ms") - now_ms),
            text("id"),
        ];
        output.row(&row, topic.clone());
    }
    output.end()
}

/// A length of time for a person.
fn span(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} days", seconds / 86_400),
    }
}

fn pair(text: &str) -> Result<(String, String), Failure> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.trim().to_owned(), value.to_owned()))
}

async fn create(
    host: &Host,
    name: &str,
    partitions: i32,
    configs: &[String],
    remote: &Remote,
) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let mut topic = NewTopic::new(name, partitions);
    topic.configs = configs.iter().map(|text| pair(text)).collect::<Result<_, _>>()?;
    for outcome in client.create_topics(&[topic]).await? {
        outcome?;
    }
    let said = format!("created topic {name} with {partitions} partition(s)");
    Output::new(remote).done(&said, json!({ "created": name, "partitions": partitions }))
}

async fn list(host: &Host, remote: &Remote) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let metadata = client.metadata(None).await?;
    let mut output = Output::new(remote);
    output.columns(&["TOPIC", "PARTITIONS", "ID"]);
    for topic in metadata.topics.values() {
        let partitions = topic.partitions.len();
        output.row(
            &[topic.name.clone(), partitions.to_string(), topic.id.to_string()],
            json!({ "topic": topic.name, "partitions": partitions, "id": topic.id.to_string() }),
        );
    }
    output.end()
}

/// A partition's first and next offset.
pub(crate) async fn ends(
    client: &Client,
    topic: &str,
    partitions: impl Iterator<Item = i32> + Clone,
) -> Result<Vec<(i32, i64, i64)>, Failure> {
    let asked = |spec| {
        partitions.clone().map(move |index| (TopicPartition::new(topic, index), spec)).collect::<Vec<_>>()
    };
    let earliest = client.list_offsets(&asked(OffsetSpec::Earliest)).await?;
    let latest = client.list_offsets(&asked(OffsetSpec::Latest)).await?;
    let mut found = Vec::new();
    for (at, first) in earliest {
        let first = first?.offset.unwrap_or(0);
        let next = latest.get(&at).cloned().transpose()?.and_then(|listed| listed.offset).unwrap_or(first);
        found.push((at.partition, first, next));
    }
    Ok(found)
}

async fn describe(host: &Host, name: &str, remote: &Remote) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let topic = client.topic(name).await?;
    let configs = client.describe_configs(&ConfigResource::Topic(name.to_owned()), None).await?;
    let ends = ends(&client, name, topic.partitions.keys().copied()).await?;
    let mut output = Output::new(remote);
    output.heading(&format!("topic {name}, id {}", topic.id));
    output.columns(&["PARTITION", "LEADER", "FIRST OFFSET", "NEXT OFFSET", "RECORDS AT MOST"]);
    for (index, first, next) in ends {
        let leader = topic.partitions.get(&index).map_or(-1, |partition| partition.leader);
        output.row(
            &[
                index.to_string(),
                leader.to_string(),
                first.to_string(),
                next.to_string(),
                (next - first).to_string(),
            ],
            json!({ "partition": index, "leader": leader, "first_offset": first, "next_offset": next }),
        );
    }
    output.columns(&["CONFIG", "VALUE", "SET"]);
    for config in configs {
        let value = config.value.clone().unwrap_or_default();
        let set = if config.is_default { "" } else { "yes" };
        output.row(
            &[config.name.clone(), value, set.to_owned()],
            json!({ "config": config.name, "value": config.value, "is_default": config.is_default }),
        );
    }
    output.end()
}

async fn alter(
    host: &Host,
    name: &str,
    partitions: Option<i32>,
    set: &[String],
    unset: &[String],
    remote: &Remote,
) -> Result<(), Failure> {
    if partitions.is_none() && set.is_empty() && unset.is_empty() {
        return Err("nothing to change: give --partitions, --set or --unset".into());
    }
    let client = connect(host, remote).await?;
    if let Some(count) = partitions {
        client.create_partitions(name, count).await?;
    }
    let set: Vec<(String, String)> = set.iter().map(|text| pair(text)).collect::<Result<_, _>>()?;
    let changes: Vec<(&str, Option<&str>)> = (set.iter())
        .map(|(name, value)| (name.as_str(), Some(value.as_str())))
        .chain(unset.iter().map(|name| (name.as_str(), None)))
        .collect();
    if !changes.is_empty() {
        client.alter_configs(&ConfigResource::Topic(name.to_owned()), &changes).await?;
    }
    Output::new(remote).done(&format!("changed topic {name}"), json!({ "changed": name }))
}
