//! One snapshot of the shop, as both roles know it: catalogue, rules, demand and fallback lists.
//!
//! Invariant: its parts belong together: rules are compiled for this catalogue, demand is indexed by
//! its PUs. It is never changed, only replaced; it does not know where its parts came from.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::list::document::Document;
use crate::shop::catalogue::Catalogue;
use crate::shop::demand::Demand;
use crate::shop::rules::{Table, Verdict};
use crate::user::event::Profile;
use crate::user::record::Timestamp;

/// What a decision about a user needs to know of the shop.
pub struct Snapshot {
    /// PUs and SKUs, with stock and blocks.
    pub catalogue: Arc<Catalogue>,
    /// Rules and segments, compiled for `catalogue`.
    pub rules: Arc<Table>,
    /// Decayed purchases per PU and segment.
    pub demand: Arc<Demand>,
    /// Fallback per segment, for a user of whom nothing is known; `default` is always there.
    pub fallbacks: Arc<BTreeMap<String, Document>>,
    /// The same catalogue and rules with the demand of other namespaces, whose lists are made here too.
    pub others: Arc<BTreeMap<String, Arc<Snapshot>>>,
}

impl Snapshot {
    /// The shop of a namespace: one with its demand, or this one where none is known.
    pub fn of(self: &Arc<Self>, ns: &str) -> Arc<Self> {
        Arc::clone(self.others.get(ns).unwrap_or(self))
    }

    /// Which rules fire for a profile, and what they forbid.
    pub fn judge(&self, profile: Option<&Profile>, at: Timestamp) -> Verdict {
        self.rules.judge(profile, at)
    }

    /// The segment's fallback without what the verdict forbids and what is sold out.
    ///
    /// A segment without a fallback of its own gets the default one.
    pub fn fallback(&self, segment: &str, verdict: &Verdict) -> Option<Document> {
        let list = self
            .fallbacks
            .get(segment)
            .or_else(|| self.fallbacks.get("default"))?;
        let mut list = list.clone();
        self.strip(&mut list, verdict);
        Some(list)
    }

    /// Takes out what the verdict forbids or nobody can buy; true if anything went.
    pub fn strip(&self, list: &mut Document, verdict: &Verdict) -> bool {
        list.strip(|pu, sku| self.forbids(verdict, pu, sku))
    }

    /// A product that the catalogue does not know (any more) cannot be bought, nor judged.
    fn forbids(&self, verdict: &Verdict, pu: &str, sku: &str) -> bool {
        let catalogue = &self.catalogue;
        let (Some(pu), Some(sku)) = (catalogue.by_pu(pu), catalogue.by_sku(sku)) else {
            return true;
        };
        catalogue.pu_of(sku) != pu || !verdict.permits(catalogue, sku)
    }
}
