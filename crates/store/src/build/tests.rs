use std::collections::BTreeSet;
use std::ops::Range;

use async_trait::async_trait;
use futures_util::FutureExt as _;
use isobar_metadata::effect::EffectBatch;
use isobar_metadata::ids::StreamId;
use isobar_wal::conformance::key;
use isobar_wal::{AppendDone, Chunk};
use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;

/// Its batches say where they lie.
#[derive(Default)]
struct Labelled {
    lost: BTreeSet<(u64, u64)>,
    reads: Mutex<Vec<(u64, u64, Range<u32>)>>,
}

fn label(stream: u64, chunk: u64, ordinal: u32) -> Bytes {
    Bytes::from(format!("{stream}/{chunk}/{ordinal}"))
}

#[async_trait]
impl Wal for Labelled {
    fn append(&self, _: Chunk, _: AppendDone) {
        unreachable!("uploads only read");
    }

    fn max_chunk_bytes(&self) -> usize {
        usize::MAX
    }

    fn has_room(&self) -> bool {
        true
    }

    async fn room(&self) {}

    async fn read(
        &self,
        stream: StreamId,
        number: u64,
        ordinals: Range<u32>,
    ) -> Result<Vec<Bytes>, WalError> {
        self.reads.lock().push((stream.0, number, ordinals.clone()));
        if self.lost.contains(&(stream.0, number)) {
            return Err(WalError::NotFound);
        }
        Ok(ordinals.map(|ordinal| label(stream.0, number, ordinal)).collect())
    }

    fn follow(&self, _: &EffectBatch) {}
}

/// Chunks of two streams, each cut into extents: the batches of one, and the run it is dealt to.
fn dealt(chunks: &[Vec<(u32, usize)>], run_count: usize) -> Vec<PlannedRun> {
    let mut runs = vec![Vec::new(); run_count];
    for (at, cuts) in chunks.iter().enumerate() {
        let (stream, chunk) = (StreamId(at as u64 % 2), at as u64 / 2);
        let mut first_batch = 0;
        for &(batches, run) in cuts {
            let wal = WalLocation { stream, chunk, first_batch, batches };
            first_batch += batches;
            // The last run stands for what is not uploaded now.
            if run < run_count {
                runs[run].push(Extent { location: Some(Location::Wal(wal)), ..Extent::default() });
            }
        }
    }
    let planned = |(at, extents)| PlannedRun { key: key(1, at as i32), extents };
    runs.into_iter().enumerate().map(planned).collect()
}

proptest! {
    #[test]
    fn each_extent_has_its_batches_and_only_runs_with_something_unreadable_are_left_out(
        chunks in proptest::collection::vec(proptest::collection::vec((1_u32..2000, 0_usize..7), 1..12), 1..6),
        lost in proptest::collection::btree_set((0_u64..2, 0_u64..3), 0..3),
    ) {
        let runs = dealt(&chunks, 6);
        let wal = Labelled { lost, ..Labelled::default() };
        let mut bad = Vec::new();
        let read = read_all(&wal, &runs, &mut bad).now_or_never().unwrap();

        let is_lost = |extent: &Extent| extent.wal().is_some_and(|w| wal.lost.contains(&(w.stream.0, w.chunk)));
        let bad: Vec<_> = bad.iter().map(|bad| bad.key).collect();
        for (run, read) in runs.iter().zip(read) {
            prop_assert_eq!(read.is_none(), run.extents.iter().any(is_lost));
            prop_assert_eq!(usize::from(read.is_none()), bad.iter().filter(|key| **key == run.key).count());
            for (extent, batches) in run.extents.iter().zip(read.into_iter().flatten()) {
                let lies = extent.wal().unwrap();
                let own: Vec<_> = lies.ordinals().map(|o| label(lies.stream.0, lies.chunk, o)).collect();
                prop_assert_eq!(batches, own);
            }
        }
        // Neighbours of a chunk are read together, up to the bound, and nothing is read twice.
        let wals = || runs.iter().flat_map(|run| &run.extents).filter_map(Extent::wal);
        let mut reads = wal.reads.lock().clone();
        reads.sort_by_key(|(stream, chunk, ordinals)| (*stream, *chunk, ordinals.start));
        for pair in reads.windows(2) {
            let [(stream, chunk, one), (of, number, next)] = pair else { unreachable!() };
            if (stream, chunk) == (of, number) {
                prop_assert!(one.end <= next.start);
                let begins = wals().find(|w| (w.stream.0, w.chunk, w.first_batch) == (*of, *number, next.start));
                let batches = begins.unwrap().batches as usize;
                prop_assert!(one.end < next.start || one.len() + batches > MAX_PIECE_BATCHES as usize);
            }
        }
        prop_assert!(reads.iter().all(|(_, _, ordinals)| ordinals.len() <= MAX_PIECE_BATCHES as usize));
        let wanted: u32 = wals().map(|wal| wal.batches).sum();
        prop_assert_eq!(reads.iter().map(|(_, _, ordinals)| ordinals.len()).sum::<usize>(), wanted as usize);
    }
}
