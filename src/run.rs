//! One process: roles as tasks, health beside them, an orderly end.
//!
//! Invariant: no task is detached: one task's end ends the process's work, and a cancelled process
//! commits what is done and leaves its groups within [`DRAIN`]. It wires; it decides nothing.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::{self, Handle};
use crate::generate::{self, Generate, Loaded};
use crate::http::Health;
use crate::ingest::{self, Error, Ingest};
use crate::keeper::{Keeper, wall_clock};
use crate::log::{Batch, Delivery, KafkaLog, Log};
use crate::metrics;
use crate::prompt::Template;
use crate::shop::Shop;
use crate::stock::Stock;
use crate::store::{RedisStore, Store};

/// SIGTERM to the end; Kubernetes' grace is longer.
pub const DRAIN: Duration = Duration::from_secs(8);

/// How often done offsets are committed.
const COMMIT_EVERY: Duration = Duration::from_millis(500);

/// First wait after an error that may pass; doubled up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(50);

/// Longest wait between two tries.
const RETRY_MAX: Duration = Duration::from_secs(2);

/// Records folded in one go; more would delay commits and revokes.
const GATHER_MAX: usize = 4_000;

/// Which roles a process plays.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    /// Events to state and requests.
    pub ingest: bool,
    /// Requests to lists.
    pub generate: bool,
}

/// A running process.
pub struct Running {
    /// Its tasks; each ends on cancellation, or early with an error.
    pub tasks: JoinSet<anyhow::Result<()>>,
    /// Ends them.
    pub cancel: CancellationToken,
    /// What `/healthz` and `/readyz` say.
    pub health: Health,
    /// The shop as this process sees it.
    pub shop: Arc<ArcSwap<Shop>>,
    /// True once the catalogue is read.
    pub catalogue_ready: watch::Receiver<bool>,
}

impl Running {
    /// Waits until a task ends or `stop` resolves, then drains. Ok if it was asked to stop and all ended in time.
    pub async fn until(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let early = tokio::select! {
            () = stop => None,
            ended = self.tasks.join_next() => Some(ended),
        };
        self.cancel.cancel();
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a task panicked")??;
            }
            anyhow::Ok(())
        })
        .await;
        if let Some(Some(ended)) = early {
            ended.context("a task panicked")??;
            anyhow::bail!("a task ended without being asked to");
        }
        drained.with_context(|| format!("not drained within {DRAIN:?}; what was in hand is done again by the next owner"))?
    }
}

/// Starts the roles. Redis and Kafka may come up later than this; readiness says so.
pub async fn start(config: Arc<Config>, roles: Roles) -> anyhow::Result<Running> {
    let cancel = CancellationToken::new();
    let health = Health::new();
    let store = RedisStore::connect(&config.redis).await.context("redis.url")?;
    let mut tasks = JoinSet::new();
    let (keeper, catalogue_ready) = Keeper::new(store.clone(), keeper_settings(&config, roles));
    let shop = keeper.shop();
    let tail = crate::log::tail(&config.kafka, &config.topics.catalog).context("kafka")?;
    let token = cancel.clone();
    tasks.spawn(async move {
        keeper.run(tail, token).await;
        Ok(())
    });
    health.wait_for("catalogue", catalogue_ready.clone());
    claim_active(&store, &config.namespace).await;
    if roles.ingest {
        spawn_ingest(&mut tasks, (&config, &store, &shop), (&cancel, &health), catalogue_ready.clone())?;
    }
    if roles.generate {
        spawn_generate(&mut tasks, (&config, &store, &shop), (&cancel, &health), catalogue_ready.clone())?;
    }
    let probe = store.clone();
    health.probe("redis", move || {
        let store = probe.clone();
        async move { store.writable().await.map_err(|error| error.to_string()) }
    });
    let app = crate::http::App {
        health: health.clone(),
        inspect: config.http.inspect.then(|| inspector(&config, &store)),
    };
    let listener = tokio::net::TcpListener::bind(&config.http.listen)
        .await
        .with_context(|| format!("http.listen = {:?}", config.http.listen))?;
    let token = cancel.clone();
    tasks.spawn(async move { crate::http::serve(listener, app, token).await.context("http") });
    Ok(Running { tasks, cancel, health, shop, catalogue_ready })
}

type Parts<'a> = (&'a Arc<Config>, &'a RedisStore, &'a Arc<ArcSwap<Shop>>);

/// The first namespace ever is the served one; later ones are promoted.
async fn claim_active(store: &RedisStore, ns: &str) {
    match store.set_active(ns, None).await {
        Ok(true) => tracing::info!(ns, "this namespace is served from now on"),
        Ok(false) => {}
        Err(error) => tracing::warn!(%error, "nearshore:active is not known yet"),
    }
}

fn inspector(config: &Arc<Config>, store: &RedisStore) -> crate::http::Inspector {
    let (config, store) = (config.clone(), store.clone());
    crate::http::inspector(move |user: String| {
        let (config, store) = (config.clone(), store.clone());
        async move {
            let eye = crate::namespace::Eye::open(&config, store).await.map_err(|e| e.to_string())?;
            eye.look(&crate::event::UserId(user.as_str().into())).await.map_err(|e| e.to_string())
        }
    })
}

fn keeper_settings(config: &Config, roles: Roles) -> crate::keeper::Settings {
    crate::keeper::Settings {
        ns: config.namespace.clone(),
        rules: config.rules.clone(),
        segments: config.segments.clone(),
        needs: config.needs.clone(),
        demand: config.demand.clone(),
        limits: config.limits(),
        snapshot_every: Duration::from_secs(1),
        blocks_every: Duration::from_secs(2),
        demand_every: Duration::from_secs(30),
        fallback_every: roles.generate.then_some(config.fallback.every),
        fallback_names: config.fallback.names,
        fallback_skus: config.selection.top_k,
    }
}

/// The clock that decoding compares with, to refuse records far ahead of now.
fn live_now() -> Option<crate::record::Timestamp> {
    Some(wall_clock())
}

fn spawn_ingest(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    (config, store, shop): Parts,
    (cancel, health): (&CancellationToken, &Health),
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let topics = [config.topics.user_events.clone(), config.topics.profile_changes.clone()];
    let group = format!("nearshore-ingest-{}", config.namespace);
    let log = KafkaLog::subscribe(&config.kafka, &group, &topics).context("kafka")?;
    health.watch_poll("ingest poll", log.heartbeat());
    health.assigned("ingest", log.assignment());
    let settings = ingest::Settings {
        ns: config.namespace.clone(),
        topics: config.topics.clone(),
        limits: config.limits(),
        policy: config.trigger.clone(),
        window: config.state.window,
        cache_users: NonZeroUsize::new(config.state.cache_users).unwrap_or(NonZeroUsize::MIN),
        triggers: true,
        now: live_now,
    };
    let member = Ingest::new(log, store.clone(), shop.clone(), settings);
    let token = cancel.clone();
    tasks.spawn(async move { ingest_loop(member, ready, token).await.context("ingest") });

    let log = KafkaLog::subscribe(&config.kafka, "nearshore-stock", &[config.topics.catalog.clone()])
        .context("kafka")?;
    health.watch_poll("stock poll", log.heartbeat());
    let member = Stock::new(log, store.clone(), (config.topics.clone(), config.limits()));
    let token = cancel.clone();
    tasks.spawn(async move { stock_loop(member, token).await.context("stock") });
    Ok(())
}

fn spawn_generate(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    (config, store, shop): Parts,
    (cancel, health): (&CancellationToken, &Health),
    ready: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (config, store, shop) = (config.clone(), store.clone(), shop.clone());
    let (token, health) = (cancel.clone(), health.clone());
    tasks.spawn(async move {
        // Loading takes seconds to minutes; nobody is asked to wait for it but readiness.
        let warm = health.condition("model", "loading");
        let loading = config.clone();
        let arms = tokio::task::spawn_blocking(move || load_arms(&loading)).await??;
        for loaded in &arms {
            metrics::model_info(&loaded.arm.id, &loaded.info);
            health.watch_engine(&loaded.arm.id, loaded.engine.clone());
        }
        let log = KafkaLog::subscribe(&config.kafka, "nearshore-generate", &config.topics.lanes())
            .context("kafka")?;
        health.watch_poll("generate poll", log.heartbeat());
        health.assigned("generate", log.assignment());
        let settings = generate::Settings {
            topics: config.topics.clone(),
            lanes: config.lanes.clone(),
            arm_seed: config.arm_seed.clone(),
            selection: config.selection.clone(),
            clock: wall_clock,
        };
        let mut member = Generate::new(log, store, shop, (arms, settings));
        if wait_ready(ready, &token).await {
            member.warm().await;
            warm.met();
            generate_loop(member, token).await.context("generate")?;
        }
        Ok(())
    });
    Ok(())
}

/// Loads each arm's template and model; arms with the same model file share one engine.
fn load_arms(config: &Config) -> anyhow::Result<Vec<Loaded<Handle>>> {
    let mut engines: std::collections::BTreeMap<std::path::PathBuf, (Handle, engine::Info)> =
        std::collections::BTreeMap::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        let path = config.beside(&arm.model);
        if !engines.contains_key(&path) {
            let start = std::time::Instant::now();
            let model = engine::load(&path, &config.engine)?;
            let info = engine::Model::info(&model);
            tracing::info!(arm = arm.id, model = info.name, seconds = start.elapsed().as_secs_f64(), "model loaded");
            engines.insert(path.clone(), (engine::spawn(Box::new(model)), info));
        }
        let (engine, info) = engines.get(&path).cloned().context("inserted above")?;
        let file = config.beside(&arm.template);
        let source = std::fs::read_to_string(&file)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        arms.push(Loaded { arm: arm.clone(), template, info, engine });
    }
    anyhow::ensure!(!arms.is_empty(), "no [[arms]] in the configuration: nothing to generate with");
    Ok(arms)
}

/// False if cancelled before.
async fn wait_ready(mut ready: watch::Receiver<bool>, cancel: &CancellationToken) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
    }
}

/// Deliveries until the log has nothing at once, or enough is gathered. At most one batch per partition.
async fn gather<L: Log>(log: &mut L, first: Delivery) -> Result<(Vec<Batch>, Option<Delivery>), Error> {
    let mut batches: Vec<Batch> = Vec::new();
    let mut next = Some(first);
    let mut count = 0;
    loop {
        match next {
            Some(Delivery::Batch(batch)) => {
                count += batch.records.len();
                match batches.iter_mut().find(|b| b.partition == batch.partition) {
                    Some(known) => {
                        known.records.extend(batch.records);
                        known.end = batch.end;
                    }
                    None => batches.push(batch),
                }
            }
            Some(other) => return Ok((batches, Some(other))),
            None => return Ok((batches, None)),
        }
        if count >= GATHER_MAX {
            return Ok((batches, None));
        }
        // Cancel-safe by the trait's contract: nothing is lost when the future is dropped.
        next = futures::FutureExt::now_or_never(log.next()).transpose()?;
    }
}

async fn ingest_loop<L: Log, S: Store>(
    mut member: Ingest<L, S>,
    ready: watch::Receiver<bool>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    // Without the catalogue a first list could not be judged by the rules.
    if wait_ready(ready, &cancel).await {
        let mut commits = tokio::time::interval(COMMIT_EVERY);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = commits.tick() => commit_softly(member.commit().await)?,
                delivery = member.log().next() => {
                    let (batches, rest) = gather(member.log(), delivery?).await?;
                    fold_all(&mut member, &batches, &cancel).await;
                    match rest {
                        Some(Delivery::Assigned(partitions)) => member.assigned(&partitions),
                        Some(Delivery::Revoked { partitions, lost }) => {
                            if !lost {
                                commit_softly(member.commit().await)?;
                            }
                            member.revoked(&partitions);
                        }
                        Some(Delivery::Batch(_)) | None => {}
                    }
                }
            }
        }
        commit_softly(member.commit().await)?;
    }
    member.into_log().close().await;
    Ok(())
}

/// Folds batches, again and again while the cause may pass; a cause that stays stops its partition.
async fn fold_all<L: Log, S: Store>(member: &mut Ingest<L, S>, batches: &[Batch], cancel: &CancellationToken) {
    if batches.is_empty() {
        return;
    }
    let mut wait = RETRY_MIN;
    loop {
        let start = std::time::Instant::now();
        match member.handle(batches).await {
            Ok(tally) => return metrics::folded(batches, &tally, start.elapsed()),
            Err(error) if error.retry() => {
                metrics::role_error("ingest", &error);
                tracing::warn!(%error, ?wait, "will be tried again");
            }
            Err(error) if batches.len() == 1 => {
                metrics::role_error("ingest", &error);
                return member.stop(&batches[0].partition, &error);
            }
            Err(_) => {
                // One of them cannot go on; find out which, so that the others do.
                for batch in batches {
                    Box::pin(fold_all(member, std::slice::from_ref(batch), cancel)).await;
                }
                return;
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
        }
    }
}

/// A commit that fails for now is made again with the next; one that fails for good ends the role.
fn commit_softly(outcome: Result<(), Error>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if !error.retry() => Err(error.into()),
        Err(error) => {
            metrics::role_error("commit", &error);
            tracing::warn!(%error, "commit will be tried again");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn stock_loop<L: Log, S: Store>(mut member: Stock<L, S>, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut commits = tokio::time::interval(COMMIT_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            _ = commits.tick() => commit_softly(member.commit().await)?,
            delivery = member.log().next() => {
                let delivery = delivery?;
                let mut wait = RETRY_MIN;
                while let Err(error) = member.handle(&delivery).await {
                    anyhow::ensure!(error.retry(), error);
                    metrics::role_error("stock", &error);
                    tracing::warn!(%error, ?wait, "will be tried again");
                    tokio::select! {
                        () = cancel.cancelled() => break,
                        () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY_MAX),
                    }
                }
            }
        }
    }
    commit_softly(member.commit().await)?;
    member.into_log().close().await;
    Ok(())
}

async fn generate_loop<L: Log, S: Store, A: generate::Answers>(
    mut member: Generate<L, S, A>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut commits = tokio::time::interval(COMMIT_EVERY);
    let mut wait = RETRY_MIN;
    loop {
        let now = wall_clock();
        metrics::lanes(&member.lanes().stats(now));
        // Never longer than a second: stats and shares move with time.
        let pause = member.lanes().next_due(now).unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1));
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            _ = commits.tick() => commit_softly(member.commit().await)?,
            delivery = member.log().next(), if member.lanes().room() > 0 => {
                take_in(&mut member, delivery?).await?;
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let turn = tokio::select! {
            // Work in hand is dropped: it is not committed, so the next owner does it.
            () = cancel.cancelled() => break,
            turn = member.turn(wall_clock()) => turn,
        };
        match turn {
            Ok(_) => wait = RETRY_MIN,
            Err(error) if error.retry() => {
                metrics::role_error("generate", &error);
                tracing::warn!(%error, ?wait, "will be tried again");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
            Err(error) => return Err(error.into()),
        }
    }
    commit_softly(member.commit().await)?;
    member.into_log().close().await;
    Ok(())
}

async fn take_in<L: Log, S: Store, A: generate::Answers>(
    member: &mut Generate<L, S, A>,
    delivery: Delivery,
) -> anyhow::Result<()> {
    match delivery {
        Delivery::Batch(batch) => member.receive(&batch, wall_clock()).await?,
        Delivery::Revoked { partitions, .. } => {
            commit_softly(member.commit().await)?;
            member.revoked(&partitions);
        }
        Delivery::Assigned(_) => {}
    }
    Ok(())
}
