use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MIB: u64 = 1 << 20;

fn start_all(schedule: &mut Schedule) -> Vec<(Class, u64)> {
    std::iter::from_fn(|| schedule.next()).map(|(_, class, bytes)| (class, bytes)).collect()
}

#[test]
fn readers_of_old_data_leave_room_for_the_tail() {
    let mut schedule = Schedule::default();
    for class in [Class::CatchUp, Class::Upload, Class::Compaction] {
        for _ in 0..100 {
            schedule.enqueue(class, 8 * MIB);
        }
    }
    start_all(&mut schedule);
    for _ in 0..8 {
        schedule.enqueue(Class::Tail, 8 * MIB);
        assert_eq!(start_all(&mut schedule), [(Class::Tail, 8 * MIB)]);
    }
    schedule.enqueue(Class::Control, 0);
    assert_eq!(start_all(&mut schedule), [(Class::Control, 0)]);
}

#[test]
fn each_class_keeps_its_bounds() {
    let limits = Limits::default();
    for class in Class::ALL {
        let mut schedule = Schedule::default();
        for _ in 0..200 {
            schedule.enqueue(class, 0);
        }
        start_all(&mut schedule);
        assert_eq!(schedule.load(class).0, limits.classes[class as usize].requests);
        let mut schedule = Schedule::default();
        for _ in 0..200 {
            schedule.enqueue(class, 8 * MIB);
        }
        start_all(&mut schedule);
        let share = limits.classes[class as usize].bytes;
        let (_, bytes, _) = schedule.load(class);
        assert!(bytes <= share && bytes > share - 8 * MIB, "{class:?}: {bytes} of {share}");
    }
}

#[test]
fn what_is_larger_than_a_share_goes_alone() {
    let mut schedule = Schedule::default();
    schedule.enqueue(Class::Compaction, 500 * MIB);
    schedule.enqueue(Class::Compaction, 1);
    assert_eq!(start_all(&mut schedule), [(Class::Compaction, 500 * MIB)]);
    schedule.finish(Class::Compaction, 500 * MIB);
    assert_eq!(start_all(&mut schedule), [(Class::Compaction, 1)]);
}

/// With everybody busy bytes are shared by weight and nobody starves.
#[test]
fn bytes_are_shared_by_weight() {
    let mut schedule = Schedule::new(Limits { bytes: 13 * MIB, ..Limits::default() });
    for class in [Class::CatchUp, Class::Upload, Class::Compaction] {
        for _ in 0..4000 {
            schedule.enqueue(class, MIB);
        }
    }
    let (mut moved, mut under_way) = ([0_u64; 5], std::collections::VecDeque::new());
    for _ in 0..4000 {
        under_way.extend(start_all(&mut schedule));
        let (class, bytes) = under_way.pop_front().unwrap();
        moved[class as usize] += bytes;
        schedule.finish(class, bytes);
    }
    let part = |class: Class| moved[class as usize] as f64 / moved[Class::Compaction as usize] as f64;
    assert!((3.0..5.0).contains(&part(Class::CatchUp)), "{moved:?}");
    assert!((6.0..10.0).contains(&part(Class::Upload)), "{moved:?}");
}

#[test]
fn one_that_was_idle_does_not_catch_up_on_what_it_left() {
    let mut schedule = Schedule::default();
    for _ in 0..1000 {
        schedule.enqueue(Class::Upload, MIB);
        let started = start_all(&mut schedule);
        assert_eq!(started.len(), 1);
        schedule.finish(Class::Upload, MIB);
    }
    for class in [Class::CatchUp, Class::Upload] {
        for _ in 0..16 {
            schedule.enqueue(class, MIB);
        }
    }
    let first: Vec<_> = std::iter::from_fn(|| schedule.next()).take(6).map(|(_, class, _)| class).collect();
    assert!(first.contains(&Class::Upload), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn permits_come_back_however_their_holders_end() {
    let classes = Classes::default();
    let limit = Limits::default().classes[Class::CatchUp as usize].requests as usize;
    let mut held = Vec::new();
    for _ in 0..limit {
        held.push(classes.acquire(Class::CatchUp, MIB).await);
    }
    assert!(classes.try_acquire(Class::CatchUp, MIB).is_none());
    // One who leaves while waiting takes nothing along.
    let waits = classes.acquire(Class::CatchUp, MIB);
    assert!(tokio::time::timeout(Duration::from_millis(1), waits).await.is_err());
    assert_eq!(classes.load(Class::CatchUp), (limit as u32, limit as u64 * MIB, 0));
    // Those who wait get what is given back, in their order.
    let order = Mutex::new(Vec::new());
    let wait = |n: usize| {
        let (classes, order) = (classes.clone(), &order);
        async move {
            let permit = classes.acquire(Class::CatchUp, MIB).await;
            order.lock().push(n);
            drop(permit);
        }
    };
    let all = futures_util::future::join_all((0..5).map(wait));
    let free = async { drop(held.pop()) };
    futures_util::future::join(all, free).await;
    assert_eq!(*order.lock(), [0, 1, 2, 3, 4]);
    drop(held);
    assert_eq!(classes.load(Class::CatchUp), (0, 0, 0));
    // A tail read never waits for them.
    assert!(classes.try_acquire(Class::Tail, MIB).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_was_sent_to_one_who_left_is_not_lost() {
    let classes = Classes::new(Limits { requests: 1, ..Limits::default() });
    let held = classes.acquire(Class::Upload, MIB).await;
    let second = classes.acquire(Class::Upload, MIB);
    let mut second = Box::pin(second);
    assert!(futures_util::poll!(second.as_mut()).is_pending());
    drop(held);
    // Granted now, and never taken.
    drop(second);
    assert_eq!(classes.load(Class::Upload), (0, 0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Enqueue(usize, u64),
    Finish(usize),
    Cancel(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5_usize, 0..40 * MIB).prop_map(|(class, bytes)| Step::Enqueue(class, bytes)),
        2 => (0..64_usize).prop_map(Step::Finish),
        1 => (0..64_usize).prop_map(Step::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever comes and goes: the bounds hold but for single large requests, nothing is lost, and once everything that
    /// was under way has ended, everything that waits has been served.
    #[test]
    fn bounded_and_nobody_is_forgotten(steps in proptest::collection::vec(step(), 0..200)) {
        let limits = Limits::default();
        let mut schedule = Schedule::new(limits);
        let (mut waiting, mut under_way): (Vec<Ticket>, Vec<(Class, u64)>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Enqueue(class, bytes) => waiting.push(schedule.enqueue(Class::ALL[class], bytes)),
                Step::Finish(n) if !under_way.is_empty() => {
                    let (class, bytes) = under_way.swap_remove(n % under_way.len());
                    schedule.finish(class, bytes);
                }
                Step::Cancel(n) if !waiting.is_empty() => {
                    let ticket = waiting.swap_remove(n % waiting.len());
                    schedule.cancel(ticket);
                }
                _ => {}
            }
            while let Some((ticket, class, bytes)) = schedule.next() {
                prop_assert!(waiting.contains(&ticket));
                waiting.retain(|other| *other != ticket);
                under_way.push((class, bytes));
            }
            for class in Class::ALL {
                let (requests, bytes, _) = schedule.load(class);
                let share = limits.classes[class as usize];
                prop_assert!(requests <= share.requests);
                prop_assert!(bytes <= share.bytes || requests == 1);
            }
        }
        while let Some((class, bytes)) = under_way.pop() {
            schedule.finish(class, bytes);
            while let Some((ticket, class, bytes)) = schedule.next() {
                waiting.retain(|other| *other != ticket);
                under_way.push((class, bytes));
            }
        }
        prop_assert!(waiting.is_empty());
        for class in Class::ALL {
            prop_assert_eq!(schedule.load(class), (0, 0, 0));
        }
    }
}
