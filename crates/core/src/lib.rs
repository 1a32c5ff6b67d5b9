//! The decisions of Nearshore as pure functions: values in, values out.
//!
//! No async runtime, no IO, no clock, no log line, no metric: `Cargo.toml` of this crate lists none of their crates, so the
//! compiler keeps it so. Time is an argument (the record's timestamp), chance a seed. [`ports`] has the traits by which
//! roles reach Kafka, Redis and the model.

#![warn(missing_docs)]

pub mod list;
pub mod names;
pub mod ports;
pub mod queue;
pub mod shop;
pub mod user;
