#![no_main]
use isobar_fuzz::{batch, begin};

libfuzzer_sys::fuzz_target!(init: begin(batch::seeds), |data: &[u8]| batch::run(data));
