use isobar_host::BufferPool;
use proptest::prelude::*;

use super::*;
use crate::conformance::{batch, info, key};
use crate::table::identity;

fn arb_batches() -> impl Strategy<Value = Vec<(PartitionKey, Bytes, BatchInfo)>> {
    let one = (0..3_u8, 0..4_i32, 0..200_usize, any::<(u8, u32, i64, i64, i16, i32, u8)>());
    proptest::collection::vec(one, 0..60).prop_map(|batches| {
        batches
            .into_iter()
            .map(
                |(
                    topic,
                    partition,
                    bytes,
                    (fill, record_count, max_timestamp_ms, id, epoch, sequence, flags),
                )| {
                    let bytes = batch(fill, bytes);
                    let plain = id % 2 == 0;
                    let info = BatchInfo {
                        record_count,
                        max_timestamp_ms,
                        producer_id: if plain { NO_PRODUCER_ID } else { id },
                        producer_epoch: if plain { NO_PRODUCER_EPOCH } else { epoch },
                        base_sequence: if plain { NO_SEQUENCE } else { sequence },
                        flags: u32::from(flags % 3),
                    };
                    (key(topic, partition), bytes, info)
                },
            )
            .collect()
    })
}

fn seal(batches: &[(PartitionKey, Bytes, BatchInfo)]) -> Chunk {
    let mut writer = ChunkWriter::new(BufferPool::new(0).take(64 << 10), usize::MAX);
    for (section, (key, bytes, info)) in batches.iter().enumerate() {
        assert!(writer.fits(bytes.len()));
        assert_eq!(writer.push(*key, info, bytes), section as u32);
    }
    writer.seal(StreamId(3), 9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_chunk_explains_itself(batches in arb_batches()) {
        let chunk = seal(&batches);
        let again = Chunk::from_frame(Frame::parse(chunk.frame().bytes()).unwrap()).unwrap();
        prop_assert_eq!(&again.0.table, &chunk.0.table);
        prop_assert_eq!(identity(&chunk.frame().meta()).unwrap(), (StreamId(3), 9));
        prop_assert_eq!(again.len() as usize, batches.len());
        prop_assert_eq!(again.batch_bytes(), batches.iter().map(|(_, bytes, _)| bytes.len() as u64).sum::<u64>());
        let mut ordinal = 0;
        for partition in again.partitions() {
            prop_assert_eq!(partition.first_ordinal, ordinal);
            let wanted: Vec<_> =
                batches.iter().enumerate().filter(|(_, (key, ..))| *key == partition.key).collect();
            prop_assert_eq!(wanted.len(), partition.batches.len());
            for ((section, (_, bytes, info)), found) in wanted.into_iter().zip(partition.batches) {
                prop_assert_eq!(found, &ChunkBatch { section: section as u32, bytes: bytes.len() as u32, info: *info });
                let batch = again.batch(ordinal);
                prop_assert_eq!(batch.as_ref(), Some(bytes));
                ordinal += 1;
            }
        }
        prop_assert_eq!(again.batch(ordinal), None);
        prop_assert_eq!(again.batches(0..ordinal).map(|all| all.len()), Some(ordinal as usize));
        prop_assert!(again.batches(0..ordinal + 1).is_none());
    }

    #[test]
    fn a_table_that_lies_is_refused_without_a_panic(batches in arb_batches(), at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let chunk = seal(&batches);
        let sections: Vec<u32> = batches.iter().map(|(_, bytes, _)| bytes.len() as u32).collect();
        let mut meta = chunk.frame().meta().to_vec();
        let at = at.index(meta.len());
        meta[at] = to;
        if let Ok(table) = Table::decode(&meta, &sections) {
            // Whatever it now says, it names each section once.
            let mut named: Vec<u32> = table.batches.iter().map(|batch| batch.section).collect();
            named.sort_unstable();
            prop_assert_eq!(named, (0..sections.len() as u32).collect::<Vec<_>>());
        }
    }
}

#[test]
fn the_table_always_fits_beside_the_batches() {
    // The worst of everything: each batch another partition, every number as long as it gets.
    let bytes = batch(1, 0);
    for (capacity, max_bytes) in
        [(4096, usize::MAX), (20_000, usize::MAX), (65_536, usize::MAX), (65_536, 8192)]
    {
        let mut writer = ChunkWriter::new(AlignedBuf::unpooled(capacity), max_bytes);
        let mut n = 0_i64;
        while writer.fits(bytes.len()) {
            let sign = if n % 2 == 0 { 1 } else { -1 };
            let info = BatchInfo {
                record_count: u32::MAX,
                max_timestamp_ms: sign * (i64::MAX / 2),
                producer_id: sign * (i64::MAX / 2),
                producer_epoch: i16::MIN,
                base_sequence: i32::MIN,
                flags: u32::MAX,
            };
            writer.push(PartitionKey::new(key(9, 0).topic_id, -1 - n as i32), &info, &bytes);
            n += 1;
        }
        assert!(n > 4);
        let chunk = writer.seal(StreamId(u64::MAX), u64::MAX);
        assert!(
            chunk.memory_bytes() <= capacity.next_multiple_of(4096) + capacity / 8,
            "the buffer had to grow"
        );
        assert!(chunk.frame().len() as usize <= chunk.memory_bytes().min(max_bytes));
    }
}

#[test]
fn a_small_chunk_does_not_keep_a_large_buffer() {
    let pool = BufferPool::new(0);
    let mut writer = ChunkWriter::new(pool.take(1 << 20), usize::MAX);
    let bytes = batch(1, 10);
    writer.push(key(1, 1), &info(&bytes), &bytes);
    let chunk = writer.seal(StreamId(1), 0);
    assert!(chunk.memory_bytes() >= 1 << 20);
    let compact = chunk.compact();
    assert_eq!((compact.memory_bytes(), pool.out_bytes()), (4096, 0));
    assert_eq!(compact.batch(0), Some(bytes));
}
