//! Erases a user from outside the stream, proves the erase, and exports and imports the list of erased users.
//!
//! Invariant: an erase is a record like all others, so that each namespace folds it in order; nothing here deletes a
//! key. [`restore`] only does what the next record of a user would do: it applies a tombstone to a state.

mod receipt;
mod traces;

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use receipt::{Finding, Receipt, Verdict};
pub use traces::{TraceOptions, find_traces};

use crate::config::Config;
use crate::files;
use crate::members::clock::wall_clock;
use nearshore_core::ports::keys;
use nearshore_core::ports::log::Outgoing;
use nearshore_core::ports::store::{Durability, FoldWrite, Folded, ListEdit, Namespaces, Users};
use nearshore_core::user::event::UserId;
use nearshore_core::user::fold;
use nearshore_core::user::record::Timestamp;
use nearshore_kafka::Producer;
use nearshore_redis::RedisStore;

/// Users per round trip.
const PAGE: usize = 200;

/// Writes the tombstone. Its time is now, or that of the newest folded record if that is later: a producer's clock may
/// be ahead of this one. On a topic with LogAppendTime the broker's clock decides. Returns the time that was asked for.
pub async fn forget(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
) -> anyhow::Result<Timestamp> {
    let now = wall_clock();
    let at = match newest(config, store, user).await {
        Ok(newest) => newest.map_or(now, |newest| newest.max(now)),
        Err(error) => {
            // An erase does not wait for Redis; the ingest role does.
            note!(
                "the time of the newest record of this user could not be read; the tombstone gets the present time: {error}"
            );
            now
        }
    };
    let tombstone = Outgoing {
        topic: config.topics.profile_changes.clone(),
        key: Some(bytes::Bytes::copy_from_slice(user.0.as_bytes())),
        value: None,
        headers: Vec::new(),
        time: Some(at),
    };
    Producer::new(&config.kafka)?.send(vec![tombstone]).await?;
    Ok(at)
}

/// Time of the newest record of a user that the served or the configured namespace has folded.
async fn newest(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
) -> Result<Option<Timestamp>, nearshore_core::ports::store::Error> {
    let mut namespaces = vec![config.namespace.clone()];
    namespaces.extend(store.active().await?);
    let mut newest = None;
    for ns in namespaces {
        for loaded in store.load(&ns, std::slice::from_ref(user)).await? {
            let event = loaded.state.window.last().map(|event| event.time);
            let profile = loaded.state.profile.map(|profile| profile.time);
            newest = newest.max(event).max(profile);
        }
    }
    Ok(newest)
}

/// One line of the list of erased users.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    user: UserId,
    /// Time of the erase, ms.
    at: Timestamp,
}

/// Writes all erased users, a JSON object per line; returns the number of lines. A user who is erased during the export
/// may be missing, and a user may be written twice.
pub async fn export(store: &RedisStore, out: &mut impl Write) -> anyhow::Result<u64> {
    let (mut written, mut cursor) = (0, None);
    loop {
        let (users, next) = store.erased(cursor).await?;
        for (user, at) in users {
            serde_json::to_writer(&mut *out, &Line { user, at })?;
            out.write_all(b"\n")?;
            written += 1;
        }
        cursor = next;
        if cursor.is_none() {
            out.flush()?;
            return Ok(written);
        }
    }
}

/// The erased users of a list that [`export`] wrote; after an error there may be more.
pub fn erased_in(
    reader: impl BufRead,
    path: &Path,
) -> impl Iterator<Item = anyhow::Result<(UserId, Timestamp)>> {
    let filled = files::lines(reader, path).filter(|line| match line {
        Ok((_, line)) => !line.trim().is_empty(),
        Err(_) => true,
    });
    filled.map(|line| {
        let (nth, line) = line?;
        let place = || format!("{}: line {nth}", path.display());
        let Line { user, at } = serde_json::from_str(&line).with_context(|| {
            let place = place();
            format!("{place}: want {{\"user\": \"id\", \"at\": milliseconds}}")
        })?;
        nearshore_core::user::event::check_year_range(at).with_context(place)?;
        keys::tombstone(&user).with_context(place)?;
        Ok((user, at))
    })
}

/// All erased users with the times of their last erases.
pub async fn erased(store: &RedisStore) -> anyhow::Result<BTreeMap<UserId, Timestamp>> {
    let (mut all, mut cursor) = (BTreeMap::new(), None);
    loop {
        let (users, next) = store.erased(cursor).await?;
        all.extend(users);
        cursor = next;
        if cursor.is_none() {
            return Ok(all);
        }
    }
}

/// What [`import`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Imported {
    /// Lines read.
    pub read: u64,
    /// Tombstones that were missing or older.
    pub raised: u64,
    /// States in all namespaces to which a tombstone was applied.
    pub cleaned: u64,
}

/// Restores tombstones and removes older data from every namespace. A malformed line ends the import with an error that
/// names the line; the lines before it stay restored, and importing the file again is safe.
pub async fn import(
    store: &RedisStore,
    reader: impl BufRead,
    path: &Path,
) -> anyhow::Result<Imported> {
    let mut imported = Imported::default();
    let mut page = Vec::with_capacity(PAGE);
    let namespaces = store.namespaces_with_keys().await?;
    for erased in erased_in(reader, path) {
        page.push(erased?);
        imported.read += 1;
        if page.len() == PAGE {
            restore(store, &namespaces, &page, &mut imported).await?;
            page.clear();
        }
    }
    restore(store, &namespaces, &page, &mut imported).await?;
    store.flush().await?;
    Ok(imported)
}

async fn restore(
    store: &RedisStore,
    namespaces: &[String],
    page: &[(UserId, Timestamp)],
    imported: &mut Imported,
) -> anyhow::Result<()> {
    for (user, at) in page {
        let before = store.erased_at(user).await?;
        imported.raised += u64::from(before < Some(*at));
    }
    store.erase(page).await?;
    let users: Vec<UserId> = page.iter().map(|(user, _)| user.clone()).collect();
    for ns in namespaces {
        imported.cleaned += apply_tombstones(store, ns, users.clone()).await?;
    }
    Ok(())
}

/// Applies newer tombstones to the states of these users in one namespace; returns how many states changed.
async fn apply_tombstones(
    store: &RedisStore,
    ns: &str,
    mut users: Vec<UserId>,
) -> anyhow::Result<u64> {
    let mut cleaned = 0;
    for _ in 0..10 {
        let loaded = store.load(ns, &users).await?;
        let stale = users
            .into_iter()
            .zip(loaded)
            .filter(|(_, loaded)| loaded.erased_elsewhere);
        let writes: Vec<FoldWrite> = stale
            .map(|(user, loaded)| {
                let mut state = loaded.state;
                let erased_at = state.erased_at;
                fold::erase(&mut state, erased_at);
                FoldWrite {
                    user,
                    expected: loaded.ver,
                    // A vacant user is like an unknown one. Any other gets a list at the next event.
                    activity: if state.is_vacant() {
                        Default::default()
                    } else {
                        loaded.activity
                    },
                    profile_changed: state.profile.is_none(),
                    state,
                    list: ListEdit::Keep,
                }
            })
            .collect();
        if writes.is_empty() {
            return Ok(cleaned);
        }
        let outcomes = store.fold(ns, &writes).await?;
        cleaned += outcomes
            .iter()
            .filter(|outcome| matches!(outcome, Folded::Stored { .. }))
            .count() as u64;
        // A refused write means that another process wrote first, with or without the tombstone: load it again.
        users = writes.into_iter().map(|write| write.user).collect();
    }
    bail!(
        "states in namespace {ns} change faster than tombstones can be applied; import the file again"
    )
}
