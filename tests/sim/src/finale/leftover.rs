//! The bucket held against metadata by a look of our own: names against what extents and pointers name. Pure.

use std::collections::{BTreeMap, BTreeSet};

use isobar_metadata::{Image, ObjectId};
use isobar_store::format::{object_key, parse_object_key};

/// What lies in the bucket: key and length.
pub(super) type Objects = BTreeMap<String, u64>;

/// Where each referenced object's last referenced byte lies, as extents and pointers say; 0 where they do not.
fn referenced(image: &Image) -> BTreeMap<ObjectId, u64> {
    let mut ends: BTreeMap<ObjectId, u64> = BTreeMap::new();
    let mut refer = |object, end: u64| {
        let known = ends.entry(object).or_default();
        *known = end.max(*known);
    };
    for shard in 0..image.shards() {
        for view in image.shard_stored(shard) {
            for extent in view.stores.values().flat_map(|extents| extents.values()) {
                if let Some(at) = extent.object() {
                    refer(at.object, at.range().end);
                }
            }
            for pointer in view.indexed.values().flat_map(|pointers| pointers.values()) {
                refer(pointer.object, pointer.range().end);
                pointer.objects().for_each(|(object, _)| refer(object, 0));
            }
        }
    }
    ends
}

/// What metadata points at and is not there, or is too short. The image must be newer than nothing that was deleted since.
pub(super) fn missing(image: &Image, objects: &Objects) -> Vec<String> {
    let lack = |(object, end): (ObjectId, u64)| {
        let key = object_key(object);
        match objects.get(&key) {
            None => Some(format!("{key} is referred to and is not there")),
            Some(size) if *size < end => {
                Some(format!("{key} has {size} bytes and is referred to up to {end}"))
            }
            Some(_) => None,
        }
    };
    referenced(image).into_iter().filter_map(lack).collect()
}

/// What is there and nothing points at.
/// `cut`: the recovery cut that is archived.
pub(super) fn left_over(image: &Image, cut: u64, objects: &Objects) -> Vec<String> {
    let wanted = referenced(image);
    let mut found = Vec::new();
    let mut snapshots: BTreeSet<u64> = BTreeSet::new();
    let mut pieces: BTreeMap<u64, (u64, &str)> = BTreeMap::new();
    let incarnation = image.incarnation();
    let mut earlier = Vec::new();
    for key in objects.keys() {
        let parts: Vec<&str> = key.split('/').collect();
        match parts[..] {
            ["data", ..] => match parse_object_key(key) {
                Some(object) if wanted.contains_key(&object) => {}
                Some(object) => {
                    let record = image.object(object).map(|object| (object.state, object.refs));
                    found.push(format!("{key}: nothing points at it; state and references {record:?}"));
                }
                None => found.push(format!("{key}: no name of an object")),
            },
            ["cluster"] => {}
            // A first start that died while it tried the store; a few bytes, once (accepted).
            ["probe", ..] => {}
            ["claim", number] if number.parse::<u32>().is_ok_and(|number| number <= incarnation) => {}
            ["archive", number, "log" | "snapshot", name] if number.parse() == Ok(incarnation) => {
                let first = |text: &str| text.split('-').next().and_then(|index| index.parse::<u64>().ok());
                let last = |text: &str| text.split('-').nth(1).and_then(|index| index.parse::<u64>().ok());
                match (parts[2], first(name), last(name)) {
                    ("snapshot", Some(index), _) => drop(snapshots.insert(index)),
                    ("log", Some(first), Some(last)) => drop(pieces.insert(last, (first, key))),
                    _ => found.push(format!("{key}: no name of the archive")),
                }
            }
            ["archive", ..] => earlier.push(format!("{key}: of an incarnation that is over")),
            _ => found.push(format!("{key}: no name of ours")),
        }
    }
    // The newest at or below the cut and the one before it stay, and what is above the cut. What is older goes once there are two,
    // with the log between them: behind a hole (the store was away for longer than the log waits) they are counted anew.
    let mut covered: Vec<u64> = snapshots.iter().copied().filter(|index| *index <= cut).collect();
    let is_whole = |from: u64, to: u64| {
        let mut end = from;
        for (last, (first, _)) in pieces.range(from + 1..) {
            if *first > end + 1 || end >= to {
                break;
            }
            end = *last;
        }
        end >= to
    };
    if let Some(hole) = covered.windows(2).rposition(|pair| !is_whole(pair[0], pair[1])) {
        covered.drain(..=hole);
    }
    if covered.len() > 2 {
        found.push(format!("{} snapshots in the archive below the cut {cut}: {covered:?}", covered.len()));
    }
    if covered.len() >= 2 {
        found.extend(earlier);
        let old = pieces.iter().filter(|(last, _)| **last <= covered[0]);
        found.extend(old.map(|(_, (_, key))| format!("{key}: before the oldest snapshot, {}", covered[0])));
    }
    found
}

/// Whether some extent's bytes lie there. `None`: an object that index blocks may list.
pub(super) fn is_live(image: &Image, object: ObjectId, position: u64) -> Option<bool> {
    let mut indexed = false;
    for shard in 0..image.shards() {
        for view in image.shard_stored(shard) {
            let extents = view.stores.values().flat_map(|extents| extents.values());
            let mut places = extents.filter_map(|extent| extent.object());
            if places.any(|at| at.object == object && at.range().contains(&position)) {
                return Some(true);
            }
            for pointer in view.indexed.values().flat_map(|pointers| pointers.values()) {
                if pointer.object == object && pointer.range().contains(&position) {
                    return Some(true);
                }
                indexed |= pointer.objects().any(|(of, _)| of == object);
            }
        }
    }
    (!indexed).then_some(false)
}
