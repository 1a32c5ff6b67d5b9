//! The main job on real purchases, with everything in one process: `nearshore demo`.
//!
//! A year of a grocer's purchases is shifted so that it ends now; its products, household profiles and
//! the last weeks go into Kafka, the roles of production turn them into lists, and the demo reads those
//! as a client would. It uses the same code as `run`; only the data and the settings are its own.

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
    /// Folder of products.jsonl, households.jsonl and transactions.csv (scripts/fetch-data).
    #[arg(long, value_name = "DIR", default_value = ".cache/data")]
    data: PathBuf,
    /// GGUF file or folder of safetensors (scripts/fetch-model).
    #[arg(long, value_name = "PATH")]
    model: PathBuf,
    /// redis-server to start on a free port.
    #[arg(long, value_name = "PATH", default_value = "redis-server")]
    redis_server: PathBuf,
    /// A running Redis instead.
    #[arg(long, value_name = "URL", conflicts_with = "redis_server")]
    redis: Option<String>,
    /// A running Kafka instead of the embedded log.
    #[arg(long, value_name = "HOST:PORT")]
    kafka: Option<String>,
    /// Without a person: bounded, ends by itself, one JSON summary as the last line, exit 0 only if all is well.
    #[arg(long)]
    check: bool,
    /// How many households; all 801 by default, 60 with --check.
    #[arg(long, value_name = "N")]
    households: Option<usize>,
    /// How many weeks of purchases.
    #[arg(long, value_name = "WEEKS", default_value_t = 8)]
    weeks: u32,
    /// Seed of what is sold out.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Address of metrics and inspect page.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9464")]
    listen: std::net::SocketAddr,
}

/// The lists of the first purchases are ready by then, or the check has failed.
const CHECK_LIMIT: Duration = Duration::from_secs(170);

/// Purchases are fed live for this long; in a check as fast as a till would.
const LIVE: Duration = Duration::from_secs(20);

/// Runs the demo.
pub fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let folder = scratch()?;
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(play(&args, &folder));
    // Best effort: the folder is ours and of no use to anybody.
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

fn scratch() -> anyhow::Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("nearshore-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("folder {}", folder.display()))?;
    Ok(folder)
}

/// What the demo stands on until its end.
struct Stage {
    config: Arc<Config>,
    producer: Producer,
    store: RedisStore,
    // Below: kept alive only. Dropped last, for the others talk to them.
    _broker: Option<Embedded>,
    _redis: server::Server,
}

async fn play(args: &DemoArgs, folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let households = args
        .households
        .unwrap_or(if args.check { 60 } else { usize::MAX });
    let mut feed = Feed::read(&args.data, households, (args.weeks, args.seed))?;
    let stage = set(args, folder).await?;
    let config = &stage.config;
    crate::config::init_tracing(&config.log);
    let metrics = crate::metrics::install(&Known::of(config))?;
    feed.catalogue(&stage.producer, &config.topics).await?;
    let history = feed.history(&stage.producer, &config.topics).await?;
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
    // An early end of the roles is an end of the demo, with their reason.
    let stopped = tokio::select! {
        () = &mut stop => true,
        acted = act(args, began, (&stage, &mut feed, &mut watch)) => { acted?; false }
    };
    let mut summary = report::check(&stage.store, (config, &feed, &watch)).await?;
    summary.events = history + feed.live_sent();
    summary.seconds = began.elapsed().as_secs_f64();
    if !args.check && !stopped {
        report::show(&stage.store, (config, &feed, &watch)).await?;
        report::how_to_go_on(config, folder)?;
        feed.trickle(&stage.producer, &config.topics, &mut stop)
            .await?;
    }
    running.until(std::future::ready(())).await?;
    if args.check {
        println!("{}", serde_json::to_string(&summary)?);
    }
    let well = summary.well() || stopped;
    if !well {
        eprintln!("nearshore: the check failed: {}", summary.complaint());
    }
    Ok(if well || !args.check {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts what was not given, and makes the topics.
async fn set(args: &DemoArgs, folder: &std::path::Path) -> anyhow::Result<Stage> {
    let redis = match &args.redis {
        Some(url) => server::Server::elsewhere(url),
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
            let spread: Vec<(&str, i32)> = topics
                .iter()
                .map(|t| (t.name.as_str(), t.partitions))
                .collect();
            let embedded = Embedded::start(&spread)?;
            config.kafka.brokers = embedded.brokers().into();
            Some(embedded)
        }
    };
    let producer = Producer::new(&config.kafka)?;
    let store = RedisStore::new(config.redis.clone())?;
    Ok(Stage {
        config: Arc::new(config),
        producer,
        store,
        _broker: broker,
        _redis: redis,
    })
}

/// Waits for the first lists, lets people shop, and waits for the lists that have seen it. What is not there in
/// time is left to the summary to complain of.
async fn act(
    args: &DemoArgs,
    began: Instant,
    (stage, feed, watch): (&Stage, &mut Feed, &mut Watch),
) -> anyhow::Result<()> {
    let patience = || {
        if args.check {
            CHECK_LIMIT.saturating_sub(began.elapsed())
        } else {
            Duration::from_secs(3600)
        }
    };
    if !watch.all_listed(patience()).await? {
        return Ok(());
    }
    feed.live(&stage.producer, (&stage.config.topics, LIVE), watch)
        .await?;
    watch.caught_up(patience()).await?;
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

/// The template is written beside the demo's other files, as an owner would keep it.
const TEMPLATE: &str = include_str!("../../config/templates/basket.j2");

/// Rules of a grocer, as an owner would write them.
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
        .with_context(|| format!("model {}", args.model.display()))?;
    config.arms = vec![Arm {
        namespaces: Vec::new(),
        id: "smollm2-basket".into(),
        epoch: 1,
        share: 1,
        template: "basket.j2".into(),
        model: model.to_string_lossy().into_owned(),
        mode: "constrained".into(),
        prompt_tokens: 320,
        names: 20,
        model_weight: 1.0,
        demand_weight: 1.0,
        calibration: None,
        theta: None,
    }];
    Ok(config)
}
