//! Properties of the frames, of the handshake's messages, and of how a body's memory grows.

use bytes::Bytes;
use proptest::prelude::*;

use crate::error::FrameError;
use crate::frame::{Frame, HEAD_BYTES, Head, Kind, Opener, Sealer};
use crate::link::next_room;

const MAX: usize = 4096;

fn a_frame() -> impl Strategy<Value = Frame> {
    let kinds = prop::sample::select(vec![
        Kind::Request,
        Kind::Open,
        Kind::Answer,
        Kind::Refused,
        Kind::Part,
        Kind::End,
        Kind::Credit,
        Kind::Cancel,
        Kind::Ping,
        Kind::Pong,
    ]);
    let body = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..4);
    (kinds, any::<(u8, u8, u64, u32)>(), body).prop_map(|(kind, (service, method, id, argument), body)| {
        let body = if kind.is_bare() { Vec::new() } else { body.into_iter().map(Bytes::from).collect() };
        Frame { kind, service, method, id, argument, body }
    })
}

/// What travels, and where each frame ends.
fn sealed(key: u32, frames: &[Frame]) -> (Vec<u8>, Vec<usize>) {
    let mut sealer = Sealer::new(key);
    let (mut wire, mut ends) = (Vec::new(), Vec::new());
    for frame in frames {
        wire.extend(sealer.seal(frame));
        frame.body.iter().for_each(|part| wire.extend(part));
        ends.push(wire.len());
    }
    (wire, ends)
}

/// Reads to the end, or to the first fault.
fn opened(key: u32, mut wire: &[u8]) -> (Vec<(Head, Vec<u8>)>, Option<FrameError>) {
    let mut opener = Opener::new(key, MAX);
    let mut frames = Vec::new();
    while let Some((head, rest)) = wire.split_first_chunk::<HEAD_BYTES>() {
        let head = match opener.open(head) {
            Ok(head) => head,
            Err(error) => return (frames, Some(error)),
        };
        assert!(head.body_bytes <= MAX);
        let Some((body, rest)) = rest.split_at_checked(head.body_bytes) else { break };
        if let Err(error) = opener.check_body(&head, crc32c::crc32c_append(key, body)) {
            return (frames, Some(error));
        }
        frames.push((head, body.to_vec()));
        wire = rest;
    }
    (frames, None)
}

fn is_same(frame: &Frame, (head, body): &(Head, Vec<u8>)) -> bool {
    (frame.kind, frame.service, frame.method, frame.id, frame.argument)
        == (head.kind, head.service, head.method, head.id, head.argument)
        && frame.body.concat() == *body
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn frames_come_out_as_they_went_in(key: u32, frames in prop::collection::vec(a_frame(), 0..12)) {
        let (wire, _) = sealed(key, &frames);
        let (read, error) = opened(key, &wire);
        prop_assert_eq!(error, None);
        prop_assert_eq!(read.len(), frames.len());
        prop_assert!(frames.iter().zip(&read).all(|(frame, read)| is_same(frame, read)));
    }

    #[test]
    fn a_flipped_bit_is_found_in_its_frame(
        key: u32,
        frames in prop::collection::vec(a_frame(), 1..6),
        at: prop::sample::Index,
        bit in 0..8_u8,
    ) {
        let (mut wire, ends) = sealed(key, &frames);
        let at = at.index(wire.len());
        wire[at] ^= 1 << bit;
        let hit = ends.iter().position(|end| at < *end).unwrap();
        let (read, error) = opened(key, &wire);
        prop_assert!(error.is_some());
        prop_assert_eq!(read.len(), hit, "those before are whole, and it is not believed");
    }

    #[test]
    fn a_frame_lost_repeated_or_moved_is_found(
        key: u32,
        frames in prop::collection::vec(a_frame(), 2..6),
        which: prop::sample::Index,
        how in 0..3,
    ) {
        let (wire, ends) = sealed(key, &frames);
        let which = which.index(frames.len() - 1);
        let start = |n: usize| if n == 0 { 0 } else { ends[n - 1] };
        let (one, two) = (&wire[start(which)..ends[which]], &wire[ends[which]..ends[which + 1]]);
        let middle = match how {
            0 => two.to_vec(),
            1 => [one, one, two].concat(),
            _ => [two, one].concat(),
        };
        let wire = [&wire[..start(which)], &middle, &wire[ends[which + 1]..]].concat();
        let (read, error) = opened(key, &wire);
        prop_assert!(error.is_some());
        prop_assert!(read.len() <= which + 1);
    }

    #[test]
    fn another_key_reads_nothing(key: u32, other: u32, frame in a_frame()) {
        prop_assume!(key != other);
        let (wire, _) = sealed(key, &[frame]);
        let (read, error) = opened(other, &wire);
        prop_assert_eq!(error, Some(FrameError::HeadSum { number: 0 }));
        prop_assert!(read.is_empty());
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(key: u32, wire in prop::collection::vec(any::<u8>(), 0..500)) {
        opened(key, &wire);
    }

    #[test]
    fn what_breaks_a_rule_is_refused_though_its_sum_is_right(key: u32, kind: u8, flags: u8, bytes: u32) {
        let mut head = Sealer::new(key).seal(&Frame::bare(Kind::Request, 1, 0));
        head[..4].copy_from_slice(&bytes.to_le_bytes());
        (head[4], head[7]) = (kind, flags);
        let sum = crc32c::crc32c_append(crc32c::crc32c_append(key, &0_u64.to_le_bytes()), &head[..24]);
        head[24..].copy_from_slice(&sum.to_le_bytes());
        let read = Opener::new(key, MAX).open(&head);
        let bare = (6..=10).contains(&kind);
        let good = (1..=10).contains(&kind) && flags == 0 && bytes as usize <= if bare { 0 } else { MAX };
        prop_assert_eq!(read.is_ok(), good);
    }

    #[test]
    fn memory_follows_the_bytes_that_came(total in 0..(200_usize << 20)) {
        let (mut have, mut steps) = (0, 0);
        while have < total {
            let more = next_room(have, total - have);
            prop_assert!(more > 0 && more <= have.max(1 << 20));
            have += more;
            steps += 1;
        }
        prop_assert!(have == total && steps <= 9, "{} steps", steps);
    }
}
