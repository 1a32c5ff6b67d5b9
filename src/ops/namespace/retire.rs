//! The end of a namespace: its keys go, step by step, and its place in the register.
//!
//! Invariant: what is served, fed, or may still be cached as served is never deleted; a step is one page of a
//! scan and unlinks, so Redis serves others in between. Tombstones of erased users stand outside and stay.

use std::time::Duration;

use anyhow::{bail, ensure};

use super::promote::Note;
use crate::config::Config;
use crate::members::clock::wall_clock;
use crate::members::ingest::group;
use nearshore_core::ports::store::Store;
use nearshore_kafka::Admin;

/// What retiring did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Keys deleted.
    pub keys: u64,
    /// Passes over the keyspace; the last found nothing.
    pub passes: u64,
}

/// Deletes a namespace; `tell` is told what it waits for and how many keys are gone.
pub async fn retire<S: Store>(
    config: &Config,
    store: &S,
    mut tell: impl FnMut(String),
) -> anyhow::Result<Retired> {
    let ns = &config.namespace;
    not_served(store, ns).await?;
    let note = Note::of(store, ns).await?;
    let name = group(ns);
    let members = Admin::new(&config.kafka)?.members(&name).await?;
    ensure!(
        members == 0,
        "consumer group {name} has {members} members: stop `nearshore run --namespace {ns}` first, or they would write it anew"
    );
    if let Some(demoted) = note.demoted_at {
        // A tenth more: clients' clocks are not ours.
        let quiet = demoted.after(config.backfill.active_ttl.mul_f64(1.1));
        let wait = quiet.since(wall_clock());
        if !wait.is_zero() {
            tell(format!(
                "waiting {} s: clients may still think that {ns} is served",
                wait.as_secs() + 1
            ));
            tokio::time::sleep(wait).await;
            not_served(store, ns).await?;
        }
    }
    // First, so that no worker writes fallbacks for it any more.
    store.enroll(ns, None).await?;
    let mut retired = Retired::default();
    loop {
        let gone = pass(config, store, &mut tell).await?;
        retired.keys += gone;
        retired.passes += 1;
        // A call that timed out may land after the page it belonged to was passed.
        if gone == 0 {
            break;
        }
    }
    Ok(retired)
}

async fn not_served<S: Store>(store: &S, ns: &str) -> anyhow::Result<()> {
    if store.active().await?.as_deref() == Some(ns) {
        bail!("{ns} is served: promote another namespace first");
    }
    Ok(())
}

async fn pass<S: Store>(
    config: &Config,
    store: &S,
    tell: &mut impl FnMut(String),
) -> anyhow::Result<u64> {
    let ns = &config.namespace;
    let (mut gone, mut told) = (0, 0);
    let mut cursor = None;
    loop {
        let (keys, next) = store.delete(ns, cursor).await?;
        gone += keys;
        if gone >= told + 10_000 {
            told = gone;
            not_served(store, ns).await?;
            tell(format!("{gone} keys deleted"));
        }
        match next {
            Some(next) => cursor = Some(next),
            None => return Ok(gone),
        }
        let rate = f64::from(config.backfill.keys_per_second.max(1));
        tokio::time::sleep(Duration::from_secs_f64(keys as f64 / rate)).await;
    }
}
