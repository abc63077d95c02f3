//! Object life by its planners: what is readable stays readable, and everything that could grow is bounded.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod model;

use model::{Load, Model, topic};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn load(partitions: i32, bytes_per_s: u64, batch_bytes: u64, retention_ms: i64) -> Load {
    Load { partitions, bytes_per_s, batch_bytes, retention_ms, retention_bytes: -1 }
}

fn small_limits(model: &mut Model) {
    model.limits.merge_bytes = 64 << 10;
    model.limits.merge_objects = 8;
    model.limits.single_min_bytes = 96 << 10;
    model.limits.single_max_bytes = 256 << 10;
    model.limits.run_bytes = 16 << 10;
    model.limits.dead_slack_bytes = 64 << 10;
    model.index_limits.list_extents = 24;
    model.index_limits.keep_extents = 8;
    model.index_limits.block_extents = 8;
    model.index_limits.settle_ms = 600_000;
    model.index_limits.settled_bytes = 32 << 10;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Random histories of everything: each offset inside a log lies where its batch is, in an object that is there.
    #[test]
    fn every_offset_stays_readable(seed in any::<u64>(), steps in 100_usize..260) {
        let loads = vec![load(3, 900, 300, 3_600_000), load(1, 2_000, 500, -1), load(2, 60, 100, 900_000)];
        let mut model = Model::new(loads, seed);
        model.with_batches = true;
        model.compare = true;
        small_limits(&mut model);
        for _ in 0..steps {
            model.now_ms += 5_000 + model.draw(20_000) as i64;
            match model.draw(12) {
                0 => model.retain(),
                1 => model.delete(),
                2 => model.index(),
                3..=4 => model.compact(6),
                _ => {
                    model.produce(10_000);
                    if model.draw(3) > 0 {
                        model.upload(24 << 10);
                    }
                }
            }
        }
        model.skip_some();
        model.upload(u64::MAX);
        model.skip_some();
        model.compact(0);
        model.index();
        model.retain();
        model.delete();
        let image = model.image();
        for key in model.keys() {
            let view = image.view(key).unwrap();
            let read = model.read(&image, key);
            let mut next = read.first().map_or(view.log_start, |(base, _)| *base);
            prop_assert!(next <= view.log_start);
            for (base, _) in read {
                prop_assert_eq!(base, next);
                next += 10;
            }
            prop_assert_eq!(next, view.high_watermark);
        }
        // Nothing lies in the bucket for ever that nothing refers to.
        // (A step over ten minutes would hold expiry.)
        for _ in 0..20 {
            model.now_ms += 300_000;
            model.delete();
        }
        let image = model.image();
        for object in model.bucket.keys() {
            prop_assert!(image.object(*object).is_some_and(|object| object.refs > 0), "{} is left", object);
        }
    }
}

/// Hours of a mixed load with all the real limits.
#[test]
fn busy_hours_are_bounded() {
    let loads = vec![
        load(32, 24 * MIB, 256 << 10, 3_600_000),
        load(8, 2 * MIB, 64 << 10, 2 * 3_600_000),
        load(64, 40 << 10, 4 << 10, -1),
        load(4, 1 << 10, 512, 1_800_000),
    ];
    let mut model = Model::new(loads, 7);
    let (mut most_objects, mut worst_dead) = (0, 0.0_f64);
    for tick in 0..3 * 1_200_u64 {
        model.now_ms += 3_000;
        model.produce(3_000);
        model.upload(32 * MIB);
        if tick % 4 == 0 {
            model.compact(0);
        }
        if tick % 20 == 0 {
            model.index();
        }
        if tick % 100 == 0 {
            model.retain();
            model.delete();
            let seen = model.snapshot();
            most_objects = most_objects.max(seen.objects);
            if seen.retained_bytes > 20 * GIB {
                worst_dead = worst_dead.max(seen.referenced_bytes as f64 / seen.retained_bytes as f64);
            }
        }
    }
    let seen = model.snapshot();
    let gib = seen.retained_bytes as f64 / GIB as f64;
    let written = (model.counts.uploaded_bytes + model.counts.compacted_bytes) as f64;
    let amplification = written / model.counts.produced_bytes as f64;
    println!(
        "{seen:?} {:?} amplification {amplification:.2}, referenced/live at most {worst_dead:.2}",
        model.counts
    );
    assert!(amplification < 3.2, "{amplification}");
    assert!(most_objects < 1_500, "{most_objects}");
    assert!((seen.objects as f64) < 10.0 * gib + 300.0, "{seen:?}");
    assert!(worst_dead < 1.5, "{worst_dead}");
    assert!((seen.metadata_bytes as f64) < 200_000.0 * gib.max(1.0), "{seen:?}");
    assert_eq!(model.image().view(isobar_metadata::PartitionKey::new(topic(2), 0)).unwrap().log_start, 0);
}
