//! The conditional logit: known weights are found, bounds hold, intervals cover.

use super::*;
use crate::learn::bootstrap::Random;

const PRODUCTS: usize = 30;

/// Cases whose targets are drawn from the softmax at `weights`, with normal values. The last term may have weight 0.
struct Drawn {
    values: Vec<Vec<Vec<f32>>>,
    targets: Vec<Vec<u32>>,
}

impl Drawn {
    fn new(seed: u64, cases: usize, weights: &[f64]) -> Self {
        let mut random = Random::new(seed);
        let mut drawn = Self {
            values: Vec::new(),
            targets: Vec::new(),
        };
        for _ in 0..cases {
            let values: Vec<Vec<f32>> = weights
                .iter()
                .map(|_| (0..PRODUCTS).map(|_| random.normal() as f32).collect())
                .collect();
            let case = case(&values, &[]);
            let mut chances = case.scores(weights);
            softmax(&mut chances);
            let mut left = random.uniform() as f32;
            let target = chances.iter().position(|chance| {
                left -= chance;
                left <= 0.0
            });
            drawn.targets.push(vec![target.unwrap_or(0) as u32]);
            drawn.values.push(values);
        }
        drawn
    }

    fn cases(&self) -> Vec<Case<'_>> {
        self.values
            .iter()
            .zip(&self.targets)
            .map(|(values, targets)| case(values, targets))
            .collect()
    }
}

fn case<'a>(values: &'a [Vec<f32>], targets: &'a [u32]) -> Case<'a> {
    Case {
        terms: values.iter().map(Vec::as_slice).collect(),
        offset: None,
        targets,
        shares: None,
        products: PRODUCTS,
    }
}

fn fitted(cases: &[Case<'_>], options: &Options) -> Fit {
    fit(cases[0].terms.len(), options, |weights| {
        Moments::of(cases, weights)
    })
}

#[test]
fn known_weights_are_recovered() {
    let drawn = Drawn::new(1, 4_000, &[1.0, -0.5, 0.2]);
    let found = fitted(&drawn.cases(), &Options::default());
    for (weight, truth) in found.weights.iter().zip([1.0, -0.5, 0.2]) {
        assert!((weight - truth).abs() < 0.07, "{weight} is not {truth}");
    }
    assert_eq!(found.cases, 4_000);
}

#[test]
fn a_noise_terms_interval_contains_0_and_that_of_a_true_term_does_not() {
    let mut contained = 0;
    for seed in 0..40 {
        let drawn = Drawn::new(seed, 200, &[0.8, 0.0]);
        let cases = drawn.cases();
        let found = fitted(&cases, &Options::default());
        let mut by_user = Contributions::default();
        // Two cases a user.
        cases
            .iter()
            .enumerate()
            .for_each(|(at, case)| by_user.add(at as u32 / 2, case, &found.weights));
        let intervals = by_user.intervals(&found);
        assert!(intervals[0].0 > 0.0, "{intervals:?}");
        contained += i32::from(intervals[1].0 <= 0.0 && 0.0 <= intervals[1].1);
    }
    assert!((34..=40).contains(&contained), "{contained} of 40");
}

#[test]
fn gradient_and_curvature_are_derivatives_of_the_value() {
    let drawn = Drawn::new(5, 20, &[0.7, 0.1]);
    let cases = drawn.cases();
    let (weights, step) = ([0.3, -0.4], 1e-3);
    let now = Moments::of(&cases, &weights);
    for term in 0..2 {
        let shifted = |by: f64| {
            let mut moved = weights;
            moved[term] += by;
            Moments::of(&cases, &moved)
        };
        let (below, above) = (shifted(-step), shifted(step));
        let slope = (above.value - below.value) / (2.0 * step);
        assert!(
            (slope - now.gradient[term]).abs() < 0.02,
            "{slope} {}",
            now.gradient[term]
        );
        for other in 0..2 {
            let bend = (below.gradient[other] - above.gradient[other]) / (2.0 * step);
            assert!((bend - now.curvature[term * 2 + other]).abs() < 0.02);
        }
    }
}

#[test]
fn a_bounded_weight_stays_at_0_and_the_others_are_as_without_the_term() {
    let drawn = Drawn::new(2, 1_000, &[0.9, -0.6]);
    let bounded = Options {
        nonnegative: vec![true, true],
        ..Options::default()
    };
    let found = fitted(&drawn.cases(), &bounded);
    assert_eq!(found.weights[1], 0.0);
    let mut alone = drawn.cases();
    alone.iter_mut().for_each(|case| case.terms.truncate(1));
    assert!((fitted(&alone, &bounded).weights[0] - found.weights[0]).abs() < 1e-4);
}

#[test]
fn cases_in_another_order_or_in_parts_give_the_same_weights() {
    let drawn = Drawn::new(3, 300, &[0.5, 0.5]);
    let cases = drawn.cases();
    let whole = fitted(&cases, &Options::default());
    assert_eq!(whole, fitted(&cases, &Options::default()));
    let parts = fit(2, &Options::default(), |weights| {
        let mut moments = Moments::of(&cases[200..], weights);
        moments.merge(&Moments::of(&cases[..200], weights));
        moments
    });
    for (a, b) in whole.weights.iter().zip(&parts.weights) {
        assert!((a - b).abs() < 1e-9);
    }
}

#[test]
fn the_ridge_draws_to_the_centre_and_an_offset_counts_at_weight_1() {
    let drawn = Drawn::new(4, 500, &[1.0, 0.5]);
    let held = Options {
        ridge: 1e9,
        centre: vec![0.25, -1.0],
        ..Options::default()
    };
    let found = fitted(&drawn.cases(), &held);
    assert!((found.weights[0] - 0.25).abs() < 1e-3 && (found.weights[1] + 1.0).abs() < 1e-3);

    let mut offset = drawn.cases();
    for (case, values) in offset.iter_mut().zip(&drawn.values) {
        case.offset = Some(&values[0]);
        case.terms.remove(0);
    }
    let found = fitted(&offset, &Options::default());
    assert!((found.weights[0] - 0.5).abs() < 0.15, "{:?}", found.weights);
}

#[test]
fn two_equal_terms_and_no_cases_still_have_finite_weights() {
    let drawn = Drawn::new(6, 200, &[0.8]);
    let mut cases = drawn.cases();
    cases
        .iter_mut()
        .for_each(|case| case.terms.push(case.terms[0]));
    let found = fitted(
        &cases,
        &Options {
            ridge: 0.0,
            ..Options::default()
        },
    );
    assert!(found.weights.iter().all(|weight| weight.is_finite()));
    let none = fit(2, &Options::default(), |_| Moments::new(2));
    assert_eq!(none.weights, [0.0, 0.0]);
    let short: &[f32] = &[];
    cases.iter_mut().for_each(|case| case.terms[1] = short);
    assert_eq!(fitted(&cases, &Options::default()).weights[1], 0.0);
}
