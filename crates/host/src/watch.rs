//! A value that changes, and tasks that wait until it does.
//!
//! As `tokio::sync::watch`, but for one thing: waiters are woken in the order in which they came. Tokio's picks a random
//! order, so that with it no simulation of a node with two waiters could be repeated.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::Notify;

struct State<T> {
    value: T,
    version: u64,
    closed: bool,
}

struct Shared<T> {
    state: RwLock<State<T>>,
    changed: Notify,
    senders: AtomicUsize,
}

impl<T> Shared<T> {
    fn change(&self, change: impl FnOnce(&mut State<T>) -> bool) {
        let changed = change(&mut self.state.write());
        if changed {
            self.changed.notify_waiters();
        }
    }
}

/// The sender is gone: the value will not change any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody is left to change the value")]
pub struct Closed;

/// Changes the value.
pub struct Sender<T> {
    shared: Arc<Shared<T>>,
}

/// Sees the value, and waits for changes of it.
pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

/// The value as it is now. It cannot change while this is held, so hold it briefly and never across an await.
pub struct Ref<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

/// A value with one sender and one receiver; the receiver has seen the first value.
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    /// A value that nobody watches yet.
    pub fn new(value: T) -> Self {
        let state = RwLock::new(State { value, version: 0, closed: false });
        Self { shared: Arc::new(Shared { state, changed: Notify::new(), senders: AtomicUsize::new(1) }) }
    }

    /// A receiver that has seen the value as it is now.
    pub fn subscribe(&self) -> Receiver<T> {
        let seen = self.shared.state.read().version;
        Receiver { shared: Arc::clone(&self.shared), seen }
    }

    /// The value as it is now.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.state.read())
    }

    /// Sets the value and wakes who waits; the value before.
    pub fn send_replace(&self, value: T) -> T {
        let mut value = value;
        self.send_modify(|held| std::mem::swap(held, &mut value));
        value
    }

    /// Changes the value in place and wakes who waits.
    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    /// Changes the value in place and wakes who waits, if `modify` says that it did.
    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let mut modified = false;
        self.shared.change(|state| {
            modified = modify(&mut state.value);
            state.version += u64::from(modified);
            modified
        });
        modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.shared.senders.fetch_add(1, Ordering::Relaxed);
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.shared.senders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.change(|state| {
                state.closed = true;
                true
            });
        }
    }
}

impl<T> Receiver<T> {
    /// The value as it is now; [`Self::changed`] still tells of it if it had not been seen.
    pub fn borrow(&self) -> Ref<'_, T> {
        Ref(self.shared.state.read())
    }

    /// The value as it is now, which counts as seen.
    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let state = self.shared.state.read();
        self.seen = state.version;
        Ref(state)
    }

    /// Waits until there is a value that was not seen, which then counts as seen. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), Closed> {
        loop {
            let mut told = std::pin::pin!(self.shared.changed.notified());
            told.as_mut().enable();
            {
                let state = self.shared.state.read();
                if state.version != self.seen {
                    self.seen = state.version;
                    return Ok(());
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            told.await;
        }
    }

    /// Waits until the value is such, which it may be already. Cancel-safe.
    pub async fn wait_for(&mut self, mut such: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, Closed> {
        let shared = &self.shared;
        loop {
            let mut told = std::pin::pin!(shared.changed.notified());
            told.as_mut().enable();
            {
                let state = shared.state.read();
                self.seen = state.version;
                if such(&state.value) {
                    return Ok(Ref(state));
                }
                if state.closed {
                    return Err(Closed);
                }
            }
            told.await;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), seen: self.seen }
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Sender").field(&self.shared.state.read().value).finish()
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Receiver").field(&self.shared.state.read().value).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn a_change_is_told_once_and_the_end_as_well() {
        let (sender, mut receiver) = channel(1);
        assert_eq!(sender.send_replace(2), 1);
        receiver.changed().await.unwrap();
        assert_eq!(*receiver.borrow(), 2);
        assert!(!sender.send_if_modified(|_| false));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(5), receiver.changed()).await;
        assert!(waited.is_err(), "nothing has changed");
        sender.send_modify(|value| *value = 3);
        drop(sender);
        receiver.changed().await.unwrap();
        assert_eq!(receiver.changed().await, Err(Closed));
        assert_eq!(receiver.wait_for(|value| *value == 3).await.map(|value| *value), Ok(3));
        assert!(receiver.wait_for(|value| *value == 4).await.is_err());
    }

    #[tokio::test]
    #[allow(clippy::disallowed_methods, reason = "a test of what tasks see")]
    async fn waiters_are_woken_in_the_order_in_which_they_came() {
        let (sender, receiver) = channel(0_u64);
        let order: Arc<Mutex<Vec<u64>>> = Arc::default();
        let came = Arc::new(AtomicU64::new(0));
        let tasks: Vec<_> = (0..50)
            .map(|number| {
                let (mut receiver, order, came) = (receiver.clone(), Arc::clone(&order), Arc::clone(&came));
                tokio::spawn(async move {
                    came.fetch_add(1, Ordering::Relaxed);
                    receiver.wait_for(|value| *value == 7).await.unwrap();
                    order.lock().push(number);
                })
            })
            .collect();
        while came.load(Ordering::Relaxed) < 50 {
            tokio::task::yield_now().await;
        }
        sender.send_replace(7);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock(), (0..50).collect::<Vec<_>>());
    }
}
