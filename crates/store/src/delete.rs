//! Deletes objects that nothing points at.
//!
//! Owns: one task that proposes the expiry of granted ids whose deadline has passed, deletes objects that have been
//! unreferenced for the grace period, and deletes them again for a day, because a late PUT may land.
//!
//! Invariants
//! 1. Only after a look at the incarnation's claim; see [`crate::ClaimGuard`].
//! 2. Only objects that the image says are *unreferenced* or *deleted* are deleted, and metadata never takes such a state back.
//! 3. Only if the recovery cut has passed the entry that made it unreferenced: a recovery would need it else.
//! 4. The grace period is counted in the state machine's time, which no single clock moves; while expiry is held after a
//!    jump of the clock nothing is deleted.
//!
//! Failure and crash: everything here may be done twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use isobar_host::{Host, Task};
use isobar_metadata::command::{ExpireObjects, ObjectsDeleted};
use isobar_metadata::ids::ObjectId;
use isobar_metadata::record::{ObjectRecord, ObjectState};
use isobar_metadata::{Command, Image};

use crate::cluster::{Proposer, keeps_cluster};
use crate::format::object_key;
use crate::{Bucket, ClaimGuard};

/// Deletes are repeated until this long after the first.
const REPEAT_FOR_MS: i64 = 24 * 60 * 60 * 1000;
/// At most this many deletes in one round.
const ROUND_MAX: usize = 200;

/// Settings of the deleter.
#[derive(Debug, Clone)]
pub struct DeleterOptions {
    /// How often it looks.
    pub interval: Duration,
    /// How long an object stays after its last extent has gone: longer than any read takes.
    pub grace: Duration,
    /// How often a delete is repeated.
    pub repeat: Duration,
}

impl Default for DeleterOptions {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            grace: Duration::from_secs(300),
            repeat: Duration::from_secs(6 * 3600),
        }
    }
}

/// The running deleter.
pub struct Deleter {
    task: Task,
}

impl Deleter {
    /// Starts the task.
    pub fn start(
        host: &Host,
        bucket: Bucket,
        guard: Option<ClaimGuard>,
        proposer: Arc<dyn Proposer>,
        options: DeleterOptions,
    ) -> Self {
        let (host, repeated_ms, waiting) = (host.clone(), BTreeMap::new(), BTreeSet::new());
        let work =
            Work { host: host.clone(), bucket, guard, proposer, options, repeated_ms, waiting, seen: None };
        Self { task: host.spawn("deleter", work.run()) }
    }

    /// Stops at the next await.
    pub async fn stop(self) {
        self.task.abort();
        self.task.join().await;
    }
}

/// What one look at the image asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Due {
    delete: Vec<ObjectId>,
    /// By this node's clock something is due that by the state machine's is not yet: a command moves its time on.
    move_time: bool,
}

struct Work {
    host: Host,
    bucket: Bucket,
    guard: Option<ClaimGuard>,
    proposer: Arc<dyn Proposer>,
    options: DeleterOptions,
    /// When objects in state *deleted* were deleted by this process, in the state machine's time.
    repeated_ms: BTreeMap<ObjectId, i64>,
    /// Objects for which a time will come: all but the committed ones of the image last looked at. It is followed, because
    /// nearly all objects are committed and stay so for as long as they are retained.
    waiting: BTreeSet<ObjectId>,
    seen: Option<Image>,
}

impl Work {
    async fn run(mut self) {
        loop {
            tokio::time::sleep(self.options.interval).await;
            let image = self.proposer.image();
            self.follow(&image);
            if !keeps_cluster(&image, self.proposer.session()) {
                continue;
            }
            let due = self.due(&image, self.host.now_ms());
            if due.move_time {
                let expire = Command::ExpireObjects(ExpireObjects { limit: 0 });
                if let Err(error) = self.proposer.propose(expire).await {
                    tracing::debug!(%error, "expiry of object ids not proposed");
                }
            }
            if !due.delete.is_empty() {
                self.delete(&image, due.delete).await;
            }
        }
    }

    fn follow(&mut self, image: &Image) {
        let earlier = self.seen.take().unwrap_or_else(|| Image::new(image.format().as_ref().clone()));
        for (was, is) in image.objects_since(&earlier) {
            if let Some(object) = is.filter(|object| self.due_at_ms(object).is_some()) {
                self.waiting.insert(object.object);
            } else if let Some(object) = is.or(was) {
                self.waiting.remove(&object.object);
            }
        }
        self.seen = Some(image.clone());
    }

    fn due(&self, image: &Image, now_ms: i64) -> Due {
        let mut due = Due::default();
        let time_ms = image.time_ms();
        if image.expiry_held_until_ms() > time_ms {
            due.move_time = now_ms > image.expiry_held_until_ms();
            return due;
        }
        for record in self.waiting.iter().filter_map(|object| image.object(*object)) {
            let Some(at_ms) = self.due_at_ms(record) else { continue };
            let prepared = record.state == ObjectState::Prepared as i32;
            let unreferenced = record.state == ObjectState::Unreferenced as i32;
            if unreferenced && record.since_index > image.archived_cut() {
                // A recovery from the archive may come back to before this. The archiver moves the cut.
                continue;
            }
            if !prepared && at_ms <= time_ms && due.delete.len() < ROUND_MAX {
                due.delete.push(record.object);
            } else if at_ms < now_ms {
                due.move_time = true;
            }
        }
        due
    }

    /// When something is to be done about an object, in the state machine's time.
    fn due_at_ms(&self, record: &ObjectRecord) -> Option<i64> {
        let ms = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        match ObjectState::try_from(record.state) {
            Ok(ObjectState::Prepared) => Some(record.deadline_ms),
            Ok(ObjectState::Unreferenced) => Some(record.since_ms.saturating_add(ms(self.options.grace))),
            Ok(ObjectState::Deleted) => {
                let last_ms = self.repeated_ms.get(&record.object).copied().unwrap_or(record.since_ms);
                let forget_ms = record.since_ms.saturating_add(REPEAT_FOR_MS);
                Some(last_ms.saturating_add(ms(self.options.repeat)).min(forget_ms))
            }
            Ok(ObjectState::Committed) | Err(_) => None,
        }
    }

    async fn delete(&mut self, image: &Image, objects: Vec<ObjectId>) {
        if let Some(guard) = &self.guard
            && let Err(error) = guard.check(self.host.now_ms()).await
        {
            tracing::warn!(%error, "nothing is deleted while the claim on the cluster is not known to hold");
            return;
        }
        let mut deleted = Vec::with_capacity(objects.len());
        for object in objects {
            match self.bucket.delete(&object_key(object)).await {
                Ok(()) => deleted.push(object),
                Err(error) => {
                    tracing::warn!(%error, %object, "delete failed, it will be repeated");
                    break;
                }
            }
        }
        if deleted.is_empty() {
            return;
        }
        self.host.crash_point("delete.before_report");
        self.bucket.metrics().deleted.inc_by(deleted.len() as u64);
        for object in &deleted {
            self.repeated_ms.insert(*object, image.time_ms());
        }
        let report = Command::ObjectsDeleted(ObjectsDeleted { objects: deleted });
        if let Err(error) = self.proposer.propose(report).await {
            tracing::warn!(%error, "deletes not reported, they will be repeated");
        }
        let image = self.proposer.image();
        self.repeated_ms.retain(|object, _| image.object(*object).is_some());
    }
}
