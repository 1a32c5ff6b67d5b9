//! Rules compiled for a catalogue: each SKU is matched once when it is loaded, and a verdict is a union of bitsets.
//!
//! Invariant: a PU is forbidden iff each of its SKUs is forbidden by a fired rule, not necessarily the same one. A SKU
//! newer than the table is forbidden by any fired rule until [`Table::extend`] has matched it.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::condition::{Answer, one_of, unpacked};
use super::{DEFAULT_SEGMENT, Matcher, Rule, Segment};
use crate::shop::catalogue::{Catalogue, PuIx, SkuIx};
use crate::user::event::{Profile, Sku};
use crate::user::record::Timestamp;

/// The products that one rule matches.
#[derive(Clone, Debug, Default)]
struct Matched {
    skus: FixedBitSet,
    /// Number of matched SKUs per PU.
    counts: Vec<u32>,
    /// PUs of which all SKUs match.
    whole: FixedBitSet,
    /// PUs of which some SKUs match, not all.
    part: FixedBitSet,
}

/// Rules and segments, compiled for one catalogue.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rules: Vec<Rule>,
    segments: Vec<Segment>,
    matched: Vec<Arc<Matched>>,
    /// The PU of each SKU that the table knows; `None` if deleted.
    pu_of: Vec<Option<PuIx>>,
    members: Vec<Vec<SkuIx>>,
}

/// Result of the rules for one profile at one time.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Ids of the rules that fired, in the table's order; then those of the need filter.
    pub fired: Vec<String>,
    /// Ids of the rules that could not be decided: those that fired because the field is unknown, and those whose field
    /// has a value that cannot be compared, whether or not they fired.
    pub unknown: Vec<String>,
    /// Ids of those whose field has a value that cannot be compared.
    pub unreadable: Vec<String>,
    /// PUs of which no SKU may be offered, whatever the stock.
    pub forbidden_pus: FixedBitSet,
    matched: Vec<Arc<Matched>>,
    /// Numbers of SKUs and PUs that the table knew.
    known: (usize, usize),
}

impl Table {
    /// Compiles the rules over all SKUs of a catalogue.
    pub fn compile(rules: &[Rule], segments: &[Segment], catalogue: &Catalogue) -> Self {
        let mut table = Self {
            rules: rules.iter().map(Rule::normalised).collect(),
            segments: segments.iter().map(Segment::normalised).collect(),
            matched: rules.iter().map(|_| Arc::default()).collect(),
            ..Self::default()
        };
        table.extend(catalogue, (0..catalogue.sku_len() as u32).map(SkuIx));
        table
    }

    /// Matches changed SKUs again: those of [`crate::shop::catalogue::Patch::rules`].
    pub fn extend(&mut self, catalogue: &Catalogue, changed: impl IntoIterator<Item = SkuIx>) {
        self.pu_of.resize(catalogue.sku_len(), None);
        self.members.resize(catalogue.pus().len(), Vec::new());
        for matched in &mut self.matched {
            let matched = Arc::make_mut(matched);
            matched.skus.grow(catalogue.sku_len());
            matched.counts.resize(catalogue.pus().len(), 0);
            matched.whole.grow(catalogue.pus().len());
            matched.part.grow(catalogue.pus().len());
        }
        let mut touched = FixedBitSet::with_capacity(catalogue.pus().len());
        for ix in changed {
            self.remove_sku(ix, &mut touched);
            self.match_sku(ix, catalogue, &mut touched);
        }
        for pu in touched.ones() {
            let all = self.members[pu].len() as u32;
            for matched in &mut self.matched {
                let matched = Arc::make_mut(matched);
                let some = matched.counts[pu];
                matched.whole.set(pu, some > 0 && some == all);
                matched.part.set(pu, some > 0 && some < all);
            }
        }
    }

    /// Judges a profile: which rules fire, and what they forbid. `None`: every field is unknown.
    pub fn judge(&self, profile: Option<&Profile>, at: Timestamp) -> Verdict {
        let mut verdict = Verdict {
            known: (self.pu_of.len(), self.members.len()),
            forbidden_pus: FixedBitSet::with_capacity(self.members.len()),
            ..Verdict::default()
        };
        let mut part = FixedBitSet::with_capacity(self.members.len());
        let mut parts = part.clone();
        for (rule, matched) in self.rules.iter().zip(&self.matched) {
            let answer = rule.when.holds(profile, at);
            let fires = answer.known().unwrap_or(rule.required);
            let unreadable = answer == Answer::Unreadable;
            if unreadable {
                verdict.unreadable.push(rule.id.clone());
            }
            if unreadable || (fires && answer.known().is_none()) {
                verdict.unknown.push(rule.id.clone());
            }
            if !fires {
                continue;
            }
            verdict.fired.push(rule.id.clone());
            verdict.forbidden_pus.union_with(&matched.whole);
            let mut again = part.clone();
            again.intersect_with(&matched.part);
            parts.union_with(&again);
            part.union_with(&matched.part);
            verdict.matched.push(Arc::clone(matched));
        }
        // Two rules may each match a part of a PU, and together all of it.
        for pu in parts.ones() {
            let whole = self.members[pu].iter().all(|ix| verdict.forbids_sku(*ix));
            if whole {
                verdict.forbidden_pus.insert(pu);
            }
        }
        verdict
    }

    /// The first segment whose conditions all hold, else `default`. A condition on an unknown field does not hold.
    pub fn segment(&self, profile: Option<&Profile>, at: Timestamp) -> &str {
        let holds = |segment: &&Segment| {
            let mut conditions = segment.when.iter();
            conditions.all(|when| when.holds(profile, at) == Answer::Yes)
        };
        self.segments
            .iter()
            .find(holds)
            .map_or(DEFAULT_SEGMENT, |segment| &segment.id)
    }

    fn remove_sku(&mut self, ix: SkuIx, touched: &mut FixedBitSet) {
        let Some(pu) = self.pu_of[ix.at()].take() else {
            return;
        };
        touched.insert(pu.at());
        let members = &mut self.members[pu.at()];
        if let Ok(at) = members.binary_search(&ix) {
            members.remove(at);
        }
        for matched in &mut self.matched {
            if matched.skus.contains(ix.at()) {
                let matched = Arc::make_mut(matched);
                matched.skus.remove(ix.at());
                matched.counts[pu.at()] -= 1;
            }
        }
    }

    fn match_sku(&mut self, ix: SkuIx, catalogue: &Catalogue, touched: &mut FixedBitSet) {
        let pu = catalogue.pu_of(ix);
        if catalogue.pu(pu).skus.binary_search(&ix).is_err() {
            return;
        }
        touched.insert(pu.at());
        self.pu_of[ix.at()] = Some(pu);
        let members = &mut self.members[pu.at()];
        if let Err(at) = members.binary_search(&ix) {
            members.insert(at, ix);
        }
        let (sku, category) = (catalogue.sku(ix), catalogue.pu(pu).category.as_deref());
        for (rule, matched) in self.rules.iter().zip(&mut self.matched) {
            // A `required` rule fails closed: an attribute that cannot be compared might be a forbidden one.
            if rule.forbid.matches(sku, category).unwrap_or(rule.required) {
                let matched = Arc::make_mut(matched);
                matched.skus.insert(ix.at());
                matched.counts[pu.at()] += 1;
            }
        }
    }
}

impl Matcher {
    /// Whether a SKU matches; `None` if that depends on an attribute that cannot be compared. The matcher is normalised;
    /// `category`: its PU's. A matcher without parts matches nothing, and the configuration check refuses it.
    pub(super) fn matches(&self, sku: &Sku, category: Option<&str>) -> Option<bool> {
        let given =
            !self.pus.is_empty() || !self.categories.is_empty() || !self.attributes.is_empty();
        let named = |category: &str| self.categories.iter().any(|named| named == category);
        let here = given
            && (self.pus.is_empty() || self.pus.contains(&sku.pu_id))
            && (self.categories.is_empty()
                || category.is_some_and(named)
                || sku.category.as_deref().is_some_and(named));
        if !here {
            return Some(false);
        }
        let mut all = Some(true);
        for (name, wanted) in &self.attributes {
            let found = sku.attributes.get(name).filter(|found| !found.is_null());
            match found.map(|found| one_of(wanted, &unpacked(found, wanted))) {
                None | Some(Some(false)) => return Some(false),
                Some(None) => all = None,
                Some(Some(true)) => {}
            }
        }
        all
    }
}

impl Verdict {
    /// Whether a fired rule matches the SKU. A ban of its PU is in [`Self::forbidden_pus`].
    pub(crate) fn forbids_sku(&self, ix: SkuIx) -> bool {
        let unknown = ix.at() >= self.known.0 && !self.matched.is_empty();
        unknown
            || self
                .matched
                .iter()
                .any(|matched| matched.skus.contains(ix.at()))
    }

    /// Whether the SKUs of a PU that is not forbidden are permitted as far as they are available: no rule forbids a part of
    /// it, and all its SKUs were known to the rules.
    pub(crate) fn forbids_no_part_of(&self, catalogue: &Catalogue, pu: PuIx) -> bool {
        let known = self.known.0 >= catalogue.sku_len() && self.known.1 >= catalogue.pus().len();
        let in_part = |matched: &Arc<Matched>| matched.part.contains(pu.at());
        self.matched.is_empty() || (known && !self.matched.iter().any(in_part))
    }

    /// Whether a SKU may be offered now: it is available, and neither it nor its PU is forbidden.
    pub fn permits(&self, catalogue: &Catalogue, ix: SkuIx) -> bool {
        catalogue.available(ix)
            && !self.forbids_sku(ix)
            && !self.forbidden_pus.contains(catalogue.pu_of(ix).at())
    }

    /// PUs of which at least one SKU may be offered now: those that the engine searches.
    pub fn permitted(&self, catalogue: &Catalogue) -> FixedBitSet {
        let mut permitted = catalogue.in_stock().clone();
        permitted.difference_with(&self.forbidden_pus);
        if self.matched.is_empty() {
            return permitted;
        }
        // Where a rule matches a part of a PU, the other SKUs may be sold out. Only these PUs and new ones are checked
        // SKU by SKU.
        let mut unsure = FixedBitSet::with_capacity(catalogue.pus().len());
        for matched in &self.matched {
            unsure.union_with(&matched.part);
        }
        unsure.insert_range(self.known.1.min(catalogue.pus().len())..catalogue.pus().len());
        unsure.intersect_with(&permitted);
        for pu in unsure.ones() {
            let mut skus = catalogue.pus()[pu].skus.iter();
            permitted.set(pu, skus.any(|ix| self.permits(catalogue, *ix)));
        }
        permitted
    }

    /// Forbids PUs under an id of the need filter.
    pub(super) fn forbid_pus(&mut self, id: String, pus: &[PuIx]) {
        self.fired.push(id);
        for pu in pus {
            self.forbidden_pus.grow(pu.at() + 1);
            self.forbidden_pus.insert(pu.at());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::shop::catalogue::tests::sku;

    fn rules(rules: Value) -> Vec<Rule> {
        serde_json::from_value(rules).expect("rules")
    }

    fn profile(profile: Value) -> Profile {
        serde_json::from_value(profile).expect("a profile")
    }

    fn small_catalogue() -> Catalogue {
        Catalogue::load(vec![
            sku("b1", "BREAD", json!({"allergens": ["gluten", "nuts"]})),
            sku("b2", "BREAD", json!({"allergens": ["gluten"]})),
            sku("m1", "MILK", json!({"allergens": "milk"})),
            sku("w1", "WINE", json!({"min_age": 18, "alcohol": true})),
        ])
    }

    fn table(catalogue: &Catalogue) -> Table {
        let rules = rules(json!([
            {"id": "minor", "when": {"field": "age", "below": 18}, "required": true,
             "forbid": {"attributes": {"alcohol": [true]}}},
            {"id": "nuts", "when": {"field": "allergies", "in": ["nuts"]},
             "forbid": {"attributes": {"allergens": ["nuts"]}}},
            {"id": "gluten-only", "when": {"field": "allergies", "in": ["gluten"]},
             "forbid": {"categories": ["food"], "attributes": {"allergens": ["gluten"]}}},
        ]));
        let segments: Vec<Segment> = serde_json::from_value(json!([
            {"id": "young", "when": [{"field": "age", "below": 30}]},
            {"id": "adult", "when": [{"field": "age", "at_least": 18}, {"field": "city", "equals": "x"}]},
        ]))
        .expect("segments");
        Table::compile(&rules, &segments, catalogue)
    }

    fn check(of: Value, fired: &[&str], forbidden: &[&str]) {
        let catalogue = small_catalogue();
        let of = profile(of);
        let verdict = table(&catalogue).judge(Some(&of), Timestamp(0));
        assert_eq!(verdict.fired, fired, "{of:?}");
        let out: Vec<_> = (0..4)
            .map(SkuIx)
            .filter(|ix| !verdict.permits(&catalogue, *ix))
            .collect();
        let out: Vec<_> = out
            .iter()
            .map(|ix| catalogue.sku(*ix).sku.as_str())
            .collect();
        assert_eq!(out, forbidden, "{of:?}");
    }

    #[test]
    fn a_fired_rule_forbids_what_it_matches() {
        check(json!({"age": 40}), &[], &[]);
        check(json!({"age": 17}), &["minor"], &["w1"]);
        check(
            json!({"age": 40, "allergies": ["nuts"]}),
            &["nuts"],
            &["b1"],
        );
        let both = json!({"age": 40, "allergies": ["nuts", "gluten"]});
        check(both, &["nuts", "gluten-only"], &["b1", "b2"]);
    }

    #[test]
    fn a_rule_whose_texts_look_like_the_catalogue_s_forbids_what_they_name() {
        let catalogue = small_catalogue();
        for forbid in [
            json!({"pus": ["WINE\u{feff}"]}),
            json!({"categories": ["food "], "attributes": {"alcohol\u{200b}": [true]}}),
        ] {
            let rules = rules(json!([
                {"id": "minor", "when": {"field": "\u{feff}age", "below": 18}, "forbid": forbid},
            ]));
            let table = Table::compile(&rules, &[], &catalogue);
            let verdict = table.judge(Some(&profile(json!({"age": 17}))), Timestamp(0));
            assert!(verdict.forbids_sku(SkuIx(3)), "{rules:?}");
        }
    }

    #[test]
    fn a_required_rule_forbids_if_the_field_is_unknown() {
        for unknown in [
            json!({}),
            json!({"age": null}),
            json!({"age": "old"}),
            json!({"age": [17]}),
        ] {
            check(unknown, &["minor"], &["w1"]);
        }
        let catalogue = small_catalogue();
        let verdict = table(&catalogue).judge(None, Timestamp(0));
        assert_eq!(verdict.unknown, ["minor"]);
        assert!(!verdict.permitted(&catalogue).contains(2));
    }

    #[test]
    fn a_rule_whose_field_cannot_be_compared_is_named_and_fires_only_if_required() {
        let catalogue = small_catalogue();
        let of = profile(json!({"age": "old", "allergies": {"nuts": true}}));
        let verdict = table(&catalogue).judge(Some(&of), Timestamp(0));
        assert_eq!(verdict.fired, ["minor"]);
        assert_eq!(verdict.unknown, ["minor", "nuts", "gluten-only"]);
        assert_eq!(verdict.unreadable, ["minor", "nuts", "gluten-only"]);
        let absent = table(&catalogue).judge(Some(&profile(json!({}))), Timestamp(0));
        assert_eq!((absent.unknown.len(), absent.unreadable.len()), (1, 0));
    }

    #[test]
    fn a_required_rule_forbids_a_sku_whose_attribute_cannot_be_compared() {
        let catalogue = Catalogue::load(vec![
            sku("w1", "WINE", json!({"alcohol": "perhaps"})),
            sku("w2", "MUST", json!({"alcohol": null})),
            sku("w3", "CIDER", json!({"alcohol": 1})),
            sku("w4", "NUTS", json!({"allergens": "[\"nuts\"]"})),
        ]);
        for (required, forbidden) in [(true, vec!["w1", "w3"]), (false, vec!["w3"])] {
            let rules = rules(json!([
                {"id": "alcohol", "when": {"field": "x", "equals": true}, "required": required,
                 "forbid": {"attributes": {"alcohol": [true]}}},
            ]));
            let table = Table::compile(&rules, &[], &catalogue);
            let verdict = table.judge(Some(&profile(json!({"x": true}))), Timestamp(0));
            let out = (0..4).map(SkuIx).filter(|ix| verdict.forbids_sku(*ix));
            let out: Vec<_> = out.map(|ix| catalogue.sku(ix).sku.as_str()).collect();
            assert_eq!(out, forbidden, "required = {required}");
        }
        let of = profile(json!({"age": 40, "allergies": ["nuts"]}));
        let verdict = table(&catalogue).judge(Some(&of), Timestamp(0));
        assert!(verdict.forbids_sku(SkuIx(3)), "an array in text is read");
    }

    #[test]
    fn two_rules_that_match_parts_forbid_the_whole_pu() {
        let catalogue = small_catalogue();
        let rules = rules(json!([
            {"id": "1", "when": {"field": "x", "equals": 1}, "forbid": {"attributes": {"allergens": ["nuts"]}}},
            {"id": "2", "when": {"field": "x", "equals": 1}, "forbid": {"attributes": {"n": [2]}}},
        ]));
        let mut table = Table::compile(&rules, &[], &catalogue);
        let of = profile(json!({"x": 1}));
        assert_eq!(
            table
                .judge(Some(&of), Timestamp(0))
                .forbidden_pus
                .count_ones(..),
            0
        );
        let mut changed = small_catalogue();
        let patch = changed.apply("b2".into(), Some(sku("b2", "BREAD", json!({"n": 2}))));
        table.extend(&changed, patch.rules);
        let verdict = table.judge(Some(&of), Timestamp(0));
        assert_eq!(verdict.forbidden_pus.ones().collect::<Vec<_>>(), [0]);
    }

    #[test]
    fn a_pu_whose_permitted_skus_are_sold_out_is_not_permitted() {
        let mut catalogue = small_catalogue();
        let table = table(&catalogue);
        catalogue.apply(
            "b2".into(),
            Some(Sku {
                stock: 0,
                ..catalogue.sku(SkuIx(1)).clone()
            }),
        );
        let verdict = table.judge(
            Some(&profile(json!({"age": 40, "allergies": "nuts"}))),
            Timestamp(0),
        );
        assert!(!verdict.forbidden_pus.contains(0), "b2 is not forbidden");
        assert!(
            !verdict.permitted(&catalogue).contains(0),
            "but it is sold out"
        );
    }

    #[test]
    fn a_new_sku_is_forbidden_by_any_fired_rule_until_the_table_is_extended() {
        let mut catalogue = small_catalogue();
        let mut table = table(&catalogue);
        let patch = catalogue.apply("n".into(), Some(sku("n", "NEW", json!({}))));
        let of = profile(json!({"age": 3}));
        let verdict = table.judge(Some(&of), Timestamp(0));
        assert!(
            !verdict.permits(&catalogue, SkuIx(4)) && !verdict.permitted(&catalogue).contains(3)
        );
        table.extend(&catalogue, patch.rules);
        let verdict = table.judge(Some(&of), Timestamp(0));
        assert!(verdict.permits(&catalogue, SkuIx(4)) && verdict.permitted(&catalogue).contains(3));
    }

    #[test]
    fn a_user_is_in_the_first_segment_that_holds_else_in_default() {
        let table = table(&small_catalogue());
        for (of, segment) in [
            (json!({"age": 20, "city": "x"}), "young"),
            (json!({"age": 40, "city": "x"}), "adult"),
            (json!({"age": 40}), "default"),
            (json!({}), "default"),
        ] {
            assert_eq!(table.segment(Some(&profile(of)), Timestamp(0)), segment);
        }
    }

    fn skus() -> impl Strategy<Value = Vec<(u8, u8, Option<u8>, bool)>> {
        prop::collection::vec(
            (0u8..10, 0u8..4, prop::option::of(0u8..3), any::<bool>()),
            1..40,
        )
    }

    proptest! {
        #[test]
        fn extending_a_table_equals_compiling_it_and_a_pu_is_forbidden_iff_all_its_skus_are(
            changes in skus(), fires in any::<[bool; 3]>(),
        ) {
            let rules: Vec<Rule> = (0..3).map(|n| serde_json::from_value(json!({
                "id": format!("r{n}"), "when": {"field": format!("f{n}"), "equals": true},
                "forbid": {"attributes": {"k": [n]}},
            })).expect("a rule")).collect();
            let mut catalogue = Catalogue::default();
            let mut patched = Table::compile(&rules, &[], &catalogue);
            for (id, pu, k, gone) in changes {
                let id = id.to_string();
                let value = (!gone).then(|| sku(&id, &format!("P{pu}"), json!({ "k": k })));
                let patch = catalogue.apply(id, value);
                patched.extend(&catalogue, patch.rules);
            }
            let fresh = Table::compile(&rules, &[], &catalogue);
            let of = profile(json!({"f0": fires[0], "f1": fires[1], "f2": fires[2]}));
            let verdict = patched.judge(Some(&of), Timestamp(0));
            prop_assert_eq!(&verdict.forbidden_pus, &fresh.judge(Some(&of), Timestamp(0)).forbidden_pus);
            for (at, pu) in catalogue.pus().iter().enumerate() {
                let out = |ix: &SkuIx| {
                    let k = catalogue.sku(*ix).attributes["k"].as_u64();
                    k.is_some_and(|k| fires[k as usize])
                };
                prop_assert!(pu.skus.iter().all(|ix| verdict.forbids_sku(*ix) == out(ix)));
                let all = !pu.skus.is_empty() && pu.skus.iter().all(out);
                prop_assert_eq!(verdict.forbidden_pus.contains(at), all);
                let shown = pu.skus.iter().any(|ix| verdict.permits(&catalogue, *ix));
                prop_assert_eq!(verdict.permitted(&catalogue).contains(at), shown);
            }
        }
    }

    #[test]
    fn a_table_over_a_whole_catalogue_compiles_and_judges_quickly() {
        let all = (0..92_000).map(|n| {
            let attributes = json!({"brand": n % 500, "allergens": ["a", "b"], "min_age": n % 30});
            sku(&n.to_string(), &format!("P{}", n % 2240), attributes)
        });
        let catalogue = Catalogue::load(all.collect());
        let rules: Vec<Rule> = (0..10)
            .map(|n| {
                serde_json::from_value(json!({
            "id": format!("r{n}"), "when": {"field": "age", "below": 18 + n}, "required": true,
            "forbid": {"attributes": {"min_age": [18 + n], "brand": [n]}},
        })).expect("a rule")
            })
            .collect();
        let table = Table::compile(&rules, &[], &catalogue);
        let verdict = table.judge(None, Timestamp(0));
        let permitted = verdict.permitted(&catalogue);
        assert_eq!((verdict.fired.len(), permitted.count_ones(..)), (10, 2240));
    }
}
