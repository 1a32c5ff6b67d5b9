//! Erasing a user from outside the stream, proving it, and keeping the list of erased users elsewhere.
//!
//! Invariant: an erase is a record like every other, so that each namespace folds it at its place; nothing here
//! deletes a key. [`restore`] only does what the next record of a user would do: it makes a state know of a tombstone.

mod proof;
mod receipt;

use std::io::{BufRead, Write};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub use proof::{Look, look};
pub use receipt::{Finding, Receipt, Verdict};

use crate::config::Config;
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

/// Writes the tombstone. Its time is now, or that of the newest record folded where that is later: a producer's clock
/// may be ahead of ours. On a topic with LogAppendTime the broker's clock decides. Returns the time asked for.
pub async fn forget(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
) -> anyhow::Result<Timestamp> {
    let now = wall_clock();
    let at = match newest(config, store, user).await {
        Ok(newest) => newest.map_or(now, |newest| newest.max(now)),
        Err(error) => {
            // An erase must not wait for Redis; the ingest role will.
            eprintln!("the newest record of this user is not known, so now is taken: {error}");
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

/// Time of the newest record that the served and the configured namespace have folded of a user.
async fn newest(
    config: &Config,
    store: &RedisStore,
    user: &UserId,
) -> Result<Option<Timestamp>, nearshore_core::ports::store::Error> {
    let mut spaces = vec![config.namespace.clone()];
    spaces.extend(store.active().await?);
    let mut newest = None;
    for ns in spaces {
        for held in store.load(&ns, std::slice::from_ref(user)).await? {
            let event = held.state.window.last().map(|seen| seen.time);
            let profile = held.state.profile.map(|known| known.time);
            newest = newest.max(event).max(profile);
        }
    }
    Ok(newest)
}

/// A line of the list of erased users.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    user: UserId,
    /// Time of the erase, ms.
    at: Timestamp,
}

/// Writes all erased users, a JSON object per line; how many. A user erased meanwhile may be missing, and one may
/// stand there twice.
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

/// What [`import`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Lines read.
    pub read: u64,
    /// Tombstones that rose.
    pub raised: u64,
    /// States in any namespace that did not know of theirs, and now do.
    pub cleaned: u64,
}

/// Restores tombstones, and takes what is older out of every namespace. A line that is none ends it with the line's
/// number; what was read before stays restored, and importing again changes nothing more.
pub async fn import(store: &RedisStore, lines: impl BufRead) -> anyhow::Result<Imported> {
    let mut done = Imported::default();
    let mut page = Vec::with_capacity(PAGE);
    let spaces = store.inhabited().await?;
    for (nth, line) in lines.lines().enumerate() {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let Line { user, at } = serde_json::from_str(&line)
            .with_context(|| format!("line {}: no {{\"user\": …, \"at\": …}}", nth + 1))?;
        nearshore_core::user::event::sane(at).with_context(|| format!("line {}", nth + 1))?;
        keys::tombstone(&user).with_context(|| format!("line {}", nth + 1))?;
        done.read += 1;
        page.push((user, at));
        if page.len() == PAGE {
            restore(store, &spaces, (&page, &mut done)).await?;
            page.clear();
        }
    }
    restore(store, &spaces, (&page, &mut done)).await?;
    store.flush().await?;
    Ok(done)
}

async fn restore(
    store: &RedisStore,
    spaces: &[String],
    (page, done): (&[(UserId, Timestamp)], &mut Imported),
) -> anyhow::Result<()> {
    for (user, at) in page {
        let before = store.erased_at(user).await?;
        done.raised += u64::from(before < Some(*at));
    }
    store.erase(page).await?;
    let users: Vec<UserId> = page.iter().map(|(user, _)| user.clone()).collect();
    for ns in spaces {
        done.cleaned += settle(store, ns, users.clone()).await?;
    }
    Ok(())
}

/// Writes the states of those users whose tombstone is later than what a namespace has of them.
async fn settle(store: &RedisStore, ns: &str, mut users: Vec<UserId>) -> anyhow::Result<u64> {
    let mut cleaned = 0;
    for _ in 0..10 {
        let held = store.load(ns, &users).await?;
        let stale = users.into_iter().zip(held).filter(|(_, held)| held.reborn);
        let writes: Vec<FoldWrite> = stale
            .map(|(user, held)| {
                let mut state = held.state;
                let erased_at = state.erased_at;
                fold::erase(&mut state, erased_at);
                FoldWrite {
                    user,
                    expected: held.ver,
                    // Nobody left is somebody unknown; else the next event asks for a list.
                    activity: if state.is_vacant() {
                        Default::default()
                    } else {
                        held.activity
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
        // Somebody else wrote first: perhaps it knew, perhaps not.
        users = writes.into_iter().map(|write| write.user).collect();
    }
    bail!("states in {ns} change faster than they can be cleaned; import again")
}
