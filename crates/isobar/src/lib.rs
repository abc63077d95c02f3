//! A whole node: every role wired together. The binary runs one, and the simulation runs the same one.

mod admin_port;
mod archive;
pub mod config;
mod directory;
mod jobs;
mod member;
mod membership;
pub mod node;
mod open_store;
mod operations;
mod recover;
mod serving;
mod standing;

pub use recover::{Found, RecoverError, RecoverOptions, Recovered, find, recover};
