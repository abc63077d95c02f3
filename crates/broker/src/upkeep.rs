//! What metadata needs though nobody asks for anything: its clock to go on, and idle producers forgotten.
//!
//! The state machine's time moves with entries only, and a step over ten minutes holds all expiry. So the broker of the
//! lowest id proposes what has become due: deleted topics whose window is over, and an `ExpireProducers` for some shards every [`ROUND`], for all of them within [`ROUNDS`] of these.
//! (How long an idle producer is remembered, `producer.id.expiration.ms`, is a config of the cluster, read in apply.)

use std::sync::Arc;
use std::time::Duration;

use isobar_metadata::command::{ExpireProducers, ExpireTopics};
use isobar_metadata::{Command, CommandResult};
use tokio::time::{Instant, sleep_until};

use crate::Broker;

/// Between two proposals; well below the ten minutes that would hold expiry.
const ROUND: Duration = Duration::from_secs(60);
/// Every shard has its turn within as many rounds: about Kafka's `producer.id.expiration.check.interval.ms`.
const ROUNDS: u32 = 10;

/// Starts the task; it ends when the broker drains.
pub(crate) fn start(broker: &Arc<Broker>) {
    let mut draining = broker.draining.clone();
    let rounds = run(Arc::clone(broker));
    broker.host.spawn("broker.upkeep", async move {
        tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => {}
            () = rounds => {}
        }
    });
}

async fn run(broker: Arc<Broker>) {
    let mut next = Instant::now();
    for round in 0_u32.. {
        next += ROUND;
        sleep_until(next).await;
        if !broker.keeps_cluster() {
            continue;
        }
        let shards = broker.image.with(|image| image.shards());
        expire_topics(&broker).await;
        for shard in shards_of(round, shards) {
            match broker.session.propose(Command::ExpireProducers(ExpireProducers { shard })).await {
                Ok(CommandResult::Expired(expired)) if expired.count > 0 => {
                    tracing::info!(count = expired.count, shard, "idle producers were forgotten");
                }
                Ok(CommandResult::Expired(_)) => {}
                other => {
                    tracing::warn!(answer = ?other, shard, "producers could not be expired; again later");
                    break;
                }
            }
        }
    }
}

/// The shards of a round: at least one, so that time goes on.
fn shards_of(round: u32, shards: u32) -> impl Iterator<Item = u32> {
    let turn = round % ROUNDS;
    let any = (shards > 0).then(|| round % shards.max(1)).filter(move |_| shards < ROUNDS);
    any.into_iter().chain((0..shards).filter(move |shard| shards >= ROUNDS && shard % ROUNDS == turn))
}

/// By this node's clock; the state machine's decides.
async fn expire_topics(broker: &Arc<Broker>) {
    let now_ms = broker.host.now_ms();
    while broker.image.with(|image| image.deleted_topics().any(|topic| topic.purge_ms <= now_ms)) {
        match broker.session.propose(Command::ExpireTopics(ExpireTopics { limit: 0 })).await {
            Ok(CommandResult::Expired(expired)) if expired.count > 0 => {
                tracing::info!(count = expired.count, "deleted topics are gone for good");
            }
            Ok(CommandResult::Expired(_)) => return,
            other => {
                tracing::warn!(answer = ?other, "deleted topics could not be expired; again later");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_shard_has_its_turn_and_every_round_has_a_shard() {
        for shards in [1, 2, 9, 10, 11, 64, 1000] {
            let mut seen = BTreeSet::new();
            for round in 0..ROUNDS {
                let turn: Vec<u32> = shards_of(round, shards).collect();
                assert!(!turn.is_empty(), "{shards} shards, round {round}");
                seen.extend(turn);
            }
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..shards).collect::<Vec<_>>());
        }
        assert_eq!(shards_of(3, 0).count(), 0);
    }
}
