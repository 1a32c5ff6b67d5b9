//! Benchmarks of whole searches over a model that costs nothing: the time of the search itself, to compare with a
//! forward pass; and of lists without a model, by [`sum::best`].
//!
//! Of the searches only [`Search`] is timed; not the logits, which are hashes of a token's path, nor the conversion of the
//! permitted set, which `benches/trie.rs` times.

#![allow(missing_docs)] // criterion_group! makes a public function without one.
#![allow(clippy::disallowed_types, clippy::disallowed_macros)] // A benchmark reads the clock and prints.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fixedbitset::FixedBitSet;
use nearshore_core::names::scoring::{ScoreRequest, Term, Values};
use nearshore_core::names::search::{Question, Search, Terms};
use nearshore_core::names::sum;
use nearshore_core::names::trie::{LogWeights, Own, Permitted, Sequences, Trie};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn trie(many: usize) -> Trie {
    let mut rng = StdRng::seed_from_u64(4);
    let mut sequences = Sequences::new(2);
    for nth in 0..many {
        let word = |_| 10 + (rng.random::<f64>().powi(3) * 30_000.0) as u32;
        let words: Vec<u32> = (0..2 + nth % 4).map(word).collect();
        sequences.push(&words);
    }
    Trie::build(&sequences)
}

/// Item ids ("semantic ids") of three codes of 256 each, as in generative recommenders and `scripts/benches/cuda.py`.
fn ids(many: usize) -> Trie {
    let mut rng = StdRng::seed_from_u64(3);
    let mut all = BTreeSet::new();
    while all.len() < many {
        all.insert([0, 256, 512].map(|level| 2 + level + rng.random_range(0..256u32)));
    }
    let mut sequences = Sequences::new(1);
    all.iter().for_each(|item| sequences.push(item));
    Trie::build(&sequences)
}

/// A peaked model: by path, some tokens are much likelier than others.
fn logit(path: u64, token: u32) -> f32 {
    let hash = (path ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let unit = (hash >> 40) as f32 / (1 << 24) as f32;
    -4.0 * (1.0 - unit).max(1e-6).ln()
}

/// Runs a search; returns its own time, the number of rows and of waves.
fn run(trie: &Trie, question: Question) -> (Duration, usize, usize) {
    let (mut search_time, mut rows, mut waves) = (Duration::ZERO, 0, 0);
    let mut paths: Vec<u64> = Vec::new();
    let start = Instant::now();
    let wanted = question.n;
    let mut search = Search::new(trie, question);
    search_time += start.elapsed();
    loop {
        let start = Instant::now();
        let wave = search.next_wave(wanted.max(96));
        search_time += start.elapsed();
        let Some(wave) = wave else { break };
        let mut logits = Vec::new();
        for node in &wave.nodes {
            let above = node.parent.map_or(1, |parent| paths[parent as usize]);
            let mix = |path: u64, token: &u32| path.rotate_left(5) ^ (u64::from(*token) * 0x1_0001);
            let path = node.chain.iter().fold(above, mix);
            logits.extend(node.children.iter().map(|token| logit(path, *token)));
            rows += node.chain.len();
            paths.push(path);
        }
        waves += 1;
        let start = Instant::now();
        search.feed(&logits, &[]);
        search_time += start.elapsed();
    }
    let start = Instant::now();
    assert_eq!(search.into_answer().len(), wanted);
    search_time += start.elapsed();
    (search_time, rows, waves)
}

fn searches(c: &mut Criterion) {
    let mut group = c.benchmark_group("top 50");
    for many in [10_000, 100_000, 1_000_000] {
        let trie = trie(many);
        let mut rng = StdRng::seed_from_u64(5);
        let pus: FixedBitSet = (0..many).filter(|_| rng.random_bool(0.95)).collect();
        let permitted = Arc::new(Permitted::new(&trie, &pus));
        let weights = LogWeights::new(&trie, |pu| f64::from(pu % 97 + 1).ln());
        let plain = Question {
            n: 50,
            weight: 1.0,
            ..Question::default()
        };
        let mixed = Question {
            permitted: Some(permitted),
            terms: Some(Terms {
                weights: Arc::new(weights),
                own: Own::new(&trie, (0..50).map(|nth| (nth * 31, -1.0))),
            }),
            ..plain.clone()
        };
        for (what, question) in [
            ("model alone", plain),
            ("95 % permitted, demand, own", mixed),
        ] {
            let (search_time, rows, waves) = run(&trie, question.clone());
            println!(
                "{many} names, {what}: {rows} tokens in {waves} waves, {search_time:?} in the search"
            );
            group.bench_with_input(BenchmarkId::new(what, many), &question, |b, question| {
                b.iter_custom(|times| (0..times).map(|_| run(&trie, question.clone()).0).sum());
            });
        }
    }
}

/// Shapes of other systems' benchmarks, which `scripts/bench engine --cuda` times as a whole.
fn of_ids(c: &mut Criterion) {
    let mut group = c.benchmark_group("100,000 item ids");
    let trie = ids(100_000);
    for n in [50, 256, 5000] {
        let question = Question {
            n,
            weight: 1.0,
            ..Question::default()
        };
        let (search_time, rows, waves) = run(&trie, question.clone());
        println!(
            "top {n} of item ids: {rows} tokens in {waves} waves, {search_time:?} in the search"
        );
        group.bench_with_input(BenchmarkId::new("top", n), &question, |b, question| {
            b.iter_custom(|times| (0..times).map(|_| run(&trie, question.clone()).0).sum());
        });
    }
}

/// The best names by terms alone, for users of whom each has sparse and dense terms of their own.
fn without_a_model(c: &mut Criterion) {
    let mut group = c.benchmark_group("top 20 without a model");
    for many in [10_000, 100_000] {
        let mut rng = StdRng::seed_from_u64(6);
        let mut table =
            || -> Arc<[f32]> { (0..many).map(|_| -9.0 * rng.random::<f32>()).collect() };
        let shared = [table(), table(), table()].map(Values::Shared);
        let dense = [table(), table()].map(Values::Dense);
        let mut rng = StdRng::seed_from_u64(7);
        let sparse = [200, 50].map(|few| {
            let own = (0..few).map(|_| (rng.random_range(0..many as u32), rng.random::<f32>()));
            Values::Sparse(own.collect())
        });
        let pus: FixedBitSet = (0..many).filter(|_| rng.random_bool(0.95)).collect();
        let terms = shared.into_iter().chain(dense).chain(sparse);
        let request = ScoreRequest {
            permitted: Some(Arc::new(pus)),
            n: 20,
            weight: 0.0,
            terms: terms
                .map(|values| Term {
                    name: "term",
                    weight: 0.7,
                    values,
                })
                .collect(),
            ..ScoreRequest::default()
        };
        assert_eq!(sum::best(&request, many).named.len(), 20);
        group.bench_with_input(
            BenchmarkId::new("3 shared, 2 dense, 2 sparse terms", many),
            &request,
            |b, request| b.iter(|| sum::best(request, many)),
        );
    }
}

criterion_group!(benches, without_a_model, searches, of_ids);
criterion_main!(benches);
