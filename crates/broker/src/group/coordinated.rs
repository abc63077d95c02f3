//! One loaded group: its machine, who waits, and doing what the machine says.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_groups::{
    Action, Description, Event, Group, GroupError, GroupState, Name, RequestId, Response, State,
};
use isobar_metadata::command::PutGroup;
use isobar_metadata::{Command, CommandResult};
use isobar_protocol::error::ErrorCode;
use isobar_raft::ProposeError;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::claims::OthersUntil;
use super::{caught_up, record};
use crate::Broker;

/// The group has been unloaded; whoever wants it loads it again.
#[derive(Debug)]
pub(super) struct Gone;

pub(super) struct Coordinated {
    pub(super) name: Name,
    /// The coordinator epoch that every command names.
    pub(super) epoch: u64,
    others_until: OthersUntil,
    inner: Mutex<Inner>,
}

struct Inner {
    group: Group,
    waiting: BTreeMap<RequestId, oneshot::Sender<Response>>,
    next_request: u64,
    armed: Option<u64>,
    gone: bool,
}

/// What `ListGroups` tells of a loaded group.
pub(super) struct Listed {
    pub(super) state: State,
    pub(super) protocol_type: Option<Name>,
    pub(super) members: usize,
}

impl Coordinated {
    /// Loads the group as metadata has it, under this broker's claim. New: nobody coordinated it before.
    pub(super) fn load(broker: &Arc<Broker>, known: &isobar_metadata::Group, is_new: bool) -> Arc<Self> {
        let mut out = Vec::new();
        let config = Arc::clone(&broker.groups.config);
        let group = Group::load(config, record::state(&known.record), broker.groups.now(), &mut out);
        if group.member_count() > 0 {
            tracing::info!(
                group = &*known.group,
                epoch = known.coordinator_epoch,
                state = group.state().as_str(),
                generation = group.generation(),
                members = group.member_count(),
                "group loaded"
            );
        }
        let others_until = broker.groups.claims.loaded(known, is_new);
        let inner = Inner { group, waiting: BTreeMap::new(), next_request: 0, armed: None, gone: false };
        let coordinated = Arc::new(Self {
            name: Arc::clone(&known.group),
            epoch: known.coordinator_epoch,
            others_until,
            inner: Mutex::new(inner),
        });
        coordinated.act(broker, &mut coordinated.inner.lock(), out);
        coordinated
    }

    /// Does the image still have this broker as the coordinator, in this epoch? It had when the group was loaded.
    pub(super) fn is_current(&self, broker: &Broker) -> bool {
        let me = broker.session.id();
        broker.image.with(|image| {
            let known = image.group(&self.name);
            known.is_some_and(|group| (group.coordinator, group.coordinator_epoch) == (me, self.epoch))
        })
    }

    /// May a commit be older than the claim? See the fifth invariant of [`super`].
    pub(super) fn may_be_of_before(&self, connected: Instant, generation: i32) -> bool {
        self.others_until.is_some_and(|(until, last)| connected < until && generation <= last)
    }

    /// Everyone who waits is told this.
    pub(super) fn unload(self: &Arc<Self>, broker: &Arc<Broker>, error: GroupError) {
        // Gone: unloaded by someone else.
        let _ = self.handle(broker, Event::Unload(error));
    }

    /// Hands over a request; its answer comes by the channel, which closes without one only when the process ends.
    pub(super) fn ask(
        self: &Arc<Self>,
        broker: &Arc<Broker>,
        event: impl FnOnce(RequestId) -> Event,
    ) -> Result<oneshot::Receiver<Response>, Gone> {
        let mut inner = self.inner.lock();
        if inner.gone {
            return Err(Gone);
        }
        let request = RequestId(inner.next_request);
        inner.next_request += 1;
        let (answer, answered) = oneshot::channel();
        inner.waiting.insert(request, answer);
        self.step(broker, &mut inner, event(request));
        Ok(answered)
    }

    pub(super) fn handle(self: &Arc<Self>, broker: &Arc<Broker>, event: Event) -> Result<(), Gone> {
        let mut inner = self.inner.lock();
        if inner.gone {
            return Err(Gone);
        }
        self.step(broker, &mut inner, event);
        Ok(())
    }

    pub(super) fn describe(&self) -> Result<Description, Gone> {
        let inner = self.inner.lock();
        if inner.gone { Err(Gone) } else { Ok(inner.group.describe()) }
    }

    pub(super) fn check_delete(&self) -> Result<Result<(), GroupError>, Gone> {
        let inner = self.inner.lock();
        if inner.gone { Err(Gone) } else { Ok(inner.group.check_delete()) }
    }

    pub(super) fn list(&self) -> Result<Listed, Gone> {
        let inner = self.inner.lock();
        let listed = || Listed {
            state: inner.group.state(),
            protocol_type: inner.group.protocol_type().cloned(),
            members: inner.group.member_count(),
        };
        if inner.gone { Err(Gone) } else { Ok(listed()) }
    }

    fn step(self: &Arc<Self>, broker: &Arc<Broker>, inner: &mut Inner, event: Event) {
        let mut out = Vec::new();
        inner.group.handle(broker.groups.now(), event, &mut out);
        self.act(broker, inner, out);
    }

    fn act(self: &Arc<Self>, broker: &Arc<Broker>, inner: &mut Inner, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Answer(request, response) => {
                    if let Some(waiting) = inner.waiting.remove(&request) {
                        // Nobody listens any more where the connection is gone.
                        let _ = waiting.send(response);
                    }
                }
                Action::Persist { number, state } => {
                    let stored = store(Arc::clone(broker), Arc::clone(self), number, *state);
                    broker.host.spawn("group.store", stored);
                }
                Action::SetTimer(at) => self.arm(broker, inner, Some(at)),
                Action::ClearTimer => self.arm(broker, inner, None),
                Action::Moved { to, generation, members, reason } => {
                    if to == State::PreparingRebalance {
                        broker.metrics.group_rebalances.inc();
                    }
                    tracing::info!(
                        group = &*self.name, state = to.as_str(), generation, members, %reason, "group moved"
                    );
                }
                Action::Forget => {
                    inner.gone = true;
                    self.arm(broker, inner, None);
                    broker.groups.slots.remove(&self.name, self);
                }
            }
        }
    }

    fn arm(&self, broker: &Broker, inner: &mut Inner, at: Option<u64>) {
        let mut timers = broker.groups.timers.lock();
        if let Some(before) = std::mem::replace(&mut inner.armed, at) {
            timers.remove(&(before, Arc::clone(&self.name)));
        }
        if let Some(at) = at {
            let first = timers.first().is_none_or(|(first, _)| at < *first);
            timers.insert((at, Arc::clone(&self.name)));
            drop(timers);
            if first {
                broker.groups.timer_set.notify_one();
            }
        }
    }
}

/// Makes a group's state durable and tells the machine how it went.
async fn store(broker: Arc<Broker>, group: Arc<Coordinated>, number: u64, state: GroupState) {
    let put = PutGroup {
        group: group.name.to_string(),
        coordinator_epoch: group.epoch,
        record: record::of_state(&state),
    };
    let event = match broker.session.propose(Command::PutGroup(put)).await {
        Ok(CommandResult::Done(outcome)) if outcome.error_code == 0 => match caught_up(&broker).await {
            Ok(()) => Event::Persisted(number),
            Err(_) => in_doubt(&broker, &group, "the image does not keep up"),
        },
        Ok(CommandResult::Done(outcome))
            if outcome.error_code == i32::from(ErrorCode::NotCoordinator.code()) =>
        {
            Event::Unload(GroupError::NotCoordinator)
        }
        Ok(CommandResult::Done(outcome)) => {
            tracing::error!(group = &*group.name, ?outcome, "a group's state was refused");
            Event::PersistFailed(number, GroupError::UnknownServerError)
        }
        Ok(CommandResult::Refused(refused)) => {
            tracing::warn!(group = &*group.name, ?refused, "this broker may store no group any more");
            Event::Unload(GroupError::NotCoordinator)
        }
        Ok(other) => {
            tracing::error!(group = &*group.name, answer = ?other, "an unexpected answer to a group's state");
            in_doubt(&broker, &group, "unexpected answer")
        }
        Err(error @ ProposeError::TooLarge { .. }) => {
            tracing::error!(group = &*group.name, %error, "a group's state is too large");
            Event::PersistFailed(number, GroupError::UnknownServerError)
        }
        Err(error) => in_doubt(&broker, &group, &error.to_string()),
    };
    // Gone: unloaded meanwhile, so nobody waits.
    let _ = group.handle(&broker, event);
}

/// The state may be durable or may become so: the group is claimed anew before it is loaded again.
fn in_doubt(broker: &Broker, group: &Coordinated, why: &str) -> Event {
    tracing::warn!(group = &*group.name, why, "a group's stored state is in doubt");
    broker.groups.doubts.lock().insert(Arc::clone(&group.name));
    Event::Unload(GroupError::CoordinatorNotAvailable)
}
