#![no_main]
use isobar_fuzz::{begin, frame};

libfuzzer_sys::fuzz_target!(init: begin(frame::seeds), |data: &[u8]| frame::run(data));
