//! The neighbours of every SKU of a catalogue, from a replayed log: a part of what `nearshore align` does.
//!
//! Invariant: equal logs give equal documents, on any number of threads. It does not know where they are written.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nearshore_core::learn::related::{
    Bought, Columns, Counted, Known, Ks, NeighbourDoc, Related, RelatedOptions, Shop,
};
use nearshore_core::shop::catalogue::{Catalogue, SkuIx};
use nearshore_core::shop::count_kind::CountKind;
use nearshore_core::user::event::Kind;
use rayon::prelude::*;

use super::History;

/// The documents of one product.
struct OfProduct {
    /// What any of its SKUs has that too few users bought.
    product: NeighbourDoc,
    /// The documents of its other SKUs, as JSON, by id.
    own: BTreeMap<String, String>,
    /// The SKUs that too few users bought.
    rest: Vec<String>,
}

/// Documents of neighbours.
pub(crate) struct NeighbourDocs {
    products: Vec<OfProduct>,
    /// How much the level above is worth.
    pub(crate) ks: Ks,
    /// How long it took.
    pub(crate) took: Duration,
}

impl NeighbourDocs {
    /// Number of SKUs with a document of their own.
    pub(crate) fn own(&self) -> usize {
        self.products.iter().map(|of| of.own.len()).sum()
    }

    /// Number of SKUs.
    pub(crate) fn skus(&self) -> usize {
        self.own() + self.products.iter().map(|of| of.rest.len()).sum::<usize>()
    }

    /// As the artefact has them: a line for each product, and one for each SKU with a document of its own.
    pub(crate) fn lines(&self) -> String {
        let mut lines = String::new();
        for of in &self.products {
            for line in std::iter::once(&of.product.to_json()).chain(of.own.values()) {
                lines.push_str(line);
                lines.push('\n');
            }
        }
        lines
    }

    /// SKU ids with their documents, of all SKUs.
    pub(crate) fn each(&self) -> impl Iterator<Item = (&str, String)> {
        self.products.iter().flat_map(|of| {
            let own = of.own.iter().map(|(sku, doc)| (sku.as_str(), doc.clone()));
            let rest = of.rest.iter();
            own.chain(rest.map(|sku| (sku.as_str(), of.product.for_sku(sku).to_json())))
        })
    }
}

/// Builds the documents of all SKUs of the catalogue.
pub(crate) fn related(history: &History, options: RelatedOptions) -> NeighbourDocs {
    let since = Instant::now();
    let catalogue = &*history.catalogue;
    let lines = lines(history);
    let product_of: Vec<u32> = (0..catalogue.sku_len() as u32)
        .map(|sku| catalogue.pu_of(SkuIx(sku)).0)
        .collect();
    let categories = categories(catalogue);
    let directions = directions(history);
    let similar = directions.as_ref().map(|all| {
        move |of: u32| -> Vec<f32> {
            let own = &all[of as usize];
            all.iter()
                .map(|other| own.iter().zip(other).map(|(a, b)| a * b).sum())
                .collect()
        }
    });
    let shop = Shop {
        lines: &lines,
        product_of: &product_of,
        products: catalogue.pus().len(),
        known: Known {
            categories: &categories,
            similar: similar.as_ref().map(|similar| similar as _),
        },
    };
    let counted = Counted::new(&shop, options);
    let related = Related::fit(&shop, &counted, options);
    let until = history.span.map_or(0, |(_, last)| last.0.saturating_add(1));
    let products = (0..shop.products as u32).into_par_iter().map_init(
        || related.scratch(),
        |scratch, product| {
            let pu = &catalogue.pus()[product as usize];
            let (own, rest): (Vec<SkuIx>, Vec<SkuIx>) =
                pu.skus.iter().partition(|sku| related.is_listed(sku.0));
            let asked: Vec<Option<u32>> = std::iter::once(None)
                .chain(own.iter().map(|sku| Some(sku.0)))
                .collect();
            let mut docs = related
                .product_lists(product, &asked, scratch)
                .into_iter()
                .map(|lists| {
                    let lists = [&lists.substitutes, &lists.complements];
                    lists.map(|list| Columns::new(list, |sku| id(catalogue, SkuIx(sku))))
                });
            let product = docs.next().unwrap_or_default();
            let own = own.iter().zip(docs).map(|(sku, lists)| {
                let sku = id(catalogue, *sku);
                let doc = NeighbourDoc::new((Some(&sku), &pu.id), until, lists);
                (sku, doc.to_json())
            });
            OfProduct {
                product: NeighbourDoc::new((None, &pu.id), until, product),
                own: own.collect(),
                rest: rest.into_iter().map(|sku| id(catalogue, sku)).collect(),
            }
        },
    );
    let products: Vec<OfProduct> = products.collect();
    NeighbourDocs {
        products,
        ks: related.ks(),
        took: since.elapsed(),
    }
}

fn id(catalogue: &Catalogue, sku: SkuIx) -> String {
    catalogue.sku(sku).sku.clone()
}

/// All purchases of SKUs of the catalogue.
fn lines(history: &History) -> Vec<Bought> {
    let mut lines = Vec::new();
    for (user, own) in (0..).zip(&history.users) {
        let bought = own
            .counts
            .iter()
            .filter(|line| line.kind == CountKind::Event(Kind::Purchase));
        lines.extend(bought.map(|line| Bought {
            user,
            at: line.time.0,
            item: line.sku.0,
        }));
    }
    lines
}

/// The category of each product, by number; those without one are each of their own.
fn categories(catalogue: &Catalogue) -> Vec<u32> {
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let name = |pu: &nearshore_core::shop::catalogue::Pu| match &pu.category {
        Some(category) => format!("c{category}"),
        None => format!("p{}", pu.id),
    };
    for pu in catalogue.pus() {
        numbers.entry(name(pu)).or_default();
    }
    numbers
        .values_mut()
        .zip(0..)
        .for_each(|(number, nth)| *number = nth);
    catalogue
        .pus()
        .iter()
        .map(|pu| numbers[&name(pu)])
        .collect()
}

/// The vector of each product's name, of length 1; 0 without one. `None` where there are no vectors.
fn directions(history: &History) -> Option<Vec<Vec<f32>>> {
    let vectors = history.texts.as_ref()?.vectors();
    let of = history.catalogue.pus().iter().map(|pu| {
        let found = vectors.get(&pu.name);
        let mut numbers: Vec<f32> =
            found.map_or_else(Vec::new, |vector| vector.numbers().collect());
        numbers.resize(vectors.width(), 0.0);
        let length = numbers.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            numbers.iter_mut().for_each(|x| *x /= length);
        }
        numbers
    });
    Some(of.collect())
}
