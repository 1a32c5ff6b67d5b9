//! Benchmarks of matching texts with 10^4 and 10^5 names, on one core, without vectors.
//!
//! `cargo bench -p nearshore-core --bench matcher`.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nearshore_core::names::matcher::{Example, FitOptions, Matcher, Memory, fit};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SYLLABLES: [&str; 24] = [
    "ba", "cor", "dal", "fen", "gi", "hos", "jun", "kel", "lo", "mir", "no", "pel", "quin", "ros",
    "se", "tam", "ul", "ver", "wes", "zan", "chi", "stra", "ber", "ry",
];

/// Words whose frequencies fall as those of product names do.
fn words(random: &mut ChaCha8Rng) -> Vec<String> {
    let word = |_| {
        (0..random.random_range(2..4))
            .map(|_| *SYLLABLES.choose(random).expect("some"))
            .collect()
    };
    (0..5_000).map(word).collect()
}

fn name(words: &[String], random: &mut ChaCha8Rng) -> String {
    let word = |random: &mut ChaCha8Rng| {
        let draw: f64 = random.random();
        words[((words.len() as f64).powf(draw) - 1.0) as usize].as_str()
    };
    let many = random.random_range(2..6);
    (0..many)
        .map(|_| word(random))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A text of a name: a letter is another one, or a brand is in front.
fn text(name: &str, random: &mut ChaCha8Rng) -> String {
    if random.random_bool(0.5) {
        return format!("Fenbar {name} 12 oz");
    }
    let at = random.random_range(1..name.len());
    format!("{}x{}", &name[..at], &name[at + 1..])
}

fn matching(c: &mut Criterion) {
    let mut group = c.benchmark_group("matcher");
    for many in [10_000, 100_000] {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let words = words(&mut random);
        let names: Vec<String> = (0..many).map(|_| name(&words, &mut random)).collect();
        let texts: Vec<String> = names
            .choose_multiple(&mut random.clone(), 1_000)
            .map(|name| text(name, &mut random))
            .collect();
        let matcher = Matcher::new(
            names
                .iter()
                .zip(0u32..)
                .map(|(name, nth)| (nth, name.as_str())),
        );
        let products = |at: usize| u32::try_from(at).expect("few");
        let labelled = (0..400).map(|at| Example {
            text: text(&names[at], &mut random),
            vector: None,
            product: Some(products(at)),
            kind: String::new(),
        });
        let labelled: Vec<Example> = labelled.collect();
        let fitted = fit(&matcher, &labelled, &FitOptions::default()).expect("fits");
        println!(
            "{many} names: of held-out texts the first is right in {:?}",
            fitted.all.first
        );
        group.throughput(Throughput::Elements(texts.len() as u64));
        group.sample_size(10);
        group.bench_with_input(BenchmarkId::new("texts", many), &texts, |b, texts| {
            let mut memory = Memory::default();
            b.iter(|| {
                let answers = texts
                    .iter()
                    .map(|text| matcher.answer(&fitted.model, (text, None), &mut memory));
                answers.filter(|answer| answer.probability > 0.5).count()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, matching);
criterion_main!(benches);
