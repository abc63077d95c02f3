use std::collections::BTreeMap;

use isobar_rpc::{RpcOptions, Secret};
use object_store::ObjectStoreExt as _;
use proptest::prelude::*;

use super::*;
use crate::cache::MemoryCache;
use crate::format::object_key;
use crate::reader::tests::{OBJECT, Setup, setup};
use crate::{Bucket, BucketOptions, ObjectReader};

const BATCHES: [usize; 20] = [300_000; 20];

struct Broker {
    id: i32,
    reader: ObjectReader,
    rpc: Rpc,
    metrics: StoreMetrics,
}

impl Broker {
    /// Reads the whole run; how many batches.
    async fn read(&self, setup: &Setup) -> Result<usize, StoreError> {
        let run = setup.runs[0].clone();
        let mut offset = run.first_offset;
        while offset <= run.last_offset {
            let found = self.reader.read(run.clone(), offset, 1).await?;
            assert_eq!(found.base_offset, offset);
            offset += 1;
        }
        Ok(BATCHES.len())
    }

    fn counts(&self) -> (u64, u64, u64) {
        let metrics = &self.metrics;
        (metrics.zone_blocks.get(), metrics.zone_served_blocks.get(), metrics.zone_failures.get())
    }
}

struct All {
    me: i32,
    addresses: Arc<Mutex<BTreeMap<i32, String>>>,
}

impl Neighbours for All {
    fn others(&self) -> Vec<(i32, String)> {
        let all = self.addresses.lock();
        all.iter().filter(|(id, _)| **id != self.me).map(|(id, address)| (*id, address.clone())).collect()
    }
}

/// Three brokers of one zone, the home of the object's blocks first.
async fn brokers(setup: &Setup) -> Vec<Broker> {
    let (host, addresses) = (Host::real(), Arc::default());
    let mut brokers = Vec::new();
    for id in 1..=3 {
        let secret = Secret::new("the secret of the tests");
        let options = RpcOptions::new("127.0.0.1:0", id, "abcdefghijklmnopqrstuv", secret);
        let rpc = Rpc::start(&host, options).await.unwrap();
        let addresses: &Arc<Mutex<BTreeMap<i32, String>>> = &addresses;
        addresses.lock().insert(id, rpc.local_addr().to_string());
        let metrics = StoreMetrics::default();
        let bucket = Bucket::new(
            &host,
            "s",
            "p",
            Arc::new(setup.store.clone()),
            BucketOptions::default(),
            metrics.clone(),
        );
        let cache = MemoryCache::new(&host, 32 << 20, metrics.clone());
        let all = All { me: id, addresses: Arc::clone(addresses) };
        let zone = Zone::new(rpc.clone(), Arc::new(all), metrics.clone());
        let reader = ObjectReader::new(bucket, Arc::new(cache)).in_zone(&host, &zone);
        brokers.push(Broker { id, reader, rpc, metrics });
    }
    let home = home_of(1..=3, OBJECT, 0);
    brokers.sort_by_key(|broker| Some(broker.id) != home);
    brokers
}

#[tokio::test]
async fn a_zone_gets_a_block_once() {
    let setup = setup(&BATCHES).await;
    let brokers = brokers(&setup).await;
    let blocks = setup.runs[0].range.end.div_ceil(BLOCK_BYTES);
    let before = setup.store.requests();
    brokers[1].read(&setup).await.unwrap();
    let once = setup.store.requests() - before;
    assert!((1..=blocks).contains(&once), "{once} requests for {blocks} blocks");
    let (asked, _, failed) = brokers[1].counts();
    assert_eq!((asked, failed), (blocks, 0));
    for broker in [&brokers[2], &brokers[0]] {
        broker.read(&setup).await.unwrap();
    }
    assert_eq!(setup.store.requests() - before, once);
    assert_eq!(brokers[0].counts(), (0, 2 * blocks, 0));
}

#[tokio::test]
async fn without_its_home_a_block_comes_from_the_store() {
    let setup = setup(&BATCHES).await;
    let brokers = brokers(&setup).await;
    brokers[0].rpc.stop().await;
    let before = setup.store.requests();
    for broker in &brokers[1..] {
        broker.read(&setup).await.unwrap();
        assert_eq!(broker.counts().2, 1, "it is left alone for a while");
    }
    assert!(setup.store.requests() > before);
}

/// Keeps every question and answers none.
#[derive(Default)]
struct Silent(Mutex<Vec<Reply>>);

impl Service for Silent {
    fn request(&self, _: Caller, _: u8, _: Bytes, reply: Reply) {
        self.0.lock().push(reply);
    }
}

#[tokio::test]
async fn a_home_that_is_silent_costs_its_patience_once() {
    let setup = setup(&BATCHES).await;
    let brokers = brokers(&setup).await;
    let silent = Arc::new(Silent::default());
    brokers[0].rpc.register(ServiceId::BLOCKS, Arc::clone(&silent) as _);
    brokers[1].read(&setup).await.unwrap();
    assert_eq!(silent.0.lock().len(), 1);
    assert_eq!(brokers[1].counts().2, 1);
}

#[tokio::test]
async fn what_a_home_has_damaged_comes_from_the_store() {
    let setup = setup(&BATCHES).await;
    let brokers = brokers(&setup).await;
    let key = object_store::path::Path::from(format!("p/{}", object_key(OBJECT)));
    let good = setup.store.objects().get(&key).await.unwrap().bytes().await.unwrap();
    let mut bad = good.to_vec();
    bad[1_000_000] ^= 1;
    setup.store.objects().put(&key, bad.into()).await.unwrap();
    assert!(matches!(brokers[0].read(&setup).await, Err(StoreError::Damaged { .. })));
    setup.store.objects().put(&key, good.into()).await.unwrap();
    brokers[1].read(&setup).await.unwrap();
    assert!(brokers[1].counts().0 > 0, "the home was asked first");
}

#[tokio::test]
async fn questions_without_bounds_are_refused() {
    let setup = setup(&[1000]).await;
    let brokers = brokers(&setup).await;
    let peer = brokers[1].rpc.peer(brokers[0].id, &brokers[0].rpc.local_addr().to_string());
    let ask = async |first, count| {
        let ask = Ask { object: OBJECT, first, count, is_tail: false };
        let soon = Instant::now() + Duration::from_secs(60);
        match peer.call(Channel::Bulk, GET, vec![ask.encode_to_vec().into()], soon).await {
            Err(CallError::Refused { code, .. }) => code,
            other => panic!("{other:?}"),
        }
    };
    for (first, count) in [(0, 0), (0, REQUEST_BLOCKS_MAX + 1), (u32::MAX, 2)] {
        assert_eq!(ask(first, count).await, MALFORMED);
    }
    assert_eq!(ask(1000, 2).await, FAILED, "behind the object's end");
}

#[test]
fn homes_are_spread() {
    let mut of = BTreeMap::new();
    for object in 1..=1000 {
        *of.entry(home_of([1, 2, 3].into_iter(), ObjectId(object), 0).unwrap()).or_insert(0) += 1;
    }
    assert!(of.len() == 3 && of.values().all(|count| (280..390).contains(count)), "{of:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn who_comes_or_goes_moves_only_its_own_blocks(
        ids in prop::collection::btree_set(0..1000_i32, 1..9), goes in any::<prop::sample::Index>(),
        object in any::<u64>(), block in any::<u32>(),
    ) {
        let home = |ids: &[i32]| home_of(ids.iter().copied(), ObjectId(object), block);
        let mut ids: Vec<i32> = ids.into_iter().collect();
        let all = home(&ids).unwrap();
        prop_assert_eq!(home_of(ids.iter().copied(), ObjectId(object), block / HOME_BLOCKS * HOME_BLOCKS), Some(all));
        ids.reverse();
        prop_assert_eq!(home(&ids), Some(all), "the order says nothing");
        let gone = ids.remove(goes.index(ids.len()));
        let left = home(&ids);
        prop_assert!(gone == all || left == Some(all));
    }
}
