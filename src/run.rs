//! One process: roles as tasks, health beside them, an orderly end.
//!
//! Invariant: no task is detached: one task's end ends the process's work, and a cancelled process
//! commits what is done and leaves its groups within [`DRAIN`]. It wires; it decides nothing.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::engine::constrained::Constrained;
use crate::engine::text::Text;
use crate::engine::thread::{Handle, spawn_with};
use crate::engine::try_names::default_threads;
use crate::event::UserId;
use crate::generate::{self, Generate, Loaded};
use crate::http::{App, Health, Heart, Ready, serve};
use crate::ingest::{self, Error, Ingest};
use crate::keeper::{Keeper, wall_clock};
use crate::log::{Batch, Delivery, KafkaLog, Log, Standing};
use crate::metrics;
use crate::namespace::Eye;
use crate::prompt::Template;
use crate::record::Timestamp;
use crate::shop::Shop;
use crate::stock::{self, Stock};
use crate::store::{RedisStore, Store};
use crate::trigger::Lane;

/// SIGTERM to the end; Kubernetes' grace is longer.
pub const DRAIN: Duration = Duration::from_secs(8);

/// A poll loop that makes no turn for so long is stuck.
const POLL_STALLED: Duration = Duration::from_secs(30);

/// An engine that works and makes no step for so long is stuck; one forward pass takes a second or two.
const ENGINE_STALLED: Duration = Duration::from_secs(60);

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
    /// What `/readyz` says.
    pub ready: Ready,
    /// The shop as this process sees it.
    pub shop: Arc<ArcSwap<Shop>>,
}

/// What every task is handed.
#[derive(Clone)]
struct Parts {
    config: Arc<Config>,
    store: RedisStore,
    shop: Arc<ArcSwap<Shop>>,
    cancel: CancellationToken,
    health: Health,
    ready: Ready,
    /// True once the catalogue is read.
    catalogue: watch::Receiver<bool>,
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
        drained.with_context(|| {
            format!(
                "not drained within {DRAIN:?}; what was in hand is done again by the next owner"
            )
        })?
    }
}

/// Starts the roles. Redis may come up later than this; readiness says so. Kafka must answer for the catalogue.
pub async fn start(
    config: Arc<Config>,
    roles: Roles,
    metrics: Option<PrometheusHandle>,
) -> anyhow::Result<Running> {
    let store = RedisStore::new(config.redis.clone()).context("redis.url")?;
    let (keeper, catalogue) = Keeper::new(store.clone(), keeper_settings(&config, roles));
    let parts = Parts {
        shop: keeper.shop(),
        config,
        store,
        cancel: CancellationToken::new(),
        health: Health::default(),
        ready: Ready::default(),
        catalogue,
    };
    let mut tasks = JoinSet::new();
    // First: a process that waits for Kafka or its model says so.
    spawn_http(&mut tasks, &parts, metrics).await?;
    spawn_keeper(&mut tasks, &parts, keeper);
    tasks.spawn(watch_redis(parts.clone()));
    if roles.ingest {
        spawn_ingest(&mut tasks, &parts)?;
    }
    if roles.generate {
        spawn_generate(&mut tasks, &parts);
    }
    let Parts {
        cancel,
        ready,
        shop,
        ..
    } = parts;
    Ok(Running {
        tasks,
        cancel,
        ready,
        shop,
    })
}

async fn spawn_http(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    metrics: Option<PrometheusHandle>,
) -> anyhow::Result<()> {
    let Parts {
        config,
        store,
        shop,
        cancel,
        health,
        ready,
        ..
    } = parts.clone();
    let mut app = App {
        health,
        ready,
        metrics,
        inspect: None,
    };
    if config.http.inspect {
        let config = config.clone();
        app = app.inspect_by(move |user| {
            let (config, store, shop) = (config.clone(), store.clone(), shop.load_full());
            async move {
                let eye = Eye::of(&config, store, shop)
                    .await
                    .map_err(|e| e.to_string())?;
                eye.look(&UserId(user.as_str().into()))
                    .await
                    .map_err(|e| e.to_string())
            }
        });
    }
    let listener = tokio::net::TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("http.listen = {}", config.http.listen))?;
    tasks.spawn(async move { serve(listener, app, cancel).await.context("http") });
    Ok(())
}

fn spawn_keeper(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    keeper: Keeper<RedisStore>,
) {
    let Parts {
        config,
        cancel,
        ready,
        mut catalogue,
        ..
    } = parts.clone();
    let gate = ready.gate("catalogue");
    let (stop, wait) = (cancel.clone(), cancel.clone());
    tasks.spawn(async move {
        let beginning = BTreeMap::new();
        let tail = crate::log::tail(&config.kafka, &config.topics.catalog, &beginning);
        let tail = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            tail = tail => tail.with_context(|| format!("topic {}", config.topics.catalog))?,
        };
        keeper.run(tail, stop).await.context("catalogue")
    });
    tasks.spawn(async move {
        if wait_ready(&mut catalogue, &wait).await {
            gate.open("read to the end seen at start");
            wait.cancelled().await;
        }
        Ok(())
    });
}

/// Asks Redis now and then whether it takes writes, and claims the pointer for the first namespace ever.
async fn watch_redis(parts: Parts) -> anyhow::Result<()> {
    let gate = parts.ready.gate("redis");
    let mut claimed = false;
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
        if !claimed {
            claimed = claim_active(&parts.store, &parts.config.namespace).await;
        }
    }
}

/// The first namespace ever is the served one; later ones are promoted. True once that is known.
async fn claim_active(store: &RedisStore, ns: &str) -> bool {
    match store.set_active(ns, None).await {
        Ok(first) => {
            if first {
                tracing::info!(ns, "this namespace is served from now on");
            }
            true
        }
        Err(error) => {
            tracing::warn!(%error, "nearshore:active is not known yet");
            false
        }
    }
}

fn keeper_settings(config: &Config, roles: Roles) -> crate::keeper::Settings {
    crate::keeper::Settings {
        ns: config.namespace.clone(),
        rules: config.rules.clone(),
        segments: config.segments.clone(),
        demand: config.demand.clone(),
        limits: config.limits(),
        snapshot_every: Duration::from_secs(1),
        blocks_every: Duration::from_secs(2),
        demand_every: Duration::from_secs(30),
        fallback_every: roles.generate.then_some(config.fallback.every),
        fallback_names: config.fallback.names,
        selection: config.selection.clone(),
    }
}

/// The clock that decoding compares with, to refuse records far ahead of now.
fn live_now() -> Option<crate::record::Timestamp> {
    Some(wall_clock())
}

/// Joins a group: its poll loop beats for `/healthz`, its assignment and lag are watched.
fn join(
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

fn count_lag(group: &str, standing: &[Standing]) {
    let now = wall_clock();
    let mut oldest: BTreeMap<&str, Duration> = BTreeMap::new();
    for partition in standing {
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

fn spawn_ingest(tasks: &mut JoinSet<anyhow::Result<()>>, parts: &Parts) -> anyhow::Result<()> {
    let Parts {
        config,
        store,
        shop,
        cancel,
        catalogue,
        ..
    } = parts.clone();
    let topics = config.topics.clone();
    let group = format!("nearshore-ingest-{}", config.namespace);
    let read = vec![topics.user_events.clone(), topics.profile_changes.clone()];
    let log = join(tasks, parts, ("ingest", group.clone(), read))?;
    let settings = ingest::Settings {
        ns: config.namespace.clone(),
        group,
        topics: topics.clone(),
        limits: config.limits(),
        policy: config.trigger.clone(),
        window: config.state.window,
        cache_users: NonZeroUsize::new(config.state.cache_users).unwrap_or(NonZeroUsize::MIN),
        triggers: true,
        now: live_now,
    };
    let member = Ingest::new(log, store.clone(), shop, settings);
    let stop = cancel.clone();
    tasks.spawn(async move { ingest_loop(member, catalogue, stop).await.context("ingest") });
    let log = join(
        tasks,
        parts,
        ("stock", stock::GROUP.into(), vec![topics.catalog.clone()]),
    )?;
    let member = Stock::new(log, store, (topics, config.limits()));
    tasks.spawn(async move { stock_loop(member, cancel).await.context("stock") });
    Ok(())
}

fn spawn_generate(tasks: &mut JoinSet<anyhow::Result<()>>, parts: &Parts) {
    let parts = parts.clone();
    let (send_group, mut group_tasks) =
        tokio::sync::oneshot::channel::<JoinSet<anyhow::Result<()>>>();
    tasks.spawn(async move { generate_task(parts, send_group).await.context("generate") });
    // The watcher of the group is made only when the model is loaded; its end is the process's end too.
    tasks.spawn(async move {
        let Ok(mut watchers) = (&mut group_tasks).await else {
            return Ok(());
        };
        while let Some(ended) = watchers.join_next().await {
            ended.context("a watcher panicked")??;
        }
        Ok(())
    });
}

async fn generate_task(
    parts: Parts,
    watchers: tokio::sync::oneshot::Sender<JoinSet<anyhow::Result<()>>>,
) -> anyhow::Result<()> {
    let Parts {
        config,
        store,
        shop,
        cancel,
        mut catalogue,
        ready,
        health,
    } = parts.clone();
    let gate = ready.gate("model");
    gate.shut("loading");
    // Loading takes seconds to minutes; nobody is asked to wait for it but readiness.
    let loading = config.clone();
    let load = tokio::task::spawn_blocking(move || load_arms(&loading));
    let arms = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        arms = load => arms.context("loading panicked")??,
    };
    let mut watching = JoinSet::new();
    for loaded in &arms {
        metrics::model(&loaded.arm.id, &loaded.info);
        watching.spawn(watch_engine(
            health.heart("engine", ENGINE_STALLED),
            loaded.engine.clone(),
            cancel.clone(),
        ));
    }
    if !wait_ready(&mut catalogue, &cancel).await {
        return Ok(());
    }
    let read = config.topics.lanes().to_vec();
    let log = join(
        &mut watching,
        &parts,
        ("generate", generate::GROUP.into(), read),
    )?;
    let _ = watchers.send(watching);
    let settings = generate::Settings {
        topics: config.topics.clone(),
        lanes: config.lanes.clone(),
        arm_seed: config.arm_seed.clone(),
        selection: config.selection.clone(),
        needs: config.needs.clone(),
        clock: wall_clock,
    };
    let mut member = Generate::new(log, store, shop, (arms, settings));
    member.warm().await;
    gate.open("warm");
    generate_loop(member, cancel).await
}

/// Beats as long as an engine that works makes steps; one that rests is well.
async fn watch_engine(
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

/// Loads each arm's template and model; arms with the same model file share one engine.
fn load_arms(config: &Config) -> anyhow::Result<Vec<Loaded<Handle>>> {
    let threads = if config.engine.threads == 0 {
        default_threads()
    } else {
        config.engine.threads
    };
    let mut engines: BTreeMap<PathBuf, (Handle, Arc<Text>)> = BTreeMap::new();
    let mut arms = Vec::new();
    for arm in &config.arms {
        let path = config.resolve(&arm.model);
        if !engines.contains_key(&path) {
            let start = std::time::Instant::now();
            let model =
                Constrained::load(&path, threads).with_context(|| format!("arm {}", arm.id))?;
            tracing::info!(arm = arm.id, model = %path.display(), seconds = start.elapsed().as_secs_f64(), "model loaded");
            let (text, pulse) = (model.text().clone(), model.pulse());
            engines.insert(path.clone(), (spawn_with(Box::new(model), pulse), text));
        }
        let (engine, text) = engines.get(&path).cloned().context("inserted above")?;
        let file = config.resolve(&arm.template);
        let source = std::fs::read_to_string(&file)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        let template = Template::load(&source, &arm.template)
            .with_context(|| format!("arm {}: template {}", arm.id, file.display()))?;
        // What cannot be counted is taken for as long as its bytes: over any budget rather than under.
        let count = move |said: &str| text.tokens(said).map_or(said.len(), |tokens| tokens.len());
        let info = engine.info().clone();
        arms.push(Loaded {
            arm: arm.clone(),
            template,
            info,
            count: Arc::new(count),
            engine,
        });
    }
    anyhow::ensure!(
        !arms.is_empty(),
        "no [[arms]] in the configuration: nothing to generate with"
    );
    Ok(arms)
}

/// False if cancelled before.
async fn wait_ready(ready: &mut watch::Receiver<bool>, cancel: &CancellationToken) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        ready = ready.wait_for(|ready| *ready) => ready.is_ok(),
    }
}

/// Deliveries until the log has nothing at once, or enough is gathered. At most one batch per partition.
async fn gather<L: Log>(
    log: &mut L,
    first: Delivery,
) -> Result<(Vec<Batch>, Option<Delivery>), Error> {
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
    mut ready: watch::Receiver<bool>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    // Without the catalogue a first list could not be judged by the rules.
    if wait_ready(&mut ready, &cancel).await {
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
async fn fold_all<L: Log, S: Store>(
    member: &mut Ingest<L, S>,
    batches: &[Batch],
    cancel: &CancellationToken,
) {
    if batches.is_empty() {
        return;
    }
    let mut wait = RETRY_MIN;
    loop {
        let start = std::time::Instant::now();
        match member.handle(batches).await {
            Ok(_) => return metrics::fold(start.elapsed()),
            Err(error) if error.retry() => {
                count_error(&error);
                tracing::warn!(%error, ?wait, "will be tried again");
            }
            Err(error) if batches.len() == 1 => {
                count_error(&error);
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

fn count_error(error: &Error) {
    match error {
        Error::Log(error) => metrics::log_error(error),
        Error::Store(error) => metrics::store_error(error),
        Error::FenceAboveEnd { .. } => {
            metrics::error(metrics::Edge::Log, metrics::Failure::Refused)
        }
    }
}

/// A commit that fails for now is made again with the next; one that fails for good ends the role.
fn commit_softly(outcome: Result<(), Error>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if !error.retry() => Err(error.into()),
        Err(error) => {
            count_error(&error);
            tracing::warn!(%error, "commit will be tried again");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn stock_loop<L: Log, S: Store>(
    mut member: Stock<L, S>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
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
                    count_error(&error);
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
        count_lanes(&member, now);
        // Never longer than a second: stats and shares move with time.
        let pause = member
            .lanes()
            .next_due(now)
            .unwrap_or(Duration::from_secs(1))
            .min(Duration::from_secs(1));
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
                count_error(&error);
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

fn count_lanes<L: Log, S: Store, A: generate::Answers>(member: &Generate<L, S, A>, now: Timestamp) {
    for lane in [Lane::Urgent, Lane::Live, Lane::Backfill] {
        let standing = member.lanes().standing(lane, now);
        let waiting = standing.waiting + standing.due;
        let work = member.seconds_per_user().mul_f64(waiting as f64);
        let queue = metrics::Queue {
            waiting,
            running: member.running(lane),
            oldest: standing.oldest,
            work,
        };
        metrics::queue(lane, queue);
    }
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
