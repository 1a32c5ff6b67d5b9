//! What training a head makes small: the mean -ln of the probability of what was bought, and its gradient.
//!
//! Invariant: the gradient is that of the loss, as finite differences show, and cases in another order change only the
//! last bits. It does not know steps.

use super::HeadCase;
use crate::learn::bootstrap::Random;
use crate::names::head::Projection;

/// Size of the first numbers of names; those of users begin at 0.
const FIRST: f64 = 0.3;

/// The numbers that are trained: `[rank, width]` each, row by row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    pub(super) users: Vec<f64>,
    pub(super) names: Vec<f64>,
}

impl Parameters {
    /// Users at 0, so that all scores are 0; names at random, so that they can be told apart.
    pub(super) fn first(rank: usize, width: usize, seed: u64) -> Self {
        let mut random = Random::new(seed);
        Self {
            users: vec![0.0; rank * width],
            names: (0..rank * width).map(|_| FIRST * random.normal()).collect(),
        }
    }

    pub(super) fn zeros(&self) -> Self {
        Self {
            users: vec![0.0; self.users.len()],
            names: vec![0.0; self.names.len()],
        }
    }

    pub(super) fn each(&self) -> impl Iterator<Item = f64> + '_ {
        self.users.iter().chain(&self.names).copied()
    }

    pub(super) fn each_mut(&mut self) -> impl Iterator<Item = &mut f64> {
        self.users.iter_mut().chain(&mut self.names)
    }
}

/// Mean and inverse size of each number of some hidden states. Without it a few large numbers, which language models
/// have, would be all that is learned from.
pub(super) struct Standard {
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

impl Standard {
    pub(super) fn of<'a>(states: impl Iterator<Item = &'a [f32]> + Clone) -> Self {
        let width = states.clone().next().map_or(0, <[f32]>::len);
        let n = states.clone().count().max(1) as f64;
        let (mut mean, mut variance) = (vec![0.0; width], vec![0.0; width]);
        for state in states.clone() {
            let each = mean.iter_mut().zip(state);
            each.for_each(|(sum, x)| *sum += f64::from(*x) / n);
        }
        for state in states {
            let each = variance.iter_mut().zip(state).zip(&mean);
            each.for_each(|((sum, x), mean)| *sum += (f64::from(*x) - mean).powi(2) / n);
        }
        // All states have about the length 1 then. A number that is always the same says nothing.
        let size = (width.max(1) as f64).sqrt();
        let inverse = variance
            .iter()
            .map(|variance: &f64| match *variance > 1e-12 {
                true => 1.0 / (variance.sqrt() * size),
                false => 0.0,
            });
        let inverse = inverse.collect();
        Self { mean, inverse }
    }

    fn apply(&self, state: &[f32]) -> Vec<f32> {
        let each = state.iter().zip(&self.mean).zip(&self.inverse);
        each.map(|((x, mean), inverse)| ((f64::from(*x) - mean) * inverse) as f32)
            .collect()
    }

    /// The projection of hidden states as they are, for weights of standardised ones.
    pub(super) fn folded(&self, weights: &[f64], rank: usize) -> Projection {
        let width = self.mean.len();
        let (mut all, mut shift) = (Vec::with_capacity(rank * width), Vec::with_capacity(rank));
        for row in weights.chunks_exact(width.max(1)) {
            let row: Vec<f64> = row.iter().zip(&self.inverse).map(|(a, b)| a * b).collect();
            let sum: f64 = row.iter().zip(&self.mean).map(|(a, b)| a * b).sum();
            shift.push(-sum as f32);
            all.extend(row.iter().map(|x| *x as f32));
        }
        Projection::new(all, shift)
    }
}

/// Cases and names, with standardised hidden states.
pub(super) struct Data<'a> {
    width: usize,
    names: Vec<Vec<f32>>,
    cases: Vec<(Vec<f32>, &'a HeadCase)>,
}

impl<'a> Data<'a> {
    pub(super) fn new(
        names: &[Vec<f32>],
        cases: &'a [HeadCase],
        (users, of_names): (&Standard, &Standard),
    ) -> Self {
        let cases = cases.iter().map(|case| (users.apply(&case.hidden), case));
        Self {
            width: users.mean.len(),
            names: names.iter().map(|name| of_names.apply(name)).collect(),
            cases: cases.collect(),
        }
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// `[products, rank]`.
    fn keys(&self, parameters: &Parameters) -> Vec<f64> {
        let mut keys = Vec::with_capacity(self.names.len() * parameters.names.len() / self.width);
        for name in &self.names {
            keys.extend(rows(&parameters.names, name));
        }
        keys
    }

    /// Mean loss of the cases `of`, without what draws numbers to 0.
    pub(super) fn loss(&self, parameters: &Parameters, of: &[usize]) -> f64 {
        let keys = self.keys(parameters);
        let losses = of.iter().map(|nth| {
            let (hidden, case) = &self.cases[*nth];
            softmax(case, &rows(&parameters.users, hidden), &keys).0
        });
        losses.sum::<f64>() / of.len().max(1) as f64
    }

    /// Mean loss of the cases `of` and half of `ridge` times the sum of squares, with the gradient.
    pub(super) fn gradient(
        &self,
        parameters: &Parameters,
        of: &[usize],
        ridge: f64,
    ) -> (f64, Parameters) {
        let keys = self.keys(parameters);
        let rank = parameters.users.len() / self.width;
        let share = 1.0 / of.len().max(1) as f64;
        let mut gradient = parameters.zeros();
        let mut of_keys = vec![0.0; keys.len()];
        let mut loss = 0.0;
        for nth in of {
            let (hidden, case) = &self.cases[*nth];
            let query = rows(&parameters.users, hidden);
            let (value, slopes) = softmax(case, &query, &keys);
            loss += share * value;
            let mut of_query = vec![0.0; rank];
            for (product, slope) in case.products.iter().zip(slopes) {
                let at = *product as usize * rank..(*product as usize + 1) * rank;
                let each = of_query.iter_mut().zip(&mut of_keys[at.clone()]);
                for ((of_query, of_key), (key, query)) in each.zip(keys[at].iter().zip(&query)) {
                    *of_query += slope * key;
                    *of_key += share * slope * query;
                }
            }
            let of_query = of_query.iter().map(|slope| share * slope);
            add_outer(&mut gradient.users, of_query, hidden);
        }
        for (name, slopes) in self.names.iter().zip(of_keys.chunks_exact(rank)) {
            add_outer(&mut gradient.names, slopes.iter().copied(), name);
        }
        for (slope, value) in gradient.each_mut().zip(parameters.each()) {
            *slope += ridge * value;
            loss += ridge / 2.0 * value * value;
        }
        (loss, gradient)
    }
}

/// The product of each row with `state`.
fn rows(weights: &[f64], state: &[f32]) -> Vec<f64> {
    let dot = |row: &[f64]| -> f64 {
        let products = row.iter().zip(state);
        products.map(|(a, b)| a * f64::from(*b)).sum()
    };
    weights.chunks_exact(state.len().max(1)).map(dot).collect()
}

/// Adds the products of all pairs of `column` and `state`.
fn add_outer(to: &mut [f64], column: impl Iterator<Item = f64>, state: &[f32]) {
    for (row, factor) in to.chunks_exact_mut(state.len().max(1)).zip(column) {
        if factor != 0.0 {
            let each = row.iter_mut().zip(state);
            each.for_each(|(to, x)| *to += factor * f64::from(*x));
        }
    }
}

/// The loss of a case, and its derivative by the score of each of its products.
fn softmax(case: &HeadCase, query: &[f64], keys: &[f64]) -> (f64, Vec<f64>) {
    let rank = query.len();
    let scores = case
        .products
        .iter()
        .zip(&case.offset)
        .map(|(product, offset)| {
            let key = &keys[*product as usize * rank..(*product as usize + 1) * rank];
            let dot: f64 = key.iter().zip(query).map(|(a, b)| a * b).sum();
            f64::from(*offset) + dot
        });
    let mut scores: Vec<f64> = scores.collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let share = 1.0 / case.targets.len().max(1) as f64;
    let at_targets: f64 = case
        .targets
        .iter()
        .map(|target| scores[*target as usize])
        .sum();
    let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    let loss = max + total.ln() - share * at_targets;
    for score in &mut scores {
        *score = (*score - max).exp() / total;
    }
    for target in &case.targets {
        scores[*target as usize] -= share;
    }
    (loss, scores)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn the_gradient_is_that_of_finite_differences(
            seed in any::<u64>(), width in 1usize..5, rank in 1usize..4, products in 2usize..7, ridge in 0.0f64..0.5,
        ) {
            let mut random = Random::new(seed);
            let mut state = |width: usize| -> Vec<f32> {
                (0..width).map(|_| 2.0 * random.normal() as f32).collect()
            };
            let names: Vec<Vec<f32>> = (0..products).map(|_| state(width)).collect();
            let case = |nth: usize, hidden: Vec<f32>, offset: Vec<f32>| HeadCase {
                hidden,
                // Not everything may be listed.
                products: (0..products as u32).filter(|it| products == 2 || *it as usize != nth).collect(),
                offset,
                targets: if nth == 0 { vec![0] } else { vec![0, 1] },
                is_tune: false,
            };
            let len = |nth: usize| if products == 2 || nth >= products { products } else { products - 1 };
            let cases: Vec<HeadCase> = (0..3).map(|nth| {
                let (hidden, offset) = (state(width), state(len(nth)));
                case(nth, hidden, offset)
            }).collect();
            let users = Standard::of(cases.iter().map(|case| &case.hidden[..]));
            let of_names = Standard::of(names.iter().map(Vec::as_slice));
            let data = Data::new(&names, &cases, (&users, &of_names));
            let mut at = Parameters::first(rank, width, seed ^ 1);
            at.users = Parameters::first(rank, width, seed ^ 2).names;
            let (_, gradient) = data.gradient(&at, &[0, 1, 2], ridge);
            let step = 1e-5;
            for (nth, slope) in gradient.each().enumerate() {
                let loss = |by: f64| {
                    let mut moved = at.clone();
                    *moved.each_mut().nth(nth).expect("a number") += by;
                    data.gradient(&moved, &[0, 1, 2], ridge).0
                };
                let expected = (loss(step) - loss(-step)) / (2.0 * step);
                prop_assert!((slope - expected).abs() < 1e-6, "{nth}: {slope}, not {expected}");
            }
        }
    }
}
