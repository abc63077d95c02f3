//! Is a store fit for Isobar? Asked when a node is formatted, and by `isobar store check`.
//!
//! Each step is a promise that Isobar rests on; the weightiest is that of any number of racing creates of one key exactly
//! one wins and all others are told. It must be *raced*: there are stores that refuse a second create politely and
//! let two through when they come together, and stores that ignore the precondition.
//!
//! Everything is written as `probe/<wall clock, ms>-<random>-<what>` and deleted at the end, as far as the store lets us. What a
//! killed one leaves, `fsck` finds by the time in its name.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use crate::StoreError;
use crate::bucket::{Bucket, Created, ListedObject};

/// Creates that race for one key.
const RACERS: usize = 16;
/// Rounds of a race whose outcome stays open (the store failed) before it is given up.
const OPEN_ROUNDS: usize = 5;

/// One promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeStep {
    /// The store answers, and a listing works.
    List,
    /// An object can be written, also again with the same bytes.
    Put,
    /// What was written is read back at once.
    ReadBack,
    /// Parts of an object can be read.
    Ranges,
    /// What was written is listed at once.
    ListAfterWrite,
    /// Of racing creates exactly one wins.
    Race,
    /// An object can be deleted and is gone at once.
    Delete,
}

impl ProbeStep {
    /// All, in the order in which they build on each other.
    pub const ALL: [Self; 7] =
        [Self::List, Self::Put, Self::ReadBack, Self::Ranges, Self::ListAfterWrite, Self::Race, Self::Delete];

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::List => "list objects",
            Self::Put => "write an object",
            Self::ReadBack => "read it back",
            Self::Ranges => "read ranges of it",
            Self::ListAfterWrite => "list it at once",
            Self::Race => "racing creates have one winner",
            Self::Delete => "delete it",
        }
    }
}

/// Where probes write.
const DIR: &str = "probe";

/// When the probe that wrote this key began, by its writer's clock.
pub(crate) fn began_ms(key: &str) -> Option<i64> {
    key.strip_prefix(DIR)?.strip_prefix('/')?.split_once('-')?.0.parse().ok()
}

/// What probes left: keys and lengths.
pub(crate) async fn leftovers(bucket: &Bucket) -> Result<Vec<ListedObject>, StoreError> {
    bucket.list_sized(DIR).await
}

/// The probe of one store.
pub struct Probe {
    bucket: Bucket,
    /// What its keys begin with.
    name: String,
    body: Bytes,
    race_rounds: usize,
    /// What may be there and must go.
    written: Vec<String>,
}

impl Probe {
    /// `race_rounds`: races of the creates.
    pub fn new(bucket: &Bucket, race_rounds: usize) -> Self {
        let name = format!("{DIR}/{}-{:016x}", bucket.host().now_ms(), bucket.host().random_u64());
        // Not compressible, not periodic, and no multiple of anything.
        let mut state = bucket.host().random_u64() | 1;
        let body: Vec<u8> = (0..70_001)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        Self { bucket: bucket.clone(), name, body: Bytes::from(body), race_rounds, written: Vec::new() }
    }

    /// All steps; the first that fails is the answer. Cleans up in either case.
    pub async fn run(mut self) -> Result<(), StoreError> {
        let mut result = Ok(());
        for step in ProbeStep::ALL {
            if let Err(error) = self.step(step).await {
                result = Err(error);
                break;
            }
        }
        self.clean_up().await;
        result
    }

    /// One step; what it found in a few words.
    pub async fn step(&mut self, step: ProbeStep) -> Result<String, StoreError> {
        match step {
            ProbeStep::List => self.bucket.list(DIR).await.map(|_| String::new()),
            ProbeStep::Put => self.put().await,
            ProbeStep::ReadBack => self.read_back().await,
            ProbeStep::Ranges => self.ranges().await,
            ProbeStep::ListAfterWrite => self.list_after_write().await,
            ProbeStep::Race => self.race().await,
            ProbeStep::Delete => self.delete().await,
        }
    }

    fn object(&self) -> String {
        format!("{}-object", self.name)
    }

    async fn put(&mut self) -> Result<String, StoreError> {
        let key = self.object();
        self.written.push(key.clone());
        let parts = vec![self.body.slice(..1), self.body.slice(1..70_000), self.body.slice(70_000..)];
        self.bucket.put(&key, parts.clone()).await?;
        self.bucket.put(&key, parts).await?;
        Ok(String::new())
    }

    async fn read_back(&self) -> Result<String, StoreError> {
        let key = self.object();
        let size = self.bucket.size(&key).await?;
        if size != self.body.len() as u64 {
            return Err(unfit(format!("an object of {} bytes is said to have {size}", self.body.len())));
        }
        let there = self.bucket.get_range(&key, 0..size).await?;
        if there == self.body {
            Ok(String::new())
        } else {
            Err(unfit("an object came back with other bytes"))
        }
    }

    async fn ranges(&self) -> Result<String, StoreError> {
        let (key, len) = (self.object(), self.body.len() as u64);
        for range in [0..1, 1..2, 4_095..8_193, 65_535..len, len - 1..len] {
            let there = self.bucket.get_range(&key, range.clone()).await?;
            if there != self.body[range.start as usize..range.end as usize] {
                return Err(unfit(format!("range {range:?} came back with other bytes")));
            }
        }
        let tail = self.bucket.get_up_to(&key, len - 5..len + 100).await?;
        if tail != self.body[self.body.len() - 5..] {
            return Err(unfit("a range that goes beyond the object's end is not shortened"));
        }
        Ok(String::new())
    }

    async fn list_after_write(&self) -> Result<String, StoreError> {
        let mut listed = self.bucket.list(DIR).await?;
        listed.retain(|key| key.starts_with(&self.name));
        if listed == [self.object()] {
            Ok(String::new())
        } else {
            Err(unfit(format!("a listing right after the write shows {listed:?}")))
        }
    }

    async fn race(&mut self) -> Result<String, StoreError> {
        let (mut decided, mut open) = (0, 0);
        while decided < self.race_rounds {
            let key = format!("{}-race-{}", self.name, decided + open);
            self.written.push(key.clone());
            match self.race_once(&key).await? {
                None => decided += 1,
                Some(error) if open + 1 >= OPEN_ROUNDS => return Err(error),
                Some(_) => open += 1,
            }
        }
        Ok(format!("{RACERS} writers, {decided} rounds"))
    }

    /// `Some`: the store failed, so that the outcome is open.
    async fn race_once(&self, key: &str) -> Result<Option<StoreError>, StoreError> {
        let bodies: Vec<Bytes> = (0..RACERS)
            .map(|racer| Bytes::from(format!("{racer} {:016x}", self.bucket.host().random_u64())))
            .collect();
        let outcomes = join_all(bodies.iter().map(|body| self.bucket.create(key, body.clone()))).await;
        let mut winner = None;
        let mut failed = None;
        for (body, outcome) in bodies.iter().zip(outcomes) {
            match outcome {
                Ok(Created::Mine) if winner.is_some() => return Err(two_winners()),
                Ok(Created::Mine) => winner = Some(body),
                Ok(Created::Exists) => {}
                Err(error) if error.is_transient() => failed = Some(error),
                Err(error) => return Err(error),
            }
        }
        if let Some(error) = failed {
            return Ok(Some(error));
        }
        let Some(winner) = winner else {
            return Err(unfit(format!(
                "{RACERS} writers raced to create one object and every one was told that another had it"
            )));
        };
        // The winner keeps it: from those who came later, and from who comes now.
        if self.bucket.create(key, Bytes::from_static(b"late")).await? != Created::Exists {
            return Err(two_winners());
        }
        let there = self.bucket.get_up_to(key, 0..100).await?;
        if there == *winner { Ok(None) } else { Err(two_winners()) }
    }

    async fn delete(&mut self) -> Result<String, StoreError> {
        let key = self.object();
        self.bucket.delete(&key).await?;
        self.bucket.delete(&key).await?;
        match self.bucket.size(&key).await {
            Err(StoreError::NotFound(_)) => {}
            Ok(_) => return Err(unfit("a deleted object is still there")),
            Err(error) => return Err(error),
        }
        self.written.retain(|written| *written != key);
        Ok(String::new())
    }

    /// Deletes what is left; best effort.
    pub async fn clean_up(&mut self) {
        for key in std::mem::take(&mut self.written) {
            if let Err(error) = self.bucket.delete(&key).await {
                tracing::debug!(key, %error, "a probe's object stays behind");
            }
        }
    }

    /// Times of `count` PUTs of `size` bytes, and of GETs of the same.
    pub async fn latencies(&mut self, count: usize, size: usize) -> Result<Latencies, StoreError> {
        let body: Bytes = self.body.iter().copied().cycle().take(size).collect();
        let (mut put, mut get) = (Vec::new(), Vec::new());
        for number in 0..count {
            let key = format!("{}-latency-{size}-{number}", self.name);
            self.written.push(key.clone());
            let begun = Instant::now();
            self.bucket.put(&key, vec![body.clone()]).await?;
            put.push(begun.elapsed());
            let begun = Instant::now();
            self.bucket.get_range(&key, 0..size as u64).await?;
            get.push(begun.elapsed());
        }
        Ok(Latencies { put: Percentiles::of(put), get: Percentiles::of(get) })
    }
}

/// Of one size.
#[derive(Debug, Clone, Copy)]
pub struct Latencies {
    /// Of writing.
    pub put: Percentiles,
    /// Of reading.
    pub get: Percentiles,
}

/// Of one kind of request.
#[derive(Debug, Clone, Copy)]
pub struct Percentiles {
    /// Half took no longer.
    pub p50: Duration,
    /// 99 of 100 took no longer.
    pub p99: Duration,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: usize| {
            times.get((times.len() * share).div_ceil(100).max(1) - 1).copied().unwrap_or_default()
        };
        Self { p50: at(50), p99: at(99) }
    }
}

fn unfit(why: impl Into<String>) -> StoreError {
    StoreError::Unfit(why.into())
}

fn two_winners() -> StoreError {
    unfit(
        "writers raced to create one object, and more than one was told that it is the first. Isobar needs creates that \
         only one can win (If-None-Match: * on S3 and Azure, x-goog-if-generation-match: 0 on Google Cloud Storage), or two \
         nodes could both believe that the cluster is theirs. Use another store, or a newer release of this one",
    )
}
