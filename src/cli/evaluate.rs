//! `nearshore evaluate`: what lists would have been worth, or what the stored ones of two namespaces were worth, on the
//! shop's own log.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use jiff::civil;
use jiff::tz::TimeZone;
use nearshore_core::learn::bootstrap::Resampling;
use nearshore_core::learn::product_table::ProductTable;
use nearshore_core::ports::keys;
use nearshore_core::user::record::Timestamp;

use super::align::read_table_of;
use super::logs::{LogArgs, bar, is_usage, read_logs};
use super::off_policy::{self, OffPolicyArgs};
use super::users::store;
use super::{Common, block_on, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::evaluate::since::since;
use crate::ops::evaluate::{BASELINE, Order, Progress, Visible, evaluate, text};
use crate::ops::visible::{visible_json, visible_lines};
use crate::ops::{forget, lists, report};
use crate::run::artefact;

/// Time after a cut in which targets are bought, if no other is given.
const WINDOW: Duration = Duration::from_secs(56 * 86_400);

/// Examples of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  nearshore evaluate --config nearshore.toml                      # the topics of the configuration
  nearshore evaluate --events orders.csv --profiles people.csv --catalog skus.csv --html report.html
  nearshore evaluate --events e1.parquet e2.parquet --catalog skus.parquet --folds 5 --json > evaluation.json
  nearshore evaluate --config nearshore.toml --cut 2026-01-31 --window 28days --visible 0,3,more --model-users 0
  nearshore evaluate --config nearshore.toml --diff main next     # the lists of two namespaces, by what users did since
  nearshore evaluate --config nearshore.toml --off-policy --gamma 2 --explore 0.05   # another [selection], by lists shown

Files: .jsonl or .ndjson, .csv, .parquet, with the fields of the topics (docs/contract.md, Files of logs). A CSV of events
has the columns user, type, timestamp and sku, and may have pu, query, qty and price; one of profiles has user and a column
per field; one of the catalogue sku, pu and stock, and may have pu_id, category, title and price; other columns are attributes.
What the figures mean, and what may be claimed: docs/recall.md; of --off-policy: docs/selection.md.";

/// Arguments of `evaluate`.
#[derive(Clone, Debug, Args)]
pub(super) struct EvaluateArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Cut times: 2026-01-31, or with a time 2026-01-31T17:30:00Z; by default up to three, a window apart, to the end.
    #[arg(long, value_name = "TIME", num_args = 1.., value_parser = time)]
    cut: Vec<Timestamp>,
    /// Time after a cut in which targets are bought, by default 56days; with --off-policy the time after a showing in which
    /// purchases count, by default 7days.
    #[arg(long, value_name = "TIME", value_parser = window)]
    window: Option<Duration>,
    /// How many distinct products of a held-out user are visible, and `more` for all.
    #[arg(long, value_name = "N,..", default_value = "0,1,3,10,more", value_delimiter = ',', value_parser = visible)]
    visible: Vec<Visible>,
    /// 1: a fifth of the users tests, a fifth tunes; 3 or more: each user tests once.
    #[arg(long, value_name = "N", default_value = "1", value_parser = folds)]
    folds: usize,
    /// Seed of the split, the cold products and the intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Resamples of each interval.
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// Share of products whose logs are withheld for the part on cold products; 0 leaves it out.
    #[arg(long, value_name = "SHARE", default_value = "0.3", value_parser = share)]
    cold: f64,
    /// Leave out the route `aligned`: the mixture of all terms, fitted at each cut.
    #[arg(long)]
    no_align: bool,
    /// Leave out the learning curve.
    #[arg(long)]
    no_curve: bool,
    /// Test users whom the model of an arm is asked about, at the last cut; 0 asks no model.
    #[arg(long, value_name = "N", default_value_t = 300)]
    model_users: usize,
    /// Folder of a sentence encoder, for the terms `text` and `typical`; by default `engine.encoder`.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// Folder of an artefact whose product table the term `table` reads; by default that of the first arm with one.
    #[arg(long, value_name = "DIR")]
    table: Option<PathBuf>,
    /// Route that all others are compared with.
    #[arg(long, value_name = "ROUTE", default_value = BASELINE)]
    baseline: String,
    /// Compare the stored lists of two namespaces by what users bought while these lists stood.
    #[arg(long, num_args = 2, value_names = ["A", "B"], value_parser = namespace, conflicts_with_all = [
        "cut", "window", "visible", "folds", "cold", "no_align", "no_curve", "model_users", "encoder", "table", "baseline", "html",
    ])]
    diff: Vec<String>,
    /// With --diff: only what was bought from this time on.
    #[arg(long, value_name = "TIME", value_parser = time, requires = "diff")]
    since: Option<Timestamp>,
    #[command(flatten)]
    off_policy: OffPolicyArgs,
    /// Write a page with plots, which needs no network.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

impl EvaluateArgs {
    fn resampling(&self) -> Resampling {
        Resampling {
            seed: self.seed,
            resamples: self.resamples as usize,
        }
    }
}

pub(super) fn run(args: &EvaluateArgs) -> anyhow::Result<ExitCode> {
    with_config(&args.common, |config| match run_with(args, &config) {
        Err(error) if is_usage(&error) => {
            note!("nearshore: {}", super::chain(&error));
            Ok(ExitCode::from(2))
        }
        done => done.map(|()| ExitCode::SUCCESS),
    })
}

/// Prints what the stored lists of two namespaces were worth.
fn diff(args: &EvaluateArgs, config: &Config, names: [&str; 2]) -> anyhow::Result<()> {
    let erased = block_on(async { forget::erased(&store(config)?).await })?;
    let mut logs = read_logs(&args.logs, config)?;
    logs.leave_out(&erased);
    let lists = match args.logs.are_files() {
        // A connection lives as long as the runtime that opened it.
        true => block_on(async { lists::of_store(&store(config)?, names, &logs).await })?,
        false => {
            let bar = bar("lists", "{msg} {pos}/{len} records, {per_sec}");
            block_on(lists::of_updates(config, names, &logs.catalogue, &bar))?
        }
    };
    let found = since(&logs, (names, &lists), args.since, args.resampling())?;
    match args.common.json {
        true => out!("{}", visible_json(&serde_json::to_string(&found)?)),
        false => out_part!("{}", visible_lines(&found.text())),
    }
    Ok(())
}

fn run_with(args: &EvaluateArgs, config: &Config) -> anyhow::Result<()> {
    init_tracing(&config.log);
    if let [a, b] = &args.diff[..] {
        return diff(args, config, [a, b]);
    }
    if args.off_policy.is_asked() {
        let asked = (args.window, args.resampling());
        return off_policy::run(
            &args.off_policy,
            (&args.logs, config),
            asked,
            args.common.json,
        );
    }
    let logs = read_logs(&args.logs, config)?;
    let mut visible = args.visible.clone();
    visible.sort();
    visible.dedup();
    let order = Order {
        cuts: args.cut.clone(),
        window: args.window.unwrap_or(WINDOW),
        visible,
        folds: args.folds,
        seed: args.seed,
        resamples: args.resamples as usize,
        curve: !args.no_curve,
        align: !args.no_align,
        cold: args.cold,
        model_users: args.model_users,
        baseline: args.baseline.clone(),
        encoder: args.encoder.clone().or_else(|| config.encoder()),
        table: match &args.table {
            Some(folder) => Some(read_table_of(folder)?),
            None => first_table(config),
        },
    };
    let progress = Progress {
        bar: bar("ranking", "{pos}/{len} lists, {elapsed}"),
    };
    let found = evaluate(logs, &order, config, &progress)?;
    if let Some(path) = &args.html {
        let page = report::evaluation(&found)?;
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    match args.common.json {
        true => out!("{}", serde_json::to_string(&found)?),
        false => out_part!("{}", text(&found)),
    }
    Ok(())
}

/// The table of the first arm whose artefact has one; an artefact that cannot be read is refused with its arm.
fn first_table(config: &Config) -> Option<Arc<ProductTable>> {
    let artefacts = config.arms.iter().map(|arm| artefact(config, arm));
    let mut tables = artefacts.filter_map(|artefact| artefact.ok().flatten()?.table.clone());
    tables.next()
}

fn namespace(text: &str) -> Result<String, String> {
    match keys::namespace(text) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp(time.as_millisecond()));
    }
    let day: civil::Date = text
        .parse()
        .map_err(|_| "write a day as 2026-01-31, or a time as 2026-01-31T17:30:00Z".to_owned())?;
    let start = day
        .to_zoned(TimeZone::UTC)
        .map_err(|error| error.to_string())?;
    Ok(Timestamp(start.timestamp().as_millisecond()))
}

fn window(text: &str) -> Result<Duration, String> {
    let window = humantime::parse_duration(text);
    let window = window.map_err(|error| format!("{error}; write a time as in 56days"))?;
    let days = Duration::from_secs(86_400)..=Duration::from_secs(86_400 * 3650);
    match days.contains(&window) {
        true => Ok(window),
        false => Err("at least 1day, at most 3650days".into()),
    }
}

fn visible(text: &str) -> Result<Visible, String> {
    match text.trim() {
        "more" => Ok(Visible::More),
        number => number.parse().map(Visible::Products).map_err(|_| {
            "write numbers of products, and more, separated by commas: 0,3,more".into()
        }),
    }
}

fn folds(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(folds) if folds == 1 || (3..=100).contains(&folds) => Ok(folds),
        _ => Err("1, or 3 to 100: with 2 no user would be left to train".into()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=0.9).contains(&share) => Ok(share),
        _ => Err("a share from 0 to 0.9".into()),
    }
}
