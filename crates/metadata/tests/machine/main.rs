//! The state machine from outside: what each command answers, and what must hold after any log of commands.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "tests")]

mod commits;
mod compaction;
mod configs;
mod groups;
mod lanes;
mod level1;
mod object_class;
mod objects;
mod producers;
mod properties;
mod recover;
mod recovery_cut;
mod rig;
mod sessions;
mod since;
mod snapshots;
mod soft_delete;
mod speed;
mod topics;
mod world;
