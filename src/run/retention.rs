//! Watches how long the broker keeps the topics that are read, so that an alert can compare a group's lag with it.
//!
//! Invariant: it only reads. A broker that does not answer, or may not show it, changes no value.

use std::time::Duration;

use super::{DESCRIBE_MAX, Parts};
use crate::metrics;
use nearshore_core::map::ReadAs;
use nearshore_kafka::Admin;

/// How often the topics are described.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Exports the retention of each topic that is read.
pub(super) async fn watch_retention(parts: Parts) -> anyhow::Result<()> {
    let topics = &parts.config.topics;
    let lanes = topics.lanes();
    let sources = [topics.of_users(), topics.read_as(ReadAs::Catalog)].concat();
    let read = lanes.iter().chain(&sources);
    let read: Vec<&str> = read.map(|topic| &**topic).collect();
    // A stop of the process waits for a question that Kafka does not answer.
    let mut kafka = parts.config.kafka.clone();
    kafka.ack_timeout = kafka.ack_timeout.min(DESCRIBE_MAX);
    let admin = Admin::new(&kafka)?;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        // The embedded log never answers this question.
        let described = tokio::time::timeout(DESCRIBE_MAX, admin.describe(&read)).await;
        for topic in described.into_iter().flatten().flatten() {
            if let Some(kept) = topic.retention() {
                metrics::retention(&topic.name, kept);
            }
        }
    }
}
