//! Which products go with a product: baskets, users and kinship in one probability.
//!
//! P(j | i) is j's share of all baskets, times a rate: the counts of common baskets, shrunk to what pairs have whose
//! names go together as much and whose users overlap as much. Invariant: a pair of fewer than `users_min` users counts
//! as one without a common basket, and rows do not depend on the order of lines. It does not know SKUs.

use super::baskets::{Baskets, Counter, ONE, Pair};
use super::prior::{Kinship, Pools, Prior};
use super::shrink::{Cell, fit_weighted};

/// Pairs from which rates and k are fitted, about.
const FIT_PAIRS: usize = 4_000_000;
/// Pairs from which k is fitted, about.
const K_PAIRS: usize = 60_000;

/// A product with another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ProductPair {
    /// The other product.
    pub product: u32,
    /// Probability of the other one in a basket with the first.
    pub chance: f64,
    /// Whether at least `users_min` users had both in a basket, or bought both; else it is by kinship alone.
    pub is_counted: bool,
}

/// What is needed for every row.
pub(super) struct Products<'a> {
    baskets: &'a Baskets,
    kinship: Kinship<'a>,
    users_min: u32,
    shares: Vec<f64>,
    /// Share of each product in what a user buys, every user alike: where a random walk ends that begins anywhere.
    ends: Vec<f64>,
    prior: Prior,
    k: f64,
}

/// Room for one row.
pub(crate) struct Room {
    counter: Counter,
    counts: Vec<f64>,
    walk: Vec<f64>,
}

impl Room {
    pub(super) fn new(products: usize) -> Self {
        Self {
            counter: Counter::new(products),
            counts: vec![0.0; products],
            walk: vec![0.0; products],
        }
    }
}

impl<'a> Products<'a> {
    pub(super) fn fit(baskets: &'a Baskets, kinship: Kinship<'a>, users_min: u32) -> Self {
        let products = baskets.items();
        let with = |nth: usize| baskets.baskets_with(nth as u32) as f64;
        let all: f64 = (0..products).map(with).sum();
        let mut found = Self {
            baskets,
            kinship,
            users_min,
            shares: (0..products).map(|nth| with(nth) / all.max(1.0)).collect(),
            ends: ends(baskets),
            prior: Prior::default(),
            k: 10.0,
        };
        let step = (products * products / FIT_PAIRS).max(1);
        let mut room = Room::new(products);
        let mut pools = Pools::default();
        for of in (0..products as u32).step_by(step) {
            found.each(of, &mut room, |_, cell, alike| {
                pools.add(alike, cell.count, cell.expected);
            });
        }
        found.prior = pools.prior();
        let mut cells = Vec::new();
        let (mut nth, every) = (0usize, (products * products / step / K_PAIRS).max(1));
        for of in (0..products as u32).step_by(step) {
            found.each(of, &mut room, |_, cell, _| {
                nth += 1;
                if nth.is_multiple_of(every) {
                    cells.push(cell);
                }
            });
        }
        found.k = fit_weighted(&cells, baskets.events());
        found
    }

    /// How many expected baskets the prior is worth.
    pub(super) fn k(&self) -> f64 {
        self.k
    }

    /// Share of a product in all baskets.
    pub(super) fn share(&self, product: u32) -> f64 {
        self.shares[product as usize]
    }

    /// The products of the nearest kind that are in baskets, those with most baskets first.
    pub(super) fn kin(&self, of: u32, most: usize) -> Vec<u32> {
        let classes = self.kinship.classes(of);
        let bought = (0..)
            .zip(classes)
            .filter(|(to, _)| *to != of && self.share(*to) > 0.0);
        let mut kin: Vec<(u32, u8)> = bought.collect();
        let nearest = kin.iter().map(|(_, class)| *class).max();
        kin.retain(|(_, class)| Some(*class) == nearest);
        kin.sort_by(|a, b| {
            self.share(b.0)
                .total_cmp(&self.share(a.0))
                .then(a.0.cmp(&b.0))
        });
        kin.truncate(most);
        kin.into_iter().map(|(to, _)| to).collect()
    }

    /// Calls `of_pair` with each other product that was bought: its cell, and what says which pairs are alike.
    fn each(
        &self,
        of: u32,
        room: &mut Room,
        mut of_pair: impl FnMut(u32, Cell, (u8, Option<f64>)),
    ) {
        let Room {
            counter,
            counts,
            walk,
        } = room;
        let together = self.baskets.together(of, self.users_min, counter);
        let walked = self.walked(of, counter);
        let put = |into: &mut Vec<f64>, pairs: &[Pair], clear: bool| {
            for pair in pairs {
                into[pair.item as usize] = if clear { 0.0 } else { pair.count };
            }
        };
        put(counts, &together, false);
        put(walk, &walked, false);
        let classes = self.kinship.classes(of);
        let baskets = self.baskets.baskets_with(of) as f64;
        let others = (1.0 - self.shares[of as usize]).max(1e-9);
        for (to, class) in (0..).zip(classes) {
            let at = to as usize;
            if to == of || self.shares[at] <= 0.0 {
                continue;
            }
            let lift = (walk[at] > 0.0).then(|| walk[at] / self.ends[at].max(1e-12));
            let cell = Cell {
                count: counts[at],
                expected: baskets * self.shares[at] / others,
                prior: self.prior.rate(class, lift),
            };
            of_pair(to, cell, (class, lift));
        }
        put(counts, &together, true);
        put(walk, &walked, true);
    }

    /// Where two steps of a random walk end that begins at a product: to one of its users, to one of their products.
    fn walked(&self, of: u32, counter: &mut Counter) -> Vec<Pair> {
        let buyers = self.baskets.buyers(of).len().max(1) as f64;
        let weight = |items: usize| ONE / (items as u64 - 1).max(1);
        let known = (self.users_min, counter);
        let mut pairs = self.baskets.by_users(of, weight, known);
        pairs.iter_mut().for_each(|pair| pair.count /= buyers);
        pairs
    }

    /// The other products with their probabilities, by number.
    pub(super) fn row(&self, of: u32, room: &mut Room) -> Vec<ProductPair> {
        let others = (1.0 - self.shares[of as usize]).max(1e-9);
        let mut row = Vec::with_capacity(self.shares.len());
        self.each(of, room, |product, cell, (_, lift)| {
            row.push(ProductPair {
                product,
                chance: self.shares[product as usize] / others * cell.rate(self.k),
                is_counted: cell.count > 0.0 || lift.is_some(),
            });
        });
        row
    }
}

/// Share of each product in what users buy, each user counting the same.
fn ends(baskets: &Baskets) -> Vec<f64> {
    let products = baskets.items();
    let mut sums = vec![0u64; products];
    let mut users = 0u64;
    for user in 0..baskets.users() as u32 {
        let items = baskets.bought(user);
        users += u64::from(!items.is_empty());
        for item in items {
            sums[*item as usize] += ONE / items.len() as u64;
        }
    }
    let all = (users.max(1) * ONE) as f64;
    sums.into_iter().map(|sum| sum as f64 / all).collect()
}
