//! What may happen to a state machine, as a strategy.

use isobar_metadata::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Register { node: i32, zone: u8 },
    Fence { session: usize },
    Update { session: usize, state: i32 },
    Open { session: usize, class: u32 },
    Close { stream: usize },
    Commit { stream: usize, parts: Vec<(usize, i32, Vec<Batch>)>, how: u8 },
    Grant { session: usize },
    Upload { session: usize, object: usize, store: u32, runs: Vec<(usize, i32, u8, u8)>, more: bool },
    Expire,
    Deleted,
    ObjectChunk { session: usize, object: usize, class: u32, parts: Vec<(usize, i32, Vec<Batch>)> },
    Compact { session: usize, object: usize, runs: Vec<(usize, u8, u8)>, more: bool },
    Index { session: usize, object: usize, runs: Vec<(usize, u8)> },
    Create { session: usize, name: u8, class: u32, partitions: i32, kind: u8 },
    Delete { session: usize, topic: usize },
    Undelete { session: usize, topic: usize, name: u8 },
    Purge { session: usize, topic: usize },
    Archive { back: u8 },
    Grow { session: usize, topic: usize, count: i32 },
    LogStart { session: usize, topic: usize, partition: i32, at: u8, reason: i32 },
    Group { session: usize, what: u8, group: u8, topic: usize },
    Configs { session: usize, topic: usize, value: u8 },
    Time { by: i64 },
    Repeat { back: usize },
    Restart,
    Incarnation,
}

#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(super) skip: u32,
    pub(super) count: u32,
    pub(super) producer: Option<(u8, i32)>,
}

fn batch() -> impl Strategy<Value = Batch> {
    (0..2u32, prop_oneof![1 => Just(0), 15 => 1..5u32], prop::option::of((0..2u8, -1..3i32)))
        .prop_map(|(skip, count, producer)| Batch { skip, count, producer })
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let n = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 20));
    let part = || (n(), 0..3i32, prop::collection::vec(batch(), 1..4));
    let run = || (n(), 0..3i32, any::<u8>(), any::<u8>());
    prop_oneof![
        3 => (0..3i32, 0..2u8).prop_map(|(node, zone)| Step::Register { node, zone }),
        1 => n().prop_map(|session| Step::Fence { session }),
        1 => (n(), 0..4i32).prop_map(|(session, state)| Step::Update { session, state }),
        4 => (n(), 0..2u32).prop_map(|(session, class)| Step::Open { session, class }),
        1 => n().prop_map(|stream| Step::Close { stream }),
        40 => (n(), prop::collection::vec(part(), 0..5), any::<u8>())
            .prop_map(|(stream, parts, how)| Step::Commit { stream, parts, how }),
        10 => n().prop_map(|session| Step::Grant { session }),
        14 => (n(), n(), 1..4u32, prop::collection::vec(run(), 0..4), any::<bool>())
            .prop_map(|(session, object, store, runs, more)| Step::Upload { session, object, store, runs, more }),
        16 => (n(), n(), 0..2u32, prop::collection::vec(part(), 0..4))
            .prop_map(|(session, object, class, parts)| Step::ObjectChunk { session, object, class, parts }),
        8 => (n(), n(), prop::collection::vec((n(), any::<u8>(), any::<u8>()), 0..4), any::<bool>())
            .prop_map(|(session, object, runs, more)| Step::Compact { session, object, runs, more }),
        8 => (n(), n(), prop::collection::vec((n(), any::<u8>()), 1..4))
            .prop_map(|(session, object, runs)| Step::Index { session, object, runs }),
        4 => (n(), n(), 0..6u8).prop_map(|(session, topic, name)| Step::Undelete { session, topic, name }),
        1 => (n(), n()).prop_map(|(session, topic)| Step::Purge { session, topic }),
        2 => any::<u8>().prop_map(|back| Step::Archive { back }),
        5 => Just(Step::Expire),
        2 => Just(Step::Deleted),
        5 => (n(), 0..4u8, 0..2u32, 1..4i32, any::<u8>()).prop_map(|(session, name, class, partitions, kind)| {
            Step::Create { session, name, class, partitions, kind }
        }),
        2 => (n(), n()).prop_map(|(session, topic)| Step::Delete { session, topic }),
        1 => (n(), n(), 1..5i32).prop_map(|(session, topic, count)| Step::Grow { session, topic, count }),
        4 => (n(), n(), 0..3i32, any::<u8>(), 0..2i32).prop_map(|(session, topic, partition, at, reason)| {
            Step::LogStart { session, topic, partition, at, reason }
        }),
        4 => (n(), 0..6u8, 0..3u8, n()).prop_map(|(session, what, group, topic)| Step::Group { session, what, group, topic }),
        3 => (n(), n(), any::<u8>()).prop_map(|(session, topic, value)| Step::Configs { session, topic, value }),
        3 => prop_oneof![3 => 0..90_000i64, 1 => Just(2 * TIME_JUMP_MS), 1 => Just(-5000i64)].prop_map(|by| Step::Time { by }),
        4 => n().prop_map(|back| Step::Repeat { back }),
        2 => Just(Step::Restart),
        1 => Just(Step::Incarnation),
    ]
}
