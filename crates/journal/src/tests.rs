//! The journal as a whole, on a simulated disk (driven step by step) and on the real one (with its threads).

mod crash;
mod damage;
mod faults;
mod real;
mod rig;
mod simulated;
