//! Runs one process: its roles, HTTP server and watchers as tasks, and an orderly shutdown.
//!
//! Invariant: no task is detached; the end of one task ends the process. A cancelled process commits what is done and
//! leaves its groups within [`DRAIN`]. It connects parts and decides nothing.

mod artefact;
pub(crate) mod digest;
mod fields;
mod installation;
mod load;
mod renew;
mod retention;
mod watch;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use artefact::{artefact, artefact_of, point};
use fields::watch_fields;
use installation::watch_strangers;
pub(crate) use installation::{ADVICE, Asker, installation, strangers};
use load::load_serving_arms;
pub(crate) use load::{client, head_fits, load_arms, matcher_of, text_parts, weights};
use renew::watch_artefacts;
use retention::watch_retention;
use watch::{join, watch_coverage, watch_models, watch_redis};

use crate::config::Config;
use crate::http::{App, Gate, Health, Inspected, Question, Ready, serve, serve_probes};
use crate::map::{MappedTail, open_tail};
use crate::members::clock::wall_clock;
use crate::members::generate::{self, Generate};
use crate::members::ingest::{self, Ingest, Now};
use crate::members::loops::{dlq_gate, generate_loop, ingest_loop, stock_loop, wait_ready};
use crate::members::snapshot::SnapshotLoader;
use nearshore_core::map::ReadAs;
use nearshore_core::user::event::UserId;

use crate::members::stock::{self, Stock};
use crate::metrics;
use crate::ops::namespace::{Inspector, why_not_in};
use nearshore_core::ports::store::Remedy;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_kafka::{Admin, KafkaSettings};
use nearshore_redis::RedisStore;

/// The longest shutdown after SIGTERM; the grace period of Kubernetes is longer.
pub const DRAIN: Duration = Duration::from_secs(8);

/// The roles of a process.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    /// Events to state and requests.
    pub ingest: bool,
    /// Requests to lists.
    pub generate: bool,
}

/// A running process.
pub struct Running {
    /// Its tasks; each ends after cancellation, or earlier with an error.
    pub tasks: JoinSet<anyhow::Result<()>>,
    /// Ends the tasks.
    pub cancel: CancellationToken,
    /// What `/readyz` says.
    pub ready: Ready,
    /// The serving snapshot of this process.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
}

/// What the tasks share.
#[derive(Clone)]
struct Parts {
    config: Arc<Config>,
    store: RedisStore,
    snapshot: Arc<ArcSwap<Snapshot>>,
    cancel: CancellationToken,
    health: Health,
    ready: Ready,
    /// True once the catalogue is read.
    catalogue: Receiver<bool>,
}

impl Running {
    /// Waits until a task ends or `stop` resolves, then drains. Ok only if `stop` resolved and all tasks ended in time.
    pub async fn until(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let ended_early = tokio::select! {
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
        if let Some(Some(ended)) = ended_early {
            ended.context("a task panicked")??;
            anyhow::bail!("a task ended before the process was asked to stop");
        }
        drained.with_context(|| {
            format!(
                "shutdown took longer than {DRAIN:?}; records that were not committed are processed again by the next owner"
            )
        })?
    }
}

/// Starts the roles. Redis and Kafka may start later than this process; readiness says what it waits for.
pub async fn start(
    config: Arc<Config>,
    roles: Roles,
    metrics: Option<PrometheusHandle>,
) -> anyhow::Result<Running> {
    let store = RedisStore::new(config.redis.clone()).context("redis.url")?;
    let (loader, catalogue) = SnapshotLoader::new(store.clone(), loader_settings(&config, roles));
    let parts = Parts {
        snapshot: loader.snapshot(),
        config,
        store,
        cancel: CancellationToken::new(),
        health: Health::default(),
        ready: Ready::default(),
        catalogue,
    };
    let mut tasks = JoinSet::new();
    // HTTP comes first, so that a process that waits for Kafka or its model says so.
    spawn_http(&mut tasks, &parts, metrics).await?;
    spawn_snapshot_loader(&mut tasks, &parts, loader);
    tasks.spawn(until_cancelled(
        parts.cancel.clone(),
        watch_redis(parts.clone()),
    ));
    tasks.spawn(until_cancelled(
        parts.cancel.clone(),
        watch_coverage(parts.clone()),
    ));
    tasks.spawn(until_cancelled(
        parts.cancel.clone(),
        watch_fields(parts.clone()),
    ));
    tasks.spawn(until_cancelled(
        parts.cancel.clone(),
        watch_retention(parts.clone()),
    ));
    if roles.ingest {
        let (ingest, stock) = (parts.clone(), parts.clone());
        tasks.spawn(async { ingest_task(ingest).await.context("ingest") });
        tasks.spawn(async { stock_task(stock).await.context("stock") });
    }
    if roles.generate {
        let generate = parts.clone();
        tasks.spawn(async { generate_task(generate).await.context("generate") });
    }
    tasks.spawn(until_cancelled(
        parts.cancel.clone(),
        watch_strangers(parts.clone()),
    ));
    let Parts {
        cancel,
        ready,
        snapshot,
        ..
    } = parts;
    Ok(Running {
        tasks,
        cancel,
        ready,
        snapshot,
    })
}

/// Waits until Redis answers that its layout is this build's. Before that nothing is written.
async fn layout_checked(store: RedisStore) -> anyhow::Result<()> {
    while let Err(error) = store.check_layout().await {
        if error.remedy() != Remedy::Retry {
            return Err(error).context("redis");
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    Ok(())
}

/// Drops the work when the process is cancelled. This is for work that only reads, or that may be interrupted anywhere:
/// a call that waits for an unavailable Redis would take the time that the roles need to drain.
async fn until_cancelled(
    cancel: CancellationToken,
    work: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    cancel.run_until_cancelled(work).await.unwrap_or(Ok(()))
}

async fn spawn_http(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    prometheus: Option<PrometheusHandle>,
) -> anyhow::Result<()> {
    let Parts {
        config,
        store,
        snapshot,
        cancel,
        health,
        ready,
        ..
    } = parts.clone();
    if let Some(handle) = prometheus.clone() {
        let stop = cancel.clone();
        tasks.spawn(async move {
            metrics::run_upkeep(handle, stop).await;
            Ok(())
        });
    }
    let mut app = App {
        health,
        ready,
        metrics: prometheus,
        ..App::default()
    };
    let http = &config.http;
    if let Some(address) = http.health_listen {
        let listener = tokio::net::TcpListener::bind(address);
        let what = || format!("http.health_listen = {address}");
        let (listener, app) = (listener.await.with_context(what)?, app.clone());
        let stop = cancel.clone();
        tasks.spawn(async move {
            serve_probes(listener, app, stop).await;
            Ok(())
        });
    }
    if http.inspect {
        let config = config.clone();
        app = app.token_file(http.inspect_token_file.clone());
        app = app.inspect_by(move |question| {
            let (config, store, snapshot) = (config.clone(), store.clone(), snapshot.load_full());
            async move {
                let found = inspected(&config, store, snapshot, question).await;
                found.map_err(|error| format!("{error:#}"))
            }
        });
    }
    let listener = tokio::net::TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("http.listen = {}", config.http.listen))?;
    tasks.spawn(async move { serve(listener, app, cancel).await.context("http") });
    Ok(())
}

/// What the page shows of a user, and of a product that is not on their list.
async fn inspected(
    config: &Config,
    store: RedisStore,
    snapshot: Arc<Snapshot>,
    question: Question,
) -> anyhow::Result<Option<Inspected>> {
    let user = UserId(question.user.as_str().into());
    let inspector = Inspector::of(config, store.clone(), snapshot.clone()).await?;
    let Some(view) = inspector.inspect(&user).await? else {
        return Ok(None);
    };
    let why_not = match question.why_not {
        None => None,
        Some(product) => {
            let why = why_not_in(config, &store, snapshot, (&user, &product)).await;
            // A product that there is not is an answer, too.
            Some(why.map_or_else(|error| format!("{error:#}"), |answer| answer.text()))
        }
    };
    Ok(Some(Inspected { view, why_not }))
}

fn spawn_snapshot_loader(
    tasks: &mut JoinSet<anyhow::Result<()>>,
    parts: &Parts,
    loader: SnapshotLoader<RedisStore>,
) {
    let Parts {
        config,
        cancel,
        ready,
        mut catalogue,
        ..
    } = parts.clone();
    let gate = ready.gate("catalogue");
    let unread = gate.clone();
    let (stop, wait) = (cancel.clone(), cancel.clone());
    tasks.spawn(until_cancelled(stop.clone(), async move {
        let tail = catalogue_tail(&config, &unread)
            .await
            .with_context(|| format!("topic {}", config.topics.catalog))?;
        loader.run(tail, stop).await.context("catalogue")
    }));
    tasks.spawn(async move {
        if wait_ready(&mut catalogue, &wait).await {
            gate.open("read to the end seen at start");
            wait.cancelled().await;
        }
        Ok(())
    });
}

/// Opens the catalogue; retries while the broker is unavailable, which must not end a process that is starting.
async fn catalogue_tail(
    config: &Config,
    gate: &Gate,
) -> Result<MappedTail, nearshore_core::ports::log::Error> {
    // What keeps Kafka from answering is known, and told by the gate, after one try.
    let kafka = KafkaSettings {
        ack_timeout: config.kafka.ack_timeout.min(CATALOGUE_TRY),
        ..config.kafka.clone()
    };
    loop {
        let names = config.topics.read_as(ReadAs::Catalog);
        let tail = open_tail(&kafka, &names, &config.topics, config.limits()).await;
        match tail {
            Err(error) if error.remedy() == nearshore_core::ports::log::Remedy::Retry => {
                gate.shut(error.to_string());
                tracing::warn!(target: "kafka", %error, "opening the catalogue topic failed; next try in 1 s");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            outcome => return outcome,
        }
    }
}

pub(crate) fn loader_settings(
    config: &Config,
    roles: Roles,
) -> crate::members::snapshot::LoaderSettings {
    crate::members::snapshot::LoaderSettings {
        ns: config.namespace.clone(),
        rules: config.rules.clone(),
        needs: config.needs.clone(),
        segments: config.segments.clone(),
        demand: config.demand.clone(),
        merchant: config.merchant.clone(),
        limits: config.limits(),
        naming: config.naming.clone(),
        snapshot_every: Duration::from_secs(1),
        blocks_every: Duration::from_secs(2),
        demand_every: config.demand.every,
        fallback_every: roles.generate.then_some(config.fallback.every),
        fallback_names: config.fallback.names,
        selection: config.selection.clone(),
    }
}

/// The longest that a try to open the catalogue waits for an answer.
const CATALOGUE_TRY: Duration = Duration::from_secs(5);

/// The longest that the broker may take to describe its topics.
const DESCRIBE_MAX: Duration = Duration::from_secs(3);

/// Whether the broker sets the record times of all topics of users; false if it does not say.
pub(crate) async fn stamped_by_broker(config: &Config) -> bool {
    let topics = config.topics.of_users();
    let topics: Vec<&str> = topics.iter().map(|topic| &**topic).collect();
    let described = async { Admin::new(&config.kafka)?.describe(&topics).await };
    // The embedded log never answers this question.
    match tokio::time::timeout(DESCRIBE_MAX, described).await {
        Err(_) => false,
        Ok(Ok(topics)) => topics
            .iter()
            .all(|topic| topic.log_append_time() == Some(true)),
        Ok(Err(error)) => {
            tracing::warn!(%error, "describing the user topics failed; record times are checked against the clock of this process");
            false
        }
    }
}

/// Runs a role beside the watchers that it started; the first error of any of them is the role's.
async fn beside(
    mut watchers: JoinSet<anyhow::Result<()>>,
    role: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let failed = async {
        while let Some(ended) = watchers.join_next().await {
            match ended.context("a watcher panicked") {
                Ok(Ok(())) => {}
                Ok(Err(error)) | Err(error) => return error,
            }
        }
        std::future::pending().await
    };
    tokio::select! {
        ended = role => ended,
        error = failed => Err(error),
    }
}

/// What a member of a group needs before it joins: a Redis of this build's layout. `None` if the process is cancelled.
async fn redis_first(parts: &Parts) -> anyhow::Result<Option<KafkaSettings>> {
    let known = async {
        layout_checked(parts.store.clone()).await?;
        loop {
            match installation(&parts.store).await {
                Ok(id) => return anyhow::Ok(id),
                Err(error) => {
                    tracing::warn!(target: "redis", %error, "reading the installation's id failed; next try in 1 s")
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let Some(id) = parts.cancel.run_until_cancelled(known).await else {
        return Ok(None);
    };
    Ok(Some(KafkaSettings {
        installation: Some(id?),
        ..parts.config.kafka.clone()
    }))
}

async fn ingest_task(parts: Parts) -> anyhow::Result<()> {
    let gates = (
        dlq_gate(&parts.ready, "dlq-ingest"),
        parts.ready.gate("partitions"),
    );
    let joined = parts.ready.gate("ingest");
    joined.shut("waits for Redis");
    let Some(kafka) = redis_first(&parts).await? else {
        return Ok(());
    };
    let now = if stamped_by_broker(&parts.config).await {
        Now::Unchecked
    } else {
        Now::Clock(wall_clock)
    };
    let Parts {
        config,
        store,
        snapshot,
        cancel,
        catalogue,
        ..
    } = parts.clone();
    let topics = config.topics.clone();
    let group = ingest::group(&kafka, &config.namespace);
    let read = topics.of_users();
    let mut watchers = JoinSet::new();
    let log = join(
        &mut watchers,
        &parts,
        &kafka,
        (joined, "ingest"),
        group.clone(),
        read,
    )?;
    let settings = ingest::IngestSettings {
        ns: config.namespace.clone(),
        group,
        topics,
        limits: config.limits(),
        policy: config.trigger.clone(),
        ignore: config.events.ignored(),
        window: config.state.window,
        units_max: config.demand.units_max,
        clock: wall_clock,
        cache_users: NonZeroUsize::new(config.state.cache_users).unwrap_or(NonZeroUsize::MIN),
        triggers: true,
        hits_sample: config.metrics.hits_sample,
        now,
        complete_since: BTreeMap::new(),
    };
    let member = Ingest::new(log, store, snapshot, settings);
    beside(watchers, ingest_loop(member, catalogue, gates, cancel)).await
}

async fn stock_task(parts: Parts) -> anyhow::Result<()> {
    let gates = (
        dlq_gate(&parts.ready, "dlq-stock"),
        parts.ready.gate("sold-out-sets"),
    );
    let joined = parts.ready.gate("stock");
    joined.shut("waits for Redis");
    let Some(kafka) = redis_first(&parts).await? else {
        return Ok(());
    };
    let topics = parts.config.topics.clone();
    let group = stock::group(&kafka);
    let mut watchers = JoinSet::new();
    let read = topics.read_as(ReadAs::Catalog);
    let log = join(
        &mut watchers,
        &parts,
        &kafka,
        (joined, "stock"),
        group.clone(),
        read,
    )?;
    let member = Stock::new(
        log,
        parts.store.clone(),
        group,
        topics,
        parts.config.limits(),
    )
    .named(parts.config.naming.clone());
    beside(watchers, stock_loop(member, gates, parts.cancel)).await
}

async fn generate_task(parts: Parts) -> anyhow::Result<()> {
    let Parts {
        config,
        store,
        snapshot,
        cancel,
        mut catalogue,
        ready,
        health: _,
    } = parts.clone();
    let gate = ready.gate("model");
    gate.shut("loading");
    // Loading takes seconds to minutes; only readiness waits for it.
    let loading = config.clone();
    let load = tokio::task::spawn_blocking(move || load_serving_arms(&loading));
    let arms = tokio::select! {
        () = cancel.cancelled() => return Ok(()),
        arms = load => arms.context("loading panicked")??,
    };
    let mut watchers = JoinSet::new();
    watch_models(&mut watchers, &parts, &arms);
    watch_artefacts(&mut watchers, (&config, &arms), &cancel);
    if !wait_ready(&mut catalogue, &cancel).await {
        return Ok(());
    }
    let joined = ready.gate("generate");
    joined.shut("waits for Redis");
    let Some(kafka) = redis_first(&parts).await? else {
        return Ok(());
    };
    // Replicas of generate come and go with the work. A static member that went keeps its partitions idle for a while.
    let kafka = KafkaSettings {
        instance_id: None,
        ..kafka
    };
    let group = generate::group(&kafka);
    let read = config.topics.lanes().to_vec();
    let log = join(
        &mut watchers,
        &parts,
        &kafka,
        (joined, "generate"),
        group.clone(),
        read,
    )?;
    let settings = generate::GenerateSettings {
        group,
        topics: config.topics.clone(),
        lanes: config.lanes.clone(),
        arm_seed: config.arm_seed.clone(),
        selection: config.selection.clone(),
        needs: config.needs.clone(),
        texts: text_parts(&config)?,
        audits_kept: config.audit.keep,
        candidates: config.audit.candidates,
        clock: wall_clock,
    };
    beside(watchers, async {
        let mut member = Generate::new(log, store, snapshot, arms, settings);
        if cancel.run_until_cancelled(member.warm()).await.is_some() {
            gate.open("it has the names");
        }
        let gates = (
            dlq_gate(&ready, "dlq-generate"),
            ready.gate("values-generate"),
        );
        generate_loop(member, gates, cancel).await
    })
    .await
}
