//! Integration tests: one file per promise, one binary. `scripts/test` starts what they need.

mod engine;
mod harness;
mod log;
mod log_dlq;
mod log_kafka;
mod store;
