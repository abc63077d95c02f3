#![no_main]
use isobar_fuzz::{begin, canary};

libfuzzer_sys::fuzz_target!(init: begin(canary::seeds), |data: &[u8]| canary::run(data));
