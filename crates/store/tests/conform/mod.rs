//! What every kind of bucket must do, through `Bucket`.

use std::time::Duration;

use bytes::Bytes;
use isobar_store::{Bucket, Created, StoreError};

pub(crate) fn parts(n: usize) -> Vec<Bytes> {
    (0..n).map(|i| Bytes::from(vec![i as u8; i * 13 % 700])).collect()
}

pub(crate) async fn conforms(bucket: &Bucket) {
    let key = "data/0a/17";
    assert_eq!(bucket.get_range(key, 0..1).await, Err(StoreError::NotFound(key.to_owned())));
    assert_eq!(bucket.size(key).await, Err(StoreError::NotFound(key.to_owned())));
    bucket.delete(key).await.unwrap();
    let parts = parts(3000);
    let whole = parts.concat();
    let len = whole.len() as u64;
    for _ in 0..2 {
        bucket.put(key, parts.clone()).await.unwrap();
        assert_eq!(bucket.size(key).await.unwrap(), len);
        assert_eq!(bucket.get_range(key, 0..len).await.unwrap(), whole);
    }
    assert_eq!(bucket.get_range(key, 5..1000).await.unwrap(), whole[5..1000]);
    assert_eq!(bucket.get_range(key, 9..9).await.unwrap(), Bytes::new());
    assert!(bucket.get_range(key, len - 1..len + 1).await.is_err());
    assert_eq!(bucket.get_up_to(key, len - 7..len + 1000).await.unwrap(), whole[whole.len() - 7..]);
    assert!(bucket.get_up_to(key, len + 1..len + 2).await.is_err());
    bucket.put("data/0a/2", vec![]).await.unwrap();
    assert_eq!(bucket.list("data/0a").await.unwrap(), ["data/0a/17", "data/0a/2"]);
    assert_eq!(bucket.list("data/ff").await.unwrap(), Vec::<String>::new());
    bucket.delete(key).await.unwrap();
    bucket.delete("data/0a/2").await.unwrap();
    assert_eq!(bucket.get_range(key, 0..1).await, Err(StoreError::NotFound(key.to_owned())));
    assert_eq!(bucket.size(key).await, Err(StoreError::NotFound(key.to_owned())));
    assert!(!bucket.any_below("data/0a").await.unwrap());
    creates(bucket).await;
    assert!(bucket.metrics().requests_of(bucket.name(), "put") == 3);
}

async fn creates(bucket: &Bucket) {
    let key = "claim-17";
    let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
    assert_eq!(bucket.create(key, first.clone()).await, Ok(Created::Mine));
    assert_eq!(bucket.create(key, second.clone()).await, Ok(Created::Exists));
    assert_eq!(bucket.create(key, first.clone()).await, Ok(Created::Mine), "a repeat knows its bytes");
    assert_eq!(bucket.get_up_to(key, 0..100).await.unwrap(), first);
    // One that begins with the other's bytes is another.
    assert_eq!(bucket.create(key, Bytes::from_static(b"first!")).await, Ok(Created::Exists));
    assert_eq!(bucket.create(key, Bytes::from_static(b"firs")).await, Ok(Created::Exists));
    bucket.delete(key).await.unwrap();
    assert_eq!(bucket.create(key, second).await, Ok(Created::Mine));
    bucket.delete(key).await.unwrap();
    assert!(matches!(tokio::time::timeout(Duration::from_secs(60), bucket.size(key)).await, Ok(Err(_))));
}
