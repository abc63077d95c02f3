//! Attempts: deadlines, jitter, the budget, and what is counted.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Bucket, Gate};
use crate::StoreError;
use crate::cause::{Cause, Exchange, Failure};
use crate::cloud::http::observed;
use crate::metrics::{OpLabels, RequestLabels};

/// What an operation is, for its retries.
#[derive(Clone, Copy)]
pub(super) struct Operation<'a> {
    pub(super) op: &'static str,
    pub(super) key: &'a str,
    pub(super) mutates: bool,
    pub(super) attempt_limit: Duration,
    pub(super) total_limit: Duration,
}

/// One attempt's way to tell what the wire showed.
pub(super) type Seen = Arc<Mutex<Exchange>>;

impl Bucket {
    pub(super) async fn read<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        attempt: impl Fn(Seen) -> F,
    ) -> Result<T, StoreError> {
        let limits = (self.inner.options.get_attempt, self.inner.options.get_total);
        self.read_within(op, key, limits, attempt).await
    }

    /// A read with limits of its own, for an attempt and in all.
    pub(super) async fn read_within<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        (attempt_limit, total_limit): (Duration, Duration),
        attempt: impl Fn(Seen) -> F,
    ) -> Result<T, StoreError> {
        self.retry(Operation { op, key, mutates: false, attempt_limit, total_limit }, attempt).await
    }

    /// One step of a write that may not be sent twice.
    pub(super) async fn step<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        attempt: impl FnOnce(Seen) -> F,
    ) -> Result<T, Failure> {
        let limit = self.inner.options.put_attempt;
        let operation = Operation { op, key, mutates: true, attempt_limit: limit, total_limit: limit };
        self.try_once(operation, Instant::now() + limit, attempt).await
    }

    pub(super) async fn write<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        op: &'static str,
        key: &str,
        attempt: impl Fn(Seen) -> F,
    ) -> Result<T, StoreError> {
        let options = &self.inner.options;
        let (attempt_limit, total_limit) = if op == "delete" {
            (options.get_attempt, options.get_total)
        } else {
            (options.put_attempt, options.put_total)
        };
        self.check_gate(op, key)?;
        self.retry(Operation { op, key, mutates: true, attempt_limit, total_limit }, attempt).await
    }

    pub(super) fn check_gate(&self, op: &'static str, key: &str) -> Result<(), StoreError> {
        let key = key.to_owned();
        match &*self.inner.gate.lock() {
            Gate::Open => Ok(()),
            Gate::Held => Err(StoreError::DidNotHappen {
                op,
                key,
                cause: Cause::Unreachable,
                why: "it is not known yet whether the bucket is this cluster's: the store has not answered since the \
                      start"
                    .to_owned(),
            }),
            Gate::Shut(why) => {
                Err(StoreError::Refused { op, key, cause: Cause::OtherCluster, why: why.clone() })
            }
        }
    }

    async fn retry<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        operation: Operation<'_>,
        attempt: impl Fn(Seen) -> F,
    ) -> Result<T, StoreError> {
        let Operation { op, key, .. } = operation;
        let inner = &*self.inner;
        let deadline = Instant::now() + operation.total_limit;
        let mut pause = inner.options.backoff;
        let mut may_have_happened = false;
        loop {
            let failure = match self.try_once(operation, deadline, &attempt).await {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            may_have_happened |= failure.happened;
            // Full jitter, but for half the pause, so that no retry comes at once.
            let jitter = inner.host.random_u64() % (pause.as_millis() as u64 / 2 + 1);
            let mut wait = pause / 2 + Duration::from_millis(jitter);
            let left = deadline.saturating_duration_since(Instant::now());
            if !failure.transient || wait >= left {
                return Err(failure.into_error(op, key, may_have_happened));
            }
            match inner.budget.take(left) {
                Some(turn) => wait = wait.max(turn),
                None => return Err(failure.into_error(op, key, may_have_happened)),
            }
            if wait >= left {
                return Err(failure.into_error(op, key, may_have_happened));
            }
            tracing::debug!(store = %inner.name, op, key, why = %failure.why, "store request failed, trying again");
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(inner.options.backoff_max);
        }
    }

    async fn try_once<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        operation: Operation<'_>,
        deadline: Instant,
        attempt: impl FnOnce(Seen) -> F,
    ) -> Result<T, Failure> {
        let Operation { op, mutates, attempt_limit, .. } = operation;
        let inner = &*self.inner;
        let started = Instant::now();
        let limit = attempt_limit.min(deadline.saturating_duration_since(started));
        let seen: Seen =
            Arc::new(Mutex::new(Exchange { watched: inner.wire.is_some(), ..Exchange::default() }));
        let run = observed(&seen, attempt(Arc::clone(&seen)));
        let result = match tokio::time::timeout(limit, run).await {
            Ok(result) => result,
            Err(_) => Err(Failure::timeout(mutates, &seen.lock(), limit.as_millis())),
        };
        self.count(op, &result, started.elapsed());
        match &result {
            Ok(_) => {
                inner.budget.succeeded();
                inner.health.succeeded(inner, op);
            }
            Err(failure) => inner.health.failed(inner, op, failure),
        }
        result
    }

    fn count<T>(&self, op: &'static str, result: &Result<T, Failure>, took: Duration) {
        let metrics = &self.inner.metrics;
        let result = match result {
            Ok(_) => "ok",
            Err(failure) if failure.exists => "exists",
            Err(failure) if failure.not_found => "not_found",
            Err(failure) if failure.happened => "may_have_happened",
            Err(failure) if !failure.transient => "refused",
            Err(_) => "did_not_happen",
        };
        let store = self.inner.name.clone();
        metrics.requests.get_or_create(&RequestLabels { store: store.clone(), op, result }).inc();
        metrics.latency.get_or_create(&OpLabels { store, op }).observe(took.as_secs_f64());
    }

    pub(super) fn count_bytes(&self, op: &'static str, bytes: u64) {
        let labels = OpLabels { store: self.inner.name.clone(), op };
        self.inner.metrics.bytes.get_or_create(&labels).inc_by(bytes);
    }
}
