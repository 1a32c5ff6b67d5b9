//! Weights of terms by a conditional logit: the weights under which what was bought is likeliest.
//!
//! A case has the values of every term for every product, and the products that were bought. Its log-likelihood is the
//! mean over targets of their log softmax of Σ weight · value, so every case weighs the same. Invariant: the objective
//! never falls from step to step, and users in another order change only the last bits. It does not know where values
//! come from: [`fit`] asks its caller for the [`Moments`] at given weights, who may stream cases or use threads.

use std::collections::BTreeMap;

/// One case.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// Values of each term, per product. A term that is shorter than the others is 0 beyond its end.
    pub terms: Vec<&'a [f32]>,
    /// What is added to every score at weight 1.
    pub offset: Option<&'a [f32]>,
    /// Distinct products that were bought.
    pub targets: &'a [u32],
    /// How much each of them counts, 1 together; `None`: all the same.
    pub shares: Option<&'a [f64]>,
    /// How many products can be bought.
    pub products: usize,
}

impl Case<'_> {
    /// The mean of something of the targets.
    fn mean(&self, of: impl Fn(u32) -> f64) -> f64 {
        match self.shares {
            Some(shares) => {
                let both = self.targets.iter().zip(shares);
                both.map(|(target, share)| of(*target) * share).sum()
            }
            None => {
                let share = 1.0 / self.targets.len() as f64;
                self.targets.iter().map(|target| of(*target)).sum::<f64>() * share
            }
        }
    }

    /// Score of each product at `weights`.
    pub fn scores(&self, weights: &[f64]) -> Vec<f32> {
        let mut scores = vec![0.0; self.products];
        if let Some(offset) = self.offset {
            scores
                .iter_mut()
                .zip(offset)
                .for_each(|(score, value)| *score += value);
        }
        for (values, &weight) in self.terms.iter().zip(weights) {
            let weight = weight as f32;
            scores
                .iter_mut()
                .zip(*values)
                .for_each(|(score, value)| *score += weight * value);
        }
        scores
    }
}

/// Log-likelihood of cases at some weights, with its gradient and curvature.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Sum over cases of the mean log-probability of their targets.
    pub value: f64,
    /// Its derivative by each weight.
    pub gradient: Vec<f64>,
    /// Its second derivative with the sign changed, row by row.
    pub curvature: Vec<f64>,
    /// How many cases have targets.
    pub cases: usize,
}

impl Moments {
    /// Of no cases, for `terms` terms.
    pub fn new(terms: usize) -> Self {
        Self {
            value: 0.0,
            gradient: vec![0.0; terms],
            curvature: vec![0.0; terms * terms],
            cases: 0,
        }
    }

    /// Adds the moments of other cases.
    pub fn merge(&mut self, other: &Self) {
        self.value += other.value;
        self.cases += other.cases;
        self.gradient
            .iter_mut()
            .zip(&other.gradient)
            .for_each(|(a, b)| *a += b);
        self.curvature
            .iter_mut()
            .zip(&other.curvature)
            .for_each(|(a, b)| *a += b);
    }

    /// Adds one case at `weights`. A case without targets adds nothing.
    pub fn add(&mut self, case: &Case<'_>, weights: &[f64]) {
        if case.targets.is_empty() {
            return;
        }
        let terms = self.gradient.len();
        let mut chances = case.scores(weights);
        let at_targets = case.mean(|target| f64::from(chances[target as usize]));
        let normaliser = softmax(&mut chances);
        self.value += at_targets - normaliser;
        self.cases += 1;
        let means: Vec<f64> = case
            .terms
            .iter()
            .map(|values| dot(&chances, values))
            .collect();
        for (j, values) in case.terms.iter().enumerate() {
            let value = |target: u32| values.get(target as usize).map_or(0.0, |&x| f64::from(x));
            self.gradient[j] += case.mean(value) - means[j];
            let weighted: Vec<f32> = chances
                .iter()
                .zip(*values)
                .map(|(chance, value)| chance * value)
                .collect();
            for (k, others) in case.terms.iter().enumerate().skip(j) {
                let second = dot(&weighted, others) - means[j] * means[k];
                self.curvature[j * terms + k] += second;
                if k != j {
                    self.curvature[k * terms + j] += second;
                }
            }
        }
    }

    /// The moments of `cases` at `weights`.
    pub fn of(cases: &[Case<'_>], weights: &[f64]) -> Self {
        let mut moments = Self::new(weights.len());
        cases.iter().for_each(|case| moments.add(case, weights));
        moments
    }
}

/// Replaces scores by their softmax and returns ln Σ exp.
fn softmax(scores: &mut [f32]) -> f64 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut total = 0.0f64;
    for score in scores.iter_mut() {
        *score = (*score - max).exp();
        total += f64::from(*score);
    }
    let scale = (1.0 / total) as f32;
    scores.iter_mut().for_each(|score| *score *= scale);
    f64::from(max) + total.ln()
}

/// Σ a · b: products in f32, sums of 8 lanes in f64, so that it is exact enough and vectorised.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    let mut lanes = [0.0f64; 8];
    let (mut a8, mut b8) = (a.chunks_exact(8), b.chunks_exact(8));
    for (a, b) in a8.by_ref().zip(b8.by_ref()) {
        for lane in 0..8 {
            lanes[lane] += f64::from(a[lane] * b[lane]);
        }
    }
    let tail = a8
        .remainder()
        .iter()
        .zip(b8.remainder())
        .map(|(a, b)| f64::from(a * b));
    lanes.iter().sum::<f64>() + tail.sum::<f64>()
}

/// How a fit is held back.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Strength with which each weight is drawn to its centre, in cases per unit of weight squared.
    pub ridge: f64,
    /// To which each weight is drawn; 0 for terms beyond its end.
    pub centre: Vec<f64>,
    /// Terms whose weight cannot be negative; terms beyond its end are free.
    pub nonnegative: Vec<bool>,
    /// Most steps.
    pub steps: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ridge: 1.0,
            centre: Vec::new(),
            nonnegative: Vec::new(),
            steps: 30,
        }
    }
}

impl Options {
    fn centre(&self, term: usize) -> f64 {
        self.centre.get(term).copied().unwrap_or(0.0)
    }

    fn bounded(&self, term: usize) -> bool {
        self.nonnegative.get(term).copied().unwrap_or(false)
    }

    /// The objective at `weights`: log-likelihood less the penalty.
    fn objective(&self, moments: &Moments, weights: &[f64]) -> f64 {
        let penalty = weights
            .iter()
            .enumerate()
            .map(|(term, weight)| (weight - self.centre(term)).powi(2));
        moments.value - self.ridge / 2.0 * penalty.sum::<f64>()
    }
}

/// Fitted weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Fit {
    /// Weight of each term.
    pub weights: Vec<f64>,
    /// Inverse of the penalised curvature, row by row; 0 for a term that its bound holds at 0.
    pub inverse: Vec<f64>,
    /// Log-likelihood of all cases, without the penalty.
    pub value: f64,
    /// How many cases had targets.
    pub cases: usize,
}

/// Maximises the penalised likelihood by Newton's method. `moments` gives the moments of all cases at given weights.
pub fn fit(terms: usize, options: &Options, mut moments: impl FnMut(&[f64]) -> Moments) -> Fit {
    let start = |term| {
        if options.bounded(term) {
            options.centre(term).max(0.0)
        } else {
            options.centre(term)
        }
    };
    let mut weights: Vec<f64> = (0..terms).map(start).collect();
    let mut now = moments(&weights);
    for _ in 0..options.steps {
        let objective = options.objective(&now, &weights);
        let Some((step, _)) = newton(&now, &weights, options) else {
            break;
        };
        let tried = [1.0, 0.5, 0.25, 0.1, 0.02].iter().find_map(|scale| {
            let mut next: Vec<f64> = weights
                .iter()
                .zip(&step)
                .map(|(weight, step)| weight + scale * step)
                .collect();
            for (term, weight) in next.iter_mut().enumerate() {
                *weight = if options.bounded(term) {
                    weight.max(0.0)
                } else {
                    *weight
                };
            }
            let found = moments(&next);
            (options.objective(&found, &next) >= objective).then_some((next, found))
        });
        let Some((next, found)) = tried else { break };
        let moved = next
            .iter()
            .zip(&weights)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f64::max);
        (weights, now) = (next, found);
        if moved < 1e-6 {
            break;
        }
    }
    let inverse = newton(&now, &weights, options)
        .map_or_else(|| vec![0.0; terms * terms], |(_, inverse)| inverse);
    Fit {
        weights,
        inverse,
        value: now.value,
        cases: now.cases,
    }
}

/// The step of Newton's method over the terms that are not held at their bound, and the inverse curvature.
fn newton(now: &Moments, weights: &[f64], options: &Options) -> Option<(Vec<f64>, Vec<f64>)> {
    let terms = weights.len();
    let slope =
        |term: usize| now.gradient[term] - options.ridge * (weights[term] - options.centre(term));
    let free: Vec<usize> = (0..terms)
        .filter(|&term| !(options.bounded(term) && weights[term] <= 0.0 && slope(term) <= 0.0))
        .collect();
    let n = free.len();
    let mut matrix = vec![0.0; n * n];
    for (row, &j) in free.iter().enumerate() {
        for (column, &k) in free.iter().enumerate() {
            matrix[row * n + column] = now.curvature[j * terms + k];
        }
        // The jitter keeps two equal terms apart where there is no ridge.
        matrix[row * n + row] += options.ridge + 1e-9;
    }
    let small = inverse(matrix, n)?;
    let (mut step, mut full) = (vec![0.0; terms], vec![0.0; terms * terms]);
    for (row, &j) in free.iter().enumerate() {
        for (column, &k) in free.iter().enumerate() {
            step[j] += small[row * n + column] * slope(k);
            full[j * terms + k] = small[row * n + column];
        }
    }
    Some((step, full))
}

/// Inverse of a positive definite `n` by `n` matrix by Gauss-Jordan elimination; `None` if it is not.
fn inverse(mut matrix: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    let mut out = vec![0.0; n * n];
    (0..n).for_each(|i| out[i * n + i] = 1.0);
    for pivot in 0..n {
        let scale = matrix[pivot * n + pivot];
        if !(scale > 0.0 && scale.is_finite()) {
            return None;
        }
        for column in 0..n {
            matrix[pivot * n + column] /= scale;
            out[pivot * n + column] /= scale;
        }
        for row in (0..n).filter(|&row| row != pivot) {
            let factor = matrix[row * n + pivot];
            for column in 0..n {
                matrix[row * n + column] -= factor * matrix[pivot * n + column];
                out[row * n + column] -= factor * out[pivot * n + column];
            }
        }
    }
    Some(out)
}

/// Gradients of each user's cases at the fitted weights, from which intervals follow.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contributions(BTreeMap<u32, Vec<f64>>);

impl Contributions {
    /// Adds a case of `user` at `weights`.
    pub(crate) fn add(&mut self, user: u32, case: &Case<'_>, weights: &[f64]) {
        let mut moments = Moments::new(weights.len());
        moments.add(case, weights);
        let sums = self
            .0
            .entry(user)
            .or_insert_with(|| vec![0.0; weights.len()]);
        sums.iter_mut()
            .zip(&moments.gradient)
            .for_each(|(sum, gradient)| *sum += gradient);
    }

    /// The 95 % interval of each weight, by the sandwich estimator clustered by user. Pairs of low and high.
    pub(crate) fn intervals(&self, fit: &Fit) -> Vec<(f64, f64)> {
        let terms = fit.weights.len();
        let mut variance = vec![0.0; terms];
        for gradient in self.0.values() {
            for (term, variance) in variance.iter_mut().enumerate() {
                let row = &fit.inverse[term * terms..(term + 1) * terms];
                *variance += row
                    .iter()
                    .zip(gradient)
                    .map(|(a, g)| a * g)
                    .sum::<f64>()
                    .powi(2);
            }
        }
        // With few users the sum of squares is too small by one user's share.
        let users = self.0.len() as f64;
        let correction = if users > 1.0 {
            users / (users - 1.0)
        } else {
            1.0
        };
        let margin = |variance: f64| 1.96 * (variance * correction).sqrt();
        let of = fit.weights.iter().zip(&variance);
        of.map(|(weight, &variance)| (weight - margin(variance), weight + margin(variance)))
            .collect()
    }
}

#[cfg(test)]
#[path = "logit_tests.rs"]
mod tests;
