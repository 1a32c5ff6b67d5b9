//! Doubles for tests: a log and a store in memory that keep the contracts of the real ones, and can be made to break
//! them on purpose. A dev-dependency, never shipped.

pub mod fuzz;
pub mod log;
pub mod store;
