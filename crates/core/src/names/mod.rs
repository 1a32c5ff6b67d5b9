//! Names of the catalogue: score requests and responses, the trie of names, and the exact search for the best
//! with and without a model; free texts matched with names; what texts of users mean; lists that a model wrote.

pub mod free;
pub mod head;
pub mod matcher;
pub mod meaning;
pub mod scoring;
pub mod search;
pub mod sum;
pub mod trie;
pub mod writing;
pub mod written;
