//! What every [`Wal`] must do: one suite for the local replica and for the quorum writer.

#![expect(clippy::unwrap_used, reason = "a test suite: a panic is its answer")]

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use isobar_host::AlignedBuf;
use isobar_metadata::effect::{ChunkCommitted, EffectBatch, EffectKind, Released, StreamForgotten};
use isobar_metadata::ids::{DirectoryId, LaneId, PartitionKey, SessionId, StreamId, TopicId};
use isobar_metadata::record::StreamRecord;
use isobar_protocol::batch::BatchHeader;
use isobar_protocol::compression::Codec;
use isobar_protocol::records::BatchBuilder;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Acked, BatchInfo, Chunk, ChunkWriter, Wal, WalError};

/// A partition of a made-up topic.
pub fn key(topic: u8, partition: i32) -> PartitionKey {
    PartitionKey::new(TopicId::from([topic; 16]), partition)
}

/// A batch of one record of `value_bytes` bytes, all `fill`.
#[expect(clippy::expect_used, reason = "a batch of one small record can be built")]
pub fn batch(fill: u8, value_bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Codec::None);
    let headers: [(&str, Option<&[u8]>); 0] = [];
    builder.push(
        1_700_000_000_000 + i64::from(fill),
        Some(&[fill]),
        Some(&vec![fill; value_bytes]),
        &headers,
    );
    builder.build().expect("a small batch")
}

/// What the broker would say of a batch.
#[expect(clippy::expect_used, reason = "the batch was just built")]
pub fn info(batch: &Bytes) -> BatchInfo {
    BatchInfo::new(&BatchHeader::parse(batch).expect("a whole batch"), 0)
}

/// A chunk of these batches.
pub fn chunk(stream: StreamId, number: u64, batches: &[(PartitionKey, Bytes)]) -> Chunk {
    let bytes: usize = batches.iter().map(|(_, batch)| batch.len() + 256).sum();
    let mut writer = ChunkWriter::new(AlignedBuf::unpooled(bytes + 4096), usize::MAX);
    for (key, batch) in batches {
        assert!(writer.fits(batch.len()));
        writer.push(*key, &info(batch), batch);
    }
    writer.seal(stream, number)
}

/// A chunk of one batch.
pub fn small_chunk(stream: StreamId, number: u64) -> Chunk {
    chunk(stream, number, &[(key(1, 0), batch(number as u8, 100))])
}

/// Effects as one batch.
pub fn effects(kinds: Vec<EffectKind>) -> EffectBatch {
    EffectBatch { version: 1, effects: kinds.into_iter().map(Into::into).collect(), ..EffectBatch::default() }
}

/// A commit that made `extents` extents of a chunk.
pub fn committed(stream: StreamId, chunk: u64, extents: u32) -> EffectKind {
    EffectKind::ChunkCommitted(ChunkCommitted { stream, chunk, extents })
}

/// Nothing points at these chunks any more.
pub fn released(stream: StreamId, chunks: &[u64]) -> EffectKind {
    EffectKind::Released(Released { stream, chunks: chunks.to_vec() })
}

/// A stream on one replica was opened or closed.
pub fn stream_changed(stream: StreamId, directory: DirectoryId, closed: bool) -> EffectKind {
    stream_on(stream, &[directory], closed)
}

/// A stream on this ensemble, with a majority as its write quorum, was opened or closed.
pub fn stream_on(stream: StreamId, ensemble: &[DirectoryId], closed: bool) -> EffectKind {
    EffectKind::Stream(StreamRecord {
        stream,
        session: SessionId(1),
        lane: LaneId(1),
        ensemble: ensemble.to_vec(),
        write_quorum: ensemble.len() as u32 / 2 + 1,
        closed,
        last_chunk: 0,
        committed: false,
    })
}

/// Appends and waits.
pub async fn append(wal: &dyn Wal, chunk: Chunk) -> Result<Acked, WalError> {
    let (tell, done) = oneshot::channel();
    wal.append(chunk, Box::new(move |result| drop(tell.send(result))));
    done.await.unwrap_or_else(|_| Err(WalError::Failed("the callback was dropped".to_owned())))
}

/// The streams that the suite appends to or reads from: a WAL that must know them beforehand is told of these.
pub const STREAMS: [StreamId; 3] = [StreamId(7), StreamId(8), StreamId(9)];

/// Runs every case, each on a WAL of its own. `open` gives an empty WAL and the ensemble of its streams.
pub async fn suite<F: Future<Output = (Arc<dyn Wal>, Vec<DirectoryId>)>>(mut open: impl FnMut() -> F) {
    let stream = STREAMS[0];
    let (wal, _) = open().await;
    reads_what_was_appended(&*wal, stream).await;
    let (wal, _) = open().await;
    answers_in_order(&*wal, stream).await;
    let (wal, _) = open().await;
    refuses_gaps(&*wal, stream).await;
    let (wal, ensemble) = open().await;
    drops_on_metadatas_word_only(&*wal, stream, &ensemble).await;
    let (wal, ensemble) = open().await;
    a_closed_stream_takes_nothing(&*wal, stream, &ensemble).await;
}

async fn reads_what_was_appended(wal: &dyn Wal, stream: StreamId) {
    let batches: Vec<_> =
        (0..40_u8).map(|n| (key(n % 3, i32::from(n % 5)), batch(n, usize::from(n) * 97))).collect();
    let sealed = chunk(stream, 0, &batches);
    append(wal, sealed.clone()).await.unwrap();
    append(wal, small_chunk(StreamId(8), 0)).await.unwrap();
    let mut seen = 0;
    for partition in sealed.partitions() {
        let of_partition: Vec<Bytes> =
            batches.iter().filter(|(key, _)| *key == partition.key).map(|(_, batch)| batch.clone()).collect();
        let first = partition.first_ordinal;
        let ordinals = first..first + of_partition.len() as u32;
        assert_eq!(wal.read(stream, 0, ordinals.clone()).await.unwrap(), of_partition);
        assert_eq!(wal.read(stream, 0, first..first + 1).await.unwrap(), of_partition[..1]);
        seen += of_partition.len();
    }
    assert_eq!(seen, batches.len());
    for (stream, number, ordinals) in [(stream, 0, 39..41), (stream, 1, 0..1), (StreamId(9), 0, 0..1)] {
        assert_eq!(wal.read(stream, number, ordinals).await, Err(WalError::NotFound));
    }
}

async fn answers_in_order(wal: &dyn Wal, stream: StreamId) {
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut last = None;
    for number in 0..50 {
        for stream in [stream, StreamId(8)] {
            let order = Arc::clone(&order);
            let (tell, done) = oneshot::channel();
            wal.append(
                small_chunk(stream, number),
                Box::new(move |result| {
                    result.unwrap();
                    order.lock().push((stream, number));
                    let _ = tell.send(());
                }),
            );
            last = Some(done);
        }
    }
    last.unwrap().await.unwrap();
    for wanted in [stream, StreamId(8)] {
        let numbers: Vec<u64> = order.lock().iter().filter(|(s, _)| *s == wanted).map(|(_, n)| *n).collect();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
    }
}

async fn refuses_gaps(wal: &dyn Wal, stream: StreamId) {
    assert_eq!(append(wal, small_chunk(stream, 1)).await, Err(WalError::Gap { expected: 0 }));
    append(wal, small_chunk(stream, 0)).await.unwrap();
    assert_eq!(append(wal, small_chunk(stream, 0)).await, Err(WalError::Gap { expected: 1 }));
    assert_eq!(append(wal, small_chunk(stream, 2)).await, Err(WalError::Gap { expected: 1 }));
    append(wal, small_chunk(stream, 1)).await.unwrap();
    assert_eq!(wal.read(stream, 2, 0..1).await, Err(WalError::NotFound));
}

async fn drops_on_metadatas_word_only(wal: &dyn Wal, stream: StreamId, ensemble: &[DirectoryId]) {
    wal.follow(&effects(vec![stream_on(stream, ensemble, false)]));
    for number in 0..6 {
        append(wal, small_chunk(stream, number)).await.unwrap();
    }
    let here = async |wanted: &[u64]| {
        for number in 0..6 {
            assert_eq!(
                wal.read(stream, number, 0..1).await.is_ok(),
                wanted.contains(&number),
                "chunk {number}"
            );
        }
    };
    here(&[0, 1, 2, 3, 4, 5]).await;
    wal.follow(&effects(vec![committed(stream, 0, 1), committed(stream, 1, 0)]));
    here(&[0, 2, 3, 4, 5]).await;
    // 2 was passed by: no commit can name it any more.
    wal.follow(&effects(vec![committed(stream, 3, 2), released(stream, &[0])]));
    here(&[3, 4, 5]).await;
    // Told twice, as after a reconnect.
    wal.follow(&effects(vec![committed(stream, 0, 1), released(stream, &[0]), committed(stream, 4, 1)]));
    here(&[3, 4, 5]).await;
    wal.follow(&effects(vec![stream_on(stream, ensemble, true)]));
    here(&[3, 4]).await;
    wal.follow(&effects(vec![released(stream, &[3])]));
    here(&[4]).await;
    wal.follow(&effects(vec![EffectKind::StreamForgotten(StreamForgotten { stream })]));
    here(&[]).await;
}

async fn a_closed_stream_takes_nothing(wal: &dyn Wal, stream: StreamId, ensemble: &[DirectoryId]) {
    append(wal, small_chunk(stream, 0)).await.unwrap();
    wal.follow(&effects(vec![committed(stream, 0, 1), stream_on(stream, ensemble, true)]));
    assert_eq!(append(wal, small_chunk(stream, 1)).await, Err(WalError::Closed));
    assert!(wal.read(stream, 0, 0..1).await.is_ok());
    wal.follow(&effects(vec![
        released(stream, &[0]),
        EffectKind::StreamForgotten(StreamForgotten { stream }),
    ]));
    assert_eq!(append(wal, small_chunk(stream, 0)).await, Err(WalError::Closed));
    append(wal, small_chunk(StreamId(stream.0 + 1), 0)).await.unwrap();
}
