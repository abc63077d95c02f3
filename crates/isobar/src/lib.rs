//! A whole node: every role wired together. The binary runs one, and the simulation runs the same one.

pub mod node;
mod open_store;
