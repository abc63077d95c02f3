#![no_main]
use isobar_fuzz::{begin, journal};

libfuzzer_sys::fuzz_target!(init: begin(journal::seeds), |data: &[u8]| journal::run(data));
