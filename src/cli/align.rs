//! `nearshore align`: weights and tables of an arm, learned from the shop's own log.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::logs::{LogArgs, bar, is_usage, read_logs};
use super::{Common, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::evaluate::align::{AlignOptions, align, text, write_folder};
use crate::ops::evaluate::model::{ModelOptions, batches};
use crate::ops::evaluate::{History, vectors};

/// Examples of `--help`.
pub(super) const EXAMPLES: &str = "\
Examples:
  nearshore align --config nearshore.toml --out artefacts           # learns from the topics of the configuration
  nearshore align --events orders.csv --profiles people.csv --catalog skus.csv --out artefacts
  nearshore align --config nearshore.toml --window 28days --json | jq .buckets
  nearshore align --config nearshore.toml --arm a --model-users 300  # asks the model of arm a, and fits its weight

It writes a folder named by the hash of its content, such as artefacts/artefact-0123456789ab. Name it in the configuration:
  [[arms]]
  artefact = \"artefacts/artefact-0123456789ab\"
and raise the arm's epoch. Files are described in docs/contract.md (Files of logs), the method in docs/recall.md.";

/// Arguments of `align`.
#[derive(Clone, Debug, Args)]
pub(super) struct AlignArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Folder in which the artefact's folder is made.
    #[arg(long, value_name = "DIR", default_value = "artefacts")]
    out: PathBuf,
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
    /// With --arm: users of each bucket of visible history that the model is asked about, each for every name.
    #[arg(long, value_name = "N", default_value_t = 150, requires = "arm", value_parser = clap::value_parser!(u32).range(30..))]
    model_users: u32,
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
    let logs = read_logs(&args.logs, config)?;
    let mut history = History::replay(logs, config);
    let users_min = args.users_min.unwrap_or(config.align.users_min);
    if let Some(folder) = args.encoder.clone().or_else(|| config.encoder()) {
        let encoder = vectors::load(&folder)?;
        let vectors = vectors::vectors(&history, &encoder, users_min as usize)?;
        history.read_texts(vectors);
    }
    let products = history.catalogue.pus().len();
    let scores_max = args.samples.map(|samples| samples as usize * products);
    let defaults = AlignOptions::default();
    let options = AlignOptions {
        seed: args.seed,
        folds: usize::from(args.folds),
        cuts: usize::from(args.cuts),
        window: i64::try_from(args.window.as_millis()).unwrap_or(i64::MAX),
        users_min,
        scores_max: scores_max.unwrap_or(defaults.scores_max),
    };
    let mut steps = u64::from(args.cuts) * u64::from(args.folds) + 3;
    if args.arm.is_some() {
        steps += batches(args.model_users as usize, usize::from(args.folds)) as u64;
    }
    let bar = bar("aligning", "{pos}/{len} {msg}, {elapsed}");
    bar.set_length(steps);
    let model = args.arm.as_ref().map(|arm| ModelOptions {
        arm: arm.clone(),
        users: args.model_users as usize,
    });
    let known = (&options, model.as_ref());
    let aligned = align(&history, config, known, &|step| {
        bar.set_message(step.to_owned());
        bar.inc(1);
    })?;
    bar.finish_and_clear();
    let folder = write_folder(&args.out, &aligned.files, &aligned.report)?;
    match args.common.json {
        true => out!("{}", serde_json::to_string(&aligned.report)?),
        false => {
            out_part!("{}", text(&aligned.report));
            out!(
                "\nwritten to {}; name it as `artefact` of an arm, and raise the arm's epoch",
                folder.display()
            );
        }
    }
    Ok(())
}
