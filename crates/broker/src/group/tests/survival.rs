//! Power cuts at any step: what a group was told stays true.

use std::sync::Arc;
use std::time::Duration;

use isobar_host::sim::{SimDisk, World};
use parking_lot::Mutex;

use super::node::{Kafka, boot, join_group};

/// What the clients were told, over all lives.
#[derive(Default)]
struct Told {
    /// The highest offset whose commit was acknowledged.
    committed: i64,
    /// The highest that was sent.
    sent: i64,
    generation: i32,
    commits: u64,
    lives: u64,
    problem: Option<String>,
}

async fn life(kafka: Kafka, told: Arc<Mutex<Told>>) {
    kafka.create_topic("t", 1).await;
    let (offset, code) = kafka.fetch_offset("g", "t", 0).await;
    if code != 0 {
        return;
    }
    let (committed, sent) = {
        let told = told.lock();
        (told.committed, told.sent)
    };
    if !(committed..=sent).contains(&offset.max(0)) {
        told.lock().problem =
            Some(format!("offset {offset}, but {committed} was acknowledged and {sent} sent"));
    }
    told.lock().lives += 1;
    let mut member = String::new();
    loop {
        // Without it a member alone would go round within one step for ever.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let joined = kafka.call(9, join_group("g", &member)).await;
        member = if joined.error_code == 25 { String::new() } else { joined.member_id.to_string() };
        if joined.error_code != 0 {
            continue;
        }
        let generation = joined.generation_id;
        if generation <= told.lock().generation {
            told.lock().problem = Some(format!("generation {generation} for the second time"));
        }
        told.lock().generation = generation;
        let ids: Vec<String> = joined.members.iter().map(|m| m.member_id.to_string()).collect();
        let assign: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "x")).collect();
        if kafka.sync("g", &member, generation, &assign).await.error_code != 0 {
            continue;
        }
        for _ in 0..3 {
            let next = {
                let mut told = told.lock();
                told.sent += 1;
                told.sent
            };
            if kafka.commit("g", (&member, generation), "t", 0, next).await == 0 {
                let mut told = told.lock();
                told.committed = next;
                told.commits += 1;
            }
        }
    }
}

#[test]
fn power_cuts_at_any_step() {
    let (mut commits, mut lives) = (0, 0);
    for seed in 0..6 {
        let mut world = World::new(seed);
        world.add_node("a", Arc::new(SimDisk::new(seed)));
        let told: Arc<Mutex<Told>> = Arc::default();
        for _ in 0..4 {
            let shared = Arc::clone(&told);
            world.boot("a", |host| async move {
                let running = Arc::new(boot(&host).await);
                let broker = Arc::clone(&running.broker);
                life(Kafka { broker, running: Some(running), notes: Arc::default() }, shared).await;
            });
            // A dead member of the life before holds the first rebalance up for its session timeout.
            for _ in 0..6_500 + world.below(300) {
                world.step();
            }
            world.crash("a");
            assert_eq!(told.lock().problem, None, "seed {seed}");
        }
        commits += told.lock().commits;
        lives += told.lock().lives;
    }
    assert!(commits > 500 && lives > 15, "only {commits} commits in {lives} lives");
}
