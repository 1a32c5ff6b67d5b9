//! `simulate`: compares ways to choose SKUs in simulated shops, as tables, JSON or a page.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use nearshore_core::learn::simulate::World;

use super::{Common, with_config};
use crate::ops::report;
use crate::ops::simulate::{Simulation, WorldResult, mean_losses, simulate, ways};

pub(super) const EXAMPLES: &str = "Examples:
  nearshore simulate                                        # [selection] as by default, beside six other ways
  nearshore simulate --config nearshore.toml --html simulation.html
  nearshore simulate --world launches --gamma 4 --explore 0.2 --seeds 40
  nearshore simulate --tune --seeds 5                       # which gamma and explore lose least

The loss is how many purchases fewer 1000 lists bring than the best lists of the same SKUs. A simulated shop is no
shop: it tells which ways fail under which conditions, not how much yours will sell.";

/// Arguments of `nearshore simulate`.
#[derive(Clone, Debug, Args)]
pub(super) struct SimulateArgs {
    #[command(flatten)]
    common: Common,
    /// Runs of each way in each world.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: u64,
    /// World to simulate: calm, drift, launches, \"sold out\", \"no clicks\", all; repeat it for several. By default, every one.
    #[arg(long = "world", value_name = "NAME")]
    worlds: Vec<String>,
    /// selection.gamma instead of the configured one.
    #[arg(long)]
    gamma: Option<f64>,
    /// selection.explore instead of the configured one.
    #[arg(long)]
    explore: Option<f64>,
    /// selection.epsilon instead of the configured one.
    #[arg(long)]
    epsilon: Option<f64>,
    /// Compare many settings of gamma and explore, instead of other ways.
    #[arg(long)]
    tune: bool,
    /// Also write a page with plots.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

pub(super) fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    with_config(&args.common, |mut config| {
        let selection = &mut config.selection;
        selection.gamma = args.gamma.unwrap_or(selection.gamma);
        selection.explore = args.explore.unwrap_or(selection.explore);
        selection.epsilon = args.epsilon.unwrap_or(selection.epsilon);
        let is_valid = selection.gamma > 0.0
            && (0.0..=1.0).contains(&selection.explore)
            && (0.0..1.0).contains(&selection.epsilon);
        if !is_valid {
            note!(
                "error: --gamma must be above 0, --explore from 0 to 1, --epsilon from 0 to below 1"
            );
            return Ok(ExitCode::from(2));
        }
        let mut worlds = World::all();
        if let Some(unknown) = args
            .worlds
            .iter()
            .find(|name| !worlds.iter().any(|it| it.name == **name))
        {
            let known: Vec<&str> = worlds.iter().map(|world| world.name).collect();
            note!(
                "error: --world {unknown:?} is not known; worlds are {}",
                known.join(", ")
            );
            return Ok(ExitCode::from(2));
        }
        worlds.retain(|world| {
            args.worlds.is_empty() || args.worlds.iter().any(|name| name == world.name)
        });
        let bar = ProgressBar::new(0);
        let style = "{bar:30} {pos}/{len} runs, {eta} left";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        let found = simulate(&ways(selection, args.tune), &worlds, args.seeds, &bar);
        bar.finish_and_clear();
        if let Some(path) = &args.html {
            let page = report::simulation(&found).context("the page's template")?;
            std::fs::write(path, page).with_context(|| format!("--html {}", path.display()))?;
        }
        match (args.common.json, args.tune) {
            (true, _) => out!("{}", serde_json::to_string(&found)?),
            (false, true) => out!("{}", tuned(&found).join("\n")),
            (false, false) => out!("{}", lines(&found).join("\n")),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The tables for people.
fn lines(found: &Simulation) -> Vec<String> {
    found.worlds.iter().flat_map(world_lines).collect()
}

fn world_lines(of: &WorldResult) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{}: 1000 best lists bring {:.0} purchases",
            of.world, of.best
        ),
        format!(
            "  {:<30} {:>6} {:<16} {:>7} {:<18} {:>10} {:>10}",
            "way", "loss", "", "to ours", "", "launch 100", "launch 400"
        ),
    ];
    let launch = |nth: usize, way: &nearshore_core::learn::simulate::Summary| match way.launches
        [nth]
        .cases
    {
        0 => "-".to_owned(),
        _ => format!("{:.0} %", 100.0 * way.launches[nth].mean),
    };
    lines.extend(of.ways.iter().map(|way| {
        let (loss, to) = (way.loss, way.difference);
        format!(
            "  {:<30} {:>6.1} {:<16} {:>+7.1} {:<18} {:>10} {:>10}",
            way.way,
            loss.mean,
            format!("[{:.1}, {:.1}]", loss.low, loss.high),
            to.mean,
            format!("[{:+.1}, {:+.1}]", to.low, to.high),
            launch(0, way),
            launch(1, way)
        )
    }));
    lines
}

/// The best settings over all worlds.
fn tuned(found: &Simulation) -> Vec<String> {
    let head = format!(
        "mean loss of 1000 lists over {} worlds, {} seeds each",
        found.worlds.len(),
        found.seeds
    );
    let rows = mean_losses(found)
        .into_iter()
        .map(|(way, loss)| format!("  {way:<30} {loss:>6.2}"));
    [head].into_iter().chain(rows).collect()
}
