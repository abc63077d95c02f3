#![no_main]
use isobar_fuzz::{begin, entries};

libfuzzer_sys::fuzz_target!(init: begin(entries::seeds), |data: &[u8]| entries::run(data));
