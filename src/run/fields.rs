//! Watches whether stored profiles have the fields that rules and segments ask for: [`watch_fields`].
//!
//! Invariant: it only reads, one page of users at a time and beside the members, and no more than that once each field
//! was found. It logs a field once, and names no user.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Parts;
use crate::metrics;
use crate::ops::coverage::leave_out;
use nearshore_core::ports::store::{Error, Namespaces, Users};
use nearshore_core::shop::rules::{ProfileFields, UnmatchedKind};
use nearshore_core::user::event::UserId;
use nearshore_redis::RedisStore;

/// How often a page is read until enough profiles were seen.
const FIRST_EVERY: Duration = Duration::from_secs(1);

/// How often a page is read later, as long as a field was in no profile.
const LATER_EVERY: Duration = Duration::from_secs(10);

/// Reports fields that no stored profile has, and when a profile has one. It reads by a scan, which goes by hash, so
/// that its first pages are a sample.
pub(super) async fn watch_fields(parts: Parts) -> anyhow::Result<()> {
    let mut fields = ProfileFields::new(&parts.config.rules, &parts.config.segments);
    let mut reported = BTreeSet::new();
    let mut cursor = None;
    while !fields.all_found() {
        tokio::time::sleep(match fields.is_enough() {
            true => LATER_EVERY,
            false => FIRST_EVERY,
        })
        .await;
        match read_page(
            &parts.store,
            &parts.config.namespace,
            cursor.take(),
            &mut fields,
        )
        .await
        {
            Ok(next) => cursor = next,
            Err(error) => metrics::store_error(&error),
        }
        if cursor.is_none() {
            fields.end_pass();
        }
        report(&fields, &mut reported);
    }
    parts.cancel.cancelled().await;
    Ok(())
}

/// Logs what is absent and was not before, and the other way round.
fn report(fields: &ProfileFields, reported: &mut BTreeSet<String>) {
    let absent = fields.absent();
    for it in absent.iter().filter(|it| !reported.contains(&it.id)) {
        tracing::warn!("{}; correct it, or send the field in profiles", it.what);
    }
    let absent: BTreeSet<String> = absent.into_iter().map(|it| it.id).collect();
    for field in reported.difference(&absent) {
        tracing::info!(field, "a profile has the field now that none had before");
    }
    metrics::unmatched(UnmatchedKind::Field, absent.len());
    *reported = absent;
}

/// Shows the profiles of one page. Returns where the next one begins.
async fn read_page(
    store: &RedisStore,
    ns: &str,
    cursor: Option<String>,
    fields: &mut ProfileFields,
) -> Result<Option<String>, Error> {
    let (mut users, next): (Vec<UserId>, _) = store.scan(ns, cursor).await?;
    let loaded = loop {
        match store.load(ns, &users).await {
            Err(error) => leave_out(error, &mut users)?,
            Ok(loaded) => break loaded,
        }
    };
    for profiled in loaded.into_iter().filter_map(|user| user.state.profile) {
        fields.see(&profiled.profile);
    }
    Ok(next)
}
