//! Laws of the sums: the best names by terms alone are those of the search at weight 0, and of brute force.

use fixedbitset::FixedBitSet;
use proptest::prelude::*;

use super::*;
use crate::names::scoring::Cancel;
use crate::names::search::{Question, Search, Terms};
use crate::names::trie::{LogWeights, Own, Permitted, Sequences, Trie};

/// The best names by a trie, as an engine searches them.
fn by_search(request: &ScoreRequest, names_len: usize) -> Vec<ScoredName> {
    let mut sequences = Sequences::new(1000);
    (0..names_len as u32).for_each(|name| sequences.push(&[name % 3, name % 7, name % 5]));
    let trie = Trie::build(&sequences);
    let shared = shared_sums(&shared_terms(&request.terms), names_len);
    let weights = LogWeights::new(&trie, |pu| shared[pu as usize]);
    let dense = dense_terms(&request.terms);
    let weights = weights.map(&trie, |pu, sum| {
        let known = dense
            .iter()
            .filter(|(values, _)| values.len() > pu as usize);
        known.fold(sum, |sum, (values, weight)| {
            sum + weight * finite(values[pu as usize])
        })
    });
    let terms = Terms {
        weights: Arc::new(weights),
        own: Own::new(&trie, sparse_sums(&request.terms).into_iter()),
    };
    let permitted = request.permitted.as_ref();
    let question = Question {
        permitted: permitted.map(|pus| Arc::new(Permitted::new(&trie, pus))),
        n: request.n,
        weight: 0.0,
        terms: Some(terms),
    };
    let mut search = Search::new(&trie, question);
    assert_eq!(search.next_wave(1), None, "weight 0 asks no model");
    let named = search.into_answer().into_iter().map(|found| ScoredName {
        pu: found.pu,
        score: found.score as f32,
        model: found.model as f32,
        terms: term_values(&request.terms, found.pu),
    });
    named.collect()
}

/// The best names by sorting all of them, from the values of each term.
fn by_brute_force(request: &ScoreRequest, names_len: usize) -> Vec<(u32, f64)> {
    let is_permitted = |pu: &u32| {
        let permitted = request.permitted.as_ref();
        permitted.is_none_or(|permitted| permitted.contains(*pu as usize))
    };
    let score = |pu: u32| -> f64 {
        let values = term_values(&request.terms, pu);
        let weighted = request.terms.iter().zip(values);
        let weighted = weighted.map(|(term, value)| f64::from(term.weight) * f64::from(value));
        weighted.fold(0.0, |sum, value| sum + value)
    };
    let permitted = (0..names_len as u32).filter(is_permitted);
    let mut all: Vec<(u32, f64)> = permitted.map(|pu| (pu, score(pu))).collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(request.n);
    all
}

fn values(len: usize) -> impl Strategy<Value = Values> {
    // Eighths are exact, so that sums tie where they should, in any order of addition.
    let log = || (-64i32..40).prop_map(|n| n as f32 / 8.0);
    let table = move || prop::collection::vec(log(), 0..len + 3);
    prop_oneof![
        table().prop_map(|logs| Values::Shared(logs.into())),
        table().prop_map(|logs| Values::Dense(logs.into())),
        prop::collection::vec((0..len as u32 + 3, log()), 0..9)
            .prop_map(|logs| Values::Sparse(logs.into())),
    ]
}

fn requests() -> impl Strategy<Value = (ScoreRequest, usize)> {
    (0usize..150, 0usize..160).prop_flat_map(|(len, n)| {
        let weight = prop::sample::select(vec![-1.0f32, 0.0, 0.5, 1.0, 2.0]);
        let terms = prop::collection::vec((weight, values(len)), 0..6);
        let bits = prop::option::of(prop::collection::vec(any::<bool>(), 0..len + 70));
        (terms, bits).prop_map(move |(terms, bits)| {
            let terms = terms.into_iter().map(|(weight, values)| Term {
                name: "a",
                weight,
                values,
            });
            let permitted = bits.map(|bits| {
                let ones = bits.iter().enumerate().filter(|(_, bit)| **bit);
                Arc::new(ones.map(|(pu, _)| pu).collect::<FixedBitSet>())
            });
            let request = ScoreRequest {
                terms: terms.collect(),
                permitted,
                n,
                weight: 0.0,
                ..ScoreRequest::default()
            };
            (request, len)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_best_by_terms_are_those_of_the_search_at_weight_0_and_of_brute_force(
        (request, len) in requests(),
    ) {
        let response = best(&request, len);
        prop_assert_eq!(&response.named, &by_search(&request, len));
        let found: Vec<(u32, f64)> = (response.named.iter())
            .map(|named| (named.pu, f64::from(named.score)))
            .collect();
        prop_assert_eq!(found, by_brute_force(&request, len));
        prop_assert_eq!(response.ended, Ended::Complete);
    }
}

fn term(values: Values) -> Term {
    Term {
        name: "a",
        weight: 1.0,
        values,
    }
}

fn ranked(terms: Vec<Term>, names_len: usize) -> Vec<(u32, f32)> {
    let request = ScoreRequest {
        terms,
        weight: 0.0,
        ..ScoreRequest::default()
    };
    let named = best(&request, names_len).named.into_iter();
    named.map(|named| (named.pu, named.score)).collect()
}

#[test]
fn a_product_newer_than_a_shared_table_has_its_least_value_and_0_beyond_a_dense_one() {
    let shared = term(Values::Shared([-2.0, -5.0, -3.0].into()));
    let expected = [(0, -2.0), (2, -3.0), (1, -5.0), (3, -5.0)];
    assert_eq!(ranked(vec![shared], 4), expected);
    let dense = term(Values::Dense([-2.0, 1.0].into()));
    assert_eq!(ranked(vec![dense], 3), [(1, 1.0), (2, 0.0), (0, -2.0)]);
    assert_eq!(ranked(vec![term(Values::Shared([].into()))], 1), [(0, 0.0)]);
}

#[test]
fn values_that_are_not_finite_make_no_score_undefined() {
    let values = [f32::NAN, f32::NEG_INFINITY, f32::INFINITY, 0.0, -0.0];
    let found = ranked(vec![term(Values::Shared(values.into()))], 5);
    let expected = [
        (2, f32::MAX),
        (3, 0.0),
        (4, 0.0),
        (0, f32::MIN),
        (1, f32::MIN),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_cancelled_request_gets_no_names() {
    let cancel = Cancel::default();
    cancel.cancel();
    let request = ScoreRequest {
        cancel,
        ..ScoreRequest::default()
    };
    let response = best(&request, 3);
    assert_eq!(
        (response.ended, response.named),
        (Ended::Cancelled, Vec::new())
    );
}
