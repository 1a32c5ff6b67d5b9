//! The serving snapshot: catalogue, rules, the merchant's wishes, demand and fallback lists as one immutable value.
//!
//! Invariant: its parts belong together: rules and wishes are compiled for this catalogue, and demand is indexed by its
//! PUs. It is never changed, only replaced. It does not know where its parts came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::list::choice::SkuFeaturesOnce;
use crate::list::document::Document;
use crate::list::select::Contests;
use crate::shop::catalogue::Catalogue;
use crate::shop::demand::Demand;
use crate::shop::merchant::Merchant;
use crate::shop::rules::{Table, Verdict};
use crate::user::event::Profile;
use crate::user::record::Timestamp;

/// The serving snapshot; [`crate::list::fallback::serving_snapshot`] builds one.
pub struct Snapshot {
    /// PUs and SKUs with stock and blocks.
    pub catalogue: Arc<Catalogue>,
    /// Rules and segments, compiled for `catalogue`.
    pub rules: Arc<Table>,
    /// Decayed purchases per PU and segment.
    pub demand: Arc<Demand>,
    /// The merchant's boosts, pins and most names of one category, compiled for `catalogue`.
    pub merchant: Arc<Merchant>,
    /// Log share of each PU among the SKUs of the catalogue.
    pub assortment: Arc<[f32]>,
    /// Fallback per segment, for a user without a profile; `default` always exists.
    pub fallbacks: Arc<BTreeMap<String, Document>>,
    /// Products per fallback, at most.
    pub fallback_names: usize,
    /// How many SKUs each product of a fallback shows.
    pub selection: crate::list::select::Policy,
    /// Chances of the SKUs of each PU to be its best, by this catalogue and demand.
    pub(crate) contests: Contests,
    /// What SKUs are chosen by, beside their counts; computed when a list first needs it.
    pub(crate) sku_features: SkuFeaturesOnce,
    /// The same catalogue and rules with the demand of other namespaces whose lists this process makes.
    pub others: Arc<BTreeMap<String, Arc<Snapshot>>>,
}

impl Snapshot {
    /// The snapshot of a namespace: the one with its demand, else this one.
    pub fn of(self: &Arc<Self>, ns: &str) -> Arc<Self> {
        Arc::clone(self.others.get(ns).unwrap_or(self))
    }

    /// Judges a profile by the rules of this snapshot.
    pub fn judge(&self, profile: Option<&Profile>, at: Timestamp) -> Verdict {
        self.rules.judge(profile, at)
    }

    /// The segment's fallback without products that are forbidden or sold out.
    ///
    /// A segment without its own fallback gets the default one.
    pub fn fallback(&self, segment: &str, verdict: &Verdict) -> Option<Document> {
        let list = self
            .fallbacks
            .get(segment)
            .or_else(|| self.fallbacks.get("default"))?;
        let mut list = list.clone();
        self.strip(&mut list, verdict);
        Some(list)
    }

    /// Whether any product can be bought now. Where none can, no list is made: it would hide a better one.
    pub fn sells(&self) -> bool {
        !self.catalogue.in_stock().is_clear()
    }

    /// Removes products that are forbidden or sold out; returns whether any was removed.
    pub fn strip(&self, list: &mut Document, verdict: &Verdict) -> bool {
        list.strip(|pu, sku| self.forbids(verdict, pu, sku))
    }

    /// Whether a product must be removed. One that the catalogue does not have cannot be bought, nor judged.
    fn forbids(&self, verdict: &Verdict, pu: &str, sku: &str) -> bool {
        let catalogue = &self.catalogue;
        let (Some(pu), Some(sku)) = (catalogue.by_pu(pu), catalogue.by_sku(sku)) else {
            return true;
        };
        catalogue.pu_of(sku) != pu || !verdict.permits(catalogue, sku)
    }
}
