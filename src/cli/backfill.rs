//! `backfill`: fills a namespace from the log, with progress; `--dry-run` only reckons.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{Common, block_on, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::backfill::{Estimate, Given, Order, Outcome, Progress, backfill, estimate};
use nearshore_core::queue::replay::{Moment, Stage};
use nearshore_redis::RedisStore;

/// How often a line is written where nobody draws a bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `backfill`.
#[derive(Debug, Args)]
pub struct BackfillArgs {
    /// Namespace to fill: 1 to 32 of a-z, 0-9, -.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: String,
    /// Where to start in the events: earliest, a time (2026-01-31T00:00:00Z), last=7d, or offsets
    /// (user-events:0=1200,user-events:1=1180). Left out: go on with the plan that was made. Profiles are read whole.
    #[arg(long, value_name = "POINT")]
    from: Option<String>,
    /// Where to end: latest (as of now, the default), or a point as above.
    #[arg(long, value_name = "POINT")]
    to: Option<String>,
    /// Drop a plan that is under way, and make a new one.
    #[arg(long)]
    restart: bool,
    /// Only say what it would take.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: lists per second of all generate processes, for model-hours and the end.
    #[arg(long, value_name = "N", requires = "dry_run")]
    lists_per_second: Option<f64>,
    /// With --dry-run: records per second of all backfill processes.
    #[arg(long, value_name = "N", requires = "dry_run")]
    records_per_second: Option<f64>,
    #[command(flatten)]
    common: Common,
}

pub fn run(args: BackfillArgs) -> anyhow::Result<ExitCode> {
    for (option, point) in [("--from", &args.from), ("--to", &args.to)] {
        if let Some(Err(wrong)) = point
            .as_ref()
            .map(|it| it.parse::<nearshore_core::queue::replay::Point>())
        {
            eprintln!("{option} {wrong}");
            return Ok(ExitCode::from(2));
        }
    }
    let common = &args.common;
    with_config(common, |mut config| {
        if !super::name_namespace(&mut config, &args.namespace) {
            return Ok(ExitCode::from(2));
        }
        let order = Order {
            from: args.from.clone(),
            to: args.to.clone(),
            restart: args.restart,
        };
        let given = Given {
            lists_per_second: args.lists_per_second,
            records_per_second: args.records_per_second,
        };
        match args.dry_run {
            true => block_on(dry_run(&config, (&order, given), common.json)),
            false => fill(config, &order, common.json),
        }
    })
}

async fn dry_run(
    config: &Config,
    (order, given): (&Order, Given),
    json: bool,
) -> anyhow::Result<ExitCode> {
    let store =
        RedisStore::new(config.redis.clone()).context("redis.url; see `nearshore check`")?;
    let found = estimate(config, &store, (order, given)).await?;
    match json {
        true => println!("{}", serde_json::to_string(&found)?),
        false => print!("{}", text(&found)),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(found: &Estimate) -> String {
    let length = |seconds: f64| {
        let seconds = Duration::from_secs(seconds.max(0.0).round() as u64);
        humantime::format_duration(seconds).to_string()
    };
    let mut lines = vec![
        (
            "records",
            HumanCount(found.records.value).to_string(),
            &found.records.how,
        ),
        (
            "users",
            HumanCount(found.users.value).to_string(),
            &found.users.how,
        ),
        (
            "folding",
            length(found.fold_seconds.value),
            &found.fold_seconds.how,
        ),
        (
            "redis",
            HumanBytes(found.redis_bytes.value).to_string(),
            &found.redis_bytes.how,
        ),
    ];
    let unknown =
        "no generate process has told its cost yet: start one, or give --lists-per-second"
            .to_owned();
    match &found.model_hours {
        Some(hours) => lines.push(("model-hours", format!("{:.2}", hours.value), &hours.how)),
        None => lines.push(("model-hours", "unknown".into(), &unknown)),
    }
    if let Some(at) = &found.finished_at {
        lines.push(("finished", at.value.clone(), &at.how));
    }
    lines
        .into_iter()
        .map(|(what, value, how)| format!("{what:<12} {value:<22} {how}\n"))
        .collect()
}

fn fill(config: Config, order: &Order, json: bool) -> anyhow::Result<ExitCode> {
    init_tracing(&config.log);
    let config = Arc::new(config);
    let ns = config.namespace.clone();
    let started = Instant::now();
    let outcome = block_on(async {
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut shown = Shown::new();
        let work = backfill(
            config,
            order,
            (cancel, |progress: &Progress| shown.show(progress)),
        );
        let stopped = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stop.cancel();
            // The work ends by itself now.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = work => outcome,
            () = stopped => unreachable!("it waits for ever"),
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
    match json {
        true => println!("{}", as_json(&ns, &outcome, seconds)),
        false => println!("{}", as_text(&ns, &outcome)),
    }
    Ok(if outcome.finished {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn as_json(ns: &str, outcome: &Outcome, seconds: f64) -> serde_json::Value {
    let (plan, totals) = (&outcome.plan, &outcome.plan.totals);
    json!({
        "namespace": ns,
        "finished": outcome.finished,
        "was_done": outcome.was_done,
        "stage": plan.stage,
        "from": plan.from,
        "to": plan.to,
        "created_at": plan.created_at,
        "records": totals.records(),
        "folded": totals.folded,
        "skipped": totals.skipped,
        "dead": totals.dead,
        "lost": totals.lost,
        "users": totals.users,
        "requested": totals.requested,
        "records_per_second": totals.rate(),
        "seconds": seconds,
    })
}

fn as_text(ns: &str, outcome: &Outcome) -> String {
    let (plan, totals) = (&outcome.plan, &outcome.plan.totals);
    let lost = match totals.lost {
        0 => String::new(),
        lost => format!(", {lost} DELETED BY THE BROKER before they were read"),
    };
    let done = format!(
        "{} records folded, {} skipped (folded before), {} in dlq{lost}; {} users, {} lists requested",
        totals.folded, totals.skipped, totals.dead, totals.users, totals.requested
    );
    let made = Moment(plan.created_at);
    if !outcome.finished {
        return format!(
            "{ns}: broken off at stage {}: {done}\nstart it again to go on",
            plan.stage
        );
    }
    if outcome.was_done {
        return format!(
            "{ns}: done before, by the plan of {made}: {done}\nto fold again, give --from"
        );
    }
    if outcome.left_to_another {
        return format!("{ns}: folded; another process asks for the lists: {done}");
    }
    format!("{ns}: {done}\nnearshore run --namespace {ns} follows live from there")
}

/// Progress: a bar on a terminal, lines otherwise.
struct Shown {
    bar: Option<ProgressBar>,
    last: Option<(Stage, Instant)>,
}

impl Shown {
    fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{prefix:>9} {wide_bar} {pos}/{len} {msg}");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Self { bar, last: None }
    }

    fn show(&mut self, progress: &Progress) {
        let said = said(progress);
        if let Some(bar) = &self.bar {
            bar.set_prefix(progress.stage.to_string());
            bar.set_length(progress.all.max(progress.done));
            bar.set_position(progress.done);
            bar.set_message(said);
            return;
        }
        let due = self
            .last
            .is_none_or(|(stage, at)| stage != progress.stage || at.elapsed() >= LINE_EVERY);
        if due {
            self.last = Some((progress.stage, Instant::now()));
            eprintln!(
                "{}: {} of {} {said}",
                progress.stage,
                progress.done,
                progress.all.max(progress.done)
            );
        }
    }
}

fn said(progress: &Progress) -> String {
    match progress.stage {
        Stage::Sweep | Stage::Done => {
            format!("users seen, {} lists requested", progress.lists)
        }
        Stage::Placing | Stage::Profiles | Stage::Events => {
            let left = progress.left.map_or(String::new(), |left| {
                format!(
                    ", {} left",
                    humantime::format_duration(Duration::from_secs(left.as_secs()))
                )
            });
            let held = if progress.held {
                ", waiting: live is behind its objective"
            } else {
                ""
            };
            format!("records, {:.0}/s{left}{held}", progress.rate)
        }
    }
}
