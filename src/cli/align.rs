//! `nearshore align`: weights and tables of an arm, learned from the shop's own log.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nearshore_core::learn::product_table::ProductTable;
use nearshore_core::list::terms::BUCKETS;

use super::erases::Erases;
use super::logs::{LogArgs, bar, is_usage, read_logs};
use super::neighbours::NeighbourArgs;
use super::partials::{Found, PartialArgs};
use super::{Common, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::evaluate::align::{
    AlignOptions, Aligned, Asked, PromptOrder, Selection, align, table_alone, text, write_folder,
};
use crate::ops::evaluate::asked_cases::Wanted;
use crate::ops::evaluate::head::HeadOrder;
use crate::ops::evaluate::model::{ModelOptions, batches, model_of};
use crate::ops::evaluate::product_table::{TableCost, build};
use crate::ops::evaluate::{History, samples, vectors};
use crate::run::{artefact_of, point};

/// Examples of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  nearshore align --config nearshore.toml --out artefacts           # learns from the topics of the configuration
  nearshore align --events orders.csv --profiles people.csv --catalog skus.csv --erased erased.jsonl --out artefacts
  nearshore align --config nearshore.toml --out artefacts --point artefacts/current   # and running processes take it
  nearshore align --config nearshore.toml --part 2/5 --partials parts   # on 5 machines or pods: each reads a fifth of the users
  nearshore align --config nearshore.toml --partials parts --out artefacts   # then on one: joins the parts, and learns
  nearshore align --config nearshore.toml --ablate                   # what a cap, a weight of rare purchases, and no twins change
  nearshore align --config nearshore.toml --window 28days --json | jq .buckets
  nearshore align --config nearshore.toml --arm a --model-users 300  # asks the model of arm a, and fits its weight
  nearshore align --config nearshore.toml --arm a --model-users 0 --table   # asks it once about every product: the term table
  nearshore align --config nearshore.toml --arm a --head             # a head on the hidden states of its model: the term head
  nearshore align --config nearshore.toml --neighbours --neighbours-only --neighbours-redis   # what goes with each SKU, to Redis
  nearshore align --config nearshore.toml --arm a --model-users 0 --table --table-from artefacts/artefact-0123456789ab

It writes a folder named by the hash of its content, such as artefacts/artefact-0123456789ab. Name it in the configuration:
  [[arms]]
  artefact = \"artefacts/artefact-0123456789ab\"
and raise the arm's epoch; or name a file that points to it, which running processes follow.
Files are described in docs/contract.md (Files of logs), the method in docs/recall.md.";

/// Arguments of `align`.
#[derive(Clone, Debug, Args)]
pub(super) struct AlignArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Erased users, as `nearshore forget --export FILE` writes them: what they did before is not learned from. With
    /// topics the default is what redis.url knows.
    #[arg(long, value_name = "FILE")]
    erased: Option<PathBuf>,
    /// Nobody was erased since the log was written.
    #[arg(long, conflicts_with = "erased")]
    no_erases: bool,
    /// Folder in which the artefact's folder is made.
    #[arg(long, value_name = "DIR", default_value = "artefacts")]
    out: PathBuf,
    /// File that points to the artefact, such as artefacts/current: written last, at once. Processes whose arm names
    /// this file as `artefact` take the new artefact within seconds, without a restart.
    #[arg(long, value_name = "FILE")]
    point: Option<PathBuf>,
    /// Time after a cut in which purchases are what the weights are fitted to.
    #[arg(long, value_name = "TIME", default_value = "56days", value_parser = humantime::parse_duration)]
    window: Duration,
    /// Number of cuts, a window apart, back from the end of the log.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=12))]
    cuts: u8,
    /// Number of folds: users of one are scored by tables that the others made.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=10))]
    folds: u8,
    /// Most samples per bucket of visible history; by default fewer the more products there are, 300 at least.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(300..))]
    samples: Option<u32>,
    /// Most samples of one user per bucket; by default one for each cut.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    samples_per_user: Option<u32>,
    /// Counts rare purchases more in the fit: by their share of demand to the power of -A. 0: all the same.
    #[arg(long, value_name = "A", default_value = "0", value_parser = tail_weight)]
    tail_weight: f64,
    /// Counts cases of a cut with equal segment, products bought and later purchases once.
    #[arg(long)]
    dedup: bool,
    /// Also measures what each of these three options changes, on users of other folds: four times the work.
    #[arg(long)]
    ablate: bool,
    /// Also write all samples, before they are sampled, to this Parquet file: docs/recall.md, Samples.
    #[arg(long, value_name = "FILE")]
    samples_out: Option<PathBuf>,
    /// Fewest users of a pair of products, or of a value in a reference prompt, that is kept; by default
    /// `align.users_min`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    users_min: Option<u32>,
    /// Folder of a sentence encoder, for the terms `text` and `typical`; by default `engine.encoder`. Their vectors are
    /// written into the artefact: of names, and of profile values that at least `--users-min` users had.
    #[arg(long, value_name = "DIR")]
    encoder: Option<PathBuf>,
    /// Seed of folds and samples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Arm whose model is asked, to fit its weight too; without it the model has none.
    #[arg(long, value_name = "ID")]
    arm: Option<String>,
    /// With --arm: users of each bucket of visible history that the model is asked about, each for every name; 0 asks
    /// about none, and the model has no weight.
    #[arg(long, value_name = "N", default_value = "150", requires = "arm", value_parser = model_users)]
    model_users: u32,
    /// With --arm: templates whose prompts are compared with the arm's, by what the model adds with each. docs/recall.md.
    #[arg(long, value_name = "FILE", requires = "arm", num_args = 1..)]
    prompt: Vec<PathBuf>,
    /// With --arm: compares the arm's prompt with one that has these profile fields alone.
    #[arg(
        long,
        value_name = "FIELD,...",
        requires = "arm",
        value_delimiter = ','
    )]
    prompt_fields: Vec<String>,
    /// With --arm: compares the arm's prompt with ones that have so many events at most.
    #[arg(long, value_name = "N,...", requires = "arm", value_delimiter = ',')]
    prompt_events: Vec<usize>,
    /// With --arm: asks its model once about every product, for the term `table`. Tokens grow with the square of the
    /// catalogue; they are told before they are spent.
    #[arg(long, requires = "arm")]
    table: bool,
    /// Folder of an earlier artefact whose table is kept. With --table rows are added for products that it lacks.
    #[arg(long, value_name = "DIR")]
    table_from: Option<PathBuf>,
    /// Writes an artefact with the table alone, for a shop without a log; its arm's weights are set by hand.
    #[arg(long, requires = "table")]
    table_only: bool,
    /// With --arm: trains a head on the hidden states of its frozen model: the term `head`, and arms with mode =
    /// "head". The model's own term is not fitted then. docs/tuning.md.
    #[arg(long, requires = "arm", conflicts_with = "table_only")]
    head: bool,
    /// With --head: users of each bucket of visible history whose prompts the model reads.
    #[arg(long, value_name = "N", default_value = "300", requires = "head", value_parser = clap::value_parser!(u32).range(30..))]
    head_users: u32,
    /// With --head: the buckets that are asked about, by their least visible history, such as 3,10; by default all.
    #[arg(long, value_name = "N,...", requires = "head", value_delimiter = ',', value_parser = bucket)]
    head_visible: Vec<usize>,
    /// With --head: file of hidden states, which a run that was killed goes on with; by default OUT/hidden-ARM.nshs.
    #[arg(long, value_name = "FILE", requires = "head")]
    head_cache: Option<PathBuf>,
    #[command(flatten)]
    partials: PartialArgs,
    #[command(flatten)]
    neighbours: NeighbourArgs,
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(args: &AlignArgs) -> anyhow::Result<ExitCode> {
    with_config(&args.common, |config| match run_with(args, &config) {
        Err(error) if is_usage(&error) => {
            note!("nearshore: {}", super::chain(&error));
            Ok(ExitCode::from(2))
        }
        done => done.map(|()| ExitCode::SUCCESS),
    })
}

fn run_with(args: &AlignArgs, config: &Config) -> anyhow::Result<()> {
    init_tracing(&config.log);
    let Some(mut history) = log_of(args, config)? else {
        return Ok(());
    };
    let users_min = args.users_min.unwrap_or(config.align.users_min);
    if let Some(folder) = args.encoder.clone().or_else(|| config.encoder()) {
        let encoder = vectors::load(&folder)?;
        let vectors = vectors::vectors(&history, &encoder, users_min as usize)?;
        history.read_texts(vectors);
    }
    args.neighbours.run(&mut history, config, users_min)?;
    if args.neighbours.is_only() {
        return Ok(());
    }
    let cost = read_table(args, config, &mut history)?;
    if args.table_only {
        return written(args, table_alone(&history), cost);
    }
    let products = history.catalogue.pus().len();
    let options = options_of(args, users_min, products);
    if let Some(path) = &args.samples_out {
        let rows = samples::write(&history, config, &options, path)?;
        note!("{rows} samples written to {}", path.display());
    }
    let asked = asked(args);
    let bar = bar("aligning", "{pos}/{len} {msg}, {elapsed}");
    bar.set_length(steps(&options, asked.as_ref(), products));
    let known = (&options, asked.as_ref());
    let aligned = align(&history, config, known, &|step| {
        bar.set_message(step.to_owned());
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    written(args, aligned, cost)
}

/// The log without erased users, replayed.
pub(super) fn history_of(
    logs: &LogArgs,
    erases: &Erases<'_>,
    config: &Config,
) -> anyhow::Result<History> {
    // Before the log: of a user who is erased meanwhile, the topics have the erase.
    let erased = erases.read(logs, config)?;
    let mut logs = read_logs(logs, config)?;
    let left_out = logs.leave_out(&erased);
    if left_out > 0 {
        note!("{left_out} records of erased users are left out");
    }
    let mut history = History::replay(logs, config);
    history.read_meaning(config)?;
    Ok(history)
}

/// The log, from parts or as one; `None` if a part was written and that was all.
fn log_of(args: &AlignArgs, config: &Config) -> anyhow::Result<Option<History>> {
    let erases = Erases {
        file: args.erased.as_deref(),
        none: args.no_erases,
    };
    if !args.partials.are_asked() {
        return history_of(&args.logs, &erases, config).map(Some);
    }
    match args.partials.run((&args.logs, &erases), config)? {
        Found::History(mut history) => {
            history.read_meaning(config)?;
            Ok(Some(history))
        }
        Found::Part(found) => {
            match args.common.json {
                true => out!("{found}"),
                false => out!(
                    "part {} of {}: {} users{}",
                    found["part"],
                    found["of"],
                    found["users"],
                    if found["kept"] == true {
                        "; it was there, and is kept"
                    } else {
                        ""
                    }
                ),
            }
            Ok(None)
        }
    }
}

/// How to align.
fn options_of(args: &AlignArgs, users_min: u32, products: usize) -> AlignOptions {
    let scores_max = args.samples.map(|samples| samples as usize * products);
    let defaults = AlignOptions::default();
    AlignOptions {
        seed: args.seed,
        folds: usize::from(args.folds),
        cuts: usize::from(args.cuts),
        window: i64::try_from(args.window.as_millis()).unwrap_or(i64::MAX),
        users_min,
        scores_max: scores_max.unwrap_or(defaults.scores_max),
        selection: Selection {
            per_user: args.samples_per_user.map(|n| n as usize),
            tail_weight: args.tail_weight,
            dedup: args.dedup,
        },
        ablate: args.ablate,
        prompts: PromptOrder {
            templates: args.prompt.clone(),
            fields: args.prompt_fields.clone(),
            events: args.prompt_events.clone(),
            folder: args.out.clone(),
        },
    }
}

/// Steps of the progress bar.
fn steps(options: &AlignOptions, asked: Option<&Asked>, products: usize) -> u64 {
    let samples = (options.cuts * options.folds) as u64;
    // Once with the options as they are, and once with each of three changed.
    let ablated = if options.ablate { 4 * samples + 3 } else { 0 };
    let asked = match asked {
        Some(Asked::Term(model)) => {
            let prompts = 1 + options.prompts.len() as u64;
            prompts * batches(model.users, options.folds) as u64
        }
        Some(Asked::Head(order)) => order.batches(options.folds, products) as u64,
        None => 0,
    };
    samples + 4 + ablated + asked
}

/// What the arm's model is asked for; `None` if it is not asked about users.
fn asked(args: &AlignArgs) -> Option<Asked> {
    let arm = args.arm.clone()?;
    if args.head {
        let cache = || args.out.join(format!("hidden-{arm}.nshs"));
        return Some(Asked::Head(HeadOrder {
            wanted: Wanted {
                users: args.head_users as usize,
                buckets: args.head_visible.clone(),
            },
            cache: args.head_cache.clone().unwrap_or_else(cache),
            arm,
        }));
    }
    let users = args.model_users as usize;
    (users > 0).then_some(Asked::Term(ModelOptions { arm, users }))
}

/// The least visible history of a bucket.
pub(super) fn bucket(text: &str) -> Result<usize, String> {
    let least = text.parse().ok();
    let least = least.filter(|least| BUCKETS.contains(least));
    least.ok_or_else(|| format!("the buckets begin at {BUCKETS:?}"))
}

/// The table of `--table` and `--table-from`, with its cost if it was built.
fn read_table(
    args: &AlignArgs,
    config: &Config,
    history: &mut History,
) -> anyhow::Result<Option<TableCost>> {
    let from = args.table_from.as_ref().map(|folder| read_table_of(folder));
    let from = from.transpose()?;
    let Some(arm) = args.arm.as_ref().filter(|_| args.table) else {
        if let Some(table) = from {
            history.read_table(table);
        }
        return Ok(None);
    };
    let loaded = model_of(config, arm)?;
    let bar = bar("table", "{pos}/{len} prompts, {elapsed}, {eta} left");
    let tell = |cost: &TableCost| {
        bar.suspend(|| {
            note!(
                "table of {} products: {} prompts, about {} tokens",
                cost.products,
                cost.prompts,
                cost.tokens
            );
        });
    };
    let known = (&loaded, from.as_deref());
    let (table, cost) = build(&history.catalogue, known, config, (&bar, &tell))?;
    bar.finish_and_clear();
    history.read_table(Arc::new(table));
    Ok(Some(cost))
}

/// The table of an artefact's folder.
pub(super) fn read_table_of(folder: &Path) -> anyhow::Result<Arc<ProductTable>> {
    let artefact = artefact_of(folder).with_context(|| folder.display().to_string())?;
    let none = || {
        format!(
            "the artefact in {} has no table of products; make one with `nearshore align --arm ID --table`",
            folder.display()
        )
    };
    artefact.table.with_context(none)
}

/// How much more rare purchases count.
fn tail_weight(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(power) if (0.0..=2.0).contains(&power) => Ok(power),
        _ => Err("a number from 0 to 2".into()),
    }
}

/// 0, or enough users for a weight to be fitted.
fn model_users(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(users) if users == 0 || users >= 30 => Ok(users),
        _ => Err("0, or at least 30: with fewer no weight can be told from 0".into()),
    }
}

/// Writes the artefact, and says what was learned.
fn written(args: &AlignArgs, mut aligned: Aligned, cost: Option<TableCost>) -> anyhow::Result<()> {
    aligned.report.table = cost;
    let folder = write_folder(&args.out, &aligned.files, &aligned.report)?;
    if let Some(file) = &args.point {
        point(file, &folder)?;
    }
    args.partials.done()?;
    match args.common.json {
        true => out!("{}", serde_json::to_string(&aligned.report)?),
        false => {
            out_part!("{}", text(&aligned.report));
            let folder = folder.display();
            match &args.point {
                Some(file) => out!("\nwritten to {folder}; {} points to it now", file.display()),
                None => out!(
                    "\nwritten to {folder}; name it as `artefact` of an arm, and raise the arm's epoch"
                ),
            }
        }
    }
    Ok(())
}
