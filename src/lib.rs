//! Nearshore: near-line recall for recommenders. The members, the operations and the command line; the decisions are in
//! `nearshore_core`, Kafka in `nearshore_kafka`, Redis in `nearshore_redis`, the model in `nearshore_engine`.

#![warn(missing_docs)]

pub mod cli;
pub mod config;
pub mod demo;
pub mod http;
pub mod members;
pub mod metrics;
pub mod ops;
pub mod run;
