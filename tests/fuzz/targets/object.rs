#![no_main]
use isobar_fuzz::{begin, object};

libfuzzer_sys::fuzz_target!(init: begin(object::seeds), |data: &[u8]| object::run(data));
