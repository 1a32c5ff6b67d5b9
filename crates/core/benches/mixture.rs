//! Benchmark of a list without a model, as production makes it: 10^4 names, every term with a weight, the best 20.
//!
//! `cargo bench --bench mixture`. Timed are the terms' values for one user, and the search; not the fold, the rules nor
//! the choice of SKUs, which `benches/selection.rs` times.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use std::collections::BTreeMap;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use nearshore_core::learn::log::{Line, Purchases, UserLog};
use nearshore_core::learn::product_table::ProductTable;
use nearshore_core::learn::tables;
use nearshore_core::list::fallback::{FallbackSettings, SnapshotParts, serving_snapshot};
use nearshore_core::list::terms::artefact::{Artefact, Made, Tables};
use nearshore_core::list::terms::bound::Learned;
use nearshore_core::list::terms::{
    OwnProduct, OwnText, TERMS, TermInput, Texts, Weights, score_terms,
};
use nearshore_core::names::scoring::ScoreRequest;
use nearshore_core::names::sum;
use nearshore_core::shop::catalogue::Catalogue;
use nearshore_core::shop::demand::Demand;
use nearshore_core::shop::rules::Table;
use nearshore_core::shop::snapshot::Snapshot;
use nearshore_core::text::vectors::Vectors;
use nearshore_core::user::event::Sku;
use nearshore_core::user::record::Timestamp;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const NAMES: usize = 10_000;
const WIDTH: usize = 384;
const DAY: i64 = 86_400_000;
const YEAR: i64 = 365 * DAY;

fn catalogue() -> Catalogue {
    let sku = |nth: usize| Sku {
        sku: format!("s{nth}"),
        pu: format!("PRODUCT {nth}"),
        pu_id: format!("p{nth}"),
        category: Some(format!("category {}", nth % 100)),
        title: format!("Product {nth}"),
        stock: 5,
        price: None,
        attributes: Default::default(),
    };
    Catalogue::load((0..NAMES).map(sku).collect())
}

/// Five thousand users with a hundred purchases in a year, of the first products most.
fn purchases(random: &mut ChaCha8Rng) -> Purchases {
    let users = (0..5_000).map(|nth| {
        let lines = (0..100).map(|_| Line {
            at: random.random_range(1..YEAR),
            product: (random.random::<f64>().powi(2) * NAMES as f64) as u32,
        });
        UserLog {
            id: format!("u{nth}").into(),
            lines: lines.collect(),
        }
    });
    Purchases::new(NAMES, users)
}

fn learned(purchases: &Purchases, catalogue: &Catalogue) -> Learned {
    let mut columns = tables::columns(purchases, YEAR);
    columns.insert("bias".to_owned(), vec![0.1; NAMES]);
    let artefact = Artefact {
        hash: "of a benchmark".into(),
        made: Made::default(),
        weights: Weights::default(),
        tables: Tables {
            products: catalogue.pus().iter().map(|pu| pu.id.to_string()).collect(),
            repeat: Some(tables::repeat(purchases, YEAR, 56 * DAY)),
            neighbours: Some(tables::neighbours(purchases, YEAR, 2)),
            walk: Some(tables::walk(purchases, YEAR, 2)),
            columns,
        },
        references: None,
        vectors: None,
        choice: None,
        head: None,
        table: Some(Arc::new(product_table(catalogue))),
    };
    Learned::bind(&Arc::new(artefact), catalogue).expect("its own catalogue")
}

/// Ten products have no column, as after some days of new ones.
fn product_table(catalogue: &Catalogue) -> ProductTable {
    let ids: Vec<String> = catalogue.pus().iter().map(|pu| pu.id.to_string()).collect();
    let score = |i: usize, j: usize| -(((i * 7919 + j * 104_729) % 10_007) as f32) / 1e3;
    let row = |i: usize, columns: usize| (0..columns).map(|j| score(i, j)).collect();
    let old = NAMES - 10;
    let rows: Vec<Vec<f32>> = (0..old).map(|i| row(i, old)).collect();
    let table = ProductTable::build(Default::default(), ids[..old].to_vec(), &rows);
    let rows: Vec<Vec<f32>> = (old..NAMES).map(|i| row(i, NAMES)).collect();
    table.extended(&ids, &rows)
}

fn vectors(random: &mut ChaCha8Rng, catalogue: &Catalogue) -> Arc<Vectors> {
    let mut vectors = Vectors::new("of a benchmark", WIDTH);
    for pu in catalogue.pus() {
        let numbers: Vec<f32> = (0..WIDTH).map(|_| random.random_range(-1.0..1.0)).collect();
        vectors.insert(&pu.name, &numbers).expect("fits");
    }
    Arc::new(vectors)
}

fn snapshot(catalogue: &Arc<Catalogue>) -> Snapshot {
    let parts = SnapshotParts {
        rules: Arc::new(Table::compile(&[], &[], catalogue)),
        demand: Arc::new(Demand::build(
            [],
            catalogue,
            &Default::default(),
            Timestamp(0),
        )),
        merchant: Arc::default(),
        catalogue: Arc::clone(catalogue),
    };
    let fallbacks = FallbackSettings {
        segments: &[],
        names: 20,
        selection: &Default::default(),
    };
    serving_snapshot(parts, fallbacks)
}

fn mixture(c: &mut Criterion) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let catalogue = Arc::new(catalogue());
    let learned = learned(&purchases(&mut random), &catalogue);
    let texts = Texts::bind(vec![vectors(&mut random, &catalogue)], &catalogue).expect("vectors");
    let snapshot = snapshot(&catalogue);
    let permitted = Arc::new((0..NAMES).collect());
    let mut group = c.benchmark_group("a list without a model, 10,000 names, top 20");
    for own in [3, 30, 200] {
        let own: Vec<OwnProduct> = (0..own)
            .map(|nth| OwnProduct {
                pu: nth * 7,
                last: Timestamp(YEAR - i64::from(nth) * DAY),
                count: 1 + nth % 4,
                same_sku: 1 + nth % 3,
            })
            .collect();
        let own_texts: Vec<OwnText> = own
            .iter()
            .take(32)
            .map(|own| OwnText {
                text: format!("PRODUCT {}", own.pu),
                pu: Some(own.pu),
                weight: 1.0,
            })
            .collect();
        let input = TermInput {
            snapshot: &snapshot,
            segment: "default",
            own: &own,
            at: Timestamp(YEAR),
            learned: Some(&learned),
            texts: Some(&texts),
            own_texts: &own_texts,
            meant: &[],
        };
        let all: BTreeMap<String, f64> = TERMS
            .iter()
            .map(|term| (term.name().to_owned(), 0.5))
            .collect();
        for (what, left_out) in [("all terms", &[][..]), ("all but text", &["text"][..])] {
            let mut weights = all.clone();
            weights.retain(|name, _| !left_out.contains(&name.as_str()));
            let name = format!("{what}, {} own products", own.len());
            group.bench_function(name, |b| {
                b.iter(|| {
                    let request = ScoreRequest {
                        permitted: Some(Arc::clone(&permitted)),
                        terms: score_terms(&weights, &input),
                        weight: 0.0,
                        ..ScoreRequest::default()
                    };
                    sum::best(&request, NAMES)
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, mixture);
criterion_main!(benches);
