//! What observers are told by a member: what entries did after the ones they know of, and the whole state where that is not kept.
//!
//! Invariants
//! 1. Batches are told in order and without a gap: the first one follows what the observer has, or it is refused with
//!    [`refusal::LAGGED`].
//! 2. In memory are at most [`STATES`] states that are being sent, each until its last part was asked for, or nobody has asked
//!    for [`STATE_PATIENCE`].
//! 3. A member that has less than who asks tells only who leads, until it has as much: an observer never goes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isobar_host::{Host, watch};
use isobar_metadata::EffectBatch;
use isobar_rpc::{Refusal, Reply};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::{Instant, sleep_until};

use super::service::refuse;
use super::wire::{self, refusal};
use crate::leader::Leader;
use crate::machine::Machine;
use crate::members;
use crate::records::MemberRecord;

/// Bytes of one answer, but for one batch that is larger.
const ANSWER_BYTES: usize = 1 << 20;
const PART_BYTES: usize = 1 << 20;
const LONGEST_WAIT: Duration = Duration::from_secs(2);
const STATES: usize = 2;
const STATE_PATIENCE: Duration = Duration::from_secs(20);

/// A state on its way to an observer.
struct Sending {
    transfer: u64,
    bytes: Bytes,
    asked: Instant,
}

/// See the module.
pub(crate) struct Observed {
    host: Host,
    machine: Arc<Machine>,
    leader: watch::Receiver<Leader>,
    sending: Mutex<Vec<Sending>>,
}

impl Observed {
    pub(crate) fn new(host: &Host, machine: Arc<Machine>, leader: watch::Receiver<Leader>) -> Self {
        Self { host: host.clone(), machine, leader, sending: Mutex::default() }
    }

    pub(crate) fn follow(self: &Arc<Self>, ask: wire::Follow, reply: Reply) {
        let observed = Arc::clone(self);
        self.host.spawn("raft.observed", async move { reply.send(observed.what_came(&ask).await) });
    }

    async fn what_came(&self, ask: &wire::Follow) -> Result<Vec<Bytes>, Refusal> {
        let until = Instant::now() + LONGEST_WAIT.min(Duration::from_millis(u64::from(ask.wait_ms)));
        let (mut leader, mut applied) = (self.leader.clone(), self.machine.applied());
        let is_other = |leader: &Leader| (leader.id.unwrap_or(0), leader.term) != (ask.leader, ask.term);
        let stopped = || refuse(refusal::CLOSED, "the member has stopped".to_owned());
        let first = async {
            if applied.wait_for(|applied| *applied >= ask.after).await.is_err() {
                return Err(stopped());
            }
            let mut effects = self.machine.resume(ask.after).ok_or_else(lagged)?;
            match effects.next().await {
                Ok(Some(batch)) => Ok(Some((batch, effects))),
                Ok(None) => Err(stopped()),
                Err(_) => Err(lagged()),
            }
        };
        let first = tokio::select! {
            biased;
            first = first => first?,
            changed = leader.wait_for(is_other) => changed.map(|_| None).map_err(|_| stopped())?,
            () = sleep_until(until) => None,
        };
        let Some((first, mut effects)) = first else { return Ok(self.told(&[], 0)) };
        let mut bytes = first.encoded_len();
        let mut batches: Vec<Arc<EffectBatch>> = vec![first];
        while bytes < ANSWER_BYTES
            && let Ok(Some(batch)) = effects.try_next()
        {
            bytes += batch.encoded_len();
            batches.push(batch);
        }
        Ok(self.told(&batches, bytes))
    }

    fn told(&self, batches: &[Arc<EffectBatch>], bytes: usize) -> Vec<Bytes> {
        let mut encoded = BytesMut::with_capacity(bytes);
        let mut batch_bytes = Vec::with_capacity(batches.len());
        for batch in batches {
            let before = encoded.len();
            // A growing buffer takes any message.
            let _ = batch.encode(&mut encoded);
            batch_bytes.push(u32::try_from(encoded.len() - before).unwrap_or(u32::MAX));
        }
        let leader = self.leader.borrow().clone();
        let group = members::list(self.machine.membership().membership());
        let head = wire::Followed {
            batch_bytes,
            term: leader.term,
            leader: leader.id.map(|node| record(node, leader.incarnation, leader.address)),
            voters: group.iter().filter(|member| member.is_voter).map(|member| member.id).collect(),
            members: group.into_iter().map(|one| record(one.id, one.incarnation, one.address)).collect(),
        };
        wire::encode_with(&head, &encoded.freeze())
    }

    pub(crate) fn state(self: &Arc<Self>, ask: &wire::GetState, reply: Reply) {
        if ask.transfer != 0 {
            return reply.send(self.part(ask.transfer, ask.offset));
        }
        let observed = Arc::clone(self);
        self.host.spawn("raft.state", async move { reply.send(observed.begin().await) });
    }

    /// Writes down the state as it is now; its first part.
    async fn begin(&self) -> Result<Vec<Bytes>, Refusal> {
        let transfer = self.host.random_u64() | 1;
        {
            let now = Instant::now();
            let mut sending = self.sending.lock();
            sending.retain(|state| now - state.asked < STATE_PATIENCE);
            if sending.len() >= STATES {
                return Err(refuse(refusal::BUSY, "other observers take the state just now".to_owned()));
            }
            sending.push(Sending { transfer, bytes: Bytes::new(), asked: now });
        }
        let frozen = self.machine.view();
        let written = self.host.run_blocking(move || Bytes::from(frozen.to_vec())).await;
        match (written, self.sending.lock().iter_mut().find(|state| state.transfer == transfer)) {
            (Some(bytes), Some(state)) => state.bytes = bytes,
            _ => return Err(refuse(refusal::CLOSED, "the member is stopping".to_owned())),
        }
        self.part(transfer, 0)
    }

    fn part(&self, transfer: u64, offset: u64) -> Result<Vec<Bytes>, Refusal> {
        let mut sending = self.sending.lock();
        let place = sending.iter().position(|state| state.transfer == transfer);
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(place) = place.filter(|place| at <= sending[*place].bytes.len()) else {
            return Err(refuse(refusal::OUT_OF_PLACE, format!("there is no such part at {offset}")));
        };
        let state = &mut sending[place];
        state.asked = Instant::now();
        let total = state.bytes.len();
        let part = state.bytes.slice(at..total.min(at + PART_BYTES));
        if at + part.len() == total {
            sending.swap_remove(place);
        }
        Ok(wire::encode_with(&wire::StatePart { transfer, total_bytes: total as u64 }, &part))
    }
}

fn lagged() -> Refusal {
    refuse(refusal::LAGGED, "what came after is no longer kept".to_owned())
}

fn record(node: u64, incarnation: [u8; 16], address: String) -> MemberRecord {
    MemberRecord { node, incarnation: Bytes::copy_from_slice(&incarnation), address }
}
