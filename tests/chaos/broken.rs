//! An ingest member that is broken on purpose: the product's own parts with a loop that commits too early, or forgets
//! the batches in hand when partitions move. The harness starts its own program as such a member.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nearshore::config::Config;
use nearshore::members::ingest::{Ingest, IngestSettings, Now};
use nearshore::members::snapshot as loader;
use nearshore::members::snapshot::SnapshotLoader;
use nearshore_core::ports::log::{Batch, Delivery, Log};
use nearshore_core::user::record::{Partition, Resume};
use nearshore_kafka::{KafkaLog, tail};
use nearshore_redis::RedisStore;
use tokio::io::AsyncWriteExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::plan::Break;

type Member = Ingest<KafkaLog, RedisStore>;

/// How long batches are gathered before they are folded, as under load.
const IN_HAND: Duration = Duration::from_millis(400);

/// Runs a broken member until SIGTERM.
pub async fn run(broken: Break, config: &Path) -> anyhow::Result<()> {
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("NEARSHORE__"));
    let config = Config::load(Some(config), variables);
    let config = config.map_err(|problems| anyhow::anyhow!("{problems:?}"))?;
    let store = RedisStore::new(config.redis.clone())?;
    let cancel = CancellationToken::new();
    let (loader, mut ready) = SnapshotLoader::new(store.clone(), loader_settings(&config));
    let snapshot = loader.snapshot();
    let catalogue = tail(&config.kafka, &config.topics.catalog, &BTreeMap::new()).await?;
    let watching = tokio::spawn(loader.run(catalogue, cancel.clone()));
    tokio::spawn(serve_ready(config.http.listen));
    ready.wait_for(|ready| *ready).await?;
    let group = format!("nearshore-ingest-{}", config.namespace);
    let topics = [&*config.topics.user_events, &*config.topics.profile_changes];
    let log = KafkaLog::join(&config.kafka, &group, &topics)?;
    let settings = IngestSettings {
        units_max: config.demand.units_max,
        clock: nearshore::members::clock::wall_clock,
        ns: config.namespace.clone(),
        group,
        topics: config.topics.clone(),
        limits: config.limits(),
        policy: config.trigger.clone(),
        ignore: config.events.ignored(),
        window: config.state.window,
        cache_users: NonZeroUsize::MIN.saturating_add(99_999),
        triggers: true,
        hits_sample: 0.0,
        now: Now::Unchecked,
        complete_since: BTreeMap::new(),
    };
    let mut member = Ingest::new(log, store, snapshot, settings);
    let mut term = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = turn(&mut member, broken) => ended?,
        _ = term.recv() => {}
    }
    let _ = member.commit().await;
    member.into_log().close().await;
    cancel.cancel();
    watching.await?.context("the snapshot loader")
}

fn loader_settings(config: &Config) -> loader::LoaderSettings {
    loader::LoaderSettings {
        ns: config.namespace.clone(),
        rules: config.rules.clone(),
        merchant: Default::default(),
        needs: config.needs.clone(),
        segments: config.segments.clone(),
        demand: config.demand.clone(),
        limits: config.limits(),
        naming: None,
        snapshot_every: Duration::from_secs(1),
        blocks_every: Duration::from_secs(2),
        demand_every: Duration::from_secs(30),
        fallback_every: None,
        fallback_names: config.fallback.names,
        selection: config.selection.clone(),
    }
}

/// Answers 200 to every request.
async fn serve_ready(listen: std::net::SocketAddr) {
    let Ok(listener) = tokio::net::TcpListener::bind(listen).await else {
        return;
    };
    while let Ok((mut stream, _)) = listener.accept().await {
        let _ = stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nbroken on purpose")
            .await;
    }
}

/// Where reading would resume after each batch.
fn ends(batches: &[Batch]) -> Vec<(Partition, Resume)> {
    let end = |batch: &Batch| {
        let last = batch.records.last()?;
        Some((batch.partition.clone(), Resume::after(last.position.offset)))
    };
    batches.iter().filter_map(end).collect()
}

async fn turn(member: &mut Member, broken: Break) -> anyhow::Result<()> {
    loop {
        let (batches, notices) = gather(member).await?;
        let moved = !notices.is_empty();
        for notice in notices {
            match notice {
                Delivery::Assigned(partitions) => member.assigned(&partitions),
                Delivery::Revoked { partitions, .. } => member.revoked(&partitions),
                Delivery::Batch(_) => {}
            }
        }
        let forget = broken == Break::ForgetInHand && moved;
        if forget || broken == Break::CommitEarly {
            // The break: the batches are committed and not folded.
            for done in ends(&batches) {
                let _ = member.log().commit(&[done]).await;
            }
        }
        if forget {
            continue;
        }
        while !batches.is_empty() {
            match member.handle(&batches).await {
                Ok(_) => break,
                Err(error) if error.retry() => tokio::time::sleep(Duration::from_millis(200)).await,
                Err(error) => return Err(error.into()),
            }
        }
        let _ = member.commit().await;
    }
}

/// Gathers what arrives within [`IN_HAND`]: batches, one per partition, and notices of a rebalance.
async fn gather(member: &mut Member) -> anyhow::Result<(Vec<Batch>, Vec<Delivery>)> {
    let (mut batches, mut notices): (Vec<Batch>, Vec<Delivery>) = Default::default();
    let mut next = Some(member.log().next().await?);
    let until = tokio::time::Instant::now() + IN_HAND;
    while let Some(delivery) = next {
        match delivery {
            Delivery::Batch(batch) => {
                match batches
                    .iter_mut()
                    .find(|known| known.partition == batch.partition)
                {
                    Some(known) => {
                        known.records.extend(batch.records);
                        known.end = batch.end;
                    }
                    None => batches.push(batch),
                }
            }
            other => notices.push(other),
        }
        next = match tokio::time::timeout_at(until, member.log().next()).await {
            Ok(delivery) => Some(delivery?),
            Err(_) => None,
        };
    }
    Ok((batches, notices))
}
