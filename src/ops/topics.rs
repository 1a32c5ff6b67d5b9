//! Reads the source topics from beginning to end, without a group: the log of a shop as the broker has it now.
//!
//! Invariant: nothing is written, no offset is committed, and records that come while it reads are left out. It does
//! not know what the log is used for.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use indicatif::ProgressBar;
use nearshore_core::user::record::Position;
use nearshore_kafka::Admin;

use crate::config::Config;
use crate::map::{Read, open_tail};
use crate::ops::files::{Decoding, Logs, Share, Topic};

/// How the records of the topics are decoded.
pub(crate) fn decoding(config: &Config) -> Decoding {
    Decoding {
        topics: config.topics.clone(),
        limits: config.limits(),
        ignore: config.events.ignored(),
        naming: config.naming.clone(),
    }
}

/// Topics of a log, what is read of them, and to where.
pub(crate) struct Within<'a> {
    /// Which kinds of topics.
    pub(crate) topics: &'a [Topic],
    /// One past the last record that is read of each partition; without it all are read.
    pub(crate) ends: Option<&'a BTreeMap<String, i64>>,
    /// Which users are kept.
    pub(crate) share: Option<Share>,
}

/// The topics of a log, catalogue first.
pub(crate) const ALL: [Topic; 3] = [Topic::Catalog, Topic::Profiles, Topic::Events];

/// The names of the topics of some kinds.
fn names(config: &Config, topics: &[Topic]) -> Vec<(Topic, Arc<str>)> {
    let of = |topic: &Topic| {
        let names = config.topics.read_as(topic.read_as()).into_iter();
        let topic = *topic;
        names.map(move |name| (topic, name))
    };
    topics.iter().flat_map(of).collect()
}

/// One past the last record of each partition of all topics of a log.
pub(crate) async fn ends(config: &Config) -> anyhow::Result<BTreeMap<String, i64>> {
    let mut all = BTreeMap::new();
    for (_, name) in names(config, &ALL) {
        let extents = Admin::new(&config.kafka)?.extents(&name).await;
        for extent in extents.with_context(|| advice(config, &name))? {
            all.insert(extent.partition.to_string(), extent.end.0);
        }
    }
    Ok(all)
}

fn advice(config: &Config, name: &str) -> String {
    format!(
        "topic {name} of {}; to read files instead, give --events, --profiles and --catalog",
        config.kafka.brokers
    )
}

/// Reads `catalog`, `profile-changes` and `user-events`; `bar` counts records.
pub(crate) async fn read(
    config: &Config,
    decoding: &Decoding,
    bar: &ProgressBar,
) -> anyhow::Result<Logs> {
    let all = Within {
        topics: &ALL,
        ends: None,
        share: None,
    };
    read_within(config, decoding, &all, bar).await
}

/// Reads some of these; `bar` counts records.
pub(crate) async fn read_within(
    config: &Config,
    decoding: &Decoding,
    within: &Within<'_>,
    bar: &ProgressBar,
) -> anyhow::Result<Logs> {
    let mut logs = Logs::of_share(within.share);
    let is_within = |position: &Position| {
        within.ends.is_none_or(|ends| {
            let end = ends.get(&position.partition.to_string());
            end.is_some_and(|end| position.offset.0 < *end)
        })
    };
    for (topic, name) in names(config, within.topics) {
        let advice = || advice(config, &name);
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
                Read::Refused(position, reject) if is_within(&position) => {
                    logs.refuse(|| position.to_string(), &reject);
                }
                Read::Records(position, records) if is_within(&position) => {
                    logs.add(topic, &records, decoding, || position.to_string());
                }
                Read::Refused(..) | Read::Records(..) => {}
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok(logs.finished())
}
