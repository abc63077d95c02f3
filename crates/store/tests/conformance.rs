//! object_store's own integration functions and ours, on any store. The ignored test takes its store from
//! `ISOBAR_TEST_STORE` (a URL) and credentials from the environment; the suite `stores` runs it on each server.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use futures_util::TryStreamExt;
use isobar_host::Host;
use isobar_store::{Bucket, BucketOptions, Probe, StoreMetrics};
use object_store::{ObjectStore, ObjectStoreExt, integration};

mod conform;

/// Upstream's checks of what we use, and more. Of its others: attributes, copies and multipart uploads we do not use yet.
async fn upstream(store: &Arc<dyn ObjectStore>, except: &str) {
    let runs = |name: &str| !except.split(',').any(|excepted| excepted == name);
    integration::put_get_delete_list(store).await;
    if runs("get_opts") {
        integration::get_opts(store).await;
    }
    integration::put_opts(store, true).await;
    // Most of them begin with an empty store, and some leave objects behind.
    empty(store).await;
    integration::stream_get(store).await;
    integration::list_uses_directories_correctly(store).await;
    integration::list_with_delimiter(store).await;
    integration::list_with_offset_exclusivity(store).await;
    empty(store).await;
}

async fn empty(store: &Arc<dyn ObjectStore>) {
    let all: Vec<_> = store.list(None).try_collect().await.unwrap();
    for object in all {
        store.delete(&object.location).await.unwrap();
    }
}

#[tokio::test]
async fn memory() {
    let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
    upstream(&store, "").await;
    let bucket =
        Bucket::new(&Host::real(), "m", "p", store, BucketOptions::default(), StoreMetrics::default());
    conform::conforms(&bucket).await;
    Probe::new(&bucket, 8).run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory() {
    let dir = tempfile::tempdir().unwrap();
    let options = BucketOptions::default();
    let bucket =
        Bucket::open_dir(&Host::real(), "d", dir.path(), options, StoreMetrics::default()).await.unwrap();
    conform::conforms(&bucket).await;
    Probe::new(&bucket, 8).run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a server; the suite `stores` starts them"]
async fn server() {
    let url = std::env::var("ISOBAR_TEST_STORE").unwrap();
    let options = BucketOptions::default();
    let bucket = Bucket::open(&Host::real(), "s", &url, options, StoreMetrics::default()).await.unwrap();
    conform::conforms(&bucket).await;
    Probe::new(&bucket, 20).run().await.unwrap();
    // Upstream's want an empty store; the value names those that this server is known to fail.
    if let Ok(except) = std::env::var("ISOBAR_TEST_UPSTREAM") {
        upstream(&bucket.raw().unwrap(), &except).await;
    }
    assert!(bucket.clock_skew_ms().is_none_or(|skew| skew.abs() < 5_000));
}
