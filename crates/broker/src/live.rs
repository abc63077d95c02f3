//! The image that requests are answered from, and who waits for it to move.
//!
//! Owns: this broker's one [`Image`], which a single task moves along the quorum's effects.
//!
//! Invariants:
//! 1. The image moves forward only, one effect batch at a time, and waiters of a partition are woken after the image
//!    that shows the change is in place.
//! 2. [`LiveImage::at_least`] returns only once the image has the asked-for index: what a read barrier needs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::watch;
use isobar_metadata::{Changes, EffectBatch, Image, PartitionKey, PartitionView, Topic, TopicId};
use isobar_protocol::TopicRef;
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::metrics::Metrics;

/// One who waits for any of several partitions.
pub(crate) type Waiter = Arc<Notify>;

/// See the module.
pub struct LiveImage {
    image: RwLock<Image>,
    index: watch::Sender<u64>,
    waiters: Mutex<BTreeMap<PartitionKey, Vec<Waiter>>>,
    metrics: Arc<Metrics>,
}

impl LiveImage {
    /// An image as a snapshot has it.
    pub fn new(image: Image, metrics: Arc<Metrics>) -> Self {
        let (index, _) = watch::channel(image.index());
        Self { image: RwLock::new(image), index, waiters: Mutex::default(), metrics }
    }

    /// Looks at the image, briefly. Nothing may wait inside `look`.
    pub fn with<T>(&self, look: impl FnOnce(&Image) -> T) -> T {
        look(&self.image.read())
    }

    /// A copy that shares everything with the image as it is now.
    pub fn snapshot(&self) -> Image {
        self.image.read().clone()
    }

    /// Raft index of the image.
    pub fn index(&self) -> u64 {
        *self.index.borrow()
    }

    /// Tells whenever the image has moved.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    /// Waits until the image has `index`; false if it does not within `timeout`.
    pub async fn at_least(&self, index: u64, timeout: Duration) -> bool {
        let mut watch = self.index.subscribe();
        tokio::time::timeout(timeout, watch.wait_for(|&now| now >= index))
            .await
            .is_ok_and(|seen| seen.is_ok())
    }

    pub(crate) fn apply(&self, batch: &EffectBatch) -> Result<Changes, isobar_metadata::MetadataError> {
        let changes = self.image.write().apply(batch)?;
        self.metrics.image_index.set(batch.index);
        self.index.send_replace(batch.index);
        self.wake(&changes);
        Ok(changes)
    }

    fn wake(&self, changes: &Changes) {
        if changes.partitions.is_empty() {
            return;
        }
        let mut waiters = self.waiters.lock();
        if waiters.is_empty() {
            return;
        }
        for key in &changes.partitions {
            for waiter in waiters.remove(key).unwrap_or_default() {
                waiter.notify_one();
            }
        }
    }

    /// Wakes `waiter` at the next change of `key`; once.
    pub(crate) fn wait_for(&self, key: PartitionKey, waiter: &Waiter) {
        self.waiters.lock().entry(key).or_default().push(Arc::clone(waiter));
    }

    /// Takes back [`LiveImage::wait_for`].
    pub(crate) fn forget(&self, keys: impl IntoIterator<Item = PartitionKey>, waiter: &Waiter) {
        let mut waiters = self.waiters.lock();
        for key in keys {
            if let Some(waiting) = waiters.get_mut(&key) {
                waiting.retain(|other| !Arc::ptr_eq(other, waiter));
                if waiting.is_empty() {
                    waiters.remove(&key);
                }
            }
        }
    }

    /// The topic that a request names.
    pub(crate) fn topic(&self, topic: &TopicRef) -> Option<Arc<Topic>> {
        self.with(|image| match topic {
            TopicRef::Name(name) => image.topic_by_name(name).cloned(),
            TopicRef::Id(id) => image.topic(TopicId(*id)).cloned(),
        })
    }

    /// The newest view of a partition.
    pub(crate) fn view(&self, key: PartitionKey) -> Option<Arc<PartitionView>> {
        self.with(|image| image.view(key).cloned())
    }
}
