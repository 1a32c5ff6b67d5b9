//! The merchant's own wishes: boosts, pins and the most names of one category, compiled for a catalogue.
//!
//! Decides which products gain or lose weight at a time, and how a ranked list is arranged ([`arrange`]). Invariant: it
//! only reorders and selects: a product that rules, needs or stock forbid is on no list because of it, and a wish for
//! something that the catalogue does not have changes nothing ([`crate::shop::rules::unmatched_merchant`] reports it).
//! It does not know users, scores nor clocks.

mod arrange;
mod validate;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::shop::catalogue::{Catalogue, PuIx};
use crate::text::normalise;
use crate::user::record::Timestamp;

pub use validate::validate;

/// What the merchant wishes, as configured: `[merchant]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Most names of one category on a list; 0 is no limit.
    pub category_max: usize,
    /// Products that weigh more or less than their scores say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub boosts: Vec<Boost>,
    /// Products that are on every list on which they are permitted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
}

/// A factor by which products weigh more (above 1) or less (below 1). Several boosts of one product multiply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Boost {
    /// PU id; either this or `category`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pu: Option<String>,
    /// Category of the PU or of one of its SKUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// The factor, above 0. Its logarithm is added to the score.
    pub factor: f64,
    /// From this time on; without it from ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<jiff::Timestamp>,
    /// Until before this time; without it for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<jiff::Timestamp>,
}

/// A product that is on every list on which it is permitted and in stock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// PU id.
    pub pu: String,
    /// Its place on the list, 1 is the first; either this or `top`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<usize>,
    /// It is among the first so many names: where its score puts it, or else in the last of these places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top: Option<usize>,
}

/// Where a pinned product must stand; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    At(usize),
    Top(usize),
}

/// A sparse vector of log-weights: PU index and value, sorted by index; 0 for all other PUs.
pub(crate) type LogWeights = Arc<[(u32, f32)]>;

/// A [`Policy`] compiled for one catalogue.
#[derive(Clone, Debug, Default)]
pub struct Merchant {
    /// The log-weights from each time on, sorted by time; before the first time there are none.
    boosts: Vec<(Timestamp, LogWeights)>,
    /// Pinned PUs, as configured, each once.
    pins: Vec<(PuIx, Place)>,
    category_max: Option<NonZeroUsize>,
    /// Number of each PU's category; `None` without a category. Empty where there is no limit.
    categories: Vec<Option<u32>>,
}

impl Boost {
    fn holds_at(&self, at: Timestamp) -> bool {
        let ms = |time: &jiff::Timestamp| time.as_millisecond();
        self.from.as_ref().is_none_or(|from| ms(from) <= at.0)
            && self.until.as_ref().is_none_or(|until| at.0 < ms(until))
    }

    /// The PUs that it means, sorted.
    fn pus(&self, catalogue: &Catalogue) -> BTreeSet<PuIx> {
        let by_id = self.pu.as_deref().and_then(|id| catalogue.by_pu(id));
        let category = self.category.as_deref().map(normalise);
        let all = (0..catalogue.pus().len() as u32).map(PuIx);
        let of_category = all.filter(|ix| {
            let category = category.as_deref();
            category.is_some_and(|category| is_of_category(catalogue, *ix, category))
        });
        of_category.chain(by_id).collect()
    }
}

/// Whether a PU or one of its SKUs has a category, given in its normal form.
fn is_of_category(catalogue: &Catalogue, ix: PuIx, category: &str) -> bool {
    let pu = catalogue.pu(ix);
    let mut skus = pu.skus.iter();
    pu.category.as_deref() == Some(category)
        || skus.any(|sku| catalogue.sku(*sku).category.as_deref() == Some(category))
}

impl Merchant {
    /// Compiles a policy for a catalogue. What names nothing of the catalogue is left out.
    pub fn compile(policy: &Policy, catalogue: &Catalogue) -> Self {
        let category_max = NonZeroUsize::new(policy.category_max);
        Self {
            boosts: boosts(&policy.boosts, catalogue),
            pins: pins(&policy.pins, catalogue),
            category_max,
            categories: category_max.map_or_else(Vec::new, |_| categories(catalogue)),
        }
    }

    /// The log-weights of boosted PUs that are valid at a time. It is the same allocation for all times between two
    /// changes, so that it can be recognised by its address.
    pub(crate) fn boosts(&self, at: Timestamp) -> LogWeights {
        let after = self.boosts.partition_point(|(from, _)| *from <= at);
        let valid = after.checked_sub(1).and_then(|nth| self.boosts.get(nth));
        valid.map_or_else(LogWeights::default, |(_, weights)| Arc::clone(weights))
    }

    /// Whether [`Merchant::arrange`] may do more than cut a list.
    pub(crate) fn arranges(&self) -> bool {
        !self.pins.is_empty() || self.category_max.is_some()
    }
}

/// The log-weights between each two times at which a boost begins or ends.
fn boosts(boosts: &[Boost], catalogue: &Catalogue) -> Vec<(Timestamp, LogWeights)> {
    if boosts.is_empty() {
        return Vec::new();
    }
    let known: Vec<(&Boost, BTreeSet<PuIx>)> = boosts
        .iter()
        .map(|boost| (boost, boost.pus(catalogue)))
        .collect();
    let changes = boosts
        .iter()
        .flat_map(|boost| boost.from.iter().chain(&boost.until))
        .map(|time| Timestamp(time.as_millisecond()));
    let changes: BTreeSet<Timestamp> = changes.chain([Timestamp(i64::MIN)]).collect();
    let weights_at = |at: Timestamp| -> LogWeights {
        let mut sums: BTreeMap<u32, f64> = BTreeMap::new();
        let valid = known.iter().filter(|(boost, _)| boost.holds_at(at));
        for (boost, pus) in valid {
            for pu in pus {
                *sums.entry(pu.0).or_default() += boost.factor.ln();
            }
        }
        sums.into_iter().map(|(pu, sum)| (pu, sum as f32)).collect()
    };
    changes.into_iter().map(|at| (at, weights_at(at))).collect()
}

fn pins(pins: &[Pin], catalogue: &Catalogue) -> Vec<(PuIx, Place)> {
    let mut seen = BTreeSet::new();
    let compiled = pins.iter().filter_map(|pin| {
        let pu = catalogue.by_pu(&pin.pu)?;
        let place = match (pin.position, pin.top) {
            (Some(position), _) => Place::At(position),
            (None, top) => Place::Top(top?),
        };
        seen.insert(pu).then_some((pu, place))
    });
    compiled.collect()
}

fn categories(catalogue: &Catalogue) -> Vec<Option<u32>> {
    let mut numbers: BTreeMap<&str, u32> = BTreeMap::new();
    let pus = catalogue.pus().iter();
    pus.map(|pu| {
        let next = numbers.len() as u32;
        let category = pu.category.as_deref()?;
        Some(*numbers.entry(category).or_insert(next))
    })
    .collect()
}

#[cfg(test)]
mod tests;
