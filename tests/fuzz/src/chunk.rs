//! A chunk that comes back from a journal: its frame is right in every CRC, its table says anything.
//!
//! Promises: memory by the frame; an accepted table names every section once, in partitions that follow each other; a
//! chunk that was sealed is read as it was.

use bytes::Bytes;
use isobar_host::AlignedBuf;
use isobar_journal::{Frame, FrameWriter};
use isobar_metadata::ids::{PartitionKey, StreamId, TopicId};
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::compression::Codec;
use isobar_wal::{BatchInfo, Chunk, ChunkWriter, FRAME_KIND};

use crate::edit::edit;
use crate::input::Input;
use crate::{peak_of, samples};

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    if input.bool() {
        let sections = input.below(6);
        let meta = input.rest();
        return check(frame(&vec![samples::batch(Codec::None, 1); sections], meta));
    }
    let chunk = chunk(&mut input);
    let read = Chunk::from_frame(chunk.frame().clone()).expect("what was sealed is read");
    assert_eq!(describe(&read), describe(&chunk));
    let mut meta = chunk.frame().meta().to_vec();
    edit(&mut meta, 0, &mut input);
    let sections: Vec<Bytes> =
        (0..chunk.frame().section_count()).map(|at| chunk.frame().section(at)).collect();
    check(frame(&sections, &meta));
}

fn chunk(input: &mut Input<'_>) -> Chunk {
    let mut writer = ChunkWriter::new(AlignedBuf::unpooled(64 << 10), 1 << 20);
    for _ in 0..input.below(12) {
        let batch = samples::batch(Codec::None, 1 + input.below(3));
        let header = BatchHeader::parse(&batch).expect("a batch");
        let key = PartitionKey::new(TopicId::from([input.u8() % 3; 16]), i32::from(input.u8() % 3));
        let mut info = BatchInfo::new(&header, u32::from(input.u8() % 4));
        if input.bool() {
            (info.producer_id, info.producer_epoch, info.base_sequence) =
                (i64::from(input.u16()), 1, i32::from(input.u8()));
        }
        writer.push(key, &info, &batch);
    }
    writer.seal(StreamId(input.u64()), input.u64())
}

fn frame(sections: &[Bytes], meta: &[u8]) -> Frame {
    let mut writer = FrameWriter::new(AlignedBuf::unpooled(4096));
    for section in sections {
        writer.push(section);
    }
    writer.seal(FRAME_KIND, meta)
}

fn check(frame: Frame) {
    let (sections, allowed_bytes) = (frame.section_count(), 64 * 1024 + 64 * frame.len() as usize);
    let (read, peak) = peak_of(|| Chunk::from_frame(frame.clone()));
    assert!(peak <= allowed_bytes, "{peak} bytes for a frame of {}", frame.len());
    let Ok(chunk) = read else { return };
    assert_eq!(chunk.len() as usize, sections);
    let mut named = vec![false; sections];
    let mut next = 0;
    for partition in chunk.partitions() {
        assert_eq!(partition.first_ordinal, next);
        for batch in partition.batches {
            assert!(!std::mem::replace(&mut named[batch.section as usize], true), "a section is named twice");
            let bytes = chunk.batch(next).expect("an ordinal of the table");
            assert_eq!(bytes, frame.section(batch.section as usize));
            assert_eq!(bytes.len(), batch.bytes as usize);
            next += 1;
        }
    }
    assert_eq!(next as usize, sections);
    assert!(chunk.batch(next).is_none() && chunk.batches(0..next + 1).is_none());
    assert_eq!(chunk.batches(0..next).expect("all").len(), sections);
}

fn describe(chunk: &Chunk) -> String {
    let partitions: Vec<_> = chunk.partitions().map(|p| format!("{p:?}")).collect();
    format!("{:?} {} {} {partitions:?}", chunk.stream(), chunk.number(), chunk.batch_bytes())
}

pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![0; 40], (0..120).collect(), (0..120).rev().collect()];
    for count in 0..4 {
        let mut input = [&[0, count * 3][..], &[7, 1, 1, 2, 0, 5, 5, 0, 0, 1, 1, 1, 9].repeat(6)].concat();
        seeds.push(input.clone());
        input.remove(0);
        let chunk = chunk(&mut Input::new(&input));
        seeds.push([&[1, chunk.len() as u8][..], &chunk.frame().meta()].concat());
    }
    seeds
}
