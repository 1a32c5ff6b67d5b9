//! What logs and outcomes teach: tables of terms, weights of terms, and measures of lists, for `evaluate` and `align`.
//!
//! Invariant: a result is a function of its arguments. All randomness comes from a seed, and the order in which users
//! are given changes nothing. Products are numbers from 0, users are texts or numbers: this folder knows no user state,
//! no catalogue and no model, but for `simulate`, which plays the choice of SKUs as it is.

pub mod bias;
pub mod bootstrap;
pub mod choice;
pub mod gate;
pub mod head;
pub mod log;
pub mod logit;
pub mod measures;
pub mod model;
pub mod neighbours;
pub mod off_policy;
pub mod product_table;
mod ranking;
pub mod related;
pub mod repeat;
pub mod simulate;
pub mod split;
pub mod tables;
pub mod walk;
