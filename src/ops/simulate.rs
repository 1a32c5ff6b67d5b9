//! Simulates ways to choose the SKUs under a name, over seeds and worlds, on all cores.
//!
//! Invariant: the result depends on ways, worlds and seeds, not on the number of cores.

use indicatif::ProgressBar;
use nearshore_core::learn::simulate::{Run, Summary, Way, World, run, summarise};
use nearshore_core::list::select::Policy;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

/// Settings among which `--tune` looks.
const GAMMAS: [f64; 6] = [1.0, 2.0, 4.0, 8.0, 16.0, 1000.0];
const EXPLORES: [f64; 6] = [0.0, 0.02, 0.05, 0.1, 0.2, 0.4];

/// What was simulated.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Simulation {
    /// Runs of each way in each world.
    pub(crate) seeds: u64,
    /// The worlds.
    pub(crate) worlds: Vec<WorldResult>,
}

/// The ways in one world.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct WorldResult {
    /// Name of the world.
    pub(crate) world: String,
    /// Expected purchases of 1000 best lists, for the first way.
    pub(crate) best: f64,
    /// The ways; differences are to the first one.
    pub(crate) ways: Vec<Summary>,
}

/// The ways that are compared: ours by `policy` first, then the others; or with `tune` ours by many settings.
pub(crate) fn ways(policy: &Policy, tune: bool) -> Vec<Way> {
    let ours = |gamma: f64, explore: f64| Way::Ours {
        policy: Policy {
            gamma,
            explore,
            ..policy.clone()
        },
    };
    let first = ours(policy.gamma, policy.explore);
    let rest = match tune {
        false => Way::others(),
        true => GAMMAS
            .into_iter()
            .flat_map(|gamma| EXPLORES.map(|explore| ours(gamma, explore)))
            .filter(|way| *way != first)
            .collect(),
    };
    [first].into_iter().chain(rest).collect()
}

/// Runs every way in every world with the seeds from 1.
pub(crate) fn simulate(
    ways: &[Way],
    worlds: &[World],
    seeds: u64,
    bar: &ProgressBar,
) -> Simulation {
    bar.set_length((ways.len() * worlds.len()) as u64 * seeds);
    let of_world = |world: &World| {
        let of_way = |way: &Way| -> Vec<Run> {
            let seeds: Vec<u64> = (1..=seeds).collect();
            let one = |seed: u64| {
                let run = run(world, way, seed);
                bar.inc(1);
                run
            };
            seeds.into_par_iter().map(one).collect()
        };
        let runs: Vec<Vec<Run>> = ways.par_iter().map(of_way).collect();
        let best = runs.first().map_or(0.0, |runs| {
            runs.iter().map(|run| run.value().1).sum::<f64>() / runs.len().max(1) as f64
        });
        WorldResult {
            world: world.name.to_owned(),
            best,
            ways: summarise(ways, &runs, 0),
        }
    };
    Simulation {
        seeds,
        worlds: worlds.iter().map(of_world).collect(),
    }
}

/// Mean loss over all worlds of each way, the least first: what `--tune` looks for.
pub(crate) fn mean_losses(of: &Simulation) -> Vec<(String, f64)> {
    let Some(first) = of.worlds.first() else {
        return Vec::new();
    };
    let mean = |nth: usize| {
        let losses = of.worlds.iter().filter_map(|world| world.ways.get(nth));
        losses.map(|way| way.loss.mean).sum::<f64>() / of.worlds.len() as f64
    };
    let ways = first.ways.iter().enumerate();
    let mut means: Vec<(String, f64)> = ways
        .map(|(nth, way)| (way.way.clone(), mean(nth)))
        .collect();
    means.sort_by(|a, b| a.1.total_cmp(&b.1));
    means
}
