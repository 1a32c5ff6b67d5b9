//! What is sold, to whom, and how often it is bought.

pub mod arms;
pub mod catalogue;
pub mod demand;
pub mod rules;
pub mod snapshot;
