//! Fits a [`ChoiceModel`] to choices of a log: the weights and the strength of its prior under which they are likeliest.
//!
//! A choice came either from the prior or from the user's own counts. Newton's method climbs the likelihood by the
//! curvature of the expectation-maximisation bound (Dempster, Laird and Rubin 1977), which is never negative, and takes a
//! step only if the likelihood itself rises. Invariant: equal samples in equal order give equal bits. It does not know
//! where samples come from.

use super::replay::Choice;
use super::{Candidates, ChoiceModel, VERSION};
use crate::learn::logit::{self, Case, Moments, Options};

/// What is not fitted: chosen once on the demo's log, see docs/selection.md.
pub(super) const START: Start = Start {
    kappa: 1.0,
    forget: 0.9,
    half_life_days: 90.0,
};

/// Where the fit begins.
pub(super) struct Start {
    kappa: f64,
    forget: f64,
    half_life_days: f64,
}

impl Start {
    /// A model without weights.
    pub(super) fn model(&self) -> ChoiceModel {
        ChoiceModel {
            version: VERSION,
            weights: Default::default(),
            kappa: self.kappa,
            forget: self.forget,
            half_life_days: self.half_life_days,
        }
    }
}

/// Strength with which weights are drawn to 0, in choices per unit of weight squared.
const RIDGE: f64 = 1.0;

/// A choice to be fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Fold of the user.
    pub fold: usize,
    /// Features, a column each.
    pub(crate) columns: Vec<Vec<f32>>,
    /// What each candidate's own purchases count.
    pub(crate) counts: Vec<f32>,
    /// Place of the SKU that was taken.
    pub(crate) taken: u32,
}

/// Samples with the names of their columns.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// Names of the columns.
    pub(crate) names: Vec<String>,
    /// The samples, in the order of the log.
    pub samples: Vec<Sample>,
}

/// Most candidates of a sample: those that sell most, the user's own and the one that was taken. It bounds memory.
const CANDIDATES_MAX: usize = 300;

impl Samples {
    /// Adds a choice of a user of this fold.
    pub fn add(&mut self, choice: &Choice<'_>, fold: usize) {
        let candidates = choice.candidates();
        if self.names.is_empty() {
            self.names = candidates.names();
        }
        let counts = START.model().counts(&candidates);
        let kept = kept(&candidates, &counts, choice.taken);
        let of = |column: &Vec<f32>| kept.iter().map(|place| column[*place]).collect();
        let taken = kept.binary_search(&choice.taken).unwrap_or_default();
        self.samples.push(Sample {
            fold,
            columns: candidates.columns().iter().map(of).collect(),
            counts: of(&counts),
            taken: taken as u32,
        });
    }
}

/// Places of the candidates of a sample, ascending.
fn kept(candidates: &Candidates<'_>, counts: &[f32], taken: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..candidates.len()).collect();
    if places.len() > CANDIDATES_MAX {
        let must = |place: usize| place == taken || counts[place] > 0.0;
        let sold = |place: usize| candidates.demand[place][2];
        places.sort_by(|a, b| {
            let order = must(*b).cmp(&must(*a));
            order.then_with(|| sold(*b).total_cmp(&sold(*a)))
        });
        places.truncate(CANDIDATES_MAX);
        places.sort_unstable();
    }
    places
}

/// Fits to the samples of all folds but one, or of all.
pub fn fit(samples: &Samples, held_out: Option<usize>) -> ChoiceModel {
    let used: Vec<&Sample> = samples
        .samples
        .iter()
        .filter(|sample| Some(sample.fold) != held_out)
        .collect();
    let terms = samples.names.len() + 1;
    let options = Options {
        ridge: RIDGE,
        ..Options::default()
    };
    let found = logit::fit(terms, &options, |weights| {
        let mut moments = Moments::new(terms);
        used.iter()
            .for_each(|sample| add(sample, weights, &mut moments));
        moments
    });
    let (log_kappa, weights) = found.weights.split_last().expect("the last is kappa's");
    ChoiceModel::of(&samples.names, weights, log_kappa.exp())
}

/// Adds one choice; the last weight is the logarithm of kappa.
pub(super) fn add(sample: &Sample, weights: &[f64], moments: &mut Moments) {
    let terms = weights.len();
    let (log_kappa, weights) = weights.split_last().expect("the last is kappa's");
    let taken = [sample.taken];
    let case = Case {
        terms: sample.columns.iter().map(Vec::as_slice).collect(),
        offset: None,
        targets: &taken,
        shares: None,
        products: sample.counts.len(),
    };
    let mut of_prior = Moments::new(weights.len());
    of_prior.add(&case, weights);
    let kappa = log_kappa.exp();
    let bought: f64 = sample.counts.iter().map(|count| f64::from(*count)).sum();
    let count = f64::from(sample.counts[sample.taken as usize]);
    let prior = of_prior.value.exp();
    let both = kappa * prior + count;
    // The chance that the choice came from the prior: after the choice, and before it.
    let (after, before) = (kappa * prior / both, kappa / (kappa + bought));
    let last = terms - 1;
    // Without counts nothing is lost where the prior's chance is too small for a number.
    moments.value += match count > 0.0 {
        true => both.ln() - (kappa + bought).ln(),
        false => of_prior.value + log_kappa - (kappa + bought).ln(),
    };
    let after = if count > 0.0 { after } else { 1.0 };
    moments.cases += 1;
    for row in 0..last {
        moments.gradient[row] += after * of_prior.gradient[row];
        for column in 0..last {
            moments.curvature[row * terms + column] +=
                after * of_prior.curvature[row * last + column];
        }
    }
    moments.gradient[last] += after - before;
    moments.curvature[last * terms + last] += before * (1.0 - before);
}
