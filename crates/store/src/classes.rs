//! Who may send a request to the store now.
//!
//! Owns: a store's budget of requests and bytes under way, shared by classes of work. A request waits for its [`Permit`] and
//! holds it until it has ended. Which of those who wait is next is decided by the pure [`Schedule`].

mod schedule;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use schedule::{Schedule, Ticket};

pub use schedule::{ClassLimits, Limits};

/// What a request to a store is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Somebody waits for it who reads at the end of the log.
    Tail,
    /// A reader of old data.
    CatchUp,
    /// The WAL on its way into objects.
    Upload,
    /// Compaction and other work that nobody waits for.
    Compaction,
    /// Small requests of upkeep: deletes, lists, claims.
    Control,
}

impl Class {
    /// All of them, in the order of their lanes.
    pub const ALL: [Self; 5] = [Self::Tail, Self::CatchUp, Self::Upload, Self::Compaction, Self::Control];

    /// As in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tail => "tail",
            Self::CatchUp => "catch_up",
            Self::Upload => "upload",
            Self::Compaction => "compaction",
            Self::Control => "control",
        }
    }
}

#[derive(Default)]
struct State {
    schedule: Schedule,
    waiting: BTreeMap<Ticket, oneshot::Sender<Permit>>,
}

/// A store's classes. A clone is the same.
#[derive(Clone, Default)]
pub struct Classes {
    state: Arc<Mutex<State>>,
}

impl fmt::Debug for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Classes").finish_non_exhaustive()
    }
}

impl Classes {
    /// With bounds other than the defaults.
    pub fn new(limits: Limits) -> Self {
        let state = State { schedule: Schedule::new(limits), waiting: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for room for a request of this class that moves `bytes`. May be dropped while it waits.
    pub async fn acquire(&self, class: Class, bytes: u64) -> Permit {
        let (tell, told) = oneshot::channel();
        let ticket = {
            let mut state = self.state.lock();
            let ticket = state.schedule.enqueue(class, bytes);
            state.waiting.insert(ticket, tell);
            ticket
        };
        self.grant();
        let waits = Waits { classes: self, ticket };
        match told.await {
            Ok(permit) => {
                std::mem::forget(waits);
                permit
            }
            // Cannot be: only `Waits` and `grant` take a sender away, and `grant` sends.
            Err(_) => Permit { classes: self.clone(), class, bytes: 0, counted: false },
        }
    }

    /// A permit if there is room this moment and nobody waits for it.
    pub fn try_acquire(&self, class: Class, bytes: u64) -> Option<Permit> {
        self.state.lock().schedule.try_start(class, bytes).then(|| self.permit(class, bytes))
    }

    /// Requests and bytes of a class under way, and requests that wait.
    pub fn load(&self, class: Class) -> (u32, u64, usize) {
        self.state.lock().schedule.load(class)
    }

    fn permit(&self, class: Class, bytes: u64) -> Permit {
        Permit { classes: self.clone(), class, bytes, counted: true }
    }

    fn grant(&self) {
        loop {
            // Not under the lock: a permit that nobody takes any more comes back, and takes it.
            let (tell, permit) = {
                let mut state = self.state.lock();
                let Some((ticket, class, bytes)) = state.schedule.next() else { return };
                (state.waiting.remove(&ticket), self.permit(class, bytes))
            };
            if let Some(tell) = tell {
                drop(tell.send(permit));
            }
        }
    }
}

/// Takes one who has left off the queue.
struct Waits<'a> {
    classes: &'a Classes,
    ticket: Ticket,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.classes.state.lock();
        if state.waiting.remove(&self.ticket).is_some() {
            state.schedule.cancel(self.ticket);
        }
    }
}

/// Room for one request; given back when it is dropped.
pub struct Permit {
    classes: Classes,
    class: Class,
    bytes: u64,
    counted: bool,
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("class", &self.class).field("bytes", &self.bytes).finish()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.counted {
            self.classes.state.lock().schedule.finish(self.class, self.bytes);
            self.classes.grant();
        }
    }
}

#[cfg(test)]
mod tests;
