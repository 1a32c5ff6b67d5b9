//! The model's weight in one bucket of visible history, beside terms whose weights are fitted already.
//!
//! The other terms' sum is an offset, so the few cases that a model can be asked about decide about its weight alone.
//! Invariant: the weight is 0 unless its 95 % interval is above 0 and, for users of other folds, nats are better with an
//! interval above 0 and recall is not worse. It does not know how a model is asked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap::Interval;
use super::gate::{FittedWeight, GateOptions, differences, outcome};
use super::logit::{self, Case, Contributions, Moments};

/// A case that the model was asked about. Products are those that may be listed, by their place among them.
#[derive(Clone, Debug)]
pub struct ModelSample {
    /// Number of the user.
    pub user: u32,
    /// Fold of the user.
    pub fold: usize,
    /// Weighted sum of the other terms.
    pub offset: Vec<f32>,
    /// What the model says.
    pub model: Vec<f32>,
    /// Products that were bought, ascending; at least one.
    pub targets: Vec<u32>,
}

/// What came out for the model in one bucket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelFit {
    /// Number of samples.
    pub samples: usize,
    /// Number of users.
    pub users: usize,
    /// The fitted weight.
    pub fitted: Option<FittedWeight>,
    /// Recall@10 with the model less that without it, each user by weights fitted to others.
    pub recall: Option<Interval>,
    /// The same of the mean log-probability of what was bought, in nats.
    pub nats: Option<Interval>,
    /// Why the model has no weight; empty if it has one.
    pub reason: String,
}

impl ModelFit {
    /// The weight to be used.
    pub fn weight(&self) -> Option<f64> {
        let fitted = self.fitted.filter(|fitted| fitted.kept);
        fitted.map(|fitted| fitted.weight)
    }
}

/// Fits the model's weight in a bucket.
pub fn fit_model(samples: &[ModelSample], options: &GateOptions) -> ModelFit {
    let users: std::collections::BTreeSet<u32> = samples.iter().map(|sample| sample.user).collect();
    let mut found = ModelFit {
        samples: samples.len(),
        users: users.len(),
        fitted: None,
        recall: None,
        nats: None,
        reason: String::new(),
    };
    if users.len() < options.users_min {
        found.reason = format!(
            "the model was asked about {} users, fewer than {}",
            users.len(),
            options.users_min
        );
        return found;
    }
    let all: Vec<&ModelSample> = samples.iter().collect();
    let fit = fit(&all);
    let mut contributions = Contributions::default();
    for sample in samples {
        contributions.add(sample.user, &case(sample), &fit.weights);
    }
    let (weight, (low, high)) = (fit.weights[0], contributions.intervals(&fit)[0]);
    let [recall, nats] = compare(samples, options);
    let problems = [
        (low <= 0.0, "its weight cannot be told from 0"),
        (
            !nats.above_zero() || recall.mean < 0.0,
            "it does not rank better than the other terms alone",
        ),
    ];
    let problem = problems.iter().find(|(fails, _)| *fails);
    found.reason = problem.map_or(String::new(), |(_, why)| (*why).to_owned());
    found.fitted = Some(FittedWeight {
        weight,
        low,
        high,
        kept: problem.is_none(),
    });
    (found.recall, found.nats) = (Some(recall), Some(nats));
    found
}

fn case(sample: &ModelSample) -> Case<'_> {
    Case {
        terms: vec![&sample.model],
        offset: Some(&sample.offset),
        targets: &sample.targets,
        shares: None,
        products: sample.offset.len(),
    }
}

fn fit(samples: &[&ModelSample]) -> logit::Fit {
    let options = logit::Options {
        centre: vec![0.0],
        nonnegative: vec![true],
        ..logit::Options::default()
    };
    logit::fit(1, &options, |weights| {
        let mut moments = Moments::new(1);
        let each = samples.iter();
        each.for_each(|sample| moments.add(&case(sample), weights));
        moments
    })
}

/// Differences of Recall@10 and nats between with and without the model, each user by the weight of other folds.
fn compare(samples: &[ModelSample], options: &GateOptions) -> [Interval; 2] {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for fold in 0..options.folds.max(1) {
        let (held, others): (Vec<&ModelSample>, Vec<&ModelSample>) =
            samples.iter().partition(|sample| sample.fold == fold);
        let weights = fit(&others).weights;
        for sample in held {
            let scores = case(sample).scores(&weights);
            with.extend(outcome(sample.user, &scores, &sample.targets));
            without.extend(outcome(sample.user, &sample.offset, &sample.targets));
        }
    }
    differences(&with, &without, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::Random;
    use crate::learn::measures;

    const OPTIONS: GateOptions = GateOptions {
        folds: 3,
        users_min: 30,
        seed: 1,
    };

    /// Users who buy what their own taste prefers, of which the model knows `knows`, from -1 to 1.
    fn samples(users: u32, knows: f32) -> Vec<ModelSample> {
        let mut random = Random::new(7);
        let of = |user| {
            let normal = |random: &mut Random| -> Vec<f32> {
                (0..40).map(|_| random.normal() as f32).collect()
            };
            let (offset, taste, noise) = (
                normal(&mut random),
                normal(&mut random),
                normal(&mut random),
            );
            let liked: Vec<f32> = offset
                .iter()
                .zip(&taste)
                .map(|(offset, taste)| offset + 2.0 * taste)
                .collect();
            let mut targets = measures::top(&liked, 3, |_| true);
            targets.sort_unstable();
            let model = taste
                .iter()
                .zip(&noise)
                .map(|(taste, noise)| knows * taste + (1.0 - knows.abs()) * noise);
            ModelSample {
                user,
                fold: user as usize % 3,
                model: model.collect(),
                offset,
                targets,
            }
        };
        (0..users).map(of).collect()
    }

    #[test]
    fn a_model_that_knows_something_gets_a_weight() {
        let fit = fit_model(&samples(90, 0.7), &OPTIONS);
        assert_eq!(fit.reason, "");
        assert!(fit.weight().is_some_and(|weight| weight > 0.2), "{fit:?}");
        assert!(fit.recall.is_some_and(|recall| recall.mean > 0.0));
    }

    #[test]
    fn noise_and_a_model_that_is_wrong_get_none() {
        for knows in [0.0, -0.7] {
            let fit = fit_model(&samples(90, knows), &OPTIONS);
            assert_eq!(fit.weight(), None, "{knows}: {fit:?}");
            assert!(!fit.reason.is_empty());
        }
    }

    #[test]
    fn too_few_users_decide_nothing() {
        let fit = fit_model(&samples(29, 0.9), &OPTIONS);
        assert_eq!(fit.weight(), None);
        assert_eq!(
            fit.reason,
            "the model was asked about 29 users, fewer than 30"
        );
    }
}
