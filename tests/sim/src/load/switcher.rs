//! Moves topics of the history from one durability class to the other, under their producers.

use isobar_client::{Client, ConfigResource};

use super::{DURABILITY, Load, Me};
use crate::plan::Draw as _;

pub(super) async fn run(mut me: Me, every_ms: u64) {
    if let Some(client) = me.connect(Load::sends).await {
        while me.load.sends() {
            me.pause(every_ms).await;
            switch(&mut me, &client).await;
        }
    }
    me.load.sending.lock().remove(&me.number);
}

async fn switch(me: &mut Me, client: &Client) {
    let partitions = me.load.partitions();
    if partitions.is_empty() {
        return;
    }
    let topic = ConfigResource::Topic(me.rng.pick(&partitions).topic);
    let class = me.rng.pick(&["wal", "object"]);
    match client.alter_configs(&topic, &[(DURABILITY, Some(class))]).await {
        Err(error) if !error.is_retriable() && !error.is_ambiguous() => me.problem("change a class", &error),
        _ => {}
    }
}
