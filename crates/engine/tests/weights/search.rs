//! The search on real weights: calibration, permitted sets, terms, limits; equal in any batch.

use std::time::Duration;

use fixedbitset::FixedBitSet;
use nearshore_core::names::scoring::{Calibration, ScoredName, Term, Values};

use super::*;

fn calibration(count: usize) -> Arc<Calibration> {
    let prompt = |nth: usize| {
        let bought = ["BREAD", "TEA BAGS", "DIAPERS", "CAT FOOD"][nth % 4];
        turns(format!("Bought lately: {bought}, {nth} times."), "Next:")
    };
    Arc::new(Calibration {
        hash: format!("calibration of {count}"),
        prompts: (0..count).map(prompt).collect(),
    })
}

fn requests(count: usize) -> Vec<ScoreRequest> {
    let calibration = calibration(3);
    let logs: Arc<[f32]> = (0..200).map(|pu| ((pu % 7 + 1) as f32).ln()).collect();
    let request = |nth: usize| {
        let bought = ["FLUID MILK", "BEER", "2% MILK"][nth % 3];
        let visits = "again ".repeat(nth % 11);
        let demand = Term {
            name: "demand",
            weight: 0.5,
            values: Values::Shared(Arc::clone(&logs)),
        };
        let repeat = Term {
            name: "repeat",
            weight: 1.0,
            values: Values::Sparse([(nth as u32, 1.5), (3, -2.0)].into()),
        };
        let permitted: FixedBitSet = (0..200)
            .filter(|pu| !(pu + nth).is_multiple_of(9))
            .collect();
        ScoreRequest {
            prompt: turns(format!("Bought lately: {bought} {visits}."), "Next:"),
            n: 5 + nth % 3,
            permitted: nth.is_multiple_of(2).then(|| Arc::new(permitted)),
            terms: if nth % 4 < 2 {
                vec![demand, repeat]
            } else {
                Vec::new()
            },
            calibration: (nth % 3 != 1).then(|| Arc::clone(&calibration)),
            ..ScoreRequest::default()
        }
    };
    (0..count).map(request).collect()
}

fn ready(threads: usize, limits: Limits) -> Constrained {
    let mut model = load(threads).limited(limits);
    model.set_names(names()).expect("set");
    model
}

fn named(responses: Vec<ScoreResponse>) -> Vec<Vec<nearshore_core::names::scoring::ScoredName>> {
    responses
        .into_iter()
        .map(|response| response.named)
        .collect()
}

/// The model's term of a name by brute force: `of` gives the value of a token at a depth; each choice is normalised over
/// the next tokens of all names that share the beginning.
fn term_of_model(names: &[Vec<u32>], at: usize, of: impl Fn(usize, u32) -> f64) -> f64 {
    let name = &names[at];
    let mut sum = 0f64;
    for depth in 0..name.len() {
        let under = names
            .iter()
            .filter(|other| other.starts_with(&name[..depth]));
        let mut children: Vec<u32> = under.map(|other| other[depth]).collect();
        children.sort_unstable();
        children.dedup();
        let norm: f64 = (children.iter()).map(|token| of(depth, *token).exp()).sum();
        sum += of(depth, name[depth]) - norm.ln();
    }
    sum
}

#[test]
fn the_calibration_mean_is_subtracted_as_by_brute_force() {
    // Each name is a forward pass per prompt by brute force.
    let all: Vec<&str> = NAMES.lines().take(8).collect();
    let names: Vec<String> = all.iter().map(|name| (*name).to_owned()).collect();
    let mut model = load(2);
    model
        .set_names(Arc::new(Names { version: 1, names }))
        .expect("set");
    let user = turns("Bought lately: FLUID MILK.", "Next:");
    let calibration = calibration(2);
    let request = ScoreRequest {
        prompt: user.clone(),
        n: 8,
        calibration: Some(Arc::clone(&calibration)),
        ..ScoreRequest::default()
    };
    let response = complete(&mut model, &[request]).remove(0);
    let text = Arc::clone(model.text());
    let named: Vec<Vec<u32>> = all
        .iter()
        .map(|name| {
            let tokens = text.name(name).expect("tokens");
            [&tokens[..], &[text.end()]].concat()
        })
        .collect();
    let plain = Plain::load(&model_path());
    // Per prompt and name: the logits from which each token of the name is scored.
    let logits = |prompt: &Prompt| -> Vec<Vec<Vec<f32>>> {
        let prompt = text.prompt(prompt).expect("tokens");
        let of = |name: &Vec<u32>| {
            let tokens = [&prompt[..], &name[..name.len() - 1]].concat();
            plain.logits(&tokens, name.len()).expect("computed")
        };
        named.iter().map(of).collect()
    };
    let user_logits = logits(&user);
    let calibration_logits: Vec<_> = calibration.prompts.iter().map(logits).collect();
    for found in &response.named {
        let at = found.pu as usize;
        let of = |depth: usize, token: u32| {
            let means = calibration_logits
                .iter()
                .map(|logits| f64::from(logits[at][depth][token as usize]));
            let mean = means.sum::<f64>() / calibration_logits.len() as f64;
            f64::from(user_logits[at][depth][token as usize]) - mean
        };
        let model = term_of_model(&named, at, of);
        assert!(
            (f64::from(found.model) - model).abs() < 2e-3,
            "{found:?} {model}"
        );
        assert_eq!(found.score, found.model, "weight 1, no other terms");
    }
    assert_eq!(response.named.len(), 8);
    assert!(response.named.is_sorted_by(|a, b| a.score >= b.score));
}

#[test]
fn lists_are_equal_with_means_cold_or_warm_and_after_another_catalogue() {
    let requests: Vec<ScoreRequest> = requests(9)
        .into_iter()
        .filter(|request| request.calibration.is_some())
        .collect();
    let mut model = ready(2, UNTIMED);
    let cold = named(complete(&mut model, &requests));
    let known = model.means_known()[0];
    assert!(known > 10, "means are kept: {known}");
    assert_eq!(named(complete(&mut model, &requests)), cold, "warm");
    assert_eq!(model.means_known()[0], known, "nothing was computed again");
    let fewer = NAMES.lines().step_by(2).map(String::from).collect();
    model
        .set_names(Arc::new(Names {
            version: 2,
            names: fewer,
        }))
        .expect("swapped");
    let after = complete(&mut model, &requests);
    assert!(after.iter().all(|response| response.names == 2));
    let mut fresh = load(1);
    let fewer = NAMES.lines().step_by(2).map(String::from).collect();
    fresh
        .set_names(Arc::new(Names {
            version: 2,
            names: fewer,
        }))
        .expect("set");
    assert_eq!(named(after), named(complete(&mut fresh, &requests)));
    model.set_names(names()).expect("swapped back");
    // In another order each user finds other means already known.
    let backwards: Vec<ScoreRequest> = requests.iter().rev().cloned().collect();
    let mut again = named(complete(&mut model, &backwards));
    again.reverse();
    assert_eq!(again, cold, "swapped back");
}

#[test]
fn a_user_gets_the_same_names_alone_among_16_on_1_or_2_threads_and_with_minimal_limits() {
    let requests = requests(16);
    let together = named(complete(&mut ready(2, UNTIMED), &requests));
    let one_thread = named(complete(&mut ready(1, UNTIMED), &requests));
    assert_eq!(together, one_thread, "bit for bit");
    let tight = Limits {
        rows_max: 7,
        kv_max: 1,
        ..UNTIMED
    };
    let mut tight = ready(2, tight);
    assert_eq!(
        named(complete(&mut tight, &requests[..8])),
        together[..8],
        "tight"
    );
    let mut alone = ready(2, UNTIMED);
    for nth in [0, 7, 15] {
        let response = complete(&mut alone, &requests[nth..=nth]);
        assert_eq!(named(response)[0], together[nth], "user {nth} alone");
    }
}

/// Prompts of users who buy one thing after the other, in the order in which they are asked for.
fn growing() -> Vec<Vec<ScoreRequest>> {
    let names: Vec<&str> = NAMES.lines().collect();
    let profile =
        "You know how people shop. Household: age 45-54; income 50-74K; 2 adults, 1 child. "
            .repeat(2);
    let bought = |user: usize, count: usize| -> String {
        let bought = (0..count).map(|nth| names[(user * 31 + nth * 7) % NAMES_COUNT]);
        bought.collect::<Vec<_>>().join(", ")
    };
    let prompt = |user: usize, count: usize| {
        let text = format!("{profile}Bought, oldest first: {}.", bought(user, count));
        ask(turns(text, "Next product:"), 5)
    };
    let round = |nth: usize| (0..4).map(|user| prompt(user, 3 + 2 * nth)).collect();
    (0..4).map(round).collect()
}

#[test]
fn lists_are_the_same_with_prompts_of_earlier_batches_kept_and_less_is_computed() {
    let run = |prompts_max: usize| -> (Vec<Vec<ScoredName>>, u32, usize) {
        let mut model = ready(
            2,
            Limits {
                prompts_max,
                ..UNTIMED
            },
        );
        let mut all = Vec::new();
        let mut computed = 0;
        for batch in growing() {
            let responses = complete(&mut model, &batch);
            computed += responses
                .iter()
                .map(|it| it.prompt_tokens - it.shared_tokens)
                .sum::<u32>();
            all.extend(named(responses));
        }
        assert!(model.prompts_bytes() <= prompts_max);
        (all, computed, model.prompts_bytes())
    };
    let (without, computed, kept) = run(0);
    assert_eq!(kept, 0);
    let (with, less, kept) = run(1 << 30);
    assert_eq!(with, without, "bit for bit");
    assert!(kept > 0);
    assert!(less * 2 < computed, "{less} of {computed} tokens");
    // Room for some of the users only: what is dropped is computed again.
    let (tight, some, kept) = run(kept / 3);
    assert_eq!(tight, without, "bit for bit");
    assert!(
        kept > 0 && less < some && some <= computed,
        "{less} {some} {computed}"
    );
}

#[test]
fn a_cancelled_request_gets_no_names_and_changes_no_other_list() {
    let requests = requests(6);
    let mut model = ready(2, UNTIMED);
    let all = named(complete(&mut model, &requests));
    requests[2].cancel.cancel();
    let responses = model.score(&requests).expect("scored");
    for (nth, response) in responses.iter().enumerate() {
        let ended = if nth == 2 {
            Ended::Cancelled
        } else {
            Ended::Complete
        };
        assert_eq!(response.ended, ended);
        assert_eq!(response.named.is_empty(), nth == 2);
        assert!(nth == 2 || response.named == all[nth]);
    }
}

#[test]
fn a_batch_over_its_time_limit_gives_no_names() {
    let limits = Limits {
        time_max: Duration::ZERO,
        ..UNTIMED
    };
    let responses = ready(2, limits).score(&requests(4)).expect("scored");
    assert!(
        responses
            .iter()
            .all(|a| a.ended == Ended::Late && a.named.is_empty()),
        "{responses:?}"
    );
}
