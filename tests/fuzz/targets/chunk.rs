#![no_main]
use isobar_fuzz::{begin, chunk};

libfuzzer_sys::fuzz_target!(init: begin(chunk::seeds), |data: &[u8]| chunk::run(data));
