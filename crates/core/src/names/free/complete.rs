//! The score response of a written list: written names first, in their order, then the best of the terms.
//!
//! Decides scores: each written name is lifted one nat above the next, the last one above all names of the terms. What
//! lifts it is the model's term, so that the score stays the sum of its terms. Invariant: scores fall along the
//! response, and no product is in it twice. It does not know how names were accepted.

use std::collections::BTreeMap;
use std::sync::Arc;

use fixedbitset::FixedBitSet;

use crate::names::scoring::{ScoreRequest, ScoreResponse, ScoredName};
use crate::names::sum::best;
use crate::names::written::Written;

/// The response of a request by what was written; it has no name if none was accepted. `names_len`: number of products.
pub fn respond(request: &ScoreRequest, written: Written, names_len: usize) -> ScoreResponse {
    let pus: Vec<u32> = written.accepted.iter().map(|name| name.pu).collect();
    let named = match pus.is_empty() {
        true => Vec::new(),
        false => complete(request, &pus, names_len),
    };
    ScoreResponse {
        named,
        written: Some(Arc::new(written)),
        ..ScoreResponse::default()
    }
}

/// The names `pus` in their order, filled up to the wanted number by the terms. Without terms nothing is filled up:
/// all products would be equal.
pub(super) fn complete(request: &ScoreRequest, pus: &[u32], names_len: usize) -> Vec<ScoredName> {
    let known = pus.iter().filter(|pu| (**pu as usize) < names_len);
    let mut seen = FixedBitSet::with_capacity(names_len);
    let pus: Vec<u32> = known
        .copied()
        .filter(|pu| !seen.put(*pu as usize))
        .take(request.n)
        .collect();
    let mut own = by_terms(request, seen, pus.len(), names_len)
        .into_iter()
        .map(|name| (name.pu, name))
        .collect::<BTreeMap<_, _>>();
    let fill = fill(request, &pus, names_len);
    let scores = own.values().chain(&fill).map(|name| name.score);
    let top = scores.fold(f32::MIN, f32::max);
    let weight = if request.weight == 0.0 {
        1.0
    } else {
        request.weight
    };
    let places = (0..pus.len()).rev();
    let lifted = pus.iter().zip(places).filter_map(|(pu, below)| {
        let mut name = own.remove(pu)?;
        let score = top + 1.0 + below as f32;
        name.model = (score - name.score) / weight;
        name.score = score;
        Some(name)
    });
    let mut named: Vec<ScoredName> = lifted.collect();
    named.extend(fill);
    named
}

/// The best names of the terms that are not written.
fn fill(request: &ScoreRequest, pus: &[u32], names_len: usize) -> Vec<ScoredName> {
    let ranks = request.terms.iter().any(|term| term.weight != 0.0);
    let room = request.n.saturating_sub(pus.len());
    if !ranks || room == 0 {
        return Vec::new();
    }
    let mut others = match &request.permitted {
        Some(permitted) => (**permitted).clone(),
        None => {
            let mut all = FixedBitSet::with_capacity(names_len);
            all.insert_range(..);
            all
        }
    };
    let within = others.len();
    for pu in pus.iter().filter(|pu| (**pu as usize) < within) {
        others.set(*pu as usize, false);
    }
    by_terms(request, others, room, names_len)
}

/// The best names of a set by the terms alone.
fn by_terms(
    request: &ScoreRequest,
    set: FixedBitSet,
    n: usize,
    names_len: usize,
) -> Vec<ScoredName> {
    let request = ScoreRequest {
        permitted: Some(Arc::new(set)),
        n,
        ..request.clone()
    };
    best(&request, names_len).named
}
