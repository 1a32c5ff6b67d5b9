//! Reads the source topics from beginning to end, without a group: the log of a shop as the broker has it now.
//!
//! Invariant: nothing is written, no offset is committed, and records that come while it reads are left out. It does
//! not know what the log is used for.

use anyhow::Context;
use indicatif::ProgressBar;
use nearshore_core::map::ReadAs;
use nearshore_kafka::Admin;

use crate::config::Config;
use crate::map::{Read, open_tail};
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
    let topics = [
        (Topic::Catalog, ReadAs::Catalog),
        (Topic::Profiles, ReadAs::Profiles),
        (Topic::Events, ReadAs::Events),
    ];
    let names = topics.map(|(topic, read_as)| {
        let names = config.topics.read_as(read_as).into_iter();
        names.map(move |name| (topic, name))
    });
    for (topic, name) in names.into_iter().flatten() {
        let advice = || {
            format!(
                "topic {name} of {}; to read files instead, give --events, --profiles and --catalog",
                config.kafka.brokers
            )
        };
        let extents = Admin::new(&config.kafka)?
            .extents(&name)
            .await
            .with_context(advice)?;
        let records: i64 = extents.iter().map(|it| it.end.0 - it.begin.0).sum();
        bar.inc_length(u64::try_from(records).unwrap_or(0));
        bar.set_message(name.to_string());
        let names = [name.clone()];
        let mut tail = open_tail(&config.kafka, &names, &config.topics, decoding.limits)
            .await
            .with_context(advice)?;
        loop {
            match tail.next().await.with_context(advice)? {
                Read::Ready => break,
                Read::Refused(position, reject) => {
                    logs.refuse(|| position.to_string(), &reject);
                }
                Read::Records(position, records) => {
                    logs.add(topic, &records, decoding, || position.to_string());
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(logs.finished())
}
