//! Downloads objects by parallel GETs of 8 MiB ranges and throws the bytes away: what `benches/coldread` compares with.
//!
//!     download STORE_URL PARALLEL <keys, one a line
//!
//! Prints JSON.

#![expect(clippy::print_stdout, reason = "a program")]

use std::error::Error;
use std::io::BufRead as _;

use futures_util::{StreamExt as _, TryStreamExt as _};
use isobar_host::Host;
use isobar_store::{Bucket, BucketOptions, Class, StoreMetrics};
use tokio::time::Instant;

const RANGE_BYTES: u64 = 8 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (url, parallel) = (args.next().ok_or("no URL")?, args.next().ok_or("no number")?.parse::<usize>()?);
    let host = Host::real();
    let bucket =
        Bucket::open(&host, "plain", &url, BucketOptions::default(), StoreMetrics::default()).await?;
    let bucket = bucket.with_class(Class::CatchUp);
    let mut ranges = Vec::new();
    for key in std::io::stdin().lock().lines() {
        let key = key?;
        let size = bucket.size(&key).await?;
        let starts = (0..size).step_by(usize::try_from(RANGE_BYTES)?);
        ranges.extend(starts.map(|start| (key.clone(), start..size.min(start + RANGE_BYTES))));
    }
    let (gets, started) = (ranges.len(), Instant::now());
    let bytes: u64 = futures_util::stream::iter(ranges)
        .map(|(key, range)| {
            let bucket = bucket.clone();
            async move { bucket.get_range(&key, range).await.map(|bytes| bytes.len() as u64) }
        })
        .buffer_unordered(parallel)
        .try_fold(0, |sum, bytes| async move { Ok(sum + bytes) })
        .await?;
    let seconds = started.elapsed().as_secs_f64();
    let mib_s = bytes as f64 / f64::from(1 << 20) / seconds;
    println!("{{\"bytes\": {bytes}, \"gets\": {gets}, \"seconds\": {seconds:.3}, \"mib_s\": {mib_s:.1}}}");
    Ok(())
}
