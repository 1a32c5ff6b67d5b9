//! What the pure code and the members ask of Kafka and Redis: traits, and the values that pass through them.

pub mod keys;
pub mod log;
pub mod store;
