//! Watches for members of another installation in this installation's consumer groups.
//!
//! Two installations are two Redis. If their groups have the same names on one Kafka, each gets only a part of the
//! records, and neither fails: sold-out SKUs and requests are missing without an error. Each member therefore has the
//! id of its Redis in its client id. Invariant: this only reads; a Kafka that does not answer is no finding.

use std::time::Duration;

use crate::config::Config;
use crate::members::{generate, ingest, stock};
use crate::metrics;
use nearshore_kafka::Admin;
use nearshore_redis::RedisStore;

use super::Parts;

/// How often the groups are described.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Reads the id of the Redis, and makes one if it has none.
pub(crate) async fn installation(store: &RedisStore) -> anyhow::Result<String> {
    let fresh = format!("{:08x}", rand::random::<u32>());
    Ok(store.installation(&fresh).await?)
}

/// Who asks for [`strangers`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    /// A command, which sees the members of every protocol.
    Command,
    /// A process, which sees those of the classic protocol: librdkafka aborts a process whose broker goes away while it
    /// asks about the others.
    Process,
}

/// What is wrong with the groups of this installation: members of others in them. Empty if nothing is.
pub(crate) async fn strangers(
    config: &Config,
    admin: &Admin,
    own: &str,
    asker: Asker,
) -> anyhow::Result<Vec<String>> {
    let groups = [
        ingest::group(&config.kafka, &config.namespace),
        stock::group(&config.kafka),
        generate::group(&config.kafka),
    ];
    let mut found = Vec::new();
    for group in groups {
        let members = match asker {
            Asker::Command => admin.describe_all_members(&group).await?,
            Asker::Process => admin.describe_members(&group).await?,
        };
        for member in members {
            if member.installation().is_some_and(|other| other != own) {
                found.push(format!(
                    "{} at {} is in {group}",
                    member.client_id, member.host
                ));
            }
        }
    }
    Ok(found)
}

/// What to do about [`strangers`].
pub(crate) const ADVICE: &str = "another installation, with another Redis, reads the same consumer groups, so each of \
    the two gets only a part of the records: give each its own kafka.group_prefix";

/// Shuts the gate `installation` while another installation has members in the groups of this one.
pub(super) async fn watch_strangers(parts: Parts) -> anyhow::Result<()> {
    let gate = parts.ready.gate("installation");
    gate.open("not known yet");
    metrics::foreign_members(0);
    // A stop of the process waits for a question that Kafka does not answer.
    let mut kafka = parts.config.kafka.clone();
    kafka.ack_timeout = kafka.ack_timeout.min(super::DESCRIBE_MAX);
    let admin = Admin::new(&kafka)?;
    let mut last = 0;
    let mut tick = tokio::time::interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        let Ok(own) = installation(&parts.store).await else {
            continue;
        };
        let Ok(found) = strangers(&parts.config, &admin, &own, Asker::Process).await else {
            continue;
        };
        metrics::foreign_members(found.len());
        match found.first() {
            None => gate.open("no members of another one"),
            Some(first) => gate.shut(format!("{first}: {ADVICE}")),
        }
        if found.len() != last {
            match found.first() {
                None => tracing::info!("no other installation is in the consumer groups any more"),
                Some(first) => tracing::error!(members = found.len(), first, "{ADVICE}"),
            }
        }
        last = found.len();
    }
}
