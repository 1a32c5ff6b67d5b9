//! What every [`Model`] promises, as a check that tests run on each of them.
//!
//! Invariant: a model passes whatever its scores are. It does not know how they come about.

use std::sync::Arc;

use fixedbitset::FixedBitSet;

use super::Model;
use nearshore_core::names::scoring::{Names, ScoreRequest, ScoreResponse, Term, Values};

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

/// Whether `model` keeps the contract; sets its names. `Err` says which promise it broke.
pub fn check(model: &mut dyn Model) -> Result<(), String> {
    let names = Names {
        version: 1,
        names: NAMES.map(String::from).to_vec(),
    };
    model
        .set_names(Arc::new(names))
        .map_err(|e| e.to_string())?;
    answers_are_complete_distinct_and_sorted(model)?;
    only_permitted_names_come(model)?;
    weight_0_is_the_demand(model)?;
    a_batch_answers_as_its_parts(model)?;
    names_can_be_swapped(model)
}

fn ask(prompt: &str, n: usize) -> ScoreRequest {
    let prompt = format!("I bought bread.\nNext: {prompt}");
    ScoreRequest {
        prompt,
        n,
        ..ScoreRequest::default()
    }
}

fn one(model: &mut dyn Model, request: ScoreRequest) -> Result<ScoreResponse, String> {
    let mut responses = model.score(&[request]).map_err(|e| e.to_string())?;
    match (responses.pop(), responses.is_empty()) {
        (Some(response), true) => Ok(response),
        _ => Err("one ask has not one answer".into()),
    }
}

fn pus(response: &ScoreResponse) -> Vec<u32> {
    response.named.iter().map(|named| named.pu).collect()
}

fn hold(promise: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if promise { Ok(()) } else { Err(what()) }
}

fn answers_are_complete_distinct_and_sorted(model: &mut dyn Model) -> Result<(), String> {
    for n in [0, 1, 3, 8, 20] {
        let response = one(model, ask("a", n))?;
        let mut distinct = pus(&response);
        distinct.sort_unstable();
        distinct.dedup();
        hold(distinct.len() == n.min(8), || {
            format!("{n} asked: {response:?}")
        })?;
        hold(
            response.named.is_sorted_by(|a, b| a.score >= b.score),
            || format!("not best first: {response:?}"),
        )?;
        let sum: f32 = response.named.iter().map(|named| named.score.exp()).sum();
        hold(n < 8 || (sum - 1.0).abs() < 1e-3, || {
            format!("probabilities add up to {sum}")
        })?;
    }
    Ok(())
}

fn only_permitted_names_come(model: &mut dyn Model) -> Result<(), String> {
    for permitted in [vec![], vec![4], vec![0, 3, 7], (0..8).collect()] {
        let mut bits = FixedBitSet::with_capacity(8);
        bits.extend(permitted.iter().copied());
        let bits = Some(Arc::new(bits));
        let response = one(
            model,
            ScoreRequest {
                permitted: bits,
                ..ask("a", 8)
            },
        )?;
        let mut found: Vec<usize> = pus(&response).iter().map(|pu| *pu as usize).collect();
        found.sort_unstable();
        hold(found == permitted, || {
            format!("permitted {permitted:?}, came {found:?}")
        })?;
    }
    Ok(())
}

fn weight_0_is_the_demand(model: &mut dyn Model) -> Result<(), String> {
    let mass: Arc<[f32]> = [3.0, 1.0, 7.0, 2.0, 8.0, 4.0, 6.0, 5.0].into();
    let total: f32 = mass.iter().sum();
    let terms = vec![Term {
        name: "demand",
        weight: 1.0,
        values: Values::Mass(Arc::clone(&mass)),
    }];
    let response = one(
        model,
        ScoreRequest {
            terms,
            weight: 0.0,
            ..ask("a", 8)
        },
    )?;
    hold(pus(&response) == [4, 2, 6, 7, 5, 0, 3, 1], || {
        format!("not the demand: {response:?}")
    })?;
    for named in &response.named {
        let share = (mass[named.pu as usize] / total).ln();
        let (score, term) = (
            named.score,
            named.terms.first().copied().unwrap_or(f32::NAN),
        );
        hold((score - share).abs() < 1e-4, || {
            format!("score {score}, demand {share}")
        })?;
        hold((term - share).abs() < 1e-4, || {
            format!("term {term}, demand {share}")
        })?;
    }
    Ok(())
}

fn a_batch_answers_as_its_parts(model: &mut dyn Model) -> Result<(), String> {
    let requests: Vec<ScoreRequest> = ["tea?", "milk, or rather cheese?", "b"]
        .map(|text| ask(text, 5))
        .into();
    let together = model.score(&requests).map_err(|e| e.to_string())?;
    hold(together.len() == requests.len(), || {
        "not one answer per ask".into()
    })?;
    for (request, response) in requests.into_iter().zip(together) {
        let alone = one(model, request)?;
        hold(alone.named == response.named, || {
            format!("alone {alone:?}, together {response:?}")
        })?;
    }
    hold(model.score(&[]).is_ok_and(|none| none.is_empty()), || {
        "an empty batch".into()
    })
}

fn names_can_be_swapped(model: &mut dyn Model) -> Result<(), String> {
    for names in [
        vec![],
        vec!["TEA".to_owned()],
        vec!["B".to_owned(), "A".to_owned()],
    ] {
        let many = names.len();
        let names = Arc::new(Names { version: 2, names });
        model.set_names(names).map_err(|e| e.to_string())?;
        let found = pus(&one(model, ask("a", 9))?);
        hold(found.len() == many, || {
            format!("{many} names, {found:?} came")
        })?;
    }
    Ok(())
}
