//! The journal as a whole, on a simulated disk (driven step by step) and on the real one (with its threads).

mod real;
