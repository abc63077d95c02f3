//! A client's byte stream, in pieces: frame heads, then requests.
//!
//! Promises: what is read does not depend on how the bytes are cut; a head costs no memory; the request behind an
//! accepted head is of that API and version; nothing is read after an error.

use bytes::{Buf, Bytes, BytesMut};
use isobar_protocol::frame::{DEFAULT_MAX_REQUEST_BYTES, FrameError, FrameHead, HEAD_BYTES};
use isobar_protocol::request::{DecodeError, decode_request};

use crate::input::Input;
use crate::{peak_of, samples};

#[derive(Debug, PartialEq)]
enum Seen {
    Request(String),
    Malformed(String),
    /// The connection is closed.
    Closed(FrameError),
    /// Bytes that wait for more.
    Left(usize),
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let max_bytes = input.pick(&[DEFAULT_MAX_REQUEST_BYTES, 64, 4096]);
    let piece_bytes = 1 + usize::from(input.u8()) % 23;
    let stream = input.rest();
    let whole = read(stream, max_bytes, stream.len().max(1));
    let in_pieces = read(stream, max_bytes, piece_bytes);
    assert_eq!(whole, in_pieces, "the cuts of a stream matter");
}

fn read(stream: &[u8], max_bytes: usize, piece_bytes: usize) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut buffer = BytesMut::new();
    for piece in stream.chunks(piece_bytes) {
        buffer.extend_from_slice(piece);
        loop {
            let (head, peak) = peak_of(|| FrameHead::parse(&buffer, max_bytes));
            assert_eq!(peak, 0, "a head costs memory");
            match head {
                Err(error) => {
                    seen.push(Seen::Closed(error));
                    return seen;
                }
                Ok(None) => {
                    assert!(buffer.len() < HEAD_BYTES);
                    break;
                }
                Ok(Some(head)) => {
                    assert!(head.len_bytes <= max_bytes && head.total_bytes() == head.len_bytes + 4);
                    if buffer.len() < head.total_bytes() {
                        break;
                    }
                    let mut frame = buffer.split_to(head.total_bytes()).freeze();
                    frame.advance(4);
                    seen.push(decode(head, frame));
                }
            }
        }
    }
    seen.push(Seen::Left(buffer.len()));
    seen
}

fn decode(head: FrameHead, frame: Bytes) -> Seen {
    match decode_request(frame) {
        Ok(request) => {
            assert_eq!((request.header.api, request.header.version), (head.api, head.version));
            Seen::Request(format!("{request:?}"))
        }
        Err(error @ DecodeError::NotServed(_)) => panic!("the head was served, its request is not: {error}"),
        Err(error) => Seen::Malformed(error.to_string()),
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    let frames: Vec<_> = samples::requests().into_iter().map(|(_, _, frame)| frame).collect();
    let framed = |frame: &&Bytes| [&(frame.len() as u32).to_be_bytes()[..], frame].concat();
    frames
        .chunks(3)
        .enumerate()
        .map(|(number, frames)| {
            let stream: Vec<u8> = frames.iter().flat_map(framed).collect();
            [&[0, number as u8][..], &stream].concat()
        })
        .collect()
}
