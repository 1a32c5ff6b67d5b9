//! Gamma-Poisson shrinkage: how many times as often as expected something is bought, given little data.
//!
//! A count c of which E were expected has the rate (c + k·m) / (E + k): m is what pairs like it have, and k is how many
//! expected purchases that is worth. Invariant: a rate is finite and over 0; without data it is m. Source: Robbins'
//! empirical Bayes; DuMouchel, "Bayesian Data Mining in Large Frequency Tables" (1999), with one gamma for each prior.

use libm::lgamma;

/// A count with what was expected, and the rate that is likely without it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Cell {
    /// What was counted.
    pub(super) count: f64,
    /// What was expected.
    pub(super) expected: f64,
    /// The prior rate, over 0.
    pub(super) prior: f64,
}

impl Cell {
    /// The rate, shrunk to the prior by `k` expected purchases.
    pub(super) fn rate(self, k: f64) -> f64 {
        (self.count + k * self.prior) / (self.expected + k)
    }

    /// Logarithm of the likelihood of the count, but for what does not depend on `k`: negative binomial.
    fn log_likelihood(self, k: f64) -> f64 {
        let shape = k * self.prior;
        let counted = match self.count > 0.0 {
            true => lgamma(self.count + shape) - lgamma(shape),
            false => 0.0,
        };
        counted + shape * (k / (k + self.expected)).ln() - self.count * (k + self.expected).ln()
    }
}

/// The least and the largest k, and the factor between two that are tried.
const RANGE: (f64, f64, f64) = (0.25, 4_000.0, 1.5);

/// The k under which cells are likeliest whose counts are sums of weights, of which a weight of 1 is so many events.
pub(super) fn fit_weighted(cells: &[Cell], events: f64) -> f64 {
    let of = |cell: &Cell| Cell {
        count: cell.count * events,
        expected: cell.expected * events,
        prior: cell.prior,
    };
    let cells: Vec<Cell> = cells.iter().map(of).collect();
    fit(&cells) / events
}

/// The k under which the cells are likeliest. Without cells it is 10.
pub(super) fn fit(cells: &[Cell]) -> f64 {
    let (least, most, factor) = RANGE;
    let mut best: Option<(f64, f64)> = None;
    let mut k = least;
    while !cells.is_empty() && k <= most {
        let sum: f64 = cells.iter().map(|cell| cell.log_likelihood(k)).sum();
        if best.is_none_or(|(likeliest, _)| sum > likeliest) {
            best = Some((sum, k));
        }
        k *= factor;
    }
    best.map_or(10.0, |(_, k)| k)
}

/// Sums of counts and of what was expected, pooled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Pool {
    count: f64,
    expected: f64,
}

/// Expected purchases that the rate above a pool is worth in it.
const POOL: f64 = 5.0;

impl Pool {
    pub(super) fn add(&mut self, count: f64, expected: f64) {
        self.count += count;
        self.expected += expected;
    }

    /// The pooled rate, shrunk to `above`.
    pub(super) fn rate(self, above: f64) -> f64 {
        (self.count + POOL * above) / (self.expected + POOL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::bootstrap::Random;

    fn cell(count: f64, expected: f64, prior: f64) -> Cell {
        Cell {
            count,
            expected,
            prior,
        }
    }

    #[test]
    fn a_rate_goes_from_the_prior_to_what_was_counted() {
        assert!((cell(0.0, 0.0, 3.0).rate(5.0) - 3.0).abs() < 1e-12);
        assert!((cell(8.0, 4.0, 1.0).rate(4.0) - 1.5).abs() < 1e-12);
        assert!((cell(2e6, 1e6, 1.0).rate(4.0) - 2.0).abs() < 1e-5);
    }

    /// Counts whose rates differ by a gamma of shape 2k/2: sums of exponentials.
    fn counts(shape: u32, random: &mut Random) -> Vec<Cell> {
        let mut exponential = || -(1.0 - random.uniform()).ln();
        (0..4_000)
            .map(|_| {
                let rate: f64 = (0..shape).map(|_| exponential()).sum::<f64>() / f64::from(shape);
                let (mut left, mut count) = (rate * 6.0, 0.0);
                loop {
                    left -= exponential();
                    if left < 0.0 {
                        return cell(count, 6.0, 1.0);
                    }
                    count += 1.0;
                }
            })
            .collect()
    }

    #[test]
    fn the_likeliest_k_is_the_shape_that_rates_were_drawn_from() {
        for shape in [1, 4, 16] {
            let found = fit(&counts(shape, &mut Random::new(5)));
            let ratio = found / f64::from(shape);
            assert!((0.6..1.7).contains(&ratio), "{shape}: {found}");
        }
    }

    #[test]
    fn k_of_weights_is_that_of_their_events() {
        let cells = counts(4, &mut Random::new(6));
        let of = |cell: &Cell| Cell {
            count: cell.count / 16.0,
            expected: cell.expected / 16.0,
            ..*cell
        };
        let weighted: Vec<Cell> = cells.iter().map(of).collect();
        let (found, expected) = (fit_weighted(&weighted, 16.0), fit(&cells) / 16.0);
        assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        // As if weights were events, they vary so little that every rate is the prior.
        assert!(fit(&weighted) > 10.0 * found);
    }

    #[test]
    fn nothing_to_fit_gives_a_usual_k_and_a_pool_without_data_what_is_above() {
        assert!((fit(&[]) - 10.0).abs() < 1e-12);
        let mut pool = Pool::default();
        assert!((pool.rate(2.5) - 2.5).abs() < 1e-12);
        pool.add(3000.0, 1000.0);
        assert!((pool.rate(1.0) - 3.0).abs() < 0.02);
    }
}
