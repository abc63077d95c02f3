//! A whole node: every role wired together. The binary runs one, and the simulation runs the same one.

mod archive;
pub mod config;
mod jobs;
pub mod node;
mod open_store;
mod operations;
mod recover;

pub use recover::{Found, RecoverError, RecoverOptions, Recovered, find, recover};
