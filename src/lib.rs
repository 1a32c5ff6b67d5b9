//! Near-line recall for recommenders: the members of the consumer groups, the operations and the command line. Decisions
//! are in `nearshore_core`, Kafka in `nearshore_kafka`, Redis in `nearshore_redis`, the model in `nearshore_engine`.

#![warn(missing_docs, clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod terminal;

pub mod cli;
pub mod config;
pub mod demo;
mod files;
pub mod http;
pub mod map;
pub mod members;
pub mod metrics;
pub mod ops;
pub mod run;
