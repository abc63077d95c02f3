//! Models of what must never lose or change an acknowledged byte, checked exhaustively at small sizes.
//!
//! Owns: for each idea of DESIGN.md sections 2, 4 and 5 a state space of its own ([`commit`], [`release`], [`recovery`], [`read`],
//! [`voters`]), and the rules that can be taken away from it ([`Rule`]).
//!
//! Promises: a model with all rules has no counterexample in its whole state space; without any one rule the checker finds one.
//! docs/model.md lists them, and the tests hold that list against what the checker finds.
//!
//! May not know: the product. A model repeats what the code does in a few lines, so that both can be read beside each other; it
//! is changed together with the files that it names.

pub mod check;
pub mod commit;
pub mod read;
pub mod recovery;
pub mod release;
mod rules;
pub mod voters;

pub use rules::{Rule, Rules};

#[cfg(test)]
mod tests;
