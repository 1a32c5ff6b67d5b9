//! Names of the catalogue: score requests and responses, the trie of names, and the exact search for the best.

pub mod scoring;
pub mod search;
pub mod trie;
