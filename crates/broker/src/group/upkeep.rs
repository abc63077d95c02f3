//! What goes on without requests: timers, taking over the groups of brokers that are gone, expiry of offsets, and the end.

use std::sync::Arc;
use std::time::Duration;

use isobar_groups::{Event, GroupError, Name};
use isobar_metadata::command::ExpireOffsets;
use isobar_metadata::{Command, CommandResult, SessionId};
use tokio::time::{Instant, sleep, sleep_until};

use super::{IfAbsent, claim, coordinator_of, find, is_fenced};
use crate::Broker;

/// How often the set of live brokers is looked at.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// `offsets.retention.check.interval.ms`.
const EXPIRY_INTERVAL: Duration = Duration::from_secs(600);
/// Bytes of names in one claim.
const CLAIM_BYTES: usize = 64 << 10;
const MINUTE_MS: u64 = 60_000;
/// How often, and how far apart, loaded groups are unloaded while the broker drains.
const HAND_OVER_ROUNDS: u32 = 100;
const HAND_OVER_PAUSE: Duration = Duration::from_millis(10);

/// Starts the tasks behind the groups. They end when the broker drains.
pub(crate) fn start(broker: &Arc<Broker>) {
    broker.host.spawn("group.timers", until_drained(broker, timers(Arc::clone(broker))));
    broker.host.spawn("group.take_over", until_drained(broker, take_over(Arc::clone(broker))));
    broker.host.spawn("group.expiry", until_drained(broker, expiry(Arc::clone(broker))));
    broker.host.spawn("group.hand_over", hand_over(Arc::clone(broker)));
}

fn until_drained(
    broker: &Arc<Broker>,
    task: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let mut draining = broker.draining.clone();
    async move {
        tokio::select! {
            biased;
            _ = draining.wait_for(|draining| *draining) => {}
            () = task => {}
        }
    }
}

/// When the broker drains, everyone who waits is sent to the next coordinator, so that connections can end.
async fn hand_over(broker: Arc<Broker>) {
    let mut draining = broker.draining.clone();
    let _ = draining.wait_for(|draining| *draining).await;
    // Again and again for a while: a group that is being loaded just now is unloaded, too.
    for _ in 0..HAND_OVER_ROUNDS {
        unload_all(&broker);
        sleep(HAND_OVER_PAUSE).await;
    }
}

/// Sends everyone who waits to another coordinator.
fn unload_all(broker: &Arc<Broker>) {
    for group in broker.groups.slots.loaded() {
        group.unload(broker, GroupError::NotCoordinator);
    }
}

/// Fires the machines' timers.
async fn timers(broker: Arc<Broker>) {
    let groups = &broker.groups;
    loop {
        let first = groups.timers.lock().first().map(|(at, _)| *at);
        let due = async {
            match first {
                Some(at) => sleep_until(groups.epoch + Duration::from_millis(at)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = groups.timer_set.notified() => continue,
            () = due => {}
        }
        for name in take_due(&broker, groups.now()) {
            if let Some(group) = groups.slots.get(&name) {
                // Gone: it has no deadlines any more.
                let _ = group.handle(&broker, Event::TimerFired);
            }
        }
    }
}

fn take_due(broker: &Broker, now: u64) -> Vec<Name> {
    let mut timers = broker.groups.timers.lock();
    let mut due = Vec::new();
    while timers.first().is_some_and(|(at, _)| *at <= now) {
        due.extend(timers.pop_first().map(|(_, name)| name));
    }
    due
}

/// Groups with members must have a coordinator, or nobody finds out that the members are dead. At the start, and whenever
/// a broker comes or goes, those that have none and fall to this broker are claimed, many in one command, and loaded.
async fn take_over(broker: Arc<Broker>) {
    let mut known: Vec<SessionId> = Vec::new();
    loop {
        let live: Vec<SessionId> =
            broker.image.with(|image| image.brokers().iter().map(|s| s.session).collect());
        if live != known && take_over_orphans(&broker).await.is_ok() {
            known = live;
        }
        if is_fenced(&broker) {
            unload_all(&broker);
        }
        unload_superseded(&broker);
        broker.image.with(|image| broker.groups.claims.keep_those_of(image, broker.session.id()));
        sleep(LOOK_AGAIN).await;
    }
}

/// Nobody may wait for a coordinator that another broker has taken over from.
fn unload_superseded(broker: &Arc<Broker>) {
    for group in broker.groups.slots.loaded().into_iter().filter(|group| !group.is_current(broker)) {
        tracing::info!(group = &*group.name, epoch = group.epoch, "another broker coordinates the group now");
        group.unload(broker, GroupError::NotCoordinator);
    }
}

async fn take_over_orphans(broker: &Arc<Broker>) -> Result<(), GroupError> {
    let me = broker.session.id();
    let orphans: Vec<String> = broker.image.with(|image| {
        let populated =
            image.groups().filter(|group| !group.record.members.is_empty() && group.coordinator != me);
        let mine =
            populated.filter(|group| coordinator_of(image, &group.group).is_some_and(|s| s.session == me));
        mine.map(|group| group.group.to_string()).collect()
    });
    let mut rest = orphans.as_slice();
    while !rest.is_empty() {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|name| {
            bytes += name.len();
            bytes <= CLAIM_BYTES
        });
        let (batch, after) = rest.split_at(fits.count().max(1));
        rest = after;
        // One that a request has claimed meanwhile would be claimed again under its machine: it is left alone.
        let free = |name: &&String| {
            let held =
                broker.image.with(|image| image.group(name).is_some_and(|group| group.coordinator == me));
            !held && !broker.groups.slots.contains(name)
        };
        let batch: Vec<String> = batch.iter().filter(free).cloned().collect();
        if batch.is_empty() {
            continue;
        }
        tracing::info!(groups = batch.len(), "taking over groups without a coordinator");
        claim(broker, batch.clone()).await?;
        for name in batch {
            if let Err(error) = find(broker, &name, IfAbsent::Refuse).await {
                tracing::warn!(group = name, %error, "a group that was taken over could not be loaded");
            }
        }
    }
    Ok(())
}

/// Offsets of groups without members go after `offsets.retention.minutes`. The broker of the lowest id sees to it.
async fn expiry(broker: Arc<Broker>) {
    let retention_ms = broker.options.offsets_retention_minutes.saturating_mul(MINUTE_MS);
    let retention_ms = i64::try_from(retention_ms).unwrap_or(i64::MAX);
    let mut next = Instant::now() + EXPIRY_INTERVAL;
    loop {
        sleep_until(next).await;
        next += EXPIRY_INTERVAL;
        let mut after = String::new();
        while broker.keeps_cluster() {
            let expire = ExpireOffsets { retention_ms, after, limit: 0 };
            after = match broker.session.propose(Command::ExpireOffsets(expire)).await {
                Ok(CommandResult::Expired(expired)) => {
                    if expired.count > 0 {
                        tracing::info!(count = expired.count, "committed offsets have expired");
                    }
                    expired.next
                }
                other => {
                    tracing::warn!(answer = ?other, "offsets could not be expired; trying again later");
                    break;
                }
            };
            if after.is_empty() {
                break;
            }
        }
    }
}
