//! The search on real weights: means, permissions, terms, limits; the same in any company.

use std::time::Duration;

use fixedbitset::FixedBitSet;
use nearshore_core::names::scoring::{Calibration, Ended, ScoreResponse, Term, Values};
use nearshore_engine::search::constrained::Limits;

use super::*;

fn calibration(many: usize) -> Arc<Calibration> {
    let prompt = |nth: usize| {
        let bought = ["BREAD", "TEA BAGS", "DIAPERS", "CAT FOOD"][nth % 4];
        format!("Bought lately: {bought}, {nth} times.\n---assistant---\nNext:")
    };
    Arc::new(Calibration {
        hash: format!("calibration of {many}"),
        prompts: (0..many).map(prompt).collect(),
    })
}

fn requests(many: usize) -> Vec<ScoreRequest> {
    let calibration = calibration(3);
    let mass: Arc<[f32]> = (0..200).map(|pu| (pu % 7 + 1) as f32).collect();
    let request = |nth: usize| {
        let bought = ["FLUID MILK", "BEER", "2% MILK"][nth % 3];
        let visits = "again ".repeat(nth % 11);
        let demand = Term {
            name: "demand",
            weight: 0.5,
            values: Values::Mass(Arc::clone(&mass)),
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
            prompt: format!("Bought lately: {bought} {visits}.\n---assistant---\nNext:"),
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
    (0..many).map(request).collect()
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

/// Sums of a name's edges, each shared among the names' own next tokens: of both values that `of` says
/// for a depth and a token.
fn edges(names: &[Vec<u32>], at: usize, of: impl Fn(usize, u32) -> (f64, f64)) -> (f64, f64) {
    let name = &names[at];
    let mut sums = (0f64, 0f64);
    for depth in 0..name.len() {
        let under = names
            .iter()
            .filter(|other| other.starts_with(&name[..depth]));
        let mut children: Vec<u32> = under.map(|other| other[depth]).collect();
        children.sort_unstable();
        children.dedup();
        let values = children.iter().map(|token| of(depth, *token));
        let norms = values.fold((0f64, 0f64), |sum, (a, b)| {
            (sum.0 + a.exp(), sum.1 + b.exp())
        });
        let own = of(depth, name[depth]);
        sums = (sums.0 + own.0 - norms.0.ln(), sums.1 + own.1 - norms.1.ln());
    }
    sums
}

#[test]
fn a_mean_is_taken_off_as_by_brute_force() {
    let all: Vec<&str> = NAMES.lines().take(24).collect();
    let names: Vec<String> = all.iter().map(|name| (*name).to_owned()).collect();
    let mut model = load(2);
    model
        .set_names(Arc::new(Names { version: 1, names }))
        .expect("set");
    let user = "Bought lately: FLUID MILK.\n---assistant---\nNext:";
    let calibration = calibration(2);
    let request = ScoreRequest {
        prompt: user.into(),
        n: 24,
        calibration: Some(Arc::clone(&calibration)),
        ..ScoreRequest::default()
    };
    let response = model.generate(&[request]).expect("answered").remove(0);
    let text = Arc::clone(model.text());
    let named: Vec<Vec<u32>> = all
        .iter()
        .map(|name| {
            let tokens = text.name(name).expect("tokens");
            [&tokens[..], &[text.end()]].concat()
        })
        .collect();
    let plain = Plain::load(&model_path());
    // Per prompt and name the logits behind each of its tokens' predecessors.
    let behind = |prompt: &str| -> Vec<Vec<Vec<f32>>> {
        let prompt = text.prompt(prompt).expect("tokens");
        let of = |name: &Vec<u32>| {
            let tokens = [&prompt[..], &name[..name.len() - 1]].concat();
            plain.logits(&tokens, name.len()).expect("computed")
        };
        named.iter().map(of).collect()
    };
    let own = behind(user);
    let others: Vec<_> = calibration
        .prompts
        .iter()
        .map(|prompt| behind(prompt))
        .collect();
    for found in &response.named {
        let at = found.pu as usize;
        let of = |depth: usize, token: u32| {
            let means = others
                .iter()
                .map(|other| f64::from(other[at][depth][token as usize]));
            let mean = means.sum::<f64>() / others.len() as f64;
            (f64::from(own[at][depth][token as usize]) - mean, mean)
        };
        let (score, baseline) = edges(&named, at, of);
        let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 2e-3;
        assert!(near(found.score, score), "{found:?} {score}");
        assert!(near(found.baseline, baseline), "{found:?} {baseline}");
    }
    assert_eq!(response.named.len(), 24);
    assert!(response.named.is_sorted_by(|a, b| a.score >= b.score));
}

#[test]
fn lists_are_the_same_with_means_cold_or_warm_and_across_catalogues() {
    let requests: Vec<ScoreRequest> = requests(9)
        .into_iter()
        .filter(|request| request.calibration.is_some())
        .collect();
    let mut model = ready(2, Limits::default());
    let cold = named(model.generate(&requests).expect("answered"));
    let known = model.means_known()[0];
    assert!(known > 10, "means are kept: {known}");
    assert_eq!(
        named(model.generate(&requests).expect("answered")),
        cold,
        "warm"
    );
    assert_eq!(model.means_known()[0], known, "nothing was computed again");
    let fewer = NAMES.lines().step_by(2).map(String::from).collect();
    model
        .set_names(Arc::new(Names {
            version: 2,
            names: fewer,
        }))
        .expect("swapped");
    let after = model.generate(&requests).expect("answered");
    assert!(after.iter().all(|response| response.names == 2));
    let mut fresh = load(1);
    let fewer = NAMES.lines().step_by(2).map(String::from).collect();
    fresh
        .set_names(Arc::new(Names {
            version: 2,
            names: fewer,
        }))
        .expect("set");
    assert_eq!(
        named(after),
        named(fresh.generate(&requests).expect("answered"))
    );
    model.set_names(names()).expect("swapped back");
    // Another order: each user meets other means already known.
    let backwards: Vec<ScoreRequest> = requests.iter().rev().cloned().collect();
    let mut again = named(model.generate(&backwards).expect("answered"));
    again.reverse();
    assert_eq!(again, cold, "swapped back");
}

#[test]
fn a_user_is_the_same_alone_among_64_on_1_or_2_threads_and_with_hardly_any_room() {
    let requests = requests(64);
    let together = named(
        ready(2, Limits::default())
            .generate(&requests)
            .expect("answered"),
    );
    let one_thread = named(
        ready(1, Limits::default())
            .generate(&requests)
            .expect("answered"),
    );
    assert_eq!(together, one_thread, "bit for bit");
    let tight = Limits {
        rows_max: 7,
        kv_max: 1,
        ..Limits::default()
    };
    let mut tight = ready(2, tight);
    assert_eq!(
        named(tight.generate(&requests[..12]).expect("answered")),
        together[..12],
        "tight"
    );
    let mut alone = ready(2, Limits::default());
    for nth in [0, 7, 31, 63] {
        let response = alone.generate(&requests[nth..=nth]).expect("answered");
        assert_eq!(named(response)[0], together[nth], "user {nth} alone");
    }
}

#[test]
fn who_is_called_off_gets_no_names_and_costs_the_others_nothing() {
    let requests = requests(6);
    let mut model = ready(2, Limits::default());
    let all = named(model.generate(&requests).expect("answered"));
    requests[2].cancel.cancel();
    let responses = model.generate(&requests).expect("answered");
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
fn a_generation_whose_time_is_over_has_no_names_of_anyone() {
    let limits = Limits {
        time_max: Duration::ZERO,
        ..Limits::default()
    };
    let responses = ready(2, limits).generate(&requests(4)).expect("answered");
    assert!(
        responses
            .iter()
            .all(|a| a.ended == Ended::Late && a.named.is_empty()),
        "{responses:?}"
    );
}
