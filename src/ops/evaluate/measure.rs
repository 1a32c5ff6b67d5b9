//! Measures of rankings, and what they are over many cases: means with intervals, and differences to the baseline.
//!
//! Invariant: the order of cases, and on how many threads they were ranked, changes no result.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;
use nearshore_core::learn::bootstrap::{Interval, Resampling, mean, paired};
use nearshore_core::learn::measures::{exclusive, log_sum_exp, ndcg, recall, top};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::case::Case;
use super::routes::Ranked;
use super::shop::Shop;

/// Lengths of lists at which recall is measured.
pub(crate) const DEPTHS: [usize; 3] = [5, 10, 20];

/// The longest list that is measured.
const LONGEST: usize = 20;

/// Which targets count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Targets {
    /// All products bought in the window.
    All,
    /// Those that the user had not bought before the cut.
    New,
}

/// One case measured by one route.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    /// User and cut.
    case: (u32, u16),
    recall: [f64; 3],
    ndcg: f64,
    nats: Option<f64>,
    exclusive: Option<(f64, f64)>,
}

/// All cases of one route in one cell.
#[derive(Clone, Debug, Default)]
struct Samples {
    samples: Vec<Sample>,
    listed: FixedBitSet,
    permitted: FixedBitSet,
    illegal: u64,
}

/// Where a measurement belongs: index of the visible history, targets, and the route's index.
type Place = (usize, Targets, usize);

/// Measurements of one part of an evaluation.
#[derive(Default)]
pub(super) struct Board {
    cells: BTreeMap<Place, Samples>,
}

/// A route's ranking of one case, measured.
pub(super) struct Measured {
    list: Vec<u32>,
    illegal: u64,
    /// For all targets and for new ones; none where there is no target.
    samples: [Option<Sample>; 2],
}

/// Measures a ranking. `popular`: the products of the case by demand, best first.
pub(super) fn measure(
    case: &Case,
    cut: u16,
    ranked: &Ranked,
    (shop, popular): (&Shop, &[u32]),
) -> Measured {
    let is_permitted = |product: u32| case.permitted.contains(product as usize);
    let (list, scores) = match ranked {
        Ranked::Scores(scores) => (top(scores, LONGEST, is_permitted), Some(scores)),
        Ranked::List(list) => (list[..list.len().min(LONGEST)].to_vec(), None),
    };
    let normaliser = scores.map(|scores| {
        let within = case
            .permitted
            .ones()
            .filter_map(|product| scores.get(product).copied());
        log_sum_exp(&within.collect::<Vec<f32>>())
    });
    // The probability is among what may be listed: a target that may not be is left out.
    let nats = |wanted: &[u32]| -> Option<f64> {
        let (scores, normaliser) = (scores?, normaliser?);
        let listed = wanted.iter().filter(|target| is_permitted(**target));
        let all: Vec<f64> = listed
            .map(|target| normaliser - f64::from(scores[*target as usize]))
            .collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let sample = |wanted: &[u32]| {
        Some(Sample {
            case: (case.user, cut),
            ndcg: ndcg(&list, wanted, 10)?,
            recall: DEPTHS.map(|k| recall(&list, wanted, k).unwrap_or(0.0)),
            nats: nats(wanted),
            exclusive: exclusive(&list, popular, wanted, LONGEST)
                .map(|it| (it.recall, it.next_popular)),
        })
    };
    Measured {
        samples: [sample(&case.targets), sample(&case.new_targets)],
        illegal: illegal(case, shop, &list),
        list,
    }
}

impl Board {
    /// Adds the measured ranking of a case by a route.
    pub(super) fn add(
        &mut self,
        (visible, route): (usize, usize),
        case: &Case,
        measured: Measured,
    ) {
        for (targets, sample) in [Targets::All, Targets::New]
            .into_iter()
            .zip(measured.samples)
        {
            let Some(sample) = sample else {
                continue;
            };
            let samples = self.cells.entry((visible, targets, route)).or_default();
            samples.permitted.grow(case.permitted.len());
            samples.permitted.union_with(&case.permitted);
            samples.listed.grow(case.permitted.len());
            for product in measured.list.iter().take(10) {
                samples.listed.grow(*product as usize + 1);
                samples.listed.insert(*product as usize);
            }
            samples.illegal += measured.illegal;
            samples.samples.push(sample);
        }
    }

    /// Number of illegal names on all lists.
    pub(super) fn illegal(&self) -> u64 {
        let all = self
            .cells
            .iter()
            .filter(|((_, targets, _), _)| *targets == Targets::All);
        all.map(|(_, samples)| samples.illegal).sum()
    }

    /// Recall@10 alone of each cell and route, for a point of the learning curve.
    pub(super) fn points(&self, asked: &Asked, train_users: usize) -> Vec<Point> {
        let places: Vec<(&Place, &Samples)> = self.cells.iter().collect();
        let point = |(place, samples): (&Place, &Samples)| {
            let (visible, targets, route) = *place;
            let baseline = self.cells.get(&(visible, targets, asked.baseline))?;
            Some(Point {
                train_users,
                visible: asked.visible[visible].clone(),
                targets,
                route: asked.routes[route].clone(),
                recall: recall_10(samples, asked.how),
                difference: (route != asked.baseline)
                    .then(|| difference(samples, baseline, asked.how)),
            })
        };
        places.into_par_iter().filter_map(point).collect()
    }

    /// The cells with routes of these names, compared with the route `baseline`.
    pub(super) fn cells(&self, asked: &Asked) -> Vec<Cell> {
        let mut places: Vec<(usize, Targets)> = self
            .cells
            .keys()
            .map(|(visible, of, _)| (*visible, *of))
            .collect();
        places.dedup();
        let cell = |(visible, targets): (usize, Targets)| {
            let baseline = self.cells.get(&(visible, targets, asked.baseline))?;
            let summaries = asked
                .routes
                .par_iter()
                .enumerate()
                .filter_map(|(nth, name)| {
                    let samples = self.cells.get(&(visible, targets, nth))?;
                    Some(summary(
                        name,
                        samples,
                        (nth != asked.baseline).then_some(baseline),
                        asked.how,
                    ))
                });
            let routes: Vec<Summary> = summaries.collect();
            let baseline = recall_10(baseline, asked.how);
            Some(Cell {
                visible: asked.visible[visible].clone(),
                targets,
                users: baseline.users,
                cases: baseline.cases,
                routes,
            })
        };
        places.into_iter().filter_map(cell).collect()
    }
}

/// How a board becomes cells.
pub(super) struct Asked<'a> {
    /// Names of the routes, by index.
    pub(super) routes: &'a [String],
    /// Index of the baseline.
    pub(super) baseline: usize,
    /// Names of amounts of visible history, by index.
    pub(super) visible: &'a [String],
    pub(super) how: Resampling,
}

/// All routes over the same cases.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Cell {
    /// Distinct products visible.
    pub(crate) visible: String,
    /// Which targets count.
    pub(crate) targets: Targets,
    /// Users with a case.
    pub(crate) users: usize,
    /// Cases.
    pub(crate) cases: usize,
    /// The routes.
    pub(crate) routes: Vec<Summary>,
}

/// A route's Recall@10 with the logs of a number of train users.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Point {
    /// Train users whose logs are known.
    pub(crate) train_users: usize,
    /// Distinct products visible.
    pub(crate) visible: String,
    /// Which targets count.
    pub(crate) targets: Targets,
    /// Name of the route.
    pub(crate) route: String,
    /// Recall@10.
    pub(crate) recall: Interval,
    /// Recall@10 less that of the baseline with the same logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) difference: Option<Interval>,
}

/// One route over the cases of a cell.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Summary {
    /// Name.
    pub(crate) route: String,
    /// Recall@5, @10, @20.
    pub(crate) recall: [Interval; 3],
    /// NDCG@10.
    pub(crate) ndcg: Interval,
    /// Mean -ln of a target's probability; none for a list without scores of all products.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats: Option<Interval>,
    /// Share of the products that may be listed on at least one list, first ten names.
    pub(crate) coverage: f64,
    /// Recall of targets outside the 20 most popular.
    pub(crate) exclusive: Interval,
    /// The same by the next 20 popular.
    pub(crate) next_popular: Interval,
    /// Recall@10 less that of the baseline, over the cases of both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) difference: Option<Interval>,
    /// Names on lists that rules or stock forbid.
    pub(crate) illegal: u64,
}

fn summary(name: &str, of: &Samples, baseline: Option<&Samples>, how: Resampling) -> Summary {
    let over = |value: &dyn Fn(&Sample) -> Option<f64>| {
        let values = of
            .samples
            .iter()
            .filter_map(|it| Some((it.case.0, value(it)?)));
        mean(values, how)
    };
    let nats = over(&|it| it.nats);
    Summary {
        route: name.to_owned(),
        recall: [0, 1, 2].map(|depth| over(&|it| Some(it.recall[depth]))),
        ndcg: over(&|it| Some(it.ndcg)),
        nats: (nats.cases > 0).then_some(nats),
        coverage: match of.permitted.count_ones(..) {
            0 => 0.0,
            products => of.listed.count_ones(..) as f64 / products as f64,
        },
        exclusive: over(&|it| Some(it.exclusive?.0)),
        next_popular: over(&|it| Some(it.exclusive?.1)),
        difference: baseline.map(|baseline| difference(of, baseline, how)),
        illegal: of.illegal,
    }
}

fn recall_10(of: &Samples, how: Resampling) -> Interval {
    mean(of.samples.iter().map(|it| (it.case.0, it.recall[1])), how)
}

fn difference(of: &Samples, baseline: &Samples, how: Resampling) -> Interval {
    let known: BTreeMap<(u32, u16), f64> = baseline
        .samples
        .iter()
        .map(|it| (it.case, it.recall[1]))
        .collect();
    let both = of.samples.iter().filter_map(|it| {
        let baseline = known.get(&it.case)?;
        Some((it.case.0, it.recall[1], *baseline))
    });
    paired(both, how)
}

/// Names that rules or stock forbid, judged anew: whatever made the list, they may not be on it.
fn illegal(case: &Case, shop: &Shop, list: &[u32]) -> u64 {
    let snapshot = &shop.snapshot;
    let profile = case
        .state
        .profile
        .as_ref()
        .map(|profiled| &profiled.profile);
    let permitted = snapshot
        .judge(profile, shop.cut)
        .permitted(&snapshot.catalogue);
    list.iter()
        .filter(|product| !permitted.contains(**product as usize))
        .count() as u64
}
