//! Doubles for tests: a log and a store in memory which keep the contracts of the real ones, or break them on purpose.
//! A dev-dependency, never shipped.

pub mod fuzz;
pub mod log;
pub mod store;
