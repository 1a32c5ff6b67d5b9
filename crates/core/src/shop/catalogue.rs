//! Catalogue of all PUs and SKUs in memory, patched by each record of `catalog`.
//!
//! Invariant: an index means the same PU or SKU for the lifetime of the catalogue, so bitsets and masses made from an
//! older version stay valid. A PU is in stock iff one of its SKUs is [`available`](Catalogue::available): known, in
//! stock, and blocked neither itself nor by its PU. It does not know rules, users, nor where records come from.

use std::borrow::Cow;
// Hash maps are for lookup only: their order never reaches an output.
#[expect(clippy::disallowed_types, reason = "lookup only")]
use std::collections::HashMap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use crate::text::normalise;
use crate::user::event::{Item, Sku};

/// Index of a PU; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PuIx(pub u32);

/// Index of a SKU; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkuIx(pub u32);

impl PuIx {
    /// The index into slices and bitsets over PUs.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

impl SkuIx {
    /// The index into slices and bitsets over SKUs.
    pub fn at(self) -> usize {
        self.0 as usize
    }
}

/// A standardised product.
#[derive(Clone, Debug, PartialEq)]
pub struct Pu {
    /// Id; by default the name.
    pub id: Arc<str>,
    /// Name as shown.
    pub name: String,
    /// Category, if any SKU had one.
    pub category: Option<String>,
    /// Its SKUs without deleted ones, sorted by index. If all are deleted, the PU keeps its index alone.
    pub skus: Vec<SkuIx>,
}

/// A SKU by its latest record. A deleted SKU keeps its texts, so that old events still have a name.
#[derive(Clone, Debug)]
struct Entry {
    sku: Arc<Sku>,
    pu: PuIx,
    deleted: bool,
    blocked: bool,
}

/// Changes made by an [`apply`](Catalogue::apply).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patch {
    /// Whether [`Catalogue::names`] changed: engines need the new list.
    pub names: bool,
    /// PUs that came into stock or sold out.
    pub stock: BTreeSet<PuIx>,
    /// SKUs that are new, deleted, in another PU, or have another category or attributes, for
    /// [`crate::shop::rules::Table::extend`].
    pub rules: BTreeSet<SkuIx>,
    /// PUs with a changed name, with the previous name.
    pub renamed: BTreeMap<PuIx, String>,
}

impl Patch {
    /// Whether nothing changed that is derived from the catalogue (prices and titles are read when used).
    pub fn is_empty(&self) -> bool {
        !self.names && self.stock.is_empty() && self.rules.is_empty() && self.renamed.is_empty()
    }

    /// Adds a later patch. A PU whose stock flipped twice stays in it.
    pub fn merge(&mut self, later: Self) {
        self.names |= later.names;
        self.stock.extend(later.stock);
        self.rules.extend(later.rules);
        for (pu, before) in later.renamed {
            self.renamed.entry(pu).or_insert(before);
        }
    }
}

/// All PUs and SKUs. A clone shares the SKUs' texts.
#[derive(Clone, Debug, Default)]
#[expect(clippy::disallowed_types, reason = "lookup only")]
pub struct Catalogue {
    pus: Vec<Pu>,
    skus: Vec<Entry>,
    pu_index: HashMap<Arc<str>, PuIx>,
    sku_index: HashMap<Arc<str>, SkuIx>,
    /// A PU with SKUs of each name; of several, any.
    by_name: HashMap<Arc<str>, PuIx>,
    /// The PUs with SKUs whose name another one has.
    namesakes: BTreeMap<Arc<str>, BTreeSet<PuIx>>,
    /// Number of available SKUs per PU.
    available: Vec<u32>,
    in_stock: FixedBitSet,
    blocked_pus: BTreeSet<String>,
    blocked_skus: BTreeSet<String>,
    version: u64,
    names_version: u64,
    rules_version: u64,
}

impl Catalogue {
    /// Builds a catalogue whose indices depend on the set of SKUs alone, not on their order.
    pub fn load(mut skus: Vec<Sku>) -> Self {
        skus.sort_by(|a, b| a.sku.cmp(&b.sku));
        let mut catalogue = Self::default();
        for sku in skus {
            catalogue.apply(sku.sku.clone(), Some(sku));
        }
        catalogue
    }

    /// Applies one record of `catalog`: the whole SKU, or `None` if it was deleted.
    ///
    /// If two SKUs name one PU differently, the newest record wins. A missing category does not erase a known one,
    /// because a rule on the category would no longer forbid.
    pub fn apply(&mut self, id: String, value: Option<Sku>) -> Patch {
        let before = self.by_sku(&id);
        let mut patch = Patch::default();
        match (value, before) {
            (None, None) => return patch,
            (None, Some(ix)) if self.skus[ix.at()].deleted => return patch,
            (None, Some(ix)) => self.remove(ix, &mut patch),
            (Some(sku), None) => self.insert(&id, sku, &mut patch),
            (Some(sku), Some(ix)) => self.replace(ix, sku, &mut patch),
        }
        self.version += 1;
        self.names_version += u64::from(patch.names);
        self.rules_version += u64::from(patch.names || !patch.rules.is_empty());
        patch
    }

    /// Sets the blocked PUs and SKUs, by id; an unknown id takes effect once its SKU arrives.
    pub fn set_blocks(&mut self, pus: BTreeSet<String>, skus: BTreeSet<String>) -> Patch {
        let normal = |id: String| normalise(&id).into_owned();
        let pus: BTreeSet<String> = pus.into_iter().map(normal).collect();
        let skus: BTreeSet<String> = skus.into_iter().map(normal).collect();
        if pus == self.blocked_pus && skus == self.blocked_skus {
            return Patch::default();
        }
        self.blocked_pus = pus;
        self.blocked_skus = skus;
        for entry in &mut self.skus {
            entry.blocked = self.blocked_skus.contains(&entry.sku.sku);
        }
        let mut patch = Patch::default();
        for pu in 0..self.pus.len() {
            self.recount(PuIx(pu as u32), &mut patch);
        }
        self.version += 1;
        patch
    }

    /// All PUs; the index is the [`PuIx`].
    pub fn pus(&self) -> &[Pu] {
        &self.pus
    }

    /// One PU.
    pub fn pu(&self, ix: PuIx) -> &Pu {
        &self.pus[ix.at()]
    }

    /// A SKU by its latest record, also if deleted.
    pub fn sku(&self, ix: SkuIx) -> &Sku {
        &self.skus[ix.at()].sku
    }

    /// Number of SKU indices.
    pub fn sku_len(&self) -> usize {
        self.skus.len()
    }

    /// The PU of a SKU; for a deleted SKU its last one.
    pub fn pu_of(&self, ix: SkuIx) -> PuIx {
        self.skus[ix.at()].pu
    }

    /// A SKU by its id, also if deleted.
    pub fn by_sku(&self, id: &str) -> Option<SkuIx> {
        self.sku_index.get(id).copied()
    }

    /// A PU by its id, also if all its SKUs are deleted. The id need not be in its normal form: older states and lists
    /// have ids as their source wrote them.
    pub fn by_pu(&self, id: &str) -> Option<PuIx> {
        self.pu_index.get(&*normalise(id)).copied()
    }

    /// Whether a SKU may be shown as far as the catalogue decides: known, in stock, not blocked.
    pub fn available(&self, ix: SkuIx) -> bool {
        let entry = &self.skus[ix.at()];
        !entry.deleted && !entry.blocked && entry.sku.stock > 0 && !self.pu_blocked(entry.pu)
    }

    /// PUs with an available SKU.
    pub(crate) fn in_stock(&self) -> &FixedBitSet {
        &self.in_stock
    }

    /// Number of SKUs that cannot be bought now: sold out, deleted or blocked.
    pub fn sold_out(&self) -> usize {
        self.skus.len() - self.available.iter().map(|n| *n as usize).sum::<usize>()
    }

    /// Rises with each change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Rises when [`Catalogue::names`] changes: engines need the new list.
    pub fn names_version(&self) -> u64 {
        self.names_version
    }

    /// Rises when rules may match other SKUs than before; stock and prices do not matter to them.
    pub fn rules_version(&self) -> u64 {
        self.rules_version
    }

    /// Whether a SKU is known and not deleted.
    pub(crate) fn has_sku(&self, id: &str) -> bool {
        self.by_sku(id)
            .is_some_and(|ix| !self.skus[ix.at()].deleted)
    }

    /// The label of each PU, by its index, for the engine: see [`Catalogue::label`].
    pub fn names(&self) -> Vec<String> {
        let all = (0..self.pus.len() as u32).map(PuIx);
        all.map(|ix| self.label(ix).into_owned()).collect()
    }

    /// The name by which a person knows a PU, and by which the model is asked for it: its name; if several PUs with
    /// SKUs have that name, with the category in brackets. PUs that share this as well cannot be told apart by anyone,
    /// so a list has one of them: [`Catalogue::keep_one_per_label`]. An id is never part of it, because no model and no
    /// person knows ids.
    pub fn label(&self, ix: PuIx) -> Cow<'_, str> {
        let Pu { name, category, .. } = self.pu(ix);
        match (self.namesakes.get(&**name), category) {
            (Some(namesakes), Some(category)) if namesakes.contains(&ix) => {
                Cow::Owned(format!("{name} ({category})"))
            }
            _ => Cow::Borrowed(name),
        }
    }

    /// Of the PUs in a set that have the same label, keeps the one with the greatest mass, of equal ones that with the
    /// least id. The model scores them alike.
    pub(crate) fn keep_one_per_label(&self, set: &mut FixedBitSet, mass: &[f32]) {
        for namesakes in self.namesakes.values() {
            let mut best: BTreeMap<Cow<'_, str>, PuIx> = BTreeMap::new();
            let inside = namesakes.iter().copied().filter(|ix| set.contains(ix.at()));
            for ix in inside.collect::<Vec<_>>() {
                let mass = |ix: PuIx| mass.get(ix.at()).copied().unwrap_or_default();
                let Some(other) = best.insert(self.label(ix), ix) else {
                    continue;
                };
                let order = mass(ix).total_cmp(&mass(other));
                let order = order.then_with(|| self.pu(other).id.cmp(&self.pu(ix).id));
                let (kept, dropped) = if order.is_gt() {
                    (ix, other)
                } else {
                    (other, ix)
                };
                best.insert(self.label(kept), kept);
                set.remove(dropped.at());
            }
        }
    }

    /// Labels that several PUs have, each with the ids of these PUs.
    pub fn repeated_labels(&self) -> BTreeMap<String, Vec<String>> {
        let mut labels: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for ix in self.namesakes.values().flatten() {
            let ids = labels.entry(self.label(*ix).into_owned()).or_default();
            ids.push(self.pu(*ix).id.to_string());
        }
        labels.retain(|_, ids| ids.len() > 1);
        labels
    }

    /// Label of an event's product, for prompts; a query has none.
    pub fn name_of_item(&self, item: &Item) -> Option<Cow<'_, str>> {
        Some(self.label(self.pu_of_item(item)?))
    }

    /// The PU of an event's item; a query has none.
    pub fn pu_of_item(&self, item: &Item) -> Option<PuIx> {
        match item {
            Item::Sku(id) => self.by_sku(id).map(|ix| self.pu_of(ix)),
            Item::Pu(id) => self.by_pu(id),
            Item::Query(_) => None,
        }
    }

    fn pu_blocked(&self, ix: PuIx) -> bool {
        !self.blocked_pus.is_empty() && self.blocked_pus.contains(&*self.pus[ix.at()].id)
    }

    fn insert(&mut self, id: &str, sku: Sku, patch: &mut Patch) {
        let ix = SkuIx(self.skus.len() as u32);
        let pu = self.pu_for(&sku, patch);
        self.skus.push(Entry {
            blocked: self.blocked_skus.contains(id),
            sku: Arc::new(sku),
            pu,
            deleted: false,
        });
        self.sku_index.insert(id.into(), ix);
        self.attach(ix, pu, patch);
        patch.rules.insert(ix);
        if self.available(ix) {
            self.add_available(pu, patch);
        }
    }

    fn replace(&mut self, ix: SkuIx, sku: Sku, patch: &mut Patch) {
        let before = self.available(ix).then(|| self.pu_of(ix));
        let pu = self.pu_for(&sku, patch);
        let entry = &mut self.skus[ix.at()];
        let moved = entry.deleted || entry.pu != pu;
        if moved || entry.sku.attributes != sku.attributes || entry.sku.category != sku.category {
            patch.rules.insert(ix);
        }
        let old = std::mem::replace(&mut entry.pu, pu);
        entry.sku = Arc::new(sku);
        entry.deleted = false;
        if moved {
            self.detach(ix, old, patch);
            self.attach(ix, pu, patch);
        }
        let after = self.available(ix).then_some(pu);
        if before != after {
            // Adds first: a PU whose count stays above 0 must not be reported as flipped.
            after
                .into_iter()
                .for_each(|pu| self.add_available(pu, patch));
            before
                .into_iter()
                .for_each(|pu| self.remove_available(pu, patch));
        }
    }

    fn remove(&mut self, ix: SkuIx, patch: &mut Patch) {
        let was_available = self.available(ix);
        let pu = self.pu_of(ix);
        self.skus[ix.at()].deleted = true;
        self.detach(ix, pu, patch);
        patch.rules.insert(ix);
        if was_available {
            self.remove_available(pu, patch);
        }
    }

    fn attach(&mut self, ix: SkuIx, pu: PuIx, patch: &mut Patch) {
        let list = &mut self.pus[pu.at()].skus;
        if let Err(at) = list.binary_search(&ix) {
            list.insert(at, ix);
            if list.len() == 1 {
                self.enter_name(pu, patch);
            }
        }
    }

    fn detach(&mut self, ix: SkuIx, pu: PuIx, patch: &mut Patch) {
        let list = &mut self.pus[pu.at()].skus;
        if let Ok(at) = list.binary_search(&ix) {
            list.remove(at);
            if list.is_empty() {
                self.leave_name(pu, patch);
            }
        }
    }

    /// Notes that a PU with SKUs has its name. A second one changes the labels of both.
    fn enter_name(&mut self, pu: PuIx, patch: &mut Patch) {
        let name: Arc<str> = self.pus[pu.at()].name.as_str().into();
        match self.by_name.get(&name) {
            None => {
                self.by_name.insert(name, pu);
            }
            Some(first) => {
                let first = BTreeSet::from([*first]);
                self.namesakes.entry(name).or_insert(first).insert(pu);
                patch.names = true;
            }
        }
    }

    /// Undoes [`Self::enter_name`].
    fn leave_name(&mut self, pu: PuIx, patch: &mut Patch) {
        let name = self.pus[pu.at()].name.as_str();
        let Some(namesakes) = self.namesakes.get_mut(name) else {
            self.by_name.remove(name);
            return;
        };
        namesakes.remove(&pu);
        patch.names = true;
        if let Some(first) = namesakes.first() {
            self.by_name.insert(name.into(), *first);
        }
        if namesakes.len() < 2 {
            self.namesakes.remove(name);
        }
    }

    /// The PU that a SKU names, created or updated.
    fn pu_for(&mut self, sku: &Sku, patch: &mut Patch) -> PuIx {
        let Some(ix) = self.by_pu(&sku.pu_id) else {
            let ix = PuIx(self.pus.len() as u32);
            let id: Arc<str> = sku.pu_id.as_str().into();
            self.pu_index.insert(Arc::clone(&id), ix);
            self.pus.push(Pu {
                id,
                name: sku.pu.clone(),
                category: sku.category.clone(),
                skus: Vec::new(),
            });
            self.available.push(0);
            self.in_stock.grow(self.pus.len());
            patch.names = true;
            return ix;
        };
        if self.pu(ix).name != sku.pu {
            let has_skus = !self.pu(ix).skus.is_empty();
            if has_skus {
                self.leave_name(ix, patch);
            }
            let before = std::mem::replace(&mut self.pus[ix.at()].name, sku.pu.clone());
            if has_skus {
                self.enter_name(ix, patch);
            }
            patch.renamed.insert(ix, before);
            patch.names = true;
        }
        let pu = &mut self.pus[ix.at()];
        if sku.category.is_some() && pu.category != sku.category {
            pu.category.clone_from(&sku.category);
            patch.rules.extend(pu.skus.iter().copied());
            // The category is part of the label of a PU that shares its name.
            patch.names |= self.namesakes.contains_key(sku.pu.as_str());
        }
        ix
    }

    fn add_available(&mut self, pu: PuIx, patch: &mut Patch) {
        self.available[pu.at()] += 1;
        self.update_stock(pu, patch);
    }

    fn remove_available(&mut self, pu: PuIx, patch: &mut Patch) {
        self.available[pu.at()] -= 1;
        self.update_stock(pu, patch);
    }

    fn recount(&mut self, pu: PuIx, patch: &mut Patch) {
        let skus = &self.pus[pu.at()].skus;
        self.available[pu.at()] = skus.iter().filter(|ix| self.available(**ix)).count() as u32;
        self.update_stock(pu, patch);
    }

    fn update_stock(&mut self, pu: PuIx, patch: &mut Patch) {
        let in_stock = self.available[pu.at()] > 0;
        if self.in_stock.contains(pu.at()) != in_stock {
            self.in_stock.set(pu.at(), in_stock);
            patch.stock.insert(pu);
        }
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
pub(crate) mod tests;
