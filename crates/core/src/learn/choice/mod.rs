//! Which SKU of a product a user takes: a posterior with a learned prior.
//!
//! The prior is a conditional logit over the SKUs of the product (McFadden 1974), worth [`ChoiceModel::kappa`]
//! purchases; the user's own purchases in the product are counted on top, as in a Dirichlet-multinomial model, the
//! newest counting most. Invariant: shares of the SKUs of a product sum to 1, each is over 0, and a feature that the
//! catalogue does not have changes no share. SKUs, products, users and attribute values are numbers: this folder knows no
//! catalogue, no rules and no user state.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod fit;
pub mod measure;
pub(crate) mod on_sale;
pub mod replay;

/// Version of the file's content. A reader refuses another one.
const VERSION: u32 = 1;

/// Purchases that are added to decayed counts before their logarithm is taken: what a SKU without any counts as.
pub(crate) const UNSOLD: f32 = 0.1;

/// Features before those of attributes, in the order of their columns.
const PLAIN: [&str; 9] = [
    "demand",
    "recent",
    "slow",
    "unsold",
    "own",
    "own_age",
    "own_last",
    "price",
    "price_distance",
];

/// Features of each attribute: how much more often than others the user buys its value, everywhere and in the product.
const OF_ATTRIBUTE: [&str; 2] = ["taste", "own"];

/// Pseudo-purchases of a user's taste: everywhere, and in the product.
const TASTE: [f32; 2] = [10.0, 2.0];

/// Why a file of a model cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// Another release wrote it.
    #[error("version {0} of the choice of SKUs, this release reads {VERSION}")]
    Version(u32),
    /// Numbers that make no shares.
    #[error("{0} is not a number that can be used")]
    Number(&'static str),
}

/// What [`ChoiceModel::shares`] computes by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChoiceModel {
    version: u32,
    /// Weight of each feature of the prior; one that is not named has none.
    pub weights: BTreeMap<String, f64>,
    /// How many of the user's own purchases the prior is worth.
    pub kappa: f64,
    /// By how much a purchase counts less for each later one in the product.
    pub forget: f64,
    /// Days after which a purchase counts half.
    pub half_life_days: f64,
}

impl Default for ChoiceModel {
    /// What is used where nothing was learned: the user's last SKU, then the others by their share of what is bought.
    fn default() -> Self {
        let share = [("demand".to_owned(), 1.0)];
        Self {
            version: VERSION,
            weights: share.into(),
            kappa: 0.5,
            forget: 0.5,
            half_life_days: 365.0,
        }
    }
}

/// One of a user's purchases in the product, by its SKU's place among the candidates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OwnPurchase {
    /// Place; `None` if the SKU is no candidate: sold out, forbidden.
    pub place: Option<u32>,
    /// Age in days.
    pub days: f32,
}

/// An attribute of the candidates, and what the user bought of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute<'a> {
    /// Its name.
    pub name: &'a str,
    /// Value of each candidate; 0 if it has none.
    pub values: Vec<u32>,
    /// Values of the user's purchases in the product.
    pub own: Vec<u32>,
    /// How often the user bought each value, in any product.
    pub counts: &'a BTreeMap<u32, f32>,
    /// How often all users bought each value.
    pub sold: &'a [f64],
    /// The sum of `sold`.
    pub all: f64,
}

/// The SKUs of one product among which a user chooses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidates<'a> {
    /// Logarithms of each candidate's purchases at the half-life of demand, at a quarter of it, and at four times it.
    pub demand: Vec<[f32; 3]>,
    /// Logarithm of each candidate's price; NaN where it has none.
    pub prices: Vec<f32>,
    /// The user's purchases in the product, newest first.
    pub own: Vec<OwnPurchase>,
    /// Attributes that SKUs of one product differ in.
    pub attributes: Vec<Attribute<'a>>,
}

impl Candidates<'_> {
    fn len(&self) -> usize {
        self.demand.len()
    }

    /// Names of the columns.
    pub(crate) fn names(&self) -> Vec<String> {
        let plain = PLAIN.map(str::to_owned).into_iter();
        let of =
            |attribute: &Attribute<'_>| OF_ATTRIBUTE.map(|by| format!("{by}:{}", attribute.name));
        plain.chain(self.attributes.iter().flat_map(of)).collect()
    }

    /// The features, a column each.
    pub(crate) fn columns(&self) -> Vec<Vec<f32>> {
        let of_demand = |nth: usize| self.demand.iter().map(|logs| logs[nth]).collect();
        let sold = UNSOLD.ln() + 0.02;
        let unsold = self.demand.iter().map(|logs| f32::from(logs[2] < sold));
        let mut columns: Vec<Vec<f32>> = (0..3).map(of_demand).collect();
        columns.push(unsold.collect());
        columns.extend(self.own_columns());
        columns.extend(self.price_columns());
        for attribute in &self.attributes {
            columns.extend(self.attribute_columns(attribute));
        }
        columns
    }

    /// Whether the user bought the SKU, how long ago, and whether it is the last one.
    fn own_columns(&self) -> [Vec<f32>; 3] {
        let mut columns = [(); 3].map(|()| vec![0.0; self.len()]);
        let known = self
            .own
            .iter()
            .filter_map(|own| Some((own.place? as usize, own.days)));
        for (place, days) in known {
            if columns[0][place] == 0.0 {
                columns[0][place] = 1.0;
                columns[1][place] = days.max(0.0).ln_1p();
            }
        }
        if let Some(last) = self.own.first().and_then(|own| own.place) {
            columns[2][last as usize] = 1.0;
        }
        columns
    }

    /// Logarithm of the price over the product's median, and its distance to that of what the user bought.
    fn price_columns(&self) -> [Vec<f32>; 2] {
        let mut known: Vec<f32> = self
            .prices
            .iter()
            .copied()
            .filter(|price| price.is_finite())
            .collect();
        known.sort_by(f32::total_cmp);
        let nothing = vec![0.0; self.len()];
        if known.is_empty() {
            return [nothing.clone(), nothing];
        }
        let median = known[known.len() / 2];
        let ratio = |price: &f32| {
            if price.is_finite() {
                price - median
            } else {
                0.0
            }
        };
        let ratios: Vec<f32> = self.prices.iter().map(ratio).collect();
        let own = self.own.iter().filter_map(|own| own.place);
        let own: Vec<f32> = own.map(|place| ratios[place as usize]).collect();
        if own.is_empty() {
            return [ratios, nothing];
        }
        let usual = own.iter().sum::<f32>() / own.len() as f32;
        let far = ratios.iter().map(|ratio| (ratio - usual).abs());
        [ratios.clone(), far.collect()]
    }

    /// ln(the user's share of the candidate's value / everyone's), everywhere and in the product.
    fn attribute_columns(&self, attribute: &Attribute<'_>) -> [Vec<f32>; 2] {
        let bought: f32 = attribute.counts.values().sum();
        let lift = |n: f32, all: f32, share: f32, pseudo: f32| {
            ((n + pseudo * share) / ((all + pseudo) * share)).ln()
        };
        let everywhere = attribute.values.iter().map(|value| {
            let sold = attribute
                .sold
                .get(*value as usize)
                .copied()
                .unwrap_or_default();
            let share = (sold / attribute.all.max(1.0)) as f32;
            let n = attribute.counts.get(value).copied().unwrap_or_default();
            match *value == 0 || share <= 0.0 {
                true => 0.0,
                false => lift(n, bought, share, TASTE[0]),
            }
        });
        let everywhere = everywhere.collect();
        let own: Vec<u32> = attribute
            .own
            .iter()
            .copied()
            .filter(|value| *value != 0)
            .collect();
        if own.is_empty() {
            return [everywhere, vec![0.0; self.len()]];
        }
        let mut here: BTreeMap<u32, (f32, f32)> = BTreeMap::new();
        let mut all = 0.0;
        for (value, logs) in attribute.values.iter().zip(&self.demand) {
            if *value != 0 {
                here.entry(*value).or_default().1 += logs[2].exp();
                all += logs[2].exp();
            }
        }
        for value in &own {
            if let Some(cell) = here.get_mut(value) {
                cell.0 += 1.0;
            }
        }
        let lifts: BTreeMap<u32, f32> = here
            .into_iter()
            .map(|(value, (n, sold))| (value, lift(n, own.len() as f32, sold / all, TASTE[1])))
            .collect();
        let of = attribute
            .values
            .iter()
            .map(|value| lifts.get(value).copied().unwrap_or_default());
        [everywhere, of.collect()]
    }
}

impl ChoiceModel {
    /// A model of these weights, in the order of `names`.
    fn of(names: &[String], weights: &[f64], kappa: f64) -> Self {
        let named = names.iter().cloned().zip(weights.iter().copied());
        Self {
            weights: named.filter(|(_, weight)| *weight != 0.0).collect(),
            kappa,
            ..fit::START.model()
        }
    }

    /// Reads a file's text.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Refuses what another release wrote, and numbers that make no shares.
    pub fn check(&self) -> Result<(), ChoiceError> {
        if self.version != VERSION {
            return Err(ChoiceError::Version(self.version));
        }
        let positive = |number: f64| number.is_finite() && number > 0.0;
        let numbers = [
            ("kappa", positive(self.kappa)),
            ("forget", positive(self.forget) && self.forget <= 1.0),
            ("half_life_days", positive(self.half_life_days)),
            (
                "a weight",
                self.weights.values().all(|weight| weight.is_finite()),
            ),
        ];
        match numbers.into_iter().find(|(_, is_fine)| !is_fine) {
            Some((what, _)) => Err(ChoiceError::Number(what)),
            None => Ok(()),
        }
    }

    /// What each candidate's own purchases count.
    pub(crate) fn counts(&self, candidates: &Candidates<'_>) -> Vec<f32> {
        let mut counts = vec![0.0; candidates.len()];
        let (mut weight, per_day) = (1.0, (-1.0 / self.half_life_days).exp2());
        for own in &candidates.own {
            if let Some(place) = own.place {
                let by_age = per_day.powf(f64::from(own.days.max(0.0)));
                counts[place as usize] += (weight * by_age) as f32;
            }
            weight *= self.forget;
        }
        counts
    }

    /// The probability that each candidate is the one that the user takes: the posterior mean. Sums to 1.
    pub fn shares(&self, candidates: &Candidates<'_>) -> Vec<f32> {
        let mut scores = vec![0.0; candidates.len()];
        for (name, column) in candidates.names().iter().zip(candidates.columns()) {
            let weight = self.weights.get(name).copied().unwrap_or_default() as f32;
            if weight != 0.0 {
                let both = scores.iter_mut().zip(column);
                both.for_each(|(score, value)| *score += weight * value);
            }
        }
        self.posterior(&mut scores, &self.counts(candidates));
        scores
    }

    /// Replaces scores of the prior by shares.
    fn posterior(&self, scores: &mut [f32], counts: &[f32]) {
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut total = 0.0;
        for score in scores.iter_mut() {
            // A share is never 0: its logarithm is taken.
            *score = (*score - max).exp().max(1e-12);
            total += *score;
        }
        let (kappa, bought) = (self.kappa as f32, counts.iter().sum::<f32>());
        for (score, count) in scores.iter_mut().zip(counts) {
            *score = (kappa * *score / total + count) / (kappa + bought);
        }
    }
}

#[cfg(test)]
mod tests;
