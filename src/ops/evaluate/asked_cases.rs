//! The cases that a model of an arm learns from: users at a cut, with the prompt, what the mixture says, and what was
//! bought after it.
//!
//! Invariant: what the mixture says to a user is fitted and counted on users of other folds. It does not know what is
//! learned from them.

use nearshore_core::learn::split::uniform;
use nearshore_core::list::terms::BUCKETS;
use nearshore_core::names::scoring::{Prompt, ScoreRequest};
use nearshore_core::user::record::Timestamp;

use super::align::{AlignOptions, Among, Fitted, Taught, taught, visible_cases};
use super::arms::Modelled;
use super::model::{chosen, scores};
use super::{Case, History};
use crate::config::Config;

/// Share of the users who decide when training stops.
const TUNE: f64 = 0.2;

/// Which users are asked about.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// Most users of a bucket of visible history.
    pub(crate) users: usize,
    /// Least visible history of the buckets; empty is all.
    pub(crate) buckets: Vec<usize>,
}

impl Wanted {
    /// Whether a bucket is asked about.
    pub(super) fn asks(&self, bucket: usize) -> bool {
        self.buckets.is_empty() || self.buckets.contains(&BUCKETS[bucket])
    }

    /// The most users.
    pub(super) fn users(&self, folds: usize) -> usize {
        let buckets = (0..BUCKETS.len()).filter(|bucket| self.asks(*bucket));
        self.users.div_ceil(folds) * folds * buckets.count()
    }
}

/// A user at the cut of their fold.
pub(super) struct AskedCase {
    pub(super) user: u32,
    pub(super) fold: usize,
    pub(super) bucket: usize,
    pub(super) prompt: Prompt,
    /// Products that may be listed, ascending.
    pub(super) products: Vec<u32>,
    /// The mixture's log score of each.
    pub(super) offset: Vec<f32>,
    /// Places of what was bought.
    pub(super) targets: Vec<u32>,
    /// Whether the user decides when training stops.
    pub(super) is_tune: bool,
}

/// The cases of all folds; `progress` is called after each.
pub(super) fn asked_cases(
    history: &History,
    config: &Config,
    (options, among): (&AlignOptions, &Among<'_>),
    (wanted, modelled, fitted): (&Wanted, &Modelled, &Fitted),
    progress: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<Vec<AskedCase>> {
    let mut all = Vec::new();
    for held_out in 0..options.folds {
        let cut = Timestamp(among.until.0 - options.window);
        let taught = taught(history, config, (options, among), (cut, held_out))?;
        let cases = visible_cases(config, (options, among), (&taught, held_out))?;
        let asked = chosen(among, options, cases, wanted.users.div_ceil(options.folds));
        let asked = asked.into_iter().filter(|(bucket, _)| wanted.asks(*bucket));
        for (bucket, cases) in asked {
            let cases: Vec<&Case> = cases.iter().collect();
            let requests = modelled.requests(&cases, &taught.shop);
            let both = cases.into_iter().zip(&requests);
            all.extend(both.filter_map(|(case, request)| {
                let request = request.as_ref()?;
                let is_tune = is_tune(among, options, case);
                let found = asked_case((case, request), (&taught, fitted), (held_out, bucket))?;
                Some(AskedCase { is_tune, ..found })
            }));
        }
        progress("cases");
    }
    Ok(all)
}

/// Whether the user of a case decides when training stops.
fn is_tune(among: &Among<'_>, options: &AlignOptions, case: &Case) -> bool {
    let id = &among.users[case.user as usize].id.0;
    uniform(options.seed.wrapping_add(3), id) < TUNE
}

/// `None` if nothing that may be listed was bought.
fn asked_case(
    (case, request): (&Case, &ScoreRequest),
    (taught, fitted): (&Taught, &Fitted),
    (held_out, bucket): (usize, usize),
) -> Option<AskedCase> {
    let permitted = request.permitted.as_ref()?;
    let products: Vec<u32> = permitted.ones().map(|pu| pu as u32).collect();
    let place = |target: &u32| products.binary_search(target).ok().map(|at| at as u32);
    let targets: Vec<u32> = case.targets.iter().filter_map(place).collect();
    if targets.is_empty() {
        return None;
    }
    let scores = scores(case, (taught, fitted), held_out);
    Some(AskedCase {
        user: case.user,
        fold: held_out,
        bucket,
        prompt: request.prompt.clone(),
        offset: products.iter().map(|pu| scores[*pu as usize]).collect(),
        products,
        targets,
        is_tune: false,
    })
}
