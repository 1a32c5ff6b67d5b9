//! Names from what a model wrote freely: read, matched with theta, filled up by the terms.
//!
//! Decides which entries of a written text become names of a list, and why others do not. Invariant: every name is a
//! permitted product of the catalogue that the matcher accepts, none twice, whatever the text says. It does not know
//! who wrote the text, nor how it was fetched.

mod accept;
mod complete;
mod json;
mod lines;
mod listed;

pub use accept::Words;
pub use complete::respond;
pub use listed::{Entry, Listed, read};

#[cfg(test)]
mod tests;
