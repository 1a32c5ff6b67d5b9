//! Benchmarks of the trie over 10^4 to 10^6 synthetic names: build, permission, patch, maxima; and a trie of hash maps
//! for comparison.
//!
//! Names have 2 to 5 words of 1 to 3 tokens, drawn with falling frequency.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use std::collections::HashMap;
use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use fixedbitset::FixedBitSet;
use nearshore_core::names::trie::{LogWeights, Own, Permitted, Sequences, Trie};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const END: u32 = 2;
const SIZES: [usize; 3] = [10_000, 100_000, 1_000_000];

fn names(many: usize) -> Sequences {
    let mut rng = StdRng::seed_from_u64(4);
    let mut word = || -> Vec<u32> {
        // The power makes the first words common and the last rare.
        let nth = (rng.random::<f64>().powi(3) * 30_000.0) as u32;
        (0..1 + nth % 3)
            .map(|part| 10 + (nth * 7 + part * 9_973) % 49_000)
            .collect()
    };
    let mut sequences = Sequences::new(END);
    for nth in 0..many {
        let words: Vec<u32> = (0..2 + nth % 4).flat_map(|_| word()).collect();
        sequences.push(&words);
    }
    sequences
}

/// A random set of 95 % of the PUs.
fn most(many: usize) -> FixedBitSet {
    let mut rng = StdRng::seed_from_u64(5);
    (0..many).filter(|_| rng.random_bool(0.95)).collect()
}

/// The simplest trie: a map from node and token to node.
#[derive(Default)]
struct Naive {
    children: HashMap<(u32, u32), u32>,
    leaf: HashMap<u32, Vec<u32>>,
}

impl Naive {
    fn build(names: &[Vec<u32>]) -> Self {
        let mut trie = Self::default();
        let mut nodes = 1;
        for (pu, name) in names.iter().enumerate() {
            let mut at = 0;
            for token in name {
                at = *trie.children.entry((at, *token)).or_insert_with(|| {
                    nodes += 1;
                    nodes - 1
                });
            }
            trie.leaf.entry(at).or_default().push(pu as u32);
        }
        trie
    }
}

fn build(c: &mut Criterion) {
    let mut group = c.benchmark_group("build");
    group.sample_size(10);
    for many in SIZES {
        let names = names(many);
        let trie = Trie::build(&names);
        let each = trie.bytes() as f64 / trie.edges() as f64;
        println!("{many} names: {} edges, {each:.2} bytes each", trie.edges());
        group.bench_with_input(BenchmarkId::new("radix", many), &names, |b, names| {
            b.iter(|| Trie::build(black_box(names)));
        });
        if many <= 100_000 {
            let plain: Vec<Vec<u32>> = (0..names.len())
                .map(|nth| names.get(nth).to_vec())
                .collect();
            group.bench_with_input(BenchmarkId::new("hash maps", many), &plain, |b, names| {
                b.iter(|| Naive::build(black_box(names)));
            });
        }
    }
}

fn sets(c: &mut Criterion) {
    for many in SIZES {
        let trie = Trie::build(&names(many));
        let stock = most(many);
        let mut later = stock.clone();
        later.toggle(many / 3);
        let leaves = Permitted::new(&trie, &stock);
        let mut group = c.benchmark_group(format!("{many}"));
        group.bench_function("permission anew", |b| {
            b.iter(|| Permitted::new(&trie, black_box(&stock)));
        });
        group.bench_function("permission by difference of one PU", |b| {
            b.iter_batched_ref(
                || leaves.clone(),
                |leaves| leaves.patch(&trie, black_box(&stock), &later),
                BatchSize::LargeInput,
            );
        });
        group.bench_function("stock of one PU", |b| {
            let mut leaves = leaves.clone();
            b.iter(|| leaves.set(&trie, black_box(many as u32 / 3), true));
        });
        let weights = LogWeights::new(&trie, |pu| f64::from(pu % 97 + 1).ln());
        let root: Vec<_> = trie
            .children(&trie.root())
            .map(|child| child.leaves)
            .collect();
        group.bench_function("maxima of all first tokens", |b| {
            let max = |run| weights.max(run, Some(&leaves), &Own::default());
            b.iter(|| root.iter().map(max).sum::<f64>());
        });
    }
}

criterion_group!(benches, build, sets);
criterion_main!(benches);
