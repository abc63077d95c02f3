//! Fuzz targets: bytes from outside, or from a disk that lies, against whatever reads them.
//!
//! Each module is one target. `run` takes libFuzzer's bytes and panics when a promise is broken; "it did not panic" is never
//! the only promise. `seeds` are inputs to begin with, made up by code, so that git holds no blobs: a target that is
//! started with `ISOBAR_FUZZ_SEEDS=DIR` writes them there and ends.
//!
//! Run by `tests/suites/fuzz` (a short time each, on every change) and `tests/fuzz/long.sh` (hours). What they find is
//! fixed, and kept as a test in the crate concerned.

mod alloc;
mod edit;
/// The pure part of `isobar-store`, without the clients of three clouds that come with the crate.
#[allow(dead_code, unreachable_pub)]
#[rustfmt::skip]
#[path = "../../../crates/store/src/format.rs"]
mod format;
mod input;
mod samples;

pub mod batch;
pub mod canary;
pub mod chunk;
pub mod compression;
pub mod entries;
pub mod frame;
pub mod journal;
pub mod object;
pub mod request;
pub mod response;
pub mod snapshot;

pub use alloc::peak_of;

/// Called once as a target starts.
pub fn begin(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(dir) = std::env::var_os("ISOBAR_FUZZ_SEEDS") else { return };
    let dir = std::path::PathBuf::from(dir);
    std::fs::create_dir_all(&dir).expect("the seeds' directory");
    for (number, seed) in seeds().iter().enumerate() {
        std::fs::write(dir.join(format!("seed-{number:03}")), seed).expect("a seed");
    }
    std::process::exit(0);
}
