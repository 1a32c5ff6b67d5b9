//! Proposes products for the titles of files, and measures a proposal where products are known.
//!
//! Invariant: a SKU that has a product keeps it, unless its product is hidden to measure. It does not know how titles are
//! compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nearshore_core::shop::naming::{Map, Naming, Untitled, propose};
use schemars::JsonSchema;
use serde::Serialize;

use super::{Problem, rows};

/// Fields that are not attributes.
const FIELDS: [&str; 9] = [
    "sku",
    "key",
    "pu",
    "pu_id",
    "category",
    "title",
    "stock",
    "price",
    "attributes",
];

/// SKUs of files.
#[derive(Debug, Default)]
pub(crate) struct Titles {
    /// Those without a product.
    pub(crate) rows: Vec<Untitled>,
    /// Number of SKUs that have one.
    pub(crate) named: usize,
    /// Number of SKUs without a title.
    pub(crate) untitled: usize,
}

/// What was proposed.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub(crate) struct Proposal {
    /// SKUs that were read, without a product.
    pub(crate) skus: usize,
    /// SKUs that have a product already.
    pub(crate) named: usize,
    /// SKUs without a title; they stay without a product.
    pub(crate) untitled: usize,
    /// Products that have a SKU.
    pub(crate) products: usize,
    /// Products that were in the map before.
    pub(crate) known: usize,
    /// Products that may be another one.
    pub(crate) unsure: usize,
    /// Beginnings of titles that are cut as brands.
    pub(crate) brands: usize,
    /// Agreement with known products, if a file of them was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) truth: Option<Agreement>,
}

/// How two groupings agree: over pairs of SKUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Agreement {
    /// Of pairs with one proposed product, the share with one true product.
    pub(crate) precision: f64,
    /// Of pairs with one true product, the share with one proposed product.
    pub(crate) recall: f64,
    /// Their harmonic mean.
    pub(crate) f1: f64,
    /// Number of true products.
    pub(crate) products: usize,
}

impl Titles {
    /// Reads files of SKUs: rows of `sku` and `title`, and what else is known of each.
    pub(crate) fn read(paths: &[PathBuf], brand: &str) -> Result<Self, Problem> {
        let mut titles = Self::default();
        for path in paths {
            rows::read(path, &mut |row| {
                let sku = row.needed("sku")?;
                if row.text("pu")?.is_some() {
                    titles.named += 1;
                    return Ok(());
                }
                let Some(title) = row.text("title")? else {
                    titles.untitled += 1;
                    return Ok(());
                };
                let (brands, others): (Vec<_>, Vec<_>) = row
                    .others(&FIELDS)
                    .into_iter()
                    .partition(|(name, _)| name == brand);
                titles.rows.push(Untitled {
                    sku,
                    title,
                    category: row.text("category")?,
                    brand: brands.into_iter().map(|(_, text)| text).next(),
                    attributes: others.into_iter().map(|(_, text)| text).collect(),
                });
                Ok(())
            })?;
        }
        Ok(titles)
    }

    /// Proposes products, and keeps those of the map before.
    pub(crate) fn proposed(&self, before: &Map) -> (Map, Proposal) {
        let map = propose(&self.rows, before);
        let live = map.lines.iter().filter(|line| line.skus > 0);
        let proposal = Proposal {
            skus: self.rows.len(),
            named: self.named,
            untitled: self.untitled,
            products: live.clone().count(),
            known: before.lines.len(),
            unsure: live.filter(|line| !line.unsure.is_empty()).count(),
            brands: map.labels.brands.len(),
            truth: None,
        };
        (map, proposal)
    }

    /// How a map agrees with known products: rows of `sku` and `pu`.
    pub(crate) fn agreement(&self, map: &Map, truth: &Path) -> Result<Agreement, Problem> {
        let mut known = BTreeMap::new();
        rows::read(truth, &mut |row| {
            known.insert(row.needed("sku")?, row.needed("pu")?);
            Ok(())
        })?;
        let naming = Naming::new(map.clone());
        let pairs = self.rows.iter().filter_map(|row| {
            let named = naming.name(row)?;
            Some((named.pu_id, known.get(&row.sku)?.clone()))
        });
        agreement(pairs).ok_or_else(|| {
            let truth = truth.display();
            Problem::Whole(format!("no two SKUs of {truth} have one product"))
        })
    }
}

fn agreement(skus: impl Iterator<Item = (String, String)>) -> Option<Agreement> {
    let mut both: BTreeMap<(String, String), u64> = BTreeMap::new();
    for pair in skus {
        *both.entry(pair).or_default() += 1;
    }
    let (mut proposed, mut known): (BTreeMap<&str, u64>, BTreeMap<&str, u64>) = Default::default();
    for ((a, b), skus) in &both {
        *proposed.entry(a).or_default() += skus;
        *known.entry(b).or_default() += skus;
    }
    let pairs = |skus: &u64| (skus * (skus - 1) / 2) as f64;
    let right: f64 = both.values().map(pairs).sum();
    let of_proposed: f64 = proposed.values().map(pairs).sum();
    let of_known: f64 = known.values().map(pairs).sum();
    (of_proposed > 0.0 && of_known > 0.0).then(|| Agreement {
        precision: right / of_proposed,
        recall: right / of_known,
        f1: 2.0 * right / (of_proposed + of_known),
        products: known.len(),
    })
}

/// Reads a map.
pub(crate) fn map(path: &Path) -> Result<Map, Problem> {
    let text = crate::files::read(path)?;
    Map::read(&text).map_err(|error| Problem::Whole(format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groupings_are_compared_by_pairs() {
        let skus = [("a", "x"), ("a", "x"), ("a", "y"), ("b", "y")];
        let skus = skus.map(|(a, b)| (a.to_owned(), b.to_owned()));
        let found = agreement(skus.into_iter()).expect("pairs");
        assert_eq!((found.precision, found.recall), (1.0 / 3.0, 0.5));
        assert!((found.f1 - 0.4).abs() < 1e-12);
        assert_eq!(
            agreement([("a".to_owned(), "x".to_owned())].into_iter()),
            None
        );
    }
}
