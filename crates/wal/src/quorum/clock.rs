//! The time by which replicas are measured: it passes only while something is under way, and never in leaps.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::{Entry, Shared};

const TICK: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Clock {
    now_ms: AtomicU64,
    watched: Mutex<Vec<Arc<Entry>>>,
    wake: Arc<Notify>,
}

impl Clock {
    pub(super) fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    pub(super) fn waker(&self) -> Arc<Notify> {
        Arc::clone(&self.wake)
    }

    /// Something is under way in this stream, which was not watched. Called under the stream's lock.
    pub(super) fn watch(&self, entry: &Arc<Entry>) {
        self.watched.lock().push(Arc::clone(entry));
        self.wake.notify_one();
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Moves the clock on while streams are watched, until the writer is dropped.
pub(super) async fn run(shared: Weak<Shared>, wake: Arc<Notify>) {
    loop {
        wake.notified().await;
        let mut last = Instant::now();
        loop {
            sleep(TICK).await;
            let Some(shared) = shared.upgrade() else { return };
            let now = Instant::now();
            // A node that was stopped for a while has not listened, so it may not say that nobody spoke.
            let passed = (now - last).min(TICK * 2);
            last = now;
            shared.clock.now_ms.fetch_add(passed.as_millis() as u64, Ordering::Relaxed);
            let watched = std::mem::take(&mut *shared.clock.watched.lock());
            let mut kept: Vec<Arc<Entry>> =
                watched.into_iter().filter(|entry| shared.expire(entry)).collect();
            let mut watched = shared.clock.watched.lock();
            watched.append(&mut kept);
            if watched.is_empty() {
                break;
            }
        }
        if shared.strong_count() == 0 {
            return;
        }
    }
}
