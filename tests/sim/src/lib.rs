//! The whole node in simulation: one broker on a machine that dies at any step, with a disk and a bucket that fail, and
//! real clients whose histories are judged. Everything follows from a seed.
//!
//! Owns: the plan of a seed, the load, the driver, the view of the bucket that dies with a life.
//!
//! Invariants:
//! 1. The same [`Plan`] gives the same trace and the same history, whatever ran before in this process.
//! 2. Every effect of the node on disk, network and bucket is a step at which it can die, and a dead life has no effect and
//!    sees no answer.
//! 3. What the harness expects of the node it says as a problem or an anomaly; nothing is forgiven but a start that fails,
//!    or a node that says it is unhealthy, in a life with disk faults.

mod finale;
pub mod history;
mod load;
mod node;
mod panics;
pub mod plan;
mod run;
pub mod store;
pub mod totals;

pub use plan::Plan;
pub use run::{Counters, Outcome, run};
