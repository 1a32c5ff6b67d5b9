//! Recall@10 of an aligned arm beside its parts, on users that it did not learn from.
//!
//! Invariant: all routes rank the same products for the same users, from what was known at the cut. It does not know
//! how weights were fitted.

use std::collections::BTreeMap;

use nearshore_core::learn::bootstrap::{Interval, Resampling, mean, paired};
use nearshore_core::learn::measures::{recall, top};
use nearshore_core::list::terms::mixture;
use nearshore_core::user::record::Timestamp;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::Serialize;

use super::align::{AlignOptions, Fitted, learned};
use super::{Case, CaseMaker, History, Knowledge, Plain, UserHistory, Visible};
use crate::config::Config;

/// Names of the lists that are compared.
const LIST: usize = 10;

/// A route's Recall@10.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct RouteRecall {
    /// Name of the route.
    pub(crate) route: &'static str,
    /// Its mean with its interval.
    pub(crate) recall: Interval,
    /// The arm's mean less the route's.
    pub(crate) arm_less_route: Interval,
}

/// Users and time of a comparison.
pub(crate) struct Held<'a> {
    /// Users whose purchases are known.
    pub(crate) train: Vec<&'a UserHistory>,
    /// Users who are asked, of whom nothing after the cut is known.
    pub(crate) test: Vec<&'a UserHistory>,
    /// The cut.
    pub(crate) cut: Timestamp,
}

/// A route: its name and the weights that it gives a user with so much visible history.
type RouteWeights = (
    &'static str,
    Box<dyn Fn(usize) -> BTreeMap<String, f64> + Sync>,
);

/// Ranks for each test user with a purchase before the cut; the arm comes first.
pub(crate) fn compare(
    history: &History,
    config: &Config,
    (fitted, options): (&Fitted, &AlignOptions),
    held: Held<'_>,
) -> anyhow::Result<Vec<RouteRecall>> {
    let knowledge = Knowledge {
        history,
        config,
        users: held.train,
        cut: held.cut,
        window: options.window,
        cold: None,
    };
    let shop = knowledge.shop();
    let learned = learned(fitted.tables.clone(), &shop)?;
    let plain = Plain::permitting(config)?;
    let context = plain.context();
    let maker = CaseMaker {
        shop: &shop,
        context: &context,
        window: config.state.window,
        visible: &[Visible::More],
        until: Timestamp(held.cut.0 + options.window),
        ns: &config.namespace,
    };
    let cases: Vec<Case> = (0..)
        .zip(&held.test)
        .flat_map(|(nth, user)| maker.cases(nth, user))
        .map(|(_, case)| case)
        .collect();
    let routes = routes(fitted);
    let hits = |weights: &RouteWeights| -> Vec<(u32, f64)> {
        let of = cases.par_iter().filter_map(|case| {
            let scores = mixture(&weights.1(case.own.len()), &case.input(&shop, &learned));
            let list = top(&scores, LIST, |pu| case.permitted.contains(pu as usize));
            Some((case.user, recall(&list, &case.targets, LIST)?))
        });
        of.collect()
    };
    let found: Vec<Vec<(u32, f64)>> = routes.iter().map(hits).collect();
    let how = Resampling {
        seed: options.seed,
        ..Resampling::default()
    };
    let of = routes
        .iter()
        .zip(&found)
        .map(|((route, _), of)| RouteRecall {
            route,
            recall: mean(of.iter().copied(), how),
            arm_less_route: paired(
                found[0]
                    .iter()
                    .zip(of)
                    .map(|((user, a), (_, b))| (*user, *a, *b)),
                how,
            ),
        });
    Ok(of.collect())
}

/// The arm, and what it is compared with.
fn routes(fitted: &Fitted) -> [RouteWeights; 4] {
    let arm = fitted.weights();
    let fixed = |names: &'static [&'static str]| -> BTreeMap<String, f64> {
        names.iter().map(|name| ((*name).to_owned(), 1.0)).collect()
    };
    [
        ("arm", Box::new(move |visible| arm.at(visible).clone())),
        ("demand", Box::new(move |_| fixed(&["demand"]))),
        ("repeat", Box::new(move |_| fixed(&["demand", "repeat"]))),
        (
            "neighbours",
            Box::new(move |_| fixed(&["demand", "neighbours"])),
        ),
    ]
}
