//! Lists: prompt, score terms, composition, SKU selection, fallback, document with audit, comparison, and
//! why a product is not on one.

pub mod best;
pub mod choice;
pub mod compose;
pub mod diff;
pub mod document;
pub mod fallback;
pub mod hits;
pub mod meant;
pub mod prompt;
pub mod select;
pub mod terms;
pub mod what_if;
pub mod why_not;
