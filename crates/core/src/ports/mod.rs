//! What the pure half and the members ask of the outside: traits, and the values that pass through them.

pub mod keys;
pub mod log;
pub mod store;
