use std::time::Duration;

use isobar_host::Host;
use isobar_protocol::batch::Batches;
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use isobar_wal::conformance::{batch, key};
use object_store::ObjectStoreExt as _;

use super::*;
use crate::BucketOptions;
use crate::cache::MemoryCache;
use crate::format::{ObjectBuilder, Origin};
use crate::metrics::StoreMetrics;

pub(crate) const OBJECT: ObjectId = ObjectId(5);

pub(crate) struct Setup {
    reader: ObjectReader,
    pub(crate) store: SimBucket,
    pub(crate) runs: Vec<ReadObject>,
}

/// Two runs of batches of these sizes, the second behind the first.
pub(crate) async fn setup(sizes: &[usize]) -> Setup {
    let store = SimBucket::new(1, FaultPlan::NONE);
    let host = Host::real();
    let metrics = StoreMetrics::default();
    let options = BucketOptions { get_total: Duration::from_secs(1), ..BucketOptions::default() };
    let bucket = Bucket::new(&host, "s", "p", Arc::new(store.clone()), options, metrics.clone());
    let mut builder = ObjectBuilder::new("c".to_owned(), OBJECT, 0);
    for partition in 0..2 {
        for (n, size) in sizes.iter().enumerate() {
            let bytes = batch(n as u8, *size);
            builder.push(key(1, partition), &bytes, &BatchHeader::parse(&bytes).unwrap(), 100 + n as i64, 0);
        }
    }
    let (parts, runs) = builder.finish();
    bucket.put(&object_key(OBJECT), parts).await.unwrap();
    let runs = runs
        .into_iter()
        .map(|run| ReadObject {
            key: run.key,
            epochs: Arc::new([EpochStart { leader_epoch: 0, start_offset: 0 }]),
            class: Class::CatchUp,
            object: OBJECT,
            range: run.range,
            first_offset: run.first_offset,
            last_offset: run.last_offset,
            unstamped: false,
        })
        .collect();
    let reader = ObjectReader::new(bucket, Arc::new(MemoryCache::new(&host, 8 << 20, metrics)));
    Setup { reader, store, runs }
}

fn offsets(parts: &[Bytes]) -> Vec<i64> {
    parts.iter().flat_map(|part| Batches::new(part)).map(|batch| batch.unwrap().0.base_offset).collect()
}

#[tokio::test(start_paused = true)]
async fn reads_whole_batches_from_the_one_with_the_offset() {
    // Batches that cross the borders of blocks, one larger than a block.
    let sizes = [10, 700_000, 500_000, 10, 2_500_000, 10, 300_000];
    let setup = setup(&sizes).await;
    for run in &setup.runs {
        for from in 0..7 {
            let parts = setup.reader.read(run.clone(), 100 + from, usize::MAX).await.unwrap().parts;
            assert_eq!(offsets(&parts), (100 + from..107).collect::<Vec<_>>());
            for (n, found) in parts.iter().flat_map(|part| Batches::new(part)).enumerate() {
                let sent = batch((from as usize + n) as u8, sizes[from as usize + n]);
                assert_eq!(found.unwrap().1[16..], sent[16..]);
            }
        }
        let one = setup.reader.read(run.clone(), 101, 1).await.unwrap().parts;
        assert_eq!(offsets(&one), [101]);
        let two = setup.reader.read(run.clone(), 102, 600_000).await.unwrap().parts;
        assert_eq!(offsets(&two), [102, 103]);
        for outside in [99, 107] {
            let read = setup.reader.read(run.clone(), outside, 1).await;
            assert!(outside == 99 || matches!(read, Err(StoreError::Damaged { .. })));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn neighbours_come_as_one_slice_and_each_block_is_loaded_once() {
    let setup = setup(&[1000; 500]).await;
    let parts = setup.reader.read(setup.runs[0].clone(), 100, usize::MAX).await.unwrap().parts;
    assert_eq!((parts.len(), offsets(&parts).len()), (1, 500));
    let before = setup.store.requests();
    // One who reads on does not walk again.
    let mut next = 100;
    while next < 600 {
        let parts = setup.reader.read(setup.runs[1].clone(), next, 5000).await.unwrap().parts;
        next = offsets(&parts).last().unwrap() + 1;
    }
    assert!(setup.store.requests() - before <= 1);
    assert!(setup.reader.hints.lock().places.len() > 90);
}

#[tokio::test(start_paused = true)]
async fn damage_on_the_way_passes_and_damage_in_the_store_is_an_error() {
    let whole: Vec<_> = (100..120).collect();
    let mut seen = 0;
    for _ in 0..20 {
        let setup = setup(&[1000; 20]).await;
        setup.store.flip_bits(1);
        for run in &setup.runs {
            assert_eq!(offsets(&setup.reader.read(run.clone(), 100, usize::MAX).await.unwrap().parts), whole);
        }
        seen += setup.store.requests().saturating_sub(2);
    }
    assert!(seen > 0, "no read met the bit");
    let setup = setup(&[1000; 20]).await;
    setup.store.flip_bits(1000);
    let mut damaged = 0;
    for run in &setup.runs {
        match setup.reader.read(run.clone(), 100, usize::MAX).await {
            Ok(read) => assert_eq!(offsets(&read.parts), whole),
            Err(error) => {
                assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
                damaged += 1;
            }
        }
    }
    assert!(damaged <= 2);
}

/// A batch's own CRC begins behind them.
#[tokio::test(start_paused = true)]
async fn damage_of_an_offset_or_a_leader_epoch_is_an_error() {
    for at in (0..8).chain(12..16) {
        let setup = setup(&[1000; 5]).await;
        let run = setup.runs[0].clone();
        let key = object_store::path::Path::from(format!("p/{}", object_key(OBJECT)));
        let second = run.range.start + batch(0, 1000).len() as u64;
        let mut bytes = setup.store.objects().get(&key).await.unwrap().bytes().await.unwrap().to_vec();
        bytes[second as usize + at] ^= 4;
        setup.store.objects().put(&key, bytes.into()).await.unwrap();
        let read = setup.reader.read(run, 100, usize::MAX).await;
        assert!(matches!(read, Err(StoreError::Damaged { .. })), "byte {at}: {read:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_told_apart() {
    let setup = setup(&[1000; 3]).await;
    let missing = ReadObject { object: ObjectId(6), ..setup.runs[0].clone() };
    assert!(matches!(setup.reader.read(missing, 100, 1).await, Err(StoreError::NotFound(_))));
    let too_far = ReadObject { range: 10 << 20..11 << 20, ..setup.runs[0].clone() };
    assert!(setup.reader.read(too_far, 100, 1).await.is_err());
    let of_another = ReadObject { first_offset: 500, last_offset: 502, ..setup.runs[0].clone() };
    assert!(matches!(setup.reader.read(of_another, 500, 1).await, Err(StoreError::Damaged { .. })));
    let cut = ReadObject { range: 0..1500, ..setup.runs[0].clone() };
    assert!(matches!(setup.reader.read(cut, 101, 1).await, Err(StoreError::Damaged { .. })));
    setup.store.set_outage(true);
    let (host, metrics) = (Host::real(), StoreMetrics::default());
    let cold =
        ObjectReader::new(setup.reader.bucket().clone(), Arc::new(MemoryCache::new(&host, 1, metrics)));
    assert!(cold.read(setup.runs[0].clone(), 100, 1).await.unwrap_err().is_transient());
}

#[tokio::test(start_paused = true)]
async fn an_unstamped_run_counts_offsets_from_its_first() {
    let host = Host::real();
    let store = SimBucket::new(1, FaultPlan::NONE);
    let metrics = StoreMetrics::default();
    let bucket =
        Bucket::new(&host, "s", "", Arc::new(store.clone()), BucketOptions::default(), metrics.clone());
    let origin = Origin { session: 1, lane: 2, number: 3 };
    let mut builder = ObjectBuilder::of_chunk("c".to_owned(), OBJECT, 0, origin);
    for n in 0..6_u8 {
        let bytes = batch(n, 300_000);
        builder.push_raw(key(1, 0), &bytes, &BatchHeader::parse(&bytes).unwrap(), i64::from(n));
    }
    let (parts, runs) = builder.finish();
    bucket.put(&object_key(OBJECT), parts).await.unwrap();
    let run = ReadObject {
        key: key(1, 0),
        epochs: Arc::new([]),
        class: Class::CatchUp,
        object: OBJECT,
        range: runs[0].range.clone(),
        first_offset: 1000,
        last_offset: 1005,
        unstamped: true,
    };
    let reader = ObjectReader::new(bucket, Arc::new(MemoryCache::new(&host, 8 << 20, metrics)));
    let from_start = reader.read(run.clone(), 1003, 1).await.unwrap();
    assert_eq!(from_start.base_offset, 1003);
    // By the hint that the read before left.
    let next = reader.read(run.clone(), 1004, usize::MAX).await.unwrap();
    assert_eq!((next.base_offset, offsets(&next.parts)), (1004, vec![0, 0]));
    assert_eq!(next.parts.iter().map(Bytes::len).sum::<usize>(), 2 * batch(0, 300_000).len());
    // One batch more than metadata knows of is damage, not data.
    let short = ReadObject { last_offset: 1004, ..run };
    assert!(matches!(reader.read(short, 1004, usize::MAX).await, Err(StoreError::Damaged { .. })));
}

/// One run of many blocks, as a reader of old data sees it.
async fn long(blocks: usize) -> Setup {
    let mut setup = setup(&vec![200_000; blocks * 5]).await;
    setup.runs.truncate(1);
    setup
}

#[tokio::test(start_paused = true)]
async fn one_who_reads_on_sends_few_requests_and_gets_every_byte_once() {
    let setup = long(40).await;
    let run = &setup.runs[0];
    let metrics = setup.reader.bucket().metrics().clone();
    let wide = ObjectReader::new(
        setup.reader.bucket().clone(),
        Arc::new(MemoryCache::new(&Host::real(), 64 << 20, metrics.clone())),
    );
    let before = setup.store.requests();
    let mut next = run.first_offset;
    while next <= run.last_offset {
        let parts = wide.read(run.clone(), next, 1 << 20).await.unwrap().parts;
        let got = offsets(&parts);
        assert_eq!(got[0], next);
        next = got.last().unwrap() + 1;
    }
    let requests = setup.store.requests() - before;
    assert!(requests <= 8, "{requests} requests for {} bytes", run.range.end);
    assert_eq!(metrics.cache_unused_bytes.get(), 0);
    // Another group, right behind, sends none.
    assert_eq!(offsets(&wide.read(run.clone(), run.last_offset, 1).await.unwrap().parts), [run.last_offset]);
    assert_eq!(setup.store.requests() - before, requests);
}

#[tokio::test(start_paused = true)]
async fn one_who_stops_causes_nothing_more() {
    let setup = long(40).await;
    let run = &setup.runs[0];
    let before = setup.store.requests();
    let parts = setup.reader.read(run.clone(), run.first_offset, 1 << 20).await.unwrap().parts;
    let next = offsets(&parts).last().unwrap() + 1;
    setup.reader.read(run.clone(), next, 1 << 20).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let requests = setup.store.requests() - before;
    assert!(requests <= 4, "{requests}");
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(setup.store.requests() - before, requests);
}
