//! `isobar group`: consumer groups, their members and offsets.

use std::collections::BTreeSet;

use isobar_client::TopicPartition;
use isobar_host::Host;
use isobar_protocol::StrBytes;
use isobar_protocol::error::ErrorCode;
use isobar_protocol::messages::{DeleteGroupsRequest, GroupId};
use serde_json::json;

use crate::Failure;
use crate::cli::{GroupCommand, Remote};
use crate::output::{Output, connect};
use crate::topic::ends;

pub(crate) async fn run(command: GroupCommand) -> Result<(), Failure> {
    let host = Host::real();
    match command {
        GroupCommand::List { remote } => list(&host, &remote).await,
        GroupCommand::Describe { name, remote } => describe(&host, &name, &remote).await,
        GroupCommand::Delete { name, remote } => delete(&host, &name, &remote).await,
    }
}

async fn list(host: &Host, remote: &Remote) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let mut output = Output::new(remote);
    output.columns(&["GROUP", "STATE", "PROTOCOL"]);
    for group in client.list_groups().await? {
        output.row(
            &[group.group.clone(), group.state.clone(), group.protocol_type.clone()],
            json!({ "group": group.group, "state": group.state, "protocol_type": group.protocol_type }),
        );
    }
    output.end()
}

async fn describe(host: &Host, name: &str, remote: &Remote) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let group = client.describe_group(name).await?;
    let offsets = client.group_offsets(name).await?;
    if &*group.group_state == "Dead" && offsets.is_empty() {
        return Err(format!("there is no group {name}").into());
    }
    let mut output = Output::new(remote);
    output.heading(&format!("group {name}: {}", &*group.group_state));
    output.columns(&["TOPIC", "PARTITION", "COMMITTED", "NEXT OFFSET", "LAG"]);
    let topics: BTreeSet<&str> = offsets.keys().map(|at| at.topic.as_str()).collect();
    for topic in topics {
        let partitions = offsets.keys().filter(|at| at.topic == topic).map(|at| at.partition);
        for (partition, _, next) in ends(&client, topic, partitions).await? {
            let committed =
                offsets.get(&TopicPartition::new(topic, partition)).map_or(-1, |found| found.offset);
            output.row(
                &[
                    topic.to_owned(),
                    partition.to_string(),
                    committed.to_string(),
                    next.to_string(),
                    (next - committed).to_string(),
                ],
                json!({
                    "topic": topic, "partition": partition, "committed": committed, "next_offset": next,
                    "lag": next - committed,
                }),
            );
        }
    }
    output.columns(&["MEMBER", "CLIENT", "HOST"]);
    for member in &group.members {
        output.row(
            &[member.member_id.to_string(), member.client_id.to_string(), member.client_host.to_string()],
            json!({
                "member": &*member.member_id, "client_id": &*member.client_id, "host": &*member.client_host,
            }),
        );
    }
    output.end()
}

async fn delete(host: &Host, name: &str, remote: &Remote) -> Result<(), Failure> {
    let client = connect(host, remote).await?;
    let asked = vec![GroupId(StrBytes::from_string(name.to_owned()))];
    let response = client.call(None, &DeleteGroupsRequest::default().with_groups_names(asked), 0).await?;
    let code =
        response.results.first().map_or(ErrorCode::None, |result| ErrorCode::from_i16(result.error_code));
    if code != ErrorCode::None {
        return Err(format!("group {name} was not deleted: {} ({})", code.name(), code.message()).into());
    }
    Output::new(remote).done(&format!("deleted group {name}"), json!({ "deleted": name }))
}
