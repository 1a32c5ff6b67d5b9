//! Replays a log of purchases in its order, and hands out each choice with what was known before it.
//!
//! A choice is a purchase of one SKU within a product of several, by one user at one time; where a user took several
//! SKUs of a product at once, nothing was chosen. Invariant: a choice sees nothing of its own time or later, and of a
//! user's own purchases no more than a state keeps. It does not know how choices are scored.

use std::collections::{BTreeMap, VecDeque};

use super::on_sale::OnSale;
use super::{Attribute, Candidates, OwnPurchase, UNSOLD};
use crate::learn::log::DAY_MS;

/// What a shop sells, as numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SkuTable {
    /// Product of each SKU.
    pub products: Vec<u32>,
    /// SKUs of each product, ascending.
    pub skus: Vec<Vec<u32>>,
    /// Logarithm of each SKU's price; NaN where it has none.
    pub prices: Vec<f32>,
    /// Attributes that SKUs of one product differ in.
    pub attributes: Vec<SkuAttribute>,
}

/// An attribute of SKUs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SkuAttribute {
    /// Its name.
    pub name: String,
    /// Value of each SKU; 0 if it has none.
    pub values: Vec<u32>,
    /// Number of values, with that of none.
    pub len: usize,
}

/// A purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bought {
    /// Time in milliseconds.
    pub at: i64,
    /// Number of the user.
    pub user: u32,
    /// Number of the SKU.
    pub sku: u32,
    /// Pieces.
    pub pieces: u32,
}

/// How much of a user's purchases is visible, and how fast demand is forgotten.
#[derive(Clone, Copy, Debug)]
pub struct ReplayOptions {
    /// Half-life of demand in milliseconds.
    pub half_life_ms: i64,
    /// Most SKUs of a user's that are visible.
    pub own_skus: usize,
    /// Most purchases of a user's that are visible.
    pub own_purchases: usize,
}

/// A choice, with what was known before it.
pub struct Choice<'a> {
    /// Number of the user.
    pub user: u32,
    /// Number among all choices, from 0.
    pub nth: usize,
    /// SKUs of the product.
    pub skus: &'a [u32],
    /// Place of the SKU that was taken.
    pub taken: usize,
    state: &'a State<'a>,
    at: i64,
    product: u32,
}

impl Choice<'_> {
    /// The candidates: all SKUs of the product.
    pub fn candidates(&self) -> Candidates<'_> {
        self.state.candidates(self)
    }

    /// Decayed pieces of each SKU of the product.
    pub fn pieces(&self) -> Vec<f32> {
        let state = self.state;
        let weights = state.weights(self.at);
        let of = |sku: &u32| (state.pieces[*sku as usize][0] * weights[0]) as f32;
        self.skus.iter().map(of).collect()
    }

    /// Place of the SKU that the user last bought in the product, if one is visible.
    pub fn own_last(&self) -> Option<usize> {
        let owner = &self.state.owners[self.user as usize];
        let product = |sku: u32| self.state.table.products[sku as usize];
        let mut own = owner
            .entries
            .iter()
            .rev()
            .filter(|entry| product(entry.1) == self.product);
        let (_, sku) = own.next()?;
        self.skus.binary_search(sku).ok()
    }
}

/// What is visible of a user.
#[derive(Clone, Default)]
struct Owner {
    /// Purchases, oldest first.
    entries: VecDeque<(i64, u32)>,
    /// Number of purchases of each SKU.
    skus: BTreeMap<u32, u32>,
    /// Number of purchases of each value, for each attribute.
    values: Vec<BTreeMap<u32, f32>>,
}

struct State<'a> {
    table: &'a SkuTable,
    options: ReplayOptions,
    /// Pieces of each SKU at three half-lives, in units of [`Self::from`]'s pieces.
    pieces: Vec<[f64; 3]>,
    /// Those of them that were the first of their SKU.
    first: Vec<[f64; 3]>,
    /// Pieces of each product until the first of each of its SKUs, with it.
    before: Vec<[f64; 3]>,
    /// Pieces of each product.
    products: Vec<[f64; 3]>,
    /// Time at which a piece counts 1.
    from: i64,
    owners: Vec<Owner>,
    /// How often each value was bought, for each attribute, and the sum.
    sold: Vec<(Vec<f64>, f64)>,
}

/// Half-lives: that of demand, a quarter of it, and four times it.
pub(crate) const HALF_LIVES: [f64; 3] = [1.0, 0.25, 4.0];

/// Half-lives after which pieces are counted from a new time, before their numbers become too large.
const REBASE: f64 = 200.0;

impl<'a> State<'a> {
    fn new(table: &'a SkuTable, users: usize, options: ReplayOptions) -> Self {
        let attributes = &table.attributes;
        let owner = Owner {
            values: vec![BTreeMap::new(); attributes.len()],
            ..Owner::default()
        };
        Self {
            table,
            options,
            pieces: vec![[0.0; 3]; table.products.len()],
            first: vec![[0.0; 3]; table.products.len()],
            before: vec![[0.0; 3]; table.products.len()],
            products: vec![[0.0; 3]; table.skus.len()],
            from: 0,
            owners: vec![owner; users],
            // Each value begins with one purchase, so that the logarithm of its share can be taken.
            sold: attributes
                .iter()
                .map(|it| (vec![1.0; it.len], it.len as f64))
                .collect(),
        }
    }

    /// How many half-lives have passed since `from`, for each.
    fn passed(&self, at: i64) -> [f64; 3] {
        let one = self.options.half_life_ms.max(1) as f64;
        HALF_LIVES.map(|half_life| (at - self.from) as f64 / (one * half_life))
    }

    /// What a piece of `from` counts now.
    fn weights(&self, at: i64) -> [f64; 3] {
        self.passed(at).map(|passed| (-passed).exp2())
    }

    fn add(&mut self, bought: &Bought) {
        let passed = self.passed(bought.at);
        if passed.iter().any(|passed| *passed > REBASE) {
            let scale = self.weights(bought.at);
            let sums = [
                &mut self.pieces,
                &mut self.first,
                &mut self.before,
                &mut self.products,
            ];
            for pieces in sums.into_iter().flatten() {
                (0..3).for_each(|nth| pieces[nth] *= scale[nth]);
            }
            self.from = bought.at;
        }
        let weights = self.passed(bought.at).map(f64::exp2);
        let (sku, pieces) = (bought.sku as usize, f64::from(bought.pieces));
        let product = &mut self.products[self.table.products[sku] as usize];
        let is_first = self.pieces[sku][2] == 0.0;
        for (nth, weight) in weights.into_iter().enumerate() {
            self.pieces[sku][nth] += pieces * weight;
            product[nth] += pieces * weight;
            if is_first {
                self.first[sku][nth] = pieces * weight;
                self.before[sku][nth] = product[nth];
            }
        }
        let owner = &mut self.owners[bought.user as usize];
        let is_known = owner
            .entries
            .iter()
            .rev()
            .take_while(|entry| entry.0 == bought.at);
        if is_known.into_iter().any(|entry| entry.1 == bought.sku) {
            return;
        }
        owner.entries.push_back((bought.at, bought.sku));
        *owner.skus.entry(bought.sku).or_default() += 1;
        for (nth, attribute) in self.table.attributes.iter().enumerate() {
            let value = attribute.values[bought.sku as usize];
            if value != 0 {
                self.sold[nth].0[value as usize] += 1.0;
                self.sold[nth].1 += 1.0;
                *owner.values[nth].entry(value).or_default() += 1.0;
            }
        }
        while owner.skus.len() > self.options.own_skus
            || owner.entries.len() > self.options.own_purchases
        {
            let Some((_, sku)) = owner.entries.pop_front() else {
                break;
            };
            if let Some(count) = owner.skus.get_mut(&sku) {
                *count -= 1;
            }
            owner
                .skus
                .retain(|known, count| *known != sku || *count > 0);
            for (nth, attribute) in self.table.attributes.iter().enumerate() {
                let value = attribute.values[sku as usize];
                if let Some(count) = owner.values[nth].get_mut(&value) {
                    *count -= 1.0;
                }
            }
        }
    }

    fn candidates<'b>(&'b self, choice: &Choice<'_>) -> Candidates<'b> {
        let weights = self.weights(choice.at);
        let all = self.products[choice.product as usize];
        let logs = |sku: &u32| {
            let sku = *sku as usize;
            let of = |nth: usize| {
                let (pieces, weight) = (self.pieces[sku][nth], weights[nth]);
                let on_sale = OnSale {
                    pieces: pieces * weight,
                    first: self.first[sku][nth] * weight,
                    offered: (all[nth] - self.before[sku][nth]) * weight,
                    all: all[nth] * weight,
                    skus: choice.skus.len(),
                };
                let pieces = if pieces > 0.0 {
                    on_sale.pieces()
                } else {
                    pieces * weight
                };
                (pieces as f32 + UNSOLD).ln()
            };
            [0, 1, 2].map(of)
        };
        let owner = &self.owners[choice.user as usize];
        let in_product =
            |entry: &&(i64, u32)| self.table.products[entry.1 as usize] == choice.product;
        let own: Vec<&(i64, u32)> = owner.entries.iter().rev().filter(in_product).collect();
        let purchase = |entry: &&(i64, u32)| OwnPurchase {
            place: choice
                .skus
                .binary_search(&entry.1)
                .ok()
                .map(|place| place as u32),
            days: ((choice.at - entry.0) as f64 / DAY_MS as f64) as f32,
        };
        let attribute = |(nth, of): (usize, &'b SkuAttribute)| Attribute {
            name: &of.name,
            values: choice
                .skus
                .iter()
                .map(|sku| of.values[*sku as usize])
                .collect(),
            own: own
                .iter()
                .map(|entry| of.values[entry.1 as usize])
                .collect(),
            counts: &owner.values[nth],
            sold: &self.sold[nth].0,
            all: self.sold[nth].1,
        };
        Candidates {
            demand: choice.skus.iter().map(logs).collect(),
            prices: choice
                .skus
                .iter()
                .map(|sku| self.table.prices[*sku as usize])
                .collect(),
            own: own.iter().map(purchase).collect(),
            attributes: self
                .table
                .attributes
                .iter()
                .enumerate()
                .map(attribute)
                .collect(),
        }
    }
}

/// Replays purchases, which must be sorted, and calls `each` for each choice; returns the number of choices.
pub fn replay(
    table: &SkuTable,
    bought: &[Bought],
    options: ReplayOptions,
    mut each: impl FnMut(&Choice<'_>),
) -> usize {
    let users = bought
        .iter()
        .map(|it| it.user as usize + 1)
        .max()
        .unwrap_or(0);
    let mut state = State::new(table, users, options);
    state.from = bought.first().map_or(0, |first| first.at);
    let mut nth = 0;
    for group in bought.chunk_by(|a, b| (a.at, a.user) == (b.at, b.user)) {
        let mut products: BTreeMap<u32, Option<u32>> = BTreeMap::new();
        for one in group {
            let taken = products
                .entry(table.products[one.sku as usize])
                .or_insert(Some(one.sku));
            *taken = taken.filter(|sku| *sku == one.sku);
        }
        for (product, sku) in products {
            let skus = &table.skus[product as usize];
            let place = sku.and_then(|sku| skus.binary_search(&sku).ok());
            let Some(taken) = place.filter(|_| skus.len() > 1) else {
                continue;
            };
            each(&Choice {
                user: group[0].user,
                nth,
                skus,
                taken,
                state: &state,
                at: group[0].at,
                product,
            });
            nth += 1;
        }
        group.iter().for_each(|one| state.add(one));
    }
    nth
}
