//! What is likely of a pair of products before its baskets are counted: the rate of pairs like it.
//!
//! Two things say which pairs are alike: how their names or categories go together, and how much more often the users
//! of one bought the other than the two steps of a random walk would by chance. Pairs of one cell have one rate, pooled.
//! Invariant: a prior is over 0 and finite. It does not know the pair's own baskets, but for their part of the pool.

use std::collections::BTreeMap;

use super::baskets::{Baskets, Counter};
use super::shrink::Pool;

/// Classes of kinship.
const CLASSES: usize = 10;
/// Bins of the walk: one for pairs it does not know, then steps of a quarter in the logarithm.
const BINS: usize = 18;
/// Logarithm at which the second bin begins.
const BIN_FIRST: f64 = -1.0;

/// What is known of products beside who bought them.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// The category of each product, by number.
    pub categories: &'a [u32],
    /// The similarity of a product's name to every name, from -1 to 1; `None` without vectors.
    pub similar: Option<&'a (dyn Fn(u32) -> Vec<f32> + Sync)>,
}

/// How the names or the categories of two products go together.
pub(super) enum Kinship<'a> {
    /// By texts.
    Texts(&'a (dyn Fn(u32) -> Vec<f32> + Sync)),
    /// By the pooled rate of the two categories.
    Categories {
        of: &'a [u32],
        rates: BTreeMap<(u32, u32), f64>,
        /// Of each category, its baskets and its share of all.
        sizes: Vec<(f64, f64)>,
    },
}

impl<'a> Kinship<'a> {
    /// By texts where there are any, else by categories; `baskets` are of categories.
    pub(super) fn new(known: Known<'a>, baskets: &Baskets, users_min: u32) -> Self {
        if let Some(similar) = known.similar {
            return Self::Texts(similar);
        }
        let categories = baskets.items();
        let with = |category: usize| baskets.baskets_with(category as u32) as f64;
        let all: f64 = (0..categories).map(with).sum();
        let sizes = (0..categories).map(|nth| (with(nth), with(nth) / all.max(1.0)));
        let sizes: Vec<(f64, f64)> = sizes.collect();
        let mut counter = Counter::new(categories);
        let mut rates = BTreeMap::new();
        for of in 0..categories as u32 {
            for pair in baskets.together(of, users_min, &mut counter) {
                let mut pool = Pool::default();
                pool.add(pair.count, expected(&sizes, of, pair.item));
                rates.insert((of, pair.item), pool.rate(1.0));
            }
        }
        Self::Categories {
            of: known.categories,
            rates,
            sizes,
        }
    }

    /// The class of `product` with every product.
    pub(super) fn classes(&self, product: u32) -> Vec<u8> {
        match self {
            Self::Texts(similar) => {
                let similar = similar(product);
                similar.into_iter().map(class_of_similarity).collect()
            }
            Self::Categories { of, rates, sizes } => {
                let own = of[product as usize];
                let class = |other: &u32| {
                    if *other == own {
                        return CLASSES as u8 - 1;
                    }
                    let rate = rates.get(&(own, *other)).copied();
                    let rate = rate.unwrap_or_else(|| {
                        let mut pool = Pool::default();
                        pool.add(0.0, expected(sizes, own, *other));
                        pool.rate(1.0)
                    });
                    let at = (rate.ln() + 1.0) * 4.0;
                    at.clamp(0.0, CLASSES as f64 - 2.0) as u8
                };
                of.iter().map(class).collect()
            }
        }
    }
}

/// Baskets with both that would be by chance.
fn expected(sizes: &[(f64, f64)], of: u32, to: u32) -> f64 {
    let ((baskets, own), (_, share)) = (sizes[of as usize], sizes[to as usize]);
    baskets * share / (1.0 - own).max(1e-9)
}

fn class_of_similarity(similarity: f32) -> u8 {
    let at = (similarity + 0.1) * CLASSES as f32;
    at.clamp(0.0, CLASSES as f32 - 1.0) as u8
}

/// Rates by class and walk, pooled.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Prior {
    /// The rate of each cell.
    rates: Vec<f64>,
}

/// Sums of which a [`Prior`] is made.
#[derive(Clone, Debug)]
pub(super) struct Pools {
    cells: Vec<Pool>,
    classes: [Pool; CLASSES],
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            cells: vec![Pool::default(); CLASSES * BINS],
            classes: [Pool::default(); CLASSES],
        }
    }
}

fn cell(class: u8, walk: Option<f64>) -> usize {
    let bin = walk.map_or(0.0, |lift| {
        1.0 + ((lift.max(1e-9).ln() - BIN_FIRST) * 4.0).clamp(0.0, BINS as f64 - 2.0)
    });
    usize::from(class) * BINS + bin as usize
}

impl Pools {
    /// Adds a pair of a class, with the lift of the walk, if it knows the pair.
    pub(super) fn add(&mut self, (class, walk): (u8, Option<f64>), count: f64, expected: f64) {
        self.cells[cell(class, walk)].add(count, expected);
        self.classes[usize::from(class)].add(count, expected);
    }

    /// The rates: a cell's is shrunk to its class's, and that to 1.
    pub(super) fn prior(&self) -> Prior {
        let rate = |(at, pool): (usize, &Pool)| pool.rate(self.classes[at / BINS].rate(1.0));
        Prior {
            rates: self.cells.iter().enumerate().map(rate).collect(),
        }
    }
}

impl Prior {
    /// The rate of a pair.
    pub(super) fn rate(&self, class: u8, walk: Option<f64>) -> f64 {
        self.rates
            .get(cell(class, walk))
            .copied()
            .unwrap_or(1.0)
            .max(1e-6)
    }
}
