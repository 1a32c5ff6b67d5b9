//! The log on Kafka: [`KafkaLog`], one member of a consumer group with a producer.
//!
//! The only crate that names rdkafka. It keeps the contract of [`nearshore_core::ports::log::Log`] and does not know
//! what records contain.

mod admin;
pub mod dlq;
mod embedded;
mod health;
mod intake;
mod kafka;
mod login;
mod lost;
pub mod metrics;
mod native;
mod oauth;
mod poll;
pub mod probe;
mod producer;
mod protection;
mod rights;
mod secure;
mod settings;
mod tail;
mod wake;

pub use admin::{Admin, Extent, GroupMember, NewTopic, Topic};
pub use embedded::Embedded;
pub use health::{Health, Lag, PartitionStatus};
pub use kafka::KafkaLog;
pub use producer::Producer;
pub use rights::{Operation, Permitted};
pub use settings::KafkaSettings;
pub use tail::{Tail, Tailed, tail};
