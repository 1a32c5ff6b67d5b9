//! The decisions of Nearshore as pure functions: values in, values out.
//!
//! Invariant: no async runtime, IO, clock, log line or metric. `Cargo.toml` of this crate lists none of their crates,
//! so the compiler enforces it. Time is an argument (the record's timestamp), and randomness comes from a seed.
//! [`ports`] has the traits through which members reach Kafka, Redis and the model.

#![warn(missing_docs)]

pub mod learn;
pub mod list;
pub mod map;
pub mod names;
pub mod ports;
pub mod queue;
pub mod schema;
pub mod shop;
pub mod text;
pub mod user;
