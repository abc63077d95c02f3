//! The codecs, on noise and on what they wrote with lies told about it.
//!
//! Promises: never more bytes than the cap, and memory by the cap, not by what a header says; what they yield,
//! compressed again, yields the same; untouched, what was compressed comes back, and one byte less of cap is refused.

use isobar_protocol::compression::{Codec, CompressionError};

use crate::edit::edit;
use crate::input::Input;
use crate::peak_of;

/// What a decoder takes beside its output: windows and tables. lz4's header picks blocks of up to 8 MiB.
const fn own_bytes(codec: Codec) -> usize {
    match codec {
        Codec::Lz4 => 20 << 20,
        _ => 1 << 20,
    }
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let codec = input.pick(&Codec::ALL);
    let cap_bytes = input.pick(&[1 << 16, 0, 1, 4096, 3 << 20]);
    if input.bool() {
        return check(codec, input.rest(), cap_bytes);
    }
    let plain = plain(&mut input);
    let mut packed = codec.compress(&plain).expect("compresses");
    match codec.decompress(&packed, plain.len()) {
        Ok(back) => assert_eq!(back, plain),
        Err(error) => panic!("{codec}: {error}"),
    }
    if !plain.is_empty() {
        let over = codec.decompress(&packed, plain.len() - 1);
        assert!(
            matches!(over, Err(CompressionError::TooLarge { .. })),
            "{codec}: one byte too many is accepted"
        );
    }
    edit(&mut packed, 0, &mut input);
    check(codec, &packed, cap_bytes);
}

fn plain(input: &mut Input<'_>) -> Vec<u8> {
    let mut plain = Vec::new();
    for _ in 0..input.below(6) {
        plain.extend(input.sized().unwrap_or_else(|| vec![0; 70_000]));
    }
    plain
}

fn check(codec: Codec, bytes: &[u8], cap_bytes: usize) {
    let (yielded, peak) = peak_of(|| codec.decompress(bytes, cap_bytes));
    // The output grows by half, and is moved while it does.
    let allowed_bytes = 3 * cap_bytes + own_bytes(codec);
    assert!(peak <= allowed_bytes, "{codec}: {peak} bytes with a cap of {cap_bytes}");
    let Ok(yielded) = yielded else { return };
    assert!(yielded.len() <= cap_bytes);
    let packed = codec.compress(&yielded).expect("compresses");
    assert_eq!(codec.decompress(&packed, cap_bytes).expect("decompresses"), yielded);
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for codec in Codec::ALL {
        let packed = codec.compress(&b"isobar ".repeat(60)).expect("compresses");
        seeds.push([&[codec.id(), 0, 1][..], &packed].concat());
        seeds.push(vec![codec.id(), 0, 0, 3, 20, 1, 2, 3, 4, 5, 251, 9, 0, 1, 30, 0, 7]);
    }
    // Snappy without xerial's frame, as librdkafka writes it.
    seeds.push(vec![2, 0, 1, 5, 16, b'h', b'e', b'l', b'l', b'o']);
    seeds
}
