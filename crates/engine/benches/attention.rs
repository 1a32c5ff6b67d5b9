//! Attention of prompt rows and of trie rows over a cached prompt, in the sizes of SmolLM2-135M.
//!
//! Run with `cargo bench --bench attention`. Throughput counts multiplications and additions of both products.

#![allow(missing_docs)] // criterion_group! makes a public function without one.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nearshore_engine::cpu::attention::{Heads, Queries, Sight, Span, attend};
use nearshore_engine::cpu::kv::{Cache, Sizes};

const HEADS: Heads = Heads {
    queries: 9,
    keys: 3,
    width: 64,
};

fn noise(len: usize) -> Vec<f32> {
    (0..len)
        .map(|nth| ((nth * 2_654_435_761) % 1_000) as f32 / 500.0 - 1.0)
        .collect()
}

/// A cache of `prompt` positions and `nodes` slots.
fn cache(prompt: usize, nodes: usize) -> Cache {
    let sizes = Sizes {
        layers: 1,
        heads: HEADS.keys,
        width: HEADS.width,
        number: size_of::<f32>(),
    };
    let mut cache = Cache::new(sizes);
    let row = noise(sizes.row());
    for at in 0..prompt {
        cache.write_prompt(0, at, &row, &row);
    }
    for _ in 0..nodes {
        cache.push_node(0, &row, &row);
    }
    cache.advance(prompt, nodes);
    cache
}

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    let prompt = |from: usize, rows: usize| -> Vec<Sight> {
        (from..from + rows)
            .map(|at| Sight {
                prompt: at + 1,
                slots: Vec::new(),
            })
            .collect()
    };
    let nodes = |context: usize, rows: u32| -> Vec<Sight> {
        (0..rows)
            .map(|at| Sight {
                prompt: context,
                slots: (at.saturating_sub(4)..=at).collect(),
            })
            .collect()
    };
    let cases = [
        ("prompt, 100 rows after 150", prompt(150, 100)),
        ("prompt, 256 rows", prompt(0, 256)),
        ("trie, 16 rows after 250", nodes(250, 16)),
        ("trie, 2 rows after 250", nodes(250, 2)),
    ];
    for (name, sights) in cases {
        let caches = [cache(256, 64)];
        let values = noise(sights.len() * HEADS.queries * HEADS.width);
        let seen: usize = sights
            .iter()
            .map(|sight| sight.prompt + sight.slots.len())
            .sum();
        group.throughput(Throughput::Elements(
            4 * (seen * HEADS.queries * HEADS.width) as u64,
        ));
        let spans = [Span {
            cache: 0,
            rows: 0..sights.len(),
        }];
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            let queries = Queries {
                heads: HEADS,
                values: &values,
                sights: &sights,
                window: None,
            };
            b.iter(|| attend(queries, &spans, &caches, 0));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_millis(500))
        .warm_up_time(std::time::Duration::from_millis(100));
    targets = attention
}
criterion_main!(benches);
