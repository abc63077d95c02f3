//! Two or three nodes in the simulated world, and one pair on real sockets.

mod basics;
mod rig;
