//! Integration tests: one file per promise, one binary. `scripts/test` starts what they need.

mod backfill;
mod corpus;
mod dlq_down;
mod engine;
mod erase;
mod fuzz;
mod harness;
mod log;
mod log_dlq;
mod log_kafka;
mod page;
mod poison;
mod process;
mod safety;
mod simulation;
mod store;
mod store_faults;
mod store_flaws;
mod store_lists;
mod store_redis;
mod store_same;
mod store_shared;
mod store_speed;
mod store_users;
mod way;
