//! The real Gemma 3 270M: tokens of llama.cpp, logits of `transformers` and llama.cpp, equal scores in any batch.
//!
//! Needs the file that `NEARSHORE_TEST_GEMMA` names; `scripts/test` fetches it with `scripts/fetch-gemma`. The fixture
//! is written by `scripts/make-gemma-reference`.

use std::sync::Arc;

use nearshore_core::names::scoring::{Names, ScoreRequest};
use nearshore_engine::Model;
use nearshore_engine::search::constrained::Constrained;
use serde_json::Value;

use super::{NAMES, UNTIMED, ask, complete, options, turns};

/// The model's window; the fixture's last prompt is longer.
const WINDOW: usize = 512;

/// The largest difference of a logit from that of `transformers`, which are up to 30.
const DIFFERENCE_MAX: f64 = 2e-3;

/// The largest difference of a log-probability from llama.cpp's, which rounds the inputs of its products to 8 bits.
const ROUNDED_MAX: f64 = 0.5;

fn load(threads: usize) -> Constrained {
    let path = std::env::var_os("NEARSHORE_TEST_GEMMA");
    let path = path.expect("NEARSHORE_TEST_GEMMA is not set: run scripts/test");
    let model = Constrained::load(path.as_ref(), options(threads));
    model.expect("Gemma loads").limited(UNTIMED)
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().expect("ids").iter();
    ids.map(|id| id.as_u64().expect("id") as u32).collect()
}

/// One test, because loading takes longer than the rest.
#[test]
fn gemma_gives_the_tokens_and_logits_of_other_libraries_and_equal_scores_in_a_batch() {
    let fixture: Value =
        serde_json::from_str(include_str!("../fixtures/gemma.json")).expect("fixture");
    let mut model = load(2);
    for case in fixture["texts"].as_array().expect("texts") {
        let text = case["text"].as_str().expect("a text");
        let tokens = model.text().tokens(text).expect("tokens");
        assert_eq!(tokens, ids(&case["tokens"]), "{text:?}");
    }
    let prompts = fixture["prompts"].as_array().expect("prompts");
    for case in prompts {
        check_logits(&model, case);
    }
    let longest = prompts.iter().map(|case| ids(&case["tokens"]).len()).max();
    assert!(longest > Some(WINDOW), "a prompt is longer than the window");
    check_batch(&mut model);
}

fn check_logits(model: &Constrained, case: &Value) {
    let tokens = ids(&case["tokens"]);
    let prompt = case["prompt"].as_str().expect("a prompt");
    let read = model.text().prompt(&prompt.into()).expect("tokens");
    assert_eq!(read, tokens, "a text starts with <bos>");
    let all: Vec<u32> = (0..model.vocabulary() as u32).collect();
    let logits = model.logits(&tokens, &all).expect("logits");
    let of = |id: u32| f64::from(logits[id as usize]);
    let theirs = case["logits"].as_array().expect("logits").iter();
    let differences = (ids(&case["ids"]).into_iter().zip(theirs))
        .map(|(id, theirs)| (of(id) - theirs.as_f64().expect("a logit")).abs());
    let worst = differences.fold(0f64, f64::max);
    let greatest = all.iter().map(|id| of(*id)).fold(f64::MIN, f64::max);
    let sum: f64 = all.iter().map(|id| (of(*id) - greatest).exp()).sum();
    let rounded = case["llama.cpp"].as_array().expect("pairs").iter();
    let rounded = rounded.map(|pair| {
        let id = pair[0].as_u64().expect("an id") as u32;
        let ours = of(id) - greatest - sum.ln();
        (ours - pair[1].as_f64().expect("a logarithm")).abs()
    });
    let rounded = rounded.fold(0f64, f64::max);
    println!(
        "{} tokens: greatest difference of a logit {worst:.6}, from llama.cpp {rounded:.4}",
        tokens.len()
    );
    assert!(worst <= DIFFERENCE_MAX, "{worst}");
    assert!(rounded <= ROUNDED_MAX, "{rounded}");
}

/// Two users who share most of a prompt that is longer than the window, and one whose prompt is short.
fn check_batch(model: &mut Constrained) {
    let names: Vec<String> = NAMES.lines().step_by(10).map(String::from).collect();
    let names = Arc::new(Names { version: 1, names });
    model.set_names(names).expect("set");
    let long = "顾客最近购买：纯牛奶、全麦面包。Bought: FLUID MILK, BREAD. ".repeat(25);
    let requests: Vec<ScoreRequest> = [
        format!("{long} TEA."),
        format!("{long} 牙膏."),
        "TEA.".into(),
    ]
    .into_iter()
    .map(|user| ask(turns(user, "Next:"), 3))
    .collect();
    let tokens = model.text().prompt(&requests[0].prompt).expect("tokens");
    assert!(tokens.len() > WINDOW, "{}", tokens.len());
    let batch = complete(model, &requests);
    for (request, batch) in requests.into_iter().zip(batch) {
        let alone = complete(model, &[request]);
        assert_eq!(alone[0].named, batch.named, "bit for bit");
    }
}
