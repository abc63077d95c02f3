//! Brokers whose connections to this node have just ended: they are gone, or soon known to be.
//!
//! That a session is suspect goes through the metadata log and is known some ten milliseconds after its process died. But a client of
//! that process has lost its connection too and asks another broker at once. Told the old leaders, it would go on trying the
//! dead one and ask again a second later (librdkafka, from its timer). So who answers where leaders are waits for that moment.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::live::LiveImage;

/// After that it was not the process that ended, or the log is slower than a client's patience is worth.
const DOUBT: Duration = Duration::from_millis(200);

/// See the module. Bounded by the number of nodes.
#[derive(Default)]
pub struct Doubts {
    lost: Mutex<BTreeMap<i32, Instant>>,
}

impl Doubts {
    /// No connection of this node stands any more.
    pub fn lost(&self, node_id: i32) {
        self.lost.lock().insert(node_id, Instant::now());
    }

    /// It is connected again.
    pub fn heard(&self, node_id: i32) {
        self.lost.lock().remove(&node_id);
    }

    /// Waits until the image no longer has a broker for live that was just lost, or the doubt is too old.
    pub(crate) async fn settled(&self, image: &LiveImage) {
        let mut moved = image.watch();
        loop {
            _ = *moved.borrow_and_update();
            let Some(until) = self.doubtful(image) else { return };
            tokio::select! {
                biased;
                changed = moved.changed() => if changed.is_err() { return },
                () = sleep_until(until) => return,
            }
        }
    }

    fn doubtful(&self, image: &LiveImage) -> Option<Instant> {
        let mut lost = self.lost.lock();
        let now = Instant::now();
        lost.retain(|_, since| now < *since + DOUBT);
        if lost.is_empty() {
            return None;
        }
        image.with(|image| {
            let live = |node: i32| image.broker(node).is_some_and(|session| session.is_live());
            lost.iter().filter(|(node, _)| live(**node)).map(|(_, since)| *since + DOUBT).max()
        })
    }
}
