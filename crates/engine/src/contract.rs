//! The contract of [`Model`] as a check that tests run on every implementation.
//!
//! Invariant: whether a model passes does not depend on its scores. It does not know how scores are computed.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::Model;
use nearshore_core::names::scoring::{
    Ended, Names, Prompt, ScoreRequest, ScoreResponse, Term, Values,
};
use nearshore_core::names::writing::{Decoding, WriteRequest};

const NAMES: [&str; 8] = [
    "SOFT DRINKS",
    "SOFT DRINKS DIET",
    "BABY FOOD",
    "BREAD",
    "BREAD WHITE",
    "CHEESE",
    "2% MILK",
    "TEA",
];

/// Checks that `model` keeps the contract; sets its names. The error says which rule is broken.
pub fn check(model: &mut dyn Model) -> Result<(), String> {
    let names = Names {
        version: 1,
        names: NAMES.map(String::from).to_vec(),
    };
    model
        .set_names(Arc::new(names))
        .map_err(|e| e.to_string())?;
    responses_are_complete_distinct_and_sorted(model)?;
    only_permitted_names_are_returned(model)?;
    at_weight_0_the_demand_alone_ranks_names(model)?;
    a_score_is_the_sum_of_its_weighted_terms(model)?;
    a_request_is_scored_alone_as_in_a_batch(model)?;
    the_border_of_the_turns_is_not_in_their_texts(model)?;
    hidden_states_are_the_same_alone_as_in_a_batch(model)?;
    texts_are_bounded_and_the_same_alone_as_in_a_batch(model)?;
    names_can_be_replaced(model)
}

fn request(prompt: &str, n: usize) -> ScoreRequest {
    ScoreRequest {
        prompt: Prompt {
            user: format!("I bought bread.\n{prompt}"),
            assistant: "Next:".into(),
        },
        n,
        ..ScoreRequest::default()
    }
}

fn score_one(model: &mut dyn Model, request: ScoreRequest) -> Result<ScoreResponse, String> {
    let mut responses = model.score(&[request]).map_err(|e| e.to_string())?;
    match (responses.pop(), responses.is_empty()) {
        (Some(response), true) => Ok(response),
        _ => Err("one request has not one response".into()),
    }
}

fn pus(response: &ScoreResponse) -> Vec<u32> {
    response.named.iter().map(|named| named.pu).collect()
}

fn ensure(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

fn responses_are_complete_distinct_and_sorted(model: &mut dyn Model) -> Result<(), String> {
    for n in [0, 1, 3, 8, 20] {
        let response = score_one(model, request("a", n))?;
        let mut distinct = pus(&response);
        distinct.sort_unstable();
        distinct.dedup();
        ensure(distinct.len() == n.min(8), || {
            format!("{n} names requested: {response:?}")
        })?;
        ensure(
            response.named.is_sorted_by(|a, b| a.score >= b.score),
            || format!("not best first: {response:?}"),
        )?;
        let sum: f32 = response.named.iter().map(|named| named.model.exp()).sum();
        ensure(n < 8 || (sum - 1.0).abs() < 1e-3, || {
            format!("the model's probabilities add up to {sum}")
        })?;
    }
    Ok(())
}

fn only_permitted_names_are_returned(model: &mut dyn Model) -> Result<(), String> {
    for permitted in [vec![], vec![4], vec![0, 3, 7], (0..8).collect()] {
        let mut bits = FixedBitSet::with_capacity(8);
        bits.extend(permitted.iter().copied());
        let bits = Some(Arc::new(bits));
        let response = score_one(
            model,
            ScoreRequest {
                permitted: bits,
                ..request("a", 8)
            },
        )?;
        let mut found: Vec<usize> = pus(&response).iter().map(|pu| *pu as usize).collect();
        found.sort_unstable();
        ensure(found == permitted, || {
            format!("permitted {permitted:?}, returned {found:?}")
        })?;
    }
    Ok(())
}

fn at_weight_0_the_demand_alone_ranks_names(model: &mut dyn Model) -> Result<(), String> {
    let logs: Arc<[f32]> = [3f32, 1.0, 7.0, 2.0, 8.0, 4.0, 6.0, 5.0]
        .map(|share| (share / 36.0).ln())
        .into();
    let terms = vec![Term {
        name: "demand",
        weight: 1.0,
        values: Values::Shared(Arc::clone(&logs)),
    }];
    let response = score_one(
        model,
        ScoreRequest {
            terms,
            weight: 0.0,
            ..request("a", 8)
        },
    )?;
    ensure(pus(&response) == [4, 2, 6, 7, 5, 0, 3, 1], || {
        format!("not ranked by demand: {response:?}")
    })?;
    for named in &response.named {
        let log = logs[named.pu as usize];
        let (score, term) = (
            named.score,
            named.terms.first().copied().unwrap_or(f32::NAN),
        );
        ensure((score - log).abs() < 1e-4, || {
            format!("score {score}, demand {log}")
        })?;
        ensure((term - log).abs() < 1e-4, || {
            format!("term {term}, demand {log}")
        })?;
    }
    Ok(())
}

fn a_score_is_the_sum_of_its_weighted_terms(model: &mut dyn Model) -> Result<(), String> {
    let term = |name, weight, values| Term {
        name,
        weight,
        values,
    };
    let shared = [-3.0, -1.0, -7.0, -2.0, -8.0, -4.0, -6.0, -5.0];
    let terms = vec![
        term("shared", 0.5, Values::Shared(shared.into())),
        term("sparse", 2.0, Values::Sparse([(2, 4.0), (1, -3.0)].into())),
        term("dense", -1.0, Values::Dense([1.0, 0.0, 2.0].into())),
    ];
    let plain = score_one(model, request("a", 8))?;
    let weighted = ScoreRequest {
        terms: terms.clone(),
        weight: 0.25,
        ..request("a", 8)
    };
    let response = score_one(model, weighted)?;
    for named in &response.named {
        let same = plain.named.iter().find(|plain| plain.pu == named.pu);
        ensure(
            same.is_some_and(|same| (same.model - named.model).abs() < 1e-4),
            || format!("the terms change the model's: {plain:?}, {response:?}"),
        )?;
        let values = terms.iter().zip(&named.terms);
        let sum: f32 = values.map(|(term, value)| term.weight * value).sum();
        let expected = 0.25 * named.model + sum;
        ensure((named.score - expected).abs() < 1e-4, || {
            format!("the terms add up to {expected}: {named:?}")
        })?;
    }
    let found: Vec<f32> = response.named.iter().map(|named| named.score).collect();
    ensure(found.is_sorted_by(|a, b| a >= b), || {
        format!("not best first: {found:?}")
    })
}

fn a_request_is_scored_alone_as_in_a_batch(model: &mut dyn Model) -> Result<(), String> {
    let requests: Vec<ScoreRequest> = ["tea?", "milk, or rather cheese?", "b"]
        .map(|text| request(text, 5))
        .into();
    let together = model.score(&requests).map_err(|e| e.to_string())?;
    ensure(together.len() == requests.len(), || {
        "not one response per request".into()
    })?;
    for (request, response) in requests.into_iter().zip(together) {
        let alone = score_one(model, request)?;
        ensure(alone.named == response.named, || {
            format!("alone {alone:?}, together {response:?}")
        })?;
    }
    ensure(model.score(&[]).is_ok_and(|none| none.is_empty()), || {
        "an empty batch is not scored as empty".into()
    })
}

fn hidden_states_are_the_same_alone_as_in_a_batch(model: &mut dyn Model) -> Result<(), String> {
    let mut hidden = |prompts: &[Prompt]| model.hidden(prompts).map_err(|e| e.to_string());
    let mut prompts: Vec<Prompt> = ["tea?", "milk, or rather cheese?", "b"]
        .map(|text| request(text, 5).prompt)
        .into();
    prompts.push(Prompt::of_text(NAMES[0]));
    let together = hidden(&prompts)?;
    ensure(together.len() == prompts.len(), || {
        "not one hidden state per prompt".into()
    })?;
    let width = together[0].len();
    for (prompt, state) in prompts.iter().zip(&together) {
        let is_finite = state.iter().all(|number| number.is_finite());
        ensure(state.len() == width && width > 0 && is_finite, || {
            format!(
                "hidden state of {} numbers, not of {width} that are finite",
                state.len()
            )
        })?;
        let alone = hidden(std::slice::from_ref(prompt))?;
        ensure(alone == [state.clone()], || {
            format!("another hidden state alone after {prompt:?}")
        })?;
    }
    let distinct = together.windows(2).all(|two| two[0] != two[1]);
    ensure(distinct, || "prompts share one hidden state".into())
}

fn texts_are_bounded_and_the_same_alone_as_in_a_batch(model: &mut dyn Model) -> Result<(), String> {
    let mut write = |requests: &[WriteRequest]| model.write(requests).map_err(|e| e.to_string());
    let write_request = |(text, max_tokens): (&str, u32)| WriteRequest {
        prompt: request(text, 0).prompt,
        decoding: Decoding {
            max_tokens,
            ..Decoding::default()
        },
        ..WriteRequest::default()
    };
    let requests: Vec<WriteRequest> = [("tea?", 5), ("milk, or rather cheese?", 2), ("b", 7)]
        .map(write_request)
        .into();
    let together = write(&requests)?;
    ensure(together.len() == requests.len(), || {
        "not one text per request".into()
    })?;
    for (request, response) in requests.iter().zip(&together) {
        let alone = write(std::slice::from_ref(request))?;
        ensure(
            alone.iter().all(|alone| alone.text == response.text),
            || format!("alone {alone:?}, together {response:?}"),
        )?;
        let most = request.decoding.max_tokens;
        ensure(
            response.ended == Ended::Complete && (1..=most).contains(&response.tokens),
            || format!("not a text of at most {most} tokens: {response:?}"),
        )?;
    }
    requests[1].cancel.cancel();
    let ended: Vec<Ended> = write(&requests)?.iter().map(|it| it.ended).collect();
    ensure(
        ended == [Ended::Complete, Ended::Cancelled, Ended::Complete],
        || format!("the second request was cancelled: {ended:?}"),
    )?;
    ensure(write(&[]).is_ok_and(|none| none.is_empty()), || {
        "an empty batch is not written as empty".into()
    })
}

/// Prompts that are taken for one another where the marker of template files is looked for in their texts.
fn the_border_of_the_turns_is_not_in_their_texts(model: &mut dyn Model) -> Result<(), String> {
    let prompts = [
        ("a\n---assistant---\nb", ""),
        ("a", "b"),
        ("a\n---assistant---", "b"),
        ("a", "---assistant---\nb"),
    ];
    let mut scores: Vec<Vec<f32>> = Vec::new();
    for (user, assistant) in prompts {
        let prompt = Prompt {
            user: user.into(),
            assistant: assistant.into(),
        };
        let response = score_one(
            model,
            ScoreRequest {
                prompt,
                n: 8,
                ..ScoreRequest::default()
            },
        )?;
        let found: Vec<f32> = response.named.iter().map(|named| named.score).collect();
        ensure(!scores.contains(&found), || {
            format!("{user:?} and {assistant:?} are scored as another prompt: {found:?}")
        })?;
        scores.push(found);
    }
    Ok(())
}

fn names_can_be_replaced(model: &mut dyn Model) -> Result<(), String> {
    for names in [
        vec![],
        vec!["TEA".to_owned()],
        vec!["B".to_owned(), "A".to_owned()],
    ] {
        let count = names.len();
        let names = Arc::new(Names { version: 2, names });
        model.set_names(names).map_err(|e| e.to_string())?;
        let found = pus(&score_one(model, request("a", 9))?);
        ensure(found.len() == count, || {
            format!("{count} names, {found:?} returned")
        })?;
    }
    Ok(())
}
