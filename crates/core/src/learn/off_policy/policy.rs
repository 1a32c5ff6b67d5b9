//! The probability with which a policy places each candidate of a name next, given what it has placed before.
//!
//! Invariant: the probabilities of one place are those of production's choice ([`crate::list`] places by chance the
//! candidates that have a weight, in a Plackett-Luce order, and then the others by share without chance), so a policy
//! that is asked about its own lists gives the propensities that these lists were published with.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How shares and chances of being the best become weights: the settings of a policy that matter to propensities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Weighing {
    /// Power of the shares.
    pub gamma: f64,
    /// Part of the weight that goes by the probability of being the best, of 1.
    pub explore: f64,
    /// Least part of the powers, or least probability of being the best, with which a candidate is placed by chance.
    pub epsilon: f64,
}

/// A SKU that a name could show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The probability that this user takes it, of all candidates of the name.
    pub share: f64,
    /// The probability that it is the best one by counts.
    pub best: f64,
}

/// The candidates of a name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates {
    /// Those that are told one by one, in the order of their shares.
    pub listed: Vec<Candidate>,
    /// Groups of others of about the same share: how many there are, and the sum of their shares. They are taken as closed
    /// to chance, and of a group as alike.
    pub others: Vec<(u32, f64)>,
}

impl Candidates {
    /// The sum of shares to the power of gamma.
    fn powers(&self, gamma: f64) -> f64 {
        let listed: f64 = self.listed.iter().map(|it| power(it.share, gamma)).sum();
        let others = self.others.iter().map(|(number, share)| {
            let number = f64::from(*number).max(1.0);
            number * power(share / number, gamma)
        });
        listed + others.sum::<f64>()
    }
}

/// A share to the power of gamma; shares are at most 1, so nothing overflows.
fn power(share: f64, gamma: f64) -> f64 {
    share.max(0.0).powf(gamma)
}

impl Weighing {
    /// The weight of each listed candidate; 0 if it is not open to chance.
    pub(super) fn weights(&self, candidates: &Candidates) -> Vec<f64> {
        let sum = candidates.powers(self.gamma);
        let weight = |it: &Candidate| {
            let by_share = match sum > 0.0 {
                true => power(it.share, self.gamma) / sum,
                false => 0.0,
            };
            let open = |part: f64| if part >= self.epsilon { part } else { 0.0 };
            (1.0 - self.explore) * open(by_share) + self.explore * open(it.best)
        };
        candidates.listed.iter().map(weight).collect()
    }
}

/// The places of one name under one policy, filled one after the other.
#[derive(Clone, Debug)]
pub(super) struct Placing {
    weights: Vec<f64>,
    placed: Vec<bool>,
}

impl Placing {
    pub(super) fn new(weighing: &Weighing, candidates: &Candidates) -> Self {
        let weights = weighing.weights(candidates);
        Self {
            placed: vec![false; weights.len()],
            weights,
        }
    }

    /// The probability of each candidate to take the next place.
    pub(super) fn next(&self) -> Vec<f64> {
        let free = |at: usize| !self.placed[at];
        let len = self.weights.len();
        let open: f64 = (0..len)
            .filter(|at| free(*at))
            .map(|at| self.weights[at])
            .sum();
        if open > 0.0 {
            let chance = |at: usize| {
                if free(at) {
                    self.weights[at] / open
                } else {
                    0.0
                }
            };
            return (0..len).map(chance).collect();
        }
        // Those closed to chance follow by share: the first one that is free is sure of the place.
        let mut chances = vec![0.0; len];
        if let Some(first) = (0..len).find(|at| free(*at)) {
            chances[first] = 1.0;
        }
        chances
    }

    /// Places a candidate.
    pub(super) fn place(&mut self, candidate: usize) {
        self.placed[candidate] = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(of: &[(f64, f64)]) -> Candidates {
        let listed = of.iter().map(|(share, best)| Candidate {
            share: *share,
            best: *best,
        });
        Candidates {
            listed: listed.collect(),
            ..Candidates::default()
        }
    }

    #[test]
    fn open_candidates_are_placed_by_weight_and_the_others_follow_by_share() {
        let of = candidates(&[(0.6, 0.1), (0.3, 0.0), (0.06, 0.9), (0.04, 0.0)]);
        let weighing = Weighing {
            gamma: 1.0,
            explore: 0.5,
            epsilon: 0.1,
        };
        let mut placing = Placing::new(&weighing, &of);
        let close = |found: &[f64], wanted: [f64; 4]| {
            let far = found.iter().zip(wanted).any(|(a, b)| (a - b).abs() > 1e-12);
            assert!(!far, "{found:?} {wanted:?}");
        };
        // Weights 0.35, 0.15 and 0.45; shares of 0.06 and 0.04 are under epsilon.
        close(
            &placing.next(),
            [0.35 / 0.95, 0.15 / 0.95, 0.45 / 0.95, 0.0],
        );
        placing.place(2);
        close(&placing.next(), [0.7, 0.3, 0.0, 0.0]);
        placing.place(0);
        placing.place(1);
        close(&placing.next(), [0.0, 0.0, 0.0, 1.0]);
        placing.place(3);
        close(&placing.next(), [0.0; 4]);
    }

    #[test]
    fn candidates_that_are_not_listed_keep_their_part_of_the_weight() {
        let mut of = candidates(&[(0.5, 0.0)]);
        of.others = vec![(10, 0.4), (1, 0.1)];
        let weighing = Weighing {
            gamma: 2.0,
            explore: 0.0,
            epsilon: 0.0,
        };
        let weight = weighing.weights(&of)[0];
        assert!((weight - 0.25 / (0.25 + 10.0 * 0.0016 + 0.01)).abs() < 1e-12);
    }
}
