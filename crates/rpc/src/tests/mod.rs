//! Two or three nodes in the simulated world, and one pair on real sockets.

mod basics;
mod bounds;
mod codec;
mod faults;
mod queue;
mod real;
mod rig;
mod strangers;
