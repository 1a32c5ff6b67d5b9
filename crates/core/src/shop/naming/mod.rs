//! Products for SKUs that have only titles: proposes them, and applies what a person made of the proposal.
//!
//! Invariant: a SKU's product depends on its own row and the map alone, so that every process names it alike. It does not
//! know files.

mod fill;
mod map;
mod propose;
mod title;

#[cfg(test)]
mod tests;

pub use fill::decode_sku;
pub use map::{Line, Map, MapError, Named, Naming};
pub use propose::propose;
pub use title::{Labels, Untitled};
