//! Weights of terms by which what was bought is far up in a list.
//!
//! A likelihood counts every product that was bought, also those that no list of ten could have. Here a target gains
//! 1 at the top of the list, a half at its end, and nothing far below; the gain of a case is divided by the most that was
//! possible, as Recall@10 is. A rank is smooth, 1 + Σ sigmoid((other score - score) / [`WIDTH`]), so that it has a
//! gradient. Invariant: sums are of whole numbers, so the order of cases changes no bit, and the objective never falls
//! from step to step. It does not know which terms there are.
//!
//! Source of the smooth rank: Qin, Liu and Li, "A general approximation framework for direct optimization of information
//! retrieval measures" (Information Retrieval 13, 2010).

use super::logit::{Case, dot};

/// Names of the list.
const LIST: usize = 10;

/// Difference of scores within which one product is above the other in part.
const WIDTH: f32 = 0.1;

/// Beyond it one is above the other.
const FAR: f32 = 6.0 * WIDTH;

/// Ranks over which the gain falls from near 1 to near 0: more than one, or the fit would follow chance.
const SOFT: f64 = 3.0;

/// A rank from which on there is no gain: less than a thousandth.
const HOPELESS: usize = LIST + 24;

/// How strongly weights are drawn to where they start, by the square of a spread of the term.
const RIDGE: f64 = 0.01;

/// Most steps, and the gain of a step that is none.
const STEPS: usize = 40;
const GAIN_MIN: f64 = 1e-6;

/// Whole numbers in 1.
const ONE: f64 = (1u64 << 40) as f64;

/// What a fit is drawn to, and where its weights must stay.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Start {
    /// Weight of each term.
    pub(crate) weights: Vec<f64>,
    /// Terms that are left out rather than given a weight below 0.
    pub(crate) nonnegative: Vec<bool>,
}

/// The weights under which the targets of `cases` are furthest up, near `start`.
pub(crate) fn fit(cases: &[Case<'_>], start: &Start) -> Vec<f64> {
    let spread = spreads(cases, start.weights.len());
    let mut is_out = vec![false; start.weights.len()];
    loop {
        let found = fit_among(cases, start, (&spread, &is_out));
        let worst = (0..found.len())
            .filter(|&term| start.nonnegative[term] && found[term] < 0.0)
            .min_by(|&a, &b| (found[a] * spread[a]).total_cmp(&(found[b] * spread[b])));
        let Some(worst) = worst else { return found };
        is_out[worst] = true;
    }
}

/// The same without the terms that are out, which have weight 0.
fn fit_among(cases: &[Case<'_>], start: &Start, (spread, is_out): (&[f64], &[bool])) -> Vec<f64> {
    let terms: Vec<usize> = (0..spread.len()).filter(|&term| !is_out[term]).collect();
    let weights = |place: &[f64]| {
        let mut weights = vec![0.0; spread.len()];
        for (&term, at) in terms.iter().zip(place) {
            weights[term] = at / spread[term];
        }
        weights
    };
    let first: Vec<f64> = terms
        .iter()
        .map(|&term| start.weights[term] * spread[term])
        .collect();
    let place = ascend(&first, |place| {
        let (value, gradient) = objective(cases, &weights(place));
        let moved = place.iter().zip(&first).map(|(at, first)| at - first);
        let moved: Vec<f64> = moved.collect();
        let penalty: f64 = moved.iter().map(|moved| RIDGE * moved * moved).sum();
        let slope = terms.iter().zip(&moved);
        let slope = slope.map(|(&term, moved)| gradient[term] / spread[term] - 2.0 * RIDGE * moved);
        (value - penalty, slope.collect())
    });
    weights(&place)
}

/// Standard deviation of each term over all products of all cases; never 0.
fn spreads(cases: &[Case<'_>], terms: usize) -> Vec<f64> {
    let of = |term: usize| {
        let (mut sum, mut squares, mut n) = (0i128, 0i128, 0.0);
        for case in cases {
            let values = case.terms[term].iter().map(|&value| f64::from(value));
            sum += whole(values.clone().sum());
            squares += whole(values.map(|value| value * value).sum());
            n += case.products as f64;
        }
        let (mean, square) = (part(sum) / n, part(squares) / n);
        (square - mean * mean).max(0.0).sqrt() + 1e-3
    };
    (0..terms).map(of).collect()
}

fn whole(value: f64) -> i128 {
    (value * ONE).round() as i128
}

fn part(value: i128) -> f64 {
    value as f64 / ONE
}

/// Mean gain of the cases at `weights`, and its derivative by each weight.
fn objective(cases: &[Case<'_>], weights: &[f64]) -> (f64, Vec<f64>) {
    let (mut value, mut gradient, mut n) = (0i128, vec![0i128; weights.len()], 0.0);
    for case in cases.iter().filter(|case| !case.targets.is_empty()) {
        let (gain, pulls) = gain(case, weights);
        n += 1.0;
        value += whole(gain);
        for (sum, values) in gradient.iter_mut().zip(&case.terms) {
            *sum += whole(dot(&pulls, values));
        }
    }
    let mean = |sum: i128| part(sum) / f64::max(n, 1.0);
    (mean(value), gradient.into_iter().map(mean).collect())
}

/// The gain of a case, and its derivative by the score of each product.
fn gain(case: &Case<'_>, weights: &[f64]) -> (f64, Vec<f32>) {
    let scores = case.scores(weights);
    let mut pulls = vec![0.0; scores.len()];
    // Only targets at or above this score have a gain, and only products near or above them change it.
    let least = match scores.len() > HOPELESS {
        true => {
            let mut sorted = scores.clone();
            *sorted
                .select_nth_unstable_by(HOPELESS - 1, |a, b| b.total_cmp(a))
                .1
        }
        false => f32::NEG_INFINITY,
    };
    let near: Vec<(usize, f32)> = (scores.iter().copied().enumerate())
        .filter(|(_, score)| *score > least - FAR)
        .collect();
    let most = case.targets.len().min(LIST) as f64;
    let mut value = 0.0;
    for &target in case.targets {
        let target = target as usize;
        let Some(&score) = scores.get(target).filter(|score| **score >= least) else {
            continue;
        };
        let others = || near.iter().filter(move |(other, _)| *other != target);
        let above: f64 = others().map(|(_, other)| above(other - score)).sum();
        let gain = sigmoid((LIST as f64 - 0.5 - above) / SOFT);
        value += gain / most;
        let by_rank = -gain * (1.0 - gain) / SOFT / most;
        let mut sum = 0.0;
        for (other, by) in others().filter(|(_, other)| (other - score).abs() < FAR) {
            let share = above_in_part(by - score);
            let pull = by_rank * share * (1.0 - share) / f64::from(WIDTH);
            pulls[*other] += pull as f32;
            sum += pull;
        }
        pulls[target] -= sum as f32;
    }
    (value, pulls)
}

/// How much a product is above another one, from 0 to 1, by the difference of their scores.
fn above(difference: f32) -> f64 {
    match difference {
        difference if difference >= FAR => 1.0,
        difference if difference <= -FAR => 0.0,
        difference => above_in_part(difference),
    }
}

fn above_in_part(difference: f32) -> f64 {
    sigmoid(f64::from(difference / WIDTH))
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Follows the gradient of `objective` from `start` by the method of Broyden, Fletcher, Goldfarb and Shanno.
fn ascend(start: &[f64], mut objective: impl FnMut(&[f64]) -> (f64, Vec<f64>)) -> Vec<f64> {
    let n = start.len();
    let mut place = start.to_vec();
    let (mut value, mut gradient) = objective(&place);
    let mut inverse = identity(n, 1.0 / length(&gradient).max(1.0));
    let mut is_first = true;
    for _ in 0..STEPS {
        let mut step = product(&inverse, &gradient);
        if inner(&step, &gradient) <= 0.0 {
            inverse = identity(n, 1.0);
            step.clone_from(&gradient);
        }
        let rise = inner(&step, &gradient);
        let tried = (0..12).find_map(|halved| {
            let scale = 0.5f64.powi(halved);
            let next: Vec<f64> = place
                .iter()
                .zip(&step)
                .map(|(at, by)| at + scale * by)
                .collect();
            let (found, slope) = objective(&next);
            (found > value + 1e-4 * scale * rise).then_some((next, found, slope))
        });
        let Some((next, found, slope)) = tried else {
            break;
        };
        let moved: Vec<f64> = next.iter().zip(&place).map(|(a, b)| a - b).collect();
        // Of a maximum the slope falls along the step.
        let fell: Vec<f64> = gradient.iter().zip(&slope).map(|(a, b)| a - b).collect();
        let gained = found - value;
        (place, value, gradient) = (next, found, slope);
        if gained < GAIN_MIN {
            break;
        }
        let curve = inner(&moved, &fell);
        if curve > 1e-12 {
            if is_first {
                inverse = identity(n, curve / inner(&fell, &fell));
            }
            is_first = false;
            update(&mut inverse, &moved, &fell);
        }
    }
    place
}

/// The inverse curvature after a step: (1 - ρ s yᵀ) H (1 - ρ y sᵀ) + ρ s sᵀ.
fn update(inverse: &mut [f64], moved: &[f64], fell: &[f64]) {
    let n = moved.len();
    let rho = 1.0 / inner(moved, fell);
    let along = product(inverse, fell);
    let factor = rho * (1.0 + rho * inner(fell, &along));
    for row in 0..n {
        for column in 0..n {
            inverse[row * n + column] += factor * moved[row] * moved[column]
                - rho * (along[row] * moved[column] + moved[row] * along[column]);
        }
    }
}

fn identity(n: usize, scale: f64) -> Vec<f64> {
    let mut matrix = vec![0.0; n * n];
    (0..n).for_each(|at| matrix[at * n + at] = scale);
    matrix
}

fn product(matrix: &[f64], vector: &[f64]) -> Vec<f64> {
    let rows = matrix.chunks_exact(vector.len().max(1));
    rows.map(|row| inner(row, vector)).collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(vector: &[f64]) -> f64 {
    inner(vector, vector).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::Random;
    use crate::learn::measures;

    /// Values of two terms, and targets.
    struct Made {
        terms: Vec<Vec<f32>>,
        targets: Vec<u32>,
    }

    /// Users who buy the `n` products of the highest taste, which is the second term; the first is noise.
    fn made(users: usize, n: usize) -> Vec<Made> {
        let mut random = Random::new(5);
        let one = || {
            let mut draw = || -> Vec<f32> { (0..60).map(|_| random.normal() as f32).collect() };
            let terms = vec![draw(), draw()];
            let mut targets = measures::top(&terms[1], n, |_| true);
            targets.sort_unstable();
            Made { terms, targets }
        };
        std::iter::repeat_with(one).take(users).collect()
    }

    fn cases(made: &[Made]) -> Vec<Case<'_>> {
        made.iter()
            .map(|made| Case {
                terms: made.terms.iter().map(Vec::as_slice).collect(),
                offset: None,
                targets: &made.targets,
                shares: None,
                products: 60,
            })
            .collect()
    }

    fn start(weights: &[f64]) -> Start {
        Start {
            weights: weights.to_vec(),
            nonnegative: vec![true; weights.len()],
        }
    }

    #[test]
    fn the_gradient_is_the_slope_of_the_gain() {
        let made = made(20, 6);
        let cases = cases(&made);
        let at = [0.7, 0.4];
        let (_, gradient) = objective(&cases, &at);
        for term in 0..2 {
            let moved = |by: f64| {
                let mut at = at;
                at[term] += by;
                objective(&cases, &at).0
            };
            let slope = (moved(1e-3) - moved(-1e-3)) / 2e-3;
            // What is beyond FAR counts as 0 or 1, so the slope is not quite that of the gain.
            assert!(
                (slope - gradient[term]).abs() < 0.02,
                "{slope} {gradient:?}"
            );
        }
    }

    #[test]
    fn a_term_that_lists_what_is_bought_gains_on_noise() {
        let made = made(60, 10);
        let cases = cases(&made);
        let weights = fit(&cases, &start(&[1.0, 0.5]));
        assert!(weights[1] > 1.5 * weights[0], "{weights:?}");
        assert!(objective(&cases, &weights).0 > objective(&cases, &[1.0, 0.5]).0);
    }

    #[test]
    fn a_term_that_would_be_below_0_is_out_unless_it_may_be() {
        let mut made = made(60, 10);
        let against = made.iter_mut().flat_map(|made| made.terms[1].iter_mut());
        against.for_each(|value| *value = -*value);
        let cases = cases(&made);
        assert_eq!(fit(&cases, &start(&[1.0, 0.2]))[1], 0.0);
        let free = Start {
            nonnegative: vec![true, false],
            ..start(&[1.0, 0.2])
        };
        assert!(fit(&cases, &free)[1] < 0.0);
    }

    #[test]
    fn the_order_of_cases_changes_no_bit_and_nothing_can_be_learned_of_none() {
        let made = made(40, 5);
        let mut cases = cases(&made);
        let found = fit(&cases, &start(&[1.0, 1.0]));
        cases.reverse();
        assert_eq!(fit(&cases, &start(&[1.0, 1.0])), found);
        assert_eq!(fit(&[], &start(&[1.0, 1.0])), vec![1.0, 1.0]);
    }
}
