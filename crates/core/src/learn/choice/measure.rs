//! Measures ways to choose a SKU on the choices of a log, each by what was known before it.
//!
//! Invariant: ways are compared on the same choices, ties go to the SKU of the least number, and the measure does not
//! depend on the order in which users are numbered. It does not know how ways are fitted.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::replay::Choice;
use crate::learn::bootstrap::{Interval, Resampling, paired};

/// SKUs of a list under a name, for which a hit is counted.
const SHOWN: usize = 5;

/// Bins of confidence.
const BINS: usize = 20;

/// Least probability of a SKU when its logarithm is taken: a way that gives none has one still.
const LEAST: f64 = 1e-4;

/// How good a way is on some choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hits {
    /// Number of choices.
    pub choices: u64,
    /// Share of choices of the SKU that the way puts first.
    pub hit1: f64,
    /// Share of choices of one of the first five.
    pub hit5: f64,
    /// Mean negative logarithm of the probability of what was chosen, in nats.
    pub nats: f64,
}

/// A way's measures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Way {
    /// On all choices.
    pub all: Hits,
    /// Where the user bought in the product before, as far as that is visible.
    pub own_visible: Hits,
    /// Where the product is new to the user.
    pub product_new: Hits,
    /// How far the probability of the SKU put first is from how often it is taken: the expected calibration error over 20
    /// bins of equal width, on all choices.
    pub ece: f64,
}

/// Sums of one way.
#[derive(Clone, Debug, Default)]
struct Sums {
    /// Choices, hits at 1 and at 5, nats: first where own is visible, then where the product is new.
    cells: [[f64; 4]; 2],
    /// Choices, confidence and hits of each bin.
    bins: [[f64; 3]; BINS],
}

/// Measures of ways by their names.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    ways: BTreeMap<&'static str, Sums>,
    /// Hits of two ways by user, whose difference says which is better.
    pairs: Vec<(u32, f64, f64)>,
}

impl Sums {
    fn add(&mut self, shares: &[f64], taken: usize, is_new: bool) -> bool {
        let of = shares[taken];
        let better = |(place, share): (usize, &f64)| *share > of || (*share == of && place < taken);
        let rank = shares.iter().enumerate().filter(|it| better(*it)).count();
        let cell = &mut self.cells[usize::from(is_new)];
        cell[0] += 1.0;
        cell[1] += f64::from(u8::from(rank == 0));
        // What a way gives no chance it does not show.
        cell[2] += f64::from(u8::from(rank < SHOWN && of > 0.0));
        cell[3] -= of.max(LEAST).ln();
        let confidence = shares.iter().copied().fold(0.0, f64::max);
        let bin = ((confidence * BINS as f64) as usize).min(BINS - 1);
        let bin = &mut self.bins[bin];
        bin[0] += 1.0;
        bin[1] += confidence;
        bin[2] += f64::from(u8::from(rank == 0));
        rank == 0
    }

    fn way(&self) -> Way {
        let [own_visible, product_new] = self.cells.map(hits);
        let all: [f64; 4] = std::array::from_fn(|nth| self.cells[0][nth] + self.cells[1][nth]);
        let far: f64 = self.bins.iter().map(|bin| (bin[1] - bin[2]).abs()).sum();
        Way {
            all: hits(all),
            own_visible,
            product_new,
            ece: far / all[0].max(1.0),
        }
    }
}

fn hits([choices, hit1, hit5, nats]: [f64; 4]) -> Hits {
    let n = choices.max(1.0);
    Hits {
        choices: choices as u64,
        hit1: hit1 / n,
        hit5: hit5 / n,
        nats: nats / n,
    }
}

impl Tally {
    /// Adds what a way says of a choice: a probability for each SKU, in the order of its SKUs. Returns whether it puts
    /// first what was taken.
    pub fn add(&mut self, way: &'static str, choice: &Choice<'_>, shares: &[f64]) -> bool {
        let sums = self.ways.entry(way).or_default();
        sums.add(shares, choice.taken, choice.own_last().is_none())
    }

    /// Adds whether each of two ways put first what was taken.
    pub fn compare(&mut self, user: u32, one: bool, other: bool) {
        let hit = |is_hit: bool| f64::from(u8::from(is_hit));
        self.pairs.push((user, hit(one), hit(other)));
    }

    /// The measures of each way.
    pub fn ways(&self) -> BTreeMap<String, Way> {
        let way = |(name, sums): (&&str, &Sums)| ((*name).to_owned(), sums.way());
        self.ways.iter().map(way).collect()
    }

    /// How many more choices the first way of [`Self::compare`] puts first, as a share, with its interval over users.
    pub fn gain(&self, seed: u64) -> Interval {
        let how = Resampling {
            seed,
            ..Resampling::default()
        };
        paired(self.pairs.iter().copied(), how)
    }
}

/// Shares of what is bought, as decayed pieces give them.
pub fn popular(choice: &Choice<'_>) -> Vec<f64> {
    let pieces = choice.pieces();
    let all: f64 = pieces.iter().map(|n| f64::from(n + super::UNSOLD)).sum();
    pieces
        .iter()
        .map(|n| f64::from(n + super::UNSOLD) / all)
        .collect()
}

/// How often users took their last SKU of a product again, so far.
#[derive(Clone, Copy, Debug)]
pub struct Again {
    taken: f64,
    all: f64,
}

impl Default for Again {
    fn default() -> Self {
        Self {
            taken: 1.0,
            all: 2.0,
        }
    }
}

impl Again {
    /// The user's last SKU, as likely as it was taken again so far, the others by [`popular`]; and learns the choice.
    pub fn own_last(&mut self, choice: &Choice<'_>, popular: &[f64]) -> Vec<f64> {
        let Some(last) = choice.own_last() else {
            return popular.to_vec();
        };
        let again = self.taken / self.all;
        self.all += 1.0;
        self.taken += f64::from(u8::from(choice.taken == last));
        let rest = 1.0 - popular[last];
        // Put first, however unlikely: that is what this way means.
        let most = popular.iter().copied().fold(0.0, f64::max);
        let again = again.max(most / (most + rest) + 1e-9);
        let mut shares: Vec<f64> = popular
            .iter()
            .map(|share| share * (1.0 - again) / rest)
            .collect();
        shares[last] = again;
        shares
    }
}
