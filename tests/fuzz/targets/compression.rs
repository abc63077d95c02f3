#![no_main]
use isobar_fuzz::{begin, compression};

libfuzzer_sys::fuzz_target!(init: begin(compression::seeds), |data: &[u8]| compression::run(data));
