//! `nearshore tune`: trains an arm's model on the shop's own log.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use nearshore_engine::train::{Lora, Step, Trained, TuneOptions};

use super::align::{bucket, history_of};
use super::erases::Erases;
use super::logs::{LogArgs, bar, is_usage};
use super::{Common, with_config};
use crate::config::{Config, init_tracing};
use crate::ops::evaluate::align::AlignOptions;
use crate::ops::evaluate::asked_cases::Wanted;
use crate::ops::evaluate::tune::{TuneOrder, TuneReport, tune};

/// Examples of its help.
pub(super) const EXAMPLES: &str = "Examples:
  nearshore tune --config nearshore.toml --arm a --out adapters/shop              # an adapter (LoRA)
  nearshore tune --config nearshore.toml --arm a --out adapters/shop --resume     # goes on after a kill
  nearshore tune --config nearshore.toml --arm a --out models/shop --full --visible 3 --users 1000

Then name the folder as `adapter` of the arm (with --full as its `model`), raise the arm's epoch, and let `nearshore align --arm a` measure
what its model adds. docs/tuning.md.";

/// Arguments of `nearshore tune`.
#[derive(Args, Clone, Debug)]
pub(super) struct TuneArgs {
    #[command(flatten)]
    logs: LogArgs,
    /// Erased users, as `nearshore forget --export` writes them, who are left out; by default those of Redis.
    #[arg(long, value_name = "FILE")]
    erased: Option<PathBuf>,
    /// Nobody was erased since the log was written.
    #[arg(long, conflicts_with = "erased")]
    no_erases: bool,
    /// Arm whose model is trained, with its template.
    #[arg(long, value_name = "ID")]
    arm: String,
    /// Folder for what is trained, and for checkpoints meanwhile.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with the checkpoint in the folder.
    #[arg(long)]
    resume: bool,
    /// Users of each bucket of visible history; a fifth of them decides when to stop.
    #[arg(long, value_name = "N", default_value = "300", value_parser = clap::value_parser!(u32).range(10..))]
    users: u32,
    /// The buckets, by their least visible history, such as 3,10; by default all.
    #[arg(long, value_name = "N,...", value_delimiter = ',', value_parser = bucket)]
    visible: Vec<usize>,
    /// Train all weights instead of an adapter.
    #[arg(long, conflicts_with_all = ["lora_rank", "lora_alpha", "first_layer"])]
    full: bool,
    /// Rank of the adapter.
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(u16).range(1..=1024))]
    lora_rank: u16,
    /// The adapter's product is multiplied by this over its rank; by default twice the rank.
    #[arg(long, value_name = "X")]
    lora_alpha: Option<f64>,
    /// First layer that has an adapter; layers before it cost less.
    #[arg(long, value_name = "N", default_value_t = 0)]
    first_layer: usize,
    /// Weight of the model's path score beside the mixture's; a large one makes an untuned model worse than the mixture.
    #[arg(long, value_name = "X", default_value_t = 0.1)]
    weight: f64,
    /// Most steps.
    #[arg(long, value_name = "N", default_value = "600", value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Cases of a step.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Length of the longest step.
    #[arg(long, value_name = "X", default_value_t = 2e-4)]
    rate: f64,
    /// Steps from one look at the tune cases, and checkpoint, to the next.
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..))]
    checkpoint_every: u32,
    /// Time after the cut in which purchases are what is learned.
    #[arg(long, value_name = "TIME", default_value = "56days", value_parser = humantime::parse_duration)]
    window: Duration,
    /// Seed of folds, samples and training.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    common: Common,
}

impl TuneArgs {
    fn order(&self) -> TuneOrder {
        let rank = usize::from(self.lora_rank);
        let lora = Lora {
            rank,
            alpha: self.lora_alpha.unwrap_or(2.0 * rank as f64),
            first_layer: self.first_layer,
            ..Lora::default()
        };
        let options = TuneOptions {
            trained: match self.full {
                true => Trained::Full,
                false => Trained::Lora(lora),
            },
            weight: self.weight,
            steps: self.steps as usize,
            batch: usize::from(self.batch),
            rate: self.rate,
            checkpoint_every: self.checkpoint_every as usize,
            seed: self.seed,
            ..TuneOptions::default()
        };
        TuneOrder {
            arm: self.arm.clone(),
            wanted: Wanted {
                users: self.users as usize,
                buckets: self.visible.clone(),
            },
            options,
            folder: self.out.clone(),
            resume: self.resume,
        }
    }
}

/// How many threads candle uses for one product.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";

/// Runs the command.
pub(super) fn run(args: &TuneArgs) -> anyhow::Result<ExitCode> {
    // Cases of a step are computed side by side; candle's own threads spin while they wait, and take half of the time.
    if std::env::var_os(CANDLE_THREADS).is_none() {
        // SAFETY: the command starts with this, and no other thread was started before a command runs.
        unsafe { std::env::set_var(CANDLE_THREADS, "1") };
    }
    with_config(&args.common, |config| match run_with(args, &config) {
        Err(error) if is_usage(&error) => {
            note!("nearshore: {}", super::chain(&error));
            Ok(ExitCode::from(2))
        }
        done => done.map(|()| ExitCode::SUCCESS),
    })
}

fn run_with(args: &TuneArgs, config: &Config) -> anyhow::Result<()> {
    init_tracing(&config.log);
    let erases = Erases {
        file: args.erased.as_deref(),
        none: args.no_erases,
    };
    let history = history_of(&args.logs, &erases, config)?;
    let options = AlignOptions {
        seed: args.seed,
        window: i64::try_from(args.window.as_millis()).unwrap_or(i64::MAX),
        users_min: config.align.users_min,
        ..AlignOptions::default()
    };
    let bar = bar(
        "training",
        "{pos}/{len} steps, {msg}, {elapsed}, {eta} left",
    );
    bar.set_length(u64::from(args.steps));
    let parts = |part: &str| bar.set_message(part.to_owned());
    let mut each = |step: Step| {
        bar.set_position(step.step as u64);
        if let Some(tune) = step.tune {
            bar.set_message(format!("{tune:.4} nats on tune cases"));
        }
    };
    let order = args.order();
    let report = tune(&history, config, (&options, &order), &parts, &mut each)?;
    bar.finish_and_clear();
    match args.common.json {
        true => out!("{}", serde_json::to_string(&report)?),
        false => out!("{}", text(&report, args.full)),
    }
    Ok(())
}

fn text(report: &TuneReport, full: bool) -> String {
    let (tuned, folder) = (&report.tuned, report.folder.display());
    let learned = format!(
        "arm {}: {} numbers trained on {} cases in {} steps and {:.0} s{}\n{} tune cases: {:.4} nats by the mixture alone, {:.4} with the model before, {:.4} after step {}",
        report.arm,
        tuned.numbers,
        tuned.cases,
        tuned.steps,
        report.seconds,
        if tuned.stopped_early {
            ", stopped early"
        } else {
            ""
        },
        tuned.tune_cases,
        tuned.mixture,
        tuned.before,
        tuned.after,
        tuned.best_step,
    );
    if tuned.best_step == 0 {
        return format!(
            "{learned}\nnothing that was learned held on the tune cases: {folder} is the model as it was"
        );
    }
    if tuned.after >= tuned.mixture {
        return format!(
            "{learned}\nthe mixture alone is better: leave the model out, or give it a smaller --weight"
        );
    }
    let key = if full { "model" } else { "adapter" };
    format!(
        "{learned}\nname {folder} as `{key}` of the arm, raise its epoch, and let `nearshore align --arm {}` measure what its model adds",
        report.arm
    )
}
