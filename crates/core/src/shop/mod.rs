//! The catalogue, its rules and segments, demand, arms, and the snapshot of all of them.

pub mod arms;
pub mod catalogue;
pub mod count_kind;
mod decay;
pub mod demand;
pub mod merchant;
pub mod naming;
pub mod rules;
pub mod shares;
pub mod snapshot;
mod sums;
