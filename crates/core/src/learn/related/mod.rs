//! What goes with what, for every SKU: substitutes of the same product and complements of other products.
//!
//! Invariant: equal sets of purchases give equal lists, bit by bit, and no value depends on what fewer than `users_min`
//! users did. This folder does not know ids, stock, nor who was erased: its caller gives it what may be learned from.

mod baskets;
mod document;
mod prior;
mod products;
mod shrink;
mod skus;
mod sparse;
#[cfg(test)]
mod tests;

pub use baskets::Bought;
pub use document::{Columns, NeighbourDoc, NeighbourDocError};
pub use prior::Known;
pub use skus::{Basis, Counted, Ks, Lists, Neighbour, Related, RelatedOptions, Scratch, Shop};
