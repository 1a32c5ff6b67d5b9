//! What watches the roles: hearts for `/healthz`, gates for `/readyz`, lag and coverage for `/metrics`.
//!
//! Invariant: it looks, and changes nothing but the pointer of the first namespace ever.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::http::Heart;
use crate::members::clock::wall_clock;
use crate::metrics;
use crate::ops::coverage::is_covered;
use crate::ops::namespace;
use nearshore_core::ports::store::{Namespaces, Remedy, Users};
use nearshore_core::user::event::UserId;
use nearshore_engine::thread::Handle;
use nearshore_kafka::{KafkaLog, PartitionStatus};
use nearshore_redis::RedisStore;

/// A poll loop that makes no turn for so long is stuck.
const POLL_STALLED: Duration = Duration::from_secs(30);

/// An engine that works and makes no step for so long is stuck; one forward pass takes a second or two.
pub(super) const ENGINE_STALLED: Duration = Duration::from_secs(60);

/// How often a page of users is looked at for coverage.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// Joins a group: its poll loop beats for `/healthz`, its assignment and lag are watched.
pub(super) fn join(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    (name, group, topics): (&'static str, String, Vec<Arc<str>>),
) -> anyhow::Result<KafkaLog> {
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let log = KafkaLog::join(&parts.config.kafka, &group, &names).context("kafka")?;
    let heart = parts.health.heart(name, POLL_STALLED);
    let gate = parts.ready.gate(name);
    let (health, lag, cancel) = (log.health(), log.lag(), parts.cancel.clone());
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut seen = 0;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            let polls = health.polls();
            if polls != seen {
                heart.beat();
            }
            seen = polls;
            match (health.fault(), health.assigned()) {
                (Some(fault), _) => gate.shut(fault),
                (None, None) => gate.shut("the group has not answered yet"),
                (None, Some(partitions)) => gate.open(format!("{partitions} partitions")),
            }
            count_lag(&group, &lag.read());
        }
    });
    Ok(log)
}

pub(super) fn count_lag(group: &str, status: &[PartitionStatus]) {
    let now = wall_clock();
    let mut oldest: BTreeMap<&str, Duration> = BTreeMap::new();
    for partition in status {
        let done = partition.committed.map_or(0, |resume| resume.0);
        let behind = partition.end.map_or(0, |end| (end.0 - done).max(0));
        metrics::lag(group, &partition.partition, behind.unsigned_abs());
        let age = partition
            .oldest
            .map_or(Duration::ZERO, |time| now.since(time));
        let topic = oldest.entry(&partition.partition.topic).or_default();
        *topic = (*topic).max(age);
    }
    for (topic, age) in oldest {
        metrics::lag_seconds(group, topic, age);
    }
}

/// Asks Redis now and then whether it takes writes, and claims the pointer for the first namespace ever.
pub(super) async fn watch_redis(parts: Parts) -> anyhow::Result<()> {
    let gate = parts.ready.gate("redis");
    // A Redis that lost everything gets back the pointer that we saw last, not ours.
    let mut served = parts.config.namespace.clone();
    let mut enrolled = false;
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            () = parts.cancel.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        match parts.store.ready().await {
            Ok(()) => gate.open("writable"),
            Err(error) => {
                gate.shut(error.to_string());
                continue;
            }
        }
        let active = parts.store.active().await;
        // A Redis that lost everything is marked with its layout again, before anything else is written.
        enrolled &= !matches!(active, Ok(None));
        if !enrolled && let Err(error) = parts.store.check_layout().await {
            anyhow::ensure!(error.remedy() == Remedy::Retry, error);
            continue;
        }
        match active {
            Ok(Some(ns)) => served = ns,
            Ok(None) => claim_active(&parts.store, &served).await,
            Err(error) => tracing::warn!(%error, "nearshore:active is not known"),
        }
        if !enrolled {
            match namespace::enroll(&parts.store, &parts.config.namespace).await {
                Ok(()) => enrolled = true,
                Err(error) => tracing::warn!(%error, "the namespace is not in the register yet"),
            }
        }
    }
}

/// The first namespace ever is the served one; later ones are promoted.
async fn claim_active(store: &RedisStore, ns: &str) {
    match store.set_active(ns, None).await {
        Ok(true) => tracing::info!(ns, "this namespace is served from now on"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "nearshore:active is not known yet"),
    }
}

/// Beats as long as an engine that works makes steps; one that rests is well.
pub(super) async fn watch_engine(
    heart: Heart,
    engine: Handle,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut seen = u64::MAX;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let steps = engine.pulse().steps();
        if !engine.pulse().is_working() {
            heart.rest();
        } else if steps != seen {
            heart.beat();
        }
        seen = steps;
    }
}

/// Which share of users has a list of the model that has seen all of their state: by pages of a scan, one
/// at a time, each whole scan smoothed into the next.
pub(super) async fn watch_coverage(parts: Parts) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(SAMPLE_EVERY);
    let mut cursor = None;
    loop {
        tokio::select! {
            () = parts.cancel.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let ns = &parts.config.namespace;
        match sample(&parts.store, ns, cursor.take()).await {
            Ok((covered, of, next)) => {
                metrics::coverage(covered, of);
                cursor = next;
            }
            Err(error) => metrics::store_error(&error),
        }
    }
}

async fn sample(
    store: &RedisStore,
    ns: &str,
    cursor: Option<String>,
) -> Result<(u64, u64, Option<String>), nearshore_core::ports::store::Error> {
    let (users, next): (Vec<UserId>, _) = store.scan(ns, cursor).await?;
    let peeks = if users.is_empty() {
        Vec::new()
    } else {
        store.peek(ns, &users).await?
    };
    let covered = peeks.iter().filter(|peek| is_covered(peek)).count();
    Ok((covered as u64, users.len() as u64, next))
}
