//! Orders the SKUs under a name for one user, by [`ChoiceModel`]: what the catalogue, the counts and the user's own
//! purchases say of each.
//!
//! Invariant: the order is a function of the catalogue, the demand, the model, and the user's purchases before the time
//! of the list; ties go by id. It orders the SKUs that it is given, and knows neither stock nor rules.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::learn::choice::replay::{SkuAttribute, SkuTable};
use crate::learn::choice::{Attribute, Candidates, ChoiceModel, OwnPurchase};
use crate::shop::catalogue::{Catalogue, PuIx, SkuIx};
use crate::shop::demand::Demand;
use crate::user::record::Timestamp;
use crate::user::state::{LIMITS, UserState};

/// Most attributes that are read: those in which the most products have different SKUs.
const ATTRIBUTES_MAX: usize = 4;

/// Least share of the products with several SKUs in which an attribute must differ.
const DIFFERS_MIN: f64 = 0.05;

/// Milliseconds of a day.
const DAY_MS: f64 = 86_400_000.0;

/// The SKUs that a user bought, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OwnSkus(Vec<(Timestamp, SkuIx)>);

impl OwnSkus {
    /// What the state knows, of SKUs that the catalogue knows.
    pub(crate) fn of(state: &UserState, catalogue: &Catalogue) -> Self {
        let known = state.register.purchases();
        let known = known.filter_map(|it| Some((it.time, catalogue.by_sku(it.sku)?)));
        let mut own: Vec<(Timestamp, SkuIx)> = known.collect();
        own.reverse();
        Self(own)
    }
}

/// SKUs as numbers, and how often each value of their attributes was bought.
#[derive(Debug, Default)]
pub(crate) struct SkuFeatures {
    table: SkuTable,
    /// For each attribute: purchases of each value, and their sum.
    sold: Vec<(Vec<f64>, f64)>,
}

impl SkuFeatures {
    pub(crate) fn of(catalogue: &Catalogue, demand: &Demand) -> Self {
        let table = sku_table(catalogue);
        let sold = table.attributes.iter().map(|attribute| {
            let mut sold = vec![1.0; attribute.len];
            for (sku, value) in (0..).map(SkuIx).zip(&attribute.values) {
                sold[*value as usize] += f64::from(demand.sku_logs(sku)[2].exp());
            }
            // Value 0 is none.
            sold[0] = 0.0;
            let all = sold.iter().sum();
            (sold, all)
        });
        Self {
            sold: sold.collect(),
            table,
        }
    }
}

/// Most SKUs and most purchases of a user that a state keeps.
pub fn own_limits() -> (usize, usize) {
    (LIMITS.skus, LIMITS.entries)
}

/// The features of a snapshot, computed when a list first needs them.
#[expect(
    clippy::disallowed_types,
    reason = "a value that is computed late, of an immutable snapshot: no global"
)]
#[derive(Debug, Default)]
pub(crate) struct SkuFeaturesOnce(std::sync::OnceLock<SkuFeatures>);

impl SkuFeaturesOnce {
    /// The features, of the snapshot's catalogue and demand.
    pub(crate) fn get(&self, catalogue: &Catalogue, demand: &Demand) -> &SkuFeatures {
        self.0.get_or_init(|| SkuFeatures::of(catalogue, demand))
    }
}

/// The catalogue's SKUs as numbers: their indices.
pub fn sku_table(catalogue: &Catalogue) -> SkuTable {
    let all = || (0..catalogue.sku_len() as u32).map(SkuIx);
    let price = |ix: SkuIx| {
        let price = catalogue.sku(ix).price.filter(|price| *price > 0.0);
        price.map_or(f32::NAN, |price| price.ln() as f32)
    };
    let skus = catalogue.pus().iter();
    SkuTable {
        products: all().map(|ix| catalogue.pu_of(ix).0).collect(),
        skus: skus
            .map(|pu| pu.skus.iter().map(|ix| ix.0).collect())
            .collect(),
        prices: all().map(price).collect(),
        attributes: attributes(catalogue),
    }
}

/// The attributes in which SKUs of one product differ, by how many products they do; of equal ones by name.
fn attributes(catalogue: &Catalogue) -> Vec<SkuAttribute> {
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    let several = catalogue.pus().iter().filter(|pu| pu.skus.len() > 1);
    let mut products = 0;
    for pu in several {
        products += 1;
        let mut first: BTreeMap<&str, (&Value, bool)> = BTreeMap::new();
        for ix in &pu.skus {
            for (name, value) in &catalogue.sku(*ix).attributes {
                if value.is_string() || value.is_boolean() || value.is_number() {
                    let seen = first.entry(name).or_insert((value, false));
                    seen.1 |= seen.0 != value;
                }
            }
        }
        for (name, (_, differs)) in first {
            *names.entry(name).or_default() += usize::from(differs);
        }
    }
    let least = DIFFERS_MIN * f64::from(products);
    let mut names: Vec<(&str, usize)> = names
        .into_iter()
        .filter(|it| it.1 > 0 && it.1 as f64 >= least)
        .collect();
    names.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    names.truncate(ATTRIBUTES_MAX);
    names
        .into_iter()
        .map(|(name, _)| attribute(catalogue, name))
        .collect()
}

fn attribute(catalogue: &Catalogue, name: &str) -> SkuAttribute {
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let all = (0..catalogue.sku_len() as u32).map(SkuIx);
    let value = |ix: SkuIx| match catalogue.sku(ix).attributes.get(name) {
        None | Some(Value::Null | Value::Array(_) | Value::Object(_)) => 0,
        Some(value) => {
            let next = numbers.len() as u32 + 1;
            *numbers.entry(value.to_string()).or_insert(next)
        }
    };
    let values = all.map(value).collect();
    SkuAttribute {
        name: name.into(),
        values,
        len: numbers.len() + 1,
    }
}

/// Orders SKUs for one user.
#[derive(Debug)]
pub(crate) struct Chooser<'a> {
    model: &'a ChoiceModel,
    features: &'a SkuFeatures,
    catalogue: &'a Catalogue,
    demand: &'a Demand,
    own: &'a OwnSkus,
    /// Purchases of each value by the user, for each attribute.
    values: Vec<BTreeMap<u32, f32>>,
    at: Timestamp,
}

impl<'a> Chooser<'a> {
    pub(crate) fn new(
        (model, features): (&'a ChoiceModel, &'a SkuFeatures),
        (catalogue, demand): (&'a Catalogue, &'a Demand),
        (own, at): (&'a OwnSkus, Timestamp),
    ) -> Self {
        let values = features.table.attributes.iter().map(|attribute| {
            let mut counts = BTreeMap::new();
            for (_, sku) in &own.0 {
                if let Some(value) = attribute.values.get(sku.at()).filter(|value| **value != 0) {
                    *counts.entry(*value).or_default() += 1.0;
                }
            }
            counts
        });
        Self {
            values: values.collect(),
            model,
            features,
            catalogue,
            demand,
            own,
            at,
        }
    }

    /// SKUs of a product with the probability that the user takes each, the likeliest first.
    pub(crate) fn ranked(&self, pu: PuIx, skus: &[SkuIx]) -> Vec<(SkuIx, f32)> {
        let shares = self.model.shares(&self.candidates(pu, skus));
        let mut ranked: Vec<(SkuIx, f32)> = skus.iter().copied().zip(shares).collect();
        let id = |ix: SkuIx| &self.catalogue.sku(ix).sku;
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| id(a.0).cmp(id(b.0))));
        ranked
    }

    fn candidates(&self, pu: PuIx, skus: &[SkuIx]) -> Candidates<'_> {
        let own = self
            .own
            .0
            .iter()
            .filter(|(_, sku)| self.catalogue.pu_of(*sku) == pu);
        let own: Vec<&(Timestamp, SkuIx)> = own.collect();
        let purchase = |(time, sku): &&(Timestamp, SkuIx)| OwnPurchase {
            place: skus
                .iter()
                .position(|ix| ix == sku)
                .map(|place| place as u32),
            days: (self.at.0.saturating_sub(time.0) as f64 / DAY_MS) as f32,
        };
        let attribute = |(nth, of): (usize, &'a SkuAttribute)| {
            let value = |ix: SkuIx| of.values.get(ix.at()).copied().unwrap_or_default();
            let (sold, all) = &self.features.sold[nth];
            Attribute {
                name: &of.name,
                values: skus.iter().map(|ix| value(*ix)).collect(),
                own: own.iter().map(|(_, sku)| value(*sku)).collect(),
                counts: &self.values[nth],
                sold,
                all: *all,
            }
        };
        let price = |ix: &SkuIx| {
            self.features
                .table
                .prices
                .get(ix.at())
                .copied()
                .unwrap_or(f32::NAN)
        };
        Candidates {
            demand: skus.iter().map(|ix| self.demand.sku_logs(*ix)).collect(),
            prices: skus.iter().map(price).collect(),
            own: own.iter().map(purchase).collect(),
            attributes: self
                .features
                .table
                .attributes
                .iter()
                .enumerate()
                .map(attribute)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::shop::catalogue::tests::sku;
    use crate::shop::count_kind::CountKind;
    use crate::shop::demand::Count;
    use crate::user::event::{Kind, Sku};

    const DAY: i64 = 86_400_000;

    /// SKUs s0 to s5 of TEA, of brands a and b in turn, and one of SALT.
    fn catalogue() -> Catalogue {
        let of = |nth: usize| {
            let brand = ["a", "b"][nth % 2];
            sku(
                &format!("s{nth}"),
                "TEA",
                json!({"brand": brand, "department": "food"}),
            )
        };
        let salt = sku(
            "salt",
            "SALT",
            json!({"brand": "a", "department": "spices"}),
        );
        let all: Vec<Sku> = (0..6).map(of).chain([salt]).collect();
        Catalogue::load(all)
    }

    fn demand(catalogue: &Catalogue) -> Demand {
        let of = |(sku, n): (&'static str, u64)| Count {
            sku,
            kind: CountKind::Event(Kind::Purchase),
            segment: "default",
            bucket: 0,
            n,
        };
        let counts = [("s1", 90), ("s3", 50), ("s0", 20), ("salt", 40)].map(of);
        Demand::build(counts, catalogue, &Default::default(), Timestamp(7 * DAY))
    }

    fn order(model: &ChoiceModel, own: &[(i64, &str)]) -> Vec<String> {
        let catalogue = catalogue();
        let demand = demand(&catalogue);
        let features = SkuFeatures::of(&catalogue, &demand);
        let own = own.iter().rev();
        let ix = |id: &str| catalogue.by_sku(id).expect("it is there");
        let own = OwnSkus(
            own.map(|(day, id)| (Timestamp(day * DAY), ix(id)))
                .collect(),
        );
        let chooser = Chooser::new(
            (model, &features),
            (&catalogue, &demand),
            (&own, Timestamp(9 * DAY)),
        );
        let pu = catalogue.by_pu("TEA").expect("it is there");
        let ranked = chooser.ranked(pu, &catalogue.pu(pu).skus);
        let sum: f32 = ranked.iter().map(|(_, share)| share).sum();
        assert!((sum - 1.0).abs() < 1e-4);
        ranked
            .into_iter()
            .map(|(sku, _)| catalogue.sku(sku).sku.clone())
            .collect()
    }

    #[test]
    fn the_users_last_sku_comes_first_then_the_best_selling_and_ties_by_id() {
        let model = ChoiceModel::default();
        assert_eq!(order(&model, &[]), ["s1", "s3", "s0", "s2", "s4", "s5"]);
        let own = [(1, "s5"), (2, "salt"), (3, "s4")];
        assert_eq!(order(&model, &own), ["s4", "s5", "s1", "s3", "s0", "s2"]);
    }

    #[test]
    fn a_brand_that_the_user_buys_comes_first_where_the_model_says_so() {
        let mut model = ChoiceModel::default();
        model.weights = [("taste:brand".to_owned(), 9.0), ("demand".to_owned(), 0.1)].into();
        let own = [(1, "salt"), (2, "salt"), (3, "salt")];
        assert_eq!(order(&model, &own)[..3], ["s0", "s2", "s4"]);
    }

    #[test]
    fn attributes_are_those_in_which_skus_of_one_product_differ() {
        let names: Vec<String> = sku_table(&catalogue())
            .attributes
            .into_iter()
            .map(|it| it.name)
            .collect();
        assert_eq!(names, ["brand"]);
    }
}
