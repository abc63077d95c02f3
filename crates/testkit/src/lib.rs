//! What tests of a Kafka broker need and what knows nothing of the broker under test.
//!
//! Owns: the format of a history and its checker ([`history`]), and a bucket with faults ([`bucket`]).
//! Promises: a checker that reports each anomaly by its name and never guesses (what it cannot decide is an anomaly of
//! its own kind or an error); a bucket whose faults follow from a seed.
//! May not know: anything of Isobar. The same checker judges Apache Kafka, which calibrates it.

pub mod bucket;
pub mod history;
mod rng;

pub use rng::Rng;
