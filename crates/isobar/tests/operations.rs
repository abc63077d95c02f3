//! `isobar fsck` and `isobar topic undelete|deleted|purge` against a running node, as somebody types them.

#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
#![allow(clippy::disallowed_methods, reason = "a real node, a real command and real files")]

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use isobar_client::{
    Client, ClientConfig, NewTopic, OffsetSpec, OutgoingRecord, Producer, ProducerConfig, TopicPartition,
};
use isobar_host::Host;
use isobar_node::node::{Node, NodeOptions};
use serde_json::Value;

async fn isobar(admin: &str, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isobar"));
    command.args(args).args(["--json", "--admin", admin]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn produce(client: &Client, topic: &str, count: u8) {
    let producer = Producer::new(client, ProducerConfig::default()).await.unwrap();
    for n in 0..count {
        let record = OutgoingRecord { value: Some(vec![n; 2000].into()), ..OutgoingRecord::default() };
        producer.send(&TopicPartition::new(topic, 0), record).await.unwrap().await.unwrap();
    }
}

async fn end(client: &Client, topic: &str) -> Option<i64> {
    let at = TopicPartition::new(topic, 0);
    let listed = client.list_offsets(&[(at.clone(), OffsetSpec::Latest)]).await.ok()?;
    listed.get(&at)?.as_ref().ok()?.offset
}

async fn start(dir: &Path) -> (Node, Client, String) {
    let host = Host::real();
    let mut options = NodeOptions::new(dir);
    options.broker.listen = "127.0.0.1:0".to_owned();
    options.admin = Some("127.0.0.1:0".to_owned());
    options.upload_interval = Duration::from_millis(50);
    let node = Node::start(&host, options).await.unwrap();
    let mut config = ClientConfig::new(&node.local_addr().unwrap().to_string());
    config.api_timeout = Duration::from_secs(3);
    let client = Client::connect(&host, config).await.unwrap();
    let admin = node.admin_addr().unwrap().to_string();
    (node, client, admin)
}

#[tokio::test(flavor = "multi_thread")]
async fn fsck_of_a_running_node() {
    let dir = tempfile::tempdir().unwrap();
    let (node, client, admin) = start(dir.path()).await;
    client.create_topics(&[NewTopic::new("t", 1)]).await.unwrap();
    produce(&client, "t", 20).await;
    assert!(node.flush(Duration::from_secs(10)).await);

    let clean = isobar(&admin, &["fsck", "--deep"]).await;
    assert!(clean.status.success(), "{clean:?}");
    let told = lines(&clean);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["clean"], told[0]["read"].as_u64() > Some(0)), (&Value::Bool(true), true));

    let spread = dir.path().join("bucket/data/ff");
    std::fs::create_dir_all(&spread).unwrap();
    std::fs::write(spread.join("notes.txt"), b"mine").unwrap();
    let foreign = isobar(&admin, &["fsck", "--repair"]).await;
    assert!(!foreign.status.success());
    assert_eq!(lines(&foreign)[0]["finding"], "foreign");
    assert!(spread.join("notes.txt").exists());
    node.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_comes_back_with_its_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let (node, client, admin) = start(dir.path()).await;
    client.create_topics(&[NewTopic::new("t", 1)]).await.unwrap();
    produce(&client, "t", 5).await;
    client.delete_topics(&["t"]).await.unwrap();
    assert_eq!(end(&client, "t").await, None);
    let deleted = isobar(&admin, &["topic", "deleted"]).await;
    assert_eq!(lines(&deleted)[0]["name"], "t", "{deleted:?}");

    let back = isobar(&admin, &["topic", "undelete", "t"]).await;
    assert!(back.status.success(), "{back:?}");
    assert_eq!(end(&client, "t").await, Some(5));
    produce(&client, "t", 1).await;
    assert_eq!(end(&client, "t").await, Some(6));

    // Under another name, while a new topic has the old one.
    client.delete_topics(&["t"]).await.unwrap();
    client.create_topics(&[NewTopic::new("t", 1)]).await.unwrap();
    let taken = isobar(&admin, &["topic", "undelete", "t"]).await;
    assert!(
        !taken.status.success() && String::from_utf8_lossy(&taken.stderr).contains("TOPIC_ALREADY_EXISTS")
    );
    assert!(isobar(&admin, &["topic", "undelete", "t", "--as", "old"]).await.status.success());
    assert_eq!((end(&client, "t").await, end(&client, "old").await), (Some(0), Some(6)));

    client.delete_topics(&["old"]).await.unwrap();
    assert!(isobar(&admin, &["topic", "purge", "old"]).await.status.success());
    assert!(!isobar(&admin, &["topic", "undelete", "old"]).await.status.success());
    assert!(lines(&isobar(&admin, &["topic", "deleted"]).await).is_empty());
    node.stop().await.unwrap();
}
