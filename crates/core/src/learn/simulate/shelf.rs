//! One product of the simulation: its SKUs, what is true of them, and what is known of them.
//!
//! Invariant: a way to choose reads [`Sku::counts`], [`Sku::logs`] and stock, never [`Sku::logit`].

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::world::{LOOKS, MEAN, World};
use crate::learn::choice::UNSOLD;
use crate::learn::choice::on_sale::OnSale;
use crate::shop::demand::SkuCounts;

/// Days after which a count is worth half: that of demand, a quarter of it, and four times it.
const HALF_LIVES: [f64; 3] = [28.0, 7.0, 112.0];

/// Longest time for which a SKU is sold out, in days.
const SOLD_OUT_MAX: u32 = 9;

/// A SKU.
#[derive(Clone, Debug)]
pub(crate) struct Sku {
    /// The truth: the logit of the probability that a user who looks at it buys it.
    pub logit: f64,
    /// First day on which it is sold out no more.
    pub back: u32,
    /// Day of its launch, and whether it was better than all others; `None` if it was there at the start.
    pub launched: Option<bool>,
    /// Whether it has counts.
    is_known: bool,
    /// What is known: decayed counts.
    pub counts: SkuCounts,
    /// Pieces bought, decayed by each of [`HALF_LIVES`].
    bought: [f64; 3],
    /// Pieces bought of all SKUs of its product since it is known to be on sale.
    offered: [f64; 3],
    /// The first count, if it was a purchase.
    first: [f64; 3],
}

impl Sku {
    fn new(logit: f64, launched: Option<bool>) -> Self {
        Self {
            logit,
            back: 0,
            launched,
            is_known: false,
            counts: SkuCounts::default(),
            bought: [0.0; 3],
            offered: [0.0; 3],
            first: [0.0; 3],
        }
    }

    /// It gets its first count: from now on it is known to be on sale.
    pub(crate) fn seen(&mut self) {
        if !std::mem::replace(&mut self.is_known, true) {
            self.counts.offered = 0.0;
            self.offered = [0.0; 3];
        }
    }
}

/// A product with its SKUs.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    /// Its SKUs; new ones come last, none goes.
    pub skus: Vec<Sku>,
    /// Pieces bought of all of them.
    bought: [f64; 3],
}

impl Shelf {
    pub(crate) fn new(world: &World, random: &mut ChaCha8Rng) -> Self {
        let sku = |_| Sku::new(MEAN + world.spread * normal(random), None);
        Self {
            skus: (0..world.skus).map(sku).collect(),
            bought: [0.0; 3],
        }
    }

    /// What changes in a night. It draws as often whatever happened before, so that every way meets the same world.
    pub(crate) fn night(&mut self, world: &World, day: u32, random: &mut ChaCha8Rng) {
        for sku in &mut self.skus {
            sku.logit += world.drift * normal(random);
            let (out, days) = (
                random.random_bool(world.sold_out),
                random.random_range(1..=SOLD_OUT_MAX),
            );
            if out && sku.back <= day {
                sku.back = day + days;
            }
        }
        let (new, good) = (
            random.random_bool(world.launch),
            random.random_bool(world.launch_good),
        );
        let below = normal(random).abs();
        if new {
            let best = self
                .skus
                .iter()
                .map(|sku| sku.logit)
                .fold(f64::MIN, f64::max);
            let logit = if good {
                best + 0.3
            } else {
                MEAN - world.spread * below
            };
            let mut sku = Sku::new(logit, Some(good));
            sku.offered = self.bought;
            sku.counts.offered = self.bought[0] as f32;
            self.skus.push(sku);
        }
    }

    /// A purchase becomes known.
    pub(crate) fn buy(&mut self, sku: usize) {
        let is_first = !self.skus[sku].is_known;
        for sku in &mut self.skus {
            sku.counts.offered += 1.0;
            sku.offered.iter_mut().for_each(|offered| *offered += 1.0);
        }
        self.bought.iter_mut().for_each(|bought| *bought += 1.0);
        let bought = &mut self.skus[sku];
        bought.seen();
        bought.counts.purchases += 1.0;
        bought.bought.iter_mut().for_each(|bought| *bought += 1.0);
        if is_first {
            bought.first = [1.0; 3];
        }
    }

    /// Counts fade.
    pub(crate) fn fade(&mut self) {
        let by = HALF_LIVES.map(|days| 0.5f64.powf(1.0 / days));
        self.bought
            .iter_mut()
            .zip(by)
            .for_each(|(bought, by)| *bought *= by);
        for sku in &mut self.skus {
            sku.counts.impressions *= by[0] as f32;
            sku.counts.clicks *= by[0] as f32;
            sku.counts.purchases *= by[0] as f32;
            sku.counts.offered *= by[0] as f32;
            sku.bought
                .iter_mut()
                .zip(by)
                .for_each(|(bought, by)| *bought *= by);
        }
    }

    /// Logarithms of what was bought, as the choice of SKUs reads them.
    pub(crate) fn logs(&self, at: usize) -> [f32; 3] {
        let sku = &self.skus[at];
        let of = |nth: usize| OnSale {
            pieces: sku.bought[nth],
            first: sku.first[nth],
            offered: sku.offered[nth],
            all: self.bought[nth],
            skus: self.skus.len(),
        };
        let pieces = |nth: usize| match sku.is_known {
            true => of(nth).pieces(),
            false => 0.0,
        };
        std::array::from_fn(|nth| (pieces(nth) as f32 + UNSOLD).ln())
    }

    /// SKUs in stock.
    pub(crate) fn stocked(&self, day: u32) -> Vec<usize> {
        (0..self.skus.len())
            .filter(|at| self.skus[*at].back <= day)
            .collect()
    }

    /// The true rate of a SKU for a user whose last one of the product is `last`.
    pub(crate) fn rate(&self, at: usize, last: Option<usize>, habit: f64) -> f64 {
        let own = if last == Some(at) { habit } else { 0.0 };
        1.0 / (1.0 + (-(self.skus[at].logit + own)).exp())
    }
}

/// Expected purchases of a list by the rates of its places: users look at the first, and go on with [`LOOKS`] until they
/// buy.
pub(crate) fn expected(rates: impl IntoIterator<Item = f64>) -> f64 {
    let mut looking = 1.0;
    let mut sum = 0.0;
    for rate in rates {
        sum += looking * rate;
        looking *= LOOKS * (1.0 - rate);
    }
    sum
}

fn normal(random: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_purchases_of_two_places() {
        let two = expected([0.2, 0.5]);
        assert!((two - (0.2 + LOOKS * 0.8 * 0.5)).abs() < 1e-12);
        assert!(expected([0.5, 0.2]) > two, "the better one first is better");
    }
}
