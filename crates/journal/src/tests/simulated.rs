//! In the simulated world, with its tasks, its clock and its power cuts at any step.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isobar_host::Host;
use isobar_host::sim::{SimDisk, World};
use parking_lot::Mutex;

use super::rig::{content, frame, small_options};
use crate::*;

/// What outlives the node's lives.
#[derive(Default)]
struct Known {
    next: u64,
    bytes: BTreeMap<u64, usize>,
    acknowledged: BTreeMap<u64, Written>,
    recycled: BTreeSet<u64>,
    gone: BTreeSet<u64>,
    openings: u64,
    reads: u64,
}

type Shared = Arc<Mutex<Known>>;

async fn node(host: Host, known: Shared) {
    let mut found = Vec::new();
    let opened =
        Journal::open(&host, Path::new("n/journal"), small_options(), &mut |recovered| found.push(recovered))
            .await;
    let Ok((journal, report)) = opened else { return };
    assert!(report.damage.is_empty());
    check(&mut known.lock(), &found);
    loop {
        tokio::time::sleep(Duration::from_micros(host.random_u64() % 3000)).await;
        for _ in 0..host.random_u64() % 4 {
            append(&host, &journal, &known);
        }
        if host.random_u64().is_multiple_of(8) {
            let sealed = journal.sealed_segments();
            if let Some(&segment) = sealed.get(host.random_u64() as usize % sealed.len().max(1)) {
                known.lock().recycled.insert(segment);
                journal.recycle(segment);
            }
        }
        read_one(&host, &journal, &known).await;
    }
}

fn append(host: &Host, journal: &Journal, known: &Shared) {
    let bytes = 3000 + (host.random_u64() % 3) as usize * 4096;
    let number = {
        let mut known = known.lock();
        known.next += 1;
        let number = known.next;
        known.bytes.insert(number, bytes);
        number
    };
    let told = Arc::clone(known);
    let _ = journal.append(frame(number, bytes), move |outcome| {
        if let Ok(written) = outcome {
            told.lock().acknowledged.insert(number, written);
        }
    });
}

async fn read_one(host: &Host, journal: &Journal, known: &Shared) {
    let picked = {
        let known = known.lock();
        let live = known.acknowledged.iter().filter(|(_, w)| !known.recycled.contains(&w.segment));
        let live: Vec<_> = live.map(|(number, written)| (*number, *written)).collect();
        live.get(host.random_u64() as usize % live.len().max(1)).copied()
    };
    let Some((number, written)) = picked else { return };
    if let Ok(read) = journal.read(vec![(written.position, written.len)]).await {
        let [read] = &read[..] else { panic!("{} frames for one", read.len()) };
        let mut known = known.lock();
        let expected = content(number, known.bytes[&number]);
        assert!(read.meta() == expected[expected.len() / 2..]);
        known.reads += 1;
    }
}

fn check(known: &mut Known, found: &[Recovered]) {
    known.openings += 1;
    let mut seen = BTreeSet::new();
    for recovered in found {
        let number = u64::from_le_bytes(recovered.frame.section(0)[21..29].try_into().unwrap());
        let expected = content(number, known.bytes[&number]);
        assert!(recovered.meta() == expected[expected.len() / 2..]);
        assert!(!known.gone.contains(&number), "{number} is back");
        assert!(seen.last().is_none_or(|last| *last < number));
        let place = Written { position: recovered.position, segment: recovered.segment, len: recovered.len };
        assert_eq!(*known.acknowledged.entry(number).or_insert(place), place);
        seen.insert(number);
    }
    for (number, written) in &known.acknowledged {
        let excused = known.recycled.contains(&written.segment) || known.gone.contains(number);
        assert!(excused || seen.contains(number), "{number} was acknowledged and is lost");
    }
    let missing: Vec<u64> = known.bytes.keys().filter(|number| !seen.contains(number)).copied().collect();
    known.gone.extend(missing);
}

fn live(seed: u64) -> ((u64, u64), Shared, BTreeMap<&'static str, u64>) {
    let mut world = World::new(seed);
    let known = Shared::default();
    world.add_node("n", Arc::new(SimDisk::new(seed)));
    for _ in 0..400 {
        let told = Arc::clone(&known);
        if !world.is_up("n") {
            world.boot("n", move |host| node(host, told));
            if world.below(3) > 0 {
                world.arm("n", 1 + world.below(400));
            }
        }
        if world.below(100) == 0 {
            world.crash("n");
        }
        world.step();
    }
    (world.trace(), known, world.points_passed("n"))
}

#[test]
fn lives_and_dies_without_losing_anything_and_the_same_way_for_the_same_seed() {
    let (mut acknowledged, mut openings, mut reads) = (0, 0, 0);
    let mut points = BTreeSet::new();
    for seed in 0..25 {
        let (_, known, passed) = live(seed);
        let known = known.lock();
        acknowledged += known.acknowledged.len();
        (openings, reads) = (openings + known.openings, reads + known.reads);
        points.extend(passed.into_keys());
    }
    assert!(acknowledged > 2000 && openings > 100 && reads > 1000, "{acknowledged} {openings} {reads}");
    assert!(points.contains("journal.rotated") && points.contains("journal.recycled"), "{points:?}");
    assert_eq!(live(3).0, live(3).0);
}
