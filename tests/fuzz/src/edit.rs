//! Small lies told about bytes that were right.

use crate::input::Input;

/// Lengths and counts that readers trip over.
const HOSTILE: [&[u8]; 9] = [
    &[0x7f, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff],
    &[0xff, 0xff, 0xff, 0xff, 0x0f],
    &[0x80, 0x80, 0x80, 0x04],
    &[0, 1, 0, 0],
    &[0x7f, 0xff],
    &[0xff; 10],
    &[0; 8],
    &[0x80, 0, 0, 0, 0, 0, 0, 0],
];

/// Changes `bytes` by what is left of the input, at most 16 times. The first `keep` bytes stay.
pub(crate) fn edit(bytes: &mut Vec<u8>, keep: usize, input: &mut Input<'_>) {
    for _ in 0..16 {
        if input.is_empty() {
            return;
        }
        edit_once(bytes, keep, input);
    }
}

fn edit_once(bytes: &mut Vec<u8>, keep: usize, input: &mut Input<'_>) {
    let op = input.u8();
    let room = bytes.len().saturating_sub(keep);
    if room == 0 {
        return bytes.extend_from_slice(input.take(8));
    }
    let at = keep + input.u16() as usize % room;
    match op % 8 {
        0 => bytes[at] ^= 1 << (op >> 5),
        1 => bytes[at] = input.u8(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, input.u8()),
        4 => overwrite(bytes, at, input.pick(&HOSTILE)),
        5 => {
            let end = (at + 1 + usize::from(input.u8())).min(bytes.len());
            bytes.drain(at..end);
        }
        6 => {
            let from = keep + input.u16() as usize % room;
            let end = (from + 1 + usize::from(input.u8())).min(bytes.len());
            let piece = bytes[from..end].to_vec();
            overwrite(bytes, at, &piece);
        }
        _ => overwrite(bytes, at, &input.u64().to_be_bytes()[..usize::from(op >> 5) + 1]),
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    let n = with.len().min(bytes.len() - at);
    bytes[at..at + n].copy_from_slice(&with[..n]);
}
