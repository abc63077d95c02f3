//! The state machine from outside: what each command answers, and what must hold after any log of commands.

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
