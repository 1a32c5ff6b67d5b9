//! Reads the lists of two namespaces: every one that `recall-updates` still has, or those that Redis has now.
//!
//! Invariant: nothing is written and no offset is committed. It does not know what the lists are judged by.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use indicatif::ProgressBar;
use nearshore_core::list::document::{Document, Update};
use nearshore_core::ports::store::Store;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Record;
use nearshore_kafka::{Admin, Tailed};

use crate::config::Config;
use crate::ops::coverage::shown;
use crate::ops::evaluate::since::{Lists, Seen};
use crate::ops::files::Logs;

/// Users read at once.
const PAGE: usize = 500;

/// The lists of two namespaces on `recall-updates`; `bar` counts records.
pub(crate) async fn of_updates(
    config: &Config,
    names: [&str; 2],
    catalogue: &Catalogue,
    bar: &ProgressBar,
) -> anyhow::Result<[Lists; 2]> {
    let mut lists = [Lists::default(), Lists::default()];
    let mut refused = 0u64;
    each_update(config, bar, |record| {
        let Some((nth, user)) = owner(record, names) else {
            return;
        };
        let Some(value) = &record.value else {
            lists[nth].erase(&user);
            return;
        };
        match Update::parse(value) {
            Ok(update) => {
                let made = (update.claim, Seen::Offsets(update.seen));
                lists[nth].add(user, made, &update.doc, catalogue);
            }
            Err(_) => refused += 1,
        }
    })
    .await?;
    if refused > 0 {
        let topic = &config.topics.recall_updates;
        tracing::warn!(refused, %topic, "updates that this release cannot read are left out");
    }
    Ok(lists)
}

/// Reads `recall-updates` from its beginning to its present end; `bar` counts records.
pub(crate) async fn each_update(
    config: &Config,
    bar: &ProgressBar,
    mut each: impl FnMut(&Record),
) -> anyhow::Result<()> {
    let topic = &config.topics.recall_updates;
    let place = || format!("topic {topic} of {}", config.kafka.brokers);
    let extents = Admin::new(&config.kafka)?.extents(topic).await;
    let extents = extents.with_context(place)?;
    let records: i64 = extents.iter().map(|it| it.end.0 - it.begin.0).sum();
    bar.inc_length(u64::try_from(records).unwrap_or(0));
    bar.set_message(topic.to_string());
    let mut tail = nearshore_kafka::tail(&config.kafka, topic, &BTreeMap::new())
        .await
        .with_context(place)?;
    while let Tailed::Record(record) = tail.next().await.with_context(place)? {
        bar.inc(1);
        each(&record);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Which of two namespaces a record of `recall-updates` is of, and whose list.
fn owner(record: &Record, names: [&str; 2]) -> Option<(usize, UserId)> {
    let key = std::str::from_utf8(record.key.as_ref()?).ok()?;
    let (ns, user) = key.split_once('/')?;
    let nth = names.iter().position(|name| *name == ns)?;
    Some((nth, UserId(user.into())))
}

/// The lists that Redis has of the users of a log. A list has seen all that happened before it was stored.
pub(crate) async fn of_store<S: Store>(
    store: &S,
    names: [&str; 2],
    logs: &Logs,
) -> anyhow::Result<[Lists; 2]> {
    let users = logs.records.iter().map(|record| &record.user);
    let users: Vec<&UserId> = users.collect::<BTreeSet<_>>().into_iter().collect();
    let mut lists = [Lists::default(), Lists::default()];
    for (lists, ns) in lists.iter_mut().zip(names) {
        for page in users.chunks(PAGE) {
            let mut page: Vec<UserId> = page.iter().map(|user| (*user).clone()).collect();
            let shown = shown(store, ns, &mut page).await?;
            for (user, shown) in page.into_iter().zip(shown) {
                let Some(shown) = shown else { continue };
                let Ok(doc) = Document::parse(&shown.doc) else {
                    continue;
                };
                if let Some(stored_at) = shown.stored_at {
                    lists.add(user, (0, Seen::Until(stored_at)), &doc, &logs.catalogue);
                }
            }
        }
    }
    Ok(lists)
}
