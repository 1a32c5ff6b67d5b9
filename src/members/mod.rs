//! The members of the consumer groups: [`ingest`], [`generate`], [`stock`], and what they share.

pub mod checkpoints;
pub mod clock;
pub mod dlq;
pub mod error;
pub mod generate;
pub mod ingest;
pub(crate) mod loops;
#[cfg(test)]
mod loops_tests;
pub mod outbox;
pub mod records;
pub mod snapshot;
pub mod stock;
