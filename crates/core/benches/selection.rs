//! Benchmarks of the SKU selection of one list: 20 PUs of 64 SKUs, with six distinct counts and with all distinct; and the
//! shares of the SKUs for a user who bought ten times in each PU, with two attributes.
//!
//! `cargo bench --bench selection`. For comparison, the method that it replaces: 256 draws of every posterior.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use std::collections::BTreeMap;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nearshore_core::learn::choice::{Attribute, Candidates, ChoiceModel, OwnPurchase};
use nearshore_core::list::best::{Beta, chances};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::Distribution;

const PUS: usize = 20;
const SKUS: usize = 64;
const DRAWS: usize = 256;

/// Posteriors of one PU, `kinds` of them distinct.
fn posteriors(pu: usize, kinds: usize) -> Vec<Beta> {
    let one = |nth: usize| Beta {
        yes: 1.0 + (nth % kinds) as f64 * 0.37,
        no: 60.0 + (pu + nth % kinds) as f64,
    };
    (0..SKUS).map(one).collect()
}

fn drawn(betas: &[Beta], random: &mut ChaCha8Rng) -> Vec<usize> {
    let beta = |of: &Beta| rand_distr::Beta::new(of.yes, of.no).expect("over 0");
    let variables: Vec<_> = betas.iter().map(beta).collect();
    let mut wins = vec![0; betas.len()];
    for _ in 0..DRAWS {
        let values = variables.iter().map(|one| one.sample(random));
        let best = values.enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        wins[best.expect("some").0] += 1;
    }
    wins
}

/// A model with a weight of every feature.
fn model() -> ChoiceModel {
    let plain = "demand recent slow unsold own own_age own_last price price_distance";
    let names = plain.split(' ').map(str::to_owned);
    let of = |name: &str| ["taste", "own"].map(|by| format!("{by}:{name}"));
    let all = names.chain(of("brand")).chain(of("size"));
    let mut model = ChoiceModel::default();
    model.weights = all.map(|name| (name, 0.3)).collect();
    model
}

fn candidates<'a>(counts: &'a BTreeMap<u32, f32>, sold: &'a [f64]) -> Candidates<'a> {
    let attribute = |name: &'a str| Attribute {
        name,
        values: (0..SKUS as u32).map(|nth| nth % 8).collect(),
        own: vec![1, 1, 2, 3, 1, 1, 2, 3, 1, 1],
        counts,
        sold,
        all: sold.iter().sum(),
    };
    Candidates {
        demand: (0..SKUS).map(|nth| [nth as f32 * 0.1; 3]).collect(),
        prices: (0..SKUS).map(|nth| (1.0 + nth as f32).ln()).collect(),
        own: (0..10)
            .map(|nth| OwnPurchase {
                place: Some(nth * 5),
                days: nth as f32 * 9.0,
            })
            .collect(),
        attributes: ["brand", "size"].map(attribute).into(),
    }
}

fn shares(c: &mut Criterion) {
    let counts: BTreeMap<u32, f32> = (0..8).map(|value| (value, value as f32)).collect();
    let (sold, model) = (vec![10.0; 8], model());
    let pus: Vec<Candidates<'_>> = (0..PUS).map(|_| candidates(&counts, &sold)).collect();
    c.bench_function("shares of 20 PUs of 64 SKUs", |b| {
        b.iter(|| pus.iter().map(|pu| model.shares(pu)).collect::<Vec<_>>());
    });
}

fn selection(c: &mut Criterion) {
    let mut group = c.benchmark_group("selection");
    for kinds in [6, SKUS] {
        let pus: Vec<_> = (0..PUS).map(|pu| posteriors(pu, kinds)).collect();
        group.bench_with_input(BenchmarkId::new("integrated", kinds), &pus, |b, pus| {
            b.iter(|| pus.iter().map(|pu| chances(pu)).collect::<Vec<_>>());
        });
        group.bench_with_input(BenchmarkId::new("drawn", kinds), &pus, |b, pus| {
            let mut random = ChaCha8Rng::seed_from_u64(1);
            b.iter(|| {
                pus.iter()
                    .map(|pu| drawn(pu, &mut random))
                    .collect::<Vec<_>>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, selection, shares);
criterion_main!(benches);
