//! Weights of one bucket of visible history: fitted, and kept only where they help.
//!
//! Decides which terms have a weight. A term whose 95 % interval contains 0 has none and the others are fitted again.
//! Likelihood is not recall: the likeliest weights of a large catalogue speak for its rare products, not for the first
//! ten names. So weights of 1, weights that were fitted to ranks and the likeliest weights are compared by recall, by
//! scores that were fitted to other users; if none of them ranks better than demand alone, demand alone remains.
//! Invariant: demand is always a part, the model's weight is never negative, and the result does not depend on the order
//! of samples. It does not know where values come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap::{Interval, Resampling, paired};
use super::logit::{self, Case, Contributions, Moments};
use super::measures;
use super::ranking;
use crate::list::terms::{DEMAND, MODEL};

/// Names of a list that is compared with demand's.
const LIST: usize = 10;

/// A user at a cut: what the terms said then, and what was bought afterwards.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Number of the user.
    pub user: u32,
    /// Fold of the user.
    pub fold: usize,
    /// Values of each term, per product, in the order of [`Terms::names`].
    pub values: Vec<Arc<[f32]>>,
    /// Distinct products that were bought, ascending.
    pub targets: Vec<u32>,
    /// How much each of them counts in the fit, 1 together; `None`: all the same. What is measured counts all the same.
    pub shares: Option<Vec<f64>>,
}

/// How weights are fitted.
#[derive(Clone, Debug)]
pub struct GateOptions {
    /// Number of folds.
    pub folds: usize,
    /// Fewest users with a sample: with fewer, demand alone remains.
    pub users_min: usize,
    /// Seed of resampling.
    pub seed: u64,
}

/// A fitted weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FittedWeight {
    /// Weight with all terms.
    pub weight: f64,
    /// 95 % interval, clustered by user.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Whether the term has a weight.
    pub kept: bool,
}

/// What came out for one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BucketFit {
    /// Number of samples.
    pub samples: usize,
    /// Number of users.
    pub users: usize,
    /// The weights when all terms are in.
    pub fitted: BTreeMap<String, FittedWeight>,
    /// The weights to be used.
    pub weights: BTreeMap<String, f64>,
    /// Where they come from: `fitted`, `without bias`, `ranks`, `ranks without bias`, `1 and walk`, `1`, or `demand`.
    pub form: String,
    /// Recall@10 of the mixture less that of demand alone, each user scored by weights fitted to others.
    pub recall: Option<Interval>,
    /// The same difference of the mean log-probability of what was bought, in nats.
    pub nats: Option<Interval>,
    /// Why demand alone remains; empty if it does not.
    pub reason: String,
}

/// The terms of samples.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Their names; [`DEMAND`] is one of them.
    pub names: &'a [&'a str],
}

/// Fits the weights of a bucket.
pub fn fit_bucket(terms: Terms<'_>, samples: &[Sample], options: &GateOptions) -> BucketFit {
    let users: std::collections::BTreeSet<u32> = samples.iter().map(|sample| sample.user).collect();
    let mut found = BucketFit {
        samples: samples.len(),
        users: users.len(),
        fitted: BTreeMap::new(),
        weights: demand_alone(),
        form: DEMAND.to_owned(),
        recall: None,
        nats: None,
        reason: String::new(),
    };
    if users.len() < options.users_min {
        found.reason = format!(
            "only {} users, fewer than {}",
            users.len(),
            options.users_min
        );
        return found;
    }
    let all: Vec<&Sample> = samples.iter().collect();
    let kept = keep(terms, &all, &mut found.fitted);
    let says = say_something(terms, &all, &kept);
    let alone = Form::demand(terms);
    let by_demand = outcomes(terms, &alone, samples, options);
    let (mut best, mut by_best) = (alone, by_demand.clone());
    for form in Form::all(terms, &kept, &says) {
        let outcomes = outcomes(terms, &form, samples, options);
        let [recall, nats] = differences(&outcomes, &by_demand, options);
        let [over_best, _] = differences(&outcomes, &by_best, options);
        // Shown if none is better, too.
        let is_fit = form.name == FITTED && best.name == DEMAND;
        let is_better = nats.above_zero() && recall.mean > 0.0 && over_best.mean > 0.0;
        if is_fit || is_better {
            (found.recall, found.nats) = (Some(recall), Some(nats));
        }
        if is_better {
            (best, by_best) = (form, outcomes);
        }
    }
    if best.name == DEMAND {
        found.reason = "the mixture does not rank better than demand alone".into();
        return found;
    }
    let named = best.kept.iter().map(|at| terms.names[*at].to_owned());
    let weighed = named.zip(best.weights(terms, &all));
    found.weights = weighed
        .filter(|(name, weight)| *weight != 0.0 || name == DEMAND)
        .collect();
    best.name.clone_into(&mut found.form);
    found
}

/// The form with all kept terms.
const FITTED: &str = "fitted";

/// The terms that are logarithms of how much likelier something is bought: their sum at weight 1 says something.
const RATIOS: [&str; 4] = [DEMAND, "weeks", "repeat", "neighbours"];

/// The same with the random walk, whose reach of a user's whole history they do not have.
const RATIOS_AND_WALK: [&str; 5] = [DEMAND, "weeks", "repeat", "neighbours", "walk"];

/// How a form's weights are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// All are 1.
    One,
    /// The likeliest.
    Likelihood,
    /// Those under which what was bought is far up.
    Ranks,
}

/// One way to weigh the terms that can be told from 0.
struct Form {
    name: &'static str,
    kept: Vec<usize>,
    how: How,
}

impl Form {
    /// Demand alone, which the others are compared with.
    fn demand(terms: Terms<'_>) -> Self {
        let places = (0..terms.names.len()).filter(|at| terms.names[*at] == DEMAND);
        Self {
            name: DEMAND,
            kept: places.collect(),
            how: How::Likelihood,
        }
    }

    /// The others, the simplest first: of terms that the fit kept, and of terms that say something beside demand.
    fn all(terms: Terms<'_>, kept: &[usize], says: &[usize]) -> [Self; 6] {
        let form = |name, among: &[usize], is_kept: &dyn Fn(&str) -> bool, how| Self {
            name,
            kept: (among.iter().copied())
                .filter(|at| is_kept(terms.names[*at]))
                .collect(),
            how,
        };
        let without_bias = |name: &str| name != "bias";
        [
            form("1", kept, &|name| RATIOS.contains(&name), How::One),
            form(
                "1 and walk",
                kept,
                &|name| RATIOS_AND_WALK.contains(&name),
                How::One,
            ),
            form("ranks without bias", says, &without_bias, How::Ranks),
            form("without bias", kept, &without_bias, How::Likelihood),
            form("ranks", says, &|_| true, How::Ranks),
            form(FITTED, kept, &|_| true, How::Likelihood),
        ]
    }

    fn weights(&self, terms: Terms<'_>, samples: &[&Sample]) -> Vec<f64> {
        match self.how {
            How::One => vec![1.0; self.kept.len()],
            How::Likelihood => fit_terms(terms, &self.kept, samples).weights,
            How::Ranks => fit_ranks(terms, &self.kept, samples),
        }
    }
}

/// Weights by ranks, from weights of 1 for the logarithms of ratios on, scaled to be as likely as they can be: lists do
/// not depend on the scale, but what is added to a score at weight 1 does.
fn fit_ranks(terms: Terms<'_>, kept: &[usize], samples: &[&Sample]) -> Vec<f64> {
    let one = |at: &usize| f64::from(u8::from(RATIOS_AND_WALK.contains(&terms.names[*at])));
    let start = ranking::Start {
        weights: kept.iter().map(one).collect(),
        nonnegative: (kept.iter())
            .map(|at| !may_be_negative(terms.names[*at]))
            .collect(),
    };
    let cases: Vec<Case<'_>> = samples.iter().map(|sample| case(sample, kept)).collect();
    let weights = ranking::fit(&cases, &start);
    let scores: Vec<Vec<f32>> = cases.iter().map(|case| case.scores(&weights)).collect();
    let options = logit::Options {
        centre: vec![1.0],
        nonnegative: vec![true],
        ..logit::Options::default()
    };
    let scale = logit::fit(1, &options, |scale| {
        let mut moments = Moments::new(1);
        for (case, scores) in cases.iter().zip(&scores) {
            let terms = vec![&scores[..]];
            moments.add(&Case { terms, ..*case }, scale);
        }
        moments
    });
    // A scale of 0 would say nothing.
    let scale = scale.weights[0].max(1e-3);
    weights.iter().map(|weight| weight * scale).collect()
}

/// The terms that the fit kept, and those whose weight beside demand alone can be told from 0: of two that say nearly the
/// same the fit keeps one, which may not be the one that ranks better.
fn say_something(terms: Terms<'_>, samples: &[&Sample], kept: &[usize]) -> Vec<usize> {
    let demand = terms.names.iter().position(|name| *name == DEMAND);
    let says = |at: &usize| {
        kept.contains(at)
            || demand.is_some_and(|demand| {
                let mut found = BTreeMap::new();
                keep_among(terms, samples, (vec![demand, *at], &mut found)).contains(at)
            })
    };
    (0..terms.names.len()).filter(says).collect()
}

/// The scores of samples by weights that are fitted to all of them.
pub fn mixed(terms: Terms<'_>, samples: &[Sample]) -> Vec<Vec<f32>> {
    let all: Vec<usize> = (0..terms.names.len()).collect();
    let of: Vec<&Sample> = samples.iter().collect();
    let fit = fit_terms(terms, &all, &of);
    let scores = samples
        .iter()
        .map(|sample| case(sample, &all).scores(&fit.weights));
    scores.collect()
}

/// Drops the term whose weight is furthest from being told from 0, one at a time, until all are told from it.
fn keep(
    terms: Terms<'_>,
    samples: &[&Sample],
    fitted: &mut BTreeMap<String, FittedWeight>,
) -> Vec<usize> {
    keep_among(terms, samples, ((0..terms.names.len()).collect(), fitted))
}

/// The same of some terms.
fn keep_among(
    terms: Terms<'_>,
    samples: &[&Sample],
    (mut kept, fitted): (Vec<usize>, &mut BTreeMap<String, FittedWeight>),
) -> Vec<usize> {
    loop {
        let fit = fit_terms(terms, &kept, samples);
        let mut contributions = Contributions::default();
        for sample in samples {
            contributions.add(sample.user, &case(sample, &kept), &fit.weights);
        }
        let intervals = contributions.intervals(&fit);
        let mut worst: Option<(f64, usize)> = None;
        for (nth, at) in kept.iter().enumerate() {
            let (name, weight) = (terms.names[*at], fit.weights[nth]);
            let (low, high) = intervals[nth];
            let margin = (high - low).max(f64::MIN_POSITIVE) / 2.0;
            let told = weight.abs() / margin;
            let of = fitted.entry(name.to_owned()).or_insert(FittedWeight {
                weight,
                low,
                high,
                kept: true,
            });
            // The last fit with the term in it is the one that decides.
            (of.weight, of.low, of.high) = (weight, low, high);
            let fails = told <= 1.0 || (weight <= 0.0 && !may_be_negative(name));
            if name != DEMAND && fails && worst.is_none_or(|(least, _)| told < least) {
                worst = Some((told, nth));
            }
        }
        let Some((_, nth)) = worst else { return kept };
        let dropped = terms.names[kept.remove(nth)];
        if let Some(of) = fitted.get_mut(dropped) {
            of.kept = false;
        }
    }
}

/// Whether a weight below 0 says something: of a term that says the same to everyone, it corrects another one. What
/// speaks of the user, or of how often a product is bought, would speak against itself.
fn may_be_negative(term: &str) -> bool {
    ["assortment", "bias", "typical"].contains(&term)
}

fn fit_terms(terms: Terms<'_>, kept: &[usize], samples: &[&Sample]) -> logit::Fit {
    let of = |name: &str| f64::from(u8::from(name == DEMAND));
    let options = logit::Options {
        centre: kept.iter().map(|at| of(terms.names[*at])).collect(),
        nonnegative: kept
            .iter()
            .map(|at| [DEMAND, MODEL].contains(&terms.names[*at]))
            .collect(),
        ..logit::Options::default()
    };
    logit::fit(kept.len(), &options, |weights| {
        let mut moments = Moments::new(kept.len());
        samples
            .iter()
            .for_each(|sample| moments.add(&case(sample, kept), weights));
        moments
    })
}

fn case<'a>(sample: &'a Sample, kept: &[usize]) -> Case<'a> {
    Case {
        terms: kept.iter().map(|at| &*sample.values[*at]).collect(),
        offset: None,
        targets: &sample.targets,
        shares: sample.shares.as_deref(),
        products: sample.values.first().map_or(0, |values| values.len()),
    }
}

/// A sample's user, Recall@10, and log-probability of what was bought.
pub type Outcome = (u32, f64, f64);

/// What comes of a sample's scores; `None` if nothing was bought.
pub(super) fn outcome(user: u32, scores: &[f32], targets: &[u32]) -> Option<Outcome> {
    let list = measures::top(scores, LIST, |_| true);
    let recall = measures::recall(&list, targets, LIST)?;
    Some((user, recall, -measures::nats(scores, targets)?))
}

/// What came of each sample, each user scored by weights fitted to other folds; in the same order for every form.
fn outcomes(
    terms: Terms<'_>,
    form: &Form,
    samples: &[Sample],
    options: &GateOptions,
) -> Vec<Outcome> {
    outcomes_of(terms, form, (samples, samples), options)
}

/// What came of each sample by the form of weights that a fit chose, fitted to other samples of other folds.
pub fn held_out(
    terms: Terms<'_>,
    fit: &BucketFit,
    (train, test): (&[Sample], &[Sample]),
    options: &GateOptions,
) -> Vec<Outcome> {
    let is_kept = |name: &str| fit.fitted.get(name).is_some_and(|of| of.kept);
    let kept: Vec<usize> = (0..terms.names.len())
        .filter(|at| is_kept(terms.names[*at]))
        .collect();
    let says = say_something(terms, &train.iter().collect::<Vec<_>>(), &kept);
    let forms = Form::all(terms, &kept, &says).into_iter();
    let form = { forms }.find(|form| form.name == fit.form);
    let form = form.unwrap_or_else(|| Form::demand(terms));
    outcomes_of(terms, &form, (train, test), options)
}

fn outcomes_of(
    terms: Terms<'_>,
    form: &Form,
    (train, test): (&[Sample], &[Sample]),
    options: &GateOptions,
) -> Vec<Outcome> {
    let mut found = Vec::with_capacity(test.len());
    for fold in 0..options.folds.max(1) {
        let others: Vec<&Sample> = train.iter().filter(|sample| sample.fold != fold).collect();
        let weights = form.weights(terms, &others);
        for sample in test.iter().filter(|sample| sample.fold == fold) {
            let scores = case(sample, &form.kept).scores(&weights);
            found.extend(outcome(sample.user, &scores, &sample.targets));
        }
    }
    found
}

/// Differences of Recall@10 and of log-probabilities in nats, paired by sample.
pub fn differences(one: &[Outcome], other: &[Outcome], options: &GateOptions) -> [Interval; 2] {
    let how = Resampling {
        seed: options.seed,
        ..Resampling::default()
    };
    let of = |value: fn(&Outcome) -> f64| {
        let pairs = one.iter().zip(other);
        paired(pairs.map(|(a, b)| (a.0, value(a), value(b))), how)
    };
    [of(|outcome| outcome.1), of(|outcome| outcome.2)]
}

fn demand_alone() -> BTreeMap<String, f64> {
    [(DEMAND.to_owned(), 1.0)].into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::Random;

    const OPTIONS: GateOptions = GateOptions {
        folds: 3,
        users_min: 30,
        seed: 1,
    };

    /// Users who buy by softmax of demand + 2 · liked, beside a term of noise.
    fn samples(users: u32, liking: f32) -> Vec<Sample> {
        let mut random = Random::new(3);
        let demand: Arc<[f32]> = (0..40).map(|n| -(n as f32) / 10.0).collect();
        let one = |user| {
            let mut noise = || -> Arc<[f32]> { (0..40).map(|_| random.normal() as f32).collect() };
            let (liked, noise) = (noise(), noise());
            let scores: Vec<f32> = demand
                .iter()
                .zip(liked.iter())
                .map(|(a, b)| a + liking * b)
                .collect();
            let total = measures::log_sum_exp(&scores);
            let mut targets = std::collections::BTreeSet::new();
            while targets.len() < 3 {
                let mut left = random.uniform();
                let bought = scores.iter().position(|score| {
                    left -= (f64::from(*score) - total).exp();
                    left <= 0.0
                });
                targets.insert(bought.unwrap_or(0) as u32);
            }
            Sample {
                user,
                fold: (user % 3) as usize,
                values: vec![Arc::clone(&demand), liked, noise],
                targets: targets.into_iter().collect(),
                shares: None,
            }
        };
        (0..users).map(one).collect()
    }

    fn fitted(samples: &[Sample]) -> BucketFit {
        let names = ["demand", "repeat", "bias"];
        fit_bucket(Terms { names: &names }, samples, &OPTIONS)
    }

    #[test]
    fn noise_has_no_weight_and_what_users_follow_has_its_own() {
        let found = fitted(&samples(400, 1.5));
        assert_eq!(found.reason, "");
        assert!(!found.fitted["bias"].kept && !found.weights.contains_key("bias"));
        let (demand, liked) = (found.weights["demand"], found.weights["repeat"]);
        assert!(
            (0.6..1.2).contains(&demand) && (0.9..1.7).contains(&liked),
            "{found:?}"
        );
    }

    #[test]
    fn the_simplest_form_is_used_where_the_fit_ranks_no_better() {
        // Two products of each user are far above demand by any weight near 1, so every form lists the same names.
        let mut samples = samples(300, 0.0);
        for sample in &mut samples {
            let own = [10 + sample.user % 30, 10 + (sample.user * 7 + 3) % 30];
            let repeat = (0..40).map(|n| if own.contains(&n) { 5.0 } else { 0.0 });
            sample.values[1] = repeat.collect();
            sample.targets = vec![sample.user % 4, own[0]];
        }
        let found = fitted(&samples);
        assert_eq!(found.form, "1", "{found:?}");
        let expected = [("demand".to_owned(), 1.0), ("repeat".to_owned(), 1.0)];
        assert_eq!(found.weights, expected.into());
        assert!(found.recall.is_some_and(|recall| recall.low > 0.0));
    }

    #[test]
    fn weights_by_ranks_list_more_where_the_likeliest_speak_for_rare_products() {
        // Most is bought of the first nine by demand, and then nothing until far down, which levels the likeliest weights.
        let mut random = Random::new(11);
        let demand: Arc<[f32]> = (0..60).map(|n| -(n as f32) / 8.0).collect();
        let one = |user: u32| {
            let own: Vec<u32> = (0..4).map(|_| (random.uniform() * 60.0) as u32).collect();
            let values = (0..60).map(|n| if own.contains(&n) { 1.0 } else { 0.0 });
            let mut targets: Vec<u32> = (0..9).filter(|_| random.uniform() < 0.4).collect();
            targets.extend(own.iter().filter(|_| random.uniform() < 0.1));
            targets.extend((0..6).map(|_| 30 + (random.uniform() * 30.0) as u32));
            targets.sort_unstable();
            targets.dedup();
            Sample {
                user,
                fold: (user % 3) as usize,
                values: vec![Arc::clone(&demand), values.collect()],
                targets,
                shares: None,
            }
        };
        let samples: Vec<Sample> = (0..400).map(one).collect();
        let terms = Terms {
            names: &["demand", "bought"],
        };
        let all: Vec<&Sample> = samples.iter().collect();
        let recall = |weights: &[f64]| {
            let of = |sample: &&Sample| {
                let scores = case(sample, &[0, 1]).scores(weights);
                outcome(sample.user, &scores, &sample.targets).map(|(_, recall, _)| recall)
            };
            all.iter().filter_map(of).sum::<f64>() / all.len() as f64
        };
        let likeliest = recall(&fit_terms(terms, &[0, 1], &all).weights);
        let ranked = recall(&fit_ranks(terms, &[0, 1], &all));
        assert!(ranked > likeliest + 0.02, "{ranked} {likeliest}");
    }

    #[test]
    fn of_terms_that_say_the_same_both_can_be_ranked_by_and_noise_cannot() {
        let mut samples = samples(400, 1.5);
        for sample in &mut samples {
            let again: Arc<[f32]> = sample.values[1].iter().map(|value| value * 1.01).collect();
            sample.values.insert(2, again);
        }
        let names = ["demand", "repeat", "cosine", "bias"];
        let terms = Terms { names: &names };
        let all: Vec<&Sample> = samples.iter().collect();
        assert_eq!(say_something(terms, &all, &[0, 1]), [0, 1, 2]);
    }

    #[test]
    fn demand_alone_remains_where_nothing_helps_or_users_are_few() {
        let found = fitted(&samples(300, 0.0));
        assert_eq!(found.weights, demand_alone(), "{found:?}");
        assert!(found.reason.contains("not rank better"), "{found:?}");
        let few = fitted(&samples(20, 1.5));
        assert_eq!(few.weights, demand_alone());
        assert!(few.reason.starts_with("only 20 users"), "{few:?}");
    }

    #[test]
    fn the_order_of_samples_changes_no_weight_that_is_kept() {
        let mut samples = samples(200, 1.5);
        let found = fitted(&samples);
        samples.reverse();
        let again = fitted(&samples);
        assert_eq!(found.fitted.len(), again.fitted.len());
        for (name, weight) in &found.weights {
            assert!((again.weights[name] - weight).abs() < 1e-6);
        }
    }
}
