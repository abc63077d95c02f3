//! Object ids, granted some at a time. Each is used for one object; one that was not used expires.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_metadata::command::GrantObjects;
use isobar_metadata::ids::ObjectId;
use isobar_metadata::{Command, CommandResult};
use parking_lot::Mutex;

use crate::cluster::Proposer;

/// A supply of ids. Shared by the puts of one kind.
pub(crate) struct ObjectIds {
    host: Host,
    proposer: Arc<dyn Proposer>,
    /// Asked for at a time.
    count: u32,
    lifetime_ms: i64,
    /// With the deadline of each, by this node's clock; the state machine's may differ, and it alone decides.
    granted: Mutex<VecDeque<(ObjectId, i64)>>,
}

impl ObjectIds {
    /// Ids that may wait for their commit for `lifetime`.
    pub(crate) fn new(host: &Host, proposer: Arc<dyn Proposer>, count: u32, lifetime: Duration) -> Self {
        let lifetime_ms = i64::try_from(lifetime.as_millis()).unwrap_or(i64::MAX);
        Self { host: host.clone(), proposer, count, lifetime_ms, granted: Mutex::default() }
    }

    /// An id that can be committed for at least half of its lifetime yet; `None` if metadata grants none now.
    pub(crate) async fn take(&self) -> Option<ObjectId> {
        if let Some(object) = self.fresh() {
            return Some(object);
        }
        let grant = Command::GrantObjects(GrantObjects { count: self.count, lifetime_ms: self.lifetime_ms });
        let deadline_ms = self.host.now_ms() + self.lifetime_ms;
        match self.proposer.propose(grant).await {
            Ok(CommandResult::Objects(granted)) if granted.error_code == 0 && granted.count > 0 => {
                let ids = (0..u64::from(granted.count)).map(|n| (ObjectId(granted.first.0 + n), deadline_ms));
                self.granted.lock().extend(ids);
                self.fresh()
            }
            other => {
                tracing::warn!(answer = ?other, "no object ids granted");
                None
            }
        }
    }

    fn fresh(&self) -> Option<ObjectId> {
        let now_ms = self.host.now_ms();
        let mut granted = self.granted.lock();
        while let Some((object, deadline_ms)) = granted.pop_front() {
            if deadline_ms - now_ms > self.lifetime_ms / 2 {
                return Some(object);
            }
        }
        None
    }
}
