//! Sums of terms per name, and the best names by the terms alone, without a model.
//!
//! Decides how a sum is computed: in `f64`, first the shared terms, then the dense ones, each in the order of the request,
//! then the sparse ones. Invariant: [`best`] returns, bit for bit, what [`Search`](crate::names::search::Search) finds at
//! model weight 0, because both add in this order; so a user's list does not depend on which of them made it. It does not
//! know tokens or tries.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use crate::names::scoring::{Ended, ScoreRequest, ScoreResponse, ScoredName, Term, Values};
use crate::names::search::Found;

/// The exact best names of a request by its terms, as a search at model weight 0 finds them. PUs are below `names_len`.
///
/// The prompt is not read, so its tokens are not counted, and the version of the names is the caller's to set.
pub fn best(request: &ScoreRequest, names_len: usize) -> ScoreResponse {
    if request.cancel.is_cancelled() {
        return ScoreResponse {
            ended: Ended::Cancelled,
            ..ScoreResponse::default()
        };
    }
    let named = top(request, &sums(&request.terms, names_len));
    let named = named.into_iter().map(|found| ScoredName {
        pu: found.pu,
        score: found.score as f32,
        model: 0.0,
        terms: term_values(&request.terms, found.pu),
    });
    ScoreResponse {
        named: named.collect(),
        ..ScoreResponse::default()
    }
}

/// The best permitted PUs, best first, ties by lower PU.
fn top(request: &ScoreRequest, sums: &[f64]) -> Vec<Found> {
    // The worst on top. PUs come in ascending order, so one that ties with it is worse.
    let mut found: BinaryHeap<Reverse<Found>> = BinaryHeap::new();
    let mut worst = f64::NEG_INFINITY;
    let mut keep = |pu: usize| {
        let Some(score) = sums.get(pu).copied() else {
            return;
        };
        if found.len() >= request.n && score <= worst {
            return;
        }
        let pu = pu as u32;
        let model = 0.0;
        found.push(Reverse(Found { pu, score, model }));
        if found.len() > request.n {
            found.pop();
        }
        worst = (found.peek()).map_or(f64::INFINITY, |worst| worst.0.score);
    };
    match &request.permitted {
        None => (0..sums.len()).for_each(&mut keep),
        Some(permitted) => permitted.ones().for_each(&mut keep),
    }
    let sorted = found.into_sorted_vec().into_iter();
    sorted.map(|Reverse(found)| found).collect()
}

/// The weighted sum of all terms per PU.
fn sums(terms: &[Term], names_len: usize) -> Vec<f64> {
    let mut sums = shared_sums(&shared_terms(terms), names_len);
    for (values, weight) in dense_terms(terms) {
        let each = sums.iter_mut().zip(values.iter());
        each.for_each(|(sum, value)| *sum += weight * finite(*value));
    }
    for (pu, own) in sparse_sums(terms) {
        if let Some(sum) = sums.get_mut(pu as usize) {
            *sum += own;
        }
    }
    // Minus zero is less than zero, but a score is not.
    sums.iter_mut().for_each(|sum| *sum += 0.0);
    sums
}

/// The tables of shared terms that have a weight, with their weights.
pub fn shared_terms(terms: &[Term]) -> Vec<(Arc<[f32]>, f32)> {
    let tables = terms.iter().filter_map(|term| match &term.values {
        Values::Shared(values) if term.weight != 0.0 => Some((Arc::clone(values), term.weight)),
        Values::Shared(_) | Values::Sparse(_) | Values::Dense(_) => None,
    });
    tables.collect()
}

/// The weighted sum of shared tables per PU.
pub fn shared_sums(tables: &[(Arc<[f32]>, f32)], names_len: usize) -> Vec<f64> {
    let mut sums = vec![0.0; names_len];
    for (values, weight) in tables {
        let weight = f64::from(*weight);
        let (known, newer) = sums.split_at_mut(values.len().min(names_len));
        let each = known.iter_mut().zip(values.iter());
        each.for_each(|(sum, value)| *sum += weight * finite(*value));
        if !newer.is_empty() {
            let least = weight * least(values);
            newer.iter_mut().for_each(|sum| *sum += least);
        }
    }
    sums
}

/// The dense terms that have a weight, with their weights. Their [`finite`] values are added one after another.
pub fn dense_terms(terms: &[Term]) -> Vec<(&[f32], f64)> {
    let tables = terms.iter().filter_map(|term| match &term.values {
        Values::Dense(values) if term.weight != 0.0 => Some((&values[..], f64::from(term.weight))),
        Values::Shared(_) | Values::Sparse(_) | Values::Dense(_) => None,
    });
    tables.collect()
}

/// The weighted sum of the sparse terms per PU, of the PUs that they name.
pub fn sparse_sums(terms: &[Term]) -> BTreeMap<u32, f64> {
    let mut sums = BTreeMap::new();
    for term in terms.iter().filter(|term| term.weight != 0.0) {
        let Values::Sparse(values) = &term.values else {
            continue;
        };
        for (pu, value) in values.iter() {
            *sums.entry(*pu).or_insert(0.0) += f64::from(term.weight) * finite(*value);
        }
    }
    sums
}

/// Value of each term for a PU, without its weight.
pub fn term_values(terms: &[Term], pu: u32) -> Vec<f32> {
    let value = |term: &Term| -> f64 {
        match &term.values {
            Values::Shared(values) => {
                let known = values.get(pu as usize);
                known.map_or_else(|| least(values), |value| finite(*value))
            }
            Values::Sparse(values) => {
                let found = values.iter().filter(|(of, _)| *of == pu);
                found.fold(0.0, |sum, (_, value)| sum + finite(*value))
            }
            Values::Dense(values) => values.get(pu as usize).map_or(0.0, |value| finite(*value)),
        }
    };
    terms.iter().map(|term| value(term) as f32).collect()
}

/// A value as it is added: finite, so that no term makes a score undefined.
pub fn finite(value: f32) -> f64 {
    let value = if value.is_nan() { f32::MIN } else { value };
    f64::from(value.clamp(f32::MIN, f32::MAX))
}

fn least(values: &[f32]) -> f64 {
    let least = values.iter().map(|value| finite(*value));
    least.reduce(f64::min).unwrap_or(0.0)
}

#[cfg(test)]
mod tests;
