#![no_main]
use isobar_fuzz::{begin, snapshot};

libfuzzer_sys::fuzz_target!(init: begin(snapshot::seeds), |data: &[u8]| snapshot::run(data));
