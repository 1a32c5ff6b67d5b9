//! From names with scores to the finished list: prompt, composition, SKU selection, document, comparison.

pub mod best;
pub mod compose;
pub mod diff;
pub mod document;
pub mod prompt;
pub mod select;
