use proptest::prelude::*;

use super::*;

/// Something that has a record batch's length and CRC in the right places.
pub(crate) fn batch(content: &[u8], seed: u8) -> Vec<u8> {
    let mut bytes = vec![seed; SECTION_HEAD_BYTES];
    bytes.extend_from_slice(content);
    let crc = crc32c::crc32c(content);
    bytes[SECTION_CRC].copy_from_slice(&crc.to_be_bytes());
    bytes
}

fn written(sections: &[Vec<u8>], meta: &[u8]) -> Frame {
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(0));
    for (index, section) in sections.iter().enumerate() {
        let range = if index % 2 == 0 {
            writer.push(section)
        } else {
            let (a, b) = section.split_at(section.len() / 3);
            writer.push_parts(&[a, b])
        };
        assert_eq!(range.len(), section.len());
    }
    writer.seal(7, meta)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_frame_reads_back_as_it_was_written(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 0..12),
        meta in prop::collection::vec(any::<u8>(), 0..6000),
    ) {
        let sections: Vec<_> = contents.iter().enumerate().map(|(i, c)| batch(c, i as u8)).collect();
        let frame = written(&sections, &meta);
        prop_assert_eq!(frame.len() as usize % BLOCK_BYTES, 0);
        prop_assert_eq!(frame.as_slice().as_ptr() as usize % BLOCK_BYTES, 0);
        let back = Frame::parse(frame.bytes()).unwrap();
        prop_assert_eq!(back.kind(), 7);
        prop_assert_eq!(&back.meta()[..], &meta[..]);
        prop_assert_eq!(back.section_count(), sections.len());
        // Without its padding it says how long it is with it.
        let content = frame.content();
        prop_assert_eq!(Frame::padded_bytes(&content).unwrap(), frame.bytes().len());
        prop_assert_eq!(Frame::padded_bytes(&frame.bytes()).unwrap(), frame.bytes().len());
        prop_assert!(Frame::padded_bytes(&content[..content.len() - 1]).is_err());
        let mut padded = content.to_vec();
        padded.resize(frame.bytes().len(), 0);
        prop_assert_eq!(&frame.bytes()[..], &padded[..]);
        for (index, section) in sections.iter().enumerate() {
            prop_assert_eq!(&back.section(index)[..], &section[..]);
        }
    }

    #[test]
    fn any_flipped_bit_but_in_the_padding_is_found(
        contents in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..4),
        meta in prop::collection::vec(any::<u8>(), 0..200),
        at in any::<prop::sample::Index>(),
        bit in 0_u8..8,
    ) {
        let sections: Vec<_> = contents.iter().map(|c| batch(c, 1)).collect();
        let frame = written(&sections, &meta);
        let mut bytes = frame.bytes().to_vec();
        let content = frame.header.meta_range().end;
        let at = at.index(content);
        bytes[at] ^= 1 << bit;
        prop_assert!(Frame::parse(bytes.into()).is_err(), "byte {} of {}", at, content);
    }

    #[test]
    fn garbage_is_refused_and_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..5000), fix in any::<bool>()) {
        let mut bytes = bytes;
        if fix && bytes.len() >= HEADER_BYTES {
            // A right header CRC, so that the lengths are looked at.
            bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
            bytes[4] = VERSION;
            let crc = crc32c::crc32c(&bytes[..60]);
            bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        }
        prop_assert!(Frame::parse(bytes.into()).is_err());
    }
}

#[test]
fn lengths_that_lie_are_refused() {
    let frame = written(&[batch(b"abc", 1)], b"meta");
    for change in [
        Header { section_count: 2, ..frame.header },
        Header { section_count: u32::MAX, ..frame.header },
        Header { table_offset: 63, ..frame.header },
        Header { table_offset: u32::MAX, ..frame.header },
        Header { meta_bytes: u32::MAX, ..frame.header },
        Header { meta_bytes: 3, ..frame.header },
        Header { frame_bytes: 8192, ..frame.header },
    ] {
        let mut bytes = frame.bytes().to_vec();
        bytes[..HEADER_BYTES].copy_from_slice(&change.encode(0));
        assert!(Frame::parse(bytes.into()).is_err(), "{change:?}");
    }
}

#[test]
fn another_key_or_stamp_is_another_frame() {
    let frame = written(&[], b"meta");
    let stamp = Stamp { generation: 3, position: 8192, synced_before: 4096 };
    let head = frame.stamped(stamp).encode(77);
    assert_eq!(Header::decode(&head, 77).unwrap().stamp, stamp);
    assert_eq!(Header::decode(&head, 78), Err(FrameError::NoFrame));
}

#[test]
fn room_is_what_fits_without_a_move() {
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(8192));
    let room = writer.room(100);
    assert_eq!(room, 8192 - 64 - 8 - 100);
    writer.push(&batch(&vec![1; room - SECTION_HEAD_BYTES], 0));
    assert_eq!(writer.room(100), 0);
    let frame = writer.seal(1, &[9; 100]);
    assert_eq!(frame.len(), 8192);
    assert!(Frame::parse(frame.bytes()).is_ok());
}
