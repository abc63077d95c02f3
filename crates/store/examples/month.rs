//! A simulated month of mixed load: the real planners and state machine, objects without bytes. Prints CSV, one line an hour.
//!
//! ```text
//! cargo run --profile ci -p isobar-store --example month -- [DAYS] > benches/month/month.csv
//! python3 benches/month/plot.py
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "an example for a bench")]

#[path = "../tests/month/model.rs"]
mod model;

use model::{Load, Model, START_MS, job_names};

const MIB: u64 = 1 << 20;
const HOUR_MS: i64 = 3_600_000;
const TICK_MS: i64 = 10_000;

fn main() {
    let days: i64 = std::env::args().nth(1).map_or(30, |days| days.parse().unwrap());
    let load = |partitions, bytes_per_s, batch_bytes, retention_ms| Load {
        partitions,
        bytes_per_s,
        batch_bytes,
        retention_ms,
        retention_bytes: -1,
    };
    let loads = vec![
        // Events, a week; logs, a day; a table, for ever; many small things, three days; a trickle, for ever; metrics, an hour.
        load(24, 4 * MIB, 256 << 10, 7 * 24 * HOUR_MS),
        load(12, 2 * MIB, 128 << 10, 24 * HOUR_MS),
        load(6, MIB / 4, 64 << 10, -1),
        load(16, 40 << 10, 8 << 10, 3 * 24 * HOUR_MS),
        load(4, 10 << 10, 4 << 10, -1),
        load(8, MIB / 2, 32 << 10, HOUR_MS),
    ];
    let mut model = Model::new(loads, 1);
    let head = "hour,produced,uploaded,compacted,puts,gets,deletes,objects,bucket,retained,extents,pointers,metadata";
    println!("{head},{}", job_names().join(","));
    for tick in 1..=days * 24 * HOUR_MS / TICK_MS {
        model.now_ms = START_MS + tick * TICK_MS;
        model.produce(TICK_MS);
        model.upload(32 * MIB);
        if tick % 3 == 0 {
            model.compact(0);
        }
        if tick % 6 == 0 {
            model.index();
            model.delete();
        }
        if tick % 30 == 0 {
            model.retain();
        }
        if tick % (HOUR_MS / TICK_MS) == 0 {
            print_hour(&model, tick * TICK_MS / HOUR_MS);
        }
    }
}

fn print_hour(model: &Model, hour: i64) {
    let (counts, seen) = (model.counts, model.snapshot());
    println!(
        "{hour},{},{},{},{},{},{},{},{},{},{},{},{},{}",
        counts.produced_bytes,
        counts.uploaded_bytes,
        counts.compacted_bytes,
        counts.puts,
        counts.gets,
        counts.deletes,
        seen.objects,
        seen.bucket_bytes,
        seen.retained_bytes,
        seen.extents,
        seen.pointers,
        seen.metadata_bytes,
        counts.jobs.map(|count| count.to_string()).join(",")
    );
}
