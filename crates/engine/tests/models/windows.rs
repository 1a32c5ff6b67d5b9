//! Sliding windows in the search: a small random Gemma whose prompts and names are longer than its window.

use std::sync::Arc;

use nearshore_core::names::scoring::{Names, Prompt, ScoreRequest, ScoredName};
use nearshore_engine::search::constrained::Constrained;
use nearshore_engine::{Model, Options, Place, Precision};

use crate::files::{REFERENCE, fixture};

const NAMES: &str = include_str!("../fixtures/names.txt");

/// The window of `gemma3.gguf`, as `scripts/make-families` has it.
const WINDOW: usize = 17;

/// Names of the real shop, of which many share a beginning, and two that differ after more than the window.
fn names() -> Vec<String> {
    let before = format!("MILK {}", "AND CHEESE ".repeat(9));
    let long = ["TEA", "SALT"].map(|last| format!("{before}{last}"));
    let names = NAMES.lines().step_by(5).map(String::from);
    names.chain(long).collect()
}

fn loaded(options: Options) -> Constrained {
    let mut model = Constrained::load(&fixture("gemma3.gguf"), options).expect("loads");
    let names = Arc::new(Names {
        version: 1,
        names: names(),
    });
    model.set_names(names).expect("set");
    model
}

fn request(user: &str, n: usize) -> ScoreRequest {
    ScoreRequest {
        prompt: Prompt {
            user: user.into(),
            assistant: "Next:".into(),
        },
        n,
        ..ScoreRequest::default()
    }
}

/// Prompts of different lengths that share more than a block of keys and values.
fn requests(n: usize) -> Vec<ScoreRequest> {
    let shared = "You know how households shop. This one lives in a city and buys most of its food on Fridays. ";
    let user = |nth: usize| format!("{shared}Bought: {}.", "2% MILK, BREAD, ".repeat(nth * 3));
    (0..4).map(|nth| request(&user(nth), n)).collect()
}

fn score(model: &mut Constrained, requests: &[ScoreRequest]) -> Vec<Vec<ScoredName>> {
    let responses = model.score(requests).expect("scored");
    responses
        .into_iter()
        .map(|response| response.named)
        .collect()
}

#[test]
fn the_search_through_a_window_finds_what_brute_force_finds() {
    let mut model = loaded(REFERENCE);
    let text = Arc::clone(model.text());
    let count = names().len();
    let requests = &requests(count)[..2];
    let found = score(&mut model, requests);
    let named = names().into_iter().map(|name| {
        let tokens = text.name(&name).expect("tokens");
        [&tokens[..], &[text.end()]].concat()
    });
    let names: Vec<Vec<u32>> = named.collect();
    let [.., tea, salt] = &names[..] else {
        panic!("there are names");
    };
    let shared = tea.iter().zip(salt).take_while(|(a, b)| a == b).count();
    assert!(
        shared > WINDOW + 1,
        "a name branches after more than the window"
    );
    for (request, found) in requests.iter().zip(&found) {
        let prompt = text.prompt(&request.prompt).expect("tokens");
        assert!(prompt.len() > 3 * WINDOW, "{}", prompt.len());
        assert_eq!(found.len(), count);
        let mut exact: Vec<f64> = vec![0.0; names.len()];
        // Every beginning of a name is computed once, as a prompt, without the cache of the search.
        let mut beginnings: Vec<&[u32]> = (names.iter())
            .flat_map(|name| (0..name.len()).map(|depth| &name[..depth]))
            .collect();
        beginnings.sort_unstable();
        beginnings.dedup();
        for beginning in beginnings {
            let under = |name: &[u32]| name.starts_with(beginning) && name.len() > beginning.len();
            let mut children: Vec<u32> = (names.iter().filter(|name| under(name)))
                .map(|name| name[beginning.len()])
                .collect();
            children.sort_unstable();
            children.dedup();
            if children.len() < 2 {
                continue;
            }
            let logits = model.logits(&[&prompt[..], beginning].concat(), &children);
            let logits = logits.expect("logits");
            let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
            for (exact, name) in exact.iter_mut().zip(&names).filter(|(_, name)| under(name)) {
                let child = children
                    .binary_search(&name[beginning.len()])
                    .expect("a child");
                *exact += f64::from(logits[child]) - sum.ln();
            }
        }
        for found in found {
            let exact = exact[found.pu as usize];
            let difference = (f64::from(found.score) - exact).abs();
            assert!(difference < 1e-4, "{found:?} {exact}");
        }
    }
}

#[test]
fn a_user_of_a_model_with_windows_gets_the_same_scores_alone_and_in_a_batch() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let options = |threads| Options {
            threads,
            precision,
            ..REFERENCE
        };
        let requests = requests(7);
        let batch = score(&mut loaded(options(2)), &requests);
        let mut apart = loaded(options(1));
        for (nth, (request, batch)) in requests.iter().zip(&batch).enumerate() {
            let alone = score(&mut apart, std::slice::from_ref(request));
            assert_eq!(
                alone[0], *batch,
                "{precision:?}, request {nth}, bit for bit"
            );
        }
        assert_ne!(batch[0], batch[1], "other prompts have other scores");
    }
}

#[test]
fn a_model_with_windows_is_refused_on_a_device_with_the_reason() {
    let options = Options {
        place: Place::Tensors,
        ..REFERENCE
    };
    let refused = Constrained::load(&fixture("gemma3.gguf"), options);
    let refused = refused.err().expect("refused");
    let why = std::error::Error::source(&refused).map(ToString::to_string);
    assert!(
        why.is_some_and(|why| why.contains("sliding windows")),
        "{refused}"
    );
}
