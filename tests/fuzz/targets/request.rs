#![no_main]
use isobar_fuzz::{begin, request};

libfuzzer_sys::fuzz_target!(init: begin(request::seeds), |data: &[u8]| request::run(data));
