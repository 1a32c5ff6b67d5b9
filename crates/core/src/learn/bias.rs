//! The bias of a product: how much more or less it is bought than a mixture says, whoever the user is.
//!
//! Invariant: 0 for a product that too few cases bought, and drawn to 0 by a ridge. A bias that is measured on the cases
//! that made it flatters itself: [`cross_fitted`] gives every fold the bias of the others. It does not know the terms:
//! a case is the finished score of every product.

/// Finished scores of one case, and what was bought.
#[derive(Clone, Copy, Debug)]
pub struct BiasCase<'a> {
    /// Score of each product, as a log-weight.
    pub scores: &'a [f32],
    /// Distinct products that were bought.
    pub targets: &'a [u32],
}

/// How strongly biases are drawn to 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BiasOptions {
    /// Strength of the ridge, in bought cases.
    pub ridge: f64,
    /// Fewest cases that must have bought a product.
    pub cases_min: u32,
    /// Rounds of the fit.
    pub rounds: usize,
}

impl Default for BiasOptions {
    fn default() -> Self {
        Self {
            ridge: 5.0,
            cases_min: 5,
            rounds: 8,
        }
    }
}

/// What one round over the cases adds up.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Round {
    /// Bought less expected, per product.
    gradient: Vec<f64>,
    /// Expected, per product: no less than the curvature, so that a step never overshoots.
    expected: Vec<f64>,
    /// Cases that bought the product.
    bought: Vec<u32>,
}

impl Round {
    /// Of no cases.
    pub(crate) fn new(products: usize) -> Self {
        Self {
            gradient: vec![0.0; products],
            expected: vec![0.0; products],
            bought: vec![0; products],
        }
    }

    /// Adds a case, whose scores do not yet have `bias`. Every case weighs 1, however many targets it has.
    pub(crate) fn add(&mut self, case: BiasCase<'_>, bias: &[f32]) {
        if case.targets.is_empty() {
            return;
        }
        let scores: Vec<f32> = case
            .scores
            .iter()
            .zip(bias)
            .map(|(score, bias)| score + bias)
            .collect();
        let normaliser = super::measures::log_sum_exp(&scores) as f32;
        for (product, score) in scores.iter().enumerate() {
            let chance = f64::from((score - normaliser).exp());
            self.expected[product] += chance;
            self.gradient[product] -= chance;
        }
        for &target in case.targets {
            self.gradient[target as usize] += 1.0 / case.targets.len() as f64;
            self.bought[target as usize] += 1;
        }
    }

    /// Moves `bias` by one step.
    pub(crate) fn step(&self, bias: &mut [f32], options: BiasOptions) {
        for (product, bias) in bias.iter_mut().enumerate() {
            let slope = self.gradient[product] - options.ridge * f64::from(*bias);
            let step =
                (slope / (self.expected[product] + options.ridge.max(1e-6))).clamp(-1.0, 1.0);
            *bias = if self.bought[product] < options.cases_min {
                0.0
            } else {
                *bias + step as f32
            };
        }
    }
}

/// Fits a bias per product to `cases`.
pub fn fit(products: usize, cases: &[BiasCase<'_>], options: BiasOptions) -> Vec<f32> {
    let mut bias = vec![0.0; products];
    for _ in 0..options.rounds {
        let mut round = Round::new(products);
        cases.iter().for_each(|case| round.add(*case, &bias));
        round.step(&mut bias, options);
    }
    bias
}

/// For each of `folds` folds the bias that the cases of all other folds give. Cases come with the fold of their user.
pub fn cross_fitted(
    products: usize,
    cases: &[(usize, BiasCase<'_>)],
    folds: usize,
    options: BiasOptions,
) -> Vec<Vec<f32>> {
    let others = |fold: usize| -> Vec<BiasCase<'_>> {
        cases
            .iter()
            .filter(|(of, _)| *of != fold)
            .map(|(_, case)| *case)
            .collect()
    };
    (0..folds)
        .map(|fold| fit(products, &others(fold), options))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::Random;
    use crate::learn::measures;

    /// Targets drawn from the softmax of `scores`.
    fn drawn(seed: u64, cases: usize, scores: &[f32]) -> Vec<Vec<u32>> {
        let mut random = Random::new(seed);
        let normaliser = measures::log_sum_exp(scores);
        let one = || {
            let mut left = random.uniform();
            let target = scores.iter().position(|&score| {
                left -= (f64::from(score) - normaliser).exp();
                left <= 0.0
            });
            vec![target.unwrap_or(0) as u32]
        };
        std::iter::repeat_with(one).take(cases).collect()
    }

    fn cases<'a>(scores: &'a [f32], targets: &'a [Vec<u32>]) -> Vec<BiasCase<'a>> {
        targets
            .iter()
            .map(|targets| BiasCase { scores, targets })
            .collect()
    }

    #[test]
    fn the_bias_is_what_the_mixture_misses() {
        let targets = drawn(1, 20_000, &[0.0, 0.5, 1.0, -0.5]);
        let bias = fit(
            4,
            &cases(&[0.0; 4], &targets),
            BiasOptions {
                rounds: 60,
                ..BiasOptions::default()
            },
        );
        for (product, truth) in [0.0, 0.5, 1.0, -0.5].into_iter().enumerate() {
            assert!((bias[product] - bias[0] - truth).abs() < 0.1, "{bias:?}");
        }
    }

    #[test]
    fn few_cases_give_0_and_a_strong_ridge_draws_to_0() {
        let targets = vec![vec![0], vec![0], vec![0], vec![0, 1]];
        let bias = fit(
            3,
            &cases(&[0.0; 3], &targets),
            BiasOptions {
                cases_min: 2,
                ..BiasOptions::default()
            },
        );
        assert!(bias[0] > 0.0);
        assert_eq!((bias[1], bias[2]), (0.0, 0.0));
        let held = fit(
            3,
            &cases(&[0.0; 3], &targets),
            BiasOptions {
                ridge: 1e9,
                cases_min: 0,
                rounds: 8,
            },
        );
        assert!(held.iter().all(|bias| bias.abs() < 1e-6));
    }

    #[test]
    fn the_likelihood_never_falls_from_round_to_round() {
        let scores = [0.0, 2.0, -1.0, 0.3];
        let targets = drawn(3, 200, &[1.0, 0.0, 0.0, 2.0]);
        let loss = |rounds| {
            let bias = fit(
                4,
                &cases(&scores, &targets),
                BiasOptions {
                    ridge: 1e-3,
                    cases_min: 0,
                    rounds,
                },
            );
            let with: Vec<f32> = scores.iter().zip(&bias).map(|(a, b)| a + b).collect();
            targets
                .iter()
                .filter_map(|targets| measures::nats(&with, targets))
                .sum::<f64>()
        };
        let losses: Vec<f64> = (0..12).map(loss).collect();
        assert!(
            losses.windows(2).all(|pair| pair[1] <= pair[0] + 1e-6),
            "{losses:?}"
        );
    }

    #[test]
    fn a_fold_does_not_see_its_own_cases() {
        let targets: Vec<Vec<u32>> = (0..60).map(|case| vec![case % 3]).collect();
        let scores = [0.0; 4];
        let with_folds = |targets: &'static [Vec<u32>]| {
            let cases = cases(&scores, targets)
                .into_iter()
                .enumerate()
                .map(|(at, case)| (at % 2, case))
                .collect();
            let cases: Vec<(usize, BiasCase<'_>)> = cases;
            cross_fitted(4, &cases, 2, BiasOptions::default())
        };
        let before = with_folds(targets.clone().leak());
        let mut changed = targets;
        changed
            .iter_mut()
            .step_by(2)
            .for_each(|targets| *targets = vec![3]);
        let after = with_folds(changed.leak());
        assert_eq!(before[0], after[0]);
        assert_ne!(before[1], after[1]);
    }
}
