//! Watches the roles: heartbeats for `/healthz`, gates for `/readyz`, lag and coverage for `/metrics`.
//!
//! Invariant: it only reads; it writes nothing but the register, and the active namespace if there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Parts;
use crate::http::{Gate, Heartbeat, Ready};
use crate::members::clock::wall_clock;
use crate::members::generate::{ArmScorer, LoadedArm};
use crate::metrics;
use crate::ops::coverage::{is_covered, leave_out};
use crate::ops::namespace;
use nearshore_core::ports::store::{Namespaces, Remedy, Users};
use nearshore_core::user::event::UserId;
use nearshore_core::user::record::Partition;
use nearshore_engine::thread::Handle;
use nearshore_kafka::{KafkaLog, KafkaSettings, PartitionStatus};
use nearshore_redis::RedisStore;
use nearshore_remote::{Client, Status};

/// A poll loop that does not poll for this long hangs.
const POLL_STALLED: Duration = Duration::from_secs(30);

/// An engine that has work and makes no step for this long hangs; one forward pass takes a second or two.
const ENGINE_STALLED: Duration = Duration::from_secs(60);

/// How often coverage is measured on one page of users.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// Joins a group, and watches its poll loop for `/healthz`, its assignment for `/readyz` and its lag for `/metrics`.
pub(super) fn join(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    kafka: &KafkaSettings,
    (gate, name): (Gate, &'static str),
    group: String,
    topics: Vec<Arc<str>>,
) -> anyhow::Result<KafkaLog> {
    let names: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let log = KafkaLog::join(kafka, &group, &names).context("kafka")?;
    let heartbeat = parts.health.heartbeat(name, POLL_STALLED);
    let (health, lag, cancel) = (log.health(), log.lag(), parts.cancel.clone());
    tasks.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let mut last_polls = 0;
        let mut shown = Shown::default();
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            let polls = health.polls();
            if polls != last_polls {
                heartbeat.beat();
            }
            last_polls = polls;
            match (health.fault(), health.assigned()) {
                (Some(fault), _) => gate.shut(fault),
                (None, None) => gate.shut("the group has not answered yet"),
                (None, Some(partitions)) => gate.open(format!("{partitions} partitions")),
            }
            shown.count_lag(&group, &lag.read());
        }
    });
    Ok(log)
}

/// The partitions whose lag this process exports.
#[derive(Default)]
struct Shown(BTreeSet<Partition>);

impl Shown {
    /// Exports the lag of the assigned partitions, and 0 for those that another member has now: an exported value stays
    /// until it is set again, and would raise alarms for as long as this process lives.
    fn count_lag(&mut self, group: &str, status: &[PartitionStatus]) {
        let owned: BTreeSet<Partition> = status.iter().map(|it| it.partition.clone()).collect();
        for gone in self.0.difference(&owned) {
            metrics::lag(group, gone, 0);
            metrics::lag_seconds(group, &gone.topic, Duration::ZERO);
        }
        count_lag(group, status);
        self.0 = owned;
    }
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

/// Checks every 2 s whether Redis accepts writes. If no namespace is active, it makes one active: the last active one
/// that this process saw, or its own.
pub(super) async fn watch_redis(parts: Parts) -> anyhow::Result<()> {
    let gate = parts.ready.gate("redis");
    // A Redis that lost everything gets back the namespace that was active, not the configured one.
    let mut last_active = parts.config.namespace.clone();
    let mut enrolled = false;
    let mut away: Option<Instant> = None;
    let mut tick = tokio::time::interval(Duration::from_secs(2));
    loop {
        tokio::select! {
            () = parts.cancel.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        match parts.store.ready().await {
            Ok(()) => gate.open("writable"),
            Err(error) => {
                away.get_or_insert_with(Instant::now);
                gate.shut(error.to_string());
                continue;
            }
        }
        if let Some(since) = away.take() {
            // Without the target `redis`: lines about it are one a minute, and this one is about the end of an outage.
            let seconds = since.elapsed().as_secs();
            tracing::info!(
                seconds,
                "Redis accepts writes again; what waited for it goes on"
            );
        }
        let active = parts.store.active().await;
        // A Redis that lost everything is marked with its layout again, before anything else is written.
        enrolled &= !matches!(active, Ok(None));
        if !enrolled && let Err(error) = parts.store.check_layout().await {
            anyhow::ensure!(error.remedy() == Remedy::Retry, error);
            continue;
        }
        match active {
            Ok(Some(ns)) => last_active = ns,
            Ok(None) => set_first_active(&parts.store, &last_active).await,
            Err(error) => {
                tracing::warn!(target: "redis", %error, "reading nearshore:active failed; next try in 2 s")
            }
        }
        if !enrolled {
            match namespace::enroll(&parts.store, &parts.config.namespace).await {
                Ok(()) => enrolled = true,
                Err(error) => {
                    tracing::warn!(target: "redis", %error, "adding the namespace to the register failed; next try in 2 s")
                }
            }
        }
    }
}

/// Makes a namespace active if there is none: the first namespace is served at once, later ones are promoted.
async fn set_first_active(store: &RedisStore, ns: &str) {
    match store.set_active(ns, None).await {
        Ok(true) => tracing::info!(ns, "no namespace was active; this one is served now"),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(target: "redis", %error, "writing nearshore:active failed; next try in 2 s")
        }
    }
}

/// Watches the models of arms: those that run here by a heartbeat, those elsewhere by what their servers answer.
pub(super) fn watch_models(
    watchers: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    arms: &[LoadedArm<ArmScorer>],
) {
    for loaded in arms {
        metrics::model(&loaded.arm.id, &loaded.info);
        if let Some(handle) = loaded.engine.handle() {
            let heartbeat = parts.health.heartbeat("engine", ENGINE_STALLED);
            watchers.spawn(watch_engine(
                heartbeat,
                handle.clone(),
                parts.cancel.clone(),
            ));
        }
    }
    watch_endpoints(watchers, (&parts.ready, arms), &parts.cancel);
}

/// Beats while an engine that has work makes steps. An idle engine is healthy.
async fn watch_engine(
    heartbeat: Heartbeat,
    engine: Handle,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last_steps = u64::MAX;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            _ = tick.tick() => {}
        }
        let steps = engine.pulse().steps();
        if !engine.pulse().is_working() {
            heartbeat.rest();
        } else if steps != last_steps {
            heartbeat.beat();
        }
        last_steps = steps;
    }
}

/// Says in `/readyz` and by a gauge whether the servers of the arms answer. The gate stays open: lists without the
/// model are published whatever a server does, and a process that takes no traffic would not publish them.
fn watch_endpoints(
    watchers: &mut JoinSet<anyhow::Result<()>>,
    (ready, arms): (&Ready, &[LoadedArm<ArmScorer>]),
    cancel: &CancellationToken,
) {
    let of = |loaded: &LoadedArm<ArmScorer>| {
        let client = loaded.engine.client()?;
        Some((loaded.arm.id.clone(), client.clone()))
    };
    let clients: Vec<(String, Client)> = arms.iter().filter_map(of).collect();
    if clients.is_empty() {
        return;
    }
    let (gate, cancel) = (ready.gate("endpoint"), cancel.clone());
    gate.open("not asked yet");
    watchers.spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            let mut told = Vec::new();
            for (arm, client) in &clients {
                let status = client.status();
                metrics::endpoint_failing(arm, matches!(status, Status::Fails { .. }));
                told.push(format!("arm {arm}: {}", told_of(&status)));
            }
            gate.open(told.join("; "));
        }
    });
}

/// A server's status, for people.
fn told_of(status: &Status) -> String {
    match status {
        Status::Unknown => "not asked yet".into(),
        Status::Answers => "the server answers".into(),
        Status::Fails { is_open, why } => {
            let left = if *is_open {
                ", and is left alone for a while"
            } else {
                ""
            };
            format!("the server fails{left}; lists without the model go on: {why}")
        }
    }
}

/// Measures the share of users with a list of the model that has seen all of their state: one page of a scan at a time;
/// each scan is smoothed into the next.
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
            Ok((covered, users, next)) => {
                metrics::coverage(covered, users);
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
    let (mut users, next): (Vec<UserId>, _) = store.scan(ns, cursor).await?;
    while !users.is_empty() {
        match store.peek(ns, &users).await {
            Ok(peeks) => {
                let covered = peeks.iter().filter(|peek| is_covered(peek)).count();
                return Ok((covered as u64, users.len() as u64, next));
            }
            // Otherwise one bad value would keep the scan at its page for ever.
            Err(error) => leave_out(error, &mut users)?,
        }
    }
    Ok((0, 0, next))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearshore_core::user::record::{Offset, Resume};

    /// A partition of `user-events` with two records that wait since the year 2000.
    fn behind(number: i32) -> PartitionStatus {
        let partition = format!("0/user-events/{number}");
        PartitionStatus {
            partition: partition.parse().expect("a partition"),
            end: Some(Offset(5)),
            committed: Some(Resume(3)),
            oldest: Some(nearshore_core::user::record::Timestamp(946_684_800_000)),
        }
    }

    #[test]
    fn the_lag_of_a_partition_that_another_member_has_is_zero() {
        let recorder = metrics::recorder().expect("the buckets are not empty");
        let handle = recorder.handle();
        ::metrics::with_local_recorder(&recorder, || {
            let mut shown = Shown::default();
            shown.count_lag("g", &[behind(0), behind(1)]);
            let both = handle.render();
            assert!(both.contains("partition=\"1\"} 2"), "{both}");
            shown.count_lag("g", &[behind(1)]);
            let one = handle.render();
            assert!(one.contains("partition=\"0\"} 0"), "{one}");
            assert!(one.contains("partition=\"1\"} 2"), "{one}");
            let idle = "nearshore_consumer_lag_seconds{group=\"g\",topic=\"user-events\"} 0";
            assert!(!one.lines().any(|line| line == idle), "{one}");
            shown.count_lag("g", &[]);
            let none = handle.render();
            assert!(none.contains("partition=\"1\"} 0"), "{none}");
            assert!(none.lines().any(|line| line == idle), "{none}");
        });
    }
}
