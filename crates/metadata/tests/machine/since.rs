//! What is said to differ between two versions is what differs, whether they share anything or not.

use crate::world::{World, step};
use isobar_metadata::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// What was, changed by what is said to differ, is what is; nothing is said to differ that does not.
fn check<K: Ord + Copy, T: Clone + PartialEq>(
    was: impl Iterator<Item = T>,
    is: impl Iterator<Item = T>,
    key: impl Fn(&T) -> K,
    differences: Vec<(Option<T>, Option<T>)>,
) {
    let mut known: BTreeMap<K, T> = was.map(|thing| (key(&thing), thing)).collect();
    for (was, is) in differences {
        let at = key(is.as_ref().or(was.as_ref()).unwrap());
        assert!(was != is, "the same");
        let had = match is {
            Some(is) => known.insert(at, is),
            None => known.remove(&at),
        };
        assert!(had == was, "it was something else");
    }
    let now: BTreeMap<K, T> = is.map(|thing| (key(&thing), thing)).collect();
    assert!(known == now);
}

fn owned<T: Clone>((was, is): Difference<'_, T>) -> (Option<T>, Option<T>) {
    (was.cloned(), is.cloned())
}

fn compare(earlier: &Image, now: &Image) {
    let objects = now.objects_since(earlier).map(owned).collect();
    check(earlier.objects().copied(), now.objects().copied(), |object| object.object, objects);
    for shard in 0..now.shards() {
        let views = || now.shard_since(earlier, shard);
        let (was, is) = (earlier.shard_partitions(shard).cloned(), now.shard_partitions(shard).cloned());
        check(was, is, |view| view.key(), views().map(owned).collect());
        for (was, is) in views() {
            let (was, is) = (was.map(AsRef::as_ref), is.map(AsRef::as_ref));
            for store in (1..4).map(StoreId) {
                let list = |view: &PartitionView| view.stores.get(&store).cloned().unwrap_or_default();
                let (before, after) = (was.map(list).unwrap_or_default(), is.map(list).unwrap_or_default());
                let extents = PartitionView::stored_since(was, is, store).map(owned).collect();
                let (before, after) = (before.values().cloned(), after.values().cloned());
                check(before, after, |extent| extent.base_offset, extents);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn differences_are_what_differs(steps in prop::collection::vec(step(), 1..160), pause in 1_usize..24) {
        let mut world = World::new();
        world.rig.checked = false;
        let first = world.rig.machine.image();
        let mut earlier = first.clone();
        for (n, step) in steps.into_iter().enumerate() {
            world.step(step);
            if n % pause == 0 {
                let now = world.rig.machine.image();
                compare(&earlier, &now);
                earlier = now;
            }
        }
        let now = world.rig.machine.image();
        compare(&first, &now);
        compare(&now, &first);
        compare(&Image::new(now.format().as_ref().clone()), &now);
        // One that shares nothing.
        let restored = StateMachine::restore(&world.rig.machine.freeze().to_vec()).unwrap();
        prop_assert_eq!(restored.view().objects_since(&now).count(), 0);
        compare(&first, restored.view());
    }
}
