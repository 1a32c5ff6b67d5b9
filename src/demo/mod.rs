//! `nearshore demo`: runs everything in one process on real purchases.
//!
//! A year of a grocer's purchases is shifted so that it ends now. Products, household profiles and the last weeks are
//! written to Kafka, the roles of `run` make lists, and the demo reads the lists as a client does. It uses the same
//! code as `run`; only data and settings are its own.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

use crate::config::Config;
use crate::metrics::Known;
use crate::run::{Roles, start};
use nearshore_core::list::prompt::Arm;
use nearshore_kafka::{Admin, Embedded, Producer};
use nearshore_redis::RedisStore;

mod align;
mod data;
mod feed;
mod progress;
mod report;
mod server;
mod watch;

use feed::Feed;
use watch::Watch;

/// Arguments of `demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Folder with products.jsonl, households.jsonl and transactions.csv (see scripts/fetch-data).
    #[arg(long, value_name = "DIR", default_value = ".cache/data")]
    data: PathBuf,
    /// GGUF file, or folder with config.json, safetensors and tokenizer.json (see scripts/fetch-model).
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// redis-server program to start on a free port.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    redis_server: PathBuf,
    /// Use this running Redis instead.
    #[arg(long, value_name = "URL", conflicts_with = "redis_server")]
    redis: Option<String>,
    /// Use this running Kafka instead of the embedded log.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Check the demo without watching it: ends by itself, prints a JSON summary as the last line, exit code 1 if a
    /// check failed.
    #[arg(long)]
    check: bool,
    /// Number of households; by default all 801, or 60 with --check.
    #[arg(long, value_name = "N")]
    households: Option<usize>,
    /// Weeks of purchases before now.
    #[arg(long, value_name = "WEEKS", default_value_t = 8)]
    weeks: u32,
    /// Seed that decides which SKUs are sold out.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Address of the metrics and the inspect page.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    listen: std::net::SocketAddr,
}

/// With --check, all lists must be made within this time.
const CHECK_LIMIT: Duration = Duration::from_secs(170);

/// The held-back baskets are sent over this time.
const LIVE: Duration = Duration::from_secs(20);

/// Runs the demo.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let folder = temporary_folder()?;
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(run_demo(&args, &folder));
    // Best effort: the folder is only for this demo.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn temporary_folder() -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("nearshore-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// Servers and clients that the demo needs until its end.
struct Servers {
    config: Arc<Config>,
    producer: Producer,
    store: RedisStore,
    // These are only kept alive. They are dropped last, because the clients above use them.
    _broker: Option<Embedded>,
    _redis: server::Server,
}

async fn run_demo(args: &DemoArgs, folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    let start_time = Instant::now();
    let households = args
        .households
        .unwrap_or(if args.check { 60 } else { usize::MAX });
    let mut feed = Feed::read(&args.data, households, args.weeks, args.seed)?;
    let mut servers = start_servers(args, folder).await?;
    crate::config::init_tracing(&servers.config.log);
    let demo_arm = align::align(&args.data, &servers.config, folder, args.weeks)?;
    out_part!("{}", align::table(&demo_arm.routes));
    let mut config = (*servers.config).clone();
    for arm in &mut config.arms {
        arm.artefact = Some(demo_arm.artefact.clone());
    }
    servers.config = Arc::new(config);
    let config = &servers.config;
    let metrics = crate::metrics::install(&Known::of(config))?;
    feed.catalogue(&servers.producer, &config.topics).await?;
    let history = feed.history(&servers.producer, &config.topics).await?;
    let running = start(
        config.clone(),
        Roles {
            ingest: true,
            generate: true,
        },
        metrics,
    )
    .await?;
    let mut watch = Watch::follow(config, feed.users()).await?;
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let stopped = tokio::select! {
        () = &mut stop => true,
        fed = feed_live(args, start_time, &servers, &mut feed, &mut watch) => { fed?; false }
    };
    let mut summary = report::check(&servers.store, config, &feed, &watch).await?;
    summary.events = history + feed.live_sent();
    summary.recall_at_10 = align::recalls(&demo_arm.routes);
    summary.seconds = start_time.elapsed().as_secs_f64();
    if !args.check && !stopped {
        report::show(&servers.store, config, &feed, &watch).await?;
        report::next_steps(config, folder)?;
        feed.trickle(&servers.producer, &config.topics, &mut stop)
            .await?;
    }
    running.until(std::future::ready(())).await?;
    if args.check {
        out!("{}", serde_json::to_string(&summary)?);
    }
    let passed = summary.problems().is_empty() || stopped;
    if !passed {
        note!(
            "nearshore: the check failed: {}",
            summary.problems().join("; ")
        );
    }
    Ok(if passed || !args.check {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts Redis and Kafka unless the arguments name running ones, and creates the topics.
async fn start_servers(args: &DemoArgs, folder: &std::path::Path) -> anyhow::Result<Servers> {
    let redis = match &args.redis {
        Some(url) => server::Server::running(url),
        None => server::Server::start(&args.redis_server, folder).await?,
    };
    let mut config = configure(args, folder, &redis.url)?;
    let topics = feed::topics(&config.topics);
    let broker = match &args.kafka {
        Some(brokers) => {
            config.kafka.brokers = brokers.clone();
            Admin::new(&config.kafka)?
                .ensure(&topics)
                .await
                .context("topics")?;
            None
        }
        None => {
            let partitions: Vec<(&str, i32)> = topics
                .iter()
                .map(|t| (t.name.as_str(), t.partitions))
                .collect();
            let embedded = Embedded::start(&partitions)?;
            config.kafka.brokers = embedded.brokers().into();
            Some(embedded)
        }
    };
    let producer = Producer::new(&config.kafka)?;
    let store = RedisStore::new(config.redis.clone())?;
    Ok(Servers {
        config: Arc::new(config),
        producer,
        store,
        _broker: broker,
        _redis: redis,
    })
}

/// Waits for the first lists, sends the held-back baskets, and waits for the lists that have seen them. The summary
/// reports what is missing after the time limit.
async fn feed_live(
    args: &DemoArgs,
    start_time: Instant,
    servers: &Servers,
    feed: &mut Feed,
    watch: &mut Watch,
) -> anyhow::Result<()> {
    let time_left = || {
        if args.check {
            CHECK_LIMIT.saturating_sub(start_time.elapsed())
        } else {
            Duration::from_secs(3600)
        }
    };
    if !watch.all_listed(time_left()).await? {
        return Ok(());
    }
    feed.live(&servers.producer, &servers.config.topics, LIVE, watch)
        .await?;
    watch.caught_up(time_left()).await?;
    Ok(())
}

/// Resolves on Ctrl-C or SIGTERM.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    })
}

/// The prompt template, written to the demo's folder.
const TEMPLATE: &str = include_str!("../../config/templates/basket.j2");

/// The demo's configuration with the rules of a grocer, written to the demo's folder.
const RULES: &str = include_str!("demo.toml");

fn configure(args: &DemoArgs, folder: &std::path::Path, redis: &str) -> anyhow::Result<Config> {
    std::fs::write(folder.join("basket.j2"), TEMPLATE)?;
    std::fs::write(folder.join("demo.toml"), RULES)?;
    let mut config = Config::load(Some(&folder.join("demo.toml")), std::iter::empty())
        .map_err(|problems| anyhow::anyhow!("demo.toml: {problems:?}"))?;
    config.redis.url = redis.into();
    config.http.listen = args.listen;
    config.kafka.client_id = "nearshore-demo".into();
    let model = args
        .model
        .canonicalize()
        .with_context(|| format!("cannot find --model {}", args.model.display()))?;
    config.arms = vec![Arm {
        namespaces: Vec::new(),
        id: "aligned".into(),
        epoch: 1,
        share: 1,
        template: "basket.j2".into(),
        model: model.to_string_lossy().into_owned(),
        sha256: None,
        adapter: None,
        endpoint: None,
        decoding: None,
        matcher: None,
        mode: "constrained".into(),
        prompt_tokens: 320,
        names: 20,
        weights: BTreeMap::new(),
        artefact: None,
        calibration: None,
        theta: None,
    }];
    Ok(config)
}
