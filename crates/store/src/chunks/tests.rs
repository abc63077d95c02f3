use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use isobar_metadata::record::ClusterFormat;
use isobar_metadata::result::ObjectsGranted;
use isobar_metadata::{Command, CommandResult, Image, StateMachine, StreamId};
use isobar_testkit::bucket::{Bucket as SimBucket, FaultPlan};
use isobar_wal::conformance::{batch, chunk, key};

use super::*;
use crate::cluster::ProposeFailed;
use crate::format::Footer;
use crate::{BucketOptions, MemoryCache, StoreMetrics};

struct Grants {
    image: Image,
    next: AtomicU64,
}

#[async_trait]
impl Proposer for Grants {
    fn image(&self) -> Image {
        self.image.clone()
    }

    async fn barrier(&self) -> Result<(), ProposeFailed> {
        Ok(())
    }

    async fn propose(&self, command: Command) -> Result<CommandResult, ProposeFailed> {
        let Command::GrantObjects(grant) = command else {
            return Err(ProposeFailed("not a grant".to_owned()));
        };
        let first = ObjectId(self.next.fetch_add(u64::from(grant.count), Ordering::SeqCst));
        Ok(CommandResult::Objects(ObjectsGranted { first, count: grant.count, ..ObjectsGranted::default() }))
    }

    fn session(&self) -> SessionId {
        SessionId(1)
    }
}

type Told = Arc<Mutex<Vec<(u64, Result<PlacedChunk, StoreError>)>>>;

struct Rig {
    chunks: ChunkStore,
    sim: SimBucket,
    cache: MemoryCache,
    told: Told,
}

impl Rig {
    fn new(host: &Host, seed: u64, plan: FaultPlan) -> Self {
        let sim = SimBucket::new(seed, plan);
        let options = BucketOptions { put_total: Duration::from_millis(400), ..BucketOptions::default() };
        let bucket = Bucket::new(host, "store", "", Arc::new(sim.clone()), options, StoreMetrics::default());
        let cache = MemoryCache::new(host, 8 << 20, StoreMetrics::default());
        let format = ClusterFormat::dev("clusterclusterclusterc".to_owned(), "store".to_owned());
        let proposer = Arc::new(Grants { image: StateMachine::new(format).image(), next: AtomicU64::new(1) });
        let chunks = ChunkStore::new(ChunkStoreParts {
            host: host.clone(),
            bucket,
            store: StoreId(1),
            cache: Arc::new(cache.clone()),
            proposer,
            session: SessionId(7),
            lane: LaneId(2),
        });
        Self { chunks, sim, cache, told: Told::default() }
    }

    fn append(&self, number: u64) {
        let told = Arc::clone(&self.told);
        let batches = [(key(1, 0), batch(3, 200)), (key(1, 1), batch(1, 700)), (key(1, 0), batch(2, 50))];
        let sealed = chunk(StreamId::default(), number, &batches);
        self.chunks.append(sealed, number, Box::new(move |result| told.lock().push((number, result))));
    }

    async fn all_told(&self, count: usize) -> Vec<(u64, Result<PlacedChunk, StoreError>)> {
        while self.told.lock().len() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.told.lock().clone()
    }
}

#[tokio::test(start_paused = true)]
async fn chunks_are_told_in_order_and_a_failure_takes_along_what_is_behind_it() {
    let plan = FaultPlan {
        delay_ppm: 500_000,
        max_delay: Duration::from_millis(300),
        throttle_ppm: 450_000,
        ..FaultPlan::NONE
    };
    let (mut failed, mut fine) = (0, 0);
    for seed in 0..60 {
        let rig = Rig::new(&Host::real(), seed, plan);
        for number in 0..8 {
            rig.append(number);
        }
        let told = rig.all_told(8).await;
        let numbers: Vec<u64> = told.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..8).collect::<Vec<_>>(), "seed {seed}");
        let first_bad = told.iter().position(|(_, result)| result.is_err()).unwrap_or(8);
        let bad = told.iter().filter(|(_, result)| result.is_err()).count();
        assert_eq!(bad, 8 - first_bad, "seed {seed}: one overtook a failed one");
        if bad > 0 { failed += 1 } else { fine += 1 }
    }
    assert!(failed > 3 && fine > 3, "{failed} failed, {fine} did not: the plan tests one side only");
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_the_line_goes_on() {
    let rig = Rig::new(&Host::real(), 3, FaultPlan::NONE);
    rig.sim.set_outage(true);
    rig.append(0);
    rig.append(1);
    assert!(rig.all_told(2).await.iter().all(|(_, result)| result.is_err()));
    rig.sim.set_outage(false);
    rig.append(0);
    let told = rig.all_told(3).await;
    assert!(told[2].1.is_ok(), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_object_says_which_chunk_it_is_and_its_blocks_are_kept() {
    let rig = Rig::new(&Host::real(), 1, FaultPlan::NONE);
    rig.append(5);
    let placed = rig.all_told(1).await[0].1.clone().unwrap();
    let bucket = &rig.chunks.shared.parts.bucket;
    let bytes = bucket.get_range(&object_key(placed.object), 0..placed.size_bytes).await.unwrap();
    let footer = Footer::of_object(&bytes).unwrap();
    footer.verify_body(&bytes).unwrap();
    assert_eq!(footer.origin, Some(Origin { session: 7, lane: 2, number: 5 }));
    let runs: Vec<_> =
        footer.runs.iter().map(|run| (run.key.partition, run.first_offset, run.last_offset)).collect();
    assert_eq!(runs, [(0, 0, 1), (1, 0, 0)]);
    assert_eq!(rig.cache.bytes() as u64, placed.size_bytes);
}
