//! Finds what can match nothing in a catalogue: rules, the need filter, blocks, the merchant's boosts and pins.
//!
//! Decides what is reported: each product, category, attribute and value that no SKU has, even where the rest of the
//! rule matches, because a rule that was written for two products and knows one of them is half switched off.
//! Invariant: of an empty catalogue nothing is reported. It does not know profiles, nor whether a condition ever holds.

use std::collections::BTreeSet;

use serde_json::Value;
use strum::{IntoStaticStr, VariantNames};

use super::condition::one_of;
use super::{Needs, Rule};
use crate::shop::catalogue::{Catalogue, SkuIx};
use crate::shop::merchant;
use crate::text::normalise;
use crate::user::event::Sku;

/// What can match nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "snake_case")]
pub enum UnmatchedKind {
    /// A rule.
    Rule,
    /// A category of the need filter.
    Need,
    /// A block.
    Block,
    /// A boost of `[merchant]`.
    Boost,
    /// A pin of `[merchant]`.
    Pin,
    /// A profile field that rules and segments ask for.
    Field,
}

impl UnmatchedKind {
    /// The kinds that are looked for in the catalogue.
    pub const OF_CATALOGUE: [Self; 5] =
        [Self::Rule, Self::Need, Self::Block, Self::Boost, Self::Pin];

    /// What happens until somebody corrects it, as the end of a sentence.
    pub fn otherwise(self) -> &'static str {
        match self {
            Self::Rule | Self::Need | Self::Block => "the products that it means are offered",
            Self::Boost | Self::Pin => "it has no effect",
            Self::Field => "it counts as unknown",
        }
    }
}

/// A part of a rule, a category of the need filter, a block, a boost, a pin or a profile field, that matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unmatched {
    /// What it is.
    pub kind: UnmatchedKind,
    /// Id of the rule, category of the need, id of the block, PU id or category of the boost or pin, profile field.
    pub id: String,
    /// What is not there, and what is, if something is similar.
    pub what: String,
}

/// The SKUs that are not deleted, and the texts that rules may name.
struct Known<'a> {
    catalogue: &'a Catalogue,
    skus: Vec<SkuIx>,
    pus: BTreeSet<&'a str>,
    categories: BTreeSet<&'a str>,
}

/// The parts of rules and needs that match nothing in the catalogue.
pub fn unmatched(rules: &[Rule], needs: &Needs, catalogue: &Catalogue) -> Vec<Unmatched> {
    let known = Known::of(catalogue);
    let mut found = Vec::new();
    if known.skus.is_empty() {
        return found;
    }
    for rule in rules.iter().map(Rule::normalised) {
        let parts = known.of_rule(&rule);
        found.extend(parts.into_iter().map(|what| Unmatched {
            kind: UnmatchedKind::Rule,
            id: rule.id.clone(),
            what,
        }));
    }
    for category in needs.not_again_within.keys() {
        found.extend(known.of_category(category).map(|what| Unmatched {
            kind: UnmatchedKind::Need,
            id: category.clone(),
            what,
        }));
    }
    found
}

/// The blocks of which the catalogue has no SKU, from ids of PUs and ids of SKUs.
pub fn unmatched_blocks<'a>(
    pus: impl IntoIterator<Item = &'a str>,
    skus: impl IntoIterator<Item = &'a str>,
    catalogue: &Catalogue,
) -> Vec<Unmatched> {
    let known = Known::of(catalogue);
    if known.skus.is_empty() {
        return Vec::new();
    }
    let ids = || {
        known
            .all_skus()
            .map(|sku| sku.sku.as_str())
            .collect::<BTreeSet<_>>()
    };
    let pus = pus.into_iter().map(|id| (id, known.of_pu(id)));
    let skus = skus.into_iter().map(|id| {
        let is_unknown = !catalogue.has_sku(&normalise(id));
        let what = is_unknown.then(|| format!("no SKU has the id {id:?}{}", like(id, &ids())));
        (id, what)
    });
    let found = pus.chain(skus).filter_map(|(id, what)| {
        Some(Unmatched {
            kind: UnmatchedKind::Block,
            id: id.to_owned(),
            what: what?,
        })
    });
    found.collect()
}

/// The boosts and pins of which the catalogue has no product.
pub fn unmatched_merchant(policy: &merchant::Policy, catalogue: &Catalogue) -> Vec<Unmatched> {
    let known = Known::of(catalogue);
    if known.skus.is_empty() {
        return Vec::new();
    }
    let unmatched = |kind, id: &str, what: Option<String>| {
        let (id, what) = (id.to_owned(), what?);
        Some(Unmatched { kind, id, what })
    };
    let boosts = policy.boosts.iter().flat_map(|boost| {
        let pu = boost.pu.as_deref();
        let pu = pu.and_then(|id| unmatched(UnmatchedKind::Boost, id, known.of_pu(id)));
        let category = boost.category.as_deref();
        let category = category.and_then(|category| {
            unmatched(UnmatchedKind::Boost, category, known.of_category(category))
        });
        pu.into_iter().chain(category)
    });
    let pins = policy.pins.iter();
    let pins = pins.filter_map(|pin| unmatched(UnmatchedKind::Pin, &pin.pu, known.of_pu(&pin.pu)));
    boosts.chain(pins).collect()
}

impl<'a> Known<'a> {
    fn of(catalogue: &'a Catalogue) -> Self {
        let with_skus = catalogue.pus().iter().filter(|pu| !pu.skus.is_empty());
        let mut known = Self {
            catalogue,
            skus: Vec::new(),
            pus: BTreeSet::new(),
            categories: BTreeSet::new(),
        };
        for pu in with_skus {
            known.pus.insert(&*pu.id);
            known.categories.extend(pu.category.as_deref());
            for ix in &pu.skus {
                known
                    .categories
                    .extend(catalogue.sku(*ix).category.as_deref());
                known.skus.push(*ix);
            }
        }
        known
    }

    /// What of a normalised rule matches nothing; if each part matches something, whether any SKU has all of them.
    fn of_rule(&self, rule: &Rule) -> Vec<String> {
        let forbid = &rule.forbid;
        let pus = forbid.pus.iter().filter_map(|pu| self.of_pu(pu));
        let categories = forbid.categories.iter();
        let categories = categories.filter_map(|category| self.of_category(category));
        let attributes = forbid.attributes.iter();
        let attributes = attributes.flat_map(|(name, values)| self.of_attribute(name, values));
        let parts: Vec<String> = pus.chain(categories).chain(attributes).collect();
        let matches = |ix: &SkuIx| {
            let pu = self.catalogue.pu(self.catalogue.pu_of(*ix));
            forbid.matches(self.catalogue.sku(*ix), pu.category.as_deref()) != Some(false)
        };
        if parts.is_empty() && !self.skus.iter().any(matches) {
            return vec!["each part of forbid matches products, but no SKU has all of them".into()];
        }
        parts
    }

    fn of_pu(&self, id: &str) -> Option<String> {
        let id = &*normalise(id);
        if self.pus.contains(id) {
            return None;
        }
        let named = self.catalogue.pus().iter();
        let mut named = named.filter(|pu| pu.name == id && self.pus.contains(&*pu.id));
        Some(match named.next() {
            Some(pu) => format!(
                "no product has the id {id:?}; it is the name of the product with the id {:?}",
                pu.id
            ),
            None => format!("no product has the id {id:?}{}", like(id, &self.pus)),
        })
    }

    fn of_category(&self, category: &str) -> Option<String> {
        let category = &*normalise(category);
        (!self.categories.contains(category)).then(|| {
            let like = like(category, &self.categories);
            format!("no product has the category {category:?}{like}")
        })
    }

    fn of_attribute(&self, name: &str, values: &[Value]) -> Vec<String> {
        let with = |sku: &'a Sku| sku.attributes.get(name);
        let found: Vec<&Value> = self.all_skus().filter_map(with).collect();
        if found.is_empty() {
            let names = self.all_skus().flat_map(|sku| sku.attributes.keys());
            let names: BTreeSet<&str> = names.map(String::as_str).collect();
            return vec![format!(
                "no SKU has the attribute {name:?}{}",
                like(name, &names)
            )];
        }
        let unmatched = values.iter().filter(|wanted| {
            let wanted = std::slice::from_ref(*wanted);
            !found
                .iter()
                .any(|found| one_of(wanted, found) == Some(true))
        });
        let texts = || {
            found
                .iter()
                .flat_map(|found| texts(found))
                .collect::<BTreeSet<_>>()
        };
        let what = |wanted: &Value| {
            let like = wanted.as_str().map(|text| like(text, &texts()));
            format!(
                "no SKU has the attribute {name:?} with the value {wanted}{}",
                like.unwrap_or_default()
            )
        };
        unmatched.map(what).collect()
    }

    fn all_skus(&self) -> impl Iterator<Item = &'a Sku> {
        self.skus.iter().map(|ix| self.catalogue.sku(*ix))
    }
}

/// The texts of a value or of the items of an array.
fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) => vec![text],
        Value::Array(values) => values.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// Names the known text that is most like an unknown one, as a question: one that differs in case alone, or the one
/// with the fewest changed letters. Of short texts, as ids are, any other one would be alike.
pub(super) fn like(unknown: &str, known: &BTreeSet<&str>) -> String {
    let lower = unknown.to_lowercase();
    let longest = (unknown.chars().count() / 4).min(3);
    // To compare texts takes long, and texts of very different lengths are not alike.
    let near = |text: &&str| text.len().abs_diff(unknown.len()) <= 4 * longest.max(1);
    let alike = known.iter().copied().filter(near);
    let alike = alike.map(|text| (strsim::osa_distance(&lower, &text.to_lowercase()), text));
    match alike.min() {
        Some((distance, text)) if distance <= longest => format!("; did you mean {text:?}?"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;

    fn catalogue() -> Catalogue {
        let mut wine = sku(
            "w1",
            "RED WINE",
            json!({"alcohol": true, "schedule": ["II", "III"]}),
        );
        wine.category = Some("WINE".into());
        let mut tea = sku("t1", "TEA", json!({"schedule": "otc"}));
        tea.pu_id = "77".into();
        let mut catalogue = Catalogue::load(vec![wine, tea, sku("g1", "GIN", json!({}))]);
        catalogue.apply("g1".into(), None);
        catalogue
    }

    fn check(forbid: Value, expected: &[&str]) {
        let rule = json!({"id": "r", "when": {"field": "age", "below": 18}, "forbid": forbid});
        let rule: Rule = serde_json::from_value(rule).expect("a rule");
        let found = unmatched(&[rule], &Needs::default(), &catalogue());
        let found: Vec<_> = found.iter().map(|it| it.what.as_str()).collect();
        assert_eq!(found, expected, "{forbid}");
    }

    #[test]
    fn each_part_of_a_rule_that_matches_nothing_is_named_with_what_was_meant() {
        check(
            json!({"pus": ["RED WINE\u{feff}"], "categories": ["WINE"]}),
            &[],
        );
        check(
            json!({"pus": ["red wine"]}),
            &["no product has the id \"red wine\"; did you mean \"RED WINE\"?"],
        );
        check(
            json!({"pus": ["RED WINE", "BEER", "TEA", "GIN"]}),
            &[
                "no product has the id \"BEER\"",
                "no product has the id \"TEA\"; it is the name of the product with the id \"77\"",
                "no product has the id \"GIN\"",
            ],
        );
        check(
            json!({"categories": ["WINES", "fish"]}),
            &[
                "no product has the category \"WINES\"; did you mean \"WINE\"?",
                "no product has the category \"fish\"",
            ],
        );
        check(
            json!({"attributes": {"alcohol": [true], "schedle": ["II"]}}),
            &["no SKU has the attribute \"schedle\"; did you mean \"schedule\"?"],
        );
        check(
            json!({"attributes": {"schedule": ["II", "iii", "OTC", 4], "alcohol": ["maybe"]}}),
            &[
                "no SKU has the attribute \"alcohol\" with the value \"maybe\"",
                "no SKU has the attribute \"schedule\" with the value \"iii\"; did you mean \"III\"?",
                "no SKU has the attribute \"schedule\" with the value \"OTC\"; did you mean \"otc\"?",
                "no SKU has the attribute \"schedule\" with the value 4",
            ],
        );
    }

    #[test]
    fn a_rule_whose_parts_match_different_products_is_reported() {
        check(
            json!({"pus": ["RED WINE"], "attributes": {"schedule": ["otc"]}}),
            &["each part of forbid matches products, but no SKU has all of them"],
        );
    }

    #[test]
    fn a_need_and_a_block_that_match_nothing_are_reported() {
        let needs = toml::from_str("not_again_within = { Wine = \"20d\", food = \"20d\" }");
        let found = unmatched(&[], &needs.expect("needs"), &catalogue());
        let found: Vec<_> = found.iter().map(|it| (it.kind, it.what.as_str())).collect();
        let what = "no product has the category \"Wine\"; did you mean \"WINE\"?";
        assert_eq!(found, [(UnmatchedKind::Need, what)]);
        let found = unmatched_blocks(
            ["RED WINE", "Tea"],
            ["t1 ", "s999", "W1", "g1"],
            &catalogue(),
        );
        let found: Vec<_> = found.iter().map(|it| it.what.as_str()).collect();
        assert_eq!(
            found,
            [
                "no product has the id \"Tea\"",
                "no SKU has the id \"s999\"",
                "no SKU has the id \"W1\"; did you mean \"w1\"?",
                "no SKU has the id \"g1\"",
            ]
        );
    }

    #[test]
    fn a_boost_and_a_pin_that_match_nothing_are_reported() {
        let policy: merchant::Policy = toml::from_str(
            r#"
            boosts = [
                { pu = "RED WINE", factor = 2.0 },
                { pu = "RED WINES", factor = 2.0 },
                { category = "WINE", factor = 2.0 },
                { category = "fish", factor = 2.0 },
            ]
            pins = [{ pu = "GIN", top = 1 }, { pu = "77", top = 1 }]"#,
        )
        .expect("a policy");
        let found = unmatched_merchant(&policy, &catalogue());
        let found: Vec<_> = found
            .iter()
            .map(|it| (it.kind, &*it.id, &*it.what))
            .collect();
        let (boost, pin) = (UnmatchedKind::Boost, UnmatchedKind::Pin);
        assert_eq!(
            found,
            [
                (
                    boost,
                    "RED WINES",
                    "no product has the id \"RED WINES\"; did you mean \"RED WINE\"?"
                ),
                (boost, "fish", "no product has the category \"fish\""),
                (pin, "GIN", "no product has the id \"GIN\""),
            ]
        );
        assert_eq!(unmatched_merchant(&policy, &Catalogue::default()), []);
    }

    #[test]
    fn of_an_empty_catalogue_nothing_is_reported() {
        let needs = toml::from_str("not_again_within = { Wine = \"20d\" }").expect("needs");
        assert_eq!(unmatched(&[], &needs, &Catalogue::default()), []);
        assert_eq!(unmatched_blocks(["x"], ["y"], &Catalogue::default()), []);
    }
}
