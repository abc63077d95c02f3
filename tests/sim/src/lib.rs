//! The whole node in simulation, alone or as one of three: brokers on machines that die at any step, with disks, a bucket and a
//! network that fail, and real clients whose histories are judged. Everything follows from a seed.
//!
//! Owns: the plan of a seed, the load, the driver, the view of the bucket that dies with a life.
//!
//! Invariants:
//! 1. The same [`Plan`] gives the same trace and the same history, whatever ran before in this process.
//! 2. Every effect of a node on disk, network and bucket is a step at which it can die, and a dead life has no effect and
//!    sees no answer.
//! 3. What the harness expects of the nodes it says as a problem or an anomaly; nothing is forgiven but a start that fails,
//!    or a node that says it is unhealthy, in a life with disk faults; and, of one of three, a start that fails before all is healed.

mod cluster;
mod faults;
mod finale;
pub mod history;
mod load;
mod machine;
mod node;
mod outcome;
mod panics;
pub mod plan;
mod run;
pub mod store;
pub mod totals;

pub use outcome::{Counters, Outcome};
pub use plan::Plan;
pub use run::run;
