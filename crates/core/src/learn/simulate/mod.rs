//! A simulated shop, to compare ways of choosing the SKUs under a name where the truth is known.
//!
//! Every SKU has a true rate at which a user who looks at it buys it. Ways to choose ([`Way`]) see what a real one would:
//! impressions, clicks and purchases that came in so far. The loss of a list is how many purchases fewer it is expected to
//! bring than the best list of the same SKUs. Invariant: a run is a function of world, way and seed; the world, the users
//! who come and their chance of buying are the same for every way, so differences between ways are paired.
//!
//! It is a model of a shop, not of yours: it says which ways fail under which conditions, not how much you will sell.

use schemars::JsonSchema;
use serde::Serialize;

mod run;
mod shelf;
#[cfg(test)]
mod tests;
mod ways;
mod world;

pub use run::{Run, run};
pub use ways::Way;
pub use world::World;

use crate::learn::bootstrap::{Interval, Resampling, mean};

/// What the seeds of one way in one world say.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Summary {
    /// Name of the way.
    pub way: String,
    /// Purchases lost for 1000 lists, compared with the best list.
    pub loss: Interval,
    /// The loss less that of the way it is compared with, paired by seed.
    pub difference: Interval,
    /// Share of the lists of a product after the launch of a good SKU that had it, among the first 100 and 400.
    pub launches: [Interval; 2],
    /// The loss of each week, for 1000 lists.
    pub weeks: Vec<f64>,
}

/// Summarises the runs of each way: `runs[way][seed]`, all ways with the same seeds. Differences are to the way at
/// `baseline`.
pub fn summarise(ways: &[Way], runs: &[Vec<Run>], baseline: usize) -> Vec<Summary> {
    let of = |values: &mut dyn Iterator<Item = f64>| {
        let values: Vec<(usize, f64)> = values.enumerate().collect();
        mean(values, Resampling::default())
    };
    let one = |(way, own): (&Way, &Vec<Run>)| {
        let others = runs.get(baseline).unwrap_or(own);
        let shown = |at: usize| {
            let known = own.iter().filter_map(|run| run.launches.shown(at));
            of(&mut known.collect::<Vec<_>>().into_iter())
        };
        let weeks = own.iter().map(|run| run.weeks.len()).max().unwrap_or(0);
        let week = |at: usize| {
            let of_week: Vec<f64> = own
                .iter()
                .filter_map(|run| run.weeks.get(at).copied())
                .collect();
            of_week.iter().sum::<f64>() / of_week.len().max(1) as f64
        };
        Summary {
            way: way.name(),
            loss: of(&mut own.iter().map(Run::loss)),
            difference: of(&mut own.iter().zip(others).map(|(a, b)| a.loss() - b.loss())),
            launches: [shown(0), shown(1)],
            weeks: (0..weeks).map(week).collect(),
        }
    };
    ways.iter().zip(runs).map(one).collect()
}
