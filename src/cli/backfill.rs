//! `backfill`: fills a namespace from the log and shows progress; `--dry-run` only estimates.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressStyle};
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Common, block_on, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::backfill::{
    BackfillOrder, BackfillOutcome, Estimate, EstimateInput, Progress, backfill, estimate,
};
use nearshore_core::queue::replay::{Moment, Stage};
use nearshore_core::user::record::Timestamp;
use nearshore_redis::RedisStore;

/// How often a line is written where there is no progress bar.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Arguments of `backfill`.
#[derive(Debug, Args)]
pub(super) struct BackfillArgs {
    /// Namespace to fill: 1 to 32 of a-z, 0-9, -.
    #[arg(long, value_name = "NAMESPACE")]
    namespace: String,
    /// Where to start in the events: earliest, a time (2026-01-31T00:00:00Z), last=7d, or offsets
    /// (user-events:0=1200,user-events:1=1180). Without it the stored plan is resumed. Profiles are always read whole.
    #[arg(long, value_name = "POINT")]
    from: Option<String>,
    /// Where to end: latest (as of now, the default), or a point as for --from.
    #[arg(long, value_name = "POINT")]
    to: Option<String>,
    /// Drop a plan under way and make a new one.
    #[arg(long)]
    restart: bool,
    /// Only estimate what the backfill would need; nothing is written.
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: lists per second of all generate processes together, instead of the measured rate.
    #[arg(long, value_name = "N", requires = "dry_run")]
    lists_per_second: Option<f64>,
    /// With --dry-run: records per second of all backfill processes together, instead of the measured rate.
    #[arg(long, value_name = "N", requires = "dry_run")]
    records_per_second: Option<f64>,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(args: BackfillArgs) -> anyhow::Result<ExitCode> {
    for (option, point) in [("--from", &args.from), ("--to", &args.to)] {
        if let Some(Err(error)) = point
            .as_ref()
            .map(|it| it.parse::<nearshore_core::queue::replay::Point>())
        {
            note!("{option} {error}");
            return Ok(ExitCode::from(2));
        }
    }
    let common = &args.common;
    with_config(common, |mut config| {
        if !super::use_namespace(&mut config, &args.namespace) {
            return Ok(ExitCode::from(2));
        }
        let order = BackfillOrder {
            from: args.from.clone(),
            to: args.to.clone(),
            restart: args.restart,
        };
        let input = EstimateInput {
            lists_per_second: args.lists_per_second,
            records_per_second: args.records_per_second,
        };
        match args.dry_run {
            true => block_on(dry_run(&config, &order, input, common.json)),
            false => fill(config, &order, common.json),
        }
    })
}

async fn dry_run(
    config: &Config,
    order: &BackfillOrder,
    input: EstimateInput,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let store =
        RedisStore::new(config.redis.clone()).context("redis.url; see `nearshore check`")?;
    let estimate = estimate(config, &store, order, input).await?;
    match json {
        true => out!("{}", serde_json::to_string(&estimate)?),
        false => out_part!("{}", text(&estimate)),
    }
    Ok(ExitCode::SUCCESS)
}

fn text(estimate: &Estimate) -> String {
    let length = |seconds: f64| {
        let seconds = Duration::from_secs(seconds.max(0.0).round() as u64);
        humantime::format_duration(seconds).to_string()
    };
    let mut lines = vec![
        (
            "records",
            HumanCount(estimate.records.value).to_string(),
            &estimate.records.how,
        ),
        (
            "users",
            HumanCount(estimate.users.value).to_string(),
            &estimate.users.how,
        ),
        (
            "folding",
            length(estimate.fold_seconds.value),
            &estimate.fold_seconds.how,
        ),
        (
            "redis",
            HumanBytes(estimate.redis_bytes.value).to_string(),
            &estimate.redis_bytes.how,
        ),
    ];
    let unknown =
        "no generate process has measured its cost yet: start one, or give --lists-per-second"
            .to_owned();
    match &estimate.model_hours {
        Some(hours) => lines.push(("model-hours", format!("{:.2}", hours.value), &hours.how)),
        None => lines.push(("model-hours", "unknown".into(), &unknown)),
    }
    if let Some(at) = &estimate.finished_at {
        lines.push(("finished", at.value.clone(), &at.how));
    }
    lines
        .into_iter()
        .map(|(what, value, how)| format!("{what:<12} {value:<22} {how}\n"))
        .collect()
}

fn fill(config: Config, order: &BackfillOrder, json: bool) -> anyhow::Result<ExitCode> {
    init_tracing(&config.log);
    let config = Arc::new(config);
    let ns = config.namespace.clone();
    let started = Instant::now();
    let outcome = block_on(async {
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut display = ProgressDisplay::new();
        let work = backfill(config, order, cancel, |progress: &Progress| {
            display.show(progress)
        });
        let stopped = async {
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stop.cancel();
            // The backfill ends by itself after the cancellation.
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = work => outcome,
            () = stopped => unreachable!("the future above never resolves"),
        }
    })?;
    let seconds = started.elapsed().as_secs_f64();
    match json {
        true => {
            let filled = Filled::of(&ns, &outcome, seconds);
            out!("{}", serde_json::to_string(&filled)?);
        }
        false => out!("{}", as_text(&ns, &outcome)),
    }
    Ok(if outcome.finished {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What a backfill did.
#[derive(Serialize, JsonSchema)]
pub(super) struct Filled<'a> {
    /// The namespace.
    namespace: &'a str,
    /// Whether it is done; else it can be resumed.
    finished: bool,
    /// Whether it was done before.
    was_done: bool,
    /// Where it is.
    stage: Stage,
    /// Start as given.
    from: &'a str,
    /// End as given.
    to: &'a str,
    /// When it was begun, in milliseconds.
    created_at: Timestamp,
    /// Records that were handled.
    records: u64,
    /// Those that were folded.
    folded: u64,
    /// Those that were skipped, because they are not in its range.
    skipped: u64,
    /// Those that went to the dlq.
    dead: u64,
    /// Those that were ignored by their type.
    ignored: u64,
    /// Records that the broker deleted before they were read.
    lost: u64,
    /// Users with a state.
    users: u64,
    /// Lists that were requested.
    requested: u64,
    /// Records per second of folding; null before the first record.
    records_per_second: Option<f64>,
    /// Seconds of this run.
    seconds: f64,
}

impl<'a> Filled<'a> {
    fn of(namespace: &'a str, outcome: &'a BackfillOutcome, seconds: f64) -> Self {
        let (plan, totals) = (&outcome.plan, &outcome.plan.totals);
        Self {
            namespace,
            finished: outcome.finished,
            was_done: outcome.was_done,
            stage: plan.stage,
            from: &plan.from,
            to: &plan.to,
            created_at: plan.created_at,
            records: totals.records(),
            folded: totals.folded,
            skipped: totals.skipped,
            dead: totals.dead,
            ignored: totals.ignored,
            lost: totals.lost,
            users: totals.users,
            requested: totals.requested,
            records_per_second: totals.rate(),
            seconds,
        }
    }
}

fn as_text(ns: &str, outcome: &BackfillOutcome) -> String {
    let (plan, totals) = (&outcome.plan, &outcome.plan.totals);
    let lost = match totals.lost {
        0 => String::new(),
        lost => format!(", {lost} DELETED BY THE BROKER before they were read"),
    };
    let ignored = match totals.ignored {
        0 => String::new(),
        ignored => format!(", {ignored} ignored by their type"),
    };
    let done = format!(
        "{} records folded, {} skipped (folded before), {} in dlq{ignored}{lost}; {} users, {} lists requested",
        totals.folded, totals.skipped, totals.dead, totals.users, totals.requested
    );
    let made = Moment(plan.created_at);
    if !outcome.finished {
        return format!(
            "{ns}: interrupted at stage {}: {done}\nrun the command again to resume",
            plan.stage
        );
    }
    if outcome.was_done {
        return format!(
            "{ns}: already filled by the plan of {made}: {done}\nto fold again, give --from"
        );
    }
    if outcome.left_to_another {
        return format!("{ns}: folded; another process requests the lists: {done}");
    }
    format!("{ns}: {done}\nnearshore run --namespace {ns} follows live from there")
}

/// Shows progress: a bar on a terminal, lines otherwise.
struct ProgressDisplay {
    bar: Option<ProgressBar>,
    last: Option<(Stage, Instant)>,
}

impl ProgressDisplay {
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
        let message = message(progress);
        if let Some(bar) = &self.bar {
            bar.set_prefix(progress.stage.to_string());
            bar.set_length(progress.all.max(progress.done));
            bar.set_position(progress.done);
            bar.set_message(message);
            return;
        }
        let due = self
            .last
            .is_none_or(|(stage, at)| stage != progress.stage || at.elapsed() >= LINE_EVERY);
        if due {
            self.last = Some((progress.stage, Instant::now()));
            note!(
                "{}: {} of {} {message}",
                progress.stage,
                progress.done,
                progress.all.max(progress.done)
            );
        }
    }
}

fn message(progress: &Progress) -> String {
    match progress.stage {
        Stage::Sweep | Stage::Done => {
            format!("users seen, {} lists requested", progress.lists)
        }
        Stage::Placing | Stage::Profiles | Stage::Events => {
            let left = progress.time_left.map_or(String::new(), |left| {
                format!(
                    ", {} left",
                    humantime::format_duration(Duration::from_secs(left.as_secs()))
                )
            });
            let waiting = if progress.waiting {
                ", waiting: live is behind its objective"
            } else {
                ""
            };
            format!("records, {:.0}/s{left}{waiting}", progress.rate)
        }
    }
}
