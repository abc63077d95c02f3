#![no_main]
use isobar_fuzz::{begin, response};

libfuzzer_sys::fuzz_target!(init: begin(response::seeds), |data: &[u8]| response::run(data));
