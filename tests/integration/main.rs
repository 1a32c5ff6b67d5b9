//! Integration tests: one file per promise, one binary. `scripts/test` starts the services that they need.

#![allow(unreachable_pub)] // Nothing can import a test binary.

mod align;
mod backfill;
mod backfill_kills;
mod corpus;
mod dlq_down;
mod erase;
mod evaluate;
mod frozen;
mod fuzz;
mod harness;
mod hits;
mod installations;
mod isolation;
mod log;
mod log_dlq;
mod log_kafka;
mod page;
mod pipes;
mod poison;
mod pressure;
mod process;
mod proxy;
mod redis_failover;
mod redis_trouble;
mod refresh;
mod retention;
mod safety;
mod simulation;
mod store;
mod store_arms;
mod store_faults;
mod store_flaws;
mod store_lists;
mod store_redis;
mod store_register;
mod store_same;
mod store_shared;
mod store_speed;
mod store_users;
mod store_values;
mod texts;
mod upgrade;
mod values;
mod way;
