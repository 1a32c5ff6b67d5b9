//! Catalogue of all PUs and SKUs in memory, patched by each record of `catalog`.
//!
//! Invariant: an index means the same PU or SKU for the lifetime of the catalogue, so bitsets and masses made from an
//! older version stay valid. A PU is in stock iff one of its SKUs is [`available`](Catalogue::available): known, in
//! stock, and blocked neither itself nor by its PU. It does not know rules, users, nor where records come from.

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
    /// Number of available SKUs per PU.
    available: Vec<u32>,
    in_stock: FixedBitSet,
    blocked_pus: BTreeSet<String>,
    blocked_skus: BTreeSet<String>,
    version: u64,
    names_version: u64,
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
    pub(crate) fn pu_of(&self, ix: SkuIx) -> PuIx {
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

    /// A distinct label per PU for the engine: the name; if several PUs share it, with the category in brackets; else
    /// with the id. Labels depend on the set of PUs, not on their order.
    pub fn names(&self) -> Vec<String> {
        let name = |pu: &Pu| pu.name.clone();
        let with_category =
            |pu: &Pu| format!("{} ({})", pu.name, pu.category.as_deref().unwrap_or("-"));
        let with_id = |pu: &Pu| format!("{} ({})", pu.name, pu.id);
        let mut labels: Vec<String> = self.pus.iter().map(name).collect();
        // The last step runs twice: a label with a category may equal the plain name of another PU.
        for label in [&with_category as &dyn Fn(&Pu) -> String, &with_id, &with_id] {
            for at in repeated(&labels) {
                labels[at] = label(&self.pus[at]);
            }
        }
        labels
    }

    /// Product name of an event's item, for prompts; a query has none.
    pub fn name_of_item(&self, item: &Item) -> Option<&str> {
        let pu = match item {
            Item::Sku(id) => self.pu_of(self.by_sku(id)?),
            Item::Pu(id) => self.by_pu(id)?,
            Item::Query(_) => return None,
        };
        Some(&self.pu(pu).name)
    }

    /// The PU of an event's item; a query has none.
    pub(crate) fn pu_of_item(&self, item: &Item) -> Option<PuIx> {
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
        self.attach(ix, pu);
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
            self.detach(ix, old);
            self.attach(ix, pu);
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
        self.detach(ix, pu);
        patch.rules.insert(ix);
        if was_available {
            self.remove_available(pu, patch);
        }
    }

    fn attach(&mut self, ix: SkuIx, pu: PuIx) {
        let list = &mut self.pus[pu.at()].skus;
        if let Err(at) = list.binary_search(&ix) {
            list.insert(at, ix);
        }
    }

    fn detach(&mut self, ix: SkuIx, pu: PuIx) {
        let list = &mut self.pus[pu.at()].skus;
        if let Ok(at) = list.binary_search(&ix) {
            list.remove(at);
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
        let pu = &mut self.pus[ix.at()];
        if pu.name != sku.pu {
            let before = std::mem::replace(&mut pu.name, sku.pu.clone());
            patch.renamed.insert(ix, before);
            patch.names = true;
        }
        if sku.category.is_some() && pu.category != sku.category {
            pu.category.clone_from(&sku.category);
            patch.rules.extend(pu.skus.iter().copied());
            // The category is part of the label of a PU that shares its name.
            patch.names |= self.pus.iter().filter(|pu| pu.name == sku.pu).count() > 1;
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

/// Indices of labels that occur more than once, in order.
#[expect(clippy::disallowed_types, reason = "lookup only")]
fn repeated(labels: &[String]) -> Vec<usize> {
    let mut times: HashMap<&str, u32> = HashMap::with_capacity(labels.len());
    for label in labels {
        *times.entry(label).or_default() += 1;
    }
    (0..labels.len())
        .filter(|at| times[labels[*at].as_str()] > 1)
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A SKU `id` of the PU `pu`, in stock, with attributes as JSON.
    pub(crate) fn sku(id: &str, pu: &str, attributes: serde_json::Value) -> Sku {
        Sku {
            sku: id.into(),
            pu: pu.into(),
            pu_id: pu.into(),
            category: Some("food".into()),
            title: format!("{pu} {id}"),
            stock: 5,
            price: Some(1.0),
            attributes: serde_json::from_value(attributes).expect("an object"),
        }
    }

    fn small() -> Catalogue {
        let mut out = sku("b2", "BREAD", json!({}));
        out.stock = 0;
        Catalogue::load(vec![
            sku("b1", "BREAD", json!({})),
            out,
            sku("m1", "MILK", json!({})),
        ])
    }

    fn in_stock(catalogue: &Catalogue) -> Vec<&str> {
        let pus = catalogue.in_stock().ones();
        pus.map(|ix| &*catalogue.pus()[ix].name).collect()
    }

    #[test]
    fn selling_out_the_last_sku_takes_its_pu_out_of_stock() {
        let mut catalogue = small();
        let mut sold_out = sku("b1", "BREAD", json!({}));
        sold_out.stock = -3;
        let patch = catalogue.apply("b1".into(), Some(sold_out));
        assert_eq!(patch.stock, BTreeSet::from([PuIx(0)]));
        assert!(!patch.names && patch.rules.is_empty());
        assert_eq!(in_stock(&catalogue), ["MILK"]);
        let back = catalogue.apply("b2".into(), Some(sku("b2", "BREAD", json!({}))));
        assert_eq!(back.stock, BTreeSet::from([PuIx(0)]));
    }

    #[test]
    fn a_pu_with_all_skus_deleted_keeps_index_and_name_but_is_out_of_stock() {
        let mut catalogue = small();
        catalogue.apply("m1".into(), None);
        let milk = catalogue.by_pu("MILK").expect("stays");
        assert!(catalogue.pu(milk).skus.is_empty());
        assert!(!catalogue.in_stock().contains(milk.at()));
        let item = Item::Sku("m1".into());
        assert_eq!(catalogue.name_of_item(&item), Some("MILK"));
        assert!(catalogue.apply("m1".into(), None).is_empty());
        assert!(catalogue.apply("never".into(), None).is_empty());
    }

    #[test]
    fn a_sku_moved_to_another_pu_leaves_the_old_one() {
        let mut catalogue = small();
        let patch = catalogue.apply("m1".into(), Some(sku("m1", "BREAD", json!({}))));
        assert_eq!(patch.stock, BTreeSet::from([PuIx(1)]));
        assert_eq!(in_stock(&catalogue), ["BREAD"]);
        assert_eq!(catalogue.pu(PuIx(0)).skus.len(), 3);
    }

    #[test]
    fn the_newest_name_of_a_pu_wins_and_is_reported() {
        let mut catalogue = small();
        let mut renamed = sku("b3", "BROWN BREAD", json!({}));
        renamed.pu_id = "BREAD".into();
        let patch = catalogue.apply("b3".into(), Some(renamed));
        assert!(patch.names);
        assert_eq!(patch.renamed, BTreeMap::from([(PuIx(0), "BREAD".into())]));
        assert_eq!(catalogue.names()[0], "BROWN BREAD");
    }

    #[test]
    fn pus_that_share_a_name_get_different_labels() {
        let mut twin = sku("x", "BREAD", json!({}));
        (twin.pu_id, twin.category) = ("7".into(), Some("bakery".into()));
        let mut third = sku("y", "BREAD", json!({}));
        (third.pu_id, third.category) = ("8".into(), Some("bakery".into()));
        let catalogue = Catalogue::load(vec![sku("b1", "BREAD", json!({})), twin, third]);
        assert_eq!(
            catalogue.names(),
            ["BREAD (food)", "BREAD (7)", "BREAD (8)"]
        );
    }

    #[test]
    fn a_block_applies_to_known_and_later_skus_and_pus() {
        let mut catalogue = small();
        let set = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let patch = catalogue.set_blocks(set(&["MILK"]), set(&["b1"]));
        assert_eq!(patch.stock, BTreeSet::from([PuIx(0), PuIx(1)]));
        assert_eq!(in_stock(&catalogue), [""; 0]);
        catalogue.apply("m2".into(), Some(sku("m2", "MILK", json!({}))));
        assert_eq!(in_stock(&catalogue), [""; 0]);
        catalogue.set_blocks(set(&[]), set(&["b1"]));
        assert_eq!(in_stock(&catalogue), ["MILK"]);
        catalogue.apply("b2".into(), Some(sku("b2", "BREAD", json!({}))));
        assert_eq!(in_stock(&catalogue), ["BREAD", "MILK"]);
    }

    #[test]
    fn ids_that_look_the_same_are_one_product_for_events_and_blocks() {
        let mut catalogue = small();
        assert_eq!(catalogue.by_pu("\u{feff}MILK"), catalogue.by_pu("MILK"));
        assert_eq!(
            catalogue.name_of_item(&Item::Pu("MILK ".into())),
            Some("MILK")
        );
        catalogue.set_blocks(["MILK\u{200b}".into()].into(), [" b1".into()].into());
        assert_eq!(in_stock(&catalogue), [""; 0]);
    }

    fn change() -> impl Strategy<Value = (u8, Option<(u8, i64)>)> {
        (0u8..12, prop::option::of((0u8..4, -1i64..3)))
    }

    proptest! {
        #[test]
        fn merged_patches_equal_the_difference_of_catalogues(
            changes in prop::collection::vec((change(), prop::option::of(0u8..16)), 0..80),
        ) {
            let mut catalogue = Catalogue::default();
            let mut bits = BTreeSet::new();
            for ((id, value), block) in changes {
                let id = id.to_string();
                let value = value.map(|(pu, stock)| Sku { stock, ..sku(&id, &format!("P{pu}"), json!({})) });
                let mut patch = catalogue.apply(id, value);
                if let Some(block) = block {
                    let blocks = |prefix: &str| BTreeSet::from([format!("{prefix}{}", block % 4)]);
                    patch.merge(catalogue.set_blocks(blocks("P"), blocks("")));
                }
                let now: BTreeSet<usize> = catalogue.in_stock().ones().collect();
                for pu in now.symmetric_difference(&bits) {
                    prop_assert!(patch.stock.contains(&PuIx(*pu as u32)));
                }
                bits = now;
                for (at, pu) in catalogue.pus().iter().enumerate() {
                    let shown = pu.skus.iter().any(|ix| catalogue.available(*ix));
                    prop_assert_eq!(catalogue.in_stock().contains(at), shown);
                    prop_assert!(pu.skus.is_sorted());
                    prop_assert!(pu.skus.iter().all(|ix| catalogue.pu_of(*ix).at() == at));
                }
            }
        }
    }

    #[test]
    fn a_million_skus_load_and_one_patch_touches_one_pu() {
        let count = if cfg!(debug_assertions) {
            92_000
        } else {
            1_000_000
        };
        let skus = (0..count).map(|n| sku(&n.to_string(), &format!("P{}", n % 2240), json!({})));
        let mut catalogue = Catalogue::load(skus.collect());
        let patch = catalogue.apply("77".into(), None);
        assert!(patch.stock.is_empty());
        assert_eq!(catalogue.pus().len(), 2240);
    }
}
