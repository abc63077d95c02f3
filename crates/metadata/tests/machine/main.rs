//! The state machine from outside: what each command answers, and what must hold after any log of commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod commits;
mod configs;
mod groups;
mod lanes;
mod objects;
mod producers;
mod properties;
mod rig;
mod sessions;
mod snapshots;
mod speed;
mod topics;
