//! Which groups are loaded: a slot for each name, in which at most one machine is or is being loaded.
//!
//! **Invariants**
//! 1. For a name one load runs at a time, and none while its machine is here. Two machines of one group would each store their
//!    own story under the same epoch.
//! 2. A slot whose load failed (or whose request was given up) is taken out *before* the next one that waits for it is woken;
//!    and who wakes up at a slot that was taken out loads nothing into it.
//!
//! **Failure**: who waited for a load that failed is told COORDINATOR_LOAD_IN_PROGRESS, on which clients ask again.

use std::collections::BTreeMap;
use std::sync::Arc;

use isobar_groups::{GroupError, Name};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

type Slot<M> = OnceCell<Arc<M>>;

pub(super) struct Slots<M> {
    slots: Mutex<BTreeMap<Name, Arc<Slot<M>>>>,
}

impl<M> Default for Slots<M> {
    fn default() -> Self {
        Self { slots: Mutex::default() }
    }
}

impl<M> Slots<M> {
    /// Those that are loaded.
    pub(super) fn loaded(&self) -> Vec<Arc<M>> {
        self.slots.lock().values().filter_map(|slot| slot.get().cloned()).collect()
    }

    /// The group's machine, if it is loaded.
    pub(super) fn get(&self, group: &str) -> Option<Arc<M>> {
        self.slots.lock().get(group)?.get().cloned()
    }

    /// Is it loaded, or being loaded?
    pub(super) fn contains(&self, group: &str) -> bool {
        self.slots.lock().contains_key(group)
    }

    /// The group's machine; if there is none, what `load` makes.
    pub(super) async fn get_or_load(
        &self,
        group: &str,
        load: impl AsyncFnOnce() -> Result<Arc<M>, GroupError>,
    ) -> Result<Arc<M>, GroupError> {
        let slot = Arc::clone(self.slots.lock().entry(Name::from(group)).or_default());
        let entered = slot.get_or_try_init(async || {
            if !self.stands(group, &slot) {
                return Err(GroupError::CoordinatorLoadInProgress);
            }
            let mut loading = Loading { slots: self, group, slot: &slot, done: false };
            let machine = load().await?;
            loading.done = true;
            Ok(machine)
        });
        entered.await.cloned()
    }

    fn stands(&self, group: &str, slot: &Arc<Slot<M>>) -> bool {
        self.slots.lock().get(group).is_some_and(|other| Arc::ptr_eq(other, slot))
    }

    /// Takes this machine out, if it is the one that is loaded.
    pub(super) fn remove(&self, group: &str, machine: &Arc<M>) {
        let mut slots = self.slots.lock();
        let loaded = slots.get(group).and_then(|slot| slot.get());
        if loaded.is_some_and(|loaded| Arc::ptr_eq(loaded, machine)) {
            slots.remove(group);
        }
    }
}

/// A load under way; the slot goes with it unless it is done. Dropped while the slot's cell is still held.
struct Loading<'a, M> {
    slots: &'a Slots<M>,
    group: &'a str,
    slot: &'a Arc<Slot<M>>,
    done: bool,
}

impl<M> Drop for Loading<'_, M> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut slots = self.slots.slots.lock();
        if slots.get(self.group).is_some_and(|other| Arc::ptr_eq(other, self.slot)) {
            slots.remove(self.group);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use isobar_groups::GroupError::{self, CoordinatorLoadInProgress, CoordinatorNotAvailable};
    use isobar_host::sim::{SimDisk, World};
    use parking_lot::Mutex;
    use tokio::time::{Duration, sleep, timeout};

    use super::Slots;

    #[derive(Default)]
    struct Machine {
        removed: AtomicBool,
    }

    /// Requests for one group in every order and of every length, of which some fail and some are given up: a machine that was
    /// handed out is in its slot until it is removed, and no two loads overlap.
    #[test]
    fn no_two_machines_of_a_group() {
        let (mut failed, mut given_up, mut loaded) = (0, 0, 0);
        for seed in 0..200 {
            let mut world = World::new(seed);
            world.add_node("a", Arc::new(SimDisk::new(seed)));
            let slots: Arc<Slots<Machine>> = Arc::default();
            let loading = Arc::new(AtomicUsize::new(0));
            let answers: Arc<Mutex<Vec<_>>> = Arc::default();
            let draws: Vec<[u64; 5]> = (0..8).map(|_| [0; 5].map(|_: u64| world.below(20))).collect();
            let (shared, told) = (Arc::clone(&slots), Arc::clone(&answers));
            world.boot("a", |host| async move {
                for draw in draws {
                    let (slots, answers, loading) =
                        (Arc::clone(&shared), Arc::clone(&told), Arc::clone(&loading));
                    let _ = host.spawn("test.request", async move {
                        let answer = request(&slots, &loading, draw).await;
                        answers.lock().push(answer);
                    });
                }
            });
            for _ in 0..500 {
                world.step();
            }
            let answers = std::mem::take(&mut *answers.lock());
            assert_eq!(
                answers.len(),
                8,
                "seed {seed}: two loads overlapped, or a machine was not in its slot"
            );
            for answer in &answers {
                match answer {
                    None => given_up += 1,
                    Some(Ok(())) => loaded += 1,
                    Some(Err(error)) => {
                        assert!([CoordinatorNotAvailable, CoordinatorLoadInProgress].contains(error));
                        failed += 1;
                    }
                }
            }
            assert_eq!(slots.contains("g"), slots.get("g").is_some(), "seed {seed}: an empty slot is left");
        }
        assert!(failed > 100 && given_up > 100 && loaded > 100, "{failed} {given_up} {loaded}");
    }

    /// `None`: given up.
    async fn request(
        slots: &Slots<Machine>,
        loading: &AtomicUsize,
        [comes, takes, fate, patience, stays]: [u64; 5],
    ) -> Option<Result<(), GroupError>> {
        sleep(Duration::from_millis(comes)).await;
        let asked = slots.get_or_load("g", async || {
            let counted = Counted::new(loading);
            sleep(Duration::from_millis(takes)).await;
            drop(counted);
            if fate < 12 { Err(CoordinatorNotAvailable) } else { Ok(Arc::default()) }
        });
        let machine = match timeout(Duration::from_millis(1 + patience * 3), asked).await {
            Err(_) => return None,
            Ok(Err(error)) => return Some(Err(error)),
            Ok(Ok(machine)) => machine,
        };
        let stands = slots.get("g").is_some_and(|own| Arc::ptr_eq(&own, &machine));
        assert_eq!(stands, !machine.removed.load(Ordering::Relaxed));
        if stays < 10 {
            machine.removed.store(true, Ordering::Relaxed);
            slots.remove("g", &machine);
        }
        Some(Ok(()))
    }

    struct Counted<'a>(&'a AtomicUsize);

    impl<'a> Counted<'a> {
        fn new(count: &'a AtomicUsize) -> Self {
            assert_eq!(count.fetch_add(1, Ordering::Relaxed), 0, "two loads at a time");
            Self(count)
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
