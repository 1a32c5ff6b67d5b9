//! From a model's scores to the exact best names of the catalogue.

pub mod scoring;
pub mod search;
pub mod trie;
