//! Reads the source topics from beginning to end, without a group: the log of a shop as the broker has it now.
//!
//! Invariant: nothing is written, no offset is committed, and records that come while it reads are left out. It does
//! not know what the log is used for.

use std::collections::BTreeMap;

use anyhow::Context;
use indicatif::ProgressBar;
use nearshore_kafka::{Admin, Tailed};

use crate::config::Config;
use crate::ops::files::{Decoding, Logs, Topic};

/// How the records of the topics are decoded.
pub(crate) fn decoding(config: &Config) -> Decoding {
    Decoding {
        topics: config.topics.clone(),
        limits: config.limits(),
        ignore: config.events.ignored(),
        naming: config.naming.clone(),
    }
}

/// Reads `catalog`, `profile-changes` and `user-events`; `bar` counts records.
pub(crate) async fn read(
    config: &Config,
    decoding: &Decoding,
    bar: &ProgressBar,
) -> anyhow::Result<Logs> {
    let mut logs = Logs::default();
    for (topic, name) in [
        (Topic::Catalog, &config.topics.catalog),
        (Topic::Profiles, &config.topics.profile_changes),
        (Topic::Events, &config.topics.user_events),
    ] {
        let advice = || {
            format!(
                "topic {name} of {}; to read files instead, give --events, --profiles and --catalog",
                config.kafka.brokers
            )
        };
        let extents = Admin::new(&config.kafka)?
            .extents(name)
            .await
            .with_context(advice)?;
        let records: i64 = extents.iter().map(|it| it.end.0 - it.begin.0).sum();
        bar.inc_length(u64::try_from(records).unwrap_or(0));
        bar.set_message(name.to_string());
        let mut tail = nearshore_kafka::tail(&config.kafka, name, &BTreeMap::new())
            .await
            .with_context(advice)?;
        while let Tailed::Record(record) = tail.next().await.with_context(advice)? {
            logs.add(topic, &record, decoding, || record.position.to_string());
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(logs.finished())
}
