//! Deletes a namespace: its keys, page by page, and its entry in the register.
//!
//! Invariant: a namespace that is served, fed, or may still be cached as served is never deleted. One step unlinks one
//! page of a scan, so that Redis serves other clients in between. Tombstones of erased users are outside of namespaces
//! and are kept.

use std::time::Duration;

use anyhow::{bail, ensure};

use super::promote::Note;
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use nearshore_core::ports::store::Store;
use nearshore_kafka::Admin;

/// What [`retire`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Keys deleted.
    pub keys: u64,
    /// Passes over the keyspace; the last one found no key.
    pub passes: u64,
}

/// Deletes a namespace; calls `report` with what it waits for and how many keys it deleted.
pub async fn retire<S: Store>(
    config: &Config,
    store: &S,
    mut report: impl FnMut(String),
) -> anyhow::Result<Retired> {
    let ns = &config.namespace;
    ensure_not_served(store, ns).await?;
    let note = Note::of(store, ns).await?;
    let name = group(&config.kafka, ns);
    let members = Admin::new(&config.kafka)?.members(&name).await?;
    ensure!(
        members == 0,
        "consumer group {name} has {members} members: stop `nearshore run --namespace {ns}` first, or they would write the keys again"
    );
    if let Some(demoted) = note.demoted_at {
        // A tenth more, because clocks of clients differ from this one.
        let deletable_at = demoted.after(config.backfill.active_ttl.mul_f64(1.1));
        let wait = deletable_at.since(wall_clock());
        if !wait.is_zero() {
            report(format!(
                "waiting {} s: clients may still have cached that {ns} is served",
                wait.as_secs() + 1
            ));
            tokio::time::sleep(wait).await;
            ensure_not_served(store, ns).await?;
        }
    }
    // The register comes first, so that no worker writes fallbacks of this namespace any more.
    store.enroll(ns, None).await?;
    let mut retired = Retired::default();
    loop {
        let deleted = pass(config, store, &mut report).await?;
        retired.keys += deleted;
        retired.passes += 1;
        // A call that timed out may write a key of a page that this pass has deleted already: a further pass finds it.
        if deleted == 0 {
            break;
        }
    }
    Ok(retired)
}

async fn ensure_not_served<S: Store>(store: &S, ns: &str) -> anyhow::Result<()> {
    if store.active().await?.as_deref() == Some(ns) {
        bail!("namespace {ns} is served: promote another namespace first");
    }
    Ok(())
}

async fn pass<S: Store>(
    config: &Config,
    store: &S,
    report: &mut impl FnMut(String),
) -> anyhow::Result<u64> {
    let ns = &config.namespace;
    let (mut deleted, mut reported) = (0, 0);
    let mut cursor = None;
    loop {
        let (keys, next) = store.delete(ns, cursor).await?;
        deleted += keys;
        if deleted >= reported + 10_000 {
            reported = deleted;
            ensure_not_served(store, ns).await?;
            report(format!("{deleted} keys deleted"));
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(deleted),
        }
        let rate = f64::from(config.backfill.keys_per_second.max(1));
        tokio::time::sleep(Duration::from_secs_f64(keys as f64 / rate)).await;
    }
}
