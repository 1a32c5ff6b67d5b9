//! Benchmarks of the similarity of one user's ten texts to 10^3 and 10^4 names of 384 numbers.
//!
//! `cargo bench --bench similarity`.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nearshore_core::text::vectors::{Similarities, Vectors};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const WIDTH: usize = 384;

fn similarity(c: &mut Criterion) {
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut group = c.benchmark_group("similarity");
    for names in [1_000, 10_000] {
        let mut vectors = Vectors::new("of a benchmark", WIDTH);
        let texts: Vec<String> = (0..names).map(|nth| format!("name {nth}")).collect();
        for text in &texts {
            let numbers: Vec<f32> = (0..WIDTH).map(|_| random.random_range(-1.0..1.0)).collect();
            vectors.insert(text, &numbers).expect("fits");
        }
        let of_names = texts.iter().map(|text| vectors.get(text));
        let table = Similarities::new(WIDTH, of_names);
        assert!(
            table.centre().iter().all(|x| *x != 0.0),
            "every name has a vector"
        );
        let user: Vec<(&str, f32)> = texts
            .iter()
            .take(10)
            .map(|text| (text.as_str(), 1.0))
            .collect();
        group.bench_with_input(BenchmarkId::new("user", names), &user, |b, user| {
            b.iter(|| {
                table.to_user(
                    user.iter()
                        .map(|(text, weight)| (vectors.get(text), *weight)),
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, similarity);
criterion_main!(benches);
